"""The command line as people meet it: help, wrong use, what is missing, pipes, interrupts, the demonstration."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part
from trifle_otel.testing import sample_record

pytest.importorskip("cyclopts", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

from trifle_otel.cli import main


def command(*arguments: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "trifle_otel", *arguments]


def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process, without a terminal."""
    return subprocess.run(command(*arguments), capture_output=True, encoding="utf-8", timeout=30, check=False)


MISUSES = {
    "bogus": "Unknown command",
    "ls --limit many": "many",
    "ls --limit 0": "1 to 1000",
    "ls --bogus": "--bogus",
    "show": "REFERENCE",
    "search --state broken": "running, success, warning, error",
    "search --since whenever": "ISO 8601",
    "search --min-duration long": "1.5s",
    "search --cursor nonsense": "cursor",
    "ls --archive gopher://x": "gopher",
    "ls --index gopher://x": "gopher",
    "demo --products 0": "1 to 2000",
    "cleanup extra": "extra",
    "tail --every nan": "a day's at most",
    "tail --every inf": "a day's at most",
    "tail --every 1e18": "a day's at most",
}


@pytest.mark.parametrize("arguments", MISUSES)
def test_wrong_use_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    """Each says what is wrong or what is allowed, on the error stream alone."""
    Path("traces").mkdir()
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trifle-otel: ")
    assert err.count("\n") == 1
    assert MISUSES[arguments] in err


def run_without(package: str, name: str) -> subprocess.CompletedProcess[str]:
    """Run a command where a package is not installed."""
    code = f"import sys; sys.modules['{package}'] = None; from trifle_otel.cli import main; sys.exit(main(['{name}']))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("package", ["cyclopts", "rich"])
def test_a_missing_extra_names_the_remedy(package: str) -> None:
    """Without what the commands are made of, one line says what to install."""
    done = run_without(package, "ls")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"trifle-otel: the commands need {package}: pip install 'trifle-otel[cli]'\n"


def test_the_demonstration_s_missing_extra_names_the_remedy(own_folder: Path) -> None:
    """The same for what the job of the demonstration needs, and no archive is made."""
    done = run_without("currency_converter", "demo")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "pip install 'trifle-otel[demo]'" in done.stderr
    assert not Path("traces").exists()


@pytest.fixture
def long_trace(own_folder: Path) -> str:
    """The reference of a trace whose lines fill any pipe."""
    with Archive.open("./traces") as archive:
        archive.setup()
        record = sample_record(parts=1, length=20_000)
        line = {"at": 1, "message": "x" * 90, "state": "success", "type": "text", "level": 0}
        archive.store.write(record.folder, "data_1.json.gz", encode_part([line] * 20_000))
        archive.index.put([record])
    return record.reference


def test_a_reader_that_has_enough_is_no_error(long_trace: str) -> None:
    """Where the pipe is closed early, as `| head` does, nothing is printed on the error stream."""
    process = subprocess.Popen(command("show", long_trace), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("arguments", ["--help", "ls --help", "--version", "show"])
def test_nobody_has_to_read_help(long_trace: str, arguments: str) -> None:
    """Where the pipe is closed before anything is printed, help and versions are as quiet as commands."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [*arguments.split(), *([long_trace] if arguments == "show" else [])]
    done = subprocess.run(command(*words), stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "closed, arguments, code",
    [(">&-", "ls", 0), (">&-", "ls --json", 0), (">&-", "--help", 0), (">&- 2>&-", "ls --archive none", 1)],
)
def test_output_that_is_closed_is_output_that_nobody_reads(
    long_trace: str, closed: str, arguments: str, code: int
) -> None:
    """A process that was given no output does what it does all the same, and writes to no file by mistake."""
    script = f'exec "$0" -m trifle_otel {arguments} {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert run_process("ls").stdout.count(long_trace) == 1


def test_an_interrupt_ends_it_quietly(long_trace: str) -> None:
    """Ctrl-C gives the usual exit code and no traceback, while nobody reads the output too."""
    process = subprocess.Popen(command("show", long_trace), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)  # it prints now, and waits for us to read on
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


# --- Help and start


def test_help_lists_every_command() -> None:
    """`--help` and no argument at all list the commands with what they do."""
    for arguments in ([], ["--help"]):
        done = run_process(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        for name in ("demo", "ls", "search", "show", "reindex", "cleanup", "recover", "setup"):
            assert re.search(rf"^│ {name} +\w", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", ["demo", "ls", "search", "show", "reindex", "cleanup", "recover", "setup"])
def test_every_command_takes_an_archive_and_an_index(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The help of each names both options, and what they are by default."""
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    for words in ("--archive", "--index", "TRIFLE_ARCHIVE", "TRIFLE_INDEX", "./traces"):
        assert words in out


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints what is installed."""
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_the_demonstration_shows_what_it_recorded(own_folder: Path) -> None:
    """It runs the job, sums up by state, shows one trace in excerpt, and names commands that work."""
    pytest.importorskip("currency_converter", reason="needs the extra `demo`")
    pytest.importorskip("eu_vat_rates_data", reason="needs the extra `demo`")
    done = run_process("demo", "--products", "60", "--archive", "./my traces")

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"60 products in .* in 60 traces, in \./my traces\.", done.stdout)
    counted = dict(re.findall(r"^  \S (\w+) +(\d+)  ", done.stdout, re.MULTILINE))
    assert set(counted) == {"success", "warning", "error"}
    assert sum(map(int, counted.values())) == 60
    assert "Publishing the prices ↴" in done.stdout
    assert len(done.stdout.splitlines()) < 80
    for line in re.findall(r"^  trifle-otel (.*?)   ", done.stdout, re.MULTILINE):
        words = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
        again = run_process(*words.stdout.splitlines())
        assert again.returncode == 0, line
        assert again.stdout
