"""Whether an archive can be used from here: by a test write and read, and by a look at its spool and its permissions.

What is found is plain data; `trifle-otel doctor` prints it.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from trifle_otel.errors import TrifleError
from trifle_otel.plain_files import make_folders
from trifle_otel.records import Folder, Query, TraceRecord
from trifle_otel.references import new_reference, reference_time, segments
from trifle_otel.spool import ASIDE, size_of

if TYPE_CHECKING:
    from trifle_otel.archive import Archive

MAX_SKEW = 5.0
"""Seconds that a file system's clock may differ from ours: records are ordered and expire by time."""

NEWEST = 20
"""Traces of which it is looked whether their payload is there: one request each, where the store is remote."""

OLD = timedelta(hours=1)
"""Age of what waits in the spool from which something must be wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: `success`, `warning` or `error`.
        message: what was found, and what to do about it.
    """

    what: str
    state: str
    message: str


def examine(archive: Archive) -> list[Finding]:
    """Look at everything; never raises for what is wrong with the archive."""
    findings: list[Finding] = []
    for what, look in _LOOKS.items():
        try:
            findings += [Finding(what, *found) for found in look(archive)]
        except (TrifleError, OSError) as error:
            findings.append(Finding(what, "error", str(error)))
    return findings


def _store(archive: Archive) -> Iterator[tuple[str, str]]:
    start = time.perf_counter()
    archive.store.check()
    yield "success", f"a test write and read took {(time.perf_counter() - start) * 1000:.1f} ms"


def _index(archive: Archive) -> Iterator[tuple[str, str]]:
    start = time.perf_counter()
    record = _test_record()
    archive.index.check()
    archive.index.put([record])
    try:
        found = archive.index.find(record.reference)
    finally:
        archive.index.delete([record.reference])
    if found is None or found.key != record.key or found.tags != record.tags:
        yield "error", "a record that was written did not come back as it was"
    else:
        yield "success", f"a test write and read took {(time.perf_counter() - start) * 1000:.1f} ms"


def _test_record() -> TraceRecord:
    """A record that nobody takes for a trace of theirs: of 2000, expired, gone at once."""
    then = datetime(2000, 1, 1, tzinfo=timezone.utc)
    key = "trifle/doctor"
    return TraceRecord(
        reference=new_reference(),
        key=key,
        segments=segments(key),
        first_at=then,
        last_at=then,
        retention=1,
        expires_at=then,
    )


def _spool(archive: Archive) -> Iterator[tuple[str, str]]:
    root = archive.spool
    if root is None:
        yield "warning", "there is none: what waits for this archive waits in memory"
        return
    make_folders(root)
    with tempfile.NamedTemporaryFile(dir=root) as file:
        file.write(b"check")
    waiting = [path for path in root.iterdir() if path.is_dir() and path.name != ASIDE]
    size = sum(map(size_of, waiting))
    yield "success", f"{root} can be written; {size:,} bytes of {len(waiting)} processes wait in it"
    oldest = min(_times(path for owner in waiting for path in owner.glob("*/record.json")), default=None)
    if oldest is not None and time.time() - oldest > OLD.total_seconds():
        hours = (time.time() - oldest) / 3600
        yield (
            "warning",
            f"something has waited there for {hours:.0f} hours; `trifle-otel recover` ships it, or says why not",
        )
    if archive.store.remote:
        yield from _spools_beside(root)
    aside = root / ASIDE
    if aside.is_dir() and any(aside.iterdir()):
        yield "warning", f"{len(list(aside.iterdir()))} traces could not be shipped and lie in {aside}"


def _spools_beside(root: Path) -> Iterator[tuple[str, str]]:
    """Traces that wait for other URLs: of other archives, or of this one before a bucket or a typing error changed."""
    others = [path for path in root.parent.iterdir() if path != root and next(path.glob("*/*/record.json"), None)]
    if others:
        names = ", ".join(map(str, sorted(others)[:3])) + (", …" if len(others) > 3 else "")
        yield (
            "warning",
            f"traces wait for an archive of another URL in {names}; `trifle-otel recover` ships them to that",
        )


