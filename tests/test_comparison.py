"""Two executions side by side: what is the same, what differs, and which result differed first."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifle_otel.comparison import (
    INSIDE,
    ONLY_LEFT,
    ONLY_RIGHT,
    RESULT,
    SAME,
    STATE,
    TEXT,
    Comparison,
    Execution,
    Step,
    compare,
)
from trifle_otel.records import Entry


@dataclass(frozen=True)
class Does:
    """A made-up step: a line, or with a result a block; `steps` are in it."""

    says: str
    result: str | None = None
    steps: tuple[Does, ...] = ()
    state: str = "success"


def played(steps: Sequence[Does], level: int = 0) -> Iterator[dict[str, Any]]:
    """The entries of steps, as a tracer of Ruby's makes them."""
    for step in steps:
        entry = {"at": 1, "state": step.state, "type": "text", "level": level}
        if step.result is None:
            yield {**entry, "message": step.says}
            continue
        yield {**entry, "message": f"{step.says} ↴", "state": "success"}
        yield from played(step.steps, level + 1)
        yield {**entry, "message": f"{step.says} ↵"}
        yield {**entry, "message": f"↳ {step.result}", "type": "raw", "state": "success"}


def execution(*steps: Does) -> Execution:
    """An execution that did this."""
    return Execution.of([Entry(stored) for stored in played(steps)])


def compared(left: Sequence[Does], right: Sequence[Does]) -> Comparison:
    """The comparison of two executions."""
    return compare(execution(*left), execution(*right))


def shown(found: Comparison) -> list[tuple[int, str, int | None, int | None]]:
    """Depth, verdict and places of every step."""
    return [(depth, step.verdict, step.left, step.right) for depth, step in found.walk()]


def verdicts(found: Comparison) -> dict[str, int]:
    """How many steps have which verdict."""
    count: dict[str, int] = {}
    for _, step in found.walk():
        count[step.verdict] = count.get(step.verdict, 0) + 1
    return count


PRICE = Does(
    "Price",
    "119",
    (
        Does("Loading", "{'net': 100}"),
        Does("Rate is 19 %"),
        Does("Tax", "19", (Does("rounding"),)),
        Does("Freight", "0"),
    ),
)


def test_an_execution_is_the_same_as_itself() -> None:
    """Where nothing differs, every step at the top is the same, and nothing is listed inside."""
    found = compared([Does("start"), PRICE], [Does("start"), PRICE])
    assert shown(found) == [(0, SAME, 0, 0), (0, SAME, 1, 1)]
    assert found.differences == []
    assert found.first_result is None


def test_the_innermost_result_that_differs_is_named_first() -> None:
    """A result that differs because one inside it does comes after that one."""
    tax = replace(PRICE.steps[2], result="21")
    other = replace(PRICE, result="121", steps=(*PRICE.steps[:2], tax, PRICE.steps[3]))
    found = compared([Does("start"), PRICE], [Does("start"), other])
    assert [(step.verdict, step.left) for step in found.differences] == [(RESULT, 6), (RESULT, 1)]
    assert found.first_result is found.differences[0]
    assert found.differences[0].parent is found.differences[1]
    assert names(found.first_result) == ["Price", "Tax"]
    assert shown(found)[2:] == [
        (1, SAME, 2, 2),
        (1, SAME, 5, 5),
        (1, RESULT, 6, 6),
        (2, SAME, 7, 7),
        (1, SAME, 10, 10),
    ]


def test_what_differs_inside_alone_is_marked_around_it() -> None:
    """A block that gives the same, though a line in it says something else, differs inside."""
    other = replace(PRICE, steps=(PRICE.steps[0], Does("Rate is 7 %"), *PRICE.steps[2:]))
    found = compared([PRICE], [other])
    assert shown(found)[0] == (0, INSIDE, 0, 0)
    assert [(step.verdict, step.left, step.right) for step in found.differences] == [(TEXT, 4, 4)]
    assert found.first_result is None


