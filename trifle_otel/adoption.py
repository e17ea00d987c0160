"""What dead processes left in the spool: brought into the archive, and bounded as long as that is not possible.

When it is looked for is `shipper`'s business, what it looks like on disk `spool`'s.
"""

from __future__ import annotations

import heapq
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trifle_otel.encoding import MAX_RECORD_BYTES, RECORD_NAME, decode_record, encode_record
from trifle_otel.errors import ConfigurationError, DamagedArchive, NotFound, StoreUnavailable, UsageError
from trifle_otel.parcels import Parcel
from trifle_otel.plain_files import is_plain, read_plain
from trifle_otel.records import Folder, TraceRecord
from trifle_otel.spool import ASIDE, LOCK, Orphan, Spool, adopt, size_of
from trifle_otel.stores.contract import Store
from trifle_otel.stores.parallel import at_once

if TYPE_CHECKING:
    from trifle_otel.indexes.contract import Index
    from trifle_otel.runtime import Troubles

BATCH: Final = 64  # traces of one step: what this process records waits no longer than for that
ASKED_AT_ONCE: Final = 16  # requests to a remote store, whether it holds what a note tells of
TRIES: Final = 3  # of a trace that the archive refuses for another reason than being out of reach
SORTED_AT_ONCE: Final = 10_000  # of what one dead process left
BOUND_EVERY: Final = 60.0  # seconds between two looks at how much there is
TOO_MUCH: Final = "traces were dropped: more waited than `spool_limit` allows"
TOO_OLD: Final = "traces were dropped: they had waited longer than `spool_age` allows"
ROWS_DROPPED: Final = "rows were dropped with what was too much or too old; `trifle-otel reindex` finds their traces"
UNREACHED: Final = (StoreUnavailable, ConfigurationError)
"""What somebody may mend, credentials too: it is tried again, however often."""
PASSING: Final = (*UNREACHED, DamagedArchive)
"""The same of an index, which can be repaired."""


