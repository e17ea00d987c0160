"""An archived trace as the spans that it was: the trace's own span, a child for each block, events for the lines.

Ids, times and nesting are those of the archive, names and attributes those that `live_spans` gives; where an
archive of another library holds no ids, they are made of its reference, the same ones each time. Nothing is sent
here: that is `replay`'s business.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from trifle_otel import conventions as names
from trifle_otel.live_spans import short_name
from trifle_otel.outline import Block
from trifle_otel.records import ERROR, SUCCESS, Entry, TraceRecord
from trifle_otel.replaying.lines import SHORT, ArchivedLines, Read
from trifle_otel.span_data import FAILED, INTERNAL, KINDS, UNSET, SpanData, SpanEvent, SpanLink
from trifle_otel.span_events import (
    MAX_STATE,
    PLAIN_SIZE,
    Event,
    Pending,
    fitting,
    places_of,
    short_list,
    short_value,
)
from trifle_otel.strict_json import to_json

SCOPE: Final = "trifle_otel"
UNKNOWN_SERVICE: Final = "unknown_service"


class Extent(NamedTuple):
    """How much of a trace its spans carry; None stands for all.

    Attributes:
        value: bytes of an attribute's value.
        places: events of a span.
        spans: children of the trace's span; further blocks are left out, and counted.
        budget: bytes of all events of a trace.
        span: bytes of one span; where it would have more, its largest values are shortened.
    """

    value: int | None = None
    places: int | None = None
    spans: int | None = None
    budget: int | None = None
    span: int | None = None


PREVIEWS: Final = Extent(names.MAX_VALUE, places_of(128), 1000, 256 * 1024)
"""What a running trace sends, whose spans can be delivered by anything into anything."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = 1000  # nanoseconds
_ID = re.compile(r"[0-9a-f]+", re.ASCII)
_LEAST_VALUE = 512  # bytes of a value in a span that is full; where that is too much, it has fewer events
_REFER = 224  # bytes that say of a shortened value how large it is, and where the whole of it
_BESIDE = 8192  # bytes of a span beside its events, and what only the trace's own has
_MOST_OF_OTHERS = 64  # attributes and links of what was no trace of ours


@dataclass(eq=False, slots=True)
class _Holder:
    """A span to be made.

    Attributes:
        block: the block that it stands for; None: the trace.
        span_id: its id.
        parent_id: that of the span around it.
        start_ns: Unix time in nanoseconds.
        end_ns: likewise.
        lines: the entries that are its events, by their places.
        omitted: how many entries are on no span for want of room.
        level: bytes of a value above which it is shortened so that the span does not become too large.
        events: made already; None: they are made when the span is asked for.
    """

    block: Block | None
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    lines: list[int] = field(default_factory=list)
    omitted: int = 0
    level: int | None = None
    events: list[Event] | None = None


