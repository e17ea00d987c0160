"""A recording's lines as the entries, parts and record that are stored.

Here secrets are screened, once for all lines of a part, and messages that are too large become
artifacts. Pure: what is made here is written by `spool` and `delivery`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any

from trifle_otel.encoding import artifact_name, clean_text, escaped_texts, from_json, join_part, part_name, to_json
from trifle_otel.recording import CLOSE, HEAD, OPEN, OPEN_HEAD, RAW, TEXT, Frame, Line, Recording
from trifle_otel.records import CLOSED, COUNTED_STATES, OPENED, RESULT, SUCCESS, TraceRecord
from trifle_otel.references import new_reference, segments

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
        texts = runtime.redactor.texts(texts)
    pieces = _pieces(recording, lines, texts)
    artifacts: dict[str, bytes] = {}
    limit = settings.payload_size_limit
    if max(map(len, texts), default=0) * 4 + 16 > limit:  # no character takes more than four bytes
        artifacts = _offload(recording, pieces, limit)
    recording.parts += 1
    compress = settings.gzip
    return Part(part_name(recording.parts, compress=compress), join_part(pieces, compress=compress), artifacts)


def record_of(recording: Recording, state: str, now_ns: int) -> TraceRecord:
    """The record of a trace as it stands at `now_ns` (Unix time, nanoseconds)."""
    redactor = recording.runtime.redactor
    tags = list(recording.tags)
    if redactor is not None:
        tags = redactor.texts(tags)
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


def _pieces(recording: Recording, lines: list[Line], texts: list[str]) -> list[bytes]:
    """The format's entries as JSON, a piece for each line: a block's opening is one entry, its closing two.

    Written out by hand: a dict for each entry and a pass over all of them cost half as much again.
    """
    pieces: list[bytes] = []
    add = pieces.append
    closed = raw = heads = media = deepest = 0
    unusual: list[str] = []
    for (ns, _, state, kind, frame), body in zip(lines, escaped_texts(texts), strict=True):
        at = ns // _SECOND
        span = frame.tail or _identify(frame)
        if state is SUCCESS:
            word = b"success"
        else:
            word = _WORDS.get(state) or escaped_texts([state])[0]
            unusual.append(state)
        level = frame.level
        if kind is CLOSE:
            closed += 1
            where = b'"level":%d,"ns":%d,"span":%b' % (level - 1, ns, span)
            message = frame.written or escaped_texts([frame.message])[0]
            add(_CLOSING % (at, message, word, where, at, body, where))
        elif kind is TEXT:
            if level > deepest:
                deepest = level
            add(_TEXT % (at, body, word, level, ns, span))
        elif kind is OPEN or kind is OPEN_HEAD:
            heads += kind is OPEN_HEAD
            frame.written = body
            outer = frame.parent
            above = b"" if outer is None else outer.tail or _identify(outer)
            add(_OPENING % (at, body, word, b"head" if kind is OPEN_HEAD else b"text", level - 1, ns, span, above))
        elif kind is HEAD or kind is RAW:
            heads += kind is HEAD
            raw += kind is RAW
            deepest = max(deepest, level)
            add(_LINE % (at, body, word, b"head" if kind is HEAD else b"raw", level, ns, span))
        else:  # an artifact, of `kind` bytes
            media += 1
            add(_MEDIA % (at, body, word, kind, ns, span))
    recording.length += len(lines) + closed
    _count(recording.counters, len(lines) + closed, unusual, (raw + closed, heads, media, deepest))
    return pieces


# An entry's keys stand in this order: Ruby's own, then ours. `span` ends the object, or `parent` does.
_TEXT = b'{"at":%d,"message":"%b","state":"%b","type":"text","level":%d,"ns":%d,"span":%b}'
_LINE = b'{"at":%d,"message":"%b","state":"%b","type":"%b","level":%d,"ns":%d,"span":%b}'
_MEDIA = b'{"at":%d,"message":"%b","state":"%b","type":"media","size":%d,"ns":%d,"span":%b}'
_OPENING = (
    b'{"at":%d,"message":"%b'
    + OPENED.encode()
    + b'","state":"%b","type":"%b","level":%d,"ns":%d,"span":%b,"parent":%b}'
)
_CLOSING = (
    b'{"at":%d,"message":"%b'
    + CLOSED.encode()
    + b'","state":"%b","type":"text",%b},{"at":%d,"message":"'
    + RESULT.encode()
    + b'%b","state":"success","type":"raw",%b}'
)
_WORDS = {state: state.encode() for state in COUNTED_STATES}


def _count(counters: dict[str, Any], total: int, unusual: list[str], found: tuple[int, int, int, int]) -> None:
    """Count `total` entries: `found` are the raw ones, heads, artifacts, and the deepest level; `unusual` states."""
    raw, heads, media, deepest = found
    states, types = counters["states"], counters["types"]
    states["success"] += total - len(unusual)
    for state in unusual:
        if state in states:
            states[state] += 1
    types["raw"] += raw
    types["head"] += heads
    types["media"] += media
    types["text"] += total - raw - heads - media
    counters["max_level"] = max(counters["max_level"], deepest)


def _offload(recording: Recording, pieces: list[bytes], limit: int) -> dict[str, bytes]:
    """Move messages of more than `limit` bytes into artifacts, as Trifle does."""
    artifacts: dict[str, bytes] = {}
    types: dict[str, int] = recording.counters["types"]
    for at, piece in enumerate(pieces):
        if len(piece) <= limit:
            continue
        entries = []
        for entry in from_json(b"[%b]" % piece):
            data = entry["message"].encode()
            if len(data) > limit and entry["type"] != "media":
                name = f"part_row_{new_reference().lower()}.txt"
                artifacts[artifact_name(name)] = data
                types[entry["type"]] -= 1
                types["media"] += 1
                ours = {key: entry[key] for key in entry if key not in _STANDARD}
                entry = {**entry, "message": name, "type": "media", "size": len(data)}
                entry = {key: entry[key] for key in (*_STANDARD, "size")} | ours
            entries.append(entry)
        pieces[at] = to_json(entries)[1:-1]
    return artifacts


_STANDARD = ("at", "message", "state", "type", "level")


def _identify(frame: Frame) -> bytes:
    """The id of a frame as JSON; made up for a block that has no span of its own."""
    span = frame.span_id
    if span is None:
        span = frame.span_id = f"{next(_ids) & 0xFFFFFFFFFFFFFFFF:016x}"
    frame.tail = found = f'"{span}"'.encode()
    return found


def _time(ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=ns // 1000)


def _new_ids() -> None:
    global _ids  # noqa: PLW0603 - forked siblings may record into one distributed trace: their ids must differ
    _ids = count(int.from_bytes(os.urandom(8), "big"))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_ids)
