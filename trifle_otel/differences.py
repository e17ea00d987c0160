"""What differs between two texts: line by line where they are values of several lines, else what is between equal ends.

How that is shown is others' business.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from trifle_otel import value_trees

MOST_TEXT, MOST_LINES = 200_000, 400
"""Characters of two texts, and lines of what is between their equal ends, that are compared line by line."""
CONTEXT = 2
"""Lines that are the same, before and after those that are not."""
SAME, LEFT, RIGHT = "same", "left", "right"


class Change(NamedTuple):
    """A line, or as much as is needed of a text.

    Attributes:
        side: `left` or `right`: in that one alone; `same`: in both.
        before: what is the same as in the other, up to the difference; a whole line, where lines are compared.
        inner: what differs.
        after: the rest.
    """

    side: str
    before: str
    inner: str = ""
    after: str = ""


def changes(left: str, right: str, *, around: int | None = None) -> Iterator[Change]:
    """Two texts as what differs in them. `around`: characters of what is the same that are kept; None: all of it."""
    both = _lines(left), _lines(right)
    spaces_alone = left != right and both[0] == both[1]
    if both[0] and both[1] and max(map(len, both)) > 1 and not spaces_alone:
        yield from _by_lines(*both)
        return
    start, end = _equal_ends(left, right)
    for side, text in ((LEFT, left), (RIGHT, right)):
        before, inner, after = text[:start], text[start : len(text) - end], text[len(text) - end :]
        if around is not None:
            before = before if len(before) <= around else f"…{before[-around:]}"
            after = after if len(after) <= around else f"{after[:around]}…"
            inner = inner if len(inner) <= 4 * around else f"{inner[: 4 * around]}…"
        yield Change(side, before, inner, after)


def _lines(text: str) -> list[str]:
    """A value, or a text of several lines, as those; none where it is neither, or too long."""
    if len(text) > MOST_TEXT:
        return []
    value = value_trees.parse(text)
    if value is None:
        return text.split("\n") if "\n" in text else []
    return value_trees.lines(value)


def _by_lines(left: list[str], right: list[str]) -> Iterator[Change]:
    start, end = _equal_ends(left, right)
    before, after = left[max(start - CONTEXT, 0) : start], left[len(left) - end :][:CONTEXT]
    if start > CONTEXT:
        yield Change(SAME, "…")
    yield from (Change(SAME, line) for line in before)
    yield from _middle(left[start : len(left) - end], right[start : len(right) - end])
    yield from (Change(SAME, line) for line in after)
    if end > CONTEXT:
        yield Change(SAME, "…")


def _middle(left: list[str], right: list[str]) -> Iterator[Change]:
    if max(len(left), len(right)) > MOST_LINES:  # what follows takes the square of that
        yield from _in_turn(left, right)
        return
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for number, group in enumerate(matcher.get_grouped_opcodes(CONTEXT)):
        if number:
            yield Change(SAME, "…")
        for tag, left_start, left_end, right_start, right_end in group:
            if tag == "equal":
                yield from (Change(SAME, line) for line in left[left_start:left_end])
            else:
                yield from (Change(LEFT, line) for line in left[left_start:left_end])
                yield from (Change(RIGHT, line) for line in right[right_start:right_end])


def _in_turn(left: list[str], right: list[str]) -> Iterator[Change]:
    """Lines of the same place, where they differ: of very many the first ones tell of both sides."""
    for one, other in zip_longest(left, right):
        if one != other:
            yield from (Change(side, line) for side, line in ((LEFT, one), (RIGHT, other)) if line is not None)


def _equal_ends(left: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
    """How many items two sequences share at their beginning, and at their end."""
    least = min(len(left), len(right))
    start = _longest(least, lambda count: left[:count] == right[:count])
    end = _longest(least - start, lambda count: left[len(left) - count :] == right[len(right) - count :])
    return start, end


def _longest(most: int, holds: Callable[[int], bool]) -> int:
    """The highest number for which it holds, where it holds for all below. Few large comparisons take no time."""
    lowest, highest = 0, most
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        if holds(middle):
            lowest = middle
        else:
            highest = middle - 1
    return lowest
