"""The lines of a trace's parts, as much of them as is needed: all of a part, or those at some places in its bytes.

Parts are JSON that was unpacked and not parsed. What is wrong with them is not told here: `ValueError` says that the
long way, by `encoding.decode_part`, has to be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Protocol, TypeVar

from trifle_otel import encoding
from trifle_otel.errors import DamagedArchive
from trifle_otel.records import Entry, TraceRecord

DENSE = 8
"""Where more than one of so many lines is asked for, parsing all of them is quicker."""
_T = TypeVar("_T")
_FIRST, _BETWEEN, _LAST = b'[{"at":', b',{"at":', b"}]"


class Line(Protocol):
    """What is needed of an entry."""

    @property
    def message(self) -> str:
        """As of `Entry`."""
        ...

    @property
    def state(self) -> str:
        """As of `Entry`."""
        ...

    @property
    def type(self) -> str:
        """As of `Entry`."""
        ...

    @property
    def offloaded(self) -> bool:
        """As of `Entry`."""
        ...


class Lines:
    """The lines of a trace, with their numbers from 1.

    Args:
        record: of the trace.
        parts: all that there are, in their order.
    """

    def __init__(self, record: TraceRecord, parts: Sequence[bytes]) -> None:
        self.record = record
        self.parts = parts
        self._before = [0]  # lines before each part, as far as they were counted

    def all(self, number: int) -> Iterator[tuple[int, Line]]:
        """All lines of a part. Raises `ValueError`."""
        return enumerate(decode(self.parts[number]), self._start(number) + 1)

    def at(self, number: int, places: Sequence[int]) -> Iterator[tuple[int, Line]]:
        """The lines of a part that have something at these places of its bytes, which increase. Raises `ValueError`.

        More than those are given where the others cannot be told apart for certain, or where that is quicker.
        """
        if self._uniform and len(places) * DENSE < self._counts[number]:
            return self._at(number, places)
        return self.all(number)

    def _at(self, number: int, places: Sequence[int]) -> Iterator[tuple[int, Line]]:
        part, line = self.parts[number], self._start(number) + 1
        counted = end = 0
        for place in places:
            if place < end:  # in the line that was given last
                continue
            start = max(part.rfind(_BETWEEN, counted, place + len(_BETWEEN) - 1), 0) + 1
            line += part.count(_BETWEEN, counted, start + len(_BETWEEN) - 1)
            counted = start
            end = part.find(_BETWEEN, start)
            end = len(part) - 1 if end < 0 else end
            yield line, decode_one(part[start:end])

    def _start(self, number: int) -> int:
        if self._uniform:
            return sum(self._counts[:number])
        while len(self._before) <= number:
            self._before.append(self._before[-1] + count(self.parts[len(self._before) - 1]))
        return self._before[number]

    @cached_property
    def _counts(self) -> list[int]:
        """How many lines each part seems to have."""
        return [part.count(_BETWEEN) + 1 for part in self.parts]

    @cached_property
    def _uniform(self) -> bool:
        """Whether what separates lines does nothing else here: then there are as many as the record says.

        Within a text its quotation marks would be escaped; in others' fields that hold lists it may be found.
        """
        return (
            self.record.finished
            and all(part.startswith(_FIRST) and part.endswith(_LAST) for part in self.parts)
            and sum(self._counts) == self.record.length
        )


def _decode_plainly(part: bytes) -> Sequence[Line]:
    """The entries of a part. Raises `ValueError` for what is not quite one."""
    try:
        return list(map(Entry, encoding.decode_part(part, compressed=False)))
    except DamagedArchive as error:
        raise ValueError(str(error)) from error


def _decode_one_plainly(entry: bytes) -> Line:
    return _decode_plainly(b"[%s]" % entry)[0]


def _count_plainly(part: bytes) -> int:
    return len(_decode_plainly(part))


decode: Callable[[bytes], Sequence[Line]] = _decode_plainly
decode_one: Callable[[bytes], Line] = _decode_one_plainly
count: Callable[[bytes], int] = _count_plainly

try:
    import msgspec
except ImportError:
    pass
else:

    class _Peek(msgspec.Struct, gc=False):
        """What is needed of an entry; the rest is passed over, which takes a third of the time."""

        message: str
        state: str = ""
        type: str = "text"
        level: int | None = None

        @property
        def offloaded(self) -> bool:
            """As of `Entry`."""
            return self.type == "media" and self.level is not None and self.message.startswith("part_row_")

    def _decoder(kind: type[_T]) -> Callable[[bytes], _T]:
        """What decodes JSON of that kind, and raises `ValueError` for what is nested too deeply as well."""
        plainly = msgspec.json.Decoder(kind).decode

        def decoded(data: bytes) -> _T:
            try:
                return plainly(data)
            except RecursionError as error:
                raise ValueError("JSON is nested too deeply") from error

        return decoded

    _raw = _decoder(list[msgspec.Raw])

    def _count_raw(part: bytes) -> int:
        return len(_raw(part))

    decode, decode_one, count = _decoder(list[_Peek]), _decoder(_Peek), _count_raw
