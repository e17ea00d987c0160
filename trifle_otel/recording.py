"""One execution in memory: a `Recording`, from its beginning to its end, and those that are running.

No I/O here: where a recording goes is `runtime.Sink`'s business, what becomes of it on spans is
`live_spans`', what its lines look like on disk is `packing`'s. What a job calls is in `calls`; the
trace and its blocks, as places that lines are put in, are `frames`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from time import monotonic_ns, time_ns
from typing import Any, Final

from opentelemetry import trace as otel
from opentelemetry.context import Context

from trifle_otel import live_spans, pending_span
from trifle_otel.frames import FRAME, RAW, STATE, TEXT, Frame, Line, RootFrame, put, spill
from trifle_otel.interruptions import is_interruption
from trifle_otel.otel_context import attach
from trifle_otel.records import ERROR, RUNNING, SUCCESS, empty_counters
from trifle_otel.references import new_reference, safe_key, safe_reference
from trifle_otel.runtime import Runtime, announce
from trifle_otel.settings import DEFAULT_RETENTION, whole_days
from trifle_otel.values import exception_text, traceback_text

OVERFLOW: Final = 20_000
"""Lines that a live trace holds before they are flushed without waiting for the timer."""

SELDOM: Final = 1023
"""Bits of a line's time that are all zero once in a thousand lines: then it is time to look at `OVERFLOW`."""

LATE: Final = "lines came after the end of their trace"
FORKED: Final = "lines came in a forked child, in a trace of its parent: they are in none"

_open: dict[Recording, None] = {}


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
        "derived",
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
        self.key = safe_key(key)
        self.mode = mode
        self.reference = new_reference() if reference is None else safe_reference(reference)
        self.meta = meta  # plain JSON, screened, as `context` is: both are stored as they are
        self.state = RUNNING
        self.ignored = False
        self.derived = False  # made of spans of others, whose reference is the same each time that they come
        self.context: dict[str, Any] = {}
        self.retention: int | None = None
        self.bucket: str | None = None
        self.trace_id = ""
        self.span_id = ""
        self.lines: list[Line] | None = []
        # Where a line goes: straight into the list, as long as nothing records spans and the trace runs. Those who
        # record a job's every line and block look at nothing else.
        self.append: Callable[[Line], None] = self.lines.append
        self.rest: list[Line] = []
        self.tags: dict[str, None] = {}
        self.clean_tags: list[str] = []  # the same, screened, as of the last part
        self.open: dict[Frame, Frame] = {}
        self.late = 0
        self.number = 0
        self.lock = threading.RLock()  # a finalizer or a signal's handler may record a line, anywhere
        self.packing = threading.RLock()
        self.spans: live_spans.LiveSpans | None = None
        self.first_ns = time_ns()
        self.started = monotonic_ns()
        self.ended: int | None = None
        self.last_ns: int | None = None  # when it ended; None: when it was handed on. Known of what others recorded
        self.length = 0
        self.parts = 0
        self.counters = empty_counters()
        self.names: dict[
            str, int
        ] = {}  # of artifacts, of their folders (with a slash), and the last numbers of those with one (behind a NUL)
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
        elif self.runtime.sink is None:
            self.append = _nowhere
        self.context.update(trace_id=span.trace_id, span_id=span.span_id, sampled=span.sampled)
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
            lines, number = self.lines, self.number
            if lines is not None:
                if line[3] is not STATE:
                    number = self.number = number + count
                    lines.append(line)
                if events is not None:
                    events.add(number, line)
        if lines is None and count:
            self.count_late(count)

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
        """An artifact's name that this trace has not used yet: with a number where it has.

        A file and a folder of the same name cannot both be: then the later one has a number.
        """
        names = self.names
        with self.lock:
            *above, last = name.split("/")
            folder = ""
            for part in above:
                path, number = folder + part, 1
                while path in names:
                    number += 1
                    path = f"{folder}{part}-{number}"
                folder = f"{path}/"
                names.setdefault(folder, 1)
            name = unused = folder + last
            numbered = f"\0{name}"
            number = names.get(numbered, 1)
            while unused in names or f"{unused}/" in names:
                number += 1
                stem, dot, suffix = name.rpartition(".")
                unused = f"{stem}-{number}{dot}{suffix}" if stem and "/" not in suffix else f"{name}-{number}"
            names[numbered] = number
            names[unused] = 1
        return unused

    def count_late(self, count: int = 1) -> None:
        """Count lines that came after the end, or in a process that the trace is not of."""
        with self.lock:
            self.late += count
        self.runtime.troubles.report(LATE if self.ended is not None else FORKED, amount=count)

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
            self._record_exception(error, steps)
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

    def _record_exception(self, error: BaseException, steps: list[str]) -> None:
        """Record what an exception says and its traceback, and set the state; what `steps` tells of is done."""
        if "failed" in steps:
            return
        root = self.root
        lines = ((f"Exception: {exception_text(error)}", ERROR, TEXT), (traceback_text(error), SUCCESS, RAW))
        for line in lines[steps.count("told") :]:
            put(root, *line)
            steps.append("told")  # after it: rather twice than not at all
        self.set_state(ERROR, root)
        steps.append("failed")

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
        """`context` with this trace, and its span where it has one, as what is current; as it is, once it has ended."""
        root: RootFrame | None = getattr(self, "root", None)  # another thread may end it meanwhile
        if root is None:
            return context
        span = otel.get_current_span(root.ours)
        if f"{span.get_span_context().span_id:016x}" == self.span_id:
            context = otel.set_span_in_context(span, context)
        return Context({**context, FRAME: root})

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
        self.lock = threading.RLock()
        self.packing = threading.RLock()
        self.append = self.late_line
        self.lines = None
        self.open = {}


def _nowhere(line: Line) -> None:
    """What becomes of a line of a trace that has neither an archive nor spans."""


def open_recordings() -> list[Recording]:
    """The traces that are running in this process."""
    return list(_open)


def _abandon_all() -> None:
    for recording in open_recordings():
        recording.abandon()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
