"""What a job calls: `tracer`, `block`, `trace`, and what else is said of the running trace.

Nothing here raises into the job, and without a running trace every call is a cheap no-op whose
blocks still run. What is recorded, and where it goes, is in `recording` and behind `runtime`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import time_ns
from types import FunctionType, TracebackType
from typing import Any, TypeVar, cast, overload

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from trifle_otel import conventions as names
from trifle_otel import live_spans
from trifle_otel.encoding import clean_text
from trifle_otel.frames import FRAME, HEAD, TEXT, Frame, RootFrame, current_frame, open_block, put
from trifle_otel.given import attributes_of, context_fields, days_of, labels_of, plain_key, screened, screened_pair
from trifle_otel.otel_context import attach as attach_context
from trifle_otel.otel_context import get_current
from trifle_otel.recording import OVERFLOW, SELDOM, Recording
from trifle_otel.records import ERROR, SUCCESS, WARNING
from trifle_otel.references import safe_name
from trifle_otel.runtime import Runtime, runtime
from trifle_otel.settings import LONGEST_WAIT
from trifle_otel.values import jsonable, text_of
from trifle_otel.wrapping import call, is_lazy, wrap

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class tracer:  # noqa: N801 - used like a function, as a context manager and decorator
    """One execution: records what happens inside into spans, and into the archive where one is configured.

    A context manager (`with`, `async with`) that gives the running trace, and a decorator of functions
    of every kind, each call of which is a trace of its own. When it is left, the trace is durable on local
    disk. An exception that leaves it is recorded, the state becomes error, and it passes unmodified.

    Args:
        key: path-like name of the kind of job, such as `commodity/calculate/one`; few, not one for each argument.
        meta: what the job was called with: anything, kept as JSON.
        tags: labels that the trace is found by.
        mode: `live` (flushed while it runs) or `deferred` (written when it ends); None: the setting.
        retention: days that the payload is kept; None: the setting.
        reference: an id of your own, which must sort by time; None: one is made.
        context: fields of your own for the record.
        kind: kind of the trace's span.
        attributes: attributes of your own for the trace's span, which the sampler sees too.
    """

    __slots__ = (
        "_attributes",
        "_context",
        "_entered",
        "_key",
        "_kind",
        "_meta",
        "_mode",
        "_reference",
        "_retention",
        "_tags",
    )

    def __init__(
        self,
        key: str,
        *,
        meta: Any = None,
        tags: Iterable[str] = (),
        mode: str | None = None,
        retention: int | None = None,
        reference: str | None = None,
        context: Mapping[str, Any] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self._key = key
        self._attributes = attributes
        self._meta = meta
        self._tags = labels_of(tags)
        self._mode = mode
        self._retention = retention
        self._reference = reference
        self._context = context
        self._kind = kind
        self._entered: list[Frame | None] = []

    def __enter__(self) -> Recording:
        frame = self._start()
        self._entered.append(frame)
        return _unrecorded() if frame is None else frame.recording

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(self._entered, error)

    async def __aenter__(self) -> Recording:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: F) -> F:
        _refuse_function(self._key, "tracer", "its key")
        return wrap(function, self._start)

    def _start(self) -> RootFrame | None:
        run = runtime()
        try:
            return self._begin(run)
        except Exception as error:  # ours: the job runs on, unrecorded
            run.troubles.report("a trace could not be started", error)
            return None

    def _begin(self, run: Runtime) -> RootFrame | None:
        settings, context = run.settings, get_current()
        mode = self._mode or settings.default_mode
        if mode not in ("live", "deferred"):
            run.troubles.report("a trace was given a mode that is neither live nor deferred", ValueError(mode))
            mode = settings.default_mode
        key = plain_key(run.redactor, self._key if type(self._key) is str else text_of(self._key))
        attributes = {**attributes_of(run, self._attributes), names.KEY: key, names.MODE: mode}
        span = live_spans.start_root(run, key, self._kind, attributes, context)
        if run.sink is None and span.context is context:  # no span, no archive; one that is sampled out is made current
            return None
        meta, fields = self._described(run, key)
        recording = Recording(run, key, mode=mode, reference=self._reference, meta=meta)
        recording.context = fields
        for label in self._tags:
            _add_tag(recording, label)
        recording.retention = None if self._retention is None else days_of(run, self._retention)
        if mode == "live":
            recording.settle_retention()
        if run.sink is None:
            recording.overflow = OVERFLOW  # lines that go nowhere are let go of, in deferred mode too
        else:
            recording.bucket = run.sink.place(recording)
        return recording.begin(context, span)

    def _described(self, run: Runtime, key: str) -> tuple[Any, dict[str, Any]]:
        """The meta and the context's fields as they are kept."""
        fields: dict[str, Any] = {}
        service = live_spans.service_of(run)
        if service is not None:
            fields["service"] = clean_text(service)
        fields |= context_fields(run, run.settings.context)
        if self._context is not None:
            fields |= context_fields(run, self._context)
        if key != self._key:
            fields["original_key"] = clean_text(text_of(self._key))
        return screened_pair(run, None if self._meta is None else jsonable(self._meta), fields)


