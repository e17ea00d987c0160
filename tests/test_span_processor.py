"""Spans that others make inside a trace, as lines of it: with the real SDK, and spans made as instrumentations do."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace as otel
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer, TraceState
from opentelemetry.util.types import Attributes
from spans import Sdk, assert_lines_are_where_they_say, attributes, block_named, lines, scope, span_id, tree

import trifle_otel as trifle
from trifle_otel import TrifleSpanProcessor, configuration
from trifle_otel.outline import outline
from trifle_otel.runtime import runtime
from trifle_otel.span_processor import NOT_ENDED

SECOND = 10**9
REQUEST = {"http.request.method": "GET", "url.full": "https://rates.example/v1"}


@pytest.fixture
def sdk() -> Sdk:
    """This process set up with an SDK that keeps its spans, and an archive in memory."""
    return Sdk().configure()


@pytest.fixture
def client(sdk: Sdk) -> Tracer:
    """A tracer of somebody else's."""
    return sdk.provider.get_tracer("some.client")


@pytest.fixture(autouse=True)
def context_restored() -> Iterator[None]:
    """What is current before a test is current after it."""
    before = get_current()
    yield
    assert get_current() == before


# what becomes of a span


def test_a_span_inside_a_trace_is_a_block_of_it(sdk: Sdk, client: Tracer) -> None:
    """Its name opens it, its summary is the result, its own id and times are those of its lines."""
    with trifle.tracer("a/job"), trifle.block("Loading"):
        span = client.start_span("GET", attributes=REQUEST, start_time=5 * SECOND + 7)
        span.set_attribute("http.response.status_code", 200)
        span.end(6 * SECOND)
    assert tree(sdk.entries) == ["Loading", "  GET", "    = GET https://rates.example/v1 → 200", "  = None"]
    block = block_named(sdk.entries, "GET")
    opened = sdk.entries[block.opened]
    assert (opened.ns, opened.state, opened.level) == (5 * SECOND + 7, "success", 1)
    assert opened.at.timestamp() == 5
    assert (block.start_ns, block.end_ns, block.state) == (5 * SECOND + 7, 6 * SECOND, "success")
    assert opened.span == span_id(sdk.named("GET"))
    assert block.parent is not None
    assert block.parent.message == "Loading"


def test_spans_inside_spans_are_blocks_inside_blocks(sdk: Sdk, client: Tracer) -> None:
    """A span whose parent is another one of the trace lies in that one's block."""
    with trifle.tracer("a/job"):
        with client.start_as_current_span("SELECT"), client.start_as_current_span("connect"):
            client.start_span("resolve").end()
        client.start_span("COMMIT").end()
    assert tree(sdk.entries) == [
        *("SELECT", "  connect", "    resolve", "      = resolve", "    = connect", "  = SELECT"),
        *("COMMIT", "  = COMMIT"),
    ]


def test_lines_of_the_job_stay_where_they_are(sdk: Sdk, client: Tracer) -> None:
    """A foreign span is not current for us: what the job records meanwhile is where it would be without it."""
    with trifle.tracer("a/job"), client.start_as_current_span("GET"):
        trifle.trace("a line")
        with trifle.block("Step"):
            client.start_span("inner").end()
    assert tree(sdk.entries) == ["GET", "a line", "Step", "  inner", "    = inner", "  = None", "  = GET"]


@pytest.mark.parametrize("max_spans", [0, 1000])
def test_a_span_lies_in_whatever_is_further_in(max_spans: int) -> None:
    """Of the job's block and the foreign span around a span the inner one holds it, with spans of blocks or without."""
    sdk = Sdk().configure(max_spans=max_spans)
    client = sdk.provider.get_tracer("some.client")
    with trifle.tracer("a/job"), client.start_as_current_span("outside"):
        with trifle.block("Step"), client.start_as_current_span("inside"):
            client.start_span("innermost").end()
        client.start_span("beside").end()
    found = {block.message: block.parent and block.parent.message for block in outline(sdk.entries).blocks}
    assert found == {"outside": None, "Step": None, "inside": "Step", "innermost": "inside", "beside": "outside"}


