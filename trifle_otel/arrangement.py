"""A trace in the order in which it is shown: blocks that ran at the same time apart, sections, problems, artifacts.

No I/O, and nothing of how it is shown: pages in a browser and in one file are made of the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from trifle_otel.outline import Block, Outline, outline
from trifle_otel.reading import Entries
from trifle_otel.records import ERROR, WARNING, Entry, TraceRecord

MOST_DEPTH = 60
"""Blocks in blocks that are shown as such; what lies deeper lies in the last of those."""

_NS = 1_000_000_000
_PROBLEMS = frozenset({ERROR, WARNING})


class _Kinds(NamedTuple):
    """Places of entries of some kinds, in the order in which they were recorded."""

    problems: list[int]
    heads: list[int]
    artifacts: list[int]
    offloaded: list[int]


@dataclass(eq=False)
class Opened:
    """A trace that was read.

    Attributes:
        record: what the index says.
        entries: its lines.
        outline: its blocks.
        order: the places of all entries as they are shown: those of blocks that ran at the same time are not mixed.
        interleaved: whether that is another order than the one in which they were recorded.
        deep: for each block that is too deep to be shown the one around it that is not.
    """

    record: TraceRecord
    entries: Entries
    outline: Outline
    order: Sequence[int] = ()
    interleaved: bool = False
    deep: dict[Block, Block] = field(default_factory=dict)

    @cached_property
    def problems(self) -> list[int]:
        """Places of errors and warnings, in the order of `order`; of a block that ended so, the line that opens it."""
        return self.only(map(self.shown_at, self._kinds.problems))

    @cached_property
    def first_error(self) -> int | None:
        """The place of the first error, in the order in which things happened."""
        first = next((place for place in self._kinds.problems if self.entries[place].state == ERROR), None)
        return None if first is None else self.shown_at(first)

    @cached_property
    def headings(self) -> dict[int, int]:
        """For each section's head the nanoseconds since the one before, since the beginning for the first."""
        found: dict[int, int] = {}
        before = self.start_ns
        for place in self._kinds.heads:
            now = _time(self.entries[place])
            found[place] = max(now - before, 0)
            before = now
        return found

    @cached_property
    def _kinds(self) -> _Kinds:
        found = _Kinds([], [], [], [])
        for place, entry in enumerate(self.entries):
            if entry.state in _PROBLEMS:
                found.problems.append(place)
            kind = entry.type
            if kind == "head":
                found.heads.append(place)
            elif kind == "media":
                (found.offloaded if entry.offloaded else found.artifacts).append(place)
        return found

    @cached_property
    def exact(self) -> bool:
        """Whether times are known to the nanosecond; others' archives have whole seconds."""
        return bool(self.entries) and self.entries[0].ns is not None

    @cached_property
    def start_ns(self) -> int:
        """When it began."""
        return _time(self.entries[0]) if self.entries else 0

    @cached_property
    def duration_ns(self) -> int:
        """How long it took, or has taken so far: the last line of one that runs may be long ago."""
        if self.exact and self.record.finished and self.record.duration < 10_000:  # a record has whole milliseconds
            return max(_time(self.entries[-1]) - self.start_ns, 0)
        return self.record.duration * 1_000_000

    @property
    def artifacts(self) -> list[int]:
        """Places of the artifacts."""
        return self._kinds.artifacts

    @property
    def offloaded(self) -> list[int]:
        """Places of the messages that are stored beside the trace."""
        return self._kinds.offloaded

    @cached_property
    def overview(self) -> list[int]:
        """Places of heads, of lines that open blocks, and of results."""
        owners = self.outline.owners
        return self.only(
            place
            for place, entry in enumerate(self.entries)
            if entry.type == "head" or ((owner := owners[place]) is not None and place in (owner.opened, owner.result))
        )

    def matches(self, text: str) -> list[int]:
        """Places of the lines that hold a text, in whatever capitals; without what is stored beside them."""
        wanted = text.casefold()
        found = (place for place, entry in enumerate(self.entries) if wanted in entry.message.casefold())
        return self.only(place for place in found if not self.entries[place].offloaded)

    def only(self, places: Iterable[int]) -> list[int]:
        """These places, each once, in the order in which they are shown."""
        wanted = set(places)
        if not self.interleaved:
            return sorted(wanted)
        return [place for place in self.order if place in wanted]

    def shown_at(self, place: int) -> int:
        """The place of the line that stands for an entry: for one that closes a block the one that opens it."""
        owner = self.outline.owners[place]
        return owner.opened if owner is not None and owner.closed == place else place

    def container(self, place: int) -> Block | None:
        """The block that a line is shown in: lines that open one, and results, are around it."""
        owner = self.outline.owners[place]
        if owner is not None and place in (owner.opened, owner.result):
            return self.within(owner.parent)
        return self.within(owner)

    def within(self, block: Block | None) -> Block | None:
        """A block, or the one around it that is not too deep to be shown."""
        return None if block is None else self.deep.get(block, block)


