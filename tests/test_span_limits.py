"""What of a trace is on its spans where not everything fits: nothing is lost by others, what is left out is counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from spans import Sdk, assert_every_line_is_accounted_for, attributes, events, lines, texts

import trifle_otel as trifle
from trifle_otel import conventions, span_events

KIB = 1024


@pytest.fixture
def sdk() -> Sdk:
    """This process set up with an SDK that keeps its spans, and an archive in memory."""
    return Sdk().configure()


def assert_nothing_is_dropped(sdk: Sdk) -> None:
    """The SDK dropped no event and no attribute of ours."""
    for span in sdk.spans:
        assert span.dropped_events == 0
        assert span.dropped_attributes == 0
        assert [event for event in span.events if event.attributes is None] == []


def request_bytes(spans: list[ReadableSpan]) -> int:
    """Size of the OTLP request that carries the spans."""
    return int(encode_spans(spans).ByteSize())


def event_bytes(spans: list[ReadableSpan]) -> int:
    """What the spans' events take of it: each with its tag and its length."""
    total = 0
    for resource in encode_spans(spans).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                total += sum(size + (2 if size < 128 else 3) for size in (event.ByteSize() for event in span.events))
    return total


# events of a span


def test_of_many_lines_errors_and_warnings_come_first_then_beginning_and_end(sdk: Sdk) -> None:
    """A span with 300 lines shows 112, in order, all that went wrong among them; the SDK drops nothing."""
    states = {120: "error", 150: "warning", 151: "error", 200: "error"}
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(300):
            trifle.trace(f"line {number}", state=states.get(number, "success"))
    step = sdk.named("Step")
    # 112 places: 4 that went wrong, and of the 297 others (the result is one) 54 at the beginning and 54 at the end
    expected = [*range(54), 120, 150, 151, 200, *range(247, 300)]
    assert texts(step) == [f"line {number}" for number in expected]
    assert len(step.events) == 112
    assert step.events[-1].name == "trifle.result"
    assert attributes(step)["trifle.lines_omitted"] == 300 - 111
    assert_nothing_is_dropped(sdk)
    assert_every_line_is_accounted_for(sdk)


def test_errors_come_before_warnings(sdk: Sdk) -> None:
    """Where warnings alone would fill a span, the errors among them are all there."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(1000):
            trifle.trace(f"line {number}", state="error" if number % 100 == 50 else "warning")
    found = [event["trifle.state"] for event in events(sdk.named("Step"), "trifle.text")]
    assert found.count("error") == 10
    assert found.count("warning") == 102
    numbers = [event["trifle.line"] for event in events(sdk.named("Step"))]
    assert numbers == sorted(numbers)
    assert_every_line_is_accounted_for(sdk)


def test_of_too_many_errors_the_first_and_the_last_are_shown(sdk: Sdk) -> None:
    """A span that errors alone would fill shows where they began and where they ended."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(500):
            trifle.trace(f"line {number}", state="error")
    assert texts(sdk.named("Step")) == [f"line {number}" for number in [*range(56), *range(444, 500)]]
    assert_nothing_is_dropped(sdk)
    assert_every_line_is_accounted_for(sdk)


def test_a_change_of_state_has_its_place_among_many_lines(sdk: Sdk) -> None:
    """`fail` in the middle of many lines is shown, between the lines that it was called between."""
    with trifle.tracer("a/job"):
        for number in range(400):
            trifle.trace(f"line {number}")
            if number == 200:
                trifle.fail()
                trifle.warn()
    found = [event for event in sdk.root.events if event.name == "trifle.state"]
    assert [attributes(event)["trifle.state"] for event in found] == ["error", "warning"]
    times = [event.timestamp for event in sdk.root.events]
    assert times == sorted(times)
    assert_every_line_is_accounted_for(sdk)


def test_five_thousand_lines_are_counted(sdk: Sdk) -> None:
    """A trace of 5,000 lines shows 112 of them and says how many are in the archive alone."""
    with trifle.tracer("a/job"):
        for number in range(5000):
            trifle.trace(f"line {number}")
    found = attributes(sdk.root)
    assert (found["trifle.lines"], found["trifle.lines_omitted"]) == (5001, 5001 - 112)
    assert texts(sdk.root)[0] == "Tracer has been initialized for a/job"
    assert texts(sdk.root)[-1] == "line 4999"
    assert_nothing_is_dropped(sdk)
    assert_every_line_is_accounted_for(sdk)


