"""Where the current block travels: tasks, threads, copies of contexts, generators of every kind; and what it leaves.

Each test ends with a look at what nobody may see: a context other than before, or OpenTelemetry
complaining that a token was made in a different one.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import logging
import sys
import threading
import types
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from types import FrameType
from typing import Any, cast

import pytest
from opentelemetry import trace as otel
from opentelemetry.context import Context, attach, detach, get_current, get_value, set_value
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.recording import Recording

Line = tuple[int, str]


@pytest.fixture(autouse=True)
def nothing_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What was current before a test is current after it, and no context was ever detached in the wrong place."""
    before = get_current()
    with caplog.at_level(logging.DEBUG):
        yield
    assert get_current() is before
    for record in (*caplog.get_records("call"), *caplog.get_records("teardown")):
        text = f"{record.getMessage()} {record.exc_info}"
        assert "detach" not in text
        assert "different Context" not in text
        assert "asynchronous generator" not in text


@pytest.fixture
def provider() -> TracerProvider:
    """An SDK's provider whose spans record."""
    return TracerProvider(shutdown_on_exit=False)


@pytest.fixture(params=["archive alone", "with spans"])
def archive(request: pytest.FixtureRequest, provider: TracerProvider) -> Archive:
    """An archive in memory: without an SDK, and with one whose spans record."""
    if request.param == "archive alone":
        return trifle.configure("memory:")
    return trifle.configure("memory:", tracer_provider=provider)


def lines(archive: Archive) -> list[Line]:
    """Level and message of each entry of the only trace, but for the first."""
    assert trifle.flush(5)
    [record] = archive.search().records
    return [(entry.level, entry.message) for entry in archive.entries(record)][1:]


def states(archive: Archive) -> dict[str, str]:
    """The state of the line that closes each block of the only trace."""
    assert trifle.flush(5)
    [record] = archive.search().records
    return {e.message[:-2]: e.state for e in archive.entries(record) if e.message.endswith(" ↵")}


def tree(archive: Archive) -> dict[str, tuple[str, list[str]]]:
    """For each block of the only trace, paired by span: the block around it, and its lines."""
    assert trifle.flush(5)
    [record] = archive.search().records
    entries = archive.entries(record)
    names = {entry.span: entry.message[:-2] for entry in entries if entry.message.endswith(" ↴")}
    names[record.span_id] = "root"
    found: dict[str, tuple[str, list[str]]] = {
        names[entry.span]: (names[entry.stored["parent"]], []) for entry in entries if "parent" in entry.stored
    }
    for entry in entries[1:]:
        name = names[entry.span]
        if entry.type != "raw" and not entry.message.endswith((" ↴", " ↵")) and name != "root":
            found[name][1].append(entry.message)
    return found


def block(name: str, *inner: Line) -> list[Line]:
    """The lines of a block at the top, with what lies in it, and no result."""
    return [(0, f"{name} ↴"), *inner, (0, f"{name} ↵"), (0, "↳ None")]


# --- tasks


async def test_concurrent_tasks_in_one_trace_each_nest_on_their_own(archive: Archive) -> None:
    """Blocks of `gather`ed coroutines interleave, yet each line lies in its own task's block, two levels deep."""
    turns = {name: asyncio.Event() for name in "ab"}

    async def work(name: str, other: str) -> str:
        with trifle.block(f"outer {name}"):
            turns[other].set()
            await turns[name].wait()
            trifle.trace(f"line {name}")
            async with trifle.block(f"inner {name}") as step:
                await asyncio.sleep(0)
                trifle.trace(f"deep {name}")
                step.result(name)
        return name

    async with trifle.tracer("a/job"):
        with trifle.block("all"):
            assert list(await asyncio.gather(work("a", "b"), work("b", "a"))) == ["a", "b"]
            trifle.trace("after")
    assert tree(archive) == {
        "all": ("root", ["after"]),
        "outer a": ("all", ["line a"]),
        "inner a": ("outer a", ["deep a"]),
        "outer b": ("all", ["line b"]),
        "inner b": ("outer b", ["deep b"]),
    }
    found = lines(archive)
    assert found.index((1, "outer b ↴")) < found.index((1, "outer a ↵"))
    assert [level for level, message in found if message.startswith("deep")] == [3, 3]


async def test_decorated_coroutines_run_at_once_each_in_a_block_of_its_own(archive: Archive) -> None:
    """One decorated coroutine function, called concurrently and recursively, opens a fresh block for each call."""

    @trifle.block("Step")
    async def step(depth: int) -> int:
        await asyncio.sleep(0)
        trifle.trace(f"depth {depth}")
        return 0 if depth == 0 else 1 + await step(depth - 1)

    async with trifle.tracer("a/job"):
        assert list(await asyncio.gather(step(2), step(1), step(0))) == [2, 1, 0]
        assert get_current() is not None
    results = sorted(line for line in lines(archive) if line[1].startswith("↳"))
    assert results == [(0, "↳ 0"), (0, "↳ 1"), (0, "↳ 2"), (1, "↳ 0"), (1, "↳ 1"), (2, "↳ 0")]
    assert sorted(line for line in lines(archive) if line[1].startswith("depth")) == [
        (1, "depth 0"),
        (1, "depth 1"),
        (1, "depth 2"),
        (2, "depth 0"),
        (2, "depth 1"),
        (3, "depth 0"),
    ]


