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
from procrastinate.retry import BaseRetryStrategy

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.errors import MissingDependency
from trifle_otel.integrations import procrastinate as ours


class Failing(BaseRetryStrategy):
    """Does not know what to do about an exception."""

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> NoReturn:
        """Raises."""
        raise KeyError(f"{type(exception).__name__} of job {job.id}")


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
    """It is recorded, it is what Procrastinate gets, and the trace ends: the strategy's fault is not the trace's."""
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
    assert [type(fault) for fault in faults] == [KeyError]
    assert of_the_only_trace(archive) == ("error", "Exception: no rate")


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
