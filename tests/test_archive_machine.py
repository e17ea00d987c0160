"""Whatever is done to an archive, in any order: it is what a dict says. Over every pair of a store and an index."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NoReturn

import pytest
import servers
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from s3_server import S3Server, is_installed, localbucket

from trifle_otel import encoding
from trifle_otel.archive import Archive
from trifle_otel.errors import NotFound
from trifle_otel.indexes.contract import Index
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.records import Query, TraceRecord
from trifle_otel.spool import LOCK
from trifle_otel.stores.contract import Store
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.testing import expected, local_folder, sample_record

BEGIN = datetime(2090, 1, 1, tzinfo=timezone.utc)
"""Far ahead, so that no server expires anything by itself; whole milliseconds, the finest that all indexes keep."""
KEYS = st.sampled_from(["a", "a/b", "a/b/c", "b", "Space Job/ünï"])
TAGS = st.lists(st.sampled_from(["p", "q", "ü'\"%_"]), max_size=2, unique=True).map(lambda tags: tuple(sorted(tags)))
HOURS = st.sampled_from([0, -1, -13, -24, -25])  # from now
STATES = st.sampled_from(["success", "warning", "error"])
TRACE_IDS = st.sampled_from(["a" * 32, "b" * 32])
REFERENCE = "01M85RBZMWKQ5T057R2X{:06d}"

Make = Callable[[Path], Any]


@dataclass
class Payload:
    """What lies in the store: the record that `record.json` has, and the files."""

    record: TraceRecord
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def messages(self) -> list[str]:
        """What is read from its parts, by the standard library."""
        parts = [(int(name[5:-5]), data) for name, data in self.files.items() if name.startswith("data_")]
        return [entry["message"] for _, data in sorted(parts) for entry in json.loads(data)]


class ArchiveMachine(RuleBasedStateMachine):
    """An archive, and two dicts: `rows` is what the index has, `payloads` what the store has.

    Args:
        make_store: makes an empty store; given a folder of this run.
        make_index: makes an empty index.
    """

    traces: Any = Bundle("traces")

    def __init__(self, make_store: Make, make_index: Make) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="trifle-machine-")
        root = Path(self.folder.name)
        self.archive = Archive(make_store(root / "store"), make_index(root / "index"))
        self.archive.setup()
        self.archive.spool = root / "spool"
        self.rows: dict[str, TraceRecord] = {}
        self.payloads: dict[str, Payload] = {}
        self.spooled: dict[str, Payload] = {}
        self.number = 0
        self.now = BEGIN

    # --- What is written

    def _new(self, **fields: Any) -> Payload:
        """A trace with one part. References repeat their time, so that they order what began at the same moment."""
        self.number += 1
        record = sample_record(
            reference=REFERENCE.format(self.number * 7919 % 999_983),
            first_at=self.now,
            last_at=self.now,
            parts=1,
            length=1,
            bucket_name=self.archive.store.pick_bucket(),
            **fields,
        )
        return self._with_part(Payload(record), record)

    def _with_part(self, payload: Payload, record: TraceRecord) -> Payload:
        entry = {"at": 1, "message": f"part {record.parts} of {record.reference}", "state": "success", "type": "text"}
        files = {**payload.files, f"data_{record.parts}.json": json.dumps([entry]).encode()}
        files["artifacts/sub dir/ü.txt"] = record.reference.encode()
        return Payload(record, {**files, "record.json": encoding.encode_record(record)})

    def _store(self, payload: Payload) -> None:
        for name, data in payload.files.items():
            self.archive.store.write(payload.record.folder, name, data)
        self.payloads[payload.record.reference] = payload

    def _index(self, record: TraceRecord) -> None:
        self.archive.index.put([record])
        self.rows[record.reference] = record

    @rule(
        target=traces,
        key=KEYS,
        tags=TAGS,
        retention=st.integers(1, 3),
        duration=st.sampled_from([0, 10, 1_000]),
        state=STATES | st.just("running"),
        trace_id=TRACE_IDS,
    )
    def write(self, trace_id: str, **fields: Any) -> str:
        """A trace is written: its payload, then its row."""
        payload = self._new(context={"trace_id": trace_id}, **fields)
        self._store(payload)
        self._index(payload.record)
        return payload.record.reference

    @rule(target=traces, key=KEYS, tags=TAGS, retention=st.integers(1, 3))
    def write_payload_alone(self, **fields: Any) -> str:
        """The process dies between payload and row."""
        payload = self._new(**fields)
        self._store(payload)
        return payload.record.reference

    @rule(target=traces, key=KEYS, state=STATES)
    def ship(self, **fields: Any) -> str:
        """A finished folder moves in whole."""
        payload = self._new(**fields)
        local = local_folder(Path(tempfile.mkdtemp(dir=self.folder.name)), payload.files)
        assert self.archive.store.take_many([(payload.record.folder, local)]) == [None]
        self.payloads[payload.record.reference] = payload
        self._index(payload.record)
        return payload.record.reference

    @rule(target=traces, key=KEYS, state=STATES, tags=TAGS)
    def leave(self, **fields: Any) -> str:
        """A process dies with a finished trace in its spool."""
        payload = self._new(**fields)
        reference = payload.record.reference
        assert self.archive.spool is not None
        owner = self.archive.spool / f"host-1-{secrets.token_hex(4)}"
        owner.mkdir(parents=True)
        local_folder(owner, payload.files).rename(owner / f"00000001-{reference}")
        (owner / LOCK).touch()
        self.spooled[reference] = payload
        return reference

    @rule(target=traces)
    def recover(self) -> Any:
        """What died processes have left is in the archive then, and the spool is empty."""
        assert self.archive.recover() == len(self.spooled)
        self.payloads |= self.spooled
        self.rows |= {reference: payload.record for reference, payload in self.spooled.items()}
        self.spooled = {}
        return multiple()

    @rule(reference=traces, state=STATES)
    def finish(self, reference: str, state: str) -> None:
        """A trace that runs writes its last part, and its record says so."""
        payload = self.payloads.get(reference)
        if payload is None or payload.record.finished or reference not in self.rows:
            return
        before = payload.record
        changes: dict[str, Any] = {"parts": before.parts + 1, "length": before.length + 1}
        record = replace(before, state=state, last_at=max(self.now, before.last_at), **changes)
        self._store(self._with_part(payload, record))
        self._index(record)

    @rule(reference=traces)
    def put_an_old_row(self, reference: str) -> None:
        """What a slower process says of a trace that has ended changes nothing."""
        row = self.rows.get(reference)
        if row is not None and row.finished:
            self.archive.index.put([replace(row, state="running", parts=0)])

    # --- What is lost

    @rule(reference=traces)
    def lose_the_row(self, reference: str) -> None:
        """Somebody's index is restored from yesterday."""
        self.archive.index.delete([reference])
        self.rows.pop(reference, None)

    @rule(reference=traces)
    def lose_the_payload(self, reference: str) -> None:
        """A lifecycle rule was quicker than we."""
        payload = self.payloads.pop(reference, None)
        if payload is not None:
            self.archive.store.delete(payload.record.folder)

    @rule()
    def reindex(self) -> None:
        """All payloads are found again; rows without one stay."""
        assert self.archive.reindex() == len(self.payloads)
        self.rows |= {reference: payload.record for reference, payload in self.payloads.items()}

    @rule(reference=consumes(traces))
    def delete(self, reference: str) -> None:
        """A trace is gone then, wholly; one that the index does not know cannot be deleted."""
        if reference not in self.rows:
            with pytest.raises(NotFound):
                self.archive.delete(reference)
            return
        self.archive.delete(reference)
        del self.rows[reference]
        self.payloads.pop(reference, None)

    @rule(hours=HOURS)
    def wait(self, hours: int) -> None:
        """Time goes on."""
        self.now += timedelta(hours=-hours)

    @rule(dry=st.booleans())
    def cleanup(self, dry: bool) -> None:
        """Whose time is over goes, row and payload, known or not; a dry run says how many, and takes none."""
        over = {reference for reference, row in self.rows.items() if row.expires_at <= self.now}
        forgotten = {
            reference
            for reference, payload in self.payloads.items()
            if reference not in self.rows and payload.record.expires_at <= self.now
        }
        assert self.archive.cleanup(now=self.now, dry_run=dry) == len(over | forgotten)
        if not dry:
            for reference in over | forgotten:
                self.rows.pop(reference, None)
                self.payloads.pop(reference, None)

    # --- What is read

    @rule(reference=traces)
    def find_and_read(self, reference: str) -> None:
        """A trace's row and all its entries are there, or nothing is; parts that are gone are told of."""
        row = self.rows.get(reference)
        if row is None:
            with pytest.raises(NotFound):
                self.archive.find(reference)
            return
        found = self.archive.find(reference)
        assert found == row
        entries = self.archive.entries(found)
        payload = self.payloads.get(reference)
        if payload is None:
            assert (list(entries), len(entries.damaged)) == ([], row.parts)
            with pytest.raises(NotFound):
                self.archive.artifact(found, "sub dir/ü.txt")
            return
        assert ([entry.message for entry in entries], entries.damaged) == (payload.messages, [])
        assert self.archive.artifact(found, "sub dir/ü.txt") == reference.encode()

    @rule(
        segment=st.none() | st.sampled_from(["a", "a/b", "Space Job"]),
        any_tags=TAGS,
        all_tags=TAGS,
        state=st.none() | STATES | st.just("running"),
        since=st.none() | HOURS,
        until=st.none() | HOURS,
        min_duration=st.none() | st.sampled_from([0, 10, 11, 1_000]),
        trace_id=st.none() | TRACE_IDS,
        limit=st.integers(1, 4),
    )
    def search(self, limit: int, **filters: Any) -> None:
        """The pages of any search hold what matches, in order, each once; the last page has no cursor."""
        self._check_search(limit, **filters)

    @rule(
        given=st.one_of(
            st.just(("state", "running")),
            STATES.map(lambda state: ("state", state)),
            TAGS.map(lambda tags: ("any_tags", tags)),
            TAGS.map(lambda tags: ("all_tags", tags)),
            HOURS.map(lambda hours: ("since", hours)),
            HOURS.map(lambda hours: ("until", hours)),
            TRACE_IDS.map(lambda trace_id: ("trace_id", trace_id)),
        ),
        limit=st.integers(1, 4),
    )
    def search_by_one(self, given: tuple[str, Any], limit: int) -> None:
        """The same of a single condition, which more traces meet."""
        self._check_search(limit, **dict([given]))

    def _check_search(self, limit: int, since: int | None = None, until: int | None = None, **filters: Any) -> None:
        bounds: dict[str, Any] = {
            name: self.now + timedelta(hours=hours)
            for name, hours in (("since", since), ("until", until))
            if hours is not None
        }
        wanted = expected(self.rows.values(), Query(**filters, **bounds))
        found: list[TraceRecord] = []
        cursor = None
        for _ in range(len(wanted) // limit + 1):
            page = self.archive.search(**filters, **bounds, limit=limit, cursor=cursor)
            assert len(page.records) <= limit
            found += page.records
            cursor = page.cursor
            if cursor is None:
                break
        assert cursor is None
        assert found == wanted

    @initialize()
    def begin(self) -> None:
        """There is nothing in it."""
        assert self.archive.search().records == []
        assert list(self.archive.store.folders()) == []

    @invariant()
    def the_store_has_the_payloads(self) -> None:
        """Nothing is left behind, and nothing that nobody threw away is gone."""
        stored = {folder.path for folder in self.archive.store.folders()}
        assert stored == {payload.record.folder.path for payload in self.payloads.values()}

    def teardown(self) -> None:
        """Remove all, for the next run."""
        for payload in self.payloads.values():
            self.archive.store.delete(payload.record.folder)
        self.archive.index.delete([row.reference for row in self.rows.values()])
        self.archive.close()
        self.folder.cleanup()


# --- The stores and indexes


@pytest.fixture(scope="module")
def object_server(
    tmp_path_factory: pytest.TempPathFactory, server_missing: Callable[[str], NoReturn]
) -> Iterator[S3Server]:
    """A server of objects that keeps them in files."""
    if not is_installed("localbucket"):
        server_missing("the package localbucket")
    server = localbucket(tmp_path_factory.mktemp("buckets"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(params=["memory", "files", "s3"])
def make_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an empty store."""
    if request.param == "memory":
        return lambda _: MemoryStore()
    if request.param == "files":
        return FileStore
    server: S3Server = request.getfixturevalue("object_server")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    buckets = [server.make_bucket(f"bucket-{secrets.token_hex(6)}") for _ in range(2)]
    return lambda _: _objects(f"s3://{','.join(buckets)}/p?endpoint={server.endpoint}&bulk_delete=false")


def _objects(url: str) -> Store:
    from trifle_otel.stores.objects import open_objects  # with obstore

    return open_objects(url)


@pytest.fixture(params=["memory", "sqlite", "postgres", "ferretdb"])
def make_index(request: pytest.FixtureRequest, server_missing: Callable[[str], NoReturn]) -> Make:
    """Makes an empty index."""
    if request.param == "memory":
        return lambda _: MemoryIndex()
    if request.param == "sqlite":
        return lambda folder: SQLiteIndex(folder / "index.sqlite")
    try:
        server: Any = servers.postgres() if request.param == "postgres" else servers.ferretdb()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    option = "table" if request.param == "postgres" else "collection"
    url = f"{server.url()}?{option}=machine_{secrets.token_hex(4)}"
    return lambda _: _remote(url)


def _remote(url: str) -> Index:
    from trifle_otel.locations import open_index  # with the driver that the URL names

    return open_index(url)


def _run(make_store: Make, make_index: Make, *, examples: int, steps: int, **more: Any) -> None:
    run_state_machine_as_test(
        lambda: ArchiveMachine(make_store, make_index),  # type: ignore[arg-type] # a factory is called as well
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            **more,
        ),
    )


def test_an_archive_is_what_a_dict_says(request: pytest.FixtureRequest, make_store: Make, make_index: Make) -> None:
    """A few runs of every pair; fewer where each step is many requests."""
    _run(make_store, make_index, examples=1 if "s3" in request.node.name else 4, steps=20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_archive_is_what_a_dict_says_at_length(
    request: pytest.FixtureRequest, make_store: Make, make_index: Make
) -> None:
    """Long runs of every pair, many where a step is no request."""
    name = request.node.name
    _run(make_store, make_index, examples=2 if "s3" in name else 8 if "ferret" in name else 30, steps=50)


class Careless(MemoryIndex):
    """An index that is wrong: it does not look at the state."""

    def search(self, query: Query) -> list[TraceRecord]:
        """Search without it."""
        return super().search(replace(query, state=None))


def test_an_index_that_is_wrong_is_found_out() -> None:
    """The machine sees it when an index leaves out one condition of a search."""
    with pytest.raises(AssertionError):
        _run(
            lambda _: MemoryStore(),
            lambda _: Careless(),
            examples=100,
            steps=40,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
