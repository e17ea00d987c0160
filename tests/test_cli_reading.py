"""`grep`, `tail`, `diff`, `stats`, `completion` and the pager: what they print on a terminal, in a pipe, as JSON."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

pytest.importorskip("cyclopts", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")
pytest.importorskip("markupsafe", reason="needs the extra `cli`")

import viewing
from reading_commands import COLOUR, HAZARD, Run, runner, terminal_runner
from viewing import NOW, Trace

import trifle_otel as trifle
from trifle_otel.archive import Archive
from trifle_otel.cli import tailing
from trifle_otel.encoding import encode_part, record_fields
from trifle_otel.errors import StoreUnavailable
from trifle_otel.records import RUNNING, TraceRecord

README = Path(__file__).parent.parent / "README.md"
YESTERDAY, TODAY, FAILED, FULL, HOSTILE, LIVE, LONG = (f"01KTEST{number:019}" for number in (1, 2, 3, 50, 60, 70, 90))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with something of everything; tests do not change it."""
    path = tmp_path_factory.mktemp("archive")
    viewing.everything(path).close()
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, without a terminal."""
    return runner(capsys)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, on a terminal of so many columns."""
    return terminal_runner(capsys, monkeypatch)


@pytest.fixture
def read(run: Run, folder: Path) -> Run:
    """Runs a command on the archive."""
    return lambda *arguments: run(*arguments, "--archive", str(folder))


@pytest.fixture
def look(terminal: Run, folder: Path) -> Run:
    """Runs a command on the archive, on a terminal."""
    return lambda *arguments, **options: terminal(*arguments, "--archive", str(folder), **options)


# --- grep


def test_grep_prints_reference_line_and_text(read: Run) -> None:
    """The newest traces first, each line that matches once."""
    done = read("grep", "^rounded half")
    assert done.out.splitlines() == [f"{each}:11: rounded half up" for each in (FULL, FAILED, TODAY, YESTERDAY)]
    assert (done.code, done.err) == (0, "")


def test_grep_says_what_it_did_not_find(read: Run) -> None:
    """Exit code 1 and one line: no line matches, or no trace; wrong use is told as such."""
    assert read("grep", "nowhere at all") == (1, "", "trifle-otel: no line matches\n")
    assert read("grep", "rounded", "--tag", "nope") == (1, "", "trifle-otel: no trace matches\n")
    for wrong, told in (
        (["(", "--tag", "x"], "--fixed-strings"),
        (["x", "--state", "broken"], "running, success"),
        (["x", "--max-count", "0"], "above 0"),
        (["x", "--limit", "0"], "above 0"),
        ([], "PATTERN"),
    ):
        done = read("grep", *wrong)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert told in done.err


GREPS = {
    "Rounded -i -l": [FULL, FAILED, TODAY, YESTERDAY],
    "half.up -F": [],
    "half.up --references --state success": [TODAY, YESTERDAY],
    "half.up -l --segment prices/landed --tag product:9 --limit 2": [FULL, FAILED],
    "half.up -l --until 2026-11-24": [YESTERDAY],
    "the.end.of.it -l": [FULL],
    "gęślą -l": [],
    "gęślą -l --artifacts": [FULL],
}


@pytest.mark.parametrize("words", GREPS)
def test_grep_takes_what_narrows_a_search(read: Run, words: str) -> None:
    """Options of the pattern, of the search, and artifacts by a flag; long messages stored beside a trace always."""
    assert read("grep", *words.split()).out.splitlines() == GREPS[words]


def test_grep_names_artifacts_and_lines_in_them(read: Run) -> None:
    """An artifact's own lines are told by its path in the archive; of binary data only that it matches."""
    out = read("grep", "gęślą", "--artifacts").out
    assert out == f"{FULL}/artifacts/sub dir/übersicht.txt:2: ␉gęślą\n"
    assert f"{FULL}/artifacts/raw.bin: (binary data that matches)\n" in read("grep", "ABC", "--artifacts").out


def test_grep_stops_after_so_many_lines(read: Run) -> None:
    """`-m` counts lines of all traces together."""
    assert read("grep", "Item", "-m", "3").out.splitlines() == [
        f"{LONG}:{line}: Item {item} {arrow}" for line, item, arrow in ((2, 0, "↴"), (7, 0, "↵"), (9, 1, "↴"))
    ]


