"""The queue of what waits: in order, counted right, and small in memory however long it grows."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from trifle_otel import backlog
from trifle_otel.backlog import Backlog, without_overtaken
from trifle_otel.encoding import encode_record
from trifle_otel.errors import NotFound
from trifle_otel.parcels import Parcel
from trifle_otel.records import TraceRecord
from trifle_otel.spool import Spool, save
from trifle_otel.testing import sample_record

PACKED = backlog.PACKED


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue lets go of records early, and packs few together."""
    monkeypatch.setattr(backlog, "KEPT", 3)
    monkeypatch.setattr(backlog, "PACKED", 4)


def spooled(spool: Spool, number: int, **changes: Any) -> Parcel:
    """A finished trace on disk, whose size is its number plus one."""
    record = sample_record(reference=f"ref-{number:04d}", meta=number, **changes)
    folder = spool.folder(record.reference)
    encoded = encode_record(record)
    save(spool, folder, {}, encoded)
    return Parcel(record, Path(folder), size=number + 1, weight=len(encoded), since=float(number))


def references(queue: Backlog, most: int = 1000) -> list[str]:
    """The references of what is taken out, in order."""
    return [queue.load(item).record.reference for item in queue.take(most)]


def test_order_is_kept_and_records_come_back_as_they_were(tmp_path: Path) -> None:
    """What was let go of is read from disk when its turn comes, field by field as it was, and in its place."""
    queue = Backlog(Spool(tmp_path))
    spool = Spool(tmp_path)
    put = [spooled(spool, number) for number in range(20)]
    for parcel in put:
        queue.put(parcel)
    assert (len(queue), queue.size, queue.oldest) == (20, 210, 0.0)
    taken = queue.take(1000)
    assert sum(isinstance(item, Parcel) for item in taken) == 3
    assert [queue.load(item).record for item in taken] == [parcel.record for parcel in put]
    assert [queue.load(item).local for item in taken] == [parcel.local for parcel in put]
    assert (len(queue), queue.size, queue.oldest) == (0, 0, None)
    spool.forget()


def test_rows_are_read_again_from_their_notes(tmp_path: Path) -> None:
    """Of a trace that is in the archive already, the record comes from the note that was written before it moved."""
    spool = Spool(tmp_path)
    queue = Backlog(spool)
    for number in range(10):
        record = sample_record(reference=f"ref-{number}", tags=(f"Żaba {number}",))
        encoded = encode_record(record)
        queue.put(Parcel(record, stored=True, row=spool.note(encoded), size=len(encoded), since=float(number)))
    loaded = [queue.load(item) for item in queue.take(10)]
    assert [parcel.record.tags for parcel in loaded] == [(f"Żaba {number}",) for number in range(10)]
    assert all(parcel.stored for parcel in loaded)
    for parcel in loaded:
        assert parcel.row is not None
        spool.indexed(parcel.row)
    assert list(tmp_path.glob("*/rows-*")) == []
    spool.forget()


def test_what_is_gone_from_disk_is_an_error_when_its_turn_comes(tmp_path: Path) -> None:
    """A spool that somebody removed is told by an exception, and does not stop those behind it."""
    spool = Spool(tmp_path)
    queue = Backlog(spool)
    for number in range(6):
        queue.put(spooled(spool, number))
    row = spool.note(encode_record(sample_record()))
    queue.put(Parcel(sample_record(), stored=True, row=row))
    spool.indexed(row)
    taken = queue.take(10)
    for path in tmp_path.glob("*/*-ref-0004/record.json"):
        path.unlink()
    assert queue.load(taken[3]).record.meta == 3
    with pytest.raises(FileNotFoundError):
        queue.load(taken[4])
    assert queue.load(taken[5]).record.meta == 5
    with pytest.raises(NotFound):
        queue.load(taken[6])
    spool.forget()


def running(number: int, local: Path | None, name: str, **fields: Any) -> Parcel:
    """What a running trace has to tell."""
    record = sample_record(reference="running", state="running", parts=number)
    return Parcel(record, local, names=(name,), size=10, kind="bump", since=float(number), **fields)