def test_a_span_with_another_context_lies_in_its_parent(sdk: Sdk, client: Tracer) -> None:
    """Where a span is made in a context of its own, its parent's block holds it, whichever block is current."""
    with trifle.tracer("a/job"):
        outer = client.start_span("outer")
        context = otel.set_span_in_context(outer)
        with trifle.block("Step"):
            client.start_span("inner", context=context).end()
        outer.end()
    inner = block_named(sdk.entries, "inner")
    assert inner.parent is not None
    assert inner.parent.message == "outer"


def test_a_span_with_a_context_from_further_out_lies_in_its_parent(sdk: Sdk, client: Tracer) -> None:
    """A span made in a context of before the block in which its parent began still lies in its parent."""
    with trifle.tracer("a/job"):
        before = get_current()
        with trifle.block("Step"), client.start_as_current_span("outer") as outer:
            client.start_span("inner", context=otel.set_span_in_context(outer, before)).end()
    inner = block_named(sdk.entries, "inner")
    assert inner.parent is not None
    assert inner.parent.message == "outer"


def test_events_and_exceptions_are_lines_of_it(sdk: Sdk, client: Tracer) -> None:
    """An event is a line at its own time; an exception is an error with its stack trace, and the block failed."""
    with trifle.tracer("a/job"), suppress(ValueError), client.start_as_current_span("GET") as span:
        span.add_event("retry", {"attempt": 2}, timestamp=3 * SECOND)
        raise ValueError("no rate")
    entries = sdk.entries
    block = block_named(entries, "GET")
    retry, failure, stack = (entries[place] for place in block.lines)
    assert (retry.message, retry.ns, retry.state, retry.type) == ("retry attempt=2", 3 * SECOND, "success", "text")
    assert (failure.message, failure.state, failure.type) == ("Exception: no rate", "error", "text")
    assert stack.message.startswith("Traceback (most recent call last)")
    assert stack.message.endswith("ValueError: no rate")
    assert (stack.state, stack.type) == ("success", "raw")
    assert block.state == "error"
    assert block.result is not None
    assert entries[block.result].message == "↳ GET"
    assert sdk.record.state == "success"  # the job went on


def test_a_status_says_what_went_wrong(sdk: Sdk, client: Tracer) -> None:
    """The description of an error's status is in the result where no exception told the same."""
    with trifle.tracer("a/job"), client.start_as_current_span("GET") as span:
        span.set_status(Status(StatusCode.ERROR, "connection\nrefused"))
    block = block_named(sdk.entries, "GET")
    assert block.state == "error"
    assert tree(sdk.entries) == ["GET", "  = GET: connection refused"]


def test_a_renamed_span_has_its_last_name_as_the_result(sdk: Sdk, client: Tracer) -> None:
    """A span that says nothing else closes with the name that it has then."""
    with trifle.tracer("a/job"), client.start_as_current_span("GET") as span:
        span.update_name("GET /orders/{id}")
    assert tree(sdk.entries) == ["GET", "  = GET /orders/{id}"]


