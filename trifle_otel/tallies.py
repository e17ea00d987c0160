"""Counts over time: how many traces, in which states, of how many lines, and how long they took, for charts.

Durations are counted by their first two digits, so that counts of parts add up to those of the whole, and so that each
index counts alike. Where the records come from is an index's business, how a chart looks the viewer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, TypeVar

from trifle_otel.records import RUNNING, TraceRecord

WIDTHS = (
    *(1, 10, 60, 600, 3_600, 21_600, 86_400, 604_800),
    *(2_419_200, 31_449_600, 314_496_000, 3_144_960_000),
)
"""How many seconds a slot may be wide. Each is a multiple of those before, so that slots can be put together."""
SLOTS = 60
"""How many slots the time from the oldest to the newest record is cut into, at most."""
MOST = 50_000
"""How many records are counted, at most: the newest. An index that can count more takes so many as a sample."""
SHIFT = 20 * WIDTHS[-1]
"""Seconds that are added to Unix time before it is cut into slots, so that there are no negative times to round."""
LONGEST_DURATION = 10**15 - 1
MOST_ENTRIES = 2**40
"""Milliseconds, and lines, above which a trace counts as one of so many: a sum of them stays a number."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EARLIEST = datetime.min.replace(tzinfo=timezone.utc)
_LATEST = datetime.max.replace(tzinfo=timezone.utc)


class Cell(NamedTuple):
    """Traces of one slot, one state and one duration: what indexes count by."""

    slot: int  # number of the slot: seconds since `SHIFT` before 1970, divided by the width
    state: str
    duration: int  # milliseconds, its first two digits
    traces: int
    entries: int


@dataclass(slots=True)
class Slot:
    """What began within one slot of time.

    Attributes:
        states: traces by state.
        entries: lines of all of them.
        durations: finished traces by milliseconds, of which the first two digits are known.
    """

    states: dict[str, int] = field(default_factory=dict)
    entries: int = 0
    durations: dict[int, int] = field(default_factory=dict)

    @property
    def traces(self) -> int:
        """How many there are, of any state."""
        return sum(self.states.values())

    def add(self, other: Slot) -> None:
        """Count another one's traces too."""
        self.entries += other.entries
        _add(self.states, other.states)
        _add(self.durations, other.durations)


@dataclass(frozen=True, slots=True)
class Tally:
    """Traces counted by time.

    Attributes:
        width: of a slot, in seconds: one of `WIDTHS`.
        slots: by their beginning in Unix time, in its order; those in which nothing began are not there.
        oldest: when the oldest trace that was counted began; None where there is none.
        partial: whether there may be older ones, which were not counted.
        sampled: of how many traces of each slot lines and durations were taken, and are estimates for that reason;
            0 where of all. Traces and their states are counted all the same.
    """

    width: int
    slots: Mapping[int, Slot]
    oldest: datetime | None = None
    partial: bool = False
    sampled: int = 0

    @property
    def total(self) -> Slot:
        """All slots in one."""
        total = Slot()
        for slot in self.slots.values():
            total.add(slot)
        return total

    def widened(self, width: int) -> Tally:
        """The same in slots of at least that width."""
        width = next((each for each in WIDTHS if each >= max(width, self.width)), WIDTHS[-1])
        if width == self.width:
            return self
        slots: dict[int, Slot] = {}
        for start, slot in self.slots.items():
            slots.setdefault((start + SHIFT) // width * width - SHIFT, Slot()).add(slot)
        return Tally(width, slots, self.oldest, self.partial, self.sampled)


_Key = TypeVar("_Key", str, int)


def _add(counts: dict[_Key, int], more: Mapping[_Key, int]) -> None:
    for key, count in more.items():
        counts[key] = counts.get(key, 0) + count


def tally_of(cells: Iterable[Cell], width: int, oldest: datetime | None, *, partial: bool) -> Tally:
    """What an index has counted, put together."""
    slots: dict[int, Slot] = {}
    for number, state, duration, traces, entries in sorted(cells):
        slot = slots.setdefault(number * width - SHIFT, Slot())
        slot.states[state] = slot.states.get(state, 0) + traces
        slot.entries += entries
        if state != RUNNING:
            slot.durations[duration] = slot.durations.get(duration, 0) + traces
    return Tally(width, slots, oldest, partial)


def tally_records(records: Iterable[TraceRecord], slots: int = SLOTS, *, partial: bool = False) -> Tally:
    """Records counted here."""
    times: dict[tuple[int, str, int], tuple[int, int]] = {}
    oldest = newest = None
    for record in records:
        oldest = record.first_at if oldest is None else min(oldest, record.first_at)
        newest = record.first_at if newest is None else max(newest, record.first_at)
        kind = (seconds_of(record.first_at), record.state, two_digits(record.duration))
        traces, entries = times.get(kind, (0, 0))
        times[kind] = (traces + 1, entries + max(0, min(record.length, MOST_ENTRIES)))
    if oldest is None or newest is None:
        return Tally(WIDTHS[0], {})
    width = width_for(seconds_of(oldest), seconds_of(newest), slots)
    cells = [Cell(second // width, state, took, *counts) for (second, state, took), counts in times.items()]
    return tally_of(cells, width, oldest, partial=partial)


def merged(tallies: Iterable[Tally]) -> Tally:
    """The tallies of selections that share no trace, as that of all of them."""
    given = [tally for tally in tallies if tally.slots]
    width = max((tally.width for tally in given), default=WIDTHS[0])
    slots: dict[int, Slot] = {}
    for tally in given:
        for start, slot in tally.widened(width).slots.items():
            slots.setdefault(start, Slot()).add(slot)
    incomplete = [tally.oldest for tally in given if tally.partial and tally.oldest]
    oldest = max(incomplete) if incomplete else min((tally.oldest for tally in given if tally.oldest), default=None)
    sampled = min((tally.sampled for tally in given if tally.sampled), default=0)
    return Tally(width, dict(sorted(slots.items())), oldest, bool(incomplete), sampled)


def percentile(durations: Mapping[int, int], share: float) -> int | None:
    """The duration in milliseconds that this share of the traces reaches or stays below; None where there are none."""
    wanted = share * sum(durations.values())
    seen = 0
    found = None
    for duration, count in sorted(durations.items()):
        found = duration
        seen += count
        if seen >= wanted:
            break
    return found


def seconds_of(moment: datetime) -> int:
    """Whole seconds since `SHIFT` before 1970."""
    since = moment - _EPOCH
    return since.days * 86_400 + since.seconds + SHIFT


def moment_of(start: int) -> datetime:
    """Unix time in seconds as an aware datetime; an end of the calendar beyond it."""
    try:
        return _EPOCH + timedelta(seconds=start)
    except OverflowError:
        return _EARLIEST if start < 0 else _LATEST


def width_for(oldest: int, newest: int, slots: int) -> int:
    """The smallest width with which that time, given in seconds as `seconds_of` has them, fits into so many slots."""
    return next((width for width in WIDTHS if newest // width - oldest // width < slots), WIDTHS[-1])


def two_digits(duration: int) -> int:
    """A duration with only its first two digits: 1,234 is 1,200."""
    duration = max(0, min(duration, LONGEST_DURATION))
    length = int("1" + "0" * max(len(str(duration)) - 2, 0))
    return duration // length * length
