"""The whole way, with real programs: a job, the SDK, a collector with the shipped configuration, Jaeger, an archive.

Tempo is stood in for by an OTLP server with the limits that gRPC has. Marked slow: it starts four servers.
"""

from __future__ import annotations

import importlib
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("currency_converter", reason="needs the extra `demo`")
pytest.importorskip("h11", reason="needs the extra `receiver`")

from collector_servers import (
    CONFIG,
    PROMETHEUS,
    Collector,
    Jaeger,
    Receiver,
    SeenSpan,
    answers,
    fetch,
    samples,
    started,
    until,
    with_tail_sampling,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGRPC
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHTTP
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import Span, Tracer, get_current_span
from otlp_servers import GrpcServer, attributes_of
from receiving import call, request_of, span_of
from servers import ServerMissingError

import trifle_otel as trifle
from trifle_otel import Archive, Entry, TraceRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVICE = "price-jobs"
MOST_BYTES = 2048  # of an attribute's value, that Tempo keeps
EXPORTERS = ("otlp_grpc/jaeger", "otlp_grpc/tempo", "otlp_http/archive")
LOSSES = ("refused_spans", "failed_spans")  # ends of the names of metrics that count them


@dataclass
class Bridge:
    """All servers, and what leads to them."""

    jaeger: Jaeger
    tempo: GrpcServer
    receiver: Receiver
    collector: Collector

    def received(self, trace_id: str) -> TraceRecord | None:
        """The record of a trace that the receiver archived."""
        with Archive.open(str(self.receiver.archive)) as archive:
            found = archive.search(trace_id=trace_id).records
        assert len(found) <= 1, "archived twice"
        return found[0] if found else None

    def delivered(self) -> None:
        """Wait until the collector has passed on all that it took."""
        until(self._idle, "the collector has passed on all that it took")

    @contextmanager
    def losing_nothing(self) -> Iterator[None]:
        """What the collector takes meanwhile, each exporter has sent in the end, and nothing was refused."""
        self.delivered()
        before = self._passed_on()
        yield
        self.delivered()
        accepted, *sent = (after - earlier for after, earlier in zip(self._passed_on(), before, strict=True))
        assert accepted > 0
        assert sent == [accepted, accepted, accepted]

    def _passed_on(self) -> list[float]:
        """Spans that were accepted, and spans that each exporter sent."""
        found = self.collector.own_metrics()
        assert not [name for name, value in found.items() if name.endswith(LOSSES) and value]
        sent = [f'otelcol_exporter_sent_spans{{exporter="{name}"}}' for name in EXPORTERS]
        return [found.get(name, 0) for name in ("otelcol_receiver_accepted_spans", *sent)]

    def _idle(self) -> bool:
        found = self.collector.own_metrics()
        waiting = [value for name, value in found.items() if name.startswith("otelcol_exporter_queue_size{exporter=")]
        return len(waiting) == 3 and not any(waiting)


@pytest.fixture(scope="module")
def bridge(server_missing: Callable[[str], NoReturn]) -> Iterator[Bridge]:
    """The servers, for all tests."""
    with ExitStack() as stack:
        tempo = GrpcServer()
        stack.callback(tempo.close)
        try:
            jaeger, receiver = Jaeger(), Receiver()
            collector = Collector(addresses(jaeger, tempo, receiver))
        except ServerMissingError as missing:
            server_missing(str(missing))
        for server in (jaeger, receiver, collector):
            stack.enter_context(started(server))
        yield Bridge(jaeger, tempo, receiver, collector)


def addresses(jaeger: Jaeger, tempo: GrpcServer, receiver: Receiver) -> dict[str, str]:
    """What a collector's environment says of the others."""
    return {
        "JAEGER_ENDPOINT": f"127.0.0.1:{jaeger.otlp}",
        "TEMPO_ENDPOINT": f"127.0.0.1:{tempo.port}",
        "ARCHIVE_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "ARCHIVE_TOKEN": receiver.token,
    }


class Process:
    """An application's process as the tests see it: its provider, and where it archives."""

    def __init__(self, provider: TracerProvider, archive: Archive) -> None:
        self.provider = provider
        self.archive = archive

    def record(self, reference: str) -> TraceRecord:
        """A trace's row, once it is shipped."""
        assert trifle.flush(20)
        return self.archive.find(reference)

    def entries(self, reference: str) -> list[Entry]:
        """Its lines."""
        entries = self.archive.entries(self.record(reference))
        assert not entries.damaged
        return list(entries)


@contextmanager
def process(collector: Collector, sampler: Sampler = ALWAYS_ON, **settings: Any) -> Iterator[Process]:
    """An application that sends spans to a collector; at the end all of them are sent."""
    resource = Resource.create({"service.name": SERVICE})
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OverGRPC(collector.grpc), schedule_delay_millis=100))
    archive = trifle.configure("./traces", tracer_provider=provider, **settings)
    try:
        yield Process(provider, archive)
    finally:
        provider.shutdown()


