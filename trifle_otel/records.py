"""Plain data that passes between recording, stores, indexes and readers.

`Entry` is a line of a trace, `TraceRecord` its row in the index, `Query` and `Page` are a
search and its answer, `Folder` is where a trace's payload lies. No I/O and no encoding here:
bytes are `encoding`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

RUNNING = "running"
SUCCESS = "success"
WARNING = "warning"
ERROR = "error"
DEBUG = "debug"  # of a line
TRACE_STATES = (RUNNING, SUCCESS, WARNING, ERROR)
COUNTED_STATES = ("success", "warning", "error", "debug")
COUNTED_TYPES = ("text", "head", "raw", "media")

OPENED = " ↴"  # ends the line that opens a block
CLOSED = " ↵"  # ends the line that closes it
RESULT = "↳ "  # begins the line with a block's result


def empty_counters() -> dict[str, Any]:
    """Counters of a trace without entries, in the shape that the format asks for."""
    return {
        "states": dict.fromkeys(COUNTED_STATES, 0),
        "types": dict.fromkeys(COUNTED_TYPES, 0),
        "max_level": 0,
    }


class Entry:
    """One line of a trace: a view of the JSON object that is stored for it.

    Keys that this library does not know are kept in `stored`, so that an entry can be handed
    on unchanged. Values of a wrong type (archives come from outside) are read as the default.
    """

    __slots__ = ("stored",)

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored

    @property
    def at(self) -> datetime:
        """When it was recorded: aware, UTC; to the microsecond where `ns` is there, else to the second."""
        ns = self.ns
        try:
            if ns is not None:
                return _EPOCH + timedelta(microseconds=ns // 1000)
            return _EPOCH + timedelta(seconds=_int(self.stored.get("at")) or 0)
        except OverflowError:
            return _EPOCH

    @property
    def message(self) -> str:
        """The text; for `media` the artifact's name."""
        message = self.stored.get("message", "")
        return message if isinstance(message, str) else "" if message is None else str(message)

    @property
    def state(self) -> str:
        """`success`, `warning`, `error`, `debug`, or whatever else was stored."""
        state = self.stored.get("state")
        return state if isinstance(state, str) else ""

    @property
    def type(self) -> str:
        """`text`, `head`, `raw` (a result) or `media` (an artifact or an offloaded message)."""
        kind = self.stored.get("type")
        return kind if isinstance(kind, str) else "text"

    @property
    def level(self) -> int:
        """Nesting depth, 0 at the top and where none is stored."""
        level = self.stored.get("level")
        return level if type(level) is int and level > 0 else 0

    @property
    def size(self) -> int | None:
        """Bytes of the artifact, for `media` alone."""
        return _int(self.stored.get("size"))

    @property
    def ns(self) -> int | None:
        """Unix time in nanoseconds; None in archives that other libraries wrote."""
        return _int(self.stored.get("ns"))

    @property
    def span(self) -> str | None:
        """The id (16 hex digits) of the block that the line belongs to; None in others' archives."""
        span = self.stored.get("span")
        return span if isinstance(span, str) else None

    @property
    def offloaded(self) -> bool:
        """Whether it stands for a message that is stored as a file beside: artifacts of callers have no level."""
        return self.type == "media" and "level" in self.stored and self.message.startswith("part_row_")

    def __eq__(self, other: object) -> bool:
        return self.stored == other.stored if isinstance(other, Entry) else NotImplemented

    def __hash__(self) -> int:
        message = self.stored.get("message")  # values of other types may be equal, and have no hash
        return hash(message) if isinstance(message, str) else 0

    def __repr__(self) -> str:
        return f"Entry({self.stored!r})"


class Folder(NamedTuple):
    """Where the payload of one trace lies, in any store."""

    retention: int
    key: str
    reference: str
    bucket: str | None = None

    @property
    def path(self) -> str:
        """`<retention>/<key>/<reference>`, as files are laid out; object stores add their prefix."""
        return f"{self.retention}/{self.key}/{self.reference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """The index's row for one trace, with the field names of the Trifle format.

    Times are aware datetimes in UTC (microseconds), `duration` is in milliseconds, `retention`
    in days. `length` and `parts` count what is stored so far.
    """

    reference: str
    key: str
    segments: tuple[str, ...]
    state: str = RUNNING
    tags: tuple[str, ...] = ()
    meta: Any = None
    context: Mapping[str, Any] = field(default_factory=dict)
    duration: int = 0
    counters: Mapping[str, Any] = field(default_factory=empty_counters)
    length: int = 0
    parts: int = 0
    first_at: datetime
    last_at: datetime
    retention: int
    expires_at: datetime
    bucket_name: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the trace has ended."""
        return self.state != RUNNING

    @property
    def folder(self) -> Folder:
        """Where its payload lies."""
        return Folder(self.retention, self.key, self.reference, self.bucket_name)

    @property
    def trace_id(self) -> str | None:
        """The OpenTelemetry trace id, 32 hex digits, where the context holds one."""
        return _text(self.context.get("trace_id"))

    @property
    def span_id(self) -> str | None:
        """The id of the trace's own span, 16 hex digits, where the context holds one."""
        return _text(self.context.get("span_id"))


class Position(NamedTuple):
    """The place of a record in the order of a search: what a cursor holds."""

    first_at_ns: int
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A search: all that is given must hold. Newest first (`first_at`, then `reference`, descending)."""

    segment: str | None = None
    any_tags: tuple[str, ...] = ()
    all_tags: tuple[str, ...] = ()
    state: str | None = None
    since: datetime | None = None  # inclusive, on first_at
    until: datetime | None = None  # exclusive
    min_duration: int | None = None  # milliseconds, inclusive
    trace_id: str | None = None
    limit: int = 20
    after: Position | None = None  # the last record of the page before


@dataclass(frozen=True, slots=True)
class Page:
    """What a search found, and the cursor of the next page (None where this is the last)."""

    records: list[TraceRecord]
    cursor: str | None = None


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _int(value: object) -> int | None:
    return value if type(value) is int else None  # a boolean is none


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
