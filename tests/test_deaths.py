"""What survives when a process dies: promises P4 and P7, with real processes that really die."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import figures
import pytest

from trifle_otel import Archive
from trifle_otel.encoding import encode_record
from trifle_otel.records import TraceRecord
from trifle_otel.testing import sample_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork are Unix's")


def run(script: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=150, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def messages(archive: Archive, record: TraceRecord) -> list[str]:
    """The messages of a trace that is whole."""
    entries = archive.entries(record)
    assert entries.damaged == []
    assert len(entries) == record.length
    return [entry.message for entry in entries]


ONE = """
import os, sys
import trifle_otel as trifle
trifle.configure(sys.argv[1], default_mode=sys.argv[2])
with trifle.tracer("jobs/one", meta=[1], tags=["t"]) as job:
    trifle.trace("a line")
    trifle.artifact("a.txt", "kept")
    trifle.trace("b", lambda: 2)
{last}
"""


@pytest.mark.parametrize("mode", ["live", "deferred"])
@pytest.mark.parametrize("last", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_finished_trace_survives_the_death_of_its_process(tmp_path: Path, mode: str, last: str) -> None:
    """What has left its `with` is found whole after os._exit and kill -9, by whoever recovers."""
    done = run(ONE.format(last=last), str(tmp_path / "a"), mode, check=False)
    assert done.returncode in (0, -9), done.stderr
    with Archive.open(tmp_path / "a") as archive:
        archive.recover()
        (record,) = archive.search().records
        assert (record.state, record.key, record.tags, record.meta) == ("success", "jobs/one", ("t",), [1])
        assert messages(archive, record)[1:] == ["a line", "a.txt", "b ↴", "b ↵", "↳ 2"]
        assert archive.artifact(record, "a.txt") == b"kept"
        assert archive.recover() == 0


def test_what_a_short_script_recorded_is_found_without_recovery(tmp_path: Path) -> None:
    """A script that ends as usual has shipped what it recorded."""
    run(ONE.format(last=""), str(tmp_path / "a"), "live")
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive.search().records) == 1
    assert list((tmp_path / "a" / ".spool").iterdir()) == []


LATER = """
import sys
import trifle_otel as trifle
trifle.configure(sys.argv[1])
with trifle.tracer("jobs/later"):
    pass
