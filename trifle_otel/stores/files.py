"""A payload store in a folder of the local file system, laid out as Trifle's File driver does.

Files appear whole or not at all, and symbolic links below the root are never followed: an
archive may come from somebody else. What the files hold is not known here.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote

from trifle_otel.errors import ConfigurationError, DamagedArchive, NotFound, StoreUnavailable
from trifle_otel.plain_files import open_below, open_plain, sync_folder
from trifle_otel.records import Folder
from trifle_otel.stores.contract import ARTIFACTS, OF_A_TRACE, RETENTION, Store, checked_name, checked_path

_T = TypeVar("_T")

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_TRIES = 100
_CHUNK = 1 << 20
_REMEMBERED = 10_000  # parents
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class FileStore(Store):
    """Payloads as files below one folder.

    Args:
        root: the archive's folder; made when first written to.
        group: whether the group of each folder and file may read it; else its owner alone may. Folders that are there
            stay as they are.
        fsync: whether what is stored outlives the machine, and not the process alone.
    """

    def __init__(self, root: Path, *, group: bool = False, fsync: bool = False) -> None:
        self.root = Path(root)
        self.group = group
        self.fsync = fsync
        self._root = os.path.abspath(root)
        # Parents that were no links when a trace moved in. Looking at each level again for each trace costs twice the
        # rename, and who can put a link in the place of a folder of ours later has our rights already.
        self._sound: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"FileStore({self._root!r})"

    def setup(self) -> None:
        """Make the root folder. Raises `ConfigurationError` where something else stands in its place."""
        try:
            self._make_folders(self._root)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigurationError(f"the archive {self._root} is not a folder; name a folder") from error
        except OSError as error:
            raise _unavailable(error) from error

    def uri(self, folder: Folder) -> str:
        """A `file:` URI."""
        return f"file://{quote(self._root)}/{quote(folder.path)}"

    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Write a temporary file beside the place of the file, and rename it."""
        target = self._path(folder, name)
        with _translated():
            parent = os.path.dirname(target)
            temporary = os.path.join(parent, f".tmp-{secrets.token_hex(8)}")
            descriptor = self._in_parent(parent, lambda: os.open(temporary, _CREATE, _FILE_MODE))
            try:
                if self.group:
                    _let_group_read(temporary)
                _fill(descriptor, data, fsync=self.fsync)
                os.replace(temporary, target)
                self._sync(parent)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise

    def open(self, folder: Folder, name: str) -> BinaryIO:
        """A stream of a regular file; anything else in its place is `DamagedArchive`."""
        path = self._path(folder, name)
        with _translated(path):
            return os.fdopen(open_below(self._root, path[len(self._root) + 1 :]), "rb")

    def names(self, folder: Folder) -> list[str]:
        """The regular files of a trace; links, half-written files and traces further down are left out."""
        path = self._path(folder)
        with _translated():
            try:
                self._refuse_links(path)
            except FileNotFoundError:
                return []
            found = list(_files(path, ""))
            artifacts = os.path.join(path, ARTIFACTS)
            if _is_folder(artifacts):
                found += _files_below(artifacts, f"{ARTIFACTS}/")
        return sorted(found)

    def delete(self, folder: Folder) -> None:
        """Delete a trace's files, its record last, then the folders that this leaves empty.

        What lies in other folders than `artifacts` stays: it belongs to traces whose key goes
        through this folder.
        """
        path = self._path(folder)
        with _translated():
            try:
                self._refuse_links(path)
                _delete_files(path)
            except FileNotFoundError:
                return
            self._remove_empty(path)

    def folders(self) -> Iterator[Folder]:
        """Every folder of a trace below a whole number of days."""
        for entry in _scan(self._root):
            if RETENTION.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield from _traces(entry.path, int(entry.name))

    def rename(self, folder: Folder, local: str) -> bool:
        """Move a folder in by one rename, if that works at once; what is in the way is for `take` to find out."""
        target = self._path(folder)
        parent = os.path.dirname(target)
        if parent not in self._sound or self.fsync:  # a sync that fails is for `take` to tell
            return False
        try:
            if self.group:
                _let_group_read(local)
            os.rename(local, target)
        except OSError:
            self._sound.pop(parent, None)
            return False
        return True

    def take(self, folder: Folder, local: Path) -> None:
        """Move a folder in by one rename, or file by file where the trace has files already or the disk is another."""
        target = self._path(folder)
        source = os.fspath(local)
        parent = os.path.dirname(target)
        with _translated():
            if os.path.isdir(source):
                try:
                    if self.group:
                        _let_group_read(source)
                    self._in_parent(parent, lambda: os.rename(source, target))
                    self._sync(parent)
                    if len(self._sound) < _REMEMBERED:
                        self._sound[parent] = None
                    return
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV):
                        raise
            super().take(folder, Path(local))

    def _in_parent(self, parent: str, make: Callable[[], _T]) -> _T:
        """Make something in a folder, which is made where it is missing: a cleanup may remove it at any moment."""
        for _ in range(_TRIES):
            try:
                self._refuse_links(parent)
                return make()
            except FileNotFoundError:
                with suppress(FileNotFoundError, FileExistsError):  # it may go away while it is looked at, too
                    self._make_folders(parent)
        return make()

    def _path(self, folder: Folder, name: str | None = None) -> str:
        path = f"{self._root}/{checked_path(folder)}"
        return path if name is None else f"{path}/{checked_name(name)}"

    def _refuse_links(self, path: str) -> None:
        """Raise `DamagedArchive` where a folder from below the root down to `path` is a link."""
        end = len(self._root)
        while end != -1:
            end = path.find("/", end + 1)
            part = path if end == -1 else path[:end]
            if stat.S_ISLNK(os.lstat(part).st_mode):
                raise _link(part)

    def _make_folders(self, path: str) -> None:
        """Make a folder and those above it, all for their owner alone (`os.makedirs` gives its mode to the last one).

        With `group` those that are the archive's are made for their group as well.
        """
        try:
            os.mkdir(path, _FOLDER_MODE)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
            return
        except FileNotFoundError:
            self._make_folders(os.path.dirname(path))
            try:
                os.mkdir(path, _FOLDER_MODE)
            except FileExistsError:
                return
        self._sync(os.path.dirname(path))
        if self.group and path.startswith(self._root):
            _let_group_read(path)

    def _sync(self, folder: str) -> None:
        if self.fsync:
            sync_folder(folder)

    def _remove_empty(self, path: str) -> None:
        while len(path) > len(self._root):
            try:
                os.rmdir(path)
            except OSError:
                return  # not empty, or somebody else was quicker
            path = os.path.dirname(path)


