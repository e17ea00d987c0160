"""The index in MongoDB's protocol, on a real server (FerretDB): the contract, others' documents, restarts, wrong URLs.

What FerretDB does not do is not proven here: documents that expire by themselves, updates that exclude each other,
search by an index, replica sets, users with fewer rights.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any, NoReturn

import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_indexes import QUERIES, REPOSITORY, empty, records

from trifle_otel.errors import ConfigurationError, DamagedArchive, MissingDependency, StoreUnavailable, UsageError
from trifle_otel.indexes.contract import Index
from trifle_otel.records import Position, Query, TraceRecord
from trifle_otel.testing import IndexContract, expected, pages, sample_record

pymongo = pytest.importorskip("pymongo")
from bson import Int64, ObjectId  # noqa: E402 - only where the driver is there

from trifle_otel.indexes.mongo import MongoIndex, open_mongo  # noqa: E402

names = (f"traces_{number}" for number in count(1))

RUBY_ID = "65a1b2c3d4e5f60718293a4b"
RUBY_DOCUMENT = {
    "_id": ObjectId(RUBY_ID),
    "state": "success",
    "tags": ["Alpha", "Żaba"],
    "context": {"tenant": 9},
    "duration": 7,
    "counters": {
        "states": {"success": 70, "warning": 6, "error": 4, "debug": 2},
        "types": {"text": 54, "head": 3, "raw": 17, "media": 8},
        "max_level": 3,
    },
    "length": 82,
    "parts": 1,
    "last_at": datetime(2026, 11, 24, 3, 7, 40, 579000, tzinfo=timezone.utc),
    "expires_at": datetime(2026, 11, 27, 3, 7, 40, 572000, tzinfo=timezone.utc),
    "key": "commodity/calculate/one",
    "segments": ["commodity", "commodity/calculate", "commodity/calculate/one"],
    "meta": "[9,133554920]",
    "first_at": datetime(2026, 11, 24, 3, 7, 40, 572000, tzinfo=timezone.utc),
    "retention": 3,
    "bucket_id": 1,
}
FROM_RUBY = TraceRecord(
    reference=RUBY_ID,
    key="commodity/calculate/one",
    segments=("commodity", "commodity/calculate", "commodity/calculate/one"),
    state="success",
    tags=("Alpha", "Żaba"),
    meta=[9, 133554920],
    context={"tenant": 9},
    duration=7,
    counters={
        "states": {"success": 70, "warning": 6, "error": 4, "debug": 2},
        "types": {"text": 54, "head": 3, "raw": 17, "media": 8},
        "max_level": 3,
    },
    length=82,
    parts=1,
    first_at=datetime(2026, 11, 24, 3, 7, 40, 572000, tzinfo=timezone.utc),
    last_at=datetime(2026, 11, 24, 3, 7, 40, 579000, tzinfo=timezone.utc),
    retention=3,
    expires_at=datetime(2026, 11, 27, 3, 7, 40, 572000, tzinfo=timezone.utc),
)
MILLISECOND = timedelta(milliseconds=1)


class MongoContract(IndexContract):
    """The contract, with times in milliseconds."""

    tick = MILLISECOND
    searches = 50  # FerretDB goes through the whole collection for each


contract = MongoContract()
sample, kept = contract.sample, contract.kept


@pytest.fixture(scope="module")
def server(server_missing: Callable[[str], NoReturn]) -> servers.FerretDB:
    """The session's FerretDB."""
    try:
        return servers.ferretdb()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))


@pytest.fixture
def name(server: servers.FerretDB) -> str:
    """A collection's name of this test's own."""
    return next(names)


@pytest.fixture
def collection(server: servers.FerretDB, name: str) -> Iterator[Any]:
    """That collection, by a plain client."""
    with pymongo.MongoClient(server.url(), tz_aware=True) as client:
        yield client["test"][name]
        client["test"].drop_collection(name)


@pytest.fixture
def index(server: servers.FerretDB, collection: Any) -> Iterator[MongoIndex]:
    """An index in that collection, which is not there yet."""
    with closing(open_mongo(f"{server.url()}?collection={collection.name}")) as index:
        yield index