"""


def test_the_next_short_script_ships_what_a_killed_process_left(tmp_path: Path) -> None:
    """Where nothing but short scripts records on a machine, each brings in what others left before it, unasked."""
    folder = tmp_path / "a"
    run(ONE.format(last="os.kill(os.getpid(), 9)"), str(folder), "live", check=False)
    left = folder / ".spool" / "left"
    left.mkdir(parents=True)
    (left / "lock").touch()
    for number in range(200):  # more than a moment's work
        record = sample_record(reference=f"ref-{number}", parts=1)
        trace = left / f"{number:08d}-ref-{number}"
        trace.mkdir()
        (trace / "data_1.json").write_bytes(b"[]")
        (trace / "record.json").write_bytes(encode_record(record))
    run(LATER, str(folder))
    with Archive.open(folder) as archive:
        found = archive.search(limit=1000).records
        assert len(found) == 202
        assert {record.key for record in found} == {"jobs/one", "jobs/later", "commodity/calculate/one"}
    assert list((folder / ".spool").iterdir()) == []


HANGING = """
import sys, time
import trifle_otel as trifle
trifle.configure(sys.argv[1], default_mode=sys.argv[2], bump_every=0.2)
with trifle.tracer("jobs/hangs", tags=["t"]) as job:
    trifle.trace("before")
    trifle.artifact("a.txt", "kept")
    with trifle.block("hangs"):
        trifle.trace("x" * 200_000)
        trifle.trace("inside")
        print(job.reference, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_a_trace_whose_process_died_is_closed_as_an_error(tmp_path: Path, mode: str) -> None:
    """A job that hangs and is killed leaves what it had recorded, in both modes, and a line that says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path / "a"), mode], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    reference = process.stdout.readline().strip()
    archive = Archive.open(tmp_path / "a")
    _wait(lambda: _journaled(tmp_path / "a", mode, reference, archive))
    if mode == "live":
        running = archive.find(reference)
        assert running.state == "running"
        assert messages(archive, running)[1:4] == ["before", "a.txt", "hangs ↴"]
    process.kill()
    process.wait()
    process.stdout.close()
    assert archive.recover() == 1
    record = archive.find(reference)
    assert (record.state, record.tags) == ("error", ("t",))
    entries = archive.entries(record)
    assert entries.damaged == []
    assert [entry.message for entry in entries[:4]] == [
        "Tracer has been initialized for jobs/hangs",
        "before",
        "a.txt",
        "hangs ↴",
    ]
    assert entries[4].type == "media"
    assert archive.artifact(record, entries[4].message) == b"x" * 200_000
    assert entries[5].message == "inside"
    assert entries[-1].state == "error"
    assert f"({process.pid} on " in entries[-1].message
    assert record.length == len(entries)
    assert record.counters["states"]["error"] == 1
    assert archive.artifact(record, "a.txt") == b"kept"
    assert archive.recover() == 0
    archive.close()


def _journaled(root: Path, mode: str, reference: str, archive: Archive) -> bool:
    if mode == "live":
        record = archive.index.find(reference)
        return record is not None and record.length >= 6
    records = (root / ".spool").glob(f"*/*-{reference}/record.json")
    return any(json.loads(path.read_bytes())["length"] >= 6 for path in records)


def _wait(holds: object) -> None:
    assert callable(holds)
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


FORKING = """
import os, sys
import trifle_otel as trifle
trifle.configure(sys.argv[1])
with trifle.tracer("jobs/parent") as parent:
    trifle.trace("before the fork")
    pids = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            assert trifle.current() is None
            trifle.trace("from the child, to nowhere")
            with trifle.tracer("jobs/child", meta=number):
                trifle.trace("in the child")
                if number == 2:
                    grandchild = os.fork()
                    if grandchild == 0:
                        with trifle.tracer("jobs/grandchild"):
                            trifle.trace("deeper")
                        os._exit(0)
                    os.waitpid(grandchild, 0)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    trifle.trace("after the fork")
"""


def test_forked_children_have_traces_of_their_own(tmp_path: Path) -> None:
    """A parent that records while it forks, and children that fork again: each trace is found once, and whole."""
    run(FORKING, str(tmp_path / "a"))
    with Archive.open(tmp_path / "a") as archive:
        archive.recover()
        records = archive.search().records
        assert sorted(record.key for record in records) == [
            *["jobs/child"] * 3,
            "jobs/grandchild",
            "jobs/parent",
        ]
        assert len({record.reference for record in records}) == 5
        assert {record.state for record in records} == {"success"}
        (parent,) = (record for record in records if record.key == "jobs/parent")
        assert messages(archive, parent)[1:] == ["before the fork", "after the fork"]


HELD = """
import os, sys, time
import trifle_otel as trifle
trifle.configure(sys.argv[1])
with trifle.tracer("jobs/parent"):
    pass
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
os.kill(os.getpid(), 9)
"""


def test_a_child_that_lives_on_does_not_hold_its_dead_parents_spool(tmp_path: Path) -> None:
    """What a killed parent left is adopted while a child that it forked is still alive."""
    process = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert process.wait() == -9
        with Archive.open(tmp_path / "a") as archive:
            archive.recover()
            assert len(archive.search().records) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


BUSY = """
import sys
import trifle_otel as trifle
trifle.configure(sys.argv[1], default_mode=sys.argv[2], bump_every=0.05)
number = 0
while True:
    number += 1
    with trifle.tracer("jobs/busy", meta=number) as job:
        for line in range(40):
            with trifle.block("step") as step:
                trifle.trace("line")
                step.result(line)
        if number % 7 == 0:
            trifle.artifact("a.txt", "x" * 1000)
    sys.stdout.write(job.reference + "\\n")
    sys.stdout.flush()
"""


def kill_in_mid_work(folder: Path, mode: str, after: float) -> tuple[list[str], Archive]:
    """Let a process record as fast as it can, kill it, recover; gives the references whose `with` had returned."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(folder), mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(after)
    process.kill()
    out = first + process.stdout.read()
    process.stdout.close()
    process.wait()
    finished = out.split("\n")[:-1]
    archive = Archive.open(folder)
    archive.recover()
    return finished, archive


def check_nothing_is_lost(finished: list[str], archive: Archive) -> None:
    """Every trace whose `with` had returned is there once and whole; there is at most one more."""
    found: list[str] = []
    cursor = None
    while True:
        page = archive.search(limit=1000, cursor=cursor)
        for record in page.records:
            assert record.finished
            found.append(record.reference)
            if record.state == "success":
                assert len(messages(archive, record)) in (161, 162)
        cursor = page.cursor
        if cursor is None:
            break
    assert len(found) == len(set(found))
    assert set(finished) <= set(found)
    assert len(found) <= len(finished) + 1


@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_kill_in_mid_work_loses_nothing_that_had_ended(tmp_path: Path, mode: str) -> None:
    """After kill -9 every trace whose `with` had returned is found, complete and once."""
    finished, archive = kill_in_mid_work(tmp_path / "a", mode, 0.4)
    check_nothing_is_lost(finished, archive)
    archive.close()


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_fifty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Fifty times kill -9 at a random moment, in live and in deferred mode, into one archive each."""
    moments = random.Random(2026)
    returned = 0
    for number in range(50):
        mode = ("live", "deferred")[number % 2]
        finished, archive = kill_in_mid_work(tmp_path / f"{mode}-{number}", mode, moments.uniform(0, 0.5))
        check_nothing_is_lost(finished, archive)
        returned += len(finished)
        archive.close()
    figures.note("kill -9 at 50 random moments", f"{returned:,} traces whose `with` had returned, none lost or doubled")
