"""What waits for the archive, in order: a queue that holds little in memory, however long it grows.

The oldest are there as parcels. Of the rest a short line is kept, packed with others: some 25 bytes a trace. Their
records are read from disk again when their turn comes. No locks here, and no thread: see `shipper`.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections import OrderedDict, deque
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from trifle_otel.encoding import RECORD_NAME, decode_record
from trifle_otel.errors import NotFound
from trifle_otel.parcels import Parcel
from trifle_otel.spool import Spool
from trifle_otel.strict_json import from_json, to_json

KEPT: Final = 2_000  # parcels that stay in memory with their records
KEPT_BYTES: Final = 4 << 20  # of those records as JSON; as objects they take some four times as much
PACKED: Final = 256  # lines in one pack: packing takes about a fifth of a millisecond, in the job's thread
USUAL: Final = 1_000  # bytes of a record where nobody counted

FINAL, BUMP = "final", "bump"


class Stub(NamedTuple):
    """What is kept of a parcel whose record was let go of: it is in `local`, else in a note.

    `local` and `note` are paths, empty where there is none; `at` and `length` are the record's place in the note.
    """

    local: str
    size: int
    since: float
    note: str = ""
    at: int = 0
    length: int = 0
    stored: bool = False
    derived: bool = False


class Pack(NamedTuple):
    """Stubs as packed text."""

    since: float
    data: bytes


class Backlog:
    """Parcels and stubs, the oldest first, and before them what running traces have to tell.

    Attributes:
        size: bytes that wait.
    """

    def __init__(self, spool: Spool | None) -> None:
        self.size = 0
        self._spool = spool
        self._bumps: OrderedDict[Path | str, Parcel] = OrderedDict()  # one for each running trace
        self._items: deque[Parcel | Stub | Pack] = deque()
        self._loose: list[Stub] = []  # the newest, until they are enough for a pack
        self._length = 0  # of `_items` and `_loose`, in traces
        self._kept = self._weight = 0

    def __len__(self) -> int:
        return len(self._bumps) + self._length

    @property
    def oldest(self) -> float | None:
        """Since when the oldest has waited, on the monotonic clock; None where nothing waits."""
        bump, item = self._first_bump(), self._first_item()
        if bump is None or item is None:
            return bump.since if bump is not None else item.since if item is not None else None
        return min(bump.since, item.since)

    def put(self, parcel: Parcel) -> None:
        """Add a parcel. What waits of the same trace from while it ran becomes part of it.

        The job's thread calls this: an interruption leaves it undone.
        """
        counted = self.size, self._length, self._kept, self._weight
        try:
            self._put(parcel)
        except BaseException:
            self.size, self._length, self._kept, self._weight = counted
            raise

    def _put(self, parcel: Parcel) -> None:
        key = _key(parcel)
        before = self._bumps.get(key)
        if before is not None:
            self.size -= before.size
            _join(before, parcel)
        self.size += parcel.size
        if parcel.kind == BUMP:
            self._bumps[key] = parcel
            return
        if before is not None:
            del self._bumps[key]
        self._length += 1
        if _on_disk(parcel) and (self._loose or self._kept >= KEPT or self._weight >= KEPT_BYTES):
            if len(self._loose) >= PACKED:
                self._pack()
            self._loose.append(_stub(parcel))
        else:
            self._pack()
            self._count(parcel, 1)
            self._items.append(parcel)

    def take(self, most: int) -> list[Parcel | Stub]:
        """Take out the oldest; `load` makes parcels of stubs."""
        taken: list[Parcel | Stub] = []
        while len(taken) < most and (bump := self._pop_bump()) is not None:
            taken.append(bump)
        while len(taken) < most and (item := self._pop()) is not None:
            taken.append(item)
        return taken

    def give_back(self, parcels: list[Parcel]) -> None:
        """Put at the front what was taken out and could not be shipped."""
        for parcel in reversed(parcels):
            self.size += parcel.size
            if parcel.kind == BUMP:
                newer = self._bumps.get(_key(parcel))
                if newer is not None:
                    _join(parcel, newer)
                self._bumps[_key(parcel)] = newer or parcel
                self._bumps.move_to_end(_key(parcel), last=False)
            else:
                self._items.appendleft(parcel)
                self._length += 1
                self._count(parcel, 1)

    def load(self, item: Parcel | Stub) -> Parcel:
        """The parcel of a stub, its record read from disk. Raises `OSError`, `DamagedArchive` or `NotFound`."""
        if isinstance(item, Parcel):
            return item
        row = self._spool.row(item.note, item.at, item.length) if item.note and self._spool is not None else None
        if item.local:
            data = Path(item.local, RECORD_NAME).read_bytes()
        elif row is None:
            raise NotFound(f"{item.note} is not there")
        else:
            with open(item.note, "rb") as note:
                note.seek(item.at)
                data = note.read(item.length)
        return Parcel(
            decode_record(data),
            Path(item.local) if item.local else None,
            size=item.size,
            weight=len(data),
            stored=item.stored,
            row=row,
            since=item.since,
            derived=item.derived,
        )

    def take_above(self, limit: float) -> list[Parcel | Stub]:
        """Take out the oldest of what is more than so many bytes, but for the last."""
        taken: list[Parcel | Stub] = []
        while self.size > limit and len(self) > 1:
            taken += self._take_oldest()
        return taken

    def take_older(self, moment: float, most: int) -> list[Parcel | Stub]:
        """Take out what has waited since before a moment of the monotonic clock."""
        taken: list[Parcel | Stub] = []
        while len(taken) < most and (oldest := self.oldest) is not None and oldest < moment:
            taken += self._take_oldest()
        return taken

    def _take_oldest(self) -> list[Parcel | Stub]:
        bump, item = self._first_bump(), self._first_item()
        is_bump = bump is not None and (item is None or bump.since < item.since)
        oldest = self._pop_bump() if is_bump else self._pop()
        return [] if oldest is None else [oldest]

    def give_up(self, item: Parcel | Stub) -> str | None:
        """Give up what was taken out, on disk too; tells what it was: `trace`, `part` (of a running trace) or `row`.

        None where it held nothing. It may take as long as the disk does.
        """
        if isinstance(item, Parcel) and item.kind == BUMP:
            for name in item.names:
                if item.local is not None:
                    with suppress(OSError):
                        os.unlink(item.local / name)
            return "part" if item.names else None
        self._give_up_row(item)
        if item.stored:
            return "row"
        if item.local:
            shutil.rmtree(item.local, ignore_errors=True)
        return "trace"

    def _give_up_row(self, item: Parcel | Stub) -> None:
        if self._spool is None:
            return
        row = item.row if isinstance(item, Parcel) else self._spool.row(item.note, item.at, item.length)
        if row is not None:
            self._spool.indexed(row)

    def _first_bump(self) -> Parcel | None:
        return next(iter(self._bumps.values()), None)

    def _first_item(self) -> Parcel | Stub | Pack | None:
        return self._items[0] if self._items else self._loose[0] if self._loose else None

    def _pop_bump(self) -> Parcel | None:
        bump = self._first_bump()
        if bump is not None:
            del self._bumps[_key(bump)]
            self.size -= bump.size
        return bump

    def _pop(self) -> Parcel | Stub | None:
        if not self._items:
            self._items.extend(self._loose)
            self._loose = []
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, Pack):
            stubs = [Stub(*line) for line in from_json(zlib.decompress(item.data))]
            self._items.extendleft(reversed(stubs[1:]))
            item = stubs[0]
        self._length -= 1
        self.size -= item.size
        if isinstance(item, Parcel):
            self._count(item, -1)
        return item

    def _pack(self) -> None:
        if self._loose:
            data = zlib.compress(to_json([list(stub) for stub in self._loose]), 1)
            self._items.append(Pack(self._loose[0].since, data))
            self._loose = []

    def _count(self, parcel: Parcel, by: int) -> None:
        if _on_disk(parcel):
            self._kept += by
            self._weight += by * (parcel.weight or USUAL)


def without_overtaken(batch: list[Parcel]) -> list[Parcel]:
    """A batch without what running traces had to tell whose end is in it too: that goes with their end."""
    ended = {_key(parcel): parcel for parcel in batch if parcel.kind == FINAL}
    kept = []
    for parcel in batch:
        end = ended.get(_key(parcel))
        if parcel.kind == BUMP and end is not None:
            _join(parcel, end)
        else:
            kept.append(parcel)
    return kept


def _key(parcel: Parcel) -> Path | str:
    return parcel.local or parcel.record.reference


def _join(bump: Parcel, later: Parcel) -> None:
    """Make what waits of a running trace part of what came later of it."""
    later.size += bump.size
    later.since = min(bump.since, later.since)
    if later.kind != "ignored":
        later.files = {**bump.files, **later.files}
        later.names = bump.names + later.names if later.kind == BUMP else ()


def _on_disk(parcel: Parcel) -> bool:
    """Whether the disk holds all of it, its record included."""
    return parcel.kind == FINAL and not parcel.files and (parcel.local is not None or parcel.row is not None)


def _stub(parcel: Parcel) -> Stub:
    row = parcel.row
    local = "" if parcel.stored or parcel.local is None else str(parcel.local)
    where = ("", 0, 0) if row is None else (row.note.path, row.at, row.length)
    return Stub(local, parcel.size, int(parcel.since * 10) / 10, *where, parcel.stored, parcel.derived)
