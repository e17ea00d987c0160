"""The one background thread that brings parcels from the spool into the archive.

Its promises, each tested:
- payload before index, whatever happens in between; shipping twice does no harm;
- what fails waits and is tried again, with a growing, random pause; what waits is bounded in bytes:
  above the bound the oldest is dropped, counted, and logged at most once a minute;
- `flush` and `close` keep their deadlines even when a store hangs;
- a forked child begins with nothing: what its parent had is its parent's;
- folders of dead processes are adopted, at the start and regularly;
- nothing that it does is traced by the instrumentations around it.

What is packed and how it is spooled is not known here; see `delivery` and `spool`.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry.context import attach, set_value

from trifle_otel.encoding import RECORD_NAME, decode_record, encode_record
from trifle_otel.errors import ConfigurationError, DamagedArchive, NotFound, StoreUnavailable
from trifle_otel.metrics import Waiting
from trifle_otel.records import Folder, TraceRecord
from trifle_otel.spool import Orphan, Parcel, Spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from trifle_otel.indexes.contract import Index
    from trifle_otel.runtime import Troubles
    from trifle_otel.stores.contract import Store

BATCH: Final = 256
LONGEST_QUEUE: Final = 10_000  # parcels in memory whose row alone is missing; more are left to `recover` or `reindex`
LINGER: Final = 0.25  # seconds that the first of a batch waits for others; a flush cuts it short
ADOPT_EVERY: Final = 10.0
QUIET_AFTER_FORK: Final = 5.0  # a child that is recycled after one job must not connect to a remote store for it
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 30.0
TRIES: Final = 3  # of a parcel that the archive refuses for another reason than being out of reach


class Shipper:
    """A queue of parcels and the thread that empties it.

    `_state` (a condition) guards `_queue`, `waiting`, `_batch`, `_thread` and `_stopping`. Only the thread
    touches `_unindexed`, `_pause` and the store and the index.
    """

    def __init__(self, store: Store, index: Index, spool: Spool | None, troubles: Troubles, *, limit: int) -> None:
        self.store = store
        self.index = index
        self.spool = spool
        self.troubles = troubles
        self.limit = limit
        self.shipped = 0
        self.on_shipped: Callable[[int], None] | None = None
        self.prepare: Callable[[], None] | None = None
        """What is to be done before anything is shipped, until it succeeds."""
        self._quiet_until = 0.0
        self._begin()

    def _begin(self) -> None:
        self._state = threading.Condition()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._queue: deque[Parcel] = deque()
        self._unindexed: list[Parcel] = []
        self.waiting = 0
        self._batch: list[Parcel] = []
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._pause = 0.0
        self._adopted = 0.0

    def put(self, parcel: Parcel) -> None:
        """Queue a parcel. Never waits for the archive, never raises."""
        with self._state:
            if parcel.note is not None and len(self._queue) >= LONGEST_QUEUE:
                self.troubles.report("rows wait on disk alone: the index has been out of reach for long")
                return
            self._queue.append(parcel)
            self.waiting += parcel.size
            dropped = self._drop_above_limit()
            if self._thread is None:
                self._start()
        if not self._wake.is_set():
            self._wake.set()
        if dropped:
            self.troubles.report("traces were dropped: more waited than `spool_limit` allows", amount=dropped)

    def flush(self, timeout: float) -> bool:
        """Ship all that waits; True when it is done within `timeout` seconds."""
        self._quiet_until = 0.0
        self._urgent.set()
        self._wake.set()
        with self._state:
            if self._thread is None and self._pending():
                self._start()
            return self._state.wait_for(lambda: not self._pending(), timeout)

    def close(self, timeout: float) -> bool:
        """Ship all that waits, and stop the thread; True when it is done within `timeout` seconds."""
        end = time.monotonic() + timeout
        done = self.flush(timeout)
        self._stopping = True
        self._urgent.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()) + 0.1)
        return done

    def after_fork(self) -> None:
        """In a forked child: begin with nothing, and with a quiet time where the archive is remote."""
        self._begin()
        if self.store.remote or self.index.remote:
            self._quiet_until = time.monotonic() + QUIET_AFTER_FORK

    def waits(self) -> Waiting:
        """What waits for the archive now."""
        with self._state:
            there = [*self._batch, *itertools.islice(self._queue, 1)]
            age = time.monotonic() - min((parcel.since for parcel in there), default=time.monotonic())
            return Waiting(len(self._queue) + len(self._batch), self.waiting, age)

    def start(self) -> None:
        """Start the thread before there is something to ship: it looks for what dead processes left."""
        with self._state:
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        self._stopping = False
        self._thread = thread = threading.Thread(target=self._run, name="trifle-shipper", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # at the interpreter's end: what waits is for the next process
            self._thread = None
            self.troubles.report("the background thread could not be started", error)

    def _pending(self) -> bool:
        return bool(self._queue or self._batch or self._unindexed)

    def _drop_above_limit(self) -> int:
        dropped = 0
        while self.waiting > self.limit and len(self._queue) > 1:
            parcel = self._queue.popleft()
            self.waiting -= parcel.size
            if parcel.local is not None and parcel.kind == "final":
                shutil.rmtree(parcel.local, ignore_errors=True)
            dropped += 1
        return dropped

    def _run(self) -> None:
        attach(set_value("suppress_instrumentation", True))
        while not self._stopping:
            try:
                self._turn()
            except Exception as error:  # a fault of ours must not end the thread
                self.troubles.report("the background thread failed and goes on", error)
                self._pause = LONGEST_PAUSE
            finally:
                with self._state:
                    self._batch = []
                    self._state.notify_all()
            self._rest()
        with self._state:  # what is put from now on starts another thread
            if self._thread is threading.current_thread():
                self._thread = None

    def _turn(self) -> None:
        """Ship what is there, or until something fails."""
        self._wake.clear()
        if self._quiet_until > time.monotonic():
            return
        self._adopt_when_due()
        self._urgent.clear()
        while self._index() and self._queue:
            with self._state:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._batch = batch
            failed = self._ship(batch)
            with self._state:
                self._queue.extendleft(reversed(failed))
                self.waiting = sum(parcel.size for parcel in self._queue)
                self._batch = []
                self._state.notify_all()
            if failed:
                break

    def _rest(self) -> None:
        """Wait for work, or for the pause after a failure to be over. A flush cuts it short."""
        if self._stopping:
            return
        if self._pause:
            self._urgent.wait(self._pause * random.uniform(0.5, 1.0))
            return
        quiet = self._quiet_until - time.monotonic()
        self._wake.wait(min(quiet, ADOPT_EVERY) if quiet > 0 else ADOPT_EVERY)
        if not self._stopping and not self._urgent.is_set():
            self._urgent.wait(LINGER)

    def _failed(self, error: BaseException, what: str) -> None:
        self.troubles.report(what, error)
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or FIRST_PAUSE)

    def _ship(self, batch: list[Parcel]) -> list[Parcel]:
        """Ship a batch; gives what has to be tried again, in order."""
        if not self._is_prepared():
            return batch
        ended = {parcel.local for parcel in batch if parcel.kind == "final" and parcel.local is not None}
        todo = [parcel for parcel in batch if parcel.kind != "bump" or parcel.local not in ended]
        outcomes = self._move(todo)
        failed: list[Parcel] = []
        down: Exception | None = None
        for parcel in todo:
            try:
                self._bring(parcel, outcomes, down)
            except (StoreUnavailable, ConfigurationError) as error:  # also credentials that have changed
                if down is None:
                    self._failed(error, "the archive cannot be written; traces wait")
                down = error
                failed.append(parcel)
            except Exception as error:
                if not self._give_up(parcel, error):
                    failed.append(parcel)
        if self._index() and not failed:
            self._pause = 0.0
        return failed

    def _is_prepared(self) -> bool:
        try:
            if self.prepare is not None:
                self.prepare()
                self.prepare = None
        except (StoreUnavailable, ConfigurationError, DamagedArchive) as error:
            self._failed(error, "the archive cannot be set up; traces wait")
            return False
        return True

    def _bring(self, parcel: Parcel, outcomes: dict[int, Exception | None], down: Exception | None) -> None:
        """Store a parcel, if it is not yet, and have its row indexed. `down`: why no other is to be tried."""
        if id(parcel) in outcomes:
            _raise(outcomes[id(parcel)])
        elif not parcel.stored:
            _raise(down)
            self._store(parcel)
        parcel.stored = parcel.kind == "final"
        if parcel.kind != "ignored":
            self._unindexed.append(parcel)

    def _move(self, parcels: list[Parcel]) -> dict[int, Exception | None]:
        """Move the folders of ended traces in, several at once where the store can; what became of each, by its id."""
        moving: dict[Folder, tuple[Parcel, Path]] = {}
        for parcel in parcels:
            if parcel.kind == "final" and not parcel.stored and not parcel.files and parcel.local is not None:
                moving.setdefault(
                    parcel.record.folder, (parcel, parcel.local)
                )  # a reference of the caller's may repeat
        for parcel, _ in moving.values():
            self._note(parcel)
        results = self.store.take_many([(folder, local) for folder, (_, local) in moving.items()]) if moving else []
        return {id(parcel): result for (parcel, _), result in zip(moving.values(), results, strict=True)}

    def _store(self, parcel: Parcel) -> None:
        record, folder = parcel.record, parcel.record.folder
        if parcel.kind == "ignored":
            self.index.delete([record.reference])
            self.store.delete(folder)
            if parcel.local is not None:
                shutil.rmtree(parcel.local, ignore_errors=True)
        elif parcel.kind == "bump":
            self._store_bump(parcel)
        elif parcel.files or parcel.local is None:
            self._store_from_memory(parcel)
        else:
            self._note(parcel)
            self.store.take(folder, parcel.local)

    def _note(self, parcel: Parcel) -> None:
        if self.spool is not None and parcel.note is None:
            try:
                parcel.note = self.spool.note(encode_record(parcel.record))
            except OSError as error:  # a crash right now could cost an index row: `trifle-otel reindex` finds it
                self.troubles.report("the spool cannot be written", error)

    def _store_bump(self, parcel: Parcel) -> None:
        folder = parcel.record.folder
        for name in parcel.names:
            data = parcel.files.get(name)
            if data is None and parcel.local is not None:
                data = parcel.local / name
            if data is not None and not (isinstance(data, Path) and not data.exists()):
                self.store.write(folder, name, data)
        self.store.write(folder, RECORD_NAME, encode_record(parcel.record))
        for name in parcel.names:
            if parcel.local is not None:
                with suppress(OSError):
                    os.unlink(parcel.local / name)

    def _store_from_memory(self, parcel: Parcel) -> None:
        """Where the disk would not take all of it."""
        folder, local = parcel.record.folder, parcel.local
        if local is not None and local.exists():
            for path in sorted(local.rglob("*")):
                name = path.relative_to(local).as_posix()
                if path.is_file() and name not in parcel.files and name != RECORD_NAME:
                    self.store.write(folder, name, path)
        for name, data in parcel.files.items():
            self.store.write(folder, name, data)
        self.store.write(folder, RECORD_NAME, encode_record(parcel.record))
        if local is not None:
            shutil.rmtree(local, ignore_errors=True)

    def _give_up(self, parcel: Parcel, error: Exception) -> bool:
        """Whether a parcel that the archive refuses is put aside, so that others are not held up."""
        parcel.tries += 1
        if parcel.tries < TRIES:
            self._failed(error, "a trace could not be shipped; it is tried again")
            return False
        where = parcel.record.reference
        if parcel.local is not None and self.spool is not None and parcel.local.exists():
            with suppress(OSError):
                where += f", kept in {self.spool.set_aside(parcel.local)}"
        self.troubles.report("a trace cannot be shipped", error, detail=where)
        return True

    def _index(self) -> bool:
        """Put rows of what is stored into the index; False where that has to be tried again."""
        while self._unindexed:
            parcels = self._unindexed[:BATCH]
            try:
                self.index.put([parcel.record for parcel in parcels])
            except (StoreUnavailable, DamagedArchive, ConfigurationError) as error:
                self._failed(error, "the index cannot be written; rows wait")
                return False
            del self._unindexed[: len(parcels)]
            ended = sum(parcel.kind == "final" for parcel in parcels)
            self.shipped += ended
            if self.on_shipped is not None and ended:
                self.on_shipped(ended)
            for parcel in parcels:
                if parcel.note is not None and self.spool is not None:
                    self.spool.indexed(parcel.note)
        return True

    def _adopt_when_due(self) -> None:
        now = time.monotonic()
        if self.spool is None or (self._adopted and now - self._adopted < ADOPT_EVERY * random.uniform(0.8, 1.2)):
            return
        self._adopted = now
        self.adopt()

    def adopt(self) -> int:
        """Ship what dead processes left in the spool; gives the number of traces."""
        if self.spool is None:
            return 0
        adopted = 0
        for orphan in self.spool.orphans():
            try:
                adopted += self._adopt(orphan)
            except (StoreUnavailable, ConfigurationError, DamagedArchive) as error:
                self._failed(error, "what a dead process left cannot be shipped yet")
            except OSError as error:
                self.troubles.report("what a dead process left cannot be read", error)
            finally:
                orphan.close()
        return adopted

    def _adopt(self, orphan: Orphan) -> int:
        for path, records in orphan.notes():
            self.index.put([record for record in records if _is_stored(self.store, record)])
            path.unlink(missing_ok=True)
        parcels = orphan.parcels()
        for at in range(0, len(parcels), BATCH):
            batch = parcels[at : at + BATCH]
            for parcel in batch:
                if parcel.kind == "ignored":
                    self._store(parcel)
                    continue
                # The row goes first where the payload is on this machine's disk in full, and its folder is
                # left to the end: should we die in between, the next one to adopt it begins again.
                self._keep(parcel)
            self.index.put([parcel.record for parcel in batch if parcel.kind != "ignored"])
            for parcel in batch:
                if parcel.local is not None:
                    shutil.rmtree(parcel.local, ignore_errors=True)
        if orphan.lost:
            self.troubles.report("traces of a dead process had recorded nothing yet", amount=orphan.lost)
        return len(parcels)

    def _keep(self, parcel: Parcel) -> None:
        """Copy a dead process's trace into the archive; its folder stays until the index has it."""
        local = parcel.local
        assert local is not None
        files = [path for path in sorted(local.rglob("*")) if path.is_file() and path.name != RECORD_NAME]
        for path in files:
            self.store.write(parcel.record.folder, path.relative_to(local).as_posix(), path)
        self.store.write(parcel.record.folder, RECORD_NAME, encode_record(parcel.record))


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _is_stored(store: Store, record: TraceRecord) -> bool:
    """Whether the archive holds this trace's payload, and holds it finished."""
    try:
        with store.open(record.folder, RECORD_NAME) as stream:
            return decode_record(stream.read()).finished
    except (NotFound, DamagedArchive):
        return False
