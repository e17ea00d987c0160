"""Replay: archived traces sent to real OTLP servers; what arrives is compared with what the running trace had sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from otlp_servers import SERVER_LIMITS, GrpcServer, HttpServer, OtlpServer, Reply, attributes_of, running
from spans import Sdk, attributes, parent_id, span_id

import trifle_otel as trifle
from trifle_otel import Archive, Entry, TraceRecord
from trifle_otel.encoding import encode_part, encode_record
from trifle_otel.errors import StoreUnavailable, TrifleError, UsageError
from trifle_otel.otlp.writing import request_of
from trifle_otel.replaying.replay import Replay, Report, replay
from trifle_otel.replaying.spans import PREVIEWS, ArchivedTrace, Extent
from trifle_otel.testing import START, sample_record

SECOND = 1_000_000_000
START_NS = 1_767_323_045_678_901_000  # of `START`
Stored = dict[str, Any]


@pytest.fixture
def http() -> Iterator[HttpServer]:
    """A server of OTLP over HTTP."""
    yield from running(HttpServer)


@pytest.fixture
def grpc_server() -> Iterator[GrpcServer]:
    """A server of OTLP over gRPC."""
    yield from running(GrpcServer)


@pytest.fixture(params=[HttpServer, GrpcServer])
def server(request: pytest.FixtureRequest) -> Iterator[OtlpServer]:
    """A server of either kind."""
    yield from running(request.param)


@pytest.fixture
def archive(own_folder: Path) -> Iterator[Archive]:
    """An empty archive in `./traces`."""
    with Archive.open("./traces") as opened:
        opened.setup()
        yield opened


def entry(message: str, level: int = 0, kind: str = "text", **more: Any) -> Stored:
    """An entry as it is stored, by Ruby where no `ns` is given."""
    return {"at": 1_767_323_045, "message": message, "state": "success", "type": kind, "level": level, **more}


def add(archive: Archive, entries: list[Stored], **changes: Any) -> TraceRecord:
    """Store a trace."""
    record = sample_record(**{"parts": 1, "length": len(entries), "context": {}, **changes})
    archive.store.write(record.folder, "data_1.json.gz", encode_part(entries))
    archive.store.write(record.folder, "record.json", encode_record(record))
    archive.index.put([record])
    return record


def sent(archive: Archive, record: TraceRecord, server: OtlpServer, **options: Any) -> dict[str, Span]:
    """Replay one trace; the spans that arrive, by their names."""
    server.requests.clear()
    replay(archive, [record], server.endpoint, **options)
    named = {span.name: span for span in server.spans}
    assert len(named) == len(server.spans)
    return named


def events_of(span: Span) -> list[tuple[str, int, dict[str, Any]]]:
    """Name, time and attributes of a span's events, as they arrived."""
    return [(event.name, event.time_unix_nano, attributes_of(event)) for event in span.events]


def live_events(span: ReadableSpan) -> list[tuple[str, int, dict[str, Any]]]:
    """The same of a span of the SDK's, but what the archive has not, or not there: changes of state, exceptions."""
    shown = [event for event in span.events if event.name not in ("trifle.state", "exception")]
    return [(event.name, event.timestamp, attributes(event)) for event in shown]


def is_preview(span: Span) -> None:
    """Whether a span can be delivered by anything into anything."""
    assert len(span.name) <= 100
    assert len(span.events) <= 128 - 16 + 1
    for pairs in (span.attributes, *(event.attributes for event in span.events)):
        for pair in pairs:
            value = pair.value
            texts = [each.string_value for each in value.array_value.values] or [value.string_value]
            assert sum(len(text.encode()) for text in texts) <= 2048


# --- What the running trace had sent


class JobError(Exception):
    """The error of a job."""


def a_job() -> None:
    """Everything that a trace can have."""
    with trifle.tracer("prices/one", meta=[9, {"name": "Żaba"}], tags=["a", "b"]) as job:
        trifle.trace("a line", state="warning")
        trifle.trace("a head", head=True)
        with trifle.block("outer", head=True) as outer:
            with trifle.block("inner é") as inner:
                trifle.trace("long " + "é" * 5_000)
                inner.result({"a": 1})
            outer.result("x" * 3_000)
            trifle.artifact("sheet.csv", "a,b\n")
        with trifle.block("careful", state="warning"):
            pass
        job.root.result("the whole")
        with trifle.block("a name that is far too long for a span " * 5):
            raise JobError("it\nbroke")


