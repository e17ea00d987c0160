"""The public API, listed in `public_api.txt` and frozen: whatever a user's code, shell or dashboard may rely on.

A change is deliberate: `python tests/test_public_api.py` writes the file anew, and the changelog tells of it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import trifle_otel
from trifle_otel import conventions, errors, frames, recording, settings

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings it

FILE = Path(__file__).parent / "public_api.txt"
REWRITE = "python tests/test_public_api.py"


HANDLE = (
    "context",
    "duration",
    "key",
    "meta",
    "mode",
    "reference",
    "retention",
    "span_id",
    "state",
    "tags",
    "trace_id",
)
"""What a job and a callback may read of a trace that is running; all else of it is ours."""


def names() -> Iterator[str]:
    """What `trifle_otel` exports, with signatures, methods and fields; and the handle that `with tracer(…)` gives."""
    for name in sorted(trifle_otel.__all__):
        value = getattr(trifle_otel, name)
        yield f"{name}{signature(value)}"
        if inspect.isclass(value):
            yield from members(value)
    yield "what `with tracer(…) as job`, `current()` and callbacks give"
    yield from (f"    {name}" for name in HANDLE if hasattr(recording.Recording, name))
    yield "what `with block(…) as step` gives"
    yield f"    result{signature(frames.Frame.result)}"


def members(kind: type) -> Iterator[str]:
    """The public methods, properties and fields of a class, those of ours that it inherits too."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for name in sorted({*dir(kind), *fields}):
        value = inspect.getattr_static(kind, name, None)
        if name.startswith("_") and name not in ("__enter__", "__exit__", "__aenter__", "__aexit__", "__call__"):
            continue
        if isinstance(value, property):
            yield f"    {name} (property)"
        elif isinstance(value, (FunctionType, classmethod, staticmethod)):
            yield f"    {name}{signature(getattr(kind, name))}"
        else:
            yield f"    {name}"


def signature(value: Any) -> str:
    """Parameters as they are written, in one form for all versions of Python."""
    return f"({', '.join(parameters(inspect.signature(value)))})"


def parameters(found: inspect.Signature) -> Iterator[str]:
    """Each parameter with its annotation and default, and the star that those by name alone stand behind."""
    starred = False
    for item in found.parameters.values():
        if item.kind is item.KEYWORD_ONLY and not starred:
            yield "*"
        starred = starred or item.kind in (item.KEYWORD_ONLY, item.VAR_POSITIONAL)
        stars = "*" if item.kind is item.VAR_POSITIONAL else "**" if item.kind is item.VAR_KEYWORD else ""
        kind = item.annotation if isinstance(item.annotation, str) else getattr(item.annotation, "__name__", "")
        kind = "" if item.annotation is item.empty else f": {kind}"
        yield f"{stars}{item.name}{kind}" + ("" if item.default is item.empty else f" = {item.default!r}")


def set_up() -> Iterator[str]:
    """Settings with their types and defaults."""
    for field in dataclasses.fields(settings.Settings):
        default = getattr(settings.Settings(), field.name)
        yield f"{field.name}: {field.type} = {default!r}"


def errors_() -> Iterator[str]:
    """Errors with what they are."""
    for name, kind in sorted(vars(errors).items()):
        if inspect.isclass(kind) and issubclass(kind, Exception):
            yield f"{name}({', '.join(base.__name__ for base in kind.__bases__)})"


def attributes() -> Iterator[str]:
    """Names of attributes and events."""
    yield from (f"attribute {name}" for name in sorted(conventions.ATTRIBUTES))
    yield from (f"event {name}" for name in sorted(conventions.EVENTS))


def commands() -> Iterator[str]:
    """Commands with their arguments and options."""
    from trifle_otel.cli.app import _COMMANDS, make_app

    app = make_app()
    for name in sorted(_COMMANDS):
        yield name
        for argument in app[name].assemble_argument_collection():
            if argument.names == ("*",):  # options that several commands have
                continue
            given = ", ".join(argument.names) or argument.field_info.name
            yield f"    {given}{'' if argument.required else ' (optional)'}"


def entry_points() -> Iterator[str]:
    """Entry points, as `pyproject.toml` names them: an installed package may be older than the tree."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    for group, found in sorted({"scripts": project["scripts"], **project["entry-points"]}.items()):
        yield from (f"{group}: {name} = {value}" for name, value in sorted(found.items()))


def integrations() -> Iterator[str]:
    """The two functions of each integration, read off the source: not each framework is installed everywhere."""
    spec = importlib.util.find_spec("trifle_otel.integrations")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and node.name in ("instrument", "uninstrument"):
                module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
                yield f"{module}.{node.name}({ast.unparse(node.args)})"


def for_testing() -> Iterator[str]:
    """What `trifle_otel.testing` offers to who writes a driver."""
    from trifle_otel import testing as offered

    yield from sorted(offered.__all__)


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "trifle_otel": names,
    "settings": set_up,
    "errors": errors_,
    "attributes and events": attributes,
    "commands": commands,
    "entry points": entry_points,
    "integrations": integrations,
    "trifle_otel.testing": for_testing,
}


def frozen() -> dict[str, list[str]]:
    """The sections of the file."""
    sections: dict[str, list[str]] = {}
    for line in FILE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            sections[line[2:]] = []
        elif line:
            sections[list(sections)[-1]].append(line)
    return sections


@pytest.mark.parametrize("section", SECTIONS)
def test_the_public_api_is_what_is_written_down(section: str) -> None:
    """Nothing public appears, goes away or changes without `public_api.txt` saying so."""
    if section == "commands":
        pytest.importorskip("cyclopts", reason="needs the extra `cli`")
        pytest.importorskip("rich", reason="needs the extra `cli`")
    found = list(SECTIONS[section]())
    assert found == frozen().get(section), f"if that is meant: {REWRITE}"


def test_what_is_written_down_is_all() -> None:
    """The file has the sections that are looked at, and no other."""
    assert list(frozen()) == list(SECTIONS)


if __name__ == "__main__":
    parts = ("\n".join((f"# {name}", "", *lines())) for name, lines in SECTIONS.items())
    FILE.write_text("\n\n".join(parts) + "\n", "utf-8")
    sys.stdout.write(f"{FILE} is written; its changes belong into the changelog\n")
