"""Spans written as OTLP requests: read back they are the same, and requests keep to their limits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_servers import attributes_of

from trifle_otel.otlp.spans import spans_of
from trifle_otel.otlp.writing import batches_of, request_of
from trifle_otel.span_data import KINDS, SpanData, SpanEvent, SpanLink

TRACE, SPAN, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.binary(max_size=10),
        TEXTS,
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ATTRIBUTES = st.dictionaries(TEXTS, VALUES, max_size=4)
TIMES = st.integers(0, 2**64 - 1)
IDS = {digits: st.binary(min_size=digits // 2, max_size=digits // 2).filter(any).map(bytes.hex) for digits in (16, 32)}
RESOURCES = st.sampled_from([{"service.name": "a"}, {"service.name": "b"}, {}])
SPANS = st.builds(
    SpanData,
    IDS[32],
    IDS[16],
    st.none() | IDS[16],
    TEXTS,
    TIMES,
    TIMES,
    st.sampled_from([None, True, False]),
    st.sampled_from(KINDS),
    ATTRIBUTES,
    st.lists(st.builds(SpanEvent, TEXTS, TIMES, ATTRIBUTES), max_size=3),
    st.lists(st.builds(SpanLink, IDS[32], IDS[16], ATTRIBUTES), max_size=2),
    st.sampled_from(["UNSET", "OK", "ERROR"]),
    TEXTS,
    st.sampled_from(["", "trifle_otel", "é"]),
    RESOURCES,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    TEXTS,
)


def span(name: str = "a span", **changes: Any) -> SpanData:
    """A span with as little in it as there can be."""
    return SpanData(
        **{"trace_id": TRACE, "span_id": SPAN, "parent_id": None, "name": name, **changes, **_times(changes)}
    )


def _times(changes: dict[str, Any]) -> dict[str, int]:
    return {"start_ns": changes.get("start_ns", 1), "end_ns": changes.get("end_ns", 2)}


def again(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """The request as it arrives somewhere."""
    return ExportTraceServiceRequest.FromString(request.SerializeToString())


def sorted_by_id(spans: list[SpanData]) -> list[SpanData]:
    """Spans in an order that does not depend on how they are grouped."""
    return sorted(spans, key=lambda each: (each.trace_id, each.span_id, each.name, repr(each)))


@given(st.lists(SPANS, max_size=4))
@settings(max_examples=40)
def test_what_is_written_is_read(spans: list[SpanData]) -> None:
    """All that a span has comes back out of a request, whatever its values, grouped or not."""
    assert sorted_by_id(spans_of(again(request_of(spans)))) == sorted_by_id(spans)


def test_a_span_is_what_the_protocol_says() -> None:
    """Ids are bytes, kinds and states numbers, a parent of another process is marked as one."""
    resource = {"service.name": "prices"}
    request = again(
        request_of(
            [
                SpanData(
                    TRACE,
                    SPAN,
                    PARENT,
                    "GET /",
                    1_700_000_000_000_000_001,
                    1_700_000_000_000_000_009,
                    remote=True,
                    kind="SERVER",
                    attributes={"text": "a", "yes": True, "number": 7, "list": [1.5, "b"]},
                    events=[SpanEvent("an event", 1_700_000_000_000_000_002, {"k": b"\0"})],
                    links=[SpanLink(TRACE, PARENT, {"of": "a link"})],
                    status="ERROR",
                    description="it broke",
                    scope="a library",
                    resource=resource,
                    dropped_events=3,
                    trace_state="a=b",
                )
            ]
        )
    )
    (of_resource,) = request.resource_spans
    (of_scope,) = of_resource.scope_spans
    (found,) = of_scope.spans
    assert attributes_of(of_resource.resource) == resource
    assert of_scope.scope.name == "a library"
    assert found.trace_id == bytes.fromhex(TRACE)
    assert (found.span_id, found.parent_span_id) == (bytes.fromhex(SPAN), bytes.fromhex(PARENT))
    assert (found.name, found.kind, found.flags, found.trace_state) == ("GET /", 2, 0x300, "a=b")
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (
        1_700_000_000_000_000_001,
        1_700_000_000_000_000_009,
    )
    assert attributes_of(found) == {"text": "a", "yes": True, "number": 7, "list": [1.5, "b"]}
    assert [(event.name, event.time_unix_nano, attributes_of(event)) for event in found.events] == [
        ("an event", 1_700_000_000_000_000_002, {"k": b"\0"})
    ]
    assert [(link.trace_id, attributes_of(link)) for link in found.links] == [(bytes.fromhex(TRACE), {"of": "a link"})]
    assert (found.status.code, found.status.message, found.dropped_events_count) == (2, "it broke", 3)


def test_spans_are_grouped_by_resource_and_scope() -> None:
    """Equal resources, be they one object or several, are one group, and scopes groups in it."""
    spans = [
        span(str(number), scope=scope, resource={"service.name": service})
        for number, (service, scope) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")])
    ]
    found = {
        (attributes_of(of_resource.resource)["service.name"], of_scope.scope.name): [s.name for s in of_scope.spans]
        for of_resource in request_of(iter(spans)).resource_spans
        for of_scope in of_resource.scope_spans
    }
    assert found == {("a", "x"): ["0", "3"], ("b", "x"): ["1"], ("a", "y"): ["2"]}
    assert len(request_of(spans).resource_spans) == 2


def test_what_otlp_cannot_hold_is_made_to_fit() -> None:
    """Lone surrogates, large integers, deep nesting and times out of range are written, and never raise."""
    deep: Any = "the innermost"
    for _ in range(200):
        deep = [deep]
    odd = span(
        "a \ud800 name",
        attributes={"large": 2**64, "deep": deep, "bad": "\udcff", "nan": math.nan, "\ud800": 1, "other": {1, 2}},
        start_ns=-5,
        end_ns=2**70,
        dropped_events=2**40,
    )
    (found,) = spans_of(again(request_of([odd])))
    assert (found.name, found.start_ns, found.end_ns, found.dropped_events) == (
        "a \\ud800 name",
        0,
        2**64 - 1,
        2**32 - 1,
    )
    assert found.attributes["large"] == "18446744073709551616"
    assert found.attributes["bad"] == "\\udcff"
    assert math.isnan(found.attributes["nan"])
    assert found.attributes["\\ud800"] == 1
    assert "the innermost" in repr(found.attributes["deep"])


def test_an_id_that_is_none_is_refused() -> None:
    """Whoever gives an id that is not hex digits is told so."""
    with pytest.raises(ValueError, match="hex"):
        request_of([span(trace_id="no id")])


@given(st.lists(st.tuples(st.integers(0, 3_000), RESOURCES), max_size=30), st.integers(1, 8))
def test_requests_keep_to_their_limits(sizes: list[tuple[int, dict[str, str]]], most_spans: int) -> None:
    """Spans come in their order, in requests of as many bytes and spans as are allowed; a larger one is alone."""
    spans = [
        span(str(number), attributes={"text": "x" * size}, resource=resource)
        for number, (size, resource) in enumerate(sizes)
    ]
    batches = list(batches_of(iter(spans), most_bytes=2_000, most_spans=most_spans))
    assert [each.name for batch in batches for each in batch.spans] == [each.name for each in spans]
    for batch in batches:
        assert batch.size == batch.request.ByteSize()
        assert len(batch.spans) <= most_spans
        assert batch.size <= 2_000 or len(batch.spans) == 1
        assert sorted_by_id(spans_of(again(batch.request))) == sorted_by_id(batch.spans)
    for before, after in itertools.pairwise(batches):  # no more requests than needed, give or take
        full = len(before.spans) == most_spans
        assert full or before.size + request_of(after.spans[:1]).ByteSize() > 2_000 - 400
