"""A recording's lines as the entries, parts and record that are stored.

Here secrets are screened, once for all lines of a part, and messages that are too large become
artifacts. Pure: what is made here is written by `spool` and `delivery`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from io import SEEK_END, BytesIO
from itertools import chain, product
from typing import NamedTuple

from trifle_otel.encoding import artifact_name, clean_text, finish_part, part_name
from trifle_otel.frames import CLOSE, HEAD, OPEN, OPEN_HEAD, RAW, TEXT, Frame, Line
from trifle_otel.recording import Recording
from trifle_otel.records import CLOSED, OPENED, RESULT, SUCCESS, TraceRecord
from trifle_otel.redaction import Redactor, screened_pieces
from trifle_otel.references import new_reference, segments
from trifle_otel.shapes import Line as Entry
from trifle_otel.shapes import Media, Offloaded, Shape, encode

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND = 1_000_000_000
_SHORT = 256  # characters of a block's message that is remembered
_BYTES = [f"{byte:02x}" for byte in range(256)]


def _new_ids() -> Iterator[str]:
    """Span ids of 16 hex digits. Joined from pieces, which takes half the time of formatting a number.

    No generator: threads that come at the same time would find it running.
    """
    return map("".join, chain.from_iterable(iter(_pieces, None)))


def _pieces() -> Iterator[tuple[str, ...]]:
    """Ten random digits (no zeros alone), with each number that six more can make."""
    start = f"{int.from_bytes(os.urandom(5), 'big') | 1:010x}"
    return product([start], _BYTES, _BYTES, _BYTES)


_ids = _new_ids()


@dataclass(slots=True)
class Part:
    """One part of a trace, ready to be stored: its file's name and bytes, and the messages that lie beside it."""

    name: str
    data: bytes
    artifacts: dict[str, bytes] = field(default_factory=dict)


def pack(recording: Recording, lines: list[Line]) -> Part:
    """The next part, of `lines`; counts them into the recording. Called under `recording.packing`."""
    runtime = recording.runtime
    settings = runtime.settings
    redactor = runtime.redactor
    texts = [line[1] for line in lines]
    limit = settings.payload_size_limit
    aside: dict[str, tuple[str, bytes]] = {}
    instead: dict[int, str] = {}
    if large := _are_large(texts, limit):
        texts, instead, aside = _set_aside(lines, texts, limit, redactor)
    if redactor is not None:
        screened = _screened(recording, redactor, texts)
        large = large or (screened is not texts and _are_large(screened, limit))  # a marker may be the longer one
        texts = screened
    for at, text in instead.items():
        texts[at] = text
    entries, data, tally = _written(lines, texts)
    _count(recording, len(entries), tally)
    artifacts: dict[str, bytes] = {}
    if large:
        artifacts = _offload(recording, entries, aside, limit)
        if artifacts:
            data = encode(entries)
    recording.parts += 1
    compress = settings.gzip
    return Part(part_name(recording.parts, compress=compress), finish_part(data, compress=compress), artifacts)


def _are_large(texts: list[str], limit: int) -> bool:
    """Whether one of them may make a message above the limit: no character takes more than four bytes."""
    most = (limit - 16) // 4
    # all together are rarely as much, and a sum takes two thirds of the time
    return sum(map(len, texts)) > most and max(map(len, texts), default=0) > most


def _screened(recording: Recording, redactor: Redactor, texts: list[str]) -> list[str]:
    """Texts without their secrets; the same list where there are none.

    The tags go along with them: a pass of their own would cost a tenth of this one.
    """
    given = [*texts, *recording.tags]
    screened = redactor.texts(given)
    recording.clean_tags = screened[len(texts) :]
    return texts if screened is given else screened[: len(texts)]


