"""References (ULIDs), and keys and names from callers made safe to be used as paths.

Every path that comes from outside passes through `safe_key`, `safe_name` or `safe_reference`,
whatever store it goes to. How names are joined into paths, and what the files of a trace are
called, is not decided here but in `encoding` and `records.Folder`.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from trifle_otel.interruptions import let_pass

MAX_SEGMENT_BYTES = 200
"""The longest segment of a path, in bytes of UTF-8: file systems allow 255, and temporary names need room."""
MAX_KEY_BYTES = 480
MAX_REFERENCE_BYTES = 128
MAX_NAME_BYTES = 320
MAX_PREFIX_BYTES = 64
"""With these four, `<retention>/<prefix>/<key>/<reference>/artifacts/<name>` stays within S3's 1,024 bytes.

The first three are kept here; a longer prefix is refused where a process is configured to record into it.
"""
MAX_DEPTH = 32
"""The most segments of a key or name: a record lists every prefix of its key."""

UNNAMED = "unnamed"

_REMEMBERED = 512  # characters: what comes of longer keys and names is not kept, which could take all memory

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [high + low for high in _DIGITS for low in _DIGITS]  # ten bits at a time
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.IGNORECASE | re.ASCII)
_OBJECT_ID = re.compile(r"[0-9a-f]{24}", re.IGNORECASE | re.ASCII)
_TO_BASE_32 = str.maketrans(_DIGITS, "0123456789abcdefghijklmnopqrstuv")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_RANDOM_DIGITS = bytes(ord(_DIGITS[byte & 31]) for byte in range(256))  # any byte -> a digit, all equally often
_POOL_BYTES = 1600  # for a hundred milliseconds, taken from the system in one call
_LOW_BITS = 0xFFFFF


def _digits(number: int, count: int) -> str:
    """A number in Crockford's base 32, of an even count of digits."""
    return "".join(_PAIRS[number >> shift & 1023] for shift in range((count - 2) * 5, -1, -10))


