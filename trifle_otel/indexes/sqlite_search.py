"""How a search goes through the tables of the SQLite index, and how what it finds is counted.

The words of all that is asked for make one expression; SQLite walks through the lists of their
traces at once, newest first, and skips in each what the others do not have. Nothing large is
sorted, and reading stops when the page is full.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from trifle_otel.indexes import sqlite_rows as rows
from trifle_otel.records import RUNNING, TRACE_STATES, Query, TraceRecord
from trifle_otel.strict_json import clean_text
from trifle_otel.tallies import (
    LONGEST_DURATION,
    MOST_ENTRIES,
    SHIFT,
    WIDTHS,
    Cell,
    Slot,
    Tally,
    tally_of,
    width_for,
)

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1

_WITHIN = (
    "t.id BETWEEN ? AND ? AND t.first_at >= ? AND (t.first_at, t.reference) < (?, ?) AND t.duration >= ? "
    "ORDER BY t.id DESC"
)
_FOUND = "SELECT t.id, t.first_at, t.reference"
_ALL = f"{_FOUND} FROM traces AS t WHERE {_WITHIN}"
# CROSS JOIN keeps SQLite from beginning with the other table.
_LABELLED = (
    f"{_FOUND} FROM labels CROSS JOIN traces AS t ON t.id = labels.rowid "
    f"WHERE labels MATCH ? AND {_WITHIN.replace('t.id', 'labels.rowid')}"
)

_DIGITS = " ".join(
    f"WHEN t.duration < {100 * length} THEN t.duration / {length} * {length}"
    for length in (10**power for power in range(14))
)
_COUNTED = (
    f"SELECT t.first_at / 1000000 + {SHIFT} - (t.first_at % 1000000 < 0) AS second, t.first_at AS first_at,"
    f" t.state AS state, CASE WHEN t.duration < 0 THEN 0 {_DIGITS} ELSE {LONGEST_DURATION // 10**13 * 10**13} END"
    f" AS duration, max(0, min(t.length, {MOST_ENTRIES})) AS length"
)
_TALLY = (
    "WITH found AS MATERIALIZED ({found} LIMIT ?), "
    "period AS (SELECT min(second) AS oldest, max(second) AS newest FROM found), "
    f"width AS (SELECT coalesce(min(column1), {WIDTHS[-1]}) AS width"
    f" FROM (VALUES {', '.join(f'({width})' for width in WIDTHS)}), period"
    " WHERE newest / column1 - oldest / column1 < ?) "
    "SELECT width, min(first_at), second / width AS slot, state, duration, count(*), sum(length) "
    "FROM found, width GROUP BY slot, state, duration"
)


_IN_LISTS = "labels MATCH ? AND rowid BETWEEN ? AND ?"
_COUNT = f"SELECT count(*) FROM labels WHERE {_IN_LISTS}"
COUNTING_SECONDS = 1.0
"""How long all that match may be counted: a million take a tenth to a fifth of that."""


class _Bounds(NamedTuple):
    """What is bound to `_WITHIN`: times are in microseconds, the duration in milliseconds."""

    lowest_id: int
    highest_id: int
    since: int
    before: int
    before_reference: str
    min_duration: int


def search(connection: sqlite3.Connection, query: Query) -> list[TraceRecord]:
    """The newest records that match. The caller holds a read transaction."""
    found: list[TraceRecord] = []
    sql = f"SELECT {rows.COLUMNS} FROM traces WHERE reference = ?"
    with closing(_references(connection, query)) as references:
        for reference in references:
            record = rows.record_of(connection.execute(sql, (reference,)).fetchone())
            if _is_match(record, query):
                found.append(record)
                if len(found) == query.limit:
                    break
    return found


def tally(connection: sqlite3.Connection, query: Query, slots: int, most: int) -> Tally:
    """The newest records that match, counted. The caller holds a read transaction.

    Here the words alone are compared: of all values that a search may ask for, one in a billion shares its own.
    Where more match, the words' lists are counted, which takes no look at the records, and so many records are taken
    as a sample; where that would take too long, the newest are counted alone.
    """
    expression = _expression(query)
    query = replace(query, after=None)
    bounds = _bounds(query)
    if not query.min_duration and _are_more(connection, query, most):  # those words stand for shorter ones too
        counted = _counted(connection, query, slots)
        if counted:
            return _sampled(connection, query, counted, most)
    found = (_LABELLED if expression else _ALL).replace(_FOUND, _COUNTED, 1)
    values = [*([expression] if expression else []), *bounds, most, slots]
    rows_found = connection.execute(_TALLY.format(found=found), values).fetchall()
    if not rows_found:
        return Tally(WIDTHS[0], {})
    oldest = rows.time_of(min(row[1] for row in rows_found))
    cells = [Cell(*row[2:]) for row in rows_found]
    return tally_of(cells, rows_found[0][0], oldest, partial=sum(cell.traces for cell in cells) == most)


def _are_more(connection: sqlite3.Connection, query: Query, than: int) -> bool:
    sql = f"SELECT count(*) FROM (SELECT 1 FROM labels WHERE {_IN_LISTS} LIMIT ?)"
    low, high = _ids(query)
    return bool(connection.execute(sql, (_any_of(query), low, high, than + 1)).fetchone()[0] > than)


class _Counts(NamedTuple):
    """How many traces there are: the id of the oldest, the width of a slot, and by its number its states."""

    oldest: int
    width: int
    slots: dict[int, dict[str, int]]


def _counted(connection: sqlite3.Connection, query: Query, slots: int) -> _Counts | None:
    """All that match, of whom there are some; None where that takes too long, or ids do not tell their times apart.

    Times are compared by their milliseconds, which ids begin with.
    """
    deadline = time.monotonic() + COUNTING_SECONDS
    low, high = _ids(query)
    found = _any_of(query), low, high
    oldest, newest = (
        connection.execute(
            f"SELECT rowid FROM labels WHERE {_IN_LISTS} ORDER BY rowid {order} LIMIT 1", found
        ).fetchone()[0]
        for order in ("ASC", "DESC")
    )
    first, last = _second_of(oldest), _second_of(newest)
    if not rows.KEPT_SECONDS[0] < first - SHIFT <= last - SHIFT < rows.KEPT_SECONDS[1]:
        return None
    width = width_for(first, last, slots)
    expressions = _by_state(query)
    counts = _Counts(oldest, width, {})
    for number in range(first // width, last // width + 1):
        within = _ids_of(number, width, low, high)
        states = {
            state: connection.execute(_COUNT, (expression, *within)).fetchone()[0]
            for state, expression in expressions.items()
        }
        if any(states.values()):
            counts.slots[number] = {state: amount for state, amount in states.items() if amount}
        if time.monotonic() > deadline:
            return None
    return counts


def _sampled(connection: sqlite3.Connection, query: Query, counted: _Counts, most: int) -> Tally:
    """The tally, with lines and durations as the newest traces of each slot let them be estimated."""
    width = counted.width
    share = max(most // len(counted.slots), 1)
    expression = _expression(query)
    bounds = _bounds(query)
    low, high = _ids(query)
    found = (_LABELLED if expression else _ALL).replace(_FOUND, _COUNTED, 1)
    sql = f"SELECT state, duration, count(*), sum(length) FROM ({found} LIMIT ?) GROUP BY state, duration"
    slots: dict[int, Slot] = {}
    for number, states in counted.slots.items():
        first, last = _ids_of(number, width, low, high)
        within = bounds._replace(lowest_id=first, highest_id=last)
        sample = connection.execute(sql, [*([expression] if expression else []), *within, share]).fetchall()
        slot = slots[number * width - SHIFT] = Slot(states)
        seen = sum(row[2] for row in sample)
        for state, duration, amount, length in sample:
            slot.entries += round(length * slot.traces / seen)
            if state != RUNNING:
                amount = max(round(amount * slot.traces / seen), 1)
                slot.durations[duration] = slot.durations.get(duration, 0) + amount
    oldest = connection.execute("SELECT first_at FROM traces WHERE id = ?", (counted.oldest,)).fetchone()[0]
    return Tally(width, slots, rows.time_of(oldest), sampled=share)


def _any_of(query: Query) -> str:
    """What finds all that is asked for, or all that there is, by words."""
    return _expression(query) or " OR ".join(_by_state(query).values())


def _by_state(query: Query) -> dict[str, str]:
    """What finds those of each state."""
    expression = _expression(query)
    states = TRACE_STATES if query.state is None else (clean_text(query.state),)
    others = f"{expression} AND " if expression else ""
    return {state: f"{others}{rows.word('state', state)}" for state in states}


def _ids(query: Query) -> tuple[int, int]:
    """The first and the last id that may match: right where times are whole milliseconds, as those of slots are."""
    bounds = _bounds(query)
    whole = bounds.before % 1000 == 0
    return bounds.lowest_id, min(bounds.highest_id, rows.first_id(bounds.before) - 1) if whole else bounds.highest_id


def _second_of(number: int) -> int:
    """The second that an id belongs to, as tallies count them."""
    return (number >> rows.SLOT_BITS) // 1000 + SHIFT


def _ids_of(number: int, width: int, low: int, high: int) -> tuple[int, int]:
    """The first and the last id of a slot, within those."""
    start = (number * width - SHIFT) * 1_000_000
    return max(rows.first_id(start), low), min(rows.first_id(start + width * 1_000_000) - 1, high)


def _references(connection: sqlite3.Connection, query: Query) -> Generator[str, None, None]:
    """The references that the words and the bounds find, newest first."""
    expression = _expression(query)
    bounds = _bounds(query)
    if bounds.lowest_id > bounds.highest_id:
        return
    cursor = connection.execute(_LABELLED, (expression, *bounds)) if expression else connection.execute(_ALL, bounds)
    with closing(cursor):
        # Ids give the order up to the millisecond.
        for _, group in groupby(cursor, lambda row: row[0] >> rows.SLOT_BITS):
            for _, _, reference in sorted(group, key=lambda row: row[1:], reverse=True):
                yield reference


def _expression(query: Query) -> str:
    """What is asked for in FTS5's language: words in groups, of each of which a trace must have one."""
    groups = [[rows.word("tag", tag)] for tag in query.all_tags]
    if query.any_tags:
        groups.append([rows.word("tag", tag) for tag in query.any_tags])
    for kind, value in (("segment", query.segment), ("state", query.state), ("trace", query.trace_id)):
        if value is not None:
            groups.append([rows.word(kind, value)])
    if query.min_duration:
        groups.append(rows.longer_words(query.min_duration))
    return " AND ".join(f"({' OR '.join(words)})" for words in groups)


