"""The command line: what each command prints and finds, hostile text, widths, colours, damage."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part, encode_record
from trifle_otel.records import TraceRecord
from trifle_otel.testing import START, sample_record

pytest.importorskip("cyclopts", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

from trifle_otel.cli import main

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
REFERENCES = [f"01KDYAK3SEABCDEFGHJKMNPQR{letter}" for letter in "STV"]
Stored = dict[str, Any]


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Stored]:
        """Its output, where that is JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run_here(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run_here


def command(*arguments: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "trifle_otel", *arguments]


def run_process(*arguments: str, **variables: str) -> Done:
    """Run a command as a process, without a terminal."""
    env = {**os.environ, **variables}
    done = subprocess.run(command(*arguments), capture_output=True, env=env, timeout=30, check=False)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_in_terminal(columns: int, *arguments: str, **variables: str) -> list[str]:
    """The lines that a command prints on a terminal of that width."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm", "TRIFLE_PAGER": "", **variables}
    for name in {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"} - set(variables):
        env.pop(name, None)
    process = subprocess.Popen(command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    printed = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not piece:
            break
        printed += piece
    os.close(ours)
    assert process.wait(timeout=30) == 0
    return printed.decode().replace("\r\n", "\n").splitlines()


def entry(message: str, level: int = 0, **more: Any) -> Stored:
    """An entry as it is stored."""
    standard = {"at": 1_767_323_045, "message": message, "state": "success", "type": "text", "level": level}
    return {**standard, **more}


BLOCKS = [
    entry("Tracer has been initialized for prices/one", span="0" * 16, ns=1_000),
    entry("Prices ↴", type="head", span="1" * 16, parent="0" * 16, ns=2_000),
    entry("Freight ↴", 1, span="2" * 16, parent="1" * 16, ns=1_002_000),
    entry("late", 2, state="warning", span="2" * 16, ns=1_003_000),
    entry("Freight ↵", 1, span="2" * 16, ns=3_502_000),
    entry("↳ " + "x" * 5_000, 1, type="raw", span="2" * 16, ns=3_502_000),
    entry("Prices ↵", state="error", span="1" * 16, ns=9_002_000),
    entry("↳ None", type="raw", span="1" * 16, ns=9_002_000),
    {**entry("sheet.csv", type="media", size=71, span="0" * 16), "level": 0},
    entry("part_row_01kdyak3seabcdefghjkmnpqrs.txt", type="media", size=150_000, span="0" * 16),
]
del BLOCKS[8]["level"]  # artifacts have none


def add(archive: Archive, *parts: list[Stored], **changes: Any) -> TraceRecord:
    """Store a trace with these parts."""
    record = sample_record(**{"parts": len(parts), "length": sum(map(len, parts)), **changes})
    for number, entries in enumerate(parts, 1):
        archive.store.write(record.folder, f"data_{number}.json.gz", encode_part(entries))
    archive.store.write(record.folder, "record.json", encode_record(record))
    archive.index.put([record])
    return record


@pytest.fixture
def traces(own_folder: Path) -> list[TraceRecord]:
    """Three traces in `./traces`, a second apart, the oldest first."""
    with Archive.open("./traces") as archive:
        archive.setup()
        first = add(archive, BLOCKS, reference=REFERENCES[0], key="prices/one", state="error", meta=[9, "DE"])
        archive.store.write(first.folder, "artifacts/sheet.csv", b"a,b\n\x1b[31m\xff")
        archive.store.write(first.folder, "artifacts/part_row_01kdyak3seabcdefghjkmnpqrs.txt", b"y" * 150_000)
        later = START + timedelta(seconds=1)
        second = add(archive, [entry("hello")], reference=REFERENCES[1], key="prices/two", first_at=later, tags=("x",))
        last = START + timedelta(seconds=2)
        third = add(archive, [entry("bye")], reference=REFERENCES[2], key="stock", first_at=last, tags=("x", "y"))
    return [first, second, third]


# --- Lists


def test_ls_lists_the_newest_first(run: Run, traces: list[TraceRecord]) -> None:
    """State with its icon, key with arguments, time, duration, lines, tags and the whole reference, one line each."""
    done = run("ls")

    head, *rows = done.out.splitlines()
    assert head.split() == ["STATE", "KEY", "STARTED", "TOOK", "LINES", "TAGS", "REFERENCE"]
    assert [row.split()[-1] for row in rows] == REFERENCES[::-1]
    assert re.split("  +", rows[2]) == [
        "✗ error",
        'prices/one(9, "DE")',
        "2026-01-02T03:04:05.678901Z",
        "1.23 s",
        "10",
        "product:9 store:133554920",
        REFERENCES[0],
    ]
    assert (done.code, done.err) == (0, "")


def test_ls_takes_a_path_and_a_limit(run: Run, traces: list[TraceRecord]) -> None:
    """`ls prices` lists what is below it, `--limit` bounds how many."""
    assert [found["reference"] for found in run("ls", "prices", "--json").objects] == REFERENCES[1::-1]
    assert [found["reference"] for found in run("ls", "--limit", "1", "--json").objects] == REFERENCES[2:]


SEARCHES = {
    "--segment prices": [1, 0],
    "--tag x": [2, 1],
    "--tag y --tag product:9": [2, 0],
    "--all-tags x --all-tags y": [2],
    "--state error": [0],
    "--since 2026-01-02T03:04:06.678901Z": [2, 1],
    "--until 2026-01-02T03:04:06.678901Z": [0],
    "--min-duration 1.2s": [2, 1, 0],
    "--trace-id 0AF7651916CD43DD8448EB211C80319C --segment stock": [2],
}


@pytest.mark.parametrize("options", SEARCHES)
def test_search_takes_each_condition(run: Run, traces: list[TraceRecord], options: str) -> None:
    """Every option of `search` narrows what is found."""
    done = run("search", *options.split(), "--json")
    assert [found["reference"] for found in done.objects] == [REFERENCES[at] for at in SEARCHES[options]]


def test_search_goes_on_with_a_cursor(run: Run, traces: list[TraceRecord]) -> None:
    """A full page tells its cursor on the error stream, and that leads to the next page."""
    page = run("search", "--limit", "2", "--json")
    cursor = re.search(r"--cursor (\S+)", page.err)
    assert cursor is not None
    last = run("search", "--limit", "2", "--cursor", cursor[1], "--json")
    assert [found["reference"] for found in page.objects + last.objects] == REFERENCES[::-1]
    assert last.err == ""


def test_records_are_printed_with_the_format_s_fields(run: Run, traces: list[TraceRecord]) -> None:
    """`--json` gives the record as `record.json` holds it."""
    folder = Path("traces") / traces[2].folder.path
    assert run("ls", "--limit", "1", "--json").objects == [json.loads((folder / "record.json").read_text())]


def test_nothing_found_is_said(run: Run, traces: list[TraceRecord]) -> None:
    """Exit code 1 and a line that says why: nothing matches, nothing is there yet, nothing is indexed, no archive."""
    assert run("search", "--tag", "nope") == Done(1, "", "trifle-otel: no trace matches\n")
    Path("empty").mkdir()
    assert run("ls", "--archive", "empty").err.startswith("trifle-otel: no traces are in file://")
    Path("traces/index.sqlite").unlink()
    assert "`trifle-otel reindex`" in run("ls").err
    missing = run("ls", "--archive", "elsewhere")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.startswith("trifle-otel: there is no archive at elsewhere; name one with --archive")
    assert not Path("elsewhere").exists()


# --- One trace


def test_show_nests_lines_with_numbers_marks_and_durations(run: Run, traces: list[TraceRecord]) -> None:
    """Lines are numbered and indented; heads, warnings, errors, artifacts and how long blocks took are marked."""
    done = run("show", REFERENCES[0])

    facts, _, lines = done.out.partition("\n\n")
    assert facts.splitlines()[0] == '✗ error  prices/one(9, "DE")'
    assert "  reference  " + REFERENCES[0] in facts.splitlines()
    assert "  tags       product:9  store:133554920" in facts.splitlines()
    assert '  meta       [9,"DE"]' in facts.splitlines()
    assert "trace_id=0af7651916cd43dd8448eb211c80319c" in facts
    assert "300 success, 12 warning, 3 error, 1 debug; 6 levels" in facts
    assert lines.splitlines() == [
        "  1             Tracer has been initialized for prices/one",
        "  2       9 ms  ■ Prices ↴",
        "  3     2.5 ms    Freight ↴",
        "  4 !               late",
        "  5               Freight ↵",
        "  6               ↳ " + "x" * 198 + "… (5 kB, --full shows it)",
        "  7 ✗           Prices ↵",
        "  8             ↳ None",
        "  9             artifact sheet.csv (71 B)",
        " 10             … (150 kB, --full shows it)",
    ]
    assert (done.code, done.err) == (0, "")


def test_show_unfolds_with_full(run: Run, traces: list[TraceRecord]) -> None:
    """`--full` prints long results whole, and messages that were stored beside the trace in their place."""
    out = run("show", REFERENCES[0], "--full").out
    assert "↳ " + "x" * 5_000 + "\n" in out
    assert "y" * 150_000 + "\n" in out
    assert "…" not in out


def test_show_prints_entries_as_stored(run: Run, traces: list[TraceRecord]) -> None:
    """`--json` gives the record and then each entry, unchanged."""
    record, *entries = run("show", REFERENCES[0], "--json").objects
    assert record["reference"] == REFERENCES[0]
    assert entries == BLOCKS


def test_show_prints_an_artifact(run: Run, traces: list[TraceRecord]) -> None:
    """`--artifact` gives its bytes where the output is no terminal, and harmless text on one."""
    piped = subprocess.run(
        command("show", REFERENCES[0], "--artifact", "sheet.csv"), stdout=subprocess.PIPE, check=True
    )
    assert piped.stdout == b"a,b\n\x1b[31m\xff"
    assert run_in_terminal(80, "show", REFERENCES[0], "--artifact", "sheet.csv") == ["a,b", "␛[31m\\xff"]
    missing = run("show", REFERENCES[0], "--artifact", "../record.json")
    assert (missing.code, missing.out) == (1, "")


def test_the_beginning_of_a_reference_is_enough(run: Run, traces: list[TraceRecord]) -> None:
    """Also in lower case; one that several traces share names them; unknown ones are not found."""
    assert run("show", REFERENCES[1].lower()).out.startswith("✓ success  prices/two")
    with Archive.open("./traces") as archive:
        add(archive, [entry("x")], reference="6955f0a55f9e2b0001a1b2c3", first_at=START, key="object-id")
        add(archive, [entry("x")], reference="run-2026-07", first_at=START, key="own")
    assert "object-id" in run("show", "6955f0a5", "--json").out
    assert '"own"' in run("show", "run-", "--json").out
    several = run("show", REFERENCES[0][:25])
    assert several.code == 2
    assert all(reference in several.err for reference in REFERENCES)
    for unknown in ("01KDYAK3SF", "nope", "x", "../../etc/passwd", ""):
        done = run("show", unknown)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)


def test_damage_is_named_and_the_rest_shown(run: Run, own_folder: Path) -> None:
    """Of a trace with a missing and a damaged part what can be read is shown; stderr names the parts; exit code 1."""
    with Archive.open("./traces") as archive:
        archive.setup()
        record = add(archive, [entry("one")], [entry("two")], [entry("three"), entry("four")])
    folder = Path("traces") / record.folder.path
    (folder / "data_2.json.gz").unlink()
    (folder / "data_3.json.gz").write_bytes(b"[" + json.dumps(entry("three")).encode() + b",{")

    for options in ((), ("--json",)):
        done = run("show", record.reference, *options)
        assert done.code == 1
        assert "one" in done.out
        assert "two" not in done.out
        first, second = done.err.splitlines()
        assert f"part 2 of trace {record.reference} is missing" in first
        assert f"part 3 of trace {record.reference} is damaged" in second


@pytest.mark.parametrize("case", ["plain/deferred", "gzip/live", "gzip/deferred-json", "plain/live-two-parts-warning"])
def test_what_ruby_wrote_is_shown(run: Run, golden: Path, own_folder: Path, case: str) -> None:
    """An archive of Ruby's is indexed, listed, and shown entry by entry as Ruby reads it."""
    shutil.copytree(golden / case / "archive", "ruby")
    expected = json.loads((golden / case / "entries.json").read_text(encoding="utf-8"))
    assert run("reindex", "--archive", "ruby").out == "The index holds 1 trace of the store.\n"
    reference = run("ls", "--archive", "ruby", "--json").objects[0]["reference"]

    shown = run("show", reference, "--archive", "ruby", "--full")
    _, *entries = run("show", reference, "--archive", "ruby", "--json").objects

    assert entries == expected
    assert (shown.code, shown.err) == (0, "")
    numbers = re.findall(r"^ {0,2}(\d+)(?: |$)", shown.out.partition("\n\n")[2], re.MULTILINE)
    assert numbers == [str(number + 1) for number in range(len(expected))]


# --- Terminals


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\u2066\u200b\r\b\x7f\U000e0041 [bold]markup[/bold] :boom:\nsecond"


@pytest.fixture
def hostile(own_folder: Path) -> str:
    """The reference of a trace in whose every field somebody has put what steers a terminal."""
    with Archive.open("./traces") as archive:
        archive.setup()
        record = add(
            archive,
            [entry(HOSTILE), entry(HOSTILE, 10**9, state=HOSTILE), entry(HOSTILE, type="media", size=3)],
            key="evil\x1b[31m\u202e",
            tags=(HOSTILE,),
            meta={HOSTILE: HOSTILE},
            context={HOSTILE: HOSTILE},
            state="\x1b[31m",
        )
    return record.reference


@pytest.mark.parametrize("columns", [80, 160])
def test_hostile_text_never_reaches_the_terminal(hostile: str, columns: int) -> None:
    """In lists, traces and JSON alike the only escapes are our colours, and text that hides or reorders is visible."""
    for arguments in (["ls"], ["show", hostile], ["show", hostile, "--full"], ["show", hostile, "--json"]):
        printed = "\n".join(run_in_terminal(columns, *arguments))
        assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066\u200b\U000e0041]", ESCAPE.sub("", printed))
    assert "[bold]markup[/bold] :boom:" in ESCAPE.sub("", "\n".join(run_in_terminal(160, "show", hostile)))