@pytest.mark.parametrize("shared", ["block", "tracer"])
async def test_one_object_entered_by_tasks_at_once_is_left_by_each_for_itself(archive: Archive, shared: str) -> None:
    """A block or tracer object shared by tasks closes the one that its task opened, in any order of leaving."""
    manager: Any = trifle.block("Step") if shared == "block" else trifle.tracer("shared")
    first_out, second_in = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with manager:
            await second_in.wait()
            trifle.trace("first")
        first_out.set()

    async def second() -> None:
        async with manager:
            second_in.set()
            await first_out.wait()
            trifle.trace("second")

    async def outside() -> None:  # nothing is running here
        async with manager:
            await second_in.wait()

    elsewhere = clean_context().run(asyncio.create_task, outside()) if shared == "block" else None
    if shared == "block":
        async with trifle.tracer("a/job"):
            await asyncio.gather(first(), second())
    else:
        await asyncio.gather(first(), second())
    if elsewhere is not None:
        await elsewhere
    assert trifle.flush(5)
    if shared == "tracer":
        found = [[entry.message for entry in archive.entries(record)][1:] for record in archive.search().records]
        assert sorted(found) == [["first"], ["second"]]
        return
    assert [message for _, message in lines(archive)] == [
        "Step ↴",
        "Step ↴",
        "first",
        "Step ↵",
        "↳ None",
        "second",
        "Step ↵",
        "↳ None",
    ]
    [record] = archive.search().records
    spans = [entry.span for entry in archive.entries(record)][1:]
    assert spans[0] == spans[2] == spans[3]
    assert spans[1] == spans[5] == spans[6]


def clean_context() -> contextvars.Context:
    """A context in which nothing is current."""
    context = copy_context()
    context.run(attach, Context())
    return context


async def test_a_task_that_outlives_its_trace_is_counted_and_leaves_cleanly(archive: Archive) -> None:
    """The end closes the task's block; what the task says later is late, and its context is its own."""
    go = asyncio.Event()

    @trifle.block("Straggler")
    async def straggle() -> None:
        await go.wait()
        trifle.trace("too late")

    async with trifle.tracer("a/job") as job:
        task = asyncio.create_task(straggle())
        await asyncio.sleep(0)
    go.set()
    await task
    assert lines(archive) == block("Straggler")
    assert job.late == 1


async def test_a_cancelled_task_closes_its_blocks_as_errors(archive: Archive) -> None:
    """CancelledError passes through blocks of every form, and the job's other tasks go on."""

    @trifle.block("Decorated")
    async def work() -> None:
        async with trifle.block("Inner"):
            await asyncio.Event().wait()

    async with trifle.tracer("a/job"):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        trifle.trace("goes on")
    assert states(archive) == {"Decorated": "error", "Inner": "error"}
    assert lines(archive)[-1] == (0, "goes on")


def test_a_coroutine_that_is_dropped_half_way_leaves_other_contexts_alone(archive: Archive) -> None:
    """A coroutine closed from elsewhere closes its block, and does not touch what is current there."""

    @trifle.block("Dropped")
    async def work() -> None:
        with trifle.block("Inner"):
            await asyncio.sleep(3600)

    async def main() -> Coroutine[Any, Any, None]:
        waiting = work()
        inside = copy_context()
        inside.run(waiting.send, None)
        return waiting

    with trifle.tracer("a/job"):
        within = get_current()
        loop = asyncio.new_event_loop()
        waiting = loop.run_until_complete(main())
        with trifle.block("Elsewhere"):
            waiting.close()
            trifle.trace("line")
        assert get_current() is within
        loop.close()
    assert (1, "line") in lines(archive)
    assert tree(archive)["Elsewhere"] == ("root", ["line"])


# --- copies, threads, executors


def test_a_copy_of_the_context_goes_on_in_its_block(archive: Archive) -> None:
    """What runs in a copied context lies in the block that was current when it was copied."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            copied = copy_context()
            copied.run(trifle.trace, "within")
        trifle.trace("outside")
    assert lines(archive) == [*block("Step", (1, "within")), (0, "outside")]


def in_thread(function: Callable[[], object]) -> None:
    """Run it in a thread, to its end."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def threads_carry_context() -> Iterator[None]:
    """OpenTelemetry's instrumentation of threads and executors."""
    instrumentor = ThreadingInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


@pytest.mark.usefixtures("threads_carry_context")
def test_instrumented_threads_and_executors_nest_where_they_were_started(archive: Archive) -> None:
    """A thread, a timer and an executor's work record into the block around their start, with blocks of their own."""

    def work(name: str) -> None:
        with trifle.block(f"in {name}"):
            trifle.trace(f"line {name}")

    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            in_thread(lambda: work("thread"))
            with ThreadPoolExecutor(1) as pool:
                pool.submit(work, "executor").result(10)
                assert list(pool.map(work, ["map"])) == [None]
        trifle.trace("after")
    assert tree(archive) == {
        "Step": ("root", []),
        "in thread": ("Step", ["line thread"]),
        "in executor": ("Step", ["line executor"]),
        "in map": ("Step", ["line map"]),
    }
    assert lines(archive)[-1] == (0, "after")


