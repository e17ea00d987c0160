"""Taskiq, Procrastinate and APScheduler: each attempt is one trace, with the same semantics."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import procrastinate
import procrastinate.testing
import pytest
import servers
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from spans import Sdk, parent_id, span_id
from taskiq import AckableMessage, InMemoryBroker, SimpleRetryMiddleware
from taskiq.exceptions import NoResultError, TaskRejectedError
from taskiq.receiver import Receiver
from workshop import Workshop

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord
from trifle_otel.integrations import apscheduler as for_apscheduler
from trifle_otel.integrations import procrastinate as for_procrastinate
from trifle_otel.integrations import taskiq as for_taskiq
from trifle_otel.integrations.attempts import job_options
from trifle_otel.recording import open_recordings


@pytest.fixture
def archive() -> Archive:
    """An archive in memory that this process records into."""
    return trifle.configure("memory:")


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    """All three, until the test ends."""
    modules: list[Any] = [for_taskiq, for_procrastinate, for_apscheduler]
    for module in modules:
        module.instrument()
    yield
    for module in modules:
        module.uninstrument()


def records(archive: Archive) -> list[TraceRecord]:
    """All traces, the oldest first."""
    assert trifle.flush(5)
    return archive.search().records[::-1]


def messages(archive: Archive, record: TraceRecord) -> list[str]:
    """A trace's lines but the first."""
    return [entry.message for entry in archive.entries(record)][1:]


# -- Taskiq


def run_taskiq(broker: InMemoryBroker, task: Any, *args: Any, **kwargs: Any) -> Any:
    """Enqueue a task, and wait for it and for what follows from it."""

    async def run() -> Any:
        await broker.startup()
        sent = await task.kiq(*args, **kwargs)
        result = await sent.wait_result(timeout=5)
        await broker.wait_all()
        return result

    return asyncio.run(run())


def test_a_taskiq_task_is_a_trace(archive: Archive) -> None:
    """A coroutine or a plain function, which runs in a thread."""
    broker = InMemoryBroker()

    @broker.task(task_name="shop.tasks:price")
    async def price(number: int, *, fast: bool = False) -> int:
        trifle.trace("pricing")
        return number * 2

    @broker.task(task_name="shop.tasks:rate")
    def rate(currency: str) -> float:
        trifle.trace("asking the bank")
        return 1.1

    assert run_taskiq(broker, price, 7, fast=True).return_value == 14
    assert run_taskiq(broker, rate, "EUR").return_value == 1.1
    first, second = records(archive)
    assert (first.key, first.meta, first.state) == (
        "jobs/shop/tasks/price",
        {"args": [7], "kwargs": {"fast": True}},
        "success",
    )
    assert first.context["job_id"] in first.tags
    assert messages(archive, first) == ["pricing", "14"]
    assert messages(archive, second) == ["asking the bank", "1.1"]


def test_a_taskiq_task_that_fails_and_one_without_result(archive: Archive) -> None:
    """An exception is the trace's; no result is no failure."""
    broker = InMemoryBroker()

    @broker.task(task_name="failing")
    async def failing() -> None:
        raise ValueError("no rate")

    @broker.task(task_name="silent")
    async def silent() -> None:
        raise NoResultError

    assert run_taskiq(broker, failing).is_err

    async def run() -> None:
        await silent.kiq()
        await broker.wait_all()

    asyncio.run(run())
    first, second = records(archive)
    assert (first.state, messages(archive, first)[0]) == ("error", "Exception: no rate")
    assert (second.state, messages(archive, second)) == ("success", ["Ignored: no result is kept"])


def test_taskiq_retries_are_traces_of_their_own(archive: Archive) -> None:
    """Each attempt says which it is; one that is tried again is no failure."""
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    tries = []

    @broker.task(task_name="flaky", retry_on_error=True)
    async def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("no rate")
        return 7

    async def run() -> None:
        await flaky.kiq()
        await broker.wait_all()
        end = time.monotonic() + 5
        while len(tries) < 3 and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await broker.wait_all()

    asyncio.run(run())
    found = records(archive)
    assert [(record.context["attempt"], record.state) for record in found] == [
        (1, "warning"),
        (2, "warning"),
        (3, "success"),
    ]
    assert messages(archive, found[0])[0] == "Retry: ValueError: no rate"


