"""What the list page is asked for, as search and tally: several paths, times as people give them, one box for all."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from starlette.datastructures import QueryParams

from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_cursor
from trifle_otel.errors import NotFound
from trifle_otel.queries import make_query
from trifle_otel.records import Page, Position, Query, TraceRecord
from trifle_otel.tallies import Tally, merged

PAGE = 50
MOST_CHIPS = 20
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_REFERENCE = re.compile(r"[0-9A-Za-z]{24,26}")
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(frozen=True, slots=True)
class Filters:
    """What is looked for, as it was given: times and durations are texts."""

    paths: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    every_tag: bool = False
    state: str = ""
    since: str = ""
    until: str = ""
    min_duration: str = ""
    trace_id: str = ""

    @classmethod
    def of(cls, params: QueryParams) -> Filters:
        """The filters in a query string."""
        return cls(
            _several(path.strip().strip("/") for path in params.getlist("path")),
            _several(params.getlist("tag")),
            params.get("tags") == "all",
            params.get("state", ""),
            params.get("since", "").strip(),
            params.get("until", "").strip(),
            params.get("min", "").strip(),
            params.get("trace_id", "").strip(),
        )

    def params(self) -> dict[str, str | tuple[str, ...]]:
        """These filters as a query string has them."""
        return {
            "path": self.paths,
            "tag": self.tags,
            "tags": "all" if self.every_tag else "",
            "state": self.state,
            "since": self.since,
            "until": self.until,
            "min": self.min_duration,
            "trace_id": self.trace_id,
        }

    def queries(self, *, limit: int = PAGE, cursor: str | None = None) -> list[Query]:
        """The searches that find it: one for each path. Raises `UsageError`, `InvalidCursor`."""
        query = make_query(
            any_tags=() if self.every_tag else self.tags,
            all_tags=self.tags if self.every_tag else (),
            state=self.state or None,
            since=self.since or None,
            until=self.until or None,
            min_duration=self.min_duration or None,
            trace_id=self.trace_id or None,
            limit=limit,
            cursor=cursor,
        )
        return [replace(query, segment=path) for path in _apart(self.paths)] or [query]

    @property
    def any(self) -> bool:
        """Whether anything is looked for."""
        return self != Filters()


def _several(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, values)))[:MOST_CHIPS]


def _apart(paths: Sequence[str]) -> list[str]:
    """Paths without those that lie below another one: then no trace is below two of them."""
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def search(archive: Archive, filters: Filters, *, limit: int = PAGE, cursor: str | None = None) -> Page:
    """A page of what is looked for, the newest first. Raises `UsageError`, `InvalidCursor`."""
    queries = filters.queries(limit=limit + 1, cursor=cursor)  # one more tells whether there is a next page
    settle(archive)
    found = [archive.index.search(query) for query in queries]
    newest = list(heapq.merge(*found, key=_position, reverse=True))
    records, more = newest[:limit], len(newest) > limit
    return Page(records, encode_cursor(_position(records[-1])) if more else None)


def tally(archive: Archive, filters: Filters) -> Tally:
    """How many there are over time, of any state."""
    queries = replace(filters, state="").queries()
    settle(archive)
    return merged(archive.index.tally(query) for query in queries)


def settle(archive: Archive) -> None:
    """Have what this process has just recorded in the index."""
    if archive.before_reading is not None:
        archive.before_reading()


def _position(record: TraceRecord) -> Position:
    return Position((record.first_at - _EPOCH) // timedelta(microseconds=1) * 1000, record.reference)


def understood(archive: Archive, text: str, filters: Filters) -> Filters | TraceRecord | None:
    """What was typed into the one box: a reference (its trace), a trace id, a tag or a path. None for nothing."""
    text = text.strip()
    if not text:
        return None
    if _REFERENCE.fullmatch(text):
        try:
            return archive.find(text)
        except NotFound:
            pass
    if _TRACE_ID.fullmatch(text):
        return replace(filters, trace_id=text.lower())
    path = text.strip("/")
    if path and _is_found(archive, Query(segment=path, limit=1)):
        return replace(filters, paths=(*filters.paths, path))
    if ":" in text or _is_found(archive, Query(any_tags=(text,), limit=1)):
        return replace(filters, tags=(*filters.tags, text))
    return replace(filters, paths=(*filters.paths, path)) if path else None


def _is_found(archive: Archive, query: Query) -> bool:
    settle(archive)
    return bool(archive.index.search(query))
