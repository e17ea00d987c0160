"""Which pictures pages show: a few plain formats, by their first bytes."""

from __future__ import annotations

import pytest

from trifle_otel.pictures import picture_type

PICTURES = {
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR": "image/png",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0": "image/jpeg",
    b"GIF87a\x01\0\x01\0": "image/gif",
    b"GIF89a\x01\0\x01\0": "image/gif",
    b"RIFF\x24\0\0\0WEBPVP8 ": "image/webp",
}


@pytest.mark.parametrize("start", PICTURES)
def test_pictures_are_known_by_their_first_bytes(start: bytes) -> None:
    """Each plain format has its media type, and what is cut short of its mark has none."""
    assert picture_type(start) == PICTURES[start]
    assert picture_type(start[:12]) == PICTURES[start]
    assert picture_type(start[:2]) is None


@pytest.mark.parametrize("start", [b"", b"<svg onload='x()'>", b"GIF8 is a name", b"RIFF\x24\0\0\0WAVEfmt ", b"<html>"])
def test_anything_else_is_no_picture(start: bytes) -> None:
    """What may run something, or is another format, is not shown as a picture."""
    assert picture_type(start) is None