def test_taskiq_joins_enqueuer_and_worker() -> None:
    """The enqueuer's context travels in the labels."""
    sdk = Sdk().configure()
    broker = InMemoryBroker()

    @broker.task(task_name="price")
    async def price() -> int:
        return 7

    with sdk.provider.get_tracer("web").start_as_current_span("request") as request:
        message = price.kicker()._prepare_message()
    ours = f"{request.get_span_context().span_id:016x}"
    assert ours in message.labels["traceparent"]

    async def run() -> None:
        await broker.kick(broker.formatter.dumps(message))
        await broker.wait_all()

    asyncio.run(run())
    assert parent_id(sdk.root) == ours == span_id(sdk.named("request"))


class UnspeakableError(Exception):
    """Has no text, by a usual slip."""

    def __str__(self) -> str:
        return str(self.args[1])


class UnspeakableRejectionError(TaskRejectedError):
    """The same of a task that gives its message back."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error, state, line",
    [
        (UnspeakableError("x"), "warning", "Retry: UnspeakableError: UnspeakableError('x')"),
        (UnspeakableRejectionError(), "warning", "Rejected: test_async_frameworks.UnspeakableRejectionError()"),
    ],
)
def test_a_taskiq_task_whose_exception_has_no_text_is_acknowledged(
    archive: Archive, error: Exception, state: str, line: str
) -> None:
    """What it says is asked for with care: its message is acknowledged, and its trace ends."""
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=2))
    tries: list[int] = []
    acknowledged: list[int] = []

    @broker.task(task_name="shop.tasks:fails", retry_on_error=True)
    async def fails() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise error

    async def run() -> None:
        sent = broker.formatter.dumps(fails.kicker()._prepare_message()).message
        receiver = Receiver(broker, run_startup=False)
        await receiver.callback(AckableMessage(data=sent, ack=lambda: acknowledged.append(1)))
        await broker.wait_all()

    asyncio.run(run())
    assert acknowledged == [1]
    first = records(archive)[0]
    assert first.state == state
    assert messages(archive, first)[0] == line
    assert not for_taskiq._running


def test_how_a_taskiq_task_ended_is_no_fault_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is not as we know it: the trace is closed, the trouble told, and the task gives its result."""
    faults: list[BaseException] = []
    archive = trifle.configure("memory:", error_handler=faults.append)
    broker = InMemoryBroker()

    @broker.task(task_name="price")
    async def price() -> int:
        return 7

    monkeypatch.setattr(for_taskiq, "_end_as", lambda *_: 1 // 0)
    assert run_taskiq(broker, price).return_value == 7
    (record,) = records(archive)
    assert record.state == "error"
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


def test_taskiq_tasks_know_who_sent_them(archive: Archive) -> None:
    """By the labels, which stay the same for each attempt: a task that is tried again is no child of itself."""
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    tries: list[int] = []

    @broker.task(task_name="first")
    async def first() -> None:
        await second.kiq()

    @broker.task(task_name="second", retry_on_error=True)
    async def second() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("no rate")
        await third.kiq()

    @broker.task(task_name="third")
    def third() -> None:
        pass

    async def run() -> None:
        await first.kiq()
        end = time.monotonic() + 5
        while len(archive.search().records) < 4 and time.monotonic() < end:
            await asyncio.sleep(0.01)
            trifle.flush(5)
        await broker.wait_all()

    asyncio.run(run())
    found = {(record.context["job_name"], record.context["attempt"]): record.context for record in records(archive)}
    assert set(found) == {("first", 1), ("second", 1), ("second", 2), ("third", 1)}
    ids = {name: context["job_id"] for (name, _), context in found.items()}
    assert {context["root_id"] for context in found.values()} == {ids["first"]}
    assert {name: context.get("parent_id") for name, context in found.items()} == {
        ("first", 1): None,
        ("second", 1): ids["first"],
        ("second", 2): ids["first"],
        ("third", 1): ids["second"],
    }


# -- Procrastinate


def test_a_procrastinate_job_is_a_trace(archive: Archive) -> None:
    """Coroutines and plain functions, retries included."""
    app = procrastinate.App(connector=procrastinate.testing.InMemoryConnector())
    tries = []

    @app.task(queue="prices", name="shop.tasks.price")
    def price(number: int) -> int:
        trifle.trace("pricing")
        return number * 2

    @app.task(name="shop.tasks.flaky", retry=1)
    async def flaky() -> int:
        tries.append(1)
        if len(tries) < 2:
            raise ValueError("no rate")
        return 7

    @app.task(name="shop.tasks.failing")
    async def failing() -> None:
        raise ValueError("no rate")

    async def run() -> None:
        async with app.open_async():
            await price.defer_async(number=7)
            await flaky.defer_async()
            await failing.defer_async()
            await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)

    asyncio.run(run())
    found = {(record.key, record.context["attempt"]): record for record in records(archive)}
    assert {name: record.state for name, record in found.items()} == {
        ("jobs/shop/tasks/price", 1): "success",
        ("jobs/shop/tasks/flaky", 1): "warning",
        ("jobs/shop/tasks/flaky", 2): "success",
        ("jobs/shop/tasks/failing", 1): "error",
    }
    priced = found["jobs/shop/tasks/price", 1]
    assert priced.meta == {"args": [], "kwargs": {"number": 7}}
    assert priced.context["queue"] == "prices"
    assert messages(archive, priced) == ["pricing", "14"]


