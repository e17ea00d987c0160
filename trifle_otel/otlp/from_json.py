"""OTLP's JSON as a request. It is not protobuf's JSON: ids are hex, enumerations numbers, unknown fields ignored.

See https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. Written out for traces, since protobuf's own
parser would refuse the ids, and takes many times as long.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from trifle_otel.errors import UsageError
from trifle_otel.strict_json import from_json, parse_quickly

MAX_DEPTH = 90
"""Messages in messages that a value consists of. Protobuf allows 100, those around the value included: what is deeper
could be written, and never be read again."""

_LIST, _MAPPING = 2, 3  # messages that lie between a value and the values in it

_SHOWN = 60  # characters of a wrong value in a message


class MalformedRequest(UsageError):
    """The body of an OTLP request cannot be read; sending it again does not help."""


def request_from_json(body: bytes) -> ExportTraceServiceRequest:
    """The request that a JSON text holds. Raises `MalformedRequest`."""
    return message_from_json(value_from_json(body))


def value_from_json(body: bytes) -> Any:
    """What a JSON text holds. Raises `MalformedRequest`.

    Texts that are not UTF-8 are repaired, and lone surrogates: SDKs send them as they are in names of files, say.
    """
    try:
        return parse_quickly(body)
    except ValueError as error:
        try:
            return from_json(body.decode("utf-8", "replace").encode())
        except ValueError:
            raise MalformedRequest(f"the body is not JSON in UTF-8: {error}") from error


def message_from_json(value: Any) -> ExportTraceServiceRequest:
    """The request that a parsed JSON text is. Raises `MalformedRequest`."""
    try:
        return _request(_object(value))
    except MalformedRequest:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # protobuf's: of a value's type or range
        raise MalformedRequest(f"the body is no OTLP trace request in JSON: {error}") from error


_Object = dict[str, Any]


def _request(value: _Object) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for each in _objects(value, "resourceSpans"):
        of_resource = request.resource_spans.add(schema_url=_text(each, "schemaUrl"))
        _resource(_object(each.get("resource")), of_resource)
        for inner in _objects(each, "scopeSpans"):
            _scope_spans(inner, of_resource.scope_spans.add(schema_url=_text(inner, "schemaUrl")))
    return request


def _resource(value: _Object, of_resource: ResourceSpans) -> None:
    resource: Resource = of_resource.resource
    _attributes(value, resource.attributes)
    resource.dropped_attributes_count = _integer(value, "droppedAttributesCount")


def _scope_spans(value: _Object, of_scope: ScopeSpans) -> None:
    given = _object(value.get("scope"))
    scope: InstrumentationScope = of_scope.scope
    scope.name = _text(given, "name")
    scope.version = _text(given, "version")
    _attributes(given, scope.attributes)
    for each in _objects(value, "spans"):
        _span(each, of_scope.spans.add())


def _span(value: _Object, span: Span) -> None:
    span.trace_id = _id(value, "traceId")
    span.span_id = _id(value, "spanId")
    # one that is none is kept, in its bytes: a span with a parent is no root
    span.parent_span_id = _id(value, "parentSpanId") or _text(value, "parentSpanId").encode()
    span.name = _text(value, "name")
    span.start_time_unix_nano = _time(value, "startTimeUnixNano")
    span.end_time_unix_nano = _time(value, "endTimeUnixNano")
    span.kind = _number_of(value, "kind", Span.SpanKind)
    _attributes(value, span.attributes)
    if "status" in value:
        status = _object(value["status"])
        span.status.code = _number_of(status, "code", Status.StatusCode)
        span.status.message = _text(status, "message")
    for each in _objects(value, "events"):
        event = span.events.add(name=_text(each, "name"), time_unix_nano=_time(each, "timeUnixNano"))
        _attributes(each, event.attributes)
        event.dropped_attributes_count = _integer(each, "droppedAttributesCount")
    for each in _objects(value, "links"):
        link = span.links.add(trace_id=_id(each, "traceId"), span_id=_id(each, "spanId"))
        _attributes(each, link.attributes)
        link.trace_state, link.flags = _text(each, "traceState"), _integer(each, "flags")
        link.dropped_attributes_count = _integer(each, "droppedAttributesCount")
    _rest_of_span(value, span)


def _rest_of_span(value: _Object, span: Span) -> None:
    span.trace_state = _text(value, "traceState")
    span.flags = _integer(value, "flags")
    span.dropped_attributes_count = _integer(value, "droppedAttributesCount")
    span.dropped_events_count = _integer(value, "droppedEventsCount")
    span.dropped_links_count = _integer(value, "droppedLinksCount")


def _attributes(value: _Object, into: Any) -> None:
    for pair in _objects(value, "attributes"):
        _pair(pair, into.add(), 0)


def _pair(value: _Object, pair: KeyValue, depth: int) -> None:
    pair.key = _text(value, "key")
    _value(_object(value.get("value")), pair.value, depth)


def _value(value: _Object, into: AnyValue, depth: int) -> None:
    """One value. Which it is, the name of its one known field says; null and no field are no value."""
    if depth > MAX_DEPTH:
        raise MalformedRequest("a value is nested too deep for protobuf")
    for name, given in value.items():
        setter = _SETTERS.get(name)
        if setter is not None and given is not None:
            setter(given, into, depth)
            return


def _string_value(given: Any, into: AnyValue, depth: int) -> None:
    del depth
    into.string_value = given


def _bool_value(given: Any, into: AnyValue, depth: int) -> None:
    del depth
    if not isinstance(given, bool):
        raise _wrong("boolValue", "true or false", given)
    into.bool_value = given


def _int_value(given: Any, into: AnyValue, depth: int) -> None:
    del depth
    into.int_value = _as_integer("intValue", given)


def _double_value(given: Any, into: AnyValue, depth: int) -> None:
    """A number, or a text that is one: `NaN`, `Infinity` and `-Infinity` have no other way."""
    del depth
    into.double_value = float(given)


def _bytes_value(given: Any, into: AnyValue, depth: int) -> None:
    del depth
    plain = str(given).rstrip("=").replace("-", "+").replace("_", "/")
    into.bytes_value = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _array_value(given: Any, into: AnyValue, depth: int) -> None:
    into.array_value.SetInParent()
    for item in _objects(_object(given), "values"):
        _value(item, into.array_value.values.add(), depth + _LIST)


def _kvlist_value(given: Any, into: AnyValue, depth: int) -> None:
    into.kvlist_value.SetInParent()
    for pair in _objects(_object(given), "values"):
        _pair(pair, into.kvlist_value.values.add(), depth + _MAPPING)


_SETTERS: dict[str, Callable[[Any, AnyValue, int], None]] = {
    "stringValue": _string_value,
    "boolValue": _bool_value,
    "intValue": _int_value,
    "doubleValue": _double_value,
    "bytesValue": _bytes_value,
    "arrayValue": _array_value,
    "kvlistValue": _kvlist_value,
}


def _object(value: Any) -> _Object:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequest(f"an object was expected, not {_shown(value)}")
    return value


def _objects(value: _Object, name: str) -> Iterable[_Object]:
    given = value.get(name)
    if given is None:
        return ()
    if not isinstance(given, list):
        raise _wrong(name, "a list", given)
    return map(_object, given)


def _text(value: _Object, name: str) -> str:
    given = value.get(name, "")
    if isinstance(given, str):
        return given
    if given is None:
        return ""
    raise _wrong(name, "a text", given)


def _id(value: _Object, name: str) -> bytes:
    """An id; none where it is not in hex digits: that is a matter of this span, and not of others in the request."""
    text = _text(value, name)
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _time(value: _Object, name: str) -> int:
    """A time in nanoseconds; 0, which is none, where it cannot be one."""
    ns = _integer(value, name)
    return ns if 0 <= ns < 1 << 64 else 0


def _integer(value: _Object, name: str) -> int:
    return _as_integer(name, value.get(name))


def _as_integer(name: str, given: Any) -> int:
    """An integer as JSON has it: a number, or a text where 64 bits do not fit."""
    if given is None:
        return 0
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise _wrong(name, "an integer", given)
    try:
        return int(given)
    except ValueError:
        raise _wrong(name, "an integer", given) from None


def _number_of(value: _Object, name: str, enumeration: Any) -> Any:
    """A member of an enumeration: its number, or its name, which OTLP does not allow and some send."""
    given = value.get(name)
    if isinstance(given, str) and not given.isdigit():
        return enumeration.Value(given)  # raises ValueError for no such name
    return _as_integer(name, given)


def _wrong(name: str, what: str, given: Any) -> MalformedRequest:
    return MalformedRequest(f"{name} is {what}, not {_shown(given)}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
