"""A recording as OpenTelemetry spans while it runs: a span for the trace, one for each block, events for the lines.

Where the setting says so, lines are log records instead, or too: then `log_events` takes each as it comes.

Everything set on a span is small enough to be delivered by any exporter into any backend: names,
values, events of a span, events and spans of a trace are counted here, since limits elsewhere
(the SDK's, Tempo's, a receiver's) drop silently. What does not fit is in the archive, and counted: each
line of the archive is an event of one of our spans, or the opening or closing line of a block that has a
span (which stands for both), or one of `trifle.lines_omitted` on the span of the trace; or it was made of a span of
another instrumentation's (`span_processor`), which stands for all lines that were made of it. Where events are log
records alone, the same holds with these; where they are both, with the events of the spans.
Our own faults and those of span processors end here: recording goes on without the span.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer

from trifle_otel import conventions as names
from trifle_otel.encoding import to_json
from trifle_otel.interruptions import let_pass
from trifle_otel.span_events import (
    AT_ONCE,
    MAX_STATE,
    PLAIN_SIZE,
    Pending,
    add_plain,
    are_plain,
    event_of,
    fitting,
    places_of,
    short_list,
    short_value,
    tail,
)
from trifle_otel.values import exception_text, traceback_text

if TYPE_CHECKING:
    from trifle_otel.frames import Frame, Line
    from trifle_otel.log_events import LogEvents
    from trifle_otel.recording import Recording
    from trifle_otel.redaction import Redactor
    from trifle_otel.runtime import Runtime

__all__ = [
    "LiveSpans",
    "Pending",
    "RootSpan",
    "close",
    "finish",
    "open_block",
    "service_of",
    "short_name",
    "short_value",
    "start_root",
]

_SHORT = 128  # bytes of a text that a span has in any case
_MARKS = 15  # exceptions that a frame knows of, beside the newest
_EXCEPTION = (names.EXCEPTION_TYPE, names.EXCEPTION_MESSAGE, names.EXCEPTION_STACKTRACE)


class RootSpan(NamedTuple):
    """The trace's own span, or what stands for it where none can be made."""

    span: Span
    recording: bool
    trace_id: str
    span_id: str
    context: Context
    parent_id: str | None
    sampled: bool  # whether exporters are to have it: one that is recorded may be for processors alone


