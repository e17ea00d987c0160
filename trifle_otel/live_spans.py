"""A recording as OpenTelemetry spans while it runs: a span for the trace, one for each block, events for the lines.

Everything set on a span is small enough to be delivered by any exporter into any backend: names,
values, events of a span, events and spans of a trace are counted here, since limits elsewhere
(the SDK's, Tempo's, a receiver's) drop silently. What does not fit is in the archive, and counted.
Our own faults and those of span processors end here: recording goes on without the span.
"""

from __future__ import annotations

import os
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from trifle_otel import conventions as names
from trifle_otel.encoding import to_json

if TYPE_CHECKING:
    from trifle_otel.recording import Frame, Line, Recording
    from trifle_otel.redaction import Redactor
    from trifle_otel.runtime import Runtime

PLACES_LEFT = 16
"""Events of a span that are left for other instrumentations."""

_HELD = 256  # lines of each kind that a frame holds for its span; a span takes fewer


class RootSpan(NamedTuple):
    """The trace's own span, or what stands for it where none can be made."""

    span: Span
    recording: bool
    trace_id: str
    span_id: str
    context: Context


class Pending:
    """Lines of one frame that wait for its span to end: the first, the last, and those that went wrong."""

    __slots__ = ("bad", "count", "first", "last")

    def __init__(self) -> None:
        self.first: list[tuple[int, Line]] = []
        self.last: deque[tuple[int, Line]] = deque(maxlen=_HELD)
        self.bad: list[tuple[int, Line]] = []
        self.count = 0

    def add(self, number: int, line: Line) -> None:
        """Hold a line (its number in the archive, from 1)."""
        self.count += 1
        if len(self.first) < _HELD:
            self.first.append((number, line))
        elif line[2] in _IMPORTANT and len(self.bad) < _HELD:
            self.bad.append((number, line))
        else:
            self.last.append((number, line))

    def choose(self, places: int) -> list[tuple[int, Line]]:
        """At most `places` of them, in order: errors and warnings first, then the beginning and the end."""
        if self.count <= places:
            return self.first
        held = [*self.first, *self.bad, *self.last]
        held.sort(key=_number)
        bad = [item for item in held if item[1][2] in _IMPORTANT][:places]
        left = places - len(bad)
        if left <= 0:
            return bad
        good = [item for item in held if item[1][2] not in _IMPORTANT]
        if len(good) > left:
            end = left // 2
            good = good[: left - end] + (good[-end:] if end else [])
        return sorted(bad + good, key=_number)


class LiveSpans:
    """The spans of one trace, and what is left of its limits."""

    __slots__ = (
        "blocks_omitted",
        "budget",
        "exception",
        "left",
        "lines_omitted",
        "places",
        "redactor",
        "tracer",
        "value",
    )

    def __init__(self, runtime: Runtime, root: RootSpan) -> None:
        settings = runtime.settings
        self.tracer = _tracer(runtime)
        self.redactor = runtime.redactor
        self.places = max(settings.span_events - PLACES_LEFT, 1)
        self.value = max(settings.span_value_limit, 1)
        self.budget = settings.events_budget
        self.left = settings.max_spans
        self.blocks_omitted = 0
        self.lines_omitted = 0
        self.exception: BaseException | None = None  # recorded already, further in

    def screen(self, texts: list[str]) -> list[str]:
        """Texts without their secrets."""
        return texts if self.redactor is None else self.redactor.texts(texts)


def start_root(runtime: Runtime, name: str, kind: SpanKind, attributes: dict[str, Any], context: Context) -> RootSpan:
    """Start the span of a trace in `context`.

    Where there is no SDK, ids are made up for the archive and never made current: a context with
    ids and an unset sampled flag would switch samplers off downstream.
    """
    try:
        span = _tracer(runtime).start_span(short_name(name), context=context, kind=kind, attributes=attributes)
        own = span.get_span_context()
        parent = otel.get_current_span(context).get_span_context()
    except Exception as error:  # a sampler or processor of the application's that raises
        runtime.troubles.report("a span could not be started", error)
        return _unborn(otel.INVALID_SPAN, 0, context)
    if not own.is_valid or own.span_id == parent.span_id:
        return _unborn(span, parent.trace_id, context)
    context = otel.set_span_in_context(span, context)
    return RootSpan(span, span.is_recording(), f"{own.trace_id:032x}", f"{own.span_id:016x}", context)