@pytest.mark.usefixtures("threads_carry_context")
def test_threads_at_once_each_nest_on_their_own(archive: Archive) -> None:
    """Two threads with open blocks at the same time do not nest in one another."""
    barrier = threading.Barrier(2, timeout=10)

    def work(name: str) -> None:
        with trifle.block(f"outer {name}"):
            barrier.wait()
            with trifle.block(f"inner {name}"):
                barrier.wait()
                trifle.trace(f"line {name}")

    with trifle.tracer("a/job"), ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["a", "b"]))
    assert tree(archive) == {
        "outer a": ("root", []),
        "inner a": ("outer a", ["line a"]),
        "outer b": ("root", []),
        "inner b": ("outer b", ["line b"]),
    }


def test_a_bare_thread_records_nothing_until_the_trace_is_attached(archive: Archive) -> None:
    """`attach` by hand makes the trace current in another thread, at its top level, and puts back what was there."""
    seen: list[object] = []

    def work(job: Any) -> None:
        attach(set_value("mine", 1))
        before = get_current()
        trifle.trace("nowhere")
        with trifle.attach(job) as attached:
            seen.append(attached is job and trifle.current() is job)
            seen.append(get_value("mine"))
            trifle.trace("line")
            with trifle.block("Thread's"):
                trifle.trace("deep")
        seen.append(get_current() is before)
        trifle.trace("nowhere")

    with trifle.tracer("a/job") as job, trifle.block("Step"):
        in_thread(lambda: work(job))
    assert seen == [True, 1, True]
    assert tree(archive) == {"Step": ("root", []), "Thread's": ("root", ["deep"])}
    assert (0, "line") in lines(archive)


def test_a_trace_that_ends_while_it_is_attached_is_no_error(archive: Archive) -> None:
    """The thread that attaches it goes on, and nothing is current in it."""
    attaching, ended = threading.Event(), threading.Event()

    def pause(frame: FrameType, event: str, argument: object) -> None:
        del argument
        if event == "call" and frame.f_code is Recording.context_in.__code__:
            attaching.set()
            ended.wait(10)

    def work(job: Recording, found: list[object]) -> None:
        sys.setprofile(pause)
        try:
            with trifle.attach(job):
                found.append(trifle.current())
        except AttributeError as error:
            found.append(error)

    found: list[object] = []
    with trifle.tracer("a/job") as job:
        thread = threading.Thread(target=work, args=(job, found))
        thread.start()
        assert attaching.wait(10)
    ended.set()
    thread.join()
    assert found == [None]


def test_attach_makes_the_trace_s_span_current_where_it_has_one(provider: TracerProvider) -> None:
    """Other instrumentations' spans in that thread become its children."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trifle.configure("memory:", tracer_provider=provider)

    def work(job: Any) -> None:
        with trifle.attach(job):
            provider.get_tracer("other").start_span("theirs").end()

    with trifle.tracer("a/job") as job:
        in_thread(lambda: work(job))
    theirs, ours = exporter.get_finished_spans()
    assert theirs.parent == ours.context


def test_attach_without_an_sdk_makes_no_ids_current(archive: Archive) -> None:
    """Ids made up for the archive never reach OpenTelemetry's context: a sampler downstream would heed them."""
    if archive.search().records:
        pytest.fail("the archive is new")
    from trifle_otel.runtime import runtime

    with trifle.tracer("a/job") as job:
        valid = otel.get_current_span().get_span_context().is_valid
        assert valid is (runtime().settings.tracer_provider is not None)
        in_thread(lambda: _check_attached(job, valid))


def _check_attached(job: Any, valid: bool) -> None:
    with trifle.attach(job):
        assert otel.get_current_span().get_span_context().is_valid is valid


# --- generators


@trifle.block("Generated")
def numbers(count: int) -> Generator[int, Any, str]:
    """Yield numbers, saying so, with a block around each second yield."""
    for number in range(count):
        trifle.trace(f"makes {number}")
        if number % 2:
            with trifle.block(f"Around {number}"):
                yield number
                trifle.trace(f"again {number}")
        else:
            yield number
    return "done"


def test_a_generator_s_block_is_open_while_it_is_consumed_and_only_inside_it(archive: Archive) -> None:
    """Lines of the body lie in its block, nested blocks that span a yield included; the consumer's lie outside."""
    with trifle.tracer("a/job"):
        within = get_current()
        for number in numbers(3):
            assert get_current() is within
            trifle.trace(f"takes {number}")
        assert get_current() is within
    assert lines(archive) == [
        (0, "Generated ↴"),
        (1, "makes 0"),
        (0, "takes 0"),
        (1, "makes 1"),
        (1, "Around 1 ↴"),
        (0, "takes 1"),
        (2, "again 1"),
        (1, "Around 1 ↵"),
        (1, "↳ None"),
        (1, "makes 2"),
        (0, "takes 2"),
        (0, "Generated ↵"),
        (0, "↳ 'done'"),
    ]


