"""Huey: each attempt at a task is a trace, in threads, processes and greenlets, and in immediate mode.

An attempt lasts as long as Huey works on the task, its hooks and signals included, and ends before it is tried again.
How the task's own code ended is seen where it is called: `CancelExecution` and `KeyboardInterrupt` never reach Huey's
hooks. The enqueuer's trace context travels behind the pickled message, where Huey's workers without us do not look;
a serializer of somebody's own that does not pickle lets it go. What an attempt is, is in `attempts`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

from opentelemetry.trace import SpanKind

from trifle_otel import interruptions
from trifle_otel.calls import prepare
from trifle_otel.integrations.attempts import (
    ATTEMPT,
    PARENT,
    ROOT,
    Attempt,
    Job,
    Options,
    because,
    end,
    inject,
    ship_before_exit,
    start,
)
from trifle_otel.integrations.behind import look_behind, put_behind
from trifle_otel.integrations.patching import Patches
from trifle_otel.runtime import runtime

try:
    from huey import consumer
    from huey.api import Huey, Task
    from huey.exceptions import CancelExecution, RateLimitExceeded, RetryTask, TaskLockedException, TaskTimeout
    from huey.registry import Message
    from huey.serializer import Serializer
except ImportError as missing:
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(
        f"tracing Huey's tasks needs Huey: pip install 'trifle-otel[huey]' ({missing})"
    ) from missing

_HEADERS: Final = "trifle_headers"  # of a task: what its message brought along, or is to take along
_RUN: Final = "trifle_run"  # of a task that Huey works on

_options: Options | None = None
_patches = Patches()
_passing = threading.local()  # headers, between a task and its message's bytes


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at a task of this process, of every `Huey` in it; called again it changes how.

    Call it in the module that makes the `Huey`, which the consumer imports.

    Args:
        select: whether an attempt is traced; None: each is.
        key: its key, or what gives it; None: `jobs/<module path>/<name>`.
        mode: `live` (flushed while it runs) or `deferred` (written when it ends); None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        interruptions.add(TaskTimeout)  # in a greenlet, too
        _patches.put(Huey, "enqueue", _enqueue)
        _patches.put(Huey, "_execute", _execute)
        _patches.put(Huey, "_requeue_task", _try_again)
        _patches.put(Huey, "notify_interrupted_tasks", _interrupt)
        _patches.put(Huey, "serialize_task", _pack)
        _patches.put(Huey, "deserialize_task", _unpack)
        _patches.put(Serializer, "_serialize", _serialize)
        _patches.put(Serializer, "_deserialize", _deserialize)
        _patches.put(consumer.Consumer, "start", _consume)
        _patches.put(consumer.Worker, "shutdown", _shut_down)


def uninstrument() -> None:
    """Trace no more attempts."""
    global _options  # noqa: PLW0603
    _options = None
    interruptions.remove(TaskTimeout)
    _patches.take_back()


class _Run:
    """What is known of a task that Huey works on."""

    def __init__(self, attempt: Attempt, body: Callable[[], Any]) -> None:
        self.attempt = attempt
        self.body = body
        self.called = False
        self.error: BaseException | None = None

    def execute(self) -> Any:
        """Call the task's own code, in the place of its `execute`."""
        self.called = True
        try:
            return self.body()
        except BaseException as error:
            self.error = error
            raise


# -- where Huey calls us


def _consume(theirs: Any, *args: Any, **kwargs: Any) -> Any:
    """The consumer's main process: it ships what its workers leave behind that are processes."""
    prepare()
    return theirs(*args, **kwargs)


def _shut_down(theirs: Any, *args: Any, **kwargs: Any) -> Any:
    theirs(*args, **kwargs)
    ship_before_exit()


def _enqueue(theirs: Any, huey: Any, task: Any) -> Any:
    if isinstance(task, Task):
        headers = {**vars(task).get(_HEADERS, {})}  # of its own: Huey copies tasks
        inject(headers, job_id=task.id)
        if headers:
            setattr(task, _HEADERS, headers)
    return theirs(huey, task)