def test_our_own_spans_are_there_once(sdk: Sdk, client: Tracer) -> None:
    """Blocks and traces of ours, nested ones too, are not recorded a second time from their spans."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.trace("a line")
        with trifle.tracer("b/job"):
            client.start_span("GET").end()
    assert trifle.flush()
    shown = {record.key: tree(list(sdk.archive.entries(record))) for record in sdk.archive.search().records}
    assert shown == {"a/job": ["Step", "  a line", "  = None"], "b/job": ["GET", "  = GET"]}


def test_each_line_has_its_place_and_is_accounted_for(sdk: Sdk, client: Tracer) -> None:
    """Numbers of lines on spans of ours count those of foreign spans; each of them stands for its own lines."""
    with trifle.tracer("a/job"):
        trifle.trace("before")
        with client.start_as_current_span("GET") as span, trifle.block("Step") as step:
            span.add_event("retry")
            trifle.trace("inside")
            step.result(42)
        trifle.trace("after")
    assert_lines_are_where_they_say(sdk)
    shown = sum(len(lines(span)) for span in [sdk.root, *sdk.blocks])
    foreign = {span_id(span) for span in sdk.spans if scope(span) == "some.client"}
    theirs = sum(entry.span in foreign for entry in sdk.entries)
    assert theirs == 4  # opened, the event, closed, the result
    assert shown + 2 * len(sdk.blocks) + theirs == attributes(sdk.root)["trifle.lines"] == len(sdk.entries)


def test_secrets_of_others_are_screened(sdk: Sdk, client: Tracer) -> None:
    """What others put into names, attributes and events passes the same redaction as lines of ours."""
    secret = "correct-horse-battery"
    with trifle.tracer("a/job"):
        given = {"http.method": "GET", "http.url": f"https://user:{secret}@rates.example/?api_key={secret}"}
        with client.start_as_current_span(f"login password={secret}", attributes=given) as span:
            span.add_event("sent", {"password": secret})
    assert secret not in "\n".join(entry.message for entry in sdk.entries)
    assert "rates.example" in "\n".join(tree(sdk.entries))


# when spans and traces do not end in order


def test_spans_outside_of_traces_are_nobodys(sdk: Sdk, client: Tracer) -> None:
    """Spans that began before the trace, or begin after it, leave nothing in it."""
    with client.start_as_current_span("before") as before:
        with trifle.tracer("a/job"):
            trifle.trace("a line")
            before.end()
        client.start_span("after").end()
    assert tree(sdk.entries) == ["a line"]


def test_a_span_that_outlives_its_trace_is_closed_with_it(sdk: Sdk, client: Tracer) -> None:
    """A span that is still running when the trace ends is closed then, once, and says so."""
    with trifle.tracer("a/job") as job:
        span = client.start_span("download")
        client.start_span("lost", context=otel.set_span_in_context(span))
    span.add_event("too late")
    span.end()
    assert tree(sdk.entries) == ["download", "  lost", f"    = {NOT_ENDED}", f"  = {NOT_ENDED}"]
    assert job.late == 0


def test_a_span_that_is_never_ended_holds_no_trace(sdk: Sdk, client: Tracer) -> None:
    """What belongs to a trace that has ended is let go of, whatever becomes of the spans that began in it."""
    with trifle.tracer("a/job") as job:
        span = client.start_span("download")
        held = weakref.ref(job)
    del job
    assert trifle.flush()
    gc.collect()
    assert held() is None
    assert span.is_recording()


def test_a_trace_that_fails_closes_what_runs_as_failed(sdk: Sdk, client: Tracer) -> None:
    """An exception that leaves the trace leaves what is open in it, as it does with blocks."""
    with suppress(KeyError), trifle.tracer("a/job"):
        client.start_span("download")
        raise KeyError("x")
    assert block_named(sdk.entries, "download").state == "error"


def test_spans_of_a_context_whose_trace_has_ended_are_nobodys(sdk: Sdk, client: Tracer) -> None:
    """A task that runs on in a trace's context may make spans: they are not counted as late lines of the trace."""
    with trifle.tracer("a/job") as job:
        context = get_current()
    client.start_span("GET", context=context).end()
    assert tree(sdk.entries) == []
    assert job.late == 0
    assert not runtime().troubles.counts


def test_a_call_that_hangs_shows_in_a_live_trace(sdk: Sdk, client: Tracer) -> None:
    """What a span opened is in the archive while it runs, once the trace is flushed."""
    with trifle.tracer("a/job", mode="live") as job, client.start_as_current_span("GET", attributes=REQUEST):
        sink = runtime().sink
        assert sink is not None
        sink.bump(job)
        assert trifle.flush()
        (record,) = sdk.archive.search().records
        assert record.state == "running"
        assert tree(list(sdk.archive.entries(record))) == ["GET"]


