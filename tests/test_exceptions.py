"""Exceptions that leave blocks and traces: they pass as they are, and the archive tells of them once."""

from __future__ import annotations

import asyncio
import builtins
import gc
import sys
import traceback
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, cast

import pytest
from opentelemetry.context import attach, get_current
from opentelemetry.sdk.trace import TracerProvider

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord
from trifle_otel.records import Entry

Shape = tuple[int, str, str, str]
Job = Callable[[BaseException], object]


@pytest.fixture(autouse=True)
def context_restored() -> Iterator[None]:
    """What is current before a test is current after it."""
    before = get_current()
    yield
    assert get_current() is before


@pytest.fixture(params=["archive alone", "with spans"])
def archive(request: pytest.FixtureRequest) -> Archive:
    """An archive in memory: without an SDK, and with one whose spans record."""
    if request.param == "archive alone":
        return trifle.configure("memory:")
    return trifle.configure("memory:", tracer_provider=TracerProvider(shutdown_on_exit=False))


def only(archive: Archive) -> TraceRecord:
    """The only trace of an archive, all of it shipped."""
    assert trifle.flush(5)
    [record] = archive.search().records
    return record


def entries(archive: Archive) -> list[Entry]:
    """The entries of the only trace, but for the first."""
    return archive.entries(only(archive))[1:]


def shapes(archive: Archive) -> list[Shape]:
    """Level, type, state and message of those entries."""
    return [(entry.level, entry.type, entry.state, entry.message) for entry in entries(archive)]


# --- jobs of every form, which end with the exception that they are given


@trifle.tracer("a/job")
def decorated(error: BaseException) -> None:
    """A block in a block, as decorators."""

    @trifle.block("Outer")
    def outer() -> None:
        inner()

    @trifle.block("Inner")
    def inner() -> None:
        raise error

    outer()


def managed(error: BaseException) -> None:
    """The same as context managers."""
    with trifle.tracer("a/job"), trifle.block("Outer"), trifle.block("Inner"):
        raise error


def called(error: BaseException) -> None:
    """The same as callables."""

    def inner() -> None:
        raise error

    with trifle.tracer("a/job"):
        trifle.trace("Outer", lambda: trifle.trace("Inner", inner))


def awaited(error: BaseException) -> None:
    """The same as coroutines, driven by hand: an event loop has its own ideas of SystemExit."""

    @trifle.block("Outer")
    async def outer() -> None:
        async with trifle.block("Inner"):
            raise error

    @trifle.tracer("a/job")
    async def job() -> None:
        await outer()

    job().send(None)


def generated(error: BaseException) -> None:
    """The same in generators."""

    @trifle.block("Outer")
    def outer() -> Generator[int, None, None]:
        yield 1
        yield from inner()

    @trifle.block("Inner")
    def inner() -> Generator[int, None, None]:
        yield 2
        raise error

    with trifle.tracer("a/job"):
        list(outer())


def generated_at_once(error: BaseException) -> None:
    """The same in asynchronous generators."""

    @trifle.block("Outer")
    async def outer() -> AsyncGenerator[int, None]:
        async for number in inner():
            yield number

    @trifle.block("Inner")
    async def inner() -> AsyncGenerator[int, None]:
        yield 2
        raise error

    async def job() -> list[int]:
        with trifle.tracer("a/job"):
            return [number async for number in outer()]

    job().send(None)


JOBS: list[Job] = [decorated, managed, called, awaited, generated, generated_at_once]


def run(job: Job, error: BaseException) -> BaseException:
    """What leaves the job."""
    with pytest.raises(type(error)) as raised:
        job(error)
    return raised.value


