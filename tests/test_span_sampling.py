"""Traces that are sampled out, have no SDK, or one that misbehaves: the archive is complete, the job unharmed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry import trace as otel
from opentelemetry.context import Context, attach, get_current
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.util.types import Attributes
from spans import (
    Sdk,
    assert_every_line_is_accounted_for,
    attributes,
    lines,
    parent_id,
    span_id,
    texts,
)

import trifle_otel as trifle
from trifle_otel import runtime
from trifle_otel.runtime import Runtime
from trifle_otel.settings import Settings


@pytest.fixture
def sdk() -> Sdk:
    """This process set up with an SDK that keeps its spans, and an archive in memory."""
    return Sdk().configure()


@pytest.fixture(autouse=True)
def context_restored() -> Iterator[None]:
    """What is current before a test is current after it."""
    before = get_current()
    yield
    assert get_current() == before


def remote_parent(sampled: bool) -> Context:
    """A context in which a span of another process is current."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    span = SpanContext(int("1" * 32, 16), int("2" * 16, 16), is_remote=True, trace_flags=flags)
    return otel.set_span_in_context(NonRecordingSpan(span))


def traceparent() -> str | None:
    """What would be sent to another process now."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


# sampled out, and no SDK


class Only(Sampler):
    """Drops spans whose name has a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See the SDK's `Sampler`."""
        if self.word == "raise":
            raise ValueError("a sampler of the application's")
        dropped = self.word in name
        return SamplingResult(Decision.DROP if dropped else Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        """See the SDK's `Sampler`."""
        return "Only"


def run_a_job() -> tuple[SpanContext, str | None]:
    """A job of 8 lines; gives what is current in its block, and what would be propagated from there."""
    with trifle.tracer("a/job"):
        trifle.trace("one")
        with trifle.block("Step") as step:
            trifle.trace("two")
            step.result(3)
            current = otel.get_current_span().get_span_context()
            sent = traceparent()
        trifle.trace("four")
        trifle.fail()
    return current, sent


JOB = ["Tracer has been initialized for a/job", "one", "Step ↴", "two", "Step ↵", "↳ 3", "four"]


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)])
def test_a_trace_that_is_sampled_out_is_complete_in_the_archive(sampler: Sampler) -> None:
    """No span of it is exported, its archive has every line and its span's ids, and its decision is what propagates."""
    sdk = Sdk(sampler=sampler).configure()
    current, sent = run_a_job()
    assert sdk.spans == []
    assert [entry.message for entry in sdk.entries] == JOB
    assert sdk.record.state == "error"
    assert sdk.record.trace_id == f"{current.trace_id:032x}"
    assert sdk.record.span_id == f"{current.span_id:016x}"
    assert current.is_valid
    assert sent == f"00-{sdk.record.trace_id}-{sdk.record.span_id}-{sent[-2:] if sent else ''}"
    assert sent is not None
    assert not int(sent[-2:], 16) & TraceFlags.SAMPLED


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "sampled out"])
def test_a_trace_that_processors_alone_see_is_one_that_was_sampled_out(sampler: Sampler) -> None:
    """So that it can be found, and replayed, with the others that no backend has."""
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    if not hasattr(sampling, "AlwaysRecordSampler"):
        pytest.skip("this SDK has no AlwaysRecordSampler")
    sdk = Sdk(sampler=sampling.AlwaysRecordSampler(sampler)).configure()
    run_a_job()
    assert sdk.record.context["sampled"] is (sampler is ALWAYS_ON)
    assert [entry.message for entry in sdk.entries] == JOB


