"""The bytes of the Trifle format: parts, records and cursors as strict JSON, gzip, and the names of objects.

Everything that is particular to the format stands here once, on top of `strict_json`, whose
functions can be had from here. Where bytes are kept is not decided here (`stores`), nor what a
key or a name may be (`references`).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from trifle_otel.errors import DamagedArchive, InvalidCursor
from trifle_otel.records import RUNNING, Position, TraceRecord, empty_counters
from trifle_otel.references import reference_time, segments
from trifle_otel.strict_json import clean_text as clean_text
from trifle_otel.strict_json import format_time as format_time
from trifle_otel.strict_json import from_json as from_json
from trifle_otel.strict_json import parse_quickly, without_surrogates
from trifle_otel.strict_json import parse_time as parse_time
from trifle_otel.strict_json import to_json as to_json

RECORD_NAME = "record.json"
ARTIFACTS = "artifacts/"
MAX_PART_BYTES = 512 * 1024 * 1024
"""A part that is larger when unpacked is not read to its end: nobody writes such parts, but anybody can send one."""
MAX_SALVAGE_BYTES = 64 * 1024 * 1024
"""How much of a damaged part is searched for entries: each byte of it costs about ten in memory."""
MAX_RECORD_BYTES = 64 * 1024 * 1024
"""Of a `record.json` no more is read."""
LONGEST_KEY = 4096
"""Characters of a key: no path is longer, and a record lists every prefix of its key."""
DEFAULT_RETENTION = 7

_PART_NAME = re.compile(r"data_([1-9][0-9]{0,8})\.json(\.gz)?", re.ASCII)
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,2000}={0,2}", re.ASCII)
_LAST = datetime.max.replace(tzinfo=timezone.utc)
_GZIP = 31  # zlib's number for one gzip member; its header then has no file name and no time
_STEP = 4096  # bytes
_MOST_DEFLATED = 1032  # bytes that one may stand for
_SPACE = re.compile(r"[ \t\r\n]*")
_LENIENT = json.JSONDecoder(parse_constant=lambda _: None)
_NANOS = 1_000_000_000
_MIN_SECONDS = -62_135_596_800  # the year 1
_MAX_SECONDS = 253_402_300_799  # the end of the year 9999


def _standard_compress(data: bytes) -> bytes:
    packer = zlib.compressobj(level=1, wbits=_GZIP)
    return packer.compress(data) + packer.flush()


def _standard_decompressor() -> Any:
    return zlib.decompressobj(wbits=_GZIP)


_compress: Callable[[bytes], bytes] = _standard_compress
_decompressor: Callable[[], Any] = _standard_decompressor
try:
    from isal import isal_zlib

    _compress = partial(isal_zlib.compress, level=1, wbits=_GZIP)
    _decompressor = partial(isal_zlib.decompressobj, wbits=_GZIP)
except ImportError:
    pass


# --- Parts


def part_name(number: int, *, compress: bool = True) -> str:
    """The name of a part in its trace's folder; they count from 1."""
    return f"data_{number}.json.gz" if compress else f"data_{number}.json"


def parse_part_name(name: str) -> tuple[int, bool] | None:
    """The number of a part and whether it is compressed; None for the name of anything else."""
    found = _PART_NAME.fullmatch(name)
    return (int(found[1]), found[2] is not None) if found else None


def artifact_name(name: str) -> str:
    """The name of an artifact in its trace's folder."""
    return ARTIFACTS + name


def encode_part(entries: list[dict[str, Any]], *, compress: bool = True) -> bytes:
    """The bytes of a part: a JSON array without a newline, as one gzip member that names no file and no time."""
    return finish_part(to_json(entries), compress=compress)


def finish_part(data: bytes, *, compress: bool = True) -> bytes:
    """The bytes of a part whose entries are a JSON array already."""
    return _compress(data) if compress else data


def decode_part(data: bytes, *, compressed: bool, limit: int = MAX_PART_BYTES) -> list[dict[str, Any]]:
    """The entries of a part, as stored.

    Of a compressed part the first gzip member is read, as Ruby does, and at most `limit` bytes
    of what it holds. A byte order mark, NaN (as null) and lone surrogates (as text) are read too.
    Raises `DamagedArchive` for what is truncated, too large, or not a JSON array of objects, with
    the entries that are whole in `salvaged`.
    """
    damage = ""
    if compressed:
        data, damage = _decompress(data, limit)
    if not damage:
        try:
            entries: object = parse_quickly(data)
        except (ValueError, RecursionError):
            entries = None
        if isinstance(entries, list) and all(type(entry) is dict for entry in entries):
            return entries
    return _read_one_by_one(data[:MAX_SALVAGE_BYTES], damage)