class LiveSpans:
    """The spans of one trace, and what is left of its limits. `lock` guards all that changes."""

    __slots__ = (
        "blocks_omitted",
        "budget",
        "lines_omitted",
        "lock",
        "logs",
        "made",
        "max_spans",
        "on_spans",
        "places",
        "redactor",
        "reserve",
        "shown",
        "tracer",
        "value",
    )

    def __init__(self, runtime: Runtime) -> None:
        settings = runtime.settings
        self.tracer = _source(runtime).tracer
        self.redactor = runtime.redactor
        self.on_spans = settings.events != "log"
        self.shown = self.places = places_of(settings.span_events) if self.on_spans else 0
        self.value = min(max(settings.span_value_limit, 1), names.MAX_VALUE)
        self.budget = settings.events_budget
        self.reserve = settings.events_budget // 4  # for the trace's own span, which ends last
        self.max_spans = settings.max_spans
        self.made = count(1)
        self.blocks_omitted = 0
        self.lines_omitted = 0
        self.lock = RLock()  # a finalizer or a signal's handler may open a block, anywhere
        self.logs: LogEvents | None = None
        if settings.events != "span":
            self.logs = _logs(runtime, self)
            if self.logs is not None:
                self.places = AT_ONCE

    def screen(self, texts: list[str]) -> list[str]:
        """Texts without their secrets."""
        return texts if self.redactor is None else self.redactor.texts(texts)

    def free(self, *, last: bool, failed: bool) -> tuple[int, int]:
        """Bytes that the ordinary lines of a span may take, and that its errors and warnings may. Under the lock.

        A quarter of the budget is for the trace's own span, the last one; another's ordinary lines take half
        of what is there at most. A span that failed needs some for its exception.
        """
        most = self.budget - (0 if last else self.reserve) - (2 * self.value + _SHORT if failed else 0)
        return (most if last else most // 2), most

    def spend(self, size: int, *, last: bool) -> bool:
        """Take `size` bytes of the budget, if it has them."""
        with self.lock:
            if size > self.budget - (0 if last else self.reserve):
                return False
            self.budget -= size
            return True

    def spend_freely(self, size: int, last: bool, failed: bool) -> bool:
        """Take what the ordinary lines of a span need, if that is there."""
        with self.lock:
            if size > self.free(last=last, failed=failed)[0]:
                return False
            self.budget -= size
            return True

    def omit_block(self) -> None:
        """Count a block without a span: its opening line, its closing line and its result are in the archive alone."""
        with self.lock:
            self.blocks_omitted += 1
            self.lines_omitted += 3


def service_of(runtime: Runtime) -> str | None:
    """The name of this service: the setting's, else what the provider's resource says; None where nobody says."""
    try:
        return runtime.settings.service or _source(runtime).service
    except Exception as error:  # a provider that raises
        runtime.troubles.report("the provider gives no tracer", error)
        return None


def start_root(runtime: Runtime, name: str, kind: SpanKind, attributes: dict[str, Any], context: Context) -> RootSpan:
    """Start the span of a trace in `context`.

    Where there is no SDK, ids are made up for the archive and never made current: a context with
    ids and an unset sampled flag would switch samplers off downstream.
    """
    parent = otel.get_current_span(context).get_span_context()
    try:
        tracer = _source(runtime).tracer
        span = tracer.start_span(short_name(name), context=context, kind=kind, attributes=attributes)
        own = span.get_span_context()
        recording = span.is_recording()
        sampled = recording and own.trace_flags.sampled
    except Exception as error:  # a sampler or processor of the application's that raises
        runtime.troubles.report("a span could not be started", error)
        return _unborn(otel.INVALID_SPAN, parent, context)
    if not own.is_valid or own.span_id == parent.span_id:
        return _unborn(span, parent, context)
    context = otel.set_span_in_context(span, context)
    ids = f"{own.trace_id:032x}", f"{own.span_id:016x}"
    return RootSpan(span, recording, *ids, context, _parent_id(parent), sampled)


def open_block(frame: Frame, outer: Frame, context: Context, start: int) -> Context:
    """Start a block's span, if the trace may have another; gives the context in which it is current.

    A block whose span the sampler drops is one without: what is made inside is a child of the span around it.
    """
    spans = frame.recording.spans
    if spans is None:  # another thread has just ended the trace
        return context
    if next(spans.made) <= spans.max_spans:
        try:
            name = _block_name(frame.message, spans.redactor)
            span = spans.tracer.start_span(name, context=context, start_time=start)
            if span.is_recording():
                context = otel.set_span_in_context(span, context)
                frame.span_id = f"{span.get_span_context().span_id:016x}"
                frame.events = Pending(spans.places)
                frame.span = span
                return context
        except Exception as error:  # a sampler or processor of the application's that raises
            frame.recording.runtime.troubles.report("a span could not be started", error)
    spans.omit_block()
    frame.events = outer.events  # lines of a block without a span count for the nearest one with
    return context


def close(frame: Frame, end: int, state: str, error: BaseException | None) -> None:
    """End a block's span, if it has one, with what was recorded in it."""
    span: Span | None = frame.span
    if span is None:
        return
    outer = None if frame.parent is None else frame.parent.events
    recording = frame.recording
    spans = recording.spans
    try:
        if spans is not None:
            _add_events(frame, spans, outer, error is not None)
            if span.is_recording():
                _set_outcome(frame, spans, end, state, error)
    except Exception as fault:  # ours or another SDK's: the job goes on
        recording.runtime.troubles.report("events could not be added to a span", fault)
    finally:
        _end(recording, span, end)
        frame.span = None
        frame.events = outer  # of tasks and threads that run on


def _set_outcome(frame: Frame, spans: LiveSpans, end: int, state: str, error: BaseException | None) -> None:
    span: Span = frame.span
    if error is not None:
        outer = None if frame.parent is None else frame.parent.events
        _record_exception(frame, spans, error, outer, end)
    elif state == "error":
        span.set_status(StatusCode.ERROR)
    if state != "success":
        span.set_attribute(names.STATE, short_value(state, MAX_STATE))


def finish(recording: Recording, error: BaseException | None) -> None:
    """End the trace's span; what is needed most is set last, since the SDK drops what was set first."""
    spans, root = recording.spans, recording.root
    span: Span | None = root.span
    if spans is None or span is None:
        return
    try:
        _add_events(root, spans, None, error is not None)
        if span.is_recording():
            if error is not None:
                _record_exception(root, spans, error, _around(root), None)
            elif recording.state == "error":
                span.set_status(StatusCode.ERROR)
            span.set_attributes(_root_attributes(recording, spans))
    except Exception as fault:  # ours or another SDK's: the archive is still to be written
        recording.runtime.troubles.report("events could not be added to a span", fault)
    finally:
        recording.spans = root.events = root.span = None
        _end(recording, span, None)


@lru_cache(maxsize=4096)
def short_name(name: str) -> str:
    """A span's name: one line, at most 100 characters, no control characters."""
    name = _CONTROL.sub("\ufffd", " ".join(name.encode("utf-8", "backslashreplace").decode().split())) or "unnamed"
    return name if len(name) <= names.MAX_NAME else name[: names.MAX_NAME - 1] + "…"


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def _block_name(message: str, redactor: Redactor | None) -> str:
    if len(message) <= 2 * names.MAX_NAME:
        return _screened_name(message, redactor)
    return _screened_name.__wrapped__(message, redactor)  # not held: it may be of any size


@lru_cache(maxsize=4096)
def _screened_name(message: str, redactor: Redactor | None) -> str:
    return short_name.__wrapped__(message if redactor is None else redactor.text(message))


def _logs(runtime: Runtime, spans: LiveSpans) -> LogEvents | None:
    from trifle_otel.log_events import log_events  # noqa: PLC0415 - most processes make no log records

    return log_events(runtime, names.own_version(), value=spans.value, shown=spans.shown if spans.on_spans else None)


class _Source(NamedTuple):
    """What a provider gives us."""

    provider: otel.TracerProvider
    tracer: Tracer
    service: str | None


_last: _Source | None = None


def _source(runtime: Runtime) -> _Source:
    """Our tracer of the provider in force. The application may set its provider after we were configured."""
    global _last  # noqa: PLW0603 - the last one used, since making a tracer costs more than a span
    provider = runtime.settings.tracer_provider
    if provider is None:
        provider = otel.get_tracer_provider()
    if provider is not runtime.provider:
        runtime.see(provider)
    last = _last
    if last is None or last.provider is not provider:
        tracer = provider.get_tracer("trifle_otel", names.own_version())
        last = _last = _Source(provider, tracer, _service_of(provider))
    return last


def _service_of(provider: otel.TracerProvider) -> str | None:
    """The service's name in the provider's resource, where it has one (the SDK's has) and somebody chose the name."""
    try:
        name = provider.resource.attributes.get("service.name")  # type: ignore[attr-defined]
    except Exception as error:  # a provider of another kind
        let_pass(error)
        return None
    return name if isinstance(name, str) and name and not name.startswith("unknown_service") else None


def _unborn(span: Span, parent: SpanContext, context: Context) -> RootSpan:
    trace = f"{parent.trace_id:032x}" if parent.trace_id else os.urandom(16).hex()
    return RootSpan(span, False, trace, os.urandom(8).hex(), context, _parent_id(parent), False)


def _parent_id(parent: SpanContext) -> str | None:
    return f"{parent.span_id:016x}" if parent.is_valid else None


def _end(recording: Recording, span: Span, end: int | None) -> None:
    try:
        if span.is_recording():  # else somebody ended it who had no business to
            span.end(end)
    except Exception as fault:  # a processor's
        recording.runtime.troubles.report("a span could not be ended", fault)


def _add_events(frame: Frame, spans: LiveSpans, outer: Pending | None, failed: bool) -> None:
    """Add a frame's lines to its span, within the places of a span and the bytes of a trace.

    A frame that failed has an exception of its own to add.
    """
    pending = frame.events
    if pending is None:
        return
    recording, span = frame.recording, frame.span
    with recording.lock:
        pending.close(outer)
    numbers, lines = pending.choose(max(spans.shown - failed, 0) if span.is_recording() else 0)
    added = shown = 0
    if lines:
        texts = spans.screen([line[1] for line in lines])
        size = sum(map(len, texts)) + PLAIN_SIZE * len(lines)
        last = frame.parent is None
        if not recording.names and are_plain(texts, spans.value) and spans.spend_freely(size, last, failed):
            added, shown = len(lines), add_plain(span, numbers, lines, texts)
        else:
            added, shown = _add_some(frame, spans, (numbers, lines, texts), last, failed)
    omitted = pending.omitted(added, shown)
    if omitted:
        with spans.lock:
            spans.lines_omitted += omitted
        if span.is_recording():
            span.set_attribute(names.LINES_OMITTED, omitted)


def _add_some(
    frame: Frame, spans: LiveSpans, held: tuple[list[int], list[Line], list[str]], last: bool, failed: bool
) -> tuple[int, int]:
    """Add what the budget allows; gives how many events that are, and how many of them are lines."""
    reference = frame.recording.reference
    events = [event_of(number, line, text, reference, spans.value) for number, line, text in zip(*held, strict=True)]
    size = sum(event[3] for event in events)
    with spans.lock:
        free, most = spans.free(last=last, failed=failed)
        if size > free:
            events = fitting(events, held[1], free, most)
            size = sum(event[3] for event in events)
        spans.budget -= size
    for name, attributes, ns, _ in events:
        frame.span.add_event(name, attributes, ns)
    return len(events), sum(event[0] != names.STATE_EVENT for event in events)


def _record_exception(
    frame: Frame, spans: LiveSpans, error: BaseException, outer: Pending | None, at: int | None
) -> None:
    """Mark a span as failed; the exception itself is an event on the innermost span that it left, once.

    Where the budget is spent, its texts are cut to what a thousand spans can carry.
    """
    span, last = frame.span, frame.parent is None
    mark = _mark_of(frame, error)
    kind = short_value(_type_name(error), _SHORT)
    if mark is None:
        message, stack = spans.screen(_texts_of(error))
        message, stack = short_value(message, spans.value), tail(stack, spans.value)
        mark = (*_identity(error), message)
        _add_exception(span, spans, (kind, message, stack), last, at)
    if outer is not None:
        outer.marks = [*(outer.marks or [])[-_MARKS:], mark]
    message = mark[-1]
    if not spans.spend(len(message.encode()) + 8, last=last):
        message = short_value(message, _SHORT)
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, message))


