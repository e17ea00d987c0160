"""Which pictures may be shown as such: plain formats, known by their first bytes, that hold nothing but a picture.

A page that shows them runs nothing. How it shows them is its own business.
"""

from __future__ import annotations


def picture_type(start: bytes) -> str | None:
    """The media type of the picture that begins with these bytes, of which 12 are enough; None for anything else."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if start.startswith(b"RIFF") and start[8:12] == b"WEBP" else None