@pytest.fixture
def recorded() -> Sdk:
    """The job, recorded with an SDK that sends its spans, and archived."""
    sdk = Sdk().configure(service="prices")
    with pytest.raises(JobError):
        a_job()
    return sdk


def test_a_replayed_trace_is_what_the_running_trace_sent(recorded: Sdk, server: OtlpServer) -> None:
    """Ids, names, nesting, times, kinds, events with their attributes, status: as the SDK had them."""
    named = sent(recorded.archive, recorded.record, server)
    live = {span.name: span for span in recorded.spans}
    assert named.keys() == live.keys()
    assert len(named) == 5
    for name, span in named.items():
        before = live[name]
        assert before.context is not None
        assert span.trace_id.hex() == f"{before.context.trace_id:032x}"
        assert span.span_id.hex() == span_id(before)
        assert (span.parent_span_id.hex() or None) == parent_id(before)
        assert span.kind == Span.SPAN_KIND_INTERNAL
        assert [event for event in events_of(span) if event[0] != "exception"] == live_events(before)
        assert span.status.code == {"UNSET": 0, "ERROR": 2}[before.status.status_code.name]
        if name != "prices/one":
            assert (span.start_time_unix_nano, span.end_time_unix_nano) == (before.start_time, before.end_time)


def test_the_root_tells_what_the_running_trace_told(recorded: Sdk, server: OtlpServer) -> None:
    """The trace's own span has key, tags, meta, archive, lines, state and reference, and says it was replayed."""
    root = sent(recorded.archive, recorded.record, server)["prices/one"]
    live = attributes(recorded.root)
    found = attributes_of(root)
    assert found.pop("trifle.replayed") is True
    del live["trifle.mode"]  # which is not archived
    live["trifle.tags"] = list(live["trifle.tags"])
    assert found.pop("error.type").endswith("JobError")
    assert live.pop("error.type").endswith("JobError")
    assert found == live
    assert list(found)[-2:] == ["trifle.state", "trifle.reference"]
    assert root.status.message == "it\nbroke"
    (failure,) = [event for event in root.events if event.name == "exception"]
    (before,) = [event for span in recorded.spans for event in span.events if event.name == "exception"]
    assert attributes_of(failure) == attributes(before)
    (of_resource,) = server.requests[0].resource_spans
    assert attributes_of(of_resource.resource) == {"service.name": "prices"}
    assert of_resource.scope_spans[0].scope.name == "trifle_otel"


def test_the_root_lasts_as_long_as_the_record_says(recorded: Sdk, server: OtlpServer) -> None:
    """It begins with the record, to the microsecond, and ends with it, and all else lies in it."""
    record = recorded.record
    named = sent(recorded.archive, record, server)
    root = named["prices/one"]
    since = (record.first_at - START) // timedelta(microseconds=1) * 1000
    until = (record.last_at - START) // timedelta(microseconds=1) * 1000
    assert root.start_time_unix_nano == START_NS + since
    assert START_NS + until <= root.end_time_unix_nano <= START_NS + until + 1_000
    for span in named.values():
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
        assert attributes_of(span)["trifle.replayed"] is True


def test_a_trace_that_was_sampled_out_can_be_seen_after_all(server: OtlpServer) -> None:
    """Its ids are those of the span that was dropped, and its blocks are spans with the ids of the archive."""
    sdk = Sdk(sampler=ALWAYS_OFF).configure()
    with pytest.raises(JobError):
        a_job()
    assert sdk.spans == []
    record = sdk.record
    named = sent(sdk.archive, record, server)
    assert {span.trace_id.hex() for span in named.values()} == {record.context["trace_id"]}
    root = named["prices/one"]
    assert root.span_id.hex() == record.context["span_id"]
    assert root.parent_span_id == b""
    assert named["inner é"].parent_span_id == named["outer"].span_id
    assert named["outer"].parent_span_id == root.span_id
    opened = {found.message: found.stored for found in sdk.entries if found.message.endswith(" ↴")}
    assert named["inner é"].span_id.hex() == opened["inner é ↴"]["span"]
    assert named["inner é"].start_time_unix_nano == opened["inner é ↴"]["ns"]


