"""What the assembler holds and what it makes: spans that hang together, and the executions that they become.

Plain data and what can be told of it; when something is done with it is `assemble`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from trifle_otel.span_data import CONSUMER, SERVER, SpanData

NO_SPAN: Final = "0" * 16
"""An id that stands for none."""

KEPT_ROOTS: Final = 100
"""Executions of a process in a trace that spans whose parent never comes are compared with."""

Closed = Literal["quiet", "late", "time", "memory", "flush"]
"""Why an execution was closed: its root came and things were quiet; its spans came after it had been; nothing came for
long; too much was held; somebody asked for it."""

_NO_TRACE = "0" * 32
_CHARACTERS = 11  # bits: as many of its attributes' characters count as one span more
_GROUPS = 64  # processes of a trace that are remembered although they have nothing that waits


class Origin(NamedTuple):
    """What tells an execution from others: ids of its root, or of its first span where that never came; and its time.

    Times are Unix time in nanoseconds, as they were sent.
    """

    trace_id: str
    span_id: str
    start_ns: int
    end_ns: int
    ours: bool


@dataclass(slots=True, eq=False)
class Execution:
    """A local root and what hangs on it.

    Attributes:
        root: None where it never came.
        spans: all of them, the root included, in no order.
        missing: ids of spans that are named as parents and never came.
        closed: why.
        belongs_to: the execution that was closed before these spans came, or that they lie in by their time.
        earlier: executions that were closed before a span came here that theirs hang on.
        ours: whether spans of our own library are among them.
    """

    root: SpanData | None
    spans: list[SpanData]
    missing: tuple[str, ...] = ()
    closed: Closed = "quiet"
    belongs_to: Origin | None = None
    earlier: tuple[Origin, ...] = ()
    ours: bool = False

    @property
    def complete(self) -> bool:
        """Whether its root came, and no limit closed it."""
        return self.root is not None and self.closed not in ("time", "memory")

    @property
    def key_span(self) -> SpanData:
        """The root; where there is none, the span that began first."""
        return self.root or min(self.spans, key=_by_start)

    @property
    def origin(self) -> Origin:
        """The same spans have the same, in whatever order they came."""
        span = self.key_span
        return Origin(span.trace_id, span.span_id, span.start_ns, span.end_ns, self.ours)


class Trace:
    """What is known of a trace id: `known` has the fragment of each span that came, or that was named as a parent."""

    __slots__ = ("groups", "known", "trace_id")

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id
        self.known: dict[str, Fragment] = {}
        self.groups: dict[int, Group] = {}


class Group:
    """One process in a trace: fragments that have no root yet, and the last executions that were delivered."""

    __slots__ = ("last", "orphans", "roots", "timed", "trace", "used")

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.orphans: dict[Fragment, None] | None = None  # None where there are none
        self.roots: deque[Origin] | None = None
        self.last = 0.0
        self.timed = False
        self.used = False  # whether a fragment was ever of it


class Fragment:
    """Spans that hang together, on one thing: their local root, what was delivered, or a parent that is missing."""

    __slots__ = (
        "belongs_to",
        "delivered",
        "earlier",
        "group",
        "ids",
        "into",
        "last",
        "late",
        "missing",
        "origin",
        "ours",
        "root",
        "spans",
        "timed",
        "weight",
    )

    def __init__(self, group: Group) -> None:
        self.group = group
        group.used = True
        self.into: Fragment | None = None  # what it was merged into
        self.spans: list[SpanData] = []
        self.missing: set[str] = set()
        self.root: SpanData | None = None
        self.belongs_to: Origin | None = None
        self.earlier: tuple[Origin, ...] = ()
        self.ours = False
        self.last = 0.0
        self.weight = 0
        self.timed = False
        self.delivered = False
        self.origin: Origin | None = None  # once it is delivered, as the rest:
        self.ids: tuple[str, ...] = ()
        self.late: Fragment | None = None  # what came later


def forget(fragment: Fragment) -> None:
    """Forget that the spans of a fragment were delivered."""
    trace = fragment.group.trace
    known = trace.known
    for span_id in (*fragment.ids, *fragment.missing):
        other = known.get(span_id)
        if other is not None and found(other) is fragment:
            del known[span_id]
    if len(trace.groups) > _GROUPS:
        trace.groups = {key: group for key, group in trace.groups.items() if group.orphans is not None}


def found(fragment: Fragment) -> Fragment:
    """What a fragment is part of by now."""
    while fragment.into is not None:
        fragment = fragment.into
    return fragment


def around(orphan: Fragment, group: Group) -> Origin | None:
    """The delivered execution of the same process whose time encloses these spans: the one that began last."""
    if not group.roots:
        return None
    start, end = min(map(_start, orphan.spans)), max(span.end_ns for span in orphan.spans)
    enclosing = [origin for origin in group.roots if origin.start_ns <= start and end <= origin.end_ns]
    return max(enclosing, key=_start, default=None)


def _start(thing: SpanData | Origin) -> int:
    return thing.start_ns


def _by_start(span: SpanData) -> tuple[int, str]:
    return span.start_ns, span.span_id


def _by_name(pair: tuple[Any, Any]) -> str:
    return str(pair[0])


def has_ids(span: SpanData) -> bool:
    """Whether a span can be told from others."""
    trace_id, span_id = span.trace_id, span.span_id
    return len(trace_id) == 32 and len(span_id) == 16 and span_id != NO_SPAN and trace_id != _NO_TRACE


def digest(resource: Mapping[str, Any]) -> int:
    """A number that is the same for the same resource, in this process."""
    try:
        return hash(repr(sorted(resource.items(), key=_by_name)))
    except ValueError:  # an integer of more digits than Python writes out
        return hash(repr(sorted(map(str, resource))))


def is_local_root(span: SpanData) -> bool:
    """Whether a span is the first of its process: its parent is elsewhere, or nowhere."""
    parent = span.parent_id
    if not parent or span.remote is True or parent in (span.span_id, NO_SPAN):
        return True
    return span.remote is None and span.kind in (SERVER, CONSUMER)


def weight(span: SpanData) -> int:
    """About how much it takes, in spans of the usual size."""
    return 1 + (_characters(span) >> _CHARACTERS) if span.attributes or span.events else 1


def _characters(span: SpanData) -> int:
    """About how much its attributes and events take."""
    size = _size(span.attributes.values())
    for event in span.events:
        size += 256
        if event.attributes:
            size += _size(event.attributes.values())
    return size


def _size(values: Iterable[Any]) -> int:
    size = 0
    for value in values:
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        elif kind is list or kind is tuple:
            size += 64 + _size(value)
        elif kind is dict:
            size += 64 + _size(value.values())
        else:
            size += 32
    return size
