"""Targets: what a process that died in the midst of it has left on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from trifle_otel.archive import Archive
from trifle_otel.errors import TrifleError
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.otlp.spans import PROTOBUF, MalformedRequest, parse_request, spans_of
from trifle_otel.receiver.journal import Journal
from trifle_otel.runtime import Troubles
from trifle_otel.shipper import Shipper
from trifle_otel.spool import Spool
from trifle_otel.stores.memory import MemoryStore

from .claims import check_entries, check_record
from .inputs import SEPARATOR, choice

TRACE = "00000001-01M85RBZMWKQ5T057R2XGV9YXE"
SPOOLED = (
    f"{TRACE}/record.json",
    f"{TRACE}/data_1.json",
    f"{TRACE}/data_1.json.gz",
    f"{TRACE}/data_2.json",
    f"{TRACE}/journal_1.json",
    f"{TRACE}/journal_2.json.gz",
    f"{TRACE}/artifacts/page.html",
    f"{TRACE}/.record.json",
    f"{TRACE}/ignored.json",
    "rows-00000002.json",
    "lock",
)
JOURNALED = ("0000000001.pb", "0000000002.pb", "done-0000000003.log", "done-0000000004.log", ".0000000005.pb", "lock")
MOST_FILES = 8


def spool(data: bytes) -> None:
    """A folder of the spool: traces, journals, notes of rows; brought into the archive."""
    root = _left(data, SPOOLED)
    archive = Archive(MemoryStore(), MemoryIndex())
    raised: list[BaseException] = []
    troubles = Troubles(raised.append)
    Shipper(archive.store, archive.index, Spool(root), troubles).adopt()
    for error in raised:
        if not isinstance(error, TrifleError):  # those are put aside
            raise error
    for record in archive.search(limit=1000).records:
        check_record(record)
        check_entries([entry.stored for entry in archive.entries(record)])


def journal(data: bytes) -> None:
    """The journal of a receiver: requests, and logs of which spans are done; taken over by another receiver."""
    root = _left(data, JOURNALED)
    taken = Journal(root)
    taken.open()
    try:
        for entry in taken.adopt():
            try:
                spans = spans_of(parse_request(entry.read(), PROTOBUF))
            except MalformedRequest:
                taken.set_aside(entry)
                continue
            entry.left = len(spans) - len(entry.done)
            assert entry.left >= 0 or not spans or max(entry.done) >= len(spans)
            taken.settle({entry: [number for number in range(len(spans)) if number not in entry.done]})
    finally:
        taken.close()


def _left(data: bytes, names: tuple[str, ...]) -> Path:
    """A root with the folder of one dead process: of each piece of the input, the first byte names its file."""
    root = Path(_folder().name, "spool")
    shutil.rmtree(root, ignore_errors=True)
    dead = root / "host-1-dead"
    dead.mkdir(parents=True)
    (dead / "lock").touch()
    for piece in data.split(SEPARATOR, MOST_FILES - 1):
        name, contents = choice(piece, names)
        os.makedirs((dead / name).parent, exist_ok=True)
        (dead / name).write_bytes(contents)
    return root


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trifle-fuzzing-")
