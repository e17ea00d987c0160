"""Two executions side by side: their steps aligned by structure, and the first step whose result differs.

Steps that are the same in both, with all that is in them, hold the others in place; between those, steps pair by what
they say, then by what they say without its numbers. No I/O, and nothing of how it is shown.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trifle_otel.outline import Block, Outline, outline
from trifle_otel.records import Entry

SAME = "same"
RESULT = "result"
STATE = "state"
TEXT = "text"
INSIDE = "inside"
ONLY_LEFT = "only left"
ONLY_RIGHT = "only right"

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,16}\b")
_NUMBERS = re.compile(r"\d+(?:[.,:]\d+)*")


class Execution(NamedTuple):
    """The entries of a trace, and their shape."""

    entries: Sequence[Entry]
    outline: Outline

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Execution:
        """Entries in their order, and the shape that they have."""
        return cls(entries, outline(entries))


@dataclass(eq=False, slots=True)
class Step:
    """A block or a line, of one execution or of both.

    Attributes:
        verdict: `same` (all that is in it, too); `result`: it gave another one; `state`: it gave the same, and ended
            in another state, or not at all; `text`: a line that says something else; `inside`: only what is in it
            differs; `only left`, `only right`.
        left: the place of the line, or of the one that opens the block, in the left execution; None if it is not there.
        right: the same in the right one.
        left_block: the block, in the left execution; None for a line.
        right_block: the same in the right one.
        parent: the step that it is in; None at the top.
        children: the steps in it, in their order; none are listed for a step that is the same, or in one alone.
    """

    verdict: str
    left: int | None
    right: int | None
    left_block: Block | None = None
    right_block: Block | None = None
    parent: Step | None = None
    children: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two executions share, and where they part.

    Attributes:
        steps: those at the top, in their order.
        differences: all steps that differ themselves (not only inside), in the order in which they ended.
    """

    steps: list[Step]
    differences: list[Step]

    @property
    def first_result(self) -> Step | None:
        """The step whose result was the first to differ: what is around it differs for that reason."""
        return next((step for step in self.differences if step.verdict == RESULT), None)

    def walk(self) -> Iterator[tuple[int, Step]]:
        """Every step with its depth, those in it after it."""
        waiting = [(0, step) for step in reversed(self.steps)]
        while waiting:
            depth, step = waiting.pop()
            yield depth, step
            waiting.extend((depth + 1, child) for child in reversed(step.children))


def compare(left: Execution, right: Execution) -> Comparison:
    """Align two executions. Any entries can be compared: it never raises.

    Messages that were stored beside the trace are compared by their size, addresses in memory not at all.
    """
    top = Step(SAME, None, None)
    made: list[Step] = []
    waiting = [(top, _nodes(left), _nodes(right))]
    while waiting:
        parent, lefts, rights = waiting.pop()
        for one, other in _aligned(lefts, rights):
            step = _step(parent, one, other)
            parent.children.append(step)
            made.append(step)
            if one is not None and other is not None and step.verdict != SAME:
                waiting.append((step, one.children, other.children))
    for step in reversed(made):  # those inside come after what they are in
        if step.verdict == SAME and any(child.verdict != SAME for child in step.children):
            step.verdict = INSIDE
    for step in top.children:
        step.parent = None
    found = [step for step in made if step.verdict not in (SAME, INSIDE)]
    return Comparison(top.children, sorted(found, key=_end))


@dataclass(eq=False, slots=True)
class _Node:
    """A block or a line of one execution; `whole` is equal where all that is in it is."""

    place: int
    label: str
    said: str
    state: str
    block: Block | None
    children: list[_Node]
    whole: int = 0


def _nodes(execution: Execution) -> list[_Node]:
    """The steps at the top of an execution, each with those that are in it."""
    entries, shape = execution
    made: dict[Block, _Node] = {}
    for block in reversed(shape.blocks):  # what is inside opened later
        children = [_line(entries, place) for place in block.lines] + [made[child] for child in block.children]
        children.sort(key=lambda node: node.place)
        said = "" if block.result is None else _said(entries[block.result])
        state = "open" if block.closed is None else block.state
        node = _Node(block.opened, _label(entries[block.opened], block.message), said, state, block, children)
        node.whole = hash((node.label, said, state, *(child.whole for child in children)))
        made[block] = node
    top = [_line(entries, place) for place in shape.lines] + [made[block] for block in shape.roots]
    return sorted(top, key=lambda node: node.place)


