"""An index in MongoDB, in the collection that Trifle's other implementations use.

The client lives here, and what its errors mean. Documents and filters are `mongo_documents`'s business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

try:
    import pymongo
    from bson.errors import BSONError
    from pymongo import UpdateOne, errors
    from pymongo.uri_parser import parse_uri
except ImportError as error:
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(f"an index in MongoDB needs pymongo: pip install 'trifle-otel[mongo]' ({error})") from error

from trifle_otel.errors import ConfigurationError, DamagedArchive, StoreUnavailable, TrifleError, UsageError
from trifle_otel.indexes import remote
from trifle_otel.indexes.contract import Index, ProcessLock, latest
from trifle_otel.indexes.mongo_documents import INDEXES, NEWEST_FIRST, TTL, document_of, filter_of, id_of, record_of
from trifle_otel.indexes.remote import CONNECT_SECONDS, STATEMENT_SECONDS, Buckets, logger
from trifle_otel.records import RUNNING, Query, TraceRecord

COLLECTION = "trifle_traces"

_COLLECTION_NAME = re.compile(r"(?!system\.)[a-zA-Z_][a-zA-Z0-9_.-]*")
_TRIES = 4
_LIMITS = {
    "connectTimeoutMS": CONNECT_SECONDS * 1000,
    "serverSelectionTimeoutMS": CONNECT_SECONDS * 1000,
    "socketTimeoutMS": STATEMENT_SECONDS * 1000,
    "appname": "trifle_otel",
}
_PROBE = "trifle-otel-check"
# the server's codes
_UNAUTHORIZED = 13
_NOT_ALLOWED = {_UNAUTHORIZED, 18, 8000}  # a wrong login, and Atlas's word for both
_OTHERS_INDEX = {85, 86}  # there under another name, or another one under this name
_NOT_IMPLEMENTED = 238
_DUPLICATE = 11000
_TOO_LARGE = {10334, 17419, 17420}  # an update, and what would come of it
_REFUSALS = (errors.OperationFailure, BSONError, OverflowError, UnicodeError)
_PASSING = (errors.AutoReconnect, errors.ExecutionTimeout)

_Step = tuple[dict[str, Any], dict[str, Any], bool]  # a filter, an update, and whether it inserts
_Client = pymongo.MongoClient[dict[str, Any]]
_Result = TypeVar("_Result")

_inherited: list[_Client] = []  # a forked child may not even close its parent's connections


class MongoIndex(Index):
    """Records in a collection of MongoDB 4.4 or later.

    Times are kept to the millisecond, rounded down, as BSON has no finer ones. Within one millisecond references
    that are ObjectIds come before others. A client is made when it is needed; a forked child makes its own.

    Documents carry a bucket's name and, for Trifle 2.0 for Ruby, its position in `buckets`, 0 where it is not there.

    Args:
        url: as MongoDB's own tools take it, `mongodb://user@host:27017/database?tls=true`; it names the database.
        collection: its name.
        buckets: the names of the archive's buckets, in the order that Ruby is configured with.

    Raises `ConfigurationError` for a URL or a name that cannot be one.
    """

    remote = True

    def __init__(self, url: str, *, collection: str = COLLECTION, buckets: Sequence[str] = ()) -> None:
        if not _COLLECTION_NAME.fullmatch(collection):
            raise ConfigurationError(f"{collection!r} cannot be a collection's name")
        self._url = url
        self._limits = _limits(url)
        self._name = collection
        self._buckets = Buckets(buckets)
        self._lock = ProcessLock()  # guards _client and _pid
        self._client: _Client | None = None
        self._pid = os.getpid()
        self._is_set_up = False

    def __repr__(self) -> str:
        return f"MongoIndex({remote.shown(self._url)!r}, collection={self._name!r})"

    def setup(self) -> None:
        """Make the indexes that are missing, whatever the others' names are; the server makes the collection.

        Where the server cannot let documents expire (FerretDB 1), that is said: there `cleanup` deletes them.
        """
        self._call(self._set_up)

    def put(self, records: Sequence[TraceRecord]) -> None:
        """Insert or replace records, in one command where nothing is refused."""
        if records:
            kept = latest(records)
            self._call(lambda collection: self._put(collection, kept))

    def find(self, reference: str) -> TraceRecord | None:
        """The record of that reference, or None."""
        found = self._read(lambda collection: collection.find({"_id": id_of(reference)}))
        return found[0] if found else None

    def search(self, query: Query) -> list[TraceRecord]:
        """The newest records that match."""
        wanted = filter_of(query)
        return self._read(lambda collection: collection.find(wanted).sort(NEWEST_FIRST).limit(query.limit))

    def delete(self, references: Sequence[str]) -> None:
        """Forget these records."""
        if references:
            wanted = {"_id": {"$in": [id_of(reference) for reference in references]}}
            self._call(lambda collection: collection.delete_many(wanted))

    def expired(self, now: datetime, limit: int = 1000) -> list[TraceRecord]:
        """Records whose time is over."""
        return self._read(lambda collection: collection.find({"expires_at": {"$lte": now}}).limit(limit))

    def count_expired(self, now: datetime) -> int:
        """How many records' time is over."""
        over, limit = {"expires_at": {"$lte": now}}, STATEMENT_SECONDS * 1000
        return self._call(lambda collection: int(collection.count_documents(over, maxTimeMS=limit)))

    def check(self) -> None:
        """Prove that records can be written and read; nothing is written."""
        self.setup()
        self._call(lambda collection: collection.update_one({"_id": _PROBE}, {"$set": {"state": RUNNING}}))
        self.search(Query(limit=1))

    def close(self) -> None:
        """Close the connections."""
        with self._lock():
            client, self._client = self._client_here(), None
        if client is not None:
            client.close()

    def _read(self, find: Callable[[Any], Any]) -> list[TraceRecord]:
        def read(collection: Any) -> list[TraceRecord]:
            cursor = find(collection).max_time_ms(STATEMENT_SECONDS * 1000)
            return [record_of(document, self._buckets) for document in cursor]

        return self._call(read)

    def _put(self, collection: Any, records: Sequence[TraceRecord]) -> None:
        if not self._is_set_up:
            self._set_up(collection)
        steps = [UpdateOne(*step) for record in records for step in self._steps(record)]
        try:
            collection.bulk_write(steps, ordered=False)
        except _PASSING:
            raise
        except (*_REFUSALS, KeyError) as error:
            if _code(error) in _NOT_ALLOWED:
                raise
            # A record was refused, or two writers have met. FerretDB does not even go on behind it, and its answer
            # lacks what PyMongo counts (the KeyError). Putting a record again does no harm.
            for record in records:
                self._put_one(collection, record)

    def _put_one(self, collection: Any, record: TraceRecord) -> None:
        plain = False
        for tried in range(1, _TRIES + 1):
            try:
                for step in self._steps(record, plain=plain):
                    collection.update_one(*step)
            except _PASSING:
                raise
            except _REFUSALS as error:
                if tried == _TRIES:
                    kind = StoreUnavailable if _may_pass(error) else UsageError
                    said = _first_line(error)
                    raise kind(f"{self!r} refuses the record of {record.reference}: {said}") from error
                plain = plain or _code(error) != _DUPLICATE
            else:
                return

    def _steps(self, record: TraceRecord, *, plain: bool = False) -> list[_Step]:
        """What puts a record by the rule of `Index.put`, in whatever order the server takes it.

        Fields of others, in the documents that they made, stay.
        """
        document, identity = document_of(record, self._buckets, plain=plain), id_of(record.reference)
        if record.finished:
            return [({"_id": identity}, {"$set": document}, True)]
        older = {"_id": identity, "state": RUNNING, "parts": {"$lte": document["parts"]}}
        return [({"_id": identity}, {"$setOnInsert": document}, True), (older, {"$set": document}, False)]

    def _set_up(self, collection: Any) -> None:
        there = {tuple(index["key"].items()) for index in collection.list_indexes()}
        for keys in INDEXES:
            if keys not in there:
                self._make_index(collection, keys)
        if TTL not in there:
            self._make_ttl(collection)
        self._is_set_up = True

    def _make_ttl(self, collection: Any) -> None:
        try:
            self._make_index(collection, TTL, expireAfterSeconds=0)
        except errors.OperationFailure as error:
            if error.code != _NOT_IMPLEMENTED:
                raise
            logger.warning("%r has no expireAfterSeconds; `trifle-otel cleanup` deletes what is over", self)
            self._make_index(collection, TTL)

    def _make_index(self, collection: Any, keys: tuple[tuple[str, int], ...], **options: Any) -> None:
        try:
            collection.create_index(list(keys), **options)
        except errors.OperationFailure as error:
            if error.code == _UNAUTHORIZED:
                logger.warning("%r lacks an index on %s, which this user may not make", self, dict(keys))
            elif error.code not in _OTHERS_INDEX:
                raise

    def _call(self, work: Callable[[Any], _Result]) -> _Result:
        """Do work that does no harm when it is done twice: again where the server was restarted since the last time."""
        try:
            collection = self._collection()
            try:
                return work(collection)
            except errors.AutoReconnect as error:
                if isinstance(error, (errors.NetworkTimeout, errors.ServerSelectionTimeoutError)):
                    raise
                return work(collection)
        except (errors.PyMongoError, BSONError) as error:
            raise self._translated(error) from error
        except RuntimeError as error:
            if "new thread" not in str(error):
                raise
            # The driver's own threads cannot be started while the interpreter ends.
            raise StoreUnavailable(f"{self!r} cannot be used now: {error}") from error

    def _collection(self) -> Any:
        with self._lock():
            client = self._client_here()
            if client is None:
                client = self._client = pymongo.MongoClient(
                    self._url,
                    tz_aware=True,
                    tzinfo=timezone.utc,
                    datetime_conversion="DATETIME_CLAMP",
                    connect=False,
                    **self._limits,
                )
        return client.get_default_database()[self._name]

    def _client_here(self) -> _Client | None:
        """The client of this process. The lock is held."""
        if self._pid != os.getpid():
            if self._client is not None:
                _inherited.append(self._client)
            self._client, self._pid = None, os.getpid()
        return self._client

    def _translated(self, error: Exception) -> TrifleError:
        where = f"the index {remote.shown(self._url)}"
        said = remote.without_secrets(_first_line(error), self._url)
        # A look-up in DNS that fails is said as an error of configuration, and may pass.
        is_wrong = isinstance(error, errors.ConfigurationError) and not self._url.startswith("mongodb+srv:")
        if is_wrong or _code(error) in _NOT_ALLOWED:
            return ConfigurationError(f"{where} cannot be used: {said}")
        if isinstance(error, BSONError):
            return DamagedArchive(f"{where} holds what cannot be read: {said}")
        return StoreUnavailable(f"{where} cannot be used now: {said}")