def test_blocks_that_ran_at_the_same_time_keep_their_lines(server: OtlpServer) -> None:
    """Concurrent tasks are children of the block that they began in, each with its own lines and result."""
    sdk = Sdk(sampler=ALWAYS_OFF).configure()

    async def step(number: int, before: asyncio.Event, after: asyncio.Event) -> int:
        with trifle.block(f"step {number}") as block:
            trifle.trace(f"line {number}")
            after.set()
            await before.wait()
            return int(block.result(number))

    async def run() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        with trifle.tracer("steps"), trifle.block("both"):
            await asyncio.gather(step(1, second, first), step(2, first, second))

    asyncio.run(run())
    named = sent(sdk.archive, sdk.record, server)
    for number in (1, 2):
        span = named[f"step {number}"]
        assert span.parent_span_id == named["both"].span_id
        shown = [event[2].get("trifle.text") or event[2].get("trifle.result") for event in events_of(span)]
        assert shown == [f"line {number}", str(number)]


def test_spans_of_others_are_blocks(archive: Archive, http: HttpServer) -> None:
    """A block that an instrumentation's span became keeps that span's id, and what was inside hangs on it."""
    entries = [
        entry("GET https://x ↴", span="b" * 16, parent="a" * 16, ns=START_NS + 5),
        entry("inside ↴", 1, span="c" * 16, parent="b" * 16, ns=START_NS + 6),
        entry("inside ↵", 1, span="c" * 16, ns=START_NS + 7),
        entry("GET https://x ↵", span="b" * 16, ns=START_NS + 8, state="error"),
        entry("↳ → 503", kind="raw", span="b" * 16, ns=START_NS + 8),
    ]
    record = add(archive, entries, context={"trace_id": "d" * 32, "span_id": "a" * 16})
    named = sent(archive, record, http)
    assert named["GET https://x"].span_id.hex() == "b" * 16
    assert named["GET https://x"].status.code == 2
    assert attributes_of(named["GET https://x"]) == {"trifle.replayed": True, "trifle.state": "error"}
    assert named["inside"].parent_span_id.hex() == "b" * 16


@pytest.mark.parametrize(
    "context, parent",
    [
        ({"trace_id": "D" * 32, "span_id": "a" * 16, "parent_span_id": "e" * 16}, "e" * 16),
        ({"trace_id": "d" * 32, "span_id": "a" * 16, "parent_span_id": "a" * 16}, ""),
        ({"trace_id": "d" * 32, "span_id": "a" * 16, "parent_span_id": "0" * 16}, ""),
        ({"parent_span_id": "e" * 16}, ""),
    ],
)
def test_the_root_keeps_its_parent(archive: Archive, http: HttpServer, context: Stored, parent: str) -> None:
    """Where the record knows what the trace was a child of, it is that again; nonsense is not believed."""
    record = add(archive, [entry("a line")], context=context)
    (root,) = sent(archive, record, http).values()
    assert root.parent_span_id.hex() == parent


def test_a_span_of_others_that_outlived_its_root_does_not_lengthen_it(archive: Archive, http: HttpServer) -> None:
    """An asynchronous child ends when it ends; the root's own times are to the nanosecond what they were."""
    began, ended = START_NS + 789, START_NS + 1_000_000_123
    entries = [
        entry("GET /", ns=began),
        entry("later ↴", span="b" * 16, ns=began + 5),
        entry("later ↵", span="b" * 16, ns=began + 9_000_000_000),
        entry("↳ UNSET", kind="raw", span="b" * 16, ns=began + 9_000_000_000),
        entry("→ 200", ns=ended),
    ]
    record = add(
        archive, entries, context={"trace_id": "d" * 32, "span_id": "a" * 16, "name": "GET /", "kind": "SERVER"}
    )
    named = sent(archive, record, http)
    root, later = named["GET /"], named["later"]
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (began, ended)
    assert later.end_time_unix_nano == began + 9_000_000_000


