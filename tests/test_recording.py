"""What a job calls, and what the archive then holds: entries exactly as the Trifle format has them."""

from __future__ import annotations

import dataclasses
import gc
import gzip
import json
import logging
import math
import os
import re
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import pytest
from opentelemetry.context import get_current
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord, given, packing
from trifle_otel.errors import NotFound
from trifle_otel.recording import Recording
from trifle_otel.runtime import Troubles
from trifle_otel.span_events import Pending

Shape = tuple[int, str, str, str]

STARTED: Shape = (0, "text", "success", "Tracer has been initialized for a/job")


@pytest.fixture(autouse=True)
def context_restored() -> Iterator[None]:
    """What is current before a test is current after it."""
    before = get_current()
    yield
    assert get_current() == before


@pytest.fixture(params=["archive alone", "with spans"])
def archive(request: pytest.FixtureRequest) -> Archive:
    """An archive in memory: without an SDK, and with one whose spans record."""
    if request.param == "archive alone":
        return trifle.configure("memory:")
    return trifle.configure("memory:", tracer_provider=TracerProvider(shutdown_on_exit=False))


def only(archive: Archive) -> TraceRecord:
    """The only trace of an archive, all of it shipped."""
    assert trifle.flush(5)
    records = archive.search().records
    assert len(records) == 1
    return records[0]


def shapes(archive: Archive) -> list[Shape]:
    """Level, type, state and message of each entry of the only trace."""
    return [(entry.level, entry.type, entry.state, entry.message) for entry in archive.entries(only(archive))]


def inside(archive: Archive) -> list[Shape]:
    """The same, without the first line, which every trace has."""
    first, *rest = shapes(archive)
    assert first == STARTED
    return rest


def troubles(what: str) -> int:
    """How often something of that kind went wrong."""
    from trifle_otel.runtime import runtime

    return sum(count for kind, count in runtime().troubles.counts.items() if what in kind)


# --- entries as in the format


def test_lines_heads_and_blocks_become_the_entries_of_the_format(archive: Archive) -> None:
    """One job with a line, a head and nested blocks is stored entry by entry as Trifle stores it."""
    with trifle.tracer("a/job"):
        trifle.trace("Product -> Calculate job Start", head=True)
        trifle.trace("Careful", state="warning")
        with trifle.block("Outer", head=True) as outer:
            trifle.trace("Loading", lambda: 9)
            outer.result({"price": 1.5})
        trifle.trace("done", state="debug")
    assert shapes(archive) == [
        STARTED,
        (0, "head", "success", "Product -> Calculate job Start"),
        (0, "text", "warning", "Careful"),
        (0, "head", "success", "Outer ↴"),
        (1, "text", "success", "Loading ↴"),
        (1, "text", "success", "Loading ↵"),
        (1, "raw", "success", "↳ 9"),
        (0, "text", "success", "Outer ↵"),
        (0, "raw", "success", "↳ {'price': 1.5}"),
        (0, "text", "debug", "done"),
    ]