def blocks_of(entries: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """The blocks of an archived trace: name and parent's id, by id."""
    opened = [entry.stored for entry in entries if "parent" in entry.stored]
    return {entry["span"]: (entry["message"].removesuffix(" ↴"), entry["parent"]) for entry in opened}


def root_of(spans: Sequence[SeenSpan]) -> SeenSpan:
    """The span of the trace itself."""
    (found,) = [s for s in spans if "trifle.reference" in s.attributes and "trifle.pending" not in s.attributes]
    return found


# --- The demonstration job


def test_the_demonstration_job_is_seen_in_jaeger(bridge: Bridge) -> None:
    """Each trace has its key, reference and state there, its blocks nested as archived, and its lines as events."""
    job = importlib.import_module("trifle_otel.examples.price_calculation")
    with process(bridge.collector) as application:
        assert len(list(job.run(job.products(3)))) == 3
    assert trifle.flush(20)
    records = application.archive.search(segment="prices/landed").records
    assert len(records) == 3
    for record in records:
        entries = application.entries(record.reference)
        blocks = blocks_of(entries)
        assert len(blocks) > 50
        spans = bridge.jaeger.trace(record.trace_id or "", len(blocks) + 1)
        assert_shown(record, entries, spans)
        assert_older_api_agrees(bridge.jaeger, spans)
        assert {span.resource["service.name"] for span in spans} == {SERVICE}


def assert_shown(record: TraceRecord, entries: list[Entry], spans: list[SeenSpan]) -> None:
    """A trace is in Jaeger as it is in the archive."""
    root = root_of(spans)
    assert root.span_id == record.span_id
    assert root.name == record.key == root.attributes["trifle.key"]
    assert root.attributes["trifle.reference"] == record.reference
    assert root.attributes["trifle.state"] == record.state == "success"
    assert root.attributes["trifle.lines"] == record.length == len(entries)
    assert "trifle.lines_omitted" not in root.attributes
    others = {span.span_id: (span.name, span.parent_id) for span in spans if span is not root}
    assert others == blocks_of(entries)
    assert_lines_are_events(entries, spans)


def assert_older_api_agrees(jaeger: Jaeger, spans: list[SeenSpan]) -> None:
    """Jaeger's UI reads another API, in which an event's name is one field among its attributes."""
    answer = json.loads(fetch(jaeger.url(f"/api/traces/{spans[0].trace_id}")))
    (trace,) = answer["data"]
    found = {
        span["spanID"]: [[f["value"] for f in log["fields"] if f["key"] == "event"] for log in span["logs"]]
        for span in trace["spans"]
    }
    assert found == {span.span_id: [[event.name] for event in span.events] for span in spans}


def assert_lines_are_events(entries: list[Entry], spans: list[SeenSpan]) -> None:
    """Each line that is no block's beginning or end is an event of the span that it belongs to, at its time."""
    events = {event.attributes["trifle.line"]: (span, event) for span in spans for event in span.events}
    for number, entry in enumerate(entries, 1):
        if "parent" in entry.stored or entry.message.endswith(" ↵"):
            assert number not in events
            continue
        span, event = events[number]
        assert (span.span_id, event.ns) == (entry.span, entry.ns)
        if entry.type == "media":
            assert event.attributes["trifle.artifact"] == entry.message
        else:
            assert event.attributes[event.name] == entry.message.removeprefix("↳ ")


# --- What is large


def test_five_thousand_lines_and_results_of_5_mb_arrive(bridge: Bridge) -> None:
    """Nothing is refused or lost on the way, previews say what they stand for, and the archive has all of it."""
    texts = ["".join(f"row {number} of {name}, zażółć\n" for number in range(210_000)) for name in ("A", "B")]
    assert all(len(text.encode()) > 5_000_000 for text in texts)
    with bridge.losing_nothing(), process(bridge.collector) as application:
        with trifle.tracer("imports/large") as job:
            for number in range(5000):
                trifle.trace(f"line {number:04}")
            for text in texts:
                with trifle.block("read a file") as step:
                    step.result(text)
        record = application.record(job.reference)

    root, *blocks = sorted(bridge.jaeger.trace(record.trace_id or "", 3), key=lambda span: span.parent_id)
    assert root.attributes["trifle.reference"] == job.reference
    assert root.attributes["trifle.lines"] == record.length > 5000
    shown = root.texts("trifle.text")
    assert len(shown) + root.attributes["trifle.lines_omitted"] + 3 * 2 == record.length  # and two blocks, two results
    assert "line 0000" in shown
    assert "line 4999" in shown
    for span, text in zip(sorted(blocks, key=lambda span: span.start), texts, strict=True):
        assert_preview(span, text, application, record)
    entries = application.entries(job.reference)
    assert [entry.message for entry in entries if entry.message.startswith("line ")] == [
        f"line {number:04}" for number in range(5000)
    ]


def assert_preview(span: SeenSpan, text: str, application: Process, record: TraceRecord) -> None:
    """A block's result: a beginning of it, its size and where the whole is; there, the whole."""
    (event,) = [event for event in span.events if event.name == "trifle.result"]
    whole = repr(text).encode()
    preview, reference = event.attributes["trifle.result"], event.attributes["trifle.result_ref"]
    assert 1000 < len(preview.encode()) <= MOST_BYTES
    assert preview[:1000] == whole.decode()[:1000]
    assert event.attributes["trifle.result_size"] == len(whole)
    found, _, line = reference.partition("#")
    assert found == record.reference
    entry = application.entries(found)[int(line) - 1]
    assert entry.offloaded
    assert application.archive.artifact(record, entry.message).removeprefix("↳ ".encode()) == whole


def test_what_tempo_gets_is_within_its_limits(bridge: Bridge) -> None:
    """No attribute that reaches the second backend is longer than it keeps, whoever made the span."""
    with process(bridge.collector) as application:
        tracer = application.provider.get_tracer("others")
        with tracer.start_as_current_span("query", attributes={"db.query.text": "ż" * 50_000}) as span:
            span.add_event("rows", {"first": "x" * 50_000})
        with trifle.tracer("imports/long line"):
            trifle.trace("ł" * 50_000)
    bridge.delivered()
    names = {sent.name for sent in bridge.tempo.spans}
    assert {"query", "imports/long line"} <= names
    for sent in bridge.tempo.spans:
        for owner in (sent, *sent.events):
            values = [value for value in attributes_of(owner).values() if isinstance(value, str)]
            assert all(len(value.encode()) <= MOST_BYTES for value in values), sent.name


# --- Others' spans, by way of the collector, into the archive


def test_a_plain_trace_is_archived_behind_the_collector(bridge: Bridge) -> None:
    """Spans of an application without trifle_otel become an archived trace, 5 MB values included, secrets not."""
    long = " ".join(f"row-{number:07}" for number in range(420_000))
    with plain_application(bridge.collector) as tracer, tracer.start_as_current_span("nightly import") as root:
        with tracer.start_as_current_span("query", attributes={"answer": long}) as query:
            query.add_event("rows were read", {"rows": 3})
        with tracer.start_as_current_span(
            "call", attributes={"http.request.header.authorization": "hunter2"}
        ) as request:
            pass

    record = until(lambda: bridge.received(trace_id_of(root)), "the trace in the receiver's archive")
    assert (record.key, record.state, record.span_id) == ("nightly import", "success", span_id_of(root))
    assert record.context["service"] == "shop"
    with Archive.open(str(bridge.receiver.archive)) as archive:
        entries = list(archive.entries(record))
        stored = [archive.artifact(record, e.message).decode() if e.offloaded else e.message for e in entries]
    names = {span_id_of(query): "query", span_id_of(request): "call"}
    assert blocks_of(entries) == {span: (name, span_id_of(root)) for span, name in names.items()}
    assert [e.span for e, text in zip(entries, stored, strict=True) if long in text] == [span_id_of(query)]
    assert [e.span for e in entries if e.message.startswith("rows were read")] == [span_id_of(query)]
    assert not [text for text in stored if "hunter2" in text]

    seen = {span.name: span for span in bridge.jaeger.trace(trace_id_of(root), 3)}
    assert seen["query"].attributes["answer"] == long[:MOST_BYTES]
    assert seen["call"].attributes["http.request.header.authorization"] == "****"


@contextmanager
def plain_application(collector: Collector) -> Iterator[Tracer]:
    """An application that is instrumented without trifle_otel; at the end all of its spans are sent."""
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OverHTTP(f"{collector.http}/v1/traces")))
    try:
        yield provider.get_tracer("plain")
    finally:
        provider.shutdown()


