"""Our own side of the conformance suite: `python -m tests.conformance.adapter` reads questions and writes answers."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import trifle_otel as trifle
from trifle_otel import Archive, calls, configuration, delivery, encoding, frames, recording
from trifle_otel.errors import TrifleError
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.indexes.mongo_documents import document_of, id_of
from trifle_otel.indexes.mongo_documents import record_of as record_of_document
from trifle_otel.indexes.postgres_table import Look, Rows, Table
from trifle_otel.indexes.remote import Buckets
from trifle_otel.records import TraceRecord
from trifle_otel.runtime import runtime
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.lifecycle import rules
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.stores.object_urls import parse_object_url
from trifle_otel.stores.objects import ObjectStore

_Given = Mapping[str, Any]
_Answer = dict[str, Any]


def answer(kind: str, given: _Given) -> _Answer:
    """The answer to a question; an error of ours is one too."""
    try:
        return _KINDS[kind](given)
    except TrifleError as error:
        return {"error": type(error).__name__}


# --- Writing


class _GoneError(Exception):
    """What leaves blocks and traces in cases."""


class _Clock:
    """Stands still, but for the waits of a case. Nanoseconds."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@contextmanager
def _standing_still(clock: _Clock) -> Iterator[None]:
    """Have recording read this clock, which no argument of a public function sets."""
    places: list[tuple[Any, str, Any]] = [
        (frames, "time_ns", clock),
        (recording, "time_ns", clock),
        (recording, "monotonic_ns", clock),
        (calls, "time_ns", clock),
        (delivery, "time", _Time(time, clock)),
    ]
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, function in places:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), function in zip(places, before, strict=True):
            setattr(module, name, function)


class _Time:
    """The module `time`, but for what time it is."""

    def __init__(self, module: Any, clock: _Clock) -> None:
        self._module = module
        self.time_ns = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Writing:
    """One trace, recorded call by call."""

    def __init__(self, given: _Given, folder: Path) -> None:
        settings = given.get("settings", {})
        self.given = given
        self.folder = folder
        self.looks: list[_Answer] = []
        self.clock = _Clock(given["time"])
        self.archive = trifle.configure(
            str(folder),
            index="memory:conformance",
            gzip=settings.get("gzip", True),
            default_mode=settings.get("mode", "live"),
            payload_size_limit=settings.get("payload_size_limit", 102_400),
            retention=settings.get("retention", 7),
            serializer="str",
            context=settings.get("context", {}),
        )

    def run(self) -> _Answer:
        with _standing_still(self.clock), suppress(_GoneError), self._tracer():
            self._calls(self.given["calls"])
        trifle.flush(10)
        return {**self._look(), "looks": self.looks, "clock": "fixed"}

    def _tracer(self) -> trifle.tracer:
        return trifle.tracer(
            self.given["key"],
            meta=self.given.get("meta"),
            tags=self.given.get("tags", ()),
            reference=self.given.get("reference"),
        )

    def _calls(self, given: Sequence[_Given]) -> None:
        for call in given:
            getattr(self, f"_{call['call']}")(call)

    def _line(self, call: _Given) -> None:
        trifle.trace(call["message"], state=call.get("state", "success"), head=call.get("head", False))

    def _block(self, call: _Given) -> None:
        try:
            with trifle.block(
                call["message"], state=call.get("state", "success"), head=call.get("head", False)
            ) as step:
                self._calls(call.get("calls", ()))
                step.result(call.get("result"))
        except _GoneError:
            if not call.get("rescued"):
                raise

    def _raise(self, call: _Given) -> None:
        raise _GoneError(call["message"])

    def _tag(self, call: _Given) -> None:
        trifle.tag(call["tag"])

    def _state(self, call: _Given) -> None:
        {"warning": trifle.warn, "error": trifle.fail, "success": trifle.succeed}[call["state"]]()

    def _ignore(self, call: _Given) -> None:
        trifle.ignore()

    def _artifact(self, call: _Given) -> None:
        trifle.artifact(call["name"], _bytes(call["contents"]))

    def _wait(self, call: _Given) -> None:
        self.clock.now += call["ns"]

    def _flush(self, call: _Given) -> None:
        sink, running = runtime().sink, trifle.current()
        assert sink is not None
        assert running is not None
        sink.bump(running)
        trifle.flush(10)

    def _look(self, call: _Given | None = None) -> _Answer:
        files = {
            path.relative_to(self.folder).as_posix(): base64.b64encode(path.read_bytes()).decode()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and ".spool" not in path.parts and path.name != "record.json"  # which is ours alone
        }
        records = self.archive.search(limit=2).records
        assert len(records) <= 1
        seen: _Answer = {"files": files, "record": encoding.record_fields(records[0]) if records else None}
        if call is not None:
            self.looks.append(seen)
        return seen


def _write(given: _Given) -> _Answer:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _Writing(given, Path(folder)).run()
        finally:
            configuration.reset()


# --- Reading


