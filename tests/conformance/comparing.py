"""Whether an answer is what was expected, and if not, where; parts are read by the standard library alone.

Expected values may hold, in the place of a text: `{"$matches": "a regular expression"}`, and `{"$name": "a"}`, which is
the name of an offloaded message, the same one wherever `a` stands. `{"$any": true}` is anything, and `{"$optional": …}`
an entry that an implementation may write beyond the format.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

OFFLOADED = re.compile(r"part_row_[0-7][0-9a-hjkmnp-tv-z]{25}\.txt")
ENTRY = ("at", "message", "state", "type", "level", "size")
RECORD = (
    "reference",
    "key",
    "segments",
    "state",
    "tags",
    "meta",
    "context",
    "duration",
    "counters",
    "length",
    "parts",
    "first_at",
    "last_at",
    "retention",
    "expires_at",
    "bucket_name",
)
_PART = re.compile(r"data_([1-9][0-9]*)\.json(\.gz)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|\+00:00)")
_NAMED = 0x08  # the flag of a gzip header that has a file's name


class MismatchError(Exception):
    """An answer is not what was expected; the message says where."""


def differences(
    kind: str, given: Mapping[str, Any], expected: Mapping[str, Any], answer: Mapping[str, Any]
) -> list[str]:
    """What is wrong with an answer; nothing where it is right."""
    try:
        if kind == "write":
            _check_written(given, expected, answer)
        else:
            compare(expected, answer, "", {})
    except MismatchError as error:
        return [str(error)]
    return []


def compare(expected: Any, actual: Any, where: str, names: dict[str, str]) -> None:
    """Raises `MismatchError` where `actual` is not `expected`. Of objects, keys that are not expected are allowed."""
    if isinstance(expected, dict):
        _compare_object(expected, actual, where, names)
    elif isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            amount = len(actual) if isinstance(actual, list) else _shown(actual)
            raise MismatchError(f"{where}: {len(expected)} items were expected, not {amount}")
        for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
            compare(one, other, f"{where}[{number}]", names)
    elif type(expected) is not type(actual) or expected != actual:
        raise MismatchError(f"{where}: {_shown(expected)} was expected, not {_shown(actual)}")


def _compare_object(expected: dict[str, Any], actual: Any, where: str, names: dict[str, str]) -> None:
    if expected.keys() == {"$any"}:
        return
    if expected.keys() == {"$matches"}:
        if not isinstance(actual, str) or not re.fullmatch(expected["$matches"], actual):
            raise MismatchError(f"{where}: {_shown(actual)} does not match {expected['$matches']}")
        return
    if expected.keys() == {"$name"}:
        _compare_name(expected["$name"], actual, where, names)
        return
    if not isinstance(actual, dict):
        raise MismatchError(f"{where}: an object was expected, not {_shown(actual)}")
    for name, value in expected.items():
        if name not in actual:
            raise MismatchError(f"{where}: {name!r} is missing")
        compare(value, actual[name], f"{where}.{name}", names)


def _compare_name(name: str, actual: Any, where: str, names: dict[str, str]) -> None:
    if not isinstance(actual, str) or not OFFLOADED.fullmatch(actual):
        raise MismatchError(f"{where}: {_shown(actual)} is no name of an offloaded message")
    if names.setdefault(name, actual) != actual or list(names.values()).count(actual) > 1:
        raise MismatchError(f"{where}: {actual} is the name of another message")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"


# --- What was written


def _check_written(given: Mapping[str, Any], expected: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    _check_trace(given, expected, answer, "")
    looks = answer.get("looks", [])
    if len(looks) != len(expected.get("looks", [])):
        raise MismatchError(f"looks: {len(expected.get('looks', []))} were expected, not {len(looks)}")
    for number, (one, other) in enumerate(zip(expected.get("looks", []), looks, strict=True)):
        _check_trace(given, one, other, f"looks[{number}]")


def _check_trace(given: Mapping[str, Any], expected: Mapping[str, Any], answer: Mapping[str, Any], where: str) -> None:
    """One state of the archive: its files and the trace's record."""
    files = {path: base64.b64decode(data) for path, data in answer["files"].items()}
    record = answer["record"]
    if expected["record"] is None:
        if record is not None or files:
            raise MismatchError(f"{where}: nothing was expected, not {_shown(record or sorted(files))}")
        return
    if record is None:
        raise MismatchError(f"{where}.record: there is none")
    folder = expected["path"] + "/"
    stray = [path for path in files if not path.startswith(folder)]
    if stray:
        raise MismatchError(f"{where}.files: all lie below {folder}, not {stray}")
    own = {path.removeprefix(folder): data for path, data in files.items()}
    parts = dict(_parts(own, given.get("settings", {}), where))
    if sorted(parts) != list(range(1, record["parts"] + 1)):
        raise MismatchError(f"{where}.files: the record counts {record['parts']} parts, and there are {sorted(parts)}")
    if len(parts) < expected.get("least_parts", 1):
        raise MismatchError(f"{where}.files: there are {len(parts)} parts, fewer than {expected['least_parts']}")
    entries = [entry for number in sorted(parts) for entry in parts[number]]
    wanted = _without_optional(expected["entries"], len(entries))
    names: dict[str, str] = {}
    fixed = answer.get("clock", "fixed") == "fixed"
    compare(_entries(wanted, fixed=fixed), entries, f"{where}.entries", names)
    for number, (one, other) in enumerate(zip(wanted, entries, strict=True)):
        _check_keys(one, other, f"{where}.entries[{number}]")
    _check_artifacts(expected.get("artifacts", {}), own, names, where)
    _check_record(expected["record"], record, where, fixed=fixed)
    compare(len(entries), record["length"], f"{where}.record.length", {})
    compare(_counters(entries), record["counters"], f"{where}.record.counters", {})


