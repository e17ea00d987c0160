"""What the URLs of archives and indexes mean: the one module that names drivers, each loaded when a URL names it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from trifle_otel.errors import ConfigurationError, MissingDependency

if TYPE_CHECKING:
    from trifle_otel.indexes.contract import Index
    from trifle_otel.stores.contract import Store

ARCHIVES = "a folder, file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory:"
INDEXES = "sqlite:///file, postgresql://host/database, mongodb://host/database or memory:"

_OBJECTS = ("s3", "gs", "az")
_lock = threading.RLock()


@dataclass(frozen=True)
class Location:
    """What a URL names: what makes the store, the archive's URI, the index beside it, the spool's folder.

    Object storage has no index beside it, memory no spool.
    """

    store: Callable[[], Store]
    uri: str
    index: str | None
    spool: Path | None


def locate(archive: str) -> Location:
    """What the URL of an archive names. Raises `ConfigurationError`."""
    if archive.partition(":")[0] in _OBJECTS:
        from trifle_otel.stores.objects import open_objects

        uri = archive.partition("?")[0]
        return Location(lambda: open_objects(archive), uri, None, spool_folder(uri))
    scheme, path = _parse(archive, f"archive {archive!r}")
    if scheme in ("", "file"):
        from trifle_otel.stores.files import FileStore

        folder = local_folder(path)
        uri = f"file://{quote(folder.as_posix())}"
        return Location(
            lambda: FileStore(folder), uri, f"sqlite:///{quote(str(folder / 'index.sqlite'))}", folder / ".spool"
        )
    if scheme == "memory":
        from trifle_otel.stores.memory import MemoryStore

        return Location(lambda: _shared(MemoryStore, path), archive, archive, None)
    raise ConfigurationError(f"archive {archive!r} has an unknown scheme {scheme!r}; it is {ARCHIVES}")


def open_index(index: str) -> Index:
    """The index at a URL. Raises `ConfigurationError`."""
    scheme = index.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        with _extra("postgres"):
            from trifle_otel.indexes.postgres import open_postgres
        return open_postgres(index)
    if scheme in ("mongodb", "mongodb+srv"):
        with _extra("mongo"):
            from trifle_otel.indexes.mongo import open_mongo
        return open_mongo(index)
    scheme, path = _parse(index, f"index {index!r}")
    if scheme == "sqlite":
        from trifle_otel.indexes.sqlite import SQLiteIndex

        return SQLiteIndex(local_folder(path))
    if scheme == "memory":
        from trifle_otel.indexes.memory import MemoryIndex

        shared: Index = _shared(MemoryIndex, path)
        return shared
    raise ConfigurationError(f"index {index!r} has an unknown scheme {scheme!r}; it is {INDEXES}")


def spool_folder(archive: str, spool: str | None = None) -> Path:
    """Where in a spool (by default the user's state folder) what waits for an archive lies: each has its own folder.

    Raises `ConfigurationError` for what is no path.
    """
    from platformdirs import user_state_path

    root = local_folder(spool) if spool else user_state_path("trifle_otel") / "spool"
    return root / hashlib.sha256(archive.encode()).hexdigest()[:16]


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """A driver that is not installed is an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trifle_otel"):
            raise
        raise MissingDependency(f"{error.name} is not installed: pip install 'trifle-otel[{name}]'") from error


def local_folder(path: str) -> Path:
    """A path as an absolute one. Raises `ConfigurationError`."""
    try:
        if "\0" in path:
            raise ValueError("it holds a NUL")
        path.encode()
        return Path(path).expanduser().absolute()
    except (ValueError, RuntimeError) as error:  # no such user's home
        raise ConfigurationError(f"{path!r} is no path: {error}") from error


def _parse(url: str, what: str) -> tuple[str, str]:
    """Scheme ('' for a path) and path of a URL."""
    if ":" not in url or os.path.isabs(url) or url.startswith("."):
        if not url:
            raise ConfigurationError("the archive has no name; it is " + ARCHIVES)
        return "", url
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{what} is not a URL: {error}") from error
    if len(parts.scheme) == 1:  # a drive letter
        return "", url
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{what} has options; {parts.scheme}: takes none")
    if parts.scheme in ("file", "sqlite"):
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise ConfigurationError(f"{what} names no path; write three slashes, as in {parts.scheme}:///var/traces")
        return parts.scheme, unquote(parts.path if not parts.path.startswith("//") else parts.path[1:])
    return parts.scheme, parts.path


_memories: dict[tuple[type, str], Any] = {}


def forget_memories() -> None:
    """Let go of all that `memory:` has named: for tests."""
    with _lock:
        _memories.clear()


def _shared(kind: type[Any], name: str) -> Any:
    """What `memory:` names is shared in this process, so that what was recorded can be read."""
    with _lock:
        return _memories.setdefault((kind, name), kind())
