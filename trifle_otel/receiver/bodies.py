"""Bodies of OTLP requests on their way in: how many bytes of them may be in memory, and decompression with a limit."""

from __future__ import annotations

import zlib
from typing import Final

from trifle_otel.receiver.answers import BUSY, MALFORMED, TOO_LARGE, UNSUPPORTED, Refused

RETRY_SOON: Final = 1  # seconds

_GZIP_OR_ZLIB = 47  # window bits: either format, by its header
_COMPRESSED = (b"\x1f\x8b", b"\x78")
_PLAIN = ("", "identity")
_ENCODINGS = ("gzip", "x-gzip", "deflate")


class Budget:
    """How many bytes all requests that are being received may have. For one thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> None:
        """Raises `Refused` where it is too much."""
        if self.used + size > self.limit:
            raise Refused(BUSY, "too many requests come in at a time; send it again", RETRY_SOON)
        self.used += size

    def give_back(self, size: int) -> None:
        """What was taken is not needed any more."""
        self.used -= size


def is_compressed(content_encoding: str) -> bool:
    """Whether a body is, by the header that says so. Raises `Refused` for what we cannot undo."""
    name = content_encoding.strip().lower()
    if name not in _PLAIN and name not in _ENCODINGS:
        raise Refused(UNSUPPORTED, f"content encoding {content_encoding[:60]!r} is not taken; it is gzip or deflate")
    return name in _ENCODINGS


def looks_compressed(body: bytes) -> bool:
    """Whether a body in protobuf is compressed. A trace request in protobuf begins otherwise: with its only field."""
    return body.startswith(_COMPRESSED)


def inflated(body: bytes, limit: int) -> bytes:
    """A body that gzip or deflate made small. Raises `Refused` where it is damaged, or larger than `limit` bytes."""
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused(MALFORMED, f"the body is not compressed as it says: {error}") from error
    if len(plain) > limit:
        raise too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise Refused(MALFORMED, "the compressed body is cut, or goes on behind its end")
    return plain


def too_large(limit: int) -> Refused:
    """A body has more than `limit` bytes."""
    return Refused(TOO_LARGE, f"the body is larger than {limit:,} bytes; send fewer spans at a time")