def test_the_keys_of_an_entry_stand_in_the_order_of_the_format(archive: Archive) -> None:
    """Ruby's keys come first and in its order, an artifact's without a level; `at` is the whole seconds of `ns`."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.artifact("page.html", b"<p>")
    entries = archive.entries(only(archive))
    standard = [[key for key in entry.stored if key not in ("ns", "span", "parent")] for entry in entries]
    line = ["at", "message", "state", "type", "level"]
    assert standard == [line, line, ["at", "message", "state", "type", "size"], line, line]
    for entry in entries:
        assert entry.stored["at"] == entry.stored["ns"] // 10**9
        assert list(entry.stored)[: len(line)] == [key for key in entry.stored if key in (*line, "size")]


def test_entries_of_one_block_carry_its_span_and_its_opening_the_one_around_it(archive: Archive) -> None:
    """`span` pairs an opening with its closing, result and lines; `parent` on the opening names the block around."""
    with trifle.tracer("a/job"), trifle.block("Outer"), trifle.block("Inner"):
        trifle.trace("line")
    record = only(archive)
    start, outer, inner, line, inner_end, inner_result, outer_end, outer_result = archive.entries(record)
    assert start.span == record.span_id
    assert line.span == inner.span == inner_end.span == inner_result.span
    assert outer.span == outer_end.span == outer_result.span
    assert len({start.span, outer.span, inner.span}) == 3
    assert (outer.stored["parent"], inner.stored["parent"]) == (start.span, outer.span)
    assert all(len(bytes.fromhex(entry.span or "")) == 8 for entry in (start, outer, inner))


@pytest.mark.parametrize(
    "message, stored",
    [
        ("Freight", "Freight"),
        ("Freight " * 200, "Freight " * 200),
        ("half \ud800", r"half \ud800"),
        ("nothing\0", "nothing\u2400"),
        ("password=hunter2", "password=[redacted:password]"),
    ],
)
@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_block_is_closed_by_the_message_that_opened_it(
    archive: Archive, message: str, stored: str, is_flushed: bool
) -> None:
    """Whatever became of it, and in whatever part."""
    with trifle.tracer("a/job", mode="live") as job, trifle.block(message):
        sink = job.runtime.sink
        if is_flushed and sink is not None:
            sink.bump(job)
    assert [shape[-1] for shape in inside(archive)] == [f"{stored} ↴", f"{stored} ↵", "↳ None"]
    assert only(archive).parts == 1 + is_flushed


def test_ids_of_blocks_are_unique_in_all_threads() -> None:
    """Those that are joined from pieces, in more threads than one and when the pieces begin again."""
    ids = packing._new_ids()
    found = list(islice(ids, 500))
    deque(islice(ids, 2**24 - 1500), maxlen=0)
    threads = [threading.Thread(target=lambda: found.extend(islice(ids, 500))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 4500
    assert all(re.fullmatch("[0-9a-f]{16}", each) and int(each, 16) for each in found)
    assert len({each[:10] for each in found}) >= 2


def test_a_part_is_one_gzip_member_of_compact_json(archive: Archive) -> None:
    """The stored bytes are one gzip member, compact UTF-8 JSON without BOM or newline, characters unescaped."""
    with trifle.tracer("a/job", mode="deferred"):
        trifle.trace('Größe "ü" 🎈 / \\ \x0b')
    record = only(archive)
    with archive.store.open(record.folder, "data_1.json.gz") as stream:
        data = gzip.decompress(stream.read())
    assert data.startswith(b'[{"at":')
    assert data.endswith(b"}]")
    assert '"message":"Größe \\"ü\\" 🎈 / \\\\ \\u000b","state":"success","type":"text","level":0,'.encode() in data
    assert [entry["message"] for entry in json.loads(data)][1] == 'Größe "ü" 🎈 / \\ \x0b'


def test_a_record_tells_what_was_stored(archive: Archive) -> None:
    """Key, segments, counters, length, parts, times and retention of the record are those of its entries."""
    before = datetime.now(timezone.utc)
    with trifle.tracer("commodity/calculate/one", mode="deferred", retention=14):
        trifle.trace("a", head=True)
        trifle.trace("b", state="warning")
        with trifle.block("c", state="debug"), trifle.block("d"):
            trifle.trace("e", state="error")
            trifle.trace("f", state="odd")
        trifle.artifact("g.txt", "text")
    record = only(archive)
    assert record.segments == ("commodity", "commodity/calculate", "commodity/calculate/one")
    assert (record.state, record.length, record.parts, record.retention) == ("success", 12, 1, 14)
    assert record.counters == {
        "states": {"success": 7, "warning": 1, "error": 1, "debug": 2},
        "types": {"text": 8, "head": 1, "raw": 2, "media": 1},
        "max_level": 2,
    }
    assert before <= record.first_at <= record.last_at <= datetime.now(timezone.utc)
    assert (record.expires_at - record.first_at).days == 14
    assert record.duration >= 0


@pytest.mark.parametrize(
    "message, stored",
    [
        (None, ""),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (7, "7"),
        (["a"], "['a']"),
        ("", ""),
        ("nul \0 here", "nul ␀ here"),
        ("lone \udc80 surrogate", "lone \\udc80 surrogate"),
        ("line\nbreak", "line\nbreak"),
        ("ends with ↴", "ends with ↴"),
    ],
)
def test_any_message_is_stored_as_text(archive: Archive, message: object, stored: str) -> None:
    """None is an empty message, bytes and objects their text, and what JSON cannot hold is made visible."""
    with trifle.tracer("a/job"):
        trifle.trace(message)
        trifle.trace(message, lambda: 1)
        with trifle.block(cast(str, message)):
            pass
    block: list[Shape] = [(0, "text", "success", f"{stored} ↴"), (0, "text", "success", f"{stored} ↵")]
    assert inside(archive) == [
        (0, "text", "success", stored),
        *block,
        (0, "raw", "success", "↳ 1"),
        *block,
        (0, "raw", "success", "↳ None"),
    ]


class Hostile:
    """An object that raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = None  # type: ignore[assignment]


DESCRIBED = f"<{__name__}.Hostile: repr raised RuntimeError>"


def test_a_hostile_value_is_described_and_never_raises_into_the_job(archive: Archive) -> None:
    """An object all of whose methods raise may be message, result, meta, tag, context, state or artifact."""
    hostile: Any = Hostile()
    with trifle.tracer("a/job", meta=[hostile], tags=[hostile], context={"field": hostile}):
        trifle.trace(hostile)
        assert trifle.trace(hostile, lambda: hostile) is hostile
        trifle.block("Decorated")(lambda: hostile)()
        with trifle.block(hostile) as step:
            assert step.result(hostile) is hostile
        trifle.trace("state", state=hostile)
        trifle.tag(hostile)
        trifle.artifact("hostile.txt", hostile)
        trifle.artifact(hostile, b"")
    record = only(archive)
    assert record.tags == (DESCRIBED,)
    assert (record.meta, record.context["field"]) == ([DESCRIBED], DESCRIBED)
    messages = [message for _, _, _, message in inside(archive)]
    assert messages[:4] == [DESCRIBED, f"{DESCRIBED} ↴", f"{DESCRIBED} ↵", f"↳ {DESCRIBED}"]
    assert messages[6] == f"↳ {DESCRIBED}"
    assert messages[7:10] == [f"{DESCRIBED} ↴", f"{DESCRIBED} ↵", f"↳ {DESCRIBED}"]
    assert archive.artifact(record, "hostile.txt") == DESCRIBED.encode()


class State(str, Enum):
    """States as an application may have them."""

    BAD = "error"


@pytest.mark.parametrize(
    "state, stored",
    [
        ("debug", "debug"),
        ("odd", "odd"),
        (State.BAD, "error"),
        (None, "success"),
        (7, "7"),
        (["x"], "['x']"),
        ('say "no"', 'say "no"'),
        ("\udc80\0", "\\udc80␀"),
    ],
)
def test_any_state_of_a_line_or_block_is_stored_as_text(archive: Archive, state: Any, stored: str) -> None:
    """A state that is none of the four is stored as its text, and no state at all is success."""
    with trifle.tracer("a/job"):
        trifle.trace("line", state=state)
        trifle.trace("call", lambda: 1, state=state)
        with trifle.block("block", state=state):
            pass
    states = [found for _, _, found, _ in inside(archive)]
    assert states == [stored, stored, stored, "success", stored, stored, "success"]


# --- blocks


