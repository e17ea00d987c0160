"""What the URLs of archives and indexes mean: the one module that names drivers, each loaded when a URL names it.

Drivers of other packages are found by their entry points.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
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
_SCHEMES = (*_OBJECTS, "file", "memory", "sqlite", "postgresql", "postgres", "mongodb", "mongodb+srv")
_NO_COLON = re.compile(f"({'|'.join(map(re.escape, _SCHEMES))})//", re.IGNORECASE)
_PASSWORD = re.compile(r"(//[^/@:?]*):[^?]*@")
_SECRET = re.compile(r"([?&][^=&]*(?:passw|secret|token|key)[^=&]*=)[^&]+", re.IGNORECASE)
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


def locate(archive: str, *, group: bool = False, fsync: bool = False) -> Location:
    """What the URL of an archive names. Raises `ConfigurationError`.

    `group` and `fsync` are about a local archive: whether the group of its folder may read what is made in it, and
    whether that outlives the machine.
    """
    archive = _tidied(archive)
    if archive.partition(":")[0] in _OBJECTS:
        from trifle_otel.stores.objects import open_objects

        uri = archive.partition("?")[0]
        return Location(lambda: open_objects(archive), uri, None, spool_folder(uri))
    driver = _of_others("trifle_otel.stores", archive)
    if driver is not None:
        uri = shown(archive.partition("?")[0])
        return Location(lambda: driver(archive), uri, None, spool_folder(uri))
    scheme, path = _parse(archive, f"archive {shown(archive)!r}")
    if scheme in ("", "file"):
        from trifle_otel.stores.files import FileStore

        folder = local_folder(path)
        uri = f"file://{quote(folder.as_posix())}"
        return Location(
            lambda: FileStore(folder, group=group, fsync=fsync),
            uri,
            f"sqlite:///{quote(str(folder / 'index.sqlite'))}",
            folder / ".spool",
        )
    if scheme == "memory":
        from trifle_otel.stores.memory import MemoryStore

        return Location(lambda: _shared(MemoryStore, path), archive, archive, None)
    raise ConfigurationError(f"archive {shown(archive)!r} has an unknown scheme {scheme!r}; it is {ARCHIVES}")


def open_index(index: str, *, group: bool = False, buckets: Sequence[str] = ()) -> Index:
    """The index at a URL; `group` as of `locate`. Raises `ConfigurationError`.

    `buckets` are the archive's: older tables and collections of Ruby's know a bucket by its position among them. The
    option of that name in the URL comes first.
    """
    index = _tidied(index)
    scheme = index.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        with _extra("postgres"):
            from trifle_otel.indexes.postgres import open_postgres
        return open_postgres(index, buckets)
    if scheme in ("mongodb", "mongodb+srv"):
        with _extra("mongo"):
            from trifle_otel.indexes.mongo import open_mongo
        return open_mongo(index, buckets)
    driver = _of_others("trifle_otel.indexes", index)
    if driver is not None:
        theirs: Index = driver(index)
        return theirs
    scheme, path = _parse(index, f"index {shown(index)!r}")
    if scheme == "sqlite":
        from trifle_otel.indexes.sqlite import SQLiteIndex

        return SQLiteIndex(local_folder(path), group=group)
    if scheme == "memory":
        from trifle_otel.indexes.memory import MemoryIndex

        shared: Index = _shared(MemoryIndex, path)
        return shared
    raise ConfigurationError(f"index {shown(index)!r} has an unknown scheme {scheme!r}; it is {INDEXES}")


def _of_others(group: str, url: str) -> Callable[[str], Any] | None:
    """The driver of another package that has an entry point for the scheme of this URL; see `docs/drivers.md`."""
    scheme = url.partition(":")[0]
    if ":" not in url or scheme in _SCHEMES or len(scheme) == 1 or os.path.isabs(url) or url.startswith("."):
        return None
    from importlib.metadata import entry_points  # a quarter of the import of all of ours, and seldom needed

    for found in entry_points(group=group, name=scheme):
        try:
            driver: Callable[[str], Any] = found.load()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"the driver of {scheme}: ({found.value}) cannot be loaded: {error}") from error
        return driver
    return None


def spool_folder(archive: str, spool: str | None = None) -> Path:
    """Where in a spool (by default the user's state folder) what waits for an archive lies: each has its own folder.

    Raises `ConfigurationError` for what is no path.
    """
    from platformdirs import user_state_path

    root = local_folder(spool) if spool else user_state_path("trifle_otel") / "spool"
    import hashlib  # it loads OpenSSL, and is seldom needed

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


def _tidied(url: str) -> str:
    """A URL with its scheme in small letters. Raises `ConfigurationError` where the colon was forgotten, or no text."""
    if not _is_unicode(url):
        raise ConfigurationError(f"{shown(url)!r} is no path and no URL: it is not valid Unicode")
    forgotten = _NO_COLON.match(url)
    if forgotten:
        meant = shown(f"{forgotten[1]}:{url[forgotten.end(1) :]}")
        raise ConfigurationError(f"{shown(url)} is no URL: did you mean {meant}? A folder's path begins with ./")
    scheme, colon, rest = url.partition(":")
    return f"{scheme.lower()}:{rest}" if colon and scheme.lower() in _SCHEMES else url


def _is_unicode(url: str) -> bool:
    try:
        url.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        return False
    return True


def shown(url: str) -> str:
    """A URL for messages: without a password, and without what its options hold that sound like one."""
    return _SECRET.sub(r"\1…", _PASSWORD.sub(r"\1:…@", url))


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
