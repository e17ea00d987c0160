"""Places that lines are put in: `Frame`s, which are the blocks of a trace and the trace itself; and what a line is.

The current frame lives in OpenTelemetry's context and nowhere else, so it follows that context
into tasks, threads and copies. A context is never detached by token: leaving puts back what was
current before, and only where ours still is current, since generators and tasks end in places
where a token would be of another context.

Whose lines they are, and how an execution begins and ends, is in `recording`; spans are `live_spans`' business.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context, create_key

from trifle_otel import live_spans
from trifle_otel.interruptions import is_interruption
from trifle_otel.otel_context import attach, get_current
from trifle_otel.records import ERROR, SUCCESS

if TYPE_CHECKING:
    from trifle_otel.recording import Recording

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
        self.written: str | None = None  # the message of its closing line, once its opening one was stored

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
                recording.append((time_ns(), text, self.state, CLOSE, self))
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
            live_spans.close(self, line[0], state, error)  # it was opened while the trace ended
        elif recording.spans is None:
            recording.append(line)
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
        recording.append((time_ns(), message, state, OPEN_HEAD if head else OPEN, frame))
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