def test_sixteen_places_are_left_for_others(sdk: Sdk) -> None:
    """Events that others add to our span are all kept beside ours, and so is an exception."""

    def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Step"):
            for number in range(300):
                trifle.trace(f"line {number}")
            for number in range(16):
                otel.get_current_span().add_event(f"other {number}")
            raise ValueError("last")

    with pytest.raises(ValueError, match="last"):
        run()
    assert len(sdk.named("Step").events) == 128
    assert sum(event.name.startswith("other") for event in sdk.named("Step").events) == 16
    assert len(events(sdk.named("Step"), "exception")) == 1
    assert_nothing_is_dropped(sdk)
    assert_every_line_is_accounted_for(sdk)


@pytest.mark.parametrize("limit, shown", [(0, 0), (1, 0), (10, 5), (20, 10), (64, 48), (1000, 601)])
def test_the_limit_of_opentelemetrys_environment_holds(monkeypatch: pytest.MonkeyPatch, limit: int, shown: int) -> None:
    """Whatever number of events the SDK is told to keep, it drops none of ours; a small limit is half ours."""
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", str(limit))
    sdk = Sdk().configure(events_budget=KIB * KIB)
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(600):
            trifle.trace(f"line {number}")
    assert len(sdk.named("Step").events) == shown
    assert_nothing_is_dropped(sdk)
    assert_every_line_is_accounted_for(sdk)


def test_the_limit_is_a_setting_too() -> None:
    """`span_events` says what an SDK keeps that was given its limits in code."""
    sdk = Sdk().configure(span_events=32)
    with trifle.tracer("a/job"):
        for number in range(100):
            trifle.trace(f"line {number}")
    assert len(sdk.root.events) == 16
    assert_every_line_is_accounted_for(sdk)


# values


@pytest.mark.parametrize("text", ["x" * 2048, "é" * 1024, "€" * 682 + "xx", "🎉" * 512])
def test_a_text_of_2048_bytes_is_whole(sdk: Sdk, text: str) -> None:
    """The limit is in bytes of UTF-8, and what just fits is not cut."""
    with trifle.tracer("a/job"):
        trifle.trace(text)
    assert events(sdk.root)[-1] == {
        "trifle.text": text,
        "trifle.type": "text",
        "trifle.state": "success",
        "trifle.line": 2,
    }


@pytest.mark.parametrize("text", ["x" * 2049, "é" * 1025, "€" * 683, "x" + "€" * 1000, "🎉" * 513, "xx" + "🎉" * 5000])
def test_a_longer_text_is_cut_between_characters(sdk: Sdk, text: str) -> None:
    """What is shown begins like the text, ends in `…`, has 2,045 to 2,048 bytes, and says where the whole of it is."""
    with trifle.tracer("a/job"):
        trifle.trace(text)
    found = events(sdk.root)[-1]
    short = found["trifle.text"]
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert 2045 <= len(short.encode()) <= 2048
    assert found["trifle.text_size"] == len(text.encode())
    assert found["trifle.text_ref"] == f"{sdk.record.reference}#2"


@pytest.mark.parametrize("window", [1, 3, 64])
@pytest.mark.parametrize("limit", [1, 3, 4, 10, 50, 10_000])
@pytest.mark.parametrize("text", ["", "x" * 90, "é" * 45 + "x", "€uro " * 20, "😀" * 25, "a\ud800b" * 20])
def test_a_long_text_is_cut_window_by_window_as_at_once(
    monkeypatch: pytest.MonkeyPatch, text: str, limit: int, window: int
) -> None:
    """Its beginning and its size in bytes are those of the whole, of which no copy is made."""
    expected = span_events.shortened(text, limit)
    monkeypatch.setattr(span_events, "_WINDOW", window)
    assert span_events.shortened(text, limit) == expected
    whole = text.encode("utf-8", "backslashreplace")
    short, size, cut = expected
    assert (size, cut) == (len(short.encode()), len(whole) if len(whole) > limit else 0)


def test_a_result_of_five_megabytes_is_a_preview_with_its_size(sdk: Sdk) -> None:
    """The span has its beginning, its size in bytes and a reference; the archive has the whole of it."""
    whole = "x" * 5_000_000
    with trifle.tracer("a/job"):
        trifle.trace("Download", lambda: whole)
    (found,) = events(sdk.named("Download"))
    assert found["trifle.result"] == f"'{whole[:2044]}…"
    assert found["trifle.result_size"] == 5_000_002
    assert found["trifle.result_ref"] == f"{sdk.record.reference}#4"
    assert sdk.entries[3].size == 5_000_000 + len("''") + len("↳ ".encode())


