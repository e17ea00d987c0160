"""What waits on local disk for the archive: of this process, or left behind by one that died.

    <spool>/<owner>/lock                    held by the process that owns the folder (the kernel lets go when it dies)
                    <n>-<reference>/        one trace: its files as the archive will have them
                    rows-<n>.json           records, one a line, that may be in the archive but not in its index
           unshippable/                     traces that the archive refuses, however often it is tried

A trace's folder is whole once its `record.json` says that the trace has ended; until then that file,
if it is there, says `running`, and `journal_<n>.json` hold what a deferred trace has recorded so far.
What a parcel and a note are is in `parcels`; who ships what is here, and when, is `shipper`'s business,
and `adoption`'s for what dead processes left.
"""

from __future__ import annotations

import errno
import heapq
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from itertools import count
from pathlib import Path

from trifle_otel.closing import close_dead, journals
from trifle_otel.encoding import RECORD_NAME, decode_record
from trifle_otel.errors import DamagedArchive
from trifle_otel.parcels import Note, Parcel, Row
from trifle_otel.plain_files import is_plain, make_folders, open_plain, read_plain, sync_folder, write_anew
from trifle_otel.records import TraceRecord
from trifle_otel.strict_json import from_json, to_json

try:
    import fcntl
except ImportError:  # Windows: a spool there is never adopted, since nothing tells whether its owner lives
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
IGNORED = "ignored.json"
ASIDE = "unshippable"  # beside the owners' folders: what the archive refuses however often it is tried
_NOTE = re.compile(r"rows-[0-9]+\.json")
NOTE_ROWS = 1000  # records in one note
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
_SORTED_AT_ONCE = 10_000
_YOUNG = 60.0  # seconds that a folder without a lock is left alone: its owner may be about to make it


