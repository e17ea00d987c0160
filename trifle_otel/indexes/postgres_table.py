"""The table of the PostgreSQL index: its shape, how records become rows, how a search and a tally are said in SQL.

Connections, and what errors mean, are `postgres`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql

from trifle_otel.errors import ConfigurationError
from trifle_otel.indexes.remote import Buckets, time_of
from trifle_otel.records import Query, TraceRecord
from trifle_otel.strict_json import clean_text, format_time, to_json
from trifle_otel.tallies import LONGEST_DURATION, MOST_ENTRIES, SHIFT, WIDTHS

if TYPE_CHECKING:
    from typing_extensions import LiteralString

_COLUMNS = {
    "reference": "text PRIMARY KEY",
    "key": "text NOT NULL",
    "segments": "jsonb NOT NULL DEFAULT '[]'",
    "state": "varchar(32) NOT NULL",
    "tags": "jsonb NOT NULL DEFAULT '[]'",
    "meta": "jsonb",
    "context": "jsonb NOT NULL DEFAULT '{}'",
    "duration": "bigint NOT NULL DEFAULT 0",
    "counters": "jsonb NOT NULL DEFAULT '{}'",
    "length": "bigint NOT NULL DEFAULT 0",
    "parts": "integer NOT NULL DEFAULT 0",
    "first_at": "timestamptz NOT NULL",
    "last_at": "timestamptz NOT NULL",
    "retention": "integer NOT NULL",
    "expires_at": "timestamptz NOT NULL",
    "bucket_name": "text",
}
_BUCKETS = {"bucket_name": "text", "bucket_id": "integer"}  # each generation of the format has one of them
_KINDS = {
    "text": {"text", "character varying"},
    "varchar(32)": {"text", "character varying"},
    "jsonb": {"jsonb"},
    "bigint": {"bigint", "integer"},
    "integer": {"bigint", "integer"},
    "timestamptz": {"timestamp with time zone"},
}
_INDEXES = {
    "segments_gin": "USING gin (segments)",
    "tags_gin": "USING gin (tags)",
    "state_started": "(state, first_at DESC, reference DESC)",
    "started": "(first_at DESC, reference DESC)",
    "duration_started": "(duration, first_at DESC, reference DESC)",
    "expires_at": "(expires_at)",
    # Ours alone. An entry of a B-tree has a longest length, and a context may hold anything under this name.
    "trace_id": "(left(context ->> 'trace_id', 64), first_at DESC, reference DESC)",
}
_LONGEST_NAME = 63  # PostgreSQL cuts names there, in bytes; ours are ASCII
_LONGEST_STATE = 32
_LARGE = 128 * 2**20  # bytes of a table on which making an index would hold up writers for seconds
_MAX = {"bigint": 2**63 - 1, "integer": 2**31 - 1}
_PART_BYTES = 8 * 2**20

_DIGITS = " ".join(
    f"WHEN duration < {100 * length} THEN duration / {length} * {length}"
    for length in (10**power for power in range(14))
)
_COUNTED = (
    f"SELECT first_at, floor(extract(epoch FROM first_at))::bigint + {SHIFT} AS second, state,"
    f" CASE WHEN duration < 0 THEN 0 {_DIGITS} ELSE {LONGEST_DURATION // 10**13 * 10**13} END AS duration,"
    f" greatest(0, least(length, {MOST_ENTRIES})) AS length"
)
_TALLY = f"""
WITH found AS MATERIALIZED ({{}}),
period AS (SELECT min(second) AS oldest, max(second) AS newest FROM found),
width AS (
    SELECT coalesce(min(width), {WIDTHS[-1]}) AS width FROM (VALUES {", ".join(f"({width})" for width in WIDTHS)})
        AS widths (width), period WHERE newest / width - oldest / width < %s
)
SELECT width, min(first_at), second / width, state, duration, count(*), sum(length)::bigint
FROM found, width GROUP BY width, second / width, state, duration
"""

# By bytes, not by the database's language: the order of a search is the same in every index. Within one
# microsecond this sorts anew what the index has in the language's order, which is next to nothing.
_ORDER = sql.SQL('ORDER BY first_at DESC, reference COLLATE "C" DESC LIMIT %s')

_LOOK = """
SELECT current_setting('server_encoding'), pg_relation_size(c.oid), ARRAY(
    SELECT ARRAY[attname::text, format_type(atttypid, NULL),
        (attnotnull AND NOT atthasdef AND attidentity = '')::text]
    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
), ARRAY(SELECT relname::text FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indrelid = c.oid), EXISTS (
    SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = c.oid AND indisunique AND indnkeyatts = 1 AND indpred IS NULL AND attname = 'reference'
)
FROM (SELECT to_regclass(%s)::oid AS oid) AS c
"""


class Look(NamedTuple):
    """What is there under a table's name."""

    encoding: str
    size: int | None  # bytes; None where there is no such table
    columns: dict[str, str]  # name -> type
    demanded: set[str]  # columns that an insert has to fill
    indexes: set[str]
    unique: bool  # whether references are

    @property
    def exists(self) -> bool:
        """Whether there is such a table. Its name is seen before its columns are, while another process makes it."""
        return self.size is not None and bool(self.columns)

    @property
    def large(self) -> bool:
        """Whether making an index would hold up writers for long."""
        return self.size is not None and self.size > _LARGE