def test_grep_as_json(read: Run) -> None:
    """One object a line: where it is, its state, and the text as it was recorded."""
    red = viewing.HOSTILE[6].replace("\0", "\u2400")
    found = read("grep", "bell", "--json").objects
    assert found[0] == {
        "reference": HOSTILE,
        "key": "hostile/<script>window.hacked=1<|script>",
        "line": found[0]["line"],
        "state": "success",
        "text": f"{red} ↴",
    }
    assert {each["state"] for each in found} == {"success", "error", "warning", red}
    artifact = read("grep", "gęślą", "--artifacts", "--json").objects
    assert [(each["artifact"], each["line"]) for each in artifact] == [("sub dir/übersicht.txt", 2)]
    assert read("grep", "half.up", "--json", "-l", "-m", "1").objects == [
        {"reference": FULL, "key": "prices/landed/good"}
    ]


def test_grep_marks_matches_on_a_terminal(look: Run) -> None:
    """What matches is red, numbers are green, references cyan; of a long line what is around the match is shown."""
    out = look(80, "grep", "half", "-m", "1").out
    assert out == f"\x1b[36m{FULL}\x1b[0m:\x1b[32m11\x1b[0m: rounded \x1b[1;31mhalf\x1b[0m up\n"
    (line,) = look(80, "grep", "y$", "-m", "1", "--segment", "prices", "--state", "warning").lines
    assert re.fullmatch(rf"{FULL}:\d+: …y{{400}}", line)
    assert len(look(80, "grep", "y$", "-m", "1", "--full", "--state", "warning").lines[0]) > 1_000_000


def test_grep_tells_of_damage(run: Run, own_folder: Path) -> None:
    """What can be read is searched; the damage is named, and makes exit code 1."""
    with Archive.open("./traces") as archive:
        record = Trace("job", number=1).line("needle").store(archive, parts=2)
    Path("traces", record.folder.path, "data_1.json.gz").write_bytes(b"")
    done = run("grep", "needle")
    assert (done.code, done.out) == (1, f"{record.reference}:1: needle\n")
    assert f"part 1 of trace {record.reference} is damaged" in done.err


# --- diff


def test_diff_names_the_first_step_whose_result_differs(read: Run) -> None:
    """The innermost step that gave another result comes first, with what is around it; then each difference."""
    done = read("diff", YESTERDAY, TODAY)
    lines = done.out.splitlines()
    assert (done.code, done.err) == (1, "")
    assert [re.split("  +", line)[:2] for line in lines[:4]] == [
        ["- ✓ success", 'prices/landed/good(9, ["DE","FR"])'],
        ["-", YESTERDAY],
        ["+ ✓ success", 'prices/landed/good(9, ["DE","FR"])'],
        ["+", TODAY],
    ]
    first = lines.index("The first step whose result differs:")
    assert lines[first + 1 : first + 4] == ["  Tax › Rate of the country  (line 8)", "    - 19", "    + 21"]
    assert "3 steps gave another result." in lines
    steps = lines[lines.index(" 1  1   ⋮ 3 steps the same") :]
    assert steps[1:7] == [
        " 7  7 ≠ ■ Tax",
        "          - 19",
        "          + 21",
        " 8  8 ≠   Rate of the country",
        "            - 19",
        "            + 21",
    ]
    assert "          -   'gross': 119," in steps
    assert steps[-1] == "          … 43 lines more, --full shows them"
    assert "lines more" not in read("diff", YESTERDAY, TODAY, "--full").out


def test_diff_shows_what_is_in_one_alone(read: Run) -> None:
    """Steps of one execution are told with their side, in their place."""
    lines = read("diff", TODAY, FAILED).out.splitlines()
    assert "   14 + The margin is thin" in lines
    assert "   16 +   Exception: no connection" in lines
    assert "4 steps gave another result; 2 steps are in the second alone." in lines