def test_the_value_limit_of_opentelemetrys_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDK would cut attributes shorter, we cut first, and say so."""
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "100")
    sdk = Sdk().configure()
    with trifle.tracer("a/job", meta="m" * 200):
        trifle.trace("x" * 200)
    assert events(sdk.root)[-1]["trifle.text"] == "x" * 97 + "…"
    assert events(sdk.root)[-1]["trifle.text_size"] == 200
    assert attributes(sdk.root)["trifle.meta"] == '"' + "m" * 96 + "…"


def test_no_value_is_longer_than_tempo_keeps(sdk: Sdk) -> None:
    """Key, meta, tags, states, exceptions, artifacts: 2,048 bytes, also where the setting says more."""
    sdk.configure(span_value_limit=100_000)

    def run() -> None:
        with trifle.tracer("k/" + "é" * 5000, meta=["m" * 5000], tags=["€" * 5000, "b" * 300]):
            trifle.artifact("dir/" * 100 + "é" * 5000, b"x")
            trifle.trace("x", state="s" * 5000)
            with trifle.block("Step", state="t" * 5000):
                raise type("E" * 5000, (Exception,), {})("€" * 5000)

    with pytest.raises(Exception, match="€"):
        run()
    for span in sdk.spans:
        assert len(span.name) <= 100
        assert len((span.status.description or "").encode()) <= 2048
        for found in (attributes(span), *(attributes(event) for event in span.events)):
            for value in found.values():
                size = (
                    sum(len(item.encode()) for item in value) if isinstance(value, tuple) else len(str(value).encode())
                )
                assert size <= 2048


def test_as_many_tags_as_fit_are_a_list(sdk: Sdk) -> None:
    """Tags are a list of texts, sorted, cut to 2,048 bytes in all: Tempo cuts no lists."""
    tags = [f"product:{number:05}" for number in range(1000)]
    with trifle.tracer("a/job", tags=reversed(tags)):
        pass
    assert attributes(sdk.root)["trifle.tags"] == tuple(tags[: 2048 // 13])
    assert len(sdk.record.tags) == 1000


def test_the_end_of_a_long_traceback_is_shown(sdk: Sdk) -> None:
    """Of a traceback, the frames next to the fault matter: its beginning is cut."""

    def down(depth: int) -> None:
        if depth == 0:
            raise ValueError("at the bottom")
        if depth % 2:
            down(depth - 1)
        else:
            (lambda: down(depth - 1))()

    with pytest.raises(ValueError, match="bottom"), trifle.tracer("a/job"):
        down(60)
    stack = events(sdk.root, "exception")[0]["exception.stacktrace"]
    assert stack.startswith("…")
    assert stack.endswith("ValueError: at the bottom")
    assert len(stack.encode()) <= 2048


# attributes of a span


def test_state_and_reference_survive_a_small_limit_of_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDK keeps four attributes, they are the four that matter most."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "4")
    sdk = Sdk().configure()
    with trifle.tracer("a/job", meta=1, tags=["t"]):
        for number in range(200):
            trifle.trace(str(number))
        trifle.fail()
    found = attributes(sdk.root)
    assert set(found) == {"trifle.lines_omitted", "trifle.lines", "trifle.state", "trifle.reference"}
    assert (found["trifle.state"], found["trifle.reference"]) == ("error", sdk.record.reference)


# spans and bytes of a trace


def test_blocks_beyond_max_spans_are_counted_and_their_lines_shown_further_out() -> None:
    """Of ten blocks three have spans; lines inside the others are on the nearest span around them."""
    sdk = Sdk().configure(max_spans=3)
    with trifle.tracer("a/job"):
        for number in range(9):
            with trifle.block(f"Block {number}"):
                trifle.trace(f"inside {number}")
                if number == 2:
                    with trifle.block("Deeper"):
                        trifle.trace("deeper")
    assert [span.name for span in sdk.blocks] == ["Block 0", "Block 1", "Block 2"]
    assert texts(sdk.named("Block 2")) == ["inside 2", "deeper"]
    assert texts(sdk.root)[1:] == [f"inside {number}" for number in range(3, 9)]
    found = attributes(sdk.root)
    assert found["trifle.blocks_omitted"] == 7
    assert found["trifle.lines_omitted"] == 7 * 3
    assert "trifle.lines_omitted" not in attributes(sdk.named("Block 2"))
    assert_every_line_is_accounted_for(sdk)


def test_without_child_spans_all_lines_are_on_the_traces_span() -> None:
    """`max_spans=0` makes one span a trace, which fails with what leaves its blocks."""
    sdk = Sdk().configure(max_spans=0)

    def run() -> None:
        with trifle.tracer("a/job"), trifle.block("Step"):
            trifle.trace("inside")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run()
    assert len(sdk.spans) == 1
    assert texts(sdk.root)[1] == "inside"
    assert len(events(sdk.root, "exception")) == 1
    assert_every_line_is_accounted_for(sdk)


def test_the_largest_trace_is_far_below_what_a_receiver_takes(sdk: Sdk) -> None:
    """A thousand spans with long names, results and messages: events stay in 256 KiB, the request far below 4 MiB."""
    with trifle.tracer("k" * 200, meta="m" * 5000, tags=["t" * 5000]):
        for number in range(1200):
            with trifle.block(f"{number} {'🎉' * 300}", state="x" * 100) as step:
                for _ in range(3):
                    trifle.trace("é" * 3000, state="warning")
                step.result("x" * 3000)
    assert len(sdk.blocks) == 1000
    assert attributes(sdk.root)["trifle.blocks_omitted"] == 200
    assert 200 * KIB < event_bytes(sdk.spans) <= 256 * KIB
    assert request_bytes(sdk.spans) < KIB * KIB
    assert_nothing_is_dropped(sdk)
    assert_every_line_is_accounted_for(sdk)


def test_a_thousand_exceptions_are_far_below_what_a_receiver_takes(sdk: Sdk) -> None:
    """Where every block fails with a long message of its own, each still has its exception, most of them cut short."""
    with trifle.tracer("a/job"):
        for number in range(1000):
            with pytest.raises(ValueError, match="€"), trifle.block(f"{number} {'€' * 300}"):
                raise ValueError(f"{number} {'€' * 3000}")
    assert sum(len(events(span, "exception")) for span in sdk.blocks) == 1000
    assert {events(span, "exception")[0]["exception.type"] for span in sdk.blocks} == {"ValueError"}
    assert request_bytes(sdk.spans) < 1.5 * KIB * KIB
    assert_every_line_is_accounted_for(sdk)


def test_one_exception_through_a_thousand_blocks_is_far_below_what_a_receiver_takes(sdk: Sdk) -> None:
    """A long message is the status of every span that it leaves, cut short where the budget is spent."""

    def down(depth: int) -> None:
        with trifle.block(f"Depth {depth}"):
            if depth == 300:
                raise ValueError("€" * 3000)
            down(depth + 1)

    with pytest.raises(ValueError, match="€"), trifle.tracer("a/job"):
        down(1)
    descriptions = [span.status.description or "" for span in sdk.spans]
    assert all(description.startswith("€" * 40) for description in descriptions)
    assert sum(len(events(span, "exception")) for span in sdk.spans) == 1
    assert request_bytes(sdk.spans) < 512 * KIB


@pytest.mark.parametrize("budget", [0, 500, 5_000, 50_000])
def test_the_budget_of_bytes_holds_and_is_used(budget: int) -> None:
    """Lines of every kind take at most the budget, as OTLP encodes them, and most of it where there are enough."""
    sdk = Sdk().configure(events_budget=budget)
    chance = random.Random(budget)
    with trifle.tracer("a/job"):
        for number in range(300):
            with trifle.block(f"Block {number}") as step:
                trifle.trace(
                    "é" * chance.randrange(3000), state=chance.choice(["success", "error", "warning", "ü" * 40])
                )
                trifle.trace("x" * chance.randrange(3000), head=True)
                chance.choice([trifle.fail, trifle.warn, trifle.succeed])()
                trifle.artifact(f"{'é' * chance.randrange(200)}/{number}", b"x")
                step.result("€" * chance.randrange(1500))
            trifle.trace("z" * chance.randrange(100))
    used = event_bytes(sdk.spans)
    assert used <= budget
    assert used >= budget * 0.9 or budget < 5_000
    assert_every_line_is_accounted_for(sdk)


def test_many_small_lines_use_most_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted for an event is little more than what it takes."""
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "1000")
    sdk = Sdk().configure(events_budget=20_000)
    with trifle.tracer("a/job"):
        for number in range(400):
            trifle.trace(f"Loading price {number}")
    assert_nothing_is_dropped(sdk)
    assert 20_000 * 0.9 < event_bytes(sdk.spans) <= 20_000
    assert_every_line_is_accounted_for(sdk)


