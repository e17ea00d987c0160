"""A trace on OpenTelemetry's side, seen through the real SDK: its spans, their events, and what is current inside."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry import trace as otel
from opentelemetry.context import Context, attach, get_current
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes

import trifle_otel as trifle
from spans import (
    Sdk,
    assert_every_line_is_accounted_for,
    assert_lines_are_where_they_say,
    attributes,
    events,
    lines,
    parent_id,
    scope,
    span_id,
    texts,
)
from trifle_otel import conventions, runtime
from trifle_otel.runtime import Runtime
from trifle_otel.settings import Settings

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def sdk() -> Sdk:
    """This process set up with an SDK that keeps its spans, and an archive in memory."""
    return Sdk().configure()


@pytest.fixture(autouse=True)
def context_restored() -> Iterator[None]:
    """What is current before a test is current after it."""
    before = get_current()
    yield
    assert get_current() == before


def remote_parent(sampled: bool) -> Context:
    """A context in which a span of another process is current."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    context = SpanContext(trace_id=0x11111111111111111111111111111111, span_id=0x2222222222222222, is_remote=True)
    context = SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=flags)
    return otel.set_span_in_context(NonRecordingSpan(context))


def traceparent() -> str | None:
    """What would be sent to another process now."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


# the tree


def test_the_tree_of_spans_is_the_tree_of_blocks(sdk: Sdk) -> None:
    """The trace is a span named by its key, and each block a child of the block around it, named by its message."""
    with trifle.tracer("price/calculate"):
        with trifle.block("Loading"):
            trifle.trace("Reading the cache", lambda: 1)
        with trifle.block("Calculating"), trifle.block("Adding tax"):
            pass
    tree = {span.name: parent_id(span) for span in sdk.spans}
    root, loading, calculating = (span_id(sdk.named(name)) for name in ("price/calculate", "Loading", "Calculating"))
    assert tree == {
        "price/calculate": None,
        "Loading": root,
        "Reading the cache": loading,
        "Calculating": root,
        "Adding tax": calculating,
    }


def test_the_archive_knows_the_ids_of_the_spans(sdk: Sdk) -> None:
    """The record has the ids of the trace's span, and the lines of a block that of the block's."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.trace("inside")
    assert sdk.root.context is not None
    assert sdk.record.trace_id == f"{sdk.root.context.trace_id:032x}"
    assert sdk.record.span_id == span_id(sdk.root)
    step = span_id(sdk.named("Step"))
    assert [entry.span for entry in sdk.entries] == [sdk.record.span_id, step, step, step, step]


def test_a_blocks_span_lasts_from_its_opening_to_its_closing_line(sdk: Sdk) -> None:
    """Start and end of the span are the times of these lines in the archive."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        pass
    opening, closing = (entry for entry in sdk.entries if entry.message.startswith("Step"))
    step = sdk.named("Step")
    assert (step.start_time, step.end_time) == (opening.ns, closing.ns)


def test_the_trace_is_a_child_of_what_is_current(sdk: Sdk) -> None:
    """A span around the tracer is its parent, and current again when it ends."""
    with sdk.provider.get_tracer("app").start_as_current_span("request") as request:
        with trifle.tracer("a/job"):
            pass
        assert otel.get_current_span() is request
    assert parent_id(sdk.root) == span_id(sdk.named("request"))


def test_spans_of_others_are_children_of_the_block_that_they_are_made_in(sdk: Sdk) -> None:
    """What another instrumentation makes inside a block, or inside the trace, is a child of its span."""
    app = sdk.provider.get_tracer("app")
    with trifle.tracer("a/job"):
        with trifle.block("Step"), app.start_as_current_span("SELECT"), trifle.block("Inner"):
            pass
        app.start_span("PUBLISH").end()
    assert parent_id(sdk.named("SELECT")) == span_id(sdk.named("Step"))
    assert parent_id(sdk.named("Inner")) == span_id(sdk.named("SELECT"))
    assert parent_id(sdk.named("PUBLISH")) == span_id(sdk.root)


def test_a_trace_inside_a_trace_has_spans_of_its_own(sdk: Sdk) -> None:
    """The inner trace's span is a child of the outer's block, in the same trace of OpenTelemetry."""
    with trifle.tracer("outer"), trifle.block("Step"), trifle.tracer("inner"):
        trifle.trace("inside")
    assert parent_id(sdk.named("inner")) == span_id(sdk.named("Step"))
    assert texts(sdk.named("inner"))[-1] == "inside"
    assert len({span.context.trace_id for span in sdk.spans if span.context}) == 1


def test_the_kind_of_the_span_is_the_callers(sdk: Sdk) -> None:
    """`kind` is the kind of the trace's span; blocks are internal."""
    with trifle.tracer("a/job", kind=SpanKind.CONSUMER), trifle.block("Step"):
        pass
    assert (sdk.root.kind, sdk.named("Step").kind) == (SpanKind.CONSUMER, SpanKind.INTERNAL)


