"""For tests of what stands behind a contract: a store or an index of your own is one that passes these.

Subclass `StoreContract` or `IndexContract` in a test file, and give it the fixture `store` or
`index`. Needs pytest, and nothing else of this library's test suite.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from trifle_otel.errors import NotFound, UsageError
from trifle_otel.indexes.contract import Index
from trifle_otel.records import Folder, Position, Query, TraceRecord
from trifle_otel.stores.contract import Store

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def sample_record(**changes: Any) -> TraceRecord:
    """A finished trace's record with something in each field; `changes` are fields of `TraceRecord`.

    `segments` and `expires_at` follow from what is changed.
    """
    fields: dict[str, Any] = {
        "reference": "01KDYAK3SEABCDEFGHJKMNPQRS",
        "key": "commodity/calculate/one",
        "state": "success",
        "tags": ("product:9", "store:133554920"),
        "meta": [9, 133554920, {"name": "Żaba"}],
        "context": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "tenant": 9},
        "duration": 1_234,
        "counters": {
            "states": {"success": 300, "warning": 12, "error": 3, "debug": 1},
            "types": {"text": 200, "head": 20, "raw": 95, "media": 1},
            "max_level": 5,
        },
        "length": 316,
        "parts": 2,
        "first_at": START,
        "last_at": START + timedelta(milliseconds=1_234),
        "retention": 7,
        **changes,
    }
    steps = fields["key"].split("/")
    fields.setdefault("segments", tuple("/".join(steps[: count + 1]) for count in range(len(steps))))
    fields.setdefault("expires_at", fields["first_at"] + timedelta(days=fields["retention"]))
    return TraceRecord(**fields)


class StoreContract:
    """What every payload store does."""

    @pytest.fixture
    def store(self) -> Store:
        """The store to test, empty. Give your own."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self, store: Store) -> Folder:
        """A trace's folder in a bucket of the store."""
        return Folder(7, "commodity/calculate/one", "01KDYAK3SEABCDEFGHJKMNPQRS", store.pick_bucket())

    def test_bytes_are_read_as_written(self, store: Store, folder: Folder) -> None:
        """What was written under a name is read under it, byte for byte, empty contents too."""
        for name, data in (("data_1.json.gz", bytes(range(256)) * 300), ("artifacts/empty", b"")):
            store.write(folder, name, data)
            with store.open(folder, name) as stream:
                assert stream.read() == data

    def test_a_file_is_stored_and_kept(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Contents may come from a file, which stays where it is."""
        source = tmp_path / "source"
        source.write_bytes(b"contents" * 100_000)
        store.write(folder, "artifacts/a", source)
        with store.open(folder, "artifacts/a") as stream:
            assert stream.read() == b"contents" * 100_000
        assert source.exists()

    def test_writing_again_replaces(self, store: Store, folder: Folder) -> None:
        """The last contents of a name count, shorter ones too."""
        store.write(folder, "record.json", b"a longer text")
        store.write(folder, "record.json", b"short")
        with store.open(folder, "record.json") as stream:
            assert stream.read() == b"short"
        assert store.names(folder) == ["record.json"]

    def test_a_stream_can_be_read_in_pieces(self, store: Store, folder: Folder) -> None:
        """A stream gives as many bytes as are asked for, and nothing at its end."""
        store.write(folder, "artifacts/a", b"0123456789")
        with store.open(folder, "artifacts/a") as stream:
            assert [stream.read(4), stream.read(4), stream.read(4), stream.read(4)] == [b"0123", b"4567", b"89", b""]

    def test_names_are_all_names_sorted(self, store: Store, folder: Folder) -> None:
        """All names of a folder come sorted, artifacts in folders included, of this folder alone."""
        names = ["artifacts/b", "artifacts/sub dir/übersicht.txt", "data_1.json.gz", "data_10.json.gz", "record.json"]
        for name in reversed(names):
            store.write(folder, name, b"x")
        store.write(folder._replace(reference="01KDYAK3SEABCDEFGHJKMNPQRT"), "data_7.json", b"x")
        assert store.names(folder) == names

    def test_what_is_not_there_is_not_found(self, store: Store, folder: Folder) -> None:
        """An unknown name is `NotFound`; a folder that is not there has no names, and can be deleted."""
        assert store.names(folder) == []
        store.delete(folder)
        with pytest.raises(NotFound):
            store.open(folder, "data_1.json.gz")
        store.write(folder, "data_1.json.gz", b"x")
        for name in ("data_2.json.gz", "artifacts/data_1.json.gz", "data_1.json.gz/x"[:14] + "x"):
            with pytest.raises(NotFound):
                store.open(folder, name)

    def test_a_source_that_is_not_there_is_not_found(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Storing a file that is not there is `NotFound`, and leaves nothing."""
        with pytest.raises(NotFound):
            store.write(folder, "artifacts/a", tmp_path / "missing")
        assert store.names(folder) == []

    def test_delete_takes_one_folder(self, store: Store, folder: Folder) -> None:
        """All of a folder is deleted, and nothing of its neighbours, whose paths begin alike."""
        others = [
            folder._replace(reference=folder.reference + "X"),
            folder._replace(key=f"{folder.key}/{folder.reference}", reference="below"),
            folder._replace(retention=70),
        ]
        for each in (folder, *others):
            for name in ("data_1.json", "record.json", "artifacts/a/b/c"):
                store.write(each, name, b"x")
        store.delete(folder)
        assert store.names(folder) == []
        for each in others:
            assert store.names(each) == ["artifacts/a/b/c", "data_1.json", "record.json"]

    def test_folders_are_all_folders(self, store: Store, folder: Folder) -> None:
        """Every trace's folder is found, whatever its key looks like, each once."""
        folders = {
            folder,
            folder._replace(reference="01KDYAK3SEABCDEFGHJKMNPQRT"),
            folder._replace(retention=180, key="Space Job/ünï/日本語"),
            folder._replace(key=f"{folder.key}/{folder.reference}", reference="below"),
            folder._replace(key="a", reference="only-a-record"),
        }
        for each in folders:
            if each.reference != "only-a-record":
                store.write(each, "data_1.json.gz", b"x")
                store.write(each, "artifacts/data_1.json", b"x")
            store.write(each, "record.json", b"x")
        found = list(store.folders())
        assert {each._replace(bucket=None) for each in found} == {each._replace(bucket=None) for each in folders}
        assert len(found) == len(folders)

    def test_a_local_folder_is_taken(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """A local folder becomes the trace's folder and is gone; calling again afterwards does no harm."""
        local = local_folder(tmp_path, {"data_1.json.gz": b"1", "record.json": b"r", "artifacts/a/b": b"ab"})
        store.take(folder, local)
        store.take(folder, local)
        assert not local.exists()
        assert contents(store, folder) == {"artifacts/a/b": b"ab", "data_1.json.gz": b"1", "record.json": b"r"}

    def test_a_local_folder_is_taken_into_one_that_is_there(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Files of a folder that is taken join those that are there, and replace those of the same name."""
        for name in ("data_1.json.gz", "record.json", "artifacts/a/b"):
            store.write(folder, name, b"old")
        store.take(
            folder, local_folder(tmp_path, {"data_2.json.gz": b"2", "record.json": b"new", "artifacts/a/c": b"ac"})
        )
        assert contents(store, folder) == {
            "artifacts/a/b": b"old",
            "artifacts/a/c": b"ac",
            "data_1.json.gz": b"old",
            "data_2.json.gz": b"2",
            "record.json": b"new",
        }

    def test_taking_what_was_never_there_is_not_found(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """A local folder that is not there, for a trace that is not there either, is `NotFound`."""
        with pytest.raises(NotFound):
            store.take(folder, tmp_path / "missing")

    def test_several_local_folders_are_taken(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Folders taken together are all there and gone locally; one that is not there is told in its place."""
        moves = []
        for number in range(12):
            place = tmp_path / str(number)
            place.mkdir()
            files = {"data_1.json.gz": b"%d" % number, "record.json": b"r", "artifacts/a/b": b"ab"}
            moves.append((folder._replace(reference=f"ref-{number}"), local_folder(place, files)))
        moves.insert(5, (folder._replace(reference="missing"), tmp_path / "missing"))
        errors = store.take_many(moves)
        assert [type(error) for error in errors] == [type(None)] * 5 + [NotFound] + [type(None)] * 7
        del moves[5]
        for number, (each, local) in enumerate(moves):
            assert not local.exists()
            expected = {"artifacts/a/b": b"ab", "data_1.json.gz": b"%d" % number, "record.json": b"r"}
            assert contents(store, each) == expected

    def test_taking_no_folders_does_nothing(self, store: Store) -> None:
        """An empty batch has no results and leaves nothing."""
        assert store.take_many([]) == []
        assert list(store.folders()) == []

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../record.json", "artifacts/../../x", "/etc/passwd", "artifacts//x", "a\0b", "sub/x"]
    )
    def test_unsafe_names_are_refused(self, store: Store, folder: Folder, name: str) -> None:
        """A name that leads out of the folder, or is none, is `UsageError` for reading and writing."""
        with pytest.raises(UsageError):
            store.write(folder, name, b"x")
        with pytest.raises(UsageError):
            store.open(folder, name)

    @pytest.mark.parametrize(
        "changes",
        [
            {"key": "../x"},
            {"key": "a/../../../x"},
            {"key": "/etc"},
            {"key": ""},
            {"key": "a//b"},
            {"key": "a\0b"},
            {"key": "lone \udc80 surrogate"},
            {"reference": ".."},
            {"reference": "a/b"},
            {"reference": ""},
            {"retention": -1},
        ],
    )
    def test_unsafe_folders_are_refused(self, store: Store, folder: Folder, changes: dict[str, Any]) -> None:
        """A folder that leads elsewhere is `UsageError`, whatever is asked of it."""
        unsafe = folder._replace(**changes)
        with pytest.raises(UsageError):
            store.write(unsafe, "data_1.json", b"x")
        with pytest.raises(UsageError):
            store.names(unsafe)
        with pytest.raises(UsageError):
            store.delete(unsafe)

    def test_setup_and_check_harm_nothing(self, store: Store, folder: Folder) -> None:
        """Setting up twice and checking leave what is there, and no trace of themselves."""
        store.write(folder, "data_1.json", b"x")
        store.setup()
        store.setup()
        store.check()
        assert [each._replace(bucket=None) for each in store.folders()] == [folder._replace(bucket=None)]
        assert store.names(folder) == ["data_1.json"]

    def test_writers_at_once_leave_one_whole_file(self, store: Store, folder: Folder) -> None:
        """Of several threads that write one name at once, one wins with all of its bytes."""
        payloads = [bytes([number]) * 200_000 for number in range(6)]
        run_at_once([lambda data=data: store.write(folder, "data_1.json", data) for data in payloads])
        with store.open(folder, "data_1.json") as stream:
            assert stream.read() in payloads
        assert store.names(folder) == ["data_1.json"]


class IndexContract:
    """What every index does.

    Attributes:
        tick: the smallest step of time that the index keeps; times are rounded down to it.
        searches: how many random ones are made.
    """

    tick: timedelta = timedelta(microseconds=1)
    searches: int = 200

    def kept(self, record: TraceRecord) -> TraceRecord:
        """A record with its times as the index keeps them."""
        return replace(
            record,
            first_at=_rounded(record.first_at, self.tick),
            last_at=_rounded(record.last_at, self.tick),
            expires_at=_rounded(record.expires_at, self.tick),
        )

    def sample(self, **changes: Any) -> TraceRecord:
        """A `sample_record` with its times as the index keeps them."""
        return self.kept(sample_record(**changes))

    @pytest.fixture
    def index(self) -> Index:
        """The index to test, empty and set up. Give your own."""
        raise NotImplementedError

    @pytest.mark.parametrize(
        "record",
        [
            sample_record(),
            sample_record(meta=None, context={}, tags=(), bucket_name="bucket-two", state="running", duration=0),
            sample_record(meta="text", key="Space Job/ünï/日本語", tags=("a'b\"c", "Żaba", "%_*")),
            sample_record(meta={"a": [1.5, None, True, "x"]}, context={"n": None, "list": [1]}, duration=2**40),
            sample_record(first_at=datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc), retention=36_500),
        ],
        ids=["full", "sparse", "unicode", "nested", "old"],
    )
    def test_a_record_is_found_as_it_was_put(self, index: Index, record: TraceRecord) -> None:
        """Every field of a record is given back with the value that it was put with."""
        record = self.kept(record)
        index.put([record])
        assert index.find(record.reference) == record
        assert index.search(Query()) == [record]

    def test_an_unknown_reference_is_none(self, index: Index) -> None:
        """Nothing is found under a reference that was never put."""
        index.put([self.sample()])
        assert index.find("01KDYAK3SEABCDEFGHJKMNPQRT") is None
        assert index.find("") is None

    def test_nothing_to_put_or_delete_does_no_harm(self, index: Index) -> None:
        """Empty batches, and unknown references to delete, change nothing."""
        record = self.sample()
        index.put([record])
        index.put([])
        index.delete([])
        index.delete(["unknown"])
        assert index.search(Query()) == [record]

    def test_a_later_record_replaces_in_every_search(self, index: Index) -> None:
        """After a trace has ended it is found by its new state, tags and duration, and no longer by its old ones."""
        running = self.sample(state="running", tags=("early",), duration=5, parts=1)
        ended = replace(running, state="error", tags=("late",), duration=50_000, parts=3)
        index.put([running])
        index.put([ended])
        for query in (Query(), Query(state="error"), Query(all_tags=("late",)), Query(min_duration=50_000)):
            assert index.search(query) == [ended]
        for query in (Query(state="running"), Query(any_tags=("early",)), Query(min_duration=50_001)):
            assert index.search(query) == []

    def test_a_running_record_never_replaces_a_finished_one(self, index: Index) -> None:
        """A batch that comes again after a crash does not bring a finished trace back to life."""
        ended = self.sample(state="success", parts=2)
        running = replace(ended, state="running", parts=9)
        index.put([ended])
        index.put([running])
        index.put([ended, running])
        assert index.find(ended.reference) == ended
        assert index.search(Query(state="running")) == []

    def test_of_running_records_fewer_parts_never_replace_more(self, index: Index) -> None:
        """Of two records of a running trace that with more parts stays; with as many parts, the later one."""
        three = self.sample(state="running", parts=3, length=30)
        index.put([three])
        index.put([replace(three, parts=2, length=20)])
        assert index.find(three.reference) == three
        index.put([replace(three, length=31)])
        assert index.find(three.reference) == replace(three, length=31)

    def test_the_later_of_a_batch_counts(self, index: Index) -> None:
        """Where a batch holds a reference more than once, the last record that may replace the others is kept."""
        first, second = self.sample(duration=1), self.sample(duration=2)
        index.put([replace(first, state="running", parts=1), first, second, replace(first, state="running", parts=9)])
        assert index.search(Query()) == [second]

    def test_ties_are_ordered_by_reference(self, index: Index) -> None:
        """Of traces that began in the same microsecond the highest reference comes first, and pages go through them."""
        records = [self.sample(reference=f"ref-{name}") for name in "bdacfe"]
        index.put(records)
        found = [record.reference for page in pages(index, Query(limit=2)) for record in page]
        assert found == ["ref-f", "ref-e", "ref-d", "ref-c", "ref-b", "ref-a"]

    def test_time_bounds(self, index: Index) -> None:
        """`since` is inclusive and `until` exclusive, to the tick, and in between to the microsecond."""
        start, tick = self.sample().first_at, self.tick
        records = [self.sample(reference=f"ref-{n}", first_at=start + n * tick) for n in range(4)]
        index.put(records)
        assert index.search(Query(since=start + tick, until=start + 3 * tick)) == [records[2], records[1]]
        assert index.search(Query(since=start + 3 * tick)) == [records[3]]
        assert index.search(Query(until=start)) == []
        assert index.search(Query(until=start + timedelta(microseconds=1))) == [records[0]]
        assert index.search(Query(since=start + 2 * tick + timedelta(microseconds=1))) == [records[3]]

    def test_segments_match_whole(self, index: Index) -> None:
        """A segment finds its key and what lies below it, never a key that only begins alike."""
        keys = ("a", "a/b", "a/bc", "ab", "a/b/c")
        index.put([self.sample(reference=f"ref-{key}", key=key) for key in keys])
        assert {record.key for record in index.search(Query(segment="a/b"))} == {"a/b", "a/b/c"}
        assert {record.key for record in index.search(Query(segment="a"))} == {"a", "a/b", "a/bc", "a/b/c"}
        assert index.search(Query(segment="b")) == []

    def test_tags_of_a_search_are_or_and_and(self, index: Index) -> None:
        """`any_tags` asks for one of them, `all_tags` for each; both at once must hold; a trace comes once."""
        tagged = {"x": ("p", "q", "r"), "y": ("p",), "z": ("q", "s"), "none": ()}
        index.put([self.sample(reference=name, tags=tags) for name, tags in tagged.items()])

        def found(**query: Any) -> list[str]:
            return [record.reference for record in index.search(Query(**query))]

        assert found(any_tags=("p", "q", "q")) == ["z", "y", "x"]
        assert found(all_tags=("p", "q")) == ["x"]
        assert found(any_tags=("r", "s"), all_tags=("q",)) == ["z", "x"]
        assert found(any_tags=("unknown",)) == []
        assert found(all_tags=("p", "unknown")) == []

    def test_search_by_trace_id(self, index: Index) -> None:
        """All traces of one OpenTelemetry trace are found, newest first, other filters and pages included."""
        ids = ("a" * 32, "b" * 32)
        records = [
            self.sample(
                reference=f"ref-{n}",
                context={"trace_id": ids[n % 2]},
                duration=n,
                state="error" if n == 4 else "success",
                first_at=START + timedelta(seconds=n),
            )
            for n in range(7)
        ]
        index.put(records)
        found = [record.duration for page in pages(index, Query(trace_id=ids[0], limit=2)) for record in page]
        assert found == [6, 4, 2, 0]
        assert index.search(Query(trace_id=ids[0], state="error")) == [records[4]]
        assert index.search(Query(trace_id=ids[0], min_duration=5, segment="commodity")) == [records[6]]
        assert index.search(Query(trace_id="c" * 32)) == []

    def test_a_position_finer_than_a_microsecond(self, index: Index) -> None:
        """A cursor of another index may stand between two ticks of this one: what comes after it is complete."""
        start, tick = self.sample().first_at, self.tick
        records = [self.sample(reference=f"ref-{n}", first_at=start + n * tick) for n in range(3)]
        index.put(records)
        nanoseconds = (start - _EPOCH) // timedelta(microseconds=1) * 1000 + tick // timedelta(microseconds=1) * 1500
        assert index.search(Query(after=Position(nanoseconds, "zzz"))) == [records[1], records[0]]

    def test_deleted_records_are_gone_from_every_search(self, index: Index) -> None:
        """A record that was deleted is found no more, by whatever it was found before, and others stay."""
        gone, stays = self.sample(reference="gone"), self.sample(reference="stays")
        index.put([gone, stays])
        index.delete(["gone", "unknown"])
        assert index.find("gone") is None
        for query in (
            Query(),
            Query(segment="commodity"),
            Query(all_tags=("product:9",)),
            Query(trace_id=gone.trace_id),
        ):
            assert index.search(query) == [stays]
        assert index.expired(gone.expires_at) == [stays]

    def test_expired_records(self, index: Index) -> None:
        """A record is expired from `expires_at` on, each by its own; no more than asked for are given."""
        start = self.sample().first_at
        records = [self.sample(reference=f"ref-{n}", expires_at=start + timedelta(days=n)) for n in range(5)]
        index.put(records)
        by_reference = sorted(index.expired(start + timedelta(days=2)), key=lambda record: record.reference)
        assert by_reference == records[:3]
        assert index.expired(start - timedelta(microseconds=1)) == []
        assert len(index.expired(start + timedelta(days=9), limit=2)) == 2

    def test_setup_and_check_harm_nothing(self, index: Index) -> None:
        """Setting up again, checking and repairing leave the records."""
        record = self.sample()
        index.put([record])
        index.setup()
        index.check()
        index.repair()
        assert index.search(Query()) == [record]

    def test_random_records_and_searches(self, index: Index) -> None:
        """Random searches over random records find what a plain list of them says, page by page."""
        chance = random.Random(20_261_124)
        records = [self.kept(random_record(chance, number, self.tick)) for number in range(150)]
        for start in range(0, 150, 77):
            index.put(records[start : start + 77])
        for _ in range(self.searches):
            query = random_query(chance, self.tick)
            wanted = expected(records, query)
            found = list(pages(index, query))
            assert [record for page in found for record in page] == wanted
            assert all(len(page) == query.limit for page in found[:-1])

    def test_threads_may_use_it_at_once(self, index: Index) -> None:
        """Threads that put and search at once see whole records, and nothing is lost."""
        batches = [[self.sample(reference=f"{n}-{m}", first_at=START) for m in range(20)] for n in range(8)]
        run_at_once([lambda batch=batch: (index.put(batch), index.search(Query(limit=5))) for batch in batches])
        assert len(index.search(Query(limit=1000))) == 160


def local_folder(where: Path, files: dict[str, bytes]) -> Path:
    """A new folder below `where` with these files, as a spool hands it to a store."""
    local = where / "local"
    for name, data in files.items():
        path = local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return local


def contents(store: Store, folder: Folder) -> dict[str, bytes]:
    """Everything in a folder of a store."""
    found = {}
    for name in store.names(folder):
        with store.open(folder, name) as stream:
            found[name] = stream.read()
    return found


def run_at_once(calls: Iterable[Any]) -> None:
    """Run each call in a thread of its own, begun together; the first error is raised."""
    calls = list(calls)
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Any) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def pages(index: Index, query: Query) -> Iterable[list[TraceRecord]]:
    """The pages of a search, as a reader turns them."""
    while True:
        page = index.search(query)
        yield page
        if len(page) < query.limit:
            return
        last = page[-1]
        nanoseconds = (last.first_at - _EPOCH) // timedelta(microseconds=1) * 1000
        query = replace(query, after=Position(nanoseconds, last.reference))


