"""The floor: the least that could keep the demonstration job's traces, as a stand-in for `trifle_otel`.

Tuples are appended through a ContextVar; at the end of a trace they become JSON (orjson) and gzip (isal), two files are
written into a temporary folder, which is renamed, and a thread puts rows into SQLite in batches. There are no spans,
ids, redaction, artifacts, recovery, or searches by tag, and no error is handled: nobody should use this. It says how
much of the time is the price of the job, of the formats and of the disk.
"""

from __future__ import annotations

import functools
import os
import queue
import sqlite3
import sys
import threading
import types
from collections.abc import Callable, Iterable
from contextvars import ContextVar, Token
from itertools import count
from pathlib import Path
from time import time_ns
from typing import Any, TypeVar

import orjson
from isal import igzip

T = TypeVar("T")
Line = tuple[int, str, str, str, int]

BATCH = 256


class Trace:
    """One execution."""

    __slots__ = ("level", "lines", "state", "tags")

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.level = 0
        self.state = "success"
        self.tags: list[str] = []


_current: ContextVar[Trace | None] = ContextVar("current", default=None)


def trace(message: str, *, state: str = "success", head: bool = False) -> None:
    """A line."""
    found = _current.get()
    if found is not None:
        found.lines.append((time_ns(), message, state, "head" if head else "text", found.level))


def tag(*tags: str) -> None:
    """Labels."""
    found = _current.get()
    if found is not None:
        found.tags.extend(tags)


def artifact(name: str, source: str) -> None:
    """Left out: few of the job's traces have one."""


def warn() -> None:
    """Set the state to warning."""
    found = _current.get()
    if found is not None:
        found.state = "warning"


class block:  # noqa: N801 - the stand-in has the names of what it stands for
    """A step."""

    __slots__ = ("kind", "message", "trace", "value")

    def __init__(self, message: str, *, head: bool = False) -> None:
        self.message = message
        self.kind = "head" if head else "text"
        self.value: Any = None

    def __call__(self, function: Callable[..., T]) -> Callable[..., T]:
        message, kind = self.message, self.kind

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> T:
            found = _current.get()
            if found is None:
                return function(*args, **kwargs)
            found.lines.append((time_ns(), message + " ↴", "success", kind, found.level))
            found.level += 1
            try:
                value = function(*args, **kwargs)
            finally:
                found.level -= 1
            found.lines.append((time_ns(), message + " ↵", "success", "text", found.level))
            found.lines.append((time_ns(), "↳ " + repr(value), "success", "raw", found.level))
            return value

        return wrapper

    def __enter__(self) -> block:
        found = self.trace = _current.get()
        if found is not None:
            found.lines.append((time_ns(), self.message + " ↴", "success", self.kind, found.level))
            found.level += 1
        return self

    def result(self, value: T) -> T:
        """Keep the result and give it back."""
        self.value = value
        return value

    def __exit__(self, *exception: object) -> None:
        found = self.trace
        if found is not None:
            found.level -= 1
            found.lines.append((time_ns(), self.message + " ↵", "success", "text", found.level))
            found.lines.append((time_ns(), "↳ " + repr(self.value), "success", "raw", found.level))


class tracer:  # noqa: N801
    """An execution, kept in `archive` when it ends."""

    __slots__ = ("key", "meta", "token", "trace")
    archive: Archive

    def __init__(self, key: str, *, meta: Any = None) -> None:
        self.key = key
        self.meta = meta

    def __enter__(self) -> Trace:
        found = self.trace = Trace()
        self.token: Token[Trace | None] = _current.set(found)
        found.lines.append((time_ns(), f"Tracer has been initialized for {self.key}", "success", "text", 0))
        return found

    def __exit__(self, *exception: object) -> None:
        _current.reset(self.token)
        self.archive.keep(self.key, self.meta, self.trace)


class Archive:
    """Files and rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = f"{folder}/temporary"
        self.finished = f"{folder}/finished"
        os.makedirs(self.temporary)
        os.mkdir(self.finished)
        self.numbers = count(1)
        self.rows: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._index)
        self.thread.start()

    def keep(self, key: str, meta: Any, found: Trace) -> None:
        """Write a trace that has ended."""
        reference = f"{next(self.numbers):026d}"
        entries = [
            {"at": ns // 1_000_000_000, "message": message, "state": state, "type": kind, "level": level}
            for ns, message, state, kind, level in found.lines
        ]
        part = igzip.compress(orjson.dumps(entries), 1)
        first = found.lines[0][0]
        record = {"reference": reference, "key": key, "state": found.state, "tags": found.tags, "meta": meta}
        folder = f"{self.temporary}/{reference}"
        os.mkdir(folder)
        _write(f"{folder}/data_1.json.gz", part)
        _write(f"{folder}/record.json", orjson.dumps({**record, "first_at": first, "length": len(entries)}))
        os.rename(folder, f"{self.finished}/{reference}")
        tags, meta = orjson.dumps(found.tags).decode(), orjson.dumps(meta).decode()
        self.rows.put((reference, key, found.state, tags, meta, first))

    def close(self) -> None:
        """Wait for the last row."""
        self.rows.put(None)
        self.thread.join()

    def _index(self) -> None:
        connection = sqlite3.connect(self.folder / "index.sqlite")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute(
            "create table traces (reference text primary key, key text, state text, tags text, meta text, first_at int)"
        )
        connection.execute("create index by_time on traces (first_at)")
        connection.execute("create index by_state on traces (state, first_at)")
        ended = False
        while not ended:
            batch = [self.rows.get()]
            while len(batch) < BATCH and not self.rows.empty():
                batch.append(self.rows.get())
            rows = [row for row in batch if row is not None]
            ended = len(rows) < len(batch)
            connection.executemany("insert into traces values (?, ?, ?, ?, ?, ?)", rows)
            connection.commit()
        connection.close()


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, data)
    os.close(descriptor)


def stand_in(folder: Path) -> Archive:
    """Let `import trifle_otel` give this in the rest of the process."""
    tracer.archive = Archive(folder)
    put_in_place((trace, tag, artifact, warn, block, tracer), fail=warn)
    return tracer.archive


def put_in_place(functions: Iterable[Any], **more: Any) -> None:
    """Let `import trifle_otel` give these in the rest of the process."""
    if "trifle_otel" in sys.modules:
        raise RuntimeError("trifle_otel is imported already: what stands in for it needs a process of its own")
    module: Any = types.ModuleType("trifle_otel")
    for function in functions:
        setattr(module, function.__name__, function)
    vars(module).update(more)
    sys.modules["trifle_otel"] = module
