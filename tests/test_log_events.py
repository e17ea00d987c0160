"""Lines as OpenTelemetry log records, seen through the real SDK: their names, times, severities, ids, their count."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace as otel
from opentelemetry._logs import LoggerProvider as ApiLoggerProvider
from opentelemetry.context import attach, get_current
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import StatusCode
from spans import (
    LINES,
    Sdk,
    assert_every_line_is_accounted_for,
    attributes,
    events,
    lines,
    span_id,
    texts,
)

import trifle_otel as trifle
from trifle_otel import conventions
from trifle_otel.runtime import runtime


class Record(NamedTuple):
    """A log record, its attributes as a plain dict."""

    name: str
    attributes: dict[str, Any]
    timestamp: int
    severity: str
    trace_id: int
    span_id: str
    flags: int


class Logs:
    """A provider of the SDK whose records can be read."""

    def __init__(self, *processors: LogRecordProcessor) -> None:
        self.exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self.provider = LoggerProvider(shutdown_on_exit=False)
        for processor in processors:
            self.provider.add_log_record_processor(processor)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))

    @property
    def records(self) -> list[Record]:
        """The records so far, in order."""
        return [_record(one.log_record) for one in self.exporter.get_finished_logs()]

    def texts(self, span: ReadableSpan | None = None) -> list[str]:
        """Messages of the lines among them, of one span or of all."""
        found = [one for one in self.records if one.name == "trifle.text"]
        return [one.attributes["trifle.text"] for one in found if span is None or one.span_id == span_id(span)]


def _record(record: Any) -> Record:
    return Record(
        record.event_name,
        dict(record.attributes),
        record.timestamp,
        record.severity_number.name,
        record.trace_id,
        f"{record.span_id:016x}",
        int(record.trace_flags),
    )


@pytest.fixture
def logs() -> Logs:
    """A provider of loggers."""
    return Logs()


@pytest.fixture
def sdk(logs: Logs) -> Sdk:
    """This process set up with an SDK that keeps its spans and its log records, and an archive in memory."""
    return Sdk().configure(events="log", logger_provider=logs.provider)


def assert_accounted_for(sdk: Sdk, logs: Logs) -> None:
    """Each line is a record, or opens or closes a block that has a span, or is counted as omitted."""
    root = attributes(sdk.root)
    assert [event for span in sdk.spans for event in span.events] == []
    shown = [one.attributes["trifle.line"] for one in logs.records if one.name in LINES]
    assert len(set(shown)) == len(shown)
    omitted = root.get("trifle.lines_omitted", 0)
    assert len(shown) + 2 * len(sdk.blocks) + omitted == root["trifle.lines"] == len(sdk.entries)


def assert_records_are_where_they_say(sdk: Sdk, logs: Logs) -> None:
    """Each record's number is the place in the archive of a line with its time, its message, and its block."""
    entries = sdk.entries
    for one in logs.records:
        if one.name in LINES:
            entry = entries[one.attributes["trifle.line"] - 1]
            assert one.attributes[one.name] == entry.message.removeprefix("↳ ")
            assert (one.timestamp, one.span_id) == (entry.ns, entry.span)


# what a record is


def test_lines_are_records_with_name_attributes_and_time(sdk: Sdk, logs: Logs) -> None:
    """Lines, results, changes of state and artifacts are records with the attributes that events have, and no body."""
    with trifle.tracer("a/job") as job:
        with trifle.block("Step") as step:
            trifle.trace("Careful", state="warning", head=True)
            step.result({"price": 12.5})
        trifle.fail()
        trifle.artifact("a.txt", b"12345")
        job.root.result("done")
    assert [(one.name, one.attributes) for one in logs.records] == [
        (
            "trifle.text",
            {
                "trifle.text": "Tracer has been initialized for a/job",
                "trifle.type": "text",
                "trifle.state": "success",
                "trifle.line": 1,
            },
        ),
        (
            "trifle.text",
            {"trifle.text": "Careful", "trifle.type": "head", "trifle.state": "warning", "trifle.line": 3},
        ),
        ("trifle.result", {"trifle.result": "{'price': 12.5}", "trifle.line": 5}),
        ("trifle.state", {"trifle.state": "error", "trifle.previous_state": "running"}),
        (
            "trifle.artifact",
            {
                "trifle.artifact": "a.txt",
                "trifle.artifact_size": 5,
                "trifle.artifact_ref": f"{sdk.record.reference}/artifacts/a.txt",
                "trifle.line": 6,
            },
        ),
        ("trifle.result", {"trifle.result": "'done'", "trifle.line": 7}),
    ]
    assert [one for one in logs.exporter.get_finished_logs() if one.log_record.body is not None] == []
    assert_records_are_where_they_say(sdk, logs)
    assert_accounted_for(sdk, logs)
    assert "trifle.lines_omitted" not in attributes(sdk.root)


