"""Arq: each try of a job as one trace, and the enqueuer's trace context in the job's message.

Workers that are made after `instrument()` are traced. A message of Arq's is a dictionary of five keys that a function
of Arq's makes, and a serializer of the pool's turns into bytes; ours is a sixth key, where Arq's readers do not look.
A serializer of somebody's own may have a reader that minds: with one the context travels only where the enqueuing
pool's own `job_deserializer` reads such a message as before. What an attempt is, is in `attempts`.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Final

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import PARENT, ROOT, Job, Options, inject, start
from trifle_otel.integrations.patching import Patches
from trifle_otel.interruptions import let_pass
from trifle_otel.runtime import runtime

try:
    from arq import Retry, connections
    from arq import worker as working
    from arq.connections import ArqRedis
    from arq.jobs import deserialize_job_raw
    from arq.worker import RetryJob, Worker
except ModuleNotFoundError as missing:
    raise MissingDependency(f"tracing Arq's jobs needs Arq: pip install arq ({missing})") from missing

_MARK = "__trifle_traced__"
_HEADERS: Final = "trifle_headers"  # the key in a message
_TRIED: Final = "__trifle_tried__"  # of a pool: its serializer and deserializer, and whether they take a key more
_NOT_SENT: Final = "a trace context could not be put into a message"

_options: Options | None = None
_patches = Patches()
_sending: ContextVar[_Sending | None] = ContextVar("trifle_arq_sending", default=None)  # what is being enqueued here
_brought: ContextVar[Mapping[str, str]] = ContextVar("trifle_arq_brought")  # by the message of the job that runs here


@dataclass(frozen=True, slots=True)
class _Sending:
    """What a message is to take along, and the pool that it goes through."""

    headers: dict[str, str]
    pool: ArqRedis


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
    texts = _texts_in(headers)
    _sending.set(_Sending(texts, pool) if texts else None)
    try:
        return await theirs(pool, *args, **kwargs)
    finally:
        _sending.set(None)


def _serialize(theirs: Any, *args: Any, serializer: Any = None, **kwargs: Any) -> Any:
    sending = _sending.get()
    if sending is not None:
        serializer = partial(_write, sending, serializer)
    return theirs(*args, serializer=serializer, **kwargs)


def _write(sending: _Sending, serializer: Any, data: dict[str, Any]) -> Any:
    """Write a message with ours, or as ever where that cannot be read or written."""
    write = pickle.dumps if serializer is None else serializer  # as Arq promises
    if serializer is not None and not _is_read(sending.pool, serializer):
        return write(data)
    try:
        return write({**data, _HEADERS: sending.headers})
    except Exception as error:  # too large, perhaps
        let_pass(error)
        fault = error
    written = write(data)  # raises again where the fault is none of ours
    runtime().troubles.report(_NOT_SENT, fault)
    return written


def _is_read(pool: ArqRedis, serializer: Any) -> bool:
    """Whether a pool that writes in a way of its own reads a key more; it is asked for each of its ways once."""
    deserializer, own = pool.job_deserializer, vars(pool)
    known: tuple[Any, Any, bool] | None = own.get(_TRIED)
    if known is None or known[0] is not serializer or known[1] is not deserializer:
        known = own[_TRIED] = serializer, deserializer, _read_back(serializer, deserializer)
    return known[2]


def _read_back(serializer: Any, deserializer: Any) -> bool:
    job: dict[str, Any] = {"t": None, "f": "trifle_otel", "a": (), "k": {}, "et": 1_700_000_000_000}
    fault = None
    try:
        packed = serializer({**job, _HEADERS: {"traceparent": ""}})
        name, args, kwargs, job_try, at = deserialize_job_raw(packed, deserializer=deserializer)
        if {"t": job_try, "f": name, "a": tuple(args), "k": kwargs, "et": at} == job:
            return True
    except Exception as error:  # a reader that knows its keys, or no reader for what is written
        fault = error
    runtime().troubles.report(_NOT_SENT, fault, detail="the pool's job_deserializer reads no key more")
    return False


# -- working


def _deserialize(theirs: Any, *args: Any, deserializer: Any = None, **kwargs: Any) -> Any:
    _brought.set({})  # seen by the job alone: Arq works on each in a task of its own
    return theirs(*args, deserializer=partial(_read, deserializer), **kwargs)


def _read(deserializer: Any, packed: bytes) -> Any:
    data = pickle.loads(packed) if deserializer is None else deserializer(packed)  # noqa: S301 - as Arq promises
    if isinstance(data, dict):
        _brought.set(_texts_in(dict.get(data, _HEADERS)))
    return data


def _texts_in(headers: Any) -> dict[str, str]:
    """Headers that any serializer writes and any propagator reads: plain texts."""
    if type(headers) is not dict:  # somebody else's
        return {}
    return {name: value for name, value in headers.items() if type(name) is type(value) is str}


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
            job_id, headers = ctx.get("job_id"), _brought.get({})
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
