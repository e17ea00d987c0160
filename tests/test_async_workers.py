"""Workers of Taskiq, and programs with a scheduler of APScheduler's, as processes: what they leave when they end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from brokers import Worker, redis
from otlp_servers import HttpServer
from servers import PATIENCE, ServerMissingError
from taskiq.kicker import AsyncKicker
from taskiq_redis import ListQueueBroker
from workshop import Workshop

from trifle_otel import TraceRecord
from trifle_otel.integrations import taskiq as for_taskiq

slow = pytest.mark.slow
fault = pytest.mark.fault


def check_cancelled(shop: Workshop, record: TraceRecord, why: str) -> None:
    """The trace of a job that was cancelled in mid-work has what it recorded, and says why it ended."""
    assert record.state == "error"
    lines = shop.messages(record)
    assert lines[:2] == ["waiting ↴", "inside"]
    assert why in lines


# -- Taskiq


class TaskiqShop(Workshop):
    """Workers of `taskiq_jobs`, and who enqueues for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__("taskiq_jobs", folder, f"redis://127.0.0.1:{redis().port}/0")

    def start(self, *options: str, processes: int = 1, **environment: str) -> Worker:
        """Start a worker, and wait until each of its processes takes tasks."""
        command = ["-m", "taskiq", "worker", "taskiq_jobs:broker", "--workers", str(processes), *options]
        worker = self.work(*command, ready="Listening started", **environment)
        self.wait_until(lambda: worker.said.count("Listening started") == processes)
        return worker

    def send(self, name: str, *args: Any, **labels: Any) -> None:
        """Enqueue a task."""

        async def run() -> None:
            broker = ListQueueBroker(self.environment["JOBS_BROKER"], queue_name=self.queue)
            await broker.startup()
            await AsyncKicker[Any, Any](f"taskiq_jobs:{name}", broker, labels).kiq(*args)
            await broker.shutdown()

        asyncio.run(run())


@pytest.fixture
def shop(own_folder: Path, server_missing: Callable[[str], NoReturn]) -> Iterator[TaskiqShop]:
    """A shop without workers yet."""
    try:
        made = TaskiqShop(own_folder)
    except ServerMissingError as missing:
        server_missing(str(missing))
    yield made
    made.close()


@slow
def test_every_attempt_of_taskiq_is_an_archive(shop: TaskiqShop) -> None:
    """One trace for each attempt, with its queue and how it ended, and none for what opted out."""
    shop.start(processes=2)
    shop.send("fails", retry_on_error=True, max_retries=2)
    shop.send("takes_long", timeout=1)
    shop.send("secret")
    for number in range(20):
        shop.send("add", number)
    shop.send("add_in_a_thread", 1)
    shop.send("starts_another", 100)
    found = shop.records(2 + 1 + 20 + 1 + 3)
    ends = Counter((record.key.removeprefix("jobs/taskiq_jobs/"), record.state) for record in found)
    assert ends == {
        ("fails", "warning"): 1,
        ("fails", "error"): 1,
        ("takes_long", "error"): 1,
        ("add", "success"): 21,
        ("add_in_a_thread", "success"): 1,
        ("starts_another", "success"): 1,
        ("inner", "success"): 1,
    }
    shop.check_sums(found, *range(20), 100)
    failed = [record for record in found if record.key == shop.key("fails")]
    assert [record.context["attempt"] for record in failed] == [1, 2]
    assert "Exception: no rate" in shop.messages(failed[1])
    assert {record.context["queue"] for record in found if record.key != "inner"} == {shop.queue}
    (sender,) = [record for record in found if record.key == shop.key("starts_another")]
    (child,) = [record for record in found if "parent_id" in record.context]
    assert child.key == shop.key("add")
    assert child.context["parent_id"] == child.context["root_id"] == sender.context["job_id"]


@slow
def test_one_distributed_trace_across_processes_of_taskiq(shop: TaskiqShop, sink: HttpServer) -> None:
    """From who enqueues by the worker to what a task there enqueues."""
    shop.start(JOBS_SPANS=sink.endpoint)
    shop.check_joined(for_taskiq, sink, lambda: shop.send("starts_another", 1))


@fault
@pytest.mark.parametrize("task", ["hangs", "hangs_in_a_thread"])
def test_sigterm_lets_taskiq_finish_tasks(shop: TaskiqShop, task: str) -> None:
    """The worker ends when they have, and what they recorded is there: its processes call no exit handlers."""
    worker = shop.start()
    shop.send(task, 1.0)
    shop.wait_for(task)
    assert worker.stop() == 0
    (record,) = shop.records(1, within=0)
    shop.check_finished(record)