def open_block(frame: Frame, outer: Frame, context: Context, start: int) -> Context:
    """Start a block's span, if the trace may have another; gives the context in which it is current."""
    spans = frame.recording.spans
    assert spans is not None
    if spans.left > 0:
        spans.left -= 1
        try:
            span = spans.tracer.start_span(
                _block_name(frame.message, spans.redactor), context=context, start_time=start
            )
            context = otel.set_span_in_context(span, context)
        except Exception as error:  # a processor of the application's that raises
            frame.recording.runtime.troubles.report("a span could not be started", error)
        else:
            frame.span = span
            frame.span_id = f"{span.get_span_context().span_id:016x}"
            frame.events = Pending()
            return context
    spans.blocks_omitted += 1
    spans.lines_omitted += 3
    frame.events = outer.events  # lines of a block without a span count for the nearest one with
    return context


def close(frame: Frame, end: int, state: str, error: BaseException | None) -> None:
    """End a block's span, if it has one, with what was recorded in it."""
    if frame.span is None:
        return
    recording = frame.recording
    try:
        spans = recording.spans
        assert spans is not None
        span: Span = frame.span
        _add_events(frame, spans, spans.budget // 4)
        if error is not None:
            _record_exception(span, spans, error)
        if state != "success":
            span.set_attribute(names.STATE, short_value(state, spans.value))
            if error is None and state == "error":
                span.set_status(StatusCode.ERROR)
        span.end(end)
    except Exception as fault:  # ours or a processor's: the job goes on
        recording.runtime.troubles.report("a span could not be ended", fault)
    finally:
        frame.events = frame.span = None


def finish(recording: Recording, error: BaseException | None) -> None:
    """End the trace's span; what is needed most is set last, since the SDK drops what was set first."""
    try:
        spans, root = recording.spans, recording.root
        assert spans is not None
        span: Span = root.span
        _add_events(root, spans, 0)
        if error is not None:
            _record_exception(span, spans, error)
        if recording.state == "error" and error is None:
            span.set_status(StatusCode.ERROR)
        for name, value in _root_attributes(recording, spans):
            span.set_attribute(name, value)
        span.end()
    except Exception as fault:  # ours or a processor's: the archive is still to be written
        recording.runtime.troubles.report("a span could not be ended", fault)
    finally:
        recording.spans = None
        root = recording.root
        root.events = root.span = None


def short_value(text: str, limit: int = names.MAX_VALUE) -> str:
    """A text of at most `limit` bytes of UTF-8, cut between characters and marked with `…`."""
    if len(text) * 4 <= limit and text.isascii():
        return text
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    mark = "…" if limit > 3 else ""
    return encoded[: limit - len(mark.encode())].decode("utf-8", "ignore") + mark


@lru_cache(maxsize=4096)
def short_name(name: str) -> str:
    """A span's name: one line, at most 100 characters."""
    name = " ".join(name.encode("utf-8", "backslashreplace").decode().split()) or "unnamed"
    return name if len(name) <= names.MAX_NAME else name[: names.MAX_NAME - 1] + "…"


@lru_cache(maxsize=4096)
def _block_name(message: str, redactor: Redactor | None) -> str:
    return short_name(message if redactor is None else redactor.text(message))


def _tracer(runtime: Runtime) -> Tracer:
    """Our tracer of the provider in force. The application may set its provider after we were configured."""
    provider = runtime.settings.tracer_provider or otel.get_tracer_provider()
    return _tracer_of(provider)


_tracers: tuple[object, Tracer] | None = None


def _tracer_of(provider: otel.TracerProvider) -> Tracer:
    global _tracers  # noqa: PLW0603 - the last one used, since making one costs more than a span
    last = _tracers
    if last is None or last[0] is not provider:
        last = _tracers = (provider, provider.get_tracer("trifle_otel", _version()))
    return last[1]


@lru_cache(maxsize=1)
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - costs 5 ms at import

    try:
        return version("trifle-otel")
    except PackageNotFoundError:
        return ""


def _unborn(span: Span, trace_id: int, context: Context) -> RootSpan:
    trace = f"{trace_id:032x}" if trace_id else os.urandom(16).hex()
    return RootSpan(span, False, trace, os.urandom(8).hex(), context)


def _add_events(frame: Frame, spans: LiveSpans, reserve: int) -> None:
    """Add a frame's lines to its span, within the places of a span and the bytes of a trace.

    `reserve` bytes of the budget are left for spans that end later: the trace's own ends last.
    """
    pending = frame.events
    if pending is None or not pending.count:
        return
    chosen = pending.choose(spans.places)
    texts = spans.screen([item[1][1] for item in chosen])
    span = frame.span
    reference, limit, added, free = frame.recording.reference, spans.value, 0, spans.budget - reserve
    for (number, line), text in zip(chosen, texts, strict=True):
        event = _event(number, line, text, reference, limit)
        name, attributes, size = event
        if size > free:
            continue
        free -= size
        spans.budget -= size
        added += 1
        span.add_event(name, attributes, line[0])
    omitted = pending.count - added
    if omitted:
        spans.lines_omitted += omitted
        span.set_attribute(names.LINES_OMITTED, omitted)


def _event(number: int, line: Line, text: str, reference: str, limit: int) -> tuple[str, dict[str, Any], int]:
    """An event's name, attributes and size in bytes."""
    _, _, state, kind, _ = line
    short = text
    size = len(text)
    if size * 4 > limit or not text.isascii():
        short = short_value(text, limit)
        size = len(short.encode())
    if kind == "text" or kind == "head":
        if state not in _COMMON:
            state = short_value(state, limit)
        attributes: dict[str, Any] = {names.TEXT: short, names.TYPE: kind, names.STATE: state, names.LINE: number}
        if short is not text and short != text:
            attributes[names.TEXT_SIZE] = len(text.encode("utf-8", "backslashreplace"))
            attributes[names.TEXT_REF] = f"{reference}#{number}"
        return names.TEXT_EVENT, attributes, size + 160
    if kind == "close" or kind == "raw":
        attributes = {names.RESULT: short, names.LINE: number}
        if short is not text and short != text:
            attributes[names.RESULT_SIZE] = len(text.encode("utf-8", "backslashreplace"))
            attributes[names.RESULT_REF] = f"{reference}#{number}"
        return names.RESULT_EVENT, attributes, size + 128
    if kind == "state":
        return names.STATE_EVENT, {names.STATE: short, names.PREVIOUS_STATE: short_value(state, limit)}, size + 128
    ref = short_value(f"{reference}/artifacts/{text}", limit)
    attributes = {names.ARTIFACT: short, names.ARTIFACT_SIZE: kind, names.ARTIFACT_REF: ref, names.LINE: number}
    return names.ARTIFACT_EVENT, attributes, 2 * size + 192


def _record_exception(span: Span, spans: LiveSpans, error: BaseException) -> None:
    """Mark a span as failed; the exception itself is an event on the innermost span that it left, once."""
    from trifle_otel.recording import exception_text, traceback_text  # noqa: PLC0415 - recording imports this module

    kind = _type_name(error)
    message, stack = spans.screen([exception_text(error), traceback_text(error)])
    short = short_value(message, spans.value)
    if spans.exception is not error:
        spans.exception = error
        attributes = {
            names.EXCEPTION_TYPE: short_value(kind, spans.value),
            names.EXCEPTION_MESSAGE: short,
            names.EXCEPTION_STACKTRACE: _tail(stack, spans.value),
        }
        span.add_event(names.EXCEPTION_EVENT, attributes)
    span.set_attribute(names.ERROR_TYPE, short_value(kind, spans.value))
    span.set_status(Status(StatusCode.ERROR, short))


def _tail(text: str, limit: int) -> str:
    """The end of a text: of a traceback, what is nearest to the fault."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    mark = "…" if limit > 3 else ""
    return mark + encoded[len(encoded) - limit + len(mark.encode()) :].decode("utf-8", "ignore")


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _root_attributes(recording: Recording, spans: LiveSpans) -> list[tuple[str, Any]]:
    """In the order in which they matter, the least first."""
    found: list[tuple[str, Any]] = []
    if recording.meta is not None:
        found.append((names.META, short_value(to_json(recording.meta).decode(), spans.value)))
    if recording.tags:
        found.append((names.TAGS, _short_list(spans.screen(sorted(recording.tags)), spans.value)))
    if recording.retention is not None:
        found.append((names.RETENTION, recording.retention))
    sink = recording.runtime.sink
    uri = sink.uri(recording) if sink is not None else None
    if uri is not None:
        found.append((names.ARCHIVE, short_value(uri, spans.value)))
    if spans.blocks_omitted:
        found.append((names.BLOCKS_OMITTED, spans.blocks_omitted))
    found.append((names.LINES, recording.number))
    if spans.lines_omitted:
        found.append((names.LINES_OMITTED, spans.lines_omitted))
    found.append((names.STATE, recording.state))
    found.append((names.REFERENCE, recording.reference))
    return found


def _short_list(texts: list[str], limit: int) -> list[str]:
    """As many of them as fit into `limit` bytes together."""
    kept: list[str] = []
    for text in texts:
        text = short_value(text, limit)
        limit -= len(text.encode())
        if limit < 0:
            break
        kept.append(text)
    return kept


def _number(item: tuple[int, Any]) -> int:
    return item[0]


_IMPORTANT = frozenset(("error", "warning"))
_COMMON = frozenset(("success", "warning", "error", "debug"))