async def test_concurrent_tasks_nest_each_in_its_own_block(sdk: Sdk) -> None:
    """Tasks of one trace that take turns make a tree of spans, and events with the numbers of the archive."""
    turn = asyncio.Event()

    async def job(name: str) -> None:
        with trifle.block(name):
            trifle.trace(f"{name} waits")
            await turn.wait()
            with trifle.block(f"{name} inner"):
                trifle.trace(f"{name} works")

    with trifle.tracer("a/job"):
        tasks = [asyncio.create_task(job(f"task {number}")) for number in range(5)]
        await asyncio.sleep(0)
        turn.set()
        await asyncio.gather(*tasks)
    for number in range(5):
        name = f"task {number}"
        assert parent_id(sdk.named(name)) == span_id(sdk.root)
        assert parent_id(sdk.named(f"{name} inner")) == span_id(sdk.named(name))
        assert texts(sdk.named(name)) == [f"{name} waits"]
        assert texts(sdk.named(f"{name} inner")) == [f"{name} works"]
    assert_lines_are_where_they_say(sdk)
    assert_every_line_is_accounted_for(sdk)


# names


@pytest.mark.parametrize(
    "message, name",
    [
        ("Loading\n  the\tproduct ", "Loading the product"),
        ("", "unnamed"),
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 99 + "…"),
        ("é" * 5000, "é" * 99 + "…"),
        ("a\0b\x1b[31m", "a\ufffdb\ufffd[31m"),
        ("lone \udc80", "lone \\udc80"),
        (None, "unnamed"),
        (7, "7"),
    ],
)
def test_a_name_is_one_short_line(sdk: Sdk, message: Any, name: str) -> None:
    """The name of a block's span has at most 100 characters, no line breaks and no control characters."""
    with trifle.tracer("a/job"), trifle.block(message):
        pass
    assert [span.name for span in sdk.blocks] == [name]


# events


def test_lines_are_events_with_their_own_times_in_order(sdk: Sdk) -> None:
    """A line's event carries text, type, state and number, and the time of the call, not of the span's end."""
    with trifle.tracer("a/job"):
        before = time.time_ns()
        trifle.trace("Start", head=True)
        between = time.time_ns()
        trifle.trace("Careful", state="warning")
        after = time.time_ns()
    _, first, second = sdk.root.events
    assert (first.name, second.name) == ("trifle.text", "trifle.text")
    assert attributes(first) == {
        "trifle.text": "Start",
        "trifle.type": "head",
        "trifle.state": "success",
        "trifle.line": 2,
    }
    assert attributes(second) == {
        "trifle.text": "Careful",
        "trifle.type": "text",
        "trifle.state": "warning",
        "trifle.line": 3,
    }
    assert before <= first.timestamp <= between <= second.timestamp <= after