def _bounds(query: Query) -> _Bounds:
    before = (_HIGHEST, "")
    if query.until is not None:
        before = (rows.micros(query.until), "")
    if query.after is not None:
        micros, rest = divmod(query.after.first_at_ns, 1000)
        # Records have whole microseconds: after a finer position, all of that microsecond come.
        after = (micros + 1, "") if rest else (micros, clean_text(query.after.reference))
        before = min(before, after)
    since = _LOWEST if query.since is None else rows.micros(query.since)
    return _Bounds(
        rows.first_id(since),
        rows.last_id(before[0]),
        since,
        _within_64_bits(before[0]),
        before[1],
        _within_64_bits(query.min_duration or 0),
    )


def _within_64_bits(number: int) -> int:
    return max(_LOWEST, min(number, _HIGHEST))


def _is_match(record: TraceRecord, query: Query) -> bool:
    """Whether a record has what its words promise: two values may have the same word."""
    tags = set(record.tags)
    return (
        (query.segment is None or clean_text(query.segment) in record.segments)
        and (query.state is None or clean_text(query.state) == record.state)
        and (query.trace_id is None or clean_text(query.trace_id) == record.trace_id)
        and tags.issuperset(_clean(query.all_tags))
        and (not query.any_tags or not tags.isdisjoint(_clean(query.any_tags)))
    )


def _clean(texts: Iterable[str]) -> list[str]:
    return [clean_text(text) for text in texts]
