"""Rebuilding an index from payloads: ours describe themselves; of Ruby's, what paths and entries tell is derived."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from trifle_otel.archive import Archive
from trifle_otel.encoding import decode_record, encode_part, encode_record
from trifle_otel.errors import DamagedArchive, NotFound
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.records import Folder, TraceRecord
from trifle_otel.reindex import stored_record
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.testing import sample_record

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/record.json"))
REFERENCE = "01KDYAK3SEABCDEFGHJKMNPQRS"  # 2026-01-02 03:04:05.678 UTC
FOLDER = Folder(7, "a/b", REFERENCE)
AT = 1_767_323_045  # the same, in seconds


def entry(message: str, at: int = AT, **more: Any) -> dict[str, Any]:
    """An entry as Ruby stores it."""
    return {"at": at, "message": message, "state": "success", "type": "text", "level": 0, **more}


def derived(entries: list[dict[str, Any]], folder: Folder = FOLDER) -> TraceRecord:
    """The record of a trace that has one part with these entries and no `record.json`."""
    store = MemoryStore()
    store.write(folder, "data_1.json", encode_part(entries, compress=False))
    return stored_record(store, folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_ruby_s_records_are_derived(case: Path) -> None:
    """Of every golden archive the fields that payloads tell are those that Ruby's own record had; the rest is empty."""
    golden = decode_record((case / "record.json").read_bytes())
    archive = Archive(FileStore(case / "archive"), MemoryIndex())
    assert archive.reindex() == 1
    record = archive.find(golden.reference)
    for name in ("reference", "key", "segments", "counters", "length", "parts", "retention", "bucket_name"):
        assert getattr(record, name) == getattr(golden, name), name
    # the reference tells milliseconds, entries whole seconds
    assert abs(record.first_at - golden.first_at) < timedelta(milliseconds=2)
    assert abs(record.last_at - golden.last_at) < timedelta(seconds=1)
    assert record.first_at <= record.last_at
    assert record.expires_at == record.first_at + timedelta(days=3)
    assert record.duration == (record.last_at - record.first_at) // timedelta(milliseconds=1)
    # nothing in the payload tells of a state that was set by hand, of tags, meta and context
    assert record.state == "success"
    assert golden.state == ("warning" if case.name == "live-two-parts-warning" else "success")
    assert (record.tags, record.meta, dict(record.context)) == ((), None, {})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_ruby_s_entries_are_read_by_a_derived_record(case: Path) -> None:
    """Through the rebuilt index every golden archive gives the entries that Ruby reads, in their order."""
    archive = Archive(FileStore(case / "archive"), MemoryIndex())
    archive.reindex()
    (record,) = archive.search(segment="commodity/calculate").records
    entries = archive.entries(record)
    assert [each.stored for each in entries] == json.loads((case / "entries.json").read_text(encoding="utf-8"))
    assert entries.damaged == []


def test_our_records_are_restored_as_they_were(tmp_path: Path) -> None:
    """An index that was lost is rebuilt from `record.json` with every field of every record."""
    records = [
        sample_record(reference=f"{REFERENCE[:-3]}{n:03}", key=f"job/{n % 3}", tags=(f"n:{n}",), duration=n)
        for n in range(600)
    ]
    store = FileStore(tmp_path)
    for record in records:
        for part in (1, 2):
            store.write(record.folder, f"data_{part}.json", b"[]")
        store.write(record.folder, "record.json", encode_record(record))
    counts: list[int] = []
    with closing(SQLiteIndex(tmp_path / "index.sqlite")) as index:
        archive = Archive(store, index)
        assert archive.reindex(progress=counts.append) == 600
        assert archive.search(limit=1000).records == records[::-1]
        assert archive.reindex() == 600
        assert archive.search(limit=1000).records == records[::-1]
    assert counts == [256, 512, 600]


