"""The shape of a trace: its entries as blocks in blocks, each with its beginning, end, duration and result.

Entries that carry `span` are paired by it, so that blocks that ran at the same time are told apart.
In archives of others there are levels alone, and blocks are paired by those. Nothing is ever left out:
each entry is a block's opening, its closing, its result, or a line in a block or in the trace itself.
No I/O, and nothing of how it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trifle_otel.records import CLOSED, OPENED, RESULT, Entry

_NS = 1_000_000_000


@dataclass(eq=False, slots=True)
class Block:
    """A block of a trace. Entries are named by their place in the trace, from 0.

    Attributes:
        opened: the entry that opens it.
        message: what that says, without the arrow; the artifact's name where it was offloaded.
        level: nesting depth, 0 at the top.
        state: that of the entry that closes it; while it is open, of the one that opens it.
        parent: the block around it; None at the top.
        closed: the entry that closes it; None where it still runs, or where that entry was lost.
        result: the entry with its result, or None.
        start_ns: when it began: Unix time in nanoseconds.
        end_ns: when it ended; None while it is open.
        exact: whether both times are known to the nanosecond; in others' archives they are whole seconds.
        lines: the entries directly in it: neither its own opening, closing and result, nor those of other blocks.
        children: the blocks directly in it, in the order of their opening.
    """

    opened: int
    message: str
    level: int
    state: str
    parent: Block | None
    start_ns: int
    exact: bool
    closed: int | None = None
    result: int | None = None
    end_ns: int | None = None
    lines: list[int] = field(default_factory=list)
    children: list[Block] = field(default_factory=list)

    @property
    def duration_ns(self) -> int | None:
        """How long it took, in nanoseconds; None while it is open."""
        return None if self.end_ns is None else max(self.end_ns - self.start_ns, 0)


@dataclass(eq=False, slots=True)
class Outline:
    """The blocks of a trace.

    Attributes:
        blocks: all of them, in the order of their opening.
        roots: those that lie in no other.
        lines: the entries that lie in no block.
        owners: for each entry the block that it is a line, opening, closing or result of; None for lines of the trace.
    """

    blocks: list[Block] = field(default_factory=list)
    roots: list[Block] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    owners: list[Block | None] = field(default_factory=list)

    def opening(self, place: int) -> Block | None:
        """The block that this entry opens, or None."""
        owner = self.owners[place]
        return owner if owner is not None and owner.opened == place else None

    def depth(self, place: int) -> int:
        """How deep this entry lies, by the blocks around it: where levels say nothing (artifacts of Ruby), too."""
        owner = self.owners[place]
        if owner is None:
            return 0
        return owner.level + (place not in (owner.opened, owner.closed, owner.result))


def outline(entries: Sequence[Entry]) -> Outline:
    """The blocks of a trace, given all its entries in their order. Any entries give an outline: it never raises."""
    by_span = _BySpan()
    by_level = _ByLevel(entries)
    found = Outline()
    for place, entry in enumerate(entries):
        span = entry.span
        if span is None:
            by_level.take(place, entry, found)
        else:
            by_span.take(place, entry, span, found)
    _demote(found, entries)
    for block in found.blocks:
        (found.roots if block.parent is None else block.parent.children).append(block)
    for place, owner in enumerate(found.owners):
        if owner is None:
            found.lines.append(place)
        elif place != owner.opened and place != owner.closed and place != owner.result:
            owner.lines.append(place)
    return found


class _BySpan:
    """Pairing by the id of the block that each entry carries."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        self.seen: set[str] = set()  # spans that no entry has opened so far: traces' own, where none does later

    def take(self, place: int, entry: Entry, span: str, found: Outline) -> None:
        known = self.blocks.get(span)
        if known is not None:
            found.owners.append(known)
            if entry.level == known.level and "level" in entry.stored:
                _end(known, place, entry)
        elif "parent" in entry.stored or (span not in self.seen and entry.message.endswith(OPENED)):
            # Only a block that was opened before can be around this one: parents never run in a circle.
            self.blocks[span] = _open(place, entry, self.blocks.get(_parent(entry)), found)
        else:
            self.seen.add(span)
            found.owners.append(None)