class TestMongoIndex(MongoContract):
    """The index in MongoDB's protocol passes the contract."""

    @pytest.fixture
    def index(self, server: servers.FerretDB, collection: Any) -> Iterator[Index]:
        """An index in a new collection."""
        with closing(MongoIndex(server.url(), collection=collection.name)) as index:
            index.setup()
            yield index


@pytest.fixture(scope="module")
def kept_index(server: servers.FerretDB) -> Iterator[Index]:
    """An index that each example empties."""
    with closing(MongoIndex(server.url(), collection="kept_traces")) as index:
        yield index


@given(stored=records(), queries=st.lists(QUERIES, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_hold_what_matches_once_and_in_order(
    kept_index: Index, stored: list[TraceRecord], queries: list[Query]
) -> None:
    """The pages of any search, one after the other, are the matching records in order: none twice, none left out."""
    empty(kept_index)
    kept_index.put(stored)
    for query in queries:
        found = list(pages(kept_index, query))
        assert [record for page in found for record in page] == expected(map(kept, stored), query)
        assert all(len(page) <= query.limit for page in found)


@given(history=st.lists(records(), min_size=1, max_size=4), query=QUERIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_searches_after_replacements(kept_index: Index, history: list[list[TraceRecord]], query: Query) -> None:
    """After any sequence of batches a search finds the records that the rule of replacement leaves, and no others."""
    empty(kept_index)
    model: dict[str, TraceRecord] = {}
    for batch in history:
        kept_index.put(batch)
        for record in batch:
            old = model.get(record.reference)
            if old is None or record.state != "running" or old.state == "running":  # all samples have as many parts
                model[record.reference] = kept(record)
    found = [record for page in pages(kept_index, query) for record in page]
    assert found == expected(model.values(), query)


def test_a_document_is_as_the_format_says(index: MongoIndex, collection: Any) -> None:
    """A document holds what Ruby's and Elixir's libraries read, in the types that they expect, and no other names."""
    index.put([sample_record(reference=RUBY_ID, bucket_name="b")])
    (document,) = collection.find()
    assert document == {
        "_id": ObjectId(RUBY_ID),
        "key": "commodity/calculate/one",
        "segments": ["commodity", "commodity/calculate", "commodity/calculate/one"],
        "state": "success",
        "tags": ["product:9", "store:133554920"],
        "meta": '[9,133554920,{"name":"Żaba"}]',
        "context": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "tenant": 9},
        "duration": 1234,
        "counters": dict(sample_record().counters),
        "length": 316,
        "parts": 2,
        "first_at": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc),
        "last_at": datetime(2026, 1, 2, 3, 4, 6, 912000, tzinfo=timezone.utc),
        "retention": 7,
        "expires_at": datetime(2026, 1, 9, 3, 4, 5, 678000, tzinfo=timezone.utc),
        "bucket_name": "b",
        "bucket_id": 0,
    }
    assert collection.find_one({"_id": ObjectId(RUBY_ID)}) == document
    index.put([sample_record(reference="text", meta=None)])
    assert collection.find_one({"_id": "text"})["meta"] is None


def test_documents_of_others_and_ours_are_found_together(index: MongoIndex, collection: Any) -> None:
    """A document that Ruby wrote is read in full, searched, replaced, deleted beside ours; what else it has stays."""
    collection.insert_one({**RUBY_DOCUMENT, "note": "mine"})
    ours = sample()
    index.put([ours])
    assert index.find(RUBY_ID) == FROM_RUBY
    assert index.search(Query(segment="commodity/calculate")) == [FROM_RUBY, ours]
    assert index.search(Query(all_tags=("Żaba",))) == [FROM_RUBY]
    changed = replace(FROM_RUBY, state="error", tags=())
    index.put([changed])
    assert index.search(Query(state="error")) == [changed]
    assert collection.find_one({"_id": ObjectId(RUBY_ID)})["note"] == "mine"
    index.delete([RUBY_ID])
    assert index.search(Query()) == [ours]


def test_ruby_updates_our_document(index: MongoIndex, collection: Any) -> None:
    """Ruby's own update of a trace that goes on changes a document of ours."""
    index.put([sample_record(reference=RUBY_ID, state="running", parts=1)])
    changes = {name: RUBY_DOCUMENT[name] for name in ("state", "tags", "context", "duration", "parts", "last_at")}
    collection.update_one({"_id": ObjectId(RUBY_ID)}, {"$set": changes})
    found = index.find(RUBY_ID)
    assert found is not None
    assert (found.state, found.tags, found.duration) == ("success", ("Alpha", "Żaba"), 7)


def test_buckets_by_position(server: servers.FerretDB, collection: Any) -> None:
    """Documents carry a bucket's name and position; where there is the position alone, the list gives the name."""
    collection.insert_one(RUBY_DOCUMENT)
    with closing(open_mongo(f"{server.url()}?collection={collection.name}&buckets=one,two,three")) as index:
        index.put([sample_record(bucket_name="three"), sample_record(reference="other", bucket_name="unknown")])
        assert [record.bucket_name for record in index.search(Query())] == ["two", "unknown", "three"]
    stored = {document["key"]: document for document in collection.find({"bucket_name": "three"})}
    assert [document["bucket_id"] for document in stored.values()] == [2]
    assert collection.find_one({"_id": "other"})["bucket_id"] == 0


@pytest.mark.parametrize("named", [True, False], ids=["elixir", "ruby"])
def test_setup_harms_nothing_that_others_made(
    index: MongoIndex, collection: Any, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Indexes that Ruby or Elixir made, under whatever names, stay and are not made twice; documents stay."""
    theirs = {
        "segments_first_at_reference": [("segments", 1), ("first_at", -1), ("_id", -1)],
        "first_at_reference": [("first_at", -1), ("_id", -1)],
        "expires_at_ttl": [("expires_at", 1)],
    }
    collection.insert_one(RUBY_DOCUMENT)
    for name, keys in theirs.items():
        collection.create_index(keys, **({"name": name} if named else {}))
    before = {each["name"]: each["key"] for each in collection.list_indexes()}
    with caplog.at_level(logging.WARNING, "trifle_otel"):
        index.setup()
        index.check()
    now = {each["name"]: each["key"] for each in collection.list_indexes()}
    assert {name: now[name] for name in before} == before
    assert len(now) == 8  # that of _id, the format's six, the trace id's
    assert list(collection.find()) == [RUBY_DOCUMENT]
    assert caplog.messages == []


def test_a_server_without_expiry_is_said(index: MongoIndex, collection: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where documents cannot expire by themselves, setting up says so once, and makes an index for cleaning up."""
    with caplog.at_level(logging.WARNING, "trifle_otel"):
        index.setup()
        index.setup()
    assert [message.count("expireAfterSeconds") for message in caplog.messages] == [1]
    assert "trifle-otel cleanup" in caplog.text
    assert [("expires_at", 1)] in [list(each["key"].items()) for each in collection.list_indexes()]
    index.put([sample_record()])
    assert index.expired(sample().expires_at) == [sample()]


def test_a_mix_of_references_is_paged_in_one_order(index: MongoIndex) -> None:
    """Within a millisecond ObjectIds come before texts, both descending, and pages leave none out."""
    ids = [f"{n:024x}" for n in (1, 2, 3)]
    index.put(
        [sample_record(reference=reference) for reference in [*ids, "a", "b", "zz", "01KDYAK3SEABCDEFGHJKMNPQRS"]]
    )
    wanted = [ids[2], ids[1], ids[0], "zz", "b", "a", "01KDYAK3SEABCDEFGHJKMNPQRS"]
    for limit in (1, 2, 3, 10):
        assert [each.reference for page in pages(index, Query(limit=limit)) for each in page] == wanted


def test_a_reference_keeps_its_capitals(index: MongoIndex, collection: Any) -> None:
    """A reference of 24 hex digits in capitals, which no ObjectId keeps, is given back as it is: a payload's path."""
    index.put([sample_record(reference=RUBY_ID.upper())])
    assert index.find(RUBY_ID.upper()) == sample(reference=RUBY_ID.upper())
    assert index.search(Query()) == [sample(reference=RUBY_ID.upper())]
    assert collection.find_one()["_id"] == ObjectId(RUBY_ID)


def test_what_a_server_refuses_is_stored_in_a_plainer_form(index: MongoIndex) -> None:
    """Names with points or dollars, lists in lists, huge numbers and foul texts cost no trace, nor others with it."""
    context = {"http.method": "GET", "$x": 1, "lists": [[1, [2]]], "huge": 2**80, "n\0": "\udc80", "tenant": 9}
    batch = [sample_record(reference=f"ref-{n}") for n in range(6)]
    batch[1] = replace(batch[1], context=context)
    batch[4] = replace(batch[4], context={"a": {"b.c": [1]}}, state="running")
    index.put(batch)
    index.put(batch)
    found = {record.reference: record for record in index.search(Query())}
    assert found.keys() == {f"ref-{n}" for n in range(6)}
    assert found["ref-4"] == kept(replace(batch[4], context={"a": {"b．c": [1]}}))
    plainer = {"http．method": "GET", "＄x": 1, "lists": ["[1,[2]]"], "huge": str(2**80), "n␀": "\\udc80", "tenant": 9}
    assert found["ref-1"] == kept(replace(batch[1], context=plainer))
    assert all(found[f"ref-{n}"] == kept(batch[n]) for n in (0, 2, 3, 5))


def test_a_record_that_is_too_large_is_given_up(index: MongoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """MongoDB takes no document of more than 16 MiB, however often it is tried: no other record waits for it."""

    def limited(real: Callable[..., Any]) -> Callable[..., Any]:
        def update(collection: Any, wanted: Any, *rest: Any, **options: Any) -> Any:
            if wanted["_id"] == "large":
                raise pymongo.errors.WriteError("Resulting document after update is larger than 16777216", 17419)
            return real(collection, wanted, *rest, **options)

        return update

    def refused(*_: Any, **__: Any) -> Any:
        raise pymongo.errors.OperationFailure("BSONObj size is invalid", 10334)

    monkeypatch.setattr(pymongo.collection.Collection, "bulk_write", refused)
    update_one = pymongo.collection.Collection.update_one
    monkeypatch.setattr(pymongo.collection.Collection, "update_one", limited(update_one))
    index.put([sample_record(reference="usual")])
    with pytest.raises(UsageError, match=r"refuses the record of large.*16777216"):
        index.put([sample_record(reference="large")])
    assert index.find("usual") is not None


def test_texts_and_numbers_at_their_ends(index: MongoIndex) -> None:
    """Foul texts in a search, the largest numbers, the ends of the calendar and huge arguments do no harm."""
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc)
    record = replace(
        sample_record(meta="é" * 9_000_000, first_at=datetime(1, 1, 1, tzinfo=timezone.utc)),
        duration=2**70,
        length=2**70,
        retention=2**70,
        last_at=last,
        expires_at=last,
    )
    index.put([record])
    found = index.find(record.reference)
    assert found is not None
    assert found.meta == "<18,000,002 bytes, too many for a document; they are in the archive's record.json>"
    largest = 2**63 - 1
    assert replace(found, meta=None) == kept(
        replace(record, meta=None, duration=largest, length=largest, retention=largest)
    )
    assert index.search(Query(min_duration=2**80)) == [found]
    assert index.search(Query(segment="k\0", state="\udc80", trace_id="\0", any_tags=("\0",))) == []
    assert index.search(Query(after=Position(-(10**30), ""))) == []
    assert index.search(Query(after=Position(10**30, "\0"), since=last, until=last)) == []
    assert index.find("a\0\udc80") is None
    index.delete(["a\0\udc80"])


def test_documents_of_another_shape(index: MongoIndex, collection: Any) -> None:
    """A document that is no trace's is `DamagedArchive` with its id; what Ruby may leave out has its default."""
    sparse = {name: RUBY_DOCUMENT[name] for name in ("key", "segments", "state", "first_at", "last_at", "expires_at")}
    collection.insert_one({"_id": "sparse", "retention": Int64(3), "meta": "no JSON", **sparse})
    (found,) = index.search(Query())
    assert (found.tags, found.context, found.parts, found.meta) == ((), {}, 0, "no JSON")
    assert found.counters["max_level"] == 0
    collection.insert_one({"_id": "letter", "text": "dear friend"})
    with pytest.raises(DamagedArchive, match="letter"):
        index.search(Query())
    assert index.search(Query(segment="commodity")) == [found]


@pytest.mark.parametrize("name", ["", "system.users", "a$b", "1a", "a b", "a\0"])
def test_a_name_that_is_no_collections_is_refused(name: str) -> None:
    """A name that cannot be a collection's is `ConfigurationError`."""
    with pytest.raises(ConfigurationError):
        MongoIndex("mongodb://127.0.0.1/x", collection=name)


SECRET = "s3cret"


@pytest.mark.parametrize(
    "url, error, said",
    [
        ("mongodb://trifle:s3cret@127.0.0.1:{port}/test", ConfigurationError, "uthentication"),
        ("mongodb://trifle:s3cret@127.0.0.1:1/x?serverSelectionTimeoutMS=200", StoreUnavailable, "refused"),
        ("mongodb://trifle:s3cret@127.0.0.1:{port}/", ConfigurationError, "names no database"),
        (
            "mongodb://trifle:s3cret@127.0.0.1/x?colection=y",
            ConfigurationError,
            "own options are collection and buckets",
        ),
        ("mongodb://trifle:s3cret@@127.0.0.1/x", ConfigurationError, "no URL"),
        ("mongodb://trifle:s3cret/@127.0.0.1/x", ConfigurationError, "mongodb://trifle@127"),
        ("mongodb://trifle:s3cret@127.0.0.1:port/x", ConfigurationError, "no URL"),
        ("mongodb://trifle:s3cret@127.0.0.1/x?collection=", ConfigurationError, "collection"),
    ],
)
def test_wrong_urls_and_logins(server: servers.FerretDB, url: str, error: type[Exception], said: str) -> None:
    """Each wrong login or URL has an error that says what is wrong, and never shows the password."""

    def use() -> None:
        with closing(open_mongo(url.format(port=server.port))) as index:
            assert SECRET not in repr(index)
            index.setup()

    with pytest.raises(error, match=said) as caught:
        use()
    shown: BaseException | None = caught.value
    while shown is not None:
        assert SECRET not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def test_nothing_connects_before_it_must() -> None:
    """An index on a port where nobody listens is made, shown and closed without a thread; using it is an error."""
    before = threading.active_count()
    index = open_mongo("mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=200")
    assert repr(index) == "MongoIndex('mongodb://127.0.0.1:1/x', collection='trifle_traces')"
    assert index.remote
    assert threading.active_count() == before
    with pytest.raises(StoreUnavailable, match="refused") as caught:
        index.put([sample_record()])
    assert isinstance(caught.value.__cause__, pymongo.errors.ServerSelectionTimeoutError)
    index.close()


@pytest.fixture
def own_server(server: servers.FerretDB) -> Iterator[servers.FerretDB]:
    """A server of a test's own, which it may take away."""
    own = servers.FerretDB()
    own.start()
    with servers.removing(own):
        yield own


def test_a_server_that_is_away(own_server: servers.FerretDB) -> None:
    """While the server is stopped calls are `StoreUnavailable`; when it is back the same index goes on."""
    with closing(open_mongo(f"{own_server.url()}?serverSelectionTimeoutMS=500")) as index:
        index.put([sample_record()])
        own_server.stop()
        for call in (lambda: index.put([sample_record()]), lambda: index.search(Query()), index.setup):
            with pytest.raises(StoreUnavailable):
                call()
        own_server.start()
        index.put([sample_record(reference="after")])
        own_server.stop()
        own_server.start()
        index.put([sample_record(reference="again")])  # by a connection that is dead
        assert len(index.search(Query())) == 3


def test_a_server_that_hangs(own_server: servers.FerretDB) -> None:
    """A server that takes connections and answers nothing is `StoreUnavailable` within the limits of time."""
    limits = "socketTimeoutMS=500&serverSelectionTimeoutMS=500&connectTimeoutMS=500"
    with closing(open_mongo(f"{own_server.url()}?{limits}")) as index:
        index.put([sample_record()])
        own_server.freeze()
        for call in (lambda: index.put([sample_record()]), lambda: index.search(Query())):
            with pytest.raises(StoreUnavailable):
                call()
        own_server.thaw()
        assert _found_at_last(index) == [sample()]


def _found_at_last(index: Index) -> list[TraceRecord]:
    """What a search finds once the driver has noticed that the server is back: it looks from time to time."""
    end = time.monotonic() + 20
    while True:
        try:
            return index.search(Query())
        except StoreUnavailable:
            assert time.monotonic() < end


PUTTER = """
import sys
from datetime import timedelta
from trifle_otel.indexes.mongo import open_mongo
from trifle_otel.testing import START, sample_record
index = open_mongo(sys.argv[1])
name = sys.argv[2]
for number in range(5):
    shared = [sample_record(reference=f"shared-{number}-{n:03}") for n in range(20)]
    own = [sample_record(reference=f"{name}-{number:02}-{n:02}", tags=(name,), state="error" if n % 20 else "running",
        first_at=START + timedelta(seconds=n)) for n in range(40)]
    batch = shared + own
    index.put(batch if name == "a" else batch[::-1])
index.close()
"""


@pytest.mark.slow  # FerretDB takes a quarter of a minute for it
def test_two_processes_put_at_once(server: servers.FerretDB, index: MongoIndex, collection: Any) -> None:
    """Two processes that make the collection and put the same and other references at once lose nothing."""
    command = [sys.executable, "-c", PUTTER, f"{server.url()}?collection={collection.name}"]
    processes = [subprocess.Popen([*command, name], cwd=REPOSITORY) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    for name in "ab":
        own = [record for page in pages(index, Query(all_tags=(name,), limit=300)) for record in page]
        assert len(own) == 200
    assert collection.count_documents({}) == 2 * 200 + 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_of_its_own(
    server: servers.FerretDB, index: MongoIndex, collection: Any
) -> None:
    """Parent and child of a fork both put and find after it, unwarned; the child's end leaves the parent's working."""
    script = """
import os, sys
from trifle_otel.indexes.mongo import open_mongo
from trifle_otel.testing import sample_record
index = open_mongo(sys.argv[1])
index.put([sample_record(reference="before")])
child = os.fork()
for n in range(30):
    index.put([sample_record(reference=f"{'parent' if child else 'child'}-{n:02}")])
    assert index.find("before") is not None
if child:
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
    index.put([sample_record(reference="after")])
index.close()
"""
    command = [sys.executable, "-c", script, f"{server.url()}?collection={collection.name}"]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stderr
    assert len(index.search(Query(limit=1000))) == 62


def test_a_missing_driver_names_the_extra() -> None:
    """Where PyMongo is not installed, the module says which extra to install."""
    script = "import sys; sys.modules['pymongo'] = None; import trifle_otel.indexes.mongo"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert f"{MissingDependency.__name__}: " in done.stderr
    assert "trifle-otel[mongo]" in done.stderr


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_a_server_restarted_under_load(own_server: servers.FerretDB) -> None:
    """While two threads put and the server is killed four times, all that was put without an error is found once."""
    with closing(open_mongo(f"{own_server.url()}?serverSelectionTimeoutMS=300")) as index:
        load = servers.Load(index, sample())
        load.while_restarting(own_server, threads=2, restarts=4)
        found = [record for page in pages(index, Query(limit=1000)) for record in page]
    assert sorted(record.reference for record in found) == sorted(load.done)
    assert all(record == sample(reference=record.reference) for record in found)
    assert len(load.failures) >= 4
