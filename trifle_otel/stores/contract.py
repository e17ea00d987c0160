"""The contract of a payload store.

A store keeps named bytes in the folders of traces (`records.Folder`). It knows nothing of
parts, records or indexes; their names and bytes come from `encoding`. Its tests are
`trifle_otel.testing.StoreContract`: a store of your own is one that passes them, and `docs/drivers.md`
has an example.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from trifle_otel.errors import NotFound, StoreUnavailable, UsageError
from trifle_otel.plain_files import is_plain
from trifle_otel.records import Folder

ARTIFACTS = "artifacts"
RETENTION = re.compile(r"0|[1-9][0-9]{0,8}")
"""A folder of a retention class: a whole number of days."""
OF_A_TRACE = re.compile(r"data_[0-9]+\.json(\.gz)?|record\.json")
"""A file by which the folder of a trace is known among others."""


class OutOfReach(StoreUnavailable):
    """The store did not answer: another try would wait as long, so the rest of a batch is not tried."""


def checked_path(folder: Folder) -> str:
    """`<retention>/<key>/<reference>`, after a look for whatever could lead out of it. Raises `UsageError`."""
    if folder.retention < 0 or "/" in folder.reference:
        raise UsageError(f"not the folder of a trace: {folder!r}")
    return f"{folder.retention}/{_checked(folder.key)}/{_checked(folder.reference)}"


def checked_name(name: str) -> str:
    """`name`, where it is one segment or lies below `artifacts/`. Raises `UsageError`."""
    first, slash, _ = name.partition("/")
    if slash and first != ARTIFACTS:
        raise UsageError(f"not a name in a trace's folder: {name!r}; it is one segment, or begins with {ARTIFACTS}/")
    return _checked(name)


@lru_cache(maxsize=4096)
def _checked(path: str) -> str:
    # Only what leads elsewhere is refused: archives of others hold names that `references` would not make.
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"unsafe path {path!r}: it is not valid Unicode") from error
    for segment in path.split("/"):
        if segment in ("", ".", "..") or "\0" in segment or (os.sep != "/" and os.sep in segment):
            raise UsageError(f"unsafe path {path!r}: segments may not be empty, '.' or '..', or hold NUL")
    return path


def _outcome(take: Callable[[Folder, Path], None], folder: Folder, local: Path) -> Exception | None:
    try:
        take(folder, local)
    except Exception as error:
        return error
    return None


class Store(ABC):
    """Named bytes in folders.

    Every method may be called from any thread, and after a fork in parent and child: a child opens connections
    of its own, and leaves its parent's alone. Nothing is connected to before the first call. No call waits for ever.

    Names are relative, `/`-separated and already made safe (`references.safe_name`); they are one segment, or
    begin with `artifacts/`. A store refuses others (`UsageError`): `checked_path` and `checked_name` do that for
    every store.

    Errors, with the driver's own as their cause, and without credentials:
        NotFound: nothing of that name is there.
        StoreUnavailable: whatever may pass (full, read-only, out of reach). Traces wait and are tried again.
        OutOfReach: of these, one that every other call would run into too, after as long a wait.
        ConfigurationError: what somebody has to mend (a bucket, credentials); only from `setup` and `check`. In all
            other calls that is `StoreUnavailable`: somebody may mend it.
        UsageError, or anything else: what will never be taken. After some tries that trace is put aside.
    """

    remote: bool = False
    """Whether calls wait for a network: a store that does is never called while a job waits.

    One whose calls do not is called in a job's own thread when a trace ends (`take`): it has to be quick."""

    buckets: Sequence[str] = ()
    """Names of its buckets, in the order that they were named in; none where it has no buckets."""

    def pick_bucket(self) -> str | None:
        """The bucket for a new trace, or None where the store has no buckets.

        It is part of the trace's `Folder` from then on, and of its record. Asked at the start of each trace, in the
        job's thread: no call to anywhere.
        """
        return None

    def uri(self, folder: Folder) -> str | None:
        """The URI of a trace's folder, for people to follow; None where there is none. Without credentials or calls."""
        return None

    @abstractmethod
    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Store `data` (bytes, or a file's contents) under `name`: whole or not at all, replacing what is there.

        A file stays where it is, and may be larger than memory. Of writers at the same time, one wins with all its
        bytes. It is durable when this returns. Raises `NotFound` where the file is not there.
        """

    @abstractmethod
    def open(self, folder: Folder, name: str) -> BinaryIO:
        """A readable stream of what is stored under `name`; the caller closes it. Raises `NotFound`.

        What is read from it may raise `StoreUnavailable` too.
        """

    @abstractmethod
    def names(self, folder: Folder) -> list[str]:
        """All names in a folder, `artifacts/…` included, sorted; empty where the folder is not there."""

    @abstractmethod
    def delete(self, folder: Folder) -> None:
        """Delete a folder with all that is in it. Does nothing where it is not there.

        Folders whose path begins alike stay: a key may lead through another trace's folder.
        """

    @abstractmethod
    def folders(self) -> Iterator[Folder]:
        """Every trace's folder, each once, in no order; for rebuilding an index and for cleaning up.

        There may be millions: they come as they are found, and are not held in memory.
        """

    def rename(self, folder: Folder, local: str) -> bool:
        """Move a finished local folder in by one rename, where that works at once; False: nothing has happened.

        Called at the end of each trace, in the job's own thread, where the spool lies in the store's own folder.
        """
        del folder, local
        return False

    def take(self, folder: Folder, local: Path) -> None:
        """Move a finished local folder in: its files become this folder's files, then `local` is gone.

        `record.json` comes last, so that whoever sees it sees the rest. Calling it again after a
        failure goes on where it stopped. Raises `NotFound` where neither `local` nor the folder is there.
        """
        if not local.is_dir():
            if not self.names(folder):
                raise NotFound(f"{local} is not there")
            return
        names = [path.relative_to(local).as_posix() for path in local.rglob("*") if is_plain(path)]
        for name in sorted(names, key=lambda name: (name == "record.json", name)):
            self.write(folder, name, local / name)
        try:
            shutil.rmtree(local)
        except OSError as error:
            raise StoreUnavailable(f"cannot remove {local}: {error.strerror}") from error

    def take_many(self, moves: Sequence[tuple[Folder, Path]]) -> list[Exception | None]:
        """`take` each local folder into its folder; gives for each, in order, None or what went wrong. Never raises.

        A folder is named once. Once the store is `StoreUnavailable`, what was not begun is not tried: it gets the
        same error. A store whose calls wait for a network takes several at once, by a bound.
        """
        results: list[Exception | None] = []
        for folder, local in moves:
            before = results[-1] if results else None
            results.append(before if isinstance(before, StoreUnavailable) else _outcome(self.take, folder, local))
        return results

    def check_names(self) -> None:  # noqa: B027 - most stores take any
        """Refuse to be recorded into where its place makes names too long for it. No call to anywhere.

        Asked when a process is configured. Raises `ConfigurationError`.
        """

    def setup(self) -> None:  # noqa: B027 - most stores need none
        """Create what is missing, never harming what is there."""

    def check(self) -> None:
        """Prove by a test write and read that it can be used. Raises `StoreUnavailable` or `ConfigurationError`."""
        # a name of its own: another process that checks at this moment deletes what it wrote
        folder = Folder(1, ".trifle-check", f"check-{secrets.token_hex(8)}", self.pick_bucket())
        self.write(folder, "check.txt", b"check")
        with self.open(folder, "check.txt") as stream:
            stream.read()
        self.delete(folder)

    def close(self) -> None:  # noqa: B027 - most stores need none
        """Let go of connections. The store may not be used afterwards."""
