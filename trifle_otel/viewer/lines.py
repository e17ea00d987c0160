"""A page of a trace's lines: which of them, where blocks begin and end, and what each says.

A page has a bounded number of lines, and a bounded number of characters: what is longer is cut, with a link to
the whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup

from trifle_otel import value_html, value_trees
from trifle_otel.arrangement import Opened
from trifle_otel.outline import Block
from trifle_otel.records import OPENED, RESULT, Entry
from trifle_otel.viewer.texts import marked, preview, shown
from trifle_otel.wording import duration, size

WINDOW = 1_000
MOST_INDENT = 24
TEXT_LENGTH = 4_000
LINE_LENGTH = 1_000
"""Characters of a text, and of one that has no second line, which nobody reads to its end."""
ONE_LINE = 100
"""Characters of a value that is shown as it is; a longer one is folded."""
VALUE_LENGTH = 8_000
PAGE_LENGTH = 400_000
"""Characters of a page's folded values; when they are used up, the others are links."""
PAGE_TEXT_LENGTH = 1_000_000
IMAGE_NAMES = re.compile(r"\.(?:png|jpe?g|gif|webp)$", re.IGNORECASE)
MOST_IMAGE_BYTES = 10_000_000


@dataclass(slots=True)
class Row:
    """A line as it is shown.

    Attributes:
        number: of the line, from 1.
        kind: `line`, `opens` (a block that folds), `around` (a block that was opened on a page before), `block` (one
            of which nothing else is shown), `closes`, `value` (a result), `raw` (a value that is none), `artifact`,
            `offloaded`.
        head: whether a section begins with it.
        ends: how many blocks end before it.
        indent: how deep it lies, up to `MOST_INDENT`.
        state: of the entry, or of the block that it opens.
        text: what it says.
        rest: how long the whole is, where `text` is only the beginning.
        value: what unfolds, for a value that is not shown in one line.
        time: how long the block took.
        since: of a section's head, the time since the one before.
        share: percent of the time of the block around it; None where it is not known, or too small to be shown.
        running_since: Unix time in milliseconds, for a block that is still open in a trace that runs.
        image: whether an artifact may be shown as a picture.
        name: of the artifact.
        matches: whether what was looked for is in it.
    """

    number: int
    kind: str
    head: bool = False
    ends: int = 0
    indent: int = 0
    state: str = ""
    text: Markup | str = ""
    rest: str = ""
    value: Markup | None = None
    time: str = ""
    since: str = ""
    share: int | None = None
    running_since: int | None = None
    image: bool = False
    name: str = ""
    matches: bool = False

    @property
    def folds(self) -> bool:
        """Whether lines are in it."""
        return self.kind in ("opens", "around")


@dataclass(frozen=True, slots=True)
class Window:
    """A page of lines.

    Attributes:
        rows: what is shown.
        open_blocks: how many blocks end after the last one.
        start: place of the first line among all that could be shown, from 0.
        end: place after the last one.
        total: how many there are.
        starts: for each page the number of the line that it begins with.
    """

    rows: list[Row]
    open_blocks: int
    start: int
    end: int
    total: int
    starts: list[int]

    @property
    def page(self) -> int:
        """Which page it is, from 0."""
        return self.start // WINDOW


def window(
    trace: Opened,
    places: Sequence[int],
    *,
    line: int | None = None,
    find: str = "",
    excerpts: Mapping[int, str] | None = None,
) -> Window:
    """The page of `places` on which a line is: the first one where none is given, the last one for one beyond it.

    What is looked for (`find`) is marked. `excerpts` has what was found of it beside the lines, by place.
    """
    total = len(places)
    at = 0 if line is None else min(_index(trace, places, line - 1), max(total - 1, 0))
    start = at // WINDOW * WINDOW
    end = min(start + WINDOW, total)
    maker = _Rows(trace, find, excerpts or {})
    rows = list(maker.rows(places[start:end]))
    open_blocks = len(maker.around) - _without_empty(rows)
    starts = [places[first] + 1 for first in range(0, total, WINDOW)]
    return Window(rows, open_blocks, start, end, total, starts)


def _without_empty(rows: list[Row]) -> int:
    """Make blocks of which nothing else is shown lines. Gives how many of those were still open at the end."""
    for row, after in pairwise(rows):
        if row.kind == "opens" and after.ends:
            row.kind = "block"
            after.ends -= 1
    if rows and rows[-1].kind == "opens":
        rows[-1].kind = "block"
        return 1
    return 0


def _index(trace: Opened, places: Sequence[int], place: int) -> int:
    """Where a place is among places; where it is not there, one that is shown near it."""
    if not trace.interleaved or len(places) == 0:
        return bisect_left(places, place)
    try:
        return places.index(place)
    except ValueError:
        later = [number for number, each in enumerate(places) if each >= place]
        return later[0] if later else len(places)


