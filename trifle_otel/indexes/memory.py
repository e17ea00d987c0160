"""An index in this process's memory: for tests, and for programs that keep nothing.

A search looks at every record. It is right for thousands, not for millions.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from trifle_otel.indexes.contract import Index, supersedes
from trifle_otel.records import Query, TraceRecord
from trifle_otel.tallies import MOST, SLOTS, Tally, tally_records

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class MemoryIndex(Index):
    """Records in a dict, gone with the object."""

    tallied = MOST

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _records
        self._records: dict[str, TraceRecord] = {}

    def setup(self) -> None:
        """Nothing to do."""

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Insert or replace records, in their order."""
        with self._lock:
            for record in records:
                old = self._records.get(record.reference)
                if old is None or supersedes(record, old):
                    self._records[record.reference] = record

    def find(self, reference: str) -> TraceRecord | None:
        """The record of that reference, or None."""
        with self._lock:
            return self._records.get(reference)

    def search(self, query: Query) -> list[TraceRecord]:
        """The newest records that match."""
        with self._lock:
            records = list(self._records.values())
        return heapq.nlargest(query.limit, (each for each in records if _matches(each, query)), key=_order)

    def tally(self, query: Query, *, slots: int = SLOTS, most: int | None = None) -> Tally:
        """Count the newest traces that match."""
        most = self.tallied if most is None else most
        records = self.search(replace(query, limit=most, after=None))
        return tally_records(records, slots, partial=len(records) == most)

    def delete(self, references: Sequence[str]) -> None:
        """Forget these records."""
        with self._lock:
            for reference in references:
                self._records.pop(reference, None)

    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """Records whose time is over."""
        with self._lock:
            return [each for each in self._records.values() if each.expires_at <= now][:limit]


def _order(record: TraceRecord) -> tuple[datetime, str]:
    return record.first_at, record.reference


def _matches(record: TraceRecord, query: Query) -> bool:
    return (
        (query.segment is None or query.segment in record.segments)
        and (query.state is None or query.state == record.state)
        and (query.min_duration is None or record.duration >= query.min_duration)
        and (query.trace_id is None or query.trace_id == record.trace_id)
        and _matches_tags(record, query)
        and _matches_time(record, query)
    )


def _matches_tags(record: TraceRecord, query: Query) -> bool:
    tags = set(record.tags)
    return tags.issuperset(query.all_tags) and (not query.any_tags or not tags.isdisjoint(query.any_tags))


def _matches_time(record: TraceRecord, query: Query) -> bool:
    if query.since is not None and record.first_at < query.since:
        return False
    if query.until is not None and record.first_at >= query.until:
        return False
    if query.after is None:
        return True
    nanoseconds = (record.first_at - _EPOCH) // _MICROSECOND * 1000
    return (nanoseconds, record.reference) < (query.after.first_at_ns, query.after.reference)