def record_of(recording: Recording, state: str, now_ns: int) -> TraceRecord:
    """The record of a trace as it stands at `now_ns` (Unix time, nanoseconds)."""
    redactor = recording.runtime.redactor
    tags = list(recording.tags)
    if redactor is not None:
        clean = recording.clean_tags
        tags = clean if len(clean) == len(tags) else redactor.texts(tags)
    retention = recording.settle_retention()
    first_at = _time(recording.first_ns)
    return TraceRecord(
        reference=recording.reference,
        key=recording.key,
        segments=segments(recording.key),
        state=state,
        tags=tuple(sorted({clean_text(tag) for tag in tags})),
        meta=recording.meta,
        context=recording.context,
        duration=recording.duration,
        counters=recording.counters,
        length=recording.length,
        parts=recording.parts,
        first_at=first_at,
        last_at=max(first_at, _time(now_ns)),
        retention=retention,
        expires_at=first_at + timedelta(days=retention),
        bucket_name=recording.bucket,
    )


def _written(lines: list[Line], texts: list[str]) -> tuple[list[Shape], bytes, Tally]:
    """The entries of lines whose texts are screened, and their JSON; hostile text is made clean."""
    try:
        entries, tally = _entries(lines, texts)
        data = encode(entries)
        if b"\\" not in data or b"\\u0000" not in data:  # the one byte is found far faster, and is rarely there
            return entries, data, tally
    except ValueError:  # a lone surrogate: no encoding takes it
        pass
    clean = [(ns, text, clean_text(state), kind, frame) for ns, text, state, kind, frame in lines]
    for line in clean:
        line[4].written = clean_text(line[4].written or line[4].message + CLOSED)
    entries, tally = _entries(clean, [clean_text(text) for text in texts])
    return entries, encode(entries), tally


class Tally(NamedTuple):
    """How many entries of each type there are (the rest is text), states that are not success, the deepest level."""

    raw: int
    heads: int
    media: int
    states: list[str]
    deepest: int


def _entries(lines: list[Line], texts: list[str]) -> tuple[list[Shape], Tally]:  # noqa: C901 - calls would cost more
    """The format's entries: a block's opening is one, its closing two."""
    entries: list[Shape] = []
    add = entries.append
    raw = heads = media = deepest = at = start = end = 0
    unusual: list[str] = []
    for (ns, _, state, kind, frame), text in zip(lines, texts, strict=True):
        if not start <= ns < end:  # of another second than the line before
            at = ns // _SECOND
            start, end = at * _SECOND, (at + 1) * _SECOND
        if state is not SUCCESS:
            unusual.append(state)
        if kind is TEXT:
            level = frame.level
            if level > deepest:
                deepest = level
            add(Entry(at, text, state, TEXT, level, ns, frame.span_id or _identify(frame)))
        elif kind is CLOSE:
            span = frame.span_id or _identify(frame)
            level = frame.level - 1
            add(Entry(at, frame.written or frame.message + CLOSED, state, TEXT, level, ns, span))
            add(Entry(at, RESULT + text, SUCCESS, RAW, level, ns, span))
        elif kind is OPEN or kind is OPEN_HEAD:
            if len(text) <= _SHORT:
                opening, frame.written = _with_arrows(text)
            else:
                opening, frame.written = text + OPENED, text + CLOSED
            span = frame.span_id or ""
            if not span:
                frame.span_id = span = next(_ids)
            outer = frame.parent
            above = None if outer is None else outer.span_id or _identify(outer)
            level = frame.level - 1
            if level > deepest:  # a block may have nothing in it
                deepest = level
            head = kind is OPEN_HEAD
            heads += head
            add(Entry(at, opening, state, HEAD if head else TEXT, level, ns, span, above))
        elif kind is HEAD or kind is RAW:
            level = frame.level
            deepest = max(deepest, level)
            heads += kind is HEAD
            raw += kind is RAW
            add(Entry(at, text, state, str(kind), level, ns, frame.span_id or _identify(frame)))
        else:  # an artifact, of `kind` bytes
            media += 1
            add(Media(at, text, state, "media", int(kind), ns, frame.span_id or _identify(frame)))
    raw += len(entries) - len(lines)  # each closing has one more: its result
    return entries, Tally(raw, heads, media, unusual, deepest)


