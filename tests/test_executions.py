"""Executions that were made of spans, as traces in the archive: keys, context, lines, states, and whatever was sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trifle_otel as trifle
from trifle_otel import Archive, Entry, TraceRecord
from trifle_otel.executions.archiving import archive, is_recorded, key_of, reference_of
from trifle_otel.executions.assemble import Assembler, Execution, Origin
from trifle_otel.executions.lines import MAX_DEPTH, mend_times
from trifle_otel.references import new_reference
from trifle_otel.runtime import Runtime, runtime
from trifle_otel.span_data import SpanData, SpanEvent, SpanLink

SECOND = 1_000_000_000
START = 1_760_000_000 * SECOND
TRACE = f"{7:032x}"
SHOP = {"service.name": "shop"}


def span(number: int, parent: int | None = None, name: str = "", **fields: Any) -> SpanData:
    """A span whose ids are small numbers; it began as many microseconds after the start as its number says."""
    start, end = START + number * 1000, START + SECOND - number * 1000
    above = None if parent is None else f"{parent:016x}"
    values: dict[str, Any] = {"resource": SHOP, "start_ns": start, "end_ns": end, **fields}
    return SpanData(TRACE, f"{number:016x}", above, name or f"span {number}", **values)


class Shelf:
    """The archive of a process that is configured for one in memory, and what is put there."""

    def __init__(self, **changes: Any) -> None:
        self.archive: Archive = trifle.configure("memory:", **changes)
        self.runtime: Runtime = runtime()

    def put(self, *spans: SpanData, **options: Any) -> list[TraceRecord]:
        """Archive the executions that these spans are; gives all records, in the order of their start."""
        assembler = Assembler(lambda execution: archive(execution, self.runtime), **options)
        assembler.add(spans)
        assembler.flush()
        return self.records()

    def put_one(self, *spans: SpanData) -> TraceRecord:
        """The same of spans that are one execution."""
        (record,) = self.put(*spans)
        return record

    def records(self) -> list[TraceRecord]:
        """All that is archived."""
        assert trifle.flush(10)
        return sorted(self.archive.search(limit=1000).records, key=lambda record: (record.first_at, record.reference))

    def entries(self, record: TraceRecord) -> list[Entry]:
        """A trace's lines."""
        return list(self.archive.entries(record))

    def lines(self, record: TraceRecord) -> list[str]:
        """The same as people see them, errors and warnings marked."""
        marks = {"error": "✗ ", "warning": "! "}
        return [f"{'  ' * entry.level}{marks.get(entry.state, '')}{entry.message}" for entry in self.entries(record)]


def assert_well_formed(entries: list[Entry]) -> None:
    """Openings and closings pair, each result follows its closing, and each line lies where its level says."""
    open_blocks: list[Entry] = []
    result_of: Entry | None = None
    for entry in entries:
        if result_of is not None:
            assert (entry.type, entry.level, entry.span) == ("raw", result_of.level, result_of.span)
            assert entry.message.startswith("↳ ")
            result_of = None
        elif entry.message.endswith(" ↴"):
            assert entry.level == len(open_blocks)
            assert entry.stored["parent"] == (open_blocks[-1].span if open_blocks else entries[0].span)
            open_blocks.append(entry)
        elif entry.message.endswith(" ↵"):
            opening = open_blocks.pop()
            assert (entry.level, entry.span) == (opening.level, opening.span)
            assert entry.message[:-1] == opening.message[:-1]
            result_of = entry
        else:
            assert entry.level == len(open_blocks)
            assert entry.span == (open_blocks[-1] if open_blocks else entries[0]).span
    assert open_blocks == []
    assert result_of is None


# --- What is archived


