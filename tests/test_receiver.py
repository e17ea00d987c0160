"""The receiver: real clients over HTTP and gRPC, deaths and ends, backpressure, tokens and TLS, HTTP's manners."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("h11", reason="needs the extra `receiver`")
pytest.importorskip("cyclopts", reason="needs the extra `cli`")

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGRPC
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHTTP
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from receiving import (
    FAST,
    JSON,
    archived,
    body_of,
    call,
    get,
    gzipped,
    json_of,
    left_over,
    messages,
    post,
    process,
    running,
    span_of,
    trace_of,
)

import trifle_otel as trifle
from trifle_otel import TraceRecord
from trifle_otel.cli import main
from trifle_otel.errors import ConfigurationError, StoreUnavailable, UsageError
from trifle_otel.executions.assemble import Assembler
from trifle_otel.receiver.intake import Intake
from trifle_otel.receiver.journal import Entry, Journal
from trifle_otel.receiver.server import Receiver, ReceiverSettings, make_intake
from trifle_otel.runtime import Troubles, runtime
from trifle_otel.span_data import SpanData
from trifle_otel.spool import ASIDE


def instrumented_job(exporter: SpanExporter, service: str) -> str:
    """Run a job that is instrumented plainly, and send its spans; gives its trace id."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("job")
    with tracer.start_as_current_span("nightly import") as root:
        with tracer.start_as_current_span("read the file", attributes={"lines": 3}) as span:
            span.add_event("read", {"message": "three lines"})
        with pytest.raises(ValueError, match="line 2"), tracer.start_as_current_span("parse"):
            raise ValueError("line 2 is no number")
    provider.shutdown()
    return f"{root.get_span_context().trace_id:032x}"


# --- Real clients, a real process