class Adopter:
    """Ships what dead processes left. Used by one thread.

    Args:
        limit: bytes that may wait, what the living process has included.
        age: seconds that a trace may wait.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        spool: Spool,
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
        self._measured: dict[str, tuple[int, int, float]] = {}  # folder -> number, bytes, time of the oldest
        self._bounded = -BOUND_EVERY

    def steps(self) -> Generator[int, None, None]:
        """Ship it, folder by folder and batch by batch; gives how many traces of each batch are in the archive now.

        Raises what `PASSING` names where the archive cannot be written: what is left stays where it is.
        """
        try:
            for orphan in self.spool.orphans():
                yield from self._steps_of(orphan)
        except OSError as error:  # the spool itself
            self.troubles.report("what a dead process left cannot be read", error)

    def _steps_of(self, orphan: Orphan) -> Iterator[int]:
        try:
            yield from self._adopt(orphan)
        except OSError as error:
            self.troubles.report("what a dead process left cannot be read", error)
        finally:
            orphan.close()

    def _adopt(self, orphan: Orphan) -> Iterator[int]:
        for path, records in orphan.notes():
            put(self.index, self._stored(records), self.troubles)
            path.unlink(missing_ok=True)
        batch: list[Parcel] = []
        folders: set[Folder] = set()
        for parcel in orphan.parcels():
            # a reference of the caller's may repeat, and a batch may hold a folder of the archive once
            if len(batch) >= BATCH or parcel.record.folder in folders:
                yield self._ship(orphan, batch)
                batch, folders = [], set()
            batch.append(parcel)
            folders.add(parcel.record.folder)
        if batch:
            yield self._ship(orphan, batch)
        for folder, error in orphan.damaged:
            self._set_aside(folder.name, folder, error)
        if orphan.lost:
            self.troubles.report("traces of a dead process had recorded nothing yet", amount=orphan.lost)

    def _ship(self, orphan: Orphan, batch: list[Parcel]) -> int:
        """Ship a batch. Should we die on the way, a note tells the next one of the rows that are missing."""
        ended: list[tuple[Parcel, Path]] = []
        for parcel in batch:
            assert parcel.local is not None
            if parcel.kind == "ignored":
                try:
                    self._forget(parcel.record, parcel.local)
                except PASSING:
                    raise
                except Exception as refused:  # its record names what can be no trace's folder, say
                    self._set_aside(parcel.record.reference, parcel.local, refused)
            else:
                ended.append((parcel, parcel.local))
        note = self._note(orphan, [parcel.record for parcel, _ in ended])
        moves = [(parcel.record.folder, local) for parcel, local in ended]
        errors = take_many(self.store, moves, self.troubles)
        errors = [self._again(error, *move) for error, move in zip(errors, moves, strict=True)]
        put(self.index, [p.record for (p, _), error in zip(ended, errors, strict=True) if error is None], self.troubles)
        if note is not None:
            note.unlink(missing_ok=True)
        down = None
        for (parcel, local), error in zip(ended, errors, strict=True):
            if isinstance(error, UNREACHED):
                down = error
            elif error is not None:
                self._set_aside(parcel.record.reference, local, error)
        if down is not None:
            raise down
        return errors.count(None)

    def _forget(self, record: TraceRecord, local: Path) -> None:
        self.index.delete([record.reference])
        self.store.delete(record.folder)
        shutil.rmtree(local, ignore_errors=True)

    def _note(self, orphan: Orphan, records: list[TraceRecord]) -> Path | None:
        if not records:
            return None
        try:
            return orphan.note(map(encode_record, records))
        except OSError as error:  # a crash right now could cost index rows: `trifle-otel reindex` finds them
            self.troubles.report("the spool cannot be written", error)
            return None

    def _again(self, error: Exception | None, folder: Folder, local: Path) -> Exception | None:
        """What becomes of a trace that the archive refused for another reason than being out of reach."""
        for _ in range(TRIES - 1):
            if error is None or isinstance(error, UNREACHED):
                break
            (error,) = take_many(self.store, [(folder, local)], self.troubles)
        return error

    def _set_aside(self, reference: str, local: Path, error: Exception) -> None:
        where = reference
        if local.exists():
            with suppress(OSError):
                where += f", kept in {self.spool.set_aside(local)}"
        self.troubles.report("a trace cannot be shipped", error, detail=where)

    def _stored(self, records: list[TraceRecord]) -> list[TraceRecord]:
        """Those whose payload the archive holds, and holds finished."""
        found: list[TraceRecord] = []
        errors: list[Exception] = []

        def look(record: TraceRecord) -> None:
            try:
                if not errors and is_stored(self.store, record):
                    found.append(record)
            except Exception as error:
                errors.append(error)

        at_once([partial(look, record) for record in records], ASKED_AT_ONCE if self.store.remote else 1)
        if errors:
            raise errors[0]
        return found

    def bound(self, own: int, *, down: bool) -> None:
        """Drop what is too old, and the oldest of what is too much; at most once a minute.

        What dead processes left counts together with the `own` bytes of this one, and goes before them; but only while
        the archive is `down`, else it is shipped. What was put aside counts in any case.
        """
        now = time.monotonic()
        if (self.limit == math.inf and self.age == math.inf) or now - self._bounded < BOUND_EVERY:
            return
        self._bounded = now
        measured = self._measure(down)
        over = own + sum(size for _, size, _ in measured.values()) - self.limit
        since = time.time() - self.age
        for path in sorted(measured, key=lambda path: measured[path][2]):
            if over > 0 or measured[path][2] < since:
                try:
                    over -= self._drop(Path(path), over, since)
                except OSError as error:
                    self.troubles.report("what a dead process left cannot be read", error)

    def _measure(self, down: bool) -> dict[str, tuple[int, int, float]]:
        """Number, size and age of what was put aside and, where the archive is down, of what each dead process left."""
        found: dict[str, tuple[int, int, float]] = {}
        folders = [self.spool.root / ASIDE]
        with suppress(OSError):  # of a spool that may not be looked at, which adopting tells
            for orphan in self.spool.orphans() if down else ():
                orphan.disown()  # whoever wants to ship it meanwhile must find it free
                folders.append(orphan.folder)
        for folder in folders:
            with suppress(OSError):
                found[str(folder)] = self._look_at(folder)
        self._measured = found
        return found

    def _look_at(self, folder: Path) -> tuple[int, int, float]:
        number = len(os.listdir(folder))
        known = self._measured.get(str(folder))
        if known is not None and known[0] == number:  # nobody adds to it: it is as it was
            return known
        size, oldest = 0, math.inf
        for moment, path in _left(folder):
            size += _size(path)
            oldest = min(oldest, moment)
        return number, size, oldest

    def _drop(self, folder: Path, over: float, since: float) -> int:
        """Drop from one folder what is from before `since`, and the oldest until `over` bytes are gone; gives bytes."""
        if folder.name == ASIDE:
            return self._drop_oldest(folder, over, since)
        orphan = adopt(folder)
        if orphan is None:  # another process is at work there
            return 0
        try:
            return self._drop_oldest(folder, over, since)
        finally:
            orphan.close()

    def _drop_oldest(self, folder: Path, over: float, since: float) -> int:
        gone = 0
        dropped: Counter[str] = Counter()
        try:
            while oldest := heapq.nsmallest(SORTED_AT_ONCE, _left(folder)):
                for changed, path in oldest:
                    if changed >= since and gone >= over:
                        return gone
                    gone += _size(path)
                    _remove(path, TOO_OLD if changed < since else TOO_MUCH, dropped)
            return gone
        finally:
            for what, amount in dropped.items():
                self.troubles.report(what, amount=amount)


def _remove(path: str, why: str, dropped: Counter[str]) -> None:
    if _is_folder(path):
        dropped[why] += 1
        shutil.rmtree(path)
    else:
        if is_plain(path):
            dropped[ROWS_DROPPED] += read_plain(path).count(b"\n")
        os.unlink(path)


def put(index: Index, records: list[TraceRecord], troubles: Troubles) -> None:
    """Put records into the index. One that it refuses for good holds up no other; it is counted.

    Raises what `PASSING` names.
    """
    if not records:
        return
    try:
        index.put(records)
    except PASSING:
        raise
    except Exception as error:
        if len(records) == 1:
            troubles.report("a trace cannot be indexed", error, detail=records[0].reference)
            return
        for record in records:
            put(index, [record], troubles)


def take_many(store: Store, moves: list[tuple[Folder, Path]], troubles: Troubles) -> list[Exception | None]:
    """The store's `take_many`. Where that breaks its contract, each is taken by itself: one is refused, not all."""
    if not moves:
        return []
    try:
        results = store.take_many(moves)
        if len(results) == len(moves):
            return results
        raise TypeError(f"take_many gave {len(results)} results for {len(moves)} traces")
    except Exception as error:
        troubles.report("the store breaks its contract; traces are taken one by one", error)
        return Store.take_many(store, moves)


def is_stored(store: Store, record: TraceRecord) -> bool:
    """Whether the archive holds this trace's payload, and holds it finished."""
    try:
        with store.open(record.folder, RECORD_NAME) as stream:
            return decode_record(stream.read(MAX_RECORD_BYTES)).finished
    except ConfigurationError:  # its bucket is not among the archive's: nobody can say
        raise
    except (NotFound, DamagedArchive, UsageError):  # the last: the record names what can be no trace's folder
        return False


def _left(folder: Path) -> Iterator[tuple[float, str]]:
    """What lies in a folder, its lock left out, with the time at which each changed last."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != LOCK:
                with suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False).st_mtime, entry.path


def _size(path: str) -> int:
    return size_of(Path(path)) if _is_folder(path) else os.lstat(path).st_size


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