def test_a_generator_s_block_opens_with_its_first_step(archive: Archive) -> None:
    """One that is made and never consumed leaves nothing."""
    with trifle.tracer("a/job"):
        made = numbers(3)
        trifle.trace("line")
        del made
    assert lines(archive) == [(0, "line")]


def _close(generator: Generator[int, Any, Any]) -> None:
    generator.close()


def _collect(generator: Generator[int, Any, Any]) -> None:
    cycle: list[Any] = [generator]
    cycle.append(cycle)
    del generator, cycle
    gc.collect()


def _break(generator: Generator[int, Any, Any]) -> None:
    for _ in generator:
        break


@pytest.mark.parametrize("abandon", [_close, _collect, _break])
def test_a_generator_that_is_abandoned_ends_its_block_cleanly(
    archive: Archive, abandon: Callable[[Generator[int, Any, Any]], None]
) -> None:
    """Closed, collected or broken out of: the block ends without an error, in the state that it was given."""

    @trifle.block("Abandoned", state="debug")
    def body() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            trifle.trace("cleans up")

    def consume() -> None:
        generator = body()
        assert next(generator) == 1
        abandon(generator)

    with trifle.tracer("a/job"):
        within = get_current()
        with trifle.block("Consumer"):
            consume()
            gc.collect()
            trifle.trace("goes on")
        assert get_current() is within
    assert states(archive)["Abandoned"] == "debug"
    assert tree(archive) == {"Consumer": ("root", ["goes on"]), "Abandoned": ("Consumer", ["cleans up"])}


def test_a_generator_collected_after_its_trace_or_in_a_thread_touches_no_context(archive: Archive) -> None:
    """Its end is silent wherever that comes: the trace has closed its block already."""

    @trifle.block("Long")
    def body() -> Generator[int, None, None]:
        with trifle.block("Inner"):
            yield 1

    with trifle.tracer("a/job"):
        late, elsewhere = body(), body()
        next(late)
        next(elsewhere)
        in_thread(elsewhere.close)
    late.close()
    with trifle.tracer("another"):
        within = get_current()
        third = body()
        next(third)
        in_thread(lambda: _check_closed_elsewhere(third))
        assert get_current() is within
    assert trifle.flush(5)


def _check_closed_elsewhere(generator: Generator[int, None, None]) -> None:
    before = get_current()
    generator.close()
    assert get_current() is before


def test_a_generator_is_sent_values_and_gives_its_return_value(archive: Archive) -> None:
    """`send`, `yield from` and the value of StopIteration work as without the decorator."""

    @trifle.block("Echo")
    def echo() -> Generator[str, str, int]:
        count = 0
        got = yield "ready"
        while got != "stop":
            trifle.trace(f"got {got}")
            count += 1
            got = yield got.upper()
        return count

    def delegating() -> Generator[str, str, int]:
        return (yield from echo())

    with trifle.tracer("a/job"):
        for make in (echo, delegating):
            generator = make()
            assert next(generator) == "ready"
            assert generator.send("a") == "A"
            with pytest.raises(StopIteration) as stop:
                generator.send("stop")
            assert stop.value.value == 1
    assert lines(archive)[:4] == [(0, "Echo ↴"), (1, "got a"), (0, "Echo ↵"), (0, "↳ 1")]


def test_an_exception_thrown_into_a_generator_is_the_body_s_to_handle(archive: Archive) -> None:
    """Caught, the generator goes on; not caught, it passes as the same object and the block is an error."""

    @trifle.block("Thrown")
    def body() -> Generator[int, None, None]:
        try:
            yield 1
        except KeyError as error:
            trifle.trace(f"caught {error}")
        yield 2

    with trifle.tracer("a/job"):
        within = get_current()
        generator = body()
        next(generator)
        assert generator.throw(KeyError("x")) == 2
        fault = ValueError("not caught")
        with pytest.raises(ValueError, match="not caught") as raised:
            generator.throw(fault)
        assert raised.value is fault
        assert fault.__context__ is None
        assert get_current() is within
        assert list(generator) == []
    assert lines(archive)[1] == (1, "caught 'x'")
    assert states(archive) == {"Thrown": "error"}


def test_a_generator_that_raises_closes_its_block_as_an_error(archive: Archive) -> None:
    """Its own exception passes, and blocks inside it are errors too."""

    @trifle.block("Raises")
    def body() -> Generator[int, None, None]:
        yield 1
        with trifle.block("Inner"):
            raise LookupError("gone")

    with trifle.tracer("a/job"):
        generator = body()
        next(generator)
        with pytest.raises(LookupError, match="gone"):
            next(generator)
    assert states(archive) == {"Raises": "error", "Inner": "error"}


