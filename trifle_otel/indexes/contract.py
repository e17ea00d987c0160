"""The contract of an index.

An index keeps one `TraceRecord` for each trace and answers `Query`s. It knows nothing of
payloads. Its tests are `trifle_otel.testing.IndexContract`: an index of your own is one that
passes them; see `docs/drivers.md`.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import islice

from trifle_otel.records import RUNNING, Position, Query, TraceRecord
from trifle_otel.tallies import SLOTS, Tally, tally_records

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_PAGE = 1000


def supersedes(new: TraceRecord, old: TraceRecord) -> bool:
    """Whether `new` may take the place of `old`, which has the same reference: the rule of `Index.put`."""
    return new.state != RUNNING or (old.state == RUNNING and new.parts >= old.parts)


def latest(records: Sequence[TraceRecord]) -> list[TraceRecord]:
    """One record for each reference: what is left when they are put one after the other."""
    kept: dict[str, TraceRecord] = {}
    for record in records:
        old = kept.get(record.reference)
        if old is None or supersedes(record, old):
            kept[record.reference] = record
    return list(kept.values())


class ProcessLock:
    """A lock that a forked child has anew: its parent's may be held by a thread that is not there."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        """This process's."""
        return self._locks.setdefault(os.getpid(), threading.Lock())


class Index(ABC):
    """Records of traces, found by reference and by search.

    Every method may be called from any thread, and after a fork in parent and child: a child opens connections
    of its own, and leaves its parent's alone. Nothing is connected to before the first call. No call waits for ever.

    Records come back as they were put, field by field, text and numbers of `meta` and `context` included; times
    to the microsecond, or rounded down to what the index keeps.

    Errors, with the driver's own as their cause, and without credentials:
        StoreUnavailable: whatever may pass (locked, out of reach). Rows wait and are tried again.
        DamagedArchive: the index cannot be read; `trifle-otel reindex` makes it anew. Rows wait.
        ConfigurationError: it is of another shape, or credentials are wrong. Rows wait, until somebody mends it.
        Anything else: what will never be taken. The records of that batch are tried one by one, and that one is
            given up and counted.
    """

    remote: bool = False
    """Whether calls wait for a network: an index that does is never called while a job waits."""
    tallied = 5_000
    """How many records `tally` counts, at most: as many as take a blink."""

    @abstractmethod
    def setup(self) -> None:
        """Create tables, collections and indexes that are missing; migrate ours; never harm others'."""

    @abstractmethod
    def put(self, records: Sequence[TraceRecord]) -> None:
        """Insert or replace records, all in one go where the index can.

        Storing a record twice does no harm. A `running` record never replaces a finished one, and of two
        running ones the one with fewer parts never replaces the other: batches may come again after a crash.
        Where one batch holds a reference twice, the later one counts.
        """

    @abstractmethod
    def find(self, reference: str) -> TraceRecord | None:
        """The record of that reference, or None."""

    @abstractmethod
    def search(self, query: Query) -> list[TraceRecord]:
        """At most `query.limit` records, newest first (`first_at` descending, then `reference` descending).

        All conditions of the query hold for each; `records.Query` says what they mean. After `query.after`, which is
        the place of a record that was found before, and need not be there any more.
        """

    @abstractmethod
    def delete(self, references: Sequence[str]) -> None:
        """Forget these records. Unknown ones do no harm."""

    @abstractmethod
    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """Records with `expires_at` at or before `now`, at most `limit`, in no order.

        For cleaning up, which deletes them and asks again. An index that expires rows by itself has none left.
        """

    def count_expired(self, now: datetime) -> int:
        """How many records have `expires_at` at or before `now`. Here all are looked at, page by page."""
        return sum(record.expires_at <= now for record in self._found(Query(limit=_PAGE)))

    def tally(self, query: Query, *, slots: int = SLOTS, most: int | None = None) -> Tally:
        """Count the traces that a query finds, the newest ones of them, in at most so many slots of time.

        The query's `limit` and `after` say nothing here: as many as `most` are counted (where None, as `tallied`
        says), and the answer is `partial` where there may be more. An index that can count all of them does, and
        tells how many of each slot it took lines and durations of (`sampled`).
        """
        most = self.tallied if most is None else most
        records = list(islice(self._found(replace(query, limit=_PAGE, after=None)), most))
        return tally_records(records, slots, partial=len(records) == most)

    def _found(self, query: Query) -> Iterator[TraceRecord]:
        """All that a query finds, page by page."""
        while True:
            records = self.search(query)
            yield from records
            if len(records) < query.limit:
                return
            microseconds = (records[-1].first_at - _EPOCH) // timedelta(microseconds=1)
            query = replace(query, after=Position(microseconds * 1000, records[-1].reference))

    def check(self) -> None:
        """Prove that the index can be read and written. Raises `StoreUnavailable` or `ConfigurationError`."""
        self.setup()
        self.search(Query(limit=1))

    def repair(self) -> None:
        """Make an index that cannot be read usable again, even where that empties it: what it held comes anew."""
        self.setup()

    def close(self) -> None:  # noqa: B027 - most need none
        """Let go of connections. The index may not be used afterwards."""
