"""Arq: each try of a job as one trace, and the enqueuer's trace context behind the job's message.

Workers that are made after `instrument()` are traced. A serializer of somebody's own lets the context go: what is
behind its messages might spoil them. What an attempt is, is in `attempts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType
from typing import Any

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import PARENT, ROOT, Job, Options, inject, start
from trifle_otel.integrations.behind import look_behind, put_behind
from trifle_otel.integrations.patching import Patches

try:
    from arq import Retry, connections
    from arq import worker as working
    from arq.connections import ArqRedis
    from arq.worker import RetryJob, Worker
except ModuleNotFoundError as missing:
    raise MissingDependency(f"tracing Arq's jobs needs Arq: pip install arq ({missing})") from missing

_MARK = "__trifle_traced__"

_options: Options | None = None
_patches = Patches()
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_sent: ContextVar[Mapping[str, Any]] = ContextVar("trifle_arq_sent", default=_NOTHING)  # along with what is enqueued
_brought: ContextVar[Mapping[str, Any]] = ContextVar("trifle_arq_brought", default=_NOTHING)  # by the job that runs


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each try of each job of workers that are made from now on. May be called again with other values.

    Call it where jobs are enqueued, too: what is enqueued from now on takes the trace context along.

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
        _patches.put(ArqRedis, "enqueue_job", _enqueue)
        _patches.put(connections, "serialize_job", _serialize)
        _patches.put(working, "deserialize_job_raw", _deserialize)


def uninstrument() -> None:
    """Trace no more tries, not even of workers that are there."""
    global _options  # noqa: PLW0603 - what this process is set up with
    _options = None
    _patches.take_back()


# -- enqueuing


async def _enqueue(theirs: Any, pool: ArqRedis, *args: Any, **kwargs: Any) -> Any:
    headers: dict[str, Any] = {}
    inject(headers, job_id=kwargs.get("_job_id") or "")  # Arq makes up an id where there is none
    token = _sent.set(headers)
    try:
        return await theirs(pool, *args, **kwargs)
    finally:
        _sent.reset(token)


def _serialize(theirs: Any, *args: Any, serializer: Any = None, **kwargs: Any) -> Any:
    packed = theirs(*args, serializer=serializer, **kwargs)
    return put_behind(packed, _sent.get()) if serializer is None else packed


# -- working


def _deserialize(theirs: Any, packed: Any, *args: Any, deserializer: Any = None, **kwargs: Any) -> Any:
    _brought.set(look_behind(packed) if deserializer is None else _NOTHING)  # seen by the job alone: each is a task
    return theirs(packed, *args, deserializer=deserializer, **kwargs)


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
            job_id, headers = ctx.get("job_id"), _brought.get()
            job = Job(
                system="arq",
                name=f"{module}.{name}" if module and "." not in name else name,
                args=args,
                kwargs=kwargs,
                id=job_id,
                queue=worker.queue_name,
                attempt=ctx.get("job_try") or 1,
                root=headers.get(ROOT, job_id),
                parent=headers.get(PARENT),
                headers=headers,
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