class ReferenceGenerator:
    """Makes monotonic ULIDs: each one sorts after the one before, even when the clock steps back.

    Safe to be called from any thread and after a fork: the child draws new random bits and a
    lock of its own.

    Args:
        clock_ns: Unix time in nanoseconds.
        random_bytes: as many random bytes as asked for.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock_ns = clock_ns
        self._random_bytes = random_bytes
        self._lock = threading.RLock()  # guards all that follows
        self._busy = False  # making one: a signal's handler that starts a trace may come in between
        self._ms = -1  # the time of the last reference
        self._era = -1  # the same in units of 2**20 ms, about 17 minutes,
        self._era_digits = ""  # and its digits
        self._prefix = ""  # the last reference but for its lowest 20 bits
        self._low = 0  # those bits
        self._pool = b""  # random bytes,
        self._pool_digits = ""  # the digits that they stand for,
        self._used = 0  # and how many of them are used up
        self._reseed = True
        _GENERATORS.add(self)

    def __call__(self) -> str:
        """The next reference: 26 characters."""
        now = self._clock_ns() // 1_000_000
        with self._lock:
            if self._busy:
                return _digits(now, 10) + _digits(int.from_bytes(self._random_bytes(10), "big"), 16)
            try:
                self._busy = True
                if now > self._ms or self._reseed:
                    self._begin(max(now, self._ms + 1))
                elif self._low == _LOW_BITS:
                    self._carry()
                else:
                    self._low += 1
                low = self._low
                return self._prefix + _PAIRS[low >> 10] + _PAIRS[low & 1023]
            finally:
                self._busy = False

    def _begin(self, ms: int) -> None:
        """Start a new millisecond with fresh random digits."""
        used = self._used
        if used >= len(self._pool):
            self._pool, used = self._random_bytes(_POOL_BYTES), 0
            self._pool_digits = self._pool.translate(_RANDOM_DIGITS).decode("ascii")
        if ms >> 20 != self._era:
            self._era = ms >> 20
            self._era_digits = _digits(self._era, 6)
        self._reseed = False
        self._used = used + 16
        self._ms = ms
        self._low = int.from_bytes(self._pool[used + 12 : used + 16], "big") & _LOW_BITS
        random = self._pool_digits[used : used + 12]
        self._prefix = f"{self._era_digits}{_PAIRS[ms >> 10 & 1023]}{_PAIRS[ms & 1023]}{random}"

    def _carry(self) -> None:
        """Go on by one where the lowest bits are used up."""
        high = int(self._prefix[10:].translate(_TO_BASE_32), 32) + 1
        if high >> 60:  # all ones before: the next millisecond is taken ahead of time
            self._begin(self._ms + 1)
        else:
            self._prefix = self._prefix[:10] + _digits(high, 12)
            self._low = 0

    def _after_fork(self) -> None:
        """In the child: the parent goes on with the same bits, and its lock may be held by a thread that is gone."""
        self._lock = threading.RLock()
        self._busy = False
        self._pool, self._pool_digits, self._used = b"", "", 0
        self._reseed = True


_GENERATORS: weakref.WeakSet[ReferenceGenerator] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for generator in list(_GENERATORS):
        generator._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

_next_reference = ReferenceGenerator()


def new_reference() -> str:
    """A new reference, a ULID: 26 characters that sort by time, and in the order of the calls within this process."""
    return _next_reference()


def derived_reference(ms: int, name: str) -> str:
    """The reference of something that is named for good: the same one each time, a ULID of this time.

    Args:
        ms: Unix time in milliseconds; what a ULID cannot hold is brought as near as it can.
        name: what tells it from all others.
    """
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, and is seldom needed

    number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:10], "big")
    return _digits(min(max(ms, 0), (1 << 48) - 1), 10) + _digits(number, 16)


def reference_time(reference: str) -> datetime | None:
    """When a reference was made, in UTC: a ULID says milliseconds, an ObjectId seconds; None for any other text."""
    if _ULID.fullmatch(reference):
        ms = int(reference[:10].upper().translate(_TO_BASE_32), 32)
    elif _OBJECT_ID.fullmatch(reference):
        ms = int(reference[:8], 16) * 1000
    else:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:  # ULIDs reach beyond the year 9999
        return None


def safe_key(key: object) -> str:
    """A key as it may be used in paths, records and entries: the same text when it is safe already.

    Slashes that are leading, trailing or doubled are dropped. Every other change (see
    `safe_name`) leaves a hash of the original behind, so that two keys do not become one.
    Never empty: a key without a segment is `unnamed`. Safe keys come back unchanged.
    """
    text = key if type(key) is str else _text(key)
    return _safe_key(text) if len(text) <= _REMEMBERED else _safe_key.__wrapped__(text)


def safe_name(name: object) -> str:
    """An artifact's name, folders allowed, as it may be used in paths: the same text when it is safe already.

    Control characters, backslashes and lone surrogates become `_`, as do dots that begin a
    segment; spaces around a segment and dots at its end are dropped; what is too long or too
    deep is cut. The names that a trace's own files have are not allowed for a segment. A
    segment that was changed carries a hash of its original, before the extension.
    """
    text = name if type(name) is str else _text(name)
    return _safe_name(text) if len(text) <= _REMEMBERED else _safe_name.__wrapped__(text)


def safe_reference(reference: object) -> str:
    """A reference given by a caller as one safe segment; a new reference where it is empty."""
    text = reference if type(reference) is str else _text(reference)
    if not text:
        return new_reference()
    clean = _clean_segment(text.replace("/", "_"))
    if clean == text and _size(text) <= MAX_REFERENCE_BYTES:
        return text
    return _marked(clean, text, MAX_REFERENCE_BYTES)


def segments(key: str) -> tuple[str, ...]:
    """Every prefix of a key's path: `a/b/c` gives `a`, `a/b` and `a/b/c`."""
    return _segments(key) if len(key) <= _REMEMBERED else _segments.__wrapped__(key)


