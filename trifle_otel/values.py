"""Any value to text (a line's message, a block's result) and any value to plain JSON (meta, context).

Nothing here raises an `Exception`, whatever the value does; `KeyboardInterrupt` and its kin pass, and what
`interruptions` names.
Nothing is shortened: sizes are the business of spans and of offloading. Redaction lives in
`redaction`, bytes on disk in `encoding`.
"""

from __future__ import annotations

import json
import math
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from inspect import getattr_static
from pathlib import PurePath
from typing import Any, cast
from uuid import UUID

from trifle_otel.encoding import clean_text
from trifle_otel.errors import UsageError
from trifle_otel.interruptions import let_pass

MAX_DEPTH = 50  # Ruby's JSON refuses more than 100 levels, and a record has a few of its own
MAX_ITEMS = 10_000_000  # against containers that hold one another many times over
CYCLE = "<cycle>"

Serializer = Callable[[Any], str]

_INT64 = range(-(2**63), 2**63)
_SETS = (set, frozenset)
_CONTAINERS: tuple[type[Iterable[Any]], ...] = (list, tuple, deque, set, frozenset)
_BYTES = (bytes, bytearray, memoryview)
_AS_TEXT = (Decimal, UUID, PurePath, Fraction, timedelta)


def text_of(value: object) -> str:
    """The message of a line: a str as it is, None as "", bytes as UTF-8 (what is none, as `\\xff`), else `str(value)`.

    Where `str` raises, `repr` is taken, and where that raises too, a description of the type.
    """
    if type(value) is str:
        return value
    if value is None:
        return ""
    try:
        if issubclass(type(value), str):
            return str.__str__(cast(str, value))
        if issubclass(type(value), _BYTES):
            return bytes(cast(bytes, value)).decode("utf-8", "backslashreplace")
        return _plain(str(value))
    except Exception as error:
        let_pass(error)
        return repr_of(value)


def repr_of(value: object) -> str:
    """`repr(value)`; where it raises, `<module.Type: repr raised ValueError>` (for huge ints the hexadecimal form)."""
    try:
        text = repr(value)
    except Exception as error:
        let_pass(error)
        return _described(value, error)
    return text if type(text) is str else _plain(text)


def json_of(value: object) -> str:
    """The value as compact JSON, by way of `jsonable`."""
    try:
        return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except Exception as error:
        let_pass(error)
        return repr_of(value)


def serializer(which: str | Callable[[Any], Any]) -> Serializer:
    """The function that turns a result into text, wrapped so that it never raises an `Exception`.

    Args:
        which: "repr", "str", "json", or a callable. One that raises falls back to `repr`; what it
            returns that is no str is turned into text like a message.

    Raises:
        UsageError: `which` is none of these.
    """
    if callable(which):
        return _guarded(which)
    named = {"repr": repr_of, "str": _str_of, "json": json_of}.get(which)
    if named is None:
        raise UsageError(f"unknown serializer {which!r}: use 'repr', 'str', 'json', or a callable that returns a str")
    return named