@pytest.mark.parametrize("sampled", [True, False])
def test_the_decision_of_a_remote_parent_holds(sampled: bool) -> None:
    """A trace under a parent from elsewhere is sampled as the parent is, and continues its trace."""
    sdk = Sdk(sampler=DEFAULT_ON).configure()
    before = get_current()
    attach(remote_parent(sampled))
    current, sent = run_a_job()
    attach(before)
    assert len(sdk.spans) == (2 if sampled else 0)
    assert [entry.message for entry in sdk.entries] == JOB
    assert sdk.record.trace_id == "1" * 32 == f"{current.trace_id:032x}"
    assert sdk.record.span_id not in ("2" * 16, None)
    assert sent is not None
    assert int(sent[-2:], 16) & TraceFlags.SAMPLED == sampled


def test_without_an_sdk_ids_are_made_up_for_the_archive_and_never_current() -> None:
    """Nothing is current and nothing propagated, which would tell others that they are sampled out."""
    archive = trifle.configure("memory:")
    current, sent = run_a_job()
    assert not current.is_valid
    assert sent is None
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert re.fullmatch("(?!0{32})[0-9a-f]{32}", record.trace_id or "")
    assert re.fullmatch("(?!0{16})[0-9a-f]{16}", record.span_id or "")
    entries = archive.entries(record)
    assert [entry.message for entry in entries] == JOB
    assert len({entry.span for entry in entries}) == 2


@pytest.mark.parametrize("sampled", [True, False])
def test_without_an_sdk_a_parent_from_elsewhere_is_propagated_as_it_is(sampled: bool) -> None:
    """The archive has the parent's trace id and a span id of its own; what goes on is the parent's, flags included."""
    archive = trifle.configure("memory:")
    before = get_current()
    attach(remote_parent(sampled))
    around = traceparent()
    _, sent = run_a_job()
    attach(before)
    assert sent == around == f"00-{'1' * 32}-{'2' * 16}-{'01' if sampled else '00'}"
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert record.trace_id == "1" * 32
    assert record.span_id != "2" * 16


def test_without_an_archive_a_sampled_out_trace_still_decides_for_what_is_inside() -> None:
    """Spans of others inside are dropped with it, and do not become roots with a lot of their own."""
    sdk = Sdk(sampler=ParentBased(Only("job")))
    runtime.install(Runtime(Settings(tracer_provider=sdk.provider), None))
    app = sdk.provider.get_tracer("app")
    with trifle.tracer("a/job"), trifle.block("Step"):
        app.start_span("SELECT").end()
    app.start_span("outside").end()
    assert [span.name for span in sdk.spans] == ["outside"]


def test_a_block_that_the_sampler_drops_loses_no_line() -> None:
    """Its lines are on the span around it, and what is made inside is a child of that."""
    sdk = Sdk(sampler=Only("noise")).configure()
    with trifle.tracer("a/job"), trifle.block("noise"):
        trifle.trace("inside")
        with trifle.block("Inner"):
            pass
    assert [span.name for span in sdk.spans] == ["Inner", "a/job"]
    assert parent_id(sdk.named("Inner")) == span_id(sdk.root)
    assert texts(sdk.root)[-1] == "inside"
    assert attributes(sdk.root)["trifle.blocks_omitted"] == 1
    assert_every_line_is_accounted_for(sdk)


# what misbehaves


class Broken(SpanProcessor):
    """A processor that raises where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See the SDK's `SpanProcessor`."""
        if self.where == "start" or (self.where == "start of a block" and span.name == "Step"):
            raise ValueError("on_start of the application's")

    def on_end(self, span: ReadableSpan) -> None:
        """See the SDK's `SpanProcessor`."""
        if self.where == "end":
            raise ValueError("on_end of the application's")


class NoTracer(otel.TracerProvider):
    """A provider that raises."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> otel.Tracer:
        """See OpenTelemetry's `TracerProvider`."""
        raise ValueError("a provider of the application's")


