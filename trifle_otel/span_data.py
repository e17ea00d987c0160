"""A finished span as plain data, wherever it came from: the SDK of this process, OTLP, or an archive.

`assemble` makes executions of them, `otlp_spans` reads and writes them as OTLP. Nothing is judged
here: a span of a hostile sender is as odd as it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INTERNAL = "INTERNAL"
SERVER = "SERVER"
CLIENT = "CLIENT"
PRODUCER = "PRODUCER"
CONSUMER = "CONSUMER"
KINDS = (INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER)

UNSET = "UNSET"
OK = "OK"
FAILED = "ERROR"


@dataclass(slots=True)
class SpanEvent:
    """An event of a span: `ns` is Unix time in nanoseconds."""

    name: str
    ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class SpanLink:
    """Another span that a span names: ids as 32 and 16 hex digits."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class SpanData:
    """A span that has ended.

    Attributes:
        trace_id: 32 hex digits in lower case.
        span_id: 16 hex digits in lower case.
        parent_id: the parent's span id; None for the root of a distributed trace.
        remote: whether the parent is of another process; None where nobody says.
        name: the span's name.
        kind: one of `KINDS`.
        start_ns: Unix time in nanoseconds.
        end_ns: likewise.
        attributes: values are texts, numbers, booleans, bytes, None, and lists and mappings of these.
        events: in the order in which they were added.
        links: other spans that it names.
        status: `UNSET`, `OK` or `ERROR`.
        description: of the status: what went wrong.
        scope: name of the instrumentation that made it.
        resource: attributes of the process that it comes from; one object for many spans.
        dropped_events: how many events its limits dropped.
        dropped_attributes: how many attributes its limits dropped.
        trace_state: W3C `tracestate`, as it was sent.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    remote: bool | None = None
    kind: str = INTERNAL
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: list[SpanEvent] = field(default_factory=list)
    links: list[SpanLink] = field(default_factory=list)
    status: str = UNSET
    description: str = ""
    scope: str = ""
    resource: Mapping[str, Any] = field(default_factory=dict)
    dropped_events: int = 0
    dropped_attributes: int = 0
    trace_state: str = ""
