"""The shipped collector configuration: current names, nothing undefined or unused, every address said.

Whether a real collector takes it is for `otelcol-contrib validate`; these are the mistakes that it lets pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = Path(__file__).parent.parent / "collector-config.yaml"
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
    ports = [speaker["endpoint"].rstrip("}").rpartition(":")[2] for speaker in speakers]
    assert ports == ["4317", "4318", "4317", "4317", "13133"]


def test_memory_is_limited_first(config: dict[str, Any]) -> None:
    """Each pipeline starts with the memory limiter, checked each second."""
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
    assert config["processors"]["memory_limiter"]["check_interval"] == "1s"


def test_secrets_are_masked_before_values_are_cut(config: dict[str, Any]) -> None:
    """Redaction sees whole values: half a secret matches no pattern."""
    processors = config["service"]["pipelines"]["traces"]["processors"]
    assert processors.index("redaction") < processors.index("transform/truncate")


def test_no_attribute_is_longer_than_backends_keep(config: dict[str, Any]) -> None:
    """Attributes of resources, spans and events are cut at the 2,048 bytes that Tempo keeps."""
    statements = config["processors"]["transform/truncate"]["trace_statements"]
    owners = ("resource", "span", "spanevent")
    assert statements == [f"truncate_all({owner}.attributes, 2048)" for owner in owners]


def test_what_cannot_be_sent_waits_on_disk(config: dict[str, Any]) -> None:
    """Each exporter retries without end, out of a queue on disk, in batches below the 4 MiB that receivers take."""
    for exporter in config["exporters"].values():
        queue = exporter["sending_queue"]
        assert queue["storage"] in config["extensions"]
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
        assert queue["batch"]["sizer"] == "bytes"
        assert queue["batch"]["min_size"] <= queue["batch"]["max_size"] < 4 * 1024 * 1024
