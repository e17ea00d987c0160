"""Jobs that Arq's workers run in tests: `python -m arq arq_jobs.WorkerSettings`.

JOBS_BROKER    URL of the Redis that they take jobs from
JOBS_FOLDER    where jobs leave files that say how far they are
JOBS_QUEUE     the queue's name
JOBS_SPANS     OTLP over HTTP; without it no SDK is set up
JOBS_UNTRACED  whatever it holds: jobs are not traced
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, ClassVar

from arq.connections import RedisSettings
from job_process import mark, send_spans

import trifle_otel as trifle
from trifle_otel.integrations import arq as ours

if "JOBS_UNTRACED" not in os.environ:
    ours.instrument()

send_spans()


async def add(ctx: dict[str, Any], x: int, y: int = 0) -> int:
    """A job like any other."""
    trifle.trace("adding")
    return x + y


async def starts_another(ctx: dict[str, Any], x: int) -> None:
    """A job that enqueues one."""
    with trifle.tracer("inner"):
        await ctx["redis"].enqueue_job("add", x)


async def hangs(ctx: dict[str, Any]) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        await asyncio.sleep(1.3)  # a running trace is flushed after a second
        mark("hangs")
        await asyncio.sleep(30)
    return "done"


class WorkerSettings:
    """What Arq's command reads."""

    functions: ClassVar[list[Any]] = [add, starts_another, hangs]
    redis_settings = RedisSettings.from_dsn(os.environ["JOBS_BROKER"])
    queue_name = os.environ["JOBS_QUEUE"]
    max_tries = 1
