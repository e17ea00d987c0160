"""`diff`: two executions side by side, the first step whose result differs, and all else that differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trifle_otel import comparison, differences
from trifle_otel.archive import Archive
from trifle_otel.cli.finding import resolve
from trifle_otel.cli.listing import STATE_WIDTH
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.pager import paged, print_json
from trifle_otel.cli.show import HEAD, report_damage
from trifle_otel.cli.terminal import STYLES, Piece, Screen, complain, fitted, state_label
from trifle_otel.cli.visible import call, count, duration, size, visible, when, zone
from trifle_otel.comparison import Comparison, Execution, Step
from trifle_otel.encoding import format_time, record_fields
from trifle_otel.errors import UsageError
from trifle_otel.outline import Block
from trifle_otel.reading import Entries
from trifle_otel.records import RESULT, TraceRecord
from trifle_otel.unfolding import read_beside

MOST_UNFOLDED = 256_000_000
"""Bytes of messages stored beside a trace that are compared by what they say; further ones by their size."""
MOST_SHOWN = 24
"""Lines of a difference that are shown without `--full`."""
MOST_OF_A_LINE, MOST_OF_A_TEXT = 400, 240  # characters
AROUND = 40
MAX_INDENT = 24
_SAME, _LEFT, _RIGHT = " ", "-", "+"
_SIDES = {differences.SAME: _SAME, differences.LEFT: _LEFT, differences.RIGHT: _RIGHT}
_COLOURS = {_SAME: "dim", _LEFT: "red", _RIGHT: "green"}
_MARKS = {
    comparison.SAME: (" ", "dim"),
    comparison.INSIDE: ("~", "dim"),
    comparison.RESULT: ("≠", "yellow"),
    comparison.STATE: ("!", "yellow"),
    comparison.TEXT: ("±", "yellow"),
    comparison.ONLY_LEFT: (_LEFT, "red"),
    comparison.ONLY_RIGHT: (_RIGHT, "green"),
}
_NAMES = {
    comparison.RESULT: ("step gave another result", "steps gave another result"),
    comparison.STATE: ("step ended in another state", "steps ended in another state"),
    comparison.TEXT: ("line says something else", "lines say something else"),
    comparison.ONLY_LEFT: ("step is in the first alone", "steps are in the first alone"),
    comparison.ONLY_RIGHT: ("step is in the second alone", "steps are in the second alone"),
}


class Side(NamedTuple):
    """One of the two."""

    record: TraceRecord
    execution: Execution

    def text(self, place: int, block: Block | None) -> str:
        """What a step says."""
        return self.execution.entries[place].message if block is None else block.message

    def result(self, block: Block | None) -> str:
        """The result of a block; empty where it has none."""
        if block is None or block.result is None:
            return ""
        entry = self.execution.entries[block.result]
        if entry.offloaded:
            return f"({'size unknown' if entry.size is None else size(entry.size)}, not compared)"
        return entry.message.removeprefix(RESULT)


Sides = tuple[Side, Side]


def diff(
    left: str,
    right: str,
    /,
    *,
    full: Flag = False,
    json: Flag = False,
    no_pager: Flag = False,
    place: Place | None = None,
) -> int:
    """Compare two executions, step by step. Name the first step whose result differs, then all that differs.

    Exit code 0: nothing differs; 1: something does.

    Parameters
    ----------
    left
        Reference of the first one, or the beginning of it.
    right
        Reference of the second one.
    full
        Print long differences whole.
    json
        Print what is compared, and then each difference in the order in which they came about, one a line, as JSON.
    no_pager
        Print long output as it is, on a terminal too.
    """
    with opened(place) as archive:
        records = resolve(archive, left), resolve(archive, right)
        if records[0].reference == records[1].reference:
            raise UsageError(f"{left} and {right} are the same trace; name two")
        entries = tuple(archive.entries(record) for record in records)
        sides = (_side(archive, records[0], entries[0]), _side(archive, records[1], entries[1]))
    found = comparison.compare(sides[0].execution, sides[1].execution)
    with paged(no_pager) as output:
        if json:
            for value in _fields(found, sides):
                print_json(output, value)
        else:
            _Printer(Screen(output), sides, full=full).print(found)
    damaged = [report_damage(each) for each in entries]
    return 1 if found.differences or any(damaged) else 0


def _side(archive: Archive, record: TraceRecord, entries: Entries) -> Side:
    """A trace, with what is stored beside it in its place: results of one size need not be the same."""
    beside = read_beside(archive, record, entries, most_bytes=MOST_UNFOLDED)
    for trouble in beside.troubles:
        complain(f"{trouble}; it is compared by its size alone")
    if beside.omitted:
        most = size(MOST_UNFOLDED)
        which = count(beside.omitted, "message is", "messages are")
        complain(f"{which} compared by size alone: beside trace {record.reference} there are more than {most}")
    return Side(record, Execution.of(beside.unfolded(entries)))


# --- As text


class _Printer:
    """Prints a comparison."""

    def __init__(self, screen: Screen, sides: Sides, *, full: bool) -> None:
        self.screen = screen
        self.sides = sides
        self.full = full
        self.width = max(len(str(len(side.execution.entries))) for side in sides)

    def print(self, found: Comparison) -> None:
        """Print what is compared, what differed first, and every difference where it is."""
        for mark, side in zip((_LEFT, _RIGHT), self.sides, strict=True):
            self._record(mark, side.record)
        keys = {side.record.key for side in self.sides}
        if len(keys) > 1:
            self.screen.print(("These are executions of two keys.", "dim"))
        self.screen.print()
        if not found.differences:
            self.screen.print("Nothing differs: every step is there in both, says the same, and gave the same.")
            return
        self._first(found.first_result)
        self._amounts(found)
        self._steps(found)

    def _record(self, mark: str, record: TraceRecord) -> None:
        started = format_time(record.first_at) if self.screen.width is None else when(record.first_at)
        if self.screen.width is not None:
            started += f" {zone(record.first_at)}"
        took = f"{duration(record.duration * 1_000_000)}, " if record.duration else ""
        label = (fitted(state_label(record.state), STATE_WIDTH), STYLES.get(record.state, ""))
        prefix: list[Piece] = [(f"{mark} ", _COLOURS[mark]), label, ("  ", "")]
        self.screen.wrap(prefix, call(record), "bold")
        facts = f"{visible(record.reference)}  {started}  {took}{count(record.length, 'line')}"
        self.screen.wrap([(f"{mark} ", _COLOURS[mark]), (" " * len(label[0]) + "  ", "")], facts)

    def _first(self, step: Step | None) -> None:
        if step is None:
            self.screen.print("No result differs; other things do.")
            return
        self.screen.print(("The first step whose result differs:", "bold"))
        path = " › ".join(map(visible, self._path(step)))
        left, right = (step.left or 0) + 1, (step.right or 0) + 1
        numbers = f"  (line {left:,})" if left == right else f"  (lines {left:,} and {right:,})"
        self.screen.wrap([("  ", "")], path + numbers, "yellow")
        self._changes(step, "    ")

    def _path(self, step: Step) -> list[str]:
        return _path(step, self.sides)

    def _amounts(self, found: Comparison) -> None:
        counted = Counter(step.verdict for step in found.differences)
        said = [count(counted[verdict], *names) for verdict, names in _NAMES.items() if counted[verdict]]
        self.screen.print()
        self.screen.wrap([], "; ".join(said) + ".")
        self.screen.print()

    def _steps(self, found: Comparison) -> None:
        """Every step that differs, with those around it; those that are the same are counted."""
        same: list[tuple[int, Step]] = []
        for depth, step in found.walk():
            if step.verdict == comparison.SAME:
                if same and same[0][0] != depth:
                    self._same(same)
                    same = []
                same.append((depth, step))
                continue
            self._same(same)
            same = []
            self._step(depth, step)
        self._same(same)

    def _same(self, steps: Sequence[tuple[int, Step]]) -> None:
        if len(steps) == 1:
            self._step(*steps[0])
        elif steps:
            depth, first = steps[0]
            prefix = self._prefix(depth, first)
            self.screen.print(*prefix, (f"⋮ {count(len(steps), 'step')} the same", "dim"))

    def _prefix(self, depth: int, step: Step) -> list[Piece]:
        mark, style = _MARKS[step.verdict]
        left, right = (f"{'' if place is None else place + 1:>{self.width}}" for place in (step.left, step.right))
        return [(f"{left} {right} ", "dim"), (f"{mark} ", style), ("  " * min(depth, MAX_INDENT), "")]

    def _step(self, depth: int, step: Step) -> None:
        prefix = self._prefix(depth, step)
        texts = [
            None if place is None else self._short(side.text(place, block)) for side, place, block in self._both(step)
        ]
        if texts[0] is not None and texts[1] is not None and texts[0] != texts[1]:
            hang = [(" " * sum(len(text) for text, _ in prefix), "")]
            self.screen.wrap(prefix, f"{_LEFT} {texts[0]}", _COLOURS[_LEFT])
            self.screen.wrap(hang, f"{_RIGHT} {texts[1]}", _COLOURS[_RIGHT])
        else:
            text = texts[0] or texts[1] or ""
            self.screen.wrap(prefix, f"{self._head(step)}{text}{self._more(step)}", _style(step))
        if step.verdict == comparison.RESULT:
            self._changes(step, " " * (sum(len(text) for text, _ in prefix) + 2))

    def _both(self, step: Step) -> Iterator[tuple[Side, int | None, Block | None]]:
        yield self.sides[0], step.left, step.left_block
        yield self.sides[1], step.right, step.right_block

    def _head(self, step: Step) -> str:
        side, place = (self.sides[0], step.left) if step.right is None else (self.sides[1], step.right)
        return HEAD if place is not None and side.execution.entries[place].type == "head" else ""

    def _more(self, step: Step) -> str:
        """What is to be said beside a step: other states, and of a block in one alone its result and its size."""
        if step.verdict == comparison.STATE:
            return f"  ({_state_of(step, self.sides[0])} → {_state_of(step, self.sides[1], right=True)})"
        if step.verdict in (comparison.ONLY_LEFT, comparison.ONLY_RIGHT):
            side, block = (self.sides[0], step.left_block) if step.right is None else (self.sides[1], step.right_block)
            result = self._short(side.result(block))
            return f"  {RESULT}{result}" if result else ""
        return ""

    def _short(self, text: str) -> str:
        line = visible(" ".join(text.split()))
        return line if self.full or len(line) <= MOST_OF_A_TEXT else f"{line[:MOST_OF_A_TEXT]}…"

    def _changes(self, step: Step, indent: str) -> None:
        """Two results, as what is different in them."""
        texts = self.sides[0].result(step.left_block), self.sides[1].result(step.right_block)
        lines = list(differences.changes(*texts, around=None if self.full else AROUND))
        shown = lines if self.full else lines[:MOST_SHOWN]
        for side, before, inner, after in shown:
            mark = _SIDES[side]
            style = _COLOURS[mark]
            if not self.full and len(before) > MOST_OF_A_LINE:
                before = f"{before[:MOST_OF_A_LINE]}…"
            pieces = [(before, style), (inner, f"reverse {style}"), (after, style)]
            painted = [(visible(text), style) for text, style in pieces]
            self.screen.print(indent, (f"{mark} ", style), *painted)
        if len(lines) > len(shown):
            self.screen.wrap([(indent, "")], f"… {count(len(lines) - len(shown), 'line')} more, --full shows them")


def _style(step: Step) -> str:
    styles = {comparison.SAME: "dim", comparison.ONLY_LEFT: "red", comparison.ONLY_RIGHT: "green"}
    return styles.get(step.verdict, "")


def _state_of(step: Step, side: Side, *, right: bool = False) -> str:
    place, block = (step.right, step.right_block) if right else (step.left, step.left_block)
    if block is not None:
        return visible(block.state) if block.closed is not None else "never ended"
    return visible(side.execution.entries[place].state) if place is not None else ""


def _path(step: Step, sides: Sides) -> list[str]:
    """What a step and those around it say, the outermost first."""
    names = []
    around: Step | None = step
    while around is not None:
        place, block, side = around.right, around.right_block, sides[1]
        if place is None:
            place, block, side = around.left, around.left_block, sides[0]
        names.append(" ".join(side.text(place or 0, block).split()))
        around = around.parent
    return names[::-1]


# --- As JSON


def _fields(found: Comparison, sides: Sides) -> Iterator[dict[str, object]]:
    first = found.first_result
    yield {
        "left": record_fields(sides[0].record),
        "right": record_fields(sides[1].record),
        "same": not found.differences,
        "differences": len(found.differences),
        "first_result": None if first is None else _step_fields(first, sides),
    }
    for step in found.differences:
        yield _step_fields(step, sides)


def _step_fields(step: Step, sides: Sides) -> dict[str, object]:
    return {
        "verdict": step.verdict,
        "path": _path(step, sides),
        "left": _side_fields(sides[0], step.left, step.left_block),
        "right": _side_fields(sides[1], step.right, step.right_block),
    }


def _side_fields(side: Side, place: int | None, block: Block | None) -> dict[str, object] | None:
    if place is None:
        return None
    fields: dict[str, object] = {"line": place + 1, "text": side.text(place, block)}
    if block is None:
        return {**fields, "state": side.execution.entries[place].state}
    result = None if block.result is None else side.result(block)
    return {**fields, "state": block.state, "result": result, "duration_ns": block.duration_ns}