def _parent(entry: Entry) -> str:
    parent = entry.stored.get("parent")
    return parent if isinstance(parent, str) else ""


def _end(block: Block, place: int, entry: Entry) -> None:
    """Take an entry at a block's own level as what ends it, where it can be that."""
    kind, message = entry.type, entry.message
    if (kind == "raw" and message.startswith(RESULT)) or (kind == "media" and block.closed is not None):
        if block.result is None:
            block.result = place
            if block.closed is None:
                _close(block, entry)
    elif block.closed is None and (kind == "media" or message.endswith(CLOSED)):
        block.closed = place
        block.state = entry.state
        _close(block, entry)


class _ByLevel:
    """Pairing by nesting depth alone: right for what one thread recorded, which is what other libraries do."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.open: list[Block] = []
        self.ended: Block | None = None  # closed by the entry before, so that its result may follow

    def take(self, place: int, entry: Entry, found: Outline) -> None:
        ended, self.ended = self.ended, None
        if "level" not in entry.stored:  # an artifact: in whatever is open
            found.owners.append(self.open[-1] if self.open else None)
            return
        level = entry.level
        if ended is not None and ended.level == level and (_is_result(entry) or entry.type == "media"):
            ended.result = place
            found.owners.append(ended)
            return
        while self.open and self.open[-1].level > level:
            self.open.pop()
        if self.open and self.open[-1].level == level:
            block = self.open.pop()
            if self._closes(entry, block):
                block.closed = place
                block.state = entry.state
                _close(block, entry)
                self.ended = block
                found.owners.append(block)
                return
        around = self.open[-1] if self.open else None
        if self._opens(place, entry):
            self.open.append(_open(place, entry, around, found))
        else:
            found.owners.append(around)

    def _closes(self, entry: Entry, block: Block) -> bool:
        opening = self.entries[block.opened]
        if opening.type == "media":  # the same text with another arrow is as long, and so was offloaded too
            return entry.type == "media" and entry.size == opening.size
        return entry.type != "raw" and entry.message == block.message + CLOSED

    def _opens(self, place: int, entry: Entry) -> bool:
        if entry.type != "media":
            return entry.type != "raw" and entry.message.endswith(OPENED)
        after = self.entries[place + 1 : place + 3]
        if not after or "level" not in after[0].stored:
            return False
        if after[0].level == entry.level + 1:
            return True
        nothing_inside = after[0].type == "media" and after[0].size == entry.size and after[0].level == entry.level
        return nothing_inside and len(after) > 1 and _is_result(after[1]) and after[1].level == entry.level


def _demote(found: Outline, entries: Sequence[Entry]) -> None:
    """Make lines of what only looks like an opening: nothing is in it and it never ends, yet more follows."""
    if all(entries[block.opened].span is not None for block in found.blocks):
        return
    holding = {owner for place, owner in enumerate(found.owners) if owner is not None and owner.opened != place}
    holding.update(block.parent for block in found.blocks if block.parent is not None)
    last = len(found.owners) - 1
    for block in found.blocks:
        if entries[block.opened].span is None and block not in holding and block.opened != last:
            found.owners[block.opened] = block.parent
    found.blocks = [block for block in found.blocks if found.owners[block.opened] is block]


def _open(place: int, entry: Entry, parent: Block | None, found: Outline) -> Block:
    ns = entry.ns
    start_ns, exact = (_time(entry), False) if ns is None else (ns, True)
    block = Block(place, entry.message.removesuffix(OPENED), entry.level, entry.state, parent, start_ns, exact)
    found.blocks.append(block)
    found.owners.append(block)
    return block


def _close(block: Block, entry: Entry) -> None:
    ns = entry.ns
    block.end_ns = _time(entry) if ns is None else ns
    block.exact = block.exact and ns is not None


def _is_result(entry: Entry) -> bool:
    return entry.type == "raw" and entry.message.startswith(RESULT)


def _time(entry: Entry) -> int:
    if entry.ns is not None:
        return entry.ns
    at = entry.stored.get("at")
    return at * _NS if isinstance(at, int) else 0
