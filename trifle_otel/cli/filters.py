"""The options that narrow a search, for every command that is about several traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cyclopts import Parameter

from trifle_otel.archive import Archive
from trifle_otel.cli.options import Many
from trifle_otel.errors import UsageError
from trifle_otel.queries import MAX_LIMIT, make_query
from trifle_otel.records import Page, Query, TraceRecord


@Parameter(name="*")
@dataclass(frozen=True)
class Filters:
    """Which traces: those for which all that is given holds."""

    segment: str | None = None
    """The key, or the path that it begins with (prices/landed)."""
    tag: Many = None
    """One of these tags; may be repeated."""
    all_tags: Many = None
    """Every one of these tags; may be repeated."""
    state: str | None = None
    """running, success, warning or error."""
    since: str | None = None
    """Began at that time or later: ISO 8601, or how long ago (90s, 15m, 1h, 3d, 2w)."""
    until: str | None = None
    """Began before that time."""
    min_duration: str | None = None
    """Took at least this long: milliseconds, or as in 250ms, 1.5s, 2m."""
    trace_id: str | None = None
    """OpenTelemetry's trace id, 32 hex digits."""

    @property
    def conditions(self) -> dict[str, Any]:
        """The same as `Archive.search` calls them."""
        return {
            "segment": self.segment,
            "any_tags": self.tag or (),
            "all_tags": self.all_tags or (),
            "state": self.state,
            "since": self.since,
            "until": self.until,
            "min_duration": self.min_duration,
            "trace_id": self.trace_id,
        }

    def page(self, archive: Archive, *, limit: int = MAX_LIMIT, cursor: str | None = None) -> Page:
        """A page of what is found, the newest first. Raises `UsageError` for what is not allowed."""
        return archive.search(**self.conditions, limit=limit, cursor=cursor)

    def query(self) -> Query:
        """The same as an index takes it. Raises `UsageError`."""
        return make_query(**self.conditions)

    def records(self, archive: Archive, most: int | None = None) -> Iterator[TraceRecord]:
        """All that is found, or as many as `most`, the newest first, page by page. Raises `UsageError`, at once."""
        if most is not None and most < 1:
            raise UsageError(f"not a limit: {most}; it is a whole number above 0")
        return self._records(archive, self.page(archive, limit=_least(most)), most)

    def _records(self, archive: Archive, page: Page, most: int | None) -> Iterator[TraceRecord]:
        while True:
            yield from page.records
            most = None if most is None else most - len(page.records)
            if page.cursor is None or most == 0:
                return
            page = self.page(archive, limit=_least(most), cursor=page.cursor)


def _least(most: int | None) -> int:
    return MAX_LIMIT if most is None else min(most, MAX_LIMIT)
