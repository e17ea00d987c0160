"""What is stored beside the lines: artifacts, and messages that are too long for a page. Shown harmless, or downloaded.

Bytes that were recorded never run: they go out as a download in a sandbox, and only pictures of a few plain formats,
known by their first bytes, are shown as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trifle_otel import value_html, value_trees
from trifle_otel.errors import NotFound
from trifle_otel.pictures import picture_type
from trifle_otel.records import RESULT, TraceRecord
from trifle_otel.viewer.finding import first_match
from trifle_otel.viewer.site import Site
from trifle_otel.viewer.templates import page
from trifle_otel.viewer.texts import marked
from trifle_otel.viewer.urls import urls_of
from trifle_otel.wording import size

PART = 200_000
"""Bytes of a text that a page shows at once."""
MOST_READ = 64 * 2**20
"""Bytes into a file up to which a page shows it."""
_CHUNK = 2**16
_SNIFFED = 512
_CHARACTER = 4
"""Bytes of a character, at most."""

_SANDBOX = {"content-security-policy": "sandbox; default-src 'none'", "x-content-type-options": "nosniff"}


def artifact_page(site: Site, request: Request) -> Response:
    """A page about an artifact: the picture, the text, or how to get it. Raises `NotFound`."""
    record = site.trace(request)
    name = request.path_params["name"]
    urls = urls_of(request.scope)
    part = _part(request)
    with _opened(site, record, name) as stream:
        shown = _text_part(stream, part)
    kind = picture_type(shown.start) if part == 0 else None
    values = {
        "record": record,
        "name": name,
        "text": None if kind or not shown.is_text else marked(shown.text),
        "value": _value(shown.text) if shown.is_text and shown.whole else None,
        "image": urls.data(record.reference, name, {"show": 1}) if kind else None,
        "download": urls.data(record.reference, name),
        "before": urls.artifact(record.reference, name, {"part": part - 1}) if part else None,
        "after": urls.artifact(record.reference, name, {"part": part + 1}) if shown.more else None,
        "part": part + 1,
    }
    return page(request.scope, "artifact.html", values)


def line_page(site: Site, request: Request) -> Response:
    """A page about one line: all that it says. Raises `NotFound`."""
    record = site.trace(request)
    number, data = _line(site, record, request)
    find = request.query_params.get("q", "").strip()
    part = _part_with(data, find) if find and "part" not in request.query_params else _part(request)
    if part and part * PART >= len(data):
        raise NotFound(f"line {number} ends before that")
    shown = _decoded(data[part * PART : (part + 1) * PART + _CHARACTER], first=not part)
    urls = urls_of(request.scope)
    reference = record.reference
    values = {
        "record": record,
        "number": number,
        "size": size(len(data)),
        "text": marked(shown, find),
        "value": _value(shown.removeprefix(RESULT)) if len(data) <= PART and not find else None,
        "download": urls.text(reference, number),
        "before": urls.line(reference, number, {"q": find, "part": part - 1}) if part else None,
        "after": urls.line(reference, number, {"q": find, "part": part + 1}) if len(data) > (part + 1) * PART else None,
        "part": part + 1,
    }
    return page(request.scope, "line.html", values)


def line_text(site: Site, request: Request) -> Response:
    """The text of a line, as a download. Raises `NotFound`."""
    record = site.trace(request)
    number, data = _line(site, record, request)
    return Response(data, headers=_attachment(f"{record.reference}-line-{number}.txt"), media_type="text/plain")


def artifact_data(site: Site, request: Request) -> Response:
    """The bytes of an artifact: as a download, or with `show` as a picture, if it is one. Raises `NotFound`."""
    record = site.trace(request)
    name = request.path_params["name"]
    stream = _opened(site, record, name)
    try:
        start = stream.read(_SNIFFED)
    except BaseException:
        stream.close()
        raise
    kind = picture_type(start) if request.query_params.get("show") else None
    headers = dict(_SANDBOX) if kind else _attachment(name.rpartition("/")[2])
    return Download(start, stream, headers=headers, media_type=kind or "application/octet-stream")


def _attachment(name: str) -> dict[str, str]:
    quoted = quote(name.encode(errors="replace"), safe="")
    return {**_SANDBOX, "content-disposition": f"attachment; filename*=UTF-8''{quoted}"}


class Download(StreamingResponse):
    """`start` and what is left of `stream`, which is closed in the end, even where a client goes before it began."""

    def __init__(self, start: bytes, stream: BinaryIO, **options: Any) -> None:
        super().__init__(_chunks(start, stream), **options)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; see `StreamingResponse`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


def _chunks(start: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield start
    while chunk := stream.read(_CHUNK):
        yield chunk


@dataclass(frozen=True, slots=True)
class _Shown:
    """A part of a file."""

    start: bytes
    text: str
    is_text: bool
    whole: bool
    more: bool


def _text_part(stream: BinaryIO, part: int) -> _Shown:
    """A part of a file. Raises `NotFound` for one that is beyond its end, or too far into it."""
    offset = part * PART
    if offset > MOST_READ:
        raise NotFound("a page shows no more of it; download it")
    left = offset
    while left:  # what object stores give cannot be wound forward
        skipped = len(stream.read(min(left, _CHUNK)))
        if not skipped:
            raise NotFound("it ends before")
        left -= skipped
    data = _read(stream, PART + _CHARACTER)
    if part and not data:
        raise NotFound("it ends before")
    more = len(data) > PART
    text = _decoded(data, first=not part)
    return _Shown(data[:_SNIFFED], text, b"\0" not in data, whole=not part and not more, more=more)


def _read(stream: BinaryIO, amount: int) -> bytes:
    parts = []
    while amount and (chunk := stream.read(amount)):
        parts.append(chunk)
        amount -= len(chunk)
    return b"".join(parts)


def _decoded(data: bytes, *, first: bool) -> str:
    """A part of a text, given with some bytes after it: a character that is cut in two belongs to where it begins."""
    start = 0 if first else _within_character(data, 0)
    end = PART + _within_character(data, PART)
    return data[start:end].decode("utf-8", "backslashreplace")


def _within_character(data: bytes, at: int) -> int:
    """How many bytes belong to a character that began before."""
    count = 0
    while count < _CHARACTER - 1 and at + count < len(data) and data[at + count] & 0xC0 == 0x80:
        count += 1
    return count


def _opened(site: Site, record: TraceRecord, name: str) -> BinaryIO:
    """An artifact's bytes. Raises `NotFound` without saying where it would be."""
    try:
        return site.archive.open_artifact(record, name)
    except NotFound as error:
        raise NotFound(f"trace {record.reference} has no artifact {name!r}") from error


def _part(request: Request) -> int:
    given = request.query_params.get("part", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 7 else 0


def _part_with(data: bytes, find: str) -> int:
    """The first part of a text that has what is looked for; the first one of all where none has."""
    text = data.decode("utf-8", "backslashreplace")
    found = first_match(text, find)
    return len(text[: found.start()].encode(errors="replace")) // PART if found else 0


def _line(site: Site, record: TraceRecord, request: Request) -> tuple[int, bytes]:
    """A line's number, and all bytes of what it says. Raises `NotFound`."""
    number = request.path_params["number"]
    entries = site.shelf.open(record).entries
    if not 1 <= number <= len(entries):
        raise NotFound(f"trace {record.reference} has no line {number}")
    entry = entries[number - 1]
    if entry.offloaded:
        with _opened(site, record, entry.message) as stream:
            return number, _read(stream, MOST_READ)
    return number, entry.message.encode(errors="backslashreplace")


def _value(text: str) -> object:
    parsed = value_trees.parse(text)
    return None if parsed is None else value_html.html(parsed)
