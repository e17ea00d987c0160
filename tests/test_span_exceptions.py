"""Exceptions on spans: one event on the innermost span that one leaves, a status on each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from opentelemetry.context import get_current
from opentelemetry.trace import StatusCode
from spans import (
    Sdk,
    assert_every_line_is_accounted_for,
    attributes,
    events,
)

import trifle_otel as trifle


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


class RefusedError(Exception):
    """An exception of the job's own."""


@pytest.mark.parametrize("kind", [RefusedError, ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
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
    with trifle.tracer("a/job"), trifle.block("Outer"), pytest.raises(RefusedError):
        fail_in("Inner", RefusedError("caught"))
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


def test_an_exception_in_the_place_of_one_that_was_let_go_of_is_an_event(sdk: Sdk) -> None:
    """One of the same class, which lies where the other lay in memory, but raised elsewhere, is told."""

    def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Outer"):
            first = ValueError("first")
            place = id(first)
            with contextlib.suppress(ValueError):
                fail_in("Inner", first)
            del first
            fresh = [ValueError("second") for _ in range(1000)]
            raise next((error for error in fresh if id(error) == place), fresh[0])

    with pytest.raises(ValueError, match="second"):
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
    with pytest.raises(RefusedError), trifle.tracer("outer"), trifle.block("Step"), trifle.tracer("inner"):
        raise RefusedError("no")
    assert exceptions(sdk) == [("inner", "no")]
    assert {span.name: span.status.description for span in sdk.spans} == dict.fromkeys(("inner", "Step", "outer"), "no")


async def test_exceptions_of_concurrent_tasks_are_one_event_each(sdk: Sdk) -> None:
    """Where several tasks fail in one block, each exception is told once."""

    async def task(name: str) -> None:
        await asyncio.sleep(0)
        fail_in(name, RefusedError(name))

    async def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Outer"):
            found = await asyncio.gather(*(task(f"task {number}") for number in range(3)), return_exceptions=True)
            raise next(error for error in found if error is not None)

    with pytest.raises(RefusedError, match="task 0"):
        await run()
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