def open_mongo(url: str, buckets: Sequence[str] = ()) -> MongoIndex:
    """The index at `mongodb://host:27017/database?collection=trifle_traces&buckets=a,b`.

    Other options are the driver's. No connection is made. Raises `ConfigurationError` for a URL that cannot be one.
    """
    rest, options = remote.split_options(url, ("collection", "buckets"))
    buckets = [name for name in options.get("buckets", "").split(",") if name] or buckets
    return MongoIndex(rest, collection=options.get("collection", COLLECTION), buckets=buckets)


def _limits(url: str) -> dict[str, Any]:
    """The time limits that the URL does not set itself. Raises `ConfigurationError` for a URL that PyMongo refuses."""
    shown = remote.shown(url)
    if not re.fullmatch(r"mongodb(\+srv)?://[^/?]+/[^/?]+(\?.*)?", url, re.DOTALL):
        raise ConfigurationError(f"{shown} names no database; it is mongodb://host:27017/database")
    if url.startswith("mongodb://"):  # the other kind is looked up in DNS
        try:
            parse_uri(url, warn=False)
        except (errors.PyMongoError, ValueError) as error:
            said = remote.without_secrets(_first_line(error), url)
            # Not the cause: it may show the password.
            raise ConfigurationError(
                f"{shown} is no URL of MongoDB: {said}; our own options are collection and buckets"
            ) from None
    given = {pair.partition("=")[0].lower() for pair in url.partition("?")[2].split("&")}
    return {name: value for name, value in _LIMITS.items() if name.lower() not in given}


def _code(error: Exception) -> int | None:
    return error.code if isinstance(error, errors.OperationFailure) else None


def _may_pass(error: Exception) -> bool:
    """Whether a refusal may be of the server's state: what cannot be encoded, or is too large, is never taken."""
    return isinstance(error, errors.OperationFailure) and error.code not in _TOO_LARGE


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