def unpack_part(data: bytes, *, limit: int = MAX_PART_BYTES) -> bytes | None:
    """The JSON in a compressed part; None where it is truncated, broken or too large, of which `decode_part` tells."""
    contents, damage = _decompress(data, limit)
    return None if damage else contents


def _decompress(data: bytes, limit: int) -> tuple[bytes, str]:
    """The first gzip member's contents; or as much as there is of them, and what is wrong."""
    told = _told_size(data)
    for most in (told, limit) if 0 < told < limit else (limit,):
        reader = _decompressor()
        try:
            contents: bytes = reader.decompress(data, most + 1)
        except Exception:  # isal's own error has no base class; zlib will say what is wrong
            break
        if reader.eof and len(contents) <= limit:
            return contents, ""
    return _decompress_damaged(data, limit)


def _told_size(data: bytes) -> int:
    """How many bytes a gzip member says that it holds, where it can: memory for just those is had in half the time."""
    told = int.from_bytes(data[-4:], "little")
    return told if told <= len(data) * _MOST_DEFLATED else 0


def _decompress_damaged(data: bytes, limit: int) -> tuple[bytes, str]:
    """The same in small steps, since a step that fails gives nothing of what it had read."""
    reader = zlib.decompressobj(wbits=_GZIP)
    contents = bytearray()
    room = min(limit, MAX_SALVAGE_BYTES)
    for start in range(0, len(data), _STEP):
        piece, before = data[start : start + _STEP], reader.copy()
        try:
            contents += reader.decompress(piece, room + 1 - len(contents))
        except zlib.error as error:
            return bytes(contents) + _decompress_bytes(before, piece), f"broken gzip data ({error})"
        if len(contents) > room:
            return bytes(contents[:room]), f"more than the {limit:,} bytes that are allowed, or broken gzip data"
        if reader.eof:
            return bytes(contents), ""
    return bytes(contents), "gzip data that ends too early" if data else "no data"


def _decompress_bytes(reader: Any, piece: bytes) -> bytes:
    """What can be read before the damage in a piece, byte by byte."""
    contents = bytearray()
    try:
        for value in piece:
            contents += reader.decompress(bytes((value,)))
    except zlib.error:
        pass
    return bytes(contents)