@pytest.mark.parametrize("budget", range(10_000, 20_000, 1_000))
def test_lines_that_just_fit_or_just_do_not_stay_within_the_budget(budget: int) -> None:
    """A hundred lines of the largest size for their text, under budgets that are around what they take."""
    sdk = Sdk().configure(events_budget=budget)
    with trifle.tracer("a/job"):
        for _ in range(100):
            trifle.trace("Loading", state="x" * 32)
    assert budget * 0.9 < event_bytes(sdk.spans) <= budget or len(texts(sdk.root)) == 101
    assert event_bytes(sdk.spans) <= budget
    assert_every_line_is_accounted_for(sdk)


def test_errors_may_take_what_ordinary_lines_must_leave(sdk: Sdk) -> None:
    """Of 64 KiB the lines of one block get 24 KiB, its errors 48 KiB; the last quarter is the trace's own."""
    sdk.configure(events_budget=64 * KIB)
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(20):
            trifle.trace(f"{number:02}" + "x" * 1998, state="error" if number >= 4 else "success")
    assert [text[:2] for text in texts(sdk.named("Step"))] == [f"{number:02}" for number in range(4, 20)]


def test_within_the_budget_errors_and_warnings_come_first_too() -> None:
    """A span whose lines take too much shows its errors and warnings, then the beginning and the end."""
    sdk = Sdk().configure(events_budget=40_000)
    with trifle.tracer("a/job"), trifle.block("Step"):
        for number in range(60):
            state = {40: "error", 45: "warning"}.get(number, "success")
            trifle.trace(f"{number} {'x' * 1500}", state=state)
    shown = [int(text.split()[0]) for text in texts(sdk.named("Step"))]
    assert {0, 1, 40, 45, 59} <= set(shown)
    assert 20 not in shown
    assert shown == sorted(shown)
    assert_every_line_is_accounted_for(sdk)