def _times(paths: Iterable[Path]) -> Iterator[float]:
    """When each changed last; of those that are shipped meanwhile nothing."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime


def _permissions(archive: Archive) -> Iterator[tuple[str, str]]:
    looked_at = [(_local_folder(archive), 0o027 if archive.group else 0o077), (archive.spool, 0o077)]
    folders = [(path, others) for path, others in looked_at if path is not None and path.is_dir()]
    if os.name == "nt" or not folders:
        return
    for folder, others in folders:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & others:
            meant = f"`chmod {0o700 | (mode & 0o070 & ~others):o}` it unless that is meant"
            yield "warning", f"others on this machine may open {folder} (mode {mode:o}); {meant}"
        else:
            yield (
                "success",
                f"{folder} is its owner's alone" if others & 0o040 else f"{folder} is for its group to read",
            )


def _clock(archive: Archive) -> Iterator[tuple[str, str]]:
    newest = archive.index.search(Query(limit=1))
    ahead = (newest[0].first_at - datetime.now(timezone.utc)).total_seconds() if newest else 0
    if ahead > MAX_SKEW:
        of = f"trace {newest[0].reference}, which begins {ahead:,.0f} s from now"
        yield "warning", f"the clock of the machine that recorded {of}, or ours, is wrong: set both by NTP"
    folder = _local_folder(archive) or archive.spool
    if folder is None or not folder.is_dir():
        return
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        skew = os.fstat(file.fileno()).st_mtime - time.time()
    if abs(skew) > MAX_SKEW:
        yield "warning", f"the clock of {folder}'s file system differs from ours by {skew:.0f} s; set both by NTP"
    else:
        yield "success", f"ours and that of {folder}'s file system agree"


def _payloads(archive: Archive) -> Iterator[tuple[str, str]]:
    """Whether the newest traces have what their records say that they have."""
    records = archive.index.search(Query(limit=NEWEST))
    due = [record for record in records if record.parts and record.expires_at > datetime.now(timezone.utc)]
    gone = [record.reference for record in due if not archive.store.names(record.folder)]
    if gone:
        names = ", ".join(gone[:3]) + (", …" if len(gone) > 3 else "")
        of = f"{len(gone)} of the {len(due)} newest traces ({names})"
        yield "error", f"the payload of {of} is gone: deleted beside the index, or expired early by a lifecycle rule"
    elif due:
        yield "success", f"the {len(due)} newest traces have their payload" if len(due) > 1 else "the only trace has it"


def _unknown(archive: Archive) -> Iterator[tuple[str, str]]:
    """Whether the index knows some of the traces that are stored, whichever the store names first."""
    before = datetime.now(timezone.utc) - OLD  # a row may wait for a while
    found = [folder for folder in islice(archive.store.folders(), NEWEST) if _made_before(before, folder)]
    unknown = [folder.reference for folder in found if archive.index.find(folder.reference) is None]
    if unknown:
        names = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        of = f"{len(unknown)} of {len(found)} stored traces that were looked at ({names})"
        yield "warning", f"the index does not know {of}; `trifle-otel reindex` fills it from them"


def _made_before(moment: datetime, folder: Folder) -> bool:
    made = reference_time(folder.reference)
    return made is not None and made < moment


def _local_folder(archive: Archive) -> Path | None:
    url = urlsplit(archive.url)
    return Path(unquote(url.path)) if url.scheme == "file" else None


_LOOKS: dict[str, Callable[[Archive], Iterator[tuple[str, str]]]] = {
    "archive": _store,
    "index": _index,
    "payloads": _payloads,
    "unknown": _unknown,
    "spool": _spool,
    "permissions": _permissions,
    "clock": _clock,
}


def as_json(finding: Finding) -> str:
    """A finding as one line of JSON."""
    return json.dumps({"what": finding.what, "state": finding.state, "message": finding.message}, ensure_ascii=False)
