"""Strict JSON: any plain value as bytes that Ruby, Elixir and PostgreSQL read, and back; texts and times in it.

With `orjson` where it is installed, with the standard library's `json` where it is not. The
Trifle format, which is written in this JSON, is `encoding`'s business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timezone
from enum import Enum
from functools import partial
from typing import Any

MAX_DEPTH = 90
"""What is nested deeper is written as text where a value has to be cleaned: Ruby's parser refuses more than 100."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_INT_BITS = 10_000  # Python refuses to write out more than 4,300 digits


def to_json(value: object) -> bytes:
    """Strict, compact JSON in UTF-8, as Ruby, Elixir and PostgreSQL's jsonb read it.

    NaN and the infinities become null, datetimes ISO 8601 in UTC with `Z`, and what JSON does not
    know its text. Texts are made clean (`clean_text`), which costs time only where one is not.
    Nothing that is plain data raises, be it cyclic or too deep.
    """
    try:
        data = _dumps(value)
    except (TypeError, ValueError, RecursionError):
        return _clean_json(value)
    return _clean_json(value) if _has_nul(data) else data


def from_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8, integers of any size exact. Raises ValueError for anything else."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    return without_surrogates(value) if _ESCAPED_SURROGATE.search(data) else value


def parse_quickly(data: bytes) -> Any:
    """Like `from_json`, several times as fast, but integers above 64 bits lose digits. Raises ValueError."""
    return _loads(data)


def without_surrogates(value: Any) -> Any:
    """A value that was parsed, without lone surrogates; the same object when it has none."""
    try:
        _standard_dumps(value)
    except (ValueError, RecursionError):
        return _clean(value, ())
    return value


def clean_text(text: str) -> str:
    """A text that every reader can take: NUL shown as U+2400, a lone surrogate as its escape; else the same object."""
    if "\0" in text:
        text = text.replace("\0", "\u2400")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def format_time(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds and `Z`; a time without a zone is taken to be UTC."""
    if moment.tzinfo is not timezone.utc:
        moment = _in_utc(moment)
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"  # in the place of "+00:00"


def parse_time(text: str) -> datetime:
    """An aware datetime in UTC from ISO 8601, to the microsecond. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"not a time in ISO 8601: {text[:60]!r}")
    day, clock, fraction, zone = found.groups()
    zone = "+00:00" if zone in (None, "Z") else f"{zone[:3]}:{zone[-2:]}"
    moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '').ljust(6, '0')[:6]}{zone}")
    return _in_utc(moment)


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:  # in the first or the last hours of the calendar
        return moment.replace(tzinfo=timezone.utc)


def _as_json(value: object) -> object:
    """A value that JSON does not know, as one that it does."""
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    if isinstance(value, float):  # of a class of its own, as NumPy's
        return float(value)
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _has_nul(data: bytes) -> bool:
    """Whether a JSON text has an escaped NUL.

    Looking for one byte takes a thirtieth of looking for all six, as long as it is rare.
    """
    at = data.find(b"\\")
    for _ in range(50):
        if at < 0:
            return False
        if data.startswith(b"u0000", at + 1):
            return True
        at = data.find(b"\\", at + 2)
    return at >= 0 and data.find(b"\\u0000", at) >= 0


def _clean_json(value: object) -> bytes:
    return _standard_dumps(_clean(value, ()))


def _clean(value: object, parents: tuple[int, ...]) -> object:
    """A copy of a value with nothing in it that JSON, or a reader of ours, refuses."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < _MAX_INT_BITS else hex(value)
    if isinstance(value, str):
        return clean_text(str.__str__(value))
    if isinstance(value, float):
        return value if value - value == 0 else None
    if not isinstance(value, (Mapping, list, tuple)):
        return _clean(_as_json(value), parents)
    if id(value) in parents:
        return "<cycle>"
    if len(parents) >= MAX_DEPTH:
        return f"<{type(value).__name__}>"
    inner = (*parents, id(value))
    if isinstance(value, Mapping):
        return {_clean_key(key): _clean(item, inner) for key, item in value.items()}
    return [_clean(item, inner) for item in value]


def _clean_key(key: object) -> str:
    return clean_text(str(key if isinstance(key, str) else _as_json(key)))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _standard_dumps(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_json)
    return text.encode()


def _standard_loads(data: bytes) -> Any:
    if _ESCAPED_SURROGATE.search(data):  # perhaps a lone one, which is for the slower way to see
        raise ValueError("surrogates")
    return json.loads(data.decode(), parse_constant=_refuse)


_dumps: Callable[[object], bytes] = _standard_dumps
_loads: Callable[[bytes], Any] = _standard_loads
try:
    import orjson

    _dumps = partial(
        orjson.dumps, default=_as_json, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
    )
    _loads = orjson.loads
except ImportError:
    pass
