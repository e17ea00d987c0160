"""Where commands print: colours where they are wanted, the width that there is, progress on the side.

Text comes here harmless already (`visible`). What rich finds out about the terminal (NO_COLOR, dumb ones) counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len, get_character_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.style import Style

from trifle_otel.cli.visible import visible
from trifle_otel.records import ERROR, RUNNING, SUCCESS, WARNING

Piece = tuple[str, str]
"""Text and its style, as rich names styles; the empty style is plain."""

USUAL_WIDTH, USUAL_HEIGHT = 80, 25  # of a terminal that does not say
LEAST_TEXT = 24  # cells that are left for text, however deep it lies
ICONS = {SUCCESS: "✓", WARNING: "!", ERROR: "✗", RUNNING: "…"}
STYLES = {SUCCESS: "green", WARNING: "yellow", ERROR: "bold red", RUNNING: "cyan", "debug": "dim"}


def state_label(state: str) -> str:
    """A state with its icon: it reads without colours too."""
    return visible(f"{ICONS.get(state, '?')} {state}")


def _console(stream: TextIO) -> Console:
    """What rich finds out; it takes no columns or rows (`COLUMNS=0`) as they are, where nobody knows the size."""
    console = Console(file=stream)
    if not console.width:
        console.width = USUAL_WIDTH
    if not console.height:
        console.height = USUAL_HEIGHT
    return console


class Screen:
    """Prints lines to a stream.

    Attributes:
        width: of the terminal, in cells; None where it is no terminal: then nothing is shortened or wrapped.
        plain: whether there are no colours.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        console = _console(self.stream)
        self.width = console.width if self.stream.isatty() else None
        self.plain = console.no_color or console.color_system is None
        self._colors = None if self.plain else ColorSystem.STANDARD  # the sixteen that the terminal's own theme fits
        self._styles: dict[str, Style] = {}

    def print(self, *pieces: Piece | str) -> None:
        """Print a line as it is."""
        self.stream.write("".join(map(self._painted, pieces)).rstrip(" ") + "\n")

    def wrap(self, prefix: Sequence[Piece], text: str, style: str = "") -> None:
        """Print a line whose text goes on below itself, right of the prefix, where it is wider than the terminal."""
        if self.width is None:
            self.print(*prefix, (text, style))
            return
        taken = sum(cell_len(piece) for piece, _ in prefix)
        start = "".join(map(self._painted, prefix))
        for line in wrapped(text, max(self.width - taken, LEAST_TEXT)) or [""]:
            self.stream.write(f"{start}{self._painted((line, style))}".rstrip(" ") + "\n")
            start = " " * taken

    def _painted(self, piece: Piece | str) -> str:
        text, style = (piece, "") if isinstance(piece, str) else piece
        if not style or self._colors is None or not text or text.isspace():
            return text
        if style not in self._styles:
            self._styles[style] = Style.parse(style)
        return self._styles[style].render(text, color_system=self._colors)


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` cells, broken after spaces where there are any."""
    plain = text.isascii()
    lines = []
    start = 0
    while start < len(text):
        end = min(start + width, len(text)) if plain else _fitting(text, start, width)
        if end < len(text) and text[end] != " ":
            space = text.rfind(" ", start + width // 2, end)
            end = space + 1 if space > start else end
        lines.append(text[start:end])
        start = end
    return lines


def _fitting(text: str, start: int, width: int) -> int:
    cells = 0
    for place in range(start, len(text)):
        cells += get_character_cell_size(text[place])
        if cells > width:
            return max(place, start + 1)
    return len(text)


def fitted(text: str, width: int) -> str:
    """`text` in exactly `width` cells: filled up, or shortened with `…`."""
    width = max(width, 0)
    cells = cell_len(text)
    if cells > width:
        text = text[: _fitting(text, 0, width - 1)] + "…" if width > 1 else "…"[:width]
        cells = cell_len(text)
    return text + " " * (width - cells)


def terminal_size() -> tuple[int, int] | None:
    """Cells in a row, and rows, of the terminal; None where the output is none, or one that cannot go back."""
    console = _console(sys.stdout)
    return None if not sys.stdout.isatty() or console.is_dumb_terminal else (console.width, console.height)


def complain(message: str) -> None:
    """One line for people on the error stream."""
    sys.stderr.write(f"trifle-otel: {visible(message)}\n")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Progress]:
    """A progress bar on the error stream, where that is a terminal; it is gone when done. `total` None: unknown."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    console = _console(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        bar.add_task(what, total=total)
        yield bar
