"""A trace's entries out of a store: parts in their order, and what is wrong with those that are damaged.

No index is needed here. Decoding itself is `encoding`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any, BinaryIO

from trifle_otel import encoding
from trifle_otel.errors import DamagedArchive, NotFound
from trifle_otel.records import Entry, Folder
from trifle_otel.stores.contract import Store

_SMALL = 64 * 1024  # bytes
_MOST_MISSING = 1_000  # parts
MAX_TRACE_BYTES = 1 << 30
"""Unpacked, of all parts of a trace together: what comes after that is not read."""
MAX_TRACE_VALUES = 10_000_000
"""The same of objects and arrays: in memory each takes about a hundred bytes, in JSON it may have two."""
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class Entries(list[Entry]):
    """The entries of a trace, as many as could be read.

    Attributes:
        damaged: what could not be read, one error for each part that is missing or damaged.
    """

    def __init__(self, entries: Iterable[Entry] = (), damaged: Iterable[DamagedArchive] = ()) -> None:
        super().__init__(entries)
        self.damaged = list(damaged)


def read_entries(
    store: Store,
    folder: Folder,
    parts: int,
    names: list[str] | None = None,
    *,
    limit: int = encoding.MAX_PART_BYTES,
    most: int = MAX_TRACE_BYTES,
) -> Entries:
    """All entries of a trace.

    Args:
        store: where the payload is.
        folder: the trace's folder there.
        parts: how many parts there must be. More are read too: a part is stored before its record says so.
        names: what the folder holds, where the caller has asked already.
        limit: bytes of a part, packed or unpacked, above which it is damaged: a few bytes may unpack to very many.
        most: the same of all parts together.
    """
    found = part_names(store.names(folder) if names is None else names)
    entries = Entries()
    room = Room(most)
    for number in _numbers(found, parts):
        try:
            stored = _read_part(store, folder, found.get(number), limit, room)
        except (DamagedArchive, NotFound) as error:
            damage = _damage(folder, number, error)
            entries.damaged.append(damage)
            stored = room.salvaged(damage)
        entries.extend(map(Entry, stored))
    return entries


class Room:
    """How much of one trace may still be held in memory: whoever writes an archive decides what its reader unpacks."""

    def __init__(self, most: int = MAX_TRACE_BYTES) -> None:
        self.most = most
        self.bytes = most
        self.values = MAX_TRACE_VALUES
        self.brackets = (
            MAX_TRACE_VALUES  # counted in an instant, those in texts too; after so many others are told apart
        )

    def take(self, part: bytes) -> None:
        """Take a part, as JSON. Raises `DamagedArchive` where it is too much."""
        self.bytes -= len(part)
        if self.bytes < 0:
            raise DamagedArchive(f"the trace is larger than the {self.most:,} bytes that are read of one")
        self.brackets -= _brackets(part)
        if self.brackets < 0:
            self.values -= _brackets(_TEXT.sub(b"", part))
        if self.values < 0:
            raise DamagedArchive(f"the trace has more than the {MAX_TRACE_VALUES:,} values that are read of one")

    def salvaged(self, damage: DamagedArchive) -> list[dict[str, Any]]:
        """The entries of a damaged part; none where they are too much."""
        entries = list(damage.salvaged)
        try:
            self.take(encoding.to_json(entries))
        except DamagedArchive:
            return []
        return entries


def _brackets(part: bytes) -> int:
    return part.count(b"{") + part.count(b"[")


def part_names(names: Iterable[str]) -> dict[int, str]:
    """The names of parts by their numbers. Where a part is there twice, the compressed one counts."""
    found: dict[int, str] = {}
    for name in sorted(names):  # `.json` before `.json.gz`
        parsed = encoding.parse_part_name(name)
        if parsed:
            found[parsed[0]] = name
    return found


def _numbers(found: dict[int, str], parts: int) -> list[int]:
    # A record that claims billions of parts is damage itself, and so is a part of such a number: not all are reported.
    missing = (number for number in range(1, parts + 1) if number not in found)
    return sorted({*found, *islice(missing, _MOST_MISSING)})


def _read_part(store: Store, folder: Folder, name: str | None, limit: int, room: Room) -> list[dict[str, Any]]:
    if name is None:
        raise NotFound("it is not there")
    limit = max(min(limit, room.bytes), 0)
    with store.open(folder, name) as stream:
        data = read_at_most(stream, limit + 1)
    packed = name.endswith(".gz")
    plain = encoding.unpack_part(data, limit=limit) if packed else data
    if plain is None:  # it says what is wrong, and gives what can be read all the same
        return encoding.decode_part(data, compressed=True, limit=limit)
    room.take(plain)
    return encoding.decode_part(plain, compressed=False)


def read_at_most(stream: BinaryIO, limit: int) -> bytes:
    """What a stream holds, up to `limit` bytes. A small file costs no memory for a large one, which takes its time."""
    data = stream.read(min(_SMALL, limit))
    return data + stream.read(limit - len(data)) if len(data) == _SMALL else data


def _damage(folder: Folder, number: int, error: DamagedArchive | NotFound) -> DamagedArchive:
    kind = "is missing" if isinstance(error, NotFound) else "is damaged"
    salvaged = error.salvaged if isinstance(error, DamagedArchive) else ()
    damage = DamagedArchive(
        f"part {number} of trace {folder.reference} {kind}: {error}",
        reference=folder.reference,
        part=number,
        salvaged=salvaged,
    )
    damage.__cause__ = error
    return damage
