"""An index in one SQLite file, written by several processes at once.

Connections and transactions live here. The tables and how records become rows are in `sqlite_rows`,
how a search walks through them is in `sqlite_search`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from trifle_otel.errors import DamagedArchive, StoreUnavailable
from trifle_otel.indexes import sqlite_rows as rows
from trifle_otel.indexes.contract import Index, ProcessLock, latest
from trifle_otel.indexes.sqlite_search import search, tally
from trifle_otel.plain_files import make_folders
from trifle_otel.records import Query, TraceRecord
from trifle_otel.strict_json import clean_text
from trifle_otel.tallies import MOST, SLOTS, WIDTHS, Tally

_PRAGMAS = (
    "PRAGMA synchronous = NORMAL",  # against the death of the process, not of the machine: as everywhere, no fsync
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA cache_size = -32000",
)


class _Opened(NamedTuple):
    connection: sqlite3.Connection
    identity: tuple[int, int] | None  # of the file; None: the connection is for one call


_inherited: list[_Opened] = []  # a forked child may not even close its parent's connections


class SQLiteIndex(Index):
    """Records in a file of SQLite (WAL).

    Connections are taken from a pool, one for each call that runs. A forked child opens its own.

    Args:
        path: the file; made, with its folder, when first written to. Reading one that is not there finds nothing.
        timeout: seconds to wait for another process's lock before `StoreUnavailable`.
        group: whether the group of the folder may read a file that is made; else its owner alone may.
    """

    tallied = MOST

    def __init__(self, path: Path, *, timeout: float = 5.0, group: bool = False) -> None:
        self.path = Path(path)
        self._timeout = timeout
        self._group = group
        self._lock = ProcessLock()  # guards _idle and _pid
        self._idle: list[_Opened] = []
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"SQLiteIndex({str(self.path)!r})"

    def setup(self) -> None:
        """Make the file and its tables, or bring an older version's up to date."""
        with self._connection(create=True):
            pass

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Insert or replace records in one transaction."""
        values = [rows.row_of(record) for record in latest(records)]
        with self._connection(create=True) as connection:
            try:
                with _transaction(connection):
                    rows.insert(connection, values)
            except sqlite3.IntegrityError:  # two of one millisecond have drawn the same id, which is rare
                with _transaction(connection):
                    rows.insert_apart(connection, values)

    def find(self, reference: str) -> TraceRecord | None:
        """The record of that reference, or None."""
        sql = f"SELECT {rows.COLUMNS} FROM traces WHERE reference = ?"
        with self._reading() as connection:
            row = connection and connection.execute(sql, (clean_text(reference),)).fetchone()
        return rows.record_of(row) if row else None

    def search(self, query: Query) -> list[TraceRecord]:
        """The newest records that match."""
        with self._reading() as connection:
            return search(connection, query) if connection else []

    def tally(self, query: Query, *, slots: int = SLOTS, most: int | None = None) -> Tally:
        """Count the traces that match, or where that takes too long the newest of them."""
        with self._reading() as connection:
            if connection is None:
                return Tally(WIDTHS[0], {})
            return tally(connection, query, slots, self.tallied if most is None else most)

    def delete(self, references: Sequence[str]) -> None:
        """Forget these records."""
        with self._connection(create=True) as connection, _transaction(connection):
            for reference in references:
                connection.execute("DELETE FROM traces WHERE reference = ?", (clean_text(reference),))

    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """Records whose time is over, the oldest first."""
        sql = f"SELECT {rows.COLUMNS} FROM traces WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"
        with self._reading() as connection:
            if connection is None:
                return []
            return [rows.record_of(row) for row in connection.execute(sql, (rows.micros(now), limit))]

    def count_expired(self, now: datetime) -> int:
        """How many records' time is over."""
        sql = "SELECT count(*) FROM traces WHERE expires_at <= ?"
        with self._reading() as connection:
            return 0 if connection is None else int(connection.execute(sql, (rows.micros(now),)).fetchone()[0])

    def repair(self) -> None:
        """Set a file that cannot be read aside, as `<name>.damaged`, and make a new one in its place."""
        try:
            with self._connection(create=True) as connection:
                if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                    raise sqlite3.DatabaseError("the check found damage")
        except DamagedArchive:
            self.close()
            for suffix in ("-wal", "-shm"):
                _rename(f"{self.path}{suffix}", None)
            _rename(str(self.path), f"{self.path}.damaged")
            self.setup()

    def close(self) -> None:
        """Close the connections that are idle; those in use close with their call's end."""
        with self._lock():
            idle, self._idle = self._take_idle(), []
        for each in idle:
            each.connection.close()

    def __del__(self) -> None:
        """Whoever lets go of an archive without closing it leaves no connection behind."""
        with suppress(Exception):  # at the interpreter's end what this needs may be gone
            self.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection within a read transaction; None where there is no index yet."""
        if not self._is_there():
            yield None
            return
        with self._connection(create=False) as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    def _is_there(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:  # a folder above it that may not be opened, say
            raise StoreUnavailable(f"cannot use the index {self.path}: {error.strerror}") from error

    @contextmanager
    def _connection(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        with self._translated():
            opened = self._idle_connection() or self._connect(create)
            try:
                yield opened.connection
            except BaseException:
                opened.connection.close()  # rolls back, and drops whatever state the failure has left
                raise
            if opened.identity is None:
                opened.connection.close()
                return
            with self._lock():
                self._idle.append(opened)

    def _idle_connection(self) -> _Opened | None:
        """A connection to the file that is there now: it may have been deleted, or set aside and made anew."""
        identity = _identity(self.path)
        while True:
            with self._lock():
                idle = self._take_idle()
                if not idle:
                    return None
                opened = idle.pop()
            if opened.identity == identity:
                return opened
            opened.connection.close()

    def _take_idle(self) -> list[_Opened]:
        """The idle connections of this process. The lock is held."""
        if self._pid != os.getpid():
            _inherited.extend(self._idle)
            self._idle, self._pid = [], os.getpid()
        return self._idle

    def _connect(self, create: bool) -> _Opened:
        if create:
            self._make_file()
        uri = self.path.absolute().as_uri()
        try:
            return self._open(f"{uri}?mode={'rwc' if create else 'rw'}")
        except sqlite3.OperationalError:
            if create or os.access(self.path.parent, os.W_OK):
                raise
            # Who may only read can make no lock, and while nobody else has made one nobody writes: not for longer than
            # this call, though.
            return self._open(f"{uri}?mode=ro&immutable=1")._replace(identity=None)

    def _open(self, uri: str) -> _Opened:
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            rows.prepare_schema(connection, str(self.path), self._timeout)
        except BaseException:
            connection.close()
            raise
        return _Opened(connection, _identity(self.path))

    def _make_file(self) -> None:
        """Make an empty file, since SQLite would let others read it; what lies beside it gets the same rights."""
        try:
            make_folders(self.path.parent)
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                if self._group:
                    os.chmod(self.path, 0o640)
        except OSError as error:
            raise StoreUnavailable(f"cannot make the index {self.path}: {error.strerror}") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"cannot use the index {self.path} now: {error}") from error
        except sqlite3.DatabaseError as error:
            raise DamagedArchive(
                f"the index {self.path} is damaged ({error}); `trifle-otel reindex` makes it anew from the archive"
            ) from error


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _rename(path: str, target: str | None) -> None:
    with suppress(FileNotFoundError):
        if target is None:
            os.unlink(path)
        else:
            os.replace(path, target)
