"""A payload store in this process's memory: for tests, and for programs that keep nothing."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trifle_otel.errors import NotFound
from trifle_otel.plain_files import read_plain
from trifle_otel.records import Folder
from trifle_otel.stores.contract import Store, checked_name, checked_path


class MemoryStore(Store):
    """Payloads in a dict, gone with the object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _payloads
        self._payloads: dict[str, tuple[Folder, dict[str, bytes]]] = {}

    def uri(self, folder: Folder) -> str:
        """A name that is good in this process alone."""
        return f"memory:/{folder.path}"

    def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
        """Keep the bytes. Raises `NotFound` where the file to read them from is not there."""
        path, name = checked_path(folder), checked_name(name)
        contents = _read(data) if isinstance(data, Path) else bytes(data)
        with self._lock:
            self._payloads.setdefault(path, (folder._replace(bucket=None), {}))[1][name] = contents

    def open(self, folder: Folder, name: str) -> BinaryIO:
        """A stream of the bytes as they are now."""
        path, name = checked_path(folder), checked_name(name)
        with self._lock:
            _, files = self._payloads.get(path, (folder, {}))
            if name not in files:
                raise NotFound(f"{path}/{name} is not there")
            return io.BytesIO(files[name])

    def names(self, folder: Folder) -> list[str]:
        """All names in a folder, sorted."""
        path = checked_path(folder)
        with self._lock:
            _, files = self._payloads.get(path, (folder, {}))
            return sorted(files)

    def delete(self, folder: Folder) -> None:
        """Forget a folder."""
        path = checked_path(folder)
        with self._lock:
            self._payloads.pop(path, None)

    def folders(self) -> Iterator[Folder]:
        """Every folder that something was written to."""
        with self._lock:
            found = [folder for folder, _ in self._payloads.values()]
        yield from found


def _read(path: Path) -> bytes:
    try:
        return read_plain(path)
    except FileNotFoundError as error:
        raise NotFound(f"{path} is not there") from error
