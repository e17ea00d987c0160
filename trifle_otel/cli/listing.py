"""`ls` and `search`: traces as a table, in two lines each where the terminal is narrow, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from trifle_otel.archive import Archive
from trifle_otel.cli.options import Flag, Many, Place, opened
from trifle_otel.cli.terminal import STYLES, Piece, Screen, complain, fitted, state_label
from trifle_otel.cli.visible import call, count, duration, json_line, visible, when, zone
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
    """
    with opened(place) as archive:
        return _print(archive, archive.search(segment=segment, limit=limit).records, json)


def search(
    *,
    segment: str | None = None,
    tag: Many = None,
    all_tags: Many = None,
    state: str | None = None,
    since: str | None = None,
    until: str | None = None,
    min_duration: str | None = None,
    trace_id: str | None = None,
    limit: int = 20,
    cursor: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Flag = False,
    place: Place | None = None,
) -> int:
    """Find traces for which all that is given holds, the newest first.

    Parameters
    ----------
    segment
        The key, or the path that it begins with (prices/landed).
    tag
        One of these tags; may be repeated.
    all_tags
        Every one of these tags; may be repeated.
    state
        running, success, warning or error.
    since
        Began at that time or later: ISO 8601, or how long ago (90s, 15m, 1h, 3d, 2w).
    until
        Began before that time.
    min_duration
        Took at least this long: milliseconds, or as in 250ms, 1.5s, 2m.
    trace_id
        OpenTelemetry's trace id, 32 hex digits.
    limit
        How many, at most 1,000.
    cursor
        Go on after the page that gave this cursor.
    json
        Print one record a line, as JSON.
    """
    with opened(place) as archive:
        page = archive.search(
            segment=segment,
            any_tags=tag or (),
            all_tags=all_tags or (),
            state=state,
            since=since,
            until=until,
            min_duration=min_duration,
            trace_id=trace_id,
            limit=limit,
            cursor=cursor,
        )
        code = _print(archive, page.records, json)
    if page.cursor:  # beside what is piped on
        sys.stdout.flush()
        complain(f"there may be more: --cursor {page.cursor}")
    return code


def _print(archive: Archive, records: list[TraceRecord], json: bool) -> int:
    """Print records. Gives the exit code."""
    if not records:
        complain(_nothing(archive))
        return 1
    if json:
        for record in records:
            sys.stdout.buffer.write(json_line(record_fields(record)))
    else:
        table(Screen(), records)
    return 0


def _nothing(archive: Archive) -> str:
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
            _two_lines(screen, screen.width, record)
    else:
        _one_line_each(screen, records)


def _two_lines(screen: Screen, width: int, record: TraceRecord) -> None:
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
    rows = [("STATE", "KEY", started, "TOOK", "LINES", "TAGS", "REFERENCE")]
    rows += [
        (
            _whole_state(record),
            call(record),
            format_time(record.first_at) if piped else when(record.first_at),
            _took(record),
            f"{record.length:,}",
            _tags(record),
            visible(record.reference),
        )
        for record in records
    ]
    widths = _widths(rows, screen.width)
    screen.print((_GAP.join(map(_cell, rows[0], widths, _RIGHT)), "dim"))
    for row, record in zip(rows[1:], records, strict=True):
        cells = list(map(_cell, row, widths, _RIGHT))
        style = STYLES.get(record.state, "") if row[0] == state_label(record.state) else STYLES[WARNING]
        pieces: list[Piece | str] = [(cells[0], style), _GAP, (cells[1], "bold")]
        pieces += [_GAP + _GAP.join(cells[2:5]) + _GAP, (cells[5], "dim"), _GAP, (cells[6], "cyan")]
        screen.print(*pieces)


_RIGHT = (False, False, False, True, True, False, False)
_KEY, _TAGS = 1, 5


def _cell(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else fitted(text, width)


def _widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The widths of columns: what each needs, the key's and the tags' less where it is too much."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
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