class Job:
    """Methods under the decorator."""

    @trifle.block("Instance", head=True)
    def instance(self, value: int) -> int:
        """Give the value back."""
        return value

    @trifle.block("Static")
    @staticmethod
    def static(value: int) -> int:
        """Give the value back."""
        return value

    @classmethod
    @trifle.block("Class")
    def of_class(cls, value: int) -> int:
        """Give the value back."""
        return value


@pytest.mark.parametrize(
    "run",
    [
        lambda: trifle.trace("Step", lambda: [1]),
        lambda: trifle.block("Step")(lambda: [1])(),
        lambda: _with_block(),
    ],
    ids=["callable", "decorator", "context manager"],
)
def test_the_three_forms_of_a_block_are_the_same_in_the_archive(archive: Archive, run: Callable[[], Any]) -> None:
    """A block given as a callable, as a decorator or as a context manager returns its value and is stored alike."""
    with trifle.tracer("a/job"):
        assert run() == [1]
    assert inside(archive) == [
        (0, "text", "success", "Step ↴"),
        (0, "text", "success", "Step ↵"),
        (0, "raw", "success", "↳ [1]"),
    ]


def _with_block() -> list[int]:
    with trifle.block("Step") as step:
        return cast("list[int]", step.result([1]))


def test_methods_of_every_kind_are_blocks(archive: Archive) -> None:
    """Instance, static and class methods record their result and keep their names and documentation."""
    with trifle.tracer("a/job"):
        assert (Job().instance(1), Job.static(2), Job.of_class(value=3)) == (1, 2, 3)
    assert [message for _, kind, _, message in inside(archive) if kind == "raw"] == ["↳ 1", "↳ 2", "↳ 3"]
    assert inside(archive)[0] == (0, "head", "success", "Instance ↴")
    assert Job.instance.__name__ == "instance"
    assert Job.instance.__doc__ == "Give the value back."


@pytest.mark.parametrize("decorator", [trifle.block, trifle.tracer])
def test_a_decorator_without_parentheses_says_what_it_needs(decorator: Any) -> None:
    """It was given the function in the place of its message or key."""

    def price(product: int) -> int:
        return product

    with pytest.raises(TypeError, match=rf"write @trifle.{decorator.__name__}\(.* on .*price, with parentheses"):
        decorator(price)(9)


def test_what_cannot_be_called_is_refused_when_it_is_decorated() -> None:
    """A decorator on a property says where it belongs."""
    with pytest.raises(TypeError, match="below @property"):
        trifle.block("Step")(cast(Any, property(repr)))


def test_a_block_without_a_result_has_none(archive: Archive) -> None:
    """The result line is always there: of a block that gave none, and of one that gave the last of several."""
    with trifle.tracer("a/job"):
        with trifle.block("nothing"):
            pass
        with trifle.block("twice") as step:
            step.result(1)
            step.result(2)
    assert [message for _, kind, _, message in inside(archive) if kind == "raw"] == ["↳ None", "↳ 2"]


def test_a_result_is_taken_at_the_moment_of_the_call(archive: Archive) -> None:
    """What happens to a value or a message later does not show."""
    value = ["before"]
    with trifle.tracer("a/job"):
        trifle.trace(value)
        with trifle.block("Step") as step:
            step.result(value)
            value.append("after")
        trifle.trace("Call", lambda: value)
        value.clear()
    assert [message for _, _, _, message in inside(archive)] == [
        "['before']",
        "Step ↴",
        "Step ↵",
        "↳ ['before']",
        "Call ↴",
        "Call ↵",
        "↳ ['before', 'after']",
    ]


def test_the_result_of_the_trace_itself_is_a_raw_line(archive: Archive) -> None:
    """The execution's own result lies at the top level, where the root's frame is given one."""
    with trifle.tracer("a/job") as job:
        assert job.root.result(3) == 3
    assert inside(archive) == [(0, "raw", "success", "3")]


def test_a_block_object_may_be_entered_again_inside_itself(archive: Archive) -> None:
    """One `block` or `tracer` object used several times, also inside itself, leaves each time what it entered."""
    step = trifle.block("Step")
    with trifle.tracer("a/job"):
        with step as outer:
            with step as inner:
                inner.result("inner")
            outer.result("outer")
        with step:
            trifle.trace("again")
    assert [(level, message) for level, _, _, message in inside(archive)] == [
        (0, "Step ↴"),
        (1, "Step ↴"),
        (1, "Step ↵"),
        (1, "↳ 'inner'"),
        (0, "Step ↵"),
        (0, "↳ 'outer'"),
        (0, "Step ↴"),
        (1, "again"),
        (0, "Step ↵"),
        (0, "↳ None"),
    ]


@pytest.mark.parametrize(
    "serializer, stored",
    [
        ("repr", "'é'"),
        ("str", "é"),
        ("json", '"é"'),
        (lambda value: f"<{value}>", "<é>"),
        (lambda value: value / 0, "'é'"),
    ],
)
def test_results_are_serialised_as_the_setting_says(
    serializer: Literal["repr", "str", "json"] | Callable[[Any], str], stored: str
) -> None:
    """`repr`, `str`, `json` or a callable; one that raises falls back to `repr`."""
    archive = trifle.configure("memory:", serializer=serializer)
    with trifle.tracer("a/job"):
        assert trifle.trace("Step", lambda: "é") == "é"
    assert inside(archive)[-1] == (0, "raw", "success", f"↳ {stored}")


# --- decorated tracers, nested tracers


def test_a_decorated_function_is_a_trace_for_each_call(archive: Archive) -> None:
    """Each call has a reference of its own, the returned value is no line, and tags of an iterator last."""

    @trifle.tracer("a/job", tags=iter(["one"]))
    def job(value: int) -> int:
        trifle.trace(f"value {value}")
        return value * 2

    assert (job(1), job(2)) == (2, 4)
    assert trifle.flush(5)
    second, first = archive.search().records
    assert [entry.message for entry in archive.entries(first)][1:] == ["value 1"]
    assert [entry.message for entry in archive.entries(second)][1:] == ["value 2"]
    assert (first.tags, second.tags) == (("one",), ("one",))