def test_a_running_trace_waits_once(tmp_path: Path) -> None:
    """However often it is flushed while the store is down, its news are one parcel: newest record, all files."""
    queue = Backlog(None)
    for number in range(1, 50):
        queue.put(running(number, tmp_path, f"data_{number}.json"))
    assert (len(queue), queue.size, queue.oldest) == (1, 490, 1.0)
    (bump,) = map(queue.load, queue.take(10))
    assert bump.record.parts == 49
    assert bump.names == tuple(f"data_{number}.json" for number in range(1, 50))


@pytest.mark.parametrize("local", [True, False])
def test_the_end_of_a_trace_takes_its_news_along(tmp_path: Path, local: bool) -> None:
    """What a trace told while it ran is shipped with its end, files that memory holds included, the later of a name."""
    queue = Backlog(None)
    place = tmp_path if local else None
    queue.put(running(1, place, "data_1.json", files={"data_1.json": b"1", "artifacts/a": b"early"}))
    end = Parcel(sample_record(reference="running"), place, {"artifacts/a": b"late"}, size=5, since=7.0)
    queue.put(end)
    assert (len(queue), queue.size, queue.oldest) == (1, 15, 1.0)
    (taken,) = map(queue.load, queue.take(10))
    assert taken.kind == "final"
    assert taken.files == {"data_1.json": b"1", "artifacts/a": b"late"}


def test_news_that_failed_are_joined_with_those_that_came_meanwhile(tmp_path: Path) -> None:
    """A flush that is given back does not hide a later one, nor the other way round."""
    queue = Backlog(None)
    queue.put(running(1, tmp_path, "data_1.json"))
    first = [queue.load(item) for item in queue.take(10)]
    queue.put(running(2, tmp_path, "data_2.json"))
    queue.give_back(first)
    assert (len(queue), queue.size, queue.oldest) == (1, 20, 1.0)
    (bump,) = map(queue.load, queue.take(10))
    assert (bump.record.parts, bump.names) == (2, ("data_1.json", "data_2.json"))


def test_of_one_batch_news_go_with_the_end(tmp_path: Path) -> None:
    """A flush that failed, and the end of its trace, in one batch: the end has the files, and the flush is left out."""
    bump = running(1, tmp_path, "data_1.json", files={"data_1.json": b"1"})
    end = Parcel(sample_record(reference="running"), tmp_path)
    other = running(1, None, "data_1.json")
    assert without_overtaken([bump, other, end]) == [other, end]
    assert end.files == {"data_1.json": b"1"}


def test_what_is_dropped_goes_from_disk(tmp_path: Path) -> None:
    """The oldest goes first: a trace with its folder, a part of a running trace, a row with its note."""
    spool = Spool(tmp_path)
    queue = Backlog(spool)
    queue.put(spooled(spool, 2))
    record = sample_record(reference="row")
    queue.put(Parcel(record, stored=True, row=spool.note(encode_record(record)), size=5, since=3.0))
    open_one = Path(spool.folder("running"))
    (open_one / "data_1.json").write_bytes(b"1")
    (open_one / "record.json").write_bytes(b"{}")
    queue.put(running(1, open_one, "data_1.json"))
    taken = queue.take_older(math.inf, 10)
    assert [queue.give_up(item) for item in taken] == ["part", "trace", "row"]
    assert queue.take_older(math.inf, 10) == []
    assert (len(queue), queue.size) == (0, 0)
    left = [path.relative_to(open_one.parent).as_posix() for path in open_one.parent.rglob("*")]
    assert sorted(left) == ["00000003-running", "00000003-running/record.json", "lock"]
    spool.forget()