def test_steps_of_one_alone_are_told_apart() -> None:
    """What was left out, and what was added, are in the place where they are missing."""
    other = replace(PRICE, steps=(PRICE.steps[0], Does("Discount", "5"), *PRICE.steps[1:3]))
    found = compared([PRICE], [other])
    assert shown(found) == [
        (0, INSIDE, 0, 0),
        (1, SAME, 1, 1),
        (1, ONLY_RIGHT, None, 4),
        (1, SAME, 4, 7),
        (1, SAME, 5, 8),
        (1, ONLY_LEFT, 9, None),
    ]


def test_a_state_alone_may_differ() -> None:
    """The same text, and the same result, in another state is said."""
    failed = replace(PRICE, state="error")
    assert shown(compared([PRICE, Does("a")], [failed, Does("a", state="warning")])) == [
        (0, STATE, 0, 0),
        (1, SAME, 1, 1),
        (1, SAME, 4, 4),
        (1, SAME, 5, 5),
        (1, SAME, 9, 9),
        (0, STATE, 14, 14),
    ]


def test_a_block_that_has_not_ended_differs() -> None:
    """An execution that was cut off within a block differs there, though nothing in it does."""
    entries = [Entry(stored) for stored in played([PRICE])]
    found = compare(Execution.of(entries[:-2]), Execution.of(entries))
    assert [step.verdict for step in found.differences] == [RESULT]


def test_numbers_in_what_a_step_says_do_not_part_it() -> None:
    """Steps that say the same but for their numbers are one step: its results are compared."""
    found = compared([Does("Product 9", "1"), Does("done")], [Does("Product 10", "2"), Does("done")])
    assert shown(found) == [(0, RESULT, 0, 0), (0, SAME, 3, 3)]


def test_addresses_are_not_compared() -> None:
    """Where an object lay in memory says nothing about the execution."""
    left, right = "<Session object at 0x7f3a5c0b1d90>", "<Session object at 0x7f9e11223344>"
    assert verdicts(compared([Does("Open", left)], [Does("Open", right)])) == {SAME: 1}
    assert verdicts(compared([Does("Open", left)], [Does("Open", "<Pool object at 0x7f9e11223344>")])) == {RESULT: 1}


@pytest.mark.parametrize("size, verdict", [(200_000, SAME), (200_001, RESULT)])
def test_results_that_are_stored_beside_go_by_their_size(size: int, verdict: str) -> None:
    """The name of an offloaded result, which is another each time, is not compared; its size is."""

    def offloaded(name: str, size: int) -> Execution:
        stored = list(played([PRICE]))
        stored[-1] = {"at": 1, "message": name, "state": "success", "type": "media", "level": 0, "size": size}
        return Execution.of([Entry(each) for each in stored])

    found = compare(offloaded("part_row_01a.txt", 200_000), offloaded("part_row_01b.txt", size))
    assert verdicts(found)[verdict] >= 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=30), st.data())
def test_a_loop_that_ran_otherwise_pairs_what_ran_in_both(products: list[int], data: st.DataObject) -> None:
    """Of the same distinct steps, with some left out, exactly those are missing, and the others are the same."""
    distinct = list(dict.fromkeys(products))
    kept = [each for each in distinct if data.draw(st.booleans())]

    def steps(numbers: list[int]) -> list[Does]:
        return [Does(f"Product {number}", str(number), (Does("Step", "1"),)) for number in numbers]

    found = compared(steps(distinct), steps(kept))
    assert verdicts(found) == {
        name: count for name, count in ((SAME, len(kept)), (ONLY_LEFT, len(distinct) - len(kept))) if count
    }


WORDS = st.sampled_from(["load", "load 2", "tax", "ok", ""])
STEPS = st.lists(
    st.recursive(
        st.builds(Does, WORDS, state=st.sampled_from(["success", "error"])),
        lambda inner: st.builds(Does, WORDS, WORDS, st.lists(inner, max_size=4).map(tuple)),
        max_leaves=10,
    ),
    max_size=6,
)


def covered(found: Comparison, side: str, shape: Execution) -> list[int]:
    """The places of one execution that the steps stand for, in their order, those inside unlisted steps too."""
    places = []
    for _, step in found.walk():
        place, block = (step.left, step.left_block) if side == "left" else (step.right, step.right_block)
        if place is None:
            continue
        places.append(place)
        if not step.children and block is not None:
            places += inside(shape, place)
    return places