def test_an_execution_is_a_trace_with_blocks() -> None:
    """The root is the trace, children are blocks by their time, with attributes, events and what they were."""
    shelf = Shelf()
    query = {"db.system.name": "sqlite", "db.query.text": "SELECT 1"}
    record = shelf.put_one(
        span(3, 2, "connect"),
        span(4, 1, "SELECT orders", kind="CLIENT", attributes=query),
        span(2, 1, "load", events=[SpanEvent("cache miss", START + 2500, {"key": "a"})]),
        span(1, None, "report", end_ns=START + SECOND),
    )
    assert shelf.lines(record) == [
        "report",
        "load ↴",
        "  cache miss key=a",
        "  connect ↴",
        "  connect ↵",
        "  ↳ connect",
        "load ↵",
        "↳ load",
        "SELECT orders ↴",
        '  {"db.system.name":"sqlite","db.query.text":"SELECT 1"}',
        "SELECT orders ↵",
        "↳ SELECT 1",
        "report",
    ]
    assert_well_formed(shelf.entries(record))
    assert (record.key, record.state, record.tags, record.meta) == ("report", "success", (), None)
    assert record.duration == 999
    assert record.first_at == datetime.fromtimestamp(START / SECOND, timezone.utc).replace(microsecond=1)
    assert (record.trace_id, record.span_id) == (TRACE, f"{1:016x}")


def test_lines_have_the_times_and_ids_of_spans() -> None:
    """To the nanosecond; what a block's line belongs to is the span."""
    shelf = Shelf()
    entries = shelf.entries(shelf.put_one(span(2, 1, start_ns=START + 77, end_ns=START + 99), span(1)))
    assert [(entry.ns, entry.span) for entry in entries[1:4]] == [
        (START + 77, f"{2:016x}"),
        (START + 99, f"{2:016x}"),
        (START + 99, f"{2:016x}"),
    ]
    assert entries[1].stored["parent"] == f"{1:016x}"


def test_the_context_says_whose_root_it_was() -> None:
    """Service, name, kind, instrumentation, attributes, the parent elsewhere, links; and the setting's fields."""
    shelf = Shelf(context={"region": "eu"})
    root = span(
        1,
        99,
        "GET /orders/{id}",
        remote=True,
        kind="SERVER",
        scope="flask",
        attributes={"http.route": "/orders/{id}", "n": 3, "ok": True, "list": ("a", "b")},
        links=[SpanLink("ab" * 16, "cd" * 8)],
    )
    assert shelf.put_one(root).context == {
        "region": "eu",
        "service": "shop",
        "name": "GET /orders/{id}",
        "kind": "SERVER",
        "scope": "flask",
        "parent_span_id": f"{99:016x}",
        "links": [{"trace_id": "ab" * 16, "span_id": "cd" * 8}],
        "attributes": {"http.route": "/orders/{id}", "n": 3, "ok": True, "list": ["a", "b"]},
        "trace_id": TRACE,
        "span_id": f"{1:016x}",
    }


def test_long_attributes_are_short_in_the_context_and_whole_in_a_line() -> None:
    """The context is part of the index."""
    shelf = Shelf()
    record = shelf.put_one(span(1, attributes={"text": "x" * 50_000, "list": ["y" * 400] * 10, "n": 1}))
    kept = record.context["attributes"]
    assert len(json.dumps(kept)) < 3000
    assert kept["n"] == 1
    whole = json.loads(shelf.entries(record)[1].message)
    assert whole == {"text": "x" * 50_000, "list": ["y" * 400] * 10, "n": 1}
    few = shelf.put(span(2, trace_state="", attributes={f"a{number}": number for number in range(200)}))
    assert {len(one.context["attributes"]) for one in few} == {3, 64}


def test_an_attribute_whose_name_is_long_is_whole_in_a_line_too() -> None:
    """The context has the beginning of its name."""
    shelf = Shelf()
    record = shelf.put_one(span(1, attributes={"n" * 5_000: 1}))
    assert [len(name) for name in record.context["attributes"]] == [1000]
    assert json.loads(shelf.entries(record)[1].message) == {"n" * 5_000: 1}