def test_a_trace_that_was_made_of_spans_is_those_again(archive: Archive, http: HttpServer) -> None:
    """The root of an application without our API has its own name, kind, attributes and links again."""
    context = {
        "trace_id": "d" * 32,
        "span_id": "a" * 16,
        "parent_span_id": "e" * 16,
        "name": "GET /orders/{id}",
        "kind": "SERVER",
        "scope": "fastapi",
        "attributes": {
            "http.route": "/orders/{id}",
            "n": 200,
            "list": ["a", "b"],
            "deep": {"a": [1]},
            "long": "é" * 3_000,
        },
        "links": [{"trace_id": "1" * 32, "span_id": "2" * 16}, {"trace_id": "no"}, 7],
    }
    record = add(archive, [entry("a line")], key="http/GET/orders/{id}", context=context)
    (root,) = sent(archive, record, http).values()
    is_preview(root)
    found = attributes_of(root)
    assert (root.name, root.kind, root.parent_span_id.hex()) == ("GET /orders/{id}", Span.SPAN_KIND_SERVER, "e" * 16)
    assert {name: found[name] for name in ("http.route", "n", "list", "deep", "trifle.key")} == {
        "http.route": "/orders/{id}",
        "n": 200,
        "list": ["a", "b"],
        "deep": '{"a":[1]}',
        "trifle.key": "http/GET/orders/{id}",
    }
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in root.links] == [("1" * 32, "2" * 16)]
    odd = add(archive, [entry("a line")], context={**context, "attributes": [1], "links": {"a": 1}, "name": 5})
    (root,) = sent(archive, odd, http).values()
    assert (root.name, len(root.links)) == (odd.key, 0)


def test_ids_that_are_none_are_made(archive: Archive, http: HttpServer) -> None:
    """Ids of the archive that OpenTelemetry does not allow, or that come twice, are replaced, and all are different."""
    entries = [
        entry("one ↴", span="0" * 16, parent="x"),
        entry("two ↴", span="no id at all", parent="x"),
        entry("three ↴", span="A" * 16, parent="x"),
    ]
    record = add(archive, entries, context={"trace_id": "1", "span_id": "a" * 16})
    named = sent(archive, record, http)
    ids = {span.span_id for span in named.values()}
    assert len(ids) == 4
    assert all(len(each) == 8 and any(each) for each in ids)
    assert named[record.key].span_id.hex() == "a" * 16


# --- Archives of Ruby


