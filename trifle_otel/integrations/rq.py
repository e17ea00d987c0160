"""RQ: each attempt at a job is a trace, in every kind of worker and in queues that run jobs at once.

An attempt begins with the job's function, inside its time limit. It ends when the worker lets go of the job: after the
job's own callbacks and outside its time limit, before anything of it is written to Redis, and long before the
work-horse leaves by `os._exit`. The enqueuer's trace context travels in the job's `meta`. What an attempt is, is in
`attempts`.
"""

from __future__ import annotations

import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

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
from trifle_otel.integrations.patching import Patches
from trifle_otel.runtime import runtime

try:
    import rq
    from rq import worker as rq_worker
    from rq.job import Job as RQJob
    from rq.job import JobStatus
    from rq.timeouts import BaseTimeoutException
except ImportError as missing:
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(f"tracing RQ's jobs needs RQ: pip install 'trifle-otel[rq]' ({missing})") from missing

_options: Options | None = None
_patches = Patches()
_working: dict[int, _Work] = {}  # by the id of the job that a worker here performs


@dataclass(slots=True)
class _Work:
    """A job that a worker performs: its attempt, until that is ended, and what its function returned."""

    attempt: Attempt | None = None
    value: Any = None


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at a job of this process and of the work-horses that it starts; called again it changes how.

    `rq worker` imports the application only in the work-horse, which is too late: call it in the module that is given
    to `rq worker --config`, or in a script that starts the worker, or run `opentelemetry-instrument rq worker`.
    A work-horse of `SpawnWorker` is a new interpreter, which reads its settings from the environment. It is told of
    `select` and `key` where they can be pickled; where they cannot, its jobs are not traced.

    Args:
        select: whether an attempt is traced; None: each is.
        key: its key, or what gives it; None: `jobs/<module path>/<name>`.
        mode: `live` (flushed while it runs) or `deferred` (written when it ends); None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        interruptions.add(BaseTimeoutException)  # out of a timer's thread, too
        _patches.put(RQJob, "create", _create)
        _patches.put(RQJob, "perform", _perform)
        _patches.put(RQJob, "retry", _retry)
        _patches.put(rq.Worker, "work", _work)
        _patches.put(rq.Worker, "perform_job", _perform_job)
        _patches.put(rq.Worker, "cleanup_execution", _let_go)
        if hasattr(rq_worker, "SpawnWorker"):
            _patches.put(rq_worker.SpawnWorker, "fork_work_horse", _spawn)


def uninstrument() -> None:
    """Trace no more attempts."""
    global _options  # noqa: PLW0603
    _options = None
    interruptions.remove(BaseTimeoutException)
    _patches.take_back()


# -- where RQ calls us


