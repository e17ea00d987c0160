"""Targets: what an archive that somebody else wrote may hold, and what callers give to find something in it."""

from __future__ import annotations

import gzip
from contextlib import suppress
from datetime import datetime, timezone

from trifle_otel import encoding, part_lines, queries, references
from trifle_otel.archive import Archive
from trifle_otel.errors import DamagedArchive, InvalidCursor, NotFound, UsageError
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.records import Folder
from trifle_otel.stores.contract import checked_name, checked_path
from trifle_otel.stores.memory import MemoryStore

from .claims import check_entries, check_record, check_replay, sqlite_index
from .inputs import choice, fields, text

LIMIT = 1 << 20  # bytes of a part when it is unpacked
NAMES = (
    "record.json",
    "data_1.json",
    "data_1.json.gz",
    "data_2.json",
    "data_3.json.gz",
    "data_999999999.json",
    "artifacts/part_row_01j00000000000000000000000.txt",
    "artifacts/page.html",
)
NOW = datetime(2026, 11, 24, tzinfo=timezone.utc)
PLAIN, PACKED, GZIP = range(3)


def parts(data: bytes) -> None:
    """A part: JSON as it is, JSON that is packed here so that the fuzzer sees through it, or bytes as gzip."""
    kind, data = choice(data, (PLAIN, PACKED, GZIP))
    stored = gzip.compress(data, 1, mtime=0) if kind == PACKED else data
    try:
        entries = encoding.decode_part(stored, compressed=kind != PLAIN, limit=LIMIT)
    except DamagedArchive as error:
        entries = list(error.salvaged)
    check_entries(entries)
    plain = stored if kind == PLAIN else encoding.unpack_part(stored, limit=LIMIT)
    if plain is not None:
        with suppress(ValueError):  # it has to be read the long way
            lines = part_lines.decode(plain)
            assert len(lines) == part_lines.count(plain)


def record(data: bytes) -> None:
    """A `record.json`."""
    try:
        found = encoding.decode_record(data)
    except DamagedArchive:
        return
    check_record(found)
    check_replay(found, [])


def place_of(path: str) -> Folder:
    """The folder that a path names, where stores take it; else one that they do."""
    days, _, rest = path.partition("/")
    key, _, reference = rest.rpartition("/")
    try:
        place = Folder(int(days[:9]), key, reference)
        checked_path(place)
    except ValueError:
        return Folder(7, "key", "reference")
    return place


def folder(data: bytes) -> None:
    """A whole archive of one trace: its path, and files in its folder; reindexed, read, cleaned up."""
    path, rest = fields(data, 2)
    place = place_of(text(path))
    store = MemoryStore()
    for piece in filter(None, fields(rest, 4)):
        name, contents = choice(piece, NAMES)
        with suppress(UsageError):
            store.write(place, name, contents)
    archive = Archive(store, MemoryIndex())
    archive.reindex()
    for found in archive.search(limit=1000).records:
        check_record(found)
        entries = archive.entries(found)
        stored = [entry.stored for entry in entries]
        check_entries(stored)
        check_replay(found, stored)
        for entry in entries[:100]:
            with suppress(NotFound):
                archive.artifact(found, entry.message)
    archive.cleanup(now=NOW)


def search(data: bytes) -> None:
    """What callers search for: times, durations, a cursor, a segment, a trace id."""
    given = [text(piece) for piece in fields(data, 6)]
    with suppress(InvalidCursor):
        position = encoding.decode_cursor(given[0])
        assert encoding.decode_cursor(encoding.encode_cursor(position)) == position
    since, until, duration, segment, trace_id = (each or None for each in given[1:])
    try:
        query = queries.make_query(
            cursor=given[0],
            since=since,
            until=until,
            min_duration=duration,
            segment=segment,
            trace_id=trace_id,
            any_tags=[given[1]],
            now=NOW,
        )
    except UsageError:
        return
    MemoryIndex().search(query)
    sqlite_index().search(query)


def names(data: bytes) -> None:
    """Keys, names and references of callers, which become paths."""
    given = text(data)
    key, name, reference = references.safe_key(given), references.safe_name(given), references.safe_reference(given)
    assert references.safe_key(key) == key
    assert references.safe_name(name) == name
    assert references.safe_reference(reference) == reference
    checked_path(Folder(7, key, reference))
    checked_name(encoding.artifact_name(name))
    prefix = "p" * references.MAX_PREFIX_BYTES
    assert len(f"1000000/{prefix}/{key}/{reference}/artifacts/{name}".encode()) <= 1024
    assert encoding.parse_part_name(name.rpartition("/")[2]) is None
    references.reference_time(given)
