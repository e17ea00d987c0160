"""Files in folders that somebody else may have written to: only regular files are read, and nothing is written through
a link.

Which folders those are, and what their files mean, is not known here.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from trifle_otel.errors import DamagedArchive

LARGEST: Final = 1 << 30
"""Bytes above which a file is not read into memory."""

# Without O_NONBLOCK, opening a named pipe would wait for ever.
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_PATH", os.O_RDONLY)
_BY_FOLDER = os.open in os.supports_dir_fd


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file lies there: no link, folder, pipe or device. Raises no error for what is not there."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def open_plain(
    path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o600, *, below: int | None = None
) -> int:
    """A descriptor of a regular file; with `below` its path is taken from that folder's descriptor on.

    Raises `OSError`, and `DamagedArchive` where something else lies there.
    """
    try:
        descriptor = os.open(path, flags | _PLAIN, mode, dir_fd=below)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK):
            raise _other(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _other(path)
    return descriptor


def open_below(root: str, path: str) -> int:
    """A descriptor of the regular file at a `/`-separated `path` below the folder `root`, to be read.

    No folder on the way may be a link, not even one that takes its place at this moment. Raises as `open_plain`.
    """
    if not _BY_FOLDER:
        return open_plain(f"{root}/{path}")
    *folders, name = path.split("/")
    here = os.open(root, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))  # where the archive lies is its owner's to say
    try:
        for folder in folders:
            inner = _open_folder(folder, here, f"{root}/{path}")
            os.close(here)
            here = inner
        return open_plain(name, below=here)
    finally:
        os.close(here)


def _open_folder(name: str, below: int, path: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=below)
    except OSError as error:  # a link, or a file, or nothing
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(name, below):
            raise DamagedArchive(f"{name} in {path} is a symbolic link; links are not followed") from error
        raise


def _is_link(name: str, below: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=below, follow_symlinks=False).st_mode)


def read_plain(path: str | os.PathLike[str], limit: int = LARGEST) -> bytes:
    """What a regular file holds. Raises as `open_plain`, and `DamagedArchive` for more than `limit` bytes."""
    with os.fdopen(open_plain(path), "rb") as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise DamagedArchive(f"{os.fspath(path)} is larger than {limit:,} bytes")
        return stream.read()


def make_folders(path: str | os.PathLike[str], *, fsync: bool = False) -> None:
    """Make a folder and those above it, where they are missing, for their owner alone. Raises `OSError`.

    `os.makedirs` gives its mode to the last one, and leaves the others to the umask. With `fsync` they outlive the
    machine.
    """
    above = os.path.dirname(path)
    try:
        try:
            os.mkdir(path, 0o700)
        except FileNotFoundError:
            if not above or above == path:
                raise
            make_folders(above, fsync=fsync)
            os.mkdir(path, 0o700)  # where that fails too, as in /proc, nothing helps
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    else:
        if fsync:
            sync_folder(os.fspath(above) or os.curdir)


def sync_folder(path: str) -> None:
    """Have what was made in a folder, or moved into it, outlive the machine: its files' own syncs do not name them.

    Raises `OSError`.
    """
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems behind a network have no such thing
            raise
    finally:
        os.close(descriptor)


def write_anew(path: Path, data: bytes) -> None:
    """Write a file in the place of whatever lies there; what that led to, or shared with others, stays as it is.

    Raises `OSError`.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN
    with os.fdopen(os.open(path, flags, 0o600), "wb") as stream:
        stream.write(data)


def _other(path: str | os.PathLike[str]) -> DamagedArchive:
    return DamagedArchive(f"{os.fspath(path)} is not a regular file; links are not followed")
