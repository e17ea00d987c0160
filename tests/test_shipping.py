"""From a finished trace to the archive: durable first, shipped in the background, nothing lost, nothing doubled."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import figures
import pytest

import trifle_otel as trifle
from trifle_otel import Archive, backlog, shipper, spool
from trifle_otel.adoption import TOO_MUCH
from trifle_otel.delivery import Delivery
from trifle_otel.encoding import encode_record
from trifle_otel.errors import NotFound, StoreUnavailable
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.parcels import Note, Parcel
from trifle_otel.records import Folder, TraceRecord
from trifle_otel.runtime import Runtime, Troubles, install
from trifle_otel.settings import Settings
from trifle_otel.shipper import Shipper
from trifle_otel.spool import Spool
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.stores.parallel import take_at_once
from trifle_otel.testing import local_folder, run_at_once, sample_record


class Faulty(MemoryStore):
    """A store that can be out of reach, refuse, or hang."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[], None] = lambda: None
        self.order: list[str] = []

    def take(self, folder: Folder, local: Path) -> None:
        """Note in which order traces come in."""
        super().take(folder, local)
        self.order.append(folder.reference)

    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Write, unless something is the matter."""
        self.fault()
        super().write(folder, name, data)

    def open(self, folder: Folder, name: str) -> BinaryIO:
        """Read, unless something is the matter."""
        self.fault()
        return super().open(folder, name)


class FaultyIndex(MemoryIndex):
    """An index that can be out of reach, and notes how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[], None] = lambda: None
        self.batches: list[int] = []

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Put, unless something is the matter."""
        self.fault()
        self.batches.append(len(records))
        super().put(records)


def unavailable() -> None:
    """What a store says that is down."""
    raise StoreUnavailable("it is down")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come quickly."""
    monkeypatch.setattr(shipper, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(shipper, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(shipper, "LINGER", 0.01)


class Setup:
    """A delivery over faulty parts, with a spool on disk."""

    def __init__(self, folder: Path, *, limit: int = 1 << 30, direct: bool = False, **settings: object) -> None:
        self.store = Faulty()
        self.index = FaultyIndex()
        self.archive = Archive(FileStore(folder) if direct else self.store, self.index)
        self.settings = Settings(spool_limit=limit, **settings)  # type: ignore[arg-type]
        self.runtime = Runtime(self.settings, None)
        self.spool = Spool(folder / ".spool")
        self.troubles: Troubles = self.runtime.troubles
        self.delivery = Delivery(self.archive, self.spool, self.settings, self.troubles, direct=direct)
        self.runtime.sink = self.delivery
        install(self.runtime)

    def record(self, key: str = "jobs/one", lines: int = 1) -> str:
        """Record a trace; gives its reference."""
        with trifle.tracer(key) as job:
            for number in range(lines):
                trifle.trace(f"line {number}")
        return job.reference

    def keys(self) -> list[str]:
        """The keys in the archive, in order."""
        return sorted(record.key for record in self.archive.search(limit=1000).records)


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    """A delivery whose store and index can be made to fail."""
    made = Setup(tmp_path)
    yield made
    made.store.fault = made.index.fault = lambda: None
    made.delivery.shutdown(5)
    install(None)


def test_traces_wait_while_the_store_is_down_and_are_shipped_when_it_is_back(setup: Setup) -> None:
    """Nothing is lost while the store is out of reach, and nothing comes twice."""
    setup.store.fault = unavailable
    references = [setup.record() for _ in range(20)]
    assert not trifle.flush(0.2)
    assert setup.archive.search().records == []
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert {record.reference for record in setup.archive.search(limit=100).records} == set(references)
    assert setup.archive.entries(references[0]).damaged == []
    assert setup.troubles.counts["the archive cannot be written; traces wait"] >= 1


def test_an_index_that_is_too_slow_for_many_rows_gets_fewer(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes an index longer than it has is not tried in the same size for ever."""
    sizes: list[int] = []
    put = setup.index.put

    def slow(records: Sequence[TraceRecord]) -> None:
        sizes.append(len(records))
        if len(records) > 5:
            raise StoreUnavailable("no answer in time")
        put(records)

    setup.index.fault = unavailable
    for _ in range(40):
        setup.record()
    assert not trifle.flush(0.2)
    monkeypatch.setattr(setup.index, "put", slow)
    setup.index.fault = lambda: None
    assert trifle.flush(20)
    assert len(setup.keys()) == 40
    assert max(sizes) > 5


def test_rows_wait_while_the_index_is_down(setup: Setup) -> None:
    """The payload is stored once, its row follows when the index is back."""
    setup.index.fault = unavailable
    setup.record()
    assert not trifle.flush(0.2)
    writes: list[str] = []
    setup.store.fault = lambda: writes.append("again")
    setup.index.fault = lambda: None
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/one"]
    assert writes == []
    assert list((setup.spool.root).glob("*/rows-*")) == []


def test_rows_are_indexed_in_batches(setup: Setup) -> None:
    """Many traces reach the index in few statements."""
    setup.store.fault = unavailable
    for _ in range(100):
        setup.record()
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert len(setup.index.batches) <= 2
    assert sum(setup.index.batches) == 100


def test_a_store_that_hangs_does_not_hold_up_the_job_or_a_flush(setup: Setup) -> None:
    """Calls in the job return at once, and flush keeps its deadline."""
    release = threading.Event()
    setup.store.fault = lambda: assert_true(release.wait(20))
    try:
        setup.record()
        start = time.monotonic()
        assert not trifle.flush(0.3)
        assert time.monotonic() - start < 2
        start = time.monotonic()
        for _ in range(20):
            setup.record()
        assert time.monotonic() - start < 2
    finally:
        release.set()
    assert trifle.flush(5)
    assert len(setup.keys()) == 21


def assert_true(holds: bool) -> None:
    """What a lambda cannot say."""
    assert holds


def until_paused(waiting: shipper.Shipper) -> None:
    """Wait until the archive has been tried in vain."""
    with waiting._state:
        assert waiting._state.wait_for(lambda: bool(waiting._pause) and not waiting._batch, 60)


def test_the_bound_drops_the_oldest_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above `spool_limit` the oldest traces go, from disk too, and are counted."""
    for pause in ("FIRST_PAUSE", "LONGEST_PAUSE"):  # what is being tried is never dropped: nothing is, after that
        monkeypatch.setattr(shipper, pause, 60.0)
    setup = Setup(tmp_path, limit=6_000)
    setup.store.fault = unavailable
    for number in range(30):
        setup.record(f"jobs/{number:02d}", lines=20)
        if not number:
            until_paused(setup.delivery.shipper)
    dropped = setup.troubles.counts["traces were dropped: more waited than `spool_limit` allows"]
    assert 0 < dropped < 30
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert setup.keys() == [f"jobs/{number:02d}" for number in range(dropped, 30)]
    assert [path for path in setup.spool.root.glob("*/*") if path.is_dir()] == []
    setup.delivery.shutdown(5)


def test_what_waits_for_long_is_dropped_and_counted(tmp_path: Path) -> None:
    """Above `spool_age` traces that cannot be shipped go, from disk too; those that can be shipped never do."""
    setup = Setup(tmp_path, spool_age=0.05)
    setup.store.fault = unavailable
    for _ in range(3):
        setup.record("jobs/old")
    assert trifle.flush(5)
    assert setup.troubles.counts["traces were dropped: they had waited longer than `spool_age` allows"] == 3
    assert [path for path in setup.spool.root.glob("*/*") if path.is_dir()] == []
    setup.store.fault = lambda: None
    setup.record("jobs/new")
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/new"]
    setup.delivery.shutdown(5)


def test_metrics_that_raise_cost_no_trace(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another SDK does with what is measured: it is told, and the trace is shipped."""

    def broken(record: TraceRecord) -> None:
        raise OSError(record.key)

    monkeypatch.setattr(setup.delivery.metrics, "finished", broken)
    setup.record("jobs/one")
    assert trifle.flush(60)
    assert setup.keys() == ["jobs/one"]
    assert setup.troubles.counts["a trace could not be measured"] == 1


def test_a_disk_that_drops_slowly_holds_up_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While what is too old goes from a slow disk, jobs end as ever; and it waits until it is gone."""
    removing, go_on = threading.Event(), threading.Event()

    def slow(path: Any, ignore_errors: bool = False) -> None:
        removing.set()
        assert go_on.wait(60)
        remove(path, ignore_errors=ignore_errors)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", slow)
    setup = Setup(tmp_path, spool_age=0.05)
    setup.store.fault = unavailable
    setup.record("jobs/old")
    flushed: list[bool] = []
    flushing = threading.Thread(target=lambda: flushed.append(trifle.flush(60)))
    flushing.start()
    assert removing.wait(60)
    setup.store.fault = lambda: None
    setup.record("jobs/new")
    assert flushing.is_alive()
    go_on.set()
    flushing.join(60)
    assert flushed == [True]
    assert setup.troubles.counts["traces were dropped: they had waited longer than `spool_age` allows"] == 1
    assert trifle.flush(60)
    assert setup.keys() == ["jobs/new"]
    setup.delivery.shutdown(5)


def test_what_was_let_go_of_is_shipped_in_order(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long queue most is on disk alone; all of it arrives, in order, whole, and is counted while it waits."""
    monkeypatch.setattr(backlog, "KEPT", 5)
    monkeypatch.setattr(backlog, "PACKED", 7)
    monkeypatch.setattr(shipper, "BATCH", 10)
    setup.store.fault = unavailable
    references = [setup.record(f"jobs/{number:03d}", lines=number % 5) for number in range(100)]
    waiting = setup.delivery.shipper.waits()
    assert waiting.traces == 100
    files = setup.spool.root.rglob("*")
    assert waiting.bytes == sum(path.stat().st_size for path in files if path.name.startswith(("data_", "record.")))
    assert 0 < waiting.age < 60
    setup.store.fault = lambda: None
    assert trifle.flush(10)
    assert setup.delivery.shipper.waits() == (0, 0, 0)
    assert setup.store.order == references
    for number, reference in enumerate(references):
        entries = setup.archive.entries(reference)
        assert (entries.damaged, len(entries)) == ([], 1 + number % 5)


GROWING = """
import os, sys
from pathlib import Path
import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.delivery import Delivery
from trifle_otel.errors import StoreUnavailable
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.runtime import Runtime, install
from trifle_otel.settings import Settings
from trifle_otel.spool import Spool
from trifle_otel.stores.memory import MemoryStore

class Down(MemoryStore):
    def write(self, folder, name, data):
        raise StoreUnavailable("it is down")

settings = Settings(default_mode="deferred")
runtime = Runtime(settings, None)
runtime.sink = Delivery(Archive(Down(), MemoryIndex()), Spool(Path(sys.argv[1])), settings, runtime.troubles)
install(runtime)

def record(amount):
    for number in range(amount):
        with trifle.tracer("jobs/one", meta=[number, "x" * 100], tags=[f"product:{number}"]):
            trifle.trace("line")
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

print(-record(3000) + record(40_000))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="nothing tells there how much memory is taken")
def test_memory_stays_bounded_while_a_store_is_down(tmp_path: Path) -> None:
    """Forty thousand traces that wait take less than 64 MB; as objects in memory they would take 96."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        done = subprocess.run([sys.executable, "-c", GROWING, folder], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 20


def test_rows_that_wait_are_counted(setup: Setup) -> None:
    """A trace whose row alone is missing still waits."""
    setup.index.fault = unavailable
    for _ in range(4):
        setup.record()
    assert not trifle.flush(0.3)
    assert setup.delivery.shipper.waits().traces == 4
    setup.index.fault = lambda: None
    assert trifle.flush(5)
    assert setup.delivery.shipper.waits().traces == 0


def test_rows_of_a_local_archive_follow_however_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its index is down a local archive has the payloads at once; rows wait on disk, and none is forgotten."""
    monkeypatch.setattr(backlog, "KEPT", 5)
    monkeypatch.setattr(backlog, "PACKED", 7)
    monkeypatch.setattr(spool, "NOTE_ROWS", 9)
    setup = Setup(tmp_path, direct=True)
    setup.index.fault = unavailable
    references = [setup.record() for _ in range(60)]
    assert len(list(setup.archive.store.folders())) == 60
    assert setup.delivery.shipper.waits().traces == 60
    setup.index.fault = lambda: None
    assert trifle.flush(5)
    assert {record.reference for record in setup.archive.search(limit=100).records} == set(references)
    assert list(setup.spool.root.glob("*/rows-*")) == []
    setup.delivery.shutdown(5)


def test_a_row_that_the_index_refuses_holds_up_no_other(setup: Setup) -> None:
    """One record that cannot be indexed is counted; the others of its batch are found."""
    put = setup.index.put

    def refuse(records: Sequence[TraceRecord]) -> None:
        if any(record.key == "jobs/bad" for record in records):
            raise ValueError("never")
        put(records)

    setup.index.put = refuse  # type: ignore[method-assign]
    setup.store.fault = unavailable
    for key in ("jobs/a", "jobs/bad", "jobs/c"):
        setup.record(key)
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/a", "jobs/c"]
    assert setup.troubles.counts["a trace cannot be indexed"] == 1
    assert setup.delivery.shipper.waits().traces == 0


def test_what_comes_back_counts(tmp_path: Path) -> None:
    """What was being tried while more came is above the bound once it comes back: then the oldest go, and not later."""
    setup = Setup(tmp_path, limit=20_000)
    tried, release = threading.Event(), threading.Event()

    def hang() -> None:
        tried.set()
        assert release.wait(20)
        unavailable()

    def waits() -> int:
        return sum(path.stat().st_size for path in setup.spool.root.rglob("*") if path.is_file())

    setup.store.fault = hang
    for key in ("jobs/old", "jobs/new"):
        with trifle.tracer(key):
            trifle.artifact("file.bin", b"x" * 15_000)
        assert tried.wait(20)
    assert waits() > 30_000
    release.set()
    until(lambda: setup.troubles.counts[TOO_MUCH] == 1)  # told once they are gone
    assert waits() < 20_000
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/new"]
    setup.delivery.shutdown(5)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that another thread brings about."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_parts_of_a_running_trace_count(tmp_path: Path) -> None:
    """What a running trace has flushed waits too: above `spool_limit` its parts go, and readers are told which."""
    setup = Setup(tmp_path, limit=20_000)
    setup.store.fault = unavailable
    with trifle.tracer("jobs/live", mode="live") as job:
        for number in range(4):
            trifle.artifact(f"{number}.bin", b"x" * 4_000)
            trifle.trace("line")
            setup.delivery.bump(job)
        until(lambda: setup.delivery.shipper.waits().traces == 1)  # what is being tried counts by itself
        assert setup.delivery.shipper.waits().bytes > 16_000
        setup.record("jobs/other", lines=20)
        trifle.artifact("last.bin", b"x" * 4_000)
    setup.record("jobs/new")
    dropped = "parts of running traces were dropped with what was too much or too old"
    until(lambda: setup.troubles.counts[dropped] + setup.troubles.counts[TOO_MUCH] > 0)
    until(lambda: sum(path.stat().st_size for path in setup.spool.root.rglob("*") if path.is_file()) < 20_000)
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert setup.archive.search(segment="jobs/new").records
    setup.delivery.shutdown(5)


def test_news_that_memory_holds_are_not_lost_with_the_end(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that the full disk did not take, flushed while the store is down, comes in with the trace's end."""

    def full(*arguments: object, **keywords: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    setup.store.fault = unavailable
    with trifle.tracer("jobs/live", mode="live") as job:
        trifle.trace("on disk")
        setup.delivery.bump(job)
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "write", full)
            trifle.trace("in memory")
            setup.delivery.bump(job)
        assert not trifle.flush(0.1)
        trifle.trace("last")
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    entries = setup.archive.entries(job.reference)
    assert [entry.message for entry in entries][1:] == ["on disk", "in memory", "last"]
    assert entries.damaged == []
    assert setup.archive.find(job.reference).state == "success"
    with setup.archive.store.open(setup.archive.find(job.reference).folder, "record.json") as stream:
        assert b'"state":"success"' in stream.read()


def test_a_trace_that_the_archive_refuses_is_put_aside(setup: Setup) -> None:
    """It does not hold up the others, and is kept where it can be looked at."""

    def refuse() -> None:
        raise ValueError("never")

    setup.store.fault = refuse
    reference = setup.record("jobs/bad")
    assert trifle.flush(5)
    setup.store.fault = lambda: None
    setup.record("jobs/good")
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/good"]
    (aside,) = (setup.spool.root / "unshippable").iterdir()
    assert aside.name.endswith(reference)
    assert (aside / "record.json").exists()


def test_an_ignored_trace_leaves_nothing(setup: Setup) -> None:
    """Neither a deferred one nor a live one that had been flushed."""
    with trifle.tracer("jobs/ignored", mode="deferred"):
        trifle.artifact("a.txt", "gone")
        trifle.ignore()
    with trifle.tracer("jobs/ignored", mode="live") as job:
        trifle.trace("x")
        setup.delivery.bump(job)
        assert trifle.flush(5)
        assert setup.archive.find(job.reference).state == "running"
        trifle.ignore()
    assert trifle.flush(5)
    assert setup.keys() == []
    assert list(setup.store.folders()) == []
    assert [path for path in setup.spool.root.glob("*/*") if path.is_dir()] == []


def test_a_live_trace_is_readable_while_it_runs(setup: Setup) -> None:
    """Each flush adds a part; the end adds the last one and the final record."""
    with trifle.tracer("jobs/live", mode="live") as job:
        trifle.trace("one")
        setup.delivery.bump(job)
        assert trifle.flush(5)
        first = setup.archive.find(job.reference)
        assert (first.state, first.parts, first.length) == ("running", 1, 2)
        trifle.trace("two")
        trifle.artifact("a.txt", "kept")
        setup.delivery.bump(job)
        trifle.trace("three")
    assert trifle.flush(5)
    record = setup.archive.find(job.reference)
    assert (record.state, record.parts, record.length) == ("success", 3, 5)
    assert [entry.message for entry in setup.archive.entries(record)][1:] == ["one", "two", "a.txt", "three"]
    assert setup.archive.artifact(record, "a.txt") == b"kept"


def test_a_flush_that_the_end_overtakes_is_not_lost(setup: Setup) -> None:
    """Parts that wait while the store is down come in with the end, in order."""
    setup.store.fault = unavailable
    with trifle.tracer("jobs/live", mode="live") as job:
        for number in range(3):
            trifle.trace(f"line {number}")
            setup.delivery.bump(job)
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    entries = setup.archive.entries(job.reference)
    assert [entry.message for entry in entries][1:] == ["line 0", "line 1", "line 2"]
    assert entries.damaged == []


def test_a_journaled_deferred_trace_is_one_part(setup: Setup) -> None:
    """What the timer noted of a deferred trace leaves no mark on it, its oversized messages included."""
    with trifle.tracer("jobs/deferred", mode="deferred") as job:
        trifle.trace("one")
        trifle.trace("x" * 200_000)
        setup.delivery.bump(job)
        trifle.trace("two", state="warning")
        setup.delivery.bump(job)
        trifle.trace("three")
        assert setup.archive.search().records == []
    assert trifle.flush(5)
    record = setup.archive.find(job.reference)
    assert (record.parts, record.length) == (1, 5)
    assert record.counters["states"] == {"success": 4, "warning": 1, "error": 0, "debug": 0}
    assert record.counters["types"] == {"text": 4, "head": 0, "raw": 0, "media": 1}
    assert len(setup.archive.entries(record)) == 5
    assert len([name for name in setup.store.names(record.folder) if "part_row" in name]) == 1
    assert not [name for name in setup.store.names(record.folder) if "journal" in name]


def test_a_disk_that_is_full_leaves_memory(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the spool cannot be written traces are held in memory, artifacts included, and shipped from there."""

    def full(*arguments: object, **keywords: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with trifle.tracer("jobs/half"):
        trifle.artifact("early.txt", "on disk")
        monkeypatch.setattr(Spool, "write", full)
        monkeypatch.setattr(Spool, "folder", full)
        trifle.artifact("late.txt", "in memory")
    with trifle.tracer("jobs/whole"):
        trifle.trace("x")
    monkeypatch.undo()
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/half", "jobs/whole"]
    (half,) = setup.archive.search(segment="jobs/half").records
    assert setup.archive.artifact(half, "early.txt") == b"on disk"
    assert setup.archive.artifact(half, "late.txt") == b"in memory"
    assert len(setup.archive.entries(half)) == half.length == 3


def test_threads_lose_nothing(setup: Setup) -> None:
    """Twenty threads that record at once: every trace arrives."""

    def work(number: int) -> None:
        for _ in range(10):
            setup.record(f"jobs/{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trifle.flush(10)
    assert len(setup.keys()) == 200


def test_recording_goes_on_after_a_shutdown(setup: Setup) -> None:
    """A trace that ends after `shutdown` is shipped all the same."""
    setup.record("jobs/before")
    assert trifle.shutdown(5)
    setup.record("jobs/after")
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/after", "jobs/before"]


def test_our_own_work_is_not_traced(setup: Setup) -> None:
    """Instrumentations are told to keep silent while we ship."""
    from opentelemetry.context import get_value

    seen: list[object] = []
    setup.store.fault = lambda: seen.append(get_value("suppress_instrumentation"))
    setup.record()
    assert trifle.flush(5)
    assert seen
    assert set(seen) == {True}


def test_a_long_live_trace_does_not_pile_up_in_memory(tmp_path: Path) -> None:
    """Many lines are flushed without waiting for the timer, and all of them are in the archive."""
    setup = Setup(tmp_path)
    held = 0
    with trifle.tracer("jobs/long", mode="live") as job:
        for number in range(500_000):
            trifle.trace(f"line {number}")
            if not number % 1000:
                held = max(held, len(job.lines or ()))
    assert held < 250_000  # what a tight loop records between two beats of the clock, and then no more than the bound
    assert trifle.flush(20)
    record = setup.archive.find(job.reference)
    assert record.length == 500_001
    assert record.parts >= 3
    entries = setup.archive.entries(record)
    assert entries[-1].message == "line 499999"
    setup.delivery.shutdown(5)


# --- deaths and disks


@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_a_process_that_died_between_its_first_part_and_the_record_of_it_leaves_that_part(
    setup: Setup, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first flush says whose it is before it writes lines: a death right after that loses none of them."""
    setup.store.fault = unavailable
    replaced: list[str] = []
    real = Spool.replace

    def once(self: Spool, folder: str, name: str, data: bytes) -> None:
        if not replaced:
            real(self, folder, name, data)
        replaced.append(folder)

    monkeypatch.setattr(Spool, "replace", once)
    with trifle.tracer("jobs/dies", mode=mode) as job:
        trifle.trace("recorded")
        setup.delivery.bump(job)
        assert len(replaced) == 2
        left = tmp_path / "another spool" / "somebody"
        shutil.copytree(Path(replaced[0]).parent, left)
        store, index = MemoryStore(), MemoryIndex()
        assert Shipper(store, index, Spool(left.parent), Troubles(None)).adopt() == 1
        entries = Archive(store, index).entries(job.reference)
        assert [entry.message for entry in entries][1:2] == ["recorded"]
        assert (entries.damaged, len(entries)) == ([], 3)
        trifle.ignore()


def test_a_parcel_whose_folder_vanished_is_reported(tmp_path: Path) -> None:
    """A spool that somebody removed is an error that is counted, not a row without payload."""
    troubles = Troubles(None)
    ship = Shipper(MemoryStore(), MemoryIndex(), Spool(tmp_path), troubles, limit=1 << 30)
    ship.put(Parcel(sample_record(state="success"), tmp_path / "gone"))
    assert ship.flush(5)
    assert troubles.counts["a trace cannot be shipped"] == 1
    with pytest.raises(NotFound):
        Archive(ship.store, ship.index).find(sample_record().reference)
    ship.close(1)


@pytest.mark.fault
def test_a_spool_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """With a real, small and full file system under the spool, traces are held in memory and shipped from there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr!r}")
    try:
        setup = Setup(disk)
        setup.store.fault = unavailable
        for number in range(100):
            setup.record(f"jobs/{number:03d}", lines=50)
        setup.store.fault = lambda: None
        assert trifle.flush(10)
        assert setup.keys() == [f"jobs/{number:03d}" for number in range(100)]
        setup.delivery.shutdown(5)
        install(None)
        figures.note("the spool's disk is full (64 kB)", "100 traces, none lost or doubled")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/dev/fd"))


def nothing_fits(*_: object, **__: object) -> int:
    """What the system says when a disk is full."""
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize("call", ["write", "open"])
def test_a_spool_that_cannot_be_begun_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A forked child on a full disk tries it for each trace: no descriptor and no folder stays behind."""
    own = Spool(tmp_path)
    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, nothing_fits)
        for _ in range(5):
            with pytest.raises(OSError, match="no space left"):
                own.folder("reference")
    assert open_files() == before
    assert list(tmp_path.iterdir()) == []
    own.folder("reference")


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_threads_begin_one_folder_together(tmp_path: Path) -> None:
    """Threads whose first traces end at once have one folder and one lock, and so have those whose spool is removed."""
    for attempt in range(8):
        root = tmp_path / str(attempt)
        own = Spool(root)
        for _ in range(2):
            run_at_once([partial(own.folder, f"reference-{number}") for number in range(8)])
            (only,) = root.iterdir()
            assert str(only) == own.own
            assert spool.adopt(only) is None, "its process lives"
            shutil.rmtree(root)
        own.forget()


def test_a_folder_that_was_removed_is_not_made_anew_without_its_lock(tmp_path: Path) -> None:
    """A trace that runs while the spool is removed is held in memory: nobody may take it for a dead process's."""
    own = Spool(tmp_path / "spool")
    folder = own.folder("reference")
    own.write(folder, "artifacts/deep/a.txt", b"a")
    shutil.rmtree(own.root)
    (tmp_path / "source").write_bytes(b"a")
    for write in (
        lambda: own.write(folder, "data_1.json", b"[]"),
        lambda: own.copy(folder, "artifacts/a.txt", tmp_path / "source"),
    ):
        with pytest.raises(FileNotFoundError):
            write()
    assert not own.root.exists()


def test_a_note_that_is_interrupted_shifts_no_other(tmp_path: Path) -> None:
    """At whatever line a time limit strikes, the next record is read from where it is written."""
    struck = 0
    for place in range(1, 20):
        note = Note(str(tmp_path / str(place)))
        left = [place]

        def strike(frame: FrameType, event: str, _: object, left: list[int] = left) -> Any:
            if frame.f_code is Note.append.__code__ and event == "line":
                left[0] -= 1
                if left[0] == 0:
                    raise TimeoutError
            return strike if frame.f_code is Note.append.__code__ else None

        sys.settrace(strike)
        try:
            note.append(b"interrupted")
        except TimeoutError:
            struck += 1
        finally:
            sys.settrace(None)
        row = note.append(b"next")
        assert Path(note.path).read_bytes()[row.at :][: row.length] == b"next", place
        note.finish()
    assert struck > 4


def test_a_file_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fills the disk does not stay on it."""
    own = Spool(tmp_path / "spool")
    folder = own.folder("reference")
    (tmp_path / "source").write_bytes(b"a" * 1000)

    def half(source: BinaryIO, target: BinaryIO, _: int) -> None:
        target.write(source.read(500))
        nothing_fits()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", half)
        with pytest.raises(OSError, match="no space left"):
            own.copy(folder, "artifacts/a", tmp_path / "source")
    assert list(Path(folder, "artifacts").iterdir()) == []
    assert own.copy(folder, "artifacts/a", tmp_path / "source") == 1000


def test_with_fsync_each_file_of_a_trace_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts that come from files too."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    own = Spool(tmp_path / "spool", fsync=True)
    folder = own.folder("reference")
    (tmp_path / "source").write_bytes(b"a")
    own.copy(folder, "artifacts/a", tmp_path / "source")
    own.write(folder, "data_1.json", b"[]")
    assert {os.stat(f"{folder}/{name}").st_ino for name in ("artifacts/a", "data_1.json")} <= set(synced)


def test_a_journal_is_on_disk_or_nowhere(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deferred trace that runs while the disk is full is durable at its end all the same, with each line once."""
    with trifle.tracer("jobs/deferred", mode="deferred") as job:
        trifle.trace("x" * 200_000)
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "write", nothing_fits)
            setup.delivery.bump(job)
            trifle.trace("while it was full")
            setup.delivery.bump(job)
        assert job.spooled.files == {}
        setup.delivery.bump(job)
    assert trifle.flush(5)
    record = setup.archive.find(job.reference)
    entries = setup.archive.entries(record)
    assert (record.parts, record.length, len(entries), entries.damaged) == (1, 3, 3, [])
    names = setup.store.names(record.folder)
    assert sorted(name.partition("part_row")[0] for name in names) == ["artifacts/", "data_1.json.gz", "record.json"]


def test_what_was_journaled_before_the_disk_was_full_is_not_shipped(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive gets the trace, and not what only the death of its process would have needed."""
    with trifle.tracer("jobs/deferred", mode="deferred") as job:
        trifle.trace("journaled")
        setup.delivery.bump(job)
        Path(job.spooled.folder, ".record.json").write_bytes(b"{")
        monkeypatch.setattr(Spool, "write", nothing_fits)
    monkeypatch.undo()
    assert trifle.flush(5)
    assert setup.store.names(setup.archive.find(job.reference).folder) == ["data_1.json.gz", "record.json"]


def test_a_process_that_died_while_it_wrote_the_last_record_leaves_what_it_had_flushed(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that says how far a trace is stays until the last one is whole."""
    setup.store.fault = unavailable
    left = tmp_path / "another spool" / "somebody"  # where the setup's own shipper does not look
    real = Spool.write

    def half_way(self: Spool, folder: str, name: str, data: bytes) -> None:
        if name.endswith("record.json"):
            real(self, folder, name, data[: len(data) // 2])
            shutil.copytree(Path(folder).parent, left)
        real(self, folder, name, data)

    with trifle.tracer("jobs/dies") as job:
        trifle.trace("flushed")
        setup.delivery.bump(job)
        monkeypatch.setattr(Spool, "write", half_way)
    store, index = MemoryStore(), MemoryIndex()
    assert Shipper(store, index, Spool(left.parent), Troubles(None)).adopt() == 1
    assert "flushed" in [entry.message for entry in Archive(store, index).entries(job.reference)]


def test_a_trace_that_a_local_archive_refuses_is_not_said_to_be_lost(tmp_path: Path) -> None:
    """It is put aside like one that any other store refuses, and told of in the same words."""
    setup = Setup(tmp_path, direct=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "7").symlink_to(tmp_path / "elsewhere")
    setup.record()
    assert trifle.flush(5)
    assert "a trace was lost when it ended" not in setup.troubles.counts
    assert setup.troubles.counts["a trace cannot be shipped"] == 1
    setup.delivery.shutdown(5)
    install(None)


def test_a_batch_that_is_refused_lengthens_the_pause_once(tmp_path: Path) -> None:
    """However many of its traces the archive refuses, the next ones wait no longer for that."""
    store = Faulty()

    def refuse() -> None:
        raise ValueError("never")

    store.fault = refuse
    ship = Shipper(store, MemoryIndex(), Spool(tmp_path), Troubles(None))
    records = [sample_record(reference=str(number), state="success") for number in range(20)]
    ship._ship({at: Parcel(record, files={"data_1.json": b"[]"}) for at, record in enumerate(records)})
    assert ship._pause == shipper.FIRST_PAUSE


# --- drivers with faults of their own


def ship_three_at_once(setup: Setup) -> None:
    """Three traces that wait for a store that is down are all there once it is back."""
    setup.store.fault = unavailable
    for number in range(3):
        setup.record(f"jobs/{number}")
    assert not trifle.flush(0.1)
    setup.store.fault = lambda: None
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/0", "jobs/1", "jobs/2"]


@pytest.mark.parametrize("results", [None, [], [None]])
def test_a_store_that_does_not_say_what_became_of_each_loses_nothing(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, results: Any
) -> None:
    """Where `take_many` breaks its contract each trace is taken by itself, and that is told."""
    monkeypatch.setattr(setup.store, "take_many", lambda _: results)
    ship_three_at_once(setup)
    assert setup.troubles.counts["the store breaks its contract; traces are taken one by one"] >= 1


def test_a_trace_at_which_a_store_breaks_costs_no_other(setup: Setup) -> None:
    """A store whose `take_many` raises at one trace has that one put aside, and the rest of its batch shipped."""
    release = threading.Event()

    def broken(moves: Sequence[tuple[Folder, Path]]) -> list[Exception | None]:
        assert release.wait(20)
        for folder, local in moves:
            setup.store.take(folder, local)
        return [None] * len(moves)

    def fault(folder: Folder, name: str, data: bytes | Path) -> None:
        if folder.key == "jobs/bad":
            raise TypeError("a fault of its own")
        MemoryStore.write(setup.store, folder, name, data)

    setup.store.write = fault  # type: ignore[method-assign]
    setup.store.take_many = broken  # type: ignore[method-assign]
    for key in ("jobs/a", "jobs/bad", "jobs/c"):
        setup.record(key)
    release.set()
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/a", "jobs/c"]
    assert setup.troubles.counts["a trace cannot be shipped"] == 1
    (aside,) = (setup.spool.root / "unshippable").iterdir()
    assert (aside / "record.json").is_file()


@pytest.mark.parametrize("shipped", [True, False])
def test_metrics_that_raise_cost_no_batch(setup: Setup, monkeypatch: pytest.MonkeyPatch, shipped: bool) -> None:
    """Whatever another SDK does with counts of what was shipped, or went wrong: everything is shipped, once."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("no meter")

    if shipped:
        monkeypatch.setattr(setup.delivery.shipper, "on_shipped", broken)
    else:
        monkeypatch.setattr(setup.troubles, "also", broken)
    ship_three_at_once(setup)
    assert list(setup.spool.root.glob("*/rows-*")) == []


class Panic(BaseException):
    """What a fault in Rust comes out as: no `Exception`."""


@pytest.mark.parametrize("part", ["store", "index"])
def test_a_driver_that_panics_loses_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """It ends the background thread, which says so; what that had in hand is shipped by the next one."""
    ended: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda died: ended.append(died.exc_type))
    recorded = threading.Event()

    def panic() -> None:
        assert recorded.wait(20)
        getattr(setup, part).fault = lambda: None
        raise Panic

    getattr(setup, part).fault = panic
    for number in range(3):
        setup.record(f"jobs/{number}")
    thread = setup.delivery.shipper._thread
    assert thread is not None
    recorded.set()
    thread.join(20)
    assert ended == [Panic]
    assert setup.delivery.shipper.waits().traces == 3
    assert trifle.flush(5)
    assert setup.keys() == ["jobs/0", "jobs/1", "jobs/2"]
    assert list(setup.spool.root.glob("*/rows-*")) == []


def test_an_upload_that_panics_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of which one file was not uploaded keeps all of them, and gets no record in the archive."""
    ended: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda died: ended.append(died.exc_type))
    caller = threading.current_thread()
    panicked = threading.Event()

    class Panicking(MemoryStore):
        def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
            if threading.current_thread() is caller:  # goes on when another thread has met the fault
                assert panicked.wait(20)
            elif not panicked.is_set():
                panicked.set()
                raise Panic
            super().write(folder, name, data)

    store = Panicking()
    local = local_folder(tmp_path, {"data_1.json": b"[]", "data_2.json": b"[]", "record.json": b"{}"})
    folder = sample_record().folder
    (error,) = take_at_once(store, [(folder, local)], 2)
    assert isinstance(error, StoreUnavailable)
    assert ended == [Panic]
    assert len(list(local.iterdir())) == 3
    assert "record.json" not in store.names(folder)


# --- the death of the machine


class Synced:
    """Notes what was synced, and asks whether a folder was after something came into it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[int, set[str]] = {}
        self.files: set[int] = set()
        monkeypatch.setattr(os, "fsync", self.note)

    def note(self, descriptor: int) -> None:
        """What `os.fsync` is called with."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.known[found.st_ino] = set(os.listdir(descriptor))
        else:
            self.files.add(found.st_ino)

    def holds(self, path: Path) -> bool:
        """Whether a file or folder is on disk, with its name in each folder above it, up to one that was there."""
        if not path.is_dir() and path.stat().st_ino not in self.files:
            return False
        return path.name in self.known.get(path.parent.stat().st_ino, set())


def test_with_fsync_folders_know_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a trace in the spool needs is named on disk: its files, new folders, and the spool's own."""
    synced = Synced(monkeypatch)
    own = Spool(tmp_path / "new" / "spool", fsync=True)
    folder = Path(own.folder("reference"))
    (tmp_path / "source").write_bytes(b"a")
    own.copy(str(folder), "artifacts/deep/a", tmp_path / "source")
    own.write(str(folder), "data_1.json", b"[]")
    own.replace(str(folder), "record.json", b"{}")
    note = Path(own.note(b"{}").note.path)
    for path in (*folder.rglob("*"), folder, note, folder.parent, own.root, own.root.parent):
        assert synced.holds(path), path


def test_without_fsync_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has not asked for it does not wait for a disk."""
    synced = Synced(monkeypatch)
    trifle.configure(tmp_path / "archive")
    with trifle.tracer("jobs/one") as job:
        trifle.artifact("a.txt", "a")
    assert trifle.flush(5)
    assert (synced.known, synced.files) == ({}, set())
    assert job.reference


@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_with_fsync_an_archived_trace_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """Its folder is named in its new place, too, and so is each folder above that was made for it."""
    synced = Synced(monkeypatch)
    archive = trifle.configure(tmp_path / "archive", fsync=True, default_mode=mode)
    for _ in range(2):  # the second one finds its folders made
        with trifle.tracer("jobs/one") as job:
            trifle.artifact("deep/a.txt", "a")
            if mode == "live":  # the parts of a trace that runs come file by file
                assert job.runtime.sink is not None
                job.runtime.sink.bump(job)
                assert trifle.flush(5)
        assert trifle.flush(5)
        folder = tmp_path / "archive" / archive.find(job.reference).folder.path
        above = [each for each in folder.parents if each.is_relative_to(tmp_path / "archive")]
        for path in (*folder.rglob("*"), folder, *above):
            assert synced.holds(path), path


def test_a_disk_that_cannot_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of which nobody knows whether it would outlive the machine waits, and is shipped once the disk can."""
    failing = True
    real = os.fsync

    def sync(descriptor: int) -> None:
        if failing and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "no")
        real(descriptor)

    store = FileStore(tmp_path / "archive", fsync=True)
    store.setup()
    monkeypatch.setattr(os, "fsync", sync)
    record = sample_record(state="success")
    local = local_folder(tmp_path, {"record.json": encode_record(record)})
    assert not store.rename(record.folder, str(local))
    with pytest.raises(StoreUnavailable):
        store.take(record.folder, local)
    failing = False
    store.take(record.folder, local)
    assert store.names(record.folder) == ["record.json"]
