"""Executions out of spans: in any order, in batches, late, twice, without what they hang on, and without end."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifle_otel.executions.assemble import EARLY, NEVER, REFUSED, REPEATED, Assembler, Execution
from trifle_otel.span_data import SpanData

SECOND = 1_000_000_000
START = 1_760_000_000 * SECOND
TRACE = f"{7:032x}"
SHOP = {"service.name": "shop"}


class Clock:
    """Time as a test says it is. Seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def span(number: int, parent: int | None = None, trace: str = TRACE, **fields: Any) -> SpanData:
    """A span whose ids are small numbers; it began as many microseconds after the start as its number says."""
    start = fields.pop("start", number * 1000)
    end = fields.pop("end", SECOND - number * 1000)
    values: dict[str, Any] = {"remote": False, "resource": SHOP, **fields}
    above = None if parent is None else f"{parent:016x}"
    return SpanData(trace, f"{number:016x}", above, f"span {number}", START + start, START + end, **values)


class Desk:
    """An assembler, its clock, and what it has delivered and dropped."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.executions: list[Execution] = []
        self.dropped: list[SpanData] = []
        self.assembler = Assembler(self.executions.append, dropped=self.dropped.extend, clock=self.clock, **options)

    def add(self, *spans: SpanData) -> Desk:
        """Add spans as one batch."""
        self.assembler.add(spans)
        return self

    def after(self, seconds: float) -> list[Execution]:
        """What is delivered when that much time has gone by."""
        before = len(self.executions)
        self.clock.now += seconds
        self.assembler.sweep()
        return self.executions[before:]

    def only(self) -> Execution:
        """The one execution that was delivered."""
        assert len(self.executions) == 1
        return self.executions[0]


def numbers(spans: Iterable[SpanData]) -> list[int]:
    """Which spans these are."""
    return sorted(int(one.span_id, 16) for one in spans)


# --- What is complete


def test_an_execution_is_delivered_when_its_root_has_come_and_things_are_quiet() -> None:
    """Not before `settle` seconds without another span, and then whole, complete and once."""
    desk = Desk(settle=2.0)
    desk.add(span(3, 2), span(2, 1))
    assert desk.after(5) == []
    desk.add(span(1))
    assert desk.after(1.9) == []
    desk.add(span(4, 1))
    assert desk.after(1.9) == []
    (execution,) = desk.after(0.2)
    assert numbers(execution.spans) == [1, 2, 3, 4]
    assert execution.root is not None
    assert (execution.root.name, execution.complete, execution.missing) == ("span 1", True, ())
    assert desk.after(10_000) == []
    assert desk.assembler.waiting == 0


def test_the_next_look_is_told() -> None:
    """`sweep` says when something may be due: what settles, what waits for its root, nothing."""
    desk = Desk(settle=2.0, wait=60.0)
    assert desk.assembler.sweep() == float("inf")
    desk.add(span(2, 1))
    assert desk.assembler.sweep() == 60.0
    desk.add(span(1))
    assert desk.assembler.sweep() == 2.0
    desk.clock.now += 2.0
    assert desk.assembler.sweep() > 2.0


@pytest.mark.parametrize(
    "fields, is_root",
    [
        ({"remote": True}, True),
        ({"remote": None, "kind": "SERVER"}, True),
        ({"remote": None, "kind": "CONSUMER"}, True),
        ({"remote": None, "kind": "CLIENT"}, False),
        ({"remote": False, "kind": "SERVER"}, False),
        ({"remote": False}, False),
    ],
)
def test_a_local_root_is_the_first_span_of_its_process(fields: dict[str, Any], is_root: bool) -> None:
    """Its parent is of another process, or nobody says and its kind tells; it begins an execution of its own."""
    desk = Desk(settle=0).add(span(1), span(2, 1, **fields), span(3, 2))
    roots = sorted(numbers(execution.spans) for execution in desk.after(0))
    assert roots == ([[1], [2, 3]] if is_root else [[1, 2, 3]])


def test_services_of_one_trace_are_executions_of_their_own() -> None:
    """Each is delivered when it is complete, whatever the others do."""
    desk = Desk(settle=1)
    desk.add(span(11, 10), span(10, 2, remote=True), span(21, 20))
    (first,) = desk.after(1)
    assert numbers(first.spans) == [10, 11]
    desk.add(span(20, 2, remote=True), span(2, 1), span(1))
    assert sorted(numbers(execution.spans) for execution in desk.after(1)) == [[1, 2], [20, 21]]


def test_equal_ids_of_other_traces_are_other_spans() -> None:
    """Span ids are unique within a trace alone."""
    other = f"{8:032x}"
    desk = Desk(settle=0).add(span(2, 1), span(2, 1, other), span(1), span(1, None, other))
    assert [numbers(execution.spans) for execution in desk.after(0)] == [[1, 2], [1, 2]]
    assert {execution.origin.trace_id for execution in desk.executions} == {TRACE, other}


def test_spans_of_our_own_are_told() -> None:
    """An execution says whether our library made a span of it; others do not."""
    desk = Desk(settle=0).add(span(3, 2, scope="trifle_otel"), span(2, 1), span(1), span(10))
    assert {execution.ours for execution in desk.after(0) if execution.root and execution.root.name == "span 1"} == {
        True
    }
    assert [execution.ours for execution in desk.executions if len(execution.spans) == 1] == [False]


# --- What never comes


def test_what_has_no_root_is_closed_after_the_time_limit_and_says_what_is_missing() -> None:
    """As one execution for a process in a trace, counted from its last span."""
    desk = Desk(settle=1, wait=60)
    desk.add(span(3, 2), span(4, 2))
    desk.after(50)
    desk.add(span(6, 5))
    assert desk.after(50) == []
    (execution,) = desk.after(10)
    assert (execution.root, execution.complete, execution.closed) == (None, False, "time")
    assert numbers(execution.spans) == [3, 4, 6]
    assert execution.missing == (f"{2:016x}", f"{5:016x}")
    assert execution.key_span.name == "span 3"
    assert desk.assembler.counts[NEVER] == 1


def test_what_hangs_on_a_missing_parent_belongs_to_the_root_whose_time_encloses_it() -> None:
    """In the process that the trace began in; the execution says which parent is missing."""
    desk = Desk(settle=1).add(span(4, 3), span(5, 4), span(2, 1), span(1))
    (execution,) = desk.after(1)
    assert numbers(execution.spans) == [1, 2, 4, 5]
    assert (execution.missing, execution.complete) == ((f"{3:016x}",), True)


@pytest.mark.parametrize(
    "fields",
    [{"start": 0}, {"end": 2 * SECOND}, {"resource": {"service.name": "other"}}, {"trace": f"{8:032x}"}],
    ids=["began earlier", "ended later", "another process", "another trace"],
)
def test_what_lies_elsewhere_does_not_belong_to_a_root(fields: dict[str, Any]) -> None:
    """By its time, its process or its trace: then it is an execution of its own."""
    desk = Desk(settle=1, wait=60).add(span(4, 3, **fields), span(2, 1), span(1))
    assert [numbers(execution.spans) for execution in desk.after(1)] == [[1, 2]]
    assert [numbers(execution.spans) for execution in desk.after(60)] == [[4]]


def test_a_request_does_not_take_what_may_be_of_one_that_still_runs() -> None:
    """Two requests of one trace at the same time: the children of the longer one are not given to the shorter one."""
    desk = Desk(settle=1)
    desk.add(span(11, 10), span(1, 99, remote=True, end=SECOND))
    assert [numbers(execution.spans) for execution in desk.after(1)] == [[1]]
    desk.add(span(10, 99, remote=True, end=5 * SECOND))
    assert [numbers(execution.spans) for execution in desk.after(1)] == [[10, 11]]


def test_what_never_got_its_parent_says_which_request_it_lies_in() -> None:
    """When the time limit has come, and the request is delivered long since."""
    desk = Desk(settle=1, wait=60).add(span(11, 10), span(1, 99, remote=True))
    desk.after(1)
    (execution,) = desk.after(60)
    assert (numbers(execution.spans), execution.root, execution.missing) == ([11], None, (f"{10:016x}",))
    assert execution.belongs_to == desk.executions[0].origin


def test_what_is_known_to_run_is_waited_for() -> None:
    """Beyond the time limit, as long as somebody says so."""
    running = {TRACE}
    desk = Desk(settle=1, wait=60, runs=running.__contains__).add(span(3, 2))
    assert desk.after(1000) == []
    running.clear()
    assert [numbers(execution.spans) for execution in desk.after(60)] == [[3]]


def test_a_flush_delivers_everything() -> None:
    """Executions with their root, which take what lies in their time, and what has none."""
    desk = Desk().add(span(2, 1), span(1, 99, remote=True), span(4, 3), span(6, 5, start=0))
    desk.assembler.flush()
    assert [numbers(execution.spans) for execution in desk.executions] == [[1, 2, 4], [6]]
    assert [execution.complete for execution in desk.executions] == [True, False]
    assert desk.assembler.waiting == 0


def test_a_flush_of_roots_leaves_what_still_runs() -> None:
    """What has no root yet is not cut in two."""
    desk = Desk(settle=1).add(span(2, 1), span(1), span(11, 10, f"{8:032x}"))
    desk.assembler.flush(roots_alone=True)
    assert numbers(desk.only().spans) == [1, 2]
    assert desk.assembler.waiting == 1
    desk.add(span(10, None, f"{8:032x}"))
    assert [numbers(execution.spans) for execution in desk.after(1)] == [[10, 11]]


# --- What comes late, or twice


def test_late_spans_say_which_execution_they_belong_to() -> None:
    """They are one more, without a root, and so are their own children, whichever come first."""
    desk = Desk(settle=1).add(span(2, 1), span(1))
    desk.after(1)
    desk.add(span(5, 4), span(3, 2), span(4, 3))
    (late,) = desk.after(1)
    assert (numbers(late.spans), late.root, late.missing, late.closed) == ([3, 4, 5], None, (), "late")
    assert late.belongs_to == desk.executions[0].origin
    desk.add(span(6, 5))
    (later,) = desk.after(1)
    assert (numbers(later.spans), later.belongs_to) == ([6], desk.executions[0].origin)


def test_late_spans_of_what_is_ours_are_ours() -> None:
    """What our own library has recorded is so as a whole."""
    desk = Desk(settle=1).add(span(1, scope="trifle_otel"))
    desk.after(1)
    desk.add(span(2, 1))
    assert [execution.ours for execution in desk.after(1)] == [True]


def test_a_parent_that_comes_after_the_time_limit_names_what_was_closed_without_it() -> None:
    """With what comes from then on it is an execution of its own."""
    desk = Desk(settle=1, wait=60).add(span(3, 2))
    (part,) = desk.after(60)
    desk.add(span(4, 2), span(2, 1), span(1))
    (rest,) = desk.after(1)
    assert (numbers(rest.spans), rest.complete, rest.missing) == ([1, 2, 4], True, ())
    assert rest.earlier == (part.origin,)


def test_a_span_that_comes_again_is_dropped() -> None:
    """Whether it waits or was delivered; whoever wants to know is told."""
    desk = Desk(settle=1).add(span(2, 1), span(2, 1))
    desk.add(span(1), span(2, 1))
    assert numbers(desk.after(1)[0].spans) == [1, 2]
    desk.add(span(2, 1), span(1))
    assert desk.after(10_000) == []
    assert numbers(desk.dropped) == [1, 2, 2, 2]
    assert desk.assembler.counts[REPEATED] == 4


# --- Bounds


def test_too_many_spans_close_the_oldest_executions_early() -> None:
    """They say so, and what is held stays within the bound."""
    desk = Desk(settle=1, most_spans=100)
    for number in range(1, 1001):
        desk.add(span(10_000 + number, number, trace=f"{number:032x}"))
        assert desk.assembler.waiting <= 100
    assert {execution.closed for execution in desk.executions} == {"memory"}
    assert desk.assembler.counts[EARLY] == len(desk.executions)
    assert numbers(desk.executions[0].spans) == [10_001]
    assert not any(execution.complete for execution in desk.executions)


def test_an_execution_larger_than_the_bound_comes_in_parts() -> None:
    """Each span once, and the last part, with the root, names the ones before."""
    desk = Desk(settle=1, most_spans=100)
    for number in range(2, 1002):
        desk.add(span(number, 1))
    desk.add(span(1))
    desk.after(1)
    assert numbers(one for execution in desk.executions for one in execution.spans) == list(range(1, 1002))
    last = desk.executions[-1]
    assert last.root is not None
    assert last.earlier
    assert set(last.earlier) <= {execution.origin for execution in desk.executions[:-1]}


def test_large_spans_count_as_several() -> None:
    """The bound is one of memory: long values and many events are soon too much."""
    desk = Desk(most_spans=1000)
    for number in range(2, 30):
        desk.add(span(number, 1, attributes={"text": "x" * 200_000}))
    assert desk.assembler.waiting < 15
    assert desk.assembler.counts[EARLY]


def test_what_is_remembered_is_bounded() -> None:
    """Of a million traces nothing is held but a few."""
    desk = Desk(settle=0, remembered=100)
    for number in range(1, 5001):
        desk.add(span(2, 1, trace=f"{number:032x}"), span(1, trace=f"{number:032x}"))
        desk.after(0.1)
    assert len(desk.executions) == 5000
    held: Any = desk.assembler
    assert len(held._traces) <= 100
    assert len(held._due) <= 2000


def test_a_span_that_comes_again_from_ever_other_processes_leaves_nothing() -> None:
    """Whoever sends one span again and again, with another resource each time, does not fill the memory."""
    desk = Desk(settle=0).add(span(1))
    desk.after(1)
    for number in range(1000):
        desk.add(span(1, resource={"host.name": f"host {number}"}))
    held: Any = desk.assembler
    assert len(desk.dropped) == 1000
    assert len(held._traces[TRACE].groups) == 1


def test_times_that_were_noted_are_let_go_of() -> None:
    """What each trace waited for is not held for as long as it might have had to wait."""
    desk = Desk(settle=0, wait=1e9, remembered=0)
    for number in range(1, 5001):
        desk.add(span(2, 1, trace=f"{number:032x}"), span(1, trace=f"{number:032x}"))
        desk.after(0)
    held: Any = desk.assembler
    assert len(held._due) <= 2000
    assert held._traces == {}


@pytest.mark.parametrize("order", ["as they ended", "as they began", "at random"])
@pytest.mark.parametrize("shape", ["a chain", "a fan", "a tree"])
def test_many_spans_of_one_trace_take_no_time(shape: str, order: str) -> None:
    """Far from quadratic, whatever the shape and the order."""
    count = 10_000
    above = {"a chain": range(count), "a fan": [1] * count, "a tree": [at // 2 for at in range(1, count + 1)]}[shape]
    spans = [span(1)] + [span(at, above[at - 1], end=SECOND) for at in range(2, count + 1)]
    if order == "as they ended":
        spans.reverse()
    elif order == "at random":
        random.Random(7).shuffle(spans)
    desk = Desk(settle=1)
    start = time.process_time()
    for at in range(0, count, 512):
        desk.add(*spans[at : at + 512])
        desk.after(0)
    desk.after(1)
    assert len(desk.only().spans) == count
    assert time.process_time() - start < 4


# --- Bad input


@pytest.mark.parametrize(
    "trace, number", [("", "1" * 16), ("0" * 32, "1" * 16), (TRACE, ""), (TRACE, "0" * 16), ("7", "1" * 16)]
)
def test_spans_without_valid_ids_are_refused(trace: str, number: str) -> None:
    """They are counted, told of, and nothing is held because of them."""
    desk = Desk(settle=0).add(SpanData(trace, number, None, "x", START, START))
    assert desk.after(0) == []
    assert len(desk.dropped) == desk.assembler.counts[REFUSED] == 1
    held: Any = desk.assembler
    assert held._traces == {}


def test_parents_in_a_circle_are_closed_in_time() -> None:
    """Nothing leads on from them: they are an execution without a root."""
    desk = Desk(settle=1, wait=60).add(span(1, 3), span(2, 1), span(3, 2), span(4, 3))
    (execution,) = desk.after(60)
    assert (numbers(execution.spans), execution.root, execution.missing) == ([1, 2, 3, 4], None, ())


def test_a_span_that_is_its_own_parent_is_a_root() -> None:
    """So is one whose parent's id is all zeros."""
    desk = Desk(settle=0).add(span(1, 1), span(2, 1))
    assert [numbers(execution.spans) for execution in desk.after(0)] == [[1, 2]]
    desk.add(span(3, 0))
    assert [numbers(execution.spans) for execution in desk.after(0)] == [[3]]