@pytest.mark.parametrize(
    "state, severity",
    [("success", "INFO"), ("debug", "DEBUG"), ("warning", "WARN"), ("error", "ERROR"), ("odd", "INFO")],
)
def test_severity_comes_from_the_state(sdk: Sdk, logs: Logs, state: str, severity: str) -> None:
    """A line's state and that of a block's result make the severity; a word of the caller's is information."""
    with trifle.tracer("a/job"), trifle.block("Step", state=state):
        trifle.trace("line", state=state)
    assert [one.severity for one in logs.records[1:]] == [severity, severity]


@pytest.mark.parametrize("call, severity", [(trifle.fail, "ERROR"), (trifle.warn, "WARN"), (trifle.succeed, "INFO")])
def test_severity_of_a_change_is_that_of_the_new_state(
    sdk: Sdk, logs: Logs, call: Callable[[], object], severity: str
) -> None:
    """`fail`, `warn` and `succeed` count by what they set."""
    with trifle.tracer("a/job"):
        call()
    assert [one.severity for one in logs.records if one.name == "trifle.state"] == [severity]


def test_ids_and_flags_are_those_of_the_blocks_own_span(sdk: Sdk, logs: Logs) -> None:
    """A record belongs to the span of its block, also where a span of others is current."""
    with trifle.tracer("a/job"):
        trifle.trace("outside")
        with trifle.block("Step"), sdk.provider.get_tracer("app").start_as_current_span("SELECT"):
            trifle.trace("inside")
            current = otel.get_current_span()
        assert current is not otel.get_current_span()
    assert logs.texts(sdk.root)[1:] == ["outside"]
    assert logs.texts(sdk.named("Step")) == ["inside"]
    assert sdk.root.context is not None
    assert {(one.trace_id, one.flags) for one in logs.records} == {
        (sdk.root.context.trace_id, int(sdk.root.context.trace_flags))
    }
    assert logs.records[0].flags & 1


def test_the_context_of_the_caller_reaches_processors() -> None:
    """What else is in OpenTelemetry's context where a line is recorded (baggage, say) is in the record's."""
    seen: list[Any] = []

    class Reader(LogRecordProcessor):
        def on_emit(self, log_record: ReadWriteLogRecord) -> None:
            context = log_record.log_record.context
            assert context is not None
            seen.append(context.get("theirs"))

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    Sdk().configure(events="log", logger_provider=Logs(Reader()).provider)
    with trifle.tracer("a/job"):
        before = get_current()
        with sdk_span():
            attach(type(before)({**get_current(), "theirs": 7}))
            trifle.trace("line")
        attach(before)
    assert seen == [None, 7]


def sdk_span() -> Any:
    """A span of others, current."""
    return Sdk().provider.get_tracer("app").start_as_current_span("theirs")


def test_a_record_is_emitted_when_the_line_is_recorded(sdk: Sdk, logs: Logs) -> None:
    """A job that runs is seen: its lines do not wait for the end of a block."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        for text in ("one", "two", "three"):
            trifle.trace(text)
            assert logs.texts()[-1] == text
        assert sdk.spans == []


def test_records_can_be_sent(sdk: Sdk, logs: Logs) -> None:
    """The OTLP encoder takes them: names, severities and ids are where the protocol has them."""
    with trifle.tracer("a/job"):
        trifle.trace("Größe", state="error")
    [resource] = encode_logs(logs.exporter.get_finished_logs()).resource_logs
    [scope] = resource.scope_logs
    found = scope.log_records[-1]
    assert scope.scope.name == "trifle_otel"
    assert (found.event_name, found.severity_number, found.severity_text) == ("trifle.text", 17, "ERROR")
    assert found.span_id.hex() == span_id(sdk.root)
    assert found.attributes[0].value.string_value == "Größe"
    assert found.body.WhichOneof("value") is None


# limits


def test_a_span_has_as_many_records_as_lines(sdk: Sdk, logs: Logs) -> None:
    """The number of events that a span may have is no limit of log records."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(3000):
            trifle.trace(f"line {number}")
    assert logs.texts(sdk.named("Step")) == [f"line {number}" for number in range(3000)]
    assert "trifle.lines_omitted" not in attributes(sdk.root)
    assert_accounted_for(sdk, logs)


