"""A payload store in object storage (S3 and compatible, Google, Azure), laid out as Trifle's S3 driver does.

Objects are named `<retention>/<prefix>/<key>/<reference>/<name>`: one lifecycle rule for each
retention class expires payloads (see `lifecycle`). How obstore is loaded and what its errors mean
is `object_driver`'s business, what a URL means that of `object_urls`.

Its promises, each tested:
- an object appears whole or not at all, and a trace's `record.json` after all else;
- every call ends: 5 s to connect, 30 s without an answer, and then `StoreUnavailable`;
- nothing is connected to before the first call, and a forked child never uses its parent's connections;
- memory is bounded, whatever the size of an object or the number of traces;
- messages hold no credentials.
"""

from __future__ import annotations

import io
import os
import random
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from trifle_otel.errors import ConfigurationError, NotFound, TrifleError, UsageError
from trifle_otel.plain_files import read_plain
from trifle_otel.records import Folder
from trifle_otel.references import MAX_PREFIX_BYTES
from trifle_otel.stores.contract import ARTIFACTS, OF_A_TRACE, RETENTION, Store, checked_name, checked_path
from trifle_otel.stores.lifecycle import put_rules, rules
from trifle_otel.stores.object_driver import Refused, load_obstore, open_bucket, translated
from trifle_otel.stores.object_urls import ObjectLocation, parse_object_url
from trifle_otel.stores.parallel import RECORD, local_trouble, take_at_once

CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 30.0
AT_ONCE = 16  # requests of one `take` or `take_many`
LONGEST_NAME = 1024  # bytes
DELETED_AT_ONCE = 1000  # more, no S3 takes in one request

_WHOLE = 5 << 20  # bytes up to which an object is sent in one request
_PIECE = 8 << 20
_MOST_PIECES = 9_000
_PIECES_AT_ONCE = 2
_READ_AHEAD = 1 << 18
_TRIES = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def open_objects(url: str) -> ObjectStore:
    """The store at `s3://bucket,bucket/prefix?endpoint=…`, `gs://bucket/prefix` or `az://container/prefix`.

    Raises `ConfigurationError` for a URL that is wrong, and `MissingDependency` where obstore is not installed.
    Nothing is connected to yet.
    """
    location = parse_object_url(url)
    if find_spec("obstore") is None:
        load_obstore()  # raises; where obstore is there, loading it is left to the first call
    return ObjectStore(location)


