"""The archive: searching, reading what is whole and what is damaged, deleting, cleaning up by each trace's own age."""

from __future__ import annotations

import base64
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part, encode_record
from trifle_otel.errors import InvalidCursor, NotFound, StoreUnavailable, UsageError
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.queries import make_query
from trifle_otel.reading import read_entries
from trifle_otel.records import Folder, Query, TraceRecord
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.testing import START, sample_record

NOW = datetime(2026, 6, 15, 12, tzinfo=timezone.utc)


@pytest.fixture(params=["files", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """An empty archive of each kind."""
    if request.param == "memory":
        yield Archive(MemoryStore(), MemoryIndex(), url="memory:")
        return
    store, index = FileStore(tmp_path / "archive"), SQLiteIndex(tmp_path / "archive" / "index.sqlite")
    with Archive(store, index, url="./traces") as opened:
        yield opened


def lines(*messages: str) -> list[dict[str, Any]]:
    """Entries with these messages."""
    return [{"at": 1, "message": message, "state": "success", "type": "text", "level": 0} for message in messages]


def add(archive: Archive, *parts: list[dict[str, Any]], **changes: Any) -> TraceRecord:
    """Store a trace with these parts, as the shipper does: payload first."""
    record = sample_record(**{"parts": len(parts), "length": sum(map(len, parts)), **changes})
    for number, entries in enumerate(parts, 1):
        archive.store.write(record.folder, f"data_{number}.json.gz", encode_part(entries))
    archive.store.write(record.folder, "record.json", encode_record(record))
    archive.index.put([record])
    return record


def messages(archive: Archive, record: TraceRecord | str) -> list[str]:
    """The messages of a trace's entries."""
    return [entry.message for entry in archive.entries(record)]


# --- Searching


@pytest.mark.parametrize(
    "condition,found",
    [
        ({}, "edcba"),
        ({"segment": "job"}, "edba"),
        ({"segment": "job/one/"}, "da"),
        ({"segment": "/job/one"}, "da"),
        ({"segment": "jo"}, ""),
        ({"any_tags": ["x", "y"]}, "cba"),
        ({"any_tags": "x"}, "ba"),
        ({"all_tags": ("x", "y")}, "b"),
        ({"any_tags": ["z"], "all_tags": ["y"]}, "c"),
        ({"state": "error"}, "db"),
        ({"state": "running"}, "e"),
        ({"since": START + timedelta(seconds=2)}, "edc"),
        ({"since": "2026-01-02T03:04:07.678901Z"}, "edc"),
        ({"since": "2026-01-02T04:04:07.678901+01:00"}, "edc"),
        ({"since": "2026-01-02"}, "edcba"),
        ({"since": "2026-01-03"}, ""),
        ({"until": START + timedelta(seconds=2)}, "ba"),
        ({"since": START + timedelta(seconds=1), "until": START + timedelta(seconds=3)}, "cb"),
        ({"min_duration": 300}, "edc"),
        ({"min_duration": "0.3s"}, "edc"),
        ({"min_duration": "301ms"}, "ed"),
        ({"trace_id": "b" * 32}, "edb"),
        ({"trace_id": "B" * 32 + " "}, "edb"),
        ({"trace_id": "b" * 32, "state": "error", "segment": "job", "min_duration": 201}, "d"),
    ],
)
def test_every_filter(archive: Archive, condition: dict[str, Any], found: str) -> None:
    """Each filter of a search alone and together finds what it should, newest first."""
    traces: list[tuple[str, dict[str, Any]]] = [
        ("a", {"key": "job/one", "tags": ("x",), "state": "success"}),
        ("b", {"key": "job/two", "tags": ("x", "y"), "state": "error", "context": {"trace_id": "b" * 32}}),
        ("c", {"key": "other", "tags": ("y", "z"), "state": "warning"}),
        ("d", {"key": "job/one/deep", "tags": (), "state": "error", "context": {"trace_id": "b" * 32}}),
        ("e", {"key": "job", "tags": ("w",), "state": "running", "context": {"trace_id": "b" * 32}}),
    ]
    for number, (reference, changes) in enumerate(traces):
        first_at = START + timedelta(seconds=number)
        add(archive, reference=reference, first_at=first_at, duration=100 * (number + 1), **changes)
    assert "".join(record.reference for record in archive.search(**condition).records) == found


def test_times_ago() -> None:
    """Times may be given as how long ago, in seconds to weeks."""
    for text, ago in {
        "90s": timedelta(seconds=90),
        "15m": timedelta(minutes=15),
        "1.5h": timedelta(minutes=90),
        "3d": timedelta(days=3),
        " 2w ": timedelta(days=14),
    }.items():
        assert make_query(since=text, now=NOW).since == NOW - ago
        assert make_query(until=text, now=NOW).until == NOW - ago


@pytest.mark.parametrize(
    "wrong,said",
    [
        ({"state": "failed"}, "running, success, warning, error"),
        ({"state": ""}, "running, success, warning, error"),
        ({"limit": 0}, "from 1 to 1000"),
        ({"limit": 1001}, "from 1 to 1000"),
        ({"limit": True}, "from 1 to 1000"),
        ({"limit": 2.5}, "from 1 to 1000"),
        ({"since": "yesterday"}, "ISO 8601"),
        ({"since": "2026-13-01"}, "ISO 8601"),
        ({"since": ""}, "ISO 8601"),
        ({"until": "999999999w"}, "ISO 8601"),
        ({"since": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}, "beyond the calendar"),
        ({"until": datetime(2026, 1, 1)}, "no zone"),  # noqa: DTZ001 - that is the point
        ({"min_duration": "fast"}, "1.5s"),
        ({"min_duration": -1}, "0 or more"),
        ({"min_duration": float("nan")}, "0 or more"),
        ({"min_duration": 2**64}, "0 or more"),
        ({"all_tags": [str(n) for n in range(101)]}, "100 are the most"),
    ],
)
def test_what_is_no_search_is_refused(archive: Archive, wrong: dict[str, Any], said: str) -> None:
    """A value that a search cannot mean is `UsageError`, and the message says what is allowed."""
    with pytest.raises(UsageError, match=said):
        archive.search(**wrong)


def test_pages(archive: Archive) -> None:
    """A full page has a cursor that leads to the next one, another page has none, and all traces come once."""
    records = [add(archive, reference=f"ref-{n}", first_at=START + timedelta(seconds=n // 3)) for n in range(7)]
    first = archive.search(limit=3)
    second = archive.search(limit=3, cursor=first.cursor)
    third = archive.search(limit=3, cursor=second.cursor)
    assert first.records + second.records + third.records == records[::-1]
    assert None not in (first.cursor, second.cursor)
    assert third.cursor is None
    assert archive.search(limit=7).cursor is not None
    assert archive.search(limit=7, cursor=archive.search(limit=7).cursor) == archive.search(state="running")


def test_a_cursor_is_as_ruby_s(archive: Archive) -> None:
    """A cursor is URL-safe base64 without padding of `[seconds, nanoseconds, reference]`, as Ruby makes them."""
    add(archive, reference="ref-b", first_at=datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=timezone.utc))
    add(archive, reference="ref-a", first_at=datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=timezone.utc))
    cursor = archive.search(limit=1).cursor
    assert cursor is not None
    assert "=" not in cursor
    assert json.loads(base64.urlsafe_b64decode(cursor + "==")) == [1700000000, 123456000, "ref-b"]
    ruby = base64.urlsafe_b64encode(b'[1700000000,123456000,"ref-b"]').rstrip(b"=").decode()
    assert [record.reference for record in archive.search(cursor=ruby).records] == ["ref-a"]


@pytest.mark.parametrize("cursor", ["x", "%%%", "W10", "eyJhIjoxfQ", "WzEsMiwzXQ", "bnVsbA", "Ž", "W" * 5000])
def test_a_cursor_from_elsewhere_is_refused(archive: Archive, cursor: str) -> None:
    """What does not decode to a position is `InvalidCursor`, which is a mistake of the caller's."""
    with pytest.raises(InvalidCursor):
        archive.search(cursor=cursor)


def test_an_unknown_reference_is_not_found(archive: Archive) -> None:
    """Whatever is asked about a reference that is not there is `NotFound`."""
    for call in (archive.find, archive.entries, archive.delete, lambda name: archive.artifact(name, "a")):
        with pytest.raises(NotFound, match="nowhere"):
            call("nowhere")


# --- Reading


def test_parts_are_read_in_numeric_order(archive: Archive) -> None:
    """Twelve parts are one list of entries, the tenth after the ninth, by record and by reference."""
    record = add(archive, *(lines(f"{n}a", f"{n}b") for n in range(1, 13)))
    wanted = [f"{n}{letter}" for n in range(1, 13) for letter in "ab"]
    assert messages(archive, record) == wanted
    assert messages(archive, record.reference) == wanted
    assert archive.entries(record).damaged == []


def test_plain_and_compressed_parts_mix(archive: Archive) -> None:
    """Parts may be compressed or not; of one that is there as both, the compressed one is read."""
    record = add(archive, lines("one"), lines("two"), parts=3)
    archive.store.write(record.folder, "data_2.json", encode_part(lines("older"), compress=False))
    archive.store.write(record.folder, "data_3.json", encode_part(lines("three"), compress=False))
    assert messages(archive, record) == ["one", "two", "three"]


def test_a_part_that_the_record_does_not_know_yet_is_read(archive: Archive) -> None:
    """A part that was stored before its record says so belongs to the trace."""
    record = add(archive, lines("one"), state="running")
    archive.store.write(record.folder, "data_2.json.gz", encode_part(lines("two")))
    assert messages(archive, record) == ["one", "two"]


def test_other_files_are_no_parts(archive: Archive) -> None:
    """Names that only look like parts are passed over."""
    record = add(archive, lines("one"))
    for name in ("data_01.json", "data_.json", "data_2.json.bak", "data_2.txt", "artifacts/data_2.json"):
        archive.store.write(record.folder, name, b"rubbish")
    assert messages(archive, record) == ["one"]
    assert archive.entries(record).damaged == []


def test_a_missing_part_is_named(archive: Archive) -> None:
    """Where a part is missing, the others are read, and what is missing is said by trace and number."""
    record = add(archive, lines("one"), lines("two"))
    record = replace(record, parts=4)
    archive.store.write(record.folder, "data_3.json.gz", encode_part(lines("three")))
    entries = archive.entries(record)
    assert [entry.message for entry in entries] == ["one", "two", "three"]
    assert [(damage.reference, damage.part) for damage in entries.damaged] == [(record.reference, 4)]
    assert "part 4" in str(entries.damaged[0])
    assert "missing" in str(entries.damaged[0])


def test_a_payload_that_is_gone_is_said(archive: Archive) -> None:
    """A record whose payload is gone gives no entries and one damage for each part; absurd numbers stay bounded."""
    record = add(archive, lines("one"), lines("two"))
    archive.store.delete(record.folder)
    assert [damage.part for damage in archive.entries(record).damaged] == [1, 2]
    assert len(archive.entries(replace(record, parts=2**62)).damaged) == 1000


def broken_parts() -> dict[str, tuple[str, bytes, list[str]]]:
    """Damaged parts: their name, their bytes, and the messages that can still be read out of them."""
    whole = json.dumps(lines("a", "b", "c")).encode()
    packed = gzip.compress(json.dumps(lines(*(f"line {n} {os.urandom(8).hex()}" for n in range(2000)))).encode())
    salvaged = gzip.compress(whole)
    return {
        "empty": ("data_2.json.gz", b"", []),
        "no gzip": ("data_2.json.gz", whole, []),
        "no JSON": ("data_2.json", b"rubbish", []),
        "an object": ("data_2.json", b'{"at": 1}', []),
        "cut JSON": ("data_2.json", whole[:-20], ["a", "b"]),
        "a wrong element": ("data_2.json", whole[:-1] + b", 7]", ["a", "b", "c"]),
        "cut gzip header": ("data_2.json.gz", salvaged[:5], []),
        "cut checksum": ("data_2.json.gz", salvaged[:-6], ["a", "b", "c"]),
        "cut gzip": ("data_2.json.gz", packed[: len(packed) // 2], []),
    }


@pytest.mark.parametrize("kind", list(broken_parts()))
def test_a_damaged_part_gives_what_it_can(archive: Archive, kind: str) -> None:
    """A damaged part is said by trace and number, what is whole in it is read, and so are the parts around it."""
    name, data, readable = broken_parts()[kind]
    record = add(archive, lines("before"), parts=3)
    archive.store.write(record.folder, name, data)
    archive.store.write(record.folder, "data_3.json.gz", encode_part(lines("after")))
    entries = archive.entries(record)
    (damage,) = entries.damaged
    assert (damage.reference, damage.part) == (record.reference, 2)
    assert "part 2" in str(damage)
    found = [entry.message for entry in entries]
    assert found[0] == "before"
    assert found[-1] == "after"
    if kind == "cut gzip":
        assert 500 < len(found) < 1500
        assert found[1].startswith("line 0 ")
    else:
        assert found[1:-1] == readable


def test_a_gzip_bomb_is_stopped(archive: Archive) -> None:
    """A part that unpacks to more than is allowed is damage, and is not unpacked to its end."""
    record = add(archive, lines("before"), parts=2)
    archive.store.write(record.folder, "data_2.json.gz", gzip.compress(b"[" + b" " * (40 << 20) + b"]"))
    tracemalloc.start()
    try:
        entries = read_entries(archive.store, record.folder, 2, limit=1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [entry.message for entry in entries] == ["before"]
    assert [damage.part for damage in entries.damaged] == [2]
    assert peak < 8 << 20


def test_artifacts_are_read(archive: Archive) -> None:
    """An artifact's bytes are read by its name, whole and as a stream."""
    record = add(archive, lines("one"))
    archive.store.write(record.folder, "artifacts/sub dir/a.html", b"<html>")
    assert archive.artifact(record, "sub dir/a.html") == b"<html>"
    with archive.open_artifact(record.reference, "sub dir/a.html") as stream:
        assert stream.read(3) == b"<ht"


@pytest.mark.parametrize(
    "name", ["missing", "../data_1.json.gz", "/etc/passwd", "", "..", "a\0", "x/../../record.json"]
)
def test_what_is_no_artifact_is_not_found(archive: Archive, name: str) -> None:
    """An artifact that is not there is `NotFound`, and so is a name that leads out of the folder."""
    record = add(archive, lines("one"))
    with pytest.raises(NotFound):
        archive.artifact(record, name)


def test_what_was_just_recorded_is_seen(archive: Archive) -> None:
    """Whoever reads through the process's own archive is let wait for what is on its way, for each kind of reading."""
    record = add(archive, lines("one"))
    calls: list[None] = []
    archive.before_reading = lambda: calls.append(None)
    archive.store.write(record.folder, "artifacts/a", b"")
    readings: list[Callable[[], object]] = [
        lambda: archive.find(record.reference),
        archive.search,
        lambda: archive.entries(record),
        lambda: archive.artifact(record, "a"),
        lambda: archive.cleanup(now=START),
        archive.reindex,
        lambda: archive.delete(record),
    ]
    for number, read in enumerate(readings, 1):
        read()
        assert len(calls) >= number


# --- Deleting


def test_delete(archive: Archive) -> None:
    """A deleted trace is gone from index and store, by record or by reference; others stay."""
    one, two, three = (add(archive, lines("x"), reference=f"ref-{n}") for n in range(3))
    archive.delete(one)
    archive.delete(two.reference)
    assert archive.search().records == [three]
    assert [folder.reference for folder in archive.store.folders()] == ["ref-2"]
    with pytest.raises(NotFound):
        archive.find(one.reference)


def test_delete_takes_the_record_first() -> None:
    """When the store fails, nobody finds the trace any more, and its payload is there for the cleanup."""

    class Stuck(MemoryStore):
        def delete(self, folder: Folder) -> None:
            raise StoreUnavailable("out of reach")

    archive = Archive(Stuck(), MemoryIndex())
    record = add(archive, lines("x"))
    with pytest.raises(StoreUnavailable):
        archive.delete(record)
    assert archive.search().records == []
    assert archive.store.names(record.folder) == ["data_1.json.gz", "record.json"]


# --- Cleaning up


def aged(archive: Archive, reference: str, days: float, **changes: Any) -> TraceRecord:
    """A trace that began so many days before `NOW`."""
    return add(archive, lines("x"), **{"reference": reference, "first_at": NOW - timedelta(days=days), **changes})


def test_cleanup_judges_each_trace_by_its_own_age(archive: Archive) -> None:
    """Traces go when their own time is over, to the microsecond: by the class of each, or by its own `expires_at`."""
    aged(archive, "over", 8)
    aged(archive, "just-over", 7)
    kept = [
        aged(archive, "not-yet", 7 - 1e-7),
        aged(archive, "long", 100, retention=180),
        aged(archive, "longer-than-its-class", 100, expires_at=NOW + timedelta(days=1)),
    ]
    aged(archive, "shorter-than-its-class", 1, expires_at=NOW)
    assert archive.cleanup(now=NOW, dry_run=True) == 3
    assert len(archive.search().records) == 6
    assert archive.cleanup(now=NOW) == 3
    wanted = {record.reference for record in kept}
    assert {record.reference for record in archive.search().records} == wanted
    assert {folder.reference for folder in archive.store.folders()} == wanted
    assert archive.cleanup(now=NOW) == 0


def test_a_fresh_trace_under_an_old_folder_stays(tmp_path: Path) -> None:
    """Folders that have not been touched for a year do not take the fresh trace in them along."""
    with closing(SQLiteIndex(tmp_path / "index.sqlite")) as index:
        archive = Archive(FileStore(tmp_path), index)
        fresh, old = aged(archive, "fresh", 1), aged(archive, "old", 400)
        long_ago = (NOW - timedelta(days=400)).timestamp()
        for folder, _, files in os.walk(tmp_path / "7"):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.utime(path, (long_ago, long_ago))
        assert archive.cleanup(now=NOW) == 1
        assert archive.search().records == [fresh]
        assert messages(archive, fresh) == ["x"]
        assert not (tmp_path / old.folder.path).exists()


def test_cleanup_removes_emptied_folders(tmp_path: Path) -> None:
    """When the last trace of a class has gone, its folders have too; the archive's own folder stays."""
    with closing(SQLiteIndex(tmp_path / "index.sqlite")) as index:
        archive = Archive(FileStore(tmp_path), index)
        aged(archive, "over", 8)
        (tmp_path / ".spool").mkdir()
        archive.cleanup(now=NOW)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("index")) == [".spool"]


def test_cleanup_of_more_than_a_batch() -> None:
    """Thousands of expired traces all go in one cleanup."""
    archive = Archive(MemoryStore(), MemoryIndex())
    archive.index.put([sample_record(reference=f"ref-{n}", parts=0, first_at=START) for n in range(2_500)])
    assert archive.cleanup(now=NOW, dry_run=True) == 2_500
    assert archive.cleanup(now=NOW) == 2_500
    assert archive.search().records == []


class Paged(MemoryIndex):
    """An index of somebody's own: it counts as the contract does, and notes how many records it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def search(self, query: Query) -> list[TraceRecord]:
        """Search, and note the limit."""
        self.asked.append(query.limit)
        return super().search(query)

    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """The same of what is over."""
        self.asked.append(limit)
        return super().expired(now, limit)


def test_a_dry_run_holds_a_page_of_records_at_a_time() -> None:
    """However many traces are over, counting them takes no more memory than deleting them."""
    index = Paged()
    archive = Archive(MemoryStore(), index)
    times = [START if n % 2 else NOW for n in range(5_000)]
    index.put([sample_record(reference=f"ref-{n}", parts=0, first_at=time) for n, time in enumerate(times)])
    assert archive.cleanup(now=NOW, dry_run=True) == 2_500
    assert max(index.asked) <= 1000


def test_cleanup_of_payloads_that_no_index_knows(archive: Archive) -> None:
    """A payload without a row goes when its `record.json`, or else its reference or entries, says that it is old."""
    old = {"at": int((NOW - timedelta(days=30)).timestamp()), "message": "x", "state": "success", "type": "text"}
    new = {**old, "at": int((NOW - timedelta(days=1)).timestamp())}
    kept = {"described-fresh", "entries-fresh", "01KV1TVBG00000000000000000", "nothing-tells", "indexed"}
    for reference, days in (("described-over", 8), ("described-fresh", 1), ("indexed", 1)):
        aged(archive, reference, days)
    archive.index.delete(["described-over", "described-fresh"])
    for reference, data in {
        "entries-over": encode_part([old]),
        "entries-fresh": encode_part([new]),
        "01KS5CCPG00000000000000000": encode_part([]),  # 2026-05-21
        "01KV1TVBG00000000000000000": encode_part([]),  # 2026-06-14
        "nothing-tells": encode_part([]),
    }.items():
        archive.store.write(Folder(7, "a", reference), "data_1.json.gz", data)
    assert archive.cleanup(now=NOW, dry_run=True) == 3
    assert archive.cleanup(now=NOW) == 3
    assert {folder.reference for folder in archive.store.folders()} == kept


def test_cleanup_goes_on_after_a_failure(archive: Archive) -> None:
    """When the store fails during a cleanup, the next one removes what is left."""
    aged(archive, "one", 8)
    aged(archive, "two", 8)
    real, failures = archive.store.delete, [StoreUnavailable("out of reach")]

    class Flaky(type(archive.store)):  # type: ignore[misc]
        def delete(self, folder: Folder) -> None:
            if failures:
                raise failures.pop()
            real(folder)

    store = archive.store
    store.__class__ = Flaky
    with pytest.raises(StoreUnavailable):
        archive.cleanup(now=NOW)
    archive.cleanup(now=NOW)
    assert list(store.folders()) == []
    assert archive.search().records == []


# --- Opening


def test_open_by_path(tmp_path: Path) -> None:
    """A folder opens as an archive of files with the index in it, by path and by URL."""
    record = sample_record(parts=1, length=1)
    with Archive.open(tmp_path / "traces") as archive:
        archive.setup()
        add(archive, lines("one"))
    assert (tmp_path / "traces" / "index.sqlite").exists()
    for name in (str(tmp_path / "traces"), f"file://{tmp_path}/traces"):
        with Archive.open(name) as archive:
            assert archive.search().records == [record]
            assert messages(archive, record.reference) == ["one"]


def test_recover_without_a_spool(archive: Archive) -> None:
    """Where nobody left anything, there is nothing to recover."""
    assert archive.recover() == 0