def test_the_budget_of_spans_is_none_of_records(logs: Logs) -> None:
    """With no bytes for events, lines and exceptions are whole log records."""
    sdk = Sdk().configure(events="log", logger_provider=logs.provider, events_budget=0, span_events=0)

    def run() -> None:
        with trifle.tracer("a/job"):
            trifle.trace("y" * 2000)
            raise ValueError("x" * 1500)

    with pytest.raises(ValueError, match="x"):
        run()
    assert logs.texts()[1] == "y" * 2000
    [exception] = [one for one in logs.records if one.name == "exception"]
    assert exception.attributes["exception.message"] == "x" * 1500
    assert_accounted_for(sdk, logs)


def test_values_are_cut_as_on_spans(sdk: Sdk, logs: Logs) -> None:
    """An attribute has at most 2,048 bytes, and says how large the whole is, and where."""
    with trifle.tracer("a/job"):
        trifle.trace("é" * 3000)
    found = logs.records[-1].attributes
    assert len(found["trifle.text"].encode()) <= 2048
    assert found["trifle.text_size"] == 6000
    assert found["trifle.text_ref"] == f"{sdk.record.reference}#2"


def test_a_trace_makes_ten_thousand_records_and_as_many_of_what_went_wrong(sdk: Sdk, logs: Logs) -> None:
    """Beyond ten thousand records only errors and warnings are emitted; what is not is counted, on the block too."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            for number in range(10_300):
                trifle.trace("line", state="error" if number >= 10_000 and number % 100 == 50 else "success")
        trifle.warn()
        trifle.trace("the last")
    # the trace's first line is one of the ten thousand: 9,999 lines and three errors of 10,300, and no result
    assert len(logs.records) == 10_000 + 3 + 1
    assert [one.attributes["trifle.state"] for one in logs.records[10_000:]] == ["error", "error", "error", "warning"]
    assert attributes(sdk.named("Step"))["trifle.lines_omitted"] == 10_300 - 9_999 - 3 + 1
    assert_accounted_for(sdk, logs)


# both


def test_both_are_the_same(logs: Logs) -> None:
    """With `both` each event of a span is a log record too, with the same name, attributes, time and ids."""
    sdk = Sdk().configure(events="both", logger_provider=logs.provider)

    def run() -> None:
        with trifle.tracer("a/job") as job:
            trifle.trace("é" * 3000, state="warning")
            with trifle.block("Step", state="error") as step:
                trifle.artifact("a.txt", b"x")
                step.result("x")
            trifle.fail()
            job.root.result(7)
            with trifle.block("Fails"):
                raise KeyError("k")

    with pytest.raises(KeyError):
        run()
    from_spans = [
        (span_id(span), event.name, attributes(event), event.timestamp) for span in sdk.spans for event in span.events
    ]
    from_logs = [(one.span_id, one.name, one.attributes, one.timestamp) for one in logs.records]
    assert len(from_spans) == 11
    assert sorted(from_spans, key=repr) == sorted(from_logs, key=repr)


def test_with_both_a_span_has_its_own_limit(logs: Logs) -> None:
    """Of 300 lines the span shows 112 and says how many it does not; the records are all there."""
    sdk = Sdk().configure(events="both", logger_provider=logs.provider)
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(300):
            trifle.trace(f"line {number}", state="error" if number == 150 else "success")
    step = sdk.named("Step")
    assert len(logs.texts(step)) == 300
    assert len(step.events) == 112
    assert "line 150" in texts(step)
    assert attributes(step)["trifle.lines_omitted"] == 301 - 112
    assert_every_line_is_accounted_for(sdk)


# exceptions


def test_an_exception_is_a_record_once_on_the_innermost_span(sdk: Sdk, logs: Logs) -> None:
    """It has OpenTelemetry's name and attributes; the spans that it leaves fail with its message, and have no event."""

    def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Outer"), trifle.block("Inner"):
            raise LookupError("no such price")

    with pytest.raises(LookupError):
        run()
    [found] = [one for one in logs.records if one.name == "exception"]
    assert (found.span_id, found.severity) == (span_id(sdk.named("Inner")), "ERROR")
    assert found.attributes["exception.type"] == "LookupError"
    assert found.attributes["exception.message"] == "no such price"
    assert found.attributes["exception.stacktrace"].endswith("LookupError: no such price")
    assert found.timestamp == sdk.named("Inner").end_time
    for span in sdk.spans:
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no such price")
        assert attributes(span)["error.type"] == "LookupError"
    assert_accounted_for(sdk, logs)


