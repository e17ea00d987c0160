"""Jobs that the tests of RQ run, here and in workers: `rq worker --config rq_jobs`.

JOBS_FOLDER    where jobs leave files that say how far they are
JOBS_SPANS     OTLP over HTTP; without it no SDK is set up
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import rq
from job_process import mark, send_spans

import trifle_otel as trifle
from trifle_otel.integrations.attempts import job_options


def only_marked(job: Any) -> bool:
    """A selector that can be sent to another process."""
    return "secret" not in job.name


if "JOBS_FOLDER" in os.environ:
    from trifle_otel.integrations import rq as ours

    ours.instrument(select=only_marked)

send_spans()


def add(x: int, y: int = 0) -> int:
    """A job like any other."""
    trifle.trace("adding")
    return x + y


async def waits(x: int) -> int:
    """A job that is a coroutine."""
    trifle.trace("waiting")
    return x


def fails() -> None:
    """A job that raises."""
    with trifle.block("dividing"):
        raise ValueError("no rate")


def again() -> object:
    """A job that asks to be run again, more often than it may."""
    return rq.Retry(max=2)


def gives_what_cannot_be_sent() -> object:
    """A job whose result cannot be pickled."""
    return lambda: None


def leaves() -> None:
    """A job that raises what only ends a process."""
    sys.exit(3)


def takes_long() -> str:
    """A job that is still busy when its time is up."""
    trifle.trace("before")
    time.sleep(30)
    return "never"


class Slow:
    """A value that takes long to be shown."""

    def __repr__(self) -> str:
        for _ in range(3000):  # a thread interrupts between steps of Python
            time.sleep(0.01)
        return "never"


def shows_slowly() -> str:
    """A job whose time is up while what it found is recorded."""
    trifle.trace("looking", Slow)
    return "never"


@trifle.tracer("by/hand")
def by_hand() -> str:
    """The same with a tracer of its own."""
    return shows_slowly()


def hangs(name: str = "hangs", seconds: float = 30) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)  # a running trace is flushed after a second
        mark(name)
        time.sleep(seconds)
    return "done"


@job_options(trace=False)
def secret() -> str:
    """A job that nobody is to see."""
    trifle.trace("secret")
    return "secret"


def starts_another(x: int) -> str:
    """A job that enqueues one."""
    running = rq.get_current_job()
    assert running is not None
    assert running.connection is not None
    with trifle.tracer("inner"):
        return str(rq.Queue(running.origin, connection=running.connection).enqueue(add, x).id)


def when_done(job: Any, connection: Any, result: Any) -> None:
    """What RQ calls after a job that succeeded."""
    trifle.trace(f"done: {result}")


def when_failed(job: Any, connection: Any, *failure: Any) -> None:
    """What RQ calls after a job that failed."""
    trifle.trace(f"failed: {failure[1]}")


def cannot(*arguments: Any) -> None:
    """A callback that raises."""
    raise LookupError("nobody to tell")


class Price:
    """Methods are jobs as well."""

    def __init__(self, product: int) -> None:
        self.product = product

    def calculate(self, currency: str) -> str:
        """A job of an object."""
        return f"{self.product} {currency}"

    @classmethod
    def default(cls) -> int:
        """A job of a class."""
        return 1
