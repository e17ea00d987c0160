"""The running trace in threads and other processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from opentelemetry import trace as otel
from spans import Sdk, assert_every_line_is_accounted_for

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.integrations.executors import carry, linked, submit
from trifle_otel.outline import outline


@pytest.fixture
def archive() -> Archive:
    """An archive in memory that this process records into."""
    return trifle.configure("memory:")


@pytest.fixture(scope="module", params=["fork", "spawn"])
def processes(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    """A pool of one process, started either way before anything is recorded."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(request.param)) as pool:
        pool.submit(os.getpid).result()
        yield pool


def priced(number: int) -> int:
    """A job's step."""
    trifle.trace(f"pricing {number}", state="warning")
    with trifle.block("Rate", head=True) as step:
        trifle.trace("asking the bank")
        step.result(number * 2)
    trifle.tag(f"product:{number}")
    trifle.artifact("page.html", f"<p>{number}</p>")
    return number * 2


def failing() -> None:
    """A step that raises, with a block open."""
    with trifle.block("Rate"):
        trifle.trace("asking the bank")
        trifle.fail()
        raise ValueError("no rate")


def leaving() -> None:
    """A step that ends its process, as a pool takes it for granted that none does."""
    trifle.trace("leaving")
    raise SystemExit(3)


def waiting_for(path: str) -> None:
    """A step that says that it runs by a file, and ends once that is gone."""
    Path(path).touch()
    while Path(path).exists():
        time.sleep(0.01)


def shape(archive: Archive) -> list[tuple[int, str]]:
    """Depth and message of each line of the only trace but its first."""
    assert trifle.flush(5)
    (record,) = archive.search().records
    entries = archive.entries(record)
    found = outline(entries)
    return [(found.depth(place), entry.message) for place, entry in enumerate(entries)][1:]


EXPECTED = [
    (0, "Prices ↴"),
    (1, "pricing 7"),
    (1, "Rate ↴"),
    (2, "asking the bank"),
    (1, "Rate ↵"),
    (1, "↳ 14"),
    (1, "page.html"),
    (0, "Prices ↵"),
    (0, "↳ None"),
]


def test_a_thread_records_where_it_was_submitted(archive: Archive) -> None:
    """Lines, blocks, tags and artifacts of a thread lie in the block that is running here."""
    with ThreadPoolExecutor(1) as pool, trifle.tracer("a/job"), trifle.block("Prices"):
        assert submit(pool, priced, 7).result() == 14
    assert shape(archive) == EXPECTED
    assert archive.search().records[0].tags == ("product:7",)


def test_carry_works_with_map(archive: Archive) -> None:
    """A function that is carried may be called any number of times, in several threads at once."""
    with ThreadPoolExecutor(4) as pool, trifle.tracer("a/job"), trifle.block("Prices"):
        assert list(pool.map(carry(priced), range(8))) == [number * 2 for number in range(8)]
    found = shape(archive)
    assert sorted(message for depth, message in found if depth == 1 and message.startswith("pricing")) == [
        f"pricing {number}" for number in range(8)
    ]
    assert sum(line == (2, "asking the bank") for line in found) == 8


