"""`trifle-otel replay`: which traces it takes, what it says, how it ends; against servers of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from otlp_servers import GrpcServer, HttpServer, Reply, running

from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part, encode_record
from trifle_otel.records import TraceRecord
from trifle_otel.testing import START, sample_record

pytest.importorskip("cyclopts", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

from trifle_otel.cli import main
from trifle_otel.cli import replay as command

REFERENCES = [f"01KDYAK3SEABCDEFGHJKMNPQR{letter}" for letter in "STVW"]


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def http() -> Iterator[HttpServer]:
    """A server of OTLP over HTTP."""
    yield from running(HttpServer)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `replay` in this process."""

    def run_here(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(["replay", *arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run_here


def add(archive: Archive, **changes: Any) -> TraceRecord:
    """Store a trace of two lines."""
    lines = [{"at": 1_767_323_045, "message": text, "state": "success", "type": "text", "level": 0} for text in "ab"]
    record = sample_record(**{"parts": 1, "length": 2, "context": {}, "tags": (), **changes})
    archive.store.write(record.folder, "data_1.json", encode_part(lines, compress=False))
    archive.store.write(record.folder, "record.json", encode_record(record))
    archive.index.put([record])
    return record


@pytest.fixture
def traces(own_folder: Path) -> list[TraceRecord]:
    """Four traces in `./traces`: two that failed, one that did not, one that runs; a second apart, the oldest first."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("error", {"tags": ("x",)}),
        ("success", {"key": "stock"}),
        ("error", {"tags": ("x", "y")}),
        ("running", {}),
    ]
    with Archive.open("./traces") as archive:
        archive.setup()
        return [
            add(archive, reference=REFERENCES[at], state=state, first_at=START + timedelta(seconds=at), **more)
            for at, (state, more) in enumerate(kinds)
        ]


def references(http: HttpServer) -> list[str]:
    """The traces that arrived, by the letters of their references."""
    found = []
    for span in http.spans:
        found += [pair.value.string_value[-1] for pair in span.attributes if pair.key == "trifle.reference"]
    return found


def test_traces_are_named_by_their_beginnings(run: Run, traces: list[TraceRecord], http: HttpServer) -> None:
    """References, or beginnings that no other has, name traces; one that is named twice is sent once."""
    done = run(REFERENCES[1], REFERENCES[0], REFERENCES[1], "--endpoint", http.endpoint)
    size = sum(http.sizes)
    where = f"{http.endpoint}/v1/traces"
    assert done == (0, f"Sent 2 traces to {where}: 2 spans in 1 request ({size / 1000:.3g} kB).\n", "")
    assert references(http) == ["T", "S"]


def test_only_what_no_backend_has_seen(run: Run, traces: list[TraceRecord], http: HttpServer) -> None:
    """With `--sampled-out` what was sampled in is left alone, and so is what does not say."""
    with Archive.open("./traces") as archive:
        add(archive, reference="01KDYAK3SEABCDEFGHJKMNPQRX", state="error", context={"sampled": False})
        add(archive, reference="01KDYAK3SEABCDEFGHJKMNPQRY", state="error", context={"sampled": True})
    assert run("--state", "error", "--sampled-out", "--endpoint", http.endpoint).code == 0
    assert references(http) == ["X"]


SEARCHES = {
    "--state error": "VS",
    "--segment stock": "T",
    "--tag x --tag y": "VS",
    "--all-tags x --all-tags y": "V",
    "--since 2026-01-02T03:04:06.678901Z": "VT",
    "--until 2026-01-02T03:04:07Z": "TS",
    "--min-duration 1s": "VTS",
    "--limit 2": "V",
    "--state error --limit 1": "V",
    "--state running": "W",
    f"--trace-id {'0' * 32}": "",
}


@pytest.mark.parametrize("options", SEARCHES)
def test_traces_are_searched_for(run: Run, traces: list[TraceRecord], http: HttpServer, options: str) -> None:
    """The options of `search` choose traces; those that still run are left out where they are not asked for."""
    done = run(*options.split(), "--endpoint", http.endpoint)
    assert references(http) == list(SEARCHES[options])
    assert done.code == (0 if SEARCHES[options] else 1)
    found_running = options in ("--since 2026-01-02T03:04:06.678901Z", "--min-duration 1s", "--limit 2")
    assert ("left out 1 trace that still run" in done.err) == found_running


def test_all_pages_are_sent(
    run: Run, traces: list[TraceRecord], http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search goes on through its pages until all traces, or as many as `--limit` says, were sent."""
    monkeypatch.setattr(command, "MAX_LIMIT", 1)
    run("--since", "2026-01-01", "--endpoint", http.endpoint)
    assert references(http) == ["V", "T", "S"]
    http.requests.clear()
    run("--since", "2026-01-01", "--limit", "3", "--endpoint", http.endpoint)
    assert references(http) == ["V", "T"]


def test_a_dry_run_sends_nothing(run: Run, traces: list[TraceRecord]) -> None:
    """`--dry-run` says what would be sent, and needs nobody who takes it."""
    done = run("--state", "error", "--dry-run", "--full")
    assert done.code == 0
    assert done.out.startswith("Would send 2 traces to http://localhost:4318/v1/traces: 2 spans in 1 request (")


def test_opentelemetrys_variables_count(
    run: Run, traces: list[TraceRecord], http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint and headers come from the variables that exporters of OpenTelemetry have."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", http.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t")
    assert run("--state", "error").code == 0
    assert http.headers[0]["authorization"] == "Bearer t"
    assert http.paths == ["/v1/traces"]


def test_grpc_is_spoken_where_the_endpoint_says_so(run: Run, traces: list[TraceRecord]) -> None:
    """`--protocol grpc` sends over gRPC, to any port."""
    for server in running(GrpcServer):
        done = run("--state", "error", "--endpoint", f"127.0.0.1:{server.port}", "--protocol", "grpc")
        assert done.code == 0
        assert len(server.spans) == 2
        assert f"to grpc://127.0.0.1:{server.port}: 2 spans" in done.out


def test_nobody_there_is_one_line(run: Run, traces: list[TraceRecord]) -> None:
    """A refused connection is said in one line, and is a failure."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run("--state", "error", "--endpoint", f"127.0.0.1:{port}")
    message = f"trifle-otel: nobody answers at http://127.0.0.1:{port}/v1/traces: Connection refused\n"
    assert done == (1, "", message)


WRONG = {
    "": "no trace is named",
    "--limit 0": "limit",
    "--state odd": "state",
    "01KDYAK3 --state error": "either named, or searched for",
    "01KDYAK3": "beginning of several",
    "--state error --endpoint ftp://x": "scheme",
    "--state error --protocol http/json": "protocol",
    "--state error --rate 0": "rate",
    "--state error --since yesterday": "time",
    "--nonsense": "nonsense",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_use_is_said(run: Run, traces: list[TraceRecord], options: str) -> None:
    """What is not allowed is told in one line, and nothing is sent."""
    done = run(*options.split())
    assert done.code == 2
    assert WRONG[options] in done.err
    assert done.out == ""


def test_a_trace_that_is_not_there_is_a_failure(run: Run, traces: list[TraceRecord]) -> None:
    """A reference that names nothing ends it before anything is sent."""
    assert run("01NOSUCHTRACE").code == 1


def test_what_failed_is_named(run: Run, traces: list[TraceRecord], http: HttpServer) -> None:
    """A damaged trace is sent as far as it can be read, a refused request is told, and both make it a failure."""
    (Path("traces") / traces[0].folder.path / "data_1.json").write_bytes(b"[{")
    done = run("--state", "error", "--endpoint", http.endpoint)
    assert done.code == 1
    assert references(http) == ["V", "S"]
    assert f"part 1 of trace {REFERENCES[0]} is damaged" in done.err
    assert f"1 trace not sent, or not wholly: {REFERENCES[0]}\n" in done.err

    http.replies = [Reply(500, {"content-type": "text/plain"}, b"\x1b[31mred")]
    done = run(REFERENCES[2], "--endpoint", http.endpoint)
    assert done.code == 1
    assert f"1 span of {REFERENCES[2]} refused: 500 Internal Server Error ␛[31mred" in done.err
    assert "\x1b" not in done.err


def test_what_is_in_the_archive_alone_is_said(run: Run, traces: list[TraceRecord], http: HttpServer) -> None:
    """Lines for which a preview has no room are counted, and are sent with `--full`."""
    with Archive.open("./traces") as archive:
        record = sample_record(reference="01KDZ", parts=1, length=300, context={})
        lines = [{"at": 1, "message": "x", "state": "success", "type": "text", "level": 0}] * 300
        archive.store.write(record.folder, "data_1.json.gz", encode_part(lines))
        archive.index.put([record])
    done = run("01KDZ", "--endpoint", http.endpoint)
    assert "188 lines are in the archive alone.\n" in done.out
    assert len(http.spans[0].events) == 112
    done = run("01KDZ", "--endpoint", http.endpoint, "--full")
    assert "in the archive alone" not in done.out
    assert len(http.spans[1].events) == 300


def test_a_terminal_gets_a_progress_bar(traces: list[TraceRecord], http: HttpServer) -> None:
    """While it sends, the error stream of a terminal shows how many traces of how many; then the bar is gone."""
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "trifle_otel", "replay", "--state", "error", "--endpoint", http.endpoint]
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, env=env) as process:
        os.close(theirs)
        out, _ = process.communicate(timeout=30)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith(b"Sent 2 traces")
    assert b"Sending traces" in shown
    assert b"2/2" in shown