def _set_aside(
    lines: list[Line], texts: list[str], limit: int, redactor: Redactor | None
) -> tuple[list[str], dict[int, str], dict[str, tuple[str, bytes]]]:
    """Texts without those that make messages of more than `limit` bytes; by their places, what is to stand there.

    They are screened and encoded piece by piece, and are not made messages first, nor JSON: a result of any size is
    held once as text and once as bytes. By the message that stands for it, each has the name and the bytes of its
    artifact.
    """
    kept = list(texts)
    instead: dict[int, str] = {}
    aside: dict[str, tuple[str, bytes]] = {}
    for at, (line, text) in enumerate(zip(lines, texts, strict=True)):
        kind = line[3]
        if len(text) * 4 + 16 <= limit or kind not in (CLOSE, TEXT, HEAD, RAW):
            continue
        prefix = RESULT if kind is CLOSE else ""
        data = _encoded(prefix, screened_pieces(redactor, text))
        kept[at] = ""
        if len(data) > limit:
            instead[at] = name = _large_name()
            aside[prefix + name] = name, data
        else:
            instead[at] = data.decode()[len(prefix) :]
    return kept, instead, aside


def _encoded(prefix: str, pieces: Iterable[str]) -> bytes:
    """A clean text in UTF-8, behind a prefix, without another copy of it on the way."""
    stream = BytesIO(prefix.encode())
    stream.seek(0, SEEK_END)
    for piece in pieces:
        stream.write(clean_text(piece).encode())
    return stream.getvalue()


def _offload(
    recording: Recording, entries: list[Shape], aside: dict[str, tuple[str, bytes]], limit: int
) -> dict[str, bytes]:
    """Move messages of more than `limit` bytes into artifacts, as Trifle does; those that were set `aside` too."""
    artifacts: dict[str, bytes] = {}
    types: dict[str, int] = recording.counters["types"]
    for at, entry in enumerate(entries):
        message = entry.message
        if not isinstance(entry, Entry) or (message not in aside and len(message) * 4 <= limit):
            continue
        name, data = aside.get(message) or (_large_name(), message.encode())
        if len(data) > limit:
            artifacts[artifact_name(name)] = data
            types[entry.type] -= 1
            types["media"] += 1
            entries[at] = Offloaded(
                entry.at, name, entry.state, "media", entry.level, len(data), entry.ns, entry.span, entry.parent
            )
    return artifacts


def _large_name() -> str:
    return f"part_row_{new_reference().lower()}.txt"


def _count(recording: Recording, total: int, tally: Tally) -> None:
    """Count entries into the recording."""
    counters = recording.counters
    states, types = counters["states"], counters["types"]
    states["success"] += total - len(tally.states)
    for state in tally.states:
        if state in states:
            states[state] += 1
    types["raw"] += tally.raw
    types["head"] += tally.heads
    types["media"] += tally.media
    types["text"] += total - tally.raw - tally.heads - tally.media
    counters["max_level"] = max(counters["max_level"], tally.deepest)
    recording.length += total


@lru_cache(maxsize=4096)
def _with_arrows(message: str) -> tuple[str, str]:
    """A block's message as its opening and as its closing line have it.

    Nearly all of them stand in the code, and of a text that is remembered its UTF-8 is, too.
    """
    return message + OPENED, message + CLOSED


def _identify(frame: Frame) -> str:
    """An id for a block that has no span of its own."""
    frame.span_id = found = next(_ids)
    return found


def _time(ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=ns // 1000)


def _after_fork() -> None:
    global _ids  # noqa: PLW0603 - forked siblings may record into one distributed trace: their ids must differ
    _ids = _new_ids()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
