"""The tables of the SQLite index, their versions, and how records become rows and back.

`traces` holds a row for each record, `labels` an inverted index over its `words`: one word for each
thing that a search may ask for. Full-text tables (FTS5) take random words in long sorted runs; a
b-tree of them would touch a page for each word, which was five times as slow at a million records.
An `id` begins with the millisecond, so that both tables are in the order of a search.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import time
import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from trifle_otel.errors import ConfigurationError, DamagedArchive, UsageError
from trifle_otel.records import TraceRecord
from trifle_otel.strict_json import clean_text, from_json, to_json

SLOT_BITS = 21  # the lower bits of an id: they tell traces of one millisecond apart, and say nothing of their order
_SLOTS = (1 << SLOT_BITS) - 1
_MAX_MILLISECOND = (1 << 63 >> SLOT_BITS) - 1  # in 2109; what comes later shares it
KEPT_SECONDS = (-_MAX_MILLISECOND // 1000, _MAX_MILLISECOND // 1000)
"""Unix times that ids tell apart."""
_MAX = 2**63 - 1
_LONGEST = 10**9 - 1  # milliseconds; what takes longer has the same words
_REMEMBERED = 4096  # characters of all segments of a record
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_ADD = "INSERT INTO labels (rowid, words) VALUES (new.id, new.words);"
_REMOVE = "INSERT INTO labels (labels, rowid, words) VALUES ('delete', old.id, old.words);"
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE traces (
            id INTEGER PRIMARY KEY NOT NULL, reference TEXT UNIQUE NOT NULL, key TEXT NOT NULL, segments TEXT NOT NULL,
            state TEXT NOT NULL, tags TEXT NOT NULL, meta TEXT NOT NULL, context TEXT NOT NULL,
            duration INTEGER NOT NULL, counters TEXT NOT NULL, length INTEGER NOT NULL, parts INTEGER NOT NULL,
            first_at INTEGER NOT NULL, last_at INTEGER NOT NULL, retention INTEGER NOT NULL,
            expires_at INTEGER NOT NULL, bucket_name TEXT, words TEXT NOT NULL)""",
        "CREATE INDEX traces_expires_at ON traces (expires_at)",
        "CREATE VIRTUAL TABLE labels USING fts5 (words, content = '', detail = none, columnsize = 0, tokenize = ascii)",
        f"CREATE TRIGGER traces_insert AFTER INSERT ON traces BEGIN {_ADD} END",
        f"CREATE TRIGGER traces_delete AFTER DELETE ON traces BEGIN {_REMOVE} END",
        f"""CREATE TRIGGER traces_update AFTER UPDATE ON traces
            WHEN old.id <> new.id OR old.words <> new.words BEGIN {_REMOVE} {_ADD} END""",
    ),
)
"""What leads from each version of the tables to the next; `PRAGMA user_version` counts those that are done."""

_NAMES = (
    *("reference", "key", "segments", "state", "tags", "meta", "context", "duration", "counters", "length", "parts"),
    *("first_at", "last_at", "retention", "expires_at", "bucket_name"),
)
COLUMNS = ", ".join(_NAMES)
_STORED = ("id", *_NAMES, "words")

Row = tuple["str | int | None", ...]


