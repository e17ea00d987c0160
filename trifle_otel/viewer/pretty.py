"""Values as people read them: a result's JSON or `repr` as a tree, as lines to be compared, as HTML that folds.

One reader serves both languages, and what is nearly one of them: it knows brackets, texts, numbers and words. Text that
is no such value, is damaged, or too large, is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from trifle_otel.wording import count, visible

MOST_CHARACTERS = 200_000
MOST_TOKENS = 20_000
MOST_DEPTH = 40
ONE_LINE = 72  # characters of a group that stays in one line

_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_EMPTY = Markup()
_LOOKS_LIKE_ONE = re.compile(r"\s*(?:[\[{(]|[A-Za-z_][\w.]{0,200}\()")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<text>[bBrRuUfF]{0,2}(?:"(?:[^"\\]|\\.)*\\?(?:"|\Z)|'(?:[^'\\]|\\.)*\\?(?:'|\Z)))
    |(?P<number>[-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?\b)
    |(?P<word>[^\W\d][\w.]*)
    |(?P<opened>[\[{(])
    |(?P<closed>[\]})])
    |(?P<comma>,)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
"""A text without an end goes on to the end of all: each quote is looked at once."""
_CONSTANTS = {"true", "false", "null", "True", "False", "None", "NaN", "nan", "inf", "Infinity"}


@dataclass(slots=True)
class Group:
    """What stands between two brackets: items, each of tokens (kind and text) and of groups."""

    opened: str
    items: list[list[tuple[str, str] | Group]] = field(default_factory=lambda: [[]])
    length: int = 2  # characters in one line

    @property
    def count(self) -> int:
        """How many items there are."""
        return sum(map(bool, self.items))

    @property
    def folds(self) -> bool:
        """Whether it takes several lines."""
        return self.count > 0 and self.length > ONE_LINE


def parse(text: str) -> Group | None:
    """The value in a text, as the items of a group without brackets; None where it is none."""
    if len(text) > MOST_CHARACTERS or not _LOOKS_LIKE_ONE.match(text):
        return None
    top = Group("")
    stack = [top]
    for number, found in enumerate(_TOKEN.finditer(visible_but_space(text))):
        if number > MOST_TOKENS or not _take(stack, found.lastgroup or "", found[0]):
            return None
    return top if len(stack) == 1 and len(top.items) == 1 else None


def visible_but_space(text: str) -> str:
    """The text with what would steer or hide made visible, yet its line ends and tabs as spaces."""
    return visible(re.sub(r"[\r\n\t]", " ", text))


def _take(stack: list[Group], kind: str, text: str) -> bool:
    """Put a token where it belongs. Gives whether that is allowed."""
    group = stack[-1]
    if kind == "space":
        _space(group)
    elif kind == "opened":
        inner = Group(text)
        group.items[-1].append(inner)
        stack.append(inner)
        return len(stack) <= MOST_DEPTH
    elif kind == "closed":
        if len(stack) == 1 or _CLOSERS[group.opened] != text:
            return False
        stack.pop()
        stack[-1].length += group.length
    elif kind == "comma":
        group.items.append([])
        group.length += 2
    else:
        group.items[-1].append((kind, text))
        group.length += len(text)
    return True


def _space(group: Group) -> None:
    """Of space outside of texts one is kept, between two tokens of an item."""
    if group.items[-1]:
        group.items[-1].append(("space", " "))
        group.length += 1


def lines(value: Group) -> list[str]:
    """A value as lines, one for each item of each group that does not fit into one."""
    return list(_lines(value.items[0], ""))


def _lines(item: list[tuple[str, str] | Group], indent: str, ending: str = "") -> Iterator[str]:
    line = indent
    for part in item:
        if isinstance(part, tuple):
            line += part[1]
        elif not part.folds:
            line += _flat(part)
        else:
            yield line + part.opened
            filled = [each for each in part.items if each]
            for inner in filled:
                yield from _lines(inner, f"{indent}  ", ",")
            line = indent + _CLOSERS[part.opened]
    yield line.rstrip() + ending


def _flat(group: Group) -> str:
    items = [
        "".join(part[1] if isinstance(part, tuple) else _flat(part) for part in item).strip() for item in group.items
    ]
    ending = "," if len(items) == 2 and not items[1] else ""  # a tuple of one
    return f"{group.opened}{', '.join(filter(None, items))}{ending}{_CLOSERS[group.opened]}"


def html(value: Group) -> Markup:
    """A value as HTML: groups that do not fit into a line fold."""
    return _item(value.items[0])


def _item(item: list[tuple[str, str] | Group]) -> Markup:
    done = _EMPTY
    line = _EMPTY
    for number, part in enumerate(item):
        if isinstance(part, tuple):
            line += _token(item, number, *part)
        elif not part.folds:
            line += _one_line(part)
        else:  # what stands before it is in the line that folds it
            done += _folding(part, line)
            line = Markup('<span class="v-end">{}</span>').format(_CLOSERS[part.opened])
    return done + line


def _token(item: list[tuple[str, str] | Group], number: int, kind: str, text: str) -> Markup:
    named = number == 0 and len(item) > 1 and item[1] in (("other", ":"), ("other", "="))
    if kind in ("text", "word") and named:
        kind = "name"
    elif kind == "word" and text in _CONSTANTS:
        kind = "constant"
    if kind in ("space", "other", "word"):
        return escape(text)
    return Markup('<span class="v-{}">{}</span>').format(kind, text)


def _one_line(group: Group) -> Markup:
    items = [_item(item) for item in group.items]
    ending = "," if len(items) == 2 and not items[1] else ""
    return Markup("{}{}{}{}").format(
        group.opened, Markup(", ").join(filter(None, items)), ending, _CLOSERS[group.opened]
    )


def _folding(group: Group, before: Markup) -> Markup:
    items = [_item(item) for item in group.items if item]
    if all(len(item) == 1 and isinstance(item[0], tuple) for item in group.items if item):
        items = [Markup(", ").join(items)]  # a list of numbers, say, runs on like text
    endings = [","] * (len(items) - 1) + [""]
    inside = _EMPTY.join(
        Markup('<div class="v-item">{}{}</div>').format(item, ending)
        for item, ending in zip(items, endings, strict=True)
    )
    return Markup(
        '<details class="v-group" open><summary>{}{}<span class="v-count">{}</span></summary>{}</details>'
    ).format(before, group.opened, count(group.count, "item"), inside)
