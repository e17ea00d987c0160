"""The outline of a trace: blocks paired by their spans, or by levels, whatever is missing or ran at the same time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifle_otel.outline import Block, Outline, outline
from trifle_otel.records import Entry

SECOND = 1_000_000_000
Stored = dict[str, Any]


@dataclass
class Node:
    """A block of a made-up program: `parts` are lines (None) and blocks; `ends` whether its end was recorded."""

    parts: list[Node | None] = field(default_factory=list)
    ends: bool = True


PROGRAMS = st.recursive(
    st.builds(Node, st.lists(st.none(), max_size=3), st.booleans()),
    lambda nodes: st.builds(Node, st.lists(st.none() | nodes, max_size=4), st.booleans()),
    max_leaves=12,
)


def entry(message: str, level: int, kind: str = "text", **more: Any) -> Stored:
    """An entry as it is stored."""
    return {"at": 1, "message": message, "state": "success", "type": kind, "level": level, **more}


class Recorder:
    """Plays programs as a tracer would, and remembers which entries belong to which block."""

    def __init__(self) -> None:
        self.ids = itertools.count(1)
        self.expected: dict[str, dict[str, list[int]]] = {}  # by span: id()s of entries
        self.parents: dict[str, str] = {}

    def play(self, node: Node, level: int = 0, around: str = "root", *, all_end: bool = False) -> Iterator[Stored]:
        """The entries of a block, one by one, so that several can be interleaved."""
        span = f"{next(self.ids):016x}"
        roles: dict[str, list[int]] = {"opened": [], "closed": [], "result": [], "lines": []}
        self.expected[span], self.parents[span] = roles, around
        yield self.noted(roles["opened"], entry("step ↴", level, span=span, parent=around))
        for part in node.parts:
            if part is None:
                yield self.noted(roles["lines"], entry("a line", level + 1, span=span))
            else:
                yield from self.play(part, level + 1, span, all_end=all_end)
        if node.ends or all_end:
            yield self.noted(roles["closed"], entry("step ↵", level, span=span))
            yield self.noted(roles["result"], entry("↳ 1", level, "raw", span=span))

    def noted(self, role: list[int], stored: Stored) -> Stored:
        """The entry, remembered for its block."""
        role.append(id(stored))
        return stored


def places(found: Outline, entries: list[Stored]) -> dict[str, dict[str, list[int]]]:
    """What an outline says, in the recorder's words."""
    said = {}
    for block in found.blocks:
        roles: dict[str, list[int | None]] = {
            "opened": [block.opened],
            "closed": [block.closed],
            "result": [block.result],
            "lines": [*block.lines],
        }
        said[entries[block.opened]["span"]] = {
            role: [id(entries[place]) for place in found_at if place is not None] for role, found_at in roles.items()
        }
    return said


def outlined(entries: list[Stored]) -> Outline:
    """The outline of entries as stored."""
    return outline([Entry(stored) for stored in entries])


@given(st.lists(PROGRAMS, max_size=4), st.data())
def test_blocks_that_ran_at_the_same_time_are_told_apart(programs: list[Node], data: st.DataObject) -> None:
    """However concurrent blocks interleave, and whichever ends are missing, each gets its own entries and children."""
    recorder = Recorder()
    running = [recorder.play(program) for program in programs]
    entries: list[Stored] = [entry("Tracer has been initialized for job", 0, span="root")]
    while running:
        task = data.draw(st.sampled_from(running))
        stored = next(task, None)
        if stored is None:
            running.remove(task)
        else:
            entries.append(stored)

    found = outlined(entries)

    assert places(found, entries) == recorder.expected
    spans = {id(block): entries[block.opened]["span"] for block in found.blocks}
    parents = {spans[id(block)]: spans[id(block.parent)] if block.parent else "root" for block in found.blocks}
    assert parents == recorder.parents
    assert all(child.parent is block for block in found.blocks for child in block.children)
    assert sorted(spans) == sorted(map(id, (*found.roots, *(c for block in found.blocks for c in block.children))))


@given(st.lists(PROGRAMS, max_size=4))
def test_levels_pair_what_one_thread_recorded(programs: list[Node]) -> None:
    """Without spans, as Ruby writes, levels alone give the same blocks as spans do."""
    recorder = Recorder()
    entries = [stored for program in programs for stored in recorder.play(program, all_end=True)]
    bare = [{key: value for key, value in stored.items() if key not in ("span", "parent")} for stored in entries]

    assert places(outlined(bare), entries) == recorder.expected


ANY = st.fixed_dictionaries(
    {},
    optional={
        "at": st.sampled_from([0, 7, -1, 10**30, True, None, "x"]),
        "message": st.sampled_from(["x ↴", "x ↵", "↳ 1", "x", "part_row_1.txt", None, 1]),
        "state": st.sampled_from(["success", "error", None]),
        "type": st.sampled_from(["text", "head", "raw", "media", 1]),
        "level": st.sampled_from([0, 1, 2, 3, -1, None]),
        "size": st.integers(1, 2),
        "ns": st.sampled_from([0, 7, -1, 10**30, "x"]),
        "span": st.sampled_from(["a", "b", "c", None]),
        "parent": st.sampled_from(["a", "b", "c", None]),
    },
)