@pytest.fixture(params=sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/*/record.json")))
def case(request: pytest.FixtureRequest) -> Path:
    """The folder of one golden archive."""
    folder: Path = request.param
    return folder


def opened(case: Path) -> Archive:
    """A golden archive with its rows."""
    archive = Archive.open(case / "archive", "memory:")
    archive.setup()
    archive.reindex()
    return archive


def test_archives_of_ruby_keep_order_and_seconds(case: Path, http: HttpServer) -> None:
    """Every line is in its second and in its order; each opening is a span, each other line but closings an event."""
    stored = json.loads((case / "entries.json").read_text("utf-8"))
    with opened(case) as archive:
        (record,) = archive.search().records
        spans = list(sent_once(archive, record, http))
    root = spans[0]
    lines: dict[int, tuple[int, str]] = {}
    for span in spans:
        for _, ns, found in events_of(span):
            lines[found["trifle.line"]] = ns, str(found.get("trifle.text", found.get("trifle.result")))
            assert root.start_time_unix_nano <= ns <= root.end_time_unix_nano
    assert [lines[number][0] for number in sorted(lines)] == sorted(ns for ns, _ in lines.values())
    assert all(ns // SECOND == stored[number - 1]["at"] for number, (ns, _) in lines.items())
    blocks = sum(found["message"].endswith(" ↴") for found in stored) + (len(stored) == 82)  # one of them is beside
    assert len(spans) == blocks + 1
    assert len(lines) == len(stored) - 2 * blocks
    assert attributes_of(root)["trifle.lines"] == len(stored)
    assert "trifle.lines_omitted" not in attributes_of(root)


def sent_once(archive: Archive, record: TraceRecord, server: OtlpServer, **options: Any) -> list[Span]:
    """Replay one trace; the spans in the order in which they arrive."""
    server.requests.clear()
    replay(archive, [record], server.endpoint, **options)
    return server.spans


def test_archives_of_ruby_have_stable_ids_and_nesting(golden: Path, http: HttpServer) -> None:
    """Without ids in the archive they are made of key and reference: the same ones each time."""
    with opened(golden / "plain" / "deferred") as archive:
        (record,) = archive.search().records
        first, again = (sent_once(archive, record, http) for _ in range(2))
    assert first == again
    named = {span.name: span for span in first}
    root = named["commodity/calculate/one"]
    assert root.trace_id.hex() == "7442961f3713c5d8ae690a53de0c1b2a"  # sha256sum of `<key>/<reference>`
    assert root.span_id.hex() == "98051c8bc5d71bf4"  # the same with `#`
    assert root.parent_span_id == b""
    nested = [named[name] for name in ("commodity/calculate/one", "level one", "level two", "level three")]
    assert [span.parent_span_id for span in nested[1:]] == [span.span_id for span in nested[:-1]]
    assert events_of(nested[3])[-1][2]["trifle.result"] == '[1, "two", nil, {"three"=>3.0}, :four]'
    assert [event[2].get("trifle.text") for event in events_of(nested[2])] == ["inside two", None]
    assert {name for name, span in named.items() if span.status.code == 2} == {"outer of raise", "block that raises"}
    artifact = events_of(named["artifact inside a block"])[0]
    assert (artifact[0], artifact[2]["trifle.artifact"], artifact[2]["trifle.artifact_size"]) == (
        "trifle.artifact",
        "sub dir/übersicht.txt",
        15,
    )
    (of_resource,) = http.requests[0].resource_spans
    assert attributes_of(of_resource.resource) == {"service.name": "unknown_service"}


def test_messages_that_lie_beside_are_sent_too(golden: Path, http: HttpServer) -> None:
    """What Ruby has put into files is there with `full`, else its beginning, its size, and where all of it is."""
    with opened(golden / "gzip" / "live") as archive:
        (record,) = archive.search().records
        named = sent(archive, record, http)
        whole = sent(archive, record, http, full=True)
    files = {path.stat().st_size: path.read_text("utf-8") for path in golden.glob("gzip/live/archive/**/part_row_*")}
    (line,) = [found for _, _, found in events_of(named[record.key]) if found["trifle.line"] == 70]
    assert line["trifle.text_size"] == 102_401
    assert line["trifle.text_ref"] == f"{record.reference}#70"
    assert len(line["trifle.text"].encode()) <= 2048
    assert files[102_401].startswith(line["trifle.text"][:-1])
    (line,) = [found for _, _, found in events_of(whole[record.key]) if found["trifle.line"] == 70]
    assert line["trifle.text"] == files[102_401]
    for name in ("oversized result", "nested oversized"):
        (result,) = (found for event, _, found in events_of(named[name]) if event == "trifle.result")
        assert result["trifle.result_size"] == 150_006 - len("↳ ".encode())
        assert events_of(whole[name])[-1][2]["trifle.result"] == files[150_006].removeprefix("↳ ")
    assert any(len(span.name) == 100 and span.name.startswith("nnnn") for span in named.values())  # a block's message
    assert record.context == {}


# --- Large traces


@pytest.fixture(scope="module")
def large() -> tuple[Archive, TraceRecord]:
    """A trace with 5,000 lines, 1,200 blocks, and three results of 5 MB."""
    sdk = Sdk(sampler=ALWAYS_OFF).configure()
    with trifle.tracer("large", meta="m" * 10_000, tags=[f"tag:{number}" for number in range(900)]):
        for number in range(5_000):
            trifle.trace(f"line {number}", state="error" if number == 3_000 else "success")
        for number in range(1_200):
            with trifle.block(f"block {number}") as step:
                trifle.trace("in a block")
                if number < 3:
                    step.result(str(number) * 5_000_000)
    return sdk.archive, sdk.record


def test_previews_of_a_large_trace_can_be_delivered(
    large: tuple[Archive, TraceRecord], grpc_server: GrpcServer
) -> None:
    """Values, names, events and spans keep to what a running trace sends; each line that is left out is counted."""
    archive, record = large
    report = replay(archive, [record], grpc_server.endpoint)
    spans = grpc_server.spans
    assert len(spans) == report.spans == 1_001
    for span in spans:
        is_preview(span)
    assert sum(event.ByteSize() for span in spans for event in span.events) <= 256 * 1024
    assert max(grpc_server.sizes) <= SERVER_LIMITS["grpc"]
    root = attributes_of(spans[0])
    shown = sum(len(span.events) for span in spans)
    assert root["trifle.blocks_omitted"] == 200
    assert shown + 2 * 1_000 + root["trifle.lines_omitted"] == root["trifle.lines"] == record.length == 5_000 + 4_801
    assert report.lines_omitted == root["trifle.lines_omitted"]
    texts = [found.get("trifle.text") for _, _, found in events_of(spans[0])]
    assert {"line 0", "line 3000"} <= set(texts)
    results = [found for span in spans for _, _, found in events_of(span) if "trifle.result_size" in found]
    assert [found["trifle.result_size"] for found in results] == [5_000_002] * 3


def test_all_of_a_large_trace_is_sent_over_http(large: tuple[Archive, TraceRecord], http: HttpServer) -> None:
    """With `full` nothing is left out and nothing shortened, in requests that receivers take."""
    archive, record = large
    report = replay(archive, [record], http.endpoint, full=True)
    spans = http.spans
    assert len(spans) == 1_201
    assert max(http.sizes) <= SERVER_LIMITS["http/protobuf"]
    assert len(http.sizes) == report.requests > 1
    assert (report.shortened, report.lines_omitted, report.failed) == (0, 0, {})
    assert sum(len(span.events) for span in spans) + 2 * 1_200 == record.length
    named = {span.name: span for span in spans}
    assert [event[2]["trifle.result"] for event in events_of(named["block 1"])[-1:]] == [f"'{'1' * 5_000_000}'"]
    root = attributes_of(named["large"])
    assert len(root["trifle.meta"]) == 10_002
    assert len(root["trifle.tags"]) == 900


def test_what_no_request_holds_is_shortened(large: tuple[Archive, TraceRecord], grpc_server: GrpcServer) -> None:
    """gRPC takes 4 MiB: there the results of 5 MB are cut to what fits, marked, and counted; all else is whole."""
    archive, record = large
    report = replay(archive, [record], grpc_server.endpoint, full=True)
    assert (report.shortened, report.lines_omitted, report.failed) == (3, 0, {})
    assert max(grpc_server.sizes) <= SERVER_LIMITS["grpc"]
    results = [found for span in grpc_server.spans for _, _, found in events_of(span) if "trifle.result_size" in found]
    assert len(results) == 3
    for found in results:
        assert found["trifle.result_size"] == 5_000_002
        assert found["trifle.result_ref"].startswith(f"{record.reference}#")
        assert 4_000_000 < len(found["trifle.result"].encode()) < 4 * 1024 * 1024
    assert sum(len(span.events) for span in grpc_server.spans) + 2 * 1_200 == record.length


# --- Whatever an archive holds

ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "message": st.sampled_from(["a", "a ↴", "a ↵", "↳ r", "Exception: x", "part_row_1.txt", "é" * 700, "\0"])
            | st.none(),
            "state": st.sampled_from(["success", "warning", "error", "x" * 99, None]),
            "type": st.sampled_from(["text", "head", "raw", "media", "odd", 7]),
        },
        optional={
            "at": st.sampled_from([0, 1_767_323_045, 1_767_323_046, -5, 2**70, "no", 1.5]),
            "level": st.integers(-1, 3),
            "size": st.sampled_from([-1, 0, 10, 200_000, 2**70, "no"]),
            "ns": st.sampled_from([0, START_NS, START_NS + 5, -5, 2**80, "no"]),
            "span": st.sampled_from(["a" * 16, "b" * 16, "0" * 16, "", "no", 5]),
            "parent": st.sampled_from(["a" * 16, "b" * 16, "c" * 16, None, 5]),
        },
    ),
    max_size=25,
)


