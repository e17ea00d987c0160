"""The executions of a key just before and just after one, out of an index that only tells the newest first."""

from __future__ import annotations

from datetime import datetime, timedelta

from trifle_otel.archive import Archive
from trifle_otel.records import TraceRecord

_PAGE = 50
_TRIES = 24
_FIRST = timedelta(minutes=1)
_GROWTH = 8


def before(archive: Archive, record: TraceRecord, *, state: str | None = None) -> TraceRecord | None:
    """The last execution of the same key that began before this one; None where none is found near."""
    until = record.first_at + timedelta(microseconds=1)
    page = archive.search(segment=record.key, until=until, state=state, limit=_PAGE)
    return next((each for each in page.records if _is_other(each, record) and _at(each) < _at(record)), None)


def after(archive: Archive, record: TraceRecord) -> TraceRecord | None:
    """The first execution of the same key that began after this one; None where none is found near."""
    newest = archive.search(segment=record.key, limit=1).records
    last = newest[0].first_at if newest else record.first_at
    length, empty = _FIRST, timedelta()
    full: timedelta | None = None  # the shortest time with more in it than a page holds
    for _ in range(_TRIES):
        until = _later(record.first_at, length)
        page = archive.search(segment=record.key, since=record.first_at, until=until, limit=_PAGE)
        found = [each for each in page.records if _is_other(each, record) and _at(each) > _at(record)]
        if page.cursor is None and (found or until > last):
            return found[-1] if found else None  # the page has all of that time, the newest first
        if page.cursor is None:
            empty = length
        else:
            full = length
        length = length * _GROWTH if full is None else empty + (full - empty) / 2
    return None


def _at(record: TraceRecord) -> tuple[datetime, str]:
    return record.first_at, record.reference


def _is_other(record: TraceRecord, than: TraceRecord) -> bool:
    return record.key == than.key and record.reference != than.reference


def _later(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return datetime.max.replace(tzinfo=moment.tzinfo)