def test_diff_of_what_is_the_same(run: Run, own_folder: Path) -> None:
    """Exit code 0, and a line that says so; one trace is not compared with itself."""
    with Archive.open("./traces") as archive:
        one, other = (viewing.price(number, minutes_ago=number).store(archive) for number in (1, 2))
    done = run("diff", one.reference, other.reference)
    assert (done.code, done.out.splitlines()[-1][:16]) == (0, "Nothing differs:")
    assert run("diff", one.reference, other.reference, "--json").objects == [
        {
            "left": record_fields(one),
            "right": record_fields(other),
            "same": True,
            "differences": 0,
            "first_result": None,
        }
    ]
    assert run("diff", one.reference, one.reference).code == 2
    assert run("diff", one.reference, "01NOTHERE").code == 1


def test_diff_looks_into_what_is_stored_beside(run: Run, own_folder: Path) -> None:
    """Large results of the same size that differ in one digit are not the same."""
    with Archive.open("./traces") as archive:
        for number, digit in ((1, "4"), (2, "7")):
            trace = Trace("job", number=number, minutes_ago=number).opens("Large").closes("x")
            trace.entries.pop()
            trace.offloaded("↳ " + "1" * 150_000 + digit + "1" * 300, "raw")
            trace.entries[-1]["span"] = trace.entries[-2]["span"]
            trace.store(archive)
    done = run("diff", f"01KTEST{1:019}", f"01KTEST{2:019}", "--json")
    assert done.code == 1
    assert done.objects[0]["first_result"]["path"] == ["Large"]
    printed = run("diff", f"01KTEST{1:019}", f"01KTEST{2:019}").out
    assert f"    - …{'1' * 40}4{'1' * 40}…\n    + …{'1' * 40}7{'1' * 40}…\n" in printed


def test_diff_as_json(read: Run) -> None:
    """First what is compared, with the first result that differs; then each difference, in the order of their ends."""
    top, *rest = read("diff", TODAY, FAILED, "--json").objects
    assert (top["left"]["reference"], top["right"]["reference"], top["same"]) == (TODAY, FAILED, False)
    assert top["first_result"] == rest[0]
    assert rest[0]["path"] == ["Tax", "Rate of the country"]
    assert rest[0]["left"]["result"], rest[0]["right"]["result"] == ("21", "19")
    assert [(each["verdict"], each["path"][-1]) for each in rest[2:5]] == [
        ("only right", "The margin is thin"),
        ("only right", "Exception: no connection"),
        ("result", "Publishing"),
    ]
    assert top["differences"] == len(rest)
    assert rest[2]["left"] is None


# --- stats


def test_stats_counts_by_state_and_key(read: Run) -> None:
    """The sum, how long half and nearly all took at most, and a line for each key, the most frequent first."""
    done = read("stats")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0] == "all keys: 8 traces, 3,095 lines"
    assert lines[3:7] == [
        "  ✓ success          3   37.5 %",
        "  ! warning          1   12.5 %",
        "  ✗ error            3   37.5 %",
        "  … running          1   12.5 %",
    ]
    assert "p50 20 ms   p95 57 ms   p99 57 ms   longest 57 ms" in lines[7]
    head = next(number for number, line in enumerate(lines) if line.startswith("KEY"))
    assert re.split("  +", lines[head + 1])[:4] == ["prices/landed/good", "4", "1", "1"]
    assert len(lines[head + 1 :]) == 5


def test_stats_draws_what_came_when(read: Run) -> None:
    """A line of bars for each state: as high as many, in the place of the time."""
    lines = read("stats", "prices/landed").out.splitlines()
    assert "prices/landed: 4 traces" in lines[0]
    success = next(line for line in lines if line.startswith("  success"))
    assert re.fullmatch(r"  success  (█+) +\1 *  1", success)
    assert any(re.fullmatch(r"  error    +█+  1", line) for line in lines)
    assert any(re.match(r" +2026-11-23 \d\d:00 +2026-11-24 \d\d:00$", line) for line in lines)


def test_stats_by_segment_and_by_time(read: Run) -> None:
    """Segments are those right below the path; periods come with the newest first."""
    by_segment = read("stats", "--by", "segment", "--json").objects
    assert [(each["segment"], each["traces"]) for each in by_segment[1:]] == [
        ("prices", 4),
        ("import", 2),
        ("hostile", 1),
        ("sync", 1),
    ]
    top, *periods = read("stats", "--by", "time", "--json", "--slots", "30").objects
    assert top["period_s"] == 3600
    assert [(each["start"], each["traces"]) for each in periods] == [
        ("2026-11-24T11:00:00.000000Z", 7),
        ("2026-11-23T12:00:00.000000Z", 1),
    ]
    assert top["states"] == {"running": 1, "success": 3, "warning": 1, "error": 3}
    assert (top["entries"], top["longest_ms"], top["partial"]) == (3095, 57, False)
    assert read("stats", "--top", "1").out.splitlines()[-1] == "and 4 more, --top shows them"


