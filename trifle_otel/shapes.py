"""The shapes of the entries that we write, with their keys in the format's order, ours last.

With `msgspec` an entry is a small object that is written out directly, which takes two thirds of the
time of a dict for each; without it the standard library's dataclasses stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from trifle_otel.strict_json import to_json


@dataclass(slots=True)
class _Line:
    at: int
    message: str
    state: str
    type: str
    level: int
    ns: int
    span: str
    parent: str | None = None


@dataclass(slots=True)
class _Media:
    at: int
    message: str
    state: str
    type: str
    size: int
    ns: int
    span: str


@dataclass(slots=True)
class _Offloaded:
    at: int
    message: str
    state: str
    type: str
    level: int
    size: int
    ns: int
    span: str
    parent: str | None = None


Shape = _Line | _Media | _Offloaded


def _encode_plainly(entries: Sequence[Shape]) -> bytes:
    """The entries as a JSON array, each with the keys that it has a value for."""
    return to_json([_as_dict(entry) for entry in entries])


def _as_dict(entry: Shape) -> dict[str, Any]:
    named = ((field.name, getattr(entry, field.name)) for field in fields(entry))
    return {name: value for name, value in named if name != "parent" or value is not None}


Line = _Line
"""Text, head or result; `parent` (the id of the block around it) on the line that opens a block alone."""
Media = _Media
"""An artifact; it has no level, as Ruby's have none."""
Offloaded = _Offloaded
"""A line whose message lies beside the parts."""
encode: Callable[[Sequence[Shape]], bytes] = _encode_plainly
"""Entries as a JSON array. Raises `ValueError` for text that is no Unicode."""

try:
    import msgspec
except ImportError:
    pass
else:
    if not TYPE_CHECKING:

        def _compiled(kind: type[Any]) -> type[Any]:
            """The same class as one that is written out without a detour."""
            described = [
                (field.name, field.type) if field.name != "parent" else (field.name, "str | None", None)
                for field in fields(kind)
            ]
            return msgspec.defstruct(kind.__name__[1:], described, omit_defaults=True, gc=False)

        Line, Media, Offloaded = map(_compiled, (_Line, _Media, _Offloaded))
        encode = msgspec.json.Encoder().encode
