"""`TrifleSpanExporter` behind the SDK's processors: whole applications archived without a line of code."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint, entry_points
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord, TrifleSpanExporter, TrifleSpanProcessor, configuration
from trifle_otel.errors import ConfigurationError
from trifle_otel.runtime import runtime
from trifle_otel.span_exporter import data_of

GROUP = "opentelemetry_traces_exporter"
PACKAGE = Path(trifle.__file__).parent.parent
ROUTE = {"http.request.method": "GET", "http.route": "/orders/{id}", "url.path": "/orders/17"}
PROCESSORS = [SimpleSpanProcessor, BatchSpanProcessor]


class App:
    """An instrumented application: a provider with the exporter behind a processor."""

    def __init__(
        self, exporter: TrifleSpanExporter, processor: Any = SimpleSpanProcessor, *, sampler: Any = None
    ) -> None:
        self.exporter = exporter
        self.provider = TracerProvider(
            shutdown_on_exit=False, sampler=sampler, resource=Resource({"service.name": "shop"})
        )
        self.provider.add_span_processor(processor(exporter))
        self.tracer: Tracer = self.provider.get_tracer("app")

    def request(self, *, failing: bool = False) -> None:
        """Serve a request: a query and a call of another service."""
        with self.tracer.start_as_current_span("GET /orders/{id}", kind=SpanKind.SERVER, attributes=ROUTE) as span:
            with self.tracer.start_as_current_span("query", kind=SpanKind.CLIENT):
                span.add_event("cache miss", {"key": "a"})
            if failing:
                raise LookupError("no such order")


Apps = Callable[..., App]


@pytest.fixture
def apps() -> Iterator[Apps]:
    """Makes applications that are shut down with the test."""
    made: list[App] = []

    def make(exporter: TrifleSpanExporter, *arguments: Any, **options: Any) -> App:
        made.append(App(exporter, *arguments, **options))
        return made[-1]

    yield make
    for app in made:
        app.provider.shutdown()


def records(archive: str = "./traces") -> list[TraceRecord]:
    """What is archived, the oldest first."""
    with Archive.open(archive) as opened:
        return list(reversed(opened.search(limit=1000).records))


def messages(record: TraceRecord, archive: str = "./traces") -> list[str]:
    """A trace's lines."""
    with Archive.open(archive) as opened:
        return [entry.message for entry in opened.entries(record)]


def wait_for(number: int, archive: str = "./traces") -> list[TraceRecord]:
    """What is archived once that many are there."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if Path(archive).exists():
            found = records(archive)
            if len(found) >= number:
                return found
        time.sleep(0.01)
    raise AssertionError(f"{len(records(archive))} traces and not {number}")


# --- What is archived


@pytest.mark.parametrize("processor", PROCESSORS)
def test_requests_are_archived_behind_both_processors(processor: Any, apps: Apps) -> None:
    """Each local root is a trace, its children are blocks, and nobody has to ask for it."""
    app = apps(TrifleSpanExporter("./traces", settle=0.01), processor)
    app.request()
    with pytest.raises(LookupError):
        app.request(failing=True)
    app.provider.force_flush()
    first, second = wait_for(2)
    assert [(one.key, one.state) for one in (first, second)] == [
        ("http/GET/orders/{id}", "success"),
        ("http/GET/orders/{id}", "error"),
    ]
    assert first.context["service"] == "shop"
    assert first.context["attributes"] == ROUTE
    assert messages(first) == [
        "GET /orders/{id}",
        "query ↴",
        "query ↵",
        "↳ query",
        "cache miss key=a",
        "GET /orders/17",
    ]
    assert "Exception: no such order" in messages(second)
    assert first.trace_id != second.trace_id


def test_a_flush_archives_what_has_ended_and_leaves_what_runs(apps: Apps) -> None:
    """When it returns, executions whose root has ended are in the archive; a span that runs keeps its children."""
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter)
    outer = app.tracer.start_span("outer")
    app.tracer.start_span("inner", context=set_span_in_context(outer)).end()
    app.request()
    assert exporter.force_flush()
    assert [one.key for one in records()] == ["http/GET/orders/{id}"]
    outer.end()
    assert exporter.force_flush()
    (last,) = [one for one in records() if one.key == "outer"]
    assert messages(last) == ["outer", "inner ↴", "inner ↵", "↳ inner", "outer"]


@pytest.mark.parametrize("timeout", [None, math.inf, 1e15, 30_000])
def test_a_flush_takes_any_timeout(apps: Apps, timeout: Any) -> None:
    """None and infinity are without end, whoever calls it: the exporter's, the processor's, the provider's."""
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter)
    app.provider.add_span_processor(TrifleSpanProcessor())
    app.request()
    assert exporter.force_flush(timeout)
    assert TrifleSpanProcessor().force_flush(timeout)
    assert len(records()) == 1


