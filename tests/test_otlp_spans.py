"""OTLP's trace requests, read: protobuf and JSON, what their specification leaves open, and what senders get wrong."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifle_otel.errors import UsageError
from trifle_otel.span_data import SpanData, SpanEvent, SpanLink

pytest.importorskip("opentelemetry.proto")

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from trifle_otel.otlp.spans import (
    JSON,
    PROTOBUF,
    MalformedRequest,
    UnsupportedContent,
    encoding_of,
    parse_request,
    spans_of,
)

TRACE, SPAN, PARENT = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "eee19b7ec3c1b173"

# The example of OTLP's own repository, with one of everything that a span may have.
WRITTEN = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]},
            "scopeSpans": [
                {
                    "scope": {"name": "shop.prices", "version": "1.0.0", "attributes": []},
                    "spans": [
                        {
                            "traceId": "5B8EFFF798038103D269B633813FC60C",
                            "spanId": "EEE19B7EC3C1B174",
                            "parentSpanId": "EEE19B7EC3C1B173",
                            "name": "I'm a server span",
                            "startTimeUnixNano": "1544712660000000000",
                            "endTimeUnixNano": 1544712661000000000,
                            "kind": 2,
                            "flags": 769,
                            "traceState": "a=b",
                            "attributes": [
                                {"key": "text", "value": {"stringValue": "ä ☃"}},
                                {"key": "empty", "value": {"stringValue": ""}},
                                {"key": "no", "value": {"boolValue": False}},
                                {"key": "big", "value": {"intValue": "-9223372036854775808"}},
                                {"key": "small", "value": {"intValue": 0}},
                                {"key": "half", "value": {"doubleValue": 0.5}},
                                {"key": "endless", "value": {"doubleValue": "-Infinity"}},
                                {"key": "bytes", "value": {"bytesValue": "AP8="}},
                                {
                                    "key": "list",
                                    "value": {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "b"}, {}]}},
                                },
                                {"key": "none", "value": {}},
                                {"key": "no list", "value": {"arrayValue": {}}},
                                {
                                    "key": "map",
                                    "value": {"kvlistValue": {"values": [{"key": "a", "value": {"boolValue": True}}]}},
                                },
                                {"key": "of tomorrow", "value": {"dateValue": "2026-11-24"}},
                            ],
                            "droppedAttributesCount": 3,
                            "droppedEventsCount": 4,
                            "events": [
                                {
                                    "name": "exception",
                                    "timeUnixNano": "1544712660500000000",
                                    "attributes": [{"key": "exception.message", "value": {"stringValue": "no"}}],
                                }
                            ],
                            "links": [
                                {
                                    "traceId": TRACE,
                                    "spanId": PARENT,
                                    "attributes": [{"key": "why", "value": {"stringValue": "retry"}}],
                                }
                            ],
                            "status": {"code": 2, "message": "went wrong"},
                            "fieldOfTomorrow": [1, {"a": 2}],
                        }
                    ],
                }
            ],
        }
    ],
    "fieldOfTomorrow": "x",
}

MEANT = SpanData(
    trace_id=TRACE,
    span_id=SPAN,
    parent_id=PARENT,
    name="I'm a server span",
    start_ns=1544712660000000000,
    end_ns=1544712661000000000,
    remote=True,
    kind="SERVER",
    attributes={
        "text": "ä ☃",
        "empty": "",
        "no": False,
        "big": -(2**63),
        "small": 0,
        "half": 0.5,
        "endless": float("-inf"),
        "bytes": b"\x00\xff",
        "list": [1, "b", None],
        "none": None,
        "no list": [],
        "map": {"a": True},
        "of tomorrow": None,
    },
    events=[SpanEvent("exception", 1544712660500000000, {"exception.message": "no"})],
    links=[SpanLink(TRACE, PARENT, {"why": "retry"})],
    status="ERROR",
    description="went wrong",
    scope="shop.prices",
    resource={"service.name": "my.service"},
    dropped_events=4,
    dropped_attributes=3,
    trace_state="a=b",
)


def one_span(**fields: Any) -> dict[str, Any]:
    """A JSON request with a span of these fields."""
    span = {"traceId": TRACE, "spanId": SPAN, **fields}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def read(request: Any) -> list[SpanData]:
    """The spans of a request that is given as a JSON value."""
    return spans_of(parse_request(json.dumps(request).encode(), JSON))


def plain(value: Any) -> dict[str, Any]:
    """A JSON request whose span has this value as its only attribute."""
    return one_span(attributes=[{"key": "a", "value": value}])


# --- What is meant


def test_json_is_read_as_otlp_has_it() -> None:
    """Hex ids of either case, 64-bit integers as texts and numbers, every kind of value, unknown fields ignored."""
    assert read(WRITTEN) == [MEANT]


def test_protobuf_says_the_same() -> None:
    """What the official classes wrote out is read to the same span."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.add(key="service.name").value.string_value = "my.service"
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = "shop.prices"
    span = of_scope.spans.add(
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex(SPAN),
        parent_span_id=bytes.fromhex(PARENT),
        name="I'm a server span",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=1544712660000000000,
        end_time_unix_nano=1544712661000000000,
        flags=0x301,
        trace_state="a=b",
        dropped_attributes_count=3,
        dropped_events_count=4,
        status=Status(code=Status.STATUS_CODE_ERROR, message="went wrong"),
    )
    a_list = AnyValue()
    a_list.array_value.values.add().int_value = 1
    a_list.array_value.values.add().string_value = "b"
    a_list.array_value.values.add()
    no_list = AnyValue()
    no_list.array_value.SetInParent()
    a_map = AnyValue()
    a_map.kvlist_value.values.add(key="a").value.bool_value = True
    for key, value in {
        "text": AnyValue(string_value="ä ☃"),
        "empty": AnyValue(string_value=""),
        "no": AnyValue(bool_value=False),
        "big": AnyValue(int_value=-(2**63)),
        "small": AnyValue(int_value=0),
        "half": AnyValue(double_value=0.5),
        "endless": AnyValue(double_value=float("-inf")),
        "bytes": AnyValue(bytes_value=b"\x00\xff"),
        "list": a_list,
        "none": AnyValue(),
        "no list": no_list,
        "map": a_map,
        "of tomorrow": None,
    }.items():
        span.attributes.add(key=key, value=value)
    event = span.events.add(name="exception", time_unix_nano=1544712660500000000)
    event.attributes.add(key="exception.message").value.string_value = "no"
    link = span.links.add(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(PARENT))
    link.attributes.add(key="why").value.string_value = "retry"

    assert spans_of(parse_request(request.SerializeToString(), PROTOBUF)) == [MEANT]


