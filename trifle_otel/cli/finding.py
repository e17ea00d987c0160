"""A trace by its reference, or by the beginning of one that no other trace shares."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from trifle_otel.archive import Archive
from trifle_otel.errors import NotFound, UsageError
from trifle_otel.queries import MAX_LIMIT
from trifle_otel.records import TraceRecord
from trifle_otel.references import reference_time

LEAST_PREFIX = 4
_PAGES = 20
_SHOWN = 4
_SLACK = timedelta(seconds=5)  # a reference is made when its trace begins, give or take


def resolve(archive: Archive, reference: str) -> TraceRecord:
    """The record that is meant. Raises `NotFound`, and `UsageError` for the beginning of several references."""
    try:
        return archive.find(reference)
    except NotFound:
        if len(reference) < LEAST_PREFIX:
            least = f"the beginning of a reference has at least {LEAST_PREFIX} characters"
            raise NotFound(f"there is no trace {reference!r}; {least}") from None
    found = _beginning_with(archive, reference)
    if not found:
        raise NotFound(f"there is no trace {reference!r} in {archive.url}; `trifle-otel ls` lists the newest")
    if len(found) > 1:
        names = [record.reference for record in found[:_SHOWN]] + ["…"] * (len(found) > _SHOWN)
        raise UsageError(f"{reference!r} is the beginning of several references: {', '.join(names)}")
    return found[0]


def _beginning_with(archive: Archive, start: str) -> list[TraceRecord]:
    """The traces whose reference begins so: looked for among those of its time, else among the newest."""
    starts = (start, start.upper(), start.lower())
    for windows in (list(_times(start)), [(None, None)]):
        records = [record for window in windows for record in _traces(archive, *window)]
        found = {record.reference: record for record in records if record.reference.startswith(starts)}
        if found:
            return list(found.values())
    return []


def _traces(archive: Archive, since: datetime | None, until: datetime | None) -> Iterator[TraceRecord]:
    """The traces of that time, but no more than some thousands."""
    cursor = None
    for _ in range(_PAGES):
        page = archive.search(since=since, until=until, limit=MAX_LIMIT, cursor=cursor)
        yield from page.records
        cursor = page.cursor
        if cursor is None:
            return


def _times(start: str) -> Iterator[tuple[datetime, datetime]]:
    """From when to when the references were made that begin so: ULIDs and ObjectIds begin with their time."""
    for length, highest in ((26, "Z"), (24, "f")):
        if len(start) <= length:
            first = reference_time(start.ljust(length, "0"))
            last = reference_time(start.ljust(length, highest))
            try:
                if first is not None and last is not None:
                    yield first - _SLACK, last + _SLACK
            except OverflowError:  # of a far future, in which nothing was recorded
                continue
