"""From a recording in memory to a parcel on local disk: what makes a trace durable before its `with` returns.

Where the disk refuses, memory holds it. What becomes of parcels is `shipper`'s business, their
layout on disk `spool`'s, and the bytes come from `packing`. A small clock thread flushes traces
that are running, so that one that hangs or dies has left what it recorded.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trifle_otel.clock import Clock
from trifle_otel.closing import remove_journals
from trifle_otel.encoding import RECORD_NAME, artifact_name, encode_record
from trifle_otel.interruptions import is_interruption
from trifle_otel.metrics import Metrics
from trifle_otel.packing import pack, record_of
from trifle_otel.parcels import Parcel
from trifle_otel.recording import Recording, open_recordings
from trifle_otel.records import RUNNING, Folder, TraceRecord, empty_counters
from trifle_otel.runtime import Troubles, announce
from trifle_otel.shipper import Shipper
from trifle_otel.spool import IGNORED, Spool, save

if TYPE_CHECKING:
    from trifle_otel.archive import Archive
    from trifle_otel.settings import Settings

FIRST_BUMP: Final = 1.0  # seconds after which a trace that is still running is first flushed
MEMORY_FILE: Final = 16 << 20  # bytes of a source file that memory takes where the disk refuses


@dataclass(slots=True)
class Held:
    """What a running trace has handed over: files in its folder of the spool, or in memory where that fails."""

    folder: str | None = None
    files: dict[str, bytes | Path] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)  # artifacts that no bump has taken along yet
    size: int = 0  # bytes that no bump has taken along yet
    announced: bool = False
    bumped: bool = False
    encoded: bytes = b""  # the record of `parcel`
    kept: int = 0  # lines that are there, and not let go of yet
    parcel: Parcel | None = None  # once all of it is there, the record last
    journaled: int = 0  # lines of a deferred trace that its journal has
    journal: list[str] = field(default_factory=list)  # messages that only the journal refers to


class Delivery:
    """The sink of a configured process."""

    def __init__(
        self, archive: Archive, spool: Spool | None, settings: Settings, troubles: Troubles, *, direct: bool = False
    ) -> None:
        """`direct`: the archive is local and its folder holds the spool, so that finished traces move in at once."""
        self.archive = archive
        self.settings = settings
        self.troubles = troubles
        self.spool = spool
        self.direct = direct
        self.shipper = Shipper(
            archive.store, archive.index, spool, troubles, limit=settings.spool_limit, age=settings.spool_age
        )
        self.metrics = Metrics(self.shipper.waits)
        self.shipper.on_shipped = self.metrics.shipped
        troubles.also = self.metrics.problem
        self._clock: Clock | None = None
        self._starting = threading.Lock()  # guards the making of `_clock`
        _deliveries.add(self)

    def place(self, recording: Recording) -> str | None:
        """See `runtime.Sink`."""
        recording.spooled = Held()
        clock = self._clock
        if clock is None:
            clock = self._start_clock()
        clock.begin()
        return self.archive.store.pick_bucket()

    def _start_clock(self) -> Clock:
        with self._starting:
            if self._clock is None:
                self._clock = Clock(self._look, self.troubles)
            return self._clock

    def uri(self, recording: Recording) -> str | None:
        """See `runtime.Sink`."""
        folder = Folder(recording.settle_retention(), recording.key, recording.reference, recording.bucket)
        return self.archive.store.uri(folder)

    def finish(self, recording: Recording) -> None:
        """See `runtime.Sink`."""
        try:
            with recording.packing:
                self._finish(recording)
        except Exception as error:  # ours: the job goes on
            self.troubles.report("a trace was lost when it ended", error)
            recording.take()

    def bump(self, recording: Recording) -> None:
        """See `runtime.Sink`."""
        try:
            with recording.packing:
                if recording.lines is None or recording.ignored:
                    return
                recording.bumped = time.monotonic()
                if recording.mode == "live":
                    self._bump(recording)
                else:
                    self._journal(recording)
            announce("bump", recording)
        except Exception as error:  # ours: the job goes on
            self.troubles.report("a running trace could not be flushed", error)

    def artifact(self, recording: Recording, name: str, source: bytes | Path, cleanup: bool) -> int:
        """See `runtime.Sink`."""
        held: Held = recording.spooled
        stored = artifact_name(name)
        try:
            if isinstance(source, Path) and not source.is_file():
                raise FileNotFoundError(f"no file {source}")
            with recording.packing:
                size = self._keep(held, recording, stored, source)
                held.fresh.append(stored)
                held.size += size
        except Exception as error:  # the source cannot be read, or neither disk nor memory takes it
            self.troubles.report("an artifact could not be kept", error)
            return -1
        if cleanup and isinstance(source, Path):
            try:
                source.unlink()
            except OSError as error:
                self.troubles.report("an artifact's source could not be deleted", error)
        return size

    def flush(self, timeout: float) -> bool:
        """See `runtime.Sink`."""
        return self.shipper.flush(timeout)

    @property
    def is_used(self) -> bool:
        """Whether traces run that end here."""
        return any(recording.runtime.sink is self for recording in open_recordings())

    def shutdown(self, timeout: float) -> bool:
        """See `runtime.Sink`. While traces of this one run it keeps watching them, and its spool stays its own."""
        is_used = self.is_used
        if self._clock is not None and not is_used:
            self._clock.stop()
            self._clock = None
        done = self.shipper.close(timeout)
        if self.spool is not None and done and not is_used:
            self.spool.close()
        return done

    def after_fork(self) -> None:
        """In a forked child: nothing that the parent holds is ours."""
        if self.spool is not None:
            self.spool.after_fork()
        self.shipper.after_fork()
        self._clock = None
        self._starting = threading.Lock()

    def _finish(self, recording: Recording) -> None:
        held: Held = recording.spooled
        if recording.ignored:
            recording.take()
            self._ignore(recording, held)
            return
        parcel = held.parcel
        if parcel is None:  # else an interruption came after that
            parcel = self._parcel(recording, held)
            self._measure(parcel.record)
        recording.let_go(held.kept)
        held.kept = 0
        try:
            if (
                held.folder is not None
                and parcel.local is None
                and (held.files or held.bumped or not self._move_in(parcel, held))
            ):
                parcel.local = Path(held.folder)
        except BaseException:  # an interruption
            parcel.local = Path(held.folder or "")
            parcel.stored = not parcel.local.exists()
            raise
        finally:
            self.shipper.put(parcel)

    def _measure(self, record: TraceRecord) -> None:
        try:
            self.metrics.finished(record)
        except Exception as error:  # another SDK's: the trace goes its way all the same
            self.troubles.report("a trace could not be measured", error)

    def _parcel(self, recording: Recording, held: Held) -> Parcel:
        """Put the rest of a trace where what it has handed over already is. Interrupted, it may be called again."""
        if held.journaled:  # written whole now: what the journal counted does not count
            recording.parts = recording.length = 0
            recording.counters = empty_counters()
        before = _counted(recording)
        try:
            lines = recording.waiting()
            files: dict[str, bytes] = {}
            if lines:
                part = pack(recording, lines)
                files = {**part.artifacts, part.name: part.data}
            record = record_of(recording, recording.state, recording.last_ns or time.time_ns())
            encoded = encode_record(record)
            size = self._save(recording, held, files, encoded)
            held.encoded, held.kept = encoded, len(lines)
            held.parcel = parcel = Parcel(
                record, None, held.files, size=held.size + size, weight=len(encoded), derived=recording.derived
            )
        except BaseException:
            _count_as(recording, before)
            raise
        return parcel

    def _move_in(self, parcel: Parcel, held: Held) -> bool:
        """Move a finished trace into a local archive: one rename. Its row is noted before, and follows in a batch."""
        store, spool, folder, encoded = self.archive.store, self.spool, held.folder, held.encoded
        if spool is None or folder is None or not self.direct or parcel.derived:
            return False
        try:
            parcel.row = spool.note(encoded)
            if not store.rename(parcel.record.folder, folder):
                store.take(parcel.record.folder, Path(folder))
        except Exception as error:  # it is whole in the spool, and the shipper tries again
            self.troubles.report("the archive cannot be written; traces wait", error)
            return False
        parcel.stored = True
        parcel.size = len(encoded)  # of its note
        return True

    def _save(self, recording: Recording, held: Held, files: dict[str, bytes], record: bytes) -> int:
        if self.spool is not None and not held.files:
            try:
                if held.folder is None:
                    held.folder = self.spool.folder(recording.reference)
                size = save(self.spool, held.folder, files, record, again=held.announced)
                if held.announced and recording.mode != "live":
                    remove_journals(held.folder)
                    for name in held.journal:
                        Path(held.folder, name).unlink(missing_ok=True)
                return size
            except OSError as error:
                self.troubles.report("the spool cannot be written; traces are held in memory", error)
        held.files.update(files)
        return sum(map(len, files.values())) + in_memory(record)

    def _ignore(self, recording: Recording, held: Held) -> None:
        if not held.bumped or recording.mode != "live":
            if held.folder is not None:
                shutil.rmtree(held.folder, ignore_errors=True)
            return
        record = record_of(recording, recording.state, time.time_ns())
        if held.folder is not None and self.spool is not None:
            try:
                self.spool.write(held.folder, IGNORED, b"{}")
            except OSError as error:
                self.troubles.report("the spool cannot be written; traces are held in memory", error)
        local = None if held.folder is None else Path(held.folder)
        self.shipper.put(Parcel(record, local, size=in_memory(encode_record(record)), kind="ignored"))

    def _bump(self, recording: Recording) -> None:
        """Flush a live trace: its next part, and a record that says how far it is."""
        held: Held = recording.spooled
        self._announce(held, recording)
        before = _counted(recording)
        lines = recording.waiting()
        names, size = [*held.fresh], held.size
        try:
            if lines:
                part = pack(recording, lines)
                for name, data in {**part.artifacts, part.name: part.data}.items():
                    size += self._keep(held, recording, name, data)
                    names.append(name)
        except BaseException as error:
            if is_interruption(error):  # of the job, in whose thread this may be: it is done again
                _count_as(recording, before)
            else:
                recording.let_go(len(lines))
            raise
        recording.let_go(len(lines))
        held.fresh, held.size = [], 0
        record = record_of(recording, RUNNING, time.time_ns())
        self._keep_record(held, recording, record)
        held.bumped = True
        files = {name: held.files.pop(name) for name in names if name in held.files}
        local = None if held.folder is None else Path(held.folder)
        self.shipper.put(Parcel(record, local, files, tuple(names), size, "bump"))

    def _journal(self, recording: Recording) -> None:
        """Note what a deferred trace has recorded so far on local disk, and there alone."""
        held: Held = recording.spooled
        lines = (recording.lines or [])[held.journaled :]
        if self.spool is None or (not lines and held.journaled):
            return
        self._announce(held, recording)
        before = _counted(recording)
        try:
            part = pack(recording, lines)
            if held.folder is None:
                held.folder = self.spool.folder(recording.reference)
            for name, data in part.artifacts.items():
                held.journal.append(name)
                self.spool.write(held.folder, name, data)
            self.spool.write(held.folder, part.name.replace("data_", "journal_", 1), part.data)
        except BaseException:  # it is done again, of the same lines and more
            _count_as(recording, before)
            raise
        held.journaled += len(lines)
        self._keep_record(held, recording, record_of(recording, RUNNING, time.time_ns()))

    def _keep(self, held: Held, recording: Recording, name: str, source: bytes | Path) -> int:
        """Keep a file of a running trace; gives its size in bytes. Raises `OSError` where nothing takes it."""
        if self.spool is not None and not held.files:
            try:
                if held.folder is None:
                    held.folder = self.spool.folder(recording.reference)
                if isinstance(source, Path):
                    return self.spool.copy(held.folder, name, source)
                self.spool.write(held.folder, name, source)
                return len(source)
            except OSError as error:
                self.troubles.report("the spool cannot be written; traces are held in memory", error)
        if isinstance(source, Path):
            if source.stat().st_size > MEMORY_FILE:
                raise OSError(f"{source} is too large to be held in memory while the spool cannot be written")
            source = source.read_bytes()
        held.files[name] = source
        return len(source)

    def _announce(self, held: Held, recording: Recording) -> None:
        """Before the first part: a record, without which nobody could tell whose part it is."""
        if not held.announced:
            held.announced = True
            self._keep_record(held, recording, record_of(recording, RUNNING, time.time_ns()))

    def _keep_record(self, held: Held, recording: Recording, record: TraceRecord) -> None:
        if self.spool is None or held.files:
            return
        try:
            if held.folder is None:
                held.folder = self.spool.folder(recording.reference)
            self.spool.replace(held.folder, RECORD_NAME, encode_record(record))
        except OSError as error:
            self.troubles.report("the spool cannot be written; traces are held in memory", error)

    def _look(self) -> bool:
        """At each beat of the clock: flush what is due; tells whether traces are running."""
        every = self.settings.bump_every
        now = time.monotonic()
        running = False
        for recording in open_recordings():
            if recording.runtime.sink is not self:
                continue
            running = True
            recording.watch()
            age = now - recording.started / 1e9
            since = now - recording.bumped if recording.bumped else age + every - min(FIRST_BUMP, every)
            if since >= every:
                self.bump(recording)
        return running


_Counted = tuple[int, int, dict[str, Any]]


def _counted(recording: Recording) -> _Counted | None:
    """What is counted of a trace, as it is now (the counting goes on in a copy); None: nothing yet."""
    counters = recording.counters
    if not recording.parts:
        return None
    recording.counters = {**counters, "states": {**counters["states"]}, "types": {**counters["types"]}}
    return recording.parts, recording.length, counters


def _count_as(recording: Recording, counted: _Counted | None) -> None:
    """Count as it was before an interruption."""
    recording.parts, recording.length, recording.counters = counted or (0, 0, empty_counters())


def in_memory(record: bytes) -> int:
    """About how much memory a parcel takes whose record is that in JSON, without its files."""
    return 600 + 4 * len(record)


_deliveries: weakref.WeakSet[Delivery] = weakref.WeakSet()


def _after_fork() -> None:
    for delivery in list(_deliveries):
        delivery.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