def test_a_shutdown_archives_everything(apps: Apps) -> None:
    """Also what has no root, which says so; afterwards nothing is taken."""
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter, BatchSpanProcessor)
    outer = app.tracer.start_span("outer")
    app.tracer.start_span("inner", context=set_span_in_context(outer)).end()
    app.request()
    app.provider.shutdown()
    assert sorted(one.key for one in records()) == ["http/GET/orders/{id}", "incomplete/inner"]
    assert exporter.export([]) is SpanExportResult.FAILURE
    exporter.shutdown()


def test_what_never_gets_its_root_is_archived_after_the_time_limit(apps: Apps) -> None:
    """By itself, and it says what is missing."""
    app = apps(TrifleSpanExporter("./traces", settle=0.01, wait=0.05))
    outer = app.tracer.start_span("outer")
    app.tracer.start_span("inner", context=set_span_in_context(outer)).end()
    (record,) = wait_for(1)
    assert record.state == "warning"
    assert record.context["missing"] == [f"{outer.get_span_context().span_id:016x}"]
    assert runtime().troubles.counts["executions were closed without their root, which did not come in time"] == 1


def test_every_request_of_many_threads_is_archived_once(apps: Apps) -> None:
    """With all its spans, whatever the batches."""
    exporter = TrifleSpanExporter("./traces", settle=0.01)
    app = apps(exporter, lambda one: BatchSpanProcessor(one, max_export_batch_size=3, schedule_delay_millis=5))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(100):
            pool.submit(app.request)
    app.provider.force_flush()
    found = wait_for(100)
    assert len(found) == 100
    assert len({one.trace_id for one in found}) == 100
    assert {one.length for one in found} == {6}


def test_a_parent_elsewhere_makes_a_local_root(apps: Apps) -> None:
    """The trace id and the parent's id are those that came with the request."""
    app = apps(TrifleSpanExporter("./traces", settle=0.01))
    parent = SpanContext(0xAB, 0xCD, is_remote=True, trace_flags=TraceFlags(1))
    with app.tracer.start_as_current_span("task", context=set_span_in_context(NonRecordingSpan(parent))):
        app.request()
    (record,) = wait_for(1)
    assert (record.key, record.trace_id) == ("task", f"{0xAB:032x}")
    assert record.context["parent_span_id"] == f"{0xCD:016x}"


def test_memory_is_bounded(apps: Apps) -> None:
    """What is too much is archived early, in the thread that exports."""
    exporter = TrifleSpanExporter("./traces", most_spans=50)
    app = apps(exporter)
    outer = app.tracer.start_span("outer")
    for number in range(200):
        app.tracer.start_span(f"inner {number}", context=set_span_in_context(outer)).end()
    outer.end()
    exporter.force_flush()
    found = records()
    opened = [message for one in found for message in messages(one) if message.endswith("↴")]
    assert sorted(message for message in opened if message.startswith("inner")) == sorted(
        f"inner {number} ↴" for number in range(200)
    )
    assert len([one for one in found if one.key == "outer"]) == 1
    assert len(found) > 3


# --- Where it goes


