"""What tests of job frameworks share: workers as processes, and the archive that they record into."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from brokers import Worker
from servers import PATIENCE

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord


class Workshop:
    """Workers that run the jobs of a module `<framework>_jobs`, with an archive of a test's own.

    Args:
        jobs: the module's name.
        folder: where workers run, and where jobs leave files that say how far they are.
        broker: its URL.
    """

    def __init__(self, jobs: str, folder: Path, broker: str) -> None:
        self.jobs = jobs
        self.folder = folder
        self.archive_url = str(folder / "archive")
        self.queue = f"q-{folder.name}"
        self.workers: list[Worker] = []
        self.environment = {
            "JOBS_BROKER": broker,
            "JOBS_FOLDER": str(folder),
            "JOBS_QUEUE": self.queue,
            "TRIFLE_ARCHIVE": self.archive_url,
        }

    def work(self, *command: str, ready: str, **environment: str) -> Worker:
        """Start a worker and wait until it takes jobs. `environment` adds to what workers get, or changes it."""
        worker = Worker(command, ready, self.folder, {**self.environment, **environment})
        self.workers.append(worker)
        return worker

    def wait_for(self, name: str) -> None:
        """Wait until a job has left a file."""
        self.wait_until((self.folder / name).exists)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds that a worker does."""
        wait_for(condition, lambda: self.workers[-1].said[-4000:])

    def records(self, count: int, *, within: float = PATIENCE, recover: bool = False) -> list[TraceRecord]:
        """All traces, as soon as that many have ended; the oldest first."""
        deadline = time.monotonic() + within
        while True:
            with Archive.open(self.archive_url) as archive:
                if recover:
                    archive.recover()
                found = [record for record in archive.search(limit=1000).records if record.state != "running"][::-1]
            if len(found) >= count:
                assert len(found) == count, [record.key for record in found]
                return found
            assert time.monotonic() < deadline, ([record.key for record in found], self.workers[-1].said[-4000:])
            time.sleep(0.1)  # another process's archive can only be polled

    def record(self, job: str, count: int = 1, *, recover: bool = False) -> TraceRecord:
        """The only trace of a job, once so many traces have ended."""
        key = f"jobs/{self.jobs}/{job}"
        (record,) = [each for each in self.records(count, recover=recover) if each.key == key]
        return record

    def messages(self, record: TraceRecord) -> list[str]:
        """First lines of a whole trace's messages, without the one that each begins with."""
        with Archive.open(self.archive_url) as archive:
            return messages(archive, record)

    def close(self) -> None:
        """Kill what is still there."""
        for worker in self.workers:
            worker.kill()

    def check_dead(self, record: TraceRecord) -> None:
        """The trace of the job `hangs` has what was recorded, and a last line that says how it ended."""
        assert record.state == "error"
        lines = self.messages(record)
        assert lines[:2] == ["waiting ↴", "inside"]
        assert lines[-1].startswith("Trace was not finished: its process")


def messages(archive: Archive, record: TraceRecord | None = None) -> list[str]:
    """First lines of a whole trace's messages, without the one that each begins with; of the only trace."""
    if record is None:
        assert trifle.flush(5)
        (record,) = archive.search().records
    entries = archive.entries(record)
    assert entries.damaged == []
    assert len(entries) == record.length
    return [entry.message.splitlines()[0] for entry in entries[1:]]


def wait_for(condition: Callable[[], object], otherwise: Callable[[], str] = str) -> None:
    """Wait until something holds that another process or thread does; `otherwise` tells more where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


def states(records: Sequence[TraceRecord]) -> list[str]:
    """The states of traces, in their order."""
    return [record.state for record in records]