def test_a_service_that_nobody_named_has_the_name_of_the_setting() -> None:
    """What the SDK makes up is no name."""
    shelf = Shelf(service="till")
    assert shelf.put_one(span(1, resource={"service.name": "unknown_service:python"})).context["service"] == "till"


def test_links_and_what_limits_dropped_are_lines() -> None:
    """Of the root and of any other span."""
    shelf = Shelf()
    link = SpanLink("ab" * 16, "cd" * 8, {"why": "retry"})
    lines = shelf.lines(shelf.put_one(span(2, 1, links=[link]), span(1, dropped_events=2, dropped_attributes=1)))
    assert lines[1] == "! 2 events and 1 attributes were dropped by its limits"
    assert lines[3] == f'  Link to span {"cd" * 8} of trace {"ab" * 16} {{"why":"retry"}}'


def test_secrets_are_screened_wherever_they_are() -> None:
    """In names, keys, attributes of the root and of others, events, statuses."""
    shelf = Shelf()
    secret = "hunter2hunter2"
    record = shelf.put_one(
        span(2, 1, f"password={secret}", attributes={"password": secret, "text": f"password={secret}"}),
        span(
            3,
            1,
            events=[SpanEvent("x", START + 5, {"password": secret})],
            status="ERROR",
            description=f"password={secret}",
        ),
        span(1, None, f"job password={secret}", attributes={"db.password": secret, "headers": [f"password={secret}"]}),
    )
    stored = json.dumps([entry.stored for entry in shelf.entries(record)]) + repr(record)
    assert secret not in stored
    assert stored.count("[redacted:password]") >= 6


# --- States


def test_the_root_decides_about_the_state() -> None:
    """Its status or its exception; a child's error makes lines of its own."""
    shelf = Shelf()
    failed = span(2, 1, "charge", status="ERROR", description="declined")
    record = shelf.put_one(failed, span(1))
    assert record.state == "success"
    assert shelf.lines(record) == ["span 1", "charge ↴", "! charge ↵".replace("!", "✗"), "↳ charge: declined", "span 1"]
    assert record.counters["states"]["error"] == 1


@pytest.mark.parametrize(
    "fields",
    [{"status": "ERROR"}, {"events": [SpanEvent("exception", START + 5, {"exception.type": "ValueError"})]}],
    ids=["status", "exception"],
)
def test_a_root_that_failed_is_an_error(fields: dict[str, Any]) -> None:
    """Whether it says so by its status or by an exception."""
    assert Shelf().put_one(span(1, **fields)).state == "error"


def test_an_exception_is_an_error_line_and_its_stack_trace() -> None:
    """Where it happened, and the status is not said a second time."""
    shelf = Shelf()
    exception = {
        "exception.type": "ValueError",
        "exception.message": "no such order",
        "exception.stacktrace": "Traceback:\n  x\n",
    }
    event = SpanEvent("exception", START + 2500, exception)
    record = shelf.put_one(span(2, 1, events=[event], status="ERROR", description="no such order"), span(1))
    assert shelf.lines(record)[2:5] == ["  ✗ Exception: no such order", "  Traceback:\n  x", "✗ span 2 ↵"]


# --- References