def _read_one_by_one(data: bytes, damage: str) -> list[dict[str, Any]]:
    """The entries of a part that the fast parser refuses. Raises `DamagedArchive` for what is really damaged."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8-sig", "surrogateescape")
        damage = damage or f"bytes that are not UTF-8 ({error.reason} at byte {error.start})"
    entries: list[dict[str, Any]] = []
    try:
        for item in _array_items(text):
            if isinstance(item, dict):
                entries.append(without_surrogates(item))
            else:
                damage = damage or "an array element that is no object"
    except (ValueError, RecursionError) as error:
        damage = damage or f"bad JSON ({error})"
    if damage:
        raise DamagedArchive(f"A part holds {damage}; {len(entries)} entries could be read", salvaged=entries)
    return entries


def _array_items(text: str) -> Iterator[Any]:
    """The elements of a JSON array one by one. Raises ValueError where the text stops being one."""
    at = _expect(text, 0, "[")
    if text.startswith("]", at):
        return
    while True:
        item, at = _LENIENT.raw_decode(text, at)
        yield item
        at = _skip_space(text, at)
        if text.startswith("]", at):
            break
        at = _expect(text, at, ",")
    if _skip_space(text, at + 1) != len(text):
        raise ValueError(f"text after the end of the array: char {at + 1}")


def _expect(text: str, at: int, mark: str) -> int:
    """The place of the next token after `mark`, which must stand at `at`."""
    at = _skip_space(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark!r} where one must be: char {at}")
    return _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


# --- Records


def record_fields(record: TraceRecord) -> dict[str, Any]:
    """A record as a JSON object: the fields of the format in their order, times in ISO 8601."""
    return {
        "reference": record.reference,
        "key": record.key,
        "segments": list(record.segments),
        "state": record.state,
        "tags": list(record.tags),
        "meta": record.meta,
        "context": dict(record.context),
        "duration": record.duration,
        "counters": dict(record.counters),
        "length": record.length,
        "parts": record.parts,
        "first_at": format_time(record.first_at),
        "last_at": format_time(record.last_at),
        "retention": record.retention,
        "expires_at": format_time(record.expires_at),
        "bucket_name": record.bucket_name,
    }


def encode_record(record: TraceRecord) -> bytes:
    """The bytes of `record.json`."""
    return to_json(record_fields(record))


def decode_record(data: bytes) -> TraceRecord:
    """The record in a `record.json`. Raises `DamagedArchive`.

    Only `reference`, `key` and a time are needed; other fields that are missing or of a wrong
    type get their defaults, and fields that are not known are left out. Nothing is made safe
    here: stores refuse a folder that is not.
    """
    try:
        return _record(_object(from_json(data)))
    except ValueError as error:
        raise DamagedArchive(f"A trace's {RECORD_NAME} cannot be read: {error}") from error


def _record(fields: dict[str, Any]) -> TraceRecord:
    reference, key = (_required(fields, name) for name in ("reference", "key"))
    if len(key) > LONGEST_KEY:
        raise ValueError(f"its key has {len(key):,} characters; {LONGEST_KEY:,} are the most")
    first_at = _time(fields.get("first_at")) or reference_time(reference)
    if first_at is None:
        raise ValueError("there is no first_at, and the reference does not tell the time")
    retention = _count(fields.get("retention"), DEFAULT_RETENTION)
    state = fields.get("state")
    bucket = fields.get("bucket_name")
    return TraceRecord(
        reference=reference,
        key=key,
        segments=_texts(fields.get("segments")) or segments(key),
        state=state if isinstance(state, str) and state else RUNNING,
        tags=_texts(fields.get("tags")),
        meta=fields.get("meta"),
        context=_object(fields.get("context")),
        duration=_count(fields.get("duration")),
        counters=_counters(_object(fields.get("counters"))),
        length=_count(fields.get("length")),
        parts=_count(fields.get("parts")),
        first_at=first_at,
        last_at=_time(fields.get("last_at")) or first_at,
        retention=retention,
        expires_at=_time(fields.get("expires_at")) or _expiry(first_at, retention),
        bucket_name=bucket if isinstance(bucket, str) else None,
    )


def _required(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"there is no {name}")
    return value


def _time(value: object) -> datetime | None:
    return parse_time(value) if isinstance(value, str) else None


def _expiry(first_at: datetime, retention: int) -> datetime:
    try:
        return first_at + timedelta(days=retention)
    except OverflowError:
        return _LAST


def _count(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else default


def _texts(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _counters(stored: dict[str, Any]) -> dict[str, Any]:
    """Counters in their full shape, with whatever else was stored beside them."""
    counters = {**empty_counters(), **stored}
    for group in ("states", "types"):
        counters[group] = {**empty_counters()[group], **_object(stored.get(group))}
    return counters


# --- Cursors and paths


def encode_cursor(position: Position) -> str:
    """The cursor of the page after this position, as Ruby writes it."""
    seconds, nanos = divmod(position.first_at_ns, _NANOS)
    data = to_json([seconds, nanos, position.reference])
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str) -> Position:
    """The position that a cursor holds. Raises `InvalidCursor` for any other text."""
    try:
        return _position(cursor)
    except (ValueError, TypeError) as error:
        message = f"Not a cursor of a search: {str(cursor)[:60]!r} ({error}); take the one that the page before gave"
        raise InvalidCursor(message) from error


def _position(cursor: str) -> Position:
    if not _CURSOR.fullmatch(cursor):
        raise ValueError("it is not URL-safe base64")
    bare = cursor.rstrip("=")
    seconds, nanos, reference = from_json(base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4)))
    if type(seconds) is not int or type(nanos) is not int or type(reference) is not str:
        raise ValueError("it does not hold [seconds, nanoseconds, reference]")
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS or not 0 <= nanos < _NANOS:
        raise ValueError("its time is out of range")
    if not reference or clean_text(reference) != reference:
        raise ValueError("its reference is none")
    return Position(seconds * _NANOS + nanos, reference)
