"""`import`: traces out of files of OTLP JSON lines, into the archive."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import trifle_otel as trifle
from trifle_otel import configuration
from trifle_otel.cli.options import Place
from trifle_otel.cli.terminal import complain, progress
from trifle_otel.cli.upkeep import Failures
from trifle_otel.cli.visible import count
from trifle_otel.errors import UsageError
from trifle_otel.runtime import runtime

if TYPE_CHECKING:
    from trifle_otel.executions.importing import Import

FLUSH_TIMEOUT = 60.0  # seconds
MOST_COMPLAINTS = 20  # about lines of one file


def import_files(
    *files: Annotated[str, Parameter(allow_leading_hyphen=True)],
    retention: int | None = None,
    place: Place | None = None,
) -> int:
    """Archive the traces of files with OTLP JSON lines, as the collector's file exporter and the SDK's write them.

    Each local root span (a request, a task) becomes a trace. Importing a file again does no harm.

    Parameters
    ----------
    files
        Their paths, the oldest first where they follow each other; also with gzip; - for the standard input.
    retention
        Days that the traces are kept, from when they began [default: TRIFLE_RETENTION, else 7].
    """
    from trifle_otel.executions.importing import Import

    if not files:
        raise UsageError("no file is named")
    for path in files:
        if path.startswith("-") and path != "-":
            raise UsageError(f"no such option: {path}; a file of that name is ./{path}")
    place = place or Place()
    index = place.index or configuration.default_index()
    if retention is None:
        archive = trifle.configure(place.name, index=index)
    else:
        archive = trifle.configure(place.name, index=index, retention=retention)
    with Failures() as failures:
        work = Import(runtime(), lambda: trifle.flush(FLUSH_TIMEOUT))
        damaged = sum([_read(path, work) for path in files])
        work.finish()
        if not trifle.flush(FLUSH_TIMEOUT):
            complain(f"not all traces are in {archive.url} yet; `trifle-otel recover` ships what waits")
            damaged += 1
    _tell(work, len(files), runtime().settings.retention)
    return 1 if failures.code or damaged or work.tally.failed or not work.tally.spans else 0


def _tell(work: Import, files: int, retention: object) -> None:
    """Say what was done, and what became of the rest."""
    tally = work.tally
    print(f"Imported {count(tally.traces, 'trace')}: {count(tally.spans, 'span')} of {count(files, 'file')}.")
    if tally.known:
        print(f"Left out {count(tally.known, 'trace')} that this library recorded itself: they are archived in full.")
    for remark, times in work.remarks.items():
        complain(f"{remark} ({times:,})")
    if tally.failed:
        complain(f"{count(tally.failed, 'trace')} could not be archived")
    if isinstance(retention, int) and tally.oldest_ns is not None:
        age = (time.time_ns() - tally.oldest_ns) // (86_400 * 10**9)
        if age >= retention:
            days = count(retention, "day")
            complain(f"some began {age:,} days ago and are kept for {days}: `cleanup` deletes them, see --retention")


def _read(path: str, work: Import) -> int:
    """Read one file; gives how much of it could not be read: lines, spans, or all of it."""
    from trifle_otel.otlp.files import OtlpFile

    complaints = _Complaints(path)
    try:
        with OtlpFile(path, complaints) as file, progress(f"Reading {path}", _size(path)) as bar:
            for spans in file:
                work.add(spans)
                bar.update(bar.task_ids[0], completed=file.position)
    except OSError as error:
        complain(f"{path}: {error.strerror or error}")
        return 1
    except UsageError as error:  # the other files are read all the same
        complain(str(error))
        return 1
    if file.damaged_lines:
        lines = count(file.damaged_lines, "damaged line")
        complain(f"{path}: {lines} left out")
    return file.damaged_lines + file.refused_spans


def _size(path: str) -> int | None:
    return os.stat(path).st_size if path != "-" and Path(path).is_file() else None


class _Complaints:
    """Names damaged lines, but not without end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._count = 0

    def __call__(self, number: int, why: str) -> None:
        self._count += 1
        if self._count <= MOST_COMPLAINTS:
            complain(f"{self._path}, line {number:,}: {why}")
