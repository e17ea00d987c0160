"""Many processes that write to one archive at once: everything arrives, whole and once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trifle_otel import Archive

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork is Unix's")

PROCESSES = 10

WRITING = """
import os, sys, time
import trifle_otel as trifle
from trifle_otel import configuration

folder, amount, forks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for process in range(forks):
    if os.fork() == 0:
        break
else:
    failed = [status for _, status in (os.wait() for _ in range(forks)) if status]
    assert not failed, failed
    sys.exit()
trifle.configure(folder, bump_every=0.02, exit_timeout=30)
for number in range(amount):
    mode = ("live", "deferred")[(number + process) % 2]
    with trifle.tracer(f"jobs/{mode}", meta=[os.getpid(), number], tags=["t"], mode=mode) as job:
        for line in range(number % 7 + 3):
            trifle.trace(f"{os.getpid()} {number} {line}")
        trifle.artifact("a.txt", f"{os.getpid()} {number}")
        if number % 5 == 0:
            time.sleep(0.05)
        with trifle.block("last") as step:
            step.result(number)
"""


def check(folder: Path, traces: int) -> None:
    """So many traces are found, in the index and in the store, each once, with all that was recorded in it."""
    with Archive.open(folder) as archive:
        records = []
        cursor = None
        while True:
            page = archive.search(all_tags=["t"], limit=1000, cursor=cursor)
            records += page.records
            cursor = page.cursor
            if cursor is None:
                break
        assert len(records) == len({record.reference for record in records}) == traces
        assert len({tuple(record.meta) for record in records}) == traces
        assert {record.key for record in records} == {"jobs/live", "jobs/deferred"}
        for record in records:
            process, number = record.meta
            entries = archive.entries(record)
            assert (record.state, entries.damaged, record.length) == ("success", [], len(entries))
            said = [f"{process} {number} {line}" for line in range(number % 7 + 3)]
            messages = [entry.message for entry in entries]
            assert messages[1:] == [*said, "a.txt", "last ↴", "last ↵", f"↳ {number}"]
            assert archive.artifact(record, "a.txt") == f"{process} {number}".encode()
        found = [each.reference for each in archive.store.folders()]
        assert sorted(found) == sorted(record.reference for record in records)
    assert list((folder / ".spool").iterdir()) == []


def test_ten_processes_write_to_one_archive(tmp_path: Path) -> None:
    """Ten forked workers at once, live and deferred traces mixed, into files and SQLite."""
    done = subprocess.run(
        [sys.executable, "-c", WRITING, str(tmp_path / "a"), "12", str(PROCESSES)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check(tmp_path / "a", 12 * PROCESSES)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_processes_write_thousands_of_traces_to_one_archive(tmp_path: Path) -> None:
    """The same with 500 traces each: every worker waits for the others' index again and again."""
    done = subprocess.run(
        [sys.executable, "-c", WRITING, str(tmp_path / "a"), "500", str(PROCESSES)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check(tmp_path / "a", 500 * PROCESSES)
