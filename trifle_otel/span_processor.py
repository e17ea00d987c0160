"""Spans that other instrumentations make inside a running trace (HTTP clients, SQL, Redis, …), as nested lines of it.

A span opens a block when it starts, so that a call that hangs shows in a live trace, and closes it when it ends,
with its events, and with what it was (`summaries`) as the result. The block is never made current: lines and blocks of
the job stay where they are. Our own spans are left out, since their lines are in the archive already; so is what
belongs to no trace.

What happens here happens in the job's thread, inside the SDK: nothing raises, and nothing waits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import time_ns
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, StatusCode, TracerProvider

from trifle_otel import conventions as names
from trifle_otel.frames import CLOSE, FRAME, OPEN, RAW, TEXT, Frame, Line, spill
from trifle_otel.otel_context import get_current
from trifle_otel.recording import Recording
from trifle_otel.records import ERROR, SUCCESS
from trifle_otel.runtime import runtime
from trifle_otel.summaries import event_text, exception_texts, one_line, summary
from trifle_otel.values import text_of

Filter = Callable[[str, str, SpanKind], object]
"""Which spans to keep: called with a span's name, the name of the instrumentation that made it, and its kind."""

OURS: Final = "trifle_otel"
"""Name of the instrumentation that makes our own spans."""

MOST_CLAIMS: Final = 10_000
"""Tracers that are remembered as being watched by a program's own processor: some programs make one for each span."""

TROUBLE: Final = "a span of another instrumentation could not be recorded"

NOT_ENDED: Final = "the trace ended before this span did"
"""Result of a span that was still running at the end of its trace."""

_FAILED: Final = StatusCode.ERROR
_CLIENT: Final = SpanKind.CLIENT  # the commonest, and the name of a member is a call
_LAST_TIME: Final = 1 << 63  # nanoseconds since 1970: what is stored is a signed integer of 64 bits


class ForeignFrame(Frame):
    """The block of a span of somebody else's. It is current nowhere, and has no span of ours."""

    __slots__ = ("holder",)

    holder: dict[int, ForeignFrame]

    def close(self, state: str, error: BaseException | None) -> None:
        """End with the trace, before its span did."""
        del error
        recording = self.recording
        if recording.open.pop(self, None) is not None:
            self.holder.pop(int(self.span_id or "0", 16), None)
            _add(recording, (time_ns(), NOT_ENDED, state, CLOSE, self), 2)


class TrifleSpanProcessor(SpanProcessor):
    """Puts spans of other instrumentations, their events and exceptions, as lines into the trace that is running.

    Once an archive is configured, each TracerProvider of the SDK gets one by itself when the first trace is recorded
    through it (the setting `foreign_spans`); one that a program adds takes its place. Spans that a sampler drops reach
    no processor; with the SDK's `AlwaysRecordSampler` they do, without being exported.

    Args:
        filter: which spans to keep: called with a span's name, the name of the instrumentation that made it, and its
            `SpanKind`; None: all. Spans inside one that is left out are kept, unless they are left out as well. Where
            it raises, the span is kept, and the error is counted.
    """

    def __init__(self, filter: Filter | None = None) -> None:  # noqa: A002 - what it is
        self._filter = filter
        self._frames: dict[int, ForeignFrame] = {}
        self._ours: Any = OURS  # the scope of our own tracer, once it was seen

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Open a block in the trace that is running, if one is."""
        try:
            scope = span.instrumentation_scope
            if scope is self._ours:  # first, since blocks of ours pay for this
                return
            frame: Any = (get_current() if parent_context is None else parent_context).get(FRAME)
            if frame is None or frame.recording.lines is None:
                return
            if scope is not None and scope.name == OURS:
                self._ours = scope
            elif self._wants(frame.recording, span, scope):
                self._open(frame, span)
        except Exception as error:  # ours: the span is the application's
            runtime().troubles.report(TROUBLE, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Close the span's block, with what happened in it."""
        frames = self._frames
        if not frames:
            return
        try:
            own: Any = span.context
            frame = frames.pop(own.span_id, None)
            if frame is not None and frame.recording.open.pop(frame, None) is not None:  # else its trace has closed it
                _close(frame, span)
        except Exception as error:  # ours: the span is the application's
            runtime().troubles.report(TROUBLE, error)

    def _open(self, frame: Frame, span: Span) -> None:
        recording, frames = frame.recording, self._frames
        context: Any = span.context
        own = context.span_id
        outer = self._around(frame, span) if frames else frame
        name, start = span.name, span.start_time
        if type(name) is not str or type(start) is not int or not 0 <= start < _LAST_TIME:
            name, start = text_of(name), _time(start)
        inner = ForeignFrame(outer, recording, outer.level + 1, name, SUCCESS)
        inner.span_id = f"{own:016x}"
        inner.holder = frames
        _add(recording, (start, name, SUCCESS, OPEN, inner), 1)
        frames[own] = inner
        recording.open[inner] = inner  # after its line, as that of a block

    def _wants(self, recording: Recording, span: Span, scope: InstrumentationScope | None) -> bool:
        if id(scope) not in _claimed:
            if len(_claimed) > MOST_CLAIMS:
                _claimed.clear()
            _claimed[id(scope)] = scope
            own = span.get_span_context().span_id
            if any(own in other._frames for other in _automatic):  # whose turn came before ours, and was the last
                return False
        return self._filter is None or _passes(self._filter, recording, span)

    def _around(self, frame: Frame, span: Span) -> Frame:
        """The block that a span lies in: its parent's, where that is one of the trace and further in than `frame`."""
        above = span.parent
        around = None if above is None else self._frames.get(above.span_id)
        if around is None or around.recording is not frame.recording or not _is_further_in(around, frame):
            return frame
        return around