def test_a_generator_that_will_not_close_says_so_as_ever(archive: Archive) -> None:
    """Ignoring GeneratorExit is Python's own error, and the context is restored."""

    @trifle.block("Stubborn")
    def body() -> Generator[int, None, None]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                yield 2
                return

    with trifle.tracer("a/job"):
        within = get_current()
        generator = body()
        next(generator)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            generator.close()
        assert get_current() is within
        del generator
        gc.collect()
    assert "Stubborn" in states(archive)


def test_a_generator_keeps_apart_from_what_its_consumer_does_to_the_context(archive: Archive) -> None:
    """What the consumer attaches between two steps stays current for it; the body's stays the body's."""

    @trifle.block("Body")
    def body() -> Generator[object, None, None]:
        token = attach(set_value("body", "b"))
        yield (get_value("body"), get_value("consumer"))
        yield (get_value("body"), get_value("consumer"))
        detach(token)
        yield (get_value("body"), get_value("consumer"))

    with trifle.tracer("a/job"):
        generator = body()
        assert next(generator) == ("b", None)
        assert get_value("body") is None
        token = attach(set_value("consumer", "c"))
        with trifle.block("Consumer"):
            assert next(generator) == ("b", None)
            assert get_value("consumer") == "c"
            trifle.trace("consumer's line")
        assert next(generator) == (None, None)
        detach(token)
        assert list(generator) == []
        assert get_value("consumer") is None
    assert tree(archive) == {"Body": ("root", []), "Consumer": ("root", ["consumer's line"])}


def test_recursive_generators_nest(archive: Archive) -> None:
    """Each call of a decorated generator has a block of its own, inside the one that consumes it."""

    @trifle.block("Walk")
    def walk(depth: int) -> Iterator[int]:
        yield depth
        if depth:
            yield from walk(depth - 1)

    with trifle.tracer("a/job"):
        assert list(walk(2)) == [2, 1, 0]
    assert [line for line in lines(archive) if line[1].endswith("↴")] == [(0, "Walk ↴"), (1, "Walk ↴"), (2, "Walk ↴")]


def test_two_generators_consumed_in_turns_do_not_nest(archive: Archive) -> None:
    """Interleaved steps of two generators each lie in their own block."""
    with trifle.tracer("a/job"):
        assert list(zip(numbers(2), numbers(2), strict=True)) == [(0, 0), (1, 1)]
    assert [line for line in lines(archive) if "Generated" in line[1]] == [
        (0, "Generated ↴"),
        (0, "Generated ↴"),
        (0, "Generated ↵"),
        (0, "Generated ↵"),
    ]


def test_a_generator_consumed_by_threads_in_turn_records_into_its_trace(archive: Archive) -> None:
    """Each step runs in the generator's own context, whichever thread takes it."""
    with trifle.tracer("a/job"):
        generator = numbers(3)
        next(generator)
        in_thread(lambda: next(generator))
        assert list(generator) == [2]
    assert [message for _, message in lines(archive) if message.startswith("makes")] == [
        "makes 0",
        "makes 1",
        "makes 2",
    ]
    assert states(archive) == {"Generated": "success", "Around 1": "success"}


def test_a_decorated_generator_of_a_trace_is_one_execution(archive: Archive) -> None:
    """`tracer` on a generator: the trace runs while it is consumed, and ends without an error when abandoned."""

    @trifle.tracer("a/job")
    def job() -> Generator[int, None, None]:
        trifle.trace("one")
        yield 1
        trifle.trace("two")
        yield 2

    for _ in job():
        assert trifle.current() is None
        break
    gc.collect()
    assert lines(archive) == [(0, "one")]
    [record] = archive.search().records
    assert record.state == "success"


def test_a_block_left_open_in_a_plain_generator_does_not_outlast_the_trace(archive: Archive) -> None:
    """A `with` block around a yield of an undecorated generator leaks while it runs, but not beyond its trace."""

    def body() -> Generator[int, None, None]:
        with trifle.block("Leaks"):
            yield 1

    before = get_current()
    try:
        with trifle.tracer("a/job"):
            generator = body()
            next(generator)
        assert get_current() is before
        generator.close()
        assert get_current() is before
    finally:
        attach(before)
    assert lines(archive) == block("Leaks")


def test_what_a_job_attached_and_forgot_does_not_outlast_the_trace(archive: Archive) -> None:
    """A value that a block's code put into OpenTelemetry's context without taking it back goes with the block."""
    before = get_current()
    try:
        with trifle.tracer("a/job"):
            within = get_current()
            with trifle.block("Step"):
                attach(set_value("forgotten", 1))
            assert get_current() is within
            trifle.trace("line")
        assert get_current() is before
    finally:
        attach(before)
    assert lines(archive) == [*block("Step"), (0, "line")]


def test_blocks_left_out_of_order_leave_nothing_current(archive: Archive) -> None:
    """Where the outer of two blocks is left first, lines after both lie in neither."""
    before = get_current()
    try:
        with trifle.tracer("a/job"):
            outer, inner = trifle.block("outer"), trifle.block("inner")
            outer.__enter__()
            inner.__enter__()
            outer.__exit__(None, None, None)
            inner.__exit__(None, None, None)
            trifle.trace("line")
        assert get_current() is before
    finally:
        attach(before)
    assert lines(archive)[-1] == (0, "line")


