"""Several folders taken into a store at once, for stores whose calls wait for a network.

What a store's calls do is not known here. The threads live for one batch alone: none is idle,
none is carried over a fork, and where none can be started one thread does all the work.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trifle_otel.errors import NotFound, StoreUnavailable
from trifle_otel.plain_files import is_plain
from trifle_otel.records import Folder
from trifle_otel.stores.contract import OutOfReach, Store

RECORD = "record.json"
LARGE = 1 << 20  # bytes


def take_at_once(store: Store, moves: Sequence[tuple[Folder, Path]], limit: int) -> list[Exception | None]:
    """What `Store.take_many` does, by up to `limit` calls of `store.write` at once.

    First all that is no record, large files two at once, since a store may hold as much of each in memory; then the
    records of those folders that are whole. Once a call was `OutOfReach`, what else goes to its bucket is not tried.
    """
    batch = _Batch(store, moves)
    small, large = batch.uploads()
    at_once(small, limit)
    at_once(large, min(limit, 2))
    at_once(batch.endings(), limit)
    return batch.errors


class _Batch:
    """Folders on their way into the store, and what went wrong with each.

    Threads set single items of `errors` and `down`, and of several errors any may stay: no lock is needed.
    """

    def __init__(self, store: Store, moves: Sequence[tuple[Folder, Path]]) -> None:
        self.store = store
        self.moves = moves
        self.errors: list[Exception | None] = [None] * len(moves)
        self.down: dict[str | None, OutOfReach] = {}

    def uploads(self) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
        """A task for each file that is no record: for the small ones, and for the large ones."""
        small: list[Callable[[], None]] = []
        large: list[Callable[[], None]] = []
        for at, (folder, local) in enumerate(self.moves):
            try:
                files = [file for file in _files_below(os.fspath(local), "") if file[0] != RECORD]
            except OSError as error:
                self.errors[at] = local_trouble(local, error)
                continue
            for name, size in files:
                tasks = small if size < LARGE else large
                tasks.append(partial(self._try, at, self._upload, folder, name, local))
        return small, large

    def endings(self) -> list[Callable[[], None]]:
        """A task for each folder that is whole so far."""
        return [
            partial(self._try, at, self._end, folder, local)
            for at, (folder, local) in enumerate(self.moves)
            if self.errors[at] is None
        ]

    def _try(self, at: int, step: Callable[..., None], *arguments: Any) -> None:
        bucket = self.moves[at][0].bucket
        if bucket in self.down:  # each further try would wait as long as the one that failed
            self.errors[at] = self.down[bucket]
            return
        try:
            step(*arguments)
        except OutOfReach as error:
            self.errors[at] = self.down[bucket] = error
        except Exception as error:
            self.errors[at] = error
        except BaseException as error:  # an interruption, or a driver in Rust that panics: the folder is not whole
            self.errors[at] = StoreUnavailable(f"it was broken off: {error!r}")
            raise

    def _upload(self, folder: Folder, name: str, local: Path) -> None:
        self.store.write(folder, name, local / name)

    def _end(self, folder: Folder, local: Path) -> None:
        if not local.is_dir():
            if not self.store.names(folder):
                raise NotFound(f"{local} is not there")
            return
        record = local / RECORD
        if is_plain(record):
            self.store.write(folder, RECORD, record)
        try:
            shutil.rmtree(local)
        except OSError as error:
            raise local_trouble(local, error) from error


def at_once(tasks: Sequence[Callable[[], None]], limit: int) -> None:
    """Run tasks, which raise nothing, in this thread and up to `limit - 1` others; all are done on return.

    The threads live no longer than that: none is idle, none is carried over a fork. Where none can be started, as
    at the interpreter's end, this thread does all the work.
    """
    waiting = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            task()

    threads: list[threading.Thread] = []
    for _ in range(min(limit, len(tasks)) - 1):
        # a daemon: a store that hangs must not hold up the interpreter's end
        thread = threading.Thread(target=work, name="trifle-upload", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        threads.append(thread)
    try:
        work()
    finally:
        waiting.clear()
    for thread in threads:
        thread.join()


def _files_below(path: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files below a local folder; none where it is not there."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            yield prefix + entry.name, entry.stat(follow_symlinks=False).st_size


def local_trouble(path: Path, error: OSError) -> Exception:
    """Our error for one of the local disk."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path} is not there")
    return StoreUnavailable(f"{path} cannot be used: {error.strerror}")