def _let_group_read(path: str) -> None:
    """Let the group read a file, or a folder and all that is in it; what it may do already stays."""
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        os.chmod(path, stat.S_IMODE(found.st_mode) | 0o050)
        for entry in _scan(path):
            if not entry.is_symlink():
                _let_group_read(entry.path)
    else:
        os.chmod(path, stat.S_IMODE(found.st_mode) | 0o040)


def _fill(descriptor: int, data: bytes | Path, *, fsync: bool) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        if isinstance(data, Path):
            with _source(data) as source:
                shutil.copyfileobj(source, stream, _CHUNK)
        else:
            view = memoryview(data)
            while view:  # a file takes at most 2 GiB in one go
                view = view[stream.write(view) :]
        if fsync:
            os.fsync(descriptor)


def _source(path: Path) -> BinaryIO:
    try:
        return os.fdopen(open_plain(path), "rb")
    except FileNotFoundError as error:
        raise NotFound(f"{path} is not there") from error


def _delete_files(path: str) -> None:
    artifacts = os.path.join(path, ARTIFACTS)
    if _is_folder(artifacts):
        _remove_folder(artifacts)
    for entry in sorted(_scan(path, missing_ok=False), key=lambda entry: entry.name == "record.json"):
        if not entry.is_dir(follow_symlinks=False):
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


def _traces(path: str, retention: int) -> Iterator[Folder]:
    """The traces below `path`, without recursion: others may nest folders deeper than Python nests calls."""
    names: list[str] = []
    levels = [iter(_scan(path))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            names = names[:-1]
        elif entry.name != ARTIFACTS and entry.is_dir(follow_symlinks=False):
            names.append(entry.name)
            entries = _scan(entry.path)
            if len(names) > 1 and any(OF_A_TRACE.fullmatch(each.name) for each in entries):
                yield Folder(retention, "/".join(names[:-1]), names[-1])
            # It may hold more: another key goes through it where a caller's reference is one of its segments.
            levels.append(iter(entries))


def _files(path: str, prefix: str) -> Iterator[str]:
    for entry in _scan(path):
        if entry.is_file(follow_symlinks=False) and not _TEMPORARY.fullmatch(entry.name):
            yield prefix + entry.name


def _files_below(path: str, prefix: str) -> Iterator[str]:
    """Names of all files below, without recursion, as `_traces` goes."""
    todo = [(path, prefix)]
    while todo:
        folder, before = todo.pop()
        yield from _files(folder, before)
        todo += [(each.path, f"{before}{each.name}/") for each in _scan(folder) if each.is_dir(follow_symlinks=False)]


def _remove_folder(path: str) -> None:
    """Remove a folder and all that is in it, without recursion. Links are not followed."""
    folders = [path]
    for folder in folders:
        for entry in _scan(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(entry.path)
    for folder in reversed(folders):
        with suppress(FileNotFoundError):
            os.rmdir(folder)


def _scan(path: str, *, missing_ok: bool = True) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where it has gone meanwhile, or lies too deep for any trace."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        if missing_ok:
            return []
        raise
    except OSError as error:
        if missing_ok and error.errno == errno.ENAMETOOLONG:
            return []
        raise _unavailable(error) from error


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def _translated(path: str | None = None) -> Iterator[None]:
    """Errors of the operating system become ours; a file that is missing is `NotFound` where `path` names it."""
    try:
        yield
    except OSError as error:
        # Nothing can be below a file, or under a name that is too long: it is not there.
        missing = isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG
        if path is not None and missing:
            raise NotFound(f"{path} is not there") from error
        raise _unavailable(error) from error


def _unavailable(error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"cannot use {error.filename or 'the archive'}: {error.strerror or error}")


def _link(path: str) -> DamagedArchive:
    return DamagedArchive(f"{path} is a symbolic link; links in an archive are not followed")
