"""The small span at the start of a trace by which a running job is seen, through the real SDK."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from spans import Sdk, attributes, parent_id, scope, span_id

import trifle_otel as trifle
from trifle_otel.runtime import runtime


@pytest.fixture
def sdk() -> Sdk:
    """This process set up with an SDK that keeps its spans, an archive in memory, and pending spans."""
    return Sdk().configure(pending_span=True)


def pending(sdk: Sdk) -> list[ReadableSpan]:
    """The pending spans."""
    return [span for span in sdk.spans if "trifle.pending" in attributes(span)]


def test_a_running_trace_is_seen(sdk: Sdk) -> None:
    """As soon as a trace runs, one small span has ended that says its key, its reference and where its archive is."""
    with trifle.tracer("a/job", kind=SpanKind.CONSUMER, retention=30) as job:
        [span] = sdk.spans
        assert span.name == "a/job (pending)"
        found = attributes(span)
        assert found == {
            "trifle.key": "a/job",
            "trifle.reference": job.reference,
            "trifle.archive": found["trifle.archive"],
            "trifle.pending": True,
        }
        assert found["trifle.archive"].endswith(f"/30/a/job/{job.reference}")
    assert (span.kind, span.events) == (SpanKind.INTERNAL, ())


def test_it_is_a_child_of_the_traces_own_span_and_lasts_no_time(sdk: Sdk) -> None:
    """It starts and ends at one moment, after the trace's span and before the trace's first line."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        pass
    [span] = pending(sdk)
    root = sdk.named("a/job")
    assert parent_id(span) == span_id(root)
    assert scope(span) == "trifle_otel"
    assert span.start_time == span.end_time
    times = [root.start_time, span.start_time, sdk.entries[0].ns]
    assert times == sorted(times, key=lambda time: time or 0)
    assert parent_id(sdk.named("Step")) == span_id(root)


def test_it_says_of_the_archive_what_the_traces_span_says(sdk: Sdk) -> None:
    """Reference and archive are those of the trace, in both modes."""
    for mode in ("live", "deferred"):
        sdk.exporter.clear()
        with trifle.tracer("a/job", mode=mode):
            pass
        [span], root = pending(sdk), attributes(sdk.named("a/job"))
        for name in ("trifle.key", "trifle.reference", "trifle.archive"):
            assert attributes(span)[name] == root[name]


def test_each_trace_has_one(sdk: Sdk) -> None:
    """A trace inside a trace has its own, below its own span."""
    with trifle.tracer("outer"), trifle.tracer("inner"):
        assert [span.name for span in sdk.spans] == ["outer (pending)", "inner (pending)"]
    assert parent_id(sdk.named("inner (pending)")) == span_id(sdk.named("inner"))


def test_by_default_there_is_none() -> None:
    """It is a setting, and off."""
    sdk = Sdk().configure()
    with trifle.tracer("a/job"):
        assert sdk.spans == []
    assert [span.name for span in sdk.spans] == ["a/job"]


class RootsAlone(Sampler):
    """Samples spans without a parent."""

    def should_sample(self, parent_context: Any, *_: Any, **__: Any) -> SamplingResult:
        from opentelemetry import trace as otel

        inside = otel.get_current_span(parent_context).get_span_context().is_valid
        return SamplingResult(Decision.DROP if inside else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "RootsAlone"


@pytest.mark.parametrize("sampler, expected", [(ALWAYS_OFF, []), (RootsAlone(), ["a/job"])])
def test_a_trace_that_is_sampled_out_has_none(sampler: Sampler, expected: list[str]) -> None:
    """No span is started where the trace's own does not record, nor exported where the sampler drops it."""
    sdk = Sdk(sampler=sampler).configure(pending_span=True)
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert [span.name for span in sdk.spans] == expected
    assert len(sdk.entries) == 2


def test_it_counts_as_no_block() -> None:
    """`max_spans` is for blocks, and the lines of the archive are none of its business."""
    sdk = Sdk().configure(pending_span=True, max_spans=1)
    with trifle.tracer("a/job"), trifle.block("Step"):
        pass
    found = attributes(sdk.named("a/job"))
    assert [span.name for span in sdk.spans] == ["a/job (pending)", "Step", "a/job"]
    assert "trifle.blocks_omitted" not in found
    assert "trifle.lines_omitted" not in found


def test_a_retention_that_is_decided_at_the_end_is_not_asked_for_at_the_start() -> None:
    """In deferred mode a callable sees the finished trace; until then nobody knows where the archive will be."""
    states: list[str] = []

    def days(trace: Any) -> int:
        states.append(trace.state)
        return 3

    sdk = Sdk().configure(pending_span=True, retention=days, default_mode="deferred")
    with trifle.tracer("a/job"):
        [span] = sdk.spans
        assert "trifle.archive" not in attributes(span)
        assert states == []
    assert states == ["success"]
    assert sdk.record.retention == 3


@pytest.mark.parametrize("key", ["k" * 89, "k" * 90, "k" * 91, "é" * 300])
def test_a_long_key_leaves_room_for_the_word(sdk: Sdk, key: str) -> None:
    """The name has at most 100 characters and says that it is pending; the attribute is whole as far as it goes."""
    with trifle.tracer(key):
        pass
    [span] = pending(sdk)
    assert span.name.endswith(" (pending)")
    assert len(span.name) == min(len(key) + 10, 100)
    assert span.name.removesuffix(" (pending)").rstrip("…").strip("ké") == ""
    assert len(attributes(span)["trifle.key"].encode()) <= 2048


def test_secrets_in_a_key_reach_it_not(sdk: Sdk) -> None:
    """The key is redacted in its name and its attributes."""
    with trifle.tracer("a/password=hunter2secret"):
        pass
    [span] = pending(sdk)
    assert "hunter2" not in span.to_json()
    assert "redacted" in span.name


def test_a_span_that_cannot_be_started_stops_nothing() -> None:
    """A sampler that raises for it alone is told of, and the trace is recorded."""

    class Refusing(RootsAlone):
        def should_sample(self, parent_context: Any, *_: Any, **__: Any) -> SamplingResult:
            if super().should_sample(parent_context).decision is Decision.DROP:
                raise RuntimeError("refused")
            return SamplingResult(Decision.RECORD_AND_SAMPLE)

    faults: list[BaseException] = []
    sdk = Sdk(sampler=Refusing()).configure(pending_span=True, error_handler=faults.append)
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert [str(fault) for fault in faults] == ["refused"]
    assert dict(runtime().troubles.counts) == {"a span could not be started": 1}
    assert len(sdk.entries) == 2
