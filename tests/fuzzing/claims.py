"""What holds of any entries, records and spans that could be read, whoever wrote them: shared by the targets."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trifle_otel import encoding
from trifle_otel.comparison import Execution, compare
from trifle_otel.executions.archiving import archive
from trifle_otel.executions.assemble import Assembler
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.otlp.writing import request_of
from trifle_otel.outline import outline
from trifle_otel.packing import pack, record_of
from trifle_otel.recording import Recording
from trifle_otel.records import Entry, Query, TraceRecord
from trifle_otel.replaying.spans import ArchivedTrace
from trifle_otel.runtime import Runtime
from trifle_otel.settings import Settings
from trifle_otel.span_data import SpanData

MOST = 300
"""Entries of which everything is checked; of more, what is slow in itself."""


def check_entries(stored: Sequence[dict[str, Any]]) -> None:
    """Entries as they were read can be shown in every way, and handed on."""
    entries = [Entry(each) for each in stored]
    for entry in entries:
        for text in (entry.message, entry.state, entry.type, entry.span or ""):
            text.encode()  # a lone surrogate could be written nowhere
        assert entry.level >= 0
        assert entry.at.tzinfo is not None
        repr(entry)
        hash(entry)
    written = encoding.to_json(list(stored))
    json.loads(written)
    assert len(encoding.decode_part(written, compressed=False)) == len(entries)
    found = outline(entries)
    assert all(found.depth(place) >= 0 for place in range(len(entries)))
    if len(entries) <= MOST:
        execution = Execution.of(entries)
        assert compare(execution, execution).first_result is None


def check_record(record: TraceRecord) -> None:
    """A record can be written, read again, indexed and found."""
    written = encoding.encode_record(record)
    json.loads(written)
    assert encoding.encode_record(encoding.decode_record(written)) == written
    index = sqlite_index()
    index.put([record])
    try:
        found = index.find(record.reference)
        assert found is not None
        texts = (record.reference, record.key, record.state)
        assert (found.reference, found.key, found.state) == tuple(map(encoding.clean_text, texts))
        assert index.search(Query(limit=5)) == [found]
    finally:
        index.delete([record.reference])


def check_replay(record: TraceRecord, entries: Sequence[dict[str, Any]]) -> None:
    """An archived trace becomes spans that OTLP takes."""
    if len(entries) <= MOST:
        request_of(list(ArchivedTrace(record, [Entry(each) for each in entries]).spans())).SerializeToString()


def check_spans(spans: Sequence[SpanData]) -> None:
    """Whatever spans become traces that can be read, indexed and replayed."""
    sheet = _Sheet()
    runtime = Runtime(Settings(), sheet)  # type: ignore[arg-type] # as much of a sink as is called
    assembler = Assembler(lambda execution: archive(execution, runtime))
    assembler.add(spans)
    assembler.sweep()
    assembler.flush()
    assert not runtime.troubles.counts, dict(runtime.troubles.counts)
    for record, entries in sheet.kept:
        assert record.length == len(entries)
        check_record(record)
        check_entries(entries)
        check_replay(record, entries)


class _Sheet:
    """A sink that packs what ends, and keeps it in memory."""

    def __init__(self) -> None:
        self.kept: list[tuple[TraceRecord, list[dict[str, Any]]]] = []

    def place(self, recording: Recording) -> str | None:
        return None

    def finish(self, recording: Recording) -> None:
        part = pack(recording, recording.take())
        entries = encoding.decode_part(part.data, compressed=part.name.endswith(".gz"))
        self.kept.append((record_of(recording, recording.state, recording.last_ns or 0), entries))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trifle-fuzzing-")


@cache
def sqlite_index() -> SQLiteIndex:
    """An empty index, the same one each time."""
    return SQLiteIndex(Path(_folder().name, "index.sqlite"))