def test_adding_it_to_a_provider_configures_the_process(apps: Apps) -> None:
    """`tracer` and its kin record into the same archive, in full."""
    app = apps(TrifleSpanExporter("./traces", settle=0.01))
    app.request()
    with trifle.tracer("job"):
        trifle.trace("a line")
    trifle.flush(10)
    found = {one.key: one for one in wait_for(2)}
    assert set(found) == {"http/GET/orders/{id}", "job"}
    assert "a line" in messages(found["job"])


def test_it_takes_the_archive_of_the_environment(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or `./traces`, where that names none."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "./elsewhere")
    exporter = TrifleSpanExporter()
    apps(exporter).request()
    assert exporter.force_flush()
    assert len(records("./elsewhere")) == 1
    trifle.configure("./third")
    apps(exporter).request()
    assert exporter.force_flush()
    assert len(records("./third")) == 1


def test_it_goes_into_the_default_archive(apps: Apps) -> None:
    """Where nothing names one."""
    exporter = TrifleSpanExporter()
    apps(exporter).request()
    assert exporter.force_flush()
    assert len(records("./traces")) == 1


def test_another_archive_than_the_configured_one_gets_what_it_was_named_for(apps: Apps) -> None:
    """The process still records into its own; so it is when it is configured anew."""
    trifle.configure("./ours", retention=30)
    exporter = TrifleSpanExporter("./theirs")
    app = apps(exporter)
    app.request()
    with trifle.tracer("job"):
        pass
    trifle.configure("./third")
    app.request()
    assert exporter.force_flush()
    assert trifle.flush(10)
    assert [(one.key, one.retention) for one in records("./theirs")] == [("http/GET/orders/{id}", 30)] * 2
    assert [one.key for one in records("./ours")] == ["job"]


def test_what_archives_beside_the_configured_archive_ends_with_its_exporter(apps: Apps) -> None:
    """It goes on when the process is configured anew, and leaves no thread and no place in the spool behind."""
    before = threads()
    trifle.configure("./ours")
    exporter = TrifleSpanExporter("./theirs")
    trifle.configure("./third")
    apps(exporter).request()
    exporter.shutdown()
    assert len(records("./theirs")) == 1
    assert list(Path("theirs/.spool").iterdir()) == []
    trifle.shutdown()
    assert_ended(before)


def test_one_that_nobody_ended_ends_with_the_process(apps: Apps) -> None:
    """Its archive gets what waits, like the configured one."""
    before = threads()
    trifle.configure("./ours")
    exporter = TrifleSpanExporter("./theirs")
    trifle.configure("./third")
    apps(exporter).request()
    assert exporter.force_flush()
    configuration.reset()
    assert_ended(before)


def assert_ended(before: set[threading.Thread]) -> None:
    """No thread of ours is left, but those that there were before."""
    for thread in threads() - before:
        thread.join(5)
    assert threads() - before == set()


def threads() -> set[threading.Thread]:
    """Those that ship and watch, of any configuration."""
    return {thread for thread in threading.enumerate() if thread.name in ("trifle-shipper", "trifle-clock")}


def test_the_archive_that_is_configured_is_not_opened_twice(apps: Apps) -> None:
    """However its URL is written; when another is configured, the exporter stays with its own."""
    trifle.configure("./traces")
    exporter = TrifleSpanExporter(os.path.abspath("traces"))
    app = apps(exporter)
    held: Any = exporter
    assert held._target() is runtime()
    trifle.configure("./other")
    app.request()
    assert exporter.force_flush()
    assert len(records("./traces")) == 1


@pytest.mark.parametrize("options", [{"settle": -1}, {"wait": 0}, {"most_spans": 0}, {"archive": "s3://bucket/x"}])
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    """An archive without an index, numbers out of bounds: when it is made, not when spans come."""
    with pytest.raises(ConfigurationError):
        TrifleSpanExporter(**options)


# --- Not twice


@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_our_api_recorded_is_not_archived_twice(processor: Any, apps: Apps) -> None:
    """Nor the local root that encloses it; what is beside it is."""
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter, processor)
    trifle.configure("./traces", tracer_provider=app.provider)
    with app.tracer.start_as_current_span("request around it"), trifle.tracer("job"):
        with trifle.block("step"):
            app.request()
        with app.tracer.start_as_current_span("query"):
            pass
    app.request()
    with trifle.tracer("alone"):
        pass
    app.provider.force_flush()
    assert exporter.force_flush()
    assert trifle.flush(10)
    assert [one.key for one in records()] == ["job", "http/GET/orders/{id}", "alone"]


