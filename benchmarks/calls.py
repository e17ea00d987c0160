"""What single calls cost: a line, a block, a step of a generator; with spans that record, without, and without a trace.

Each side is a loop of a few hundred calls inside one trace, which is opened before the clock starts and thrown away
(`ignore`) after it stops; where the end of a span belongs to the price, the span is inside the loop or the clock stops
after its end. The archive is configured as in a job. What a whole trace costs is in `traces`.

Lines are measured twice: as many as a usual trace has, where the few objects of a round are made of memory that is
at hand, so that a bare append is as cheap as it can be; and so many that both sides take new memory, as the first
measurements of this project did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat
from pathlib import Path
from time import perf_counter, time_ns

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import Tracer

import trifle_otel as trifle
from benchmarks.harness import MICROSECONDS, Row, Timed, compare, logger_to_nowhere

MESSAGE = "Freight to zone 2: 24.80 EUR"
KEY = "benchmark/calls"

_bare: ContextVar[list[tuple[int, str, str, str, int]]] = ContextVar("bare")


def rows(folder: Path, rounds: int) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    unsampled = _configure(folder / "unsampled", ALWAYS_OFF)
    yield from _unrecorded(unsampled, rounds)
    yield from _without_a_trace(rounds)
    recording = _configure(folder / "recording", ALWAYS_ON)
    yield from _recorded(recording, rounds)
    trifle.shutdown()


def _unrecorded(tracer: Tracer, rounds: int) -> Iterator[Row]:
    peer = "`list.append((time_ns(), …))` through a ContextVar"
    yield _row("line, span sampled out, 300 in the trace", lines, peer, bare_lines, 300, rounds, most=3)
    few = rounds // 20 + 3
    yield _row("line, span sampled out, 100,000 in the trace", lines, peer, bare_lines, 100_000, few, most=3)
    yield _row("line, span sampled out", lines, "`logging.info` to /dev/null", log_lines, 500, rounds, most=1 / 8)
    peer = "unsampled `start_as_current_span`"
    yield _row("block (`with`), span sampled out", blocks, peer, bare_spans(tracer), 500, rounds, most=0.5)
    peer += " as decorator"
    yield _row("block (decorator), span sampled out", calls, peer, bare_calls(tracer), 500, rounds, most=0.5)
    yield _row("step of a traced generator", steps, "step of a generator", bare_steps, 1000, rounds)


def _without_a_trace(rounds: int) -> Iterator[Row]:
    peer = "call of a function that does nothing"
    yield _row("line, no trace", _loop(_line), peer, _loop(_nothing), 1000, rounds)
    yield _row("block (`with`), no trace", _loop(_block), peer, _loop(_nothing), 1000, rounds)
    yield _row("block (decorator), no trace", _loop(_called), peer, _loop(_nothing), 1000, rounds)


def _recorded(tracer: Tracer, rounds: int) -> Iterator[Row]:
    peer = "`span.add_event`, same attributes"
    yield _row("line, span records, its end included", lines_to_the_end, peer, bare_events(tracer), 100, rounds, 1.25)
    peer = "bare child span with two events"
    full = bare_full_spans(tracer)
    yield _row("block (`with`) of a line and a result, span records", full_blocks, peer, full, 100, rounds, 1.4)
    peer += ", decorator"
    full = bare_full_calls(tracer)
    yield _row("block (decorator) of a line and a result, span records", full_calls, peer, full, 100, rounds, 1.4)


def _row(what: str, ours: Timed, peer: str, theirs: Timed, count: int, rounds: int, most: float | None = None) -> Row:
    found = compare(ours, theirs, count=count, rounds=rounds)
    return Row(what, found.ours, MICROSECONDS, peer, found.peer, found.ratio, most)


def _configure(folder: Path, sampler: Sampler) -> Tracer:
    """An archive in `folder` and a real SDK; gives a tracer of it, for the bare side."""
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    trifle.configure(archive=folder, tracer_provider=provider, default_mode="deferred")
    return provider.get_tracer("bare")


@contextmanager
def _thrown_away() -> Iterator[None]:
    """A trace of which nothing is kept, so that no shipping goes on beside the next measurement."""
    with trifle.tracer(KEY):
        yield
        trifle.ignore()


# -- nothing records


def lines(count: int) -> float:
    """Lines of ours."""
    trace = trifle.trace
    with _thrown_away():
        start = perf_counter()
        for _ in repeat(None, count):
            trace(MESSAGE)
        return perf_counter() - start


def bare_lines(count: int) -> float:
    """The least that a line can be: what it holds, in a list that follows the context."""
    _bare.set([])
    start = perf_counter()
    for _ in repeat(None, count):
        _bare.get().append((time_ns(), MESSAGE, "success", "text", 1))
    return perf_counter() - start


def log_lines(count: int) -> float:
    """The same lines for the logging module."""
    info = logger_to_nowhere().info
    start = perf_counter()
    for _ in repeat(None, count):
        info(MESSAGE)
    return perf_counter() - start


def blocks(count: int) -> float:
    """Blocks of ours as context managers."""
    with _thrown_away():
        return _loop(_block)(count)


def calls(count: int) -> float:
    """Calls of a decorated function of ours."""
    with _thrown_away():
        return _loop(_called)(count)


def bare_spans(tracer: Tracer) -> Timed:
    """Child spans as context managers."""

    def timed(count: int) -> float:
        with tracer.start_as_current_span("bare"):
            start = perf_counter()
            for _ in repeat(None, count):
                with tracer.start_as_current_span(MESSAGE):
                    pass
            return perf_counter() - start

    return timed


def bare_calls(tracer: Tracer) -> Timed:
    """Calls of a function that OpenTelemetry's decorator makes a span of."""

    @tracer.start_as_current_span(MESSAGE)
    def called() -> int:
        return 42

    def timed(count: int) -> float:
        with tracer.start_as_current_span("bare"):
            return _loop(called)(count)

    return timed


