"""An index in PostgreSQL, in the table that Trifle's other implementations use.

Connections live here, and what the database's errors mean. The table and its SQL are in `postgres_table`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

try:
    import psycopg
    from psycopg import errors, sql
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:  # the package, or the library that it loads
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(
        f"an index in PostgreSQL needs psycopg: pip install 'trifle-otel[postgres]' ({error})"
    ) from error

from trifle_otel.errors import ConfigurationError, DamagedArchive, StoreUnavailable, TrifleError
from trifle_otel.indexes import remote
from trifle_otel.indexes.contract import Index, ProcessLock, latest
from trifle_otel.indexes.postgres_table import Look, Rows, Table, search, tally
from trifle_otel.indexes.remote import CONNECT_SECONDS, STATEMENT_SECONDS, Buckets, logger
from trifle_otel.records import RUNNING, Query, TraceRecord
from trifle_otel.strict_json import clean_text
from trifle_otel.tallies import MOST, SLOTS, WIDTHS, Cell, Tally, tally_of

if TYPE_CHECKING:
    from psycopg.abc import PQGen

TABLE = "trifle_traces"

_TABLE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_MOST_IDLE = 4
_TRIES = 4
_STALLED_SECONDS = STATEMENT_SECONDS + 5  # a server that has not even cancelled the statement by then
_PROBE = "trifle-otel-check"
_WRONG = ("28", "3D", "3F", "42", "23")  # classes of errors: logins, databases, schemas, tables and rights, their shape
# What the server says about a login comes without a code, in its own language; what is not known here may pass.
_REFUSED = re.compile(
    r"password authentication failed|no password supplied|authentication failed|no pg_hba\.conf entry"
    r"|(?:role|database) \".*\" does not exist|permission denied for database|is not permitted to log in"
    r"|certificate|server does not support SSL",
)

_Result = TypeVar("_Result")


class _Stalled(psycopg.OperationalError):
    """The server has not answered in time."""


class _Connection(psycopg.Connection[Any]):
    """A connection on which no call waits for ever: the server's own limit does not help where it hangs."""

    def wait(self, gen: PQGen[_Result], *args: Any, **options: Any) -> _Result:
        return super().wait(_bounded(gen, time.monotonic() + _STALLED_SECONDS), *args, **options)


def _bounded(gen: PQGen[_Result], deadline: float) -> Generator[Any, Any, _Result]:
    """The same steps, as long as there is time; psycopg makes one at least every tenth of a second."""
    try:
        wish = next(gen)
        while True:
            ready = yield wish
            if not ready and time.monotonic() > deadline:
                raise _Stalled(f"no answer for {_STALLED_SECONDS} s")
            wish = gen.send(ready)
    except StopIteration as done:
        result: _Result = done.value
        return result


_inherited: list[_Connection] = []  # a forked child may not even close its parent's connections