@fault
def test_tasks_that_taskiq_gives_up_waiting_for_are_closed(shop: TaskiqShop) -> None:
    """By the worker itself as it ends: they say that they were cancelled."""
    worker = shop.start("--wait-tasks-timeout", "0.1")
    shop.send("hangs")
    shop.wait_for("hangs")
    assert worker.stop() == 0
    (record,) = shop.records(1, within=0)
    check_cancelled(shop, record, "Cancelled: the worker ends")


@fault
@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_a_taskiq_worker_that_is_killed_leaves_what_its_task_recorded(shop: TaskiqShop, mode: str) -> None:
    """Whoever recovers closes the trace."""
    worker = shop.start(TRIFLE_DEFAULT_MODE=mode)
    shop.send("hangs")
    shop.wait_for("hangs")
    worker.kill()
    shop.check_dead(shop.record("hangs", recover=True))


@fault
def test_a_taskiq_process_that_is_killed_is_closed_by_the_next(shop: TaskiqShop) -> None:
    """Taskiq starts another in its place, which closes the trace before it has a task of its own."""
    worker = shop.start()
    shop.send("hangs")
    shop.wait_for("hangs")
    (pid,) = worker.children()
    os.kill(pid, signal.SIGKILL)
    shop.check_dead(shop.record("hangs"))


# -- APScheduler


@pytest.fixture
def program(own_folder: Path) -> Iterator[Workshop]:
    """What runs the program `apscheduler_jobs`; its jobs are kept in memory."""
    made = Workshop("apscheduler_jobs", own_folder, "memory")
    yield made
    made.close()


def start(program: Workshop, scheduler: str, *jobs: str, sigterm: str = "default", **environment: str) -> Worker:
    """Start the program. Its jobs say how far it is."""
    options = ["--scheduler", scheduler, "--sigterm", sigterm]
    return program.work("-m", "apscheduler_jobs", *options, *jobs, ready="", **environment)


@slow
@pytest.mark.parametrize("scheduler", ["blocking", "background", "asyncio", "spawn", "fork"])
def test_every_run_of_apscheduler_is_an_archive(program: Workshop, scheduler: str) -> None:
    """One trace for each run, with how it ended, as soon as the program has ended."""
    assert start(program, scheduler, "add", "fails").process.wait(PATIENCE) == 0
    found = {record.key: record for record in program.records(2, within=0)}
    added, failed = found[program.key("add")], found[program.key("fails")]
    assert (added.state, program.messages(added)) == ("success", ["adding", "7"])
    assert failed.state == "error"
    assert "Exception: no rate" in program.messages(failed)


@fault
@pytest.mark.parametrize("scheduler", ["blocking", "background", "spawn", "fork"])
@pytest.mark.parametrize("how", ["shutdown", "exit"])
def test_sigterm_lets_apscheduler_finish_jobs(program: Workshop, scheduler: str, how: str) -> None:
    """Where a handler shuts the scheduler down, and where it leaves the program: Python itself waits for pools."""
    worker = start(program, scheduler, "hangs_a_second", sigterm=how)
    program.wait_for("hangs")
    assert worker.stop() == 0
    (record,) = program.records(1, within=0)
    program.check_finished(record)


@fault
def test_sigterm_closes_the_traces_of_coroutines_of_apscheduler(program: Workshop) -> None:
    """A scheduler in an event loop cancels them when a handler shuts it down; they say so."""
    worker = start(program, "asyncio", "hangs_in_the_loop", sigterm="shutdown")
    program.wait_for("hangs_in_the_loop")
    assert worker.stop() == 0
    (record,) = program.records(1, within=0)
    check_cancelled(program, record, "Cancelled: the scheduler ends")


@fault
@pytest.mark.parametrize("mode", ["live", "deferred"])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("scheduler, job", [("blocking", "hangs"), ("asyncio", "hangs_in_the_loop")])
def test_a_scheduler_that_is_killed_leaves_what_its_job_recorded(
    program: Workshop, scheduler: str, job: str, kind: signal.Signals, mode: str
) -> None:
    """Whoever recovers closes the trace; SIGTERM without a handler leaves no more time than SIGKILL."""
    worker = start(program, scheduler, job, TRIFLE_DEFAULT_MODE=mode)
    program.wait_for(job)
    assert worker.stop(kind) == -kind
    program.check_dead(program.record(job, recover=True))


@fault
def test_a_scheduler_that_is_killed_is_closed_by_the_next(program: Workshop) -> None:
    """The next run of the program closes the trace when it has a job of its own."""
    worker = start(program, "blocking", "hangs")
    program.wait_for("hangs")
    worker.stop(signal.SIGKILL)
    assert start(program, "blocking", "add").process.wait(PATIENCE) == 0
    program.check_dead(program.record("hangs", 2))
