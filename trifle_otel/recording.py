"""One execution in memory: a `Recording`, and the `Frame`s (the trace itself, its blocks) that lines are put in.

No I/O here: where a recording goes is `runtime.Sink`'s business, what becomes of it on spans is
`live_spans`', what its lines look like on disk is `packing`'s. What a job calls is in `calls`.

The current frame lives in OpenTelemetry's context and nowhere else, so it follows that context
into tasks, threads and copies. A context is never detached by token: leaving puts back what was
current before, and only where ours still is current, since generators and tasks end in places
where a token would be of another context.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from time import monotonic_ns, time_ns
from typing import Any, Final

from opentelemetry import trace as otel
from opentelemetry.context import Context, create_key

from trifle_otel import live_spans, pending_span
from trifle_otel.interruptions import is_interruption
from trifle_otel.otel_context import attach, get_current
from trifle_otel.records import ERROR, RUNNING, SUCCESS, empty_counters
from trifle_otel.references import new_reference, safe_key, safe_reference
from trifle_otel.runtime import Runtime, announce
from trifle_otel.settings import DEFAULT_RETENTION, whole_days
from trifle_otel.values import exception_text, text_of, traceback_text

FRAME: Final = create_key("trifle-frame")
NOWHERE: Final = Context()

# What a line is. `text`, `head` and `raw` are types of the format; a block's lines are stored as
# one item for its opening and one for its closing and result, and a whole number is the size of an artifact.
TEXT: Final = "text"
HEAD: Final = "head"
RAW: Final = "raw"
OPEN: Final = "open"
OPEN_HEAD: Final = "open head"
CLOSE: Final = "close"
STATE: Final = "state"  # a change of the trace's state: on spans alone, no line of the archive

Line = tuple[int, str, str, "str | int", "Frame"]
"""Unix time in nanoseconds, text, state, what it is, the frame that it belongs to."""

OVERFLOW: Final = 20_000
"""Lines that a live trace holds before they are flushed without waiting for the timer."""

SELDOM: Final = 1023
"""Bits of a line's time that are all zero once in a thousand lines: then it is time to look at `OVERFLOW`."""

_open: dict[Recording, None] = {}


class Frame:
    """A place that lines are put in: a block, or (`RootFrame`) the trace itself."""

    __slots__ = (
        "before",
        "events",
        "level",
        "message",
        "ours",
        "parent",
        "recording",
        "span",
        "span_id",
        "state",
        "text",
        "written",
    )

    before: Context  # what was current
    ours: Context  # what is current while it is open

    def __init__(self, parent: Frame | None, recording: Recording, level: int, message: str, state: str) -> None:
        self.parent = parent
        self.recording = recording
        self.level = level
        self.message = message
        self.state = state
        self.text: str | None = None  # the result, serialised when it was given
        self.span: Any = None
        self.span_id: str | None = None
        self.events: live_spans.Pending | None = None
        self.written: str | None = None  # the message as it was stored, once it was

    def result(self, value: Any) -> Any:
        """Record the block's result, as it is now, and give it back."""
        self.text = self.recording.serialize(value)
        return value

    def leave(self) -> None:
        """End the block."""
        try:
            self.close(self.state, None)
        finally:
            self.put_back()

    def returned(self, value: Any) -> None:
        """End the block of a function that returned `value`."""
        recording = self.recording
        text = recording.serialize(value)
        lines = recording.lines
        if recording.spans is None and lines is not None:  # what `leave` does, without its calls: the commonest end
            if recording.open.pop(self, None) is not None:
                lines.append((time_ns(), text, self.state, CLOSE, self))
        else:
            self.text = text
            self.close(self.state, None)
        if get_current() is self.ours:
            attach(self.before)
            self.ours = self.before = NOWHERE
        else:
            self.put_back()

    def leave_with(self, error: BaseException) -> None:
        """End the block that an exception leaves."""
        try:
            self.close(ERROR, error)
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Make current what was before, where this frame is current, or what was left open in it."""
        now = get_current()
        if now is not self.ours:
            inner = now.get(FRAME)
            while isinstance(inner, Frame) and inner is not self:
                inner = inner.parent or inner.before.get(FRAME)
            if inner is not self:
                return self._let_go()
        attach(self.before)
        return self._let_go()

    def _let_go(self) -> None:
        """Break the circle of a frame and the context that holds it: what is left goes without the collector."""
        self.ours = self.before = NOWHERE

    def close(self, state: str, error: BaseException | None) -> None:
        """Record the block's closing line and result; once, whoever comes first."""
        recording = self.recording
        if recording.open.pop(self, None) is None:
            return
        text = self.text
        line: Line = (time_ns(), recording.nothing if text is None else text, state, CLOSE, self)
        lines = recording.lines
        if lines is None:
            recording.count_late(2)
        elif recording.spans is None:
            lines.append(line)
        else:
            recording.note(line, self.events if self.span is not None else None, 2)
            live_spans.close(self, line[0], state, error)


