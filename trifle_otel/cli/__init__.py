"""The command `trifle-otel`: exit codes, and errors as one line each.

0: done. 1: nothing found, or partly failed. 2: wrong use. 130: interrupted. The commands are in modules
of their own, loaded here when they are needed, as rich and cyclopts are.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO

from trifle_otel.errors import MissingDependency, TrifleError, UsageError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
_NEEDED = ("rich", "cyclopts")


def main(argv: list[str] | None = None) -> int:
    """Run `trifle-otel` with these arguments (the process's own where None are given) and give the exit code."""
    warnings = _Warnings(logging.WARNING)
    logger = logging.getLogger("trifle_otel")
    logger.addHandler(warnings)
    _have_streams()
    _be_able_to_print(sys.stdout, sys.stderr)
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    finally:
        logger.removeHandler(warnings)


def _run(arguments: list[str]) -> int:
    try:
        code = _command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        drop_output(sys.stdout)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read it has enough
        drop_output(sys.stdout)
        return DONE
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        drop_output(sys.stdout)  # rich, which prints help, ends the process where nobody reads it
        return DONE
    except UsageError as error:
        return _fail(error, MISUSED)
    except (TrifleError, OSError) as error:
        return _fail(error, FAILED)
    return code


def _command(arguments: list[str]) -> int:
    try:
        from cyclopts import CycloptsError

        from trifle_otel.cli.app import run
    except ModuleNotFoundError as error:
        needed = (error.name or "").partition(".")[0]
        if needed not in _NEEDED:
            raise
        raise MissingDependency(f"the commands need {needed}: pip install 'trifle-otel[cli]'") from error
    try:
        return run(arguments)
    except CycloptsError as error:
        raise UsageError(f"{error} See trifle-otel --help.") from error


def _fail(error: Exception, code: int) -> int:
    """Say what is wrong in one line."""
    from trifle_otel.cli.visible import visible

    try:
        sys.stdout.flush()
    except OSError:
        drop_output(sys.stdout)
    sys.stderr.write(f"trifle-otel: {visible(' '.join(str(error).split()))}\n")
    return code


def _have_streams() -> None:
    """Where the process was given none (`>&-`), nobody reads the output, and no file may become it by its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - to the end of the process


def _be_able_to_print(*streams: TextIO) -> None:
    """Where the terminal's encoding lacks a character, print its code: an icon is no reason to fail."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output(stream: TextIO) -> None:
    """Nobody reads the output any more: keep the interpreter from waiting or complaining when it ends."""
    try:
        output = stream.fileno()
    except OSError:  # replaced by what is no file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)


class _Warnings(logging.Handler):
    """Prints the library's warnings as commands print theirs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        from trifle_otel.cli.visible import visible

        sys.stderr.write(f"trifle-otel: {visible(record.getMessage())}\n")