class block:  # noqa: N801 - used like a function, as a context manager and decorator
    """A step of the running trace: lines inside are nested in it, and its result is recorded.

    As a context manager it gives the step, whose `result(value)` records the value and gives it back. As
    a decorator of functions and methods of every kind each call is a block, and the returned value its result.
    A generator's block stays open while it is consumed.

    Args:
        message: what the step does; the name of its span.
        state: state of its lines: `success`, `warning`, `error` or `debug`.
        head: whether it starts a section.
    """

    __slots__ = ("_entered", "_head", "_message", "_state")

    def __init__(self, message: str, *, state: str = SUCCESS, head: bool = False) -> None:
        self._message = message
        self._state = state if state is SUCCESS else _state_of(state)
        self._head = head
        self._entered: list[Frame | None] = []

    def __enter__(self) -> Frame | Unrecorded:
        frame = self._open()
        self._entered.append(frame)
        return UNRECORDED_STEP if frame is None else frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(self._entered, error)

    async def __aenter__(self) -> Frame | Unrecorded:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: F) -> F:
        _refuse_function(self._message, "block", "what the step does")
        return wrap(function, self._open)

    def _open(self) -> Frame | None:
        context = get_current()
        outer: Any = context.get(FRAME)
        if outer is None:
            return None
        message = self._message
        if type(message) is not str:
            message = text_of(message)
        return open_block(outer, context, message, self._state, self._head)


class Unrecorded:
    """The step of a block that nothing records."""

    __slots__ = ()

    def result(self, value: T) -> T:
        """Give the value back."""
        return value


UNRECORDED_STEP = Unrecorded()


class attach:  # noqa: N801 - used like a function
    """Make a running trace current in this thread or context by hand: `with trifle.attach(job): …`.

    Lines and blocks go to the trace's top level. Does nothing where `recording` is None.
    """

    __slots__ = ("_before", "_ours", "_recording")

    def __init__(self, recording: Recording | None) -> None:
        self._recording = recording

    def __enter__(self) -> Recording | None:
        recording = self._recording
        self._before = context = get_current()
        self._ours = context
        if recording is not None and recording.lines is not None:
            self._ours = recording.context_in(context)
            attach_context(self._ours)
        return recording

    def __exit__(self, *exception: object) -> None:
        if self._ours is not self._before and get_current() is self._ours:
            attach_context(self._before)


@overload
def trace(message: object, block: None = None, *, state: str = SUCCESS, head: bool = False) -> None: ...
@overload
def trace(message: object, block: Callable[[], T], *, state: str = SUCCESS, head: bool = False) -> T: ...
def trace(message: object, block: Callable[[], Any] | None = None, *, state: str = SUCCESS, head: bool = False) -> Any:
    """Record a line or, given a callable, call it as a block and give what it returns.

    Args:
        message: the text; None is stored as an empty one, other objects as their `str`, taken now.
        block: what to call. For a coroutine or generator function the block stays open until it has finished.
        state: `success`, `warning`, `error` or `debug`; other texts are stored and counted nowhere.
        head: whether the line starts a section.
    """
    frame: Any = get_current().get(FRAME)
    if block is not None:
        return _block(frame, get_current(), message, block, state, head)
    if frame is None:
        return None
    if type(message) is not str:  # not its `__class__`, which a value may lie about, or raise at
        message = text_of(message)
    if state is not SUCCESS:
        state = _state_of(state)
    events = frame.events
    if (
        events is None
    ):  # nothing else on the way to the list: the sink's clock sees to it that it does not grow too long
        frame.recording.append((time_ns(), message, state, HEAD if head else TEXT, frame))
        return None
    recording = frame.recording
    now = time_ns()
    line = (now, message, state, HEAD if head else TEXT, frame)
    # What `note` does, without its calls: where spans record, they were a sixth of the cost of a line of ours.
    with recording.lock:
        lines = recording.lines
        if lines is not None:
            number = recording.number = recording.number + 1
            lines.append(line)  # after which a signal's handler may run, which records a line itself
            first = events.first
            if len(first) < events.room:
                first.append(line)
                events.numbers.append(number)
            else:
                events.add(number, line)
    if lines is None:
        recording.count_late()
    if not now & SELDOM:
        recording.relieve()
    return None


def tag(*tags: str) -> None:
    """Add labels to the running trace. It can be searched by them; duplicates and None are left out."""
    frame = current_frame()
    if frame is not None:
        for label in tags:
            _add_tag(frame.recording, label)