def trace_id_of(span: Span) -> str:
    """A span's trace id in hex."""
    return f"{span.get_span_context().trace_id:032x}"


def span_id_of(span: Span) -> str:
    """A span's id in hex."""
    return f"{span.get_span_context().span_id:016x}"


def test_a_request_of_12_mb_is_split_for_backends_and_archived_whole(bridge: Bridge) -> None:
    """One request of 6,000 spans, thrice what Jaeger and Tempo take at once, arrives everywhere without a loss."""
    trace = secrets.randbits(128)
    text = KeyValue(key="text", value=AnyValue(string_value="x" * MOST_BYTES))
    spans = [span_of(trace, number, 1, attributes=[text]) for number in range(2, 6001)]
    body = request_of([*spans, span_of(trace, 1)]).SerializeToString()
    assert len(body) > 12_000_000
    with bridge.losing_nothing():
        call(bridge.collector.ports["OTLP_GRPC_PORT"], body)

    record = until(lambda: bridge.received(f"{trace:032x}"), "the trace in the receiver's archive")
    with Archive.open(str(bridge.receiver.archive)) as archive:
        assert len(blocks_of(list(archive.entries(record)))) == 5999
    assert len(bridge.jaeger.trace(f"{trace:032x}", 6000)) == 6000
    assert sum(sent.trace_id.hex() == f"{trace:032x}" for sent in bridge.tempo.spans) == 6000