@pytest.mark.fault
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_procrastinate_worker_that_is_stopped_leaves_closed_traces(
    own_folder: Path, server_missing: Callable[[str], NoReturn], kind: signal.Signals
) -> None:
    """Told to stop it lets jobs finish; of one that is killed the next process closes them."""
    try:
        server = servers.postgres()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    shop = Workshop("procrastinate_jobs", own_folder, server.url())

    async def send() -> None:
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=server.url()))
        async with app.open_async():
            if not await app.check_connection_async():
                await app.schema_manager.apply_schema_async()
            seconds = 30 if kind is signal.SIGKILL else 1
            await app.configure_task("procrastinate_jobs.hangs", queue=shop.queue).defer_async(seconds=seconds)

    asyncio.run(send())
    command = ["-m", "procrastinate", "--app", "procrastinate_jobs.app", "worker", "--queues", shop.queue]
    try:
        worker = shop.work(*command, ready="Starting worker")
        shop.wait_for("hangs")
        worker.stop(kind)
        record = shop.record("hangs", recover=kind is signal.SIGKILL)
    finally:
        shop.close()
    (shop.check_dead if kind is signal.SIGKILL else shop.check_finished)(record)


# -- APScheduler


def scheduled(number: int) -> int:
    """A job."""
    trifle.trace("pricing")
    return number * 2


async def scheduled_coroutine() -> None:
    """A job that raises."""
    raise ValueError("no rate")


@job_options(trace=False)
def untraced() -> None:
    """A job that nobody is to see."""


def test_an_apscheduler_job_is_a_trace(archive: Archive) -> None:
    """In a pool of threads."""
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=timezone.utc)
    done = threading.Semaphore(0)
    scheduler.add_listener(lambda _: done.release(), 4096 | 8192)  # a job was executed, or raised
    scheduler.start()
    soon = datetime.now(timezone.utc) + timedelta(milliseconds=1)
    scheduler.add_job(untraced, "date", run_date=soon, misfire_grace_time=60)
    scheduler.add_job(scheduled, "date", [7], run_date=soon, id="nightly", misfire_grace_time=60)
    assert done.acquire(timeout=10)
    assert done.acquire(timeout=10)
    scheduler.shutdown()
    (record,) = records(archive)
    assert record.key.endswith("test_async_frameworks/scheduled")
    assert (record.meta, record.tags, record.state) == ([7], ("nightly",), "success")
    assert messages(archive, record) == ["pricing", "14"]
    assert record.context["trigger"].startswith("date")


@job_options(trace=False)
def untraced_of(*numbers: int) -> None:
    """A job that nobody is to see, with arguments."""


def quoted(*args: Any, **kwargs: Any) -> int:
    """A job with arguments of all kinds."""
    return len(args) + len(kwargs)


def run_scheduled(*functions: Callable[..., Any]) -> None:
    """Run jobs in a scheduler, one after the other, with the argument 9."""
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=timezone.utc)
    done = threading.Semaphore(0)
    scheduler.add_listener(lambda _: done.release(), 4096 | 8192)
    scheduler.start()
    for function in functions:
        scheduler.add_job(function, "date", [9], misfire_grace_time=60)
        assert done.acquire(timeout=10)
    scheduler.shutdown()