def artifact(name: str, source: bytes | str | Path, *, cleanup: bool = False) -> None:
    """Keep a file with the running trace, as it is now.

    Args:
        name: its name in the archive; may hold folders; made safe. A name given twice gets a number.
        source: its bytes, its text, or (a `Path`) the file to copy.
        cleanup: whether to delete the source file after it was copied.

    A file that cannot be read becomes a warning in the trace. What is neither of these is kept as its text.
    """
    frame = current_frame()
    if frame is None:
        return
    recording = frame.recording
    sink = recording.runtime.sink
    if recording.lines is None or sink is None:
        if recording.lines is None:
            recording.count_late()
        return
    safe = recording.unused_name(safe_name(screened(recording.runtime, text_of(name))))
    try:
        size = sink.artifact(recording, safe, _contents(source), cleanup)
    except Exception as error:  # a path object of the user's that raises
        recording.runtime.troubles.report("an artifact could not be kept", error)
        size = -1
    if size < 0:
        put(frame, f"Artifact {safe} could not be kept", WARNING, TEXT)
    else:
        put(frame, safe, SUCCESS, size)


def fail() -> None:
    """Set the running trace's state to error. The last of `fail`, `warn` and `succeed` counts."""
    _set_state(ERROR)


def warn() -> None:
    """Set the running trace's state to warning. The last of `fail`, `warn` and `succeed` counts."""
    _set_state(WARNING)


def succeed() -> None:
    """Set the running trace's state to success. The last of `fail`, `warn` and `succeed` counts."""
    _set_state(SUCCESS)


def ignore() -> None:
    """Keep nothing of the running trace in the archive: what is stored of it already is deleted at its end."""
    frame = current_frame()
    if frame is not None:
        frame.recording.ignored = True


def current() -> Recording | None:
    """The trace that is running in this context, or None."""
    frame = current_frame()
    return None if frame is None or frame.recording.lines is None else frame.recording


def flush(timeout: float = 5) -> bool:
    """Ship to the archive what waits for it. True when all of it is shipped within `timeout` seconds."""
    sink = runtime().sink
    return True if sink is None else sink.flush(_seconds(timeout))


def shutdown(timeout: float = 5) -> bool:
    """Ship what waits and stop the background thread. True when all of it is shipped within `timeout` seconds."""
    sink = runtime().sink
    return True if sink is None else sink.shutdown(_seconds(timeout))


def prepare() -> None:
    """Do what the first trace of a process does once, so that processes that are forked from it need not: 5 ms each."""
    live_spans.service_of(runtime())


def _block(
    frame: Frame | None, context: Context, message: Any, function: Callable[[], Any], state: str, head: bool
) -> Any:
    if frame is None:
        return function()
    if is_lazy(function):
        return wrap(function, block(message, state=state, head=head)._open)()
    if state is not SUCCESS:
        state = _state_of(state)
    opened = open_block(frame, context, message if type(message) is str else text_of(message), state, head)
    return function() if opened is None else call(function, opened)


def _refuse_function(given: object, decorator: str, what: str) -> None:
    """Say what is wrong where a decorator without parentheses was given the function itself."""
    if isinstance(given, FunctionType):
        raise TypeError(
            f"write @trifle.{decorator}({what!r}) on {given.__qualname__}, with parentheses: it says {what}"
        )


def _seconds(timeout: float | None) -> float:
    """A timeout that a thread can wait for; None, of callers without types, is without end."""
    return LONGEST_WAIT if timeout is None else min(timeout, LONGEST_WAIT)


def _contents(source: object) -> bytes | Path:
    """What an artifact holds: a path to the file with it, or its bytes as they are now."""
    kind = type(source)
    if kind is bytes or issubclass(kind, Path):
        return cast("bytes | Path", source)
    if hasattr(kind, "__fspath__"):
        return Path(cast("os.PathLike[str]", source))
    if issubclass(kind, bytes | bytearray | memoryview):
        return bytes(cast(bytes, source))
    return text_of(source).encode("utf-8", "backslashreplace")


def _set_state(state: str) -> None:
    frame = current_frame()
    if frame is not None and frame.recording.lines is not None:
        frame.recording.set_state(state, frame)


def _add_tag(recording: Recording, label: object) -> None:
    if label is not None:
        recording.tags[label if type(label) is str else text_of(label)] = None


def _state_of(state: object) -> str:
    """A state as text: an enumeration's value, say."""
    return SUCCESS if state is None else text_of(state)


def _leave(entered: list[Frame | None], error: BaseException | None) -> None:
    """Leave the frame that was entered here: where tasks share one object, each leaves its own."""
    if not entered:
        return
    frame = entered.pop() if len(entered) == 1 else _take_own(entered)
    if frame is None:
        return
    if error is None:
        frame.leave()
    else:
        frame.leave_with(error)


def _take_own(entered: list[Frame | None]) -> Frame | None:
    frame = current_frame()
    while frame is not None and frame not in entered:
        frame = frame.parent
    if frame in entered:  # None where nothing was recorded
        entered.remove(frame)
        return frame
    return entered.pop()


_nothing: Recording | None = None


def _unrecorded() -> Recording:
    """What `with tracer(…) as job` gives where nothing is recorded: one that has ended."""
    global _nothing  # noqa: PLW0603 - one for the whole process, since it holds nothing
    if _nothing is None:
        _nothing = Recording(
            Runtime(runtime().settings, None), "unrecorded", mode="deferred", reference=None, meta=None
        )
        _nothing.abandon()
    return _nothing
