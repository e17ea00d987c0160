"""What waits on local disk for the archive: of this process, or left behind by one that died.

    <spool>/<owner>/lock                    held by the process that owns the folder (the kernel lets go when it dies)
                    <n>-<reference>/        one trace: its files as the archive will have them
                    rows-<n>.json           records, one a line, that may be in the archive but not in its index

A trace's folder is whole once its `record.json` says that the trace has ended; until then that file,
if it is there, says `running`, and `journal_<n>.json` hold what a deferred trace has recorded so far.
Who ships what is here, and when, is `shipper`'s business.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from trifle_otel.encoding import (
    RECORD_NAME,
    decode_part,
    decode_record,
    encode_part,
    encode_record,
    parse_part_name,
    part_name,
)
from trifle_otel.errors import DamagedArchive
from trifle_otel.records import ERROR, Entry, TraceRecord
from trifle_otel.strict_json import from_json, to_json

try:
    import fcntl
except ImportError:  # Windows: a spool there is never adopted, since nothing tells whether its owner lives
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
IGNORED = "ignored.json"
ASIDE = "unshippable"  # beside the owners' folders: what the archive refuses however often it is tried
_JOURNAL = re.compile(r"journal_([1-9][0-9]*)\.json(\.gz)?")
_NOTE = re.compile(r"rows-[0-9]+\.json")
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
NOTE_ROWS = 1000  # records in one note
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
_YOUNG = 60.0  # seconds that a folder without a lock is left alone: its owner may be about to make it


@dataclass(slots=True)
class Parcel:
    """A trace, or what there is of it so far, on its way to the archive.

    `local` is the folder that holds its files; where nothing could be written to disk, `files` holds them
    in memory. `size` is in bytes. `kind` is `final`, `bump` (of a trace that is running: `names` of its
    files are to be shipped, the record stays) or `ignored` (what is in the archive is to be deleted).
    """

    record: TraceRecord
    local: Path | None = None
    files: dict[str, bytes | Path] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    size: int = 0
    kind: str = "final"
    tries: int = 0
    stored: bool = False
    note: Note | None = None
    since: float = field(default_factory=time.monotonic)


class Note:
    """A file of records whose payload is about to leave the spool. Gone once the index has them all."""

    __slots__ = ("descriptor", "done", "path", "written")

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, _APPEND, 0o600)
        self.written = 0
        self.done = 0


class Spool:
    """This process's folder in a spool. Made when first needed; not usable in a forked child, which has its own."""

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self.root = root
        self.fsync = fsync
        self.own: str | None = None
        self._lock: int | None = None
        self._numbers = count(1)
        self._noting = threading.Lock()  # guards `_note` and what its notes count
        self._note: Note | None = None

    def open(self) -> str:
        """This process's folder, made and locked. Raises `OSError` where that is impossible."""
        while self.own is None:
            name = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
            folder = self.root / name
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if not _lock(descriptor) or not (folder / LOCK).exists():  # somebody took it for a dead one's
                os.close(descriptor)
                continue
            os.write(descriptor, to_json({"pid": os.getpid(), "host": socket.gethostname()}))
            self._lock = descriptor
            self.own = str(folder)
        return self.own

    def folder(self, reference: str) -> str:
        """A new folder for a trace."""
        path = f"{self.own or self.open()}/{next(self._numbers):08d}-{reference}"
        try:
            os.mkdir(path, 0o700)
        except FileNotFoundError:  # the spool was removed under us: begin another
            self.forget()
            path = f"{self.open()}/{next(self._numbers):08d}-{reference}"
            os.mkdir(path, 0o700)
        return path

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a file of a trace. Not whole until the trace's record says so."""
        path = f"{folder}/{name}"
        try:
            descriptor = os.open(path, _CREATE, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            descriptor = os.open(path, _CREATE, 0o600)
        try:
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, memoryview(data)[written:])
            if self.fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, folder: str, name: str, data: bytes) -> None:
        """Write a file of a trace so that it appears whole."""
        self.write(folder, f".{name}", data)
        os.replace(f"{folder}/.{name}", f"{folder}/{name}")

    def copy(self, folder: str, name: str, source: Path) -> int:
        """Copy a file in; gives its size in bytes."""
        target = Path(folder, name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(source, "rb") as reader, open(os.open(target, _CREATE, 0o600), "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            return writer.tell()

    def set_aside(self, folder: Path) -> Path:
        """Move a trace out of the way that cannot be shipped; gives where it is now."""
        aside = self.root / ASIDE / folder.name
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        if aside.exists():
            aside = aside.with_name(f"{aside.name}-{secrets.token_hex(4)}")
        os.replace(folder, aside)
        return aside

    def note(self, record: bytes) -> Note:
        """Note a record whose payload is about to leave the spool. Raises `OSError`."""
        with self._noting:
            note = self._note
            if note is None or note.written >= NOTE_ROWS:
                note = self._note = Note(f"{self.own or self.open()}/rows-{next(self._numbers):08d}.json")
            os.write(note.descriptor, record + b"\n")
            note.written += 1
            return note

    def indexed(self, note: Note) -> None:
        """A record of this note is in the index; with the last of them the note goes."""
        with self._noting:
            note.done += 1
            if note.done < note.written:
                return
            if self._note is note:
                self._note = None
            os.close(note.descriptor)
            with suppress(OSError):
                os.unlink(note.path)

    def forget(self) -> None:
        """In a forked child: close the inherited lock without unlocking it, which would unlock the parent's."""
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
        if self._note is not None:
            with suppress(OSError):
                os.close(self._note.descriptor)
        self._lock = self.own = self._note = None
        self._noting = threading.Lock()

    def close(self) -> None:
        """Give up the folder; what is still in it is for another process."""
        if self.own is None:
            return
        own = self.own
        with suppress(OSError):
            if os.listdir(own) == [LOCK]:
                os.unlink(f"{own}/{LOCK}")
                os.rmdir(own)
        self.forget()

    def orphans(self) -> Iterator[Orphan]:
        """Folders of processes that died, locked by us until they are closed."""
        if fcntl is None or not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if str(folder) != self.own and folder.name != ASIDE and folder.is_dir() and not folder.is_symlink():
                orphan = _adopt(folder)
                if orphan is not None:
                    yield orphan


class Orphan:
    """The folder of a process that died. Its lock is ours until `close`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self.owner = _owner(folder)
        self.lost = 0

    def parcels(self) -> list[Parcel]:
        """What is in it, the oldest first. Traces that were running are closed as errors."""
        found = []
        for folder in sorted(self.folder.iterdir()):
            if folder.is_dir() and not folder.is_symlink():
                parcel = self._parcel(folder)
                if parcel is None:
                    self.lost += 1
                else:
                    found.append(parcel)
        return found

    def notes(self) -> list[tuple[Path, list[TraceRecord]]]:
        """Its notes, each with records that the index may not have."""
        return [(path, _records(path)) for path in sorted(self.folder.iterdir()) if _NOTE.fullmatch(path.name)]

    def close(self) -> None:
        """Let go of it, and remove it where nothing is left in it."""
        with suppress(OSError):
            left = [path for path in self.folder.iterdir() if path.name != LOCK]
            for path in left:
                if path.is_dir() and not any(entry.name == RECORD_NAME for entry in path.iterdir()):
                    shutil.rmtree(path)  # nothing says what it was: its process died before the first flush
            if not any(path.name != LOCK for path in self.folder.iterdir()):
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        os.close(self._lock)

    def _parcel(self, folder: Path) -> Parcel | None:
        try:
            record = decode_record((folder / RECORD_NAME).read_bytes())
        except (OSError, DamagedArchive):
            return None
        if (folder / IGNORED).exists():
            return Parcel(record, folder, kind="ignored")
        if not record.finished:
            record = _close_dead(folder, record, self.owner)
        for journal in _journals(folder).values():
            journal.unlink()  # a trace that ended, whose process died before it cleaned up
        return Parcel(record, folder, size=size_of(folder))


def save(spool: Spool, folder: str, files: Mapping[str, bytes], record: bytes) -> int:
    """Write a trace's files, and then the record that makes it whole; gives the bytes written."""
    size = len(record)
    for name, data in files.items():
        spool.write(folder, name, data)
        size += len(data)
    spool.write(folder, RECORD_NAME, record)
    return size


def size_of(folder: Path) -> int:
    """Bytes in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_journals(folder: str) -> None:
    """Remove what was journaled of a trace that has been written in full."""
    for journal in _journals(Path(folder)).values():
        journal.unlink(missing_ok=True)


def _close_dead(folder: Path, record: TraceRecord, owner: str) -> TraceRecord:
    """Close a trace whose process died: what was journaled become its parts, and a last line says what happened."""
    for number, journal in sorted(_journals(folder).items()):
        os.replace(journal, folder / part_name(number, compress=journal.suffix == ".gz"))
    parts, more = _unrecorded(folder, record.parts)
    now = datetime.now(timezone.utc)
    message = f"Trace was not finished: its process{owner} died"
    entry: dict[str, Any] = {"at": int(now.timestamp()), "message": message, "state": ERROR, "type": "text", "level": 0}
    entry["ns"] = int(now.timestamp() * 1_000_000_000)
    if record.span_id is not None:
        entry["span"] = record.span_id
    compress = not any((folder / part_name(number, compress=False)).exists() for number in range(1, parts + 1))
    name = part_name(parts + 1, compress=compress)
    (folder / name).write_bytes(encode_part([entry], compress=compress))
    counters = _counted(record.counters, [*more, entry])
    closed = replace(record, state=ERROR, counters=counters, length=record.length + len(more) + 1, parts=parts + 1)
    temporary = folder / f".{RECORD_NAME}"
    temporary.write_bytes(encode_record(closed))
    os.replace(temporary, folder / RECORD_NAME)
    return closed


def _unrecorded(folder: Path, parts: int) -> tuple[int, list[dict[str, Any]]]:
    """Parts that were written after the record was: how many parts there are then, and their entries."""
    more: list[dict[str, Any]] = []
    while True:
        path = next((path for path in folder.iterdir() if (parse_part_name(path.name) or (0,))[0] == parts + 1), None)
        if path is None:
            return parts, more
        compressed = path.suffix == ".gz"
        try:
            entries = decode_part(path.read_bytes(), compressed=compressed)
        except DamagedArchive as error:  # its process died while it wrote it: keep what can be read
            entries = list(error.salvaged)
            path.write_bytes(encode_part(entries, compress=compressed))
        more += entries
        parts += 1


def _counted(counters: Mapping[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    states, types = dict(counters["states"]), dict(counters["types"])
    for entry in entries:
        for counted, name in ((states, entry.get("state")), (types, entry.get("type"))):
            if name in counted:
                counted[name] += 1
    level = max([counters.get("max_level", 0), *(Entry(entry).level for entry in entries)])
    return {**counters, "states": states, "types": types, "max_level": level}


def _journals(folder: Path) -> dict[int, Path]:
    found = ((_JOURNAL.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}


def _adopt(folder: Path) -> Orphan | None:
    path = folder / LOCK
    try:
        if not path.exists():
            if datetime.now(timezone.utc).timestamp() - folder.stat().st_mtime < _YOUNG:
                return None
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        else:
            descriptor = os.open(path, os.O_RDWR)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        if not path.exists():  # another process was quicker, and is done with it
            os.close(descriptor)
            return None
    except OSError:  # it went away while we looked
        return None
    return Orphan(folder, descriptor)


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _owner(folder: Path) -> str:
    try:
        owner = from_json((folder / LOCK).read_bytes())
        return f" ({owner['pid']} on {owner['host']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _records(path: Path) -> list[TraceRecord]:
    found = []
    for line in path.read_bytes().split(b"\n"):
        with suppress(DamagedArchive):  # the last line, of a process killed while it wrote it: its payload never moved
            found.append(decode_record(line))
    return found