@pytest.mark.parametrize(
    "provider",
    [
        Sdk(processors=[Broken("start")]).provider,
        Sdk(processors=[Broken("start of a block")]).provider,
        Sdk(processors=[Broken("end")]).provider,
        Sdk(sampler=Only("raise")).provider,
        NoTracer(),
    ],
    ids=["on_start", "on_start of a block", "on_end", "sampler", "get_tracer"],
)
def test_a_fault_of_the_application_s_telemetry_stops_neither_job_nor_archive(provider: Any) -> None:
    """A processor, sampler or provider that raises is counted; the job runs, and its archive is complete."""
    faults: list[BaseException] = []
    archive = trifle.configure("memory:", tracer_provider=provider, error_handler=faults.append)
    run_a_job()
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert [entry.message for entry in archive.entries(record)] == JOB
    assert record.state == "error"
    assert re.fullmatch("[0-9a-f]{32}", record.trace_id or "")
    assert faults
    assert {type(fault) for fault in faults} == {ValueError}


def test_where_the_sampler_raises_the_archive_has_the_trace_id_of_what_is_around() -> None:
    """The ids are made up, but a trace that a parent from elsewhere has begun is continued."""
    sdk = Sdk(sampler=Only("raise")).configure()
    before = get_current()
    attach(remote_parent(True))
    _, sent = run_a_job()
    attach(before)
    assert sdk.record.trace_id == "1" * 32
    assert sent == f"00-{'1' * 32}-{'2' * 16}-01"


def test_a_span_that_somebody_else_ended_takes_no_line_with_it(sdk: Sdk, caplog: pytest.LogCaptureFixture) -> None:
    """Its lines are counted as omitted, and nothing is set on a span that has ended."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            trifle.trace("inside")
            otel.get_current_span().end()
        trifle.trace("after")
    assert lines(sdk.named("Step")) == []
    assert attributes(sdk.root)["trifle.lines_omitted"] == 2
    assert_every_line_is_accounted_for(sdk)
    assert caplog.text == ""


def test_a_provider_set_after_configure_is_used() -> None:
    """The application may set its global provider whenever it likes; it is not replaced."""
    script = """
import trifle_otel as trifle
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

archive = trifle.configure("memory:")
with trifle.tracer("before"):
    pass
exporter = InMemorySpanExporter()
provider = TracerProvider(resource=Resource.create({"service.name": "prices"}))
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trifle.tracer("after"), trifle.block("Step"):
    pass
assert trace.get_tracer_provider() is provider
assert [span.name for span in exporter.get_finished_spans()] == ["Step", "after"]
assert trifle.flush(5)
services = {record.key: record.context.get("service") for record in archive.search().records}
assert services == {"before": None, "after": "prices"}, services
print("as it should be")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, text=True, check=False)
    assert (done.stdout, done.stderr) == ("as it should be\n", "")


# the service


@pytest.mark.parametrize(
    "environment, resource, setting, service",
    [
        ({}, {"service.name": "from the provider"}, {}, "from the provider"),
        ({}, {}, {}, None),
        ({"OTEL_SERVICE_NAME": "named"}, {"service.name": "from the provider"}, {}, "named"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name=price%20list ,c=d"}, {}, {}, "price list"),
        ({"OTEL_SERVICE_NAME": "one", "OTEL_RESOURCE_ATTRIBUTES": "service.name=two"}, {}, {}, "one"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "nonsense"}, {}, {}, None),
        ({"OTEL_SERVICE_NAME": "named"}, {}, {"service": "set"}, "set"),
        ({"OTEL_SERVICE_NAME": "named"}, {}, {"context": {"service": "the user's"}}, "the user's"),
        ({"TRIFLE_SERVICE": "ours", "OTEL_SERVICE_NAME": "named"}, {}, {}, "ours"),
    ],
)
def test_the_record_names_the_service(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    resource: dict[str, str],
    setting: dict[str, Any],
    service: str | None,
) -> None:
    """It is OpenTelemetry's name: of the environment, else of the provider's resource, unless nobody chose one."""
    sdk = Sdk(resource=Resource.create(resource))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sdk.configure(**setting)
    with trifle.tracer("a/job"):
        pass
    assert sdk.record.context.get("service") == service
