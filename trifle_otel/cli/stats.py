"""`stats`: how many traces, in which states, how long they took: over time as small charts, and by key as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal, NamedTuple

from rich.cells import cell_len

from trifle_otel.archive import Archive
from trifle_otel.cli.filters import Filters
from trifle_otel.cli.listing import nothing
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.pager import paged, print_json
from trifle_otel.cli.terminal import STYLES, Piece, Screen, complain, fitted, state_label
from trifle_otel.cli.visible import count, duration, visible, when, zone
from trifle_otel.encoding import format_time
from trifle_otel.errors import UsageError
from trifle_otel.records import ERROR, RUNNING, SUCCESS, TRACE_STATES, WARNING, Query, TraceRecord
from trifle_otel.tallies import SLOTS, Slot, Tally, moment_of, percentile, tally_records

By = Literal["key", "segment", "time"]

LOOKED_AT = 5_000
"""Of so many of the newest traces the keys are taken that the table is made of; a key that others lie below is
counted among those alone."""
LABEL, BESIDE = 9, 10
"""Cells beside a chart: its name, and the highest value."""
PLAIN_WIDTH = 80
_BARS = " ▁▂▃▄▅▆▇█"
_SHARES = {"P50": 0.5, "P95": 0.95, "P99": 0.99}
_STYLES = {"WARNING": STYLES[WARNING], "ERROR": STYLES[ERROR]}
_DROPPED = (6, 7, 4, 2)
"""Columns that a narrow terminal does without, in this order: P99, LINES, P50, WARNING."""
LEAST_NAME = 12
_GAP = "  "


class Row(NamedTuple):
    """A line of the table: what it is about, and what was counted."""

    name: str
    segment: str | None
    start: int | None
    end: int | None
    slot: Slot
    partial: bool = False
    sampled: int = 0


def stats(
    segment: str | None = None,
    /,
    *,
    by: By = "key",
    filters: Filters | None = None,
    slots: int | None = None,
    top: int = 20,
    json: Flag = False,
    no_pager: Flag = False,
    place: Place | None = None,
) -> int:
    """Count traces by state, how long they took and how many lines they have: over time, and as a table.

    Parameters
    ----------
    segment
        Only those of this key, or below this path (prices/landed).
    by
        What the table has a line for: each key, each segment below the path that is given, or each period of time.
    slots
        How many periods the time is cut into, at most [default: what fits the terminal, at most 60].
    top
        How many keys or segments, those with the most traces.
    json
        Print the sum, and then each line of the table, one a line as JSON.
    no_pager
        Print long output as it is, on a terminal too.
    """
    filters = filters or Filters()
    if segment is not None:
        if filters.segment is not None:
            raise UsageError("the segment is given twice")
        filters = replace(filters, segment=segment)
    if (slots is not None and not 1 <= slots <= 1000) or top < 1:
        raise UsageError("--slots is from 1 to 1000, and --top above 0")
    with opened(place) as archive, paged(no_pager) as output:
        screen = Screen(output)
        query = filters.query()
        tally = archive.index.tally(query, slots=slots or min(_chart_width(screen), SLOTS))
        if not tally.slots:
            complain(nothing(archive))
            return 1
        rows, more = _rows(archive, filters, query, tally, by, top)
        if json:
            for value in (_fields(_total(tally), tally), *(_fields(row, tally) for row in rows)):
                print_json(output, value)
        else:
            _print_total(screen, tally, filters.segment)
            _print_charts(screen, tally)
            _print_table(screen, rows, by, more)
    return 0


def _chart_width(screen: Screen) -> int:
    return max((screen.width or PLAIN_WIDTH) - LABEL - BESIDE - 3 * len(_GAP), 10)


# --- What is counted


def _total(tally: Tally) -> Row:
    starts = list(tally.slots)
    return Row("", None, starts[0], starts[-1] + tally.width, tally.total, tally.partial, tally.sampled)


def _rows(archive: Archive, filters: Filters, query: Query, tally: Tally, by: By, top: int) -> tuple[list[Row], int]:
    """The lines of the table, and how many more there would be."""
    if by == "time":
        periods = (
            Row(when(moment_of(start)), None, start, start + tally.width, slot, sampled=tally.sampled)
            for start, slot in tally.slots.items()
        )
        return list(periods)[::-1], 0
    newest = list(filters.records(archive, LOOKED_AT))
    names = _names(newest, query, by)
    rows = []
    for name in names[:top]:
        if any(other.startswith(f"{name}/") for other in names):  # to an index a segment is all that lies below it, too
            own = [record for record in newest if record.key == name]
            found = tally_records(own, slots=1, partial=len(newest) == LOOKED_AT)
        else:
            found = archive.index.tally(replace(query, segment=name), slots=1)
        rows.append(Row(visible(name), name, None, None, found.total, found.partial, found.sampled))
    return sorted(rows, key=lambda row: -row.slot.traces), max(len(names) - top, 0)


def _names(newest: Sequence[TraceRecord], query: Query, by: By) -> list[str]:
    """The keys, or the segments right below the path, of these traces; those of the most traces first."""
    counted: Counter[str] = Counter()
    depth = len(query.segment.split("/")) + 1 if query.segment else 1
    for record in newest:
        counted[record.key if by == "key" else "/".join(record.key.split("/")[:depth])] += 1
    return [name for name, _ in counted.most_common()]


# --- As text


def _print_total(screen: Screen, tally: Tally, segment: str | None) -> None:
    total = tally.total
    row = _total(tally)
    first, last = moment_of(row.start or 0), moment_of(row.end or 0)
    about = "about " if tally.sampled else ""
    said = f"{visible(segment or 'all keys')}: {count(total.traces, 'trace')}, {about}{count(total.entries, 'line')}"
    screen.wrap([], said, "bold")
    screen.wrap([], f"from {when(first)} to {when(last)} ({zone(last)}), in periods of {_width(tally.width)}", "dim")
    if tally.partial:
        screen.wrap([], f"{_partial(tally)}; narrow it by --since, or by a segment.", STYLES[WARNING])
    if tally.sampled:
        newest = count(tally.sampled, "trace")
        said = f"all traces are counted; lines and times are estimates from the newest {newest} of each period"
        screen.wrap([], said, "dim")
    screen.print()
    for state in (SUCCESS, WARNING, ERROR, RUNNING):
        amount = total.states.get(state, 0)
        if amount or state != RUNNING:
            share = f"{100 * amount / total.traces:.1f} %"
            label = fitted(state_label(state), LABEL + 1)
            screen.print(_GAP, (label, STYLES[state]), f"{amount:>10,}", (f"{share:>9}", "dim"))
    if total.durations:
        times = [f"{name.lower()} {_took(total.durations, share)}" for name, share in _SHARES.items()]
        longest = _milliseconds(max(total.durations))
        screen.wrap(
            [(_GAP, ""), (fitted("took", LABEL + 1), "dim"), ("  ", "")], f"{'   '.join(times)}   longest {longest}"
        )
    screen.print()


def _partial(tally: Tally) -> str:
    counted = f"Only the newest {count(tally.total.traces, 'trace')} were counted"
    return counted + (f", from {when(tally.oldest)} on" if tally.oldest else "")


def _print_charts(screen: Screen, tally: Tally) -> None:
    """One line of bars for each figure, each on its own scale; what is highest stands behind it."""
    first, last = min(tally.slots), max(tally.slots)
    starts = range(first, last + 1, tally.width)
    slots = [tally.slots.get(start) or Slot() for start in starts]
    if len(slots) < 2:
        return
    for name, style, values in _series(slots):
        highest = max(values)
        if highest:
            shown = _milliseconds(highest) if name in _SHARES else f"{highest:,}"
            bars = _bars(values, highest, _chart_width(screen))
            screen.print(_GAP, (fitted(name.lower(), LABEL), "dim"), (bars, style), _GAP, (shown, "dim"))
    across = len(_bars([1] * len(slots), 1, _chart_width(screen)))
    begins, ends = _moment(moment_of(first)), _moment(moment_of(last + tally.width))
    if across >= len(begins) + len(ends) + len(_GAP):
        screen.print(_GAP, " " * LABEL, (f"{begins}{ends:>{across - len(begins)}}", "dim"))
    screen.print()


def _series(slots: Sequence[Slot]) -> Iterator[tuple[str, str, list[int]]]:
    for state in TRACE_STATES:
        yield state, STYLES[state], [slot.states.get(state, 0) for slot in slots]
    for name, share in _SHARES.items():
        if name != "P99":
            yield name, "cyan", [percentile(slot.durations, share) or 0 for slot in slots]
    yield "lines", "", [slot.entries for slot in slots]


def _bars(values: Sequence[int], highest: int, width: int) -> str:
    """A line of bars, each as wide as there is room; what is not nothing is seen."""
    each = max(width // len(values), 1)
    return "".join(_BARS[0 if not value else max(round(8 * value / highest), 1)] * each for value in values)


def _print_table(screen: Screen, rows: Sequence[Row], by: By, more: int) -> None:
    head = ["BEGAN" if by == "time" else by.upper(), "TRACES", "WARNING", "ERROR", *_SHARES, "LINES"]
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    shown = _fitting(widths, screen.width)
    for number, line in enumerate(cells):
        pieces: list[Piece | str] = [(fitted(line[0], widths[0]), "bold" if number else "dim")]
        for at in shown:
            style = _STYLES.get(head[at], "") if number and line[at] != "0" else "dim"
            pieces += [_GAP, (line[at].rjust(widths[at]), style)]
        screen.print(*pieces)
    if more:
        screen.print((f"and {more:,} more, --top shows them", "dim"))
    if any(row.partial for row in rows):
        screen.wrap([], "+: there are more, of which only the newest were counted", "dim")


def _fitting(widths: list[int], width: int | None) -> list[int]:
    """Which columns beside the first there is room for; what is left of it is for the first."""
    shown = list(range(1, len(widths)))
    if width is None:
        return shown
    dropped = list(_DROPPED)
    while dropped and width - _taken(widths, shown) < min(widths[0], LEAST_NAME):
        shown.remove(dropped.pop(0))
    widths[0] = min(widths[0], max(width - _taken(widths, shown), LEAST_NAME))
    return shown


def _taken(widths: list[int], columns: list[int]) -> int:
    return sum(len(_GAP) + widths[column] for column in columns)


def _cells(row: Row) -> list[str]:
    states = row.slot.states
    return [
        row.name,
        f"{row.slot.traces:,}{'+' if row.partial else ''}",
        f"{states.get(WARNING, 0):,}",
        f"{states.get(ERROR, 0):,}",
        *(_took(row.slot.durations, share) for share in _SHARES.values()),
        f"{row.slot.entries:,}",
    ]


def _took(durations: Mapping[int, int], share: float) -> str:
    found = percentile(durations, share)
    return "" if found is None else _milliseconds(found)


def _milliseconds(amount: int) -> str:
    return duration(amount * 1_000_000) if amount else "<1 ms"


def _moment(moment: datetime) -> str:
    return when(moment)[:16]


def _width(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds % length == 0:
            return count(seconds // length, unit)
    return count(seconds, "second")


# --- As JSON


def _fields(row: Row, tally: Tally) -> dict[str, object]:
    slot = row.slot
    fields: dict[str, object] = {}
    if row.segment is not None:
        fields["segment"] = row.segment
    if row.start is not None and row.end is not None:
        fields.update(start=format_time(moment_of(row.start)), end=format_time(moment_of(row.end)))
    times = {f"{name.lower()}_ms": percentile(slot.durations, share) for name, share in _SHARES.items()}
    return {
        **fields,
        "traces": slot.traces,
        "states": {state: slot.states.get(state, 0) for state in TRACE_STATES},
        "entries": slot.entries,
        **times,
        "longest_ms": max(slot.durations, default=None),
        "period_s": tally.width,
        "partial": row.partial,
        "sampled": row.sampled,
        "counted_since": format_time(tally.oldest) if tally.partial and tally.oldest and not row.name else None,
    }
