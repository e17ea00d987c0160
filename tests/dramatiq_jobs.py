"""Actors that the tests of Dramatiq run, here with a broker in memory and in workers: `dramatiq dramatiq_jobs`.

JOBS_BROKER    URL of a Redis; without it there is the broker in memory
JOBS_QUEUE     queue of all actors
JOBS_FOLDER    where jobs leave files that say how far they are
JOBS_SPANS     OTLP over HTTP; without it no SDK is set up
"""

from __future__ import annotations

import os
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import RateLimitExceeded
from dramatiq.middleware import AsyncIO, Middleware, SkipMessage, TimeLimit
from job_process import mark, send_spans

import trifle_otel as trifle
from trifle_otel.integrations import dramatiq as ours
from trifle_otel.integrations.attempts import job_options


class Choosy(Middleware):
    """A middleware that skips messages, records what it does, and sends messages of its own."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        """Skip, or fail, what asks for it."""
        if message.options.get("skip") == "fail":
            message.fail()
        if message.options.get("skip"):
            raise SkipMessage("nobody needs it")

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        """Record what can be seen here."""
        if message.options.get("chatty"):
            trifle.trace(f"afterwards: {result}")


if "JOBS_BROKER" in os.environ:
    broker: Any = RedisBroker(url=os.environ["JOBS_BROKER"])
    ours.instrument()
else:
    broker = StubBroker(fail_fast_default=False)
for each in list(broker.middleware):
    if isinstance(each, TimeLimit):
        each.manager.interval = 0.05  # type: ignore[union-attr]
broker.add_middleware(AsyncIO())
broker.add_middleware(Choosy())
dramatiq.set_broker(broker)
QUEUE = os.environ.get("JOBS_QUEUE", "prices")

send_spans()


@dramatiq.actor(queue_name=QUEUE)
def add(x: int, y: int = 0) -> int:
    """A job like any other."""
    trifle.trace("adding")
    return x + y


@dramatiq.actor(queue_name=QUEUE)
async def waits(x: int) -> int:
    """A job that is a coroutine."""
    trifle.trace("waiting")
    return x


@dramatiq.actor(queue_name=QUEUE, max_retries=1, min_backoff=1, max_backoff=1)
def fails() -> None:
    """A job that raises, and is tried once more."""
    with trifle.block("dividing"):
        raise ValueError("no rate")


@dramatiq.actor(queue_name=QUEUE, throws=(KeyError,))
def is_expected() -> None:
    """A job that raises what it says it does."""
    raise KeyError("unknown product")


@dramatiq.actor(queue_name=QUEUE, max_retries=1)
def again() -> None:
    """A job that asks to be run again."""
    raise dramatiq.Retry("not yet", delay=20)


@dramatiq.actor(queue_name=QUEUE, max_retries=1, min_backoff=1, max_backoff=1)
def is_limited() -> None:
    """A job of a kind of which there are too many."""
    raise RateLimitExceeded("too many")


@dramatiq.actor(queue_name=QUEUE, time_limit=100, max_retries=0)
def takes_long() -> None:
    """A job that is still busy when its time is up."""
    trifle.trace("before")
    for _ in range(1000):  # Dramatiq interrupts between steps of Python
        time.sleep(0.01)


@dramatiq.actor(queue_name=QUEUE, notify_shutdown=True, max_retries=0)
def hears_of_the_end() -> None:
    """A job that is told when its worker stops."""
    trifle.trace("before")
    mark("hears_of_the_end")
    for _ in range(3000):
        time.sleep(0.01)


@dramatiq.actor(queue_name=QUEUE)
def hangs(name: str = "hangs", seconds: float = 30) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)  # a running trace is flushed after a second
        mark(name)
        time.sleep(seconds)
    return "done"


@dramatiq.actor(queue_name=QUEUE)
@job_options(trace=False)
def secret() -> None:
    """A job that nobody is to see."""
    trifle.trace("secret")


@dramatiq.actor(queue_name=QUEUE)
def starts_another(x: int) -> None:
    """A job that sends one."""
    with trifle.tracer("inner"):
        add.send(x)