def _without_optional(expected: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Expected entries: those that an implementation may add are left out where it has not."""
    plain = [entry for entry in expected if "$optional" not in entry]
    return plain if len(plain) == count else [entry.get("$optional", entry) for entry in expected]


def _counters(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the format says of these entries."""

    def of(field: str, *values: str) -> dict[str, int]:
        return {value: sum(entry[field] == value for entry in entries) for value in values}

    return {
        "states": of("state", "success", "warning", "error", "debug"),
        "types": of("type", "text", "head", "raw", "media"),
        "max_level": max((entry.get("level", 0) for entry in entries), default=0),
    }


def _entries(expected: Sequence[Mapping[str, Any]], *, fixed: bool) -> list[Mapping[str, Any]]:
    """Entries of an implementation that cannot set its clock may have any time."""
    return list(expected) if fixed else [{**entry, "at": {"$any": True}} for entry in expected]


def _check_keys(expected: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> None:
    """The keys of the format stand first, in their order; others may follow."""
    keys = [name for name in ENTRY if name in expected]
    if list(entry)[: len(keys)] != keys:
        raise MismatchError(f"{where}: its keys are {list(entry)}, which begin with {keys}")
    if type(entry["at"]) is not int:
        raise MismatchError(f"{where}.at: {entry['at']!r} is no integer")
    surplus = [name for name in ("level", "size") if name in entry and name not in expected]
    if surplus:
        raise MismatchError(f"{where}: there is no {surplus[0]!r} in it")


def _check_artifacts(
    expected: Mapping[str, Any], files: Mapping[str, bytes], names: Mapping[str, str], where: str
) -> None:
    wanted = {}
    for name, contents in expected.items():
        called = names.get(name.removeprefix("$"), name) if name.startswith("$") else name
        wanted[f"artifacts/{called}"] = contents
    there = {name for name in files if name.startswith("artifacts/")}
    if there != wanted.keys():
        raise MismatchError(f"{where}.files: artifacts are {sorted(there)}, not {sorted(wanted)}")
    for name, contents in wanted.items():
        data = base64.b64decode(contents["$base64"]) if "$base64" in contents else contents["$text"].encode()
        if files[name] != data:
            raise MismatchError(f"{where}.files: {name} holds {_shown(repr(files[name][:100]))}")


def _check_record(expected: Mapping[str, Any], record: Mapping[str, Any], where: str, *, fixed: bool) -> None:
    missing = [name for name in RECORD if name not in record]
    if missing:
        raise MismatchError(f"{where}.record: {missing} are missing")
    times = ("first_at", "last_at", "expires_at")
    for name in times:
        if not isinstance(record[name], str) or not _TIME.fullmatch(record[name]):
            raise MismatchError(f"{where}.record.{name}: {record[name]!r} is no time in ISO 8601 in UTC")
    first, last, expires = (datetime.fromisoformat(record[name].replace("Z", "+00:00")) for name in times)
    if not first <= last:
        raise MismatchError(f"{where}.record.last_at: it is before first_at")
    if expires - first != timedelta(days=record["retention"]):
        raise MismatchError(f"{where}.record.expires_at: it is not {record['retention']} days after first_at")
    if type(record["duration"]) is not int or record["duration"] < 0:
        raise MismatchError(f"{where}.record.duration: {record['duration']!r} is no number of milliseconds")
    ours = expected if fixed else {name: value for name, value in expected.items() if name not in (*times, "duration")}
    compare(ours, record, f"{where}.record", {})


def _parts(files: Mapping[str, bytes], settings: Mapping[str, Any], where: str) -> Iterator[tuple[int, list[Any]]]:
    """The parts, by their numbers; every byte of them as the format has it."""
    for name, data in files.items():
        found = _PART.fullmatch(name)
        if found is None:
            continue
        wanted = settings.get("gzip", True)
        if (found[2] is not None) != wanted:
            raise MismatchError(f"{where}.files: {name} is {'not ' if wanted else ''}compressed")
        yield int(found[1]), strict_part(data, name, compressed=wanted)


def strict_part(data: bytes, name: str, *, compressed: bool) -> list[Any]:
    """A part's entries. Raises `MismatchError` for whatever other readers refuse, or the format does not say."""
    if compressed:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            contents = unpacker.decompress(data)
        except zlib.error as error:
            raise MismatchError(f"{name}: it is no gzip: {error}") from error
        if not unpacker.eof or unpacker.unused_data:
            raise MismatchError(f"{name}: it is not one whole gzip member")
        if data[3] & _NAMED:
            raise MismatchError(f"{name}: its gzip header has the name of a file")
        data = contents
    if not (data.startswith(b"[") and data.endswith(b"]")):
        raise MismatchError(f"{name}: it does not begin with [ and end with ], or has white space around")
    try:
        entries: list[Any] = json.loads(data.decode(), parse_constant=_refuse)
        json.dumps(entries, ensure_ascii=False).encode()  # no lone surrogates
    except ValueError as error:
        raise MismatchError(f"{name}: it is no strict JSON in UTF-8: {error}") from error
    if b"\\u0000" in data.replace(b"\\\\", b""):
        raise MismatchError(f"{name}: it holds a NUL, which PostgreSQL refuses")
    if len(data) > len(json.dumps(entries, ensure_ascii=True, separators=(",", ":"))):
        raise MismatchError(f"{name}: it is not compact")
    return entries


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def packed(entries: Sequence[Any]) -> bytes:
    """A part, for cases: made by the standard library."""
    return gzip.compress(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode(), mtime=0)
