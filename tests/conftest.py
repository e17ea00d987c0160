"""What every test has: a clean environment, no network beyond this machine, and the golden archives.

Servers that a test needs (a database, an object store) are asked for with `server_missing`: it skips at
home and fails where TRIFLE_REQUIRE_SERVERS is set, so that CI never passes by skipping.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import figures
import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"
LOOPBACK = ("127.", "::1", "localhost")

# A machine that others use as well is now and then slow: that is no failure. A test that hangs runs into its time-out.
settings.register_profile("patient", deadline=None)
settings.register_profile("few", deadline=None, max_examples=10)
settings.load_profile("patient")

FEW = 2

# A shell has what it starts in the background ignore interrupts, and so would what tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--few`: what is enough on one more Python, after all of it has run on another."""
    what = f"of each test at most {FEW} of its cases, and 10 examples of a property that does not say how many"
    parser.addoption("--few", action="store_true", help=what)


def pytest_configure(config: pytest.Config) -> None:
    """Take fewer examples where few are asked for."""
    if config.getoption("--few"):
        settings.load_profile("few")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases where few are asked for: those that are left lie evenly among all."""
    if not config.getoption("--few"):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {item for all_ in cases.values() for item in all_[:: -(-len(all_) // FEW)]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests do not reach them."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "TRIFLE_")) and name != "TRIFLE_REQUIRE_SERVERS":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_configured(own_folder: Path, clean_environment: None) -> Iterator[None]:
    """What a test configures ends with it: its background thread is stopped, and the next test starts anew."""
    yield
    configuration = sys.modules.get("trifle_otel.configuration")
    if configuration is not None:
        configuration.reset()


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere but this machine is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else None  # a Unix socket's address is a path
        if host is not None and not str(host).startswith(LOOPBACK):
            raise RuntimeError(f"a test tried to reach {host}: tests use this machine alone")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a folder of its own, so that the default archive `./traces` lands nowhere else."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def golden() -> Path:
    """The archives that Trifle::Traces for Ruby wrote."""
    assert GOLDEN.is_dir(), f"{GOLDEN} is part of the repository"
    return GOLDEN


@pytest.fixture(scope="session")
def server_missing() -> Callable[[str], NoReturn]:
    """Called with what is missing: skips the test at home, fails it in CI."""

    def missing(what: str) -> NoReturn:
        if os.environ.get("TRIFLE_REQUIRE_SERVERS"):
            pytest.fail(f"{what} is not there, and TRIFLE_REQUIRE_SERVERS is set")
        pytest.skip(f"{what} is not there")

    return missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the fault tests noted."""
    if figures.noted:
        terminalreporter.section("figures of the faults")
        for what, found in figures.noted:
            terminalreporter.write_line(f"{what}: {found}")


@pytest.fixture
def sink() -> Iterator[Any]:
    """An `otlp_servers.HttpServer` that workers of job frameworks send spans to."""
    from otlp_servers import HttpServer

    server = HttpServer()
    yield server
    server.close()