def test_json_means_what_was_stored(run: Run, hostile: str) -> None:
    """Making it harmless changes how JSON is written, not what it says."""
    record, first, *_ = run("show", hostile, "--json").objects
    assert first["message"] == HOSTILE
    assert record["meta"] == {HOSTILE: HOSTILE}


def test_tables_fit_the_terminal(traces: list[TraceRecord]) -> None:
    """On 80 columns a trace takes two lines, on 160 one with all columns; references are always whole."""
    narrow = [ESCAPE.sub("", line) for line in run_in_terminal(80, "ls")]
    wide = [ESCAPE.sub("", line) for line in run_in_terminal(160, "ls")]
    assert (len(narrow), len(wide)) == (6, 4)
    assert max(map(len, narrow)) <= 80
    assert max(map(len, wide)) <= 160
    for lines in (narrow, wide):
        assert re.findall("01K[0-9A-Z]{23}", "\n".join(lines)) == REFERENCES[::-1]
    assert "product:9" in wide[3]
    assert "product:9" in narrow[5]


def test_long_lines_go_on_below_their_text(traces: list[TraceRecord]) -> None:
    """On a terminal a long message is broken at its width, and goes on where it began; nothing of it is lost."""
    lines = [ESCAPE.sub("", line) for line in run_in_terminal(80, "show", REFERENCES[0], "--full")]
    assert max(map(len, lines)) <= 80
    folded = [line for line in lines if line.strip(" 6↳x") == "" and "x" in line]
    assert sum(line.count("x") for line in folded) == 5_000
    assert all(line.startswith(" " * 18 + "x") for line in folded[1:])