class Table:
    """Statements for a table of one name.

    Args:
        name: as Ruby gives it, which does not quote it: capitals make no difference.
    """

    def __init__(self, name: str) -> None:
        self.name = name.lower()[:_LONGEST_NAME]
        self.identifier = sql.Identifier(self.name)

    def look(self, connection: Any) -> Look:
        """What is there now."""
        row = connection.execute(_LOOK, (f'"{self.name}"',)).fetchone()
        encoding, size, columns, indexes, unique = row
        return Look(
            encoding,
            size,
            {name: kind for name, kind, _ in columns},
            {name for name, _, demanded in columns if demanded == "true"},
            set(indexes),
            unique,
        )

    def check(self, look: Look) -> None:
        """Raises `ConfigurationError` for a database or table that cannot hold records; it says what is missing."""
        if look.encoding not in ("UTF8", "SQL_ASCII"):
            raise ConfigurationError(f"the database's encoding is {look.encoding}; an index needs one with UTF8")
        faults = list(_faults(look)) if look.exists else []
        if faults:
            raise ConfigurationError(
                f"the table {self.name} has another shape than an index of traces: {', '.join(faults)}; "
                "name another one with the URL's option table=…"
            )

    def create(self) -> sql.Composed:
        """The statement that makes the table."""
        columns = _listed(f"{name} {kind}" for name, kind in _COLUMNS.items())
        return _sql("CREATE TABLE IF NOT EXISTS {} ({})").format(self.identifier, columns)

    def sharpen(self) -> sql.Composed:
        """The statement that has the longest durations told apart in a table of ours.

        With the usual hundred steps all of the longest hundredth look alike, and a search for the few longest of
        a common segment reads the segment instead of them.
        """
        return _sql("ALTER TABLE {} ALTER COLUMN duration SET STATISTICS 1000").format(self.identifier)

    def missing_indexes(self, look: Look) -> list[sql.Composed]:
        """The statements that make the indexes that are not there."""
        wanted = {f"{self.name}_{suffix}"[:_LONGEST_NAME]: on for suffix, on in _INDEXES.items()}
        return [
            _sql(f"CREATE INDEX IF NOT EXISTS {{}} ON {{}} {on}").format(sql.Identifier(name), self.identifier)
            for name, on in wanted.items()
            if name not in look.indexes
        ]


class Rows:
    """Records as rows of a table, whichever generation it is of."""

    def __init__(self, table: Table, look: Look, buckets: Buckets) -> None:
        self._buckets = buckets
        names = [name for name in _COLUMNS if name not in _BUCKETS]
        self._bucket_columns = [name for name in _BUCKETS if name in look.columns]
        names += self._bucket_columns
        self.insert = _insert(table, names)
        self.select = _sql("SELECT {} FROM {}").format(_listed(names), table.identifier)
        self.count = _sql(f"{_COUNTED} FROM {{}}").format(table.identifier)

    def parts(self, records: Iterable[TraceRecord]) -> Iterator[str]:
        """What is bound to `insert`: JSON arrays of some megabytes at most, where no record alone is larger."""
        part: list[bytes] = []
        size = 0
        # In one order in all processes: two that put the same records do not wait for each other in a circle.
        for record in sorted(records, key=lambda record: record.reference):
            data = to_json(self._row(record))
            if part and size + len(data) > _PART_BYTES:
                yield f"[{b','.join(part).decode()}]"
                part, size = [], 0
            part.append(data)
            size += len(data)
        if part:
            yield f"[{b','.join(part).decode()}]"

    def record_of(self, row: Sequence[Any]) -> TraceRecord:
        """The record in a row of `select`."""
        (reference, key, segments, state, tags, meta, context, duration, counters, length, parts) = row[:11]
        first_at, last_at, retention, expires_at = row[11:15]
        bucket = dict(zip(self._bucket_columns, row[15:], strict=True))
        return TraceRecord(
            reference=reference,
            key=key,
            segments=tuple(segments),
            state=state,
            tags=tuple(tags),
            meta=meta,
            context=context,
            duration=duration,
            counters=counters,
            length=length,
            parts=parts,
            first_at=first_at.astimezone(timezone.utc),
            last_at=last_at.astimezone(timezone.utc),
            retention=retention,
            expires_at=expires_at.astimezone(timezone.utc),
            bucket_name=bucket.get("bucket_name") or self._buckets.name(bucket.get("bucket_id")),
        )

    def _row(self, record: TraceRecord) -> Mapping[str, Any]:
        return {
            "reference": record.reference,
            "key": record.key,
            "segments": record.segments,
            "state": record.state[:_LONGEST_STATE],
            "tags": record.tags,
            "meta": record.meta,
            "context": record.context,
            "duration": min(record.duration, _MAX["bigint"]),
            "counters": record.counters,
            "length": min(record.length, _MAX["bigint"]),
            "parts": min(record.parts, _MAX["integer"]),
            "first_at": format_time(record.first_at),
            "last_at": format_time(record.last_at),
            "retention": min(record.retention, _MAX["integer"]),
            "expires_at": format_time(record.expires_at),
            "bucket_name": record.bucket_name,
            "bucket_id": self._buckets.position(record.bucket_name),
        }


