"""OpenTelemetry metrics of a receiver. Where no meter provider is set these are no-ops."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from opentelemetry import metrics as otel
from opentelemetry.metrics import CallbackOptions, Observation

from trifle_otel import conventions as names


class ReceiverMetrics:
    """The instruments of one receiver.

    Args:
        waiting: tells how many bytes of accepted requests wait; let go with its owner.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        meter = otel.get_meter("trifle_otel")
        self._requests = meter.create_counter(names.METRIC_REQUESTS, "{request}", names.METRICS[names.METRIC_REQUESTS])
        self._spans = meter.create_counter(names.METRIC_SPANS, "{span}", names.METRICS[names.METRIC_SPANS])
        self._rejected = meter.create_counter(names.METRIC_REJECTED, "{span}", names.METRICS[names.METRIC_REJECTED])
        ask = weakref.WeakMethod(waiting)

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            del options
            waits = ask()
            return [] if waits is None else [Observation(waits())]

        description = names.METRICS[names.METRIC_REQUESTS_WAITING]
        meter.create_observable_gauge(names.METRIC_REQUESTS_WAITING, [observe], "By", description)

    def request(self, outcome: str) -> None:
        """A request was answered."""
        self._requests.add(1, {names.OUTCOME: outcome})

    def spans(self, accepted: int, rejected: int) -> None:
        """A request was taken, with so many spans, and without so many."""
        self._spans.add(accepted)
        if rejected:
            self._rejected.add(rejected)