def read_beside(name: str, most: int) -> bytes:
    """A message of 200,000 bytes beside the trace."""
    return b"\xff" + b"y" * (199_999 if most < 0 else most - 1)


@given(ENTRIES, st.sampled_from([PREVIEWS, PREVIEWS._replace(spans=1, places=2, budget=500), Extent(span=100_000)]))
@settings(max_examples=150)
def test_any_entries_are_a_trace(stored: list[Stored], extent: Extent) -> None:
    """Whatever is in an archive: spans are well formed, one tree, and each line is on one of them or counted."""
    record = sample_record(length=len(stored), state="error")
    trace = ArchivedTrace(record, [Entry(each) for each in stored], extent, read=read_beside)
    spans = list(trace.spans())
    request_of(spans).SerializeToString()
    ids = [span.span_id for span in spans]
    assert len(set(ids)) == len(ids) == trace.count
    assert all(re.fullmatch("[0-9a-f]{16}", each) and each != "0" * 16 for each in ids)
    known: set[str] = set()
    for span in spans:
        assert span.parent_id is None if not known else span.parent_id in known
        known.add(span.span_id)
        assert 0 <= span.start_ns <= span.end_ns < 2**64
        assert all(0 <= event.ns < 2**64 for event in span.events)
    places = [event.attributes["trifle.line"] for span in spans for event in span.events if event.name != "exception"]
    assert len(set(places)) == len(places)
    omitted = spans[0].attributes.get("trifle.lines_omitted", 0)
    opened_or_closed = len(stored) - len(places) - omitted
    assert len(spans) - 1 <= opened_or_closed <= 2 * (len(spans) - 1)
    if extent.span:
        assert all(request_of([span]).ByteSize() <= extent.span for span in spans)