def test_what_ends_in_a_running_trace_of_ours_waits_for_it(apps: Apps) -> None:
    """Beyond the time limit, since a job may run for hours: what others do in it is in its trace already."""
    exporter = TrifleSpanExporter("./traces", settle=0, wait=0.01)
    app = apps(exporter)
    trifle.configure("./traces", tracer_provider=app.provider)
    swept = threading.Event()
    held: Any = exporter
    sweep, times = held._assembler.sweep, count()

    def counted() -> float:
        due: float = sweep()
        if next(times) > 3:
            swept.set()
        return due

    held._assembler.sweep = counted
    with trifle.tracer("job"):
        app.request()
        assert swept.wait(20)
        assert held._assembler.waiting
    assert exporter.force_flush()
    assert trifle.flush(10)
    assert [one.key for one in records()] == ["job"]


def test_a_trace_that_was_sampled_out_leaves_what_others_are(apps: Apps) -> None:
    """Our API records it in full; of the spans, none comes."""
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter, sampler=ParentBased(ALWAYS_OFF))
    trifle.configure("./traces", tracer_provider=app.provider)
    app.request()
    with trifle.tracer("job"):
        trifle.trace("a line")
    assert exporter.force_flush()
    assert trifle.flush(10)
    assert [one.key for one in records()] == ["job"]


def test_a_pending_span_is_ours_too(apps: Apps) -> None:
    """It comes at once, hours before the trace that it is of ends."""
    exporter = TrifleSpanExporter("./traces", settle=0.01)
    app = apps(exporter)
    trifle.configure("./traces", tracer_provider=app.provider, pending_span=True)
    with trifle.tracer("job"):
        exporter.force_flush()
    assert exporter.force_flush()
    assert trifle.flush(10)
    assert [one.key for one in records()] == ["job"]


# --- Spans of the SDK as plain data


def finished(**options: Any) -> ReadableSpan:
    """A span of the SDK."""
    values: dict[str, Any] = {"name": "x", "context": SpanContext(0xAB, 0xCD, False), "start_time": 5, "end_time": 9}
    return ReadableSpan(**{**values, **options})


