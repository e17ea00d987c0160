"""How a search walks through the tables of the SQLite index.

One label, the one with the fewest records, is read newest first, one stream for each of its
classes; the streams are merged, and whatever else is asked for is tested for each row as it is
read. Nothing is sorted, and reading stops when the page is full.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import groupby, islice
from typing import NamedTuple

from trifle_otel.indexes import sqlite_rows as rows
from trifle_otel.records import Query, TraceRecord
from trifle_otel.strict_json import clean_text

_COUNTED = 2_000  # labels with more records than this are not told apart by their number
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class _Group(NamedTuple):
    """Labels of which a record must have at least one."""

    kind: int
    values: Sequence[str]


class _Range(NamedTuple):
    """The bounds on `(first_at, reference)` and on the duration, as they are bound to `_WITHIN`."""

    since: int
    before: int
    before_reference: str
    min_duration: int


_WITHIN = "d.first_at >= ? AND (d.first_at, d.reference) < (?, ?) AND d.duration >= ?"
_OF_A_LABEL = "FROM labels AS d WHERE d.kind = ? AND d.value = ? AND d.class = ? AND " + _WITHIN
_OF_A_TRACE = "FROM traces AS d WHERE d.trace_id = ? AND d.class BETWEEN ? AND ? AND " + _WITHIN
_ORDER = "ORDER BY d.first_at DESC, d.reference DESC"


def search(connection: sqlite3.Connection, query: Query) -> list[TraceRecord]:
    """The newest records that match. The caller holds a read transaction."""
    with ExitStack() as stack:
        streams = _streams_of_a_trace(connection, query) if query.trace_id is not None else _streams(connection, query)
        cursors = [stack.enter_context(closing(stream)) for stream in streams]
        merged = heapq.merge(*cursors, reverse=True)
        # A record that has several of the labels asked for comes once from each.
        references = [reference for (_, reference), _ in islice(groupby(merged), query.limit)]
    return _records(connection, references)


def _streams(connection: sqlite3.Connection, query: Query) -> Iterator[sqlite3.Cursor]:
    groups = _groups(query)
    within = _range(query)
    first = min(groups, key=lambda group: _count(connection, query, group, within)) if len(groups) > 1 else groups[0]
    others, values = _other_labels([group for group in groups if group is not first])
    sql = f"SELECT d.first_at, d.reference {_OF_A_LABEL} {others} {_ORDER}"
    for value, class_ in _classes(connection, query, first):
        yield connection.execute(sql, (first.kind, value, class_, *within, *values))


def _streams_of_a_trace(connection: sqlite3.Connection, query: Query) -> Iterator[sqlite3.Cursor]:
    """The records with one trace id are few enough to test each."""
    others, values = _other_labels(_groups(query))
    sql = f"SELECT d.first_at, d.reference {_OF_A_TRACE} {others} {_ORDER}"
    lowest, highest = _class_bounds(query)
    yield connection.execute(sql, (clean_text(query.trace_id or ""), lowest, highest, *_range(query), *values))


def _groups(query: Query) -> list[_Group]:
    """What a record must have, each by itself; tags come first, being the rarer as a rule."""
    groups = [_Group(rows.TAG, [clean_text(tag)]) for tag in query.all_tags]
    if query.any_tags:
        groups.append(_Group(rows.TAG, [clean_text(tag) for tag in dict.fromkeys(query.any_tags)]))
    if query.segment is not None:
        groups.append(_Group(rows.SEGMENT, [clean_text(query.segment)]))
    return groups or [_Group(rows.SEGMENT, [rows.ANY])]


def _range(query: Query) -> _Range:
    before = (_HIGHEST, "")
    if query.until is not None:
        before = (rows.micros(query.until), "")
    if query.after is not None:
        micros, rest = divmod(query.after.first_at_ns, 1000)
        # Records have whole microseconds: after a finer position, all of that microsecond come.
        after = (micros + 1, "") if rest else (micros, clean_text(query.after.reference))
        before = min(before, after)
    since = _LOWEST if query.since is None else rows.micros(query.since)
    min_duration = 0 if query.min_duration is None else query.min_duration
    return _Range(since, _bounded(before[0]), before[1], _bounded(min_duration))


def _bounded(number: int) -> int:
    return max(_LOWEST, min(number, _HIGHEST))


def _class_bounds(query: Query) -> tuple[int, int]:
    """The first and the last class that a match can be in (not all between must be)."""
    if query.state is None:
        return _LOWEST, _HIGHEST
    lowest = rows.state_number(query.state) * rows.CLASSES_OF_A_STATE
    return lowest, lowest + rows.CLASSES_OF_A_STATE - 1


def _classes(connection: sqlite3.Connection, query: Query, group: _Group) -> Iterator[tuple[str, int]]:
    """The values of a group, each with the classes of its records that a match can be in."""
    lowest, highest = _class_bounds(query)
    shortest = 0 if query.min_duration is None else rows.class_of("running", query.min_duration)
    sql = "SELECT min(class) FROM labels WHERE kind = ? AND value = ? AND class >= ?"
    for value in group.values:
        class_ = lowest
        while (found := connection.execute(sql, (group.kind, value, class_)).fetchone()[0]) is not None:
            if found > highest:
                break
            if found % rows.CLASSES_OF_A_STATE >= shortest:
                yield value, found
            class_ = found + 1


def _count(connection: sqlite3.Connection, query: Query, group: _Group, within: _Range) -> int:
    """How many labels of a group are within the bounds, at most `_COUNTED`."""
    count = 0
    sql = f"SELECT count(*) FROM (SELECT 1 {_OF_A_LABEL} LIMIT ?)"
    for value, class_ in _classes(connection, query, group):
        count += connection.execute(sql, (group.kind, value, class_, *within, _COUNTED - count)).fetchone()[0]
        if count >= _COUNTED:
            break
    return count


def _other_labels(groups: Sequence[_Group]) -> tuple[str, list[str | int]]:
    """The condition that a record has a label of each group, and the values to bind to it."""
    conditions = ""
    values: list[str | int] = []
    for group in groups:
        if group.values == [rows.ANY]:
            continue
        marks = ", ".join("?" * len(group.values))
        conditions += (
            f" AND EXISTS (SELECT 1 FROM labels AS o WHERE o.kind = ? AND o.value IN ({marks})"
            " AND o.class = d.class AND o.first_at = d.first_at AND o.reference = d.reference)"
        )
        values += [group.kind, *group.values]
    return conditions, values


def _records(connection: sqlite3.Connection, references: Sequence[str]) -> list[TraceRecord]:
    sql = f"SELECT {rows.COLUMNS} FROM traces WHERE reference = ?"
    found = (connection.execute(sql, (reference,)).fetchone() for reference in references)
    return [rows.record_of(row) for row in found if row is not None]
