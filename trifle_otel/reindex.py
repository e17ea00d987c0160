"""The record of a trace out of its payload alone: for rebuilding an index, and for cleaning up what no index knows.

Archives of ours describe themselves by `record.json`. Ruby and Elixir write none; then the
record is derived from the path, the reference and the entries. What they do not tell stays empty
(tags, meta, context); the state is `error` after an exception's line at the end and `success`
otherwise (a trace that still runs, or that was set to warning, looks the same); the last entry
gives `last_at` and with it the duration, to the second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from trifle_otel import encoding
from trifle_otel.errors import DamagedArchive, NotFound, UsageError
from trifle_otel.reading import Entries, part_names, read_entries
from trifle_otel.records import ERROR, SUCCESS, Entry, Folder, TraceRecord, empty_counters
from trifle_otel.references import reference_time, segments
from trifle_otel.stores.contract import Store

_log = logging.getLogger("trifle_otel")

EXCEPTION = "Exception: "  # begins the line that an exception leaves at the end of its trace
_OFFLOADED = "part_row_"
_CLOSE = timedelta(seconds=2)  # a reference made when the trace began tells the same time as the first entry
_LAST = datetime.max.replace(tzinfo=timezone.utc)


def stored_records(store: Store) -> Iterator[TraceRecord]:
    """The record of every trace in a store. What cannot be read is logged and left out."""
    for folder in store.folders():
        try:
            yield stored_record(store, folder)
        except (DamagedArchive, NotFound, UsageError) as error:
            _log.warning("left out %s: %s", folder.path, error)


def stored_record(store: Store, folder: Folder) -> TraceRecord:
    """The record of the trace in a folder.

    Raises `DamagedArchive` where nothing tells its time, `NotFound` where the folder has gone.
    """
    names = store.names(folder)
    if not names:
        raise NotFound(f"{folder.path} is not there")
    record = _described(store, folder, names)
    if record is None:
        return _derived(folder, read_entries(store, folder, 0, names), part_names(names))
    parts = max(part_names(names), default=0)
    if parts <= record.parts:
        return record
    # The process died between a part and the record that tells of it.
    entries = read_entries(store, folder, parts, names)
    return replace(record, parts=parts, length=len(entries), counters=counters_of(entries))


def counters_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """How many entries there are of each state and type, and the deepest level."""
    counters = empty_counters()
    for entry in entries:
        for group, name in (("states", entry.state), ("types", entry.type)):
            if name in counters[group]:
                counters[group][name] += 1
        counters["max_level"] = max(counters["max_level"], entry.level)
    return counters


def _described(store: Store, folder: Folder, names: Sequence[str]) -> TraceRecord | None:
    """What `record.json` says; None where there is none, or none that can be read."""
    if encoding.RECORD_NAME not in names:
        return None
    try:
        with store.open(folder, encoding.RECORD_NAME) as stream:
            record = encoding.decode_record(stream.read(encoding.MAX_RECORD_BYTES))
    except DamagedArchive as error:
        _log.warning("%s/%s is derived from the entries: %s", folder.path, encoding.RECORD_NAME, error)
        return None
    # The path is right where they disagree: else a file could pass itself off as another trace's record.
    return replace(
        record,
        reference=folder.reference,
        key=folder.key,
        segments=segments(folder.key),
        retention=folder.retention,
        bucket_name=folder.bucket,
    )


def _derived(folder: Folder, entries: Entries, parts: dict[int, str]) -> TraceRecord:
    first_at = _first_at(folder, entries)
    last_at = max(first_at, entries[-1].at) if entries else first_at
    return TraceRecord(
        reference=folder.reference,
        key=folder.key,
        segments=segments(folder.key),
        state=_state(entries),
        duration=(last_at - first_at) // timedelta(milliseconds=1),
        counters=counters_of(entries),
        length=len(entries),
        parts=max(parts, default=0),
        first_at=first_at,
        last_at=last_at,
        retention=folder.retention,
        expires_at=_expiry(first_at, folder.retention),
        bucket_name=folder.bucket,
    )


def _first_at(folder: Folder, entries: Sequence[Entry]) -> datetime:
    """The first entry's time; more exactly the reference's, where both say the same."""
    made_at = reference_time(folder.reference)
    if not entries:
        if made_at is None:
            raise DamagedArchive(f"nothing in {folder.path} tells its time", reference=folder.reference)
        return made_at
    first = entries[0]
    if made_at is not None and first.ns is None and abs(made_at - first.at) <= _CLOSE:
        return made_at
    return first.at


def _state(entries: Sequence[Entry]) -> str:
    for entry in reversed(entries):
        if entry.type != "raw":  # a traceback may follow
            left_by_exception = entry.message.startswith((EXCEPTION, _OFFLOADED))
            return ERROR if entry.state == ERROR and entry.level == 0 and left_by_exception else SUCCESS
    return SUCCESS


def _expiry(first_at: datetime, retention: int) -> datetime:
    try:
        return first_at + timedelta(days=retention)
    except OverflowError:
        return _LAST