def test_what_is_left_out_has_the_defaults_of_the_specification() -> None:
    """A span of ids alone is an internal root without a status, of which nobody says whether its parent is remote."""
    assert read(one_span()) == [SpanData(TRACE, SPAN, None, "", 0, 0)]


@pytest.mark.parametrize(
    "flags, remote",
    [(0, None), (1, None), (0x100, False), (0x300, True), (0x200, None), (0x101, False), (0xFFFFFFFF, True)],
)
def test_the_flags_say_whether_the_parent_is_remote(flags: int, remote: bool | None) -> None:
    """Bit 9 counts where bit 8 says that it is known."""
    assert read(one_span(flags=flags))[0].remote is remote


@pytest.mark.parametrize("parent", ["", "0000000000000000", None])
def test_no_parent_may_be_said_in_three_ways(parent: str | None) -> None:
    """An id that is empty, zero or null is none."""
    assert read(one_span(parentSpanId=parent))[0].parent_id is None


@pytest.mark.parametrize(
    "number, kind", [*enumerate(["INTERNAL", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"])]
)
def test_kinds_are_numbers(number: int, kind: str) -> None:
    """Unspecified counts as internal; a number as text, and a name, are understood too."""
    names = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
    for given_ in (number, str(number), f"SPAN_KIND_{names[number]}"):
        assert read(one_span(kind=given_))[0].kind == kind
    assert read(one_span(kind=77))[0].kind == "INTERNAL"


@pytest.mark.parametrize("code, status", [(0, "UNSET"), (1, "OK"), (2, "ERROR"), (9, "UNSET")])
def test_states_are_numbers(code: int, status: str) -> None:
    """A code of tomorrow is no status."""
    assert read(one_span(status={"code": code}))[0].status == status


def test_the_last_of_two_attributes_of_a_name_counts() -> None:
    """The specification forbids them; what is read is the last."""
    twice = [{"key": "a", "value": {"intValue": 1}}, {"key": "a", "value": {"intValue": 2}}]
    assert read(one_span(attributes=twice))[0].attributes == {"a": 2}


def test_spans_of_a_resource_share_it() -> None:
    """Its attributes are one object for all of its spans."""
    request = json.loads(json.dumps(WRITTEN))
    request["resourceSpans"][0]["scopeSpans"][0]["spans"] *= 3
    first, second, third = read(request)
    assert first.resource is second.resource is third.resource


def test_odd_ids_are_given_as_they_came() -> None:
    """Who takes the spans judges them; here nothing is lost."""
    (span,) = read(one_span(traceId="ab", spanId="", parentSpanId="0102"))
    assert (span.trace_id, span.span_id, span.parent_id) == ("ab", "", "0102")


@pytest.mark.parametrize("value", ["2f+A/w==", "2f-A_w==", "2f-A_w"])
def test_bytes_are_base64_of_either_alphabet(value: str) -> None:
    """With padding and without."""
    assert read(plain({"bytesValue": value}))[0].attributes == {"a": b"\xd9\xff\x80\xff"}


@pytest.mark.parametrize("empty", [b"", b"{}", b'{"resourceSpans":null}', b'{"resourceSpans":[{}]}'])
def test_an_empty_request_is_one(empty: bytes) -> None:
    """It holds no spans, and is no error."""
    assert spans_of(parse_request(empty, JSON if empty else PROTOBUF)) == []


# --- What the content is


@pytest.mark.parametrize(
    "content_type, encoding",
    [
        ("application/x-protobuf", PROTOBUF),
        ("application/protobuf", PROTOBUF),
        ("Application/JSON", JSON),
        ("application/json; charset=utf-8", JSON),
        ('application/json;charset="UTF-8"', JSON),
        (" application/json ; odata=verbose", JSON),
    ],
)
def test_content_types(content_type: str, encoding: str) -> None:
    """Case, spaces and parameters do not matter."""
    assert encoding_of(content_type) == encoding


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json; charset=latin-1", "json", "é" * 1000])
def test_other_content_is_refused(content_type: str) -> None:
    """The message names what is taken, and is short."""
    with pytest.raises(UnsupportedContent, match="application/x-protobuf") as caught:
        parse_request(b"", content_type)
    assert len(str(caught.value)) < 1000


# --- What is wrong


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null0",
        b'"text"',
        b'{"resourceSpans": {}}',
        b'{"resourceSpans": [null, 1]}',
        b'{"resourceSpans": [[]]}',
        b'{"resourceSpans": NaN}',
        b'\xff\xfe{"resourceSpans": []}',
        b'{"resourceSpans":' + b"[" * 100_000,
    ],
)
def test_malformed_json_is_refused(body: bytes) -> None:
    """It is one of our errors, with a message, and no other."""
    with pytest.raises(MalformedRequest, match=r"the body is|was expected|is a list"):
        parse_request(body, JSON)


@pytest.mark.parametrize(
    "said",
    [b'"caf\\udce9 \\ud83d!"', b'"caf\xe9 \xff!"', b'"caf\xed\xb3\xa9 \xff!"'],
    ids=["escaped", "Latin-1", "as UTF-8"],
)
def test_texts_of_json_that_are_none_are_repaired(said: bytes) -> None:
    """Python's SDK writes a file's name with a lone surrogate as it is; others do not check their UTF-8."""
    body = json.dumps(one_span(name="NAME", attributes=[{"key": "ä", "value": {"intValue": str(2**62 + 1)}}]))
    (span,) = spans_of(parse_request(body.encode().replace(b'"NAME"', said), JSON))
    assert re.fullmatch(r"caf(\ufffd+|\\udce9) (\ufffd|\\ud83d)!", span.name)
    assert span.attributes == {"ä": 2**62 + 1}


@pytest.mark.parametrize("wrong", ["zz", "not-hex-id-12345", "AAAAAAAAAAAAAAAAAAAAAA==", "abc"])
def test_an_id_of_json_that_is_none_is_a_matter_of_its_span(wrong: str) -> None:
    """Whoever takes the spans refuses that one; one whose parent's id is wrong is no root."""
    (of_trace,) = read(one_span(traceId=wrong))
    (of_span,) = read(one_span(spanId=wrong))
    (of_parent,) = read(one_span(parentSpanId=wrong))
    (of_link,) = read(one_span(links=[{"traceId": wrong, "spanId": SPAN}]))
    assert (of_trace.trace_id, of_span.span_id) == ("", "")
    assert of_parent.parent_id == wrong.encode().hex()
    assert [(link.trace_id, link.span_id) for link in of_link.links] == [("", SPAN)]


@pytest.mark.parametrize("wrong", [-1, "-1", 2**64, str(2**70)])
def test_a_time_of_json_that_cannot_be_is_none(wrong: Any) -> None:
    """As if its span had said nothing of it."""
    event = {"name": "e", "timeUnixNano": wrong}
    (span,) = read(one_span(startTimeUnixNano=wrong, endTimeUnixNano=wrong, events=[event]))
    assert (span.start_ns, span.end_ns, span.events[0].ns) == (0, 0, 0)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"spanId": 5}, "spanId"),
        ({"name": 5}, "name"),
        ({"startTimeUnixNano": "soon"}, "startTimeUnixNano"),
        ({"endTimeUnixNano": 1.5}, "endTimeUnixNano"),
        ({"kind": "SPAN_KIND_BUTLER"}, "in JSON"),
        ({"kind": True}, "kind"),
        ({"attributes": {"a": 1}}, "attributes"),
        ({"attributes": [{"key": "a", "value": "bare"}]}, "object"),
        ({"attributes": [{"key": "a", "value": {"boolValue": "yes"}}]}, "boolValue"),
        ({"attributes": [{"key": "a", "value": {"stringValue": 1}}]}, "in JSON"),
        ({"attributes": [{"key": "a", "value": {"intValue": "9" * 30}}]}, "in JSON"),
        ({"attributes": [{"key": "a", "value": {"intValue": "9" * 5000}}]}, "intValue"),
        ({"attributes": [{"key": "a", "value": {"bytesValue": "!"}}]}, "in JSON"),
        ({"attributes": [{"key": "a", "value": {"doubleValue": []}}]}, "in JSON"),
        ({"events": "none"}, "events"),
        ({"status": "OK"}, "object"),
        ({"flags": -1}, "in JSON"),
    ],
)
def test_wrong_fields_of_json_are_refused(fields: dict[str, Any], said: str) -> None:
    """A value of another type than OTLP has it, or out of its range, makes the request malformed."""
    with pytest.raises(MalformedRequest, match=said) as caught:
        read(one_span(**fields))
    assert isinstance(caught.value, UsageError)
    assert len(str(caught.value)) < 300


