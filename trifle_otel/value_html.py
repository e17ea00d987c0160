"""Values as HTML that folds: `value_trees` with colours. Whatever they hold is escaped."""

from __future__ import annotations

from markupsafe import Markup, escape

from trifle_otel.value_trees import CLOSERS, Group, Item
from trifle_otel.wording import count

_EMPTY = Markup()
_CONSTANTS = {"true", "false", "null", "True", "False", "None", "NaN", "nan", "inf", "Infinity"}


def html(value: Group) -> Markup:
    """A value as HTML: groups that do not fit into a line fold."""
    return _item(value.items[0])


def _item(item: Item) -> Markup:
    done = _EMPTY
    line = _EMPTY
    for number, part in enumerate(item):
        if isinstance(part, tuple):
            line += _token(item, number, *part)
        elif not part.folds:
            line += _one_line(part)
        else:  # what stands before it is in the line that folds it
            done += _folding(part, line)
            line = Markup('<span class="v-end">{}</span>').format(CLOSERS[part.opened])
    return done + line


def _token(item: Item, number: int, kind: str, text: str) -> Markup:
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
        group.opened, Markup(", ").join(filter(None, items)), ending, CLOSERS[group.opened]
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