@given(st.lists(ANY, max_size=12))
def test_any_entries_have_an_outline_that_leaves_nothing_out(entries: list[Stored]) -> None:
    """Whatever comes, nothing raises, each entry has exactly one place, and no block lies around itself."""
    found = outlined(entries)

    said = list(found.lines)
    for block in found.blocks:
        said += [place for place in (block.opened, block.closed, block.result) if place is not None] + block.lines
        assert block.parent is None or block.parent.opened < block.opened
        assert block.duration_ns is None or block.duration_ns >= 0
    assert sorted(said) == list(range(len(entries)))
    assert len(found.owners) == len(entries)


def named(found: Outline) -> dict[str, Block]:
    """The blocks by their messages."""
    return {block.message: block for block in found.blocks}


def test_ruby_s_blocks_are_found(golden: Path) -> None:
    """In an archive that Ruby wrote: nesting, states, results, an exception, an artifact, and offloaded messages."""
    found = outlined(json.loads((golden / "plain" / "deferred" / "entries.json").read_text(encoding="utf-8")))
    blocks = named(found)

    assert len(found.blocks) == 19
    three = blocks["level three"]
    assert (three.opened, three.closed, three.result, three.lines, three.level) == (17, 19, 20, [18], 2)
    assert three.parent is blocks["level two"]
    assert blocks["level two"].parent is blocks["level one"]
    assert (blocks["block that raises"].state, blocks["outer of raise"].state) == ("error", "error")
    assert blocks["warning block"].state == "warning"
    assert blocks["artifact inside a block"].lines == [65]  # Ruby stores no level with it
    assert blocks["nested oversized"].result == 75  # offloaded
    last = found.blocks[-1]
    assert (last.opened, last.closed, last.result) == (78, 79, 80)  # opening and closing are offloaded both
    assert [block.exact for block in found.blocks] == [False] * 19
    assert {block.duration_ns for block in found.blocks} == {0}


def test_durations_are_exact_where_nanoseconds_are_stored() -> None:
    """A block lasts from its opening to its closing, to the nanosecond; in others' archives to the second."""
    exact = [entry("a ↴", 0, span="1", parent="0", ns=5), entry("a ↵", 0, span="1", ns=1_234_567)]
    whole = [{**entry("a ↴", 0), "at": 100}, {**entry("a ↵", 0), "at": 103}]
    back = [entry("a ↴", 0, span="1", parent="0", ns=9), entry("a ↵", 0, span="1", ns=2)]

    assert [(b.duration_ns, b.exact) for b in outlined(exact).blocks] == [(1_234_562, True)]
    assert [(b.duration_ns, b.exact) for b in outlined(whole).blocks] == [(3 * SECOND, False)]
    assert [b.duration_ns for b in outlined(back).blocks] == [0]


def test_a_block_that_runs_is_open() -> None:
    """A running trace's last blocks have no end, with levels alone too."""
    for more in (Stored(), Stored(span="1")):
        found = outlined([entry("a ↴", 0, **more), entry("in it", 1, **more)])
        assert [(b.closed, b.end_ns, b.duration_ns, b.lines) for b in found.blocks] == [(None, None, None, [1])]


@pytest.mark.parametrize("message", ["look here ↴", "back ↵"])
def test_a_line_that_ends_with_an_arrow_is_a_line(message: str) -> None:
    """What callers write is no block of its own: neither with spans nor, where more lines follow, without."""
    with_spans = [
        entry("a ↴", 0, span="1", parent="0"),
        entry(message, 1, span="1"),
        entry("a ↵", 0, span="1"),
        entry("↳ 1", 0, "raw", span="1"),
    ]
    for entries in (with_spans, [{k: v for k, v in e.items() if k not in ("span", "parent")} for e in with_spans]):
        found = outlined(entries)
        assert [(b.opened, b.closed, b.result, b.lines) for b in found.blocks] == [(0, 2, 3, [1])]


def test_offloaded_messages_of_ours_keep_their_place() -> None:
    """An opening, a closing and a result that were too large for the part are found by span, level and parent."""
    media: Stored = {"kind": "media", "size": 9}
    found = outlined(
        [
            entry("part_row_1.txt", 0, span="1", parent="0", **media),
            {"at": 1, "message": "a.csv", "state": "success", "type": "media", "size": 9, "span": "1"},
            entry("part_row_2.txt", 1, span="1", **media),
            entry("part_row_3.txt", 0, span="1", **media),
            entry("part_row_4.txt", 0, span="1", **media),
        ]
    )
    assert [(b.opened, b.closed, b.result, b.lines) for b in found.blocks] == [(0, 3, 4, [1, 2])]
    assert [found.depth(place) for place in range(5)] == [0, 1, 1, 0, 0]


def test_a_result_ends_a_block_whose_closing_was_lost() -> None:
    """Where a part is damaged between them, the result alone tells when its block ended."""
    found = outlined([entry("a ↴", 0, span="1", parent="0", ns=1), entry("↳ 1", 0, "raw", span="1", ns=7)])
    assert [(b.closed, b.result, b.duration_ns) for b in found.blocks] == [(None, 1, 6)]