def test_an_apscheduler_job_that_is_a_partial_is_what_it_calls(archive: Archive) -> None:
    """Its function's name, and its arguments before those of the job; partials of partials too."""
    named: Any = partial(partial(quoted, 1, rate=2, fast=False), 3, rate=4)
    named.__name__ = "a name of its own"
    run_scheduled(partial(quoted, 7), partial(named, 5))
    first, second = records(archive)
    assert [record.key.split("/")[-1] for record in (first, second)] == ["quoted", "quoted"]
    assert first.meta == [7, 9]
    assert second.meta == {"args": [1, 3, 5, 9], "kwargs": {"rate": 4, "fast": False}}


def test_the_arguments_of_an_apscheduler_job_take_the_places_that_a_partial_keeps_for_them(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `functools.Placeholder`, which Python has from 3.14 on."""
    kept = object()
    monkeypatch.setattr(for_apscheduler, "_PLACEHOLDER", kept)
    run_scheduled(partial(quoted, kept, 2))
    (record,) = records(archive)
    assert record.meta == [9, 2]


def test_an_apscheduler_job_that_is_a_partial_has_the_options_of_what_it_calls(archive: Archive) -> None:
    """Of the function, or of the partial where they were put on that."""
    own = job_options(key="nightly/own")(partial(untraced_of))
    run_scheduled(partial(untraced_of, 1), partial(own, 2))
    (record,) = records(archive)
    assert record.key == "nightly/own"


def test_an_apscheduler_coroutine_is_a_trace(archive: Archive) -> None:
    """In the event loop; what it raises is the trace's."""

    async def run() -> None:
        scheduler = AsyncIOScheduler(executors={"default": AsyncIOExecutor()}, timezone=timezone.utc)
        done = asyncio.Event()
        scheduler.add_listener(lambda _: done.set(), 4096 | 8192)
        scheduler.start()
        scheduler.add_job(scheduled_coroutine, "date", misfire_grace_time=60)
        await asyncio.wait_for(done.wait(), 10)
        scheduler.shutdown()

    asyncio.run(run())
    (record,) = records(archive)
    assert (record.state, messages(archive, record)[0]) == ("error", "Exception: no rate")


async def hangs_as_scheduled() -> None:
    """A job that waits for what does not come."""
    trifle.trace("waiting")
    await asyncio.Event().wait()


def test_an_apscheduler_coroutine_that_is_cancelled_is_closed(archive: Archive) -> None:
    """As it is when its executor is shut down; that is said."""

    async def run() -> None:
        scheduler = AsyncIOScheduler(executors={"default": AsyncIOExecutor()}, timezone=timezone.utc)
        scheduler.start()
        scheduler.add_job(hangs_as_scheduled, "date", misfire_grace_time=60)
        while not open_recordings():
            await asyncio.sleep(0.01)
        scheduler.shutdown()

    asyncio.run(run())
    (record,) = records(archive)
    assert (record.state, messages(archive, record)) == ("error", ["waiting", "Cancelled: the scheduler ends"])


def test_a_taskiq_task_that_is_cancelled_is_closed(archive: Archive) -> None:
    """As it is when its worker ends; that is said."""
    broker = InMemoryBroker()

    @broker.task(task_name="shop.tasks:hangs")
    async def hangs() -> None:
        trifle.trace("waiting")
        await asyncio.Event().wait()

    async def run() -> None:
        running = asyncio.ensure_future(
            broker.receiver.run_task(hangs.original_func, hangs.kicker()._prepare_message())
        )
        while not open_recordings():
            await asyncio.sleep(0.01)
        running.cancel()
        await running

    asyncio.run(run())
    (record,) = records(archive)
    assert (record.state, messages(archive, record)[:2]) == ("error", ["waiting", "Cancelled: the worker ends"])


# -- all


def test_uninstrumented_frameworks_run_untraced(archive: Archive) -> None:
    """What was patched is put back."""
    for_taskiq.uninstrument()
    for_taskiq.uninstrument()
    broker = InMemoryBroker()

    @broker.task(task_name="price")
    async def price() -> int:
        return 7

    assert run_taskiq(broker, price).return_value == 7
    assert records(archive) == []
    assert Receiver.run_task.__module__ == "taskiq.receiver.receiver"
