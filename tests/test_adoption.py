"""What dead processes left in the spool: in every state that they can have left it in, and while stores are down."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from trifle_otel import Archive, adoption
from trifle_otel.adoption import ROWS_DROPPED, TOO_MUCH, TOO_OLD, Adopter
from trifle_otel.encoding import encode_record
from trifle_otel.errors import ConfigurationError, StoreUnavailable
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.parcels import Parcel
from trifle_otel.records import Folder, Query, TraceRecord
from trifle_otel.runtime import Troubles
from trifle_otel.shipper import Shipper
from trifle_otel.spool import Spool, save
from trifle_otel.spool import adopt as adopt_folder
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.stores.parallel import take_at_once
from trifle_otel.testing import sample_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing tells there whether a process lives")


class Down(MemoryIndex):
    """An index that is out of reach until it is not."""

    up = False

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Put, unless it is down."""
        if not self.up:
            raise StoreUnavailable("it is down")
        super().put(records)


def left_behind(root: Path) -> tuple[Spool, str]:
    """A spool whose owner is gone, and its folder."""
    spool = Spool(root)
    own = spool.open()
    return spool, own


def adopt(root: Path, store: MemoryStore, index: MemoryIndex) -> int:
    """Adopt what is in a spool."""
    return Shipper(store, index, Spool(root), Troubles(None)).adopt()


def test_a_note_without_its_payload_makes_no_row(tmp_path: Path) -> None:
    """A process that died after it noted a record, and before the payload moved, leaves no row without payload."""
    record = sample_record(state="success")
    spool, _ = left_behind(tmp_path)
    spool.note(encode_record(record))
    spool.forget()
    store, index = MemoryStore(), MemoryIndex()
    assert adopt(tmp_path, store, index) == 0
    assert index.find(record.reference) is None
    assert list(tmp_path.iterdir()) == []


def test_a_note_whose_payload_is_stored_makes_the_row(tmp_path: Path) -> None:
    """A process that died between payload and index leaves a row to whoever adopts its spool."""
    record = sample_record(state="success")
    spool, _ = left_behind(tmp_path)
    spool.note(encode_record(record))
    spool.forget()
    store, index = MemoryStore(), MemoryIndex()
    store.write(record.folder, "record.json", encode_record(record))
    adopt(tmp_path, store, index)
    assert index.find(record.reference) == record
    assert list(tmp_path.iterdir()) == []


def test_a_note_cut_in_mid_line_gives_the_lines_before(tmp_path: Path) -> None:
    """What a process killed in mid-write left of its notes does not hide the rest."""
    record = sample_record(state="success")
    spool, _ = left_behind(tmp_path)
    note = spool.note(encode_record(record)).note
    os.write(note.descriptor, b'{"reference":"01')
    spool.forget()
    store, index = MemoryStore(), MemoryIndex()
    store.write(record.folder, "record.json", encode_record(record))
    adopt(tmp_path, store, index)
    assert index.find(record.reference) == record


def test_a_trace_without_a_record_is_counted_and_removed(tmp_path: Path) -> None:
    """A process that died before anything said which trace it was leaves nothing that anybody could find."""
    spool, _ = left_behind(tmp_path)
    folder = spool.folder("somebody")
    spool.write(folder, "artifacts/a.txt", b"x")
    spool.forget()
    troubles = Troubles(None)
    assert Shipper(MemoryStore(), MemoryIndex(), Spool(tmp_path), troubles).adopt() == 0
    assert troubles.counts["traces of a dead process had recorded nothing yet"] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_read_is_put_aside_once(tmp_path: Path) -> None:
    """A trace whose record was cut, by the death of a machine say, is kept for people, and counted one time."""
    spool, _ = left_behind(tmp_path)
    save(spool, spool.folder("somebody"), {"data_1.json": b"[]"}, b"")
    spool.forget()
    troubles = Troubles(None)
    for _ in range(3):
        assert Shipper(MemoryStore(), MemoryIndex(), Spool(tmp_path), troubles).adopt() == 0
    assert troubles.counts == {"a trace cannot be shipped": 1}
    (aside,) = (tmp_path / "unshippable").iterdir()
    assert (aside / "data_1.json").read_bytes() == b"[]"
    assert list(tmp_path.iterdir()) == [tmp_path / "unshippable"]