# --- asynchronous generators


@trifle.block("Generated")
async def async_numbers(count: int) -> AsyncGenerator[int, Any]:
    """Yield numbers, saying so, with a block around each second yield."""
    for number in range(count):
        await asyncio.sleep(0)
        trifle.trace(f"makes {number}")
        if number % 2:
            with trifle.block(f"Around {number}"):
                yield number
                trifle.trace(f"again {number}")
        else:
            yield number


async def test_an_async_generator_s_block_is_open_while_it_is_consumed_and_only_inside_it(archive: Archive) -> None:
    """Lines of the body lie in its block, nested blocks that span a yield included; the consumer's lie outside."""
    async with trifle.tracer("a/job"):
        within = get_current()
        async for number in async_numbers(3):
            assert get_current() is within
            trifle.trace(f"takes {number}")
        assert get_current() is within
    assert lines(archive) == [
        (0, "Generated ↴"),
        (1, "makes 0"),
        (0, "takes 0"),
        (1, "makes 1"),
        (1, "Around 1 ↴"),
        (0, "takes 1"),
        (2, "again 1"),
        (1, "Around 1 ↵"),
        (1, "↳ None"),
        (1, "makes 2"),
        (0, "takes 2"),
        (0, "Generated ↵"),
        (0, "↳ None"),
    ]


async def test_an_async_generator_is_sent_values_and_exceptions(archive: Archive) -> None:
    """`asend` and `athrow` work as without the decorator; what is not caught passes as the same object."""

    @trifle.block("Echo")
    async def echo() -> AsyncGenerator[str, str]:
        got = yield "ready"
        while True:
            try:
                got = yield got.upper()
            except KeyError:
                trifle.trace("caught")
                got = "again"

    async with trifle.tracer("a/job"):
        within = get_current()
        generator = echo()
        assert await generator.asend(cast(str, None)) == "ready"
        assert await generator.asend("a") == "A"
        assert await generator.athrow(KeyError("x")) == "AGAIN"
        fault = ValueError("not caught")
        with pytest.raises(ValueError, match="not caught") as raised:
            await generator.athrow(fault)
        assert raised.value is fault
        assert get_current() is within
    assert (1, "caught") in lines(archive)
    assert states(archive) == {"Echo": "error"}


async def test_an_async_generator_that_is_closed_ends_its_block_cleanly(archive: Archive) -> None:
    """`aclose` lets the body clean up in its own context, waiting included, and the block is no error."""

    @trifle.block("Closed", state="debug")
    async def body() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            trifle.trace("cleans up")

    async with trifle.tracer("a/job"):
        within = get_current()
        async with aclosing(body()) as generator:
            async for _ in generator:
                break
        assert get_current() is within
    assert lines(archive) == block("Closed", (1, "cleans up"))
    assert states(archive) == {"Closed": "debug"}


async def _until(done: asyncio.Event) -> None:
    gc.collect()
    await asyncio.wait_for(done.wait(), 10)


async def test_an_async_generator_that_is_dropped_is_closed_by_the_event_loop(archive: Archive) -> None:
    """The loop's hook closes what is collected half-way; the body cleans up, the consumer's context is untouched."""
    cleaned = asyncio.Event()

    @trifle.block("Dropped")
    async def body() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            trifle.trace("cleans up")
            cleaned.set()

    async def consume() -> None:
        async for _ in body():
            break

    async with trifle.tracer("a/job"):
        within = get_current()
        with trifle.block("Consumer"):
            await consume()
        await _until(cleaned)
        await asyncio.sleep(0)
        assert get_current() is within
    assert tree(archive) == {"Consumer": ("root", []), "Dropped": ("Consumer", ["cleans up"])}
    assert states(archive)["Dropped"] == "success"


def test_async_generators_still_open_when_the_loop_ends_are_closed_in_silence(
    archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    """`asyncio.run` closes all that it knows of at once: a decorated generator and its body do not collide."""
    cleaned: list[str] = []
    kept: list[AsyncIterator[int]] = []

    @trifle.block("Open")
    async def body(name: str) -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    async def main() -> None:
        async with trifle.tracer("a/job"):
            for name in ("a", "b", "c"):
                generator = body(name)
                kept.append(generator)
                await generator.__anext__()

    asyncio.run(main())
    assert sorted(cleaned) == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelno >= 30] == []
    assert len([line for line in lines(archive) if line == (0, "Open ↵")]) == 3


async def test_a_cancelled_consumer_cancels_the_body_of_its_async_generator(archive: Archive) -> None:
    """CancelledError reaches the body where it waits, and the blocks are errors."""

    @trifle.block("Waits")
    async def body() -> AsyncGenerator[int, None]:
        yield 1
        with trifle.block("Inner"):
            await asyncio.Event().wait()

    async def consume() -> None:
        async for _ in body():
            trifle.trace("takes")

    async with trifle.tracer("a/job"):
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert states(archive) == {"Waits": "error", "Inner": "error"}


