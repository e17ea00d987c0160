"""APScheduler 3: each run of a job as one trace, in whatever executor it runs.

Jobs in a pool of processes are traced there, where `instrument()` must have been called too: by a pool that
forks it has.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any, Final

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import Job, Options, ship_before_exit, start
from trifle_otel.values import text_of

try:
    from apscheduler.executors import base
except ModuleNotFoundError as missing:
    raise MissingDependency(f"tracing its jobs needs APScheduler 3: pip install apscheduler ({missing})") from missing

_MODULES = ("base", "pool", "asyncio", "debug", "gevent", "tornado", "twisted")
_PLACEHOLDER: Final = getattr(functools, "Placeholder", object())  # in a partial's arguments, from Python 3.14 on
_run_job = base.run_job
_run_coroutine_job = base.run_coroutine_job
_options: Options | None = None


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each run of each job from now on. May be called again with other values.

    Args:
        select: whether a run is traced; None: each is.
        key: its key; None: `jobs/<module path>/<name>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options  # noqa: PLW0603 - what this process is set up with
    _options = Options(select=select, key=key, mode=mode, retention=retention)
    _put(run_job, run_coroutine_job)


def uninstrument() -> None:
    """Trace no more runs."""
    global _options  # noqa: PLW0603 - see above
    _options = None
    _put(_run_job, _run_coroutine_job)


def run_job(job: Any, *args: Any) -> Any:
    """What executors call in place of APScheduler's function of this name."""
    _ship_at_end_of(os.getpid())
    return _run_job(_Traced(job), *args)


async def run_coroutine_job(job: Any, *args: Any) -> Any:
    """What executors call in place of APScheduler's function of this name."""
    _ship_at_end_of(os.getpid())
    return await _run_coroutine_job(_Traced(job), *args)


class _Traced:
    """A job whose function is traced, and that is otherwise the job."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)

    @property
    def func(self) -> Callable[..., Any]:
        """The function, traced."""
        function = self._job.func
        return self._coroutine if inspect.iscoroutinefunction(function) else self._call

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        attempt = self._started(args, kwargs)
        if attempt is None:
            return self._job.func(*args, **kwargs)
        try:
            value = self._job.func(*args, **kwargs)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.succeed(value)
        return value

    async def _coroutine(self, *args: Any, **kwargs: Any) -> Any:
        attempt = self._started(args, kwargs)
        if attempt is None:
            return await self._job.func(*args, **kwargs)
        try:
            value = await self._job.func(*args, **kwargs)
        except asyncio.CancelledError:
            attempt.cancel("the scheduler ends")
            raise
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.succeed(value)
        return value

    def _started(self, args: Any, kwargs: Any) -> Any:
        options = _options
        if options is None:
            return None
        job = self._job
        function, args, kwargs = _called(job.func, args, kwargs)
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
        more = {"trigger": text_of(job.trigger), "scheduled_name": job.name}
        return start(
            Job(
                system="apscheduler",
                name=name.strip("."),
                args=args,
                kwargs=kwargs,
                id=job.id,
                function=_told(job.func),
                more=more,
            ),
            options,
        )


def _called(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """What is called in the end, and with what: where a function is a partial, what that one calls."""
    while isinstance(function, functools.partial):
        given = iter(args)
        own = [next(given, value) if value is _PLACEHOLDER else value for value in function.args]
        args, kwargs = (*own, *given), {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def _told(function: Any) -> Any:
    """What `job_options` was put on: the function, or a partial of it."""
    while isinstance(function, functools.partial):
        if any(isinstance(value, Options) for value in vars(function).values()):
            break
        function = function.func
    return function


@functools.lru_cache(maxsize=1)
def _ship_at_end_of(pid: int) -> None:
    """Have this process ship as it ends: those of a pool that forks call no exit handlers before Python 3.13."""
    del pid
    Finalize(None, ship_before_exit, exitpriority=0)


def _put(run: Any, run_coroutine: Any) -> None:
    """Have APScheduler's modules call these; those that are not loaded yet take them from `base`."""
    for name in _MODULES:
        module = sys.modules.get(f"apscheduler.executors.{name}")
        if module is not None and hasattr(module, "run_job"):
            module.run_job = run  # type: ignore[attr-defined]
            if hasattr(module, "run_coroutine_job"):
                module.run_coroutine_job = run_coroutine  # type: ignore[attr-defined]