def test_what_is_archived_already_is_not_archived_again(bridge: Bridge) -> None:
    """A trace of ours that comes through the collector is left out by the receiver behind it."""
    with process(bridge.collector) as application:
        with trifle.tracer("imports/once"):
            trifle.trace("a line")
            ours = trifle.current()
            assert ours is not None
        with application.provider.get_tracer("others").start_as_current_span("after it") as later:
            pass
    bridge.delivered()
    assert until(lambda: bridge.received(trace_id_of(later)), "a trace that was sent after ours, in the archive")
    assert bridge.received(application.record(ours.reference).trace_id or "") is None


# --- Down and up again


def test_what_waits_survives_the_collectors_death(bridge: Bridge) -> None:
    """With Jaeger away and the collector killed right after it took a trace, all of it is in Jaeger in the end."""
    bridge.jaeger.stop()
    with process(bridge.collector) as application, trifle.tracer("imports/waits") as job:
        for number in range(20):
            with trifle.block(f"step {number}"):
                trifle.trace("a line")
    bridge.collector.kill()
    bridge.collector.start()
    bridge.jaeger.start()
    spans = bridge.jaeger.trace(application.record(job.reference).trace_id or "", 21)
    assert root_of(spans).attributes["trifle.reference"] == job.reference


def test_what_waits_for_the_archive_is_archived_when_it_is_back(bridge: Bridge) -> None:
    """The receiver behind the collector may be away: nothing is refused or lost."""
    with bridge.losing_nothing():
        bridge.receiver.stop()
        with plain_application(bridge.collector) as tracer, tracer.start_as_current_span("while it is away") as root:
            pass
        assert bridge.jaeger.trace(trace_id_of(root), 1)
        bridge.receiver.start()
    assert until(lambda: bridge.received(trace_id_of(root)), "the trace in the archive")