def test_a_tracer_inside_a_tracer_is_a_trace_of_its_own(archive: Archive) -> None:
    """Lines go to the innermost trace, and to the outer one again when it is left."""
    with trifle.tracer("outer") as outer:
        trifle.trace("before")
        with trifle.block("Step"), trifle.tracer("inner") as inner:
            assert trifle.current() is inner
            trifle.trace("within")
            trifle.fail()
        trifle.trace("after")
        assert trifle.current() is outer
    assert trifle.current() is None
    assert trifle.flush(5)
    found = {record.key: record for record in archive.search().records}
    assert [entry.message for entry in archive.entries(found["inner"])][1:] == ["within"]
    assert [entry.message for entry in archive.entries(found["outer"])][1:] == [
        "before",
        "Step ↴",
        "Step ↵",
        "↳ None",
        "after",
    ]
    assert (found["inner"].state, found["outer"].state) == ("error", "success")


# --- states, tags, meta, context


@pytest.mark.parametrize(
    "calls, state",
    [
        ([], "success"),
        ([trifle.fail], "error"),
        ([trifle.warn], "warning"),
        ([trifle.succeed], "success"),
        ([trifle.fail, trifle.warn], "warning"),
        ([trifle.warn, trifle.fail, trifle.succeed], "success"),
    ],
)
def test_the_last_word_on_the_state_wins(archive: Archive, calls: list[Callable[[], None]], state: str) -> None:
    """`warn` after `fail` makes it a warning again; a trace that said nothing succeeded."""
    with trifle.tracer("a/job"), trifle.block("Step"):
        for call in calls:
            call()
    assert only(archive).state == state
    assert len(inside(archive)) == 3


def test_an_error_line_leaves_the_state_of_the_trace_alone(archive: Archive) -> None:
    """The state of a line or a block is that line's."""
    with trifle.tracer("a/job"):
        trifle.trace("bad", state="error")
        with trifle.block("worse", state="error"):
            pass
    assert only(archive).state == "success"


@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_an_ignored_trace_leaves_nothing(archive: Archive, mode: str) -> None:
    """Neither record nor payload, artifacts included."""
    with trifle.tracer("a/job", mode=mode):
        trifle.artifact("page.html", b"<p>")
        trifle.ignore()
    assert trifle.flush(5)
    assert archive.search().records == []
    assert list(archive.store.folders()) == []


def test_an_ignored_trace_that_was_flushed_already_is_deleted(archive: Archive) -> None:
    """What a live trace has in the archive goes when it ends ignored."""
    from trifle_otel.runtime import runtime

    with trifle.tracer("a/job") as job:
        trifle.artifact("page.html", b"<p>")
        sink = runtime().sink
        assert sink is not None
        sink.bump(job)
        assert only(archive).state == "running"
        trifle.ignore()
    assert trifle.flush(5)
    assert archive.search().records == []
    assert list(archive.store.folders()) == []


def test_tags_are_sorted_and_without_duplicates_and_none(archive: Archive) -> None:
    """Tags given at the start and later are one sorted set of texts."""
    with trifle.tracer("a/job", tags=["b", cast(str, None)]):
        trifle.tag("c", "a", "b", cast(str, None), cast(str, 7), "\udc80")
    assert only(archive).tags == ("7", "\\udc80", "a", "b", "c")


@pytest.mark.parametrize("tags, stored", [("product:9", ("product:9",)), (None, ()), (7, ("7",)), ((), ())])
def test_tags_that_are_no_list_are_understood(archive: Archive, tags: Any, stored: tuple[str, ...]) -> None:
    """A text is one tag and not its letters; None is none."""
    with trifle.tracer("a/job", tags=tags):
        pass
    assert only(archive).tags == stored


def test_a_trace_is_found_by_its_tags(archive: Archive) -> None:
    """Any and all of the tags given are searched for."""
    with trifle.tracer("a/job", tags=["one", "two"]):
        pass
    assert trifle.flush(5)
    assert len(archive.search(any_tags=["two", "three"]).records) == 1
    assert len(archive.search(all_tags=["one", "three"]).records) == 0


@dataclasses.dataclass
class Product:
    """A job's argument."""

    number: int
    price: Decimal


def test_any_meta_is_kept_as_json(archive: Archive) -> None:
    """What JSON does not know becomes something that it does."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    unique = uuid.UUID(int=5)
    meta = {
        "nan": math.nan,
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        "day": date(2026, 1, 2),
        "money": Decimal("1.10"),
        "id": unique,
        "product": Product(9, Decimal("2.5")),
        "set": {3, 1, 2},
        "bytes": b"raw",
        "cycle": cycle,
        7: None,
    }
    with trifle.tracer("a/job", meta=meta):
        pass
    assert only(archive).meta == {
        "nan": "NaN",
        "when": "2026-01-02T03:04:05Z",
        "day": "2026-01-02",
        "money": "1.10",
        "id": str(unique),
        "product": {"number": 9, "price": "2.5"},
        "set": [1, 2, 3],
        "bytes": "raw",
        "cycle": [1, "<cycle>"],
        "7": None,
    }


def test_meta_is_taken_when_the_trace_starts(archive: Archive) -> None:
    """A job that changes its arguments does not change what it was called with."""
    arguments = [9, {"store": 1}]
    with trifle.tracer("a/job", meta=arguments):
        arguments.clear()
    assert only(archive).meta == [9, {"store": 1}]


def test_the_context_holds_ids_and_the_fields_of_setting_and_trace() -> None:
    """The setting's fields (a mapping or what a callable gives), the trace's over them, and OpenTelemetry's ids."""
    archive = trifle.configure("memory:", context=lambda: {"host": "a", "queue": "slow"})
    with trifle.tracer("a/job", context={"queue": "fast", "attempt": 2}):
        pass
    context = dict(only(archive).context)
    assert len(bytes.fromhex(context.pop("trace_id"))) == 16
    assert len(bytes.fromhex(context.pop("span_id"))) == 8
    assert context.pop("sampled") is False  # there is no SDK
    assert context == {"host": "a", "queue": "fast", "attempt": 2}


