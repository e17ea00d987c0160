"""`tail`: new traces of the archive as they come, or the lines of one trace while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from trifle_otel.archive import Archive
from trifle_otel.cli.filters import Filters
from trifle_otel.cli.finding import resolve
from trifle_otel.cli.listing import ONE_LINE, cells_of, print_cells, two_lines
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.show import HEAD, MARKS, MAX_INDENT, Texts
from trifle_otel.cli.terminal import STYLES, Piece, Screen, complain, state_label
from trifle_otel.cli.visible import count, duration, json_line, visible, when
from trifle_otel.configuration import default_bump_every
from trifle_otel.encoding import record_fields
from trifle_otel.errors import NotFound, StoreUnavailable, UsageError
from trifle_otel.following import NewLines, NewTraces
from trifle_otel.heartbeat import told
from trifle_otel.records import CLOSED, ERROR, RESULT, WARNING, Entry, TraceRecord

EVERY, EVERY_REMOTE = 1.0, 3.0  # seconds
LONGEST_EVERY = 86_400.0
LONGEST_PAUSE = 30.0
wait = time.sleep
"""What passes the time between two looks."""
_PIPED = (20, 40, 27, 9, 6, 30, 26)


def tail(
    reference: str | None = None,
    /,
    *,
    filters: Filters | None = None,
    lines: int = 10,
    every: float | None = None,
    full: Flag = False,
    json: Flag = False,
    place: Place | None = None,
) -> int:
    """Print traces as they come, and once more when one that ran has ended; or the lines of one trace as they come.

    One trace is followed to its end, the archive until interrupted. Of an archive those are noticed that began within
    the last hour.

    Parameters
    ----------
    reference
        The trace to follow, or the beginning of its reference; without it, the archive is followed.
    lines
        How many of the newest that are there already to begin with.
    every
        Seconds between two looks [default: 1, or 3 where the archive is reached through a network].
    full
        Unfold long results and texts of the one trace.
    json
        Print records, or of one trace the record, each entry and the record at its end, one a line as JSON.
    """
    filters = filters or Filters()
    if reference is not None and filters != Filters():
        raise UsageError("a trace is either named, or searched for")
    if filters.since or filters.until:
        raise UsageError("what comes has no --since and no --until; `search` finds what is there")
    if lines < 0 or (every is not None and not 0 < every <= LONGEST_EVERY):  # what is no number is in no range
        raise UsageError("--lines is a whole number, 0 or more, and --every seconds above 0, a day's at most")
    with opened(place) as archive:
        pause = every or (EVERY_REMOTE if archive.index.remote or archive.store.remote else EVERY)
        if reference is not None:
            return _follow_one(archive, resolve(archive, reference), lines, pause, full=full, json=json)
        conditions = {name: value for name, value in filters.conditions.items() if name not in ("since", "until")}
        _follow_all(archive, conditions, lines, pause, json=json)
    return 0


def _looks(look: Callable[[], list[Any]], pause: float) -> Iterator[list[Any]]:
    """What each look finds, with pauses between them; longer ones while the archive is out of reach."""
    seconds = pause
    while True:
        try:
            yield look()
            seconds = pause
        except StoreUnavailable as error:
            if seconds == pause:
                complain(f"{error}; going on when it is back")
            seconds = min(seconds * 2, max(LONGEST_PAUSE, pause))
        sys.stdout.flush()
        wait(seconds)


# --- The archive


def _follow_all(archive: Archive, conditions: dict[str, Any], lines: int, pause: float, *, json: bool) -> None:
    screen = Screen()
    print_record = _print_json if json else _print_row
    news = NewTraces(archive, conditions)
    for record in news.begin(lines):
        print_record(screen, record)
    for records in _looks(news.look, pause):
        for record in records:
            print_record(screen, record)


def _print_json(screen: Screen, record: TraceRecord) -> None:
    del screen
    sys.stdout.buffer.write(json_line(record_fields(record)))


def _print_row(screen: Screen, record: TraceRecord) -> None:
    if screen.width is None:
        print_cells(screen, record, cells_of(record, piped=True), _PIPED)
    elif screen.width < ONE_LINE:
        two_lines(screen, screen.width, record)
    else:
        room = screen.width - 80  # what the other columns take
        print_cells(screen, record, cells_of(record, piped=False), (9, room * 3 // 5, 19, 8, 6, room * 2 // 5, 26))


# --- One trace


def _follow_one(archive: Archive, record: TraceRecord, lines: int, pause: float, *, full: bool, json: bool) -> int:
    news = NewLines(archive, record)
    printer: _JSONPrinter | _LinePrinter
    printer = _JSONPrinter() if json else _LinePrinter(Texts(archive, record, full=full))
    printer.begin(record)
    skip = True
    try:
        for entries in _looks(news.look, pause):
            printer.print(entries, max(len(entries) - lines, 0) if skip else 0)
            skip = False
            if news.ended:
                break
            printer.say(told(news.record, default_bump_every()))
    except NotFound:
        complain(f"trace {record.reference} is not there any more: it was thrown away")
        return 1
    printer.end(news.record)
    sys.stdout.flush()
    for damage in news.damaged:
        complain(str(damage))
    return 1 if news.damaged else 0


class _JSONPrinter:
    """Prints the record, entries, and the record at the end."""

    def begin(self, record: TraceRecord) -> None:
        """Print the record."""
        sys.stdout.buffer.write(json_line(record_fields(record)))

    end = begin

    def print(self, entries: list[Entry], skipped: int) -> None:
        """Print entries without the first ones."""
        for entry in entries[skipped:]:
            sys.stdout.buffer.write(json_line(entry.stored))

    def say(self, silence: str) -> None:
        """Whoever reads JSON asks by itself."""


class _LinePrinter:
    """Prints lines with their number, and either the time of day or how long the block took that they close."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.screen = Screen()
        self.number = 0
        self.clock = ""
        self.silence = ""
        self.opened: dict[str, int] = {}

    def begin(self, record: TraceRecord) -> None:
        """Say what is followed."""
        state = (state_label(record.state), STYLES.get(record.state, ""))
        self.screen.wrap([state, ("  ", "")], f"{visible(record.key)}  {visible(record.reference)}", "bold")

    def end(self, record: TraceRecord) -> None:
        """Say how it ended."""
        took = f" after {duration(record.duration * 1_000_000)}" if record.duration else ""
        label = state_label(record.state)
        self.screen.print((label, STYLES.get(record.state, "")), f"{took}, {count(record.length, 'line')}")

    def say(self, silence: str) -> None:
        """Tell of a trace of which nothing is heard, when that is new."""
        if bool(silence) != bool(self.silence):
            sys.stdout.flush()
            complain(f"{silence}: its process may have died" if silence else "it is heard of again")
        self.silence = silence

    def print(self, entries: list[Entry], skipped: int) -> None:
        """Print entries without the first ones."""
        if skipped:
            self.screen.print((f"{'⋮':>4}  {count(skipped, 'line')}", "dim"))
        for place, entry in enumerate(entries):
            self.number += 1
            took = self._took(entry)
            if place >= skipped:
                self._line(entry, took)

    def _took(self, entry: Entry) -> int | None:
        """How long the block took that this line closes, in nanoseconds."""
        if entry.span is None or entry.ns is None:
            return None
        if "parent" in entry.stored:
            self.opened[entry.span] = entry.ns
        elif entry.type == "text" and entry.message.endswith(CLOSED) and entry.span in self.opened:
            return max(entry.ns - self.opened.pop(entry.span), 0)
        return None

    def _line(self, entry: Entry, took: int | None) -> None:
        clock = when(entry.at).rpartition(" ")[2]
        shown = ("", "") if clock == self.clock else (clock, "dim")
        if took is not None:
            shown = (duration(took), "cyan")
        else:
            self.clock = clock
        style = _style(entry)
        prefix: list[Piece] = [
            (f"{self.number:>4} ", "dim"),
            (MARKS.get(entry.state, " "), STYLES.get(entry.state, "")),
            (f"{shown[0]:>9}  ", shown[1]),
            ("  " * min(entry.level, MAX_INDENT), ""),
        ]
        if entry.type == "head":
            prefix.append((HEAD, style))
        hang = [(" " * sum(len(text) for text, _ in prefix), "")]
        for line in self.texts.of(entry):
            self.screen.wrap(prefix, line, style)
            prefix = hang


def _style(entry: Entry) -> str:
    if entry.state in (WARNING, ERROR):
        return STYLES[entry.state]
    if entry.type == "raw" and entry.message.startswith(RESULT):
        return "green"
    if entry.state == "debug" or entry.message.endswith(CLOSED):
        return "dim"
    return {"head": "bold", "media": "magenta"}.get(entry.type, "")