async def test_an_async_generator_may_take_each_step_in_another_task(archive: Archive) -> None:
    """Each step runs in the generator's own context, whichever task takes it."""
    async with trifle.tracer("a/job"):
        generator = async_numbers(3)
        taken = [await asyncio.create_task(anext_of(generator)) for _ in range(3)]
        assert taken == [0, 1, 2]
        await generator.aclose()
    assert [line for line in lines(archive) if "makes" in line[1]] == [(1, f"makes {n}") for n in range(3)]
    assert states(archive) == {"Generated": "success", "Around 1": "success"}


async def anext_of(generator: AsyncIterator[int]) -> int:
    """The next item, as a coroutine."""
    return await generator.__anext__()


class Pause:
    """Something to wait for without an event loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def test_an_async_generator_closed_while_it_waits_touches_no_other_context(archive: Archive) -> None:
    """Where a step is thrown out of while it waits, by code of another context, that context stays as it is."""

    @trifle.block("Waits")
    async def body() -> AsyncGenerator[int, None]:
        await Pause()
        yield 1

    with trifle.tracer("a/job"):
        generator = body()
        step = generator.asend(None)
        copy_context().run(step.send, None)
        with trifle.block("Elsewhere"):
            here = get_current()
            with pytest.raises(GeneratorExit):
                step.throw(GeneratorExit())
            assert get_current() is here
    assert states(archive) == {"Waits": "success", "Elsewhere": "success"}


async def test_an_async_generator_of_a_trace_is_one_execution(archive: Archive) -> None:
    """`tracer` on an asynchronous generator: the trace runs while it is consumed."""

    @trifle.tracer("a/job")
    async def job() -> AsyncGenerator[int, None]:
        trifle.trace("one")
        yield 1
        trifle.trace("two")

    async for _ in job():
        assert trifle.current() is None
    assert lines(archive) == [(0, "one"), (0, "two")]


# --- what is given to `trace`


async def test_a_coroutine_function_given_to_trace_keeps_its_block_open(archive: Archive) -> None:
    """The call gives a coroutine; its block lasts until that has been awaited, and its value is the result."""

    async def load() -> int:
        await asyncio.sleep(0)
        trifle.trace("loading")
        return 9

    async with trifle.tracer("a/job"):
        coroutine = trifle.trace("Load", load)
        trifle.trace("not yet")
        assert await coroutine == 9
    assert lines(archive) == [(0, "not yet"), (0, "Load ↴"), (1, "loading"), (0, "Load ↵"), (0, "↳ 9")]


@pytest.mark.parametrize("how", ["lambda", "partial", "object", "decorated lambda"])
async def test_a_callable_that_returns_a_coroutine_keeps_its_block_open(archive: Archive, how: str) -> None:
    """Whatever the callable is, a coroutine that comes out of it is awaited inside the block, and the caller's not."""

    async def load(value: int = 9) -> int:
        await asyncio.sleep(0)
        trifle.trace("loading")
        return value

    class Loader:
        async def __call__(self) -> int:
            return await load()

    def start() -> Awaitable[int]:
        if how == "decorated lambda":
            return cast("Awaitable[int]", trifle.block("Load")(lambda: load())())
        calls: dict[str, Callable[[], Awaitable[int]]]
        calls = {"lambda": lambda: load(), "partial": functools.partial(load, 9), "object": Loader()}
        return trifle.trace("Load", calls[how])

    async with trifle.tracer("a/job"):
        within = get_current()
        coroutine = start()
        assert get_current() is within
        trifle.trace("between")
        with trifle.block("Around"):
            around = get_current()
            assert await coroutine == 9
            assert get_current() is around
    found = lines(archive)
    assert (1, "loading") in found
    assert (0, "↳ 9") in found
    assert (0, "between") in found
    assert tree(archive) == {"Load": ("root", ["loading"]), "Around": ("root", [])}


async def test_a_coroutine_made_here_and_awaited_in_another_task_leaves_that_task_s_context(archive: Archive) -> None:
    """What was current in the task that awaits is current after it."""

    async def load() -> int:
        return 9

    async def wait_for_it(coroutine: Awaitable[int]) -> bool:
        attach(set_value("task", 1))
        before = get_current()
        await coroutine
        return get_current() is before

    async with trifle.tracer("a/job"):
        coroutine = trifle.trace("Load", lambda: load())
        assert await asyncio.create_task(wait_for_it(coroutine))
    assert lines(archive)[-1] == (0, "↳ 9")


def test_generators_given_to_trace_keep_their_block_open(archive: Archive) -> None:
    """A generator function, and a callable that returns a generator: the block lasts while it is consumed."""

    def body() -> Iterator[int]:
        trifle.trace("makes")
        yield 1

    with trifle.tracer("a/job"):
        within = get_current()
        for make in (body, functools.partial(body), lambda: body()):
            for number in trifle.trace("Step", make):
                assert get_current() is within
                trifle.trace(f"takes {number}")
            assert get_current() is within
    once = [(0, "Step ↴"), (1, "makes"), (0, "takes 1"), (0, "Step ↵"), (0, "↳ None")]
    assert lines(archive) == once * 3