def _gives(days: Any) -> Callable[[object], Any]:
    return lambda _: days


def _raises(*_: object) -> Any:
    raise LookupError("not today")


@pytest.mark.parametrize("context", [_raises, lambda: 7, lambda: None])
def test_a_context_that_cannot_be_had_costs_its_fields_alone(context: Callable[[], Any]) -> None:
    """A context callable that raises or gives no mapping leaves the trace recorded."""
    archive = trifle.configure("memory:", context=context)
    with trifle.tracer("a/job"):
        pass
    assert set(only(archive).context) == {"trace_id", "span_id", "sampled"}


@pytest.mark.parametrize("context", [7, "text", [1], _raises])
def test_a_trace_with_a_wrong_context_is_recorded(archive: Archive, context: Any) -> None:
    """What is no mapping is left out, and counted."""
    with trifle.tracer("a/job", context=context):
        pass
    assert set(only(archive).context) == {"trace_id", "span_id", "sampled"}
    assert troubles("context") == 1


@pytest.mark.parametrize("retention", ["week", 0, -1, 7.5, 10**9, True])
def test_a_trace_with_a_wrong_retention_is_kept_for_the_settings_days(archive: Archive, retention: Any) -> None:
    """A retention that is no number of days does not lose the trace."""
    with trifle.tracer("a/job", retention=retention):
        pass
    assert only(archive).retention == 7
    assert troubles("retention") == 1


def test_a_retention_callable_sees_the_finished_trace() -> None:
    """In deferred mode the days may depend on how the trace ended; None keeps nothing of it."""

    def days(trace: Recording) -> int | None:
        return {"error": 30, "warning": 14}.get(trace.state)

    archive = trifle.configure("memory:", default_mode="deferred", retention=days)
    for call in (trifle.fail, trifle.warn, trifle.succeed):
        with trifle.tracer("a/job"):
            call()
    assert trifle.flush(5)
    assert sorted((record.state, record.retention) for record in archive.search().records) == [
        ("error", 30),
        ("warning", 14),
    ]


def test_a_retention_callable_of_a_live_trace_is_asked_at_its_start() -> None:
    """The days are part of where a live trace is stored, so they are fixed at once, from what is known then."""
    asked: list[tuple[str, tuple[str, ...]]] = []

    def days(trace: Recording) -> int:
        asked.append((trace.key, tuple(trace.tags)))
        return 3

    archive = trifle.configure("memory:", retention=days)
    with trifle.tracer("a/job", tags=["x"]):
        assert asked == [("a/job", ("x",))]
        trifle.fail()
    assert only(archive).retention == 3
    assert len(asked) == 1


@pytest.mark.parametrize("days", [_raises, _gives("soon"), _gives(0), _gives(-3), _gives(10**9)])
def test_a_retention_callable_that_fails_loses_no_trace(days: Callable[[Recording], int | None]) -> None:
    """One that raises, or gives no number of days, leaves the default of seven."""
    archive = trifle.configure("memory:", retention=days)
    with trifle.tracer("a/job"):
        trifle.trace("kept")
    assert only(archive).retention == 7
    assert inside(archive) == [(0, "text", "success", "kept")]


def test_a_wrong_mode_is_counted_and_the_setting_counts(archive: Archive) -> None:
    """The trace is recorded all the same."""
    with trifle.tracer("a/job", mode="lively") as job:
        assert job.mode == "live"
    assert only(archive).state == "success"
    assert troubles("mode") == 1


def test_a_given_reference_is_the_traces(archive: Archive) -> None:
    """A caller's own reference is kept where it is safe as a path."""
    with trifle.tracer("a/job", reference="2026-01-01T00:00:00Z-1") as job:
        assert job.reference == "2026-01-01T00:00:00Z-1"
    assert archive.find("2026-01-01T00:00:00Z-1").key == "a/job"


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "//a//b/", "a\0b", "x" * 10_000, "lone\udc80", None, 7])
def test_a_key_that_is_no_path_is_made_harmless_and_the_original_kept(archive: Archive, key: Any) -> None:
    """The first line, the segments and the record carry the safe form; the context says what was given."""
    with trifle.tracer(key):
        trifle.trace("kept")
    record = only(archive)
    assert ".." not in record.key.split("/")
    assert "" not in record.key.split("/")
    assert len(record.key.encode()) <= 1024
    assert record.segments[-1] == record.key
    assert [entry.message for entry in archive.entries(record)] == [
        f"Tracer has been initialized for {record.key}",
        "kept",
    ]
    original = "" if key is None else str(key)
    visible = original.replace("\0", "␀").encode("utf-8", "backslashreplace").decode()
    assert record.context["original_key"] == visible


def test_what_is_remembered_of_keys_is_small(archive: Archive) -> None:
    """A job whose keys are whole documents does not fill the memory with them."""
    before = given._plain_key.cache_info().currsize
    with trifle.tracer(f"prices/{'x' * 1_000_000}"):
        pass
    assert only(archive).key.startswith("prices/")
    assert given._plain_key.cache_info().currsize == before


@trifle.tracer("a/password=hunter2", meta={"password": "hunter2"}, context={"password": "hunter2"})
def _job_with_secrets() -> None:
    trifle.trace("password=hunter2")
    trifle.trace("Step password=hunter2", lambda: {"password": "hunter2"})
    trifle.tag("password=hunter2")
    trifle.artifact("password=hunter2", b"")
    raise ValueError("password=hunter2")