def test_a_span_is_read_as_it_is() -> None:
    """Ids in hex, the parent and whether it is elsewhere, kind, status, attributes, events, links, what was dropped."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("made by")
    link = Link(SpanContext(1, 2, True), {"why": "retry"})
    parent = SpanContext(0xAB, 0xCD, is_remote=True, trace_flags=TraceFlags(1))
    span = tracer.start_span(
        "name",
        set_span_in_context(NonRecordingSpan(parent)),
        SpanKind.PRODUCER,
        {"a": "b", "list": [1, 2]},
        [link],
        start_time=10,
    )
    span.add_event("happened", {"c": 1}, 11)
    span.set_status(StatusCode.ERROR, "went wrong")
    span.end(12)
    (found,) = exporter.get_finished_spans()
    data = data_of(found, {"service.name": "shop"})
    own = span.get_span_context()
    assert (data.trace_id, data.span_id, data.parent_id, data.remote) == (
        f"{0xAB:032x}",
        f"{own.span_id:016x}",
        f"{0xCD:016x}",
        True,
    )
    assert (data.name, data.kind, data.status, data.description) == ("name", "PRODUCER", "ERROR", "went wrong")
    assert (data.start_ns, data.end_ns, data.scope) == (10, 12, "made by")
    assert data.attributes == {"a": "b", "list": (1, 2)}
    assert [(one.name, one.ns, dict(one.attributes)) for one in data.events] == [("happened", 11, {"c": 1})]
    assert [(one.trace_id, one.span_id, dict(one.attributes)) for one in data.links] == [
        (f"{1:032x}", f"{2:016x}", {"why": "retry"})
    ]
    assert data.resource == {"service.name": "shop"}


def test_spans_that_are_odd_are_read_or_left_out(apps: Apps) -> None:
    """Without ids, without times, with names that are none: the others of the batch are taken."""
    exporter = TrifleSpanExporter("./traces")
    broken: Any = object()
    good = finished(name="good")
    odd = finished(name=None, start_time=None, end_time="soon", context=SpanContext(0xAB, 0xEF, False))
    nameless = finished(context=None)
    assert exporter.export([broken, good, nameless, odd]) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    assert sorted(one.key for one in records()) == ["good", "unnamed"]
    counts = runtime().troubles.counts
    assert counts["a span could not be read"] == 1
    assert counts["spans were refused: they have no valid ids"] == 1
    exporter.shutdown()


def test_an_event_may_have_any_name(apps: Apps) -> None:
    """One whose name is no text is a line all the same, and its span is archived."""
    exporter = TrifleSpanExporter("./traces")
    span = apps(exporter).tracer.start_span("odd")
    for name in (["a", "list"], 7):
        span.add_event(cast("Any", name))
    span.end()
    assert exporter.force_flush()
    (record,) = records()
    assert messages(record)[1:-1] == ["['a', 'list']", "7"]


# --- Manners


def test_a_shutdown_does_not_raise_where_the_archive_cannot_be_opened_any_more(
    apps: Apps, caplog: pytest.LogCaptureFixture, own_folder: Path
) -> None:
    """The application ends as it would have; what could not be archived is said."""
    trifle.configure("./traces")
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter)
    app.tracer.start_span("late").end()
    trifle.configure("./others")
    shutil.rmtree(own_folder / "traces")
    (own_folder / "traces").write_text("in its place")
    app.provider.shutdown()
    assert "could not be archived" in caplog.text


def test_an_application_goes_on_when_archiving_fails(apps: Apps, caplog: pytest.LogCaptureFixture) -> None:
    """What fails is counted, and what comes afterwards is archived."""
    errors: list[BaseException] = []
    trifle.configure("./traces", error_handler=errors.append, retention=keep_or_fail)
    exporter = TrifleSpanExporter("./traces")
    app = apps(exporter)
    app.tracer.start_span("bad").end()
    app.tracer.start_span("good").end()
    assert exporter.force_flush()
    assert sorted(one.key for one in records()) == ["bad", "good"]
    assert len(errors) == 1
    held: Any = exporter
    held._assembler.add = None
    assert exporter.export([finished()]) is SpanExportResult.FAILURE
    assert len(errors) == 2


def keep_or_fail(recording: Any) -> int:
    """A retention of somebody's that raises at some traces."""
    if recording.key == "bad":
        raise RuntimeError("retention")
    return 7


def test_its_own_work_is_not_traced(apps: Apps) -> None:
    """Its thread has instrumentations switched off, and so has whoever flushes."""
    seen: list[Any] = []

    def look(recording: Any) -> int:
        seen.append(otel_context.get_value("suppress_instrumentation"))
        return 7

    trifle.configure("./traces", retention=look)
    exporter = TrifleSpanExporter("./traces", settle=0.01)
    app = apps(exporter)
    app.tracer.start_span("first").end()
    wait_for(1)
    held: Any = exporter
    held._assembler._settle = 1000
    app.tracer.start_span("second").end()
    exporter.force_flush()
    assert seen == [True, True]