@pytest.mark.parametrize("changes", [{"key": "../elsewhere"}, {"reference": "a/b"}])
def test_a_note_of_what_can_be_no_trace_holds_up_no_other(tmp_path: Path, changes: dict[str, str]) -> None:
    """Whoever could write into a spool cannot keep it from being adopted."""
    record = sample_record(state="success")
    spool, _ = left_behind(tmp_path)
    spool.note(encode_record(sample_record(state="success", **changes)))
    save(spool, spool.folder(record.reference), {"data_1.json": b"[]"}, encode_record(record))
    spool.forget()
    index = MemoryIndex()
    assert adopt(tmp_path, MemoryStore(), index) == 1
    assert index.search(Query()) == [record]
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_may_not_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may not list the spool ships what is its own all the same, without the pause after a fault of ours."""

    def refuse(folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    troubles = Troubles(None)
    ship = Shipper(MemoryStore(), MemoryIndex(), Spool(tmp_path), troubles, limit=1 << 20)
    ship.put(Parcel(sample_record(state="success"), files={"data_1.json": b"[]"}))
    assert ship.flush(5)
    assert ship.close(5)
    assert ship.index.find(sample_record().reference) is not None
    assert set(troubles.counts) == {"what a dead process left cannot be read"}


def test_a_dead_processs_traces_stay_until_the_archive_has_them(tmp_path: Path) -> None:
    """Where the index is down at adoption, the next one to adopt finds what is missing in it."""
    record = sample_record(state="success")
    spool, _ = left_behind(tmp_path)
    save(spool, spool.folder(record.reference), {"data_1.json": b"[]", "data_2.json": b"[]"}, encode_record(record))
    spool.forget()
    store, index = MemoryStore(), Down()
    assert adopt(tmp_path, store, index) == 0
    assert list(tmp_path.iterdir()) != []
    index.up = True
    adopt(tmp_path, store, index)
    assert index.find(record.reference) == record
    assert Archive(store, index).entries(record).damaged == []
    assert list(tmp_path.iterdir()) == []


def test_who_ends_looks_for_what_its_children_left_last(tmp_path: Path) -> None:
    """A worker that is told to stop ships what its jobs' processes have just left, however lately it looked."""
    store, index = MemoryStore(), MemoryIndex()
    shipper = Shipper(store, index, Spool(tmp_path), Troubles(None))
    shipper.start()
    with shipper._state:
        assert shipper._state.wait_for(lambda: not shipper._adopting, 5)
    child, _ = left_behind(tmp_path)
    record = sample_record(state="success")
    save(child, child.folder(record.reference), {}, encode_record(record))
    child.forget()
    assert shipper.close(5)
    assert index.find(record.reference) is not None
    assert list(tmp_path.iterdir()) == []


def test_who_ends_waits_for_no_archive_that_is_down(tmp_path: Path) -> None:
    """It tries once; what its children left is for the next process."""
    child, _ = left_behind(tmp_path)
    record = sample_record(state="success")
    save(child, child.folder(record.reference), {}, encode_record(record))
    child.forget()
    shipper = Shipper(MemoryStore(), Down(), Spool(tmp_path), Troubles(None))
    shipper.start()
    began = time.monotonic()
    shipper.close(30)
    assert time.monotonic() - began < 10
    assert len(list(tmp_path.iterdir())) == 1


def test_a_living_processs_spool_is_left_alone(tmp_path: Path) -> None:
    """A folder whose lock is held is not adopted."""
    record = sample_record(state="success")
    spool, own = left_behind(tmp_path)
    save(spool, spool.folder(record.reference), {"data_1.json": b"[]"}, encode_record(record))
    assert adopt(tmp_path, MemoryStore(), MemoryIndex()) == 0
    assert len(list(Path(own).iterdir())) == 2
    spool.forget()


# --- many, in parallel, and whatever an archive refuses