def test_stats_counts_a_key_without_those_below_it(run: Run, own_folder: Path) -> None:
    """A trace is in one line of the table, though a key may be a path that others lie below."""
    keys = ["prices", "prices", "prices/landed", "prices/landed", "prices/landed", "prices/landed/one"]
    with Archive.open("./traces") as archive:
        archive.index.put([Trace(key, number=number).record() for number, key in enumerate(keys)])
    for arguments in ([], ["--by", "segment", "prices"]):
        top, *rows = run("stats", *arguments, "--json").objects
        assert sum(row["traces"] for row in rows) == top["traces"] == 6
        assert not any(row["partial"] for row in rows)
    assert [(row["segment"], row["traces"]) for row in run("stats", "--json").objects[1:]] == [
        ("prices/landed", 3),
        ("prices", 2),
        ("prices/landed/one", 1),
    ]


def test_stats_takes_filters_and_tells_wrong_use(read: Run) -> None:
    """What narrows a search narrows what is counted; nothing found is exit code 1."""
    assert read("stats", "--state", "error", "--tag", "product:9", "--json").objects[0]["traces"] == 1
    assert read("stats", "nowhere") == (1, "", "trifle-otel: no trace matches\n")
    for wrong in (["x", "--segment", "y"], ["--slots", "0"], ["--top", "0"], ["--by", "moon"]):
        assert read("stats", *wrong).code == 2


def test_stats_says_when_not_all_was_counted(run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer about the newest alone names since when, in the sum and in the table; one of estimates says so."""
    from trifle_otel.indexes import sqlite_search
    from trifle_otel.indexes.sqlite import SQLiteIndex

    with Archive.open("./traces") as archive:
        archive.index.put([Trace("job", number=number, minutes_ago=number).record() for number in range(10)])
    monkeypatch.setattr(SQLiteIndex, "tallied", 4)
    counted = run("stats")
    assert counted.out.startswith("all keys: 10 traces, about 10 lines\n")
    assert "all traces are counted; lines and times are estimates from the newest 1 trace of each period" in counted.out
    assert [row["sampled"] for row in run("stats", "--json").objects] == [1, 4]
    monkeypatch.setattr(sqlite_search, "COUNTING_SECONDS", -1)
    out = run("stats").out
    told = r"^Only the newest 4 traces were counted, from 2026-11-24 \d\d:57:00 on; narrow it"
    assert re.search(told, out, re.MULTILINE)
    assert re.search(r"^job +4\+ ", out, re.MULTILINE)
    top = run("stats", "--json").objects[0]
    assert (top["partial"], top["counted_since"]) == (True, "2026-11-24T11:57:00.000000Z")


# --- tail


def steps(monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], object]) -> list[float]:
    """What happens in the pauses, one after the other; then somebody interrupts. Gives the seconds of each pause."""
    waiting = iter(actions)
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        action = next(waiting, None)
        if action is None:
            raise KeyboardInterrupt
        action()

    monkeypatch.setattr(tailing, "wait", wait)
    return pauses


@pytest.fixture
def archive(own_folder: Path) -> Archive:
    """An empty archive in `./traces`."""
    made = Archive.open("./traces")
    made.setup()
    return made


def test_tail_prints_traces_as_they_come(run: Run, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the newest that are there, then each that comes, and one that ran again at its end; until interrupted."""
    for number in (1, 2, 3):
        Trace("old", number=number, minutes_ago=900 - number).store(archive)
    since = (datetime.now(timezone.utc) - NOW).total_seconds() / 60
    record = Trace("import/stock", number=4, meta=[7], minutes_ago=-since).record(RUNNING)
    pauses = steps(
        monkeypatch,
        lambda: archive.index.put([record]),
        lambda: archive.index.put([replace(record, state="error", length=7)]),
        lambda: None,
    )
    done = run("tail", "--lines", "2", "--every", "0.5")
    rows = [re.split("  +", line) for line in done.out.splitlines()]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("✓ success", "old", f"01KTEST{2:019}"),
        ("✓ success", "old", f"01KTEST{3:019}"),
        ("… running", "import/stock(7)", record.reference),
        ("✗ error", "import/stock(7)", record.reference),
    ]
    assert (done.code, pauses) == (130, [0.5] * 4)