@given(st.lists(st.integers(0, 30_000), max_size=60), st.integers(30_000, 120_000))
@settings(max_examples=40)
def test_full_spans_fit_into_requests(sizes: list[int], most: int) -> None:
    """However many values of whatever sizes a span has, it is no larger than allowed, and as full as it can be."""
    entries = [Entry(entry("x" * size, ns=START_NS + number)) for number, size in enumerate(sizes)]
    trace = ArchivedTrace(sample_record(meta="m" * 20_000), entries, Extent(span=most))
    (span,) = trace.spans()
    size = request_of([span]).ByteSize()
    assert size <= most
    cut = [event for event in span.events if "trifle.text_size" in event.attributes]
    assert len(cut) + ("…" in span.attributes["trifle.meta"]) == trace.shortened
    if cut or trace.lines_omitted:
        assert size > most * 0.5


# --- Refusals


def lines(count: int, size: int = 10) -> list[Stored]:
    """So many blocks, each with a result of so many bytes."""
    found = []
    for number in range(count):
        span = f"{number + 1:016x}"
        found += [
            entry(f"block {number} ↴", span=span, parent="a", ns=START_NS + number),
            entry(f"block {number} ↵", span=span, ns=START_NS + number),
            entry("↳ " + "x" * size, kind="raw", span=span, ns=START_NS + number),
        ]
    return found


def test_a_request_that_is_refused_does_not_end_it(archive: Archive, http: HttpServer) -> None:
    """The other requests are sent; the traces that were in it are named, and what the server said."""
    records = [add(archive, lines(300), reference=f"r{number}") for number in range(3)]
    http.replies = [Reply(400, {"content-type": "text/plain"}, b"no such field")]
    report = replay(archive, records, http.endpoint)
    assert (report.spans, report.refused, report.requests) == (903 - 512, 512, 1)
    assert list(report.failed) == ["r0", "r1"]
    assert report.problems == ["512 spans of r0 and 1 more refused: 400 Bad Request no such field"]
    assert len(http.spans) == 903 - 512


def test_a_smaller_limit_of_a_server_is_found(archive: Archive, http: HttpServer, monkeypatch: Any) -> None:
    """What is too large for this server is sent in smaller requests, until they are taken."""
    monkeypatch.setitem(SERVER_LIMITS, "http/protobuf", 20_000)
    record = add(archive, lines(100, 1_000))
    report = replay(archive, [record], http.endpoint)
    assert len(http.spans) == report.spans == 101
    assert report.failed == {}
    assert len({span.span_id for span in http.spans}) == 101


def test_spans_that_a_server_leaves_out_are_counted(archive: Archive, http: HttpServer) -> None:
    """A partial success is a failure of the traces that it is about, though not of all their spans."""
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 2
    partial.partial_success.error_message = "too old"
    http.replies = [Reply(200, {}, partial.SerializeToString())]
    report = replay(archive, [add(archive, lines(9))], http.endpoint)
    assert (report.spans, report.refused) == (8, 2)
    assert "too old" in report.problems[0]
    assert len(report.failed) == 1


def test_an_endpoint_that_goes_away_ends_it(archive: Archive, http: HttpServer) -> None:
    """What was sent until then is in the account."""
    records = [add(archive, lines(600), reference=f"r{number}") for number in range(3)]
    http.replies = [Reply(), Reply(), Reply(401)]
    with replaying(archive, http) as work, pytest.raises(TrifleError, match="401"):
        work.run(records)
    assert (work.report.traces, work.report.requests, work.report.spans) == (1, 2, 1_024)


def test_an_endpoint_that_goes_away_leaves_no_trace_untold(archive: Archive, http: HttpServer) -> None:
    """Every trace of which spans were made is counted as sent, or named as one that was not, or not wholly."""
    records = [add(archive, lines(600), reference=f"r{number}") for number in range(3)]
    http.replies = [Reply(), Reply(), Reply(401)]
    with replaying(archive, http) as work, pytest.raises(TrifleError, match="401"):
        work.run(records)
    assert list(work.report.failed) == ["r1", "r2"]