def test_the_same_spans_have_the_same_reference_and_lines() -> None:
    """Whatever their order: what is received twice is stored once."""
    shelf = Shelf()
    spans = [span(number, number // 2 or None, start_ns=START + 5) for number in range(1, 20)]
    first = shelf.put_one(*spans)
    lines = shelf.entries(first)
    second = shelf.put_one(*reversed(spans))
    assert second == first
    assert shelf.entries(second) == lines


def test_a_part_that_comes_again_leaves_the_whole_as_it_is() -> None:
    """A client that heard no answer sends its last request again, perhaps to another process: the root alone."""
    spans = [span(1), span(2, 1), span(3, 1)]
    shelf = Shelf()
    whole = shelf.put_one(*spans)
    lines = shelf.lines(whole)
    assert shelf.put(spans[0]) == shelf.put(spans[0], spans[2]) == [whole]
    assert shelf.lines(whole) == lines


def test_parts_that_come_again_at_once_leave_the_whole_as_it_is() -> None:
    """Before any of it is in the index."""
    spans = [span(1), span(2, 1), span(3, 1)]
    shelf = Shelf()
    for some in (spans[:1], spans, spans[:2]):
        assembler = Assembler(lambda execution: archive(execution, shelf.runtime))
        assembler.add(some)
        assembler.flush()
    (record,) = shelf.records()
    assert sum(line.endswith("↴") for line in shelf.lines(record)) == 2


def test_what_comes_again_with_more_takes_the_place_of_what_was_there() -> None:
    """A trace that was closed before all of it had come."""
    shelf = Shelf()
    shelf.put(span(1), span(2, 1))
    (record,) = shelf.put(span(1), span(2, 1), span(3, 1))
    assert sum(message.endswith("↴") for message in shelf.lines(record)) == 2


def test_references_sort_by_the_start_of_their_roots() -> None:
    """They are ULIDs of that time, and differ by trace and span."""
    origins = [
        Origin(trace, number, START + at * SECOND, 0, False)
        for at in range(3)
        for trace in ("a" * 32, "b" * 32)
        for number in ("c" * 16, "d" * 16)
    ]
    references = [reference_of(origin) for origin in origins]
    assert len(set(references)) == len(references)
    assert sorted(reference[:10] for reference in references) == [reference[:10] for reference in references]
    assert all(len(reference) == 26 for reference in references)


@pytest.mark.parametrize("ns", [-(10**30), -1, 0, 1 << 64, 10**30])
def test_a_reference_takes_any_time(ns: int) -> None:
    """As near to it as a ULID can be."""
    assert len(reference_of(Origin("a" * 32, "b" * 16, ns, ns, False))) == 26


# --- What never came, and what came late


def test_a_missing_parent_is_a_block_that_says_so() -> None:
    """With what hangs on it, in the execution that it lies in."""
    shelf = Shelf()
    record = shelf.put_one(span(4, 3), span(5, 3), span(1))
    assert shelf.lines(record) == [
        "span 1",
        f"! Missing: the parents of some spans never came ({3:016x})",
        f"! Span {3:016x} ↴",
        "  span 4 ↴",
        "  span 4 ↵",
        "  ↳ span 4",
        "  span 5 ↴",
        "  span 5 ↵",
        "  ↳ span 5",
        f"! Span {3:016x} ↵",
        "↳ this span never came",
        "span 1",
    ]
    assert record.context["missing"] == [f"{3:016x}"]
    assert record.state == "success"


def test_an_execution_without_a_root_says_so() -> None:
    """By its key, its state and its first line; its times are those of its spans."""
    shelf = Shelf()
    record = shelf.put_one(span(4, 3, "load", end_ns=START + 5 * SECOND), span(5, 3))
    assert (record.key, record.state, record.span_id) == ("incomplete/load", "warning", None)
    assert record.duration == 4999
    assert shelf.lines(record)[0].startswith("! The root of these spans had not come")
    assert record.trace_id == TRACE


def test_an_execution_without_a_root_whose_first_span_failed_is_an_error() -> None:
    """So that it is found among them."""
    assert Shelf().put_one(span(4, 3, status="ERROR")).state == "error"


def test_what_comes_late_names_the_trace_that_it_belongs_to() -> None:
    """By its reference, in its context and in its first line."""
    shelf = Shelf()
    assembler = Assembler(lambda execution: archive(execution, shelf.runtime), settle=0)
    assembler.add([span(1)])
    assembler.sweep()
    assembler.add([span(2, 1)])
    assembler.sweep()
    first, late = shelf.records()
    assert late.context["belongs_to"] == first.reference
    assert first.reference in shelf.lines(late)[0]
    assert (late.state, late.key) == ("success", "incomplete/span *")


def test_parts_of_a_trace_that_was_too_large_are_named() -> None:
    """By the one that has the root."""
    shelf = Shelf()
    records = shelf.put(*(span(number, 1) for number in range(50, 1, -1)))
    assembler = Assembler(lambda execution: archive(execution, shelf.runtime), most_spans=10)
    for number in range(1050, 1000, -1):
        assembler.add([span(number, 1000)])
    assembler.add([span(1000)])
    assembler.flush()
    parts = [record for record in shelf.records() if record not in records]
    (whole,) = [record for record in parts if record.key == "span *"]
    earlier = whole.context["earlier"]
    assert earlier
    assert set(earlier) <= {record.reference for record in parts}
    assert any(line.startswith("Earlier parts: ") for line in shelf.lines(whole))


# --- What is archived already


def ours(number: int, parent: int | None = None, **attributes: Any) -> SpanData:
    """A span of our own library's."""
    return span(
        number, parent, scope="trifle_otel", attributes={f"trifle.{name}": at for name, at in attributes.items()}
    )


@pytest.mark.parametrize(
    "spans, recorded",
    [
        ([ours(2, 1, reference="R", archive="file:///x"), span(1)], True),
        ([ours(1, None, reference="R", archive="file:///x")], True),
        ([ours(2, 1, reference="R", pending=True), span(1)], True),
        ([ours(3, 2), span(4, 2)], True),
        ([ours(2, 1, reference="R"), span(1)], False),
        ([span(1, attributes={"trifle.reference": "R", "trifle.archive": "x"})], False),
        ([span(1)], False),
    ],
    ids=["a request around it", "itself", "it still runs", "a part of it", "no archive there", "another's", "nothing"],
)
def test_what_our_library_has_recorded_is_left_out(spans: list[SpanData], recorded: bool) -> None:
    """With the local root around it; where it had no archive, its spans are all there is."""
    shelf = Shelf()
    assert (shelf.put(*spans) == []) is recorded
    execution = Execution(None, spans, ours=any(one.scope == "trifle_otel" for one in spans))
    assert is_recorded(execution) is recorded


def test_events_of_our_library_are_lines_again() -> None:
    """Where they are all there is: the message, its state, its type."""
    shelf = Shelf()
    events = [
        SpanEvent("trifle.text", START + 2001, {"trifle.text": "Prices", "trifle.type": "head", "trifle.line": 1}),
        SpanEvent("trifle.text", START + 2002, {"trifle.text": "low", "trifle.state": "warning"}),
        SpanEvent("trifle.result", START + 2003, {"trifle.result": "42"}),
    ]
    one = ours(1, None, reference="R")
    one.events = events
    record = shelf.put_one(one)
    found = [(entry.type, entry.state, entry.message) for entry in shelf.entries(record)[1:4]]
    assert found == [("head", "success", "Prices"), ("text", "warning", "low"), ("raw", "success", "42")]


def test_nothing_is_archived_where_there_is_no_archive_or_the_retention_says_none() -> None:
    """The retention may look at the execution as at any trace that has ended."""
    assert archive(Execution(span(1), [span(1)]), runtime()) is None
    seen = []

    def keep_errors(recording: Any) -> int | None:
        seen.append((recording.key, recording.state))
        return 30 if recording.state == "error" else None

    shelf = Shelf(retention=keep_errors)
    other = span(2, status="ERROR")
    records = shelf.put(span(1, name="fine"), other)
    assert [(record.key, record.retention) for record in records] == [("span *", 30)]
    assert sorted(seen) == [("fine", "success"), ("span *", "error")]


def test_an_archived_execution_gives_its_reference() -> None:
    """By which it is found."""
    shelf = Shelf()
    reference = archive(Execution(span(1), [span(1)]), shelf.runtime)
    assert [record.reference for record in shelf.records()] == [reference]


# --- Keys


HTTP = {"http.request.method": "GET"}


@pytest.mark.parametrize(
    "name, kind, attributes, expected",
    [
        ("GET /orders/{id}", "SERVER", {**HTTP, "http.route": "/orders/{id}"}, "http/GET/orders/{id}"),
        ("x", "SERVER", {"http.method": "post", "http.route": "/orders/<int:id>/"}, "http/POST/orders/<int:id>"),
        ("x", "SERVER", {**HTTP, "http.route": "/"}, "http/GET"),
        ("x", "SERVER", {**HTTP, "http.route": r"^articles/(?P<year>[0-9]{4})/$"}, "http/GET/articles/{year}"),
        ("GET /orders/17", "SERVER", {**HTTP, "url.path": "/orders/17"}, "http/GET"),
        ("/orders/17?x=1", "SERVER", {"http.method": "GET", "http.target": "/orders/17?x=1"}, "http/GET"),
        ("GET /orders/17", "SERVER", HTTP, "http/GET/orders/*"),
        ("GET", "SERVER", {**HTTP, "url.path": "/orders/17"}, "http/GET"),
        ("HTTP", "SERVER", {"http.request.method": "_OTHER", "url.path": "/"}, "http/other"),
        ("BREW", "SERVER", {"http.request.method": "BREW" * 99}, "http/other"),
        ("GET", "CLIENT", {**HTTP, "url.full": "https://x/y"}, "GET"),
        ("run/shop.tasks.report", "CONSUMER", {"celery.task_name": "shop.tasks.report"}, "jobs/shop.tasks.report"),
        ("apply_async/x", "PRODUCER", {"celery.task_name": "x"}, "publish/x"),
        (
            "orders process",
            "CONSUMER",
            {"messaging.system": "k", "messaging.destination.name": "orders"},
            "jobs/orders",
        ),
        ("x", "CONSUMER", {"messaging.system": "k", "messaging.destination": "user-4711"}, "jobs/user-*"),
        (
            "x",
            "CONSUMER",
            {
                "messaging.system": "k",
                "messaging.destination.name": "amq.gen-1",
                "messaging.destination.temporary": True,
            },
            "jobs/*",
        ),
        ("x", "SERVER", {"faas.trigger": "timer", "faas.name": "nightly"}, "jobs/nightly"),
        (
            "x",
            "SERVER",
            {"rpc.system": "grpc", "rpc.service": "shop.Orders", "rpc.method": "Get"},
            "rpc/shop.Orders/Get",
        ),
        ("x", "SERVER", {"rpc.system.name": "grpc", "rpc.method": "shop.Orders/Get"}, "rpc/shop.Orders/Get"),
        ("price calculation", "INTERNAL", {}, "price calculation"),
        ("commodity/calculate/one", "INTERNAL", {}, "commodity/calculate/one"),
        ("order 4711 of 2024-01-02", "INTERNAL", {}, "order * of *"),
        ("sync/550e8400-e29b-41d4-a716-446655440000", "INTERNAL", {}, "sync/*"),
        ("load 01K742SG3V5NRHCGNQ4TR480B2", "INTERNAL", {}, "load *"),
        ("blob da39a3ee5e6b4b0d3255bfef95601890afd80709", "INTERNAL", {}, "blob *"),
        ("oauth2/v1/s3", "INTERNAL", {}, "oauth2/v1/s3"),
        ("facade", "INTERNAL", {}, "facade"),
        ("", "INTERNAL", {}, "unnamed"),
        (" / . / ", "INTERNAL", {}, "unnamed"),
    ],
)
def test_keys_are_paths_and_few(name: str, kind: str, attributes: dict[str, Any], expected: str) -> None:
    """By the conventions, else by the name without its variable parts; never by a raw path."""
    assert key_of(SpanData(TRACE, "1" * 16, None, name, START, START, kind=kind, attributes=attributes)) == expected


anything: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
known_names = st.sampled_from(
    [
        "http.request.method",
        "http.route",
        "url.path",
        "messaging.system",
        "messaging.destination.name",
        "rpc.method",
        "rpc.service",
        "celery.task_name",
        "exception.message",
        "trifle.text",
        "password",
    ]
)
some_attributes = st.dictionaries(known_names | st.text(), anything, max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    name=st.text() | st.from_regex(r"[/\w ?.-]{0,600}"),
    kind=st.sampled_from(["SERVER", "CONSUMER"]),
    of=some_attributes,
)
def test_keys_of_anything_are_bounded(name: str, kind: str, of: Mapping[str, Any]) -> None:
    """No name and no attributes make a key that is long, deep or empty."""
    key = key_of(SpanData(TRACE, "1" * 16, None, name, START, START, kind=kind, attributes=of))
    assert 0 < len(key) < 1000
    assert key.count("/") <= 10


# --- Whatever is sent


@pytest.mark.parametrize(
    "times, expected",
    [
        ((START, START + 5), (START, START + 5)),
        ((START, START - 5), (START, START)),
        ((0, START), (START, START)),
        ((START, 0), (START, START)),
        ((-62_135_596_800 * SECOND, START), (START, START)),
        ((START, 1 << 64), (START, (1 << 63) - 1)),
        ((10**21, 10**22), ((1 << 63) - 1, (1 << 63) - 1)),
        ((0, 0), (START + 1, START + 1)),
        ((-5, -9), (START + 1, START + 1)),
    ],
)
def test_impossible_times_are_mended(times: tuple[int, int], expected: tuple[int, int]) -> None:
    """An end before its start, times that are not given, before 1970, after 2262."""
    spans = [span(2, start_ns=times[0], end_ns=times[1]), span(1, start_ns=START + 1, end_ns=START + 2)]
    mend_times(spans)
    assert (spans[0].start_ns, spans[0].end_ns) == expected
    assert (spans[1].start_ns, spans[1].end_ns) == (START + 1, START + 2)


@pytest.mark.parametrize("start", [-62_135_596_800, 0, 253_402_300_800, 10**15], ids=["1", "none", "10000", "never"])
@pytest.mark.parametrize("end", [-62_135_596_800, 0, 253_402_300_800, 10**15], ids=["1", "none", "10000", "never"])
def test_times_in_the_far_past_and_future_are_archived(start: int, end: int) -> None:
    """With times that can be stored, and a duration that is none below zero."""
    shelf = Shelf()
    record = shelf.put_one(
        span(1, start_ns=start * SECOND, end_ns=end * SECOND),
        span(2, 1, events=[SpanEvent("x", start * SECOND), SpanEvent("y", end * SECOND)]),
    )
    assert record.duration >= 0
    assert record.first_at <= record.last_at < record.expires_at
    assert len(shelf.entries(record)) == 7


def test_a_chain_that_is_too_deep_is_laid_out_flat() -> None:
    """Each span is there once, and the nesting is bounded."""
    shelf = Shelf()
    count = 5000
    record = shelf.put_one(*(span(number, number - 1 or None, end_ns=START + SECOND) for number in range(1, count + 1)))
    entries = shelf.entries(record)
    assert_well_formed(entries)
    assert max(entry.level for entry in entries) == MAX_DEPTH - 1
    assert sorted(entry.span or "" for entry in entries if entry.message.endswith("↴")) == [
        f"{number:016x}" for number in range(2, count + 1)
    ]


def test_parents_in_a_circle_are_cut_open() -> None:
    """Each span is there once, the circle begins with one of those in it, and it says so."""
    shelf = Shelf()
    record = shelf.put_one(span(1, 3), span(2, 1), span(3, 2), span(4, 2), span(8, 9), span(9, 8))
    entries = shelf.entries(record)
    assert_well_formed(entries)
    assert [entry.message for entry in entries if entry.message.endswith("↴")] == [
        f"span {number} ↴" for number in (1, 2, 3, 4, 8, 9)
    ]
    assert shelf.lines(record)[2] == "  ! The parents of this span run in a circle"


def test_text_that_is_no_text_is_made_clean() -> None:
    """NUL and lone surrogates in names, keys, attributes, events."""
    shelf = Shelf()
    bad = "a\0b\ud800c"
    record = shelf.put_one(
        span(2, 1, bad, attributes={bad: bad, "bytes": b"\xff\0"}, events=[SpanEvent(bad, START + 5, {bad: [bad]})]),
        span(1, None, bad, attributes={bad: {bad: bad}}, description=bad, status="ERROR", scope=bad),
    )
    entries = shelf.entries(record)
    assert_well_formed(entries)
    assert "\0" not in json.dumps([entry.stored for entry in entries], ensure_ascii=False) + repr(record.context)
    assert any("a␀b\\ud800c" in entry.message for entry in entries)


def test_numbers_of_any_size_are_archived() -> None:
    """Of more digits than Python writes out, in attributes and in the resource."""
    huge = 10**5000
    shelf = Shelf()
    attributes = {"one": huge, "several": [huge]}
    event = SpanEvent("x", START + 5, {"n": huge})
    record = shelf.put_one(
        span(2, 1, attributes=attributes, events=[event], resource={"n": huge}), span(1, attributes=attributes)
    )
    assert len(json.dumps(record.context)) < 5000
    assert len(shelf.entries(record)) == 8


def test_very_many_events_are_archived() -> None:
    """In the order of their times, all of them."""
    shelf = Shelf()
    count = 20_000
    record = shelf.put_one(span(1, events=[SpanEvent("e", START + count - at, {"at": at}) for at in range(count)]))
    assert record.length == count + 2
    entries = shelf.entries(record)
    assert entries[1].message == f"e at={count - 1}"
    assert entries[count].message == "e at=0"


@st.composite
def spans_of_any_kind(draw: st.DrawFn) -> list[SpanData]:
    """Trees, circles, missing parents, odd times, texts and values."""
    count = draw(st.integers(1, 12))
    time = st.sampled_from([START, START + 5, START + SECOND, 0, -SECOND, 1 << 64]) | st.integers(START, START + SECOND)
    found = []
    for number in range(1, count + 1):
        parent = draw(st.none() | st.integers(0, count + 2))
        one = span(number, parent, remote=draw(st.sampled_from([False, False, None, True])))
        one.name = draw(st.text(max_size=5))
        one.start_ns, one.end_ns = draw(time), draw(time)
        one.attributes = draw(some_attributes)
        names = st.sampled_from(["exception", "trifle.text"]) | st.text(max_size=5)
        one.events = draw(st.lists(st.builds(SpanEvent, names, time, some_attributes), max_size=2))
        one.status = draw(st.sampled_from(["UNSET", "OK", "ERROR"]))
        one.kind = draw(st.sampled_from(["INTERNAL", "SERVER", "CLIENT"]))
        found.append(one)
    return found


@settings(max_examples=50, deadline=None)
@given(spans=spans_of_any_kind())
def test_any_spans_are_archived_well_formed_and_once(spans: list[SpanData]) -> None:
    """Whatever is sent: openings and closings pair, and each span is a block or the root of one trace."""
    opened = trifle.configure(f"memory:{new_reference()}")  # spans of another example would be the same ones again
    run = runtime()
    found: list[tuple[str | None, Execution]] = []

    def keep(execution: Execution) -> None:
        found.append((archive(execution, run), execution))

    assembler = Assembler(keep)
    assembler.add(spans)
    assembler.flush()
    assert trifle.flush(10)
    blocks: list[str] = []
    for reference, execution in found:
        assert reference is not None
        entries = list(opened.entries(reference))
        assert_well_formed(entries)
        blocks += [entry.span or "" for entry in entries if entry.message.endswith(" ↴")]
        blocks += [] if execution.root is None else [execution.root.span_id]
        blocks = [one for one in blocks if one not in execution.missing]
    assert sorted(blocks) == sorted(one.span_id for one in spans)
    assert run.troubles.counts.total() == 0