def _add_exception(span: Span, spans: LiveSpans, texts: tuple[str, str, str], last: bool, at: int | None) -> None:
    """Add an exception's type, message and stack trace where events go; on a span cut where the budget is spent."""
    if spans.logs is not None:
        spans.logs.take_exception(span, dict(zip(_EXCEPTION, texts, strict=True)), at)
    if spans.on_spans:
        kind, message, stack = texts
        if not spans.spend(len(message.encode()) + len(stack.encode()) + len(kind.encode()) + 120, last=last):
            message, stack = short_value(message, _SHORT), tail(stack, _SHORT)
        span.add_event(names.EXCEPTION_EVENT, dict(zip(_EXCEPTION, (kind, message, stack), strict=True)), at)


def _mark_of(frame: Frame, error: BaseException) -> tuple[Any, ...] | None:
    """What a span further in has noted of an exception; its screened message is last."""
    identity = _identity(error)
    marks = None if frame.events is None else frame.events.marks
    for mark in marks or ():
        if mark[:-1] == identity:
            return mark
    return None


def _identity(error: BaseException) -> tuple[Any, ...]:
    """Tells an exception from another without holding it, and with it the variables of all frames that it passed.

    An id alone may be used again once the exception is gone, so type and place of its origin go along.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    origin = None if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno, trace.tb_lasti)
    return id(error), type(error).__name__, origin


def _texts_of(error: BaseException) -> list[str]:
    return [exception_text(error), traceback_text(error)]


def _around(root: Frame) -> Pending | None:
    """The lines of the frame that a trace was started in, which may be another trace's."""
    from trifle_otel.frames import FRAME  # noqa: PLC0415 - frames import this module

    frame: Any = root.before.get(FRAME)
    return None if frame is None else frame.events


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _root_attributes(recording: Recording, spans: LiveSpans) -> dict[str, Any]:
    """In the order in which they matter, the least first."""
    found: dict[str, Any] = {}
    if recording.meta is not None:
        found[names.META] = short_value(to_json(recording.meta).decode(), spans.value)
    if recording.tags:
        found[names.TAGS] = short_list(spans.screen(sorted(recording.tags)), spans.value)
    if recording.retention is not None:
        found[names.RETENTION] = recording.retention
    sink = recording.runtime.sink
    uri = sink.uri(recording) if sink is not None else None
    if uri is not None:
        found[names.ARCHIVE] = short_value(uri, spans.value)
    if spans.blocks_omitted:
        found[names.BLOCKS_OMITTED] = spans.blocks_omitted
    if spans.lines_omitted:
        found[names.LINES_OMITTED] = spans.lines_omitted
    found[names.LINES] = recording.number
    found[names.STATE] = short_value(recording.state, MAX_STATE)
    found[names.REFERENCE] = recording.reference
    return found
