"""Tasks that Taskiq's workers run in tests: `python -m taskiq worker taskiq_jobs:broker`.

JOBS_BROKER    URL of the Redis that they take tasks from
JOBS_FOLDER    where tasks leave files that say how far they are
JOBS_QUEUE     the queue's name
JOBS_SPANS     OTLP over HTTP; without it no SDK is set up
"""

from __future__ import annotations

import asyncio
import os
import time

from job_process import mark, send_spans
from taskiq import SimpleRetryMiddleware
from taskiq_redis import ListQueueBroker

import trifle_otel as trifle
from trifle_otel.integrations import taskiq as ours
from trifle_otel.integrations.attempts import job_options

# no time-out: of redis-py's own from version 8 on, which is 5 s, an idle worker would die
broker = ListQueueBroker(
    os.environ["JOBS_BROKER"], queue_name=os.environ["JOBS_QUEUE"], socket_timeout=None
).with_middlewares(SimpleRetryMiddleware())
ours.instrument()

send_spans()


@broker.task
async def add(x: int, y: int = 0) -> int:
    """A task like any other."""
    trifle.trace("adding")
    return x + y


@broker.task
def add_in_a_thread(x: int, y: int = 0) -> int:
    """The same as a plain function."""
    trifle.trace("adding")
    return x + y


@broker.task
async def fails() -> None:
    """A task that raises."""
    with trifle.block("dividing"):
        raise ValueError("no rate")


@broker.task
async def takes_long() -> None:
    """A task that is still busy when its time is up."""
    trifle.trace("before")
    await asyncio.sleep(30)


@broker.task
@job_options(trace=False)
async def secret() -> None:
    """A task that nobody is to see."""
    trifle.trace("secret")


@broker.task
async def starts_another(x: int) -> None:
    """A task that enqueues one."""
    with trifle.tracer("inner"):
        await add.kiq(x)


@broker.task
async def hangs(seconds: float = 30) -> str:
    """A task that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        await asyncio.sleep(1.3)  # a running trace is flushed after a second
        mark("hangs")
        for _ in range(100):  # Taskiq sees a signal when its event loop has something else to do
            await asyncio.sleep(seconds / 100)
    return "done"


@broker.task
def hangs_in_a_thread(seconds: float = 30) -> str:
    """The same as a plain function."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)
        mark("hangs_in_a_thread")
        time.sleep(seconds)
    return "done"