def test_colours_are_for_terminals_that_want_them(traces: list[TraceRecord]) -> None:
    """There are colours on a terminal; none with NO_COLOR, on a dumb terminal, or in a pipe."""
    assert any("\x1b[" in line for line in run_in_terminal(80, "show", REFERENCES[0]))
    assert not any("\x1b" in line for line in run_in_terminal(80, "show", REFERENCES[0], NO_COLOR="1"))
    assert not any("\x1b" in line for line in run_in_terminal(80, "show", REFERENCES[0], TERM="dumb"))
    assert "\x1b" not in run_process("show", REFERENCES[0]).out


def test_a_poor_encoding_is_no_failure(traces: list[TraceRecord]) -> None:
    """Where the output's encoding has no icons, their codes are printed."""
    done = run_process("ls", "--limit", "1", PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "\\u2713 success" in done.out


# --- Errors


def test_a_damaged_index_is_one_line_and_exit_code_1(run: Run, traces: list[TraceRecord]) -> None:
    """It names the remedy, and the remedy works."""
    for leftover in Path("traces").glob("index.sqlite*"):
        leftover.unlink()
    Path("traces/index.sqlite").write_bytes(b"not a database" * 100)
    done = run("ls")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "trifle-otel reindex" in done.err
    assert run("reindex").code == 0
    assert len(run("ls", "--json").objects) == 3


# --- Each command as a process


def test_reading_commands_work_as_processes(traces: list[TraceRecord]) -> None:
    """`ls`, `search` and `show` in a shell; TRIFLE_ARCHIVE and TRIFLE_INDEX name what they read."""
    Path("traces").rename("renamed")
    Path("renamed/index.sqlite").rename("elsewhere.sqlite")
    named = {"TRIFLE_ARCHIVE": "./renamed", "TRIFLE_INDEX": f"sqlite:///{Path('elsewhere.sqlite').absolute()}"}
    assert run_process("ls", "--json", **named).objects[0]["reference"] == REFERENCES[2]
    assert run_process("search", "--state", "error", "--json", **named).objects[0]["reference"] == REFERENCES[0]
    assert "Tracer has been initialized" in run_process("show", REFERENCES[0], **named).out


def test_upkeep_works_as_processes(own_folder: Path) -> None:
    """`setup` makes an archive; `cleanup` deletes what is over, `reindex` finds the rest, `recover` nothing."""
    assert run_process("setup").code == 0
    assert Path("traces/index.sqlite").is_file()
    with Archive.open("./traces") as archive:
        add(archive, [entry("old")], reference=REFERENCES[0], retention=1)
        add(archive, [entry("new")], reference=REFERENCES[1], retention=100_000)
    assert run_process("cleanup", "--dry-run") == Done(0, "1 trace would be deleted.\n", "")
    assert run_process("cleanup") == Done(0, "Deleted 1 trace.\n", "")
    assert run_process("reindex") == Done(0, "The index holds 1 trace of the store.\n", "")
    assert run_process("recover") == Done(0, "Recovered 0 traces.\n", "")


def test_recover_ships_what_a_dead_process_left(own_folder: Path) -> None:
    """A trace of a process that was killed while it ran is in the archive afterwards, as an error."""
    code = """
import os, signal
import trifle_otel as trifle
trifle.configure("./traces", bump_every=0.05)
with trifle.tracer("job"):
    while not any("record.json" in names for _, _, names in os.walk("traces")):
        trifle.trace("waiting")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run_process("recover").code == 0
    (found,) = run_process("ls", "--json").objects
    assert (found["key"], found["state"]) == ("job", "error")


def test_a_partly_failed_reindex_says_so(run: Run, traces: list[TraceRecord]) -> None:
    """A folder that nothing can be read of is named, the rest is indexed, and the exit code is 1."""
    bad = Path("traces/7/broken/not-a-reference")
    bad.mkdir(parents=True)
    (bad / "data_1.json").write_bytes(b"")
    done = run("reindex")
    assert (done.code, done.out) == (1, "The index holds 3 traces of the store.\n")
    assert "7/broken/not-a-reference" in done.err