def test_a_long_queue_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above what is kept, a waiting trace takes less than 60 bytes of memory."""
    monkeypatch.setattr(backlog, "KEPT", 1)
    monkeypatch.setattr(backlog, "PACKED", PACKED)
    queue = Backlog(None)
    record = sample_record()
    tracemalloc.start()
    try:
        for number in range(10_000):
            local = tmp_path / f"{number:08d}-01KDYAK3SEABCDEFGHJKM{number:05d}"
            queue.put(Parcel(record, local, size=900 + number % 77, weight=600))
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    ours = snapshot.filter_traces([tracemalloc.Filter(True, backlog.__file__)])
    assert 0 < sum(trace.size for trace in ours.traces) / 10_000 < 60
    assert len(queue) == 10_000


def test_large_records_are_let_go_of_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the number of records in memory is bounded alone, but their bytes too."""
    monkeypatch.setattr(backlog, "KEPT", 1000)
    spool = Spool(tmp_path)
    queue = Backlog(spool)
    for number in range(8):
        parcel = spooled(spool, number)
        parcel.weight = 1 << 20
        queue.put(parcel)
    assert sum(isinstance(item, Parcel) for item in queue.take(8)) == 4
    spool.forget()


class Queue(RuleBasedStateMachine):
    """A queue beside a plain list of what it must hold: traces on disk and in memory, put, taken, given back."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[tuple[str, int]] = []
        self.number = 0

    @initialize()
    def begin(self) -> None:
        """An empty queue."""
        self.queue = Backlog(None)
        self.records: dict[str, TraceRecord] = {}

    @rule(on_disk=st.booleans(), amount=st.integers(1, 7))
    def put(self, on_disk: bool, amount: int) -> None:
        """Put some."""
        for _ in range(amount):
            self.number += 1
            name = f"{self.number:05d}"
            record = sample_record(reference=name)
            parcel = Parcel(record, Path(name), size=self.number, since=float(self.number))
            if not on_disk:
                parcel.local, parcel.files = None, {"x": b""}
            self.queue.put(parcel)
            self.records[name] = record
            self.wanted.append((name, self.number))

    def take(self, most: int) -> list[Parcel]:
        """Take some; the records of stubs come from a dict here instead of the disk."""
        taken = []
        for item in self.queue.take(most):
            name = item.record.reference if isinstance(item, Parcel) else item.local
            taken.append(Parcel(self.records[name], Path(name), size=item.size, since=item.since))
        found = [(parcel.record.reference, parcel.size) for parcel in taken]
        assert found == self.wanted[:most]
        del self.wanted[:most]
        return taken

    @rule(most=st.integers(1, 9))
    def ship(self, most: int) -> None:
        """Take some for good."""
        self.take(most)

    @rule(most=st.integers(1, 9), failing=st.integers(0, 9))
    def fail(self, most: int, failing: int) -> None:
        """Take some, and give the last of them back."""
        failed = self.take(most)[-failing:] if failing else []
        self.queue.give_back(failed)
        self.wanted[:0] = [(parcel.record.reference, parcel.size) for parcel in failed]

    @precondition(lambda self: self.wanted)
    @rule()
    def drop(self) -> None:
        """Give up the oldest."""
        (oldest,) = self.queue.take_older(math.inf, 1)
        assert self.queue.give_up(oldest) == "trace"
        del self.wanted[0]

    def teardown(self) -> None:
        """All that is left comes out in order."""
        assert len(self.queue) == len(self.wanted)
        assert self.queue.size == sum(size for _, size in self.wanted)
        assert self.queue.oldest == (float(self.wanted[0][1]) if self.wanted else None)
        self.take(10_000)
        assert len(self.queue) == self.queue.size == 0


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.sampled_from(["bump", "final", "ignored"]), max_size=12))
@settings(deadline=None)
def test_sizes_add_up_whatever_comes_of_one_trace(kinds: list[str]) -> None:
    """News and ends of one trace, in any order: no byte is counted twice or lost."""
    queue = Backlog(None)
    for kind in kinds:
        queue.put(Parcel(sample_record(), Path("x"), {"f": b"1"}, size=10, kind=kind))
    assert queue.size == 10 * len(kinds)
    assert sum(item.size for item in queue.take(100)) == 10 * len(kinds)
    assert (len(queue), queue.size) == (0, 0)
