"""`grep`: the lines of traces that a pattern is in, as `reference:line: text`, while they are found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from trifle_otel.cli.filters import Filters
from trifle_otel.cli.listing import nothing
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.terminal import Piece, Screen, complain
from trifle_otel.cli.visible import json_line, visible
from trifle_otel.errors import UsageError
from trifle_otel.grep import Found, Hit, search
from trifle_otel.patterns import Pattern
from trifle_otel.records import TraceRecord

EXCERPT = 400
"""Characters of a line that are shown on a terminal, around the first match."""
BEFORE = 80
MOST_COMPLAINTS = 20
_MATCH, _REFERENCE, _NUMBER = "bold red", "cyan", "green"


def grep(
    pattern: str,
    /,
    *,
    ignore_case: Annotated[Flag, Parameter(name=["--ignore-case", "-i"])] = False,
    fixed_strings: Annotated[Flag, Parameter(name=["--fixed-strings", "-F"])] = False,
    artifacts: Flag = False,
    references: Annotated[Flag, Parameter(name=["--references", "-l"])] = False,
    max_count: Annotated[int | None, Parameter(name=["--max-count", "-m"])] = None,
    full: Flag = False,
    filters: Filters | None = None,
    limit: int | None = None,
    json: Flag = False,
    place: Place | None = None,
) -> int:
    """Search the lines of traces for a pattern, the newest traces first, and print those that match.

    Each line of a message is looked at by itself. What is stored beside a trace, being long, is searched too.

    Parameters
    ----------
    pattern
        A regular expression, as Python has them. One that begins with a hyphen is written last, after --.
    ignore_case
        Capitals and small letters are the same.
    fixed_strings
        The pattern is the text itself.
    artifacts
        Search artifacts too, as text.
    references
        Print the references of the traces alone, each once.
    max_count
        Stop after so many lines.
    full
        Print long lines whole, on a terminal too.
    limit
        Look through so many traces at most [default: all].
    json
        Print one object a line, as JSON.
    """
    wanted = Pattern(pattern, fixed=fixed_strings, ignore_case=ignore_case)
    _ = wanted.compiled  # wrong use is told before anything is looked for
    if max_count is not None and max_count < 1:
        raise UsageError(f"not a number of lines: {max_count}; it is a whole number above 0")
    with opened(place) as archive:
        records = (filters or Filters()).records(archive, limit)
        first = next(records, None)
        if first is None:
            complain(nothing(archive))
            return 1
        printer = _Printer(wanted, full=full, references=references, json=json)
        found = search(archive.store, _again(first, records), wanted, artifacts=artifacts)
        return _print(found, printer, max_count)


def _again(first: TraceRecord, rest: Iterator[TraceRecord]) -> Iterator[TraceRecord]:
    yield first
    yield from rest


def _print(found: Iterator[Found], printer: _Printer, most: int | None) -> int:
    """Print what is found. Gives the exit code."""
    lines, damaged = 0, []
    for each in found:
        damaged += each.damaged
        hits = each.hits if most is None else each.hits[: most - lines]
        lines += len(hits)
        if hits:
            printer.print(each.record, hits)
            sys.stdout.flush()  # whoever waits for it sees it now
        if lines == most:
            break
    for problem in damaged[:MOST_COMPLAINTS]:
        complain(problem)
    if len(damaged) > MOST_COMPLAINTS:
        complain(f"and {len(damaged) - MOST_COMPLAINTS:,} more")
    if not lines and not damaged:
        complain("no line matches")
    return 1 if damaged or not lines else 0


class _Printer:
    """Prints the lines of one trace after another."""

    def __init__(self, pattern: Pattern, *, full: bool, references: bool, json: bool) -> None:
        self.pattern = pattern
        self.references = references
        self.json = json
        self.screen = Screen()
        self.most = None if full or self.screen.width is None else EXCERPT

    def print(self, record: TraceRecord, hits: list[Hit]) -> None:
        """Print what was found in a trace."""
        if self.json:
            for hit in hits[:1] if self.references else hits:
                sys.stdout.buffer.write(json_line(_fields(record, hit, whole=not self.references)))
        elif self.references:
            self.screen.print((visible(record.reference), _REFERENCE))
        else:
            for hit in hits:
                self._line(record, hit)

    def _line(self, record: TraceRecord, hit: Hit) -> None:
        where = record.reference if hit.artifact is None else f"{record.reference}/artifacts/{hit.artifact}"
        number: list[Piece | str] = [(str(hit.number), _NUMBER), ":"] if hit.number else []
        self.screen.print((visible(where), _REFERENCE), ":", *number, " ", *self._pieces(hit.text))

    def _pieces(self, text: str) -> Iterator[Piece]:
        """The line, with what matches marked; of a long one what is around the first match."""
        if self.screen.plain and self.most is None:
            yield visible(text), ""
            return
        spans = self.pattern.spans(text)
        span = next(spans, (0, 0))
        start, end = self._excerpt(text, span[0])
        if start:
            yield "…", ""
        at = start
        while span[0] < end and span != (0, 0):
            first, last = max(span[0], at), min(span[1], end)
            yield visible(text[at:first]), ""
            yield visible(text[first:last]), _MATCH
            at = last
            span = next(spans, (0, 0))
        yield visible(text[at:end]), ""
        if end < len(text):
            yield "…", ""

    def _excerpt(self, text: str, match: int) -> tuple[int, int]:
        """Where what is shown of a line begins and ends."""
        if self.most is None or len(text) <= self.most:
            return 0, len(text)
        start = max(min(match - BEFORE, len(text) - self.most), 0)
        return start, start + self.most


def _fields(record: TraceRecord, hit: Hit, *, whole: bool) -> dict[str, object]:
    """A line as JSON has it."""
    fields: dict[str, object] = {"reference": record.reference, "key": record.key}
    if not whole:
        return fields
    if hit.artifact is not None:
        fields["artifact"] = hit.artifact
    return {**fields, "line": hit.number or None, "state": hit.state, "text": hit.text}
