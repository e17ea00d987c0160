"""Traces that were running when their process died: closed as errors, with everything that they left on disk.

Whose folder it is, and what becomes of it then, is `spool`'s and `adoption`'s business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trifle_otel.encoding import RECORD_NAME, decode_part, encode_part, encode_record, parse_part_name, part_name
from trifle_otel.errors import DamagedArchive
from trifle_otel.plain_files import read_plain, write_anew
from trifle_otel.records import ERROR, Entry, TraceRecord

_JOURNAL = re.compile(r"journal_([1-9][0-9]*)\.json(\.gz)?")


def close_dead(folder: Path, record: TraceRecord, owner: str) -> TraceRecord:
    """Close a trace whose process died: what was journaled become its parts, and a last line says what happened.

    Args:
        folder: of the trace, in the spool.
        record: what the process last said of it.
        owner: which process that was, for the line; may be empty.

    Raises `OSError` where the folder cannot be written. Doing it again after that does no harm.
    """
    for number, journal in sorted(journals(folder).items()):
        os.replace(journal, folder / part_name(number, compress=journal.suffix == ".gz"))
    parts, more = _unrecorded(folder, record.parts)
    now = datetime.now(timezone.utc)
    message = f"Trace was not finished: its process{owner} died"
    entry: dict[str, Any] = {"at": int(now.timestamp()), "message": message, "state": ERROR, "type": "text", "level": 0}
    entry["ns"] = int(now.timestamp() * 1_000_000_000)
    if record.span_id is not None:
        entry["span"] = record.span_id
    compress = not any(path.suffix == ".json" for path in _parts(folder).values())
    write_anew(folder / part_name(parts + 1, compress=compress), encode_part([entry], compress=compress))
    counters = _counted(record.counters, [*more, entry])
    closed = replace(record, state=ERROR, counters=counters, length=record.length + len(more) + 1, parts=parts + 1)
    temporary = folder / f".{RECORD_NAME}"
    write_anew(temporary, encode_record(closed))
    os.replace(temporary, folder / RECORD_NAME)
    return closed


def journals(folder: Path) -> dict[int, Path]:
    """What was journaled of a deferred trace, by the number of the part that it would be."""
    found = ((_JOURNAL.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}


def remove_journals(folder: str) -> None:
    """Remove what was journaled of a trace that has been written in full."""
    for journal in journals(Path(folder)).values():
        journal.unlink(missing_ok=True)


def _unrecorded(folder: Path, parts: int) -> tuple[int, list[dict[str, Any]]]:
    """Parts that were written after the record was: how many parts there are then, and their entries."""
    more: list[dict[str, Any]] = []
    found = _parts(folder)
    while parts + 1 in found:
        path = found[parts + 1]
        compressed = path.suffix == ".gz"
        try:
            entries = decode_part(read_plain(path), compressed=compressed)
        except DamagedArchive as error:  # its process died while it wrote it, or it is no file: keep what can be read
            entries = list(error.salvaged)
            write_anew(path, encode_part(entries, compress=compressed))
        more += entries
        parts += 1
    return parts, more


def _parts(folder: Path) -> dict[int, Path]:
    """The parts that are there, by their numbers."""
    named = ((parse_part_name(path.name), path) for path in sorted(folder.iterdir(), reverse=True))
    return {number[0]: path for number, path in named if number and not (path.is_dir() and not path.is_symlink())}


def _counted(counters: Mapping[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    states, types = dict(counters["states"]), dict(counters["types"])
    deepest = counters.get("max_level")
    level = deepest if type(deepest) is int else 0
    for entry in map(Entry, entries):
        level = max(level, entry.level)
        for counted, name in ((states, entry.state), (types, entry.type)):
            if type(counted.get(name)) is int:  # whoever can write into the spool may have put anything there
                counted[name] += 1
    return {**counters, "states": states, "types": types, "max_level": level}
