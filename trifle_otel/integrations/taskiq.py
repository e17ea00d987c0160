"""Taskiq: each attempt at a task as one trace, and the enqueuer's trace context in the task's labels.

Tasks that run in a pool of processes are traced from outside: what they record themselves is not part of it. An
attempt that is tried again is known by what Taskiq's retry middlewares put into its result; under
`no_result_on_retry=False` it looks like one that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any

from trifle_otel.calls import prepare
from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import (
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
from trifle_otel.integrations.patching import Patches
from trifle_otel.values import exception_text

try:
    from taskiq import TaskiqMiddleware
    from taskiq.exceptions import NoResultError, TaskRejectedError
    from taskiq.kicker import AsyncKicker
    from taskiq.receiver import Receiver
except ModuleNotFoundError as missing:
    raise MissingDependency(f"tracing Taskiq's tasks needs Taskiq: pip install taskiq ({missing})") from missing

_raised: dict[int, BaseException] = {}  # of tasks that run here, by the id of their message
_running: set[Attempt] = set()
_options: Options | None = None
_patches = Patches()


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at each task from now on. May be called again with other values.

    Args:
        select: whether an attempt is traced; None: each is.
        key: its key; None: `jobs/<module path>/<name>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        _patches.put(Receiver, "listen", _listen)
        _patches.put(Receiver, "run_task", _run_task)
        _patches.put(AsyncKicker, "_prepare_message", _prepare_message)


def uninstrument() -> None:
    """Trace no more attempts."""
    global _options  # noqa: PLW0603 - what this process is set up with
    _options = None
    _patches.take_back()


async def _listen(listen: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """A worker's process, before its first task: it looks for what dead processes left."""
    prepare()
    Finalize(None, _leave, exitpriority=0)  # at the process's own end: plain functions outlive this coroutine
    return await listen(self, *args, **kwargs)


def _leave() -> None:
    """Close the traces of tasks that Taskiq does not wait for, and ship: no exit handlers before Python 3.13."""
    for attempt in tuple(_running):
        attempt.cancel("the worker ends")
    ship_before_exit()


async def _run_task(run_task: Any, self: Any, target: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
    options = _options
    attempt = None if options is None else start(_job(target, message, self.broker), options)
    if attempt is None:
        return await run_task(self, target, message, *args, **kwargs)
    _running.add(attempt)
    try:
        _watch(self.broker)
        result = await run_task(self, target, message, *args, **kwargs)
    except asyncio.CancelledError:
        attempt.cancel("the worker ends")
        raise
    except BaseException as error:
        attempt.fail(error)
        raise
    finally:
        _running.discard(attempt)
        raised = _raised.pop(id(message), None)
    end(attempt, lambda: _end_as(attempt, result, raised), raised)
    return result


def _prepare_message(prepare_message: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    message = prepare_message(self, *args, **kwargs)
    inject(message.labels, job_id=message.task_id)
    return message


def _job(target: Any, message: Any, broker: Any) -> Job:
    labels = message.labels
    headers = {name: value for name, value in labels.items() if isinstance(value, str)}
    queue = labels.get("queue_name") or getattr(broker, "queue_name", None)  # as brokers name it that have one
    return Job(
        system="taskiq",
        name=message.task_name,
        args=message.args,
        kwargs=message.kwargs,
        id=message.task_id,
        queue=queue if isinstance(queue, str) else None,
        attempt=_retries(labels) + 1,
        root=headers.get(ROOT, message.task_id),
        parent=headers.get(PARENT),
        headers=headers,
        function=target,
    )


class _Watcher(TaskiqMiddleware):
    """Notes what a task raised: a retry middleware may put something else into the result."""

    def on_error(self, message: Any, result: Any, exception: BaseException) -> None:
        """Called before all others' methods of this name."""
        del result
        _raised[id(message)] = exception


def _watch(broker: Any) -> None:
    """Be the last of a broker's middlewares, which is asked first when a task has raised."""
    if not broker.middlewares or type(broker.middlewares[-1]) is not _Watcher:
        broker.middlewares[:] = [other for other in broker.middlewares if type(other) is not _Watcher]
        broker.add_middlewares(_Watcher())


def _end_as(attempt: Attempt, result: Any, raised: BaseException | None) -> None:
    if raised is None and not result.is_err:
        attempt.succeed(result.return_value)
    elif isinstance(raised, asyncio.CancelledError):  # which Taskiq keeps as a result
        attempt.cancel("the worker ends", raised)
    elif isinstance(raised, NoResultError):
        attempt.ignore("no result is kept")
    elif isinstance(raised, TaskRejectedError):
        attempt.reject(exception_text(raised))
    elif raised is not None and isinstance(result.error, NoResultError):  # a retry middleware's doing
        attempt.retry(because(raised), raised)
    else:
        attempt.fail(raised)


def _retries(labels: Any) -> int:
    try:
        return int(labels.get("_retries", 0))
    except (TypeError, ValueError):
        return 0
