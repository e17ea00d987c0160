"""`show`: one trace, its record on top, its entries below, nested as they were recorded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from trifle_otel.archive import Archive
from trifle_otel.cli.finding import resolve
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.pager import paged, print_json
from trifle_otel.cli.terminal import STYLES, Piece, Screen, complain, state_label
from trifle_otel.cli.visible import (
    call,
    compact,
    count,
    duration,
    size,
    visible,
    visible_lines,
    when,
    zone,
)
from trifle_otel.configuration import default_bump_every
from trifle_otel.encoding import format_time, record_fields
from trifle_otel.errors import MissingDependency, NotFound, UsageError
from trifle_otel.heartbeat import told
from trifle_otel.outline import Block, Outline, outline
from trifle_otel.reading import Entries
from trifle_otel.records import ERROR, RESULT, WARNING, Entry, TraceRecord

RESULT_FOLD = 200  # characters of a result that are shown without --full
TEXT_FOLD = 4_000  # of everything else: tracebacks are to be read
MAX_INDENT = 24  # levels
HEAD = "■ "
_TIME_WIDTH = 9
MARKS = {WARNING: "!", ERROR: "✗"}


def show(
    reference: str,
    /,
    *,
    full: Flag = False,
    artifact: str | None = None,
    html: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Flag = False,
    no_pager: Flag = False,
    place: Place | None = None,
) -> int:
    """Show one trace: what is known about it, then its lines, nested, with the time that each block took.

    Parameters
    ----------
    reference
        The trace's reference, or the beginning of it.
    full
        Unfold long results and texts, those that are stored beside the trace too.
    artifact
        Print this artifact instead, as it is stored.
    html
        Write the trace to this file instead, as one page that needs nothing else; - for the standard output.
    json
        Print the record and then each entry as it is stored, one a line, as JSON.
    no_pager
        Print long output as it is, on a terminal too.
    """
    if (artifact is not None) + (html is not None) + json > 1:
        raise UsageError("of --artifact, --html and --json one can be given")
    with opened(place) as archive:
        record = resolve(archive, reference)
        if artifact is not None:
            return _print_artifact(archive, record, artifact)
        entries = archive.entries(record)
        if html is not None:
            try:
                from trifle_otel.cli.report_html import write_report
            except ModuleNotFoundError as error:
                raise MissingDependency(f"{error.name} is not installed: pip install 'trifle-otel[cli]'") from error
            write_report(archive, record, entries, html, full=full)
            return report_damage(entries)
        with paged(no_pager) as output:
            if json:
                for value in (record_fields(record), *(entry.stored for entry in entries)):
                    print_json(output, value)
            else:
                screen = Screen(output)
                print_record(screen, record)
                screen.print()
                Lines(archive, record, entries, full=full).print(screen)
        return report_damage(entries)


def report_damage(entries: Entries) -> int:
    """Name what could not be read. Gives the exit code."""
    sys.stdout.flush()
    for damage in entries.damaged:
        complain(str(damage))
    return 1 if entries.damaged else 0


def _print_artifact(archive: Archive, record: TraceRecord, name: str) -> int:
    with archive.open_artifact(record, name) as stream:
        if sys.stdout.isatty():
            lines = visible_lines(stream.read().decode(errors="backslashreplace"))
            sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
        else:
            shutil.copyfileobj(stream, sys.stdout.buffer, 1 << 20)
    return 0


def print_record(screen: Screen, record: TraceRecord) -> None:
    """What is known about a trace."""
    silent = told(record, default_bump_every())
    state = [(state_label(record.state), STYLES.get(record.state, "")), (silent and f", {silent}", STYLES[WARNING])]
    screen.wrap([*state, ("  ", "")], call(record), "bold")
    for name, text in _facts(record, piped=screen.width is None):
        if text:
            screen.wrap([(f"  {name:<10} ", "dim")], text)


def _facts(record: TraceRecord, *, piped: bool) -> Iterator[tuple[str, str]]:
    yield "reference", visible(record.reference)
    yield "started", format_time(record.first_at) if piped else f"{when(record.first_at)} {zone(record.first_at)}"
    took = duration(record.duration * 1_000_000) if record.duration else "less than 1 ms"
    yield "took", took if record.finished else f"{took} so far"
    yield "lines", f"{record.length:,}{_counters(record)}"
    yield "kept until", format_time(record.expires_at) if piped else when(record.expires_at)
    yield "tags", visible("  ".join(record.tags))
    yield "meta", "" if record.meta is None else compact(record.meta)
    yield "context", visible("  ".join(f"{name}={compact(value)}" for name, value in record.context.items()))


def _counters(record: TraceRecord) -> str:
    """The counters, as far as there is something to say: `: 310 success, 6 warning; 5 levels deep`."""
    states = record.counters.get("states")
    depth = record.counters.get("max_level")
    said = [f"{n:,} {state}" for state, n in states.items() if n] if isinstance(states, dict) else []
    text = f": {', '.join(said)}" if said else ""
    text += f"; {depth + 1} levels" if isinstance(depth, int) and depth else ""
    return visible(text + f"; {count(record.parts, 'part')}")


class Texts:
    """What entries of a trace say, in lines: folded where they are long, or whole with `full`."""

    def __init__(self, archive: Archive, record: TraceRecord, *, full: bool = False) -> None:
        self.archive = archive
        self.record = record
        self.full = full

    def of(self, entry: Entry) -> list[str]:
        """What an entry says, harmless."""
        if entry.type == "media":
            return self._media(entry)
        most = RESULT_FOLD if entry.type == "raw" and entry.message.startswith(RESULT) else TEXT_FOLD
        return visible_lines(entry.message) if self.full else folded(entry.message, most)

    def _media(self, entry: Entry) -> list[str]:
        amount = "size unknown" if entry.size is None else size(entry.size)
        if not entry.offloaded:
            return [visible(f"artifact {entry.message} ({amount})")]
        if not self.full:
            return [f"… ({amount}, --full shows it)"]
        try:
            return visible_lines(self.archive.artifact(self.record, entry.message).decode(errors="backslashreplace"))
        except NotFound as error:
            complain(str(error))
            return [visible(f"{entry.message} ({amount}) is missing")]


class Lines:
    """The lines of a trace, ready to be printed one by one."""

    def __init__(self, archive: Archive, record: TraceRecord, entries: Entries, *, full: bool = False) -> None:
        self.texts = Texts(archive, record, full=full)
        self.entries = entries
        self.outline: Outline = outline(entries)
        self.number_width = max(len(str(len(entries))), 3)

    def print(self, screen: Screen, start: int = 0, end: int | None = None) -> None:
        """Print the entries, from one place to before another."""
        for place in range(start, len(self.entries) if end is None else end):
            self._print_entry(screen, place, self.entries[place])

    def _print_entry(self, screen: Screen, place: int, entry: Entry) -> None:
        level = entry.level if "level" in entry.stored else self.outline.depth(place)
        prefix: list[Piece] = [
            (f"{place + 1:>{self.number_width}} ", "dim"),
            (MARKS.get(entry.state, " "), STYLES.get(entry.state, "")),
            (f"{self._time(place):>{_TIME_WIDTH}}  ", "cyan"),
            ("  " * min(level, MAX_INDENT), ""),
        ]
        style = self._style(place, entry)
        if entry.type == "head":
            prefix.append((HEAD, style))
        hang = [(" " * sum(len(text) for text, _ in prefix), "")]
        for line in self.texts.of(entry):
            screen.wrap(prefix, line, style)
            prefix = hang

    def _time(self, place: int) -> str:
        block = self.outline.opening(place)
        return "" if block is None else block_time(block)

    def _style(self, place: int, entry: Entry) -> str:
        owner = self.outline.owners[place]
        if entry.state in (WARNING, ERROR):
            return STYLES[entry.state]
        if entry.type == "head":
            return "bold"
        if entry.type == "media":
            return "magenta"
        if owner is not None and owner.result == place:
            return "green"
        return "dim" if entry.state == "debug" or (owner is not None and owner.closed == place) else ""


def block_time(block: Block) -> str:
    """How long a block took: `open` while it runs, about how long where only whole seconds are known."""
    if block.duration_ns is None:
        return "open"
    if block.exact:
        return duration(block.duration_ns)
    return f"~{duration(block.duration_ns)}" if block.duration_ns else "<1 s"


def folded(text: str, most: int) -> list[str]:
    """`text` in lines, or its beginning where it has more than `most` characters, and how long it is."""
    if len(text) <= most:
        return visible_lines(text)
    lines = visible_lines(text[:most])
    lines[-1] += f"… ({size(len(text.encode(errors='replace')))}, --full shows it)"
    return lines