class RootFrame(Frame):
    """The frame of the trace itself. Leaving it ends the trace."""

    __slots__ = ()

    def result(self, value: Any) -> Any:
        """Record the result of the whole execution, and give it back."""
        put(self, self.recording.serialize(value), SUCCESS, RAW)
        return value

    def returned(self, value: Any) -> None:
        """End the trace of a function that returned `value`, which is no result of a block."""
        del value
        self.leave()

    def leave(self) -> None:
        self._end(None)

    def leave_with(self, error: BaseException) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        try:
            self.recording.end(error)
        except BaseException as fault:
            if is_interruption(fault):
                self.recording.end(error)  # had it not begun
                raise
            # ours: it must not stand in for the job's own outcome
            self.recording.runtime.troubles.report("a trace could not be ended", fault)
        finally:
            try:
                self.put_back()
            except BaseException:  # an interruption: the next job must not be found in this one
                self.put_back()
                raise
            finally:
                if hasattr(self.recording, "root"):
                    del self.recording.root


class Recording:
    """One execution: what is known about it, and the lines that are not stored yet.

    `lines` is None once the trace has ended; lines that come later are counted in `late`. Appending to
    the list needs no lock; `lock` guards the numbering of lines (which only spans need) and `packing`
    guards what is stored: `parts`, `length`, `counters`.
    """

    __slots__ = (
        "__weakref__",
        "append",
        "bucket",
        "bumped",
        "clean_tags",
        "context",
        "counters",
        "ended",
        "first_ns",
        "ignored",
        "key",
        "last_ns",
        "late",
        "length",
        "lines",
        "lock",
        "meta",
        "mode",
        "names",
        "nothing",
        "number",
        "open",
        "original_key",
        "overflow",
        "packing",
        "parts",
        "reference",
        "rest",
        "retention",
        "root",
        "runtime",
        "serialize",
        "span_id",
        "spans",
        "spooled",
        "started",
        "state",
        "tags",
        "trace_id",
    )

    def __init__(self, runtime: Runtime, key: str, *, mode: str, reference: str | None, meta: Any) -> None:
        self.runtime = runtime
        self.serialize = runtime.serialize
        self.nothing = runtime.nothing
        self.original_key = key if key.__class__ is str else text_of(key)
        self.key = safe_key(key)
        self.mode = mode
        self.reference = new_reference() if reference is None else safe_reference(reference)
        self.meta = meta  # plain JSON, screened, as `context` is: both are stored as they are
        self.state = RUNNING
        self.ignored = False
        self.context: dict[str, Any] = {}
        self.retention: int | None = None
        self.bucket: str | None = None
        self.trace_id = ""
        self.span_id = ""
        self.lines: list[Line] | None = []
        # Where a line goes: straight into the list, as long as nothing records spans and the trace runs. The callers of
        # a job's every line look at nothing else.
        self.append: Callable[[Line], None] = self.lines.append
        self.rest: list[Line] = []
        self.tags: dict[str, None] = {}
        self.clean_tags: list[str] = []  # the same, screened, as of the last part
        self.open: dict[Frame, Frame] = {}
        self.late = 0
        self.number = 0
        self.lock = threading.Lock()
        self.packing = threading.RLock()
        self.spans: live_spans.LiveSpans | None = None
        self.first_ns = time_ns()
        self.started = monotonic_ns()
        self.ended: int | None = None
        self.last_ns: int | None = None  # when it ended; None: when it was handed on. Known of what others recorded
        self.length = 0
        self.parts = 0
        self.counters = empty_counters()
        self.names: set[str] = set()
        self.overflow = OVERFLOW if mode == "live" else 1 << 62
        self.spooled: Any = None  # the sink's own: where it keeps what is not shipped yet
        self.bumped = 0.0
        self.root: RootFrame

    @property
    def duration(self) -> int:
        """Milliseconds since the start, or that it took, on a monotonic clock."""
        return ((self.ended or monotonic_ns()) - self.started) // 1_000_000

    def begin(self, context: Context, span: live_spans.RootSpan) -> RootFrame:
        """Make this trace current; `span` is its own, in a context of `context`."""
        self.trace_id, self.span_id = span.trace_id, span.span_id
        root = self.root = RootFrame(None, self, 0, self.key, SUCCESS)
        root.span_id = span.span_id
        if span.recording:
            self.spans = live_spans.LiveSpans(self.runtime)
            self.append = self.note_line
            root.span = span.span
            root.events = live_spans.Pending(self.spans.places)
            pending_span.show(self, span.context)
        self.context.update(trace_id=span.trace_id, span_id=span.span_id, sampled=span.recording)
        if span.parent_id is not None:
            self.context["parent_span_id"] = span.parent_id
        _open[self] = None
        root.before = context
        root.ours = Context({**span.context, FRAME: root})
        attach(root.ours)
        put(root, f"Tracer has been initialized for {self.key}", SUCCESS, TEXT)
        try:
            announce("liftoff", self)
        except BaseException as error:  # an interruption, since callbacks' own faults end there
            root.leave_with(error)
            raise
        return root

    def note(self, line: Line, events: live_spans.Pending | None, count: int = 1) -> None:
        """Append a line of a trace that has spans: numbered, so that its span can name its place."""
        with self.lock:
            lines = self.lines
            if lines is None:
                self.late += count
                return
            if line[3] is not STATE:
                lines.append(line)
                self.number += count
            if events is not None:
                events.add(self.number, line)

    def note_line(self, line: Line) -> None:
        """Append a line of a trace that has spans, but of a frame that has none to tell it to."""
        self.note(line, line[4].events)
        if not line[0] & SELDOM:
            self.relieve()

    def spilling_line(self, line: Line) -> None:
        """Append a line of a trace that fills quickly: what is too many is flushed by the job's own thread, at once."""
        lines = self.lines
        if lines is None:
            self.count_late()
            return
        lines.append(line)
        if len(lines) > self.overflow:
            spill(self)

    def watch(self) -> None:
        """Called often by the sink's clock: from when a live trace holds many lines, each further one is looked at."""
        lines = self.lines
        if lines is not None and self.spans is None and len(lines) > self.overflow:
            with self.packing:
                if self.lines is not None:
                    self.append = self.spilling_line

    def late_line(self, line: Line) -> None:
        """Count a line that came after the end."""
        del line
        self.count_late()

    def relieve(self) -> None:
        """Flush a live trace that holds many lines."""
        lines = self.lines
        if lines is not None and len(lines) > self.overflow:
            spill(self)

    def unused_name(self, name: str) -> str:
        """An artifact's name that this trace has not used yet: with a number where it has."""
        with self.lock:
            unused, number = name, 1
            while unused in self.names:
                number += 1
                stem, dot, suffix = name.rpartition(".")
                unused = f"{stem}-{number}{dot}{suffix}" if stem and "/" not in suffix else f"{name}-{number}"
            self.names.add(unused)
        return unused

    def count_late(self, count: int = 1) -> None:
        """Count lines that came after the end."""
        with self.lock:
            self.late += count
        self.runtime.troubles.report("lines came after the end of their trace", amount=count)

    def set_state(self, state: str, frame: Frame) -> None:
        """Set the trace's state. The last word wins."""
        previous, self.state = self.state, state
        if frame.events is not None:
            self.note((time_ns(), state, previous, STATE, frame), frame.events, 0)

    def end(self, error: BaseException | None) -> None:
        """End the trace: close what is open, innermost first, and hand it on. Only the first call counts.

        An interruption, a job's time limit say, passes once that is done: it strikes one time.
        """
        steps: list[str] = []
        try:
            self._end(error, steps)
        except BaseException as struck:
            if is_interruption(struck):
                self._end(error, steps)
            raise

    def _end(self, error: BaseException | None, steps: list[str]) -> None:
        """Do what is left to do of that: with `steps`, what an interruption has left."""
        with self.lock:
            if not steps and (self.ended is not None or self.lines is None):
                return
            steps.append("begun")
            self.ended = self.ended or monotonic_ns()
        for frame in reversed(list(self.open)):
            frame.close(frame.state if error is None else ERROR, error)
        if error is not None:
            self._record_exception(error)
        if "announced" not in steps:
            steps.append("announced")
            announce("wrapup", self)
        if self.state == RUNNING:
            self.state = SUCCESS
        self.settle_retention()
        with self.packing:
            self.append = self.late_line
            if self.lines is not None:
                self.rest, self.lines = self.lines, None
        if self.spans is not None:
            live_spans.finish(self, error)
        _open.pop(self, None)
        sink = self.runtime.sink
        if sink is not None:
            sink.finish(self)
            if self.rest:  # another thread's, that had the list in its hands when the trace ended
                self.count_late(len(self.rest))

    def _record_exception(self, error: BaseException) -> None:
        root = self.root
        message, traceback = f"Exception: {exception_text(error)}", traceback_text(error)
        put(root, message, ERROR, TEXT)
        put(root, traceback, SUCCESS, RAW)
        self.set_state(ERROR, root)

    def settle_retention(self) -> int:
        """Fix the days that the payload is kept, where they are not fixed yet: given, or the setting's."""
        if self.retention is None:
            setting = self.runtime.settings.retention
            try:
                days = setting(self) if callable(setting) else setting
                if days is None:
                    self.ignored = True
                self.retention = DEFAULT_RETENTION if days is None else whole_days(days)
            except Exception as error:  # users' code: the trace is kept all the same
                self.runtime.troubles.report("the retention callable raised, or gave no number of days", error)
                self.retention = DEFAULT_RETENTION
        return self.retention

    def context_in(self, context: Context) -> Context:
        """`context` with this trace, and its span where it has one, as what is current."""
        span = otel.get_current_span(self.root.ours)
        if f"{span.get_span_context().span_id:016x}" == self.span_id:
            context = otel.set_span_in_context(span, context)
        return Context({**context, FRAME: self.root})

    def waiting(self) -> list[Line]:
        """The lines that nobody has let go of yet. Called under `packing`."""
        return (self.rest if self.lines is None else self.lines)[:]

    def let_go(self, count: int) -> None:
        """Let go of the first `count` of them: they are kept elsewhere. Called under `packing`."""
        del (self.rest if self.lines is None else self.lines)[:count]

    def take(self) -> list[Line]:
        """The lines recorded since the last call. Called under `packing`."""
        taken = self.waiting()
        self.let_go(len(taken))
        return taken

    def abandon(self) -> None:
        """In a forked child: this trace is the parent's; nothing that is recorded here goes to it."""
        self.lock = threading.Lock()
        self.packing = threading.RLock()
        self.append = self.late_line
        self.lines = None
        self.open = {}


