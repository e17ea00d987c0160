"""What tests of job frameworks share: workers as processes, and the archive that they record into."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from brokers import Worker
from otlp_servers import HttpServer
from servers import PATIENCE
from spans import Sdk

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

    def key(self, job: str) -> str:
        """The key of a job."""
        return f"jobs/{self.jobs}/{job}"

    def record(self, job: str, count: int = 1, *, recover: bool = False) -> TraceRecord:
        """The only trace of a job, once so many traces have ended."""
        (record,) = [each for each in self.records(count, recover=recover) if each.key == self.key(job)]
        return record

    def messages(self, record: TraceRecord) -> list[str]:
        """First lines of a whole trace's messages, without the one that each begins with."""
        with Archive.open(self.archive_url) as archive:
            return messages(archive, record)

    def close(self) -> None:
        """Kill what is still there."""
        for worker in self.workers:
            worker.kill()

    def check_joined(self, integration: Any, sink: HttpServer, send: Callable[[], object]) -> None:
        """From who enqueues `starts_another` by the worker to what the job there enqueues: one distributed trace.

        `sink` is where the workers' spans go; `send` enqueues the job.
        """
        sdk = Sdk()
        integration.instrument()
        try:
            with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
                send()
        finally:
            integration.uninstrument()
        self.wait_until(lambda: len(sink.spans) == 3)
        spans = {span.name: span for span in sink.spans}
        first, inner, second = (spans[name] for name in (self.key("starts_another"), "inner", self.key("add")))
        own = enqueuer.get_span_context()
        assert first.parent_span_id.hex() == f"{own.span_id:016x}"
        assert {span.trace_id.hex() for span in sink.spans} == {f"{own.trace_id:032x}"}
        assert second.parent_span_id == inner.span_id

    def check_sums(self, records: Sequence[TraceRecord], *numbers: int) -> None:
        """The traces of the jobs `add` are those of these numbers, each with all of its lines."""
        sums = [record for record in records if record.key == self.key("add")]
        assert sorted(record.meta[0] for record in sums) == list(numbers)
        assert all(self.messages(record) == ["adding", str(record.meta[0])] for record in sums)

    def check_finished(self, record: TraceRecord) -> None:
        """The trace of the job `hangs` that was let finish is whole."""
        assert record.state == "success"
        assert self.messages(record) == ["waiting ↴", "inside", "waiting ↵", "↳ None", "'done'"]

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
