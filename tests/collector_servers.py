"""A collector with the shipped configuration, Jaeger, and a receiver, each real and in a process of its own.

The programs of the first two come from `tests/build_collector.sh`; where they are not there, `ServerMissingError` of
`servers` says so. What Jaeger shows is read here by hand, from its JSON, by nothing that is under test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ports import free_port
from servers import PATIENCE, Server, ServerMissingError

CONFIG = Path(__file__).parent.parent / "collector-config.yaml"
COLLECTOR = "otelcol-v0.155.0"
JAEGER = "jaeger-v2.13.0"
_CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
TOOLS = Path(os.environ.get("TRIFLE_TOOLS") or f"{_CACHE}/trifle_otel/bin")  # now: tests clear the environment

PORTS = ("OTLP_GRPC_PORT", "OTLP_HTTP_PORT", "HEALTH_PORT", "OWN_METRICS_PORT", "JOB_METRICS_PORT")
JAEGER_CONFIG = """
extensions:
  jaeger_storage:
    backends:
      memory:
        memory: {{max_traces: 10000}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "127.0.0.1:{http}"}}
    grpc: {{endpoint: "127.0.0.1:{grpc}"}}
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{otlp}"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics: {{level: none}}
"""

PROMETHEUS = {
    "trifle.traces": "trifle_traces_total",
    "trifle.entries": "trifle_entries_total",
    "trifle.duration": "trifle_duration_seconds",
    "trifle.shipped": "trifle_shipped_total",
    "trifle.problems": "trifle_problems_total",
    "trifle.waiting": "trifle_waiting",
    "trifle.waiting.bytes": "trifle_waiting_bytes",
    "trifle.waiting.age": "trifle_waiting_age_seconds",
    "trifle.receiver.requests": "trifle_receiver_requests_total",
    "trifle.receiver.spans": "trifle_receiver_spans_total",
    "trifle.receiver.spans.rejected": "trifle_receiver_spans_rejected_total",
    "trifle.receiver.waiting.bytes": "trifle_receiver_waiting_bytes",
}
"""Our metrics as Prometheus has them; `trifle_duration_seconds` comes as `_bucket`, `_sum` and `_count`."""

_T = TypeVar("_T")


def until(found: Callable[[], _T | None], what: str, patience: float = PATIENCE) -> _T:
    """What a function gives, once it gives something. Other processes can only be polled."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        got = found()
        if got:
            return got
        time.sleep(0.05)
    raise AssertionError(f"not within {patience:.0f} s: {what}")


def fetch(url: str, accept: str = "*/*") -> bytes:
    """What a server of this machine answers. Raises `OSError`, of which `HTTPError` is one."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=PATIENCE) as answer:
        body: bytes = answer.read()
        return body


def answers(url: str) -> bool:
    """Whether a server answers well."""
    try:
        fetch(url)
    except OSError:
        return False
    return True


def program(name: str) -> Path:
    """A program that `build_collector.sh` builds. Raises `ServerMissingError`."""
    path = TOOLS / name
    if not path.exists():
        raise ServerMissingError(f"{name} (tests/build_collector.sh builds it)")
    return path


# --- What a backend was sent


@dataclass
class SeenEvent:
    """An event of a span."""

    name: str
    ns: int
    attributes: dict[str, Any]


@dataclass
class SeenSpan:
    """A span as a backend has it; ids in hex, times in nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[SeenEvent] = field(default_factory=list)
    status: Mapping[str, Any] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)

    def texts(self, name: str) -> list[Any]:
        """The attribute that events of a name are named after."""
        return [event.attributes.get(name) for event in self.events if event.name == name]


def spans_in(answer: bytes) -> list[SeenSpan]:
    """The spans of OTLP's JSON, as Jaeger's API of version 3 wraps it."""
    found: list[SeenSpan] = []
    for of_resource in json.loads(answer)["result"]["resourceSpans"]:
        resource = _attributes(of_resource.get("resource", {}))
        for of_scope in of_resource["scopeSpans"]:
            found.extend(_span(span, resource) for span in of_scope["spans"])
    return found


def _span(span: Mapping[str, Any], resource: Mapping[str, Any]) -> SeenSpan:
    events = span.get("events", [])
    return SeenSpan(
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId", ""),
        span["name"],
        int(span["startTimeUnixNano"]),
        int(span["endTimeUnixNano"]),
        _attributes(span),
        [SeenEvent(event["name"], int(event["timeUnixNano"]), _attributes(event)) for event in events],
        span.get("status", {}),
        resource,
    )


def _attributes(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in owner.get("attributes", [])}


def _value(value: Mapping[str, Any]) -> Any:
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_value(each) for each in value["arrayValue"].get("values", [])]
    return next(iter(value.values()), None)


# --- The servers


