"""Two executions side by side: where their results part first, and every step that differs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import Response

from trifle_otel import comparison
from trifle_otel.comparison import Comparison, Execution, Step
from trifle_otel.outline import Block
from trifle_otel.records import RESULT, TraceRecord
from trifle_otel.viewer import lines, pretty
from trifle_otel.viewer.shelf import Opened
from trifle_otel.viewer.site import Site, etag, unless_known
from trifle_otel.viewer.templates import page
from trifle_otel.viewer.texts import preview
from trifle_otel.viewer.urls import urls_of
from trifle_otel.wording import duration, size, visible

PAGE = 500
SHORT = 120
MOST_COMPARED = 20_000
"""Characters of a text of which the difference is looked for."""
MOST_LINES = 400
MOST_PARTS = 30
CONTEXT = 2
OTHERS = 20


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
    tag = etag(request.url.path, request.url.query, left, right)
    return unless_known(request, tag, lambda: _page(site, request, left, right, start_at))


def _page(site: Site, request: Request, left: TraceRecord, right: TraceRecord, start: int) -> Response:
    traces = site.shelf.open(left), site.shelf.open(right)
    found = comparison.compare(*(Execution(trace.entries, trace.outline) for trace in traces))
    rows = list(islice(_rows(found, traces), start, start + PAGE + 1))
    urls = urls_of(request.scope)
    first = found.first_result
    values = {
        "left": left,
        "right": right,
        "took": [duration(trace.duration_ns) if trace.duration_ns else "< 1 ms" for trace in traces],
        "rows": rows[:PAGE],
        "next": urls.compare(left.reference, right.reference, {"from": start + PAGE}) if len(rows) > PAGE else None,
        "start": start,
        "swapped": urls.compare(right.reference, left.reference),
        "first": None if first is None else _row(first, 0, traces, first),
        "path": _path(first),
        "amounts": _amounts(found),
        "others": _others(site, left, right),
        "url": lambda side, number: urls.trace((left, right)[side].reference, line=number),
    }
    return page(request.scope, "compare.html", values)


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


Traces = tuple[Opened, Opened]


def _rows(found: Comparison, traces: Traces) -> Iterator[Row]:
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
            yield _same_row(same, depth_of_same, traces)
            same = []
        if step.verdict == comparison.SAME:
            same, depth_of_same = [step], depth
        else:
            yield _row(step, depth, traces, first)
    if same:
        yield _same_row(same, depth_of_same, traces)


def _same_row(steps: Sequence[Step], depth: int, traces: Traces) -> Row:
    row = _row(steps[0], depth, traces, None)
    row.same = len(steps)
    return row


def _row(step: Step, depth: int, traces: Traces, first: Step | None) -> Row:
    left = _side(traces[0], step.left, step.left_block)
    right = _side(traces[1], step.right, step.right_block)
    row = Row(step.verdict, min(depth, lines.MOST_INDENT), left, right, first=step is first)
    if step.verdict == comparison.RESULT:
        texts = [
            _result(trace, block) for trace, block in zip(traces, (step.left_block, step.right_block), strict=True)
        ]
        row.changes = changes(*texts)
    return row


def _side(trace: Opened, place: int | None, block: Block | None) -> Side | None:
    if place is None:
        return None
    entry = trace.entries[place]
    text = preview(block.message if block else entry.message, SHORT * 2)
    took = block.duration_ns if block else None
    result = preview(_result(trace, block), SHORT) if block else ""
    return Side(place + 1, text, duration(took) if took else "", result, block.state if block else entry.state)


def _result(trace: Opened, block: Block | None) -> str:
    """The result of a block as text; empty where it has none."""
    if block is None or block.result is None:
        return ""
    entry = trace.entries[block.result]
    if entry.offloaded:
        return f"… ({'size unknown' if entry.size is None else size(entry.size)})"
    return entry.message.removeprefix(RESULT)


def changes(left: str, right: str) -> list[Part]:
    """Two results as pieces: by lines, where both are values of several lines, else by what is between equal ends."""
    values = [pretty.parse(text[:MOST_COMPARED]) for text in (left, right)]
    if values[0] is not None and values[1] is not None:
        both = [pretty.lines(value) for value in values if value is not None]
        if max(map(len, both)) > 1 and max(map(len, both)) <= MOST_LINES:
            parts = list(_by_lines(*both))
            return [*parts[:MOST_PARTS], *([Part("…", "same")] if len(parts) > MOST_PARTS else [])]
    return list(_by_ends(left[:MOST_COMPARED], right[:MOST_COMPARED]))


def _by_lines(left: list[str], right: list[str]) -> Iterator[Part]:
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    last = 0
    for number, group in enumerate(matcher.get_grouped_opcodes(CONTEXT)):
        if number or group[0][1]:
            yield Part("…", "same")
        for tag, left_start, left_end, right_start, right_end in group:
            if tag == "equal":
                yield from (Part(line, "same") for line in left[left_start:left_end])
                continue
            yield from (Part(line, "left") for line in left[left_start:left_end])
            yield from (Part(line, "right") for line in right[right_start:right_end])
        last = group[-1][2]
    if last < len(left):
        yield Part("…", "same")


def _by_ends(left: str, right: str) -> Iterator[Part]:
    start, least = 0, min(len(left), len(right))
    while start < least and left[start] == right[start]:
        start += 1
    end = 0
    while end < least - start and left[-1 - end] == right[-1 - end]:
        end += 1
    for text, kind in ((left, "left"), (right, "right")):
        yield Part(_around(text, start, len(text) - end), kind)


def _around(text: str, start: int, end: int) -> Markup:
    """A text with what differs marked, and not much else of it."""
    before, inner, after = text[:start], text[start:end], text[end:]
    if len(before) > SHORT:
        before = f"…{before[-SHORT:]}"
    if len(after) > SHORT:
        after = f"{after[:SHORT]}…"
    if len(inner) > 8 * SHORT:
        inner = f"{inner[: 8 * SHORT]}…"
    marked = Markup("<mark>{}</mark>").format(visible(inner)) if inner else Markup()
    return escape(visible(before)) + marked + escape(visible(after))
