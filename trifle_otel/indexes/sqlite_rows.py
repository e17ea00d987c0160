"""The tables of the SQLite index, their versions, and how records become rows and back.

`traces` holds a row for each record. `labels`, which triggers keep in step with it, holds one for
each of a record's segments and tags, and one for "any record" (the segment that is empty), in the
order of a search within each class. A class is a state and a range of durations, so that a rare
state and a long duration are found without passing the others.
"""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from trifle_otel.errors import ConfigurationError
from trifle_otel.records import TRACE_STATES, TraceRecord
from trifle_otel.strict_json import clean_text, from_json, to_json

SEGMENT, TAG = 0, 1  # labels.kind
ANY = ""  # the segment of every record
CLASSES_OF_A_STATE = 16
_EDGES = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_600_000)  # milliseconds

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE traces (
            reference TEXT PRIMARY KEY NOT NULL, key TEXT NOT NULL, segments TEXT NOT NULL, state TEXT NOT NULL,
            tags TEXT NOT NULL, meta TEXT NOT NULL, context TEXT NOT NULL, duration INTEGER NOT NULL,
            counters TEXT NOT NULL, length INTEGER NOT NULL, parts INTEGER NOT NULL, first_at INTEGER NOT NULL,
            last_at INTEGER NOT NULL, retention INTEGER NOT NULL, expires_at INTEGER NOT NULL, bucket_name TEXT,
            trace_id TEXT, class INTEGER NOT NULL)""",
        "CREATE INDEX traces_trace_id ON traces (trace_id, first_at) WHERE trace_id IS NOT NULL",
        "CREATE INDEX traces_expires_at ON traces (expires_at)",
        """CREATE TABLE labels (
            kind INTEGER NOT NULL, value TEXT NOT NULL, class INTEGER NOT NULL, first_at INTEGER NOT NULL,
            reference TEXT NOT NULL, duration INTEGER NOT NULL,
            PRIMARY KEY (kind, value, class, first_at, reference)) WITHOUT ROWID""",
        """CREATE TRIGGER traces_insert AFTER INSERT ON traces BEGIN
            INSERT OR REPLACE INTO labels SELECT 0, value, new.class, new.first_at, new.reference, new.duration
                FROM (SELECT '' AS value UNION ALL SELECT value FROM json_each(new.segments));
            INSERT OR REPLACE INTO labels SELECT 1, value, new.class, new.first_at, new.reference, new.duration
                FROM json_each(new.tags);
        END""",
        """CREATE TRIGGER traces_delete AFTER DELETE ON traces BEGIN
            DELETE FROM labels WHERE kind = 0 AND class = old.class AND first_at = old.first_at
                AND reference = old.reference
                AND value IN (SELECT '' UNION ALL SELECT value FROM json_each(old.segments));
            DELETE FROM labels WHERE kind = 1 AND class = old.class AND first_at = old.first_at
                AND reference = old.reference AND value IN (SELECT value FROM json_each(old.tags));
        END""",
        """CREATE TRIGGER traces_update AFTER UPDATE ON traces
        WHEN old.class <> new.class OR old.first_at <> new.first_at OR old.duration <> new.duration
            OR old.segments <> new.segments OR old.tags <> new.tags BEGIN
            DELETE FROM labels WHERE kind = 0 AND class = old.class AND first_at = old.first_at
                AND reference = old.reference
                AND value IN (SELECT '' UNION ALL SELECT value FROM json_each(old.segments));
            DELETE FROM labels WHERE kind = 1 AND class = old.class AND first_at = old.first_at
                AND reference = old.reference AND value IN (SELECT value FROM json_each(old.tags));
            INSERT OR REPLACE INTO labels SELECT 0, value, new.class, new.first_at, new.reference, new.duration
                FROM (SELECT '' AS value UNION ALL SELECT value FROM json_each(new.segments));
            INSERT OR REPLACE INTO labels SELECT 1, value, new.class, new.first_at, new.reference, new.duration
                FROM json_each(new.tags);
        END""",
    ),
)
"""What leads from each version of the tables to the next; `PRAGMA user_version` counts those that are done."""

_NAMES = (
    *("reference", "key", "segments", "state", "tags", "meta", "context", "duration", "counters", "length", "parts"),
    *("first_at", "last_at", "retention", "expires_at", "bucket_name"),
)
COLUMNS = ", ".join(_NAMES)
_STORED = (*_NAMES, "trace_id", "class")

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX = 2**63 - 1
_STATE_NUMBERS = {state: number for number, state in enumerate(TRACE_STATES)}


def prepare_schema(connection: sqlite3.Connection, name: str, timeout: float) -> None:
    """Make the tables, or bring them up to date. Raises `ConfigurationError` for a file that is not ours."""
    if _checked_version(connection, name) == len(MIGRATIONS):
        return
    _switch_to_wal(connection, timeout)
    connection.execute("BEGIN IMMEDIATE")
    version = _checked_version(connection, name)  # another process may have been quicker
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute("COMMIT")


def _checked_version(connection: sqlite3.Connection, name: str) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if not 0 <= version <= len(MIGRATIONS):
        raise ConfigurationError(f"{name} was made by a newer version of trifle-otel, or by another program")
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise ConfigurationError(f"{name} is the database of another program; name another file for the index")
    return version


def _switch_to_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch to a write-ahead log; SQLite itself does not wait here when others do the same."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


@lru_cache(maxsize=16)
def insert(count: int) -> str:
    """The statement that inserts or replaces `count` rows, by the rule of `Index.put`."""
    # All rows in one statement: Python's lock is let go once for the whole batch. With `executemany`
    # each row would wait for a busy job's thread, and taking them out of one JSON text costs twice as much.
    row = f"({', '.join('?' * len(_STORED))})"
    changes = ", ".join(f"{column} = excluded.{column}" for column in _STORED[1:])
    return (
        f"INSERT INTO traces ({', '.join(_STORED)}) VALUES {', '.join([row] * count)} "
        f"ON CONFLICT (reference) DO UPDATE SET {changes} "
        "WHERE excluded.state <> 'running' OR (traces.state = 'running' AND excluded.parts >= traces.parts)"
    )


def row_of(record: TraceRecord) -> tuple[str | int | None, ...]:
    """The values of a record in the order of `insert`."""
    trace_id = record.trace_id
    return (
        clean_text(record.reference),
        clean_text(record.key),
        _segments_json(record.segments),
        clean_text(record.state),
        _json(record.tags),
        _json(record.meta),
        _json(record.context),
        min(record.duration, _MAX),
        _json(record.counters),
        min(record.length, _MAX),
        min(record.parts, _MAX),
        micros(record.first_at),
        micros(record.last_at),
        min(record.retention, _MAX),
        micros(record.expires_at),
        record.bucket_name and clean_text(record.bucket_name),
        trace_id and clean_text(trace_id),
        class_of(record.state, record.duration),
    )


def record_of(row: Sequence[Any]) -> TraceRecord:
    """The record in a row of `COLUMNS`."""
    (reference, key, segments, state, tags, meta, context, duration, counters, length, parts) = row[:11]
    first_at, last_at, retention, expires_at, bucket_name = row[11:]
    return TraceRecord(
        reference=reference,
        key=key,
        segments=tuple(_value(segments)),
        state=state,
        tags=tuple(_value(tags)),
        meta=_value(meta),
        context=_value(context),
        duration=duration,
        counters=_value(counters),
        length=length,
        parts=parts,
        first_at=_time(first_at),
        last_at=_time(last_at),
        retention=retention,
        expires_at=_time(expires_at),
        bucket_name=bucket_name,
    )


def micros(moment: datetime) -> int:
    """Unix time in whole microseconds."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def class_of(state: str, duration: int) -> int:
    """The class of a record: its state, and the range that its duration (milliseconds) is in."""
    return state_number(state) * CLASSES_OF_A_STATE + bisect_right(_EDGES, duration)


def state_number(state: str) -> int:
    """The number of a state in classes; states that the format does not have share one."""
    return _STATE_NUMBERS.get(state, len(_STATE_NUMBERS))


def _time(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


def _json(value: object) -> str:
    return to_json(value).decode()


_segments_json = lru_cache(maxsize=1024)(_json)


def _value(text: str) -> Any:
    return from_json(text.encode())
