"""Searching the payloads of traces for a text: the lines, what is stored beside them, and artifacts where asked for.

Traces are searched by several threads, in their order: reading, unpacking and searching bytes lets others run, so two
cores are busy. Parsing does not, and is done for the parts alone that may match (`patterns`).
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from trifle_otel import encoding
from trifle_otel.errors import DamagedArchive, NotFound, StoreUnavailable, UsageError
from trifle_otel.part_lines import Line, Lines
from trifle_otel.patterns import Pattern
from trifle_otel.reading import Room, read_at_most, read_entries
from trifle_otel.records import Folder, TraceRecord
from trifle_otel.stores.contract import OutOfReach, Store

BATCH_LINES, BATCH_TRACES = 4_000, 32
"""How much one piece of work is: enough that handing it over costs nothing."""
REMOTE_THREADS = 16
LONGEST_LINE = 16 * 1024 * 1024
"""Bytes of an artifact that are taken as one line."""
BINARY = "(binary data that matches)"
_OFFLOADED = re.compile(rb'"part_row_')
_MEDIA = re.compile(rb'"media"')


class Hit(NamedTuple):
    """A line that matches.

    Attributes:
        number: of the entry in the trace, from 1; in an artifact of the line in it, 0 where it has none.
        text: the line; of a message of several lines the one that matches.
        state: of the entry.
        artifact: the artifact's name; None for an entry, be it stored beside the trace.
    """

    number: int
    text: str
    state: str = ""
    artifact: str | None = None


@dataclass(slots=True)
class Found:
    """What was found in one trace, and what could not be read of it."""

    record: TraceRecord
    hits: list[Hit] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    size: int = 0
    """Bytes that were searched, unpacked."""


def search(
    store: Store,
    records: Iterable[TraceRecord],
    pattern: Pattern,
    *,
    artifacts: bool = False,
    threads: int | None = None,
) -> Generator[Found, None, None]:
    """Search traces, and give what was found in each, in their order, as soon as it is known. Close it to stop.

    Args:
        store: where the payloads are.
        records: the traces; they are asked for as the search gets on.
        pattern: what is looked for.
        artifacts: whether to look into artifacts too.
        threads: by default one for each core, more where the store waits for a network.

    Raises `UsageError` for what is no pattern, `StoreUnavailable` where the store is out of reach.
    """
    _ = pattern.compiled
    number = threads or (REMOTE_THREADS if store.remote else _cores())
    one = _Searcher(store, pattern, artifacts=artifacts)
    return _in_order(records, one, number)


def _in_order(records: Iterable[TraceRecord], one: _Searcher, threads: int) -> Generator[Found, None, None]:
    waiting: deque[Future[list[Found]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="trifle-grep") as pool:
        try:
            for batch in _batches(records, 1 if one.store.remote else BATCH_TRACES):
                waiting.append(pool.submit(one.all_of, batch))
                if len(waiting) > 2 * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            one.stopped = True
            for future in waiting:
                future.cancel()


def _batches(records: Iterable[TraceRecord], most: int) -> Iterator[list[TraceRecord]]:
    batch: list[TraceRecord] = []
    lines = 0
    for record in records:
        batch.append(record)
        lines += record.length
        if len(batch) >= most or lines >= BATCH_LINES:
            yield batch
            batch, lines = [], 0
    if batch:
        yield batch


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


class _Searcher:
    """Searches one trace after another, in any thread."""

    def __init__(self, store: Store, pattern: Pattern, *, artifacts: bool) -> None:
        self.store = store
        self.pattern = pattern
        self.artifacts = artifacts
        self.stopped = False

    def all_of(self, records: Sequence[TraceRecord]) -> list[Found]:
        """What is found in each."""
        return [] if self.stopped else [self.one(record) for record in records]

    def one(self, record: TraceRecord) -> Found:
        """What is found in a trace."""
        found = Found(record)
        try:
            parts = self._parts(record)
            if parts is None or not self._in_parts(found, parts):
                self._in_all_entries(found)
        except OutOfReach:  # the next trace would have to wait as long
            raise
        except (StoreUnavailable, UsageError) as error:
            found.damaged.append(f"trace {record.reference} cannot be read: {error}")
        return found

    def _parts(self, record: TraceRecord) -> list[bytes] | None:
        """All parts, as JSON; None where one is missing or damaged. Of a trace that runs there may be more by now."""
        parts: list[bytes] = []
        room = Room()
        while not record.finished or len(parts) < record.parts:
            try:
                part = self._part(record.folder, len(parts) + 1)
                room.take(part or b"")
            except NotFound:
                return None if len(parts) < record.parts else parts
            except DamagedArchive:
                return None
            if part is None:
                return None
            parts.append(part)
        return parts

    def _part(self, folder: Folder, number: int) -> bytes | None:
        try:
            stream = self.store.open(folder, encoding.part_name(number))
        except NotFound:
            with self.store.open(folder, encoding.part_name(number, compress=False)) as plain:
                return read_at_most(plain, encoding.MAX_PART_BYTES)
        with stream:
            return encoding.unpack_part(read_at_most(stream, encoding.MAX_PART_BYTES))

    def _in_parts(self, found: Found, parts: Sequence[bytes]) -> bool:
        """Search the parts, and parse of those what may match. Gives whether all of that could be parsed."""
        media = _may_hold_media(found.record)
        lines = Lines(found.record, parts)
        try:
            for number, part in enumerate(parts):
                if media and self._holds_files(part):
                    self._in_entries(found, lines.all(number))
                elif self.pattern.may_be_in(part):
                    places = self.pattern.places(part)
                    self._in_entries(found, lines.all(number) if places is None else lines.at(number, places))
        except ValueError:
            found.hits, found.damaged, found.size = [], [], 0
            return False
        found.size = sum(map(len, parts)) + found.size
        return True

    def _holds_files(self, part: bytes) -> bool:
        """Whether lines of a part stand for files beside it that are to be searched."""
        return bool(_OFFLOADED.search(part) or (self.artifacts and _MEDIA.search(part)))

    def _in_all_entries(self, found: Found) -> None:
        """The long way, which takes damage as it comes."""
        entries = read_entries(self.store, found.record.folder, found.record.parts)
        found.damaged += map(str, entries.damaged)
        found.size += sum(len(entry.message) for entry in entries)
        self._in_entries(found, enumerate(entries, 1))

    def _in_entries(self, found: Found, entries: Iterable[tuple[int, Line]]) -> None:
        search = self.pattern.compiled.search
        for number, entry in entries:
            message = entry.message
            if entry.type == "media":
                self._in_media(found, number, entry)
            elif "\n" in message:
                found.hits += (Hit(number, line, entry.state) for line in self.pattern.lines(message))
            elif search(message):
                found.hits.append(Hit(number, message, entry.state))

    def _in_media(self, found: Found, number: int, entry: Line) -> None:
        if entry.offloaded:
            lines = self._in_text(found, entry.message)
            found.hits += (Hit(number, line, entry.state) for _, line in lines)
            return
        found.hits += (Hit(number, line, entry.state) for line in self.pattern.lines(entry.message))
        if self.artifacts:
            lines = self._in_text(found, entry.message)
            found.hits += (Hit(at, line, entry.state, entry.message) for at, line in lines)

    def _in_text(self, found: Found, name: str) -> list[tuple[int, str]]:
        """The lines of a file beside the parts that match, with their numbers."""
        record = found.record
        try:
            with self.store.open(record.folder, encoding.artifact_name(name)) as stream:
                return list(self._matching(found, stream))
        except (NotFound, DamagedArchive, UsageError) as error:
            found.damaged.append(f"{name} of trace {record.reference} cannot be read: {error}")
        return []

    def _matching(self, found: Found, stream: BinaryIO) -> Iterator[tuple[int, str]]:
        number, binary = 1, False
        while line := stream.readline(LONGEST_LINE):
            found.size += len(line)
            binary = binary or b"\0" in line
            if self.pattern.may_be_in_text(line):
                text = line.decode(errors="backslashreplace").rstrip("\r\n")
                lines = self.pattern.lines(text)
                if lines and binary:
                    yield 0, BINARY
                    return
                yield from ((number, each) for each in lines)
            number += line.endswith(b"\n")


def _may_hold_media(record: TraceRecord) -> bool:
    """Whether there may be files beside the lines: a trace that has ended was counted."""
    types = record.counters.get("types")
    return not (record.finished and isinstance(types, Mapping) and types.get("media") == 0)