def test_secrets_are_redacted_wherever_they_are_given(archive: Archive) -> None:
    """Messages, results, tags, meta, context, keys, names of artifacts and exceptions are screened before storing."""
    with pytest.raises(ValueError, match="hunter2"):
        _job_with_secrets()
    record = only(archive)
    assert archive.artifact(record, next(e.message for e in archive.entries(record) if e.type == "media")) == b""
    stored = [repr(record), *archive.store.names(record.folder)]
    for name in archive.store.names(record.folder):
        with archive.store.open(record.folder, name) as stream:
            data = stream.read()
        stored.append(repr(gzip.decompress(data) if name.endswith(".gz") else data))
    assert not [text for text in stored if "hunter2" in text]
    assert "[redacted:password]" in stored[0]


# --- artifacts


def test_an_artifact_is_bytes_text_or_a_copied_file(archive: Archive, tmp_path: Path) -> None:
    """Each is stored under its name with its size, and the source file stays."""
    source = tmp_path / "report.csv"
    source.write_bytes(b"a;b\n")
    with trifle.tracer("a/job"):
        trifle.artifact("raw.bin", b"\x00\xff")
        trifle.artifact("text.txt", "größe \udc80")
        trifle.artifact("deep/er/report.csv", source)
        trifle.artifact("view.bin", cast(bytes, memoryview(b"view")))
        source.write_bytes(b"changed afterwards")
    record = only(archive)
    assert [(entry.message, entry.type, entry.size) for entry in archive.entries(record)][1:] == [
        ("raw.bin", "media", 2),
        ("text.txt", "media", 14),
        ("deep/er/report.csv", "media", 4),
        ("view.bin", "media", 4),
    ]
    assert archive.artifact(record, "raw.bin") == b"\x00\xff"
    assert archive.artifact(record, "text.txt") == "größe \\udc80".encode()
    assert archive.artifact(record, "deep/er/report.csv") == b"a;b\n"
    assert archive.artifact(record, "view.bin") == b"view"
    assert source.exists()


def test_an_artifact_is_taken_when_it_is_given(archive: Archive) -> None:
    """A buffer that changes later is stored as it was."""
    buffer = bytearray(b"before")
    with trifle.tracer("a/job"):
        trifle.artifact("buffer.bin", cast(bytes, buffer))
        buffer[:] = b"after!"
    assert archive.artifact(only(archive), "buffer.bin") == b"before"


def test_a_source_file_is_deleted_where_that_is_asked_for(archive: Archive, tmp_path: Path) -> None:
    """With `cleanup` the source is gone once it is copied."""
    source = tmp_path / "report.csv"
    source.write_bytes(b"a;b\n")
    with trifle.tracer("a/job"):
        trifle.artifact("report.csv", source, cleanup=True)
        assert not source.exists()
    assert archive.artifact(only(archive), "report.csv") == b"a;b\n"


