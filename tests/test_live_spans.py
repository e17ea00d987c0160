"""A trace on OpenTelemetry's side, seen through the real SDK: its spans, their names, their events."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.context import attach, get_current
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from spans import (
    Sdk,
    assert_every_line_is_accounted_for,
    assert_lines_are_where_they_say,
    attributes,
    events,
    parent_id,
    scope,
    span_id,
    texts,
)

import trifle_otel as trifle
from trifle_otel import conventions

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


@pytest.mark.parametrize("given", ["text", 7, {1: object()}])
def test_attributes_of_the_wrong_kind_cost_no_trace(sdk: Sdk, given: Any) -> None:
    """The span has what can be had of them."""
    with trifle.tracer("a/job", attributes=given):
        pass
    assert sdk.root.name == "a/job"
    assert sdk.record.state == "success"


def test_attributes_of_the_caller_hold_no_secret(sdk: Sdk) -> None:
    """They are screened as all that goes onto a span is."""
    given = {"db.password": "hunter2", "dsn": "postgres://u:hunter2@h/d", "ports": (1, 2), "n": 1.5}
    with trifle.tracer("a/job", attributes=given):
        pass
    found = attributes(sdk.root)
    assert found["db.password"] == "[redacted:password]"
    assert found["dsn"] == "postgres://u:[redacted:url-password]@h/d"
    assert (tuple(found["ports"]), found["n"]) == ((1, 2), 1.5)


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


@pytest.mark.parametrize("within", ["blocks", "a block without a span"])
def test_many_lines_do_not_fill_the_memory_of_a_live_trace(sdk: Sdk, within: str) -> None:
    """Blocks, and lines of blocks beyond `max_spans`, are flushed like others, once a live trace holds many."""
    sdk.configure(max_spans=0)
    most = 0
    with trifle.tracer("a/job", mode="live") as job, trifle.block("Step"):
        job.overflow = 100
        for number in range(200 if within == "blocks" else 20_000):
            if within == "blocks":
                trifle.trace("Inner", lambda: 1)
            else:
                trifle.trace(str(number))
            most = max(most, len(job.lines or []))
    assert job.parts > 1
    assert most < (110 if within == "blocks" else 15_000)


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
        (lambda: [call() for call in (trifle.fail, trifle.warn)], "warning", StatusCode.UNSET),
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
    found = {span.name: attributes(span).get("trifle.state", "") for span in sdk.blocks}
    assert found["success"] == ""
    assert (found["warning"], found["error"]) == ("warning", "error")
    assert sdk.named("warning").status.status_code is StatusCode.UNSET
    assert sdk.named("error").status.status_code is StatusCode.ERROR
    assert len(found["x" * 10].encode()) <= 32


@pytest.mark.parametrize("name", ["pages/ü.html", "page.html"])
def test_artifacts_are_events(sdk: Sdk, name: str) -> None:
    """An artifact's event has its name, its size in bytes, and where it is in the archive."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.artifact(name, "größe")
        trifle.artifact("missing", Path("nowhere"))
    reference = sdk.record.reference
    assert events(sdk.named("Step"), "trifle.artifact") == [
        {
            "trifle.artifact": name,
            "trifle.artifact_size": 7,
            "trifle.artifact_ref": f"{reference}/artifacts/{name}",
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
            for number in range(500):
                trifle.trace(f"{name} first {number}")
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
    assert len(sdk.entries) == 1 + 4 * (500 + 25 * 5)
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


def test_lines_of_a_spanless_block_that_outlives_its_outer_one_go_further_out(sdk: Sdk) -> None:
    """A block without a span puts its lines on the nearest span that is still open."""
    sdk.configure(max_spans=1)
    with trifle.tracer("a/job"):
        with trifle.block("Outer"), trifle.block("Inner"):
            inside = get_current()
            trifle.trace("in time")
        before = get_current()
        attach(inside)
        trifle.trace("late")
        attach(before)
    assert texts(sdk.named("Outer")) == ["in time"]
    assert texts(sdk.root)[-1] == "late"
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


# secrets


class RefusedError(Exception):
    """An exception of the job's own."""


def test_a_block_that_is_opened_while_the_trace_ends_has_its_span_ended(sdk: Sdk) -> None:
    """By another thread, say: its lines come too late for the archive, its span is exported all the same."""
    step = trifle.block("Late")
    trifle.on("wrapup", lambda _: step.__enter__())
    with trifle.tracer("a/job"):
        pass
    step.__exit__(None, None, None)
    assert parent_id(sdk.named("Late")) == span_id(sdk.root)


def test_secrets_reach_no_span(sdk: Sdk) -> None:
    """Names, texts, results, meta, tags, artifacts, exceptions and tracebacks are redacted on spans."""

    def run() -> None:
        secret = "password=hunter2secret"
        with trifle.tracer(f"a/{secret}", meta={"password": "hunter2secret"}, tags=[secret]):
            trifle.trace(secret, head=True)
            trifle.artifact(secret, b"x")
            with trifle.block(f"Log in with {secret}") as step:
                step.result({"password": "hunter2secret"})
            with trifle.block(f"{'x' * 300} {secret}", state="error"):
                trifle.trace(f"{'long ' * 600}{secret}")
                raise RefusedError(secret)

    with pytest.raises(RefusedError):
        run()
    found = [span.to_json() for span in sdk.spans]
    assert len(found) == 3
    assert "[redacted:password]" in "".join(found)
    assert "hunter2" not in "".join(found)


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
                raise RefusedError

    sdk.configure(max_spans=1, pending_span=True)
    with pytest.raises(RefusedError):
        run()
    ours = [span for span in sdk.spans if scope(span) == "trifle_otel"]
    assert {event.name for span in ours for event in span.events} == set(conventions.EVENTS)
    found = {name for span in ours for name in attributes(span)}
    found |= {name for span in ours for event in span.events for name in attributes(event)}
    assert found == set(conventions.ATTRIBUTES) - {conventions.REPLAYED}  # of spans that come from the archive


def test_the_record_says_what_its_span_hangs_on_and_whether_it_was_made() -> None:
    """A trace can be replayed in its place; those that backends have not seen can be told from those that they have."""
    sdk = Sdk().configure()
    with sdk.provider.get_tracer("web").start_as_current_span("request") as request, trifle.tracer("a/job"):
        pass
    assert sdk.record.context["parent_span_id"] == f"{request.get_span_context().span_id:016x}"
    assert sdk.record.context["sampled"] is True


def test_a_trace_that_is_sampled_out_says_so() -> None:
    """It has no parent here, so none is named."""
    sdk = Sdk(sampler=ALWAYS_OFF).configure()
    with trifle.tracer("a/job"):
        pass
    assert sdk.record.context["sampled"] is False
    assert "parent_span_id" not in sdk.record.context