@pytest.mark.parametrize("reads", [1, 3, 4])
def test_a_store_that_fails_midway_leaves_no_span_untold(
    archive: Archive, http: HttpServer, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """What was read until then is sent and counted; the trace that could not be read is named."""
    records = [add(archive, lines(299), reference=f"r{number}") for number in range(5)]
    read = archive.entries

    def entries(record: TraceRecord | str) -> Any:
        if record is records[reads]:
            raise StoreUnavailable("it is down")
        return read(record)

    monkeypatch.setattr(archive, "entries", entries)
    with replaying(archive, http) as work, pytest.raises(StoreUnavailable, match="it is down"):
        work.run(records)
    report = work.report
    assert (report.traces, report.spans, len(http.spans)) == (reads, 300 * reads, 300 * reads)
    assert list(report.failed) == [f"r{reads}"]


def test_an_index_that_fails_midway_leaves_no_span_untold(archive: Archive, http: HttpServer) -> None:
    """Of the traces that a search has found so far everything is sent, before it is said that there may be more."""

    def found() -> Iterator[TraceRecord]:
        yield add(archive, lines(9))
        raise StoreUnavailable("it is down")

    with replaying(archive, http) as work, pytest.raises(StoreUnavailable, match="it is down"):
        work.run(found())
    assert (work.report.traces, work.report.spans, len(http.spans)) == (1, 10, 10)


def replaying(archive: Archive, server: OtlpServer, **options: Any) -> Any:
    """A replay whose report can be seen while it runs."""
    from contextlib import contextmanager

    from trifle_otel.otlp.endpoint import endpoint_of
    from trifle_otel.otlp.sending import Sender

    @contextmanager
    def begin() -> Iterator[Replay]:
        with Sender(endpoint_of(server.endpoint)) as sender:
            yield Replay(archive, sender, **options)

    return begin()


def test_damage_is_told_and_the_rest_sent(archive: Archive, http: HttpServer) -> None:
    """A part or a message that is missing makes the trace one that was not wholly sent; what is there is sent."""
    record = add(archive, [entry("a line"), entry("part_row_x.txt", kind="media", size=200_000)], parts=2)
    (root,) = sent(archive, record, http).values()
    report = replay(archive, [record], http.endpoint)
    assert [event[2]["trifle.text"] for event in events_of(root)] == ["a line", "part_row_x.txt"]
    assert list(report.failed) == [record.reference]
    assert len(report.problems) == 2
    assert "part 2" in report.problems[0]
    assert "part_row_x.txt" in report.problems[1]


def test_a_message_that_is_no_file_is_told_and_the_rest_sent(archive: Archive, http: HttpServer) -> None:
    """A link in the place of a message that lies beside is not followed, and ends nothing."""
    record = add(archive, [entry("a line"), entry("part_row_x.txt", kind="media", size=200_000)])
    artifacts = Path("traces", record.folder.path, "artifacts")
    artifacts.mkdir()
    (artifacts / "part_row_x.txt").symlink_to("/etc/hostname")
    report = replay(archive, [record], http.endpoint)
    assert (report.traces, report.spans, list(report.failed)) == (1, 1, [record.reference])
    assert "part_row_x.txt" in report.problems[0]


# --- Pace


class FakeTime:
    """A clock that goes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Taker:
    """An endpoint that notes when requests came, and how many spans they had."""

    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.came: list[tuple[float, int]] = []

    def send(self, request: Any) -> Any:
        """Take a request."""
        from trifle_otel.otlp.sending import Answer

        self.came.append((self.time.now, sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)))
        return Answer()


@pytest.mark.parametrize("rate", [0.5, 40, 100, 10_000])
def test_no_more_spans_a_second_than_allowed(archive: Archive, rate: float) -> None:
    """Until any moment no more than one second's spans were sent beyond what the rate allows until then."""
    time = FakeTime()
    taker = Taker(time)
    record = add(archive, lines(99))
    Replay(archive, taker, rate=rate, clock=time.clock, sleep=time.sleep).run([record])
    so_far = 0
    for now, spans in taker.came:
        so_far += spans
        assert so_far <= rate * now + max(rate, 1)
    assert so_far == 100
    assert time.now <= 100 / rate


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_above_nothing(archive: Archive, rate: float) -> None:
    """A rate that would never send anything is wrong use."""
    with pytest.raises(UsageError, match="rate"):
        Replay(archive, None, rate=rate)


def test_progress_is_told_for_each_trace(archive: Archive) -> None:
    """Each trace is told once, when all of it was sent."""
    records = [add(archive, lines(2), reference=f"r{number}") for number in range(5)]
    told: list[int] = []
    report = Replay(archive, None).run(records, progress=lambda: told.append(1))
    assert isinstance(report, Report)
    assert len(told) == report.traces == 5