def test_a_damaged_index_is_rebuilt(tmp_path: Path) -> None:
    """After the index was overwritten with something else, rebuilding finds all traces again."""
    record = sample_record(parts=0)
    FileStore(tmp_path).write(record.folder, "record.json", encode_record(record))
    (tmp_path / "index.sqlite").write_bytes(b"no database " * 1000)
    with closing(SQLiteIndex(tmp_path / "index.sqlite")) as index:
        archive = Archive(FileStore(tmp_path), index)
        with pytest.raises(DamagedArchive, match="trifle-otel reindex"):
            archive.search()
        assert archive.reindex() == 1
        assert archive.search().records == [record]


def test_an_exception_at_the_end_makes_an_error() -> None:
    """A trace whose last line is that of an exception is an error, a traceback under it or not."""
    left = entry("Exception: boom", state="error")
    assert derived([entry("a"), left]).state == "error"
    assert derived([entry("a"), left, entry("Traceback …", type="raw", state="error")]).state == "error"
    offloaded = entry("part_row_01kdywtw9eabcdefghjkmnpqrs.txt", state="error", type="media", size=200_000)
    assert derived([entry("a"), offloaded]).state == "error"


def test_an_exception_that_did_not_end_the_trace_makes_none() -> None:
    """An exception's line before other lines, in a block, or that is no error, leaves a success."""
    assert derived([entry("Exception: boom", state="error"), entry("went on")]).state == "success"
    assert derived([entry("Exception: boom", state="error", level=1)]).state == "success"
    assert derived([entry("Exception: is what I call this")]).state == "success"
    assert derived([entry("something else", state="error")]).state == "success"


def test_times_come_from_reference_and_entries() -> None:
    """The reference's milliseconds begin the trace where the first entry agrees, and the last entry ends it."""
    record = derived([entry("a"), entry("b", at=AT + 90)])
    assert record.first_at == datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc)
    assert record.last_at == datetime(2026, 1, 2, 3, 5, 35, tzinfo=timezone.utc)
    assert record.duration == 89_322


def test_an_objectid_tells_the_time_too() -> None:
    """A reference that MongoDB made gives the second in which the trace began."""
    folder = Folder(7, "a", "695735a5" + "0" * 16)  # AT in hexadecimal
    assert derived([entry("a", at=AT + 1)], folder).first_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def test_a_reference_that_tells_another_time_is_not_believed() -> None:
    """A reference that a caller made, of no kind or of another day, leaves the time to the entries."""
    for reference in ("order-4711", "01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        record = derived([entry("a")], FOLDER._replace(reference=reference))
        assert record.first_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def test_nanoseconds_are_used_where_they_are() -> None:
    """Entries of ours tell the time to the microsecond, also where their `record.json` is gone."""
    record = derived([entry("a", ns=AT * 10**9 + 123_456_789), entry("b", ns=AT * 10**9 + 623_456_789)])
    assert record.first_at == datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=timezone.utc)
    assert record.duration == 500


def test_counters_are_counted() -> None:
    """Known states and types are counted, others nowhere, and a missing level is 0."""
    media = {"at": AT, "message": "a.txt", "state": "success", "type": "media", "size": 3}
    record = derived(
        [
            entry("a", type="head", level=2),
            entry("b", state="warning"),
            entry("c", state="odd", type="odd"),
            media,
            entry("d", state=None, level="x"),
        ]
    )
    assert record.counters == {
        "states": {"success": 2, "warning": 1, "error": 0, "debug": 0},
        "types": {"text": 2, "head": 1, "raw": 0, "media": 1},
        "max_level": 2,
    }
    assert record.length == 5


def test_the_path_is_right_where_a_record_disagrees() -> None:
    """A `record.json` that claims another trace's reference, key or retention is indexed as what its path says."""
    store = MemoryStore()
    other = sample_record(reference="01ARZ3NDEKTSV4RRFFQ69G5FAV", key="x/y", retention=3650, parts=0, bucket_name="b")
    store.write(FOLDER, "record.json", encode_record(other))
    wanted = replace(other, reference=REFERENCE, key="a/b", segments=("a", "a/b"), retention=7, bucket_name=None)
    assert stored_record(store, FOLDER) == wanted


