"""Procrastinate: each attempt at a job as one trace.

Workers that are made after `instrument()` are traced. A job of Procrastinate's has no place for headers, so that the
enqueuer's trace context does not travel.

Whether a job that failed is tried again is for Procrastinate to find out: it asks the task's retry strategy, which may
keep count, after all middlewares. The trace of such an attempt is open until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import Attempt, Job, Options, because, start
from trifle_otel.integrations.patching import Patches

try:
    import procrastinate.middleware  # noqa: F401 - not there before 3.9, whose workers cannot be told of ours
    from procrastinate.exceptions import JobAborted
    from procrastinate.tasks import Task
    from procrastinate.worker import Worker
except ModuleNotFoundError as missing:
    raise MissingDependency(
        f"tracing Procrastinate's jobs needs Procrastinate 3.9 or later: pip install 'procrastinate>=3.9' ({missing})"
    ) from missing

_job: ContextVar[_Failed | None] = ContextVar("trifle_procrastinate_job", default=None)
_options: Options | None = None
_patches = Patches()


class _Failed:
    """The attempt that failed at a job that is processed, until it is known what becomes of it."""

    def __init__(self) -> None:
        self._attempt: Attempt | None = None
        self._error: BaseException | None = None

    def put(self, attempt: Attempt, error: BaseException) -> None:
        """An attempt failed, by `error`. Where a middleware calls the job again, that is the end of the one before."""
        self.end(again=False)
        attempt.step_out()
        self._attempt, self._error = attempt, error

    def end(self, *, again: bool) -> None:
        """The job is tried again, or not. Does nothing where no attempt is open."""
        attempt, error = self._attempt, self._error
        self._attempt = self._error = None
        if attempt is None:
            return
        if again and error is not None:
            attempt.retry(because(error), error)
        else:
            attempt.fail(error)


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
        _patches.put(Worker, "_process_job", _process_job)
        _patches.put(Task, "get_retry_exception", _get_retry_exception)


def uninstrument() -> None:
    """Trace no more attempts, not even of workers that are there."""
    global _options  # noqa: PLW0603 - what this process is set up with
    _options = None
    _patches.take_back()


def _made(made: Callable[..., None], worker: Worker, *args: Any, **kwargs: Any) -> None:
    made(worker, *args, **kwargs)
    worker.task_middleware = [_sync, _async, *worker.task_middleware]


async def _process_job(process_job: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """Around all that becomes of a job."""
    failed = _Failed()
    before = _job.set(failed)
    try:
        return await process_job(worker, *args, **kwargs)
    finally:
        failed.end(again=False)  # nobody asked: a middleware kept the failure to itself, or made something else of it
        _job.reset(before)


def _get_retry_exception(get_retry_exception: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
    """Where Procrastinate asks whether a job that failed is tried again, once: we listen."""
    again = None
    try:
        again = get_retry_exception(task, *args, **kwargs)
    finally:  # a retry strategy is the user's, and may raise: then the job fails
        failed = _job.get()
        if failed is not None:
            failed.end(again=again is not None)
    return again


def _sync(call_next: Callable[[], Any], context: Any, worker: Any) -> Any:
    """Around a job whose function is a plain one, in the thread that runs it."""
    attempt = _started(context, worker)
    if attempt is None:
        return call_next()
    try:
        value = call_next()
    except BaseException as error:
        _failed(attempt, error)
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
        _failed(attempt, error)
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


def _failed(attempt: Attempt, error: BaseException) -> None:
    failed = _job.get()
    if isinstance(error, JobAborted | asyncio.CancelledError):
        attempt.cancel("aborted, or the worker ends")
    elif failed is None:  # a job that was there before us, or whose middleware is called elsewhere
        attempt.fail(error)
    else:
        failed.put(attempt, error)
