"""Long output on a terminal goes through a pager; what fits on the screen, and what is piped, does not.

Commands print to the stream that `paged` gives. What they tell on the error stream comes after it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rich.cells import cell_len

from trifle_otel.cli.terminal import complain, terminal_size
from trifle_otel.cli.visible import json_line
from trifle_otel.configuration import default_pager

_COLOUR = re.compile("\x1b\\[[0-9;]*m")


@contextmanager
def paged(no_pager: bool = False) -> Iterator[TextIO]:
    """The stream to print to: the standard output, or one that starts a pager once the screen is full."""
    size = None if no_pager else terminal_size()
    command = _command() if size is not None else []
    if not command or size is None:
        yield sys.stdout
        return
    stream = _Held(command, *size)
    try:
        yield cast(TextIO, stream)
    finally:
        stream.close()


def print_json(stream: TextIO, value: object) -> None:
    """Print a value as one line of JSON, in UTF-8 whatever the terminal's encoding is."""
    if stream is sys.stdout:
        sys.stdout.buffer.write(json_line(value))
    else:
        stream.write(json_line(value).decode())


def _command() -> list[str]:
    """The pager and its arguments; nothing where none is wanted or there is none."""
    named = default_pager()
    try:
        command = shlex.split("less" if named is None else named)
    except ValueError:  # a quotation mark that does not end
        command = [named or ""]
    if not command or command == ["cat"]:
        return []
    if shutil.which(command[0]) is None:
        if named is not None:
            complain(f"the pager {command[0]!r} is not there; TRIFLE_PAGER names another, an empty one none")
        return []
    return [*command, "-R"] if command == ["less"] else command  # or it would show what colours are made of


class _Held:
    """Holds back what is printed until the screen is full; then a pager gets that, and all that follows."""

    encoding = "utf-8"

    def __init__(self, command: list[str], width: int, height: int) -> None:
        self.command = command
        self.width = width
        self.room = height - 1  # the shell's prompt
        self.held: list[str] = []
        self.pager: subprocess.Popen[str] | None = None

    def isatty(self) -> bool:
        """It is where people read."""
        return True

    def flush(self) -> None:
        """There is nothing to be done: what is held back is not complete."""

    def write(self, text: str) -> int:
        """Print. Raises `BrokenPipeError` once the pager has been left."""
        if self.pager is not None and self.pager.stdin is not None:
            return self.pager.stdin.write(text)
        self.held.append(text)
        self.room -= sum(map(self._rows, text.split("\n")[:-1]))
        if self.room < 0:
            self._start()
        return len(text)

    def close(self) -> None:
        """Print what is held back, or wait until the pager is left."""
        if self.pager is None or self.pager.stdin is None:
            sys.stdout.write("".join(self.held))
            return
        with _deaf(), suppress(BrokenPipeError):
            try:
                self.pager.stdin.close()
            finally:
                self.pager.wait()

    def _rows(self, line: str) -> int:
        return 1 + max(cell_len(_COLOUR.sub("", line)) - 1, 0) // self.width

    def _start(self) -> None:
        sys.stdout.flush()
        try:
            self.pager = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            complain(f"the pager {self.command[0]!r} cannot be run: {error.strerror or error}")
            self.room = sys.maxsize
            return
        held, self.held = self.held, []
        self.write("".join(held))


@contextmanager
def _deaf() -> Iterator[None]:
    """Interrupts are the pager's own business while it is on the screen."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