class PostgresIndex(Index):
    """Records in a table of PostgreSQL 12 or later.

    Connections are made when they are needed, one for each call that runs, and some are kept. A forked child makes
    its own. Within one microsecond references are ordered by their bytes.

    A table of Trifle 2.0 for Ruby knows a bucket by its position (`bucket_id`): there a record's bucket is stored as
    its position in `buckets`, as 0 where it is not among them, and read back by it.

    Args:
        url: as PostgreSQL's own tools take it, `postgresql://user@host:5432/database?sslmode=…`.
        table: its name, not quoted: capitals make no difference.
        buckets: the names of the archive's buckets, in the order that Ruby is configured with.

    Raises `ConfigurationError` for a URL or a name that cannot be one.
    """

    remote = True
    tallied = MOST

    def __init__(self, url: str, *, table: str = TABLE, buckets: Sequence[str] = ()) -> None:
        if not _TABLE_NAME.fullmatch(table):
            raise ConfigurationError(f"{table!r} cannot be a table's name; it is letters, digits and _, no digit first")
        self._url = url
        self._options = _options(url)
        self._table = Table(table)
        self._buckets = Buckets(buckets)
        self._lock = ProcessLock()  # guards _idle and _pid
        self._idle: list[_Connection] = []
        self._pid = os.getpid()
        self._rows: Rows | None = None  # None: the table has not been looked at

    def __repr__(self) -> str:
        return f"PostgresIndex({remote.shown(self._url)!r}, table={self._table.name!r})"

    def setup(self) -> None:
        """Make the table and its indexes where they are missing. What others made is left as it is.

        An index that may not be made now (the table is large or busy, or another's) is said in a warning, with the
        statement that makes it: searches are right without it, and slower.
        """
        self._call(self._set_up)

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Insert or replace records in one statement."""
        if records:
            kept = latest(records)
            self._call(lambda connection: self._put(connection, kept))

    def find(self, reference: str) -> TraceRecord | None:
        """The record of that reference, or None."""
        found = self._read(lambda rows: (rows.select + sql.SQL(" WHERE reference = %s"), [clean_text(reference)]))
        return found[0] if found else None

    def search(self, query: Query) -> list[TraceRecord]:
        """The newest records that match."""
        return self._read(lambda rows: search(rows, query))

    def tally(self, query: Query, *, slots: int = SLOTS, most: int | None = None) -> Tally:
        """Count the newest traces that match, in one statement."""
        most = self.tallied if most is None else most

        def count(connection: _Connection) -> list[Any]:
            return connection.execute(*tally(self._known(connection), query, slots, most)).fetchall()

        found = self._call(count)
        if not found:
            return Tally(WIDTHS[0], {})
        cells = [Cell(*row[2:]) for row in found]
        oldest = min(row[1] for row in found).astimezone(timezone.utc)
        return tally_of(cells, found[0][0], oldest, partial=sum(cell.traces for cell in cells) == most)

    def delete(self, references: Sequence[str]) -> None:
        """Forget these records."""
        if references:
            statement = sql.SQL("DELETE FROM {} WHERE reference = ANY(%s)").format(self._table.identifier)
            wanted = [clean_text(reference) for reference in references]
            self._call(lambda connection: connection.execute(statement, (wanted,)))

    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """Records whose time is over, the oldest first."""
        rest = sql.SQL(" WHERE expires_at <= %s ORDER BY expires_at LIMIT %s")
        return self._read(lambda rows: (rows.select + rest, [now, limit]))

    def count_expired(self, now: datetime) -> int:
        """How many records' time is over."""

        def count(connection: _Connection) -> int:
            self._known(connection)
            statement = sql.SQL("SELECT count(*) FROM {} WHERE expires_at <= %s").format(self._table.identifier)
            return sum(row[0] for row in connection.execute(statement, [now]))

        return self._call(count)

    def check(self) -> None:
        """Prove that records can be written and read, and leave none. Raises as the contract says."""
        self.setup()
        self._call(self._probe)

    def close(self) -> None:
        """Close the connections that are idle."""
        self._drop_idle()

    def _read(self, statement: Callable[[Rows], tuple[sql.Composed, list[Any]]]) -> list[TraceRecord]:
        def read(connection: _Connection) -> list[TraceRecord]:
            rows = self._known(connection)
            return [rows.record_of(row) for row in connection.execute(*statement(rows))]

        return self._call(read)

    def _put(self, connection: _Connection, records: Sequence[TraceRecord]) -> None:
        rows = self._rows or self._set_up(connection)
        for part in rows.parts(records):
            connection.execute(rows.insert, (part,))

    def _probe(self, connection: _Connection) -> None:
        now = datetime.now(remote.EPOCH.tzinfo)
        record = TraceRecord(
            reference=_PROBE,
            key=_PROBE,
            segments=(),
            state=RUNNING,
            first_at=now,
            last_at=now,
            retention=0,
            expires_at=now,
        )
        with connection.transaction(force_rollback=True):
            self._put(connection, [record])
            connection.execute(self._known(connection).select + sql.SQL(" LIMIT 1"))

    def _known(self, connection: _Connection) -> Rows:
        """How the table is used, which is looked up once. Raises `ConfigurationError` where there is none."""
        if self._rows is None:
            look = self._table.look(connection)
            self._table.check(look)
            if not look.exists:
                raise ConfigurationError(
                    f"there is no table {self._table.name} in {remote.shown(self._url)}; `trifle-otel setup` makes it"
                )
            self._rows = Rows(self._table, look, self._buckets)
        return self._rows

    def _set_up(self, connection: _Connection) -> Rows:
        look = self._table.look(connection)
        self._table.check(look)
        if not look.exists or self._table.missing_indexes(look):
            look = self._make(connection)
        self._rows = Rows(self._table, look, self._buckets)
        return self._rows

    def _make(self, connection: _Connection) -> Look:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '2s'")  # writers would wait behind us
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"trifle {self._table.name}",))
            look = self._table.look(connection)  # another process may have been quicker
            if not look.exists:
                connection.execute(self._table.create())
                connection.execute(self._table.sharpen())
                look = self._table.look(connection)
            for statement in self._table.missing_indexes(look):
                self._make_index(connection, statement, look)
        self._table.check(look)
        return look

    def _make_index(self, connection: _Connection, statement: sql.Composed, look: Look) -> None:
        reason = "it is large"
        if not look.large:
            try:
                with connection.transaction():
                    connection.execute(statement)
            except (errors.InsufficientPrivilege, errors.LockNotAvailable, errors.QueryCanceled) as error:
                reason = _first_line(error)
            else:
                return
        text = statement.as_string(connection).replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY")
        logger.warning("the table %s lacks an index (%s); to make it: %s", self._table.name, reason, text)

    def _call(self, work: Callable[[_Connection], _Result]) -> _Result:
        """Do work that does no harm when it is done twice, again where that may help at once."""
        for tried in range(1, _TRIES + 1):
            idle = self._idle_connection()
            try:
                return self._once(idle or self._connect(), work)
            except psycopg.Error as error:
                if tried == _TRIES or not self._may_help(error, idle is not None):
                    raise self._translated(error) from error
        raise AssertionError("not reached")

    def _once(self, connection: _Connection, work: Callable[[_Connection], _Result]) -> _Result:
        try:
            result = work(connection)
        except BaseException:
            connection.close()  # rolls back, and drops whatever state the failure has left
            raise
        with self._lock():
            idle = self._take_idle()
            if len(idle) < _MOST_IDLE:
                idle.append(connection)
                return result
        connection.close()
        return result

    def _may_help(self, error: psycopg.Error, was_idle: bool) -> bool:
        if isinstance(error, (errors.UndefinedTable, errors.UndefinedColumn)):
            self._rows = None  # it was dropped or changed
            return True
        if isinstance(error, (errors.DeadlockDetected, errors.SerializationFailure)):
            return True
        is_lost = isinstance(error, psycopg.OperationalError) and (error.sqlstate or "08").startswith(("08", "57P"))
        if was_idle and is_lost and not isinstance(error, _Stalled):
            self._drop_idle()  # the server was restarted in the meantime: the others are of no use either
            return True
        return False

    def _connect(self) -> _Connection:
        return _Connection.connect(self._url, autocommit=True, prepare_threshold=None, **self._options)

    def _idle_connection(self) -> _Connection | None:
        with self._lock():
            idle = self._take_idle()
            return idle.pop() if idle else None

    def _drop_idle(self) -> None:
        with self._lock():
            idle, self._idle = self._take_idle(), []
        for connection in idle:
            connection.close()

    def _take_idle(self) -> list[_Connection]:
        """The idle connections of this process. The lock is held."""
        if self._pid != os.getpid():
            _inherited.extend(self._idle)
            self._idle, self._pid = [], os.getpid()
        return self._idle

    def _translated(self, error: psycopg.Error) -> TrifleError:
        where = f"the index {remote.shown(self._url)}"
        said = remote.without_secrets(_first_line(error), self._url)
        code = error.sqlstate or ""
        if code.startswith(_WRONG) or (not code and _REFUSED.search(str(error))):
            return ConfigurationError(f"{where} cannot be used: {said}")
        if isinstance(error, psycopg.DataError):
            return DamagedArchive(f"{where} holds or was given what cannot be taken: {said}")
        return StoreUnavailable(f"{where} cannot be used now: {said}")


