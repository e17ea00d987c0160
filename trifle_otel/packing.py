"""A recording's lines as the entries, parts and record that are stored.

Here secrets are screened, once for all lines of a part, and messages that are too large become
artifacts. Pure: what is made here is written by `spool` and `delivery`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import NamedTuple

from trifle_otel.encoding import artifact_name, clean_text, finish_part, part_name
from trifle_otel.recording import CLOSE, HEAD, OPEN, OPEN_HEAD, RAW, TEXT, Frame, Line, Recording
from trifle_otel.records import CLOSED, OPENED, RESULT, SUCCESS, TraceRecord
from trifle_otel.redaction import Redactor
from trifle_otel.references import new_reference, segments
from trifle_otel.shapes import Line as Entry
from trifle_otel.shapes import Media, Offloaded, Shape, encode

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND = 1_000_000_000
_ids = count(int.from_bytes(os.urandom(8), "big"))


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
    texts = [line[1] for line in lines]
    if runtime.redactor is not None:
        texts = _screened(recording, runtime.redactor, texts)
    entries, data, tally = _written(lines, texts)
    _count(recording, len(entries), tally)
    artifacts: dict[str, bytes] = {}
    limit = settings.payload_size_limit
    if max(map(len, texts), default=0) * 4 + 16 > limit:  # no character takes more than four bytes
        artifacts = _offload(recording, entries, limit)
        if artifacts:
            data = encode(entries)
    recording.parts += 1
    compress = settings.gzip
    return Part(part_name(recording.parts, compress=compress), finish_part(data, compress=compress), artifacts)


def _screened(recording: Recording, redactor: Redactor, texts: list[str]) -> list[str]:
    """Texts without their secrets, and the tags along with them: a pass of their own would cost a tenth of this one."""
    screened = redactor.texts([*texts, *recording.tags])
    recording.clean_tags = screened[len(texts) :]
    return screened[: len(texts)]


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
        line[4].written = clean_text(line[4].written or line[4].message)
    entries, tally = _entries(clean, [clean_text(text) for text in texts])
    return entries, encode(entries), tally


class Tally(NamedTuple):
    """How many entries of each type there are (the rest is text), states that are not success, the deepest level."""

    raw: int
    heads: int
    media: int
    states: list[str]
    deepest: int


def _entries(lines: list[Line], texts: list[str]) -> tuple[list[Shape], Tally]:
    """The format's entries: a block's opening is one, its closing two."""
    entries: list[Shape] = []
    add = entries.append
    raw = heads = media = deepest = 0
    unusual: list[str] = []
    for (ns, _, state, kind, frame), text in zip(lines, texts, strict=True):
        at = ns // _SECOND
        span = frame.span_id or _identify(frame)
        if state is not SUCCESS:
            unusual.append(state)
        if kind is CLOSE:
            level = frame.level - 1
            add(Entry(at, (frame.written or frame.message) + CLOSED, state, TEXT, level, ns, span))
            add(Entry(at, RESULT + text, SUCCESS, RAW, level, ns, span))
            raw += 1
        elif kind is OPEN:
            frame.written = text
            add(Entry(at, text + OPENED, state, TEXT, frame.level - 1, ns, span, _above(frame)))
        elif kind is TEXT:
            level = frame.level
            if level > deepest:
                deepest = level
            add(Entry(at, text, state, TEXT, level, ns, span))
        elif kind is OPEN_HEAD:
            frame.written = text
            heads += 1
            add(Entry(at, text + OPENED, state, HEAD, frame.level - 1, ns, span, _above(frame)))
        elif kind is HEAD or kind is RAW:
            heads += kind is HEAD
            raw += kind is RAW
            deepest = max(deepest, frame.level)
            add(Entry(at, text, state, str(kind), frame.level, ns, span))
        else:  # an artifact, of `kind` bytes
            media += 1
            add(Media(at, text, state, "media", int(kind), ns, span))
    return entries, Tally(raw, heads, media, unusual, deepest)


def _offload(recording: Recording, entries: list[Shape], limit: int) -> dict[str, bytes]:
    """Move messages of more than `limit` bytes into artifacts, as Trifle does."""
    artifacts: dict[str, bytes] = {}
    types: dict[str, int] = recording.counters["types"]
    for at, entry in enumerate(entries):
        if len(entry.message) * 4 <= limit or not isinstance(entry, Entry):
            continue
        data = entry.message.encode()
        if len(data) > limit:
            name = f"part_row_{new_reference().lower()}.txt"
            artifacts[artifact_name(name)] = data
            types[entry.type] -= 1
            types["media"] += 1
            entries[at] = Offloaded(
                entry.at, name, entry.state, "media", entry.level, len(data), entry.ns, entry.span, entry.parent
            )
    return artifacts


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


def _above(frame: Frame) -> str | None:
    """The id of the block around a block."""
    outer = frame.parent
    return None if outer is None else outer.span_id or _identify(outer)


def _identify(frame: Frame) -> str:
    """An id for a block that has no span of its own."""
    frame.span_id = found = f"{next(_ids) & 0xFFFFFFFFFFFFFFFF:016x}"
    return found


def _time(ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=ns // 1000)


def _new_ids() -> None:
    global _ids  # noqa: PLW0603 - forked siblings may record into one distributed trace: their ids must differ
    _ids = count(int.from_bytes(os.urandom(8), "big"))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_ids)