# --- Any order


@dataclass
class Story:
    """Spans as they are sent, with repeats, and as a test wants them cut into batches."""

    spans: list[SpanData]
    sent: list[SpanData]
    cuts: list[int]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Trees of two services, of which some spans are lost, some come twice, all in any order and any batches.

    Some spans hang in a circle. Times enclose nothing, so that parents alone tell what belongs together.
    """
    count = draw(st.integers(1, 25))
    spans = []
    for number in range(1, count + 1):
        parent = draw(st.one_of(st.none(), st.integers(1, count)))
        remote = draw(st.sampled_from([False, False, False, True, None]))
        kind = draw(st.sampled_from(["INTERNAL", "SERVER", "CLIENT"]))
        resource = draw(st.sampled_from([SHOP, {"service.name": "bank"}]))
        spans.append(span(number, parent, remote=remote, kind=kind, resource=resource, start=number, end=number + 1000))
    kept = [one for one in spans if draw(st.integers(0, 4))]
    again = draw(st.lists(st.sampled_from(kept), max_size=5)) if kept else []
    sent = draw(st.permutations([*kept, *again]))
    return Story(kept, sent, draw(st.lists(st.integers(0, len(sent)), max_size=6).map(sorted)))


def batches(story: Story) -> list[list[SpanData]]:
    """The spans of a story as they are sent."""
    edges = [0, *story.cuts, len(story.sent)]
    return [story.sent[start:end] for start, end in pairwise(edges)]


def is_root(one: SpanData) -> bool:
    """Whether nothing leads on from a span, as the contract says it."""
    if one.parent_id in (None, one.span_id) or one.remote is True:
        return True
    return one.remote is None and one.kind in ("SERVER", "CONSUMER")


def hangs_on(one: SpanData, known: dict[str, SpanData]) -> tuple[str, str]:
    """What a span hangs on in the end: a root, a parent that is not there, or a circle (by its smallest id)."""
    way: list[str] = []
    while not is_root(one):
        way.append(one.span_id)
        above = one.parent_id or ""
        if above not in known:
            return "missing", above
        if above in way:
            return "circle", min(way[way.index(above) :])
        one = known[above]
    return "root", one.span_id


def grouped(spans: Sequence[SpanData]) -> dict[tuple[str, str], list[int]]:
    """Spans by what they hang on."""
    known = {one.span_id: one for one in spans}
    found: dict[tuple[str, str], list[int]] = {}
    for one in spans:
        found.setdefault(hangs_on(one, known), []).append(int(one.span_id, 16))
    return found


@settings(max_examples=100, deadline=None)
@given(story=stories())
def test_executions_are_what_hangs_together_whatever_the_order(story: Story) -> None:
    """Each root with all that hangs on it and nothing else; of the rest, what hangs together is not torn apart."""
    desk = Desk(settle=1, wait=60)
    for batch in batches(story):
        desk.add(*batch)
    complete = desk.after(1)
    rest = desk.after(60)
    expected = grouped(story.spans)
    roots = {place[1]: sorted(found) for place, found in expected.items() if place[0] == "root"}
    assert {execution.root.span_id: numbers(execution.spans) for execution in complete if execution.root} == roots
    assert len(complete) == len(roots)
    others = [set(numbers(execution.spans)) for execution in rest]
    for place, found in expected.items():
        if place[0] != "root":
            assert sum(set(found) <= other for other in others) == 1
    missing = {place[1] for place in expected if place[0] == "missing"}
    assert {one for execution in rest for one in execution.missing} == missing
    assert all(execution.root is None for execution in rest)


@settings(max_examples=100, deadline=None)
@given(story=stories(), most=st.integers(1, 12), pauses=st.lists(st.sampled_from([0, 1, 60]), max_size=8))
def test_each_span_is_in_one_execution_whatever_happens_in_between(story: Story, most: int, pauses: list[int]) -> None:
    """Pauses, time limits, a small memory: a span is in exactly one execution, and repeats alone are dropped."""
    desk = Desk(settle=1, wait=60, most_spans=most)
    for number, batch in enumerate(batches(story)):
        desk.add(*batch)
        desk.after(pauses[number] if number < len(pauses) else 0)
        assert desk.assembler.waiting <= most
    desk.assembler.flush()
    delivered = Counter(one.span_id for execution in desk.executions for one in execution.spans)
    assert delivered == Counter(one.span_id for one in story.spans)
    assert len(desk.dropped) == len(story.sent) - len(story.spans)
    assert desk.assembler.waiting == 0
    origins = [execution.origin for execution in desk.executions]
    assert len(set(origins)) == len(origins)
    for at, execution in enumerate(desk.executions):
        assert set(execution.earlier) <= set(origins[:at])
        assert execution.belongs_to is None or execution.belongs_to in origins[:at]


@settings(max_examples=30, deadline=None)
@given(story=stories(), data=st.data())
def test_the_same_spans_have_the_same_origin(story: Story, data: st.DataObject) -> None:
    """Of one process, however they are ordered and cut: what a reference is made of does not depend on it."""
    for one in story.spans:
        one.resource = SHOP
    found = []
    for sent in (story.sent, data.draw(st.permutations(story.sent))):
        desk = Desk(settle=1, wait=60).add(*sent)
        desk.after(1)
        desk.after(60)
        found.append({execution.origin: numbers(execution.spans) for execution in desk.executions})
    assert found[0] == found[1]
