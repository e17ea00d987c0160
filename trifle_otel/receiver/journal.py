"""Requests that a receiver has accepted, on local disk until all their spans are archived.

    <journal>/<owner>/lock            held by the receiver that owns the folder, as in a spool
                      <n>.pb          a request, in protobuf
                      done-<n>.log    which spans of which requests are archived, one execution a line

An execution's spans may have come in several requests, and a request holds spans of several executions. So a request
goes when the last of its spans is done, and until then the log keeps an execution that is archived from being taken
for half of itself by the next receiver. A line is written before anything of it goes.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from operator import index
from pathlib import Path
from typing import Any, Final

from trifle_otel.plain_files import is_plain, make_folders, read_plain
from trifle_otel.spool import ASIDE, Orphan, Spool
from trifle_otel.strict_json import from_json, to_json

LOG_SIZE: Final = 1 << 20
"""Bytes after which another log is begun: a log goes when all requests that it is about are gone."""

_MOST_SPANS: Final = 1 << 20  # of a request that logs are believed about: one of 28 MiB, all of whose spans are empty
_REQUEST: Final = ".pb"
_LOG: Final = ".log"

Runs = list[list[int]]
"""Numbers, as the first and the last of each run of them."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request on disk.

    Attributes:
        size: in bytes.
        runs: numbers of its spans, from 0, that were archived before it was adopted.
        left: how many are not; None before it has been read.
        spans: how many there are, once it has been read.
    """

    number: int
    path: str
    size: int
    runs: Runs = field(default_factory=list)
    left: int | None = None
    spans: int = 0
    logs: list[_Log] = field(default_factory=list)

    @property
    def done(self) -> set[int]:
        """The same, one by one. Made anew each time: entries wait in memory, and their spans are many."""
        return _numbers(self.runs)

    def read(self) -> bytes:
        """The request. Raises `OSError`."""
        return read_plain(self.path)


class _Log:
    __slots__ = ("alive", "descriptor", "path", "size")

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.size = 0
        self.alive = 0  # requests that it is about and that are still there

    def append(self, line: bytes, fsync: bool) -> None:
        """Write a line, all of it or nothing. Raises `OSError`."""
        if os.write(self.descriptor, line) < len(line):
            os.ftruncate(self.descriptor, self.size)
            raise OSError(errno.ENOSPC, "no room for a whole line", self.path)
        if fsync:
            os.fsync(self.descriptor)
        self.size += len(line)

    def remove(self) -> None:
        os.close(self.descriptor)
        with suppress(OSError):
            os.unlink(self.path)


class Journal:
    """The journal of one receiver. `write` may be called by any thread, the rest by one.

    Args:
        root: the folder that receivers of the same archive share.
        fsync: whether what is written outlives the machine, and not the process alone.
    """

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self._spool = Spool(root, fsync=fsync)
        self._numbers = count(1)
        self._log: _Log | None = None
        self._counting = threading.Lock()  # guards `size`
        self.size = 0
        """Bytes of the requests in it."""

    def open(self) -> None:
        """Make this receiver's folder. Raises `OSError` where that is impossible."""
        self._spool.open()

    def write(self, request: bytes) -> Entry:
        """Keep a request. It is on disk when this returns. Raises `OSError`."""
        number = next(self._numbers)
        name = f"{number:010d}{_REQUEST}"
        folder = self._spool.own or self._spool.open()
        try:
            self._spool.replace(folder, name, request)
        except OSError:
            with suppress(OSError):
                os.unlink(f"{folder}/.{name}")  # what fills the disk is not left there
            raise
        self._count(len(request))
        return Entry(number, f"{folder}/{name}", len(request))

    def settle(self, done: Mapping[Entry, Iterable[int]]) -> None:
        """These spans of these requests are archived. Raises `OSError` where that cannot be noted: then they stay."""
        runs = {entry: sorted(numbers) for entry, numbers in done.items()}
        over = [entry for entry, numbers in runs.items() if entry.left is not None and entry.left <= len(numbers)]
        if len(over) < len(runs) or len(runs) > 1:
            self._note({entry: _runs(numbers) for entry, numbers in runs.items()})
        for entry, numbers in runs.items():
            if entry.left is not None:
                entry.left -= len(numbers)
        for entry in over:
            self.remove(entry)

    def remove(self, entry: Entry) -> None:
        """Nothing of this request is wanted any more."""
        with suppress(FileNotFoundError):
            os.unlink(entry.path)
        self._forget(entry)

    def set_aside(self, entry: Entry) -> str:
        """Move a request out of the way that cannot be read; gives where it is now."""
        aside = self._spool.root / ASIDE / f"{Path(self._spool.own or '').name}-{Path(entry.path).name}"
        make_folders(aside.parent)
        os.replace(entry.path, aside)
        self._forget(entry)
        return str(aside)

    def adopt(self) -> Iterator[Entry]:
        """What receivers that died have left, the oldest first, as entries of this journal."""
        for orphan in self._spool.orphans():
            try:
                yield from self._adopt(orphan)
            finally:
                orphan.close()

    def close(self) -> None:
        """Let go of the folder; what is in it is for the next receiver."""
        if self._log is not None:
            if self._log.alive:
                os.close(self._log.descriptor)
            else:
                self._log.remove()
            self._log = None
        self._spool.close()

    def _adopt(self, orphan: Orphan) -> Iterator[Entry]:
        """Move requests over, one by one: what is known to be done is noted here before each is here."""
        files = sorted(filter(is_plain, orphan.folder.iterdir()))
        logs = [path for path in files if path.suffix == _LOG]
        done = _read_logs(logs)
        folder = self._spool.own or self._spool.open()
        for path in files:
            if path.suffix != _REQUEST or path.name.startswith("."):
                continue
            number = next(self._numbers)
            entry = Entry(number, f"{folder}/{number:010d}{_REQUEST}", path.stat().st_size)
            runs = done.get(int(path.stem) if path.stem.isdecimal() else -1, [])
            entry.runs = _runs(sorted(_numbers(runs)))
            if entry.runs:
                self._note({entry: entry.runs})
            os.replace(path, entry.path)
            self._count(entry.size)
            yield entry
        for path in files:
            if path in logs or path.name.startswith("."):  # what was being written
                path.unlink(missing_ok=True)

    def _forget(self, entry: Entry) -> None:
        """A request is not here any more: logs that are about no other one go too."""
        self._count(-entry.size)
        for log in entry.logs:
            log.alive -= 1
            if not log.alive and log is not self._log:
                log.remove()
        entry.logs = []

    def _count(self, size: int) -> None:
        with self._counting:
            self.size += size

    def _note(self, done: Mapping[Entry, Runs]) -> None:
        if self._log is None or self._log.size >= LOG_SIZE:
            self._turn_log()
        log = self._log
        assert log is not None
        log.append(to_json([[entry.number, runs] for entry, runs in done.items()]) + b"\n", self._spool.fsync)
        for entry in done:
            if log not in entry.logs:
                entry.logs.append(log)
                log.alive += 1

    def _turn_log(self) -> None:
        before = self._log
        folder = self._spool.own or self._spool.open()
        self._log = _Log(f"{folder}/done-{next(self._numbers):010d}{_LOG}")
        if before is not None and not before.alive:
            before.remove()


def _runs(numbers: list[int]) -> Runs:
    """Sorted numbers as runs."""
    found: Runs = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _numbers(runs: Runs) -> set[int]:
    """The numbers in runs of any order, as far as there can be such spans: a log that is damaged may say anything."""
    found: set[int] = set()
    start = 0
    for first, last in sorted(runs):
        found.update(range(max(first, start), min(last + 1, _MOST_SPANS)))
        start = max(start, last + 1)
    return found


def _read_logs(paths: Iterable[Path]) -> dict[int, Runs]:
    """Which spans are done, for each request."""
    done: dict[int, Runs] = {}
    for path in paths:
        for line in read_plain(path).split(b"\n"):
            try:
                noted: Any = from_json(line)
                for number, runs in noted:
                    done.setdefault(number, []).extend([index(first), index(last)] for first, last in runs)
            except (ValueError, TypeError):  # the last line, of a receiver that was killed while it wrote it
                continue
    return done
