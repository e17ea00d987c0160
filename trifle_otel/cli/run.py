"""`run`: any command as a trace, for cron scripts and programs in other languages."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from types import FrameType
from typing import Annotated, TextIO, cast

from cyclopts import Parameter
from opentelemetry import propagate

import trifle_otel as trifle
from trifle_otel.cli import drop_output
from trifle_otel.cli.options import Place
from trifle_otel.cli.terminal import complain
from trifle_otel.configuration import default_index
from trifle_otel.errors import UsageError
from trifle_otel.integrations.executors import carry

_LONGEST = 64 << 10  # bytes of one line; a longer one becomes several
_SHELL = "c", "oO", ""
_PYTHON = "c", "XW", "m"
_INTERPRETERS = {  # letters of their options: those that give code, that take a value, and that name a module
    "bash": _SHELL,
    "dash": _SHELL,
    "node": ("ep", "rC", ""),
    "perl": ("eE", "I", ""),
    "pypy": _PYTHON,
    "python": _PYTHON,
    "ruby": ("e", "rIC", ""),
    "sh": _SHELL,
    "zsh": _SHELL,
}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    key: str | None = None,
    tag: Annotated[list[str] | None, Parameter(negative=())] = None,
    retention: int | None = None,
    place: Place | None = None,
) -> int:
    """Run a command as a trace: its arguments, its output as lines, its exit code. Write it after `--`.

    What it prints is printed as ever. The exit code is the command's; one that is not 0 makes the trace an error. The
    trace ends when the command has, and nobody whom it left behind can write to its output any more.
    The command gets the trace's reference in TRIFLE_PARENT_REFERENCE and, where spans are made, their context in
    TRACEPARENT.

    Parameters
    ----------
    command
        The program and its arguments.
    key
        Key of the trace [default: commands/ and the script's name, else the program's; give one for `sh -c`].
    tag
        A label of the trace; may be given several times.
    retention
        Days that the payload is kept.
    """
    if not command:
        raise UsageError("no command is given; write it after --, as in: trifle-otel run -- python script.py")
    place = place or Place()
    trifle.configure(place.name, index=place.index or default_index())
    try:
        with trifle.tracer(
            key or key_of(command), meta=list(command), tags=tag or (), mode="live", retention=retention
        ) as job:
            code = _run(command, job.reference)
            trifle.trace(f"Exit code {code}", state="success" if code == 0 else "error")
            if code:
                trifle.fail()
    finally:
        trifle.shutdown()
    return code


def key_of(command: tuple[str, ...]) -> str:
    """`commands/<name>`: the script's where an interpreter runs one, else the program's.

    Code that is given on the command line names nothing: it differs from run to run, and may hold a secret.
    """
    program = Path(command[0]).name
    found = re.fullmatch(r"([a-z]+?)[0-9.]*", program)
    options = _INTERPRETERS.get(found[1]) if found is not None else None
    script = None if options is None else _script(command[1:], *options)
    return f"commands/{_UNSAFE.sub('-', script or program) or 'unnamed'}"


def _script(words: tuple[str, ...], code: str, valued: str, module: str) -> str | None:
    """What an interpreter is to run, behind its options; None where that is code, or the standard input.

    By their letters: options that give code, that take a value, and that name a module.
    """
    rest = iter(words)
    for word in rest:
        if not word.startswith(("-", "+")):
            return Path(word).stem
        if word == "-":
            return None
        if word == "--":
            return Path(next(rest, "")).stem
        found = None if word.startswith("--") else re.search(f"[{code}{valued}{module}]", word)
        if found is None:
            continue
        value = word[found.end() :]
        if found[0] in code:
            return None
        if found[0] in module:
            return value or next(rest, None)
        if not value:
            next(rest, None)
    return None


def _run(command: tuple[str, ...], reference: str) -> int:
    environment = {**os.environ, "TRIFLE_PARENT_REFERENCE": reference}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    environment.update({name.upper(): value for name, value in carrier.items()})
    try:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        trifle.trace(f"{shlex.join(command)} cannot be run: {error.strerror or error}", state="error")
        sys.stderr.write(f"trifle-otel: {command[0]}: {error.strerror or error}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126
    assert child.stdout is not None
    assert child.stderr is not None
    with child, _passing_on(child):
        readers = [
            threading.Thread(target=carry(_copy), args=(cast(BufferedReader, source), target, state))
            for source, target, state in ((child.stdout, sys.stdout, "success"), (child.stderr, sys.stderr, "warning"))
        ]
        for reader in readers:
            reader.start()
        code = child.wait()
        for reader in readers:
            reader.join()
    return code if code >= 0 else 128 - code


def _copy(source: BufferedReader, target: TextIO, state: str) -> None:
    """Print what comes, byte for byte and at once, and record it line by line."""
    lines = _Lines(state)
    while data := source.read1(_LONGEST):
        lines.add(data)
        try:
            target.buffer.write(data)
            target.buffer.flush()
        except BrokenPipeError:  # whoever read it has enough: the command learns of it as it would without us
            drop_output(target)
            source.close()
            break
        except OSError as error:  # a full disk, say
            drop_output(target)
            complain(f"the command's output is recorded, and no longer printed: {error.strerror or error}")
    lines.end()


class _Lines:
    """Lines that are recorded when they are whole, or too long to wait for."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._rest = b""

    def add(self, data: bytes) -> None:
        """Take what came, which may end anywhere."""
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._record(line)
        self._rest = self._record_beginning(rest)

    def end(self) -> None:
        """Nothing more comes."""
        if self._rest:
            self._record(self._rest)

    def _record(self, line: bytes) -> None:
        self._trace(self._record_beginning(line).rstrip(b"\r"))

    def _record_beginning(self, line: bytes) -> bytes:
        """Record as much as is too long for one line; gives the rest."""
        while len(line) > _LONGEST:
            at = _between_characters(line, _LONGEST)
            self._trace(line[:at])
            line = line[at:]
        return line

    def _trace(self, line: bytes) -> None:
        trifle.trace(line.decode("utf-8", "backslashreplace"), state=self._state)


def _between_characters(line: bytes, at: int) -> int:
    """The last place up to `at` that is not inside a character of UTF-8."""
    for place in range(at, max(at - 4, 0), -1):
        if line[place] & 0xC0 != 0x80:
            return place
    return at  # it is none


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals that end us end the command instead, and we end after it."""
    at_terminal = _is_in_front()

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        if number != signal.SIGINT or not at_terminal:  # a second one makes many programs drop their tidying up
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_front() -> bool:
    """Whether a terminal interrupts us when Ctrl-C is pressed: then it interrupts the command too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
