"""An archive: an index to find traces by, and a store with their payloads. Search, read, delete, clean up, rebuild.

Reading goes through here, in the command line and in the viewer too. Which store and which index,
is `configuration`'s business, writing is the shipper's, which uses `store` and `index` directly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from trifle_otel import encoding, queries
from trifle_otel.errors import ConfigurationError, DamagedArchive, NotFound, UsageError
from trifle_otel.indexes.contract import Index
from trifle_otel.reading import Entries, read_entries
from trifle_otel.records import Page, Position, TraceRecord
from trifle_otel.reindex import stored_record, stored_records
from trifle_otel.stores.contract import Store

_log = logging.getLogger("trifle_otel")

_BATCH = 256
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Archive:
    """Traces that were recorded, to be found and read.

    May be used from any thread, and as a context manager that closes it. Methods raise
    `StoreUnavailable` where the store or the index is out of reach.

    Attributes:
        store: the payload store.
        index: the index.
        url: the name of the archive, for messages.
        spool: where processes leave what they could not ship, for `recover`; None where there is no such place.
        group: whether others of its group are meant to read it, for `checkup`.
        before_reading: called before anything is read, so that a process sees what it has just recorded.
    """

    def __init__(self, store: Store, index: Index, *, url: str = "") -> None:
        self.store = store
        self.index = index
        self.url = url
        self.spool: Path | None = None
        self.group = False
        self.before_reading: Callable[[], object] | None = None

    @classmethod
    def open(cls, archive: str | os.PathLike[str], index: str | None = None) -> Archive:
        """The archive that a URL or a path names, and the index beside it or at another URL.

        Raises `ConfigurationError` for a URL that is wrong, and names what is allowed.
        """
        from trifle_otel.configuration import open_archive  # noqa: PLC0415 - it names the drivers, and uses this module

        return open_archive(archive, index)

    def __repr__(self) -> str:
        return f"Archive({self.url!r})" if self.url else f"Archive({self.store!r}, {self.index!r})"

    def find(self, reference: str) -> TraceRecord:
        """The record of a trace. Raises `NotFound`."""
        self._settle()
        record = self.index.find(reference)
        if record is None:
            raise NotFound(f"there is no trace {reference!r}" + (f" in {self.url}" if self.url else ""))
        return record

    def search(
        self,
        *,
        segment: str | None = None,
        any_tags: Iterable[str] = (),
        all_tags: Iterable[str] = (),
        state: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        min_duration: int | float | str | None = None,
        trace_id: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """A page of the traces for which all that is given holds, newest first.

        Args:
            segment: the key, or the path that it begins with (`commodity/calculate`).
            any_tags: at least one of these.
            all_tags: every one of these.
            state: `running`, `success`, `warning` or `error`.
            since: began at that time or later: an aware datetime, ISO 8601, or how long ago (`90s`, `1h`, `3d`, `2w`).
            until: began before that time.
            min_duration: milliseconds, or text as in `1.5s`.
            trace_id: OpenTelemetry's, 32 hex digits.
            limit: how many, 1 to 1,000.
            cursor: that of the page before.

        Raises `UsageError` for what is not allowed, `InvalidCursor` for a cursor that is none.
        """
        query = queries.make_query(
            segment=segment,
            any_tags=any_tags,
            all_tags=all_tags,
            state=state,
            since=since,
            until=until,
            min_duration=min_duration,
            trace_id=trace_id,
            limit=limit,
            cursor=cursor,
        )
        self._settle()
        records = self.index.search(query)
        full = len(records) >= query.limit
        return Page(records, encoding.encode_cursor(_position(records[-1])) if full else None)

    def entries(self, record: TraceRecord | str) -> Entries:
        """The entries of a trace, given as a record or a reference (`NotFound` for one that is not there).

        Parts that are missing or damaged give what can be read of them, and are listed in `damaged`.
        """
        record = self._record(record)
        return read_entries(self.store, record.folder, record.parts)

    def artifact(self, record: TraceRecord | str, name: str) -> bytes:
        """The bytes of an artifact, or of an offloaded message. Raises `NotFound`."""
        with self.open_artifact(record, name) as stream:
            return stream.read()

    def open_artifact(self, record: TraceRecord | str, name: str) -> BinaryIO:
        """The same as a stream, which the caller closes. Raises `NotFound`."""
        record = self._record(record)
        try:
            return self.store.open(record.folder, encoding.artifact_name(name))
        except ConfigurationError:  # the archive's URL lacks its bucket
            raise
        except UsageError as error:  # what cannot be a name is not there
            raise NotFound(f"trace {record.reference} has no artifact {name!r}") from error

    def delete(self, record: TraceRecord | str) -> None:
        """Delete a trace, its record first: nobody finds half of it. Raises `NotFound` for an unknown reference."""
        record = self._record(record)
        self.index.delete([record.reference])
        self.store.delete(record.folder)

    def cleanup(self, *, now: datetime | None = None, dry_run: bool = False) -> int:
        """Delete the traces whose time is over, each judged by its own age; returns how many.

        Payloads that the index does not know are judged by their `record.json`, else by their
        reference and entries. With `dry_run` nothing is deleted.
        """
        now = now or datetime.now(timezone.utc)
        self._settle()
        if dry_run:
            return self.index.count_expired(now) + sum(1 for _ in self._forgotten(now))
        count = self._delete_expired(now)
        for record in self._forgotten(now):
            self._delete_payload(record)
            count += 1
        return count

    def reindex(self, *, progress: Callable[[int], None] | None = None) -> int:
        """Fill the index from the store; returns how many traces it holds for that.

        An index that cannot be read is made anew. Rows whose payload is gone stay as they are.
        `progress` is called with the count so far.
        """
        self._settle()
        self.index.repair()
        count = 0
        batch: list[TraceRecord] = []
        for record in stored_records(self.store):
            batch.append(record)
            if len(batch) >= _BATCH:
                count += self._put(batch)
                batch = []
                if progress:
                    progress(count)
        count += self._put(batch)
        if progress:
            progress(count)
        return count

    def setup(self) -> None:
        """Create what the store and the index need, never harming what is there."""
        self.store.setup()
        self.index.setup()

    def recover(self) -> int:
        """Ship what processes that died have left in the spool of this archive; returns how many traces."""
        if self.spool is None:
            return 0
        from trifle_otel.runtime import Troubles  # noqa: PLC0415 - reading needs nothing of what recording uses
        from trifle_otel.shipper import Shipper  # noqa: PLC0415
        from trifle_otel.spool import Spool  # noqa: PLC0415

        return Shipper(self.store, self.index, Spool(self.spool), Troubles(None)).adopt()

    def close(self) -> None:
        """Let go of connections. The archive may not be used afterwards."""
        self.index.close()
        self.store.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self) -> None:
        if self.before_reading is not None:
            self.before_reading()

    def _record(self, record: TraceRecord | str) -> TraceRecord:
        if isinstance(record, str):
            return self.find(record)
        self._settle()
        return record

    def _put(self, records: list[TraceRecord]) -> int:
        if records:
            self.index.put(records)
        return len(records)

    def _delete_expired(self, now: datetime) -> int:
        count = 0
        before: list[str] = []
        while records := self.index.expired(now):
            references = [record.reference for record in records]
            if references == before:
                raise DamagedArchive(f"the index {self.index!r} keeps what is deleted from it")
            before = references
            self.index.delete(references)
            for record in records:
                self._delete_payload(record)
            count += len(records)
        return count

    def _delete_payload(self, record: TraceRecord) -> None:
        """Delete the payload of a trace whose time is over; one that is not as it should be holds up no other."""
        try:
            self.store.delete(record.folder)
        except (DamagedArchive, UsageError) as error:
            _log.warning("the payload of %s is left where it is: %s", record.reference, error)

    def _forgotten(self, now: datetime) -> Iterable[TraceRecord]:
        """The traces in the store whose time is over and that the index does not know."""
        for folder in self.store.folders():
            try:
                if self.index.find(folder.reference) is None:
                    record = stored_record(self.store, folder)
                    if record.expires_at <= now:
                        yield record
            except (DamagedArchive, NotFound, UsageError):
                continue  # nothing tells its age: it stays


def _position(record: TraceRecord) -> Position:
    return Position((record.first_at - _EPOCH) // timedelta(microseconds=1) * 1000, record.reference)
