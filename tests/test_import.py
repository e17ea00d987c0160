"""`trifle-otel import`: traces out of files of OTLP JSON lines, archived as a receiver would have archived them."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trifle_otel as trifle
from trifle_otel.archive import Archive
from trifle_otel.executions.importing import Import, _RecordedTime
from trifle_otel.records import Entry, TraceRecord
from trifle_otel.replaying.spans import ArchivedTrace
from trifle_otel.runtime import runtime
from trifle_otel.span_data import SpanData

pytest.importorskip("cyclopts", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

from trifle_otel.cli import main

SECOND = 1_000_000_000
NOW = time.time_ns() // SECOND * SECOND - 600 * SECOND
Json = dict[str, Any]


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `import` in this process."""

    def run_here(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(["import", *arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run_here


def span(number: int, parent: int = 0, *, trace: int = 1, at: int = NOW, **more: Any) -> Json:
    """A span as OTLP's JSON has it: by its number and its parent's, a second long."""
    return {
        "traceId": f"{trace:032x}",
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": f"span {number}",
        "kind": 1,
        "startTimeUnixNano": str(at + number),
        "endTimeUnixNano": str(at + SECOND - number),
        **more,
    }


def line(*spans: Json, scope: str = "a library") -> str:
    """A request with these spans."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "checkout"}}]}
    scopes = [{"scope": {"name": scope}, "spans": spans}]
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]}) + "\n"


def write(name: str, *lines: str) -> str:
    """A file of these lines."""
    Path(name).write_text("".join(lines), "utf-8")
    return name


def archived() -> list[tuple[TraceRecord, list[Entry]]]:
    """What is in `./traces`, the oldest first."""
    with Archive.open("./traces") as archive:
        records = archive.search(limit=1000).records[::-1]
        return [(record, list(archive.entries(record))) for record in records]


TRACE = [
    span(
        1,
        name="POST /pay",
        kind=2,
        status={"code": 2, "message": "upstream"},
        attributes=[{"key": "http.request.method", "value": {"stringValue": "POST"}}],
    ),
    span(2, 1, name="charge"),
    span(3, 2, name="SELECT", kind=3, events=[{"timeUnixNano": str(NOW + 9), "name": "a row came"}]),
]


def test_a_trace_is_archived(run: Run) -> None:
    """A root with its children becomes a trace: its ids, times, state, service, and its spans as nested blocks."""
    done = run(write("spans.jsonl", line(TRACE[2]), line(TRACE[1]), line(TRACE[0])))
    assert done == (0, "Imported 1 trace: 3 spans of 1 file.\n", "")
    ((record, entries),) = archived()
    assert (record.trace_id, record.span_id) == (f"{1:032x}", f"{1:016x}")
    assert (record.state, record.context["service"]) == ("error", "checkout")
    assert record.first_at.timestamp() == pytest.approx(NOW / SECOND, abs=1e-5)
    opened = {entry.stored["span"]: entry for entry in entries if entry.message.endswith(" ↴")}
    assert {f"{2:016x}", f"{3:016x}"} <= opened.keys()
    assert opened[f"{3:016x}"].stored["parent"] == f"{2:016x}"
    assert opened[f"{3:016x}"].ns == NOW + 3
    (event,) = [entry for entry in entries if "a row came" in entry.message]
    assert (event.ns, event.span) == (NOW + 9, f"{3:016x}")


def test_importing_again_does_no_harm(run: Run) -> None:
    """The same file gives the same references and the same lines: nothing is there twice."""
    name = write("spans.jsonl", line(*TRACE), line(span(7, trace=2)))
    run(name)
    first = archived()
    run(name)
    assert [(record.reference, entries) for record, entries in archived()] == [
        (record.reference, entries) for record, entries in first
    ]
    assert len(first) == 2


def test_a_trace_may_be_in_several_files(run: Run) -> None:
    """Files that follow each other are one stream: what lies on both sides of a cut is one trace."""
    done = run(write("1.jsonl", line(TRACE[2])), write("2.jsonl", line(TRACE[1], TRACE[0])))
    assert done.out == "Imported 1 trace: 3 spans of 2 files.\n"
    assert len(archived()) == 1


def test_damaged_lines_are_named(run: Run) -> None:
    """A line that cannot be read is told by its file and number, makes it a failure, and the rest is imported."""
    done = run(write("spans.jsonl", line(TRACE[0]), "{\n", line(TRACE[1])), "nowhere.jsonl", write("2", line(TRACE[2])))
    assert done.code == 1
    assert "spans.jsonl, line 2: " in done.err
    assert "spans.jsonl: 1 damaged line left out\n" in done.err
    assert "nowhere.jsonl: No such file or directory\n" in done.err
    assert "Imported 1 trace: 3 spans of 3 files.\n" in done.out


def test_very_many_damaged_lines_are_counted(run: Run) -> None:
    """A file of another kind does not flood the terminal."""
    done = run(write("text", "some text\n" * 500))
    assert done.code == 1
    assert done.err.count("\n") <= 25
    assert "500 damaged lines left out" in done.err


@pytest.mark.parametrize(
    "arguments, words",
    [([], "no file"), (["a", "--retention", "0"], "retention"), (["a", "--retain", "3"], "--retain")],
)
def test_wrong_use_is_said(run: Run, arguments: list[str], words: str) -> None:
    """No file, a retention that is none, or an option that is none, is wrong use."""
    done = run(*arguments)
    assert done.code == 2
    assert words in done.err


def test_the_standard_input_is_named_by_a_hyphen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is a file like others, and no option."""
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(line(*TRACE).encode())))
    monkeypatch.setattr(sys, "stdin", stream)
    done = run("--archive", "./traces", "-")
    assert (done.code, done.err) == (0, "")
    assert "Imported 1 trace" in done.out


def test_what_is_kept_too_short_is_said(run: Run) -> None:
    """Spans that are older than the retention would be gone at the next `cleanup`: `--retention` keeps them."""
    old = NOW - 20 * 86_400 * SECOND
    name = write("spans.jsonl", line(span(1, at=old)))
    done = run(name)
    assert "some began 20 days ago and are kept for 7 days" in done.err
    assert done.code == 0
    done = run(write("others.jsonl", line(span(1, trace=2, at=old))), "--retention", "30")
    assert done.err == ""
    with Archive.open("./traces") as archive:
        assert archive.cleanup() == 1
        assert [record.retention for record in archive.search().records] == [30]


def test_what_this_library_recorded_is_left_out(run: Run) -> None:
    """A trace with our reference and archive on one of its spans is archived already, in full."""
    ours = [{"key": f"trifle.{name}", "value": {"stringValue": "x"}} for name in ("archive", "reference")]
    done = run(write("spans.jsonl", line(span(1)), line(span(2, 1, attributes=ours), scope="trifle_otel")))
    assert done.code == 0
    assert "Left out 1 trace that this library recorded itself" in done.out
    assert archived() == []


def test_a_long_file_is_no_matter_of_memory() -> None:
    """Traces are closed as the spans' own time goes on, as they would have been then, and not at the end."""
    trifle.configure("memory:")
    work = Import(runtime(), lambda: None)
    most = 0
    for number in range(1, 1_500):
        at = NOW + number * 10 * SECOND
        work.add([data(number, 2, 1, at), data(number, 1, None, at)])
        most = max(most, work.waiting)
    assert most < 200
    work.finish()
    assert (work.tally.traces, work.tally.spans, work.waiting) == (1_499, 2_998, 0)


def data(trace: int, number: int, parent: int | None, at: int) -> SpanData:
    """A span, a second long."""
    above = None if parent is None else f"{parent:016x}"
    return SpanData(f"{trace:032x}", f"{number:016x}", above, "a span", at, at + SECOND)


def test_what_waits_is_shipped_now_and_then() -> None:
    """A remote archive is given time while very many traces come."""
    trifle.configure("memory:")
    shipped: list[int] = []
    work = Import(runtime(), lambda: shipped.append(work.tally.traces))
    for number in range(1, 1_200):
        work.add([data(number, 1, None, NOW)])
    work.finish()
    assert shipped == [500, 1_000]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(NOW, NOW + 10**12), min_size=1, max_size=30))