def search(rows: Rows, query: Query) -> tuple[sql.Composed, list[Any]]:
    """The statement of a search, and what is bound to it."""
    where, values = _where(query)
    return sql.SQL(" ").join([rows.select, where, _ORDER]), [*values, query.limit]


def tally(rows: Rows, query: Query, slots: int, most: int) -> tuple[sql.Composed, list[Any]]:
    """The statement that counts what a search finds, and what is bound to it: rows of width, oldest time, `Cell`."""
    where, values = _where(replace(query, after=None))
    return _sql(_TALLY).format(sql.SQL(" ").join([rows.count, where, _ORDER])), [*values, most, slots]


def _where(query: Query) -> tuple[sql.SQL, list[Any]]:
    conditions = list(_conditions(query))
    where = _sql(f"WHERE {' AND '.join(text for text, _ in conditions)}" if conditions else "")
    return where, [value for _, bound in conditions for value in bound]


_Condition = tuple[str, list[Any]]
"""A condition in SQL, and what is bound to it."""


def _conditions(query: Query) -> Iterator[_Condition]:
    if query.segment is not None:
        yield "segments @> %s::jsonb", [_json([query.segment])]
    if query.any_tags:
        yield "tags ?| %s::text[]", [[clean_text(tag) for tag in query.any_tags]]
    if query.all_tags:
        yield "tags @> %s::jsonb", [_json(query.all_tags)]
    if query.state is not None:
        yield "state = %s", [clean_text(query.state)]
    if query.min_duration is not None:
        yield "duration >= %s::bigint", [max(-_MAX["bigint"], min(query.min_duration, _MAX["bigint"]))]
    if query.trace_id is not None:
        trace_id = clean_text(query.trace_id)
        yield "left(context ->> 'trace_id', 64) = left(%s::text, 64)", [trace_id]
        yield "context ->> 'trace_id' = %s::text", [trace_id]
    yield from _time_conditions(query)


def _time_conditions(query: Query) -> Iterator[_Condition]:
    if query.since is not None:
        yield "first_at >= %s", [query.since]
    if query.until is not None:
        yield "first_at < %s", [query.until]
    if query.after is not None:
        moment = time_of(query.after.first_at_ns)
        yield "first_at <= %s", [moment]
        if query.after.first_at_ns % 1000 == 0:  # after a finer position, all of that microsecond come
            yield '(first_at < %s OR reference COLLATE "C" < %s)', [moment, clean_text(query.after.reference)]


def _insert(table: Table, names: Sequence[str]) -> sql.Composed:
    # One JSON text for the whole batch, whatever its size: the statement stays the same, and takes one round trip.
    kinds = {**_COLUMNS, **_BUCKETS}
    return sql.SQL(
        "INSERT INTO {table} AS old ({names}) SELECT {names} FROM json_to_recordset(%s::json) AS new ({shape}) "
        "ON CONFLICT (reference) DO UPDATE SET {changes} "
        "WHERE excluded.state <> 'running' OR (old.state = 'running' AND excluded.parts >= old.parts)"
    ).format(
        table=table.identifier,
        names=_listed(names),
        shape=_listed(f"{name} {kinds[name].split()[0]}" for name in names),
        changes=_listed(f"{name} = excluded.{name}" for name in names if name != "reference"),
    )


def _faults(look: Look) -> Iterator[str]:
    for name, definition in _COLUMNS.items():
        kind = definition.split()[0]
        found = look.columns.get(name)
        if found is None and name not in _BUCKETS:
            yield f"it has no column {name} ({kind})"
        elif found is not None and found not in _KINDS[kind]:
            yield f"its column {name} is {found} instead of {kind}"
    if not look.columns.keys() & _BUCKETS.keys():
        yield "it has neither a column bucket_name (text) nor bucket_id (integer)"
    if not look.unique:
        yield "its column reference is no primary key"
    for name in sorted(look.demanded - _COLUMNS.keys() - _BUCKETS.keys()):
        yield f"its column {name} has to be filled"


def _json(value: object) -> str:
    return to_json(value).decode()


def _listed(items: Iterable[str]) -> sql.SQL:
    return _sql(", ".join(items))


def _sql(text: str) -> sql.SQL:
    """SQL that is put together from this module's own texts."""
    literal: LiteralString = text  # type: ignore[assignment,unused-ignore] # pyright: ignore[reportAssignmentType]
    return sql.SQL(literal)
