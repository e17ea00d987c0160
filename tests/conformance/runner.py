"""Asks an implementation all cases, one line of JSON each, and compares its answers.

An implementation is a command: it reads a question a line on its standard input and writes the answer to it, a line of
JSON, before it reads the next; at the end of the input it ends. What it says on standard error is shown.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from .cases import Case
from .comparing import differences

SKIPPED = "skipped"
"""In an answer: why this implementation does not take part in that case."""

Ask = Callable[[Case], Mapping[str, Any]]


class Outcome(NamedTuple):
    """What became of a case: passed, failed (with what is wrong) or skipped (with why)."""

    case: Case
    verdict: str
    remarks: list[str]


class BrokenImplementationError(Exception):
    """The command ended, or answered something else than a line of JSON."""


@contextmanager
def implementation(command: Sequence[str]) -> Iterator[Ask]:
    """The implementation that a command is. Raises `OSError` where it cannot be started."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(case: Case) -> Mapping[str, Any]:
            try:
                questions.write(case.question)
                questions.flush()
            except BrokenPipeError as error:
                raise BrokenImplementationError("the command has ended") from error
            line = answers.readline()
            try:
                answer = json.loads(line)
            except ValueError as error:
                raise BrokenImplementationError(f"not an answer: {line[:200]!r}") from error
            if not isinstance(answer, dict):
                raise BrokenImplementationError(f"not an object: {line[:200]!r}")
            return answer

        try:
            yield ask
        finally:
            with suppress(BrokenPipeError):  # it has ended by itself
                questions.close()


def run(ask: Ask, cases: Iterable[Case]) -> Iterator[Outcome]:
    """Ask each case, and compare."""
    for case in cases:
        try:
            answer = ask(case)
        except BrokenImplementationError as error:
            yield Outcome(case, "failed", [str(error)])
            continue
        if SKIPPED in answer:
            yield Outcome(case, "skipped", [str(answer[SKIPPED])])
            continue
        try:
            wrong = differences(case.kind, case.given, case.expected, answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong = [f"the answer has another shape: {error!r}; {answer.get('error', '')}"]
        yield Outcome(case, "failed" if wrong else "passed", wrong)
