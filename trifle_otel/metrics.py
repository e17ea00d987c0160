"""OpenTelemetry metrics: of the jobs that are traced, and of our own work.

Where no meter provider is set these are no-ops. What is counted where, is said by the callers:
`delivery` counts what is recorded, `shipper` what becomes of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import metrics as otel
from opentelemetry.metrics import CallbackOptions, Observation

from trifle_otel import conventions as names

if TYPE_CHECKING:
    from trifle_otel.records import TraceRecord

# Seconds: from a job of a few milliseconds to one of hours.
_BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)


class Waiting(NamedTuple):
    """What waits for the archive."""

    traces: int
    bytes: int
    age: float  # seconds, of the oldest


class Metrics:
    """The instruments of one configured process.

    Args:
        waiting: tells what waits; asked when metrics are collected, and let go with its owner.
    """

    def __init__(self, waiting: Callable[[], Waiting]) -> None:
        meter = otel.get_meter("trifle_otel")
        self._traces = meter.create_counter(names.METRIC_TRACES, "{trace}", names.METRICS[names.METRIC_TRACES])
        self._entries = meter.create_counter(names.METRIC_ENTRIES, "{entry}", names.METRICS[names.METRIC_ENTRIES])
        self._duration = meter.create_histogram(
            names.METRIC_DURATION,
            "s",
            names.METRICS[names.METRIC_DURATION],
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._shipped = meter.create_counter(names.METRIC_SHIPPED, "{trace}", names.METRICS[names.METRIC_SHIPPED])
        self._problems = meter.create_counter(names.METRIC_PROBLEMS, "{problem}", names.METRICS[names.METRIC_PROBLEMS])
        _asked[:] = [*(ask for ask in _asked if ask() is not None), weakref.WeakMethod(waiting)]
        for name, unit, observe in (
            (names.METRIC_WAITING, "{trace}", _traces),
            (names.METRIC_WAITING_BYTES, "By", _bytes),
            (names.METRIC_WAITING_AGE, "s", _age),
        ):
            meter.create_observable_gauge(name, [observe], unit, names.METRICS[name])

    def finished(self, record: TraceRecord) -> None:
        """A trace has ended."""
        attributes = {names.KEY: record.key, names.STATE: record.state}
        self._traces.add(1, attributes)
        self._duration.record(record.duration / 1000, attributes)
        self._entries.add(record.length, {names.KEY: record.key})

    def shipped(self, traces: int) -> None:
        """Traces have reached the archive and its index."""
        self._shipped.add(traces)

    def problem(self, what: str, amount: int) -> None:
        """Something went wrong, `amount` times: a retry, a drop, an error of a store."""
        self._problems.add(amount, {names.PROBLEM: what})


_asked: list[weakref.ReferenceType[Callable[[], Waiting]]] = []
"""Who tells what waits. A meter keeps a gauge with its first callback when it is made again, as it is by each
`configure`: so the callbacks are the same ones each time, and ask all that there are."""


def _waiting() -> list[Waiting]:
    return [waiting() for ask in _asked if (waiting := ask()) is not None]


def _traces(options: CallbackOptions) -> Iterable[Observation]:
    del options
    return [Observation(sum(waits.traces for waits in _waiting()))]


def _bytes(options: CallbackOptions) -> Iterable[Observation]:
    del options
    return [Observation(sum(waits.bytes for waits in _waiting()))]


def _age(options: CallbackOptions) -> Iterable[Observation]:
    del options
    return [Observation(max((waits.age for waits in _waiting()), default=0))]
