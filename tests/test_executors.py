"""The running trace in threads and other processes."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from pickle import PicklingError

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


def looked_up(rates: dict[str, int]) -> int:
    """What fails inside of a step."""
    return rates["EUR"]


def failing_for_a_cause() -> None:
    """A step whose exception has another as its cause."""
    try:
        looked_up({})
    except KeyError as error:
        raise ValueError("no rate") from error


class UnpicklableError(Exception):
    """An exception that cannot be pickled: it holds a function without a name."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.again = lambda: text


class BrokenError(Exception):
    """An exception that is pickled, and cannot be unpickled: it is made of one value, and pickled with none."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class FixedError(Exception):
    """An exception that lets none of its attributes be set."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class OtherError(Exception):
    """An exception that is unpickled as what is none."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("no rate",)


class SilentError(Exception):
    """An exception whose traceback cannot be formatted: its own methods raise."""

    def __getattribute__(self, name: str) -> object:
        if name in ("__cause__", "__notes__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


def raising(kind: type[Exception]) -> None:
    """A step that says so, and raises."""
    trifle.trace("raising")
    raise kind("no rate")


class Held:
    """An argument of a step."""


holds: list[weakref.ref[Held]] = []


def holding(held: Held) -> None:
    """A step that fails, and whose process knows whether its argument is still there: nothing collects cycles."""
    gc.disable()
    holds.append(weakref.ref(held))
    raise ValueError("no rate")


def let_go() -> bool:
    """Whether the argument of `holding` is gone."""
    gc.enable()
    return holds.pop()() is None


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


def test_a_processs_error_brings_the_traceback_from_there(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """The cause of the exception is the other process's traceback, as with the pool's own `submit`."""
    with pytest.raises(ValueError, match="no rate") as plain:
        processes.submit(failing_for_a_cause).result()
    with pytest.raises(ValueError, match="no rate") as ours, trifle.tracer("a/job"):
        submit(processes, failing_for_a_cause).result()
    for error in (plain.value, ours.value):
        assert type(error.__cause__).__name__ == "_RemoteTraceback"
        there = str(error.__cause__)
        assert there.startswith('\n"""\nTraceback (most recent call last):\n')
        assert there.endswith('\nValueError: no rate\n"""')
        assert there.count("in looked_up\n") == there.count("in failing_for_a_cause\n") - 1 == 1
        assert there.count("KeyError: 'EUR'") == 1
        printed = "".join(traceback.format_exception(error))
        assert f"_RemoteTraceback: {there}\n\nThe above exception was the direct cause of" in printed


def test_the_traceback_from_a_process_is_recorded_once(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """The trace that the exception leaves keeps it with its own."""
    with pytest.raises(ValueError, match="no rate"), trifle.tracer("a/job"):
        submit(processes, failing_for_a_cause).result()
    texts = [message for _, message in shape(archive)]
    assert texts[0] == "Exception: no rate"
    assert sum(text.count("in looked_up\n") for text in texts) == 1
    assert sum(text.count("KeyError: 'EUR'") for text in texts) == 1


def test_a_threads_error_is_the_one_that_was_raised(archive: Archive) -> None:
    """In this process it has its own traceback and its own cause."""
    with ThreadPoolExecutor(1) as pool, trifle.tracer("a/job"), pytest.raises(ValueError, match="no rate") as raised:
        submit(pool, failing_for_a_cause).result()
    assert type(raised.value.__cause__) is KeyError


def test_an_error_that_cannot_be_pickled(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """The pool tells why, as for its own, and goes on."""
    for call in (processes.submit, lambda *args: submit(processes, *args)):
        with trifle.tracer("a/job"), pytest.raises((AttributeError, PicklingError), match="local object") as raised:
            call(raising, UnpicklableError).result(20)
        assert type(raised.value.__cause__).__name__ == "_RemoteTraceback"
        assert processes.submit(abs, -7).result(20) == 7


def test_an_error_that_cannot_be_unpickled(archive: Archive) -> None:
    """It breaks the pool, as without a trace."""
    for traced in (False, True):
        with ProcessPoolExecutor(1) as pool, trifle.tracer("a/job"), pytest.raises(BrokenProcessPool):
            (submit(pool, raising, BrokenError) if traced else pool.submit(raising, BrokenError)).result(20)


def test_an_error_that_lets_nothing_be_set(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """It comes home with the traceback all the same, and with what was recorded."""
    with trifle.tracer("a/job"), pytest.raises(FixedError, match="no rate") as raised:
        submit(processes, raising, FixedError).result(20)
    assert "in raising\n" in str(raised.value.__cause__)
    assert [message for _, message in shape(archive)] == ["raising"]


def test_an_error_that_is_none_at_home(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """Nobody waits for ever: what has no cause is raised as far as it can be."""
    with trifle.tracer("a/job"), pytest.raises(TypeError, match="must derive from BaseException"):
        submit(processes, raising, OtherError).result(20)
    assert [message for _, message in shape(archive)] == ["raising"]


def test_an_error_whose_traceback_cannot_be_formatted(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """It comes home, and says why there is no more."""
    with trifle.tracer("a/job"), pytest.raises(SilentError) as raised:
        submit(processes, raising, SilentError).result(20)
    cause = BaseException.__getattribute__(raised.value, "__cause__")
    assert "<traceback of SilentError cannot be formatted: RuntimeError>" in str(cause)
    assert [message for _, message in shape(archive)] == ["raising"]


def test_an_error_lets_go_of_the_arguments_in_its_process(archive: Archive, processes: ProcessPoolExecutor) -> None:
    """Its traceback's frames are not held there once it is sent: files and large values are in them."""
    with trifle.tracer("a/job"), pytest.raises(ValueError, match="no rate"):
        submit(processes, holding, Held()).result(20)
    assert processes.submit(let_go).result(20)


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