def jsonable(value: Any, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> Any:
    """The value as plain JSON: None, bool, int, float, str, list, and dict with str keys.

    NaN and infinities become "NaN", "Infinity", "-Infinity"; ints beyond 64 bits, Decimal, UUID,
    Fraction, timedelta and paths their text; datetimes ISO 8601 ("Z" for UTC); bytes UTF-8 text;
    an Enum its value; named tuples, dataclasses and attrs objects a dict of their fields; sets a
    sorted list; a container inside itself "<cycle>"; anything else, and what lies deeper than
    `max_depth`, its `repr`. Keys that become equal get a number: "1", "1 (2)". No code of the
    value's own class is run but its `repr`; a generator is not consumed.

    Args:
        max_depth: how many containers may lie inside one another.
        max_items: how many values may come out in all; the rest of a container is then one text.
    """
    if type(value) is str:  # as most of a context's fields are
        return clean_text(value)
    try:
        return _Walk(max_depth, max_items).plain(value, 0)
    except Exception as error:
        let_pass(error)
        return clean_text(repr_of(value))


def exception_text(error: BaseException) -> str:
    """What an exception says of itself; its type's name where it says nothing."""
    return text_of(error) or type(error).__name__


def traceback_text(error: BaseException) -> str:
    """The traceback with its causes, or a note of why there is none."""
    try:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    except Exception as second:  # an exception whose own methods raise
        let_pass(second)
        return f"<traceback of {type(error).__name__} cannot be formatted: {type(second).__name__}>"


def plain_context(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for a record's context: text keys, JSON-able values."""
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            merged[text_of(name)] = jsonable(value)
    return merged


def _str_of(value: object) -> str:
    return "None" if value is None else text_of(value)


def _guarded(function: Callable[[Any], Any]) -> Serializer:
    def serialize(value: Any) -> str:
        try:
            text = function(value)
        except Exception as error:
            let_pass(error)
            return repr_of(value)
        return text if type(text) is str else text_of(text)

    return serialize


def _plain(text: str) -> str:
    """Without the subclass: its overridden methods would run in our encoder."""
    return text if type(text) is str else str.__str__(text)


def _described(value: object, error: Exception) -> str:
    if type(value) is int:
        return hex(value)  # repr of an int refuses more than some 4,300 digits
    kind = type(value)
    return f"<{_attribute(kind, '__module__')}.{_attribute(kind, '__qualname__')}: repr raised {_type_name(error)}>"


def _type_name(error: Exception) -> str:
    return _attribute(type(error), "__name__")


def _attribute(kind: type, name: str) -> str:
    try:
        found = type.__getattribute__(kind, name)
        return _plain(found) if isinstance(found, str) else "?"
    except Exception as error:
        let_pass(error)
        return "?"


class _Walk:
    """One call of `jsonable`: what lies open above the current value, and how many values came out."""

    def __init__(self, max_depth: int, max_items: int) -> None:
        self.max_depth = max_depth
        self.left = self.max_items = max_items
        self.open: set[int] = set()

    def plain(self, value: Any, depth: int) -> Any:
        self.left -= 1
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return clean_text(value)
        if kind is int:
            return value if value in _INT64 else repr_of(value)
        return _number(value) if kind is float else self._other(value, depth)

    def _other(self, value: Any, depth: int) -> Any:
        members = _members(value)
        if members is None:
            return self._scalar(value, depth)
        if id(value) in self.open:
            return CYCLE
        if depth >= self.max_depth:
            return clean_text(repr_of(value))
        self.open.add(id(value))
        try:
            return self._container(value, members, depth + 1)
        finally:
            self.open.discard(id(value))

    def _container(self, value: Any, members: list[Any], depth: int) -> Any:
        if isinstance(members, _Pairs):
            return self._object(members, depth)
        items = self._items(members, depth)
        return _sorted(items) if issubclass(type(value), _SETS) else items

    def _items(self, members: Iterable[Any], depth: int) -> list[Any]:
        items: list[Any] = []
        for member in members:
            if self.left <= 0:
                items.append(self._cut())
                break
            items.append(self.plain(member, depth))
        return items

    def _object(self, members: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, int] = {}
        for key, member in members:
            if self.left <= 0:
                result["..."] = self._cut()
                break
            result[_free(self._key(key), result, seen)] = self.plain(member, depth)
        return result

    def _key(self, key: Any) -> str:
        if type(key) is str:
            return clean_text(key)
        plain = self.plain(key, self.max_depth)
        return plain if type(plain) is str else json.dumps(plain)

    def _scalar(self, value: Any, depth: int) -> Any:
        kind = type(value)  # never isinstance: it asks the value for its __class__, which may lie or raise
        if issubclass(kind, Enum):
            return self.plain(object.__getattribute__(value, "_value_"), depth + 1)
        if issubclass(kind, str):
            return clean_text(str.__str__(value))
        if issubclass(kind, int):
            return self.plain(int.__index__(value), depth)
        if issubclass(kind, float):
            return _number(float.__pos__(value))
        return clean_text(_text_of_known(value, kind))

    def _cut(self) -> str:
        return f"<cut: more than {self.max_items} values>"


class _Pairs(list[tuple[Any, Any]]):
    """The members of what becomes a JSON object."""


def _members(value: Any) -> list[Any] | None:
    """What a container holds, by the built-in type's own iteration; None for what is no container."""
    kind = type(value)
    if kind is list or kind is tuple:  # as what a job is called with nearly always is
        return list(value)
    if issubclass(kind, dict):
        return _Pairs(dict.items(value))
    if issubclass(kind, tuple) and isinstance(names := getattr_static(kind, "_fields", None), tuple):
        return _Pairs(zip(names, tuple.__iter__(value), strict=False))
    for base in _CONTAINERS:
        if issubclass(kind, base):
            return list(base.__iter__(value))
    return None if issubclass(kind, (type, Enum)) else _fields(value, kind)


def _fields(value: Any, kind: type) -> _Pairs | None:
    if isinstance(getattr_static(kind, "__dataclass_fields__", None), dict):
        names = [field.name for field in fields(kind)]
    elif isinstance(attributes := getattr_static(kind, "__attrs_attrs__", None), tuple):
        names = [attribute.name for attribute in attributes]
    else:
        return None
    pairs = _Pairs()
    for name in names:
        try:
            pairs.append((name, object.__getattribute__(value, name)))
        except AttributeError:
            continue  # deleted, or never set
    return pairs


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text_of_known(value: Any, kind: type) -> str:
    try:
        if issubclass(kind, (datetime, time)):
            return _iso(value)
        if issubclass(kind, date):
            return date.isoformat(value)
        for base in _AS_TEXT:
            if issubclass(kind, base):
                return base.__str__(value)
    except Exception as error:
        let_pass(error)
        return repr_of(value)
    return text_of(value) if issubclass(kind, _BYTES) else repr_of(value)


def _iso(value: datetime | time) -> str:
    text = datetime.isoformat(value) if isinstance(value, datetime) else time.isoformat(value)
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def _sorted(items: list[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=lambda item: (type(item).__name__, repr(item)))


def _free(key: str, taken: dict[str, Any], seen: dict[str, int]) -> str:
    """The key, or where another became the same, the key with the next number that is free."""
    free = key
    while free in taken:
        number = seen[key] = seen.get(key, 1) + 1
        free = f"{key} ({number})"
    return free