def test_recorded_time_goes_on_and_does_not_jump(times: Iterable[int]) -> None:
    """Whatever times spans claim, the clock does not go back, nor more than a minute with each line."""
    clock = _RecordedTime()
    before = clock()
    for ns in times:
        clock.advance(ns)
        assert before <= clock() <= before + 60
        before = clock()


def test_recorded_time_is_that_of_the_spans() -> None:
    """Lines a second apart let a second pass; lines that are late let none pass."""
    clock = _RecordedTime()
    for seconds in (100, 101, 103, 90, 104, 104):
        clock.advance(seconds * SECOND)
    assert clock() == pytest.approx(4)


def test_recorded_time_is_not_hurried_by_what_has_no_time_and_by_gaps() -> None:
    """After a line without a time, and after a night without any line, it goes on at the pace of the lines."""
    clock = _RecordedTime()
    for ns in (0, NOW, NOW + SECOND):
        clock.advance(ns)
    assert clock() == pytest.approx(1)
    morning = NOW + 8 * 3600 * SECOND
    for at in range(100):
        clock.advance(morning + at * SECOND)
    assert clock() <= 1 + 2 * 60 + 100


def test_one_wrong_clock_does_not_stop_the_recorded_time() -> None:
    """A single line of a far future moves it by a minute, and it goes on with the others."""
    clock = _RecordedTime()
    for ns in (NOW, NOW + 10**18, NOW + SECOND, NOW + 100 * SECOND):
        clock.advance(ns)
    assert clock() == pytest.approx(100)


def test_a_span_without_a_time_is_not_said_to_be_of_1970(run: Run) -> None:
    """It counts as no age: nothing is said of a retention that would be too short."""
    done = run(write("spans.jsonl", line(*TRACE, span(7, 1, startTimeUnixNano="0", endTimeUnixNano="0"))))
    assert (done.code, done.err) == (0, "")


def test_what_was_imported_can_be_sent_on(run: Run) -> None:
    """A trace that is replayed after its import has the names, ids, times, kinds and nesting that it came with."""
    run(write("spans.jsonl", line(*TRACE)))
    with Archive.open("./traces") as archive:
        (record,) = archive.search().records
        spans = {span.span_id: span for span in ArchivedTrace(record, archive.entries(record)).spans()}
    assert [(number, spans[f"{number:016x}"].name, spans[f"{number:016x}"].parent_id) for number in (1, 2, 3)] == [
        (1, "POST /pay", None),
        (2, "charge", f"{1:016x}"),
        (3, "SELECT", f"{2:016x}"),
    ]
    root = spans[f"{1:016x}"]
    assert (root.kind, root.status, root.resource) == ("SERVER", "ERROR", {"service.name": "checkout"})
    assert root.attributes["http.request.method"] == "POST"
    assert (spans[f"{3:016x}"].start_ns, spans[f"{3:016x}"].end_ns) == (NOW + 3, NOW + SECOND - 3)