class ObjectStore(Store):
    """Payloads as objects in one or several buckets.

    A bucket that is missing, or credentials that are refused, are `ConfigurationError` in `check`, and in all other
    calls `StoreUnavailable` like a store that is out of reach: somebody may mend it, and traces wait until then. What
    the store will never take (a name that is too long) is `UsageError`.

    Args:
        location: the buckets, the prefix, and how they are reached.
        connect_timeout: seconds.
        request_timeout: seconds without an answer, or without a further piece of it.
        at_once: requests that `take` and `take_many` have under way.
    """

    remote = True

    def __init__(
        self,
        location: ObjectLocation,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        request_timeout: float = REQUEST_TIMEOUT,
        at_once: int = AT_ONCE,
    ) -> None:
        self.location = location
        self.buckets = location.buckets
        self.at_once = at_once
        self._timeouts = (connect_timeout, request_timeout)
        # by process too: a child's first call makes its own, and leaves its parent's alone
        self._clients: dict[tuple[int, str], Any] = {}

    def __repr__(self) -> str:
        return f"ObjectStore({self.location.url!r})"

    def uri(self, folder: Folder) -> str:
        """The URI of a trace's folder: the retention stands before the prefix."""
        return f"{self.location.scheme}://{self._bucket(folder)}/{self._path(folder)}"

    def pick_bucket(self) -> str:
        """One of the buckets, at random."""
        return random.choice(self.location.buckets)

    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Put an object: whole, or for a large file in pieces that appear together."""
        path = self._path(folder, name)
        options: dict[str, Any] = {"use_multipart": False}
        if isinstance(data, Path):
            size = _size(data)
            if size > _WHOLE:
                piece = max(_PIECE, size // _MOST_PIECES)
                options = {"use_multipart": True, "chunk_size": piece, "max_concurrency": _PIECES_AT_ONCE}
            else:
                data = _read(data)
        self._call(self._bucket(folder), path, load_obstore().put, path, data, **options)

    def open(self, folder: Folder, name: str) -> BinaryIO:
        """A stream that fetches as it is read."""
        bucket, path = self._bucket(folder), self._path(folder, name)
        answer = self._call(bucket, path, load_obstore().get, path)
        chunks = iter(answer.stream(min_chunk_size=_READ_AHEAD))
        return io.BufferedReader(_Stream(partial(_call, self._url(bucket, path), next, chunks, None)))

    def names(self, folder: Folder) -> list[str]:
        """All names in a folder, sorted; objects of traces further down are left out."""
        base = f"{self._path(folder)}/"
        found = (path[len(base) :] for path in self._listed(self._bucket(folder), base))
        return sorted(name for name in found if "/" not in name or name.startswith(f"{ARTIFACTS}/"))

    def delete(self, folder: Folder) -> None:
        """Delete a folder's objects, a thousand with each request, its record among the last."""
        bucket, base = self._bucket(folder), self._path(folder)
        for _ in range(_TRIES):
            names = sorted(self.names(folder), key=lambda name: name == RECORD)
            with suppress(NotFound):  # Google's answer where somebody else deletes it too
                for at in range(0, len(names), DELETED_AT_ONCE):
                    batch = [f"{base}/{name}" for name in names[at : at + DELETED_AT_ONCE]]
                    self._call(bucket, base, load_obstore().delete, batch)
                return

    def folders(self) -> Iterator[Folder]:
        """Every trace's folder in every bucket, by listing; each page of the list is forgotten after it."""
        for bucket in self.location.buckets:
            answer = self._call(bucket, "", load_obstore().list_with_delimiter)
            for days in sorted(prefix.strip("/") for prefix in answer["common_prefixes"]):
                if RETENTION.fullmatch(days):
                    base = f"{days}/{self.location.prefix}/"
                    paths = (path[len(base) :] for path in self._listed(bucket, base))
                    yield from (Folder(int(days), *trace, bucket) for trace in _traces(paths))

    def take(self, folder: Folder, local: Path) -> None:
        """Upload a folder's files, several at once, and remove it; see `Store.take`."""
        (error,) = self.take_many([(folder, local)])
        if error is not None:
            raise error

    def take_many(self, moves: Sequence[tuple[Folder, Path]]) -> list[Exception | None]:
        """Upload folders: all that is no record, several at once, then the records of those that are whole."""
        return take_at_once(self, moves, self.at_once)

    def lifecycle_rules(self, days: Iterable[int]) -> list[dict[str, Any]]:
        """A lifecycle rule for each retention class, as `aws s3api put-bucket-lifecycle-configuration` takes them."""
        return rules(days, self.location.prefix)

    def lifecycle(self, days: Iterable[int]) -> None:
        """Let each bucket expire these retention classes by itself, leaving all its other rules as they are.

        Raises `MissingDependency` where boto3 is not installed, and `ConfigurationError` where the bucket's rules
        may not be changed, or the store is no S3. `lifecycle_rules` gives the rules for another tool.
        """
        put_rules(self.location, list(days))

    def check_names(self) -> None:
        """Refuse a prefix beside which the longest key, reference and name have no room."""
        size = len(self.location.prefix.encode())
        if size > MAX_PREFIX_BYTES:
            raise ConfigurationError(
                f"the prefix {self.location.prefix!r} has {size} bytes; no more than {MAX_PREFIX_BYTES} leave room for"
                f" long keys in an object's name, which has {LONGEST_NAME:,} at most: take a shorter one"
            )

    def check(self) -> None:
        """Prove of each bucket that it can be written and read."""
        for bucket in self.location.buckets:
            folder = Folder(1, ".trifle-check", f"check-{secrets.token_hex(8)}", bucket)
            try:
                self.write(folder, "check.txt", b"check")
                with self.open(folder, "check.txt") as stream:
                    stream.read()
                # A writer need not be allowed to delete: lifecycle rules expire what it wrote.
                with suppress(Refused):
                    self.delete(folder)
            except Refused as error:
                raise ConfigurationError(str(error)) from error.__cause__

    def close(self) -> None:
        """Forget the connections."""
        self._clients.clear()

    def _path(self, folder: Folder, name: str | None = None) -> str:
        checked_path(folder)
        path = f"{folder.retention}/{self.location.prefix}/{folder.key}/{folder.reference}"
        return _storable(path if name is None else f"{path}/{checked_name(name)}")

    def _bucket(self, folder: Folder) -> str:
        if folder.bucket is None:
            return self.location.buckets[0]
        if folder.bucket not in self.location.buckets:
            raise ConfigurationError(
                f"{folder.path} lies in the bucket {folder.bucket!r}, which {self.location.url} does not name; add it"
            )
        return folder.bucket

    def _url(self, bucket: str, path: str) -> str:
        return f"{self.location.scheme}://{bucket}/{path}"

    def _client(self, bucket: str) -> Any:
        key = (os.getpid(), bucket)
        client = self._clients.get(key)
        if client is None:
            client = self._clients.setdefault(key, open_bucket(self.location, bucket, *self._timeouts))
        return client

    def _call(self, bucket: str, path: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return _call(self._url(bucket, path), function, self._client(bucket), *arguments, **options)

    def _listed(self, bucket: str, base: str) -> Iterator[str]:
        """The names of all objects below `base`, in order."""
        url = self._url(bucket, base)
        pages = iter(self._call(bucket, base, load_obstore().list, prefix=base.rstrip("/"), chunk_size=1000))
        while (page := _call(url, next, pages, None)) is not None:
            yield from (item["path"] for item in page if item["path"].startswith(base))


def _call(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call obstore; what it raises comes out as one of our errors."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        failure = translated(error, what)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, where obstore has a fault; it is no Exception
            raise
        failure = TrifleError(f"{what}: obstore has failed")
    # out here, so that the driver's own text, which can repeat a token, is no context of ours
    raise failure


class _Stream(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, fetch: Callable[[], bytes | None]) -> None:
        self._fetch = fetch
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the chunk at hand, or the next."""
        while not self._left:
            chunk = self._fetch()
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _traces(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Key and reference of each trace that has one of these objects, which come in order."""
    told: list[str] = []  # folders around the last object: all that can come again
    for path in paths:
        while told and not path.startswith(f"{told[-1]}/"):
            told.pop()
        folder, _, name = path.rpartition("/")
        key, _, reference = folder.rpartition("/")
        if key and OF_A_TRACE.fullmatch(name) and folder not in told and ARTIFACTS not in folder.split("/"):
            told.append(folder)
            yield key, reference


def _storable(path: str) -> str:
    if _CONTROL.search(path):
        raise UsageError(f"unsafe path {path!r}: object stores take no control characters")
    if len(path.encode()) > LONGEST_NAME:
        raise UsageError(f"the object's name is longer than {LONGEST_NAME} bytes: {path!r}")
    return path


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError as error:
        raise local_trouble(path, error) from error


def _read(path: Path) -> bytes:
    try:
        return read_plain(path)
    except OSError as error:
        raise local_trouble(path, error) from error
