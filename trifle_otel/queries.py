"""What people give as a search (times ago, durations, a cursor) made into a `Query`, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from trifle_otel.encoding import decode_cursor, parse_time
from trifle_otel.errors import UsageError
from trifle_otel.records import TRACE_STATES, Query

MAX_LIMIT = 1000
MAX_TAGS = 100

_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|h|d|w)", re.ASCII)
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(ms|s|m|h|d|)", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MILLISECONDS = {"ms": 1, "": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def make_query(
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
    now: datetime | None = None,
) -> Query:
    """The query that a caller means, with the meanings of `Archive.search`. Raises `UsageError`, `InvalidCursor`."""
    if state is not None and state not in TRACE_STATES:
        raise UsageError(f"no such state: {state!r}; there are {', '.join(TRACE_STATES)}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"not a limit: {limit!r}; it is a whole number from 1 to {MAX_LIMIT}")
    now = now or datetime.now(timezone.utc)
    return Query(
        segment=segment.strip("/") or None if segment else None,
        any_tags=_tags(any_tags),
        all_tags=_tags(all_tags),
        state=state,
        since=None if since is None else parse_moment(since, now),
        until=None if until is None else parse_moment(until, now),
        min_duration=None if min_duration is None else parse_duration(min_duration),
        trace_id=trace_id.strip().lower() if trace_id else None,
        limit=limit,
        after=decode_cursor(cursor) if cursor else None,
    )


def parse_moment(value: datetime | str, now: datetime) -> datetime:
    """An aware time in UTC: from one, from ISO 8601 (UTC where it names no zone), or `3d` before `now`."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UsageError(f"the time {value} has no zone; give it one, as in datetime.now(timezone.utc)")
        try:
            return value.astimezone(timezone.utc)
        except OverflowError as error:
            raise UsageError(f"the time {value} is beyond the calendar in UTC") from error
    text = value.strip()
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(milliseconds=float(ago[1]) * _MILLISECONDS[ago[2]])
        return parse_time(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"not a time: {value!r}; give ISO 8601 (2026-01-31T12:00:00Z) or how long ago (90s, 15m, 1h, 3d, 2w)"
        ) from error


def parse_duration(value: int | float | str) -> int:
    """Whole milliseconds: from a number of them, or from text as `250ms`, `1.5s`, `2m`, `1h`."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if not found:
            raise UsageError(f"not a duration: {value!r}; give milliseconds, or as in 250ms, 1.5s, 2m, 1h")
        return round(float(found[1]) * _MILLISECONDS[found[2]])
    if not 0 <= value < 2**63:
        raise UsageError(f"not a duration: {value!r}; it is a number of milliseconds, 0 or more")
    return round(value)


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    found = (tags,) if isinstance(tags, str) else tuple(dict.fromkeys(tags))
    if len(found) > MAX_TAGS:
        raise UsageError(f"a search for {len(found)} tags; {MAX_TAGS} are the most")
    return found