def _line(entries: Sequence[Entry], place: int) -> _Node:
    entry = entries[place]
    label = _label(entry, entry.message)
    return _Node(place, label, label, entry.state, None, [], hash((label, entry.state)))


def _label(entry: Entry, message: str) -> str:
    return f"{entry.type} {_said(entry) if entry.offloaded else _plain(message)}"


def _said(entry: Entry) -> str:
    return f"{entry.size} bytes" if entry.offloaded else _plain(entry.message)


def _plain(text: str) -> str:
    return _ADDRESS.sub("0x", text) if "0x" in text else text


def _step(parent: Step, left: _Node | None, right: _Node | None) -> Step:
    return Step(
        _verdict(left, right),
        None if left is None else left.place,
        None if right is None else right.place,
        None if left is None else left.block,
        None if right is None else right.block,
        parent,
    )


def _verdict(left: _Node | None, right: _Node | None) -> str:
    if left is None or right is None:
        return ONLY_RIGHT if left is None else ONLY_LEFT
    if left.whole == right.whole:
        return SAME
    if left.said != right.said:
        return RESULT if left.block else TEXT
    if left.state != right.state:
        return STATE
    return TEXT if left.label != right.label else INSIDE


def _end(step: Step) -> tuple[int, int]:
    """When a step came to its end: in the right execution, where it is there."""
    place, block = (step.left, step.left_block) if step.right is None else (step.right, step.right_block)
    assert place is not None
    last = place if block is None else max(place, block.closed or 0, block.result or 0)
    return last, -place


_Pair = tuple["_Node | None", "_Node | None"]


def _aligned(left: Sequence[_Node], right: Sequence[_Node]) -> list[_Pair]:
    """The steps of two blocks, paired in their order."""
    return _between(left, right, [lambda node: node.whole, lambda node: (node.label, node.block is None), _alike])


def _alike(node: _Node) -> Hashable:
    return _NUMBERS.sub("#", node.label), node.block is None


def _between(left: Sequence[_Node], right: Sequence[_Node], keys: Sequence[Callable[[_Node], Hashable]]) -> list[_Pair]:
    """Pair what has the same key by the first of the keys, and what lies between those pairs by the others."""
    if not left or not right or not keys:
        return [*((node, None) for node in left), *((None, node) for node in right)]
    pairs: list[_Pair] = []
    from_left = from_right = 0
    for at_left, at_right in _matches(left, right, keys[0]):
        if from_left < at_left or from_right < at_right:
            pairs += _between(left[from_left:at_left], right[from_right:at_right], keys[1:])
        pairs.append((left[at_left], right[at_right]))
        from_left, from_right = at_left + 1, at_right + 1
    return pairs + _between(left[from_left:], right[from_right:], keys[1:])


def _matches(left: Sequence[_Node], right: Sequence[_Node], key: Callable[[_Node], Hashable]) -> list[tuple[int, int]]:
    """Places of equal keys, in the order of both: as many as can be had when the nth of a key pairs with the nth."""
    start, least = 0, min(len(left), len(right))
    while start < least and key(left[start]) == key(right[start]):
        start += 1
    end = 0
    while end < least - start and key(left[-1 - end]) == key(right[-1 - end]):
        end += 1
    middle = _increasing(
        _nth_to_nth(
            [key(each) for each in left[start : len(left) - end]],
            [key(each) for each in right[start : len(right) - end]],
        )
    )
    return [
        *((place, place) for place in range(start)),
        *((start + at_left, start + at_right) for at_left, at_right in middle),
        *((len(left) - place, len(right) - place) for place in range(end, 0, -1)),
    ]


def _nth_to_nth(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[tuple[int, int]]:
    places: dict[Hashable, list[int]] = {}
    for place in range(len(right) - 1, -1, -1):
        places.setdefault(right[place], []).append(place)
    return [(place, places[key].pop()) for place, key in enumerate(left) if places.get(key)]


def _increasing(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest run of pairs, given by their first, of which the second ones increase too."""
    ends: list[int] = []  # the lowest second that a run of each length ends with
    at: list[int] = []  # and which pair that is
    before: list[int] = []
    for number, (_, second) in enumerate(pairs):
        length = bisect_left(ends, second)
        before.append(at[length - 1] if length else -1)
        if length == len(ends):
            ends.append(second)
            at.append(number)
        else:
            ends[length], at[length] = second, number
    run = []
    number = at[-1] if at else -1
    while number >= 0:
        run.append(pairs[number])
        number = before[number]
    return run[::-1]
