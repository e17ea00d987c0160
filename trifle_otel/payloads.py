"""What a parcel holds, into the store: moved in where its folder is whole, else written file by file.

Which parcels, when, and what becomes of one that is refused, is `shipper`'s business; rows are the index's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trifle_otel.adoption import take_many
from trifle_otel.encoding import RECORD_NAME, encode_record
from trifle_otel.parcels import Parcel
from trifle_otel.records import Folder
from trifle_otel.spool import Spool, payload_of

if TYPE_CHECKING:
    from trifle_otel.indexes.contract import Index
    from trifle_otel.runtime import Troubles
    from trifle_otel.stores.contract import Store


class Payloads:
    """The way of payloads from the spool, or from memory, into a store. Used by one thread, the shipper's."""

    def __init__(self, store: Store, index: Index, spool: Spool | None, troubles: Troubles) -> None:
        self.store = store
        self.index = index
        self.spool = spool
        self.troubles = troubles

    def move(self, parcels: list[Parcel]) -> dict[int, Exception | None]:
        """Move the folders of ended traces in, several at once where the store can; what became of each, by its id."""
        moving: dict[Folder, tuple[Parcel, Path]] = {}
        for parcel in parcels:
            if parcel.kind == "final" and not parcel.stored and not parcel.files and parcel.local is not None:
                # a reference of the caller's may repeat
                moving.setdefault(parcel.record.folder, (parcel, parcel.local))
        for parcel, _ in moving.values():
            self._note(parcel)
        moves = [(folder, local) for folder, (_, local) in moving.items()]
        results = take_many(self.store, moves, self.troubles)
        return {id(parcel): result for (parcel, _), result in zip(moving.values(), results, strict=True)}

    def repeated(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """Those made of spans of which more is in the archive, or in another of these. Raises what the index raises.

        Who sends spans sends them again where no answer came, and then perhaps a part of them alone.
        """
        derived = [parcel for parcel in parcels if parcel.derived and not parcel.stored]
        most: dict[str, int] = {}
        for parcel in derived:
            reference, length = parcel.record.reference, parcel.record.length
            if reference not in most:
                known = self.index.find(reference)
                most[reference] = 0 if known is None else known.length
            most[reference] = max(most[reference], length)
        return [parcel for parcel in derived if parcel.record.length < most[parcel.record.reference]]

    def remove(self, parcel: Parcel) -> None:
        """Remove what the spool has of a parcel."""
        if parcel.local is not None:
            shutil.rmtree(parcel.local, ignore_errors=True)

    def store_one(self, parcel: Parcel) -> None:
        """Store a parcel's payload; of one that the job ignored, delete what is there. Raises what the store raises."""
        record, folder = parcel.record, parcel.record.folder
        if parcel.kind == "ignored":
            self.index.delete([record.reference])
            self.store.delete(folder)
            self.remove(parcel)
        elif parcel.kind == "bump":
            self._store_bump(parcel)
        elif parcel.files or parcel.local is None:
            self._store_from_memory(parcel)
        else:
            self._note(parcel)
            self.store.take(folder, parcel.local)

    def _note(self, parcel: Parcel) -> None:
        if self.spool is not None and parcel.row is None:
            try:
                parcel.row = self.spool.note(encode_record(parcel.record))
            except OSError as error:  # a crash right now could cost an index row: `trifle-otel reindex` finds it
                self.troubles.report("the spool cannot be written", error)

    def _store_bump(self, parcel: Parcel) -> None:
        folder = parcel.record.folder
        for name in parcel.names:
            data = parcel.files.get(name)
            if data is None and parcel.local is not None:
                data = parcel.local / name
            if data is not None and not (isinstance(data, Path) and not data.exists()):
                self.store.write(folder, name, data)
        self.store.write(folder, RECORD_NAME, encode_record(parcel.record))
        for name in parcel.names:
            if parcel.local is not None:
                with suppress(OSError):
                    os.unlink(parcel.local / name)

    def _store_from_memory(self, parcel: Parcel) -> None:
        """Where the disk would not take all of it."""
        folder, local = parcel.record.folder, parcel.local
        if local is not None and local.exists():
            for name, path in payload_of(local):
                if name not in parcel.files:
                    self.store.write(folder, name, path)
        for name, data in parcel.files.items():
            self.store.write(folder, name, data)
        self.store.write(folder, RECORD_NAME, encode_record(parcel.record))
        if local is not None:
            shutil.rmtree(local, ignore_errors=True)