def test_what_real_clients_send_is_archived() -> None:
    """The SDK over HTTP and gRPC, and plain JSON, compressed: each trace is in the archive when the process ends."""
    with process("--settle", "0.1") as receiver:
        url = f"http://127.0.0.1:{receiver.http_port}/v1/traces"
        over_http = instrumented_job(OverHTTP(url, compression=Compression.Gzip), "http shop")
        deflated = instrumented_job(OverHTTP(url, compression=Compression.Deflate), "deflated shop")
        address = f"127.0.0.1:{receiver.grpc_port}"
        over_grpc = instrumented_job(OverGRPC(address, insecure=True, compression=grpc.Compression.Gzip), "grpc shop")
        headers = {"Content-Type": JSON, "Content-Encoding": "gzip"}
        request = urllib.request.Request(url, gzipped(json_of(7, "plain job")), headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            assert (response.status, json.load(response)) == (200, {})
        assert "into file:///" in receiver.line
        assert receiver.end() == (0, "")

    found = archived()
    assert set(found) == {over_http, deflated, over_grpc, f"{7:032x}"}
    assert found[over_grpc].context["service"] == "grpc shop"
    for trace_id in (over_http, deflated, over_grpc):
        text = "\n".join(messages(found[trace_id]))
        for part in ("read the file", "three lines", "line 2 is no number"):
            assert part in text
    assert left_over() == []


@pytest.mark.slow
def test_nothing_that_was_answered_is_lost_with_the_process() -> None:
    """Killed right after its answers, it leaves all that it has said yes to for the next one: whole, and once."""
    with process("--settle", "0.3") as receiver:
        for trace in range(1, 60):
            spans = trace_of(trace, 6)
            assert post(receiver.http_port, body_of(spans[:3])).status == 200
            call(receiver.grpc_port, body_of(spans[3:]))
        receiver.end(signal.SIGKILL)
    with process("--settle", "0.3") as receiver:
        assert receiver.end()[0] == 0
    found = archived()
    assert {int(trace_id, 16) for trace_id in found} == set(range(1, 60))
    for record in found.values():
        assert steps_of(record) == {2, 3, 4, 5, 6}
    assert left_over() == []


@pytest.mark.slow
def test_killed_again_and_again_it_archives_each_trace_whole() -> None:
    """Each request holds the beginning of one trace and the end of the one before, and kills come at any moment."""
    traces = 240
    for first in range(0, traces, 40):
        with process("--settle", "0.1") as receiver:
            for trace in range(first, first + 40):
                beginning, end = trace_of(trace + 2, 5)[:2], trace_of(trace + 1, 5)[2:]
                assert post(receiver.http_port, body_of([*beginning, *end])).status == 200
            receiver.end(signal.SIGKILL)
    with process("--settle", "0.1") as receiver:
        receiver.end()
    found = archived()
    for trace in range(2, traces + 1):
        assert steps_of(found[f"{trace:032x}"]) == {2, 3, 4, 5}, trace


def steps_of(record: TraceRecord) -> set[int]:
    """Numbers of the steps that its lines tell of."""
    return {int(number) for number in re.findall(r"step (\d+)", " ".join(messages(record)))}


def test_the_token_comes_from_the_environment() -> None:
    """It is asked for over HTTP and gRPC, and shown nowhere."""
    with process("--settle", "0.05", TRIFLE_TOKEN="s3cret") as receiver:
        assert post(receiver.http_port, body_of(trace_of(1))).status == 401
        assert post(receiver.http_port, body_of(trace_of(2)), authorization="Bearer s3cret").status == 200
        assert receiver.end() == (0, "")
    assert set(archived()) == {f"{2:032x}"}


MISUSES = {
    "--port 70000": "from 0 to 65535",
    "--max-body 1": "from 1024",
    "--settle -1": "seconds from 0 to 600",
    "--settle inf": "seconds from 0 to 600",
    "--tls-key key.pem": "--tls-cert",
    "--tls-cert nowhere.pem": "certificates",
    "--archive memory:": "a spool on disk",
}


@pytest.mark.parametrize("options", MISUSES)
def test_wrong_use_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], options: str) -> None:
    """Each says what is allowed."""
    assert main(["receive", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert MISUSES[options] in err


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is received then, over the other port neither."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["receive", "--port", "0", "--grpc-port", str(taken.getsockname()[1])]) == 2
        assert main(["receive", "--grpc-port", "0", "--port", str(taken.getsockname()[1])]) == 2
    assert "the receiver cannot start" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["h11", "grpc"])
def test_a_missing_extra_names_the_remedy(package: str) -> None:
    """Without what it is made of, one line says what to install."""
    code = f"import sys; sys.modules['{package}'] = None; from trifle_otel.cli import main; sys.exit(main(['receive']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"trifle-otel: {package} is not installed: pip install 'trifle-otel[receiver]'\n"


# --- The end, and the next one


def test_what_is_not_complete_waits_for_the_next_receiver() -> None:
    """A root that ends after a restart finds the children that came before it."""
    *children, root = trace_of(1, 4)
    with running() as receiver:
        assert post(receiver.http_port, body_of(children)).status == 200
    assert archived() == {}
    assert len(left_over()) == 1
    with running() as receiver:
        assert post(receiver.http_port, body_of([root])).status == 200
    (record,) = archived().values()
    assert steps_of(record) == {2, 3, 4}
    assert left_over() == []


def test_a_request_goes_when_its_last_span_is_archived() -> None:
    """One that holds a complete execution and half of another stays, and gives no execution twice."""
    *children, root = trace_of(2, 3)
    with running() as receiver:
        post(receiver.http_port, body_of([*trace_of(1, 3), *children]))
    assert set(archived()) == {f"{1:032x}"}
    assert len(left_over()) == 1
    with running() as receiver:
        call(receiver.grpc_port, body_of([root]))
    assert set(archived()) == {f"{1:032x}", f"{2:032x}"}
    assert left_over() == []


def test_a_request_that_is_sent_twice_is_archived_once() -> None:
    """A client that heard no answer sends again, before or after the execution was archived."""
    body = body_of(trace_of(1, 4))
    with running() as receiver:
        assert post(receiver.http_port, body).status == 200
        assert post(receiver.http_port, body).status == 200
    with running() as receiver:
        assert post(receiver.http_port, body).status == 200
    (record,) = archived().values()
    assert sum(message == "step 2 ↴" for message in messages(record)) == 1
    assert left_over() == []


def test_the_end_answers_what_has_begun_and_waits_for_nobody_else() -> None:
    """A request whose head has come may end and is answered; connections that idle are closed at once."""
    body = json_of(1)
    with running() as receiver:
        idle = http.client.HTTPConnection("127.0.0.1", receiver.http_port, timeout=10)
        idle.request("GET", "/health")
        idle.getresponse().read()
        begun = socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10)
        begun.sendall(head(body) + body[:10])
        assert post(receiver.http_port, b"").status == 200  # so that the other has been noticed
        timer = threading.Timer(0.2, lambda: begun.sendall(body[10:]))
        timer.start()
    answer = b"".join(iter(lambda: begun.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in answer.lower()
    assert idle.sock is not None
    assert idle.sock.recv(10) == b""
    begun.close()
    idle.close()
    with pytest.raises(OSError, match="refused"):
        post(receiver.http_port, body)
    assert len(archived()) == 1


def test_two_receivers_of_one_archive_keep_out_of_each_other_s_way() -> None:
    """Each has its own journal, and takes over what a dead one has left alone."""
    *children, root = trace_of(1, 3)
    with running() as first, running(intake=make_intake(FAST, runtime())) as second:
        post(first.http_port, body_of(children))
        post(second.http_port, body_of(trace_of(2)))
        post(first.http_port, body_of([root]))
    assert set(archived()) == {f"{1:032x}", f"{2:032x}"}


def test_a_receiver_without_a_journal_does_not_start() -> None:
    """What it cannot keep it does not take."""
    Path("traces").mkdir()
    Path("traces/.spool-received").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot start"), running():
        pass


# --- Health


def test_health_is_told() -> None:
    """While it takes requests, whoever asks, without a token too."""
    with running(token="t") as receiver:
        answer = get(receiver.http_port, "/health")
        assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
        receiver._ending = True
        assert get(receiver.http_port, "/health").status == 503


# --- Tokens and TLS


@pytest.mark.parametrize(
    "given", ["", "s3cret", "Basic s3cret", "Bearer", "Bearer s3cre", "Bearer s3cret2", "Bearer ä"]
)
def test_a_wrong_token_is_refused(given: str) -> None:
    """Over HTTP with 401 and what is asked for, over gRPC as unauthenticated; sending it again does not help."""
    with running(token="s3cret") as receiver:
        answer = post(receiver.http_port, json_of(1), JSON, authorization=given.encode().decode("latin-1"))
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "retry-after" not in answer.headers
        assert json.loads(answer.body)["code"] == 16
        with pytest.raises(grpc.RpcError) as caught:
            call(receiver.grpc_port, body_of(trace_of(1)), authorization=given.replace("ä", "a"))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert archived() == {}


def test_the_right_token_is_taken() -> None:
    """Its scheme is written in any case."""
    with running(token="s3cret") as receiver:
        assert post(receiver.http_port, body_of(trace_of(1)), authorization="bearer s3cret").status == 200
        call(receiver.grpc_port, body_of(trace_of(2)), authorization="Bearer s3cret")
    assert len(archived()) == 2


def test_the_newline_at_the_end_of_a_token_is_none_of_it() -> None:
    """Secrets that come out of files have one, and no header can carry it."""
    with running(token="s3cret\n") as receiver:
        assert post(receiver.http_port, body_of(trace_of(1)), authorization="Bearer s3cret").status == 200


@pytest.mark.parametrize("token", [" ", "gehe\u00efm", "in\ntwo lines", "\udcff"])
def test_a_token_that_nobody_could_send_is_refused(token: str) -> None:
    """Before the receiver starts, and not with each request."""
    trifle.configure("./traces")
    with pytest.raises(UsageError, match="token"):
        Receiver(ReceiverSettings(token=token), make_intake(FAST, runtime()))


@pytest.fixture
def certificates(tmp_path: Path, server_missing: Callable[[str], NoReturn]) -> Path:
    """A folder with an authority, and certificates of a server and of a client."""
    if shutil.which("openssl") is None:
        server_missing("openssl")
    folder = tmp_path / "certificates"
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 wants an authority to say so
    openssl("req", "-x509", *curve, *usage, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name in ("server", "client"):
        alternative = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        leaf = ("-addext", "basicConstraints=CA:FALSE", "-addext", "authorityKeyIdentifier=keyid")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl(
            "req",
            "-x509",
            *curve,
            *signed,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-subj",
            f"/CN={name}",
            *alternative,
            *leaf,
        )
    return folder


def test_tls_with_certificates_of_both_sides(certificates: Path) -> None:
    """Senders that have one are served, over HTTP and gRPC; others, and those without TLS, are not."""
    own = replace(FAST, tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    with running(own, tls_client_ca=certificates / "ca.pem") as receiver:
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        secure = http.client.HTTPSConnection("127.0.0.1", receiver.http_port, timeout=10, context=context)
        secure.request("POST", "/v1/traces", body_of(trace_of(1)), {"content-type": "application/x-protobuf"})
        assert secure.getresponse().status == 200
        secure.close()
        exporter = OverGRPC(
            f"localhost:{receiver.grpc_port}",
            credentials=grpc.ssl_channel_credentials(
                (certificates / "ca.pem").read_bytes(),
                (certificates / "client.key").read_bytes(),
                (certificates / "client.pem").read_bytes(),
            ),
        )
        trace_id = instrumented_job(exporter, "secure shop")

        anonymous = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        address = f"https://127.0.0.1:{receiver.http_port}/v1/traces"
        stranger = urllib.request.Request(address, body_of(trace_of(3)), {"content-type": "application/x-protobuf"})
        with pytest.raises(OSError, match=r"certificate required|reset|EOF|closed|Broken pipe"):
            urllib.request.urlopen(stranger, timeout=10, context=anonymous)
        with pytest.raises((OSError, http.client.HTTPException)):
            post(receiver.http_port, body_of(trace_of(4)))
    assert set(archived()) == {f"{1:032x}", trace_id}


def test_a_handshake_that_stalls_is_ended(certificates: Path) -> None:
    """Who connects to a server with TLS and says nothing is let go in time."""
    own = replace(FAST, read_timeout=0.2, tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    with running(own) as receiver, socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10) as stalled:
        assert stalled.recv(1) == b""


def test_strangers_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Where others can reach it and nothing is asked of them, it says so."""
    with running(host="0.0.0.0"):
        assert "no token is asked for" in caplog.text
    caplog.clear()
    with running(host="0.0.0.0", token="t"), running():
        assert caplog.text == ""


# --- HTTP's manners


def talk(port: int, *parts: bytes) -> bytes:
    """Send bytes as they are, and give all that is answered until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while data := connection.recv(65536):
            found += data
    return found


def head(body: bytes, *more: str) -> bytes:
    """A request's head over HTTP."""
    lines = ["POST /v1/traces HTTP/1.1", "Host: x", f"Content-Type: {JSON}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_connections_are_kept_and_requests_may_queue_up_in_them() -> None:
    """Several requests over one connection, sent at once, are answered in order; the last asks for its end."""
    bodies = [json_of(trace) for trace in (1, 2, 3)]
    with running() as receiver:
        sent = b"".join(head(body) + body for body in bodies[:2])
        answers = talk(receiver.http_port, sent, head(bodies[2], "Connection: close") + bodies[2])
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert len(archived()) == 3


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    """`Expect: 100-continue` is answered before the body is sent, or at once with what is wrong."""
    body = json_of(1)
    with running() as receiver, socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10) as connection:
        connection.sendall(head(body, "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(head(b"x" * 100, "Expect: 100-continue", "Content-Encoding: br"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 415 ")


def test_bodies_in_chunks_and_old_clients_are_served() -> None:
    """Transfer coding in chunks; HTTP/1.0, whose connection ends with the answer."""
    with running() as receiver:
        assert post(receiver.http_port, iter([json_of(1)[:20], json_of(1)[20:]]), JSON).status == 200
        body = json_of(2)
        assert talk(receiver.http_port, head(body).replace(b"HTTP/1.1", b"HTTP/1.0") + body).startswith(b"HTTP/1.1 200")
    assert len(archived()) == 2


def test_other_paths_and_methods_are_refused_and_named() -> None:
    """With what there is."""
    with running() as receiver:
        for path in ("/", "/v1/metrics", "/v1/traces/", "/health/x"):
            answer = post(receiver.http_port, b"", path=path)
            assert (answer.status, "/v1/traces" in Status.FromString(answer.body).message) == (404, True)
        answer = get(receiver.http_port, "/v1/traces")
        assert (answer.status, answer.headers["allow"], answer.headers["content-type"]) == (405, "POST", JSON)
        connection = http.client.HTTPConnection("127.0.0.1", receiver.http_port, timeout=10)
        connection.request("HEAD", "/v1/traces")
        assert connection.getresponse().status == 405
        connection.close()
        with grpc.insecure_channel(f"127.0.0.1:{receiver.grpc_port}") as channel:
            logs: Any = channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
            with pytest.raises(grpc.RpcError) as caught:
                logs(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_answers_come_in_the_encoding_of_the_request() -> None:
    """With its content type, and an empty partial success where all was taken."""
    with running() as receiver:
        answer = post(receiver.http_port, body_of(trace_of(1)))
        assert (answer.headers["content-type"], answer.body) == ("application/x-protobuf", b"")
        answer = post(receiver.http_port, json_of(2), JSON)
        assert (answer.headers["content-type"], json.loads(answer.body)) == (JSON, {})


def test_a_request_without_spans_is_a_success() -> None:
    """It leaves nothing behind."""
    with running() as receiver:
        assert post(receiver.http_port, b"").status == 200
        assert post(receiver.http_port, b"{}", JSON).status == 200
        assert call(receiver.grpc_port, b"").partial_success.rejected_spans == 0
        assert left_over() == []


# --- Backpressure and troubles


class Gate:
    """An archive that takes executions while it is open; what it took is in `taken`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.taken: list[list[SpanData]] = []

    def archive(self, execution: Any) -> None:
        """Take it."""
        self.taken.append(execution.spans)

    def has_room(self) -> bool:
        """Whether it is open."""
        return self.open.is_set()

    def is_idle(self) -> bool:
        """Nothing waits in it."""
        return True


def intake_into(gate: Gate, max_waiting: int) -> Intake:
    """An intake that archives there."""
    return Intake(
        Journal(Path("journal").absolute()),
        lambda deliver, dropped: Assembler(deliver, dropped=dropped, settle=0.05),
        gate,
        Troubles(None),
        settle=0.05,
        max_waiting=max_waiting,
    )


def test_a_full_receiver_tells_clients_to_come_back() -> None:
    """Over HTTP by 429 with Retry-After, over gRPC by RESOURCE_EXHAUSTED with RetryInfo; then it takes them again."""
    gate = Gate()
    intake = intake_into(gate, max_waiting=2000)
    with running(FAST, intake) as receiver:
        sent = 0
        while (answer := post(receiver.http_port, body_of(trace_of(sent + 1)))).status == 200:
            sent += 1
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        status = Status.FromString(answer.body)
        info = RetryInfo()
        assert status.details[0].Unpack(info)
        assert info.retry_delay.seconds == 1
        with pytest.raises(grpc.RpcError) as caught:
            call(receiver.grpc_port, body_of(trace_of(99)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error: Any = caught.value
        trailing = dict(error.trailing_metadata())
        assert Status.FromString(trailing["grpc-status-details-bin"]).details[0].Unpack(info)
        assert RetryInfo.FromString(trailing["google.rpc.retryinfo-bin"]) == info
        assert len(list(Path("journal").glob("*/*.pb"))) == sent >= 3
        gate.open.set()
    assert sorted(int(spans[0].trace_id, 16) for spans in gate.taken) == list(range(1, sent + 1))


def test_the_sdk_s_exporters_come_back() -> None:
    """They wait as they are told to, and nothing is lost."""
    gate = Gate()
    intake = intake_into(gate, max_waiting=1024)
    with running(FAST, intake) as receiver:
        while post(receiver.http_port, body_of(trace_of(1))).status == 200:
            pass
        url, address = f"http://127.0.0.1:{receiver.http_port}/v1/traces", f"127.0.0.1:{receiver.grpc_port}"
        exporters = [OverHTTP(url), OverGRPC(address, insecure=True)]
        timer = threading.Timer(0.3, gate.open.set)
        timer.start()
        with ThreadPoolExecutor() as pool:
            trace_ids = set(pool.map(instrumented_job, exporters, ["patient shop", "patient shop"]))
    assert trace_ids <= {spans[0].trace_id for spans in gate.taken}


def test_what_cannot_be_written_is_not_taken() -> None:
    """While the disk refuses, clients are told to come back later; then all is well again."""
    gate = Gate()
    gate.open.set()
    intake = intake_into(gate, max_waiting=1 << 20)
    with running(FAST, intake) as receiver:
        folder = Path("journal")
        folder.rename("elsewhere")
        folder.write_text("in the way")
        answer = post(receiver.http_port, json_of(1), JSON)
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        with pytest.raises(grpc.RpcError) as caught:
            call(receiver.grpc_port, body_of(trace_of(1)))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        folder.unlink()
        Path("elsewhere").rename("journal")
        assert post(receiver.http_port, json_of(1), JSON).status == 200
    assert len(gate.taken) == 1
    assert intake.troubles.counts["requests cannot be kept on disk and are refused"] == 2


def test_what_cannot_be_read_now_is_left_for_the_next_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of descriptors or of a disk that answers, no request that was taken is given up."""
    gate = Gate()
    gate.open.set()
    intake = intake_into(gate, max_waiting=1 << 20)

    def read(entry: Entry) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch, running(FAST, intake) as receiver:
        patch.setattr(Entry, "read", read)
        assert post(receiver.http_port, body_of(trace_of(1))).status == 200
        assert eventually(lambda: intake.troubles.counts["a request that was taken cannot be read"] == 1)
    assert gate.taken == []
    with running(FAST, intake_into(gate, max_waiting=1 << 20)):
        pass
    assert len(gate.taken) == 1


def test_what_is_no_request_is_kept_even_where_it_cannot_be_put_aside() -> None:
    """It was taken, so that somebody may want to see it."""
    gate = Gate()
    intake = intake_into(gate, max_waiting=1 << 20)
    with running(FAST, intake) as receiver:
        assert post(receiver.http_port, body_of(trace_of(1))).status == 200
        (request,) = Path("journal").glob("*/*.pb")
        request.write_bytes(b"\xff")
        (request.parent.parent / ASIDE).write_text("in the way")
        gate.open.set()
        assert eventually(lambda: intake.troubles.counts["a request that was taken cannot be read"] == 1)
        assert request.read_bytes() == b"\xff"


def test_a_fault_of_ours_ends_nothing() -> None:
    """Where archiving raises, the spans stay in the journal, and others are archived."""

    class Picky(Gate):
        def archive(self, execution: Any) -> None:
            if int(execution.spans[0].trace_id, 16) == 2:
                raise RuntimeError("not this one")
            super().archive(execution)

    gate = Picky()
    gate.open.set()
    intake = intake_into(gate, max_waiting=1 << 20)
    with running(FAST, intake) as receiver:
        for trace in (1, 2, 3):
            assert post(receiver.http_port, body_of(trace_of(trace))).status == 200
    assert sorted(int(spans[0].trace_id, 16) for spans in gate.taken) == [1, 3]
    assert intake.troubles.counts["an execution could not be archived"] == 1
    again = Gate()
    again.open.set()
    with running(FAST, intake_into(again, max_waiting=1 << 20)):
        pass
    assert [int(spans[0].trace_id, 16) for spans in again.taken] == [2]
    assert list(Path("journal").iterdir()) == []


def test_what_is_archived_in_memory_alone_stays_in_the_journal() -> None:
    """Where the spool cannot be written, a request goes once its execution is in the archive, and not before."""

    def down(*_: object) -> None:
        raise StoreUnavailable("down")

    with running() as receiver, pytest.MonkeyPatch.context() as patch:
        spool = Path("traces/.spool")
        spool.rename("traces/.spool-away")
        spool.write_text("in the way")
        sink: Any = runtime().sink
        patch.setattr(sink.archive.store, "write", down)
        assert post(receiver.http_port, body_of(trace_of(1))).status == 200
        counts = runtime().troubles.counts
        assert eventually(lambda: counts["the archive cannot be written; traces wait"] > 0)
        assert counts["the spool cannot be written; traces are held in memory"] == 1
        assert len(left_over()) == 1
        patch.undo()
        trifle.flush(10)
        assert eventually(lambda: not left_over())
        spool.unlink()
        Path("traces/.spool-away").rename(spool)
    assert len(archived()) == 1


def test_a_few_spans_that_wait_do_not_keep_all_that_came_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long job's spans, one in each request of many: they take little room, are not closed early, none is lost."""
    monkeypatch.setattr("trifle_otel.receiver.intake.COMPACT_EVERY", 0.0)
    gate = Gate()
    gate.open.set()
    intake = intake_into(gate, max_waiting=30_000)
    *steps, root = trace_of(1, 16)
    with running(FAST, intake) as receiver:
        for number, step in enumerate(steps, 1):
            body = body_of([*(span_of(number * 100 + trace, 1) for trace in range(30)), step])
            assert post(receiver.http_port, body).status == 200
            assert eventually(lambda number=number: len(gate.taken) == number * 30)  # type: ignore[misc]
        assert eventually(lambda: sum(path.stat().st_size for path in Path("journal").glob("*/*.pb")) < 15_000)
    assert not [what for what in intake.troubles.counts if "early" in what or "smaller" in what]
    with running(FAST, intake_into(gate, max_waiting=30_000)) as receiver:
        assert post(receiver.http_port, body_of([root])).status == 200
    assert len(gate.taken) == 15 * 30 + 1
    assert {int(span.span_id, 16) for span in gate.taken[-1]} == set(range(1, 17))
    assert list(Path("journal").iterdir()) == []


def test_requests_of_spans_that_wait_are_bounded_too() -> None:
    """Where roots never come, the oldest wait no longer than the journal has room."""
    gate = Gate()
    gate.open.set()
    intake = intake_into(gate, max_waiting=4000)
    with running(FAST, intake) as receiver:
        for trace in range(1, 40):
            while post(receiver.http_port, body_of(trace_of(trace)[:-1])).status != 200:
                pass
        assert eventually(lambda: bool(gate.taken))
    assert intake.troubles.counts["executions were closed early: their requests took more than `max_waiting`"] >= 1


METERED = """
import json
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from receiving import body_of, post, running, span_of, trace_of

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
with running() as receiver:
    post(receiver.http_port, body_of(trace_of(1, 5)))
    post(receiver.http_port, body_of([*trace_of(2, 2), span_of(2, 3, 1, trace_id=b"")]))
    post(receiver.http_port, b"malformed")
    post(receiver.http_port, b"", "text/plain")
found = {}
for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
    for metric in scope.metrics:
        for point in metric.data.data_points:
            found[",".join([metric.name, *map(str, point.attributes.values())])] = getattr(point, "value", None)
print(json.dumps(found))
"""


def test_what_was_received_is_measured() -> None:
    """Requests by outcome, spans, refused spans, and what waits."""
    done = subprocess.run(
        [sys.executable, "-c", METERED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trifle.receiver.requests,accepted"] == 2
    assert found["trifle.receiver.requests,malformed"] == 1
    assert found["trifle.receiver.requests,unsupported"] == 1
    assert found["trifle.receiver.spans"] == 7
    assert found["trifle.receiver.spans.rejected"] == 1
    assert found["trifle.receiver.waiting.bytes"] == 0
    assert found["trifle.problems,spans were refused: they have no valid ids"] == 1


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within some seconds."""
    pause = threading.Event()
    return any(holds() or pause.wait(0.02) for _ in range(500))