def prepare_schema(connection: sqlite3.Connection, name: str, timeout: float) -> None:
    """Make the tables, or bring them up to date. Raises `ConfigurationError` for a file that is not ours."""
    if _checked_version(connection, name) == len(MIGRATIONS):
        return
    _switch_to_wal(connection, timeout)
    connection.execute("BEGIN IMMEDIATE")
    version = _checked_version(connection, name)  # another process may have been quicker
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            _execute(connection, statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute("COMMIT")


def _checked_version(connection: sqlite3.Connection, name: str) -> int:
    version = _version(connection)
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        version = _version(connection)  # another process may have made ours between the two looks
        if version == 0:
            raise ConfigurationError(f"{name} is the database of another program; name another file for the index")
    if not 0 <= version <= len(MIGRATIONS):
        raise ConfigurationError(f"{name} was made by a newer version of trifle-otel, or by another program")
    return version


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if "no such module" not in str(error):
            raise
        raise ConfigurationError(
            f"this Python's SQLite ({sqlite3.sqlite_version}) is built without FTS5, which the index needs; "
            "use another build of Python, or another index"
        ) from error


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


def insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Insert or replace rows, by the rule of `Index.put`. Raises `IntegrityError` where two want the same id."""
    for start, size in _batches(len(rows)):
        connection.execute(_insert(size), [value for row in rows[start : start + size] for value in row])


def insert_apart(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """The same for rows of which some want an id that is taken: they get another one of the same millisecond."""
    for row in rows:
        taken = connection.execute("SELECT id FROM traces WHERE reference = ?", (row[1],)).fetchone()
        connection.execute(_insert(1), (_free_id(connection, row, taken and taken[0]), *row[1:]))


def _free_id(connection: sqlite3.Connection, row: Row, own: int | None) -> int:
    wanted = row[0]
    assert isinstance(wanted, int)
    first = wanted & ~_SLOTS
    if own is not None and own & ~_SLOTS == first:
        return own
    for _ in range(1_000):
        if not connection.execute("SELECT 1 FROM traces WHERE id = ?", (wanted,)).fetchone():
            return wanted
        wanted = first | random.randrange(_SLOTS)
    raise UsageError(f"an index in SQLite holds {_SLOTS:,} traces of one millisecond, and no more")


def _batches(count: int) -> Sequence[tuple[int, int]]:
    """Where to cut `count` rows: few sizes, so that the statement of each is compiled once."""
    cuts = []
    start = 0
    for size in (256, 64, 16, 4, 1):
        while count - start >= size:
            cuts.append((start, size))
            start += size
    return cuts


@lru_cache(maxsize=8)
def _insert(count: int) -> str:
    # All rows in one statement: Python's lock is let go once for the whole batch. With `executemany`
    # each row would wait for a busy job's thread, and taking them out of one JSON text costs 10 µs a row.
    row = f"({', '.join('?' * len(_STORED))})"
    changes = ", ".join(f"{column} = excluded.{column}" for column in _STORED if column not in ("id", "reference"))
    return (
        f"INSERT INTO traces ({', '.join(_STORED)}) VALUES {', '.join([row] * count)} "
        f"ON CONFLICT (reference) DO UPDATE SET {changes}, "
        f"id = CASE WHEN traces.id >> {SLOT_BITS} = excluded.id >> {SLOT_BITS} THEN traces.id ELSE excluded.id END "
        "WHERE excluded.state <> 'running' OR (traces.state = 'running' AND excluded.parts >= traces.parts)"
    )


def row_of(record: TraceRecord) -> Row:
    """The values of a record in the order of `insert`."""
    reference = clean_text(record.reference)
    first_at = micros(record.first_at)
    return (
        first_id(first_at) | (zlib.crc32(reference.encode()) & _SLOTS),
        reference,
        clean_text(record.key),
        _of_segments(_segments_json, record.segments),
        clean_text(record.state),
        _json(record.tags),
        _json(record.meta),
        _json(record.context),
        min(record.duration, _MAX),
        _json(record.counters),
        min(record.length, _MAX),
        min(record.parts, _MAX),
        first_at,
        micros(record.last_at),
        min(record.retention, _MAX),
        micros(record.expires_at),
        record.bucket_name and clean_text(record.bucket_name),
        _words(record),
    )


def record_of(row: Sequence[Any]) -> TraceRecord:
    """The record in a row of `COLUMNS`. Raises `DamagedArchive` for one that nobody put: the file may be others'."""
    try:
        return _record_of(row)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedArchive(
            f"the row of trace {row[0]} cannot be read ({error}); `trifle-otel reindex` makes it anew from the archive"
        ) from error


def _record_of(row: Sequence[Any]) -> TraceRecord:
    (reference, key, segments, state, tags, meta, context, duration, counters, length, parts) = row[:11]
    first_at, last_at, retention, expires_at, bucket_name = row[11:]
    return TraceRecord(
        reference=reference,
        key=key,
        segments=tuple(_value(segments)),
        state=state,
        tags=tuple(_value(tags)),
        meta=_value(meta),
        context=dict(_value(context)),
        duration=duration,
        counters=dict(_value(counters)),
        length=length,
        parts=parts,
        first_at=time_of(first_at),
        last_at=time_of(last_at),
        retention=retention,
        expires_at=time_of(expires_at),
        bucket_name=bucket_name,
    )


def micros(moment: datetime) -> int:
    """Unix time in whole microseconds."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def first_id(first_at: int) -> int:
    """The lowest id of the millisecond that a Unix time in microseconds is in."""
    millisecond = first_at // 1000
    return max(-_MAX_MILLISECOND, min(millisecond, _MAX_MILLISECOND)) << SLOT_BITS


def last_id(first_at: int) -> int:
    """The highest id of the millisecond that a Unix time in microseconds is in."""
    return first_id(first_at) | _SLOTS


def word(kind: str, value: str) -> str:
    """The word for a value: `segment`, `tag`, `state` or `trace`. Others may share it, so what is found is compared."""
    return hashlib.blake2b(f"{kind}:{clean_text(value)}".encode(), digest_size=6).hexdigest()


def duration_words(duration: int) -> tuple[str, str, str]:
    """The words for a duration in milliseconds: its number of digits, the first one with it, the first two with it."""
    digits = str(max(0, min(duration, _LONGEST)))
    two = digits.ljust(2, "0")[:2]
    return f"d{len(digits)}", f"d{len(digits)}x{two[0]}", f"d{len(digits)}x{two}"


def longer_words(duration: int) -> list[str]:
    """The words of which each duration from this one on has one; some shorter ones that begin alike have one too."""
    digits = str(max(0, min(duration, _LONGEST)))
    size, two = len(digits), digits.ljust(2, "0")[:2]
    first, second = int(two[0]), int(two[1])
    words = [f"d{more}" for more in range(size + 1, len(str(_LONGEST)) + 1)]
    if second:  # the fewer words, the faster: round durations need few
        words += [f"d{size}x{first}{each}" for each in range(second, 10)]
        first += 1
    if first == 1 and size > 1:
        return [*words, f"d{size}"]
    return words + [f"d{size}x{each}" for each in range(first, 10)]


def _words(record: TraceRecord) -> str:
    words = [_of_segments(_segment_words, record.segments), _state_word(record.state), *duration_words(record.duration)]
    words += [_tag_word(tag) for tag in record.tags]
    trace_id = record.trace_id
    if trace_id is not None:
        words.append(word("trace", trace_id))
    return " ".join(words)


def _of_segments(function: Any, segments: tuple[str, ...]) -> Any:
    """What a function gives for segments, remembered unless they are so large that it could take all memory."""
    return function(segments) if sum(map(len, segments)) <= _REMEMBERED else function.__wrapped__(segments)


@lru_cache(maxsize=1024)
def _segment_words(segments: tuple[str, ...]) -> str:
    return " ".join([word("segment", segment) for segment in segments])


@lru_cache(maxsize=64)
def _state_word(state: str) -> str:
    return word("state", state)


@lru_cache(maxsize=4096)
def _tag_word(tag: str) -> str:
    return word("tag", tag)


def time_of(value: int) -> datetime:
    """The time that is stored as Unix time in whole microseconds."""
    return _EPOCH + timedelta(microseconds=value)


def _json(value: object) -> str:
    return to_json(value).decode()


_segments_json = lru_cache(maxsize=1024)(_json)


def _value(text: str) -> Any:
    return from_json(text.encode())