def test_a_job_does_not_notice_that_the_collector_is_down(bridge: Bridge) -> None:
    """Its archive is whole while the collector is away; when it comes back within the SDK's patience, spans arrive."""
    bridge.collector.stop()
    with process(bridge.collector) as application:
        with trifle.tracer("imports/unnoticed") as job:
            trifle.trace("a line")
        assert [entry.message for entry in application.entries(job.reference)][-1] == "a line"
        bridge.collector.start()
    (span,) = bridge.jaeger.trace(application.record(job.reference).trace_id or "", 1)
    assert span.attributes["trifle.reference"] == job.reference


# --- Replay


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_sampled_out_trace_is_replayed_with_its_own_ids(bridge: Bridge, protocol: str) -> None:
    """Jaeger has nothing of it until `trifle-otel replay`; then its ids, nesting and lines are those of the archive."""
    with process(bridge.collector, ALWAYS_OFF) as application, trifle.tracer("imports/sampled-out") as job:
        trifle.trace("before")
        with trifle.block("outer"), trifle.block("inner") as step:
            step.result({"rows": 3})
        trifle.fail()
    record, entries = application.record(job.reference), application.entries(job.reference)
    bridge.delivered()
    assert bridge.jaeger.spans(record.trace_id or "") == []

    endpoint = bridge.collector.http if protocol == "http" else bridge.collector.grpc
    command = [sys.executable, "-m", "trifle_otel", "replay", job.reference, "--endpoint", endpoint]
    command += ["--protocol", "http/protobuf" if protocol == "http" else "grpc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr

    spans = bridge.jaeger.trace(record.trace_id or "", 3)
    root = root_of(spans)
    assert root.span_id == record.span_id
    assert root.attributes["trifle.reference"] == job.reference
    assert root.attributes["trifle.state"] == "error"
    assert root.status["code"] == 2
    assert {s.span_id: (s.name, s.parent_id) for s in spans if s is not root} == blocks_of(entries)
    assert "before" in root.texts("trifle.text")
    (inner,) = [span for span in spans if span.name == "inner"]
    assert inner.texts("trifle.result") == ["{'rows': 3}"]
    bridge.delivered()
    assert bridge.received(record.trace_id or "") is None


# --- Tail sampling, as the configuration's comment has it


def test_a_job_longer_than_the_verdict_takes_is_kept_by_its_pending_span(bridge: Bridge) -> None:
    """The verdict over a running job is final: by the pending span's key it is kept whole, or not at all."""
    config = with_tail_sampling(CONFIG.read_text()).replace("decision_wait: 30s", "decision_wait: 1s")
    config = config.replace("sampling_percentage: 5", "sampling_percentage: 0")
    sampling = Collector(addresses(bridge.jaeger, bridge.tempo, bridge.receiver), config)
    with started(sampling), process(sampling, pending_span=True) as application:
        with trifle.tracer("prices/long") as kept, trifle.block("a step"):
            trace_id = trace_id_of(get_current_span())
            (pending,) = bridge.jaeger.trace(trace_id, 1)  # so the verdict is passed, while the job runs
            assert pending.attributes["trifle.key"] == "prices/long"
        with trifle.tracer("reports/long"):
            until(lambda: judged(sampling, "global_count_traces_sampled", "false"), "a verdict over the other job")
            dropped = trace_id_of(get_current_span())
            trifle.fail()
        application.provider.force_flush()
        spans = bridge.jaeger.trace(trace_id, 3)
        assert root_of(spans).attributes["trifle.reference"] == kept.reference
        until(lambda: judged(sampling, "early_releases_from_cache_decision", "false"), "the other job's end")
    assert bridge.jaeger.spans(dropped) == []


def judged(collector: Collector, what: str, kept: str) -> float | None:
    """How many traces, or late spans, were judged so by tail sampling."""
    return collector.own_metrics().get(f'otelcol_processor_tail_sampling_{what}{{sampled="{kept}"}}')


# --- Metrics of jobs

METRICS_SCRIPT = """
import sys
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
import trifle_otel as trifle
from trifle_otel.receiver.metrics import ReceiverMetrics
from trifle_otel.runtime import runtime

provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(sys.argv[1] + "/v1/metrics"))])
metrics.set_meter_provider(provider)
trifle.configure("./traces")
for number in range(3):
    with trifle.tracer("jobs/one"):
        if number == 2:
            trifle.fail()
assert trifle.flush(5)
runtime().sink.metrics.problem("retry", 1)
class Waits:
    def bytes(self):
        return 7
waits = Waits()
receiver = ReceiverMetrics(waits.bytes)
receiver.request("accepted")
receiver.spans(2, 1)
provider.shutdown()
"""


def test_metrics_of_jobs_are_what_the_dashboard_asks_for(bridge: Bridge) -> None:
    """Prometheus reads each of our metrics from the collector, under the name that the dashboard has for it."""
    command = [sys.executable, "-c", METRICS_SCRIPT, bridge.collector.http]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    text = until(lambda: text_with("trifle_traces_total", bridge.collector), "metrics of jobs")
    found = {name.partition("{")[0] for name in samples(text) if name.startswith("trifle_")}
    histogram = {f"trifle_duration_seconds_{part}" for part in ("bucket", "sum", "count")}
    assert found == {*PROMETHEUS.values()} - {"trifle_duration_seconds"} | histogram
    assert samples(text)['trifle_traces_total{trifle_state="error"}'] == 1
    assert samples(text)['trifle_traces_total{trifle_key="jobs/one"}'] == 3
    # Where Prometheus counts from 0 for a process that is gone before it looks twice: it asks for this form.
    kind = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text"
    (family,) = [text for text in bridge.collector.job_metrics(kind).split("\n\n") if "trifle_traces_total" in text]
    assert "created_timestamp" in family


def text_with(name: str, collector: Collector) -> str | None:
    """The metrics of jobs, where a name is among them."""
    text = collector.job_metrics()
    return text if f"\n{name}" in text else None


def test_the_collector_says_how_it_is(bridge: Bridge, own_folder: Path) -> None:
    """Its health check answers, and its own metrics have the names that the configuration tells to watch."""
    assert answers(f"http://127.0.0.1:{bridge.collector.port}")
    with process(bridge.collector), trifle.tracer("imports/one"):
        pass
    bridge.delivered()
    found = bridge.collector.own_metrics()
    assert found["otelcol_receiver_accepted_spans"] >= 1
    assert found["otelcol_receiver_refused_spans"] == 0