def test_a_forked_child_begins_with_nothing(apps: Apps) -> None:
    """What the parent had is archived by the parent, once; what the child does, by the child."""
    code = """
import os, sys, warnings
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from trifle_otel import TrifleSpanExporter
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: a process with threads forks
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(TrifleSpanExporter("./traces")))
tracer = provider.get_tracer("app")
before = tracer.start_span("before")
tracer.start_span("inside", context=trace.set_span_in_context(before)).end()
provider.force_flush()
child = os.fork()
if child == 0:
    tracer.start_span("in the child").end()
    provider.shutdown()
    import trifle_otel
    trifle_otel.shutdown(10)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
before.end()
tracer.start_span("in the parent").end()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    found = {one.key: one for one in records()}
    assert sorted(found) == ["before", "in the child", "in the parent"]
    assert "inside ↴" in messages(found["before"])


def test_the_end_of_a_process_archives_what_waits() -> None:
    """Whatever was imported first: the provider's end comes before, or what it brings is still taken."""
    code = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
{first}
{second}
provider.add_span_processor(BatchSpanProcessor(TrifleSpanExporter("./traces")))
provider.get_tracer("app").start_span("{name}").end()
"""
    lines = ["provider = TracerProvider()", "from trifle_otel import TrifleSpanExporter"]
    env = environment()
    for name, (first, second) in {"one": lines, "two": lines[::-1]}.items():
        source = code.format(first=first, second=second, name=name)
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=150, env=env)
        assert (done.returncode, done.stderr) == (0, "")
    trifle.configure("./traces")
    assert trifle.flush(10)
    assert sorted(one.key for one in wait_for(2)) == ["one", "two"]


# --- No code at all


APPLICATION = """
import threading
import requests
from flask import Flask
from werkzeug.serving import make_server
from opentelemetry import trace

app = Flask("shop")

@app.get("/orders/<int:number>")
def order(number):
    with trace.get_tracer("shop").start_as_current_span("load"):
        return str(number)

@app.get("/reports")
def report():
    import trifle_otel as trifle
    with trifle.tracer("report"):
        trifle.trace("in full")
    return ""

server = make_server("127.0.0.1", 0, app)
threading.Thread(target=server.serve_forever, daemon=True).start()
for path in ("orders/17", "orders/4", "reports"):
    requests.get(f"http://127.0.0.1:{server.server_port}/{path}")
server.shutdown()
"""


class Collector(BaseHTTPRequestHandler):
    """Takes what OTLP's exporter sends."""

    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        """Take a request."""
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[str]:
    """The URL of a collector."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.mark.slow
def test_an_instrumented_application_is_archived_without_a_line_of_code(collector: str, tmp_path: Path) -> None:
    """`OTEL_TRACES_EXPORTER=otlp,trifle opentelemetry-instrument python app.py`, as it is in the README."""
    Path("app.py").write_text(APPLICATION)
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, "app.py"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=150,
        env=environment(
            OTEL_TRACES_EXPORTER="otlp,trifle",
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector,
            OTEL_SERVICE_NAME="shop",
            TRIFLE_ARCHIVE="./traces",
        ),
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    found = records()
    assert sorted(one.key for one in found) == ["GET", "GET", "GET", *["http/GET/orders/<int:number>"] * 2, "report"]
    served = [one for one in found if one.key.startswith("http")]
    assert {one.context["service"] for one in served} == {"shop"}
    assert "load ↴" in messages(served[0])
    (recorded,) = [one for one in found if one.key == "report"]
    assert "in full" in messages(recorded)
    assert b"orders" in b"".join(Collector.bodies)


def test_the_entry_point_names_the_exporter() -> None:
    """By which OpenTelemetry's configuration finds it."""
    assert entry_point().load() is TrifleSpanExporter


def entry_point() -> EntryPoint:
    """That of the package that is installed, else of the one that is worked on."""
    installed = entry_points(group=GROUP, name="trifle")
    if installed:
        return next(iter(installed))
    section = (PACKAGE / "pyproject.toml").read_text().partition(f"[project.entry-points.{GROUP}]\n")[2]
    name, _, value = section.splitlines()[0].partition(" = ")
    return EntryPoint(name, value.strip('"'), GROUP)


def environment(**more: str) -> dict[str, str]:
    """That of a process in which this package is found, and its entry point, as if it had just been installed."""
    folder = Path("installed/trifle_otel-0.dist-info")
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: trifle-otel\nVersion: 0\n")
    found = entry_point()
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{found.name} = {found.value}\n")
    paths = [os.path.abspath("installed"), str(PACKAGE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
