"""Writes what documents say of names that are in the code: settings, attributes, events.

    python docs/generate.py

fills the parts of `docs/*.md` between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. What stands around them
is written by hand. `tests/test_documents.py` fails where a document differs from what this writes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from trifle_otel import configuration, conventions, settings

DOCUMENTS = Path(__file__).parent
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def filled(text: str) -> str:
    """A document with its generated parts as they have to be."""
    return _PART.sub(lambda found: f"{found[1]}\n{_PARTS[found[2]]()}\n{found[3]}", text)


def _settings() -> str:
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    declared = dict(_declared())
    defaults = settings.Settings()
    rules = (*configuration._rules_of_storing(defaults), *configuration._rules_of_recording(defaults))
    allowed = {name: text for name, (_, text) in rules}
    for field in dataclasses.fields(settings.Settings):
        kind, told = declared[field.name]
        default = getattr(defaults, field.name)
        yield f"### `{field.name}`\n\n{told}\n"
        yield f"- Type: `{kind}`; default: `{default!r}`"
        yield f"- Allowed: {allowed[field.name]}"
        if field.name in configuration._IN_CODE_ALONE:
            yield "- In code alone\n"
        else:
            yield f"- Environment: `{configuration.PREFIX}{field.name.upper()}`, {_written(default)}\n"


def _declared() -> Iterator[tuple[str, tuple[str, str]]]:
    """The fields of `Settings` as they are written: name, type and what stands below it."""
    (tree,) = ast.parse(inspect.getsource(settings.Settings)).body
    assert isinstance(tree, ast.ClassDef)
    for field, told in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(told, ast.Expr), f"{field.target.id} has no documentation"
            assert isinstance(told.value, ast.Constant), f"{field.target.id} has no documentation"
            yield field.target.id, (_kind(ast.unparse(field.annotation)), inspect.cleandoc(str(told.value.value)))


def _kind(annotation: str) -> str:
    """A type as people read it: an alias of a few texts as these texts."""
    choices = get_args(getattr(settings, annotation, None))
    return " | ".join(map(repr, choices)) if choices else annotation


def _written(default: object) -> str:
    """How the value is written in an environment variable, as `configuration` reads it."""
    if isinstance(default, bool):
        return "`true` or `false`"
    return "a number" if isinstance(default, int | float) else "a text"


def _table(names: dict[str, str], header: str) -> str:
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in names.items())
    return f"| {header} | is |\n| --- | --- |\n{rows}\n"


_PARTS: dict[str, Callable[[], str]] = {
    "settings": _settings,
    "events": lambda: _table(conventions.EVENTS, "event"),
    "attributes": lambda: _table(conventions.ATTRIBUTES, "attribute"),
}


def main() -> None:
    """Write all documents that differ."""
    for path in sorted(DOCUMENTS.glob("*.md")):
        text = path.read_text("utf-8")
        if filled(text) != text:
            path.write_text(filled(text), "utf-8")


if __name__ == "__main__":
    main()
