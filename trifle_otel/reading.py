"""A trace's entries out of a store: parts in their order, and what is wrong with those that are damaged.

No index is needed here. Decoding itself is `encoding`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

from trifle_otel import encoding
from trifle_otel.errors import DamagedArchive, NotFound
from trifle_otel.records import Entry, Folder
from trifle_otel.stores.contract import Store

_SMALL = 64 * 1024  # bytes


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
) -> Entries:
    """All entries of a trace.

    Args:
        store: where the payload is.
        folder: the trace's folder there.
        parts: how many parts there must be. More are read too: a part is stored before its record says so.
        names: what the folder holds, where the caller has asked already.
        limit: bytes of a part, packed or unpacked, above which it is damaged: a few bytes may unpack to very many.
    """
    found = part_names(store.names(folder) if names is None else names)
    entries = Entries()
    for number in _numbers(found, parts):
        try:
            stored = _read_part(store, folder, found.get(number), limit)
        except (DamagedArchive, NotFound) as error:
            damage = _damage(folder, number, error)
            entries.damaged.append(damage)
            stored = list(damage.salvaged)
        entries.extend(map(Entry, stored))
    return entries


def part_names(names: Iterable[str]) -> dict[int, str]:
    """The names of parts by their numbers. Where a part is there twice, the compressed one counts."""
    found: dict[int, str] = {}
    for name in sorted(names):  # `.json` before `.json.gz`
        parsed = encoding.parse_part_name(name)
        if parsed:
            found[parsed[0]] = name
    return found


def _numbers(found: dict[int, str], parts: int) -> list[int]:
    # A record that claims billions of parts is damage itself: what is there bounds what is reported.
    wanted = range(1, min(parts, max(found, default=0) + 1_000) + 1)
    return sorted({*found, *wanted})


def _read_part(store: Store, folder: Folder, name: str | None, limit: int) -> list[dict[str, Any]]:
    if name is None:
        raise NotFound("it is not there")
    with store.open(folder, name) as stream:
        data = read_at_most(stream, limit + 1)
    return encoding.decode_part(data, compressed=name.endswith(".gz"), limit=limit)


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