class ArchivedTrace:
    """The spans of one archived trace.

    Args:
        record: its record.
        entries: its entries, as many as can be read.
        extent: how much of it the spans carry.
        read: reads messages that lie beside it; None: their names stand for them.
        uri: where the trace's folder is.

    Attributes:
        record: its record.
        trace_id: 32 hex digits.
        count: how many spans it has.
        shortened: how many values had to be shortened so that a span does not become too large.
        lines_omitted: lines that are on no span.
        blocks_omitted: blocks that have no span.
    """

    def __init__(
        self,
        record: TraceRecord,
        entries: Sequence[Entry],
        extent: Extent = PREVIEWS,
        *,
        read: Read | None = None,
        uri: str | None = None,
    ) -> None:
        self.record = record
        self.shortened = 0
        self.blocks_omitted = 0
        self.trace_id = _id_of(record.trace_id, 32) or _derived(32, f"{record.key}/{record.reference}")
        self._extent = extent
        self._uri = uri
        first_ns = _nanoseconds(record.first_at)
        self._lines = ArchivedLines(record, entries, first_ns, read)
        self._before = _Before.of(record.context)
        self._root = self._root_holder(first_ns)
        self._meta, self._tags = self._root_values()
        self._failure = self._lines.failure(self._lines.outline.lines) if record.state == ERROR else None
        self._blocks = self._block_holders()
        self._choose_all()
        self.count = len(self._blocks) + 1
        self.lines_omitted = self._root.omitted + sum(holder.omitted for holder in self._blocks)
        self._resource = {"service.name": _word(record.context.get("service")) or UNKNOWN_SERVICE}

    @property
    def missing(self) -> list[str]:
        """Names of messages beside the trace that could not be read so far."""
        return self._lines.missing

    def spans(self) -> Iterator[SpanData]:
        """All of them, the trace's own first, then the blocks' in the order of their beginning.

        Each is made when it is asked for: together they may be larger than memory.
        """
        yield self._root_span()
        for holder in self._blocks:
            if holder.block is not None:
                yield self._block_span(holder, holder.block)

    # What spans there are

    def _root_holder(self, first_ns: int) -> _Holder:
        record, context = self.record, self.record.context
        own = _id_of(record.span_id, 16) or self._derived_id("")
        above = _id_of(context.get("parent_span_id"), 16) if _id_of(record.trace_id, 32) else None
        start, end = first_ns, max(first_ns, _nanoseconds(record.last_at), *self._lines.times)
        if self._before.known and self._lines.times:  # its first and its last line say when it began and ended
            first, last = self._lines.times[0], self._lines.times[-1]
            start = first if 0 <= first - first_ns < _MICROSECOND else first_ns
            end = max(start, last)  # what is in it may have ended later
        return _Holder(None, own, None if above == own else above, start, end)

    def _block_holders(self) -> list[_Holder]:
        """A holder for each block, as many as there may be."""
        holders: list[_Holder] = []
        of_block: dict[int, _Holder] = {}
        used = {self._root.span_id}
        ends = self._ends()
        for block in self._lines.outline.blocks:
            around = self._root if block.parent is None else of_block[id(block.parent)]
            if self._extent.spans is not None and len(holders) >= self._extent.spans:
                of_block[id(block)] = around
                self.blocks_omitted += 1
                self._root.omitted += sum(place is not None for place in (block.opened, block.closed, block.result))
                continue
            start = self._lines.times[block.opened]
            holder = _Holder(block, self._block_id(block, used), around.span_id, start, max(start, ends[id(block)]))
            of_block[id(block)] = holder
            holders.append(holder)
        self._hand_out(of_block)
        return holders

    def _hand_out(self, of_block: dict[int, _Holder]) -> None:
        """Give each span the entries that are its events: openings and closings are the spans themselves.

        Lines of a block without a span are those of the nearest one around it.
        """
        for place, owner in enumerate(self._lines.outline.owners):
            if owner is None:
                self._root.lines.append(place)
            elif place not in (owner.opened, owner.closed):
                holder = of_block[id(owner)]
                if place != owner.result or holder.block is owner:
                    holder.lines.append(place)

    def _block_id(self, block: Block, used: set[str]) -> str:
        own = _id_of(self._lines.entries[block.opened].span, 16)
        if own is None or own in used:
            own = self._derived_id(block.opened)
        used.add(own)
        return own

    def _derived_id(self, place: object) -> str:
        return _derived(16, f"{self.record.key}/{self.record.reference}#{place}")

    def _ends(self) -> dict[int, int]:
        """When each block ended; one whose end is not there, with the last that happened in it."""
        found, times = self._lines.outline, self._lines.times
        ends: dict[int, int] = {}
        for place, owner in enumerate(found.owners):
            if owner is not None:
                ends[id(owner)] = max(ends.get(id(owner), 0), times[place])
        for block in reversed(found.blocks):
            closing = block.result if block.closed is None else block.closed
            if closing is not None:
                ends[id(block)] = times[closing]
            if block.parent is not None:
                ends[id(block.parent)] = max(ends[id(block.parent)], ends[id(block)])
        return ends

    # Which lines they carry

    def _choose_all(self) -> None:
        """Choose the lines of each span, in the order in which they ended. The trace's own comes last."""
        left = self._extent.budget
        reserve = 0 if left is None else left // 4  # for the trace's own
        for holder in (*sorted(self._blocks, key=_end), self._root):
            last = holder is self._root
            failed = self._failure is not None if last else holder.block is not None and holder.block.state == ERROR
            self._choose(holder, 1 if last and failed else 0)
            if left is not None:
                most = left - (0 if last else reserve) - (2 * names.MAX_VALUE + SHORT if failed else 0)
                left -= self._fit(holder, most if last else most // 2, most)
        if self._failure is not None and left is not None and self._failure.size > left:
            self._failure.cut(SHORT)

    def _choose(self, holder: _Holder, others: int) -> None:
        """Choose a span's lines, beside `others` of its events, and how large their values may be."""
        places, room = self._extent.places, None
        if places is not None:
            places = max(places - others, 0)
        if self._extent.span is not None:
            room = self._extent.span - _BESIDE - (self._root_size() if holder is self._root else 0)
            if sum(map(self._lines.size, holder.lines)) + PLAIN_SIZE * len(holder.lines) > room:
                fitting_ones = max(room // (PLAIN_SIZE + _LEAST_VALUE), 0)
                places = fitting_ones if places is None else min(places, fitting_ones)
        self._keep(holder, places)
        if room is not None:
            sizes = [self._lines.size(place) for place in holder.lines]
            holder.level = _level(sizes, room - PLAIN_SIZE * len(sizes))
            self.shortened += sum(holder.level is not None and size > holder.level for size in sizes)

    def _keep(self, holder: _Holder, places: int | None) -> None:
        """Keep at most so many lines of a span: errors, then warnings, then others."""
        if places is None or len(holder.lines) <= places:
            return
        pending = Pending(len(holder.lines))
        pending.numbers = holder.lines
        pending.first = [self._lines.line(place) for place in holder.lines]
        kept = pending.choose(places)[0]
        holder.omitted += len(holder.lines) - len(kept)
        holder.lines = kept

    def _fit(self, holder: _Holder, free: int, most: int) -> int:
        """Make a span's events, as many as fit into the budget; gives the bytes that they take."""
        events = self._events(holder)
        size = sum(event[3] for event in events)
        if size > free:
            events = fitting(events, [self._lines.line(place) for place in holder.lines], free, most)
            holder.omitted += len(holder.lines) - len(events)
            size = sum(event[3] for event in events)
        holder.events = events
        return size

    def _events(self, holder: _Holder) -> list[Event]:
        value, level = self._extent.value, holder.level
        if level is None:
            return [self._lines.event(place, value) for place in holder.lines]
        return [
            self._lines.event(place, value if self._lines.size(place) <= level else max(level - _REFER, 1))
            for place in holder.lines
        ]

    # What they look like

    def _root_span(self) -> SpanData:
        record = self.record
        before = self._before
        attributes = {**before.attributes, names.REPLAYED: True, **self._root_attributes()}
        span = self._span(self._root, short_name(before.name or record.key), attributes)
        span.kind, span.links = before.kind, list(before.links)
        if record.state == ERROR:
            span.status = FAILED
        if self._failure is not None:
            span.events.append(self._failure.event())
            span.description = self._failure.message
            if self._failure.kind:
                span.attributes = {names.ERROR_TYPE: self._failure.kind, **span.attributes}
        return span

    def _block_span(self, holder: _Holder, block: Block) -> SpanData:
        attributes: dict[str, Any] = {names.REPLAYED: True}
        if holder.omitted:
            attributes[names.LINES_OMITTED] = holder.omitted
        if block.state not in ("", SUCCESS):
            attributes[names.STATE] = short_value(block.state, MAX_STATE)
        span = self._span(holder, short_name(self._lines.opening(block.opened)), attributes)
        if block.state == ERROR:
            span.status = FAILED
        return span

    def _span(self, holder: _Holder, name: str, attributes: dict[str, Any]) -> SpanData:
        events = self._events(holder) if holder.events is None else holder.events
        return SpanData(
            self.trace_id,
            holder.span_id,
            holder.parent_id,
            name,
            holder.start_ns,
            holder.end_ns,
            attributes=attributes,
            events=[SpanEvent(event, ns, values) for event, values, ns, _ in events],
            status=UNSET,
            scope=SCOPE,
            resource=self._resource,
        )

    def _root_attributes(self) -> dict[str, Any]:
        """Those of a running trace, as far as the archive knows them, in the same order."""
        record = self.record
        found: dict[str, Any] = {names.KEY: short_value(record.key)}
        if self._meta:
            found[names.META] = self._meta
        if self._tags:
            found[names.TAGS] = self._tags
        found[names.RETENTION] = record.retention
        if self._uri is not None:
            found[names.ARCHIVE] = short_value(self._uri)
        if self.blocks_omitted:
            found[names.BLOCKS_OMITTED] = self.blocks_omitted
        if self.lines_omitted:
            found[names.LINES_OMITTED] = self.lines_omitted
        found[names.LINES] = max(record.length, len(self._lines.entries))
        found[names.STATE] = short_value(record.state, MAX_STATE)
        found[names.REFERENCE] = short_value(record.reference)
        return found

    def _root_values(self) -> tuple[str, list[str]]:
        """The trace's `meta` and tags: each a quarter of a full span at the most."""
        tags = list(self.record.tags)
        meta = "" if self.record.meta is None else to_json(self.record.meta).decode()
        most = self._extent.value
        if most is None and self._extent.span is not None:
            most = self._extent.span // 4
        if most is None:
            return meta, tags
        short = short_value(meta, most), short_list(tags, most - 16 * min(len(tags), most // 32))
        if self._extent.span is not None:
            self.shortened += (short[0] != meta) + (short[1] != tags)
        return short

    def _root_size(self) -> int:
        """Bytes of what only the trace's own span has, at the most."""
        before = self._before
        others = sum(len(f"{name}{value}".encode()) + 64 for name, value in before.attributes.items())
        return (
            others + len(before.links) * 64 + len(self._meta.encode()) + sum(len(t.encode()) + 16 for t in self._tags)
        )


class _Before(NamedTuple):
    """What the span was that a trace was made of, where it was no trace of ours: its record's context has it."""

    name: str = ""
    kind: str = INTERNAL
    attributes: Mapping[str, Any] = MappingProxyType({})
    links: tuple[SpanLink, ...] = ()
    known: bool = False

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> _Before:
        kind, attributes, links = context.get("kind"), context.get("attributes"), context.get("links")
        if kind not in KINDS:
            return cls()
        found = attributes if isinstance(attributes, Mapping) else {}
        return cls(
            _word(context.get("name")),
            kind,
            {short_value(name): _short(value) for name, value in list(found.items())[:_MOST_OF_OTHERS]},
            tuple(
                link for each in (links if isinstance(links, list) else [])[:_MOST_OF_OTHERS] for link in _links(each)
            ),
            known=True,
        )


def _short(value: Any) -> Any:
    """An attribute of others as every backend takes it."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return short_list(value, names.MAX_VALUE)
    return short_value(value if isinstance(value, str) else to_json(value).decode())


def _links(given: Any) -> Iterator[SpanLink]:
    if isinstance(given, Mapping):
        trace_id, span_id = _id_of(given.get("trace_id"), 32), _id_of(given.get("span_id"), 16)
        if trace_id and span_id:
            yield SpanLink(trace_id, span_id)


def _level(sizes: list[int], room: int) -> int | None:
    """The size that larger ones must be brought down to so that all of them fit; None where they do."""
    left = room
    for done, size in enumerate(sorted(sizes)):
        share = max(left, 0) // (len(sizes) - done)
        if size > share:
            return share
        left -= size
    return None


def _end(holder: _Holder) -> int:
    return holder.end_ns


def _id_of(given: object, digits: int) -> str | None:
    """An id as OpenTelemetry allows it; None for anything else."""
    if not isinstance(given, str) or len(given) != digits:
        return None
    found = given.lower()
    return found if _ID.fullmatch(found) and found.strip("0") else None


def _derived(digits: int, name: str) -> str:
    """An id for what has none: the same one for the same name."""
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:digits]


def _word(given: object) -> str:
    return short_value(given) if isinstance(given, str) else ""


def _nanoseconds(moment: datetime) -> int:
    return max((moment - _EPOCH) // timedelta(microseconds=1) * 1000, 0)
