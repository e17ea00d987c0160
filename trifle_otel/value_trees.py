"""Values as people read them: a result's JSON or `repr` as a tree, and as lines to be compared.

One reader serves both languages, and what is nearly one of them: it knows brackets, texts, numbers and words. Text that
is no such value, is damaged, or too large, is left as it is. Values as HTML are `value_html`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from trifle_otel.wording import visible

MOST_CHARACTERS = 200_000
MOST_TOKENS = 20_000
MOST_DEPTH = 40
ONE_LINE = 72  # characters of a group that stays in one line

CLOSERS = {"{": "}", "[": "]", "(": ")"}
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


Item = list["tuple[str, str] | Group"]
"""What stands between two commas: tokens (kind and text) and groups."""


@dataclass(slots=True)
class Group:
    """What stands between two brackets: items."""

    opened: str
    items: list[Item] = field(default_factory=lambda: [[]])
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
        if len(stack) == 1 or CLOSERS[group.opened] != text:
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


def _lines(item: Item, indent: str, ending: str = "") -> Iterator[str]:
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
            line = indent + CLOSERS[part.opened]
    yield line.rstrip() + ending


def _flat(group: Group) -> str:
    items = [
        "".join(part[1] if isinstance(part, tuple) else _flat(part) for part in item).strip() for item in group.items
    ]
    ending = "," if len(items) == 2 and not items[1] else ""  # a tuple of one
    return f"{group.opened}{', '.join(filter(None, items))}{ending}{CLOSERS[group.opened]}"
