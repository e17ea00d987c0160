"""Tallies as pictures: where bars and curves go in a small SVG, with the same figures for a table.

Only numbers are made here; the template draws them. Colours are the style sheet's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from trifle_otel.records import TRACE_STATES
from trifle_otel.tallies import SLOTS, Slot, Tally, moment_of, percentile
from trifle_otel.wording import duration

WIDTH, HEIGHT = 360, 96
LEFT, BOTTOM, TOP = 44, 14, 8
SHARES = (0.5, 0.95)
_GAP = 0.15


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle in a chart."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Points that follow each other without a gap, as SVG has them."""

    points: str
    dots: list[tuple[float, float]]
    kind: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: bars or curves, marks at the left side from below, and for each curve its kind and name."""

    name: str
    bars: list[Bar]
    curves: list[Curve]
    marks: list[tuple[float, str]]
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """One slot, for the table: what is shown above it."""

    start: datetime
    end: datetime
    states: list[int]
    entries: int
    durations: list[str]


@dataclass(frozen=True, slots=True)
class Charts:
    """All pictures of a tally, with what they say in words.

    Attributes:
        charts: the pictures.
        lines: the table, the newest slot first.
        columns: for each slot its beginning, and where it is in the pictures, as what can be pointed at.
        states: traces by state.
        traces: all of them.
        entries: lines of all of them.
        durations: the percentiles of all durations.
        start: where the pictures begin.
        end: where they end.
        width: of a slot, in words.
        partial: whether older traces were not counted.
        sampled: of how many traces of each slot lines and durations are estimates; 0 where of all.
    """

    charts: list[Chart]
    lines: list[Line]
    columns: list[tuple[Line, float, float]]
    states: dict[str, int]
    traces: int
    entries: int
    durations: list[str]
    start: datetime
    end: datetime
    width: str
    partial: bool
    sampled: int


def charts(tally: Tally, by_tag: Mapping[str, Tally] | None = None) -> Charts | None:
    """The pictures of a tally, and of the tallies of some tags within it; None where nothing is counted."""
    if not tally.slots:
        return None
    tally = _fitting(tally)
    first, last = min(tally.slots), max(tally.slots)
    starts = range(first, last + 1, tally.width)
    slots = [tally.slots.get(start) or Slot() for start in starts]
    place = _Places(len(slots))
    lines = [_line(start, tally.width, slot) for start, slot in zip(starts, slots, strict=True)]
    total = tally.total
    pictures = [_traces(slots, place), _durations(slots, place), _entries(slots, place)]
    if by_tag:
        pictures.append(_tags(starts, tally.width, by_tag, place))
    return Charts(
        pictures,
        [line for line, slot in zip(lines, slots, strict=True) if slot.traces][::-1],
        [
            (line, place.left(number), place.step)
            for number, (line, slot) in enumerate(zip(lines, slots, strict=True))
            if slot.traces
        ],
        {state: total.states.get(state, 0) for state in TRACE_STATES},
        total.traces,
        total.entries,
        _percentiles(total),
        moment_of(first),
        moment_of(last + tally.width),
        _width(tally.width),
        tally.partial,
        tally.sampled,
    )


def _fitting(tally: Tally) -> Tally:
    while (max(tally.slots) - min(tally.slots)) // tally.width >= SLOTS * 2:
        wider = tally.widened(tally.width + 1)
        if wider.width == tally.width:
            break
        tally = wider
    return tally


class _Places:
    """Where slots are in a picture."""

    def __init__(self, count: int) -> None:
        # A single slot would be one block: it is drawn as one of eight.
        self.step = (WIDTH - LEFT) / max(count, 8)

    def left(self, number: int) -> float:
        """The left side of a slot."""
        return round(LEFT + number * self.step, 2)

    def middle(self, number: int) -> float:
        """The middle of a slot."""
        return round(LEFT + (number + 0.5) * self.step, 2)

    def bar(self, number: int, low: float, high: float, kind: str) -> Bar:
        """A bar in a slot, between two heights from 0 to 1."""
        y, bottom = _height(high), _height(low)
        width = max(self.step * (1 - _GAP), 1)
        return Bar(self.left(number), y, round(width, 2), round(max(bottom - y, 0.75), 2), kind)


def _height(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 2)


def _traces(slots: Sequence[Slot], place: _Places) -> Chart:
    most = max(slot.traces for slot in slots)
    bars = []
    for number, slot in enumerate(slots):
        at = 0
        for state in TRACE_STATES:
            amount = slot.states.get(state, 0)
            if amount:
                bars.append(place.bar(number, at / most, (at + amount) / most, state))
                at += amount
    return Chart("Traces", bars, [], _marks(most, _amount))


def _entries(slots: Sequence[Slot], place: _Places) -> Chart:
    most = max(slot.entries for slot in slots)
    bars = [
        place.bar(number, 0, slot.entries / most, "entries")
        for number, slot in enumerate(slots)
        if most and slot.entries
    ]
    return Chart("Lines", bars, [], _marks(most, _amount))


def _durations(slots: Sequence[Slot], place: _Places) -> Chart:
    found = {share: [percentile(slot.durations, share) for slot in slots] for share in SHARES}
    most = max((value for values in found.values() for value in values if value is not None), default=0)
    curves = [
        Curve(" ".join(f"{x},{y}" for x, y in run), run, f"p{share * 100:.0f}")
        for share, values in found.items()
        for run in _runs(values, most, place)
    ]
    return Chart(
        "Duration",
        [],
        curves,
        _marks(most, _milliseconds),
        [(f"p{share * 100:.0f}", f"{share * 100:.0f} %") for share in SHARES],
    )


def _tags(starts: Sequence[int], width: int, by_tag: Mapping[str, Tally], place: _Places) -> Chart:
    """A curve for each tag: a trace may have several, so they do not add up."""
    counted = []
    for tally in by_tag.values():
        slots = tally.widened(width).slots
        counted.append([slots[start].traces if start in slots else 0 for start in starts])
    most = max((value for values in counted for value in values), default=0)
    curves = [
        Curve(" ".join(f"{x},{y}" for x, y in run), run, f"tag{number}")
        for number, values in enumerate(counted)
        for run in _runs(values, most, place)
    ]
    return Chart(
        "Traces by tag", [], curves, _marks(most, _amount), [(f"tag{number}", tag) for number, tag in enumerate(by_tag)]
    )


def _runs(values: Sequence[int | None], most: int, place: _Places) -> list[list[tuple[float, float]]]:
    """The points of a curve, cut where there is nothing."""
    runs: list[list[tuple[float, float]]] = [[]]
    for number, value in enumerate(values):
        if value is not None:
            runs[-1].append((place.middle(number), _height(value / most if most else 0)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _marks(most: int, text: Callable[[int], str]) -> list[tuple[float, str]]:
    return [(_height(0), "0"), (_height(1), text(most))] if most else [(_height(0), "0")]


def _amount(number: int) -> str:
    for unit, length in (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9)):
        if number < 999.5 * length:
            return f"{number / length:.3g}{unit}"
    return f"{number / 10**12:,.0f}T"


def _milliseconds(amount: int) -> str:
    return duration(amount * 1_000_000) if amount else ""


def _percentiles(slot: Slot) -> list[str]:
    found = (percentile(slot.durations, share) for share in (*SHARES, 0.99))
    return ["" if value is None else _milliseconds(value) or "1 ms" for value in found]


def _line(start: int, width: int, slot: Slot) -> Line:
    states = [slot.states.get(state, 0) for state in TRACE_STATES]
    return Line(moment_of(start), moment_of(start + width), states, slot.entries, _percentiles(slot))


def _width(seconds: int) -> str:
    return duration(seconds * 1_000_000_000)