def test_an_early_block_leaves_room_for_later_ones_and_for_the_trace() -> None:
    """A block that could take all bytes of the trace takes half of what is there; a quarter is the trace's own."""
    sdk = Sdk().configure(events_budget=64 * KIB)
    with trifle.tracer("a/job"):
        for number in range(4):
            with trifle.block(f"Block {number}"):
                for _ in range(100):
                    trifle.trace("x" * 2000)
        for _ in range(100):
            trifle.trace("y" * 2000)
    shown = [len(lines(span)) for span in [*sdk.blocks, sdk.root]]
    assert shown[0] > shown[1] > shown[2] > shown[3] > 0
    assert shown[4] >= 16 * KIB // 2200
    assert event_bytes(sdk.spans) <= 64 * KIB


@pytest.mark.parametrize("seed", range(25))
def test_every_line_is_accounted_for_whatever_the_job_does(seed: int) -> None:
    """Random jobs under random limits: what is shown and what is omitted are the lines of the archive."""
    chance = random.Random(seed)
    limits: dict[str, Any] = {
        "max_spans": chance.choice([0, 1, 5, 1000]),
        "span_events": chance.choice([1, 16, 24, 40, 128]),
        "events_budget": chance.choice([300, 2_000, 10_000, 262_144]),
    }
    sdk = Sdk().configure(**limits)

    def work(depth: int) -> None:
        for _ in range(chance.randrange(12)):
            what = chance.randrange(8)
            if what == 0 and depth < 6:
                with trifle.block("b" * chance.randrange(300), state=chance.choice(["success", "error"])) as step:
                    step.result("r" * chance.choice([1, 100, 3000]))
                    work(depth + 1)
            elif what == 1 and depth < 6:
                try:
                    with trifle.block("fails"):
                        work(depth + 1)
                        raise KeyError("é" * chance.choice([1, 3000]))
                except KeyError:
                    trifle.trace("caught", state="warning")
            elif what == 2:
                chance.choice([trifle.fail, trifle.warn, trifle.succeed])()
            elif what == 3:
                trifle.artifact("a", b"x")
            else:
                trifle.trace("t" * chance.choice([1, 50, 3000]), state=chance.choice(["success", "error", "debug"]))

    with trifle.tracer("a/job"):
        for _ in range(10):
            work(0)
    assert_every_line_is_accounted_for(sdk)
    for span in sdk.spans:
        assert len([event for event in span.events if event.name in conventions.EVENTS]) <= max(
            limits["span_events"], 1
        )
    assert_nothing_is_dropped(sdk)
