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

from trifle_otel.encoding import artifact_name, clean_text, encode_part, part_name
from trifle_otel.recording import CLOSE, HEAD, OPEN, OPEN_HEAD, RAW, TEXT, Frame, Line, Recording
from trifle_otel.records import CLOSED, OPENED, RESULT, TraceRecord
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
    entries = _entries(recording, lines, texts)
    artifacts: dict[str, bytes] = {}
    limit = settings.payload_size_limit
    if max(map(len, texts), default=0) * 4 + 16 > limit:  # no character takes more than four bytes
        artifacts = _offload(recording, entries, limit)
    recording.parts += 1
    recording.length += len(entries)
    compress = settings.gzip
    return Part(part_name(recording.parts, compress=compress), encode_part(entries, compress=compress), artifacts)


def record_of(recording: Recording, state: str, now_ns: int) -> TraceRecord:
    """The record of a trace as it stands at `now_ns` (Unix time, nanoseconds)."""
    redactor = recording.runtime.redactor
    meta, context, tags = recording.meta, recording.context, list(recording.tags)
    if redactor is not None:
        meta = None if meta is None else redactor.structure(meta)
        context = redactor.structure(context)
        tags = redactor.texts(tags)
    retention = recording.settle_retention()
    first_at = _time(recording.first_ns)
    return TraceRecord(
        reference=recording.reference,
        key=recording.key,
        segments=segments(recording.key),
        state=state,
        tags=tuple(sorted({clean_text(tag) for tag in tags})),
        meta=meta,
        context=context,
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


def _entries(recording: Recording, lines: list[Line], texts: list[str]) -> list[dict[str, Any]]:
    """The format's entries: a block's opening is one, its closing two."""
    entries: list[dict[str, Any]] = []
    add = entries.append
    counters = recording.counters
    states: dict[str, int] = counters["states"]
    types: dict[str, int] = counters["types"]
    raw = heads = media = other = 0
    top = counters["max_level"]
    for (ns, _, state, kind, frame), text in zip(lines, texts, strict=True):
        at = ns // _SECOND
        level = frame.level
        span = frame.span_id or _identify(frame)
        if kind is CLOSE:
            level -= 1
            message = frame.written or frame.message
            add(
                {"at": at, "message": message + CLOSED, "state": state, "type": TEXT, "level": level, "ns": ns, "span": span}
            )
            add(
                {"at": at, "message": RESULT + text, "state": "success", "type": RAW, "level": level, "ns": ns, "span": span}
            )
            raw += 1
        elif kind is TEXT or kind is HEAD:
            add({"at": at, "message": text, "state": state, "type": kind, "level": level, "ns": ns, "span": span})
            if kind is HEAD:
                heads += 1
            if level > top:
                top = level
        elif kind is OPEN or kind is OPEN_HEAD:
            frame.written = text
            parent = frame.parent
            above = "" if parent is None else parent.span_id or _identify(parent)
            kind = TEXT if kind is OPEN else HEAD
            entry = {"at": at, "message": text + OPENED, "state": state, "type": kind, "level": level - 1, "ns": ns}
            entry["span"] = span
            entry["parent"] = above
            add(entry)
            if kind is HEAD:
                heads += 1
            if level - 1 > top:
                top = level - 1
        elif kind is RAW:
            add({"at": at, "message": text, "state": state, "type": RAW, "level": level, "ns": ns, "span": span})
            raw += 1
        else:  # an artifact, of `kind` bytes
            add({"at": at, "message": text, "state": state, "type": "media", "size": kind, "ns": ns, "span": span})
            media += 1
        if state != "success":
            other += 1
            if state in states:
                states[state] += 1
    states["success"] += len(entries) - other
    types["raw"] += raw
    types["head"] += heads
    types["media"] += media
    types["text"] += len(entries) - raw - heads - media
    counters["max_level"] = top
    return entries


def _offload(recording: Recording, entries: list[dict[str, Any]], limit: int) -> dict[str, bytes]:
    """Move messages of more than `limit` bytes into artifacts, as Trifle does."""
    artifacts: dict[str, bytes] = {}
    types: dict[str, int] = recording.counters["types"]
    for at, entry in enumerate(entries):
        message: str = entry["message"]
        if len(message) * 4 <= limit or entry["type"] == "media":
            continue
        data = clean_text(message).encode()
        if len(data) <= limit:
            continue
        name = f"part_row_{new_reference().lower()}.txt"
        artifacts[artifact_name(name)] = data
        types[entry["type"]] -= 1
        types["media"] += 1
        head = {"at": entry["at"], "message": name, "state": entry["state"], "type": "media", "level": entry["level"]}
        entries[at] = {**head, "size": len(data), **{key: entry[key] for key in entry if key not in _STANDARD}}
    return artifacts


_STANDARD = frozenset(("at", "message", "state", "type", "level"))


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
