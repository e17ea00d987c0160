"""One attempt at a job as one trace: what all job frameworks have in common, whatever their hooks are.

A framework's module describes the attempt as a `Job`, starts an `Attempt`, and says how it ended. Nothing here
raises into the job or knows a framework. How web requests become traces is in `web`.
"""

from __future__ import annotations

import math
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

from opentelemetry import propagate
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from trifle_otel.calls import tracer
from trifle_otel.frames import FRAME, Frame, RootFrame, put
from trifle_otel.interruptions import is_interruption
from trifle_otel.otel_context import attach, get_current
from trifle_otel.recording import Recording
from trifle_otel.records import ERROR, SUCCESS, WARNING
from trifle_otel.runtime import runtime
from trifle_otel.values import exception_text, traceback_text

F = TypeVar("F", bound=Callable[..., Any])

PARENT: Final = "trifle-parent-id"
"""The header with the id of the job that sent a message, for frameworks that do not say it themselves."""
ROOT: Final = "trifle-root-id"
"""The same of the first job of its workflow."""
ATTEMPT: Final = "trifle-attempt"
"""The header with the number of the attempt to come, likewise."""

_OWN: Final = "__trifle_job__"
_LOCAL: Final = re.compile(r"<[^>]*>")
_TEXT: Final = "text"
_MOST_PLAIN: Final = 1000  # items of a container that are looked at: an import of a million is not run again by hand
_INT64: Final = range(-(2**63), 2**63)  # beyond, numbers are archived as texts
_RAW: Final = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt at a job, as its framework tells of it.

    Attributes:
        system: the framework: `celery`, `rq`, …; the value of `messaging.system`.
        name: what is run, as a dotted or slashed path: `shop.tasks.price`.
        args: positional arguments, in full.
        kwargs: keyword arguments, in full.
        id: the framework's id of the job, the same for each attempt.
        queue: what it was taken from.
        attempt: which attempt this is, from 1.
        root: id of the first job of its workflow.
        parent: id of the job that enqueued it.
        worker: what runs it.
        headers: what came with the message, for the enqueuer's trace context.
        function: the job's function, for what `job_options` says of it.
        more: further fields for the record's context.
    """

    system: str
    name: str
    args: Any = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    queue: str | None = None
    attempt: int = 1
    root: str | None = None
    parent: str | None = None
    worker: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    function: Any = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is traced, and how; given to `instrument`, or for one job by `job_options`.

    Attributes:
        select: whether an attempt is traced; None: each is.
        key: its key; None: `jobs/<module path>/<name>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """

    select: Callable[[Job], bool] | None = None
    key: str | Callable[[Job], str] | None = None
    mode: str | None = None
    retention: int | None = None


