"""Patterns that lines are searched for, and what can be told from a part's bytes before any JSON is parsed.

Most parts do not hold what is looked for. So the longest plain text that each match must contain is looked for in the
bytes, as JSON writes it; a part without it is not parsed. Where JSON may have written it in another way, it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from trifle_otel.errors import UsageError
from trifle_otel.strict_json import to_json

# Escapes of characters that need none: `\u0041`, and `\/`. Control characters are no part of a literal.
_ESCAPE = re.compile(rb"\\u")  # plain text is found twice as fast
_ESCAPED = re.compile(rb"\\u(?!00[01])")
_ESCAPED_SLASH = re.compile(rb"\\/")
# What Python takes for an `i`, a `k` or an `s` where capitals do not matter, beyond ASCII.
_LIKE_ASCII = {
    "i": re.compile(b"\xc4[\xb0\xb1]"),
    "k": re.compile(b"\xe2\x84\xaa"),
    "s": re.compile(b"\xc5\xbf"),
}
_CLASSES = "dDsSwWbBAZnrtfva"
LEAST_LITERAL = 3
"""A shorter text is in so many places that it does not help to know them."""
_UNCERTAIN = re.compile("[\0-\x1f\ud800-\udfff]")  # what JSON writes in more than one way, or not at all
_NOT_ASCII = re.compile("[^ -\x7f]")
_QUANTIFIER = re.compile(r"\{\d*,?\d*\}")


@dataclass(frozen=True)
class Pattern:
    """What is looked for.

    Attributes:
        text: a regular expression of Python's, or with `fixed` the text itself.
        fixed: whether it is taken as it is.
        ignore_case: whether capitals do not matter.
    """

    text: str
    fixed: bool = False
    ignore_case: bool = False

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        """The expression. Raises `UsageError` for what is none."""
        expression = re.escape(self.text) if self.fixed else self.text
        try:
            return re.compile(expression, re.IGNORECASE if self.ignore_case else 0)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"not a regular expression: {self.text!r} ({error}); --fixed-strings takes it as it is"
            ) from error

    @cached_property
    def literal(self) -> str:
        """A text that each match contains, in small letters where capitals do not matter; empty where none is known."""
        runs = [self.text] if self.fixed else _runs(self.text)
        cut = _NOT_ASCII if self.ignore_case else _UNCERTAIN  # the other case of letters beyond ASCII is not known
        longest = max((piece for run in runs for piece in cut.split(run)), key=len, default="")
        return longest.lower() if self.ignore_case else longest

    @cached_property
    def _in_json(self) -> re.Pattern[bytes]:
        return re.compile(re.escape(to_json(self.literal)[1:-1]))

    @cached_property
    def _in_text(self) -> re.Pattern[bytes]:
        return re.compile(re.escape(self.literal.encode()))

    @cached_property
    def _strangers(self) -> list[re.Pattern[bytes]]:
        """What finds letters beyond ASCII that match one of the literal's."""
        return [found for letter, found in _LIKE_ASCII.items() if self.ignore_case and letter in self.literal]

    def may_be_in(self, part: bytes) -> bool:
        """Whether a line of this part, which is JSON, may match. False is certain."""
        if not self.literal:
            return True
        return bool(self._in_json.search(part.lower() if self.ignore_case else part)) or self._hides(part)

    def _hides(self, part: bytes) -> bool:
        """Whether a part may hold the literal in other letters than those that are looked for."""
        if (_ESCAPE.search(part) and _ESCAPED.search(part)) or ("/" in self.literal and _ESCAPED_SLASH.search(part)):
            return True
        return any(stranger.search(part) for stranger in self._strangers)

    def places(self, part: bytes) -> list[int] | None:
        """Where in a part each line has something that may match, in their order; None where it may be anywhere."""
        if len(self.literal) < LEAST_LITERAL or self._hides(part):
            return None
        lower = part.lower() if self.ignore_case else part
        return [found.start() for found in self._in_json.finditer(lower)]

    def may_be_in_text(self, text: bytes) -> bool:
        """The same of a plain text in UTF-8."""
        if not self.literal or self._in_text.search(text.lower() if self.ignore_case else text):
            return True
        return any(stranger.search(text) for stranger in self._strangers)

    def lines(self, message: str) -> list[str]:
        """The lines of a message that match, as they are."""
        search = self.compiled.search
        if "\n" not in message:
            return [message] if search(message) else []
        return [line for line in message.split("\n") if search(line)]

    def spans(self, line: str) -> Iterator[tuple[int, int]]:
        """From where to where it matches in a line, without a gap between as one; not where it matches nothing."""
        start = end = 0
        for found in self.compiled.finditer(line):
            first, last = found.span()
            if first > end:
                if start < end:
                    yield start, end
                start = first
            end = last
        if start < end:
            yield start, end


def _runs(expression: str) -> Iterator[str]:
    """Plain texts that each match of a regular expression contains; none where that is not plain to see."""
    reader = _Reader(expression)
    return iter(reader.runs if reader.read() else ())


class _Reader:
    """Reads an expression from the left. It gives up at whatever it does not know: that costs time, never a match."""

    def __init__(self, expression: str) -> None:
        self.text = expression
        self.at = 0
        self.runs: list[str] = [""]

    def read(self) -> bool:
        """Whether the whole was understood; its plain texts are in `runs`."""
        while self.at < len(self.text):
            if not self._take(self.text[self.at]):
                return False
        return True

    def _take(self, mark: str) -> bool:
        if mark == "|":
            return False
        if mark == "\\":
            return self._escape()
        if mark == "[":
            return self._class()
        if mark == "(":
            return self._group()
        self.at += 1
        if mark in "*?":
            self._optional()
        elif mark == "{":
            self._counted()
        elif mark in ".^$+":
            self.runs.append("")
        else:
            self.runs[-1] += mark
        return True

    def _optional(self) -> None:
        """What was last may be missing."""
        self.runs[-1] = self.runs[-1][:-1]
        self.runs.append("")

    def _counted(self) -> None:
        found = _QUANTIFIER.match(self.text, self.at - 1)
        if found is None:  # no quantifier: itself
            self.runs[-1] += "{"
            return
        self.at = found.end()
        self._optional()

    def _escape(self) -> bool:
        following = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        if following in _CLASSES:
            self.runs.append("")
            return following != ""
        if following.isalnum() or following > "\x7f":
            return False
        self.runs[-1] += following
        return True

    def _class(self) -> bool:
        at = self.at + 1
        at += self.text.startswith("^", at)
        at += self.text.startswith("]", at)
        while at < len(self.text) and self.text[at] != "]":
            at += 2 if self.text[at] == "\\" else 1
        self.at = at + 1
        self.runs.append("")
        return at < len(self.text)

    def _group(self) -> bool:
        """A group is passed over: what must be in it is not looked at."""
        inside = self.text[self.at + 1 : self.at + 3]
        if inside.startswith("?") and inside not in ("?:", "?=", "?!", "?<", "?P", "?>"):
            return False  # flags, comments, conditions
        self.runs.append("")
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != ")":
            runs = self.runs
            self.runs = [""]
            mark = self.text[self.at]
            if mark == "|":
                self.at += 1
            elif not self._take(mark):
                return False
            self.runs = runs
        self.at += 1
        return self.at <= len(self.text)
