"""Lines of a trace, and its exceptions, as OpenTelemetry log records with an event name: `events="log"` and `"both"`.

A record has the name and the attributes that the event of a span would have, the line's own time, a severity from its
state, and ids and flags of the span that the event would be on. It has no body: events should have none. It goes
through OpenTelemetry's Logs API to the application's provider, which is used and never replaced; without one nothing
is emitted. What is shown on spans is `live_spans`' business, what an event holds `span_events`'.

A record is emitted when the line is recorded, by the job's own thread: a job that runs, or hangs, or dies is seen.
So nothing waits here, and these limits hold: an attribute's value is cut as it is on a span; a trace emits at most
`MOST` records, errors and warnings up to twice that. Not theirs are a span's number of events and a trace's
bytes of them, both of which keep the message of a span small. The application's pipeline has limits of its own (a
queue of 2,048 records, usually): what it drops is told by it, and counted nowhere here.
"""

from __future__ import annotations

import threading
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import trace as otel
from opentelemetry._logs import LogRecord, NoOpLoggerProvider, SeverityNumber, get_logger_provider

from trifle_otel import conventions as names
from trifle_otel.otel_context import get_current
from trifle_otel.span_events import STATE, event_of, rank_of

if TYPE_CHECKING:
    from opentelemetry._logs import Logger, LoggerProvider
    from opentelemetry.trace import Span

    from trifle_otel.frames import Frame, Line
    from trifle_otel.redaction import Redactor
    from trifle_otel.runtime import Runtime, Troubles
    from trifle_otel.span_events import Pending

MOST: Final = 10_000
"""Records of one trace; where they are made, only errors and warnings are emitted, until there are twice as many."""

_SEVERITIES = {"error": SeverityNumber.ERROR, "warning": SeverityNumber.WARN, "debug": SeverityNumber.DEBUG}


class LogEvents:
    """Where one trace's lines become log records.

    Args:
        logger: ours, of the application's provider.
        runtime: what texts are screened with, and where faults of processors end.
        value: bytes that an attribute's value may have.
        shown: events that a span shows beside them; None where lines are log records alone.
    """

    __slots__ = ("_enabled", "_logger", "_redactor", "_shown", "_troubles", "_value", "emitted")

    def __init__(self, logger: Logger, runtime: Runtime, *, value: int, shown: int | None) -> None:
        self._logger = logger
        self._enabled = getattr(logger, "enabled", _always)  # older ones have no such question
        self._redactor: Redactor | None = runtime.redactor
        self._troubles: Troubles = runtime.troubles
        self._value = value
        self._shown = shown
        self.emitted = 0

    def take(self, pending: Pending, number: int, line: Line) -> None:
        """Emit a line of `pending`, which holds it too where spans show lines.

        Called under the recording's lock, which is let go of meanwhile: processors of others run here, which may wait
        for a network, and may record lines themselves.
        """
        recording = line[4].recording
        lock = recording.lock
        span = _span_of(pending, line[4])
        if self._shown is not None:
            pending.hold(number, line, self._shown)
        lock.release()
        try:
            sent = span is not None and self._emit_line(span, number, line, recording.reference)
        finally:
            lock.acquire()
        self.emitted += sent
        if not sent and self._shown is None and not pending.omit(line) and line[3] != STATE:
            _omit_late(recording.spans)

    def take_exception(self, span: Span, attributes: dict[str, Any], at: int | None) -> None:
        """Emit an exception that left the block or trace of a span, at a Unix time in nanoseconds or now."""
        self._emit(span, names.EXCEPTION_EVENT, attributes, at or time_ns(), SeverityNumber.ERROR)

    def _emit_line(self, span: Span, number: int, line: Line, reference: str) -> bool:
        rank = rank_of(line)
        if self.emitted >= (MOST if rank > 1 else 2 * MOST):
            return False
        text = line[1] if self._redactor is None else self._redactor.texts([line[1]])[0]
        name, attributes, ns, _ = event_of(number, line, text, reference, self._value)
        state = line[1] if line[3] == STATE else line[2]
        return self._emit(span, name, attributes, ns, _SEVERITIES.get(state, SeverityNumber.INFO))

    def _emit(self, span: Span, name: str, attributes: dict[str, Any], ns: int, severity: SeverityNumber) -> bool:
        """Emit a record; False where nobody wants it, and where it is made by what another one is processed with."""
        if getattr(_emitting, "now", False):
            return False
        _emitting.now = True
        try:
            context = get_current()
            if otel.get_current_span(context) is not span:
                context = otel.set_span_in_context(span, context)
            if not self._enabled(context=context, severity_number=severity, event_name=name):
                return False
            record = LogRecord(
                timestamp=ns,
                context=context,
                severity_number=severity,
                severity_text=severity.name,
                attributes=attributes,
                event_name=name,
            )
            self._logger.emit(record)
        except Exception as error:  # a processor's of the application
            self._troubles.report("a log record could not be emitted", error)
            return False
        finally:
            _emitting.now = False
        return True


_emitting = threading.local()


def log_events(runtime: Runtime, version: str, *, value: int, shown: int | None) -> LogEvents | None:
    """Where a trace's log records go; None where the application has no provider of loggers."""
    try:
        logger = _logger(runtime.settings.logger_provider or get_logger_provider(), version)
    except Exception as error:  # a provider that raises
        runtime.troubles.report("the provider gives no logger", error)
        return None
    if logger is None:
        runtime.troubles.report("events are to be log records, and the application has no LoggerProvider")
        return None
    return LogEvents(logger, runtime, value=value, shown=shown)


class _Source(NamedTuple):
    """What a provider gave us."""

    provider: LoggerProvider
    logger: Logger


_last: _Source | None = None


def _logger(provider: LoggerProvider, version: str) -> Logger | None:
    """Our logger of a provider; None of one that stands for none."""
    global _last  # noqa: PLW0603 - the last one used: a provider may make one anew each time
    if isinstance(provider, NoOpLoggerProvider) or type(provider).__name__ == "ProxyLoggerProvider":  # no public name
        return None
    last = _last
    if last is None or last.provider is not provider:
        last = _last = _Source(provider, provider.get_logger("trifle_otel", version))
    return last.logger


def _span_of(pending: Pending, frame: Frame | None) -> Span | None:
    """The span that lines of `pending` are for: that of the frame, or of one around it. Called under the lock."""
    while frame is not None:
        if frame.events is pending and frame.span is not None:
            span: Span = frame.span
            return span
        frame = frame.parent
    return None


def _omit_late(spans: Any) -> None:
    """Count a line of a block whose span has ended meanwhile with the trace's own."""
    if spans is not None:
        with spans.lock:
            spans.lines_omitted += 1


def _always(**_: Any) -> bool:
    return True
