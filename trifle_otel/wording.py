"""Text from archives made harmless wherever it is shown: what would steer, reorder or hide text is made visible.

Also calls, sizes and durations as people read them. Terminals' and pages' own ways are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trifle_otel.encoding import to_json
from trifle_otel.records import TraceRecord

HAZARDS = re.compile(
    "[\0-\x1f\x7f-\x9f"  # control characters: escape sequences begin with them
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"  # what reorders, breaks or hides text
    "\ufeff\ufff0-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"  # lone surrogates, and letters that nobody sees
)


def visible(text: str) -> str:
    """`text` in one line: control characters as their symbols (`␛`), line ends too, other hazards as escapes."""
    return HAZARDS.sub(_shown, text) if HAZARDS.search(text) else text


def visible_lines(text: str) -> list[str]:
    """`text` as the lines that it has, each harmless, and tabs as spaces."""
    if "\n" not in text and "\t" not in text:
        return [visible(text)]
    return [visible(line.removesuffix("\r").expandtabs(4)) for line in text.split("\n")]


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def compact(value: Any) -> str:
    """A value as JSON in one line, for people: a text at the top without its quotes."""
    return visible(value if isinstance(value, str) else _json(value))


def call(record: TraceRecord) -> str:
    """What was run, as it would be called: `prices/landed(9, "DE")`."""
    meta = record.meta
    if meta is None:
        return visible(record.key)
    if isinstance(meta, Mapping):
        arguments = ", ".join(f"{name}={_json(value)}" for name, value in meta.items())
    elif isinstance(meta, list | tuple):
        arguments = ", ".join(map(_json, meta))
    else:
        arguments = _json(meta)
    return visible(f"{record.key}({arguments})")


def _json(value: Any) -> str:
    return to_json(value).decode()


def size(amount: int) -> str:
    """Bytes, rounded: `71 B`, `1.23 MB`."""
    for unit, length in (("B", 1), ("kB", 10**3), ("MB", 10**6), ("GB", 10**9)):
        if amount < 999.5 * length:
            return f"{amount / length:.3g} {unit}"
    return f"{amount / 10**12:,.0f} TB"


def duration(ns: int) -> str:
    """Nanoseconds as people say it: `12.3 ms`, `4.1 s`, `2 min 5 s`, `3 h 20 min`."""
    if not ns:
        return "0 s"
    for unit, length, most in (("µs", 10**3, 999.5), ("ms", 10**6, 999.5), ("s", 10**9, 59.95)):
        if ns < most * length:
            return f"{ns / length:.3g} {unit}"
    seconds = round(ns / 10**9)
    if seconds < 3600:
        return _two_units(seconds, "min", "s", 60, 1)
    return _two_units(seconds, "h", "min", 3600, 60) if seconds < 86400 else _two_units(seconds, "d", "h", 86400, 3600)


def _two_units(seconds: int, large: str, small: str, length: int, part: int) -> str:
    rest = seconds % length // part
    return f"{seconds // length:,} {large}" + (f" {rest} {small}" if rest else "")


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 trace`, `2,400 traces`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
