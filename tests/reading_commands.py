"""Running commands in this process, with and without a terminal, for the tests of reading commands."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from trifle_otel.cli import main

COLOUR = re.compile("\x1b\\[[0-9;]*m")
HAZARD = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0041]")


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its output, where that is JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def lines(self) -> list[str]:
        """Its output in lines, without colours."""
        return COLOUR.sub("", self.out).splitlines()


class Terminal(io.TextIOWrapper):
    """A standard output that is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")

    def isatty(self) -> bool:
        """It is."""
        return True

    def printed(self) -> str:
        """What was printed."""
        self.flush()
        data = self.buffer
        assert isinstance(data, io.BytesIO)
        return data.getvalue().decode()


Run = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands without a terminal."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


def terminal_runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs commands on a terminal of so many columns, which comes first; there is no pager unless one is set."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TRIFLE_PAGER", "")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(columns: int, *arguments: str, rows: int = 24) -> Done:
        capsys.readouterr()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(rows))
        terminal = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", terminal)
            code = main(list(arguments))
        return Done(code, terminal.printed(), capsys.readouterr().err)

    return run