@lru_cache(maxsize=1024)
def _segments(key: str) -> tuple[str, ...]:
    parts = key.split("/")
    return tuple("/".join(parts[: count + 1]) for count in range(len(parts)))


@lru_cache(maxsize=4096)
def _safe_key(key: str) -> str:
    parts = [_safe_segment(part) for part in key.split("/") if part]
    return _within("/".join(parts) or UNNAMED, key, MAX_KEY_BYTES)


@lru_cache(maxsize=1024)
def _safe_name(name: str) -> str:
    parts = [_safe_segment(part) for part in name.split("/") if part]
    path = "/".join(parts)
    if name and name.count("/") != len(parts) - 1:  # `/a` must not replace `a` in the same trace
        parts[-1:] = [_marked(parts[-1] if parts else UNNAMED, name, MAX_SEGMENT_BYTES)]
        path = "/".join(parts)
    return _within(path or UNNAMED, name, MAX_NAME_BYTES)


_HAZARDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\ud800-\udfff"  # control characters, backslash, lone surrogates
    "\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"  # line ends, what turns the direction of text, byte order marks
)
_LEADING_DOTS = re.compile(r"\A\.+")
_OWN_NAMES = re.compile(r"artifacts|record\.json|data_[0-9]+\.json(\.gz)?", re.IGNORECASE | re.ASCII)
_EXTENSION = re.compile(r"(\.[a-z0-9]{1,10}){1,2}\Z", re.IGNORECASE | re.ASCII)


def _safe_segment(segment: str) -> str:
    """One segment without hazards and within its limit; the same object when it is so already."""
    clean = _clean_segment(segment)
    if clean == segment and _size(segment) <= MAX_SEGMENT_BYTES:
        return segment
    return _marked(clean, segment, MAX_SEGMENT_BYTES)


def _clean_segment(segment: str) -> str:
    """A segment without hazards, which is another text exactly when there were some."""
    clean = _HAZARDS.sub("_", segment).strip().rstrip(". \t")
    clean = _LEADING_DOTS.sub(lambda dots: "_" * len(dots[0]), clean)
    return f"_{clean}" if _OWN_NAMES.fullmatch(clean) else clean or UNNAMED


def _marked(segment: str, original: str, limit: int) -> str:
    """A segment with the hash of its original before the extension, the whole cut to `limit` bytes."""
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, and is seldom needed

    found = _EXTENSION.search(segment, 1)
    stem, extension = (segment[: found.start()], found[0]) if found else (segment, "")
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()
    mark = f"~{digest[:10]}{extension}"
    return _cut(stem, limit - len(mark)) + mark


def _within(path: str, original: str, limit: int) -> str:
    """A path of safe segments within `limit` bytes and `MAX_DEPTH` segments."""
    parts = path.split("/")
    if len(parts) <= MAX_DEPTH and _size(path) <= limit:
        return path
    folders = _safe_folders(_cut("/".join(parts[:-1][: MAX_DEPTH - 1]), limit // 2))
    return folders + _marked(parts[-1], original, min(MAX_SEGMENT_BYTES, limit - _size(folders)))


def _safe_folders(path: str) -> str:
    """Folders that were cut anywhere, and a slash; without the last one where the cut has made it unsafe."""
    head, _, last = path.rpartition("/")
    folders = path if last and _safe_segment(last) == last else head
    return folders and folders + "/"


def _cut(text: str, size: int) -> str:
    """The beginning of a text, at most `size` bytes of UTF-8, never half a character."""
    return text if _size(text) <= size else text.encode()[:size].decode("utf-8", "ignore")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _text(value: object) -> str:
    """The text of a key that is no plain string. Never raises: a job's key may be anything."""
    if value is None:
        return ""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "surrogateescape")
    try:
        return str.__str__(str(value))
    except Exception as error:
        let_pass(error)
        return type(value).__name__
