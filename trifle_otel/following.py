"""What is new in an archive since the last look: traces that came or changed their state, or lines of one trace.

Nothing here waits: whoever follows decides how often to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from trifle_otel.archive import Archive
from trifle_otel.errors import DamagedArchive
from trifle_otel.reading import part_names, read_entries
from trifle_otel.records import Entry, TraceRecord

BACK = timedelta(hours=1)
"""How long ago a trace may have begun that is noticed when it comes: one that is written at its end comes late."""
QUICK, DEEP = 100, 1_000
"""Records of a page, of a quick look and of one through all of that time."""
MOST_PAGES = 20
DEEP_EVERY = 30
"""So many looks lie between two through all of that time; the others stop where nothing is new any more."""
ASKED = 20
"""How many traces that ran are asked for at each look, in turn."""


def _now() -> datetime:
    return datetime.now(timezone.utc)


class NewTraces:
    """The traces that a search finds, as they come, and once more when one that ran has ended.

    Args:
        archive: where to look.
        conditions: as `Archive.search` calls them; without `since`, `until`, `limit` and `cursor`.
        now: the clock, aware.
    """

    def __init__(
        self, archive: Archive, conditions: dict[str, Any] | None = None, *, now: Callable[[], datetime] = _now
    ) -> None:
        self.archive = archive
        self.conditions = conditions or {}
        self.now = now
        self.looks = 0
        self._known: dict[str, TraceRecord] = {}
        self._not_before = datetime.min.replace(tzinfo=timezone.utc)

    def begin(self, count: int) -> list[TraceRecord]:
        """Take what is there as known; gives so many of the newest, the oldest first. Raises `UsageError`."""
        newest = self.archive.search(**self.conditions, limit=max(min(count, DEEP), 1)).records[:count]
        records = [record for page in self._pages(DEEP) for record in page]
        if len(records) >= DEEP * MOST_PAGES:  # what lies deeper is not known, and may come into sight later
            self._not_before = records[-1].first_at
        self._known.update((record.reference, record) for record in (*newest, *records))
        return newest[::-1]

    def look(self) -> list[TraceRecord]:
        """The traces that came, and those that changed their state, since the last look; the oldest first."""
        self.looks += 1
        deep = self.looks % DEEP_EVERY == 0
        found: dict[str, TraceRecord] = {}
        for page in self._pages(DEEP if deep else QUICK):
            news = [record for record in page if self._is_new(record)]
            found.update((record.reference, record) for record in news)
            if not news and not deep:
                break
        found.update((record.reference, record) for record in self._ended() if record.reference not in found)
        self._known.update(found)
        self._forget()
        return sorted(found.values(), key=lambda record: (record.first_at, record.reference))

    def _pages(self, size: int) -> Iterator[list[TraceRecord]]:
        since, cursor = self.now() - BACK, None
        for _ in range(MOST_PAGES):
            page = self.archive.search(**self.conditions, since=since, limit=size, cursor=cursor)
            yield page.records
            cursor = page.cursor
            if cursor is None:
                return

    def _is_new(self, record: TraceRecord) -> bool:
        known = self._known.get(record.reference)
        if known is None:
            return record.first_at >= self._not_before
        return known.state != record.state

    def _ended(self) -> list[TraceRecord]:
        """Of those that ran some that have ended, wherever they are in the search's order by now."""
        running = [reference for reference, record in self._known.items() if not record.finished]
        ended = []
        for reference in running[:ASKED]:
            record = self.archive.index.find(reference)
            before = self._known.pop(reference)
            if record is not None:  # it was not thrown away
                self._known[reference] = before  # behind the others: the next look asks for those
                if record.finished:
                    ended.append(record)
        wanted = self.conditions.get("state")
        if wanted is None:
            return ended
        self._known.update((record.reference, record) for record in ended)
        return [record for record in ended if record.state == wanted]

    def _forget(self) -> None:
        """What began too long ago to be found again, unless it runs."""
        limit = self.now() - 2 * BACK
        old = [reference for reference, record in self._known.items() if record.finished and record.first_at < limit]
        for reference in old:
            del self._known[reference]


class NewLines:
    """The lines of one trace, as they come.

    Attributes:
        record: as it was at the last look.
        ended: whether the trace has ended, and all its lines have been given.
        damaged: what could not be read so far.
    """

    def __init__(self, archive: Archive, record: TraceRecord) -> None:
        self.archive = archive
        self.record = record
        self.ended = False
        self.damaged: list[DamagedArchive] = []
        self._parts = 0  # that were read
        self._looked_at: TraceRecord | None = None

    def look(self) -> list[Entry]:
        """The lines since the last look. Raises `NotFound` for a trace that was thrown away meanwhile."""
        self.record = self.archive.find(self.record.reference)
        if self.record == self._looked_at:
            return []
        before = self._parts, len(self.damaged)
        try:
            entries = list(self._read())
        except BaseException:  # out of reach: nothing of this look has been given
            self._parts = before[0]
            del self.damaged[before[1] :]
            raise
        self._looked_at = self.record
        self.ended = self.record.finished
        return entries

    def _read(self) -> Iterator[Entry]:
        """The lines of the parts that came. A part is stored before its record says so: what is there is read."""
        store, folder = self.archive.store, self.record.folder
        names = part_names(store.names(folder))
        for number in sorted(number for number in names if number > self._parts):
            self._miss(self._parts + 1, number - 1)
            found = read_entries(store, folder, 0, [names[number]])
            self.damaged += found.damaged
            self._parts = number
            yield from found
        self._miss(self._parts + 1, self.record.parts)

    def _miss(self, first: int, last: int) -> None:
        """Note that parts are missing."""
        if first <= last:
            which = f"part {first} is" if first == last else f"parts {first} to {last} are"
            self.damaged.append(DamagedArchive(f"{which} missing of trace {self.record.reference}"))
            self._parts = last
