"""Tasks that the tests of Huey run, here and in workers: `huey_consumer huey_jobs.huey`.

JOBS_BROKER    URL of a Redis; without it messages are kept in memory
JOBS_QUEUE     name of the instance
JOBS_FOLDER    where jobs leave files that say how far they are
JOBS_SPANS     OTLP over HTTP; without it no SDK is set up
"""

from __future__ import annotations

import os
import time
from typing import Any

from huey import CancelExecution, MemoryHuey, RedisHuey
from huey.exceptions import RetryTask
from job_process import mark, send_spans

import trifle_otel as trifle
from trifle_otel.integrations import huey as ours
from trifle_otel.integrations.attempts import job_options

if "JOBS_BROKER" in os.environ:
    huey: Any = RedisHuey(os.environ["JOBS_QUEUE"], url=os.environ["JOBS_BROKER"])
    ours.instrument()
else:
    huey = MemoryHuey("prices")

send_spans()


@huey.pre_execute()
def before(task: Any) -> None:
    """A hook that records, and cancels what asks for it."""
    if task.kwargs.get("y") == "cancel":
        raise CancelExecution("nobody needs it")
    if task.kwargs.get("y") == "chatty":
        trifle.trace("a hook before")


@huey.post_execute()
def after(task: Any, value: Any, error: Any) -> None:
    """A hook that records."""
    if task.kwargs.get("y") == "chatty":
        trifle.trace("a hook after")


@huey.task()
def add(x: int, y: Any = 0) -> Any:
    """A job like any other."""
    trifle.trace("adding")
    return x + (y if isinstance(y, int) else 0)


@huey.task(retries=1)
def fails() -> None:
    """A job that raises, and is tried once more."""
    with trifle.block("dividing"):
        raise ValueError("no rate")


@huey.task(retries=1, retry_delay=3)
def fails_slowly() -> None:
    """A job that is tried again later."""
    raise ValueError("no rate")


@huey.task(context=True)
def again(task: Any) -> None:
    """A job that asks to be run again, once."""
    if trifle.current() is None or vars(task).get("trifle_headers", {}).get("trifle-attempt", 1) < 2:
        raise RetryTask("not yet", delay=0)


@huey.task()
def cancels_itself() -> None:
    """A job that sees that it is not needed."""
    raise CancelExecution("no product")


@huey.task()
@huey.lock_task("prices")
def is_locked() -> None:
    """A job that runs once at a time."""


@huey.task()
@huey.rate_limit("prices", limit=0, per=60, retry=False)
def is_limited() -> None:
    """A job of a kind of which there are too many."""


@huey.task()
def is_interrupted() -> None:
    """A job that is running when its worker is told to stop."""
    raise KeyboardInterrupt


@huey.task()
def gives_what_cannot_be_sent() -> object:
    """A job whose result cannot be pickled."""
    return lambda: None


@huey.task(timeout=1)
def takes_long() -> None:
    """A job that is still busy when its time is up."""
    trifle.trace("before")
    time.sleep(30)


@huey.task()
def hangs(name: str = "hangs", seconds: float = 30) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)  # a running trace is flushed after a second
        mark(name)
        time.sleep(seconds)
    return "done"


@huey.task()
@job_options(trace=False)
def secret() -> None:
    """A job that nobody is to see."""
    trifle.trace("secret")


@huey.task()
def starts_another(x: int) -> None:
    """A job that sends one."""
    with trifle.tracer("inner"):
        add(x)
