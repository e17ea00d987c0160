"""What is on its way to the archive: a `Parcel`, and the `Note` that a record stands in while its payload moves.

Where they lie on disk is `spool`'s business, who brings them to the archive `shipper`'s.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trifle_otel.records import TraceRecord

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


class Row(NamedTuple):
    """Where in a note a record stands."""

    note: Note
    at: int
    length: int


@dataclass(slots=True)
class Parcel:
    """A trace, or what there is of it so far, on its way to the archive.

    Attributes:
        record: what the index is to have.
        local: the folder that holds its files.
        files: what memory holds of it, since it could not be written to disk.
        names: of a bump: the files that are to be shipped.
        size: what it takes of the spool, in bytes, or of memory where that holds it.
        kind: `final`, `bump` (of a trace that is running: the record stays) or `ignored` (what is in the archive is
            to be deleted).
        weight: bytes of its record as JSON; 0 where nobody knows.
        tries: how often the archive refused it.
        stored: whether the payload is in the archive, and the row alone is missing.
        row: where its record is noted, from before its payload leaves the spool.
        queued: whether it has been given to the shipper.
        derived: whether its reference was derived from what somebody else recorded, and may send again.
        since: when it began to wait, on the monotonic clock.
    """

    record: TraceRecord
    local: Path | None = None
    files: dict[str, bytes | Path] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    size: int = 0
    kind: str = "final"
    weight: int = 0
    tries: int = 0
    stored: bool = False
    row: Row | None = None
    queued: bool = False
    derived: bool = False
    since: float = field(default_factory=time.monotonic)


class Note:
    """A file of records whose payload is about to leave the spool. Gone once the index has them all."""

    __slots__ = ("descriptor", "done", "fsync", "path", "size", "written")

    def __init__(self, path: str, *, fsync: bool = False) -> None:
        self.path = path
        self.fsync = fsync
        self.descriptor = os.open(path, _APPEND, 0o600)
        self.size = 0
        self.written = 0
        self.done = 0

    def append(self, record: bytes) -> Row:
        """Add a record, whole or not at all. Raises `OSError`."""
        line = record + b"\n"
        row = Row(self, self.size, len(record))
        try:
            if os.write(self.descriptor, line) < len(line):  # half a line would spoil the one after it
                os.ftruncate(self.descriptor, self.size)
                raise OSError(errno.ENOSPC, "no room for a whole line", self.path)
            if self.fsync:
                os.fsync(self.descriptor)
            self.size += len(line)
        except BaseException:  # an interruption may come between the two
            self.size = os.fstat(self.descriptor).st_size
            raise
        self.written += 1
        return row

    def finish(self) -> None:
        """Nothing more is added to it."""
        descriptor, self.descriptor = self.descriptor, -1  # first: a child may be forked meanwhile
        if descriptor >= 0:
            os.close(descriptor)
