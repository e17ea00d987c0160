"""How attempts at Procrastinate's jobs end where a retry strategy of the user's fails. What is usual is tested with
the other asynchronous frameworks.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

pytest.importorskip("procrastinate", reason="needs Procrastinate")

import procrastinate
import procrastinate.testing
from procrastinate.retry import BaseRetryStrategy, RetryDecision

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.errors import MissingDependency
from trifle_otel.frames import FRAME
from trifle_otel.integrations import procrastinate as ours
from trifle_otel.otel_context import get_current
from trifle_otel.recording import open_recordings
from trifle_otel.runtime import runtime


class Failing(BaseRetryStrategy):
    """Does not know what to do about an exception."""

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> NoReturn:
        """Raises."""
        raise KeyError(f"{type(exception).__name__} of job {job.id}")


class Counting(BaseRetryStrategy):
    """Says each time that it is asked whether to try again, by what it has said before."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, str]] = []

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> RetryDecision | None:
        """The next answer."""
        self.asked.append((job.attempts, type(exception).__name__))
        return RetryDecision(retry_in={"seconds": 0}) if self.answers.pop(0) else None


class UnspeakableError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.fixture(autouse=True)
def _instrumented() -> Iterator[None]:
    ours.instrument()
    yield
    ours.uninstrument()


@pytest.mark.parametrize("is_async", [True, False])
def test_the_jobs_own_exception_is_what_a_failing_retry_strategy_leaves(is_async: bool) -> None:
    """It is recorded, it is what Procrastinate gets, and the trace ends: the strategy's fault is Procrastinate's."""
    faults: list[BaseException] = []
    archive = trifle.configure("memory:", error_handler=faults.append)
    seen: list[BaseException] = []
    app = procrastinate.App(connector=procrastinate.testing.InMemoryConnector())

    async def watched(call_next: Any, context: Any, worker: Any) -> Any:
        try:
            return await call_next()
        except BaseException as error:
            seen.append(error)
            raise

    def price() -> None:
        raise ValueError("no rate")

    async def price_later() -> None:
        price()

    task = app.task(name="shop.price", retry=Failing())(price_later if is_async else price)

    async def run() -> None:
        async with app.open_async():
            await task.defer_async()
            await app.run_worker_async(
                wait=False, install_signal_handlers=False, listen_notify=False, worker_middleware=[watched]
            )

    asyncio.run(run())
    assert [str(error) for error in seen] == ["no rate"]
    assert faults == []
    assert of_the_only_trace(archive) == ("error", "Exception: no rate")


def run_jobs(app: procrastinate.App, *tasks: Any, **options: Any) -> None:
    """Enqueue a job of each task, and run a worker until there is none left."""

    async def run() -> None:
        async with app.open_async():
            for task in tasks:
                await task.defer_async()
            await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False, **options)

    asyncio.run(run())


def failing(app: procrastinate.App, is_async: bool, strategy: BaseRetryStrategy) -> Any:
    """A task that fails, as a coroutine or a plain function."""

    def price() -> None:
        trifle.trace("pricing")
        raise ValueError("no rate")

    async def price_later() -> None:
        price()

    return app.task(name="shop.price", retry=strategy)(price_later if is_async else price)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_retry_strategy_is_asked_once_for_each_attempt(is_async: bool) -> None:
    """By Procrastinate: one that keeps count decides as it does without us, and the traces say what it decided."""
    archive = trifle.configure("memory:")
    app = procrastinate.App(connector=procrastinate.testing.InMemoryConnector())
    strategy = Counting(True, True, False)
    run_jobs(app, failing(app, is_async, strategy))
    assert strategy.asked == [(0, "ValueError"), (1, "ValueError"), (2, "ValueError")]
    found = archive_records(archive)
    assert [(record.context["attempt"], record.state) for record in found] == [
        (1, "warning"),
        (2, "warning"),
        (3, "error"),
    ]
    lines = [entry.message for entry in archive.entries(found[0])]
    assert lines[1:3] == ["pricing", "Retry: ValueError: no rate"]
    assert [recording for recording in open_recordings() if recording.runtime is runtime()] == []


@pytest.mark.parametrize("is_async", [True, False])
def test_attempts_whose_failure_a_middleware_keeps_to_itself(is_async: bool) -> None:
    """No strategy is asked then; the trace says that the job failed, and ends with the job."""
    archive = trifle.configure("memory:")
    app = procrastinate.App(connector=procrastinate.testing.InMemoryConnector())
    strategy = Counting()
    inside: list[Any] = []

    async def twice(call_next: Any, context: Any, worker: Any) -> Any:
        for _ in range(2):
            try:
                await call_next()
            except ValueError:
                inside.append(get_current().get(FRAME))

    run_jobs(app, failing(app, is_async, strategy), worker_middleware=[twice])
    assert strategy.asked == []
    assert inside == [None, None]  # the next job is not found in this one
    assert [record.state for record in archive_records(archive)] == ["error", "error"]
    assert [recording for recording in open_recordings() if recording.runtime is runtime()] == []


def test_a_retry_because_of_an_exception_without_a_text() -> None:
    """What it says is asked for with care: the job is tried again, and its trace ends."""
    archive = trifle.configure("memory:")
    app = procrastinate.App(connector=procrastinate.testing.InMemoryConnector())

    @app.task(name="shop.price", retry=1)
    async def price() -> None:
        raise UnspeakableError

    async def run() -> None:
        async with app.open_async():
            await price.defer_async()
            await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)

    asyncio.run(run())
    first = archive_records(archive)[0]
    assert first.state == "warning"
    assert any(entry.message.startswith("Retry: UnspeakableError: ") for entry in archive.entries(first))


def test_a_version_without_middlewares_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers have no place for us: that is told where it is set up, and keeps no worker from starting."""
    monkeypatch.setitem(sys.modules, "procrastinate.middleware", None)
    monkeypatch.delitem(sys.modules, ours.__name__)
    with pytest.raises(MissingDependency, match=r"procrastinate>=3\.9"):
        importlib.import_module(ours.__name__)


def archive_records(archive: Archive) -> list[Any]:
    """The traces, the oldest first."""
    assert trifle.flush(5)
    return archive.search().records[::-1]


def of_the_only_trace(archive: Archive) -> tuple[str, str]:
    """Its state, and its second line."""
    (record,) = archive_records(archive)
    return record.state, archive.entries(record)[1].message
