"""A program that runs jobs by APScheduler in tests: `python -m apscheduler_jobs --scheduler blocking add fails`.

It runs each job once, at once, and ends when all have. JOBS_FOLDER is where jobs leave files that say how far they are.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from job_process import mark

import trifle_otel as trifle
from trifle_otel.integrations import apscheduler as ours

ours.instrument()


def add() -> int:
    """A job like any other."""
    trifle.trace("adding")
    return 7


def fails() -> None:
    """A job that raises."""
    with trifle.block("dividing"):
        raise ValueError("no rate")


def hangs(seconds: float = 30) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)  # a running trace is flushed after a second
        mark("hangs")
        time.sleep(seconds)
    return "done"


def hangs_a_second() -> str:
    """The same for a shorter time."""
    return hangs(1)


async def hangs_in_the_loop() -> str:
    """The same as a coroutine."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        await asyncio.sleep(1.3)
        mark("hangs_in_the_loop")
        await asyncio.sleep(30)
    return "done"


# -- the program


def blocking(jobs: list[str], how: str, **options: Any) -> None:
    """Run a scheduler in the main thread."""
    scheduler = BlockingScheduler(**options)
    # the pool's own thread, which this may be, cannot wait for itself
    schedule(scheduler, jobs, lambda: scheduler.shutdown(wait=False))
    at_sigterm(how, scheduler.shutdown)
    scheduler.start()


def background(jobs: list[str], how: str) -> None:
    """Run a scheduler in a thread, and wait here."""
    scheduler, over = BackgroundScheduler(), threading.Event()
    schedule(scheduler, jobs, over.set)
    at_sigterm(how, over.set)
    scheduler.start()
    over.wait()
    scheduler.shutdown()


def in_a_loop(jobs: list[str], how: str) -> None:
    """Run a scheduler in an event loop."""

    async def run() -> None:
        scheduler, over = AsyncIOScheduler(), asyncio.Event()
        schedule(scheduler, jobs, over.set)
        if how == "shutdown":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        scheduler.start()
        await over.wait()
        scheduler.shutdown()

    asyncio.run(run())


def in_processes(method: str) -> Callable[[list[str], str], None]:
    """What runs a scheduler in the main thread, and its jobs in a pool of processes that are started so."""
    context = multiprocessing.get_context(method)
    return lambda jobs, how: blocking(jobs, how, executors={"default": ProcessPoolExecutor(1, {"mp_context": context})})


SCHEDULERS: dict[str, Callable[[list[str], str], None]] = {
    "blocking": blocking,
    "background": background,
    "asyncio": in_a_loop,
    "spawn": in_processes("spawn"),
    "fork": in_processes("fork"),
}


def schedule(scheduler: Any, jobs: list[str], done: Callable[[], object]) -> None:
    """Have a scheduler run jobs as soon as it starts, and call `done` when all have ended."""
    left = [*jobs]

    def ended(event: Any) -> None:
        left.remove(event.job_id)
        if not left and scheduler.running:
            done()

    scheduler.add_listener(ended, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    for name in jobs:  # by reference: functions of this very module would be those of `__main__`
        scheduler.add_job(f"apscheduler_jobs:{name}", "date", id=name, misfire_grace_time=60)


def at_sigterm(how: str, shut_down: Callable[[], object]) -> None:
    """Do what is asked for at SIGTERM."""
    if how != "default":
        signal.signal(signal.SIGTERM, lambda *_: shut_down() if how == "shutdown" else sys.exit())


def main() -> None:
    """Run the jobs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scheduler", choices=SCHEDULERS, required=True)
    parser.add_argument("--sigterm", choices=["default", "exit", "shutdown"], default="default")
    parser.add_argument("jobs", nargs="+")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    SCHEDULERS[arguments.scheduler](arguments.jobs, arguments.sigterm)


if __name__ == "__main__":
    main()