def test_a_carried_function_leaves_its_thread_as_it_was(archive: Archive) -> None:
    """The trace is not current in the thread before or afterwards, whatever the function does."""
    with trifle.tracer("a/job"):
        carried = carry(failing)
    seen: list[object] = []

    def work() -> None:
        with pytest.raises(ValueError, match="no rate"):
            carried()
        seen.append(trifle.current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


def test_what_a_process_records_comes_home(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """Lines, blocks, tags and artifacts of another process lie in the block that was running when it was asked."""
    with trifle.tracer("a/job"), trifle.block("Prices"):
        assert submit(processes, priced, 7).result() == 14
    assert sorted(shape(archive)) == sorted(EXPECTED)
    (record,) = archive.search().records
    assert record.tags == ("product:7",)
    assert archive.artifact(record, "page.html") == b"<p>7</p>"
    assert record.counters["states"] == {"success": 9, "warning": 1, "error": 0, "debug": 0}


def test_a_processs_error_comes_home_with_what_it_recorded(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """The exception is the future's; blocks that were open are closed; the state that was set is the trace's."""
    with trifle.tracer("a/job"), pytest.raises(ValueError, match="no rate"):
        submit(processes, failing).result()
    assert [message for _, message in shape(archive)] == ["Rate ↴", "asking the bank", "Rate ↵", "↳ None"]
    assert archive.search().records[0].state == "error"


def test_an_exit_in_a_process_comes_home_too(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """What calls `sys.exit` is told to whoever asked, as by the pool itself, which goes on."""
    with trifle.tracer("a/job"):
        with pytest.raises(SystemExit):
            submit(processes, leaving).result(20)
        assert submit(processes, abs, -7).result(20) == 7
    assert [message for _, message in shape(archive)] == ["leaving"]


def test_secrets_from_a_process_are_screened_at_home(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """What comes home goes the way of all lines."""
    with trifle.tracer("a/job"):
        submit(processes, trifle.trace, "password=hunter2secret").result()
    assert "hunter2secret" not in str(shape(archive))


def test_a_process_without_a_trace_is_asked_plainly(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """Outside of a trace `submit` is the executor's own."""
    assert submit(processes, abs, -7).result() == 7
    assert archive.search().records == []


def test_lines_that_come_home_after_the_end_are_counted(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """A trace that has ended takes no more lines; the result comes all the same."""
    with trifle.tracer("a/job") as job:
        future = submit(processes, priced, 7)
        gate = submit(processes, abs, -1)  # behind it in the pool's queue
    assert future.result() == 14
    assert gate.result() == 1
    if job.late:  # else it was quicker than the end of the trace
        assert job.late >= 4


def test_a_future_that_is_cancelled(archive: Archive, processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Cancelling says what it says for the executor's own futures: what runs already runs on."""
    file = tmp_path / "runs"
    with trifle.tracer("a/job"):
        futures = [submit(processes, waiting_for, str(file)) for _ in range(5)]  # some more than a pool takes at once
        while not file.exists():
            time.sleep(0.01)
        assert futures[0].running()
        assert not futures[0].cancel()
        assert futures[-1].cancel()
        assert futures[-1].cancelled()
        while wait(futures, 0.02).not_done:
            file.unlink(missing_ok=True)
    assert futures[0].result() is None
    assert not futures[0].running()
    with pytest.raises(CancelledError):
        futures[-1].result()


def test_each_line_from_a_process_is_accounted_for_on_spans(processes: ProcessPoolExecutor) -> None:
    """Its blocks have no spans; its lines are events of the block's span, or counted."""
    sdk = Sdk().configure()
    with trifle.tracer("a/job"), trifle.block("Prices"):
        submit(processes, priced, 7).result()
    assert_every_line_is_accounted_for(sdk)


def test_a_linked_trace_names_the_one_that_asked(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a trace of its own, found by the reference of the other, in the same distributed trace."""
    archive = trifle.configure("./traces", tracer_provider=Sdk().provider)
    monkeypatch.setenv("TRIFLE_ARCHIVE", "./traces")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool, trifle.tracer("a/job") as job:
        assert pool.submit(linked(priced), 7).result() == 14
        ours = otel.get_current_span().get_span_context().trace_id
    assert trifle.flush(5)
    (record,) = archive.search(all_tags=[job.reference]).records
    assert record.key == "a/job/priced"
    assert record.context["parent_reference"] == job.reference
    assert record.context["trace_id"] == f"{ours:032x}"
    assert record.meta == [7]
    assert [entry.message for entry in archive.entries(record)][-1] == "↳ 14" or "14" in str(
        archive.entries(record)[-1]
    )


def test_to_thread_takes_the_trace_along_by_itself(archive: Archive) -> None:
    """asyncio copies its context into the thread."""

    async def job() -> None:
        async with trifle.tracer("a/job"):
            with trifle.block("Prices"):
                await asyncio.to_thread(priced, 7)

    asyncio.run(job())
    assert shape(archive) == EXPECTED