class _Automatic(TrifleSpanProcessor):
    """One that is added by itself. It keeps what the settings of the trace's own runtime say."""

    def __init__(self) -> None:
        super().__init__()
        _automatic.add(self)

    def _wants(self, recording: Recording, span: Span, scope: InstrumentationScope | None) -> bool:
        if _claimed and id(scope) in _claimed:
            return False
        kept = recording.runtime.settings.foreign_spans
        return kept is True or (kept is not False and _passes(kept, recording, span))


def add_to(provider: TracerProvider) -> None:
    """Add a processor to a provider of the SDK, or to one that is like it; once, however often this is called."""
    add: Any = getattr(provider, "add_span_processor", None)
    if add is None:
        return
    number = id(provider)
    mark = weakref.ref(provider, lambda _: _met.pop(number, None))
    if _met.setdefault(number, mark) is mark:  # without a lock, which a fork might leave held
        add(_Automatic())


_met: dict[int, weakref.ref[TracerProvider]] = {}  # by their ids: those that wrap others may have no hash
_automatic: weakref.WeakSet[_Automatic] = weakref.WeakSet()
_claimed: dict[int, InstrumentationScope | None] = {}
"""Scopes of tracers whose spans a program's own processor sees, by their ids: each tracer of a provider has an object
of its own. They are held, so that an id is not used again."""


def _passes(chosen: Filter, recording: Recording, span: Span) -> bool:
    scope = span.instrumentation_scope
    try:
        return bool(chosen(span.name, "" if scope is None else scope.name, span.kind))
    except Exception as error:  # users' code: the span is kept
        recording.runtime.troubles.report("a filter of spans raised", error)
        return True


def _is_further_in(around: ForeignFrame, frame: Frame) -> bool:
    """Whether the block of a span lies in `frame`, the current one, rather than around it."""
    home: Frame | None = around.parent
    while isinstance(home, ForeignFrame):
        home = home.parent
    if home is frame:
        return True
    inner: Frame | None = frame
    while inner is not None and inner is not home:
        inner = inner.parent
    return inner is None


def _close(frame: ForeignFrame, span: ReadableSpan) -> None:
    recording = frame.recording
    try:
        text, state = _outcome(recording, frame, span)
    except Exception as error:  # ours, or attributes that are none: what was opened is closed all the same
        recording.runtime.troubles.report(TROUBLE, error)
        text, state = frame.message, SUCCESS
    end: Any = span.end_time
    if type(end) is not int or not 0 <= end < _LAST_TIME:
        end = _time(end)
    _add(recording, (end, text, state, CLOSE, frame), 2)
    lines = recording.lines
    if lines is not None and len(lines) > recording.overflow:
        spill(recording)


def _outcome(recording: Recording, frame: ForeignFrame, span: ReadableSpan) -> tuple[str, str]:
    """What a span was and the state of its end; its events become lines on the way."""
    told = False
    # The SDK makes a tuple of none at a tenth of our price: where it tells their number as it does today, we ask first.
    if len(getattr(span, "_events", "?")):
        for event in span.events:
            told = _add_event(recording, frame, event.name, event.attributes or {}, _time(event.timestamp)) or told
    text: Any = span.name
    if type(text) is not str:
        text = text_of(text)
    attributes = _as_dict(span.attributes)
    if attributes:
        kind = span.kind
        text = summary(text, "CLIENT" if kind is _CLIENT else kind.name, attributes)
    status = span.status
    if status.status_code is not _FAILED:
        return text, SUCCESS
    if status.description and not told:
        text = f"{text}: {one_line(text_of(status.description))}"
    return text, ERROR


def _as_dict(attributes: Any) -> dict[str, Any]:
    """The SDK's attributes as a plain dict, by their own way: they are no dict, and slow as an iterable."""
    try:
        plain: dict[str, Any] = attributes.copy()
    except AttributeError:
        return dict(attributes or ())
    return plain


def _add_event(recording: Recording, frame: ForeignFrame, name: str, attributes: Any, ns: int) -> bool:
    """Record an event of a span; tells whether it is an exception."""
    if name != names.EXCEPTION_EVENT:
        _add(recording, (ns, event_text(text_of(name), attributes), SUCCESS, TEXT, frame), 1)
        return False
    text, stack = exception_texts(attributes)
    _add(recording, (ns, text, ERROR, TEXT, frame), 1)
    if stack:
        _add(recording, (ns, stack, SUCCESS, RAW, frame), 1)
    return True


def _add(recording: Recording, line: Line, count: int) -> None:
    """Record a line, which is on no span of ours; `count` entries of the archive are made of it."""
    if recording.spans is None:
        recording.append(line)
        return
    with recording.lock:  # what `note` does, without its calls
        lines = recording.lines
        if lines is not None:
            recording.number += count
            lines.append(line)
    if lines is None:
        recording.count_late(count)


def _time(given: Any) -> int:
    """A time of a span, which is whatever the caller gave."""
    if type(given) is int and 0 <= given < _LAST_TIME:
        return given
    try:
        whole = int(given)
    except (TypeError, ValueError, OverflowError):
        return time_ns()
    return whole if 0 <= whole < _LAST_TIME else time_ns()