def dead(root: Path, amount: int = 1, start: int = 0, size: int = 2) -> Path:
    """The folder of a dead process with so many traces, each with a part of `size` bytes."""
    spool, own = left_behind(root)
    for number in range(start, start + amount):
        record = sample_record(reference=f"ref-{number:05d}", parts=1)
        save(spool, spool.folder(record.reference), {"data_1.json": b" " * (size - 2) + b"[]"}, encode_record(record))
    spool.forget()
    return Path(own)


class Remote(MemoryStore):
    """A store behind a network: a request takes its time, and several may be under way."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.together = 0
        self.most = 0
        self.several = threading.Condition()

    def take_many(self, moves: Sequence[tuple[Folder, Path]]) -> list[Exception | None]:
        """Several at once."""
        return take_at_once(self, moves, 16)

    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Not done before others are under way too, once: requests that come one after the other never are."""
        self._request()
        super().write(folder, name, data)

    def open(self, folder: Folder, name: str) -> BinaryIO:
        """The same."""
        self._request()
        return super().open(folder, name)

    def _request(self) -> None:
        with self.several:
            self.together += 1
            self.most = max(self.most, self.together)
            self.several.notify_all()
            assert self.several.wait_for(lambda: self.most >= 8, timeout=10), "requests come one after the other"
            self.together -= 1


def test_traces_of_a_dead_process_are_uploaded_at_once(tmp_path: Path) -> None:
    """A store behind a network gets several requests together, and everything arrives whole."""
    dead(tmp_path, 100)
    store, index = Remote(), MemoryIndex()
    assert adopt(tmp_path, store, index) == 100
    archive = Archive(store, index)
    assert len(archive.search(limit=1000).records) == 100
    assert archive.reindex() == 100
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_dead_process_are_looked_up_at_once(tmp_path: Path) -> None:
    """Whether their payload is stored is asked of a store behind a network in several requests together."""
    spool, _ = left_behind(tmp_path)
    store, index = Remote(), MemoryIndex()
    for number in range(50):
        record = sample_record(reference=f"ref-{number}")
        spool.note(encode_record(record))
        if number % 2:
            MemoryStore.write(store, record.folder, "record.json", encode_record(record))
    spool.forget()
    adopt(tmp_path, store, index)
    found = Archive(store, index).search(limit=100).records
    assert {record.reference for record in found} == {f"ref-{number}" for number in range(1, 50, 2)}


def test_two_traces_of_one_reference_are_both_shipped(tmp_path: Path) -> None:
    """A reference that a caller gave twice holds up nothing: the later trace counts."""
    for duration in (1, 2):
        spool, _ = left_behind(tmp_path)
        record = sample_record(state="success", duration=duration)
        for _ in range(2):
            save(spool, spool.folder("same"), {"data_1.json": b"[]"}, encode_record(record))
        spool.forget()
    store, index = MemoryStore(), MemoryIndex()
    assert adopt(tmp_path, store, index) == 4
    assert index.find(record.reference) is not None
    assert list(tmp_path.iterdir()) == []