def _read(given: _Given) -> _Answer:
    record = encoding.decode_record(json.dumps(given["record"]).encode())
    with tempfile.TemporaryDirectory() as folder:
        for name, contents in given["files"].items():
            path = Path(folder, given["path"], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_bytes(contents))
        archive = Archive(FileStore(Path(folder)), MemoryIndex())
        entries = archive.entries(record)
        names = [name for name in archive.store.names(record.folder) if name.startswith("artifacts/")]
        artifacts = {name.removeprefix("artifacts/"): name for name in names}
        return {
            "entries": [entry.stored for entry in entries],
            "levels": [entry.level for entry in entries],
            "artifacts": {name: _as_base64(archive.artifact(record, name)) for name in artifacts},
            "damaged": [damage.part for damage in entries.damaged],
        }


def _search(given: _Given) -> _Answer:
    archive = Archive(MemoryStore(), MemoryIndex())
    archive.index.put([_record(fields) for fields in given["records"]])
    query = {_QUERY[name]: value for name, value in given["query"].items()}
    pages, cursors = [], []
    while True:
        page = archive.search(**query)
        pages.append([record.reference for record in page.records])
        cursors.append(page.cursor)
        if page.cursor is None or not given.get("all_pages"):
            return {"pages": pages, "cursors": cursors}
        query["cursor"] = page.cursor


_QUERY = {
    "segment": "segment",
    "tags_any": "any_tags",
    "tags_all": "all_tags",
    "state": "state",
    "from": "since",
    "to": "until",
    "duration_min": "min_duration",
    "limit": "limit",
    "cursor": "cursor",
}


def _cleanup(given: _Given) -> _Answer:
    archive = Archive(MemoryStore(), MemoryIndex())
    for fields in given["records"]:
        record = _record(fields)
        archive.store.write(record.folder, "data_1.json", b"[]")
        archive.index.put([record])
    archive.cleanup(now=encoding.parse_time(given["now"]))
    left = archive.search(limit=1000).records
    return {
        "left": sorted(record.reference for record in left),
        "folders": sorted(folder.path for folder in archive.store.folders()),
    }


# --- Names


def _path(given: _Given) -> _Answer:
    record = _record(given["record"])
    name = encoding.artifact_name(given["artifact"])
    part = encoding.part_name(given["part"], compress=given["gzip"])
    store = ObjectStore(parse_object_url(f"s3://{record.bucket_name}/{given.get('prefix', '')}"))
    objects = store.uri(record.folder).removeprefix(f"s3://{record.bucket_name}/")
    return {
        "files": [f"{record.folder.path}/{part}", f"{record.folder.path}/{name}"],
        "objects": [f"{objects}/{part}", f"{objects}/{name}"],
    }


def _lifecycle(given: _Given) -> _Answer:
    (rule,) = rules([given["days"]], given.get("prefix", "traces"))
    return {"id": rule["ID"], "prefix": rule["Filter"]["Prefix"], "days": rule["Expiration"]["Days"]}


# --- Records in databases


def _document(given: _Given) -> _Answer:
    """A record as a document or a row, and back; dates and ObjectIds as MongoDB's extended JSON writes them."""
    buckets = Buckets(given.get("buckets", ()))
    if "record" in given:
        record = _record(given["record"])
        document = {"_id": _extended(id_of(record.reference)), **document_of(record, buckets)}
        return {"document": {name: _extended(value) for name, value in document.items()}}
    stored = given["document"] if "document" in given else given["row"]
    plain = {name: _plain(value) for name, value in stored.items()}
    if "document" in given:
        return {"record": encoding.record_fields(record_of_document(plain, buckets))}
    names = [name for name in plain if name not in ("bucket_name", "bucket_id")]
    columns = dict.fromkeys(plain, "text")
    rows = Rows(Table("trifle_traces"), Look("UTF8", 0, columns, set(), set(), True), buckets)
    values = [plain[name] for name in [*names, *(name for name in ("bucket_name", "bucket_id") if name in plain)]]
    return {"record": encoding.record_fields(rows.record_of(values))}


def _extended(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"$date": encoding.format_time(value)}
    return {"$oid": str(value)} if type(value).__name__ == "ObjectId" else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"$date"}:
        return datetime.fromisoformat(value["$date"].replace("Z", "+00:00")).astimezone(timezone.utc)
    return value["$oid"] if isinstance(value, dict) and value.keys() == {"$oid"} else value


# ---


def _record(fields: _Given) -> TraceRecord:
    return encoding.decode_record(json.dumps(fields).encode())


def _bytes(contents: Mapping[str, str]) -> bytes:
    return base64.b64decode(contents["$base64"]) if "$base64" in contents else contents["$text"].encode()


def _as_base64(data: bytes) -> dict[str, str]:
    return {"$base64": base64.b64encode(data).decode()}


_KINDS: Mapping[str, Callable[[_Given], _Answer]] = {
    "write": _write,
    "read": _read,
    "search": _search,
    "cleanup": _cleanup,
    "path": _path,
    "lifecycle": _lifecycle,
    "document": _document,
}


def main() -> None:
    """Answer until there are no more questions."""
    for line in sys.stdin.buffer:
        question = json.loads(line)
        sys.stdout.buffer.write(json.dumps(answer(question["kind"], question["given"])).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
