"""Cases: read from JSON files, texts that are long written out, and the golden archives as cases of their own."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES = Path(__file__).parent / "cases"
GOLDEN = Path(__file__).parent.parent / "golden"

KINDS = ("write", "read", "search", "path", "document", "cleanup", "lifecycle")


@dataclass(frozen=True)
class Case:
    """A question to an implementation.

    Attributes:
        name: of the file, below its kind.
        kind: what is asked; each kind has its own shape of `given` and `expected`.
        rule: what of the format it is about, for people.
        given: what the implementation gets.
        expected: what it has to answer; it does not get that.
    """

    name: str
    kind: str
    rule: str
    given: dict[str, Any]
    expected: dict[str, Any]

    @property
    def question(self) -> bytes:
        """What the implementation reads: a line of JSON."""
        return json.dumps({"name": self.name, "kind": self.kind, "given": self.given}).encode() + b"\n"


def all_cases() -> list[Case]:
    """The cases in files, and one for each golden archive."""
    found = [_case(path) for path in sorted(CASES.glob("*/*.json"))]
    return [*found, *map(_golden_case, sorted(path.parent for path in GOLDEN.glob("*/*/record.json")))]


def _case(path: Path) -> Case:
    fields = _written_out(json.loads(path.read_text(encoding="utf-8")))
    return Case(
        f"{path.parent.name}/{path.stem}", path.parent.name, fields["rule"], fields["given"], fields["expected"]
    )


def _written_out(value: Any) -> Any:
    """A value in which `{"$repeat": ["ab", 3]}` is `ababab`, and `{"$base64": …}` and `{"$text": …}` stay."""
    if isinstance(value, list):
        return [_written_out(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$repeat"}:
        text, times = value["$repeat"]
        return text * times
    if value.keys() == {"$join"}:
        return "".join(_written_out(item) for item in value["$join"])
    return {name: _written_out(item) for name, item in value.items()}


def _golden_case(folder: Path) -> Case:
    """An archive that Ruby wrote, and what Ruby reads from it."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    path = f"{record['retention']}/{record['key']}/{record['reference']}"
    entries = json.loads((folder / "entries.json").read_text(encoding="utf-8"))
    files = dict(_files(folder / "archive" / path))
    artifacts = {
        name.removeprefix("artifacts/"): file["$base64"]
        for name, file in files.items()
        if name.startswith("artifacts/")
    }
    return Case(
        f"read/golden-{folder.parent.name}-{folder.name}",
        "read",
        "archives that Trifle::Traces for Ruby wrote",
        {"path": path, "record": record, "files": files},
        {
            "entries": entries,
            "levels": [entry.get("level", 0) for entry in entries],
            "artifacts": {name: {"$base64": data} for name, data in artifacts.items()},
        },
    )


def _files(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), {"$base64": base64.b64encode(path.read_bytes()).decode()}