class Refusing(MemoryStore):
    """A store that refuses one trace for good."""

    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Refuse."""
        if folder.reference == "ref-00001":
            raise ValueError("never")
        super().write(folder, name, data)


def test_a_trace_that_the_archive_refuses_holds_up_no_other(tmp_path: Path) -> None:
    """Of a dead process's traces one that cannot be stored is put aside, counted, and the rest is shipped."""
    dead(tmp_path, 3)
    troubles = Troubles(None)
    store, index = Refusing(), MemoryIndex()
    assert Shipper(store, index, Spool(tmp_path), troubles).adopt() == 2
    assert {record.reference for record in Archive(store, index).search().records} == {"ref-00000", "ref-00002"}
    assert troubles.counts["a trace cannot be shipped"] == 1
    (aside,) = (tmp_path / "unshippable").iterdir()
    assert sorted(path.name for path in aside.iterdir()) == ["data_1.json", "record.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["unshippable"]


class RefusingIndex(MemoryIndex):
    """An index that refuses one record for good."""

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Refuse a batch that holds it."""
        if any(record.reference == "ref-00001" for record in records):
            raise ValueError("never")
        super().put(records)


def test_a_record_that_the_index_refuses_holds_up_no_other(tmp_path: Path) -> None:
    """One row that cannot be stored is counted, and the rest of its batch is found."""
    dead(tmp_path, 3)
    troubles = Troubles(None)
    store, index = MemoryStore(), RefusingIndex()
    Shipper(store, index, Spool(tmp_path), troubles).adopt()
    assert {record.reference for record in Archive(store, index).search().records} == {"ref-00000", "ref-00002"}
    assert troubles.counts["a trace cannot be indexed"] == 1


class Broken(MemoryStore):
    """A store that breaks its contract."""

    def take_many(self, moves: Sequence[tuple[Folder, Path]]) -> list[Exception | None]:
        """Raise what may not be raised."""
        raise RuntimeError("a fault of its own")


def test_a_store_that_raises_where_it_may_not_loses_nothing(tmp_path: Path) -> None:
    """A driver that breaks its contract is asked to take each trace by itself, which is told."""
    dead(tmp_path, 2)
    troubles = Troubles(None)
    assert Shipper(Broken(), MemoryIndex(), Spool(tmp_path), troubles).adopt() == 2
    assert list(tmp_path.iterdir()) == []
    assert troubles.counts["the store breaks its contract; traces are taken one by one"] == 1


class RefusingToDelete(MemoryIndex):
    """An index that does not forget one record, for one reason or another."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason

    def delete(self, references: Sequence[str]) -> None:
        """Refuse."""
        raise self.reason


@pytest.mark.parametrize(
    "reason, aside", [(TypeError("a fault of its own"), True), (ConfigurationError("wrong credentials"), False)]
)
def test_what_a_job_ignored_holds_up_no_other(tmp_path: Path, reason: Exception, aside: bool) -> None:
    """Where a driver breaks at a trace that is to be forgotten it is put aside; what somebody may mend waits."""
    spool, _ = left_behind(tmp_path)
    record = sample_record(state="success")
    folder = spool.folder("ignored")
    save(spool, folder, {"ignored.json": b"{}"}, encode_record(record))
    spool.forget()
    shipped = Shipper(MemoryStore(), RefusingToDelete(reason), Spool(tmp_path), Troubles(None)).adopt()
    assert shipped == 0
    assert (tmp_path / "unshippable").exists() is aside
    assert Path(folder).exists() is not aside


DYING = """
import os, sys
from pathlib import Path
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.runtime import Troubles
from trifle_otel.shipper import Shipper
from trifle_otel.spool import Orphan, Spool
from trifle_otel.stores.files import FileStore

def around(kind, name):
    method = getattr(kind, name)
    def call(*arguments, **keywords):
        step()
        result = method(*arguments, **keywords)
        step()
        return result
    setattr(kind, name, call)

def step():
    global steps
    steps += 1
    if steps == last:
        os._exit(7)

for kind, name in ((FileStore, "take"), (SQLiteIndex, "put"), (Orphan, "note"), (Path, "unlink")):
    around(kind, name)
for root in map(Path, sys.argv[1:]):
    if os.fork():
        _, status = os.wait()
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    steps, last = 0, int(root.name)
    index = SQLiteIndex(root / "index.sqlite")
    index.setup()
    Shipper(FileStore(root), index, Spool(root / ".spool"), Troubles(None)).adopt()
    os._exit(0)
"""


def test_who_dies_while_adopting_loses_nothing(tmp_path: Path) -> None:
    """Killed before and after each step of bringing in what a dead process left, and adopted again: all is there."""
    roots = [tmp_path / str(number) for number in range(1, 31)]
    for root in roots:
        dead(root / ".spool", 2)
    command = [sys.executable, "-c", DYING, *map(str, roots)]
    done = subprocess.run(command, check=True, timeout=150, capture_output=True, text=True)
    codes = done.stdout.split()
    assert set(codes) == {"7", "0"}
    assert codes.index("0") > 10
    for root in roots[: codes.index("0") + 1]:
        with Archive.open(root) as archive:
            archive.setup()
            archive.recover()
            records = archive.search().records
            assert sorted(record.reference for record in records) == ["ref-00000", "ref-00001"], root.name
            assert [archive.entries(record).damaged for record in records] == [[], []], root.name
        assert [path for path in (root / ".spool").rglob("*") if path.is_file()] == []


FORKING = """
import os, sys
from pathlib import Path
from trifle_otel import adoption
from trifle_otel.adoption import Adopter
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.runtime import Troubles
from trifle_otel.spool import Spool, adopt
from trifle_otel.stores.memory import MemoryStore

adoption.BATCH = 1
spool = Spool(Path(sys.argv[1]))
steps = Adopter(MemoryStore(), MemoryIndex(), spool, Troubles(None)).steps()
assert next(steps) == 1
(folder,) = spool.root.iterdir()
if os.fork() == 0:
    spool.after_fork()
    del steps
    sys.exit()
os.wait()
assert adopt(folder) is None
assert len(list(folder.glob("*-ref-*"))) == 1
if os.fork() == 0:
    spool.after_fork()
    sys.stdin.read()
    sys.exit()
os._exit(0)
"""


def test_a_fork_while_adopting_lets_go_of_nothing(tmp_path: Path) -> None:
    """A child neither unlocks nor tidies up what its parent adopts; and does not keep it locked when that has died."""
    folder = dead(tmp_path, 2)
    process = subprocess.Popen([sys.executable, "-c", FORKING, str(tmp_path)], stdin=subprocess.PIPE)
    assert process.wait(20) == 0
    store, index = MemoryStore(), MemoryIndex()
    assert adopt(tmp_path, store, index) == 1
    assert not folder.exists()
    assert process.stdin is not None
    process.stdin.close()


def test_a_lock_that_is_let_go_of_is_nobody_s_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that is forked while the system closes it must not close that number once more."""
    dead(tmp_path, 1)
    (orphan,) = [found for path in tmp_path.iterdir() if (found := adopt_folder(path)) is not None]
    held: list[int] = []

    def close(descriptor: int) -> None:
        held.append(orphan._lock)
        real(descriptor)

    real = os.close
    monkeypatch.setattr(os, "close", close)
    orphan.disown()
    orphan.disown()
    assert held == [-1]


# --- bounds


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is looked at each time."""
    monkeypatch.setattr(adoption, "BOUND_EVERY", 0.0)


def aged(folder: Path, seconds: float) -> None:
    """Let all that lies in a folder be from so long ago."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def references(root: Path) -> list[str]:
    """The references of the traces that lie in a spool."""
    return sorted(path.parent.name.partition("-")[2] for path in root.glob("*/*/record.json"))


def adopter(root: Path, troubles: Troubles, **bounds: float) -> Adopter:
    """What bounds a spool."""
    return Adopter(MemoryStore(), MemoryIndex(), Spool(root), troubles, **bounds)


def test_what_dead_processes_left_is_bounded_in_age(tmp_path: Path, often: None) -> None:
    """What waits longer than `age` is dropped while the archive is down, trace by trace, and counted."""
    first, second = dead(tmp_path, 2), dead(tmp_path, 2, start=2)
    aged(first, 100)
    aged(second, 50)
    for path in second.glob("*ref-00002"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    troubles = Troubles(None)
    bounds = adopter(tmp_path, troubles, age=80)
    bounds.bound(0, down=False)
    assert len(references(tmp_path)) == 4
    bounds.bound(0, down=True)
    assert references(tmp_path) == ["ref-00003"]
    assert not first.exists()
    assert troubles.counts[TOO_OLD] == 3


def test_what_dead_processes_left_counts_with_what_this_one_holds(tmp_path: Path, often: None) -> None:
    """Bytes of dead processes and of the living one are bounded together; the oldest of the dead ones' goes first."""
    old, new = dead(tmp_path, 3, size=10_000), dead(tmp_path, 3, start=3, size=10_000)
    for number, folder in enumerate((new, old)):
        aged(folder, 100 * (number + 1))
        (oldest, *_) = sorted(folder.glob("*-ref-*"))
        os.utime(oldest, (time.time() - 1000, time.time() - 1000 - number))
    troubles = Troubles(None)
    bounds = adopter(tmp_path, troubles, limit=100_000)
    bounds.bound(30_000, down=True)
    assert len(references(tmp_path)) == 6
    bounds.bound(75_000, down=True)
    assert references(tmp_path) == ["ref-00004", "ref-00005"]
    assert troubles.counts[TOO_MUCH] == 4


def test_what_a_living_process_holds_is_its_own_to_bound(tmp_path: Path, often: None) -> None:
    """A folder whose lock is held is neither counted nor touched."""
    record = sample_record(state="success")
    spool, own = left_behind(tmp_path)
    save(spool, spool.folder(record.reference), {"data_1.json": b"[]"}, encode_record(record))
    aged(Path(own), 1000)
    adopter(tmp_path, Troubles(None), limit=1, age=1).bound(0, down=True)
    assert references(tmp_path) == [record.reference]
    spool.forget()


def test_what_was_put_aside_is_bounded_too(tmp_path: Path, often: None) -> None:
    """Traces that the archive refused go when they are too old, while the archive is reached too."""
    for name, age in (("old", 100), ("new", 1)):
        (tmp_path / "unshippable" / name).mkdir(parents=True)
        os.utime(tmp_path / "unshippable" / name, (time.time() - age, time.time() - age))
    troubles = Troubles(None)
    adopter(tmp_path, troubles, age=50).bound(0, down=False)
    assert [path.name for path in (tmp_path / "unshippable").iterdir()] == ["new"]
    assert troubles.counts[TOO_OLD] == 1


def test_rows_that_are_dropped_are_said_to_be_found_by_reindex(tmp_path: Path, often: None) -> None:
    """Notes of a dead process are no traces: what is lost with them is a row, and how to get it back is said."""
    spool, own = left_behind(tmp_path)
    for number in range(3):
        spool.note(encode_record(sample_record(reference=f"ref-{number}")))
    spool.forget()
    aged(Path(own), 100)
    troubles = Troubles(None)
    adopter(tmp_path, troubles, age=50).bound(0, down=True)
    assert list(tmp_path.iterdir()) == []
    assert troubles.counts == {ROWS_DROPPED: 3}


def test_a_clock_that_steps_back_drops_nothing(tmp_path: Path, often: None) -> None:
    """Traces that seem to come from the future are kept."""
    aged(dead(tmp_path, 2), -100_000)
    adopter(tmp_path, Troubles(None), age=50).bound(0, down=True)
    assert len(references(tmp_path)) == 2


def test_recover_drops_nothing(tmp_path: Path, often: None) -> None:
    """Who ships by hand gets all of it, however old, or nothing is touched."""
    aged(dead(tmp_path / ".spool", 2), 10**8)

    class Offline(Down):
        """Nothing can be put."""

    archive = Archive(MemoryStore(), Offline())
    archive.spool = tmp_path / ".spool"
    assert archive.recover() == 0
    assert archive.store is not None
    archive.index = MemoryIndex()
    archive.recover()
    assert len(archive.search().records) == 2


def test_many_are_looked_at_some_at_a_time(tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order holds across the portions that names are sorted in, for shipping and for dropping."""
    from trifle_otel import spool

    monkeypatch.setattr(adoption, "SORTED_AT_ONCE", 3)
    monkeypatch.setattr(spool, "_SORTED_AT_ONCE", 3)
    folder = dead(tmp_path, 10)
    for number, path in enumerate(sorted(folder.glob("*-ref-*"))):
        os.utime(path, (time.time() - 100 + number, time.time() - 100 + number))
    adopter(tmp_path, Troubles(None), age=95.5).bound(0, down=True)
    assert references(tmp_path) == [f"ref-{number:05d}" for number in range(5, 10)]
    taken: list[str] = []

    class Listening(MemoryStore):
        def take(self, folder: Folder, local: Path) -> None:
            taken.append(folder.reference)
            super().take(folder, local)

    assert adopt(tmp_path, Listening(), MemoryIndex()) == 5
    assert taken == [f"ref-{number:05d}" for number in range(5, 10)]
