"""What it costs that other instrumentations' spans become lines of the trace they are made in.

Each side makes child spans with the SDK alone, as an instrumentation does, in a trace that is opened before the clock
starts and thrown away (`ignore`) after it stops; one provider has `TrifleSpanProcessor`, which it got by itself, the
other has no processor. Neither has an exporter, which would make the bare span dearer and the ratio better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from time import perf_counter

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Tracer

import trifle_otel as trifle
from benchmarks.harness import MICROSECONDS, Row, Timed, compare

KEY = "benchmark/foreign"
MOST = 1.35
"""A bare span, and the 0.35 of it that is ours."""

_Call = Callable[[Tracer], None]


def rows(folder: Path, rounds: int) -> Iterator[Row]:
    """All figures of this module; the archive is made in `folder`."""
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    trifle.configure(archive=folder, tracer_provider=provider, default_mode="deferred")
    watched = provider.get_tracer("benchmarks.client")
    bare = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False).get_tracer("benchmarks.client")
    with trifle.tracer(KEY):  # gives the provider its processor
        trifle.ignore()
    yield _row("another's span in a trace", _inside(watched, _plain), _under(bare, _plain), rounds, MOST)
    yield _row("another's span, of an HTTP call", _inside(watched, _request), _under(bare, _request), rounds, MOST)
    yield _row("another's span, of a statement", _inside(watched, _statement), _under(bare, _statement), rounds, MOST)
    yield _row("another's span, of a call that fails", _inside(watched, _failing), _under(bare, _failing), rounds)
    yield _row("another's span, outside of a trace", _under(watched, _plain), _under(bare, _plain), rounds)
    trifle.shutdown()


def _row(what: str, ours: Timed, theirs: Timed, rounds: int, most: float | None = None) -> Row:
    found = compare(ours, theirs, count=200, rounds=rounds)
    return Row(what, found.ours, MICROSECONDS, "the bare span", found.peer, found.ratio, most)


def _inside(tracer: Tracer, call: _Call) -> Timed:
    """Calls in a trace of ours."""

    def timed(count: int) -> float:
        with trifle.tracer(KEY):
            spent = _loop(tracer, call, count)
            trifle.ignore()
        return spent

    return timed


def _under(tracer: Tracer, call: _Call) -> Timed:
    """Calls in a span that is none of ours."""

    def timed(count: int) -> float:
        with tracer.start_as_current_span("bare"):
            return _loop(tracer, call, count)

    return timed


def _loop(tracer: Tracer, call: _Call, count: int) -> float:
    start = perf_counter()
    for _ in repeat(None, count):
        call(tracer)
    return perf_counter() - start


def _plain(tracer: Tracer) -> None:
    with tracer.start_as_current_span("call"):
        pass


def _request(tracer: Tracer) -> None:
    """What the instrumentation of `requests` sets."""
    given: dict[str, str | int] = {
        "http.request.method": "GET",
        "url.full": "https://rates.example/v1/day/2026-03-02?base=EUR",
        "server.address": "rates.example",
        "server.port": 443,
    }
    with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes=given) as span:
        span.set_attribute("http.response.status_code", 200)
        span.set_attribute("network.protocol.version", "1.1")


def _statement(tracer: Tracer) -> None:
    """What the instrumentation of `sqlite3` sets."""
    given = {
        "db.system": "sqlite",
        "db.name": "shop",
        "db.statement": "SELECT price, currency FROM prices WHERE product = ? AND store = ?",
    }
    with tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT, attributes=given):
        pass


def _failing(tracer: Tracer) -> None:
    try:
        with tracer.start_as_current_span("call"):
            raise ValueError("no rate for that day")
    except ValueError:
        pass
