"""The running trace in threads and other processes: `carry` for threads, `submit` for executors of both kinds.

`asyncio.to_thread` and tasks take the trace along by themselves, and so do threads under OpenTelemetry's
instrumentation for threading. What a process records comes home with its result, or is a trace of its own that names
this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from opentelemetry import propagate
from opentelemetry.trace import NoOpTracerProvider

from trifle_otel.calls import artifact, tracer
from trifle_otel.frames import CLOSE, HEAD, NOWHERE, OPEN, OPEN_HEAD, RAW, TEXT, Frame, current_frame
from trifle_otel.otel_context import attach, get_current
from trifle_otel.recording import Recording
from trifle_otel.records import SUCCESS
from trifle_otel.runtime import Runtime, runtime
from trifle_otel.settings import Settings
from trifle_otel.values import text_of, traceback_text

_KINDS = {
    kind: kind for kind in (TEXT, HEAD, RAW, OPEN, OPEN_HEAD, CLOSE)
}  # what is done with lines tells them by identity

P = ParamSpec("P")
T = TypeVar("T")


def carry(function: Callable[P, T]) -> Callable[P, T]:
    """`function` in the trace and block that are current now, in whatever thread it is called.

    Its lines and blocks are nested in this block. For `ThreadPoolExecutor.map`, `Thread(target=…)` and the like.
    """
    context = get_current()

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> T:
        before = get_current()
        attach(context)
        try:
            return function(*args, **kwargs)
        finally:
            attach(before)

    return carried


def submit(executor: Executor, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """`executor.submit(function, …)` in the running trace.

    In a thread the function's lines go where they would go here. In another process they are collected, and put into
    this block when the result is there, with their times; its artifacts likewise. Where the trace has ended by
    then they are counted as late. The function, its arguments and its result must be picklable, as ever. An exception
    has the other process's traceback as its cause, as with the pool's own `submit`.
    """
    frame = current_frame()
    if not isinstance(executor, ProcessPoolExecutor):
        return executor.submit(carry(function), *args, **kwargs)
    if frame is None or frame.recording.lines is None:
        return executor.submit(function, *args, **kwargs)
    away = _Away(function, _settings_there(frame.recording.runtime.settings))
    return _brought_home(executor.submit(away, *args, **kwargs), frame)


def linked(function: Callable[P, T], *, key: str | None = None) -> Callable[P, T]:
    """`function` as a trace of its own in another process, which names the one that is running here.

    For long work, whose trace is to be seen while it runs. Its key is this trace's and the function's name, its tag the
    reference of this trace; spans are of the same distributed trace. The process must be configured itself, as by
    `TRIFLE_ARCHIVE`. Where no trace is running, the function is given back as it is.

    Args:
        function: must be picklable.
        key: the key of its trace; None: `<key of this one>/<name of the function>`.
    """
    frame = current_frame()
    if frame is None:
        return function
    recording = frame.recording
    headers: dict[str, str] = {}
    propagate.inject(headers)
    name = getattr(function, "__name__", type(function).__name__)
    return _Linked(function, key or f"{recording.key}/{name}", recording.reference, headers)


@dataclass(frozen=True, slots=True)
class _Linked:
    """What `linked` gives: called in the other process."""

    function: Callable[..., Any]
    key: str
    reference: str
    headers: dict[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = get_current()
        attach(propagate.extract(self.headers, before))
        try:
            with tracer(
                self.key,
                meta={"args": args, "kwargs": kwargs} if kwargs else args,
                tags=[self.reference],
                context={"parent_reference": self.reference},
            ) as job:
                value = self.function(*args, **kwargs)
                root = getattr(job, "root", None)
                if root is not None and value is not None:
                    root.result(value)
                return value
        finally:
            attach(before)


@dataclass(slots=True)
class _Collected:
    """What came home: lines `(ns, text, state, kind, frame)`, frames `(around it, level, message, state)` by number."""

    lines: list[tuple[int, str, str, str, int]]
    frames: list[tuple[int, int, str, str]]
    artifacts: list[tuple[str, bytes]]
    state: str
    tags: list[str]
    value: Any = None
    error: BaseException | None = None
    traceback: str = ""  # of the error, with its causes: pickled, it has neither


@dataclass(frozen=True, slots=True)
class _Away:
    """What `submit` gives to a process: the function, and what its lines are made with."""

    function: Callable[..., Any]
    settings: Settings

    def __call__(self, *args: Any, **kwargs: Any) -> _Collected:
        collecting = _Collecting()
        root = tracer("away", mode="deferred")._begin(Runtime(self.settings, collecting))
        assert root is not None  # there is a sink
        recording = root.recording
        value: Any = None
        error: BaseException | None = None
        try:
            value = self.function(*args, **kwargs)
        except BaseException as raised:  # `sys.exit()` too, which a pool gives back as any other
            error = raised
        for frame in reversed(list(recording.open)):
            frame.close(frame.state, None)
        lines = recording.take()[1:]  # without the line that says that it began
        root.put_back()
        recording.abandon()
        collected = _packed(lines, root, recording, collecting, value)
        if error is not None:
            collected.error = error
            collected.traceback = traceback_text(error)
            error.with_traceback(None)  # its frames, this one too, hold the arguments, and this one holds it: a cycle
        return collected


@dataclass(slots=True)
class _Collecting:
    """A sink that keeps nothing but artifacts, in memory."""

    artifacts: list[tuple[str, bytes]] = field(default_factory=list)

    def place(self, recording: Recording) -> str | None:
        del recording
        return None

    def finish(self, recording: Recording) -> None:
        del recording

    def bump(self, recording: Recording) -> None:
        del recording

    def artifact(self, recording: Recording, name: str, source: bytes | Path, cleanup: bool) -> int:
        del recording
        try:
            data = source if isinstance(source, bytes) else source.read_bytes()
            if cleanup and isinstance(source, Path):
                source.unlink()
        except OSError as error:
            runtime().troubles.report("an artifact could not be kept", error)
            return -1
        self.artifacts.append((name, data))
        return len(data)

    def uri(self, recording: Recording) -> str | None:
        del recording
        return None

    def flush(self, timeout: float) -> bool:
        del timeout
        return True

    def shutdown(self, timeout: float) -> bool:
        del timeout
        return True


def _settings_there(settings: Settings) -> Settings:
    """Settings that can be pickled, and under which no spans are made: the lines are spans' business at home."""
    serializer = settings.serializer if isinstance(settings.serializer, str) else "repr"
    return Settings(
        serializer=serializer,
        payload_size_limit=settings.payload_size_limit,
        redaction=False,  # at home, with all others
        tracer_provider=_NOWHERE,
    )