def put(frame: Frame, message: str, state: str, kind: str | int) -> None:
    """Record a line in a frame."""
    recording = frame.recording
    lines = recording.lines
    if lines is None:
        recording.count_late()
        return
    line: Line = (time_ns(), message, state, kind, frame)
    if frame.events is None:
        lines.append(line)
    else:
        recording.note(line, frame.events)
    if len(lines) > recording.overflow:
        spill(recording)


def spill(recording: Recording) -> None:
    """Flush a live trace that holds many lines."""
    sink = recording.runtime.sink
    if sink is None:
        recording.take()
    else:
        sink.bump(recording)


def open_block(outer: Frame, context: Context, message: str, state: str, head: bool) -> Frame | None:
    """Open a block in `outer` and make it current; None where the trace has ended."""
    recording = outer.recording
    lines = recording.lines
    if lines is None:
        recording.count_late()
        return None
    frame = Frame(outer, recording, outer.level + 1, message, state)
    frame.before = context
    if recording.spans is None:
        frame.ours = ours = Context({**context, FRAME: frame})
        lines.append((time_ns(), message, state, OPEN_HEAD if head else OPEN, frame))
    else:
        now = time_ns()
        context = live_spans.open_block(frame, outer, context, now)
        frame.ours = ours = Context({**context, FRAME: frame})
        recording.note((now, message, state, OPEN_HEAD if head else OPEN, frame), None)
    if len(lines) > recording.overflow:
        spill(recording)
    recording.open[frame] = frame  # after its line: an error in between, of recursion say, leaves no end without start
    attach(ours)
    return frame


def current_frame() -> Frame | None:
    """The frame that is current in this context."""
    frame = get_current().get(FRAME)
    return frame if isinstance(frame, Frame) else None


def open_recordings() -> list[Recording]:
    """The traces that are running in this process."""
    return list(_open)


def _abandon_all() -> None:
    for recording in open_recordings():
        recording.abandon()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
