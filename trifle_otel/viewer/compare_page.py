"""Two executions side by side: where their results part first, and every step that differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import Response

from trifle_otel import comparison, differences
from trifle_otel.arrangement import Opened
from trifle_otel.comparison import Comparison, Execution, Step
from trifle_otel.differences import Change
from trifle_otel.outline import Block
from trifle_otel.records import RESULT, TraceRecord
from trifle_otel.unfolding import Beside, read_beside
from trifle_otel.viewer import lines
from trifle_otel.viewer.site import Site, not_kept, unless_known
from trifle_otel.viewer.templates import page
from trifle_otel.viewer.texts import preview
from trifle_otel.viewer.urls import urls_of
from trifle_otel.wording import duration, size, visible

PAGE = 500
SHORT = 120
MOST_PARTS = 30
MOST_OF_A_LINE = 1_000
MOST_BESIDE, MOST_BESIDE_FILES = 8_000_000, 100
"""Bytes and files of what is stored beside a trace that are read, so that a page comes soon."""
OTHERS = 20
MOST_TROUBLES = 5


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text, of one of the two or of both."""

    text: Markup | str
    kind: str  # `same`, `left` or `right`


@dataclass(frozen=True, slots=True)
class Side:
    """A step in one of the two."""

    number: int
    text: str
    time: str
    result: Markup | str
    state: str


@dataclass(slots=True)
class Row:
    """A step of one or of both, or several that are the same, told by their count."""

    verdict: str
    depth: int
    left: Side | None = None
    right: Side | None = None
    same: int = 0
    first: bool = False
    changes: list[Part] = field(default_factory=list)


def compare_page(site: Site, request: Request) -> Response:
    """The page. Raises `NotFound` where one of the two is not there."""
    params = request.query_params
    left, right = (site.archive.find(params.get(side, "").strip()) for side in ("left", "right"))
    start = params.get("from", "0")
    start_at = int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 0
    others = _others(site, left, right)
    tag = site.etag(request, left, right, [(other.reference, other.state) for other in others])
    return unless_known(request, tag, lambda: _page(site, request, left, right, others, start_at))


def _page(
    site: Site, request: Request, left: TraceRecord, right: TraceRecord, others: Sequence[TraceRecord], start: int
) -> Response:
    traces = site.shelf.open(left), site.shelf.open(right)
    beside = [_read_beside(site, trace) for trace in traces]
    both = _execution(traces[0], beside[0]), _execution(traces[1], beside[1])
    found = comparison.compare(*both)
    rows = list(islice(_rows(found, both), start, start + PAGE + 1))
    urls = urls_of(request.scope)
    troubles = _troubles(traces, beside)
    first = found.first_result
    values = {
        "left": left,
        "right": right,
        "took": [duration(trace.duration_ns) if trace.duration_ns else "< 1 ms" for trace in traces],
        "rows": rows[:PAGE],
        "next": urls.compare(left.reference, right.reference, {"from": start + PAGE}) if len(rows) > PAGE else None,
        "start": start,
        "swapped": urls.compare(right.reference, left.reference),
        "first": None if first is None else _row(first, 0, both, first),
        "path": _path(first),
        "amounts": _amounts(found),
        "others": others,
        "url": lambda side, number: urls.trace((left, right)[side].reference, line=number),
        "omitted": sum(each.omitted for each in beside),
        "troubles": troubles,
    }
    made = page(request.scope, "compare.html", values)
    return not_kept(made) if troubles else made


def _read_beside(site: Site, trace: Opened) -> Beside:
    return read_beside(
        site.archive,
        trace.record,
        trace.entries,
        most_bytes=MOST_BESIDE,
        most_files=MOST_BESIDE_FILES,
        places=trace.offloaded,
    )


def _troubles(traces: Sequence[Opened], beside: Sequence[Beside]) -> list[str]:
    """Why some of it cannot be compared."""
    damaged = [str(damage) for trace in traces for damage in trace.entries.damaged]
    return [*damaged, *(trouble for each in beside for trouble in each.troubles)][:MOST_TROUBLES]


def _execution(trace: Opened, beside: Beside) -> Execution:
    return Execution.of(beside.unfolded(trace.entries)) if beside.texts else Execution(trace.entries, trace.outline)