def job_options(
    *,
    trace: bool = True,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> Callable[[F], F]:
    """A decorator that says how one job's attempts are traced, whatever `instrument` was given.

    Put it directly on the function, below the framework's own decorator.

    Args:
        trace: False: attempts at this job are not traced.
        key: their key, or what gives it.
        mode: `live` or `deferred`.
        retention: days that the payload is kept.
    """
    options = Options(select=None if trace else _never, key=key, mode=mode, retention=retention)

    def mark(function: F) -> F:
        setattr(function, _OWN, options)
        return function

    return mark


class Attempt:
    """An attempt that is traced. The first call of one of its ends ends it; later ones do nothing."""

    __slots__ = ("_before", "_frame", "_within")

    def __init__(self, frame: RootFrame, before: Context, within: Context) -> None:
        self._frame: RootFrame | None = frame
        self._before = before
        self._within = within

    def succeed(self, value: object = None) -> None:
        """The job returned `value`."""
        frame = self._frame
        if frame is not None and value is not None:
            try:
                frame.result(value)
            except BaseException as error:  # an interruption: what the job did is over, its end is not
                self.fail(error)
                raise
        self._end(None)

    def fail(self, error: BaseException | None) -> None:
        """The job raised. None: it failed, and nobody says of what."""
        if error is None:
            self.say("The job failed", ERROR)
        self._end(error)

    def expected(self, error: BaseException) -> None:
        """The job raised what it says that it may raise, which is no failure."""
        self.say(f"Expected: {type(error).__name__}: {exception_text(error)}", WARNING)
        self._end(None)

    def retry(self, why: object = None, error: BaseException | None = None) -> None:
        """The job is to be tried again, which is no failure; because of `error`, whose traceback is kept."""
        self.say(f"Retry: {why}" if why else "Retry", WARNING)
        self._trace_back(error)
        self._end(None)

    def ignore(self, why: object = None) -> None:
        """The job says that its outcome does not matter."""
        self.say(f"Ignored: {why}" if why else "Ignored", SUCCESS)
        self._end(None)

    def reject(self, why: object = None) -> None:
        """The job gave its message back."""
        self.say(f"Rejected: {why}" if why else "Rejected", WARNING)
        self._end(None)

    def cancel(self, why: object = None, error: BaseException | None = None) -> None:
        """The job was stopped from outside: revoked, cancelled, out of time. The traceback of `error` says where."""
        self.say(f"Cancelled: {why}" if why else "Cancelled", ERROR)
        self._trace_back(error)
        self._end(None)

    @property
    def recording(self) -> Recording | None:
        """The trace, until its end."""
        return None if self._frame is None else self._frame.recording

    @property
    def within(self) -> Context:
        """The context in which the trace is current, for frameworks that go on elsewhere; until its end."""
        return self._before if self._frame is None else self._frame.ours

    def note(self, message: str, state: str = SUCCESS) -> None:
        """Record a line in the trace itself; the trace's state stays what it is."""
        if self._frame is not None:
            put(self._frame, message, state, _TEXT)

    def step_out(self) -> None:
        """Make current again what was before, while the attempt goes on elsewhere, or later."""
        if self._frame is not None and get_current() is self._frame.ours:
            attach(self._before)

    def say(self, message: str, state: str) -> None:
        """Record a line in the trace itself; a state other than success is the trace's from now on."""
        frame = self._frame
        if frame is not None:
            put(frame, message, state, _TEXT)
            if state != SUCCESS:
                frame.recording.set_state(state, frame)

    def _trace_back(self, error: BaseException | None) -> None:
        if error is not None and self._frame is not None:
            put(self._frame, traceback_text(error), SUCCESS, _RAW)

    def _end(self, error: BaseException | None) -> None:
        frame, self._frame = self._frame, None
        if frame is None:
            return
        try:
            if error is None:
                frame.leave()
            else:
                frame.leave_with(error)
        finally:
            if self._within is not self._before and get_current() is self._within:
                attach(self._before)


def start(job: Job, options: Options = Options(), *, kind: SpanKind = SpanKind.CONSUMER) -> Attempt | None:
    """Start tracing an attempt, here and now; None where it is not traced. Never raises.

    Inside the span of another instrumentation the trace is its child. Where there is none, the trace takes the
    enqueuer's context from the message, and its span is the consumer's, with the attributes of the conventions.
    """
    if not is_wanted():
        return None
    own = getattr(job.function, _OWN, None)
    try:
        if not _selected(job, options, own):
            return None
        return begin(lambda alone: _tracer(job, options, own, kind if alone else SpanKind.INTERNAL, alone), job.headers)
    except Exception as error:  # a callable of the user's: the job runs untraced
        runtime().troubles.report("an attempt at a job could not be traced", error)
        return None


def is_wanted() -> bool:
    """Whether there is anything to record into: an archive, or an SDK."""
    return runtime().sink is not None or not isinstance(
        otel.get_tracer_provider(), otel.ProxyTracerProvider | otel.NoOpTracerProvider
    )


def begin(make: Callable[[bool], tracer], headers: Mapping[str, Any]) -> Attempt | None:
    """Start the tracer that `make` gives, which is told whether no other instrumentation has a span around it.

    In that case it is started in the context that `headers` bring along. Raises what `make` raises.
    """
    before = get_current()
    alone = not otel.get_current_span(before).get_span_context().is_valid
    within = _enqueuers(headers, before) if alone and headers else before
    made = make(alone)
    if within is not before:
        attach(within)
    root = made._start()
    if root is None:
        if within is not before:
            attach(before)
        return None
    return Attempt(root, before, within)


def inject(headers: MutableMapping[str, Any], *, job_id: str | None = None) -> None:
    """Put the current trace context into a message's headers, unless another instrumentation has. Never raises.

    With the id of the job that the message is for, the ids of the job that sends it and of the first of its workflow
    go along, for frameworks that have none of their own. What a job sends again of itself stays as it is.
    """
    try:
        if job_id is not None:
            parent, root = running_job()
            if parent == job_id:
                return
            if parent is not None:
                headers.update({PARENT: parent, ROOT: root or parent})
        if "traceparent" not in headers:
            propagate.inject(headers)
    except Exception as error:  # a propagator that raises, headers that cannot be changed: the job is enqueued
        runtime().troubles.report("a trace context could not be put into a message", error)


def end(attempt: Attempt, how: Callable[[], None], raised: BaseException | None = None) -> None:
    """End an attempt by `how`, which asks the framework what became of it. Always ends it.

    Raises nothing but an interruption of the job. `raised`: what the job raised, should that not be found out.
    """
    try:
        how()
    except BaseException as error:
        if is_interruption(error):
            attempt.fail(error)
            raise
        # a version of the framework that is not as we know it: the job is none the wiser
        runtime().troubles.report("how an attempt at a job ended could not be found out", error)
        attempt.fail(raised)


def running_job() -> tuple[str | None, str | None]:
    """Ids of the job whose attempt runs here, and of the first of its workflow."""
    frame = get_current().get(FRAME)
    while isinstance(frame, Frame):
        fields = frame.recording.context
        if "job_system" in fields:
            return fields.get("job_id"), fields.get("root_id")
        root = getattr(frame.recording, "root", None)  # an ended trace has none
        frame = None if root is None else root.before.get(FRAME)
    return None, None


def because(error: BaseException, seconds: float | None = None) -> str:
    """Why, and in how many seconds, a job is tried again."""
    text = f"{type(error).__name__}: {exception_text(error)}"
    return f"in {seconds:g} s: {text}" if seconds else text


def ship_before_exit() -> None:
    """Ship what waits, in a process whose end calls no exit handlers, as those of `multiprocessing` do not."""
    run, processes = runtime(), sys.modules.get("multiprocessing.process")
    if run.sink is not None and processes is not None and processes.parent_process() is not None:
        run.sink.flush(run.settings.exit_timeout)


def _enqueuers(headers: Mapping[str, Any], context: Context) -> Context:
    """The context that a message brings along; the one that is given where it brings none that can be read."""
    try:
        return propagate.extract(headers, context)
    except Exception as error:  # somebody else's headers may hold anything
        runtime().troubles.report("a message's trace context could not be read", error)
        return context


@lru_cache(maxsize=1024)
def default_key(name: str) -> str:
    """`jobs/<module path>/<name>`, of a dotted or slashed name."""
    return "jobs/" + _LOCAL.sub("", name.replace(":", ".")).replace("..", ".").strip(".").replace(".", "/")


def _selected(job: Job, options: Options, own: Options | None) -> bool:
    if own is not None and own.select is not None:
        return own.select(job)
    return options.select is None or bool(options.select(job))


def _tracer(job: Job, options: Options, own: Options | None, kind: SpanKind, alone: bool) -> tracer:
    own = own or Options()
    key = own.key or options.key or default_key(job.name)
    meta = {"args": job.args, "kwargs": job.kwargs} if job.kwargs else job.args
    return tracer(
        key if isinstance(key, str) else key(job),
        meta=meta,
        tags=() if job.id is None else (job.id,),
        mode=own.mode or options.mode,
        retention=own.retention or options.retention,
        context=_context(job),
        kind=kind,
        attributes=_attributes(job) if alone else None,
    )


def _context(job: Job) -> dict[str, Any]:
    known = {
        "meta_exact": None if _is_plain(_listed(job.args)) and _is_plain(job.kwargs) else False,
        "job_id": job.id,
        "job_name": job.name,
        "job_system": job.system,
        "queue": job.queue,
        "attempt": job.attempt,
        "root_id": job.root,
        "parent_id": job.parent,
        "worker": job.worker or _worker(),
        **job.more,
    }
    return {name: value for name, value in known.items() if value is not None}


def _listed(args: Any) -> Any:
    """Positional arguments as a list: that they are a tuple is the framework's doing, and theirs to make again."""
    return list(args) if type(args) is tuple else args


def _is_plain(value: Any, depth: int = 8) -> bool:
    """Whether a value is the same once it is JSON and back, so that the job could be run again with it."""
    kind = type(value)
    if value is None or kind is bool:
        return True
    if kind is str:
        return _is_plain_text(value)
    if kind is int:
        return value in _INT64
    if kind is float:
        return math.isfinite(value)
    if depth and kind is list:
        return len(value) <= _MOST_PLAIN and all(_is_plain(item, depth - 1) for item in value)
    if depth and kind is dict:
        return len(value) <= _MOST_PLAIN and all(
            type(name) is str and _is_plain_text(name) and _is_plain(item, depth - 1) for name, item in value.items()
        )
    return False


def _is_plain_text(text: str) -> bool:
    """Whether a text is archived as it is: without NUL and lone surrogates."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _attributes(job: Job) -> dict[str, Any]:
    """Of a consumer's span: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/."""
    known = {
        "messaging.system": job.system,
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": job.queue,
        "messaging.message.id": job.id,
    }
    return {name: value for name, value in known.items() if value is not None}


def _worker() -> str:
    return f"{_host()}:{os.getpid()}"


@lru_cache(maxsize=1)
def _host() -> str:
    """The host's name; it does not change while a process lives."""
    return socket.gethostname()


def _never(job: Job) -> bool:
    del job
    return False