def in_lists(depth: int) -> Any:
    """A value in so many lists."""
    value: Any = {"intValue": 1}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return value


def in_mappings(depth: int) -> Any:
    """A value in so many mappings."""
    value: Any = {"intValue": 1}
    for _ in range(depth):
        value = {"kvlistValue": {"values": [{"key": "k", "value": value}]}}
    return value


@pytest.mark.parametrize("nested, depth", [(in_lists, 45), (in_mappings, 30)])
def test_values_may_be_nested_but_not_without_end(nested: Callable[[int], Any], depth: int) -> None:
    """What protobuf's parser takes again once it is written is read, on events too; what is deeper is refused."""
    attributes = [{"key": "a", "value": nested(depth)}]
    request = one_span(attributes=attributes, events=[{"attributes": attributes}])
    (span,) = spans_of(parse_request(parse_request(json.dumps(request).encode(), JSON).SerializeToString(), PROTOBUF))
    for value in (span.attributes["a"], span.events[0].attributes["a"]):
        assert repr(value).count("1") == 1
        assert len(re.findall(r"[\[{]", repr(value))) == depth
    for deeper in (depth + 1, 100):
        with pytest.raises(MalformedRequest, match="deep"):
            read(plain(nested(deeper)))


def test_protobuf_that_nests_without_end_is_refused() -> None:
    """Its parser counts."""
    inner = AnyValue(int_value=1).SerializeToString()
    for _ in range(2000):
        holder = b"\x0a" + varint(len(inner)) + inner
        inner = b"\x2a" + varint(len(holder)) + holder
    body = inner
    for field in (b"\x12", b"\x4a", b"\x12", b"\x12", b"\x0a"):  # pair.value, attributes, spans, scope_spans, …
        body = field + varint(len(body)) + body
    with pytest.raises(MalformedRequest, match="protobuf"):
        parse_request(body, PROTOBUF)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05abc", b"\x0b", b"{}", b"not protobuf at all", b"\x1f\x8b\x08"])