def test_a_block_that_ends_before_the_span_it_holds(sdk: Sdk, client: Tracer) -> None:
    """A span may end after the block that it began in: its lines still belong to it, and it lies in that block."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            span = client.start_span("stream")
        span.add_event("chunk")
        span.end()
    stream = block_named(sdk.entries, "stream")
    assert stream.parent is not None
    assert stream.parent.message == "Step"
    assert [sdk.entries[place].message for place in stream.lines] == ["chunk"]


def test_many_spans_do_not_fill_the_memory_of_a_live_trace(sdk: Sdk, client: Tracer) -> None:
    """Lines of foreign spans are flushed like others, once a live trace holds many."""
    with trifle.tracer("a/job", mode="live") as job:
        job.overflow = 100
        most = 0
        for number in range(200):
            client.start_span(f"GET {number}").end()
            most = max(most, len(job.lines or []))
    assert most < 110
    assert len(tree(sdk.entries)) == 400
    assert sdk.record.parts > 3


# threads, forks


def test_spans_of_threads_are_told_apart(sdk: Sdk, client: Tracer) -> None:
    """Threads that share a trace make spans at the same time: each lies where it was made, whole."""
    gate = threading.Barrier(8)

    def work(name: int, job: Any) -> None:
        with trifle.attach(job), trifle.block(f"thread {name}"):
            gate.wait()
            for number in range(50):
                with client.start_as_current_span(f"{name}.{number}"):
                    client.start_span(f"{name}.{number} inner").end()

    with trifle.tracer("a/job") as job:
        threads = [threading.Thread(target=work, args=(name, job)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = outline(sdk.entries)
    assert len(found.blocks) == 8 * 101
    for block in found.blocks:
        if block.parent is not None:
            expected = block.message.removesuffix(" inner") if "inner" in block.message else None
            assert block.parent.message == (expected or f"thread {block.message.split('.')[0]}")
        assert block.closed is not None
        assert block.result is not None
    assert_lines_are_where_they_say(sdk)


def test_a_span_may_end_in_another_thread(sdk: Sdk, client: Tracer) -> None:
    """A span is closed where it was opened, whichever thread ends it."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        span = client.start_span("download")
        thread = threading.Thread(target=span.end)
        thread.start()
        thread.join()
    assert tree(sdk.entries) == ["Step", "  download", "    = download", "  = None"]