@pytest.mark.parametrize("job", JOBS)
def test_an_exception_is_told_by_the_closing_lines_and_once_at_the_end(archive: Archive, job: Job) -> None:
    """Blocks close as errors with their result, then come `Exception: …` and the traceback; the state is error."""
    error = run(job, ValueError("no price"))
    [*blocks, line, stack] = shapes(archive)
    assert blocks == [
        (0, "text", "success", "Outer ↴"),
        (1, "text", "success", "Inner ↴"),
        (1, "text", "error", "Inner ↵"),
        (1, "raw", "success", "↳ None"),
        (0, "text", "error", "Outer ↵"),
        (0, "raw", "success", "↳ None"),
    ]
    assert line == (0, "text", "error", "Exception: no price")
    assert stack[:3] == (0, "raw", "success")
    assert stack[3].startswith("Traceback (most recent call last):\n")
    assert stack[3].endswith("\nValueError: no price")
    assert __file__ in stack[3]
    assert only(archive).state == "error"
    assert error.args == ("no price",)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt("stop"),
        SystemExit(3),
        asyncio.CancelledError("cancelled"),
        ValueError("wrong"),
        type("Own", (BaseException,), {})("own"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("job", JOBS)
def test_an_exception_of_any_kind_passes_unmodified(archive: Archive, job: Job, error: BaseException) -> None:
    """The same object leaves, with its arguments, cause, context and the innermost frame of its traceback."""
    cause = LookupError("cause")
    error.__cause__ = cause
    error.__context__ = None
    error.__traceback__ = None
    arguments = error.args
    left = run(job, error)
    assert left is error
    assert error.args == arguments
    assert (error.__cause__, error.__context__) == (cause, None)
    assert not getattr(error, "__notes__", [])
    frames = traceback.extract_tb(error.__traceback__)
    assert frames[-1].line == "raise error"
    assert frames[-1].filename == __file__
    states = {entry.message: entry.state for entry in entries(archive) if entry.message.endswith("↵")}
    assert states == {"Inner ↵": "error", "Outer ↵": "error"}
    assert only(archive).state == "error"


@pytest.mark.parametrize("job", [decorated, managed, called, awaited])
def test_generator_exit_passes_where_nothing_is_generated(archive: Archive, job: Job) -> None:
    """Raised by hand it is an exception as any other."""
    error = GeneratorExit("by hand")
    assert run(job, error) is error
    assert (0, "text", "error", "Exception: by hand") in shapes(archive)
    assert only(archive).state == "error"


def test_an_exception_that_is_caught_inside_leaves_the_trace_alone(archive: Archive) -> None:
    """The block that it left is an error; the trace that handled it succeeded and goes on at its own level."""
    with trifle.tracer("a/job"):
        try:
            with trifle.block("Fails"), trifle.block("Inside"):
                raise ValueError
        except ValueError:
            trifle.trace("handled")
    assert only(archive).state == "success"
    assert shapes(archive)[-1] == (0, "text", "success", "handled")
    assert [state for _, kind, state, message in shapes(archive) if message.endswith("↵")] == ["error", "error"]


def test_the_state_is_error_whatever_was_said_before(archive: Archive) -> None:
    """An exception that leaves the tracer is the last word."""

    @trifle.tracer("a/job")
    def job() -> None:
        trifle.succeed()
        raise ValueError("last")

    with pytest.raises(ValueError, match="last"):
        job()
    assert only(archive).state == "error"


def test_an_exception_in_a_nested_trace_is_told_in_both(archive: Archive) -> None:
    """Each trace that it leaves has its own lines."""
    with pytest.raises(ValueError, match="both"), trifle.tracer("outer"), trifle.tracer("inner"):
        raise ValueError("both")
    assert trifle.flush(5)
    for record in archive.search().records:
        assert record.state == "error"
        assert "Exception: both" in [entry.message for entry in archive.entries(record)]


def test_blocks_still_open_when_an_exception_ends_the_trace_close_innermost_first(archive: Archive) -> None:
    """They are errors: the exception left them too. Then come the lines that tell of it."""

    def held() -> Generator[int, None, None]:
        with trifle.block("outer"), trifle.block("inner"):
            yield 1

    @trifle.block("generated")
    def generate() -> Generator[int, None, None]:
        yield from held()

    @trifle.tracer("a/job")
    def job(generator: Generator[int, None, None]) -> None:
        next(generator)
        raise ValueError("end")

    generator = generate()
    with pytest.raises(ValueError, match="end"):
        job(generator)
    found = [shape for shape in shapes(archive) if "↴" not in shape[3] and "↳" not in shape[3]]
    assert found[:4] == [
        (2, "text", "error", "inner ↵"),
        (1, "text", "error", "outer ↵"),
        (0, "text", "error", "generated ↵"),
        (0, "text", "error", "Exception: end"),
    ]
    generator.close()


def test_the_traceback_tells_causes_and_contexts(archive: Archive) -> None:
    """Chained exceptions are in the raw line, in Python's own words."""

    def job() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second"), trifle.tracer("a/job"):
        job()
    stack = shapes(archive)[-1][3]
    assert stack.index("KeyError: 'first'") < stack.index("direct cause") < stack.index("ValueError: second")


def test_the_traceback_leads_to_where_it_was_raised(archive: Archive) -> None:
    """Its last frame is the job's own line."""
    run(managed, ValueError("where"))
    stack = shapes(archive)[-1][3]
    assert "in managed\n    raise error" in stack


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are Python 3.11's")
def test_an_exception_group_is_told_with_all_that_is_in_it(archive: Archive) -> None:
    """The line says what the group says, and the traceback shows each member."""
    group_type: Any = vars(builtins)["ExceptionGroup"]
    group: Any = group_type("several", [ValueError("one"), group_type("deeper", [KeyError("two")])])
    members = group.exceptions
    assert cast(Any, run(decorated, group)) is group
    assert members is group.exceptions
    *_, line, stack = shapes(archive)
    assert line == (0, "text", "error", "Exception: several (2 sub-exceptions)")
    assert "ValueError: one" in stack[3]
    assert "KeyError: 'two'" in stack[3]


@pytest.mark.parametrize(
    "error, text",
    [
        (ValueError(), "ValueError"),
        (KeyError("name"), "'name'"),
        (SystemExit(), "SystemExit"),
        (OSError(2, "No such file", "a.txt"), "[Errno 2] No such file: 'a.txt'"),
        (ValueError("a", 1), "('a', 1)"),
        (ValueError(b"bytes"), "b'bytes'"),
        (ValueError("nul \0 and \udc80"), "nul ␀ and \\udc80"),
        (ValueError("two\nlines"), "two\nlines"),
    ],
)
def test_the_line_says_what_the_exception_says(archive: Archive, error: BaseException, text: str) -> None:
    """Its text, or its type's name where it has none."""
    run(managed, error)
    assert shapes(archive)[-2] == (0, "text", "error", f"Exception: {text}")


class MuteError(Exception):
    """An exception that cannot be asked what it says."""

    def __str__(self) -> str:
        raise RuntimeError("mute")


class DeadError(MuteError):
    """Nor what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("dead")


class LiarError(Exception):
    """An exception whose text is no text, and whose class is a lie."""

    __class__ = int  # type: ignore[assignment]

    def __str__(self) -> str:
        return cast(str, 7)


@pytest.mark.parametrize(
    "error, text",
    [
        (MuteError("x"), "MuteError('x')"),
        (DeadError("x"), f"<{__name__}.DeadError: repr raised RuntimeError>"),
        (LiarError("x"), "LiarError('x')"),
    ],
    ids=["str raises", "repr raises too", "str gives a number"],
)
@pytest.mark.parametrize("job", JOBS)
def test_an_exception_whose_text_cannot_be_had_passes_all_the_same(
    archive: Archive, job: Job, error: BaseException, text: str
) -> None:
    """It is described, and itself unharmed."""
    with pytest.raises(type(error)) as raised:
        job(error)
    assert raised.value is error
    *_, line, stack = shapes(archive)
    assert line == (0, "text", "error", f"Exception: {text}")
    assert type(error).__name__ in stack[3]
    assert only(archive).state == "error"


def test_an_exception_whose_text_raises_an_interrupt_ends_the_trace_with_it(archive: Archive) -> None:
    """What is no `Exception` passes even out of `__str__`, and what is current is put back."""

    class RudeError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    before = get_current()
    try:
        with pytest.raises((RudeError, KeyboardInterrupt)), trifle.tracer("a/job"):
            raise RudeError
        assert get_current() is before
    finally:
        attach(before)


def test_an_exception_with_a_huge_text_is_offloaded() -> None:
    """Text and traceback become artifacts, as any message over the limit does."""
    archive = trifle.configure("memory:", tracer_provider=TracerProvider(shutdown_on_exit=False))
    text = "ü" * 1_000_000
    run(decorated, ValueError(text))
    *_, line, stack = shapes(archive)
    assert (line[:3], stack[:3]) == ((0, "media", "error"), (0, "media", "success"))
    record = only(archive)
    assert archive.artifact(record, line[3]).decode() == f"Exception: {text}"
    assert archive.artifact(record, stack[3]).decode().endswith(text)


def test_an_endless_recursion_is_told(archive: Archive) -> None:
    """RecursionError leaves thousands of blocks, all of which close."""

    @trifle.block("Deeper")
    def deeper() -> None:
        deeper()

    before = get_current()
    try:
        with pytest.raises(RecursionError), trifle.tracer("a/job"):
            deeper()
        assert get_current() is before
    finally:
        attach(before)
    found = shapes(archive)
    opened = [shape for shape in found if shape[3] == "Deeper ↴"]
    closed = [shape for shape in found if shape[3] == "Deeper ↵"]
    assert len(opened) == len(closed) > 100
    assert {state for _, _, state, _ in closed} == {"error"}
    assert only(archive).state == "error"


class TrackedError(Exception):
    """One whose life is watched."""


@trifle.block("Generated")
def generate() -> Generator[int, None, None]:
    """A generator to throw into."""
    yield 1


@trifle.block("Awaited")
async def wait() -> None:
    """A coroutine that fails."""
    raise TrackedError


@trifle.block("Called")
def fail() -> None:
    """A function that fails."""
    raise TrackedError


def throw() -> None:
    """A generator that is thrown into."""
    generator = generate()
    next(generator)
    generator.throw(TrackedError())


@pytest.mark.parametrize("attempt", [fail, throw, lambda: wait().send(None), lambda: trifle.trace("Called", fail)])
def test_no_reference_to_an_exception_stays(archive: Archive, attempt: Callable[[], object]) -> None:
    """Once it is handled, it and all that its traceback holds are free at once, without the cycle collector."""
    references: list[weakref.ref[TrackedError]] = []
    gc.collect()
    gc.disable()
    try:
        with trifle.tracer("a/job"):
            try:
                attempt()
            except TrackedError as error:
                references.append(weakref.ref(error))
        assert [reference() for reference in references] == [None]
    finally:
        gc.enable()
