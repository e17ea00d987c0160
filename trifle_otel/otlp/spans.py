"""OTLP's trace requests, read: bytes (protobuf or JSON) -> a request -> `SpanData`.

What senders get wrong about single spans is left as they sent it, for whoever takes the spans to judge.
How OTLP's JSON differs from protobuf's is `otlp.from_json`'s business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from trifle_otel import span_data
from trifle_otel.otlp.from_json import MalformedRequest, request_from_json, value_from_json
from trifle_otel.otlp.repair import mended
from trifle_otel.span_data import SpanData, SpanEvent, SpanLink

__all__ = [
    "JSON",
    "PROTOBUF",
    "MalformedRequest",
    "UnsupportedContent",
    "encoding_of",
    "parse_request",
    "spans_of",
    "value_from_json",
]

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

_MEANINGS = {PROTOBUF: PROTOBUF, "application/protobuf": PROTOBUF, JSON: JSON}
_HAS_REMOTE, _REMOTE = 0x100, 0x200
_NO_PARENT = (b"", bytes(8))
_KINDS: Mapping[int, str] = {number + 1: kind for number, kind in enumerate(span_data.KINDS)}
_STATES: Mapping[int, str] = {Status.STATUS_CODE_OK: span_data.OK, Status.STATUS_CODE_ERROR: span_data.FAILED}


class UnsupportedContent(MalformedRequest):
    """The content type is none of OTLP's; the message names those."""


def encoding_of(content_type: str) -> str:
    """`PROTOBUF` or `JSON`, by the value of a Content-Type header. Raises `UnsupportedContent`."""
    kind, _, parameters = content_type.partition(";")
    encoding = _MEANINGS.get(kind.strip().lower())
    charset = parameters.lower().replace(" ", "").replace('"', "")
    if encoding is None or ("charset=" in charset and "charset=utf-8" not in charset):
        raise UnsupportedContent(f"content type {content_type[:100]!r} is not taken; it is {PROTOBUF} or {JSON}")
    return encoding


def parse_request(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    """The request that a body holds, by the value of its Content-Type header.

    Texts that are not UTF-8 are repaired. JSON is OTLP's: ids in hex, 64-bit integers as texts or numbers,
    unknown fields ignored. Raises `UnsupportedContent`, and `MalformedRequest` for what cannot be read.
    """
    if encoding_of(content_type) == JSON:
        return request_from_json(body)
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        try:
            return mended(body)  # SDKs that do not check their texts send what is not UTF-8
        except DecodeError:
            raise MalformedRequest(f"the body is no OTLP trace request in protobuf: {error}") from error


def spans_of(request: ExportTraceServiceRequest) -> list[SpanData]:
    """All spans of a request, in its order. Attributes that are named twice keep their last value."""
    return list(_each_span(request))


def _each_span(request: ExportTraceServiceRequest) -> Iterator[SpanData]:
    binary, trace_id = b"", ""
    for of_resource in request.resource_spans:
        resource = _resource(of_resource.resource)
        for of_scope in of_resource.scope_spans:
            scope = sys.intern(of_scope.scope.name)
            for span in of_scope.spans:
                if span.trace_id != binary:  # spans that come together are often of one trace: they share its id
                    binary = span.trace_id
                    trace_id = binary.hex()
                yield _span(span, trace_id, scope, resource)


def _resource(resource: Resource) -> Mapping[str, Any]:
    return _attributes(resource.attributes)


def _span(span: Span, trace_id: str, scope: str, resource: Mapping[str, Any]) -> SpanData:
    flags = span.flags
    parent = span.parent_span_id
    status = span.status
    events, links = span.events, span.links
    return SpanData(
        trace_id,
        span.span_id.hex(),
        None if parent in _NO_PARENT else parent.hex(),
        sys.intern(span.name),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        bool(flags & _REMOTE) if flags & _HAS_REMOTE else None,
        _KINDS.get(span.kind, span_data.INTERNAL),
        _attributes(span.attributes),
        [_event(event) for event in events] if events else [],
        [_link(link) for link in links] if links else [],
        _STATES.get(status.code, span_data.UNSET),
        status.message,
        scope,
        resource,
        span.dropped_events_count,
        span.dropped_attributes_count,
        span.trace_state,
    )


def _event(event: Span.Event) -> SpanEvent:
    return SpanEvent(sys.intern(event.name), event.time_unix_nano, _attributes(event.attributes))


def _link(link: Span.Link) -> SpanLink:
    return SpanLink(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    # Names are few and come with each span: interned, they are kept once.
    return {sys.intern(pair.key): pair.value.string_value or _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    """The value of any type, None where there is none. The depth is bounded by what parsed it."""
    kind = value.WhichOneof("value")
    if kind is None or kind.endswith("strindex"):  # an index into a table that traces do not have
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)
