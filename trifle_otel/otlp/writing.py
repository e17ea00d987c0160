"""Spans as OTLP's trace requests, grouped by resource and scope, each request within a size.

What cannot stand in OTLP is made to: texts with lone surrogates, integers of more than 64 bits, values that
are nested too deeply. Reading is `otlp.spans`' business, sending `otlp.sending`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from trifle_otel import span_data
from trifle_otel.span_data import SpanData, SpanEvent, SpanLink
from trifle_otel.strict_json import to_json

MAX_DEPTH = 16
"""Values that are nested deeper are written as JSON: parsers of protobuf refuse a hundred messages in messages."""

_KINDS = {kind: number + 1 for number, kind in enumerate(span_data.KINDS)}
_STATES = {span_data.OK: Status.STATUS_CODE_OK, span_data.FAILED: Status.STATUS_CODE_ERROR}
_HAS_REMOTE, _REMOTE = 0x100, 0x200
_MOST_64, _MOST_32 = 2**64 - 1, 2**32 - 1
_FRAME = 16  # bytes that a message takes in the one around it, at most: its tag, its length, and theirs growing


class Batch(NamedTuple):
    """A request, the spans that it was made of, and how many bytes it has."""

    request: ExportTraceServiceRequest
    spans: list[SpanData]
    size: int


def request_of(spans: Iterable[SpanData]) -> ExportTraceServiceRequest:
    """One request of all these spans, in their order within each resource and scope.

    Raises `ValueError` for an id that is not hex digits.
    """
    packer = _Packer()
    for span in spans:
        packer.add(span, _span_message(span))
    return packer.request


def batches_of(spans: Iterable[SpanData], *, most_bytes: int, most_spans: int) -> Iterator[Batch]:
    """Requests of at most so many bytes and spans, one after the other; each is made when it is asked for.

    A span that is larger than that alone is a request of its own: whoever sends it knows its `size`.
    Raises `ValueError` for an id that is not hex digits.
    """
    packer = _Packer()
    for span in spans:
        message = _span_message(span)
        added = packer.cost(span, message)
        if packer.spans and (packer.size + added > most_bytes or len(packer.spans) >= most_spans):
            yield packer.batch()
            packer = _Packer()
        packer.add(span, message)
    if packer.spans:
        yield packer.batch()


class _Packer:
    """A request that grows by one span at a time, and an upper bound of its size."""

    def __init__(self) -> None:
        self.request = ExportTraceServiceRequest()
        self.spans: list[SpanData] = []
        self.size = 0
        self._resources: dict[bytes, ResourceSpans] = {}
        self._scopes: dict[tuple[bytes, str], ScopeSpans] = {}
        # By identity, since one object serves many spans; the object is held, so that its id is not used again.
        self._known: dict[int, tuple[Mapping[str, Any], bytes]] = {}

    def add(self, span: SpanData, message: Span) -> None:
        self.size += self.cost(span, message)
        self._group(span).spans.append(message)
        self.spans.append(span)

    def cost(self, span: SpanData, message: Span) -> int:
        """Bytes that the span adds, its resource and scope included where they are not there yet."""
        size = message.ByteSize() + _FRAME
        resource = self._resource(span)
        if resource not in self._resources:
            size += len(resource) + 2 * _FRAME
        if (resource, span.scope) not in self._scopes:
            size += len(span.scope.encode("utf-8", "replace")) + 3 * _FRAME
        return size

    def batch(self) -> Batch:
        return Batch(self.request, self.spans, self.request.ByteSize())

    def _resource(self, span: SpanData) -> bytes:
        known = self._known.get(id(span.resource))
        if known is None:
            resource = Resource()
            _add_attributes(resource.attributes, span.resource)
            known = self._known[id(span.resource)] = span.resource, resource.SerializeToString(deterministic=True)
        return known[1]

    def _group(self, span: SpanData) -> ScopeSpans:
        resource = self._resource(span)
        group = self._scopes.get((resource, span.scope))
        if group is None:
            of_resource = self._resources.get(resource)
            if of_resource is None:
                of_resource = self._resources[resource] = self.request.resource_spans.add()
                of_resource.resource.ParseFromString(resource)
            group = self._scopes[resource, span.scope] = of_resource.scope_spans.add()
            group.scope.name = _text(span.scope)
        return group


def _span_message(span: SpanData) -> Span:
    message = Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        name=_text(span.name),
        kind=_KINDS.get(span.kind, 0),  # type: ignore[arg-type] # a number is taken, and the stubs want the enumeration
        start_time_unix_nano=_bounded(span.start_ns, _MOST_64),
        end_time_unix_nano=_bounded(span.end_ns, _MOST_64),
        dropped_attributes_count=_bounded(span.dropped_attributes, _MOST_32),
        dropped_events_count=_bounded(span.dropped_events, _MOST_32),
        trace_state=_text(span.trace_state),
    )
    if span.remote is not None:
        message.flags = _HAS_REMOTE | (_REMOTE if span.remote else 0)
    if span.status in _STATES:
        message.status.code = _STATES[span.status]
    if span.description:
        message.status.message = _text(span.description)
    _add_attributes(message.attributes, span.attributes)
    for event in span.events:
        _add_event(message, event)
    for link in span.links:
        _add_link(message, link)
    return message


def _add_event(message: Span, event: SpanEvent) -> None:
    added = message.events.add(name=_text(event.name), time_unix_nano=_bounded(event.ns, _MOST_64))
    _add_attributes(added.attributes, event.attributes)


def _add_link(message: Span, link: SpanLink) -> None:
    added = message.links.add(trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id))
    _add_attributes(added.attributes, link.attributes)


def _add_attributes(into: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        pair: KeyValue = into.add()
        pair.key = _text(name)
        _set_value(pair.value, value, 0)


def _set_value(into: AnyValue, value: Any, depth: int) -> None:
    """Write a value of any type; None is no value at all."""
    if isinstance(value, str):
        into.string_value = _text(value)
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, int):
        _set_integer(into, value)
    elif isinstance(value, float):
        into.double_value = value
    elif isinstance(value, bytes):
        into.bytes_value = value
    elif value is not None:
        _set_nested(into, value, depth)


def _set_integer(into: AnyValue, value: int) -> None:
    if -(2**63) <= value < 2**63:
        into.int_value = value
    else:
        into.string_value = to_json(value).decode()


def _set_nested(into: AnyValue, value: Any, depth: int) -> None:
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        into.kvlist_value.SetInParent()
        for name, inner in value.items():
            pair = into.kvlist_value.values.add(key=_text(str(name)))
            _set_value(pair.value, inner, depth + 1)
    elif depth < MAX_DEPTH and isinstance(value, list | tuple):
        into.array_value.SetInParent()
        for inner in value:
            _set_value(into.array_value.values.add(), inner, depth + 1)
    else:
        into.string_value = to_json(value).decode()


def _text(text: str) -> str:
    """A text that protobuf takes: a lone surrogate becomes its escape."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _bounded(number: int, most: int) -> int:
    return min(max(number, 0), most)