_FORKS = """
import os, sys
import trifle_otel as trifle
from opentelemetry.sdk.trace import TracerProvider

provider = TracerProvider(shutdown_on_exit=False)
archive = trifle.configure("./archive", tracer_provider=provider)
client = provider.get_tracer("some.client")
with trifle.tracer("parent"):
    span = client.start_span("around the fork")
    child = os.fork()
    if not child:
        client.start_span("of nobody").end()
        span.end()
        with trifle.tracer("child"):
            client.start_span("of the child").end()
        os._exit(0 if trifle.flush() else 1)
    assert os.waitpid(child, 0)[1] == 0
    span.end()
trifle.flush()
for record in archive.search().records:
    print(record.key, [entry.message for entry in archive.entries(record)][1:])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_records_its_own_alone() -> None:
    """A child's spans are in its own traces; the parent's running span is ended in the parent's, once."""
    done = subprocess.run([sys.executable, "-c", _FORKS], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == [
        "child ['of the child ↴', 'of the child ↵', '↳ of the child']",
        "parent ['around the fork ↴', 'around the fork ↵', '↳ around the fork']",
    ]


# samplers


def test_nothing_is_known_of_spans_that_are_sampled_out() -> None:
    """Spans that the sampler drops reach no processor; the trace itself is archived."""
    sdk = Sdk(sampler=ParentBased(ALWAYS_OFF)).configure()
    with trifle.tracer("a/job"):
        sdk.provider.get_tracer("some.client").start_span("GET").end()
        trifle.trace("a line")
    assert tree(sdk.entries) == ["a line"]


class Handing(Sampler):
    """Another sampler, that hands on the attributes of spans that it drops, too: those of the SDK do not."""

    def __init__(self, root: Sampler) -> None:
        self.root = root

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
        """The root's decision, with these attributes."""
        found = self.root.should_sample(parent_context, trace_id, name, kind, attributes, links)
        return SamplingResult(found.decision, found.attributes or attributes, found.trace_state)

    def get_description(self) -> str:
        """Its name."""
        return "Handing"


@pytest.mark.parametrize("hands_on", [False, True])
def test_with_a_sampler_that_always_records_they_are_there(hands_on: bool) -> None:
    """`AlwaysRecordSampler` brings spans of traces that are sampled out into the archive; nothing is exported.

    Attributes that are given at the start are those that the sampler inside hands on.
    """
    always_record = getattr(sampling, "AlwaysRecordSampler", None)
    if always_record is None:
        pytest.skip("this SDK has no AlwaysRecordSampler")
    inside = ParentBased(ALWAYS_OFF)
    sdk = Sdk(sampler=always_record(Handing(inside) if hands_on else inside)).configure()
    client = sdk.provider.get_tracer("some.client")
    with trifle.tracer("a/job"), trifle.block("Step"):
        with client.start_as_current_span("GET", attributes=REQUEST):
            trifle.trace("a line")
        with client.start_as_current_span("SELECT") as span:
            span.set_attribute("db.statement", "SELECT 1")
    result = "GET https://rates.example/v1" if hands_on else "GET"
    assert tree(sdk.entries) == [
        *("Step", "  GET", "  a line", f"    = {result}", "  SELECT", "    = SELECT 1", "  = None")
    ]
    assert sdk.spans == []


# which spans


def test_a_setting_switches_it_off() -> None:
    """With `foreign_spans=False` there is nothing of others in the archive, and no processor is added."""
    sdk = Sdk().configure(foreign_spans=False)
    with trifle.tracer("a/job"):
        sdk.provider.get_tracer("some.client").start_span("GET").end()
    assert tree(sdk.entries) == []
    assert processors_of(sdk.provider) == []


def test_a_callable_chooses() -> None:
    """The setting may be a callable of a span's name, its instrumentation's name and its kind."""
    seen = []

    def chosen(name: str, origin: str, kind: SpanKind) -> bool:
        seen.append((name, origin, kind))
        return name != "connect"

    sdk = Sdk().configure(foreign_spans=chosen)
    client = sdk.provider.get_tracer("some.client")
    with trifle.tracer("a/job"), trifle.block("Step"), client.start_as_current_span("connect"):
        client.start_span("GET", kind=SpanKind.CLIENT).end()
    assert tree(sdk.entries) == ["Step", "  GET", "    = GET", "  = None"]
    assert seen == [("connect", "some.client", SpanKind.INTERNAL), ("GET", "some.client", SpanKind.CLIENT)]


def test_a_filter_that_raises_keeps_the_span_and_is_counted() -> None:
    """An error of the callable's is counted, and reaches nobody."""

    def chosen(name: str, origin: str, kind: SpanKind) -> bool:
        raise RuntimeError(name)

    sdk = Sdk().configure(foreign_spans=chosen)
    with trifle.tracer("a/job"):
        sdk.provider.get_tracer("some.client").start_span("GET").end()
    assert tree(sdk.entries) == ["GET", "  = GET"]
    assert runtime().troubles.counts["a filter of spans raised"] == 1


def test_settings_that_change_count_for_traces_that_begin_then() -> None:
    """A provider that has its processor keeps it; whether it records is what the trace's own settings say."""
    sdk = Sdk().configure()
    client = sdk.provider.get_tracer("some.client")
    with trifle.tracer("a/job"):
        client.start_span("first").end()
    sdk.configure(foreign_spans=False)
    with trifle.tracer("b/job"):
        client.start_span("second").end()
    sdk.configure(foreign_spans=lambda name, *_: name == "third")
    with trifle.tracer("c/job"):
        client.start_span("third").end()
        client.start_span("fourth").end()
    assert trifle.flush()
    found = {record.key: tree(list(sdk.archive.entries(record))) for record in sdk.archive.search().records}
    assert found == {"a/job": ["first", "  = first"], "b/job": [], "c/job": ["third", "  = third"]}


# how it is installed


def processors_of(provider: TracerProvider) -> list[TrifleSpanProcessor]:
    """Those of ours that a provider has; the SDK has no public way to ask."""
    active = provider._active_span_processor._span_processors
    return [processor for processor in active if isinstance(processor, TrifleSpanProcessor)]


def test_each_provider_gets_one_when_it_is_first_seen() -> None:
    """It is added at a provider's first trace, once, however often traces are recorded and the process is set up."""
    first, second = Sdk(), Sdk()
    for _ in range(2):
        for sdk in (first, second):
            sdk.configure()
            for _ in range(3):
                with trifle.tracer("a/job"):
                    pass
    assert [len(processors_of(sdk.provider)) for sdk in (first, second)] == [1, 1]


def test_threads_that_see_a_provider_at_once_add_one() -> None:
    """The first traces of many threads at the same time leave one processor."""
    sdk = Sdk().configure()
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        with trifle.tracer("a/job"):
            pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(processors_of(sdk.provider)) == 1


def test_a_provider_that_is_like_the_sdks_gets_one() -> None:
    """A provider that hands on to the SDK's takes a processor, once, even where it cannot be a key of a dictionary."""

    @dataclass
    class Wrapping(otel.TracerProvider):
        inner: TracerProvider

        def get_tracer(self, *args: Any, **keywords: Any) -> Tracer:
            return self.inner.get_tracer(*args, **keywords)

        def add_span_processor(self, processor: Any) -> None:
            self.inner.add_span_processor(processor)

    provider = Wrapping(TracerProvider(shutdown_on_exit=False))
    for number in range(2):
        archive = trifle.configure(f"memory:{number}", tracer_provider=provider)
        with trifle.tracer("a/job"):
            provider.get_tracer("some.client").start_span("GET").end()
        assert trifle.flush()
        (record,) = archive.search().records
        assert tree(list(archive.entries(record))) == ["GET", "  = GET"]
    assert len(processors_of(provider.inner)) == 1


@pytest.mark.parametrize("late", [False, True], ids=["before ours", "after ours"])
def test_a_program_that_adds_its_own_has_each_span_once(late: bool) -> None:
    """A processor of the program's takes the place of ours, with its own filter, whenever it was added."""
    sdk = Sdk().configure()
    client = sdk.provider.get_tracer("some.client")
    if late:
        with trifle.tracer("x/job"):
            pass
    sdk.provider.add_span_processor(TrifleSpanProcessor(lambda name, *_: name != "connect"))
    with trifle.tracer("a/job"):
        for name in ("GET", "connect", "GET"):
            client.start_span(name).end()
    assert trifle.flush()
    (record,) = sdk.archive.search(segment="a/job").records
    assert tree(list(sdk.archive.entries(record))) == ["GET", "  = GET", "GET", "  = GET"]


def test_a_program_may_add_its_own_where_the_setting_is_off() -> None:
    """`foreign_spans=False` is about what is added by itself: a processor that was added on purpose works."""
    sdk = Sdk(processors=[TrifleSpanProcessor()]).configure(foreign_spans=False)
    with trifle.tracer("a/job"):
        sdk.provider.get_tracer("some.client").start_span("GET").end()
    assert tree(sdk.entries) == ["GET", "  = GET"]


def test_a_processor_of_a_program_leaves_other_providers_to_ours() -> None:
    """One that was added to one provider has no say about another."""
    other = TracerProvider(shutdown_on_exit=False)
    other.add_span_processor(TrifleSpanProcessor(lambda name, *_: name != "not this"))
    sdk = Sdk().configure()
    with trifle.tracer("a/job"):
        other.get_tracer("some.client").start_span("not this").end()
        other.get_tracer("some.client").start_span("this").end()
        sdk.provider.get_tracer("some.client").start_span("that").end()
    assert tree(sdk.entries) == ["this", "  = this", "that", "  = that"]


def test_without_configuration_nothing_is_added() -> None:
    """A process that keeps no archive has no use for it."""
    done = run(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "provider = TracerProvider(); trace.set_tracer_provider(provider)\n"
        "import trifle_otel as trifle\n"
        "with trifle.tracer('a/job'): pass\n"
        "print(provider._active_span_processor._span_processors)\n"
    )
    assert done == "()"


def test_a_provider_that_is_set_late_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRIFLE_ARCHIVE alone, and a provider that is set after the first trace, as Celery's is, spans are there."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "./archive")
    done = run(
        "import trifle_otel as trifle\n"
        "with trifle.tracer('a/job'): pass\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "client = trace.get_tracer('some.client')\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "with trifle.tracer('b/job'): client.start_span('GET').end()\n"
        "trifle.flush()\n"
        "archive = trifle.Archive.open('./archive')\n"
        "print([entry.message for entry in archive.entries(archive.search(segment='b').records[0])][1:])\n"
    )
    assert done == "['GET ↴', 'GET ↵', '↳ GET']"


def test_setting_up_loads_no_sdk_where_none_is_in_use() -> None:
    """Without a provider of the SDK neither import, nor `configure`, nor a trace loads it."""
    done = run(
        "import sys, trifle_otel as trifle\n"
        "trifle.configure('./archive')\n"
        "with trifle.tracer('a/job'), trifle.block('b'): pass\n"
        "trifle.flush()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    assert done == "[]"


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRIFLE_FOREIGN_SPANS=false is `foreign_spans=False`."""
    monkeypatch.setenv("TRIFLE_FOREIGN_SPANS", "false")
    sdk = Sdk().configure()
    with trifle.tracer("a/job"):
        sdk.provider.get_tracer("some.client").start_span("GET").end()
    assert tree(sdk.entries) == []


def test_a_provider_that_takes_none_is_left_alone() -> None:
    """A provider that refuses processors still makes our spans; the refusal is counted."""

    class Refusing(TracerProvider):
        def add_span_processor(self, span_processor: Any) -> None:
            raise RuntimeError("closed")

    provider = Refusing(shutdown_on_exit=False)
    trifle.configure("memory:", tracer_provider=provider)
    with trifle.tracer("a/job") as job:
        assert job.spans is not None
    assert runtime().troubles.counts["a provider took no span processor"] == 1


def run(script: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


# bad input


@pytest.mark.parametrize("given", [-5, 2**80, 1.5e18, "soon", float("nan")], ids=str)
def test_times_that_are_none_do_no_harm(sdk: Sdk, client: Tracer, given: Any) -> None:
    """A span's start and end are what its maker says; what cannot be stored is the time of the call."""
    with trifle.tracer("a/job"):
        span = client.start_span("GET", start_time=given)
        span.add_event("retry", timestamp=given)
        span.end(given)
    assert tree(sdk.entries) == ["GET", "  retry", "  = GET"]
    assert all(isinstance(entry.ns, int) and 0 <= entry.ns < 2**63 for entry in sdk.entries)


def test_names_and_texts_of_any_kind_are_stored(sdk: Sdk, client: Tracer) -> None:
    """NUL, lone surrogates, names that are no text, statements of megabytes: all are archived."""
    hostile: Any = object()
    with trifle.tracer("a/job"):
        client.start_span("a\x00b\ud800").end()
        client.start_span(hostile).end()
        client.start_span("SELECT", attributes={"db.statement": "\x00SELECT " * 10**5}).end()
    messages = [entry.message for entry in sdk.entries]
    assert len(messages) == 10
    assert messages[4].startswith("<object object")
    assert len(messages[9]) < 1100


def test_a_span_that_cannot_be_read_is_closed_all_the_same(sdk: Sdk, client: Tracer) -> None:
    """A fault in what a span holds is counted and reaches nobody; its block does not stay open."""

    class Broken(ReadableSpan):
        @property
        def attributes(self) -> Any:
            raise RuntimeError("broken")

    with trifle.tracer("a/job"):
        span: Any = client.start_span("GET")
        (processor,) = processors_of(sdk.provider)
        processor.on_end(Broken("GET", context=span.get_span_context(), start_time=1, end_time=2))
        span.end()
    assert tree(sdk.entries) == ["GET", "  = GET"]
    assert sum(runtime().troubles.counts.values()) == 1


def test_a_fault_in_it_reaches_nobody() -> None:
    """What is no span at all is counted, and nothing is raised into whoever makes spans."""
    sdk = Sdk().configure(foreign_spans=False)
    processor = TrifleSpanProcessor()
    none: Any = object()
    with trifle.tracer("a/job"):
        processor.on_start(none)
        processor.on_start(sdk.provider.get_tracer("some.client").start_span("GET"))  # type: ignore[arg-type]
        processor.on_end(none)
    assert sum(runtime().troubles.counts.values()) == 2


STEPS = st.lists(
    st.tuples(st.sampled_from(["span", "block", "line", "event", "end", "end"]), st.integers(0, 5)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from([0, 3, 1000]))
def test_any_order_of_spans_and_blocks_is_well_formed(steps: list[tuple[str, int]], max_spans: int) -> None:
    """However spans begin and end among blocks, each has one opening, one end, its events, and its place."""
    configuration.reset()
    sdk = Sdk().configure(max_spans=max_spans)
    model = Model(sdk.provider.get_tracer("some.client"))
    with trifle.tracer("a/job"):
        for what, choice in steps:
            getattr(model, what)(choice)
        model.leave_blocks()
    entries = sdk.entries
    found = outline(entries)
    assert {block.message: block.parent and block.parent.message for block in found.blocks} == model.parents
    assert all(block.closed is not None and block.result is not None for block in found.blocks)
    events = {block.message: [entries[place].message for place in block.lines] for block in found.blocks}
    assert {name: texts for name, texts in events.items() if name in model.events} == model.events
    assert attributes(sdk.root)["trifle.lines"] == len(entries)
    assert_lines_are_where_they_say_of_spans(sdk)


class Model:
    """Makes spans and blocks of a trace, and says what should become of them."""

    def __init__(self, client: Tracer) -> None:
        self.client = client
        self.number = 0
        self.blocks: list[tuple[str, Any]] = []
        self.running: list[tuple[str, Any, str | None]] = []
        self.parents: dict[str, str | None] = {}
        self.events: dict[str, list[str]] = {}

    def span(self, choice: int) -> None:
        """A span in the current block, or, where one is open there, sometimes in another span of it."""
        name, home = self._name("span"), self._block()
        inside = [running for running in self.running if running[2] == home]
        context, parent = get_current(), home
        if inside and choice:
            parent, span, _ = inside[choice % len(inside)]
            context = otel.set_span_in_context(span)
        self.running.append((name, self.client.start_span(name, context=context), home))
        self.parents[name] = parent
        self.events[name] = []

    def block(self, choice: int) -> None:
        """A block in the current one."""
        name = self._name("block")
        self.parents[name] = self._block()
        block = trifle.block(name)
        block.__enter__()
        self.blocks.append((name, block))

    def line(self, choice: int) -> None:
        """A line of the job."""
        trifle.trace("a line")

    def event(self, choice: int) -> None:
        """An event of a span that is running."""
        if self.running:
            name, span, _ = self.running[choice % len(self.running)]
            span.add_event(f"event {choice}")
            self.events[name].append(f"event {choice}")

    def end(self, choice: int) -> None:
        """The end of a span, or of the current block."""
        if self.running and (choice or not self.blocks):
            self.running.pop(choice % len(self.running))[1].end()
        elif self.blocks:
            self.blocks.pop()[1].__exit__(None, None, None)

    def leave_blocks(self) -> None:
        """The end of the job: spans that still run never tell their events."""
        while self.blocks:
            self.blocks.pop()[1].__exit__(None, None, None)
        for name, _, _ in self.running:
            self.events[name] = []

    def _name(self, kind: str) -> str:
        self.number += 1
        return f"{kind} {self.number}"

    def _block(self) -> str | None:
        return self.blocks[-1][0] if self.blocks else None


def assert_lines_are_where_they_say_of_spans(sdk: Sdk) -> None:
    """Each numbered event is the place in the archive of a line with its time and its message."""
    entries = sdk.entries
    for span in [sdk.root, *sdk.blocks]:
        for event in lines(span):
            entry = entries[attributes(event)["trifle.line"] - 1]
            assert attributes(event)[event.name] == entry.message.removeprefix("↳ ")
            assert event.timestamp == entry.ns