class Jaeger(Server):
    """Jaeger v2, all in one, in memory."""

    name = "jaeger"

    def __init__(self) -> None:
        self.program = program(JAEGER)
        super().__init__()
        self.otlp = free_port()
        config = JAEGER_CONFIG.format(http=self.port, grpc=free_port(), otlp=self.otlp)
        (self.folder / "config.yaml").write_text(config)

    def command(self) -> Sequence[str | Path]:
        """Without spans of its own."""
        return ["env", "OTEL_TRACES_SAMPLER=always_off", self.program, "--config", self.folder / "config.yaml"]

    def is_ready(self) -> bool:
        """Whether it takes spans, and its API answers."""
        return super().is_ready() and listens(self.otlp) and answers(self.url("/api/services"))

    def url(self, path: str) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}{path}"

    def spans(self, trace_id: str) -> list[SeenSpan]:
        """What it has of a trace; nothing where it has none."""
        try:
            return spans_in(fetch(self.url(f"/api/v3/traces/{trace_id}")))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []

    def trace(self, trace_id: str, spans: int) -> list[SeenSpan]:
        """A trace, once it has so many spans."""

        def whole() -> list[SeenSpan] | None:
            found = self.spans(trace_id)
            return found if len(found) >= spans else None

        return until(whole, f"{spans} spans of {trace_id} in Jaeger")


class Receiver(Server):
    """`trifle-otel receive` with a token, into an archive in its folder."""

    name = "receiver"
    token = "s3cret"

    def __init__(self) -> None:
        super().__init__()
        self.archive = self.folder / "traces"

    def command(self) -> Sequence[str | Path]:
        """The command line, with the least patience for late spans."""
        options = ["--port", str(self.port), "--grpc-port", "0", "--archive", str(self.archive), "--settle", "0.2"]
        return ["env", f"TRIFLE_TOKEN={self.token}", sys.executable, "-m", "trifle_otel", "receive", *options]

    def is_ready(self) -> bool:
        """Whether it says that it is."""
        return answers(f"http://127.0.0.1:{self.port}/health")


class Collector(Server):
    """A collector with the shipped configuration, or a changed text of it.

    Args:
        addresses: by the names of the variables that the configuration reads.
    """

    name = "collector"

    def __init__(self, addresses: Mapping[str, str], config: str | None = None) -> None:
        self.program = program(COLLECTOR)
        super().__init__()
        self.ports = {name: free_port() for name in PORTS}
        self.port = self.ports["HEALTH_PORT"]
        self.config = CONFIG
        if config is not None:
            self.config = self.folder / "config.yaml"
            self.config.write_text(config)
        self.environment = {"QUEUE_FOLDER": str(self.folder / "queue"), **addresses}
        self.environment.update((name, str(port)) for name, port in self.ports.items())

    def command(self) -> Sequence[str | Path]:
        """Addresses come by the environment."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", *variables, self.program, "--config", self.config]

    def is_ready(self) -> bool:
        """Whether it says that it is."""
        return answers(f"http://127.0.0.1:{self.port}")

    def kill(self) -> None:
        """End it as kill -9 does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.process = None

    @property
    def grpc(self) -> str:
        """Where spans go over gRPC."""
        return f"http://127.0.0.1:{self.ports['OTLP_GRPC_PORT']}"

    @property
    def http(self) -> str:
        """Where everything goes over HTTP."""
        return f"http://127.0.0.1:{self.ports['OTLP_HTTP_PORT']}"

    def own_metrics(self) -> Mapping[str, float]:
        """Of itself: by name, and by name and exporter."""
        return samples(fetch(f"http://127.0.0.1:{self.ports['OWN_METRICS_PORT']}/metrics").decode())

    def job_metrics(self, accept: str = "*/*") -> str:
        """Those that applications sent, as Prometheus reads them."""
        return fetch(f"http://127.0.0.1:{self.ports['JOB_METRICS_PORT']}/metrics", accept).decode()


def samples(text: str) -> dict[str, float]:
    """Prometheus' text format: sums by name, by name and exporter, and by name and each other label."""
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        for label in ["", *re.findall(r'(\w+="[^"]*")', labels)]:
            key = f"{name}{{{label}}}" if label else name
            found[key] = found.get(key, 0) + float(value)
    return found


def listens(port: int) -> bool:
    """Whether something takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(server: Server) -> Iterator[None]:
    """A server from start to end."""
    try:
        server.start()
        yield
    finally:
        server.remove()


def validated(config: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the real collector says of a configuration. Raises `ServerMissingError`."""
    (folder / "config.yaml").write_text(config)
    command: list[str | Path] = [program(COLLECTOR), "validate", "--config", folder / "config.yaml"]
    environment = {**os.environ, "QUEUE_FOLDER": str(folder / "queue")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)


# --- The parts of the shipped configuration that are commented out


def with_tail_sampling(config: str) -> str:
    """The configuration with tail sampling, as its comment says."""
    config = uncommented(config, "tail_sampling")
    before = "processors: [memory_limiter, redaction, transform/truncate]"
    assert config.count(before) == 1
    return config.replace(before, "processors: [memory_limiter, redaction, tail_sampling, transform/truncate]")


def with_logs(config: str) -> str:
    """The configuration with a pipeline for log records, as its comment says."""
    exporter = "exporters:\n  otlp_http/loki:\n    endpoint: http://loki:3100/otlp\n"
    assert config.count("\nexporters:\n") == 1
    return uncommented(config.replace("exporters:\n", exporter, 1), "logs")


def uncommented(config: str, name: str) -> str:
    """The configuration with the block of a name in effect."""
    block = re.search(rf"^( *)# {name}:\n(?:\1# .*\n)+", config, re.MULTILINE)
    assert block is not None
    return config.replace(block[0], re.sub(r"^( *)# ", r"\1", block[0], flags=re.MULTILINE))
