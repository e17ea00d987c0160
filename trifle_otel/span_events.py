"""A line as an event of a span: its name, its attributes, its size; and which lines a span shows where not all fit.

Texts come here screened, and leave cut. Nothing here touches a span: that is `live_spans`' business,
as are the bytes that a whole trace may spend.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trifle_otel import conventions as names

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from trifle_otel.frames import Line

    Item = tuple[int, Line]
    """A line, and its number in the archive (from 1)."""

Event = tuple[str, dict[str, Any], int, int]
"""Name, attributes, Unix time in nanoseconds, and what it takes in OTLP (bytes, a little more than it does)."""

PLACES_LEFT = 16
"""Events of a span that are left for other instrumentations, and for an exception."""

MAX_STATE = 32
"""Bytes of a line's state: a word of the caller's, on every event."""

PLAIN_SIZE = 144
"""Bytes of a line's event beside its text, where nothing was shortened and it is no artifact."""

STATE = "state"  # what a line is, where it is no line but a change of state
_WINDOW = 1 << 18  # characters of a long text that are encoded at once
_CLOSED = -1  # room of a `Pending` that takes no more
AT_ONCE = -2
"""Room of a `Pending` whose lines are taken as they come, by the trace's `log_events.LogEvents`."""

# looked up for every line
_TEXT_EVENT, _TEXT, _TYPE, _STATE, _LINE = names.TEXT_EVENT, names.TEXT, names.TYPE, names.STATE, names.LINE
_RANKS = {"error": 0, "warning": 1}
_ORDINARY = 2