def _create(theirs: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
    job = theirs(cls, *args, **kwargs)
    meta = {**job.meta}  # the enqueuer's own, which may serve for other jobs too
    inject(meta, job_id="")  # new, and its id is not to be asked for: RQ makes one up then
    job.meta = meta
    return job


def _retry(theirs: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
    """A job that is put back after it failed, by its worker or by one that found it abandoned: RQ does not count."""
    if "unserialized" not in job.meta:  # what RQ stands in for meta that it cannot read, and must not change
        job.meta = {**job.meta, ATTEMPT: job.meta.get(ATTEMPT, 1) + 1}
    return theirs(job, *args, **kwargs)


def _work(theirs: Any, *args: Any, **kwargs: Any) -> Any:
    """A worker's main process: what it is set up with is its work-horses', and it ships what they leave behind."""
    prepare()
    try:
        return theirs(*args, **kwargs)
    finally:
        ship_before_exit()  # one of a pool of workers


def _perform_job(theirs: Any, worker: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
    work = _working[id(job)] = _Work()
    try:
        return theirs(worker, job, *args, **kwargs)
    finally:
        del _working[id(job)]
        _end(job, work)  # a worker of somebody's own may let go of jobs in another way


def _let_go(theirs: Any, worker: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
    work = _working.get(id(job))
    if work is not None:
        _end(job, work)
    return theirs(worker, job, *args, **kwargs)


def _perform(theirs: Any, job: Any) -> Any:
    """Run the job's function. Without a worker around it (`is_async=False`) the attempt ends right here."""
    work = _working.get(id(job))
    late: BaseException | None = None
    try:
        function = job.func
    except BaseException as error:  # its module cannot be imported, or not in time
        function, late = None, error
    with _out_of_time():
        attempt = _start(job, function, SpanKind.INTERNAL if work is None else SpanKind.CONSUMER)
    if attempt is None or work is None:
        return _run(theirs, job, attempt, late)
    work.attempt = attempt
    work.value = _run(theirs, job, None, late)
    return work.value


@contextmanager
def _out_of_time() -> Iterator[None]:
    """Stop the clock of the job's time limit: raised in a callable of the user's it would be taken for its fault."""
    left = 0.0
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, left)


def _run(theirs: Any, job: Any, attempt: Attempt | None, late: BaseException | None) -> Any:
    try:
        if late is not None:
            raise late
        value = theirs(job)
    except BaseException as error:
        if attempt is not None:
            attempt.fail(error)
        raise
    if attempt is not None:
        attempt.succeed(value)
    return value


def _spawn(theirs: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """Start a new interpreter as a work-horse: it gets the worker's exception handlers, and one of ours among them."""
    try:
        worker.push_exc_handler(_SetUp(pickle.dumps(asdict(_options or Options()))))
    except Exception as error:  # a lambda, say
        runtime().troubles.report("jobs of SpawnWorker are not traced: `select` or `key` cannot be pickled", error)
        return theirs(worker, *args, **kwargs)
    try:
        return theirs(worker, *args, **kwargs)
    finally:
        worker.pop_exc_handler()


class _SetUp:
    """An exception handler that does nothing, but set up tracing where it is unpickled."""

    def __init__(self, options: bytes) -> None:
        self.options = options

    def __reduce__(self) -> Any:
        return _set_up, (self.options,)

    def __call__(self, *failure: Any) -> None:
        """Leave the failure to others."""


def _set_up(options: bytes) -> Any:
    try:
        instrument(**pickle.loads(options))  # noqa: S301 - RQ unpickles it with the rest of its worker
    except Exception as error:  # of a module that cannot be imported here: the job runs untraced
        runtime().troubles.report("jobs of SpawnWorker are not traced: `select` or `key` cannot be unpickled", error)
    return _SetUp(options)


# -- an attempt


def _start(job: Any, function: Any, kind: SpanKind) -> Attempt | None:
    options = _options
    if options is None:
        return None
    try:
        described = _describe(job, function)
    except Exception as error:  # arguments that cannot be read: RQ says so itself
        runtime().troubles.report("an attempt at a job could not be traced", error)
        return None
    return start(described, options, kind=kind)


def _describe(job: Any, function: Any) -> Job:
    meta = job.meta
    more = {"group_id": job.group_id, "depends_on": list(job._dependency_ids) or None}
    if job.instance is not None and not isinstance(job.instance, type):
        more["meta_exact"] = False  # arguments alone do not say what was run
    return Job(
        system="rq",
        name=_name(job),
        args=job.args,
        kwargs=job.kwargs or {},
        id=job.id,
        queue=job.origin,
        attempt=meta.get(ATTEMPT, 1) + (getattr(job, "number_of_retries", None) or 0),  # 2.0 has none
        root=meta.get(ROOT, job.id),
        parent=meta.get(PARENT),
        worker=job.worker_name,
        headers=meta,
        function=function,
        more=more,
    )


def _name(job: Any) -> str:
    """A function's path as RQ has it; of an object's method that of its class."""
    if job.instance is None:
        return str(job.func_name)
    kind = job.instance if isinstance(job.instance, type) else type(job.instance)
    return f"{kind.__module__}.{kind.__qualname__}.{job.func_name}"


def _end(job: Any, work: _Work) -> None:
    """End the attempt, if it is not yet, as RQ sees it: called where the exception of a failure is being handled."""
    attempt, work.attempt = work.attempt, None
    if attempt is not None:
        end(attempt, lambda: _end_as(job, attempt, work.value))


def _end_as(job: Any, attempt: Attempt, value: Any) -> None:
    if job.get_status(refresh=False) == JobStatus.FAILED:
        _end_failed(job, attempt, value)
    elif isinstance(value, rq.Retry):
        attempt.retry(f"{job.number_of_retries} of {value.max}")
    else:
        attempt.succeed(value)


def _end_failed(job: Any, attempt: Attempt, value: Any) -> None:
    error = sys.exc_info()[1]
    if isinstance(value, rq.Retry):
        attempt.note(f"All {value.max} retries are used up")
        attempt.fail(None)
    elif error is not None and job.should_retry:
        attempt.retry(because(error, job.get_retry_interval()), error)
    else:
        attempt.fail(error)