def steps(count: int) -> float:
    """Steps of a decorated generator."""
    with _thrown_away():
        return _consume(_traced_numbers(count))


def bare_steps(count: int) -> float:
    """Steps of the same generator, plain."""
    return _consume(_numbers(count))


def _consume(numbers: Iterator[int]) -> float:
    next(numbers)  # opens the block
    start = perf_counter()
    for _ in numbers:
        pass
    return perf_counter() - start


def _numbers(count: int) -> Iterator[int]:
    yield from range(count)


@trifle.block(MESSAGE)
def _traced_numbers(count: int) -> Iterator[int]:
    yield from range(count)


def _loop(function: Callable[[], object]) -> Timed:
    def timed(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            function()
        return perf_counter() - start

    return timed


def _nothing() -> None:
    pass


def _line() -> None:
    trifle.trace(MESSAGE)


def _block() -> None:
    with trifle.block(MESSAGE):
        pass


@trifle.block(MESSAGE)
def _called() -> int:
    return 42


# -- spans record


def lines_to_the_end(count: int) -> float:
    """Lines of ours in one block, and the end of that block: lines reach its span there."""
    trace = trifle.trace
    with _thrown_away():
        with trifle.block("Freight"):
            start = perf_counter()
            for _ in repeat(None, count):
                trace(MESSAGE)
        return perf_counter() - start


def bare_events(tracer: Tracer) -> Timed:
    """The same events on a child span, and the end of it."""

    def timed(count: int) -> float:
        with tracer.start_as_current_span("bare"):
            with tracer.start_as_current_span("Freight") as span:
                start = perf_counter()
                for number in range(count):
                    span.add_event(
                        "trifle.text",
                        {
                            "trifle.text": MESSAGE,
                            "trifle.type": "text",
                            "trifle.state": "success",
                            "trifle.line": number,
                        },
                        time_ns(),
                    )
            return perf_counter() - start

    return timed


def full_blocks(count: int) -> float:
    """Blocks with a line and a result, as context managers."""
    with _thrown_away():
        start = perf_counter()
        for _ in repeat(None, count):
            with trifle.block("Freight") as step:
                trifle.trace(MESSAGE)
                step.result(42)
        return perf_counter() - start


@trifle.block("Freight")
def _full() -> int:
    trifle.trace(MESSAGE)
    return 42


def full_calls(count: int) -> float:
    """Blocks with a line and a result, as decorated functions."""
    with _thrown_away():
        return _loop(_full)(count)


def bare_full_spans(tracer: Tracer) -> Timed:
    """Child spans with the same two events."""

    def timed(count: int) -> float:
        with tracer.start_as_current_span("bare"):
            start = perf_counter()
            for number in range(count):
                with tracer.start_as_current_span("Freight") as span:
                    span.add_event(
                        "trifle.text",
                        {
                            "trifle.text": MESSAGE,
                            "trifle.type": "text",
                            "trifle.state": "success",
                            "trifle.line": number,
                        },
                    )
                    span.add_event("trifle.result", {"trifle.result": repr(42), "trifle.line": number})
            return perf_counter() - start

    return timed


def bare_full_calls(tracer: Tracer) -> Timed:
    """The same in a function that OpenTelemetry's decorator makes a span of."""
    from opentelemetry.trace import get_current_span

    @tracer.start_as_current_span("Freight")
    def called() -> int:
        span = get_current_span()
        span.add_event(
            "trifle.text",
            {"trifle.text": MESSAGE, "trifle.type": "text", "trifle.state": "success", "trifle.line": 1},
        )
        span.add_event("trifle.result", {"trifle.result": repr(42), "trifle.line": 1})
        return 42

    def timed(count: int) -> float:
        with tracer.start_as_current_span("bare"):
            return _loop(called)(count)

    return timed