def test_an_exception_that_leaves_the_trace_alone_has_a_time(sdk: Sdk, logs: Logs) -> None:
    """It is between the trace's last line and the end of its span."""
    with pytest.raises(LookupError), trifle.tracer("a/job"):
        raise LookupError
    [found] = [one for one in logs.records if one.name == "exception"]
    assert (sdk.entries[-1].ns or 0) <= found.timestamp <= (sdk.root.end_time or 0)


# which span


def test_lines_of_a_block_without_a_span_are_of_the_nearest_with_one(logs: Logs) -> None:
    """Their records have the ids of the span around it."""
    sdk = Sdk().configure(events="log", logger_provider=logs.provider, max_spans=1)
    with trifle.tracer("a/job"):
        with trifle.block("Outer"), trifle.block("Inner"), trifle.block("Innermost"):
            trifle.trace("inside")
        with trifle.block("Second"):
            trifle.trace("in the second")
    assert logs.texts(sdk.named("Outer")) == ["inside"]
    assert logs.texts(sdk.root)[1:] == ["in the second"]
    assert_accounted_for(sdk, logs)


def test_lines_of_a_task_that_outlives_its_block_are_of_the_block_around_it(sdk: Sdk, logs: Logs) -> None:
    """What is recorded in a block after its end has the ids of the span that is still open."""
    with trifle.tracer("a/job"):
        with trifle.block("Step"):
            inside = get_current()
        before = get_current()
        attach(inside)
        trifle.trace("late")
        attach(before)
    assert logs.texts(sdk.named("Step")) == []
    assert logs.texts(sdk.root)[1:] == ["late"]
    assert_accounted_for(sdk, logs)


def test_a_trace_inside_a_trace_has_records_of_its_own(sdk: Sdk, logs: Logs) -> None:
    """The ids are those of the inner trace's span, whose lines count apart."""
    with trifle.tracer("outer"), trifle.tracer("inner"):
        trifle.trace("inside")
    assert logs.texts(sdk.named("inner")) == ["Tracer has been initialized for inner", "inside"]
    assert logs.texts(sdk.named("outer")) == ["Tracer has been initialized for outer"]


def test_a_trace_that_is_sampled_out_makes_no_records(logs: Logs) -> None:
    """As it makes no events; its archive is complete."""
    sdk = Sdk(sampler=ALWAYS_OFF).configure(events="log", logger_provider=logs.provider)
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert logs.records == []
    assert len(sdk.entries) == 2


class RecordsOnly(Sampler):
    """Spans record and are not sampled."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "RecordsOnly"


def test_records_say_that_their_span_is_not_sampled(logs: Logs) -> None:
    """Where a span records and is not sampled, the flag is not set, so that the pipeline can decide."""
    Sdk(sampler=RecordsOnly()).configure(events="log", logger_provider=logs.provider)
    with trifle.tracer("a/job"):
        pass
    assert [one.flags & 1 for one in logs.records] == [0]


# the provider


@pytest.mark.parametrize("mode", ["log", "both"])
def test_without_a_provider_nothing_is_emitted_and_told(mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Lines count as omitted where they are on no span either; the trouble is counted, and logged once."""
    sdk = Sdk().configure(events=mode)
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.trace("line")
    shown = {"log": 0, "both": 3}[mode]
    assert sum(len(lines(span)) for span in sdk.spans) == shown
    assert attributes(sdk.root).get("trifle.lines_omitted", 0) == 3 - shown
    assert_every_line_is_accounted_for(sdk)
    with trifle.tracer("another"):
        pass
    assert caplog.text.count("no LoggerProvider") == 1
    assert sum(runtime().troubles.counts.values()) == 2