def open_postgres(url: str, buckets: Sequence[str] = ()) -> PostgresIndex:
    """The index at `postgresql://user@host:5432/database?table=trifle_traces&buckets=a,b`; other options are libpq's.

    No connection is made. Raises `ConfigurationError` for a URL that cannot be one.
    """
    rest, options = remote.split_options(url, ("table", "buckets"))
    buckets = [name for name in options.get("buckets", "").split(",") if name] or buckets
    return PostgresIndex(rest, table=options.get("table", TABLE), buckets=buckets)


def _options(url: str) -> dict[str, Any]:
    """What is told to libpq beside the URL. Raises `ConfigurationError` for a URL that it does not take."""
    try:
        given = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeDecodeError) as error:
        undecoded = isinstance(error, UnicodeDecodeError)
        said = "%-escapes that are not UTF-8" if undecoded else remote.without_secrets(_first_line(error), url)
        # Not the cause: it may show the password.
        raise ConfigurationError(
            f"{remote.shown(url)} is no URL of PostgreSQL: {said}; our own options are table and buckets"
        ) from None
    limits = f"-c statement_timeout={STATEMENT_SECONDS}s -c timezone=UTC {given.get('options') or ''}"
    return {
        "connect_timeout": given.get("connect_timeout") or CONNECT_SECONDS,
        "application_name": given.get("application_name") or "trifle_otel",
        "client_encoding": "utf8",
        "options": limits.strip(),
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
