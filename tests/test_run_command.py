"""`trifle-otel run` and `trifle-otel rerun`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._once import Once

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.cli import main
from trifle_otel.cli.run import key_of
from trifle_otel.integrations.attempts import Job, start

PRINTS = "import sys; print('priced'); print('old rate', file=sys.stderr)"


def only() -> tuple[Any, list[tuple[str, str]]]:
    """The only trace of the default archive, and state and message of its lines."""
    with Archive.open("./traces") as archive:
        (record,) = archive.search().records
        return record, [(entry.state, entry.message) for entry in archive.entries(record)][1:]


def test_a_command_is_a_trace(capfd: pytest.CaptureFixture[str]) -> None:
    """Its output is printed and recorded, errors as warnings; its arguments are the meta."""
    assert main(["run", "--tag", "nightly", "--", sys.executable, "-c", PRINTS]) == 0
    record, lines = only()
    printed = capfd.readouterr()
    assert printed.out == "priced\n"
    assert printed.err == "old rate\n"
    assert ("success", "priced") in lines
    assert ("warning", "old rate") in lines
    assert lines[-1] == ("success", "Exit code 0")
    assert record.meta == [sys.executable, "-c", PRINTS]
    assert (record.state, record.tags) == ("success", ("nightly",))


def test_the_command_knows_the_trace(capfd: pytest.CaptureFixture[str]) -> None:
    """What it records or sends can name the one that it runs in."""
    program = "import os; print(os.environ['TRIFLE_PARENT_REFERENCE'])"
    assert main(["run", "--key", "nightly/prices", "--", sys.executable, "-c", program]) == 0
    record, _ = only()
    assert capfd.readouterr().out == f"{record.reference}\n"
    assert record.key == "nightly/prices"


def test_spans_of_the_command_join_ours(capfd: pytest.CaptureFixture[str]) -> None:
    """Where spans are made, the command finds their context where OpenTelemetry's tools look for it."""
    program = "import os; print(os.environ['TRACEPARENT'])"
    otel.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    try:
        assert main(["run", "--", sys.executable, "-c", program]) == 0
    finally:
        otel._TRACER_PROVIDER = None
        otel._TRACER_PROVIDER_SET_ONCE = Once()
    record, _ = only()
    assert capfd.readouterr().out.startswith(f"00-{record.context['trace_id']}-{record.context['span_id']}-0")