def test_a_source_file_that_cannot_be_deleted_is_kept_in_the_archive_all_the_same(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact is in the archive: that the source stays is counted, and no reason to say it is lost."""
    source = tmp_path / "report.csv"
    source.write_bytes(b"a;b\n")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == source:
            raise PermissionError("read-only")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with trifle.tracer("a/job"):
        trifle.artifact("report.csv", source, cleanup=True)
    record = only(archive)
    assert inside(archive) == [(0, "media", "success", "report.csv")]
    assert archive.artifact(record, "report.csv") == b"a;b\n"
    assert troubles("artifact") == 1


@pytest.mark.parametrize("source", ["missing.txt", "."])
def test_an_artifact_that_cannot_be_read_is_a_warning_in_the_trace(archive: Archive, source: str) -> None:
    """A missing file, or a folder, is a line in the trace; nothing raises, and the trace is stored."""
    with trifle.tracer("a/job"):
        trifle.artifact("page.html", Path(source))
        trifle.trace("after")
    [warning, after] = inside(archive)
    assert warning[:3] == (0, "text", "warning")
    assert "page.html" in warning[3]
    assert after == (0, "text", "success", "after")
    assert troubles("artifact") == 1
    with pytest.raises(NotFound):
        archive.artifact(only(archive), "page.html")


def test_an_artifact_name_given_twice_gets_a_number(archive: Archive) -> None:
    """Nothing is overwritten, and each line names its own file."""
    with trifle.tracer("a/job"):
        for number in range(3):
            trifle.artifact("page.html", str(number))
        trifle.artifact("no-suffix", "a")
        trifle.artifact("no-suffix", "b")
    record = only(archive)
    names = [message for _, _, _, message in inside(archive)]
    assert names == ["page.html", "page-2.html", "page-3.html", "no-suffix", "no-suffix-2"]
    assert [archive.artifact(record, name) for name in names] == [b"0", b"1", b"2", b"a", b"b"]


@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_a_file_and_a_folder_of_one_name_are_both_kept(tmp_path: Path, mode: str) -> None:
    """On disk one of them could not be: whichever comes later gets a number, and the trace is whole."""
    archive = trifle.configure(tmp_path / "archive", default_mode=mode)  # type: ignore[arg-type]
    (source := tmp_path / "report.csv").write_text("the only copy")
    with trifle.tracer("a/job"):
        trifle.artifact("out", "file")
        trifle.artifact("out/report.csv", source, cleanup=True)
        trifle.artifact("out/b.csv", "b")
        trifle.artifact("a/b/c", "deep")
        for name in ("a/b", "a", "a/b/c"):
            trifle.artifact(name, name)
    assert trifle.flush(10)
    record = only(archive)
    names = [message for _, _, _, message in inside(archive)]
    assert names == ["out", "out-2/report.csv", "out-2/b.csv", "a/b/c", "a/b-2", "a-2", "a/b/c-2"]
    contents = [archive.artifact(record, name) for name in names]
    assert contents == [b"file", b"the only copy", b"b", b"deep", b"a/b", b"a", b"a/b/c"]
    assert not source.exists()


def test_an_artifact_name_given_very_often_gets_its_number_at_once(archive: Archive) -> None:
    """The hundred-thousandth page takes no longer than the first, and a name of the caller's own is passed over."""
    with trifle.tracer("a/job") as job:
        assert job.unused_name("page-3.html") == "page-3.html"
        numbered = [job.unused_name("page.html") for _ in range(100_000)]
    assert numbered[:3] == ["page.html", "page-2.html", "page-4.html"]
    assert numbered[-1] == "page-100001.html"
    assert len(set(numbered)) == 100_000


@pytest.mark.parametrize("name", ["", "../up.txt", "/abs.txt", "a//b", "x" * 10_000, "nul\0.txt", "\udc80", None])
def test_an_artifact_name_that_is_no_path_is_made_harmless(archive: Archive, name: Any) -> None:
    """The line carries the safe name, and the file is found by it."""
    with trifle.tracer("a/job"):
        trifle.artifact(name, b"data")
    [entry] = inside(archive)
    assert entry[1] == "media"
    assert not {"", ".", ".."} & set(entry[3].split("/"))
    assert archive.artifact(only(archive), entry[3]) == b"data"


# --- sizes


def test_a_message_over_the_limit_becomes_an_artifact() -> None:
    """Strictly longer than the limit in bytes, arrows included; state and level stay, the message is a name."""
    archive = trifle.configure("memory:", payload_size_limit=1024)
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.trace("x" * 1024)
        trifle.trace("ü" * 513, state="warning", head=True)
        trifle.trace("r", lambda: "y" * 1024)
    record = only(archive)
    fits, over, _, _, result = inside(archive)[1:6]
    assert fits == (1, "text", "success", "x" * 1024)
    assert over[:3] == (1, "media", "warning")
    assert over[3].startswith("part_row_")
    assert over[3] == over[3].lower()
    assert archive.artifact(record, over[3]).decode() == "ü" * 513
    assert archive.artifact(record, result[3]).decode() == f"↳ '{'y' * 1024}'"
    sizes = [entry.size for entry in archive.entries(record) if entry.size is not None]
    assert sizes == [1026, 1024 + 2 + 4]
    assert record.counters["types"] == {"text": 6, "head": 0, "raw": 1, "media": 2}
    keys = [list(entry.stored)[:6] for entry in archive.entries(record) if entry.size is not None]
    assert keys == [["at", "message", "state", "type", "level", "size"]] * 2


def test_many_lines_are_kept_without_a_gap(archive: Archive) -> None:
    """A live trace that is filled without a pause is flushed in further parts, in order, long before its timer."""
    number = 0
    with trifle.tracer("a/job") as job:
        for number in range(10_000_000):
            trifle.trace(str(number))
            if job.parts >= 2:
                break
    record = only(archive)
    assert record.parts >= 2
    assert record.length == number + 2
    assert record.duration < 15_000
    assert [entry.message for entry in archive.entries(record)][1:] == [str(at) for at in range(number + 1)]


@pytest.mark.parametrize("events", ["span", "both"])
def test_what_runs_while_a_line_is_taken_may_record_a_line_itself(events: Any) -> None:
    """A finalizer or a signal's handler runs between any two steps of ours, and never waits for what it is in."""
    archive = trifle.configure(
        "memory:",
        events=events,
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        logger_provider=LoggerProvider(shutdown_on_exit=False),
    )
    struck: list[str] = []

    def strike(frame: FrameType, event: str, argument: object) -> None:
        del argument
        place = frame.f_code
        if event == "call" and place in (Pending.add.__code__, Troubles._due.__code__) and place.co_name not in struck:
            struck.append(place.co_name)
            trifle.trace("of a finalizer")

    def work() -> None:
        with trifle.tracer("a/job"):
            sys.setprofile(strike)
            trifle.fail()
            trifle.trace("line")
            late = copy_context()
        late.run(trifle.trace, "too late")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert struck == ["add", "_due"]
    assert [message for _, _, _, message in inside(archive)] == ["of a finalizer", "line"]


# --- the end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_lines_in_a_forked_child_are_told_as_such(archive: Archive) -> None:
    """A trace is its own process's: what a child says in it is counted there, and is not called late."""
    with trifle.tracer("a/job"):
        child = os.fork()
        if child == 0:
            trifle.trace("in the child")
            os._exit(0 if (troubles("forked child"), troubles("after the end")) == (1, 0) else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert inside(archive) == []


def test_lines_that_come_after_the_end_are_counted(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing after the end reaches the archive or raises; it is counted and logged."""
    with trifle.tracer("a/job") as job:
        step, inside_of_it = trifle.block("Step"), copy_context()
        inside_of_it.run(step.__enter__)
    inside_of_it.run(_come_late, job, step)
    assert job.late == 4
    assert troubles("after the end") == 4
    assert only(archive).state == "success"
    assert len(inside(archive)) == 3
    assert "lines came after the end" in caplog.text


def _come_late(job: Recording, step: trifle.block) -> None:
    trifle.trace("late line")
    with trifle.block("late block") as nothing:
        assert nothing.result(5) == 5
    assert trifle.trace("late call", lambda: 6) == 6
    trifle.artifact("late.txt", b"")
    trifle.fail()
    step.__exit__(None, None, None)
    with trifle.attach(job) as still:
        assert still is job
        assert trifle.current() is None
    assert trifle.current() is None


def test_blocks_still_open_are_closed_at_the_end_innermost_first(archive: Archive) -> None:
    """The end of a trace closes what is open, and what is left later is closed once."""
    outer, inner = trifle.block("outer", state="warning"), trifle.block("inner")
    with trifle.tracer("a/job"):
        context = copy_context()
        context.run(outer.__enter__)
        context.run(inner.__enter__)
    for block in (inner, outer):
        context.run(block.__exit__, None, None, None)
    assert inside(archive) == [
        (0, "text", "warning", "outer ↴"),
        (1, "text", "success", "inner ↴"),
        (1, "text", "success", "inner ↵"),
        (1, "raw", "success", "↳ None"),
        (0, "text", "warning", "outer ↵"),
        (0, "raw", "success", "↳ None"),
    ]


def test_leaving_twice_does_no_harm(archive: Archive) -> None:
    """A tracer or block left more often than it was entered does nothing."""
    job, step = trifle.tracer("a/job"), trifle.block("Step")
    job.__enter__()
    step.__enter__()
    for manager in (step, step, job, job):
        manager.__exit__(None, None, None)
    assert len(inside(archive)) == 3


# --- callbacks


def test_callbacks_are_called_at_start_flush_and_end(archive: Archive) -> None:
    """`liftoff` after the first line, `bump` at a flush, `wrapup` before the end: it may still record."""
    from trifle_otel.runtime import runtime

    seen: list[str] = []

    def wrapup(trace: Recording) -> None:
        seen.append(f"wrapup {trace.state}")
        trifle.tag("wrapped")
        trifle.trace("last")

    trifle.on("liftoff", lambda trace: seen.append(f"liftoff {trace.key}"))
    trifle.on("bump", lambda _: seen.append("bump"))
    assert trifle.on("wrapup", wrapup) is wrapup
    with trifle.tracer("a/job") as job:
        assert seen == ["liftoff a/job"]
        sink = runtime().sink
        assert sink is not None
        sink.bump(job)
    assert seen == ["liftoff a/job", "bump", "wrapup running"]
    assert inside(archive) == [(0, "text", "success", "last")]
    assert only(archive).tags == ("wrapped",)


def test_a_callback_that_raises_is_counted_and_the_others_are_called(archive: Archive) -> None:
    """The job and the other callbacks go on."""
    seen: list[str] = []
    for event in ("liftoff", "wrapup"):
        trifle.on(cast(Any, event), _raises)
        trifle.on(cast(Any, event), lambda _: seen.append("called"))
    with trifle.tracer("a/job"):
        trifle.trace("line")
    assert seen == ["called", "called"]
    assert troubles("callback raised") == 2
    assert inside(archive) == [(0, "text", "success", "line")]


def test_an_unknown_event_is_refused() -> None:
    """The error names the events that there are."""
    with pytest.raises(ValueError, match="liftoff, bump, wrapup"):
        trifle.on(cast(Any, "landing"), lambda _: None)


# --- nothing configured


def test_without_configuration_every_call_is_a_no_op_and_blocks_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is recorded, created or logged; every form gives its value."""
    gc.collect()  # generators that other tests left half-way tell of lines that come late when they go

    @trifle.tracer("a/job")
    def job() -> str:
        return "value"

    with caplog.at_level(logging.DEBUG), trifle.tracer("a/job", tags=["x"]) as trace:
        assert trifle.current() is None
        trifle.trace("line")
        assert trifle.trace("call", lambda: 5) == 5
        with trifle.block("block") as step:
            assert step.result("value") == "value"
        assert Job().instance(3) == 3
        trifle.tag("x")
        trifle.artifact("a.txt", Path("missing.txt"))
        for call in (trifle.fail, trifle.warn, trifle.succeed, trifle.ignore):
            call()
        with trifle.attach(trace):
            pass
        with trifle.attach(None):
            pass
        assert job() == "value"
    assert trifle.flush()
    assert trifle.shutdown()
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_outside_of_a_trace_every_call_is_a_no_op(archive: Archive) -> None:
    """With an archive but no running trace, blocks run and nothing is stored."""
    trifle.trace("line")
    assert trifle.trace("call", lambda: 5) == 5
    with trifle.block("block") as step:
        assert step.result(6) == 6
    trifle.artifact("a.txt", b"")
    assert trifle.flush(5)
    assert archive.search().records == []


def test_spans_alone_without_an_archive_record_too() -> None:
    """Where there is an SDK and no archive, blocks become child spans of the trace's span."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from trifle_otel.runtime import Runtime, install
    from trifle_otel.settings import Settings

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    install(Runtime(Settings(tracer_provider=provider), None))
    with trifle.tracer("a/job"), trifle.block("Step"):
        trifle.trace("line")
        trifle.artifact("a.txt", b"data")
    assert [span.name for span in exporter.get_finished_spans()] == ["Step", "a/job"]


# --- faults around us


def test_faults_go_to_the_error_handler() -> None:
    """Our own faults reach the handler and never the job; a handler that raises is no matter."""
    handled: list[BaseException] = []

    def handler(error: BaseException) -> None:
        handled.append(error)
        raise RuntimeError("the handler fails too")

    archive = trifle.configure("memory:", error_handler=handler)
    with trifle.tracer("a/job", context=cast(Any, 7)):
        trifle.artifact("a.txt", Path("missing.txt"))
    assert [type(error) for error in handled] == [AttributeError, FileNotFoundError]
    assert only(archive).state == "success"


def test_a_store_that_is_gone_while_a_job_runs_never_reaches_the_job(tmp_path: Path) -> None:
    """The archive's folder vanishes while a trace runs: the job ends as it would, and the trace is stored anew."""
    import shutil

    archive = trifle.configure(tmp_path / "traces")
    with trifle.tracer("a/job"):
        trifle.artifact("before.txt", b"before")
        shutil.rmtree(tmp_path / "traces")
        trifle.trace("line")
        trifle.artifact("after.txt", b"after")
    trifle.flush(5)
    [record] = archive.search().records
    assert [entry.message for entry in archive.entries(record) if entry.type == "text"][-1] == "line"
    assert archive.artifact(record, "after.txt") == b"after"
