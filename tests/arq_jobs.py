"""Jobs that Arq's workers run in tests: `python -m arq arq_jobs.WorkerSettings`.

JOBS_BROKER    URL of the Redis that they take jobs from
JOBS_FOLDER    where jobs leave files that say how far they are
JOBS_QUEUE     the queue's name
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, ClassVar

from arq.connections import RedisSettings

import trifle_otel as trifle
from trifle_otel.integrations import arq as ours

ours.instrument()


async def hangs(ctx: dict[str, Any]) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        await asyncio.sleep(1.3)  # a running trace is flushed after a second
        Path(os.environ["JOBS_FOLDER"], "hangs").touch()
        await asyncio.sleep(30)
    return "done"


class WorkerSettings:
    """What Arq's command reads."""

    functions: ClassVar[list[Any]] = [hangs]
    redis_settings = RedisSettings.from_dsn(os.environ["JOBS_BROKER"])
    queue_name = os.environ["JOBS_QUEUE"]
    max_tries = 1