class _Nowhere(NoOpTracerProvider):
    """A provider that can be pickled."""


_NOWHERE = _Nowhere()


def _packed(
    lines: list[Any],
    root: Frame,
    recording: Recording,
    collecting: _Collecting,
    value: Any,
) -> _Collected:
    numbers: dict[Frame, int] = {root: -1}
    frames: list[tuple[int, int, str, str]] = []
    packed = []
    for ns, text, state, kind, frame in lines:
        if frame not in numbers:
            outer = numbers.get(frame.parent, -1) if frame.parent is not None else -1
            numbers[frame] = len(frames)
            frames.append((outer, frame.level, frame.message, frame.state))
        if isinstance(kind, str):
            packed.append((ns, text, state, kind, numbers[frame]))
    tags = [text_of(tag) for tag in recording.tags]
    return _Collected(packed, frames, collecting.artifacts, recording.state, tags, value)


class _RemoteTraceback(Exception):  # noqa: N818 - the name of the pool's own, which is private
    """The traceback of another process as the cause of what was raised there, printed like the pool's own."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb


class _Home(Future[Any]):
    """A future of the plain result: it runs, and can be cancelled, when the pool's own does, and can."""

    def __init__(self, pools: Future[Any]) -> None:
        super().__init__()
        self._pools = pools

    def running(self) -> bool:
        """Whether the function is being called, or what it recorded is being put into the trace."""
        return super().running() or (self._pools.running() and not self.done())

    def cancel(self) -> bool:
        """Cancel the call, if it has not begun."""
        return self._pools.cancel()

    def be_cancelled(self) -> None:
        """Be what the pool's own future has become."""
        super().cancel()


def _brought_home(inner: Future[Any], frame: Frame) -> Future[Any]:
    """A future of the plain result, done once the lines are where they belong."""
    outer = _Home(inner)

    def done(finished: Future[Any]) -> None:
        if finished.cancelled():
            outer.be_cancelled()
        if not outer.set_running_or_notify_cancel():
            return
        try:
            collected = finished.result()
        except BaseException as error:  # whatever it is: raised here, it would end the pool's own thread
            outer.set_exception(error)
            return
        try:
            _unpack(collected, frame)
        except Exception as error:  # ours: the result is there all the same
            frame.recording.runtime.troubles.report(
                "what another process recorded could not be put into a trace", error
            )
        finally:
            if collected.error is not None:
                _set_cause(collected.error, collected.traceback)
                outer.set_exception(collected.error)
            else:
                outer.set_result(collected.value)

    inner.add_done_callback(done)
    return outer


def _set_cause(error: object, there: str) -> None:
    """Make the traceback of the other process the exception's cause."""
    if isinstance(error, BaseException):  # it may have been unpickled as something else
        # not by the exception's own class: it may let nothing be set, as a frozen dataclass does
        BaseException.__setattr__(error, "__cause__", _RemoteTraceback(f'\n"""\n{there}\n"""'))


def _unpack(collected: _Collected, outer: Frame) -> None:
    recording = outer.recording
    frames: list[Frame] = []
    for around, level, message, state in collected.frames:
        parent = frames[around] if around >= 0 else outer
        frame = Frame(parent, recording, outer.level + level, message, state)
        frame.events = outer.events
        frames.append(frame)
    spans = recording.spans
    for ns, text, state, kind, number in collected.lines:
        frame = frames[number] if number >= 0 else outer
        kind = _KINDS[kind]
        line = (ns, text, SUCCESS if state == SUCCESS else state, kind, frame)
        if kind in (OPEN, OPEN_HEAD, CLOSE):
            recording.note(line, None, 2 if kind is CLOSE else 1)
            if spans is not None and kind is CLOSE:
                spans.omit_block()
        else:
            recording.note(line, frame.events)
    for tag in collected.tags:
        recording.tags[tag] = None
    before = get_current()
    attach(recording.context_in(before) if outer.ours is NOWHERE else outer.ours)
    try:
        for name, data in collected.artifacts:
            artifact(name, data)
    finally:
        attach(before)
    if collected.state not in ("running", SUCCESS):
        recording.set_state(collected.state, outer)