def test_the_applications_own_provider_is_used_whenever_it_is_set() -> None:
    """A global provider that is set after `configure` gets the next trace's records, and stays the one in force."""
    program = """
        import trifle_otel as trifle
        from opentelemetry import _logs, trace
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
        trifle.configure("memory:", events="log")
        with trifle.tracer("before"):
            pass
        provider, exporter = LoggerProvider(), InMemoryLogRecordExporter()
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        _logs.set_logger_provider(provider)
        with trifle.tracer("after"):
            pass
        print([record.log_record.attributes["trifle.text"] for record in exporter.get_finished_logs()])
        assert _logs.get_logger_provider() is provider
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(trifle.__file__).parents[1],
        capture_output=True,
        check=True,
        timeout=30,
        text=True,
    )
    assert done.stdout.strip() == "['Tracer has been initialized for after']"


def test_a_provider_that_is_disabled_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the logger says that it is off, nothing is emitted, and lines count as omitted."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    logs = Logs()
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    sdk = Sdk().configure(events="log", logger_provider=logs.provider)
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert logs.records == []
    assert attributes(sdk.root)["trifle.lines_omitted"] == 2


class FaultyProvider(ApiLoggerProvider):
    """Gives no logger."""

    def get_logger(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no logger today")


def test_a_provider_that_raises_stops_nothing() -> None:
    """The trace is recorded without log records, and the fault is told."""
    faults: list[BaseException] = []
    sdk = Sdk().configure(events="both", logger_provider=FaultyProvider(), error_handler=faults.append)
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert [str(fault) for fault in faults] == ["no logger today"]
    assert texts(sdk.root)[1:] == ["line"]
    assert len(sdk.entries) == 2


class Processor(LogRecordProcessor):
    """Does something with each line's record."""

    def __init__(self, does: Callable[[str], object]) -> None:
        self.does = does

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self.does(str((log_record.log_record.attributes or {}).get("trifle.text")))

    def shutdown(self) -> None:
        """Nothing to end."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing waits."""
        return True


def test_a_processor_that_raises_stops_nothing() -> None:
    """Lines whose records could not be emitted are in the archive, and count as omitted."""
    faults: list[BaseException] = []

    def refuse(text: str) -> None:
        if text == "bad":
            raise RuntimeError("refused")

    logs = Logs(Processor(refuse))
    sdk = Sdk().configure(events="log", logger_provider=logs.provider, error_handler=faults.append)
    with trifle.tracer("a/job"):
        for text in ("good", "bad", "good again"):
            trifle.trace(text)
    assert logs.texts()[1:] == ["good", "good again"]
    assert [str(fault) for fault in faults] == ["refused"]
    assert attributes(sdk.root)["trifle.lines_omitted"] == 1
    assert_accounted_for(sdk, logs)


def test_an_interrupt_inside_a_processor_reaches_the_job_and_blocks_nothing() -> None:
    """Ctrl-C is the job's; what it records afterwards is recorded."""

    def interrupt(text: str) -> None:
        if text == "now":
            raise KeyboardInterrupt

    logs = Logs(Processor(interrupt))
    sdk = Sdk().configure(events="log", logger_provider=logs.provider)
    with trifle.tracer("a/job"):
        with pytest.raises(KeyboardInterrupt):
            trifle.trace("now")
        trifle.trace("after")
    assert logs.texts()[1:] == ["after"]
    assert [entry.message for entry in sdk.entries][1:] == ["now", "after"]


def test_lines_that_a_processor_records_are_in_the_archive_and_make_no_records() -> None:
    """A pipeline that logs into the trace that it serves neither blocks nor goes in a circle; its lines are counted."""

    def record(text: str) -> None:
        with trifle.block("In the pipeline"):
            trifle.trace(f"processed {text}")

    logs = Logs(Processor(record))
    sdk = Sdk().configure(events="log", logger_provider=logs.provider)
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert logs.texts()[1:] == ["line"]
    assert [entry.message for entry in sdk.entries].count("processed line") == 1
    assert attributes(sdk.root)["trifle.lines_omitted"] >= 2
    assert_accounted_for(sdk, logs)


def test_a_processor_that_waits_holds_up_no_other_thread() -> None:
    """While one thread's record is exported, another thread of the trace records lines."""
    waits, goes_on = threading.Event(), threading.Event()

    def wait(text: str) -> None:
        if text == "slow":
            waits.set()
            assert goes_on.wait(10)

    logs = Logs(Processor(wait))
    sdk = Sdk().configure(events="log", logger_provider=logs.provider)

    def work(job: Any) -> None:
        with trifle.attach(job):
            trifle.trace("slow")

    with trifle.tracer("a/job") as job:
        thread = threading.Thread(target=work, args=(job,))
        thread.start()
        assert waits.wait(10)
        trifle.trace("quick")
        assert logs.texts()[-1] == "quick"
        goes_on.set()
        thread.join()
    assert logs.texts()[1:] == ["quick", "slow"]
    assert_accounted_for(sdk, logs)