def _others(site: Site, left: TraceRecord, right: TraceRecord) -> list[TraceRecord]:
    """Executions of the same key that one may want to compare with."""
    found = site.archive.search(segment=right.key, limit=OTHERS).records
    known = {left.reference: left, right.reference: right}
    known.update((record.reference, record) for record in found if record.key == right.key)
    return sorted(known.values(), key=lambda record: (record.first_at, record.reference), reverse=True)


def _amounts(found: Comparison) -> list[tuple[str, int]]:
    names = {
        comparison.RESULT: "of another result",
        comparison.STATE: "of another state",
        comparison.TEXT: "of another text",
        comparison.ONLY_LEFT: "only in the first",
        comparison.ONLY_RIGHT: "only in the second",
    }
    counted = dict.fromkeys(names, 0)
    for step in found.differences:
        counted[step.verdict] += 1
    return [(name, counted[verdict]) for verdict, name in names.items() if counted[verdict]]


def _path(step: Step | None) -> list[str]:
    """What the steps around one say, the outermost first."""
    names = []
    around = step.parent if step else None
    while around is not None:
        block = around.right_block or around.left_block
        names.append(preview(block.message, SHORT) if block else "")
        around = around.parent
    return names[::-1]


Both = tuple[Execution, Execution]


def _rows(found: Comparison, both: Both) -> Iterator[Row]:
    """What differs, with what is around it; steps that are the same, between those, are counted."""
    same: list[Step] = []
    depth_of_same = 0
    first = found.first_result
    for depth, step in found.walk():
        if step.verdict == comparison.SAME and (not same or depth == depth_of_same):
            same.append(step)
            depth_of_same = depth
            continue
        if same:
            yield _same_row(same, depth_of_same, both)
            same = []
        if step.verdict == comparison.SAME:
            same, depth_of_same = [step], depth
        else:
            yield _row(step, depth, both, first)
    if same:
        yield _same_row(same, depth_of_same, both)


def _same_row(steps: Sequence[Step], depth: int, both: Both) -> Row:
    row = _row(steps[0], depth, both, None)
    row.same = len(steps)
    return row


def _row(step: Step, depth: int, both: Both, first: Step | None) -> Row:
    left = _side(both[0], step.left, step.left_block)
    right = _side(both[1], step.right, step.right_block)
    row = Row(step.verdict, min(depth, lines.MOST_INDENT), left, right, first=step is first)
    if step.verdict == comparison.RESULT:
        row.changes = changes(_result(both[0], step.left_block), _result(both[1], step.right_block))
    return row


def _side(execution: Execution, place: int | None, block: Block | None) -> Side | None:
    if place is None:
        return None
    entry = execution.entries[place]
    text = preview(block.message if block else entry.message, SHORT * 2)
    took = block.duration_ns if block else None
    result = preview(_result(execution, block), SHORT) if block else ""
    state = entry.state if block is None else block.state if block.closed is not None else "never ended"
    return Side(place + 1, text, duration(took) if took else "", result, state)


def _result(execution: Execution, block: Block | None) -> str:
    """The result of a block as text; empty where it has none."""
    if block is None or block.result is None:
        return ""
    entry = execution.entries[block.result]
    if entry.offloaded:
        return f"… ({'size unknown' if entry.size is None else size(entry.size)})"
    return entry.message.removeprefix(RESULT)


def changes(left: str, right: str) -> list[Part]:
    """Two results as pieces: by lines, where both are values of several lines, else by what is between equal ends."""
    found = list(islice(differences.changes(left, right, around=SHORT), MOST_PARTS + 1))
    parts = [Part(_marked(change), change.side) for change in found[:MOST_PARTS]]
    return [*parts, *([Part("…", differences.SAME)] if len(found) > MOST_PARTS else [])]


def _marked(change: Change) -> Markup:
    """A line with what differs marked, and not much of a long one."""
    before = f"{change.before[:MOST_OF_A_LINE]}…" if len(change.before) > MOST_OF_A_LINE else change.before
    inner = Markup("<mark>{}</mark>").format(visible(change.inner)) if change.inner else Markup()
    return escape(visible(before)) + inner + escape(visible(change.after))
