"""A line as an event of a span: its name, its attributes, its size; and which lines a span shows where not all fit.

Texts come here screened, and leave cut. Nothing here touches a span: that is `live_spans`' business,
as are the bytes that a whole trace may spend.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trifle_otel import conventions as names

if TYPE_CHECKING:
    from trifle_otel.recording import Line

    Item = tuple[int, Line]
    """A line, and its number in the archive (from 1)."""

Event = tuple[str, dict[str, Any], int, int]
"""Name, attributes, Unix time in nanoseconds, and what it takes in OTLP (bytes, a little more than it does)."""

PLACES_LEFT = 16
"""Events of a span that are left for other instrumentations, and for an exception."""

MAX_STATE = 64
"""Bytes of a line's state: a word of the caller's, on every event."""

_RANKS = {"error": 0, "warning": 1}
_ORDINARY = 2
_COMMON = frozenset(("success", "warning", "error", "debug"))


def places_of(limit: int) -> int:
    """How many of a span's `limit` events our lines may take: all but 16, or half where that is more."""
    return max(limit - PLACES_LEFT, limit // 2, 0)


class Pending:
    """Lines of one frame that wait for its span to end.

    The first ones are all held, as many as a span shows. Of those beyond, only what `choose` may want: the
    earliest and the latest of errors, of warnings, and of the rest. Every method is called under the
    recording's lock, `choose` after `close`.
    """

    __slots__ = ("first", "marks", "next", "rest", "room")

    def __init__(self, room: int = -1) -> None:
        self.first: list[Item] = []
        self.room = room  # lines that `first` takes; -1: as many as the trace's settings say
        self.rest: _Rest | None = None
        self.next: Pending | None = None
        self.marks: list[tuple[Any, ...]] | None = None  # exceptions that further in are recorded already

    def add(self, number: int, line: Line) -> None:
        """Hold a line (its number in the archive, from 1). Once closed, it goes to where `close` said."""
        first = self.first
        if len(first) < self.room:
            first.append((number, line))
        else:
            self._add_more(number, line)

    def close(self, successor: Pending | None) -> None:
        """Take no more lines: those of tasks and threads that run on are `successor`'s, or nobody's."""
        self.room = 0
        self.next = successor
        if self.rest is None:
            self.rest = _NOTHING

    @property
    def lines(self) -> int:
        """Lines of the archive among all that were added; a change of state is none."""
        rest = 0 if self.rest is None else self.rest.lines
        return rest + sum(item[1][3] != "state" for item in self.first)

    def choose(self, places: int) -> list[Item]:
        """At most `places` of them, in order: errors, then warnings, then others; of each the beginning and the end."""
        first = self.first
        rest = self.rest or _NOTHING
        if rest is _NOTHING and len(first) <= places:
            return first
        ranks: list[list[tuple[int, Item]]] = [[], [], []]
        for order, item in enumerate(first):
            ranks[rank_of(item[1])].append((order, item))
        chosen: list[tuple[int, Item]] = []
        for held, rank in zip(ranks, rest.ranks, strict=True):
            chosen += _ends([*held, *rank.earliest, *rank.latest], places - len(chosen))
        chosen.sort(key=_order)
        return [item for _, item in chosen]

    def _add_more(self, number: int, line: Line) -> None:
        rest = self.rest
        if rest is _NOTHING:  # closed
            if self.next is not None:
                self.next.add(number, line)
            return
        if self.room < 0:
            spans = line[4].recording.spans
            self.room = places_of(128) if spans is None else spans.places
            self.add(number, line)
            return
        if rest is None:
            rest = self.rest = _Rest(self.room)
        rest.add((number, line), self.room)


class _Rank:
    """Of many lines the earliest and the latest."""

    __slots__ = ("earliest", "latest")

    def __init__(self, room: int) -> None:
        self.earliest: list[tuple[int, Item]] = []
        self.latest: deque[tuple[int, Item]] = deque(maxlen=room)


class _Rest:
    """What is held of the lines that came after the first ones, and how many they were."""

    __slots__ = ("count", "lines", "ranks")

    def __init__(self, room: int) -> None:
        self.count = 0
        self.lines = 0
        self.ranks = [_Rank(room), _Rank(room), _Rank(room)]

    def add(self, item: Item, room: int) -> None:
        self.count += 1
        self.lines += item[1][3] != "state"
        rank = self.ranks[rank_of(item[1])]
        held = (room + self.count, item)
        if len(rank.earliest) < room:
            rank.earliest.append(held)
        else:
            rank.latest.append(held)


_NOTHING = _Rest(0)


def rank_of(line: Line) -> int:
    """How much a line matters: 0 for errors, 1 for warnings, 2 for the rest."""
    return _RANKS.get(line[1] if line[3] == "state" else line[2], _ORDINARY)


def events_of(items: list[Item], texts: list[str], reference: str, limit: int) -> tuple[list[Event], int]:
    """The events of some lines, whose screened messages are `texts`, and their size in bytes.

    Attributes get at most `limit` bytes.
    """
    events: list[Event] = []
    total = 0
    for (number, line), text in zip(items, texts, strict=True):
        ns, _, state, kind, _ = line
        size = len(text)
        if size > limit or state not in _COMMON or not text.isascii():
            event = _unusual(number, line, text, reference, limit)
        elif kind == "text" or kind == "head":
            attributes = {names.TEXT: text, names.TYPE: kind, names.STATE: state, names.LINE: number}
            event = (names.TEXT_EVENT, attributes, ns, size + 126)
        elif kind == "close" or kind == "raw":
            event = (names.RESULT_EVENT, {names.RESULT: text, names.LINE: number}, ns, size + 80)
        else:
            event = _unusual(number, line, text, reference, limit)
        events.append(event)
        total += event[3]
    return events, total


def _unusual(number: int, line: Line, text: str, reference: str, limit: int) -> Event:
    """Any line's event."""
    ns, _, state, kind, _ = line
    short, size, whole = shortened(text, limit)
    if kind == "text" or kind == "head":
        state = short_value(state, MAX_STATE)
        attributes = {names.TEXT: short, names.TYPE: kind, names.STATE: state, names.LINE: number}
        extra = _refer(attributes, names.TEXT_SIZE, names.TEXT_REF, whole, f"{reference}#{number}")
        return names.TEXT_EVENT, attributes, ns, size + extra + len(state.encode()) + 119
    if kind == "close" or kind == "raw":
        attributes = {names.RESULT: short, names.LINE: number}
        extra = _refer(attributes, names.RESULT_SIZE, names.RESULT_REF, whole, f"{reference}#{number}")
        return names.RESULT_EVENT, attributes, ns, size + extra + 80
    if kind == "state":
        return names.STATE_EVENT, {names.STATE: short, names.PREVIOUS_STATE: state}, ns, size + len(state) + 84
    where, taken, _ = shortened(f"{reference}/artifacts/{text}", limit)
    attributes = {names.ARTIFACT: short, names.ARTIFACT_SIZE: kind, names.ARTIFACT_REF: where, names.LINE: number}
    return names.ARTIFACT_EVENT, attributes, ns, size + taken + 152


def _refer(attributes: dict[str, Any], size: str, ref: str, whole: int, reference: str) -> int:
    """Say how large a shortened text is, and where the whole of it; gives the bytes that this takes."""
    if not whole:
        return 0
    attributes[size] = whole
    attributes[ref] = reference
    return len(reference.encode()) + 64


def fitting(events: list[Event], items: list[Item], free: int, most: int) -> list[Event]:
    """Those of `events` that fit into `free` bytes, in order; errors and warnings may take `most`.

    They come first, then the beginning and the end.
    """
    kept: set[int] = set()
    used = 0
    ranks = [rank_of(line) for _, line in items]
    for rank in (0, 1, _ORDINARY):
        limit = free if rank == _ORDINARY else most
        for at in _from_both_ends([at for at, found in enumerate(ranks) if found == rank]):
            if used + events[at][3] <= limit:
                used += events[at][3]
                kept.add(at)
    return [event for at, event in enumerate(events) if at in kept]


def short_value(text: str, limit: int = names.MAX_VALUE) -> str:
    """A text of at most `limit` bytes of UTF-8, cut between characters and marked with `…`."""
    return text if len(text) <= limit and text.isascii() else shortened(text, limit)[0]


def shortened(text: str, limit: int) -> tuple[str, int, int]:
    """A text of at most `limit` bytes of UTF-8, its size, and the whole one's size where it was cut (else 0)."""
    encoded = text.encode("utf-8", "backslashreplace")
    size = len(encoded)
    if size <= limit:
        return encoded.decode(), size, 0
    mark = "…" if limit > 3 else ""
    short = encoded[: limit - len(mark.encode())].decode("utf-8", "ignore") + mark
    return short, len(short.encode()), size


def tail(text: str, limit: int) -> str:
    """The end of a text, at most `limit` bytes of UTF-8: of a traceback, what is nearest to the fault."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    mark = "…" if limit > 3 else ""
    start = len(encoded) - limit + len(mark.encode())
    return mark + encoded[start:].decode("utf-8", "ignore")


def short_list(texts: list[str], limit: int) -> list[str]:
    """As many of them as fit into `limit` bytes together."""
    kept: list[str] = []
    for text in texts:
        short, size, _ = shortened(text, limit)
        if size > limit or (size == 0 and text):
            break
        limit -= size
        kept.append(short)
    return kept


def _ends(items: list[Any], places: int) -> list[Any]:
    if len(items) <= places:
        return items
    end = places // 2
    return items[: places - end] + items[len(items) - end :]


def _from_both_ends(places: list[int]) -> list[int]:
    """0, 5, 1, 4, 2, 3."""
    mixed = [place for pair in zip(places, reversed(places), strict=True) for place in pair]
    return mixed[: len(places)]


def _order(item: tuple[int, Any]) -> int:
    return item[0]