def test_output_is_printed_byte_for_byte(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Whatever it is, and however long a line; what is recorded is text, and cut between characters."""
    program = "import sys; out = sys.stdout.buffer; out.write(bytes(range(256)) * 900)"
    program += "; out.write(b'\\n' + ('a' + 'é' * 40_000).encode() + b'\\r\\n' + b'no end')"
    assert main(["run", "--", sys.executable, "-c", program]) == 0
    long = "a" + "é" * 40_000
    assert capfdbinary.readouterr().out == bytes(range(256)) * 900 + b"\n" + long.encode() + b"\r\nno end"
    recorded = [message for _, message in only()[1]]
    assert recorded[-2:] == ["no end", "Exit code 0"]
    assert "".join(recorded[-4:-2]) == long


def test_what_has_no_end_of_line_is_printed_at_once(tmp_path: Path) -> None:
    """A program that asks waits for the answer, and whoever is to give it must see the question."""
    program = "import sys; print('Name? ', end='', flush=True); print('Hello', sys.stdin.readline())"
    command = [sys.executable, "-m", "trifle_otel", "run", "--", sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert os.read(process.stdout.fileno(), 100) == b"Name? "
        process.stdin.write(b"you\n")
        process.stdin.close()
        assert process.stdout.read() == b"Hello you\n\n"


def test_an_exit_code_is_passed_on() -> None:
    """A command that fails makes the trace an error."""
    assert main(["run", "--", sys.executable, "-c", "raise SystemExit(3)"]) == 3
    record, lines = only()
    assert (record.state, lines[-1]) == ("error", ("error", "Exit code 3"))


def test_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell says it, and recorded."""
    assert main(["run", "--", "no-such-command"]) == 127
    record, lines = only()
    assert "No such file" in capsys.readouterr().err
    assert (record.key, record.state) == ("commands/no-such-command", "error")
    assert lines[0][0] == "error"


def test_without_a_command_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong use."""
    assert main(["run"]) == 2
    assert "run -- python script.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, key",
    [
        (("/usr/bin/python3.11", "/srv/shop/prices.py", "--all"), "commands/prices"),
        (("python", "-m", "shop.prices"), "commands/shop.prices"),
        (("/usr/local/bin/backup", "now"), "commands/backup"),
        (("bash", "-c"), "commands/bash"),
        (("sh", "-c", "date > /dev/null; echo password=hunter2"), "commands/sh"),
        (("bash", "-lc", "backup $(date)"), "commands/bash"),
        (("bash", "-euo", "pipefail", "/srv/nightly.sh"), "commands/nightly"),
        (("bash", "-o", "pipefail", "-c", "true"), "commands/bash"),
        (("python", "-X", "dev", "-O", "-Wignore", "script.py", "-c", "1"), "commands/script"),
        (("python3", "-c", "import db; db.go()"), "commands/python3"),
        (("python3", "-Imshop.prices", "x"), "commands/shop.prices"),
        (("python3", "-", "script.py"), "commands/python3"),
        (("python3", "--", "-odd.py"), "commands/-odd"),
        (("node", "--enable-source-maps", "-r", "./otel.js", "app.js"), "commands/app"),
        (("ruby", "-rjson", "-e", "puts 1"), "commands/ruby"),
        (("python3-config", "--libs"), "commands/python3-config"),
        (("./nightly job.sh",), "commands/nightly-job.sh"),
    ],
)
def test_keys_are_names_of_scripts(command: tuple[str, ...], key: str) -> None:
    """The script that an interpreter runs, else the program."""
    assert key_of(command) == key


def test_a_signal_ends_the_command_and_then_us(tmp_path: Path) -> None:
    """What it printed until then is in the archive, and the exit code says what happened."""
    ready = tmp_path / "ready"
    program = f"import pathlib, time; print('begun', flush=True); pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    command = [sys.executable, "-m", "trifle_otel", "run", "--", sys.executable, "-c", program]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TRIFLE_")}
    process = subprocess.Popen(command, cwd=tmp_path, env=plain, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < end
        time.sleep(0.02)  # another process can only be polled
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    record, lines = only()
    assert ("success", "begun") in lines
    assert record.state == "error"


AT_A_TERMINAL = """
import fcntl, os, sys, termios
terminal = int(sys.argv[1])
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
COUNTS_INTERRUPTS = """
import os, signal, time
ours, theirs = os.pipe()
os.set_blocking(theirs, False)
signal.set_wakeup_fd(theirs)
signal.signal(signal.SIGINT, lambda *_: None)
print("ready", flush=True)
first = os.read(ours, 1)
time.sleep(0.3)
os.write(theirs, b"-")
print("interrupts:", len(first + os.read(ours, 100)) - 1, flush=True)
"""


def test_a_terminals_interrupt_reaches_the_command_once(tmp_path: Path) -> None:
    """Ctrl-C is the terminal's word to both: passed on again, it would be the second one, which many take for force."""
    ours, theirs = pty.openpty()
    command = ["-m", "trifle_otel", "run", "--", sys.executable, "-c", COUNTS_INTERRUPTS]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TRIFLE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, str(theirs), *command],
        cwd=tmp_path,
        env=plain,
        start_new_session=True,
        pass_fds=[theirs],
    )
    os.close(theirs)
    printed = b""
    try:
        while b"ready" not in printed:
            printed += os.read(ours, 1000)
        os.write(ours, b"\x03")
        while re.search(rb"interrupts: \d", printed) is None:
            printed += os.read(ours, 1000)
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(ours)
    assert b"interrupts: 1" in printed


