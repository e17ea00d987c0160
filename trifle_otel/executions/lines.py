"""An execution's spans as the lines of a recording: blocks in blocks, whatever the spans are like.

Depth first: a span is a block, with its attributes as JSON, its events and its children by time, and with what it was
(`summaries`) as its result. The root is the trace itself. Times are those of the spans, so that what ran at the same
time is seen to have. Whatever is sent, openings and closings pair, and each span is there once: parents that never
came have a block that says so, parents that run in a circle are cut open, what is nested too deeply is laid out flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from trifle_otel import conventions as names
from trifle_otel.encoding import to_json
from trifle_otel.frames import CLOSE, HEAD, OPEN, RAW, TEXT, Frame, Line
from trifle_otel.recording import Recording
from trifle_otel.records import ERROR, SUCCESS, WARNING
from trifle_otel.span_data import FAILED, SpanData, SpanEvent
from trifle_otel.summaries import event_text, exception_texts, one_line, summary
from trifle_otel.values import text_of

MAX_DEPTH: Final = 100
"""Blocks within blocks. What lies deeper is in the last of them."""

NEVER_CAME: Final = "this span never came"
"""Result of a block that stands for a parent that is missing."""

CIRCLE: Final = "The parents of this span run in a circle"

LAST_TIME: Final = (1 << 63) - 1
"""Nanoseconds since 1970: what is stored is a signed integer of 64 bits."""

_Item = tuple[int, "SpanData | SpanEvent | _Missing"]
"""A time, and what happened then."""


class _Missing:
    """A parent that never came, by the spans that name it."""

    __slots__ = ("children", "end_ns", "span_id", "start_ns")

    def __init__(self, span_id: str, children: list[SpanData]) -> None:
        self.span_id = span_id
        self.children = children
        self.start_ns = min(child.start_ns for child in children)
        self.end_ns = max(child.end_ns for child in children)


def mend_times(spans: Sequence[SpanData]) -> None:
    """Make times of spans ones that can be stored, in place: an end before its start is no duration.

    What is in the far future becomes the last time there is, and what is before 1970 counts as not given: then the
    other time stands for both, and where that is not given either, the earliest time of the other spans.
    """
    lost: list[SpanData] = []
    for span in spans:
        start, end = span.start_ns, span.end_ns
        if 0 < start <= end <= LAST_TIME:
            continue
        start, end = _possible(start), _possible(end)
        span.start_ns = start or end
        span.end_ns = max(span.start_ns, end)
        if not span.start_ns:
            lost.append(span)
    if lost:
        known = min((span.start_ns for span in spans if span.start_ns), default=1)
        for span in lost:
            span.start_ns = span.end_ns = known


def lines_of(
    root: SpanData | None, spans: Sequence[SpanData], missing: Sequence[str], top: Frame, *, attributes: bool
) -> list[Line]:
    """All lines but those that the trace itself begins and ends with, whose frame is `top`.

    Args:
        root: the local root, one of `spans`, or None.
        spans: with times that were mended.
        missing: ids of parents that are not among them.
        top: the frame of the trace.
        attributes: whether those of the root are wanted.
    """
    writer = _Writer(root, spans, top)
    if root is not None:
        writer.write_details(root, top, attributes=attributes)
    return writer.write(frozenset(missing))


def outcome(span: SpanData) -> tuple[str, str]:
    """What a span was, in one line, and the state that it ended in."""
    name, attributes = text_of(span.name), span.attributes
    text = summary(name, span.kind, attributes) if attributes else one_line(name)
    if span.status != FAILED:
        return text, SUCCESS
    if span.description and not any(event.name == names.EXCEPTION_EVENT for event in span.events):
        text = f"{text}: {one_line(text_of(span.description))}"
    return text, ERROR


def has_failed(span: SpanData) -> bool:
    """Whether a span says that it failed: by its status, or by an exception that was recorded on it."""
    return span.status == FAILED or any(event.name == names.EXCEPTION_EVENT for event in span.events)


class _Writer:
    """One call of `lines_of`. `children` has the spans whose turn has not come, by their parents."""

    def __init__(self, root: SpanData | None, spans: Sequence[SpanData], top: Frame) -> None:
        self.root = root
        self.spans = spans
        self.top = top
        self.recording: Recording = top.recording
        self.lines: list[Line] = []
        self.children: dict[str, list[SpanData]] = {}
        self.written: set[str] | None = None  # where spans run in circles: those whose turn was

    def write(self, missing: frozenset[str]) -> list[Line]:
        tops = self._sort(missing)
        root = self.root
        events, start = ((), 0) if root is None else (root.events, root.start_ns)
        self._write_all(self.top, _items(events, tops, start))
        if self.children:
            self._write_circles()
        return self.lines

    def _sort(self, missing: frozenset[str]) -> list[SpanData | _Missing]:
        """Sort the spans by their parents; gives those that lie in no other."""
        tops: list[SpanData | _Missing] = []
        children = self.children
        for span in self.spans:
            parent = span.parent_id
            if span is self.root:
                continue
            if not parent or parent == span.span_id:
                tops.append(span)
            elif parent in children:
                children[parent].append(span)
            else:
                children[parent] = [span]
        known = {span.span_id for span in self.spans}
        for parent in [parent for parent in children if parent not in known]:
            inside = children.pop(parent)
            tops += [_Missing(parent, inside)] if parent in missing else inside
        return tops + (children.pop(self.root.span_id, []) if self.root is not None else [])

    def _write_all(self, frame: Frame, items: Iterator[_Item]) -> None:
        """Write what happened in a block, and in those within it."""
        stack: list[tuple[Frame, Iterator[_Item], SpanData | _Missing | None]] = [(frame, items, None)]
        while stack:
            frame, items, thing = stack[-1]
            for ns, item in items:
                if isinstance(item, SpanEvent):
                    self._write_event(frame, item, ns)
                    continue
                inner = self._open(frame, item)
                if inner is not None:
                    children = self._children(item, inner.level)
                    events = item.events if isinstance(item, SpanData) else ()
                    if children or events:
                        stack.append((inner, _items(events, children, item.start_ns), item))
                        break
                    self._close(inner, item)
            else:
                stack.pop()
                if thing is not None:
                    self._close(frame, thing)

    def _children(self, thing: SpanData | _Missing, level: int) -> Sequence[SpanData]:
        """The spans directly in this one; at the deepest level, all that are in it."""
        found = thing.children if isinstance(thing, _Missing) else self.children.pop(thing.span_id, ())
        if level < MAX_DEPTH - 1 or not found:
            return found
        flat = list(found)
        for span in flat:  # which grows meanwhile
            flat += self.children.pop(span.span_id, ())
        return flat

    def _write_circles(self) -> None:
        """Write the spans that no way leads to from the top: their parents, or those of their parents, are a circle."""
        left = {span.span_id: span for group in self.children.values() for span in group}
        self.written = set()
        for span in sorted(left.values(), key=_start):
            if span.span_id not in self.written:
                first = _in_circle(span, left)
                inner = self._open(self.top, first)
                if inner is not None:
                    self._add(first.start_ns, CIRCLE, WARNING, TEXT, inner)
                    self._write_all(inner, _items(first.events, self._children(first, inner.level), first.start_ns))
                    self._close(inner, first)

    def _add(self, ns: int, text: str, state: str, kind: str, frame: Frame) -> None:
        self.lines.append((ns, text, state, kind, frame))

    def _open(self, outer: Frame, thing: SpanData | _Missing) -> Frame | None:
        """Open a block for a span; None where its turn was already."""
        if isinstance(thing, _Missing):
            message, state = f"Span {thing.span_id}", WARNING
        else:
            message, state = text_of(thing.name) or "unnamed", SUCCESS
            if self.written is not None:
                if thing.span_id in self.written:
                    return None
                self.written.add(thing.span_id)
        frame = Frame(outer, self.recording, outer.level + 1, message, state)
        frame.span_id = thing.span_id
        self.lines.append((thing.start_ns, message, state, OPEN, frame))
        if isinstance(thing, SpanData):
            self.write_details(thing, frame)
        return frame

    def write_details(self, span: SpanData, frame: Frame, *, attributes: bool = True) -> None:
        """Write what is known of a span from its start."""
        if attributes and span.attributes:
            self.lines.append((span.start_ns, to_json(span.attributes).decode(), SUCCESS, RAW, frame))
        for link in span.links:
            text = f"Link to span {link.span_id} of trace {link.trace_id}"
            if link.attributes:
                text = f"{text} {to_json(link.attributes).decode()}"
            self._add(span.start_ns, text, SUCCESS, TEXT, frame)
        if span.dropped_events or span.dropped_attributes:
            text = f"{span.dropped_events} events and {span.dropped_attributes} attributes were dropped by its limits"
            self._add(span.start_ns, text, WARNING, TEXT, frame)

    def _close(self, frame: Frame, thing: SpanData | _Missing) -> None:
        if isinstance(thing, _Missing):
            self._add(thing.end_ns, NEVER_CAME, WARNING, CLOSE, frame)
        else:
            text, state = outcome(thing)
            self.lines.append((thing.end_ns, text, state, CLOSE, frame))

    def _write_event(self, frame: Frame, event: SpanEvent, ns: int) -> None:
        name, attributes = event.name, event.attributes
        if name == names.EXCEPTION_EVENT:
            text, stack = exception_texts(attributes)
            self._add(ns, text, ERROR, TEXT, frame)
            if stack:
                self._add(ns, stack, SUCCESS, RAW, frame)
        elif name in names.EVENTS and name in attributes:
            self._add(
                ns, text_of(attributes[name]), text_of(attributes.get(names.STATE)) or SUCCESS, _kind(event), frame
            )
        else:
            self._add(ns, event_text(text_of(name), attributes), SUCCESS, TEXT, frame)


def _kind(event: SpanEvent) -> str:
    """What a line was that our own library made an event of."""
    if event.name == names.RESULT_EVENT:
        return RAW
    return HEAD if event.attributes.get(names.TYPE) == HEAD else TEXT


def _items(events: Sequence[SpanEvent], spans: Sequence[SpanData | _Missing], start: int) -> Iterator[_Item]:
    """Events and spans by their time, events first; those without a time are at `start`."""
    ordered: list[_Item] = [(span.start_ns, span) for span in sorted(spans, key=_start)]
    if events:
        happened: list[_Item] = [(event.ns if 0 < event.ns <= LAST_TIME else start, event) for event in events]
        ordered = sorted(happened + ordered, key=_when)  # what is of the same time stays in its order
    return iter(ordered)


def _when(item: _Item) -> int:
    return item[0]


def _start(thing: SpanData | _Missing) -> tuple[int, str]:
    return thing.start_ns, thing.span_id


def _in_circle(span: SpanData, spans: Mapping[str, SpanData]) -> SpanData:
    """Whoever of a span's parents is in the circle that they run in."""
    seen: set[str] = set()
    while span.span_id not in seen:
        seen.add(span.span_id)
        above = spans.get(span.parent_id or "")
        if above is None:
            break
        span = above
    return span


def _possible(ns: int) -> int:
    """A time that can be stored; 0 for one before 1970, which is none."""
    return min(max(ns, 0), LAST_TIME)