def test_malformed_protobuf_is_refused(body: bytes) -> None:
    """It is one of our errors, with a message, and no other."""
    with pytest.raises(MalformedRequest, match="no OTLP trace request in protobuf"):
        parse_request(body, PROTOBUF)


def test_texts_that_are_not_utf_8_are_repaired() -> None:
    """SDKs and collectors that do not check them send such; the rest of the request is as it was."""
    request = parse_request(json.dumps(WRITTEN).encode(), JSON)
    body = request.SerializeToString()
    for old, new in ((b"my.service", b"my.\xffervice"), (b"I'm a server", b"I'm a \xc3erver"), (b"wrong", b"wr\x80ng")):
        body = body.replace(old, new)
    (span,) = spans_of(parse_request(body, PROTOBUF))
    assert span.resource == {"service.name": "my.\ufffdervice"}
    assert span.name == "I'm a \ufffderver span"
    assert span.description == "went wr\ufffdng"
    assert (span.attributes, span.events, span.links) == (MEANT.attributes, MEANT.events, MEANT.links)
    assert (span.trace_id, span.start_ns, span.kind, span.remote) == (TRACE, MEANT.start_ns, "SERVER", True)


# --- Any request


values = st.recursive(
    st.one_of(
        st.none(),
        st.text(max_size=8),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.binary(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
attributes = st.dictionaries(st.text(max_size=8), values, max_size=3)
times = st.integers(0, 2**64 - 1)
ids = st.binary(min_size=8, max_size=8).filter(any)
spans = st.builds(
    SpanData,
    trace_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    span_id=ids.map(bytes.hex),
    parent_id=st.none() | ids.map(bytes.hex),
    name=st.text(max_size=20),
    start_ns=times,
    end_ns=times,
    remote=st.sampled_from([None, True, False]),
    kind=st.sampled_from(["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]),
    attributes=attributes,
    events=st.lists(st.builds(SpanEvent, name=st.text(max_size=8), ns=times, attributes=attributes), max_size=2),
    links=st.lists(
        st.builds(
            SpanLink,
            trace_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
            span_id=ids.map(bytes.hex),
            attributes=attributes,
        ),
        max_size=2,
    ),
    status=st.sampled_from(["UNSET", "OK", "ERROR"]),
    description=st.text(max_size=8),
    dropped_events=st.integers(0, 2**32 - 1),
    dropped_attributes=st.integers(0, 2**32 - 1),
    trace_state=st.text(max_size=8),
)


def fill(into: AnyValue, value: Any) -> None:
    """Set a value in protobuf, written for this test from OTLP's definition."""
    if isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, list):
        into.array_value.SetInParent()
        for each in value:
            fill(into.array_value.values.add(), each)
    elif isinstance(value, dict):
        into.kvlist_value.SetInParent()
        for key, each in value.items():
            fill(into.kvlist_value.values.add(key=key).value, each)
    elif value is not None:
        field = {str: "string_value", int: "int_value", float: "double_value", bytes: "bytes_value"}[type(value)]
        setattr(into, field, value)


def pairs(of: Any) -> list[KeyValue]:
    """Attributes in protobuf."""
    found = []
    for key, value in of.items():
        pair = KeyValue(key=key)
        fill(pair.value, value)
        found.append(pair)
    return found


def request_of(span: SpanData) -> ExportTraceServiceRequest:
    """A span in protobuf, written for this test from OTLP's definition."""
    message = Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        name=span.name,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        flags={None: 0, False: 0x100, True: 0x300}[span.remote],
        kind=getattr(Span, f"SPAN_KIND_{span.kind}"),
        attributes=pairs(span.attributes),
        events=[
            Span.Event(name=event.name, time_unix_nano=event.ns, attributes=pairs(event.attributes))
            for event in span.events
        ],
        links=[
            Span.Link(
                trace_id=bytes.fromhex(link.trace_id),
                span_id=bytes.fromhex(link.span_id),
                attributes=pairs(link.attributes),
            )
            for link in span.links
        ],
        status=Status(code=getattr(Status, f"STATUS_CODE_{span.status}"), message=span.description),
        dropped_events_count=span.dropped_events,
        dropped_attributes_count=span.dropped_attributes,
        trace_state=span.trace_state,
    )
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.append(message)
    return request


def as_json(request: ExportTraceServiceRequest) -> bytes:
    """Protobuf's own JSON, with ids in hex."""
    value = json_format.MessageToDict(request, use_integers_for_enums=True)

    def hexed(of: Any) -> None:
        if isinstance(of, dict):
            for key, each in of.items():
                if key in ("traceId", "spanId", "parentSpanId"):
                    of[key] = base64.b64decode(each).hex()
                elif key not in ("attributes", "value"):
                    hexed(each)
        elif isinstance(of, list):
            for each in of:
                hexed(each)

    hexed(value)
    return json.dumps(value).encode()


@settings(max_examples=60, deadline=None)
@given(span=spans)
def test_any_span_comes_through_protobuf_and_json(span: SpanData) -> None:
    """Either encoding gives the span that was written."""
    request = request_of(span)
    assert spans_of(parse_request(request.SerializeToString(), PROTOBUF)) == [span]
    assert spans_of(parse_request(as_json(request), JSON)) == [span]


def survives(read_: Callable[[], object]) -> None:
    """Whatever it reads, it gives spans or our error."""
    try:
        read_()
    except MalformedRequest:
        pass


@settings(max_examples=150, deadline=None)
@given(span=spans, changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_protobuf_never_raises_anything_else(span: SpanData, changes: list[tuple[int, int]]) -> None:
    """Bytes that changed on the way give spans, or the error for malformed requests."""
    body = bytearray(request_of(span).SerializeToString())
    for at, byte in changes:
        body[at % len(body)] = byte
    survives(lambda: spans_of(parse_request(bytes(body), PROTOBUF)))


FIELDS = re.findall(
    r"\w+",
    "resourceSpans resource scopeSpans scope spans attributes key value stringValue intValue doubleValue bytesValue "
    "arrayValue kvlistValue values traceId events links status code kind timeUnixNano name flags",
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None)
@given(value=json_values)
def test_any_json_gives_spans_or_our_error(value: Any) -> None:
    """Fields of OTLP with values of any type, wherever they stand."""
    for request in (value, one_span(attributes=value, events=value, status=value, name=value), plain(value)):
        survives(lambda request=request: read(request))  # type: ignore[misc]
