"""Arq: each try of a job as one trace.

Workers that are made after `instrument()` are traced. A message of Arq's has no place for headers, so that the
enqueuer's trace context does not travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from typing import Any

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import Job, Options, start
from trifle_otel.integrations.patching import Patches

try:
    from arq import Retry
    from arq.worker import RetryJob, Worker
except ModuleNotFoundError as missing:
    raise MissingDependency(f"tracing Arq's jobs needs Arq: pip install arq ({missing})") from missing

_MARK = "__trifle_traced__"
_options: Options | None = None
_patches = Patches()


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each try of each job of workers that are made from now on. May be called again with other values.

    Args:
        select: whether a try is traced; None: each is.
        key: its key; None: `jobs/<module path>/<name>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        _patches.put(Worker, "__init__", _made)


def uninstrument() -> None:
    """Trace no more tries, not even of workers that are there."""
    global _options  # noqa: PLW0603 - what this process is set up with
    _options = None
    _patches.take_back()


def _made(made: Callable[..., None], worker: Worker, *args: Any, **kwargs: Any) -> None:
    made(worker, *args, **kwargs)
    for function in worker.functions.values():
        coroutine: Any = function.coroutine
        if not hasattr(coroutine, _MARK):
            function.coroutine = _traced(function.name, coroutine, worker)


def _traced(name: str, coroutine: Any, worker: Worker) -> Any:
    module = getattr(coroutine, "__module__", None)

    @wraps(coroutine)
    async def traced(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        options = _options
        attempt = None
        if options is not None:
            job = Job(
                system="arq",
                name=f"{module}.{name}" if module and "." not in name else name,
                args=args,
                kwargs=kwargs,
                id=ctx.get("job_id"),
                queue=worker.queue_name,
                attempt=ctx.get("job_try") or 1,
                function=coroutine,
            )
            attempt = start(job, options)
        if attempt is None:
            return await coroutine(ctx, *args, **kwargs)
        try:
            value = await coroutine(ctx, *args, **kwargs)
        except (Retry, RetryJob) as again:
            attempt.retry(again)
            raise
        except asyncio.CancelledError:
            attempt.cancel("out of time, aborted, or the worker ends")
            raise
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.succeed(value)
        return value

    setattr(traced, _MARK, True)
    return traced
