"""The one background thread that brings parcels from the spool into the archive.

Its promises, each tested:
- payload before index, whatever happens in between; shipping twice does no harm;
- what fails waits and is tried again, with a growing, random pause; what waits is bounded in bytes and in age:
  above the bounds the oldest is dropped, counted, and logged at most once a minute;
- whatever a driver raises, none of a batch is forgotten, and the thread goes on;
- memory stays bounded, however much waits: see `backlog`;
- `flush` and `close` keep their deadlines even when a store hangs;
- a forked child begins with nothing: what its parent had is its parent's;
- folders of dead processes are adopted, at the start, regularly, and once more at the end (a worker's jobs may have
  run in processes that it forked), and what this process recorded goes first;
- nothing that it does is traced by the instrumentations around it.

What is packed, how it is spooled and how it gets into a store is not known here; see `delivery`, `spool`,
`payloads` and `adoption`.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry.context import attach, set_value

from trifle_otel.adoption import (
    PASSING,
    ROWS_DROPPED,
    TOO_MUCH,
    TOO_OLD,
    TRIES,
    UNREACHED,
    Adopter,
    put,
)
from trifle_otel.backlog import Backlog, Stub, without_overtaken
from trifle_otel.errors import DamagedArchive, NotFound
from trifle_otel.metrics import Waiting
from trifle_otel.parcels import Parcel
from trifle_otel.payloads import Payloads
from trifle_otel.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from trifle_otel.indexes.contract import Index
    from trifle_otel.runtime import Troubles
    from trifle_otel.stores.contract import Store

BATCH: Final = 256
LINGER: Final = 0.25  # seconds that the first of a batch waits for others; a flush cuts it short
ADOPT_EVERY: Final = 10.0
QUIET_AFTER_FORK: Final = 5.0  # a child that is recycled after one job must not connect to a remote store for it
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 30.0
_PARTS_DROPPED: Final = "parts of running traces were dropped with what was too much or too old"
_DROPPED: Final = {"row": ROWS_DROPPED, "part": _PARTS_DROPPED}


class Shipper:
    """A queue of parcels and the thread that empties it.

    `_state` (a condition) guards `_backlog`, `_batch`, `_under_way`, `_thread`, `_stopping`, `_adopting` and
    `_asked`. Only the thread changes `_unindexed`, and it alone touches `_pause`, `_adoption`, the store and the index.

    Args:
        limit: bytes that may wait.
        age: seconds that a trace may wait.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        spool: Spool | None,
        troubles: Troubles,
        *,
        limit: float = math.inf,
        age: float = math.inf,
    ) -> None:
        self.store = store
        self.index = index
        self.spool = spool
        self.troubles = troubles
        self.limit = limit
        self.age = age
        self.shipped = 0
        self.on_shipped: Callable[[int], None] | None = None
        self.prepare: Callable[[], None] | None = None
        """What is to be done before anything is shipped, until it succeeds."""
        self._quiet_until = 0.0
        self._payloads = Payloads(store, index, spool, troubles)
        self._adopter = None if spool is None else Adopter(store, index, spool, troubles, limit=limit, age=age)
        self._begin()

    def _begin(self) -> None:
        self._state = threading.Condition()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._backlog = Backlog(self.spool)
        self._unindexed: list[Parcel] = []
        self._rows = BATCH  # that the index is given at once
        self._batch: list[Parcel | Stub] = []
        self._under_way = 0  # bytes of `_batch`
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._pause = 0.0
        self._adopted = 0.0
        self._adoption: Generator[int, None, None] | None = None
        self._adopting = False
        self._asked = False  # to look for what dead processes left, however lately it did

    def put(self, parcel: Parcel) -> None:
        """Queue a parcel, once. Never waits for the archive, never raises but an interruption of the job."""
        with self._state:
            if not parcel.queued:
                self._backlog.put(parcel)
                parcel.queued = True
            too_much = self._backlog.take_above(self.limit - self._under_way)
            if self._thread is None:
                self._start()
        if not self._wake.is_set():
            self._wake.set()
        if too_much:
            self._drop(too_much, TOO_MUCH)

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
        with self._state:  # who ends is often the next process for what dead ones left, its children among them
            if self._thread is not None and self._adopter is not None:
                self._adopting = self._asked = True
                self._urgent.set()
                self._wake.set()
            self._state.wait_for(lambda: not self._adopting, max(0.0, end - time.monotonic()))
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
            under_way = {id(parcel): parcel for parcel in [*self._batch, *self._unindexed]}.values()
            since = [parcel.since for parcel in under_way]
            oldest = self._backlog.oldest
            now = time.monotonic()
            age = now - min(since if oldest is None else [*since, oldest], default=now)
            size = self._backlog.size + sum(parcel.size for parcel in under_way)
            return Waiting(len(self._backlog) + len(since), size, age)

    def start(self) -> None:
        """Start the thread before there is something to ship: it looks for what dead processes left."""
        with self._state:
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        self._stopping = False
        self._adopting = self.spool is not None and not self._adopted and self._quiet_until <= time.monotonic()
        self._thread = thread = threading.Thread(target=self._run, name="trifle-shipper", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # at the interpreter's end: what waits is for the next process
            self._thread = None
            self._adopting = False
            if self.spool is None or "shutdown" not in str(error):
                self.troubles.report("the background thread could not be started", error)
        except BaseException:  # an interruption of the job
            if not thread.is_alive():
                self._thread = None
            raise

    def _pending(self) -> bool:
        return bool(len(self._backlog) or self._batch or self._unindexed)

    def _drop_above_age(self) -> None:
        before = time.monotonic() - self.age
        while True:
            with self._state:  # until it is given up it waits, as a batch does
                too_old = self._batch = self._backlog.take_older(before, BATCH)
            if not too_old:
                return
            self._drop(too_old, TOO_OLD)

    def _drop(self, items: list[Parcel | Stub], why: str) -> None:
        """Not under `_state`: a disk that takes its time must hold up no job."""
        for what, amount in Counter(map(self._backlog.give_up, items)).items():
            if what is not None:
                self.troubles.report(_DROPPED.get(what, why), amount=amount)

    def _run(self) -> None:
        attach(set_value("suppress_instrumentation", True))
        try:
            while not self._stopping:
                try:
                    self._turn()
                except Exception as error:  # a fault of ours must not end the thread
                    self.troubles.report("the background thread failed and goes on", error)
                    self._pause = LONGEST_PAUSE
                    self._end_adoption()
                finally:
                    with self._state:
                        self._batch, self._under_way = [], 0
                        self._state.notify_all()
                self._rest()
        finally:  # a driver in Rust that panics ends the thread, since that is no Exception
            self._end_adoption()
            with self._state:  # what is put from now on starts another thread
                if self._thread is threading.current_thread():
                    self._thread = None

    def _turn(self) -> None:
        """Ship what is there, or until something fails."""
        self._wake.clear()
        if self._quiet_until > time.monotonic():
            return
        self._urgent.clear()
        if self._is_prepared():
            while self._ship_own() and not self._stopping and self._adopt_some():
                pass
        if self._pause:
            self._drop_above_age()
            self._asked = False  # it has been tried
            self._end_adoption()
        if self._adopter is not None and self._adoption is None:
            with self._state:
                own = self._backlog.size
            self._adopter.bound(own, down=bool(self._pause))

    def _ship_own(self) -> bool:
        """Ship what this process recorded; False where something has to be tried again."""
        while self._index():
            with self._state:
                self._batch = self._backlog.take(BATCH)
                self._under_way = sum(item.size for item in self._batch)
            if not self._batch:
                return True
            batch = [parcel for parcel in map(self._loaded, self._batch) if parcel is not None]
            with self._state:
                self._batch = [*batch]
            left = {id(parcel): parcel for parcel in without_overtaken(batch)}
            try:
                self._ship(left)
            finally:
                with self._state:
                    self._backlog.give_back([*left.values()])
                    too_much = self._backlog.take_above(self.limit)  # more has come meanwhile
                    self._batch, self._under_way = [], 0
                    self._state.notify_all()
                self._drop(too_much, TOO_MUCH)
            if left:
                return False
        return False

    def _loaded(self, item: Parcel | Stub) -> Parcel | None:
        try:
            return self._backlog.load(item)
        except (OSError, NotFound, DamagedArchive) as error:  # somebody removed it, or wrote into it
            assert isinstance(item, Stub)
            self._put_aside(Path(item.local) if item.local else None, item.local or item.note, error)
            return None

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
        self._wait_longer()

    def _wait_longer(self) -> None:
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or FIRST_PAUSE)

    def _ship(self, left: dict[int, Parcel]) -> None:
        """Ship a batch, by the ids of its parcels; what is left in it has to be tried again, where this raises too."""
        if not self._leave_out_repeated(left):
            return
        outcomes = self._payloads.move([*left.values()])
        down: Exception | None = None
        for parcel in [*left.values()]:
            try:
                self._bring(parcel, outcomes, down)
            except UNREACHED as error:
                if down is None:
                    self._failed(error, "the archive cannot be written; traces wait")
                down = error
                continue
            except Exception as error:
                if not self._give_up(parcel, error):
                    continue
            del left[id(parcel)]
        if left and down is None:
            self._wait_longer()
        if self._index() and not left:
            self._pause = 0.0

    def _leave_out_repeated(self, left: dict[int, Parcel]) -> bool:
        """Drop what came again and is archived with more; False where nobody can tell now."""
        try:
            repeated = self._payloads.repeated(left.values())
        except PASSING as error:
            self._failed(error, "the index cannot be read; traces wait")
            return False
        for parcel in repeated:
            self._payloads.remove(parcel)
            del left[id(parcel)]
        self._count(len(repeated))
        return True

    def _is_prepared(self) -> bool:
        try:
            if self.prepare is not None:
                self.prepare()
                self.prepare = None
        except PASSING as error:
            self._failed(error, "the archive cannot be set up; traces wait")
            return False
        return True

    def _bring(self, parcel: Parcel, outcomes: dict[int, Exception | None], down: Exception | None) -> None:
        """Store a parcel, if it is not yet, and have its row indexed. `down`: why no other is to be tried."""
        if id(parcel) in outcomes:
            _raise(outcomes[id(parcel)])
        elif not parcel.stored:
            _raise(down)
            self._payloads.store_one(parcel)
        parcel.stored = parcel.kind == "final"
        parcel.size = 0
        if parcel.kind != "ignored":
            self._unindexed.append(parcel)

    def _give_up(self, parcel: Parcel, error: Exception) -> bool:
        """Whether a parcel that the archive refuses is put aside, so that others are not held up."""
        parcel.tries += 1
        if parcel.tries < TRIES:
            self.troubles.report("a trace could not be shipped; it is tried again", error)
            return False
        self._put_aside(parcel.local, parcel.record.reference, error)
        if parcel.row is not None and self.spool is not None:
            self.spool.indexed(parcel.row)
        return True

    def _put_aside(self, local: Path | None, where: str, error: Exception) -> None:
        if local is not None and self.spool is not None and local.exists():
            with suppress(OSError):
                where += f", kept in {self.spool.set_aside(local)}"
        self.troubles.report("a trace cannot be shipped", error, detail=where)

    def _index(self) -> bool:
        """Put rows of what is stored into the index; False where that has to be tried again."""
        while self._unindexed:
            parcels = self._unindexed[: self._rows]
            try:
                put(self.index, [parcel.record for parcel in parcels], self.troubles)
            except PASSING as error:
                self._rows = max(1, self._rows // 2)  # perhaps there are more than it takes in the time that it has
                self._failed(error, "the index cannot be written; rows wait")
                return False
            self._rows = min(BATCH, self._rows * 2)
            for parcel in parcels:
                if parcel.row is not None and self.spool is not None:
                    self.spool.indexed(parcel.row)
            del self._unindexed[: len(parcels)]
            self._count(sum(parcel.kind == "final" for parcel in parcels))
        return True

    def _count(self, shipped: int) -> None:
        self.shipped += shipped
        if self.on_shipped is not None and shipped:
            try:
                self.on_shipped(shipped)
            except Exception as error:  # another SDK's
                self.troubles.report("a trace could not be measured", error)

    def adopt(self) -> int:
        """Ship what dead processes left in the spool, in this thread; gives the number of traces.

        What cannot be shipped stays, and is reported.
        """
        adopted = 0
        if self._adopter is not None:
            try:
                for number in self._adopter.steps():
                    adopted += number
            except PASSING as error:
                self.troubles.report("what a dead process left cannot be shipped yet", error)
        return adopted

    def _adopt_some(self) -> bool:
        """Ship some of what dead processes left, where it is time for that; False where there is no more for now."""
        now = time.monotonic()
        if self._adoption is None:
            if self._adopter is None or (
                self._adopted and not self._asked and now - self._adopted < ADOPT_EVERY * random.uniform(0.8, 1.2)
            ):
                self._pause = 0.0  # what failed was adoption, and nothing else waits
                return False
            self._asked = False
            self._adopted = now
            self._adoption = self._adopter.steps()
        try:
            number = next(self._adoption, None)
        except PASSING as error:
            self._failed(error, "what a dead process left cannot be shipped yet")
            return False
        if number is None:
            self._pause = 0.0
            self._end_adoption()
            return False
        self._count(number)
        return True

    def _end_adoption(self) -> None:
        """Let go of what is being adopted: its lock is for whoever comes next."""
        if self._adoption is not None:
            self._adoption.close()
        with self._state:
            self._adoption = None
            self._adopting = self._asked
            self._state.notify_all()


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
