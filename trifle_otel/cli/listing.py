"""`ls` and `search`: traces as a table, in two lines each where the terminal is narrow, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.cells import cell_len

from trifle_otel.archive import Archive
from trifle_otel.cli.filters import Filters
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.pager import paged, print_json
from trifle_otel.cli.terminal import STYLES, Piece, Screen, complain, fitted, state_label
from trifle_otel.cli.visible import call, count, duration, visible, when, zone
from trifle_otel.configuration import default_bump_every
from trifle_otel.encoding import format_time, record_fields
from trifle_otel.heartbeat import told
from trifle_otel.records import WARNING, TraceRecord

ONE_LINE = 120  # cells that a table needs to hold all columns
STATE_WIDTH = 9
_GAP = "  "


def list_traces(
    segment: str | None = None,
    /,
    *,
    limit: int = 20,
    json: Flag = False,
    no_pager: Flag = False,
    place: Place | None = None,
) -> int:
    """List the newest traces.

    Parameters
    ----------
    segment
        Only those of this key, or below this path (prices/landed).
    limit
        How many, at most 1,000.
    json
        Print one record a line, as JSON.
    no_pager
        Print long output as it is, on a terminal too.
    """
    with opened(place) as archive:
        return _print(archive, archive.search(segment=segment, limit=limit).records, json=json, no_pager=no_pager)


def search(
    *,
    filters: Filters | None = None,
    limit: int = 20,
    cursor: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Flag = False,
    no_pager: Flag = False,
    place: Place | None = None,
) -> int:
    """Find traces for which all that is given holds, the newest first.

    Parameters
    ----------
    limit
        How many, at most 1,000.
    cursor
        Go on after the page that gave this cursor.
    json
        Print one record a line, as JSON.
    no_pager
        Print long output as it is, on a terminal too.
    """
    with opened(place) as archive:
        page = (filters or Filters()).page(archive, limit=limit, cursor=cursor)
        code = _print(archive, page.records, json=json, no_pager=no_pager)
    if page.cursor:  # beside what is piped on
        sys.stdout.flush()
        complain(f"there may be more: --cursor {page.cursor}")
    return code


def _print(archive: Archive, records: list[TraceRecord], *, json: bool, no_pager: bool) -> int:
    """Print records. Gives the exit code."""
    if not records:
        complain(nothing(archive))
        return 1
    with paged(no_pager) as output:
        if json:
            for record in records:
                print_json(output, record_fields(record))
        else:
            table(Screen(output), records)
    return 0


def nothing(archive: Archive) -> str:
    """Why nothing was found: no trace matches, or the index knows of none though the store holds some."""
    if archive.search(limit=1).records:
        return "no trace matches"
    if next(iter(archive.store.folders()), None) is not None:
        return "the index is empty, yet there are traces: `trifle-otel reindex` fills it from them"
    return f"no traces are in {archive.url} yet"


def table(screen: Screen, records: Sequence[TraceRecord]) -> None:
    """Print records, one or two lines each."""
    if screen.width is not None and screen.width < ONE_LINE:
        for record in records:
            two_lines(screen, screen.width, record)
    else:
        _one_line_each(screen, records)


def two_lines(screen: Screen, width: int, record: TraceRecord) -> None:
    """Print a record in two lines, for a terminal that is narrow."""
    amount = f"{_took(record):>8}  {count(record.length, 'line'):>10}"
    left = width - STATE_WIDTH - 2 * len(_GAP) - len(amount)
    screen.print(_state(record), _GAP, (fitted(call(record), left), "bold"), _GAP, amount)
    reference, started, silent = visible(record.reference), when(record.first_at), told(record, default_bump_every())
    room = width - STATE_WIDTH - 3 * len(_GAP) - len(reference) - len(started)
    silent = fitted(silent, min(room, len(silent) + len(_GAP)) if silent else 0)
    tags = (fitted(_tags(record), room - len(silent)), "dim")
    screen.print(" " * STATE_WIDTH + _GAP, (reference, "cyan"), _GAP, started, _GAP, (silent, STYLES[WARNING]), tags)


def _one_line_each(screen: Screen, records: Sequence[TraceRecord]) -> None:
    piped = screen.width is None
    started = "STARTED" if piped else f"STARTED ({zone(records[0].first_at)})"
    rows: list[tuple[str, ...]] = [("STATE", "KEY", started, "TOOK", "LINES", "TAGS", "REFERENCE")]
    rows += [cells_of(record, piped=piped) for record in records]
    widths = _widths(rows, screen.width)
    screen.print((_GAP.join(map(_cell, rows[0], widths, _RIGHT)), "dim"))
    for row, record in zip(rows[1:], records, strict=True):
        print_cells(screen, record, row, widths)


def cells_of(record: TraceRecord, *, piped: bool) -> tuple[str, ...]:
    """A record in the columns of the table."""
    return (
        _whole_state(record),
        call(record),
        format_time(record.first_at) if piped else when(record.first_at),
        _took(record),
        f"{record.length:,}",
        _tags(record),
        visible(record.reference),
    )


def print_cells(screen: Screen, record: TraceRecord, row: Sequence[str], widths: Sequence[int]) -> None:
    """Print a record's columns in one line, each as wide as is given; in a pipe at least so."""
    if screen.width is None:
        widths = [max(width, cell_len(text)) for text, width in zip(row, widths, strict=True)]
    cells = list(map(_cell, row, widths, _RIGHT))
    style = STYLES.get(record.state, "") if row[0] == state_label(record.state) else STYLES[WARNING]
    pieces: list[Piece | str] = [(cells[0], style), _GAP, (cells[1], "bold")]
    pieces += [_GAP + _GAP.join(cells[2:5]) + _GAP, (cells[5], "dim"), _GAP, (cells[6], "cyan")]
    screen.print(*pieces)


_MOST_PIPED = 60  # cells that columns of a pipe are aligned within; one longer text moves its own line alone
_RIGHT = (False, False, False, True, True, False, False)
_KEY, _TAGS = 1, 5


def _cell(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else fitted(text, width)


def _widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The widths of columns: what each needs, the key's and the tags' less where it is too much."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if width is None:
        widths = [min(each, _MOST_PIPED) for each in widths]
    else:
        room = width - len(_GAP) * (len(widths) - 1) - sum(widths) + widths[_KEY] + widths[_TAGS]
        tags = min(widths[_TAGS], max(room - widths[_KEY], room * 2 // 5))
        widths[_TAGS] = max(tags, len("TAGS"))
        widths[_KEY] = min(widths[_KEY], max(room - widths[_TAGS], len("KEY")))
    return widths


def _state(record: TraceRecord) -> Piece:
    return fitted(state_label(record.state), STATE_WIDTH), STYLES.get(record.state, "")


def _whole_state(record: TraceRecord) -> str:
    """The state, and of a running trace how long nothing was heard of it."""
    silent = told(record, default_bump_every())
    return state_label(record.state) + (f", {silent}" if silent else "")


def _tags(record: TraceRecord) -> str:
    return visible(" ".join(record.tags))


def _took(record: TraceRecord) -> str:
    return duration(record.duration * 1_000_000) if record.duration else "<1 ms"