def test_whoever_has_read_enough_ends_the_command(tmp_path: Path) -> None:
    """A pipe that is closed (`| head`) is one for the command too, which neither hangs nor prints on for nobody."""
    program = "for number in range(200_000): print(number, flush=True)"
    command = [sys.executable, "-m", "trifle_otel", "run", "--", sys.executable, "-c", program]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TRIFLE_")}
    process = subprocess.Popen(command, cwd=tmp_path, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert b"_copy" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 1
    record, lines = only()
    assert ("success", "0") in lines
    assert ("warning", "BrokenPipeError: [Errno 32] Broken pipe") in lines
    assert record.state == "error"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_what_cannot_be_printed_is_recorded(tmp_path: Path) -> None:
    """A full disk behind the output ends neither the command nor its record; it is said."""
    command = [sys.executable, "-m", "trifle_otel", "run", "--", "sh", "-c", "echo one; echo two; exit 4"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TRIFLE_")}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=tmp_path, env=plain, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4
    assert b"no longer printed: No space left on device" in done.stderr
    assert only()[1] == [("success", "one"), ("success", "two"), ("error", "Exit code 4")]


def archived(**changes: Any) -> str:
    """The reference of a job that was archived."""
    fields: dict[str, Any] = {
        "system": "celery",
        "name": "shop.tasks.price",
        "args": (9, "EUR"),
        "kwargs": {"fast": True},
        "queue": "prices",
        **changes,
    }
    trifle.configure("./traces")
    attempt = start(Job(**fields))
    assert attempt is not None
    assert attempt.recording is not None
    reference = attempt.recording.reference
    attempt.succeed()
    assert trifle.flush(5)
    return reference


def test_rerun_prints_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    """As Python, or as JSON for another program."""
    reference = archived()
    assert main(["rerun", reference]) == 0
    assert capsys.readouterr().out == "shop.tasks.price(9, 'EUR', fast=True)\n"
    assert main(["rerun", reference, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "system": "celery",
        "name": "shop.tasks.price",
        "args": [9, "EUR"],
        "kwargs": {"fast": True},
        "queue": "prices",
    }


def test_rerun_prints_where_a_message_went(capsys: pytest.CaptureFixture[str]) -> None:
    """Only of a job that came by way of an exchange of its own."""
    reference = archived(more={"exchange": "feeds", "routing_key": "feed.import"})
    assert main(["rerun", reference, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["queue"], printed["exchange"], printed["routing_key"]) == ("prices", "feeds", "feed.import")


def test_rerun_prints_what_any_names_and_texts_hold(capfd: pytest.CaptureFixture[str]) -> None:
    """Python that can be run whatever arguments are called, and JSON that cannot steer a terminal."""
    reference = archived(args=[], kwargs={"class": "\x9b31m\u202e", "a b": 1})
    assert main(["rerun", reference]) == 0
    assert capfd.readouterr().out == "shop.tasks.price(**{'class': '\\x9b31m\\u202e'}, **{'a b': 1})\n"
    assert main(["rerun", reference, "--json"]) == 0
    printed = capfd.readouterr().out
    assert printed.isascii()
    assert json.loads(printed)["kwargs"] == {"class": "\x9b31m\u202e", "a b": 1}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"args": ({1, 2},)}, "JSON does not hold"),
        ({"kwargs": {"password": "hunter2secret"}}, "redacted"),
        ({"args": (float("nan"),)}, "JSON does not hold"),
        ({"args": ((1, 2),)}, "JSON does not hold"),
        ({"args": (2**64,)}, "JSON does not hold"),
        ({"args": ("a\0b",)}, "JSON does not hold"),
        ({"args": ("\ud800",)}, "JSON does not hold"),
    ],
)
def test_rerun_refuses_what_is_not_known_exactly(
    changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job with other arguments than it had would be another job."""
    assert main(["rerun", archived(**changes)]) == 2
    assert said in capsys.readouterr().err


def test_rerun_refuses_what_is_no_job(capsys: pytest.CaptureFixture[str]) -> None:
    """A trace that was opened by hand names no call."""
    trifle.configure("./traces")
    with trifle.tracer("a/job", meta=[9]) as job:
        pass
    assert trifle.flush(5)
    assert main(["rerun", job.reference]) == 2
    assert "no job of a framework" in capsys.readouterr().err


APP = """
class Result:
    id = "new-1"

class App:
    def send_task(self, name, args, kwargs, queue):
        assert (name, args, kwargs, queue) == ("shop.tasks.price", [9, "EUR"], {"fast": True}, "prices")
        return Result()

app = App()
"""


def test_rerun_enqueues(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact call is sent with the application that is named."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "rerun_shop.py").write_text(APP)
    reference = archived()
    assert main(["rerun", reference, "--enqueue", "--app", "rerun_shop:app"]) == 0
    assert capsys.readouterr().out == "Enqueued shop.tasks.price as new-1.\n"


@pytest.mark.parametrize(
    "app, said",
    [
        (None, "--app"),
        ("shop", "module:name"),
        ("no_such_module:app", "cannot be loaded"),
        ("json:dumps", "celery sends"),
    ],
)
def test_rerun_says_what_is_wrong_with_an_app(
    app: str | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as wrong use."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    reference = archived()
    assert main(["rerun", reference, "--enqueue", *(["--app", app] if app else [])]) == 2
    assert said in capsys.readouterr().err


def test_rerun_says_in_one_line_that_a_broker_is_out_of_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework's own exception is told as every command tells what failed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    reference = archived()
    (tmp_path / "unreachable_shop.py").write_text(
        "class app:\n    def send_task(*given, **more):\n        raise RuntimeError('connection refused')\n"
    )
    assert main(["rerun", reference, "--enqueue", "--app", "unreachable_shop:app"]) == 1
    said = capsys.readouterr().err
    assert said == "trifle-otel: celery could not send shop.tasks.price: RuntimeError: connection refused\n"


def test_rerun_of_another_framework_prints_the_call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what it cannot do, and what to do instead."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["rerun", archived(system="arq"), "--enqueue", "--app", "json:dumps"]) == 2
    assert "shop.tasks.price(9, 'EUR', fast=True)" in capsys.readouterr().err