def opened(record: TraceRecord, entries: Entries) -> Opened:
    """A trace, given its entries."""
    shape = outline(entries)
    straight = _is_straight(shape)
    order = range(len(entries)) if straight else _order(shape)
    return Opened(record, entries, shape, order, not straight, _deep(shape))


def _deep(shape: Outline) -> dict[Block, Block]:
    """What is too deep, with the last one around it that is not."""
    level = shape.roots
    for _ in range(MOST_DEPTH - 1):
        level = [child for block in level for child in block.children]
        if not level:
            return {}
    deep: dict[Block, Block] = {}
    waiting = [(child, block) for block in level for child in block.children]
    while waiting:
        block, around = waiting.pop()
        deep[block] = around
        waiting.extend((child, around) for child in block.children)
    return deep


def _is_straight(shape: Outline) -> bool:
    """Whether the entries of each block stand together, which they do where nothing ran at the same time."""
    last: dict[Block, int] = {}
    for block in reversed(shape.blocks):  # what is inside opened later
        end = max(block.lines[-1] if block.lines else block.opened, block.opened)
        if block.children:
            if not _are_apart(block.lines, block.children, last):
                return False
            end = max(end, last[block.children[-1]])
        for ending in (block.closed, block.result):
            if ending is not None:
                if ending < end:
                    return False
                end = ending
        last[block] = end
    return _are_apart(shape.lines, shape.roots, last)


def _are_apart(lines: Sequence[int], blocks: Sequence[Block], last: dict[Block, int]) -> bool:
    """Whether none of these blocks holds a line, or another block, that is not in it."""
    before = -1
    for block in blocks:
        end = last[block]
        if block.opened < before or (lines and bisect_left(lines, block.opened) != bisect_left(lines, end)):
            return False
        before = end
    return True


def _order(shape: Outline) -> list[int]:
    """All places, those of each block together: what opens it, what is in it, what closes it, its result."""
    order: list[int] = []
    waiting: list[int | Block] = _inside(shape.lines, shape.roots)
    while waiting:
        each = waiting.pop()
        if isinstance(each, int):
            order.append(each)
            continue
        order.append(each.opened)
        waiting.extend(place for place in (each.result, each.closed) if place is not None)
        waiting.extend(_inside(each.lines, each.children))
    return order


def _inside(lines: Sequence[int], blocks: Sequence[Block]) -> list[int | Block]:
    """Lines and blocks in their order, the last one first."""
    if not blocks:
        return list(reversed(lines))
    both: list[int | Block] = [*lines, *blocks]
    both.sort(key=lambda each: each if isinstance(each, int) else each.opened, reverse=True)
    return both


def _time(entry: Entry) -> int:
    if entry.ns is not None:
        return entry.ns
    at = entry.stored.get("at")
    return at * _NS if isinstance(at, int) else 0