def _execute(theirs: Any, huey: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
    attempt = _start(huey, task)
    if attempt is None:
        return theirs(huey, task, *args, **kwargs)
    own = vars(task)
    run = own[_RUN] = _Run(attempt, task.execute)
    own["execute"] = run.execute
    try:
        value = theirs(huey, task, *args, **kwargs)
    except BaseException as error:  # its result cannot be stored, perhaps
        run.error = error
        end(attempt, partial(_end, run, None))
        raise
    finally:
        own.pop("execute", None)
        own.pop(_RUN, None)
    end(attempt, partial(_end, run, value))
    return value


def _try_again(theirs: Any, huey: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
    headers = vars(task).get(_HEADERS, {})
    setattr(task, _HEADERS, {**headers, ATTEMPT: headers.get(ATTEMPT, 1) + 1})
    run: _Run | None = vars(task).pop(_RUN, None)
    if run is not None:
        del vars(task)["execute"]
        at = args[1] if len(args) > 1 else kwargs.get("retry_eta")
        end(run.attempt, lambda: run.attempt.retry(_why(run.error, at, task.retry_delay), run.error))
    return theirs(huey, task, *args, **kwargs)


def _interrupt(theirs: Any, huey: Any) -> Any:
    """Threads end with the process, wherever they are."""
    for task in tuple(huey._tasks_in_flight):
        run: _Run | None = vars(task).get(_RUN)
        if run is not None:
            end(run.attempt, partial(run.attempt.cancel, "the worker stopped"))
    return theirs(huey)


# -- headers of messages


def _pack(theirs: Any, huey: Any, task: Any) -> Any:
    _passing.headers = vars(task).get(_HEADERS)
    try:
        return theirs(huey, task)
    finally:
        _passing.headers = None


def _serialize(theirs: Any, serializer: Any, data: Any) -> Any:
    headers, packed = getattr(_passing, "headers", None), theirs(serializer, data)
    return put_behind(packed, headers) if headers and isinstance(data, Message) else packed


def _unpack(theirs: Any, huey: Any, data: Any) -> Any:
    _passing.headers = None
    _passing.reading = True
    try:
        task = theirs(huey, data)
        if _passing.headers:
            setattr(task, _HEADERS, _passing.headers)
        return task
    finally:
        _passing.headers = None
        _passing.reading = False


def _deserialize(theirs: Any, serializer: Any, data: Any) -> Any:
    if getattr(_passing, "reading", False):
        _passing.headers = look_behind(data)
    return theirs(serializer, data)


# -- an attempt


def _start(huey: Any, task: Any) -> Attempt | None:
    options = _options
    if options is None:
        return None
    try:
        described = _describe(huey, task)
    except Exception as error:  # a task of somebody's own kind
        runtime().troubles.report("an attempt at a job could not be traced", error)
        return None
    return start(described, options, kind=SpanKind.INTERNAL if huey.immediate else SpanKind.CONSUMER)


def _describe(huey: Any, task: Any) -> Job:
    headers, chord = vars(task).get(_HEADERS, {}), task.chord_config
    kind = type(task)
    return Job(
        system="huey",
        name=f"{kind.__module__}.{kind.__name__}",
        args=task.args,
        kwargs=task.kwargs,
        id=task.id,
        queue=huey.name,
        attempt=headers.get(ATTEMPT, 1),
        root=headers.get(ROOT, task.id),
        parent=headers.get(PARENT),
        headers=headers,
        function=_function(kind),
        more={"chord_id": None if chord is None else chord.cid, "eager": True if huey.immediate else None},
    )


def _function(kind: Any) -> Any:
    """The function that a class of tasks was made of: Huey keeps it in its `execute` alone."""
    names: tuple[str, ...] = getattr(getattr(kind.execute, "__code__", None), "co_freevars", ())
    cell = dict(zip(names, getattr(kind.execute, "__closure__", None) or (), strict=True)).get("func")
    return None if cell is None else cell.cell_contents


def _end(run: _Run, value: Any) -> None:
    attempt, error = run.attempt, run.error
    if error is None and not run.called:
        attempt.ignore("a hook cancelled the task before it ran")
    elif error is None:
        attempt.succeed(value)
    elif isinstance(error, CancelExecution):
        attempt.ignore(error)
    elif isinstance(error, KeyboardInterrupt):
        attempt.cancel("the worker stopped", error)
    elif isinstance(error, TaskLockedException | RateLimitExceeded):
        attempt.expected(error)
    else:
        attempt.fail(error)


def _why(error: BaseException | None, at: datetime | None, delay: float) -> str:
    """Why a task is tried again, and when: at a time of Huey's own clock, or after a delay."""
    if error is None:
        return ""
    asks = isinstance(error, RetryTask)
    text = str(error.args[0] or "") if asks and error.args else because(error, None if at else delay)
    return ": ".join(filter(None, (f"at {at:%Y-%m-%d %H:%M:%S}" if at else "", text)))