def random_record(chance: random.Random, number: int, tick: timedelta = timedelta(microseconds=1)) -> TraceRecord:
    """A record with values that repeat, ties on `first_at` included, which is one of forty ticks."""
    return sample_record(
        reference=f"{chance.randrange(16):x}{number:05d}",
        key="/".join(chance.choice("abc") for _ in range(chance.randint(1, 3))),
        state=chance.choice(("running", "success", "success", "warning", "error")),
        tags=tuple(sorted(chance.sample("pqrs", chance.randrange(4)))),
        duration=chance.choice((0, 9, 10, 11, 999, 1_000, 5_000, 10**7)),
        context={"trace_id": chance.choice("xyz") * 32} if chance.random() < 0.7 else {},
        first_at=START + chance.randrange(40) * tick,
    )


def _rounded(moment: datetime, tick: timedelta) -> datetime:
    return moment - (moment - _EPOCH) % tick


def random_query(chance: random.Random, tick: timedelta = timedelta(microseconds=1)) -> Query:
    """A search with one to four conditions of `random_record`'s values."""
    conditions: dict[str, Any] = {
        "segment": chance.choice(("a", "a/b", "b/c/a", "c")),
        "any_tags": tuple(chance.sample("pqrs", chance.randint(1, 3))),
        "all_tags": tuple(chance.sample("pqrs", chance.randint(1, 2))),
        "state": chance.choice(("running", "success", "warning", "error")),
        "since": START + chance.randrange(40) * tick,
        "until": START + chance.randrange(40) * tick,
        "min_duration": chance.choice((0, 10, 11, 1_000, 2_000, 10**9)),
        "trace_id": chance.choice("xyz") * 32,
    }
    chosen = chance.sample(sorted(conditions), chance.randint(0, 3))
    return Query(limit=chance.choice((5, 7, 20, 300)), **{name: conditions[name] for name in chosen})


def expected(records: Iterable[TraceRecord], query: Query) -> list[TraceRecord]:
    """All records that a search without limit and cursor must find, in order."""
    found = [record for record in records if _is_wanted(record, query)]
    return sorted(found, key=lambda record: (record.first_at, record.reference), reverse=True)


def _is_wanted(record: TraceRecord, query: Query) -> bool:
    path = f"{record.key}/"
    conditions = [
        query.segment is None or path.startswith(f"{query.segment}/"),
        not query.any_tags or any(tag in record.tags for tag in query.any_tags),
        all(tag in record.tags for tag in query.all_tags),
        query.state in (None, record.state),
        query.since is None or query.since <= record.first_at,
        query.until is None or record.first_at < query.until,
        query.min_duration is None or query.min_duration <= record.duration,
        query.trace_id is None or record.context.get("trace_id") == query.trace_id,
    ]
    return all(conditions)