def test_results_are_events(sdk: Sdk) -> None:
    """A block's result is its last event, with the number of the result's line; so is the trace's own."""
    with trifle.tracer("a/job") as job:
        with trifle.block("Step") as step:
            step.result({"price": 12.5})
        with trifle.block("Nothing"):
            pass
        job.root.result("done")
    assert events(sdk.named("Step")) == [{"trifle.result": "{'price': 12.5}", "trifle.line": 4}]
    assert events(sdk.named("Nothing")) == [{"trifle.result": "None", "trifle.line": 7}]
    assert events(sdk.root, "trifle.result") == [{"trifle.result": "'done'", "trifle.line": 8}]
    assert_lines_are_where_they_say(sdk)


def test_changes_of_state_are_events_and_no_lines(sdk: Sdk) -> None:
    """`warn`, `fail` and `succeed` are events of the block that they are called in, and count as no line."""
    with trifle.tracer("a/job"):
        trifle.warn()
        with trifle.block("Step"):
            trifle.fail()
            trifle.trace("inside")
        trifle.succeed()
    assert events(sdk.root, "trifle.state") == [
        {"trifle.state": "warning", "trifle.previous_state": "running"},
        {"trifle.state": "success", "trifle.previous_state": "error"},
    ]
    assert events(sdk.named("Step"), "trifle.state") == [{"trifle.state": "error", "trifle.previous_state": "warning"}]
    assert events(sdk.named("Step"), "trifle.text")[0]["trifle.line"] == 3
    assert_every_line_is_accounted_for(sdk)


@pytest.mark.parametrize(
    "call, state, status",
    [
        (trifle.fail, "error", StatusCode.ERROR),
        (trifle.warn, "warning", StatusCode.UNSET),
        (trifle.succeed, "success", StatusCode.UNSET),
        (lambda: (trifle.fail(), trifle.warn()), "warning", StatusCode.UNSET),
    ],
)
def test_the_state_of_the_trace_is_the_status_of_its_span(
    sdk: Sdk, call: Callable[[], object], state: str, status: StatusCode
) -> None:
    """A trace that failed has status ERROR; the last word wins."""
    with trifle.tracer("a/job"):
        call()
    assert attributes(sdk.root)["trifle.state"] == state
    assert sdk.root.status.status_code is status


def test_the_state_of_a_block_is_on_its_span(sdk: Sdk) -> None:
    """A block whose state is error has status ERROR, and one that is not success says what it is."""
    with trifle.tracer("a/job"):
        for state in ("success", "warning", "error", "x" * 500):
            with trifle.block(state[:10], state=state):
                pass
    found = {span.name: attributes(span).get("trifle.state") for span in sdk.blocks}
    assert found["success"] is None
    assert (found["warning"], found["error"]) == ("warning", "error")
    assert sdk.named("warning").status.status_code is StatusCode.UNSET
    assert sdk.named("error").status.status_code is StatusCode.ERROR
    assert len(found["x" * 10].encode()) <= 32


