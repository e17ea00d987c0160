"""A running trace that nothing was heard of for long: told by every command that lists or shows traces."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.heartbeat import silence, told
from trifle_otel.records import TraceRecord
from trifle_otel.testing import START, sample_record

NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
REFERENCE = "01KDYAK3SEABCDEFGHJKMNPQRS"


def heard(ago: timedelta, **changes: object) -> TraceRecord:
    """A running trace that was last heard of so long before `NOW`."""
    return sample_record(**{"state": "running", "last_at": NOW - ago, **changes})


@pytest.mark.parametrize(
    "ago, bump_every, words",
    [
        (timedelta(seconds=60), 15, ""),
        (timedelta(seconds=61), 15, "silent for 1 min"),
        (timedelta(seconds=61), 0.1, "silent for 1 min"),
        (timedelta(minutes=59, seconds=59), 15, "silent for 59 min"),
        (timedelta(hours=2, minutes=59), 15, "silent for 2 h"),
        (timedelta(hours=47, minutes=59), 15, "silent for 47 h"),
        (timedelta(days=1500, hours=1), 15, "silent for 1,500 d"),
        (timedelta(seconds=900), 300, ""),
        (timedelta(seconds=901), 300, "silent for 15 min"),
        (timedelta(seconds=-9999), 15, ""),
    ],
)
def test_what_is_told(ago: timedelta, bump_every: float, words: str) -> None:
    """Three flushes have to be missing, and a minute has to pass; a clock that is behind makes nobody silent."""
    record = heard(ago)
    assert told(record, bump_every, NOW) == words
    assert silence(record, bump_every, NOW) == (ago if words else None)


@pytest.mark.parametrize("state", ["success", "warning", "error"])
def test_a_trace_that_ended_is_not_silent(state: str) -> None:
    """However long ago that was."""
    assert silence(heard(timedelta(days=99), state=state), 15, NOW) is None


def test_a_live_trace_renews_its_record_without_being_called(tmp_path: Path) -> None:
    """A job that says nothing is heard of all the same, every `bump_every` seconds."""
    archive = trifle.configure(tmp_path / "a", bump_every=0.05)
    with trifle.tracer("jobs/quiet") as job:
        times: list[datetime] = []
        end = datetime.now(timezone.utc) + timedelta(seconds=20)
        while len(set(times)) < 3 and datetime.now(timezone.utc) < end:
            trifle.flush(1)
            record = archive.index.find(job.reference)
            times += [record.last_at] if record is not None and record.state == "running" else []
        assert len(set(times)) >= 3
        assert times == sorted(times)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with a trace that died two hours ago, on another machine, and one that runs."""
    folder = tmp_path / "a"
    with Archive.open(folder) as opened:
        opened.setup()
        now = datetime.now(timezone.utc)
        opened.index.put(
            [
                sample_record(state="running", first_at=START, last_at=now - timedelta(hours=2, minutes=5), parts=0),
                sample_record(reference="01KDYAK3SEABCDEFGHJKMNPQRT", state="running", first_at=START, last_at=now),
            ]
        )
    return folder


@pytest.fixture
def run(archive: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command on the archive; gives what it printed."""
    pytest.importorskip("cyclopts", reason="needs the extra `cli`")
    pytest.importorskip("rich", reason="needs the extra `cli`")
    from trifle_otel.cli import main

    def run_here(*arguments: str) -> str:
        capsys.readouterr()
        main([*arguments, "--archive", str(archive)])
        return capsys.readouterr().out

    return run_here


@pytest.mark.parametrize("command", [("ls",), ("search", "--state", "running")])
def test_lists_say_who_is_silent(run: Callable[..., str], command: tuple[str, ...]) -> None:
    """Of two running traces one is called silent, beside its state."""
    _, fresh, silent = run(*command).splitlines()
    assert fresh.startswith("… running  ")
    assert silent.startswith("… running, silent for 2 h  ")
    assert silent.endswith(REFERENCE)


def test_one_trace_is_shown_with_it(run: Callable[..., str]) -> None:
    """`show` says it in its first line."""
    assert run("show", REFERENCE).splitlines()[0].startswith("… running, silent for 2 h  commodity/calculate/one(")
    assert "silent" not in run("show", "01KDYAK3SEABCDEFGHJKMNPQRT")


def test_the_readers_bump_every_counts(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flushes come every hour, two hours are no silence; what is no number is the default."""
    monkeypatch.setenv("TRIFLE_BUMP_EVERY", "3600")
    assert "silent" not in run("ls")
    monkeypatch.setenv("TRIFLE_BUMP_EVERY", "often")
    assert "silent for 2 h" in run("ls")


def test_json_is_as_stored(run: Callable[..., str]) -> None:
    """What other programs read says `running`, and when it was last heard of."""
    for line in run("ls", "--json").splitlines():
        assert json.loads(line)["state"] == "running"
    assert "silent" not in run("ls", "--json") + run("show", REFERENCE, "--json")


def test_a_narrow_terminal_has_it_before_the_tags(archive: Path) -> None:
    """In two lines for each trace, the second one says it, and no line is wider than the terminal."""
    pytest.importorskip("rich", reason="needs the extra `cli`")
    from trifle_otel.cli.listing import table
    from trifle_otel.cli.terminal import Screen

    with Archive.open(archive) as opened:
        records = opened.search().records
    for width in (80, 90, 119):
        screen = Screen(io.StringIO())
        screen.width = width
        table(screen, records)
        assert isinstance(screen.stream, io.StringIO)
        lines = screen.stream.getvalue().splitlines()
        assert len(lines) == 4
        assert max(map(len, lines)) <= width
        assert "silent for 2 h  " in f"{lines[3]}  "
        assert "silent" not in lines[1]