class Spool:
    """This process's folder in a spool. Made when first needed; not usable in a forked child, which has its own."""

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self.root = root
        self.fsync = fsync
        self.own: str | None = None
        self._lock: int | None = None
        self._numbers = count(1)
        self._guard = threading.RLock()  # guards `own` and `_lock`, `_note`, `_notes` and what notes count
        self._note: Note | None = None
        self._notes: dict[str, Note] = {}
        self._adopting: set[Orphan] = set()

    def open(self) -> str:
        """This process's folder, made and locked. Raises `OSError` where that is impossible."""
        with self._guard:
            while self.own is None:
                name = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
                make_folders(self.root, fsync=self.fsync)
                self._lock = _begun(self.root / name)
                if self._lock is not None:
                    self.own = str(self.root / name)
                    self._sync(str(self.root))
            return self.own

    def folder(self, reference: str) -> str:
        """A new folder for a trace."""
        own = self.own or self.open()
        path = f"{own}/{next(self._numbers):08d}-{reference}"
        try:
            os.mkdir(path, 0o700)
            self._sync(own)
        except FileNotFoundError:  # the spool was removed under us: begin another
            with self._guard:
                if self.own == own:  # else another thread has begun it
                    self._let_go()
            own = self.open()
            path = f"{own}/{next(self._numbers):08d}-{reference}"
            os.mkdir(path, 0o700)
            self._sync(own)
        return path

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a file of a trace. Not whole until the trace's record says so."""
        path = f"{folder}/{name}"
        try:
            descriptor = os.open(path, _CREATE, 0o600)
        except FileNotFoundError:
            _make_folders_below(folder, path)
            descriptor = os.open(path, _CREATE, 0o600)
        try:
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, memoryview(data)[written:])
            if self.fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self.fsync:
            self._sync_names(folder, name)

    def replace(self, folder: str, name: str, data: bytes) -> None:
        """Write a file of a trace so that it appears whole."""
        self.write(folder, f".{name}", data)
        os.replace(f"{folder}/.{name}", f"{folder}/{name}")
        if self.fsync:
            self._sync_names(folder, name)

    def copy(self, folder: str, name: str, source: Path) -> int:
        """Copy a file in, whole or not at all; gives its size in bytes."""
        target = f"{folder}/{name}"
        with open(source, "rb") as reader:
            _make_folders_below(folder, target)
            try:
                with open(os.open(target, _CREATE, 0o600), "wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                    writer.flush()
                    if self.fsync:
                        os.fsync(writer.fileno())
                    size = writer.tell()
                if self.fsync:
                    self._sync_names(folder, name)
                return size
            except BaseException:
                with suppress(OSError):
                    os.unlink(target)  # what fills the disk is not left there
                raise

    def _sync(self, folder: str) -> None:
        if self.fsync:
            sync_folder(folder)

    def _sync_names(self, folder: str, name: str) -> None:
        """Sync the folders on the way to a file of a trace, its own included: some may be new."""
        path = f"{folder}/{name}"
        while len(path) > len(folder):
            path = os.path.dirname(path)
            sync_folder(path)

    def set_aside(self, folder: Path) -> Path:
        """Move a trace out of the way that cannot be shipped; gives where it is now."""
        aside = self.root / ASIDE / folder.name
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        if aside.exists():
            aside = aside.with_name(f"{aside.name}-{secrets.token_hex(4)}")
        os.replace(folder, aside)
        return aside

    def note(self, record: bytes) -> Row:
        """Note a record whose payload is about to leave the spool. Raises `OSError`."""
        with self._guard:
            note = self._note
            if note is None or note.written >= NOTE_ROWS:
                if note is not None:
                    note.finish()
                own = self.own or self.open()
                note = self._note = Note(f"{own}/rows-{next(self._numbers):08d}.json", fsync=self.fsync)
                self._notes[note.path] = note
                self._sync(own)
            return note.append(record)

    def row(self, path: str, at: int, length: int) -> Row | None:
        """The row at this place; None where its note is gone."""
        with self._guard:
            note = self._notes.get(path)
        return None if note is None else Row(note, at, length)

    def indexed(self, row: Row) -> None:
        """A record is in the index, or given up; with the last of them its note goes."""
        note = row.note
        with self._guard:
            note.done += 1
            if note.done < note.written:
                return
            if self._note is note:
                self._note = None
            self._notes.pop(note.path, None)
            note.finish()
            with suppress(OSError):
                os.unlink(note.path)

    def after_fork(self) -> None:
        """In a forked child: what the parent holds stays the parent's, what it is adopting too."""
        for orphan in list(self._adopting):
            with suppress(OSError):
                orphan.disown()
        self._adopting = set()
        self.forget()

    def forget(self) -> None:
        """Let go of the folder, in a child too, where a thread of the parent's may hold what guards it."""
        self._guard = threading.RLock()
        self._let_go()

    def _let_go(self) -> None:
        """Close the lock without unlocking it, which in a child would unlock the parent's."""
        lock, note = self._lock, self._note
        self._lock = self.own = self._note = None
        self._notes = {}
        if lock is not None:
            with suppress(OSError):
                os.close(lock)
        if note is not None:
            with suppress(OSError):
                note.finish()

    def close(self) -> None:
        """Give up the folder; what is still in it is for another process."""
        with self._guard:
            if self.own is None:
                return
            with suppress(OSError):
                if os.listdir(self.own) == [LOCK]:
                    os.unlink(f"{self.own}/{LOCK}")
                    os.rmdir(self.own)
            self._let_go()

    def orphans(self) -> Iterator[Orphan]:
        """Folders of processes that died, one after the other, each locked by us until it is closed."""
        if fcntl is None or not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if str(folder) != self.own and folder.name != ASIDE and folder.is_dir() and not folder.is_symlink():
                orphan = adopt(folder)
                if orphan is None:
                    continue
                self._adopting.add(orphan)
                try:
                    yield orphan
                finally:
                    self._adopting.discard(orphan)


class Orphan:
    """The folder of a process that died. Its lock is ours until `close`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self.owner = _owner(folder)
        self.lost = 0
        self.damaged: list[tuple[Path, DamagedArchive]] = []

    def parcels(self) -> Iterator[Parcel]:
        """What is in it, the oldest first. Traces that were running are closed as errors.

        Those without a record are counted in `lost`, those whose record cannot be read are listed in `damaged`.
        """
        for name in _in_order(self.folder):
            folder = self.folder / name
            if folder.is_dir() and not folder.is_symlink():
                try:
                    parcel = self._parcel(folder)
                except DamagedArchive as error:
                    self.damaged.append((folder, error))
                    continue
                if parcel is None:
                    self.lost += 1
                else:
                    yield parcel

    def notes(self) -> Iterator[tuple[Path, list[TraceRecord]]]:
        """Its notes, each with records that the index may not have."""
        for name in _in_order(self.folder):
            if _NOTE.fullmatch(name) and is_plain(self.folder / name):
                yield self.folder / name, _records(self.folder / name)

    def note(self, records: Iterable[bytes]) -> Path:
        """Note records whose payload is about to leave the folder, for the next one to adopt it. Raises `OSError`."""
        path = self.folder / f"rows-{secrets.randbelow(10**12):012d}.json"
        write_anew(path, b"".join(record + b"\n" for record in records))
        return path

    def close(self) -> None:
        """Let go of it, and remove it where nothing is left in it."""
        if self._lock < 0:
            return
        with suppress(OSError):
            left = [path for path in self.folder.iterdir() if path.name != LOCK]
            for path in left:
                if path.is_dir() and not any(entry.name == RECORD_NAME for entry in path.iterdir()):
                    shutil.rmtree(path)  # nothing says what it was: its process died before the first flush
            if not any(path.name != LOCK for path in self.folder.iterdir()):
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        self.disown()

    def disown(self) -> None:
        """Let go of it as it is."""
        lock, self._lock = self._lock, -1  # first: a child that is forked meanwhile must not close it once more
        if lock >= 0:
            os.close(lock)

    def _parcel(self, folder: Path) -> Parcel | None:
        try:
            record = decode_record(read_plain(folder / RECORD_NAME))
        except OSError:
            return None
        if (folder / IGNORED).exists():
            return Parcel(record, folder, kind="ignored")
        if not record.finished:
            record = close_dead(folder, record, self.owner)
        for journal in journals(folder).values():
            journal.unlink()  # a trace that ended, whose process died before it cleaned up
        (folder / f".{RECORD_NAME}").unlink(missing_ok=True)  # what it was writing when it died
        return Parcel(record, folder)


def save(spool: Spool, folder: str, files: Mapping[str, bytes], record: bytes, *, again: bool = False) -> int:
    """Write a trace's files, and then the record that makes it whole; gives the bytes written.

    `again`: an earlier record may be there, which has to stay until the new one takes its place.
    """
    size = len(record)
    for name, data in files.items():
        spool.write(folder, name, data)
        size += len(data)
    put = spool.replace if again else spool.write
    put(folder, RECORD_NAME, record)
    return size


def payload_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a trace with their names, without its record and what only the death of its process would need."""
    left_out = {RECORD_NAME, f".{RECORD_NAME}", *(path.name for path in journals(folder).values())}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in left_out:
            yield name, path


def size_of(folder: Path) -> int:
    """Bytes in a folder."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # it may go away meanwhile
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += size_of(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _in_order(folder: Path) -> Iterator[str]:
    """The names in a folder, in order; of very many, some at a time."""
    last = ""
    while True:
        with os.scandir(folder) as entries:
            names = heapq.nsmallest(_SORTED_AT_ONCE, (entry.name for entry in entries if entry.name > last))
        if not names:
            return
        yield from names
        last = names[-1]


def adopt(folder: Path) -> Orphan | None:
    """What a dead process left, locked by us until it is closed; None where its process lives, or somebody has it."""
    path = folder / LOCK
    try:
        if not path.exists():
            if datetime.now(timezone.utc).timestamp() - folder.stat().st_mtime < _YOUNG:
                return None
            descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
        else:
            descriptor = open_plain(path, os.O_RDWR)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        if not path.exists():  # another process was quicker, and is done with it
            os.close(descriptor)
            return None
    except (OSError, DamagedArchive):  # it went away while we looked, or its lock is none
        return None
    return Orphan(folder, descriptor)


def _begun(folder: Path) -> int | None:
    """Make a folder for this process, and lock it; None where somebody took it for a dead one's meanwhile."""
    folder.mkdir(mode=0o700)
    descriptor = -1
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        if _lock(descriptor) and (folder / LOCK).exists():
            os.write(descriptor, to_json({"pid": os.getpid(), "host": socket.gethostname()}))
            return descriptor
    except BaseException:  # a full disk, say: each trace tries it again
        if descriptor >= 0:
            os.close(descriptor)
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        raise
    os.close(descriptor)
    return None


def _make_folders_below(folder: str, path: str) -> None:
    """Make the folders that a file of a trace needs, but not the trace's own: the spool was removed where that is gone.

    Made anew it would have no lock, and the trace that still runs would be taken for a dead process's.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the spool was removed", folder)
    make_folders(os.path.dirname(path))


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
        owner = from_json(read_plain(folder / LOCK))
        return f" ({owner['pid']} on {owner['host']})"
    except (OSError, DamagedArchive, ValueError, TypeError, KeyError):
        return ""


def _records(path: Path) -> list[TraceRecord]:
    found = []
    for line in read_plain(path).split(b"\n"):
        with suppress(DamagedArchive):  # the last line, of a process killed while it wrote it: its payload never moved
            found.append(decode_record(line))
    return found