def places_of(limit: int) -> int:
    """How many of a span's `limit` events our lines may take: all but 16, or half where that is more."""
    return max(limit - PLACES_LEFT, limit // 2, 0)


class Pending:
    """Lines of one frame that wait for its span to end.

    The first ones are all held, as many as a span shows. Of those beyond, only what `choose` may want: the
    earliest and the latest of errors, of warnings, and of the rest. Every method is called under the
    recording's lock, `choose` and `omitted` after `close`.
    """

    __slots__ = ("first", "marks", "next", "numbers", "rest", "room")

    def __init__(self, room: int) -> None:
        self.first: list[Line] = []
        self.numbers: list[int] = []  # theirs; in a list of its own, since pairs keep the garbage collector busy
        self.room = room  # lines that `first` takes
        self.rest: _Rest | None = None
        self.next: Pending | None = None
        self.marks: list[tuple[Any, ...]] | None = None  # exceptions that further in are recorded already

    def add(self, number: int, line: Line) -> None:
        """Hold a line (its number in the archive, from 1). Once closed, it goes to where `close` said."""
        first = self.first
        if len(first) < self.room:
            first.append(line)
            self.numbers.append(number)
        else:
            self._add_more(number, line)

    def close(self, successor: Pending | None) -> None:
        """Take no more lines: those of tasks and threads that run on are `successor`'s, or nobody's."""
        self.room = _CLOSED
        self.next = successor

    def choose(self, places: int) -> tuple[list[int], list[Line]]:
        """At most `places` lines and their numbers, in order: errors, then warnings, then others.

        Where not all of a kind have a place, its beginning and its end.
        """
        rest = self.rest
        if rest is None and len(self.first) <= places:
            return self.numbers, self.first
        ranks: list[list[tuple[int, Item]]] = [[], [], []]
        for order, item in enumerate(zip(self.numbers, self.first, strict=True)):
            ranks[rank_of(item[1])].append((order, item))
        chosen: list[tuple[int, Item]] = []
        for rank, held in enumerate(ranks):
            more = [] if rest is None else rest.of(rank)
            chosen += _ends([*held, *more], places - len(chosen))
        chosen.sort(key=_order)
        return [item[0] for _, item in chosen], [item[1] for _, item in chosen]

    def omitted(self, added: int, lines: int) -> int:
        """How many lines of the archive are on no span, if `added` events are, of which `lines` are lines."""
        rest = self.rest
        if rest is None and added == len(self.first):
            return 0
        return sum(line[3] != STATE for line in self.first) + (0 if rest is None else rest.lines) - lines

    def hold(self, number: int, line: Line, room: int) -> None:
        """Hold a line until the span ends: as one of the first `room` ones, or as `choose` may want it."""
        if len(self.first) < room:
            self.first.append(line)
            self.numbers.append(number)
        else:
            if self.rest is None:
                self.rest = _Rest(room)
            self.rest.add((number, line), room)

    def omit(self, line: Line) -> bool:
        """Count a line that is shown nowhere; False where the count was taken already, since this is closed."""
        if self.room == _CLOSED:
            return False
        if self.rest is None:
            self.rest = _Rest(0)
        self.rest.lines += line[3] != STATE
        return True

    def _add_more(self, number: int, line: Line) -> None:
        if self.room >= 0:
            self.hold(number, line, self.room)
            return
        if self.room == _CLOSED:
            if self.next is not None:
                self.next.add(number, line)
            return
        spans = line[4].recording.spans
        if spans is not None and spans.logs is not None:
            spans.logs.take(self, number, line)


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
        self.lines += item[1][3] != STATE
        rank = self.ranks[rank_of(item[1])]
        held = (room + self.count, item)
        if len(rank.earliest) < room:
            rank.earliest.append(held)
        else:
            rank.latest.append(held)

    def of(self, rank: int) -> list[tuple[int, Item]]:
        return [*self.ranks[rank].earliest, *self.ranks[rank].latest]


def rank_of(line: Line) -> int:
    """How much a line matters: 0 for errors, 1 for warnings, 2 for the rest."""
    return _RANKS.get(line[1] if line[3] == STATE else line[2], _ORDINARY)


def are_plain(texts: list[str], limit: int) -> bool:
    """Whether texts can go onto a span as they are, each with at most `limit` bytes: ASCII, and none too long."""
    return "".join(texts).isascii() and max(map(len, texts)) <= limit


def add_plain(span: Span, numbers: list[int], lines: list[Line], texts: list[str]) -> int:
    """Add events of lines whose screened messages `are_plain`, none of them an artifact; gives how many are lines.

    What `event_of` does, without a tuple for each line: this is where a recorded line costs most.
    """
    add = span.add_event
    states = 0
    for number, (ns, _, state, kind, _), text in zip(numbers, lines, texts, strict=True):
        if kind == "text" or kind == "head":
            if state != "success":
                state = short_value(state, MAX_STATE)
            add(_TEXT_EVENT, {_TEXT: text, _TYPE: kind, _STATE: state, _LINE: number}, ns)
        elif kind == STATE:
            states += 1
            add(names.STATE_EVENT, {_STATE: text, names.PREVIOUS_STATE: state}, ns)
        else:
            add(names.RESULT_EVENT, {names.RESULT: text, _LINE: number}, ns)
    return len(lines) - states


def event_of(number: int, line: Line, text: str, reference: str, limit: int) -> Event:
    """A line's event; `text` is its screened message. Attributes get at most `limit` bytes."""
    ns, _, state, kind, _ = line
    short, size, whole = shortened(text, limit)
    if kind == "text" or kind == "head":
        state = short_value(state, MAX_STATE)
        attributes: dict[str, Any] = {names.TEXT: short, names.TYPE: kind, names.STATE: state, names.LINE: number}
        extra = _refer(attributes, names.TEXT_SIZE, names.TEXT_REF, whole, f"{reference}#{number}")
        return names.TEXT_EVENT, attributes, ns, size + extra + len(state.encode()) + 112
    if kind == "close" or kind == "raw":
        attributes = {names.RESULT: short, names.LINE: number}
        extra = _refer(attributes, names.RESULT_SIZE, names.RESULT_REF, whole, f"{reference}#{number}")
        return names.RESULT_EVENT, attributes, ns, size + extra + 74
    if kind == STATE:
        return names.STATE_EVENT, {names.STATE: short, names.PREVIOUS_STATE: state}, ns, size + len(state) + 76
    where, taken, _ = shortened(f"{reference}/artifacts/{text}", limit)
    attributes = {names.ARTIFACT: short, names.ARTIFACT_SIZE: kind, names.ARTIFACT_REF: where, names.LINE: number}
    return names.ARTIFACT_EVENT, attributes, ns, size + taken + 148


def _refer(attributes: dict[str, Any], size: str, ref: str, whole: int, reference: str) -> int:
    """Say how large a shortened text is, and where the whole of it; gives the bytes that this takes."""
    if not whole:
        return 0
    attributes[size] = whole
    attributes[ref] = reference
    return len(reference.encode()) + 64


def fitting(events: list[Event], lines: list[Line], free: int, most: int) -> list[Event]:
    """Those of the `lines`' events that fit into `free` bytes, in order; errors and warnings may take `most`.

    They come first, then the beginning and the end.
    """
    kept: set[int] = set()
    used = 0
    ranks = [rank_of(line) for line in lines]
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
    if len(text) <= max(limit, _WINDOW):
        encoded = text.encode("utf-8", "backslashreplace")
        size = len(encoded)
        if size <= limit:
            return encoded.decode(), size, 0
    else:  # a result of any size is not copied for its beginning
        encoded = text[:limit].encode("utf-8", "backslashreplace")
        windows = (text[at : at + _WINDOW] for at in range(0, len(text), _WINDOW))
        size = sum(len(window.encode("utf-8", "backslashreplace")) for window in windows)
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
    """As many of them as fit into `limit` bytes together; the first is cut where it alone is longer."""
    kept: list[str] = []
    for text in texts:
        short, size, whole = shortened(text, limit)
        if whole and kept:
            break
        kept.append(short)
        limit -= size
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
