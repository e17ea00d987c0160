"""What an attempt at a job costs the worker of a job framework: empty jobs, traced and bare, in one run.

Two workers of each framework run side by side, one traced into files and SQLite, one as it is, each with a queue of its
own in the tests' Redis. They take turns with rounds of jobs, so that both meet the same machine. What a job takes is
the time from its start to the next one's, everything in between included; CPU is that of the worker's process, all its
threads, with everything shipped. A framework whose server or package is not there is left out, and said.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import MICROSECONDS, Row

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the servers' module

MOST_CPU, MOST_LATENCY = 400, 2000  # microseconds that may be added


class Framework(ABC):
    """A job framework: how its worker is started, and how jobs are sent to it.

    Attributes:
        name: what it is called in the table.
        package: what must be installed.
    """

    name: str
    package: str

    def __init__(self, broker: str) -> None:
        self.broker = broker

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What runs a worker that does one job after the other, after the interpreter."""

    @abstractmethod
    def send(self, queue: str, jobs: Sequence[str]) -> None:
        """Enqueue jobs of `framework_jobs`, by their names."""


class Celery(Framework):
    """Celery, its worker without a pool."""

    name = "Celery"
    package = "celery"

    def __init__(self, broker: str) -> None:
        super().__init__(broker)
        import celery

        self.client: Any = celery.Celery("client", broker=broker, set_as_current=False)

    def command(self) -> Sequence[str]:
        """See `Framework`."""
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning"]
        return ["-m", "celery", "-A", "benchmarks.celery_jobs", "worker", "-P", "solo", *quiet]

    def send(self, queue: str, jobs: Sequence[str]) -> None:
        """See `Framework`."""
        for job in jobs:
            self.client.send_task(job, queue=queue)


class RQ(Framework):
    """RQ, its worker that runs jobs in its own process."""

    name = "RQ (SimpleWorker)"
    package = "rq"
    worker = "rq.worker.SimpleWorker"

    def command(self) -> Sequence[str]:
        """See `Framework`."""
        return ["-m", "rq.cli", "worker", "--config", "benchmarks.rq_jobs", "-w", self.worker, "--quiet"]

    def send(self, queue: str, jobs: Sequence[str]) -> None:
        """See `Framework`."""
        import redis
        import rq

        with redis.Redis.from_url(self.broker) as connection:
            sent = [rq.Queue.prepare_data(f"benchmarks.rq_jobs.{job}") for job in jobs]
            rq.Queue(queue, connection=connection).enqueue_many(sent)


class ForkingRQ(RQ):
    """RQ, its usual worker with a process for each job. CPU is that of all of them."""

    name = "RQ (a process for each)"
    worker = "benchmarks.rq_jobs.Forking"


class Dramatiq(Framework):
    """Dramatiq, with one process of one thread."""

    name = "Dramatiq"
    package = "dramatiq"

    def command(self) -> Sequence[str]:
        """See `Framework`."""
        return ["-m", "benchmarks.dramatiq_jobs"]

    def send(self, queue: str, jobs: Sequence[str]) -> None:
        """See `Framework`."""
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        broker = RedisBroker(url=self.broker)
        broker.declare_queue(queue)
        for job in jobs:
            broker.enqueue(dramatiq.Message(queue_name=queue, actor_name=job, args=(), kwargs={}, options={}))
        broker.close()


FRAMEWORKS: tuple[type[Framework], ...] = (Celery, RQ, ForkingRQ, Dramatiq)


def rows(folder: Path, rounds: int, jobs: int) -> Iterator[Row]:
    """All figures of this module: `rounds` of each worker, each of so many jobs. Archives are made in `folder`."""
    import servers

    folder.mkdir(parents=True, exist_ok=True)
    try:
        broker = f"redis://127.0.0.1:{servers.redis().port}/0"
    except servers.ServerMissingError as missing:
        print(f"  {missing}: job frameworks are left out", file=sys.stderr)
        return
    for framework in FRAMEWORKS:
        if importlib.util.find_spec(framework.package) is None:
            print(f"  the package {framework.package} is not there: {framework.name} is left out", file=sys.stderr)
            continue
        yield from _compared(framework(broker), folder, rounds, jobs)


class Round(NamedTuple):
    """What a round of jobs took: microseconds of CPU for each job, and from each job to the next."""

    cpu: float
    between: list[float]


def _compared(framework: Framework, folder: Path, rounds: int, jobs: int) -> Iterator[Row]:
    found: dict[str, list[Round]] = {"traced": [], "bare": []}
    with ExitStack() as stack:
        for name in found:
            stack.callback(_end, _worker(framework, _queue(framework, name), folder, name == "traced"))
        for number in range(-1, rounds):  # the first one warms up
            for name in sorted(found, reverse=bool(number % 2)):
                taken = _round(framework, _queue(framework, name), jobs)
                if number >= 0:
                    found[name].append(taken)
    traced, bare = found["traced"], found["bare"]
    cpu = statistics.median(ours.cpu - theirs.cpu for ours, theirs in zip(traced, bare, strict=True))
    plain = statistics.median(each.cpu for each in bare)
    what = f"an empty job of {framework.name}, CPU added"
    yield Row(what, cpu, MICROSECONDS, "the bare job", plain, (plain + cpu) / plain, highest=MOST_CPU)
    slow, usual = _slowest(traced), _slowest(bare)
    what = f"an empty job of {framework.name}, time added at the 99th percentile"
    yield Row(what, slow - usual, MICROSECONDS, "the bare job's", usual, slow / usual, highest=MOST_LATENCY)


def _queue(framework: Framework, name: str) -> str:
    return f"{type(framework).__name__}-{name}"


def _slowest(rounds: list[Round]) -> float:
    """The time that all but one job in a hundred took less than."""
    return statistics.quantiles([each for taken in rounds for each in taken.between], n=100)[-1]


def _worker(framework: Framework, queue: str, folder: Path, traced: bool) -> subprocess.Popen[bytes]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    plain |= {"BENCHMARK_BROKER": framework.broker, "BENCHMARK_QUEUE": queue}
    if traced:
        plain |= {"BENCHMARK_TRACED": "yes", "TRIFLE_ARCHIVE": str(folder / f"{type(framework).__name__}-archive")}
    with (folder / f"{queue}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, *framework.command()], cwd=ROOT, env=plain, stdout=log, stderr=log)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(20)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _round(framework: Framework, queue: str, jobs: int) -> Round:
    """Have a worker do so many jobs, all of which are there before it begins."""
    import redis

    answers: Any = redis.Redis.from_url(framework.broker, socket_timeout=None)
    framework.send(queue, ["begin", *["empty"] * jobs, "report"])
    answers.rpush(f"{queue}-go", "go")
    answer = answers.blpop([f"{queue}-report"], timeout=120)
    if answer is None:
        raise TimeoutError(f"the worker of {queue} does not answer")
    taken = json.loads(answer[1])
    answers.close()
    return Round(taken["cpu"] / jobs * 1e6, [seconds * 1e6 for seconds in taken["between"]])
