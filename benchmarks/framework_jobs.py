"""What workers do while `frameworks` measures them: jobs that do nothing, and one that says what they cost.

Each framework's module has its own kind of job call these. A worker is one process that does one job after the other.
"""

from __future__ import annotations

import json
import os
import resource
from itertools import pairwise
from time import perf_counter, process_time
from typing import Any

import redis

BROKER = os.environ.get("BENCHMARK_BROKER", "")
QUEUE = os.environ.get("BENCHMARK_QUEUE", "")
TRACED = os.environ.get("BENCHMARK_TRACED") == "yes"

_starts: list[float] = []
_cpu = 0.0


def empty() -> None:
    """A job that does nothing but note that it was there."""
    _starts.append(perf_counter())


def begin() -> None:
    """Wait until all jobs of a round are in the queue, so that none waits for the next to be sent."""
    global _cpu  # noqa: PLW0603 - of this worker
    answers().blpop([f"{QUEUE}-go"])
    _starts.clear()
    _cpu = _used()


def report() -> None:
    """Say what a round took: CPU seconds of this process and its children, and the times from job to job."""
    if TRACED:
        import trifle_otel as trifle

        trifle.flush(60)
    used = _used() - _cpu
    between = [second - first for first, second in pairwise(_starts)]
    answers().rpush(f"{QUEUE}-report", json.dumps({"cpu": used, "between": between}))


def _used() -> float:
    """CPU seconds of this process, all its threads, and of children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime


def answers() -> Any:
    """The Redis that jobs come from, in which reports go back."""
    return redis.Redis.from_url(BROKER, socket_timeout=None)