def test_artifacts_are_events(sdk: Sdk) -> None:
    """An artifact's event has its name, its size in bytes, and where it is in the archive."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.artifact("pages/ü.html", "größe")
        trifle.artifact("missing", Path("nowhere"))
    reference = sdk.record.reference
    assert events(sdk.named("Step"), "trifle.artifact") == [
        {
            "trifle.artifact": "pages/ü.html",
            "trifle.artifact_size": 7,
            "trifle.artifact_ref": f"{reference}/artifacts/pages/ü.html",
            "trifle.line": 3,
        }
    ]
    assert events(sdk.named("Step"), "trifle.text")[0]["trifle.state"] == "warning"
    assert_every_line_is_accounted_for(sdk)


def test_the_trace_span_says_what_the_record_says(sdk: Sdk) -> None:
    """Key, mode, meta, tags, retention, lines, state and reference are attributes; reference and state are the last."""
    with trifle.tracer("a/job", meta=[9, {"b": 1.5}], tags=["b", "a"], mode="deferred", retention=30):
        trifle.tag("c")
    found = attributes(sdk.root)
    assert found == {
        "trifle.key": "a/job",
        "trifle.mode": "deferred",
        "trifle.meta": '[9,{"b":1.5}]',
        "trifle.tags": ("a", "b", "c"),
        "trifle.retention": 30,
        "trifle.archive": found["trifle.archive"],
        "trifle.lines": 1,
        "trifle.state": "success",
        "trifle.reference": sdk.record.reference,
    }
    assert found["trifle.archive"].endswith(f"/30/a/job/{sdk.record.reference}")
    assert list(found)[-2:] == ["trifle.state", "trifle.reference"]


def test_numbers_are_right_where_threads_record_at_once(sdk: Sdk) -> None:
    """Lines and blocks of four threads in one trace: each event names its line's place in the archive."""
    barrier = threading.Barrier(4)

    def work(job: Any, name: str) -> None:
        with trifle.attach(job):
            barrier.wait()
            for number in range(25):
                trifle.trace(f"{name} line {number}")
                with trifle.block(f"{name} block {number}") as step:
                    trifle.trace(f"{name} inside {number}")
                    step.result(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with trifle.tracer("a/job") as job:
            threads = [threading.Thread(target=work, args=(job, f"thread {number}")) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(sdk.blocks) == 100
    assert len(sdk.entries) == 1 + 4 * 25 * 5
    assert_lines_are_where_they_say(sdk)
    assert_every_line_is_accounted_for(sdk)


def test_lines_of_a_task_that_outlives_its_block_go_to_the_block_around_it(sdk: Sdk) -> None:
    """What is recorded in a block after its end is an event of the span around it, and numbers stay right."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            inside = get_current()
        before = get_current()
        attach(inside)
        trifle.trace("late")
        with trifle.block("Late block"):
            trifle.trace("later")
        attach(before)
        trifle.trace("after")
    assert texts(sdk.root)[-2:] == ["late", "after"]
    assert texts(sdk.named("Late block")) == ["later"]
    numbers = [event["trifle.line"] for event in events(sdk.root, "trifle.text")]
    assert [sdk.entries[number - 1].message for number in numbers] == texts(sdk.root)
    assert_every_line_is_accounted_for(sdk)


def test_blocks_still_open_at_the_end_of_the_trace_have_their_spans_ended(sdk: Sdk) -> None:
    """The end of a trace ends the spans of blocks that nobody left, with what was recorded in them."""
    with trifle.tracer("a/job"):
        before = get_current()
        trifle.block("Outer").__enter__()
        trifle.block("Inner").__enter__()
        trifle.trace("inside")
        attach(before)
    assert [span.name for span in sdk.spans] == ["Inner", "Outer", "a/job"]
    assert texts(sdk.named("Inner")) == ["inside"]
    assert_every_line_is_accounted_for(sdk)


# exceptions


class Refused(Exception):
    """An exception of the job's own."""


@pytest.mark.parametrize("kind", [Refused, ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_exception_is_one_event_on_the_innermost_span_that_it_left(sdk: Sdk, kind: type[BaseException]) -> None:
    """Every span that it leaves has status ERROR with its message and `error.type`; the event is there once."""

    def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Outer"):
            with trifle.block("Fine"):
                pass
            with trifle.block("Inner"):
                raise kind("no such product")

    with pytest.raises(kind):
        run()
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    for name in ("Inner", "Outer", "a/job"):
        span = sdk.named(name)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no such product"
        assert attributes(span)["error.type"] == module + kind.__name__
        assert attributes(span)["trifle.state"] == "error"
    assert sdk.named("Fine").status.status_code is StatusCode.UNSET
    found = [(span.name, event) for span in sdk.spans for event in events(span, "exception")]
    assert [name for name, _ in found] == ["Inner"]
    assert found[0][1]["exception.type"] == module + kind.__name__
    assert found[0][1]["exception.message"] == "no such product"
    stack = found[0][1]["exception.stacktrace"]
    assert stack.startswith("Traceback (most recent call last)")
    assert "in run" in stack
    assert sdk.named("Inner").events[-1].name == "exception"
    assert_every_line_is_accounted_for(sdk)


def exceptions(sdk: Sdk) -> list[tuple[str, str]]:
    """Span and message of each event of an exception."""
    return [(span.name, event["exception.message"]) for span in sdk.spans for event in events(span, "exception")]


def fail_in(message: str, error: BaseException) -> None:
    """A block that an exception leaves."""
    with trifle.block(message):
        raise error


def test_an_exception_that_is_caught_fails_its_own_block_alone(sdk: Sdk) -> None:
    """The spans around a block whose exception was caught are not failed."""
    with trifle.tracer("a/job"), trifle.block("Outer"), pytest.raises(Refused):
        fail_in("Inner", Refused("caught"))
    assert exceptions(sdk) == [("Inner", "caught")]
    assert sdk.named("Outer").status.status_code is StatusCode.UNSET
    assert sdk.root.status.status_code is StatusCode.UNSET


def test_each_exception_of_a_loop_is_an_event(sdk: Sdk) -> None:
    """Exceptions that follow each other are told apart, even where one takes the place in memory of the other."""
    with trifle.tracer("a/job"):
        for _ in range(20):
            with pytest.raises(ValueError, match="again"):
                fail_in("Try", ValueError("again"))
    assert exceptions(sdk) == [("Try", "again")] * 20


def test_two_exceptions_on_one_way_are_two_events(sdk: Sdk) -> None:
    """An exception raised while another is handled is an event of its own, on the span that it leaves first."""

    def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Outer"):
            try:
                fail_in("Inner", ValueError("first"))
            except ValueError as error:
                raise RuntimeError("second") from error

    with pytest.raises(RuntimeError):
        run()
    assert exceptions(sdk) == [("Inner", "first"), ("Outer", "second")]


def test_an_exception_raised_again_later_is_one_event(sdk: Sdk) -> None:
    """One that was kept, while others came and went, and leaves the trace later is not told twice."""

    def run() -> None:
        with trifle.tracer("a/job"):
            kept: list[BaseException] = []
            for number in range(3):
                try:
                    fail_in(f"Try {number}", ValueError(str(number)))
                except ValueError as error:
                    kept.append(error)
            raise kept[0]

    with pytest.raises(ValueError, match="0"):
        run()
    assert exceptions(sdk) == [("Try 0", "0"), ("Try 1", "1"), ("Try 2", "2")]
    assert sdk.root.status.description == "0"


def test_an_exception_that_leaves_a_trace_inside_a_trace_is_one_event(sdk: Sdk) -> None:
    """The outer trace's spans are failed by it, without telling it again."""
    with pytest.raises(Refused), trifle.tracer("outer"), trifle.block("Step"), trifle.tracer("inner"):
        raise Refused("no")
    assert exceptions(sdk) == [("inner", "no")]
    assert {span.name: span.status.description for span in sdk.spans} == dict.fromkeys(("inner", "Step", "outer"), "no")


async def test_exceptions_of_concurrent_tasks_are_one_event_each(sdk: Sdk) -> None:
    """Where several tasks fail in one block, each exception is told once."""

    async def task(name: str) -> None:
        await asyncio.sleep(0)
        fail_in(name, Refused(name))

    with pytest.raises(Refused), trifle.tracer("a/job"), trifle.block("Outer"):
        found = await asyncio.gather(*(task(f"task {number}") for number in range(3)), return_exceptions=True)
        first = found[0]
        assert isinstance(first, Refused)
        raise first
    assert exceptions(sdk) == [(f"task {number}", f"task {number}") for number in range(3)]
    assert sdk.named("Outer").status.description == "task 0"


def test_a_caught_exception_is_not_kept_alive(sdk: Sdk) -> None:
    """What an exception holds, the variables of every function that it passed, is let go of when the job lets go."""
    freed = []

    class Held:
        def __del__(self) -> None:
            freed.append(True)

    def run() -> None:
        held = Held()
        assert held
        raise ValueError("big")

    with trifle.tracer("a/job"):
        try:
            with trifle.block("Step"):
                run()
        except ValueError:
            pass
        assert freed == [True]


# secrets


def test_secrets_reach_no_span(sdk: Sdk) -> None:
    """Names, texts, results, meta, tags, artifacts, exceptions and tracebacks are redacted before they are on a span."""

    def run() -> None:
        secret = "password=hunter2secret"
        with trifle.tracer(f"a/{secret}", meta={"password": "hunter2secret"}, tags=[secret]):
            trifle.trace(secret, head=True)
            trifle.artifact(secret, b"x")
            with trifle.block(f"Log in with {secret}") as step:
                step.result({"password": "hunter2secret"})
            with trifle.block(f"{'x' * 300} {secret}", state="error"):
                trifle.trace(f"{'long ' * 600}{secret}")
                raise Refused(secret)

    with pytest.raises(Refused):
        run()
    found = [span.to_json() for span in sdk.spans]
    assert len(found) == 3
    assert "[redacted:password]" in "".join(found)
    assert "hunter2" not in "".join(found)


# sampled out, and no SDK


class Only(Sampler):
    """Drops spans whose name has a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
    ) -> SamplingResult:
        """See the SDK's `Sampler`."""
        if self.word == "raise":
            raise ValueError("a sampler of the application's")
        dropped = self.word in name
        return SamplingResult(Decision.DROP if dropped else Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        """See the SDK's `Sampler`."""
        return "Only"


def run_a_job() -> tuple[SpanContext, str | None]:
    """A job of 8 lines; gives what is current in its block, and what would be propagated from there."""
    with trifle.tracer("a/job"):
        trifle.trace("one")
        with trifle.block("Step") as step:
            trifle.trace("two")
            step.result(3)
            current = otel.get_current_span().get_span_context()
            sent = traceparent()
        trifle.trace("four")
        trifle.fail()
    return current, sent


JOB = ["Tracer has been initialized for a/job", "one", "Step ↴", "two", "Step ↵", "↳ 3", "four"]


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)])
def test_a_trace_that_is_sampled_out_is_complete_in_the_archive(sampler: Sampler) -> None:
    """No span of it is exported, its archive has every line and its span's ids, and its decision is what propagates."""
    sdk = Sdk(sampler=sampler).configure()
    current, sent = run_a_job()
    assert sdk.spans == []
    assert [entry.message for entry in sdk.entries] == JOB
    assert sdk.record.state == "error"
    assert sdk.record.trace_id == f"{current.trace_id:032x}"
    assert sdk.record.span_id == f"{current.span_id:016x}"
    assert current.is_valid
    assert sent == f"00-{sdk.record.trace_id}-{sdk.record.span_id}-{sent[-2:] if sent else ''}"
    assert sent is not None
    assert not int(sent[-2:], 16) & TraceFlags.SAMPLED


@pytest.mark.parametrize("sampled", [True, False])
def test_the_decision_of_a_remote_parent_holds(sampled: bool) -> None:
    """A trace under a parent from elsewhere is sampled as the parent is, and continues its trace."""
    sdk = Sdk(sampler=DEFAULT_ON).configure()
    before = get_current()
    attach(remote_parent(sampled))
    current, sent = run_a_job()
    attach(before)
    assert len(sdk.spans) == (2 if sampled else 0)
    assert [entry.message for entry in sdk.entries] == JOB
    assert sdk.record.trace_id == "1" * 32 == f"{current.trace_id:032x}"
    assert sdk.record.span_id not in ("2" * 16, None)
    assert sent is not None
    assert int(sent[-2:], 16) & TraceFlags.SAMPLED == sampled


def test_without_an_sdk_ids_are_made_up_for_the_archive_and_never_current() -> None:
    """Nothing is current and nothing propagated, which would tell others that they are sampled out."""
    archive = trifle.configure("memory:")
    current, sent = run_a_job()
    assert not current.is_valid
    assert sent is None
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert re.fullmatch("(?!0{32})[0-9a-f]{32}", record.trace_id or "")
    assert re.fullmatch("(?!0{16})[0-9a-f]{16}", record.span_id or "")
    entries = archive.entries(record)
    assert [entry.message for entry in entries] == JOB
    assert len({entry.span for entry in entries}) == 2


@pytest.mark.parametrize("sampled", [True, False])
def test_without_an_sdk_a_parent_from_elsewhere_is_propagated_as_it_is(sampled: bool) -> None:
    """The archive has the parent's trace id and a span id of its own; what goes on is the parent's, flags included."""
    archive = trifle.configure("memory:")
    before = get_current()
    attach(remote_parent(sampled))
    around = traceparent()
    _, sent = run_a_job()
    attach(before)
    assert sent == around == f"00-{'1' * 32}-{'2' * 16}-{'01' if sampled else '00'}"
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert record.trace_id == "1" * 32
    assert record.span_id != "2" * 16


def test_without_an_archive_a_sampled_out_trace_still_decides_for_what_is_inside() -> None:
    """Spans of others inside are dropped with it, and do not become roots with a lot of their own."""
    sdk = Sdk(sampler=ParentBased(Only("job")))
    runtime.install(Runtime(Settings(tracer_provider=sdk.provider), None))
    app = sdk.provider.get_tracer("app")
    with trifle.tracer("a/job"), trifle.block("Step"):
        app.start_span("SELECT").end()
    app.start_span("outside").end()
    assert [span.name for span in sdk.spans] == ["outside"]


def test_a_block_that_the_sampler_drops_loses_no_line() -> None:
    """Its lines are on the span around it, and what is made inside is a child of that."""
    sdk = Sdk(sampler=Only("noise")).configure()
    with trifle.tracer("a/job"), trifle.block("noise"):
        trifle.trace("inside")
        with trifle.block("Inner"):
            pass
    assert [span.name for span in sdk.spans] == ["Inner", "a/job"]
    assert parent_id(sdk.named("Inner")) == span_id(sdk.root)
    assert texts(sdk.root)[-1] == "inside"
    assert attributes(sdk.root)["trifle.blocks_omitted"] == 1
    assert_every_line_is_accounted_for(sdk)


# what misbehaves


class Broken(SpanProcessor):
    """A processor that raises where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See the SDK's `SpanProcessor`."""
        if self.where == "start" or (self.where == "start of a block" and span.name == "Step"):
            raise ValueError("on_start of the application's")

    def on_end(self, span: ReadableSpan) -> None:
        """See the SDK's `SpanProcessor`."""
        if self.where == "end":
            raise ValueError("on_end of the application's")


class NoTracer(otel.TracerProvider):
    """A provider that raises."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> otel.Tracer:
        """See OpenTelemetry's `TracerProvider`."""
        raise ValueError("a provider of the application's")


@pytest.mark.parametrize(
    "provider",
    [
        Sdk(processors=[Broken("start")]).provider,
        Sdk(processors=[Broken("start of a block")]).provider,
        Sdk(processors=[Broken("end")]).provider,
        Sdk(sampler=Only("raise")).provider,
        NoTracer(),
    ],
    ids=["on_start", "on_start of a block", "on_end", "sampler", "get_tracer"],
)
def test_a_fault_of_the_application_s_telemetry_stops_neither_job_nor_archive(provider: Any) -> None:
    """A processor, sampler or provider that raises is counted; the job runs, and its archive is complete."""
    faults: list[BaseException] = []
    archive = trifle.configure("memory:", tracer_provider=provider, error_handler=faults.append)
    run_a_job()
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert [entry.message for entry in archive.entries(record)] == JOB
    assert record.state == "error"
    assert re.fullmatch("[0-9a-f]{32}", record.trace_id or "")
    assert faults
    assert {type(fault) for fault in faults} == {ValueError}


def test_a_span_that_somebody_else_ended_takes_no_line_with_it(sdk: Sdk, caplog: pytest.LogCaptureFixture) -> None:
    """Its lines are counted as omitted, and nothing is set on a span that has ended."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            trifle.trace("inside")
            otel.get_current_span().end()
        trifle.trace("after")
    assert lines(sdk.named("Step")) == []
    assert attributes(sdk.root)["trifle.lines_omitted"] == 2
    assert_every_line_is_accounted_for(sdk)
    assert caplog.text == ""


def test_a_provider_set_after_configure_is_used() -> None:
    """The application may set its global provider whenever it likes; it is not replaced."""
    script = """
import trifle_otel as trifle
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

archive = trifle.configure("memory:")
with trifle.tracer("before"):
    pass
exporter = InMemorySpanExporter()
provider = TracerProvider(resource=Resource.create({"service.name": "prices"}))
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trifle.tracer("after"), trifle.block("Step"):
    pass
assert trace.get_tracer_provider() is provider
assert [span.name for span in exporter.get_finished_spans()] == ["Step", "after"]
assert trifle.flush(5)
services = {record.key: record.context.get("service") for record in archive.search().records}
assert services == {"before": None, "after": "prices"}, services
print("as it should be")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, text=True, check=False)
    assert (done.stdout, done.stderr) == ("as it should be\n", "")


# the service


@pytest.mark.parametrize(
    "environment, resource, setting, service",
    [
        ({}, {"service.name": "from the provider"}, {}, "from the provider"),
        ({}, {}, {}, None),
        ({"OTEL_SERVICE_NAME": "named"}, {"service.name": "from the provider"}, {}, "named"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name=price%20list ,c=d"}, {}, {}, "price list"),
        ({"OTEL_SERVICE_NAME": "one", "OTEL_RESOURCE_ATTRIBUTES": "service.name=two"}, {}, {}, "one"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "nonsense"}, {}, {}, None),
        ({"OTEL_SERVICE_NAME": "named"}, {}, {"service": "set"}, "set"),
        ({"OTEL_SERVICE_NAME": "named"}, {}, {"context": {"service": "the user's"}}, "the user's"),
        ({"TRIFLE_SERVICE": "ours", "OTEL_SERVICE_NAME": "named"}, {}, {}, "ours"),
    ],
)
def test_the_record_names_the_service(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    resource: dict[str, str],
    setting: dict[str, Any],
    service: str | None,
) -> None:
    """It is OpenTelemetry's name of it: of the environment, else of the provider's resource, unless nobody chose one."""
    sdk = Sdk(resource=Resource.create(resource))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sdk.configure(**setting)
    with trifle.tracer("a/job"):
        pass
    assert sdk.record.context.get("service") == service


# the documentation


def test_the_readme_has_the_names_of_the_conventions() -> None:
    """One table of the README lists the events and attributes, with the same words."""
    section = README.read_text("utf-8").split("## Spans, attributes and events\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (event )?`([^`]+)` \| (.+) \|$", section, re.MULTILINE)
    assert {name: text for event, name, text in rows if event} == conventions.EVENTS
    assert {name: text for event, name, text in rows if not event} == conventions.ATTRIBUTES
    assert section.count("| --- |") == 1


def test_every_name_on_a_span_is_documented(sdk: Sdk) -> None:
    """A job that does everything sets no attribute and adds no event that the conventions do not list."""

    def run() -> None:
        with trifle.tracer("a/job", meta=1, tags=["t"]):
            trifle.trace("é" * 3000)
            trifle.artifact("a.txt", "text")
            for number in range(200):
                trifle.trace(str(number))
            with trifle.block("Step") as step:
                step.result("x" * 3000)
                trifle.warn()
            with trifle.block("One too many"):
                raise Refused

    sdk.configure(max_spans=1)
    with pytest.raises(Refused):
        run()
    ours = [span for span in sdk.spans if scope(span) == "trifle_otel"]
    assert {event.name for span in ours for event in span.events} == set(conventions.EVENTS)
    found = {name for span in ours for name in attributes(span)}
    found |= {name for span in ours for event in span.events for name in attributes(event)}
    assert found == set(conventions.ATTRIBUTES)