async def test_async_generators_given_to_trace_keep_their_block_open(archive: Archive) -> None:
    """An asynchronous generator function, and a callable that returns one."""

    async def body() -> AsyncIterator[int]:
        trifle.trace("makes")
        yield 1

    async with trifle.tracer("a/job"):
        for make in (body, lambda: body()):
            async for number in trifle.trace("Step", make):
                trifle.trace(f"takes {number}")
    once = [(0, "Step ↴"), (1, "makes"), (0, "takes 1"), (0, "Step ↵"), (0, "↳ None")]
    assert lines(archive) == once * 2


def test_a_coroutine_that_is_never_awaited_is_closed_with_the_trace(archive: Archive) -> None:
    """Its block does not stay current, and ends where the trace ends."""

    async def load() -> int:
        return 9

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "was never awaited": that is the point
        with trifle.tracer("a/job"):
            coroutine = trifle.trace("Load", lambda: load())
            trifle.trace("line")
        del coroutine
        gc.collect()
    assert lines(archive) == [(0, "Load ↴"), (0, "line"), (0, "Load ↵"), (0, "↳ None")]


def test_a_coroutine_made_of_a_generator_can_still_be_awaited(archive: Archive) -> None:
    """Code from before `async def`, and what libraries make of generators so that they can be awaited."""

    @types.coroutine
    def step(number: int) -> Generator[None, None, int]:
        yield
        return number

    traced: Callable[[int], Awaitable[int]] = trifle.block("decorated")(step)

    async def job() -> list[int]:
        before = await traced(1)
        with trifle.tracer("job"):
            return [before, await traced(2), await trifle.trace("given", lambda: step(3))]

    assert asyncio.run(job()) == [1, 2, 3]
    assert [message for _, message in lines(archive) if message.startswith("↳")] == ["↳ 2", "↳ 3"]


def test_mocks_and_odd_callables_are_called(archive: Archive) -> None:
    """What a callable claims of itself is not believed: it is called, and its value given."""
    from unittest.mock import MagicMock, Mock

    with trifle.tracer("a/job"):
        for make in (Mock, MagicMock):
            assert trifle.trace("Step", make(return_value=5)) == 5
            assert trifle.block("Step")(make(return_value=6, __name__="odd"))() == 6
            returned = make(spec=int)
            assert trifle.trace("Step", lambda value=returned: value) is returned  # type: ignore[misc]
    assert len([line for line in lines(archive) if line == (0, "Step ↵")]) == 6


# --- what decorated functions are


class Methods:
    """Methods of every kind, decorated."""

    @trifle.block("async method")
    async def method(self) -> int:
        """A coroutine."""
        return 1

    @staticmethod
    @trifle.block("async static")
    async def static() -> int:
        """A coroutine."""
        return 2

    @trifle.block("async class")
    @classmethod
    async def of_class(cls) -> int:
        """A coroutine."""
        return 3

    @trifle.block("generator method")
    def generate(self) -> Iterator[int]:
        """A generator."""
        yield 4


async def test_decorated_functions_are_still_what_they_were(archive: Archive) -> None:
    """`inspect` says the same of a decorated function as before, by blocks and tracers alike, methods included."""

    def plain(value: int, *, named: str = "x") -> int:
        """Documented."""
        return value

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    tests = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.isfunction)
    for function in (plain, coroutine, generator, async_generator):
        for decorator in (trifle.block("Step"), trifle.tracer("a/job")):
            decorated = decorator(cast("Callable[..., Any]", function))
            assert [test(decorated) for test in tests] == [test(function) for test in tests]
            assert inspect.signature(decorated) == inspect.signature(function)
            assert (decorated.__name__, decorated.__doc__) == (function.__name__, function.__doc__)
            assert inspect.unwrap(decorated) is function
    assert inspect.iscoroutinefunction(Methods().method)
    assert inspect.iscoroutinefunction(Methods.static)
    assert inspect.iscoroutinefunction(Methods.of_class)
    async with trifle.tracer("a/job"):
        methods = Methods()
        assert (await methods.method(), await Methods.static(), await methods.of_class()) == (1, 2, 3)
        assert list(methods.generate()) == [4]
    assert [message for _, message in lines(archive) if message.startswith("↳")] == ["↳ 1", "↳ 2", "↳ 3", "↳ None"]


def test_decorated_functions_without_a_trace_do_what_they_did() -> None:
    """Nothing is recorded, and every kind still works: values, sending, throwing, closing, waiting."""
    before = get_current()
    generator = numbers(3)
    assert next(generator) == 0
    with pytest.raises(KeyError):
        generator.throw(KeyError("x"))

    async def consume() -> list[int]:
        taken = [number async for number in async_numbers(3)]
        dropped = async_numbers(3)
        await dropped.__anext__()
        with pytest.raises(KeyError):
            await dropped.athrow(KeyError("x"))
        return taken

    assert asyncio.run(consume()) == [0, 1, 2]
    assert asyncio.run(Methods().method()) == 1
    assert get_current() is before
