"""examples/compose.yaml and what it mounts: files that are there, addresses that fit, a dashboard of our metrics.

Docker is not needed: what the containers would read is checked, the collector's part by a real collector.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from collector_servers import COLLECTOR, CONFIG, PROMETHEUS, program
from servers import ServerMissingError

from trifle_otel.conventions import METRICS

EXAMPLES = CONFIG.parent / "examples"
GRAFANA = EXAMPLES / "compose" / "grafana"
Loaded = dict[str, Any]


def load(path: Path) -> Loaded:
    """A YAML file, with the defaults of variables."""
    loaded: Loaded = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", path.read_text(encoding="utf-8")))
    return loaded


@pytest.fixture(scope="module")
def services() -> Loaded:
    """The services of the compose file."""
    found: Loaded = load(EXAMPLES / "compose.yaml")["services"]
    return found


@pytest.fixture(scope="module")
def dashboard() -> Loaded:
    """The dashboard, as Grafana reads it."""
    loaded: Loaded = json.loads((GRAFANA / "jobs.json").read_text(encoding="utf-8"))
    return loaded


def expressions(dashboard: Loaded) -> Iterator[str]:
    """Everything that the dashboard asks Prometheus for."""
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["definition"] for variable in dashboard["templating"]["list"])


def test_what_is_mounted_is_there(services: Loaded) -> None:
    """Each file that a container gets exists, read-only; all else that is mounted is a named volume."""
    named = load(EXAMPLES / "compose.yaml")["volumes"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (EXAMPLES / source).is_file()
                assert rest.endswith(":ro")
            else:
                assert source in named


def test_images_have_versions_and_ports_are_this_machines(services: Loaded) -> None:
    """No image is `latest`, and nothing is open to other machines."""
    for service in services.values():
        if "image" in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_collector_and_jaeger_are_those_of_the_tests(services: Loaded) -> None:
    """People run the versions that the tests ran."""
    assert services["collector"]["image"].endswith(f":{COLLECTOR.removeprefix('otelcol-v')}")
    assert services["jaeger"]["image"].endswith(":2.13.0")


def test_the_collector_takes_its_configuration_with_these_addresses(
    services: Loaded, server_missing: Callable[[str], NoReturn]
) -> None:
    """The shipped configuration, with the container's environment, is valid to a real collector."""
    environment = services["collector"]["environment"]
    try:
        command: list[str | Path] = [program(COLLECTOR), "validate", "--config", CONFIG]
    except ServerMissingError as missing:
        server_missing(str(missing))
    # The queue's folder is made where it is said to be, which in the container is the default.
    queue = {"QUEUE_FOLDER": str(Path("queue").absolute())}
    done = subprocess.run(
        command, env={**os.environ, **environment, **queue}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr


def test_addresses_are_names_of_services(services: Loaded) -> None:
    """What the collector, Prometheus and Grafana connect to is a service here, and the variables are ones it reads."""
    environment = services["collector"]["environment"]
    read = set(re.findall(r"\$\{env:(\w+)", CONFIG.read_text(encoding="utf-8")))
    assert set(environment) <= read
    hosts = [environment[name] for name in environment if name.endswith("_ENDPOINT")]
    prometheus = load(EXAMPLES / "compose" / "prometheus.yaml")
    hosts += [t for job in prometheus["scrape_configs"] for each in job["static_configs"] for t in each["targets"]]
    hosts += [source["url"] for source in load(GRAFANA / "datasources.yaml")["datasources"]]
    assert len(hosts) == 8
    for host in hosts:
        assert re.sub(r"^http://|:\d+$", "", host) in services


def test_the_archive_asks_for_the_token_that_the_collector_gives(services: Loaded) -> None:
    """Both have the same one, which is never empty."""
    token = services["collector"]["environment"]["ARCHIVE_TOKEN"]
    assert token
    assert services["archive"]["environment"]["TRIFLE_TOKEN"] == token


def test_the_archives_image_has_what_the_package_is_built_from(services: Loaded) -> None:
    """What is copied into the image exists, and is all that the wheel is made of."""
    recipe = services["archive"]["build"]["dockerfile_inline"]
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", recipe, re.MULTILINE) for name in line.split()]
    assert all((EXAMPLES.parent / name).exists() for name in copied)
    # pyproject.toml itself, what it names as the wheel's contents, readme and licence
    assert {"pyproject.toml", "trifle_otel", "examples", "README.md", "LICENSE"} == set(copied)


def test_every_metric_of_ours_is_on_the_dashboard(dashboard: Loaded) -> None:
    """The dashboard asks for all metrics that the library has, under Prometheus' names, and for no others of ours."""
    asked = set(re.findall(r"\btrifle_\w+", " ".join(expressions(dashboard))))
    labels = {"trifle_key", "trifle_state", "trifle_problem", "trifle_outcome"}
    names = {PROMETHEUS[name] for name in METRICS}
    histogram = PROMETHEUS["trifle.duration"]
    assert asked - labels == names - {histogram} | {f"{histogram}_bucket"}


def test_the_dashboard_asks_provisioned_sources(dashboard: Loaded) -> None:
    """Each panel and variable has a data source that is set up, and panels do not lie upon each other."""
    sources = {source["uid"] for source in load(GRAFANA / "datasources.yaml")["datasources"]}
    users = [*dashboard["panels"], *dashboard["templating"]["list"]]
    assert {user["datasource"]["uid"] for user in users} == {"prometheus"} <= sources
    assert {"tempo", "jaeger"} <= sources
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_dashboard_lies_where_grafana_looks(services: Loaded) -> None:
    """The provider's folder is the one that the dashboard is mounted into."""
    (provider,) = load(GRAFANA / "dashboards.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/jobs.json" in mounted
