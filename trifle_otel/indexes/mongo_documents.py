"""Documents of the MongoDB index: records as documents, documents of others as records, and searches as filters.

The client, and what its errors mean, are `mongo`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from trifle_otel.errors import DamagedArchive
from trifle_otel.indexes.remote import Buckets, time_of
from trifle_otel.records import Query, TraceRecord, empty_counters
from trifle_otel.strict_json import clean_text, from_json, to_json

INDEXES: tuple[tuple[tuple[str, int], ...], ...] = (
    (("segments", 1), ("first_at", -1), ("_id", -1)),
    (("tags", 1), ("first_at", -1), ("_id", -1)),
    (("state", 1), ("first_at", -1), ("_id", -1)),
    (("first_at", -1), ("_id", -1)),
    (("duration", 1), ("first_at", -1), ("_id", -1)),
    (("context.trace_id", 1), ("first_at", -1), ("_id", -1)),  # ours alone
)
TTL = (("expires_at", 1),)
NEWEST_FIRST = [("first_at", -1), ("_id", -1)]

_MAX = 2**63 - 1
_LONGEST_META = 8 * 2**20  # bytes; a document may have 16 MiB
_NANOSECONDS = 1_000_000  # in a millisecond, the smallest step of a BSON date


def id_of(reference: str) -> ObjectId | str:
    """What stands in `_id` for a reference."""
    reference = clean_text(reference)
    return ObjectId(reference) if len(reference) == 24 and ObjectId.is_valid(reference) else reference


def document_of(record: TraceRecord, buckets: Buckets, *, plain: bool = False) -> dict[str, Any]:
    """All of a record but its `_id`.

    `plain` is for records that a server has refused: texts are made clean, and in the context points in names,
    lists in lists and numbers above 64 bits become what every server takes.
    """
    document = {
        "key": record.key,
        "segments": list(record.segments),
        "state": record.state,
        "tags": list(record.tags),
        "meta": _meta(record.meta),
        "context": dict(record.context),
        "duration": min(record.duration, _MAX),
        "counters": dict(record.counters),
        "length": min(record.length, _MAX),
        "parts": min(record.parts, _MAX),
        "retention": min(record.retention, _MAX),
        "bucket_name": record.bucket_name,
        "bucket_id": buckets.position(record.bucket_name),
    }
    if plain:
        document = _plain(from_json(to_json(document)))
    if len(record.reference) == 24 and str(id_of(record.reference)) != record.reference:
        document["reference"] = clean_text(
            record.reference
        )  # an ObjectId forgets capitals, which are the payload's path
    return {**document, "first_at": record.first_at, "last_at": record.last_at, "expires_at": record.expires_at}


def record_of(document: Mapping[str, Any], buckets: Buckets) -> TraceRecord:
    """The record in a document, whoever wrote it. Raises `DamagedArchive` for one that is none."""
    reference = document.get("reference") or str(document["_id"])
    try:
        key = document["key"]
        return TraceRecord(
            reference=reference,
            key=key,
            segments=tuple(document["segments"]),
            state=document["state"],
            tags=tuple(document.get("tags") or ()),
            meta=_value(document.get("meta")),
            context=document.get("context") or {},
            duration=document.get("duration") or 0,
            counters=document.get("counters") or empty_counters(),
            length=document.get("length") or 0,
            parts=document.get("parts") or 0,
            first_at=document["first_at"],
            last_at=document["last_at"],
            retention=document["retention"],
            expires_at=document["expires_at"],
            bucket_name=document.get("bucket_name") or buckets.name(document.get("bucket_id")),
        )
    except (KeyError, TypeError) as error:
        raise DamagedArchive(f"the document {reference} is no trace's: {error!r}", reference=reference) from error


def filter_of(query: Query) -> dict[str, Any]:
    """The filter of a search."""
    conditions: dict[str, Any] = {}
    for name, value in (("segments", query.segment), ("state", query.state), ("context.trace_id", query.trace_id)):
        if value is not None:
            conditions[name] = clean_text(value)
    tags: dict[str, Any] = {}
    if query.any_tags:
        tags["$in"] = [clean_text(tag) for tag in query.any_tags]
    if query.all_tags:
        tags["$all"] = [clean_text(tag) for tag in query.all_tags]
    if tags:
        conditions["tags"] = tags
    if query.min_duration is not None:
        conditions["duration"] = {"$gte": max(-_MAX, min(query.min_duration, _MAX))}
    return {**conditions, **_time_filter(query)}


def _time_filter(query: Query) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    conditions: dict[str, Any] = {"first_at": bounds}
    if query.since is not None:
        bounds["$gte"] = _rounded_up(query.since)
    if query.until is not None:
        bounds["$lt"] = _rounded_up(query.until)
    if query.after is not None:
        moment = time_of(query.after.first_at_ns)
        bounds["$lte"] = moment
        if query.after.first_at_ns % _NANOSECONDS == 0:  # after a finer position, all of that millisecond come
            conditions["$or"] = [{"first_at": {"$lt": moment}}, *_smaller_ids(id_of(query.after.reference))]
    return conditions if bounds else {}


def _smaller_ids(identity: ObjectId | str) -> list[dict[str, Any]]:
    """Within a millisecond texts come after ObjectIds, and comparing finds values of the same type alone."""
    smaller: list[dict[str, Any]] = [{"_id": {"$lt": identity}}]
    return smaller if isinstance(identity, str) else [*smaller, {"_id": {"$type": "string"}}]


def _rounded_up(moment: datetime) -> datetime:
    """To whole milliseconds: what began in this millisecond is stored as having begun at its start."""
    rest = moment.microsecond % 1000
    try:
        return moment + timedelta(microseconds=1000 - rest) if rest else moment
    except OverflowError:
        return moment


def _meta(meta: Any) -> str | None:
    if meta is None:
        return None
    data = to_json(meta)
    if len(data) > _LONGEST_META:
        data = to_json(f"<{len(data):,} bytes, too many for a document; they are in the archive's record.json>")
    return data.decode()


def _value(meta: Any) -> Any:
    """What a JSON text says; anything else as it is."""
    if not isinstance(meta, str):
        return meta
    try:
        return from_json(meta.encode())
    except ValueError:
        return meta


def _plain(value: Any, in_list: bool = False) -> Any:
    if isinstance(value, dict):
        return {_plain_name(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return to_json(value).decode() if in_list else [_plain(item, in_list=True) for item in value]
    if isinstance(value, int) and not -_MAX <= value <= _MAX:
        return str(value)
    return value


def _plain_name(name: str) -> str:
    """A name with the look-alikes of the point, and of the dollar that begins it, as MongoDB's manual once advised."""
    name = name.replace(".", "．")
    return f"＄{name[1:]}" if name.startswith("$") else name