def test_tail_as_json_and_on_terminals(
    run: Run, terminal: Run, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON is one record a line; a row is one line of 160 columns, or two of 80."""
    record = Trace("x" * 200, number=1, tags=["y" * 200]).store(archive)
    steps(monkeypatch)
    assert run("tail", "--json").objects == [record_fields(record)]
    for columns, rows in ((80, 2), (160, 1)):
        lines = terminal(columns, "tail").lines
        assert len(lines) == rows
        assert max(map(len, lines)) <= columns
        assert record.reference in lines[-1]


def test_tail_of_one_trace_goes_on_to_its_end(run: Run, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines that are there, those that come, how long blocks took at their end, and how it ended."""
    trace = Trace("import/stock", number=1).line("first").opens("Page 1").line("slow", "warning")
    record = trace.store(archive, RUNNING)

    def ends() -> None:
        count = len(trace.entries)
        trace.closes("20").line("Exception: no", "error")
        archive.store.write(record.folder, "data_2.json.gz", encode_part(trace.entries[count:]))
        archive.index.put([replace(trace.record("error"), parts=2, duration=1500)])

    steps(monkeypatch, lambda: None, ends)
    done = run("tail", "01KTEST", "--lines", "2")
    assert done.code == 0
    assert [re.sub(r"\d\d:\d\d:\d\d", "HH:MM:SS", line) for line in done.out.splitlines()] == [
        f"… running  import/stock  {record.reference}",
        "   ⋮  2 lines",
        "   3   HH:MM:SS  Page 1 ↴",
        "   4 !             slow",
        "   5       2 ms  Page 1 ↵",
        "   6             ↳ 20",
        "   7 ✗           Exception: no",
        "✗ error after 1.5 s, 7 lines",
    ]
    assert "silent for" in done.err  # its record is from a day that is over
    ended = run("tail", record.reference, "--json", "--lines", "1").objects
    assert ended == [ended[0], trace.entries[-1], ended[0]]
    assert ended[0]["state"] == "error"


def test_tail_of_one_trace_tells_what_is_wrong(run: Run, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is damaged, a trace that was thrown away, wrong use: exit codes as ever."""
    record = Trace("job", number=1).line("one").store(archive, parts=2)
    Path("traces", record.folder.path, "data_1.json.gz").write_bytes(b"")
    done = run("tail", record.reference)
    assert (done.code, "one" in done.out) == (1, True)
    assert f"part 1 of trace {record.reference} is damaged" in done.err
    running = Trace("job", number=2).store(archive, RUNNING)
    steps(monkeypatch, lambda: archive.delete(running))
    done = run("tail", running.reference)
    assert (done.code, "thrown away" in done.err) == (1, True)
    for wrong in ([record.reference, "--state", "error"], ["--since", "3d"], ["--lines", "-1"], ["--every", "0"]):
        assert run("tail", *wrong).code == 2
    assert run("tail", "01NOTHERE").code == 1


def test_tail_waits_for_an_archive_that_is_away(run: Run, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so once, asks with growing pauses, and goes on when the archive is back."""
    from trifle_otel.following import NewTraces

    look = NewTraces.look
    failures = iter([True, True, False, True])

    def failing(self: NewTraces) -> list[TraceRecord]:
        if next(failures, False):
            raise StoreUnavailable("the index is locked")
        return look(self)

    monkeypatch.setattr(NewTraces, "look", failing)
    pauses = steps(monkeypatch, *[lambda: None] * 4)
    done = run("tail", "--every", "2")
    assert pauses == [4, 8, 2, 4, 2]
    assert done.err.count("the index is locked; going on when it is back\n") == 2


def test_tail_follows_a_job_that_runs(own_folder: Path) -> None:
    """In a process of its own it prints the lines of a job while it runs, and ends with it."""
    trifle.configure("./traces", bump_every=0.05)
    with trifle.tracer("job") as job:
        trifle.trace("one")
        job_started = trifle.current()
        assert job_started is job
        process = _tailing(job.reference)
        assert process.stdout is not None
        for message in ("one", "two"):
            if message == "two":
                trifle.trace("two")
            while message not in (line := process.stdout.readline()):
                assert line, "it ended before"
    assert process.wait(timeout=30) == 0
    assert "✓ success" in process.stdout.read()
    process.stdout.close()


def _tailing(reference: str) -> subprocess.Popen[str]:
    """The process, once there is a trace to follow."""
    with Archive.open("./traces") as archive:
        while archive.index.find(reference) is None:
            signal.sigtimedwait([], 0.01)
    arguments = ["tail", reference, "--every", "0.05"]
    return subprocess.Popen([sys.executable, "-m", "trifle_otel", *arguments], stdout=subprocess.PIPE, encoding="utf-8")


# --- The pager


def test_long_output_goes_through_the_pager(look: Run, monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    """What does not fit the screen goes to the program that is named, colours included; what fits does not."""
    monkeypatch.setenv("TRIFLE_PAGER", "sh -c 'cat > paged.txt'")
    done = look(100, "show", FULL)
    assert (done.code, done.out) == (0, "")
    paged = Path("paged.txt").read_text()
    assert "\x1b[" in paged
    assert "Tracer has been initialized" in paged
    assert look(100, "ls", "--limit", "3").out.count("\n") == 6
    Path("paged.txt").unlink()
    assert look(100, "show", FULL, rows=500).out.count("\n") > 40
    assert look(100, "show", FULL, "--no-pager").out.count("\n") > 40
    assert not Path("paged.txt").exists()


@pytest.mark.parametrize("command", ["ls", f"show {LONG}", "stats"])
def test_a_terminal_of_no_columns_has_a_usual_width(
    terminal: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, own_folder: Path, command: str
) -> None:
    """Such a size is one that nobody knows: lines are as on a usual terminal, through the pager or not."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", str(folder))
    monkeypatch.setenv("TRIFLE_PAGER", "sh -c 'cat > paged.txt'")
    done = terminal(0, *command.split(), rows=0)
    assert (done.code, done.err) == (0, "")
    paged = Path("paged.txt")
    lines = COLOUR.sub("", paged.read_text()).splitlines() if paged.exists() else done.lines
    assert 40 < max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", ["ls", "search", f"diff {TODAY} {FAILED}", "stats", f"show {LONG} --json"])
def test_each_reading_command_has_the_pager(
    look: Run, monkeypatch: pytest.MonkeyPatch, own_folder: Path, command: str
) -> None:
    """What a command prints through the pager is what it prints without."""
    monkeypatch.setenv("TRIFLE_PAGER", "sh -c 'cat > paged.txt'")
    paged = look(80, *command.split(), rows=6)
    plain = look(80, *command.split(), "--no-pager", rows=6)
    assert (paged.out, paged.code) == ("", plain.code)
    assert Path("paged.txt").read_text() == plain.out


def test_leaving_the_pager_early_is_no_failure(look: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has seen enough leaves, and the rest is not printed."""
    monkeypatch.setenv("TRIFLE_PAGER", "true")
    done = look(100, "show", LONG, "--json", rows=5)
    assert (done.code, done.err) == (0, "")


def test_without_a_pager_all_is_printed(look: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cat`, an empty name, a dumb terminal: no pager; one that is not there is told."""
    shown = look(100, "show", FULL).out
    for name in ("cat", " "):
        monkeypatch.setenv("TRIFLE_PAGER", name)
        assert look(100, "show", FULL) == (0, shown, "")
    monkeypatch.setenv("TRIFLE_PAGER", "false")
    monkeypatch.setenv("TERM", "dumb")
    assert look(100, "show", FULL).out.count("\n") > 40
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TRIFLE_PAGER", "no-such-pager -x")
    done = look(100, "show", FULL)
    assert (done.out, done.code) == (shown, 0)
    assert (
        done.err
        == "trifle-otel: the pager 'no-such-pager' is not there; TRIFLE_PAGER names another, an empty one none\n"
    )


def test_pager_is_what_others_take_too(look: Run, monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    """PAGER counts where TRIFLE_PAGER is not set."""
    monkeypatch.delenv("TRIFLE_PAGER")
    monkeypatch.setenv("PAGER", "sh -c 'cat > paged.txt'")
    assert look(100, "show", FULL).out == ""
    assert Path("paged.txt").stat().st_size > 1000


# --- All of them


COMMANDS = [
    "grep .",
    "grep . --artifacts --full",
    "grep . --json",
    f"diff {HOSTILE} {FULL}",
    f"diff {FULL} {HOSTILE} --full",
    f"diff {FULL} {HOSTILE} --json",
    f"tail {HOSTILE} --lines 100",
    f"tail {HOSTILE} --lines 100 --json",
    "stats",
    "stats --by segment --json",
    "ls",
    f"show {HOSTILE}",
]


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("command", COMMANDS)
def test_hostile_text_never_reaches_the_terminal(look: Run, columns: int, command: str) -> None:
    """The only escapes are our colours; what steers, hides or reorders is made visible, in JSON too."""
    done = look(columns, *command.split())
    assert len(done.out) > 100
    assert not HAZARD.search(COLOUR.sub("", done.out))


def test_colours_are_for_those_who_want_them(look: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes them away, and nothing else."""
    commands = [["grep", "half"], ["diff", TODAY, FAILED], ["stats"], ["tail", FAILED]]
    coloured = [look(80, *command).out for command in commands]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = [look(80, *command).out for command in commands]
    for with_colours, without in zip(coloured, plain, strict=True):
        assert "\x1b[" in with_colours
        assert "\x1b" not in without
        assert [line.rstrip() for line in COLOUR.sub("", with_colours).splitlines()] == without.splitlines()


@pytest.mark.parametrize("columns", [48, 80, 160])
def test_lines_fit_the_terminal(look: Run, columns: int) -> None:
    """Tables and charts are as wide as the terminal at most, narrow ones too."""
    for command in (["stats"], ["stats", "--by", "time"], ["diff", YESTERDAY, TODAY], ["tail", TODAY]):
        lines = look(columns, *command).lines
        assert [line for line in lines if len(line) > columns] == []


def test_json_is_utf_8_whatever_the_terminal_has(read: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of JSON do not depend on the output's encoding."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    read("diff", YESTERDAY, TODAY, "--json")
    output.flush()
    raw = output.buffer
    assert isinstance(raw, io.BytesIO)
    first = raw.getvalue().splitlines()[0]
    assert json.loads(first.decode("utf-8"))["left"]["reference"] == YESTERDAY


def test_columns_of_a_pipe_are_aligned_within_reason(run: Run, own_folder: Path) -> None:
    """Nothing is cut there, and one very long key moves the columns of its own line alone."""
    with Archive.open("./traces") as made:
        Trace("short", number=1, minutes_ago=1).store(made)
        Trace("x" * 190, number=2).store(made)
    head, wide, narrow = run("ls").out.splitlines()
    assert "x" * 190 in wide
    assert len(narrow) < 160
    assert head.index("STARTED") == narrow.index("2026-11-24")


def test_the_readme_names_every_command() -> None:
    """Its table has a row for each command, and for nothing else."""
    from trifle_otel.cli.app import make_app

    section = README.read_text("utf-8").split("## Commands\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([a-z]+)", section, re.MULTILINE)
    assert sorted(named) == sorted(name for name in make_app() if not name.startswith("-"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(run: Run, shell: str) -> None:
    """What a shell reads knows the commands and their options."""
    out = run("completion", shell).out
    for word in ("grep", "trifle-otel", "ignore-case", "min-duration"):
        assert word in out
    assert run("completion", "tcsh").code == 2


def test_completion_completes(run: Run, own_folder: Path) -> None:
    """In a real bash: commands, options, and the values that there are."""
    Path("complete.bash").write_text(run("completion", "bash").out)
    script = """
source ./complete.bash
for words in "st" "grep --ig" "stats --by s"; do
    COMP_WORDS=(trifle-otel $words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    $(complete -p trifle-otel | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    echo "${COMPREPLY[@]}"
done
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split("\n")[:3] == ["stats", "--ignore-case", "segment"]
