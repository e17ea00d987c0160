"""The contract of an index.

An index keeps one `TraceRecord` for each trace and answers `Query`s. It knows nothing of
payloads. Its tests are `trifle_otel.testing.IndexContract`: an index of your own is one that
passes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime

from trifle_otel.records import RUNNING, Query, TraceRecord


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


class Index(ABC):
    """Records of traces, found by reference and by search.

    Every method may be called from any thread. Errors: `StoreUnavailable` for whatever may pass
    (locked, out of reach), `DamagedArchive` where the index cannot be read, `ConfigurationError`
    where it is of another shape; the driver's own error is the cause.
    """

    remote: bool = False
    """Whether calls wait for a network."""

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
        """At most `query.limit` records, newest first (`first_at` descending, then `reference` descending)."""

    @abstractmethod
    def delete(self, references: Sequence[str]) -> None:
        """Forget these records. Unknown ones do no harm."""

    @abstractmethod
    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """Records with `expires_at` at or before `now`, at most `limit`, in no order."""

    def check(self) -> None:
        """Prove that the index can be read and written. Raises `StoreUnavailable` or `ConfigurationError`."""
        self.setup()
        self.search(Query(limit=1))

    def repair(self) -> None:
        """Make an index that cannot be read usable again, even where that empties it: what it held comes anew."""
        self.setup()

    def close(self) -> None:  # noqa: B027 - most need none
        """Let go of connections. The index may not be used afterwards."""
