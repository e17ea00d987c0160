"""The shipped collector configuration: a real collector takes it; current names, nothing unused, every address said.

`validate` of a collector finds what it cannot read, the rest here are the mistakes that it lets pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from collector_servers import CONFIG, PORTS, validated, with_logs, with_tail_sampling
from servers import ServerMissingError

KINDS = ("receivers", "processors", "exporters", "connectors", "extensions")
DEPRECATED = {
    "receivers": {"jaeger", "opencensus"},
    "processors": {"batch"},  # the exporter's sending_queue batches
    "exporters": {"otlp", "otlphttp", "logging", "jaeger"},  # otlp_grpc, otlp_http, debug
    "connectors": set[str](),
    "extensions": {"memory_ballast"},
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The configuration as a collector reads it."""
    loaded: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return loaded


def component_type(name: str) -> str:
    """`otlp_grpc` of `otlp_grpc/jaeger`."""
    return name.split("/")[0]


def used(config: dict[str, Any], kind: str) -> set[str]:
    """The components of a kind that pipelines use, or for extensions the service."""
    if kind == "extensions":
        return set(config["service"]["extensions"])
    pipelines = config["service"]["pipelines"].values()
    return {name for pipeline in pipelines for name in pipeline.get(kind, [])}


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_is_defined_and_used(config: dict[str, Any], kind: str) -> None:
    """What a pipeline names is defined, and what is defined is used."""
    assert used(config, kind) == set(config.get(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_no_component_has_a_deprecated_name(config: dict[str, Any], kind: str) -> None:
    """No component is called by a name that newer collectors warn of or refuse."""
    assert {component_type(name) for name in config.get(kind, {})} & DEPRECATED[kind] == set()


def test_own_metrics_use_readers(config: dict[str, Any]) -> None:
    """The collector's own metrics are set up by readers with host and port, not by the address that is gone."""
    metrics = config["service"]["telemetry"]["metrics"]
    assert "address" not in metrics
    pulls = [reader["pull"]["exporter"]["prometheus"] for reader in metrics["readers"]]
    assert [set(pull) for pull in pulls] == [{"host", "port"}]


def test_every_address_is_said(config: dict[str, Any]) -> None:
    """Each protocol, exporter and health check names its endpoint with a port: defaults changed between versions."""
    speakers = [*config["receivers"]["otlp"]["protocols"].values(), *config["exporters"].values()]
    speakers.append(config["extensions"]["health_check"])
    said = [re.sub(r"\$\{env:\w+:-([^}]*)\}", r"\1", speaker["endpoint"]) for speaker in speakers]
    listening = ["127.0.0.1:4317", "127.0.0.1:4318"]
    sending = ["jaeger:4317", "tempo:4317", "http://127.0.0.1:4418"]
    assert said == [*listening, *sending, "127.0.0.1:8889", "127.0.0.1:13133"]


def test_the_head_names_every_variable_that_is_read() -> None:
    """Each is explained at the top, with the default that it has below."""
    text = CONFIG.read_text(encoding="utf-8")
    head, _, rest = text.partition("\nreceivers:")
    explained = dict(re.findall(r"^#   ([A-Z_]+) .* (\S+)$", head, re.MULTILINE))
    assert explained == dict(re.findall(r"\$\{env:(\w+):-([^}]*)\}", rest))
    assert set(PORTS) <= set(explained)


def test_memory_is_limited_first(config: dict[str, Any]) -> None:
    """Each pipeline starts with the memory limiter, checked each second."""
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
    assert config["processors"]["memory_limiter"]["check_interval"] == "1s"


def test_secrets_are_masked_before_values_are_cut(config: dict[str, Any]) -> None:
    """Redaction sees whole values, since half a secret matches no pattern; what goes into the archive is not cut."""
    pipelines = config["service"]["pipelines"]
    assert pipelines["traces"]["processors"] == ["memory_limiter", "redaction", "transform/truncate"]
    assert pipelines["traces/archive"]["processors"] == ["memory_limiter", "redaction"]


def test_no_attribute_is_longer_than_backends_keep(config: dict[str, Any]) -> None:
    """Attributes of resources, spans and events are cut at the 2,048 bytes that Tempo keeps."""
    statements = config["processors"]["transform/truncate"]["trace_statements"]
    owners = ("resource", "span", "spanevent")
    assert statements == [f"truncate_all({owner}.attributes, 2048)" for owner in owners]


def test_what_cannot_be_sent_waits_on_disk(config: dict[str, Any]) -> None:
    """Each exporter of traces retries without end, out of a bounded queue on disk."""
    for name in ("otlp_grpc/jaeger", "otlp_grpc/tempo", "otlp_http/archive"):
        exporter = config["exporters"][name]
        queue = exporter["sending_queue"]
        assert queue["storage"] in config["extensions"]
        assert (queue["sizer"], queue["queue_size"]) == ("bytes", 1 << 30)
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


def test_requests_fit_through_the_receivers_they_go_to(config: dict[str, Any]) -> None:
    """Batches for Jaeger and Tempo stay below gRPC's 4 MiB; what goes to the archive as it came, below its 20 MiB."""
    for name in ("otlp_grpc/jaeger", "otlp_grpc/tempo"):
        batch = config["exporters"][name]["sending_queue"]["batch"]
        assert batch["sizer"] == "bytes"
        assert batch["min_size"] <= batch["max_size"] < 4 * 1024 * 1024
    protocols = config["receivers"]["otlp"]["protocols"]
    assert "batch" not in config["exporters"]["otlp_http/archive"]["sending_queue"]
    assert protocols["grpc"]["max_recv_msg_size_mib"] == 16
    assert protocols["http"]["max_request_body_size"] == 16 << 20


@pytest.mark.parametrize("change", [str, with_tail_sampling, with_logs], ids=["as shipped", "tail sampling", "logs"])
def test_a_real_collector_takes_it(
    change: Callable[[str], str], tmp_path: Path, server_missing: Callable[[str], NoReturn]
) -> None:
    """`otelcol validate` has nothing to say, to the file as it is and to what its comments tell to change."""
    try:
        done = validated(change(CONFIG.read_text(encoding="utf-8")), tmp_path)
    except ServerMissingError as missing:
        server_missing(str(missing))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_real_collector_refuses_what_it_does_not_know(
    tmp_path: Path, server_missing: Callable[[str], NoReturn]
) -> None:
    """The check above is one: an option that does not exist is found."""
    text = CONFIG.read_text(encoding="utf-8").replace("flush_timeout: 1s", "flush_timout: 1s")
    try:
        done = validated(text, tmp_path)
    except ServerMissingError as missing:
        server_missing(str(missing))
    assert done.returncode != 0
    assert "flush_timout" in done.stderr
