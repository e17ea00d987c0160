"""What differs between two texts: lines of values and of texts, what is between equal ends, very much of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifle_otel.differences import LEFT, MOST_LINES, MOST_TEXT, RIGHT, SAME, Change, changes


def test_values_are_compared_by_their_lines() -> None:
    """Of values the items that differ are given, with what is around them."""
    left, right = (repr({"net": 100, "rate": rate, "names": ["a" * 30, "b" * 30, "c" * 30]}) for rate in (19, 21))
    assert list(changes(left, right)) == [
        Change(SAME, "{"),
        Change(SAME, "  'net': 100,"),
        Change(LEFT, "  'rate': 19,"),
        Change(RIGHT, "  'rate': 21,"),
        Change(SAME, "  'names': ["),
        Change(SAME, f"    '{'a' * 30}',"),
        Change(SAME, "…"),
    ]


def test_other_texts_are_compared_between_equal_ends() -> None:
    """Of a text in one line that is told which differs, and as much of the rest as is asked for."""
    assert list(changes("the rate is 19 %", "the rate is 21 %")) == [
        Change(LEFT, "the rate is ", "19", " %"),
        Change(RIGHT, "the rate is ", "21", " %"),
    ]
    assert list(changes("abcdef1ghijkl", "abcdefghijkl", around=2)) == [
        Change(LEFT, "…ef", "1", "gh…"),
        Change(RIGHT, "…ef", "", "gh…"),
    ]


def test_values_that_differ_in_their_spaces_alone() -> None:
    """Their lines are the same: what differs is shown in the texts themselves."""
    left, right = "[" + ",".join(["1"] * 40) + "]", "[" + ", ".join(["1"] * 40) + "]"
    found = list(changes(left, right))
    assert [(change.side, change.before + change.inner + change.after) for change in found] == [
        (LEFT, left),
        (RIGHT, right),
    ]
    assert found[0].inner != found[1].inner


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_the_pieces_are_the_texts(left: str, right: str) -> None:
    """Whatever two texts are, their pieces make them up, and what comes before and after is the same in both."""
    one, other = changes(left, right)
    assert ("".join(one[1:]), "".join(other[1:])) == (left, right)
    assert (one.before, one.after) == (other.before, other.after)
    shorter = one.inner if len(left) < len(right) else other.inner
    assert (left == right) == (one.inner == other.inner == "") or shorter == ""


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=20), st.lists(st.sampled_from("abc"), max_size=20))
def test_lines_that_differ_are_given(left: list[str], right: list[str]) -> None:
    """Without the lines of one side, lines of the other side and common ones stand in the order that they have."""
    if len(right) < 2:
        right = [*right, "x", "y"]
    found = list(changes("\n".join(left), "\n".join(right)))
    for side, lines in ((LEFT, left), (RIGHT, right)):
        rest = iter(lines)
        assert all(change.before in rest for change in found if change.side in (side, SAME) and change.before != "…")
    assert (left == right) == all(change.side == SAME for change in found)


@pytest.mark.timeout(20)
def test_very_much_takes_no_time() -> None:
    """Texts of megabytes and very many lines are compared at once, and tell of both sides from the beginning."""
    started = time.monotonic()
    one, other = changes("x" * 5_000_000 + "1" + "y" * 5_000_000, "x" * 5_000_000 + "2" + "y" * 5_000_000, around=1)
    assert (one[1:], other[1:]) == (("…x", "1", "y…"), ("…x", "2", "y…"))
    lines = [[f"{number} {side}" for number in range(3 * MOST_LINES)] for side in "ab"]
    assert sum(map(len, lines[0])) < MOST_TEXT
    found = list(changes(*map("\n".join, lines)))
    assert found[:3] == [Change(LEFT, "0 a"), Change(RIGHT, "0 b"), Change(LEFT, "1 a")]
    assert len(found) == 6 * MOST_LINES
    assert time.monotonic() - started < 5