# secrets, threads, whatever comes


def test_secrets_reach_no_record(sdk: Sdk, logs: Logs) -> None:
    """Texts, results, artifacts, exceptions and tracebacks are redacted in log records."""
    secret = "password=hunter2secret"

    def run() -> None:
        with trifle.tracer("a/job"):
            trifle.trace(secret)
            trifle.artifact(secret, b"x")
            with trifle.block("Log in") as step:
                step.result({"password": "hunter2secret"})
                raise RuntimeError(secret)

    with pytest.raises(RuntimeError):
        run()
    found = repr(logs.records)
    assert "[redacted:password]" in found
    assert "hunter2" not in found


def test_threads_that_record_at_once_are_counted_right(sdk: Sdk, logs: Logs) -> None:
    """Lines and blocks of four threads in one trace: each record names its line's place in the archive."""
    barrier = threading.Barrier(4)

    def work(job: Any, name: str) -> None:
        with trifle.attach(job):
            barrier.wait()
            for number in range(100):
                trifle.trace(f"{name} line {number}")
                with trifle.block(f"{name} block {number}") as step:
                    trifle.trace(f"{name} inside {number}")
                    step.result(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with trifle.tracer("a/job") as job:
            threads = [threading.Thread(target=work, args=(job, f"thread {number}")) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(logs.texts()) == 1 + 4 * 200
    assert_records_are_where_they_say(sdk, logs)
    assert_accounted_for(sdk, logs)


class RandomJob:
    """Does whatever chance says: lines, blocks, blocks that fail, changes of state, artifacts."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.steps = [self.block, self.failure, self.state, self.artifact, self.line, self.line, self.line]

    def work(self, depth: int = 0) -> None:
        """Up to nine steps."""
        for _ in range(self.chance.randrange(10)):
            self.chance.choice(self.steps)(depth)

    def block(self, depth: int) -> None:
        if depth < 5:
            state = self.chance.choice(["success", "error"])
            with trifle.block("b" * self.chance.randrange(300), state=state) as step:
                step.result("r" * self.chance.choice([1, 3000]))
                self.work(depth + 1)

    def failure(self, depth: int) -> None:
        try:
            with trifle.block("fails"):
                self.block(depth)
                raise KeyError("é" * self.chance.choice([1, 3000]))
        except KeyError:
            self.line(depth)

    def state(self, depth: int) -> None:
        self.chance.choice([trifle.fail, trifle.warn, trifle.succeed])()

    def artifact(self, depth: int) -> None:
        trifle.artifact("a", b"x")

    def line(self, depth: int) -> None:
        trifle.trace("t" * self.chance.choice([1, 3000]), state=self.chance.choice(["success", "error", "debug"]))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", ["log", "both"])
def test_every_line_is_accounted_for_whatever_the_job_does(mode: Any, seed: int) -> None:
    """Random jobs under random limits and a pipeline that refuses some: what is shown and what is omitted add up."""
    chance, refusals = random.Random(seed), random.Random(seed + 1)

    def refuse(text: str) -> None:
        if refusals.random() < 0.1:
            raise RuntimeError(text)

    logs = Logs(Processor(refuse))
    sdk = Sdk().configure(
        events=mode,
        logger_provider=logs.provider,
        max_spans=chance.choice([0, 1, 5, 1000]),
        span_events=chance.choice([1, 16, 24, 128]),
        events_budget=chance.choice([300, 2_000, 262_144]),
    )
    job = RandomJob(chance)
    with trifle.tracer("a/job"):
        for _ in range(8):
            job.work()
    if mode == "log":
        assert_accounted_for(sdk, logs)
    else:
        assert_every_line_is_accounted_for(sdk)
    assert {one.name for one in logs.records} <= set(conventions.EVENTS)
    for one in logs.records:
        assert all(len(str(value).encode()) <= 2048 for value in one.attributes.values())


def test_events_of_others_stay_where_they_are(sdk: Sdk) -> None:
    """What another instrumentation adds to our span is an event of it all the same."""
    with trifle.tracer("a/job"):
        otel.get_current_span().add_event("theirs", {"a": 1})
    assert events(sdk.root, "theirs") == [{"a": 1}]