def inside(shape: Execution, opened: int) -> list[int]:
    """The places of the lines and openings within a block."""
    found = []
    owners = shape.outline.owners
    for place, owner in enumerate(owners):
        around = owner.parent if owner is not None and owner.opened == place else owner
        if owner is not None and place in (owner.closed, owner.result):
            continue
        while around is not None:
            if around.opened == opened:
                found.append(place)
                break
            around = around.parent
    return found


@settings(deadline=None)
@given(STEPS, STEPS)
def test_nothing_is_lost_and_nothing_is_moved(left: list[Does], right: list[Does]) -> None:
    """Every line and block of both executions is in the comparison once, in its own order."""
    one, other = execution(*left), execution(*right)
    found = compare(one, other)
    for side, shape in (("left", one), ("right", other)):
        owners = shape.outline.owners
        steps = [p for p, owner in enumerate(owners) if owner is None or p not in (owner.closed, owner.result)]
        assert covered(found, side, shape) == steps


@settings(deadline=None)
@given(STEPS, STEPS)
def test_sides_can_be_changed(left: list[Does], right: list[Does]) -> None:
    """From the other side, the same parts of each execution are the same; nothing differs where they are equal."""
    found = compared(left, right)
    if left == right:
        assert {verdict for _, verdict, *_ in shown(found)} <= {SAME}
    sides = {ONLY_LEFT: ONLY_RIGHT, ONLY_RIGHT: ONLY_LEFT}
    if all(step.verdict not in sides for _, step in found.walk()):
        mirrored = {(verdict, right, left) for _, verdict, left, right in shown(found)}
        assert {(verdict, left, right) for _, verdict, left, right in shown(compared(right, left))} == mirrored


def names(step: Step | None) -> list[str]:
    """What a step and those around it say, the outermost first."""
    found = []
    while step is not None:
        block = step.right_block or step.left_block
        found.append(block.message if block else "")
        step = step.parent
    return found[::-1]


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_one_changed_result_is_found_wherever_it_is(first: int, second: int, third: int) -> None:
    """Of 64 equal steps the one whose result was changed is named, with the steps around it."""

    def run(value: str) -> list[Does]:
        def steps(depth: int, path: tuple[int, ...]) -> tuple[Does, ...]:
            if depth == 3:
                return ()
            return tuple(
                Does(
                    f"part {'abcd'[n]}",
                    value if (*path, n) == (first, second, third) else "1",
                    steps(depth + 1, (*path, n)),
                )
                for n in range(4)
            )

        return list(steps(0, ()))

    found = compared(run("1"), run("2"))
    assert [step.verdict for step in found.differences] == [RESULT]
    assert names(found.first_result) == [f"part {'abcd'[n]}" for n in (first, second, third)]


@pytest.mark.slow
def test_large_executions_are_compared_in_seconds() -> None:
    """A hundred thousand lines a side, most of them the same text, take seconds, not hours."""
    numbers = random.Random(3)

    def run() -> Execution:
        return execution(*(Does("Page", str(numbers.randrange(3)), (Does("row"), Does("row"))) for _ in range(20_000)))

    started = time.monotonic()
    assert compare(run(), run()).steps
    assert time.monotonic() - started < 30


def test_very_deep_executions_are_compared() -> None:
    """Ten thousand blocks within each other, as a hostile archive may hold, overflow nothing."""

    def deep(result: str) -> Execution:
        opened = [{"at": 1, "message": f"in {n} ↴", "type": "text", "level": n} for n in range(10_000)]
        closed = [{"at": 1, "message": f"in {n} ↵", "type": "text", "level": n} for n in reversed(range(10_000))]
        stored = [*opened, closed[0], {"at": 1, "message": f"↳ {result}", "type": "raw", "level": 9_999}, *closed[1:]]
        return Execution.of([Entry(each) for each in stored])

    found = compare(deep("1"), deep("2"))
    assert [(step.verdict, step.left) for step in found.differences] == [(RESULT, 9_999)]
