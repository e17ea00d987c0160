"""Whatever a job calls becomes the entries that the format says, and whatever an entry holds can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.outline import Block, outline
from trifle_otel.records import Entry

STATES = st.sampled_from(["success", "warning", "error", "debug"])
MESSAGES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


class Call(NamedTuple):
    """What a job calls: a line, or with `inner` a block, which may be left by an exception that is caught outside."""

    message: str
    state: str
    head: bool
    inner: tuple[Any, ...] | None = None
    result: str = ""
    fails: bool = False


CALLS: st.SearchStrategy[list[Call]] = st.recursive(
    st.lists(st.tuples(MESSAGES, STATES, st.booleans()).map(lambda line: Call(*line)), max_size=3),
    lambda inner: st.lists(
        st.builds(Call, MESSAGES, STATES, st.booleans(), inner.map(tuple), MESSAGES, st.booleans()), max_size=3
    ),
    max_leaves=12,
)


class LeftError(Exception):
    """What leaves blocks."""


def record(calls: Any) -> None:
    """Call it."""
    for call in calls:
        if call.inner is None:
            trifle.trace(call.message, state=call.state, head=call.head)
            continue
        try:
            with trifle.block(call.message, state=call.state, head=call.head) as step:
                record(call.inner)
                if call.fails:
                    raise LeftError
                step.result(call.result)
        except LeftError:
            pass


def expected(calls: Any, level: int) -> Iterator[tuple[str, str, str, int]]:
    """The entries by the format's words: message, state, type, level."""
    for call in calls:
        kind = "head" if call.head else "text"
        if call.inner is None:
            yield call.message, call.state, kind, level
            continue
        yield f"{call.message} ↴", call.state, kind, level
        yield from expected(call.inner, level + 1)
        yield f"{call.message} ↵", "error" if call.fails else call.state, "text", level
        yield f"↳ {None if call.fails else call.result}", "success", "raw", level


@pytest.fixture
def archive() -> Archive:
    """An archive in memory, results in which are the texts that they are."""
    return trifle.configure("memory:", serializer="str", redaction=False, default_mode="deferred")


@given(calls=CALLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_calls_become_the_entries_of_the_format(archive: Archive, calls: list[Call]) -> None:
    """Order, levels, arrows, states and counters of any blocks in blocks; and the blocks are found in them again."""
    with trifle.tracer("a/job"):
        record(calls)
    assert trifle.flush(10)
    (found,) = archive.search().records
    entries = archive.entries(found)
    archive.delete(found)
    shapes = [(entry.message, entry.state, entry.type, entry.level) for entry in entries[1:]]
    assert shapes == list(expected(calls, 0))
    counters = found.counters
    assert sum(counters["types"].values()) == sum(counters["states"].values()) == found.length == len(entries)
    assert counters["max_level"] == max(entry.level for entry in entries)
    blocks = outline(entries).blocks
    assert [shape(block) for block in blocks if block.parent is None] == [
        tree(call) for call in calls if call.inner is not None
    ]


def tree(call: Call) -> Any:
    """A block as its message and the blocks in it."""
    return call.message, [tree(inner) for inner in call.inner or () if inner.inner is not None]


def shape(block: Block) -> Any:
    """The same of a block that was found."""
    return block.message, [shape(inner) for inner in block.children]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["at", "message", "state", "type", "level", "size", "ns", "span", "odd"])


@given(stored=st.dictionaries(FIELDS, JSON | st.sampled_from(["part_row_x", "media", " ↴"])))
def test_whatever_an_entry_holds_can_be_read(stored: dict[str, Any]) -> None:
    """Values of any type, in any field: reading gives the right types, and what is stored stays as it is."""
    before = dict(stored)
    entry = Entry(stored)
    assert all(isinstance(text, str) for text in (entry.message, entry.state, entry.type))
    assert entry.level >= 0
    assert entry.at.utcoffset() is not None
    assert entry.size is None or isinstance(entry.size, int)
    assert entry.offloaded in (True, False)
    assert hash(entry) == hash(Entry(stored))
    assert repr(entry.stored) == repr(before)  # NaN is not itself