class _Rows:
    """Makes the rows of one page."""

    def __init__(self, trace: Opened, find: str, excerpts: Mapping[int, str]) -> None:
        self.trace = trace
        self.find = find
        self.excerpts = excerpts
        self.around: list[Block] = []
        self.text_left = PAGE_TEXT_LENGTH
        self.value_left = PAGE_LENGTH

    def rows(self, places: Sequence[int]) -> Iterator[Row]:
        """The rows, with those of blocks that were opened before."""
        for place in places:
            container = self.trace.container(place)
            chain = _chain(container, self.trace)
            shared = 0
            while shared < min(len(chain), len(self.around)) and chain[shared] is self.around[shared]:
                shared += 1
            ends = len(self.around) - shared
            del self.around[shared:]
            for block in chain[shared:]:
                yield replace(self._opening(block, "around"), ends=ends)
                ends = 0
                self.around.append(block)
            row = self._row(place)
            row.ends = ends
            yield row

    def _row(self, place: int) -> Row:
        trace = self.trace
        entry = trace.entries[place]
        block = trace.outline.owners[place]
        if block is not None and block.opened == place and trace.within(block) is block:
            self.around.append(block)
            return self._opening(block, "opens")
        row = Row(place + 1, self._kind(place, entry, block), state=entry.state)
        level = entry.level if "level" in entry.stored else trace.outline.depth(place)
        row.indent = min(level, MOST_INDENT)
        if entry.type == "media":
            self._media(row, place, entry)
        elif row.kind in ("value", "raw"):
            self._value(row, entry.message)
        else:
            self._text(row, entry.message)
        if entry.type == "head":
            row.head, row.since = True, _since(trace.headings.get(place))
        row.matches = self._is_match(place, entry)
        return row

    def _kind(self, place: int, entry: Entry, block: Block | None) -> str:
        if entry.type == "media":
            return "offloaded" if entry.offloaded else "artifact"
        if block is not None and place == block.result:
            return "value"
        if block is not None and place == block.closed:
            return "closes"
        return "raw" if entry.type == "raw" else "line"

    def _opening(self, block: Block, kind: str) -> Row:
        trace = self.trace
        entry = trace.entries[block.opened]
        row = Row(block.opened + 1, kind, indent=min(block.level, MOST_INDENT), state=block.state)
        if entry.offloaded:
            row.text, row.rest, row.name = self._excerpt(block.opened), _amount(entry), entry.message
        else:
            self._text(row, entry.message.removesuffix(OPENED))
        if entry.type == "head":
            row.head, row.since = True, _since(trace.headings.get(block.opened))
        row.matches = self._is_match(block.opened, entry)
        self._time(row, block)
        return row

    def _time(self, row: Row, block: Block) -> None:
        if block.duration_ns is None:
            if not self.trace.record.finished:
                row.running_since = block.start_ns // 1_000_000
                now = self.trace.start_ns + self.trace.duration_ns
                row.time = f"open, {duration(max(now - block.start_ns, 0))}"
            else:
                row.time = "never ended"
            return
        if not block.exact:
            row.time = f"~{duration(block.duration_ns)}" if block.duration_ns else ""
            return
        row.time = duration(block.duration_ns)
        whole = self.trace.duration_ns if block.parent is None else block.parent.duration_ns
        if whole:
            share = round(100 * block.duration_ns / whole)
            row.share = share if 1 <= share <= 100 else None

    def _text(self, row: Row, text: str) -> None:
        most = TEXT_LENGTH if "\n" in text[:TEXT_LENGTH] else LINE_LENGTH
        said = shown(text, min(most, max(self.text_left, ONE_LINE)), self.find)
        self.text_left -= len(said.text)
        row.text, row.rest = said.text, said.rest

    def _value(self, row: Row, message: str) -> None:
        """A result, or what else is raw: in one line, or folded, as a tree where it is one."""
        arrow, text = (RESULT, message[len(RESULT) :]) if message.startswith(RESULT) else ("", message)
        if len(text) <= ONE_LINE and "\n" not in text:
            row.text = marked(arrow + text, self.find)
            return
        row.text = marked(arrow + preview(text, ONE_LINE - 20))
        if len(text) > min(VALUE_LENGTH, self.value_left):
            row.rest = size(len(text.encode(errors="replace")))
            return
        self.value_left -= len(text)
        value = None if self.find else value_trees.parse(text)  # what was looked for is marked in plain text
        row.value = marked(text, self.find) if value is None else value_html.html(value)

    def _media(self, row: Row, place: int, entry: Entry) -> None:
        row.name = entry.message
        row.rest = _amount(entry)
        if row.kind == "offloaded":
            row.text = self._excerpt(place)
        if row.kind == "artifact":
            row.text = marked(entry.message, self.find)
            row.image = bool(IMAGE_NAMES.search(entry.message)) and (entry.size or 0) <= MOST_IMAGE_BYTES

    def _excerpt(self, place: int) -> Markup:
        return marked(self.excerpts.get(place, ""), self.find)

    def _is_match(self, place: int, entry: Entry) -> bool:
        if not self.find:
            return False
        return place in self.excerpts if entry.offloaded else self.find.casefold() in entry.message.casefold()


def _chain(container: Block | None, trace: Opened) -> list[Block]:
    chain = []
    while container is not None:
        chain.append(container)
        container = trace.within(container.parent)
    return chain[::-1]


def _since(nanoseconds: int | None) -> str:
    return f"+{duration(nanoseconds)}" if nanoseconds else ""


def _amount(entry: Entry) -> str:
    return "size unknown" if entry.size is None else size(entry.size)