def test_parts_that_the_record_does_not_know_are_counted() -> None:
    """Where a process died between a part and its record, the rebuilt record has all parts and entries."""
    store = MemoryStore()
    known = sample_record(reference=REFERENCE, key="a/b", parts=1, length=1, state="running")
    store.write(FOLDER, "data_1.json", encode_part([entry("a")], compress=False))
    store.write(FOLDER, "data_2.json.gz", encode_part([entry("b", level=3), entry("c")]))
    store.write(FOLDER, "record.json", encode_record(known))
    record = stored_record(store, FOLDER)
    assert (record.parts, record.length, record.state) == (2, 3, "running")
    assert record.counters["max_level"] == 3


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b'{"reference": 1}', b"\xff\xfe", b'{"reference":"r"}'])
def test_a_damaged_record_is_derived(contents: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A `record.json` that cannot be read is derived like a missing one, and that is logged."""
    store = MemoryStore()
    store.write(FOLDER, "data_1.json", encode_part([entry("a")], compress=False))
    store.write(FOLDER, "record.json", contents)
    with caplog.at_level(logging.WARNING, "trifle_otel"):
        assert stored_record(store, FOLDER).length == 1
    assert f"7/a/b/{REFERENCE}/record.json" in caplog.text


def test_a_damaged_part_is_counted_as_far_as_it_goes() -> None:
    """Deriving uses what can be read of damaged parts, and counts the part."""
    store = MemoryStore()
    store.write(
        FOLDER, "data_1.json", b'[{"at":1767323045,"message":"a","state":"success","type":"text","level":0},{"at"'
    )
    store.write(FOLDER, "data_3.json", encode_part([entry("c")], compress=False))
    record = stored_record(store, FOLDER)
    assert (record.parts, record.length) == (3, 2)


def test_what_tells_no_time_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A folder with neither record, entry nor telling reference is left out and logged; others are indexed."""
    store = MemoryStore()
    store.write(FOLDER._replace(reference="nameless"), "data_1.json", b"rubbish")
    store.write(FOLDER, "data_1.json", b"rubbish too")
    archive = Archive(store, MemoryIndex())
    with caplog.at_level(logging.WARNING, "trifle_otel"):
        assert archive.reindex() == 1
    assert [record.reference for record in archive.search().records] == [REFERENCE]
    assert "nameless" in caplog.text
    with pytest.raises(DamagedArchive):
        stored_record(store, FOLDER._replace(reference="nameless"))
    with pytest.raises(NotFound):
        stored_record(store, FOLDER._replace(reference="missing"))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A golden archive with things in it that nobody asked for."""
    root = tmp_path / "archive"
    shutil.copytree(GOLDEN / "plain/deferred/archive", root)
    (root / "3/loop").symlink_to(root / "3", target_is_directory=True)
    (root / "99999999999999999999/a/ref").mkdir(parents=True)
    (root / "99999999999999999999/a/ref/data_1.json").write_bytes(b"[]")
    (root / "999999999/a" / REFERENCE).mkdir(parents=True)
    (root / f"999999999/a/{REFERENCE}/data_1.json").write_bytes(b"[]")
    return root


def test_hostile_archives_are_walked(hostile: Path) -> None:
    """Loops of links and absurd retention classes neither hang nor break rebuilding; such a class never expires."""
    archive = Archive(FileStore(hostile), MemoryIndex())
    assert archive.reindex() == 2
    assert archive.find(REFERENCE).expires_at.year == 9999


def test_a_running_record_does_not_replace_the_index_s_ended_one(tmp_path: Path) -> None:
    """Where the index knows the end of a trace and its `record.json` does not yet, rebuilding keeps the end."""
    ended = sample_record(parts=0)
    store, index = FileStore(tmp_path), MemoryIndex()
    store.write(ended.folder, "record.json", encode_record(replace(ended, state="running")))
    index.put([ended])
    archive = Archive(store, index)
    archive.reindex()
    assert archive.find(ended.reference) == ended
