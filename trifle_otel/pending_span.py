"""The small span that a trace makes at its start, so that Jaeger and Tempo show a job while it runs.

Spans are exported when they end, so without it a trace is seen when its job is over, and never where that was killed.
The spans of the trace itself and of its blocks are in `live_spans`.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from trifle_otel import conventions as names
from trifle_otel.live_spans import short_name
from trifle_otel.span_events import short_value

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from trifle_otel.live_spans import LiveSpans
    from trifle_otel.recording import Recording

SUFFIX: Final = " (pending)"
"""What its name has after the trace's key."""


def show(recording: Recording, context: Context) -> None:
    """Start and end a small span in the `context` of the trace's own, where that records and the setting says so."""
    spans = recording.spans
    if spans is None or not recording.runtime.settings.pending_span:
        return
    try:
        now = time_ns()
        attributes = _attributes(recording, spans)
        spans.tracer.start_span(_name(recording.key), context=context, attributes=attributes, start_time=now).end(now)
    except Exception as error:  # a sampler or processor of the application's that raises
        recording.runtime.troubles.report("a span could not be started", error)


def _name(key: str) -> str:
    name, most = short_name(key), names.MAX_NAME - len(SUFFIX)
    return (name if len(name) <= most else f"{name[: most - 1]}…") + SUFFIX


def _attributes(recording: Recording, spans: LiveSpans) -> dict[str, Any]:
    found: dict[str, Any] = {names.KEY: short_value(recording.key, spans.value), names.REFERENCE: recording.reference}
    uri = _uri(recording)
    if uri is not None:
        found[names.ARCHIVE] = short_value(uri, spans.value)
    found[names.PENDING] = True
    return found


def _uri(recording: Recording) -> str | None:
    """Where the trace will be kept; None where a callable decides that when the trace has ended."""
    sink, days = recording.runtime.sink, recording.runtime.settings.retention
    if sink is None or (recording.retention is None and callable(days)):
        return None
    return sink.uri(recording)
