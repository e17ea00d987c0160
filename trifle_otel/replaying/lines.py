"""The lines of an archived trace as events of spans: when each happened, what it is, its text wherever that lies.

Which span a line is on, and which lines there is room for, is `replaying.spans`' business; what an event looks
like, `span_events`'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trifle_otel import conventions as names
from trifle_otel.errors import DamagedArchive, NotFound, StoreUnavailable
from trifle_otel.outline import outline
from trifle_otel.records import ERROR, OPENED, RESULT, Entry, TraceRecord
from trifle_otel.span_data import SpanEvent
from trifle_otel.span_events import Event, event_of, short_value, tail

Read = Callable[[str, int], bytes]
"""Reads so many bytes of an artifact, -1 for all. Raises `NotFound`, `DamagedArchive`, `StoreUnavailable`."""

SHORT: Final = 128
"""Bytes of a text that a span has in any case."""

_ALL = 1 << 62  # bytes, where nothing is shortened
_UNKNOWN = 1 << 40  # bytes of a message that lies beside, where nobody says how many
_SECOND = 1_000_000_000
_STEP = 1_000  # nanoseconds between two lines of one second, where no more is known
_LAST_NS = 2**63 - 1
_MORE = 64  # bytes that are read beyond what is shown, so that it is seen to be shortened
_NAME = 8 * names.MAX_NAME  # bytes that are read for the name of a span
_EXCEPTION = "Exception: "
_TYPE = re.compile(r"[A-Za-z_][\w.]*")


class ArchivedLines:
    """The entries of a trace, ready to be events.

    Attributes:
        outline: the blocks that they form.
        times: when each entry was recorded: Unix time in nanoseconds.
        missing: names of messages beside the trace that could not be read so far.
    """

    def __init__(self, record: TraceRecord, entries: Sequence[Entry], first_ns: int, read: Read | None) -> None:
        self.entries = entries
        self.outline = outline(entries)
        self.times = _times(entries, first_ns)
        self.missing: list[str] = []
        self._reference = record.reference
        self._read = read

    def line(self, place: int) -> Any:
        """An entry as `span_events` takes lines, but for its text."""
        entry = self.entries[place]
        return self.times[place], "", entry.state, self._kind(place, entry), None

    def size(self, place: int) -> int:
        """Bytes that an entry's text takes on a span, at the most."""
        entry = self.entries[place]
        if self._lies_beside(entry):
            return _UNKNOWN if entry.size is None else min(max(entry.size, 0), _UNKNOWN)
        size = _size(entry.message)
        return size if entry.type != "media" else 2 * size + len(self._reference) + 16

    def event(self, place: int, most: int | None) -> Event:
        """The event of an entry; its values have at most so many bytes."""
        entry = self.entries[place]
        if most is None and self._lies_beside(entry):
            most = self.size(place)  # whatever lies there: room was made for that many
        text, size = self._text(entry, most)
        line = self.line(place)
        if line[3] == "raw" and text.startswith(RESULT):
            text, size = text[len(RESULT) :], size - _size(RESULT)
        event = event_of(place + 1, line, text, self._reference, _ALL if most is None else most)
        for name in (names.TEXT_SIZE, names.RESULT_SIZE):
            if name in event[1]:
                event[1][name] = size  # of all of it, of which only the beginning may have been read
        return event

    def opening(self, place: int) -> str:
        """The message of a block, or its beginning, given the entry that opens it."""
        return self._text(self.entries[place], _NAME)[0].removesuffix(OPENED)

    def failure(self, places: Sequence[int]) -> Failure | None:
        """The exception that left a trace, looked for among the entries of the trace itself."""
        for at in range(len(places) - 1, -1, -1):
            entry = self.entries[places[at]]
            if entry.state == ERROR and entry.message.startswith(_EXCEPTION):
                after = self.entries[places[at + 1]] if at + 1 < len(places) else None
                stack = "" if after is None or after.type != "raw" else after.message
                return _failure(self.times[places[at]], entry.message[len(_EXCEPTION) :], stack)
        return None

    def _kind(self, place: int, entry: Entry) -> str | int:
        owner = self.outline.owners[place]
        if entry.type == "raw" or (owner is not None and owner.result == place):
            return "raw"
        if entry.type == "media":
            return "text" if entry.offloaded else max(entry.size or 0, 0)
        return "head" if entry.type == "head" else "text"

    def _lies_beside(self, entry: Entry) -> bool:
        return self._read is not None and entry.offloaded

    def _text(self, entry: Entry, most: int | None) -> tuple[str, int]:
        """A message, or a little more than `most` bytes of its beginning, and how many bytes all of it has."""
        if self._read is not None and self._lies_beside(entry):
            try:
                data = self._read(entry.message, -1 if most is None else most + _MORE)
            except (DamagedArchive, NotFound, StoreUnavailable):
                self.missing.append(entry.message)
            else:
                return data.decode("utf-8", "replace"), max(entry.size or 0, len(data))
        return entry.message, _size(entry.message)


@dataclass(slots=True)
class Failure:
    """The exception that left a trace: when, its message, its traceback and its type, "" where they are not known."""

    ns: int
    message: str
    stack: str
    kind: str

    def cut(self, most: int) -> None:
        """Shorten its texts to so many bytes each."""
        self.message, self.stack = short_value(self.message, most), tail(self.stack, most)

    @property
    def size(self) -> int:
        """Bytes that it takes as an event."""
        return _size(self.message) + _size(self.stack) + _size(self.kind) + 120

    def event(self) -> SpanEvent:
        """It as OpenTelemetry's event."""
        values = {
            names.EXCEPTION_TYPE: self.kind,
            names.EXCEPTION_MESSAGE: self.message,
            names.EXCEPTION_STACKTRACE: self.stack,
        }
        return SpanEvent(names.EXCEPTION_EVENT, self.ns, {name: value for name, value in values.items() if value})


def _failure(ns: int, message: str, stack: str) -> Failure:
    found = Failure(ns, message, "" if stack.startswith(RESULT) else stack, "")
    found.kind = short_value(_type_in(found.stack, message), SHORT)
    found.cut(names.MAX_VALUE)
    return found


def _type_in(stack: str, message: str) -> str:
    """The exception's class, which the traceback names before the message; notes may follow that."""
    first = message.partition("\n")[0]
    for line in reversed(stack.splitlines()):
        kind = line.removesuffix(f": {first}")
        if (kind != line or line.rpartition(".")[2] == first) and _TYPE.fullmatch(kind):
            return kind
    return ""


def _times(entries: Sequence[Entry], first_ns: int) -> list[int]:
    """When each entry was recorded.

    Where the second alone is known, none is before the trace's beginning, and the lines of one second follow each
    other in steps of a microsecond, so that viewers keep their order.
    """
    times = []
    before = -1
    for entry in entries:
        ns = entry.ns
        if ns is None:
            at = entry.stored.get("at")
            second = at if isinstance(at, int) else first_ns // _SECOND
            ns = max(second * _SECOND, first_ns) if second == first_ns // _SECOND else second * _SECOND
            if before // _SECOND == second and before >= ns:
                ns = min(before + _STEP, second * _SECOND + _SECOND - 1)
            before = ns
        times.append(min(max(ns, 0), _LAST_NS))
    return times


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "backslashreplace"))
