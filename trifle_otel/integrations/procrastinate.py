"""Procrastinate: each attempt at a job as one trace.

Workers that are made after `instrument()` are traced. A job of Procrastinate's has no place for headers, so that the
enqueuer's trace context does not travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import Attempt, Job, Options, because, end, start
from trifle_otel.integrations.patching import Patches

try:
    import procrastinate.middleware  # noqa: F401 - not there before 3.9, whose workers cannot be told of ours
    from procrastinate.exceptions import JobAborted
    from procrastinate.worker import Worker
except ModuleNotFoundError as missing:
    raise MissingDependency(
        f"tracing Procrastinate's jobs needs Procrastinate 3.9 or later: pip install 'procrastinate>=3.9' ({missing})"
    ) from missing

_options: Options | None = None
_patches = Patches()


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at each job of workers that are made from now on. May be called again with other values.

    Args:
        select: whether an attempt is traced; None: each is.
        key: its key; None: `jobs/<module path>/<name>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        _patches.put(Worker, "__init__", _made)


def uninstrument() -> None:
    """Trace no more attempts, not even of workers that are there."""
    global _options  # noqa: PLW0603 - what this process is set up with
    _options = None
    _patches.take_back()


def _made(made: Callable[..., None], worker: Worker, *args: Any, **kwargs: Any) -> None:
    made(worker, *args, **kwargs)
    worker.task_middleware = [_sync, _async, *worker.task_middleware]


def _sync(call_next: Callable[[], Any], context: Any, worker: Any) -> Any:
    """Around a job whose function is a plain one, in the thread that runs it."""
    attempt = _started(context, worker)
    if attempt is None:
        return call_next()
    try:
        value = call_next()
    except BaseException as error:
        _failed(attempt, context, error)
        raise
    attempt.succeed(value)
    return value


async def _async(call_next: Callable[[], Any], context: Any, worker: Any) -> Any:
    """Around a job whose function is a coroutine."""
    attempt = _started(context, worker)
    if attempt is None:
        return await call_next()
    try:
        value = await call_next()
    except BaseException as error:
        _failed(attempt, context, error)
        raise
    attempt.succeed(value)
    return value


def _started(context: Any, worker: Any) -> Attempt | None:
    options = _options
    if options is None:
        return None
    job = context.job
    return start(
        Job(
            system="procrastinate",
            name=job.task_name,
            kwargs=job.task_kwargs,
            id=None if job.id is None else str(job.id),
            queue=job.queue,
            attempt=job.attempts + 1,
            function=getattr(context.task, "func", None),
            worker=worker.worker_name if worker.worker_name != "worker" else None,
        ),
        options,
    )


def _failed(attempt: Attempt, context: Any, error: BaseException) -> None:
    end(attempt, lambda: _end_as(attempt, context, error), error)  # a retry strategy is the user's, and may raise


def _end_as(attempt: Attempt, context: Any, error: BaseException) -> None:
    if isinstance(error, JobAborted | asyncio.CancelledError):
        attempt.cancel("aborted, or the worker ends")
    elif context.task is not None and context.task.get_retry_exception(exception=error, job=context.job) is not None:
        attempt.retry(because(error), error)
    else:
        attempt.fail(error)
