"""Real servers for tests, each started once a session on a loopback port, in a temporary folder, and stopped again.

PostgreSQL and Redis come from the system, FerretDB (MongoDB's protocol over SQLite) from `tests/build_servers.sh`.
Where one is not there, `ServerMissingError` says what is.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from ports import free_port

from trifle_otel.errors import StoreUnavailable
from trifle_otel.indexes.contract import Index
from trifle_otel.records import TraceRecord
from trifle_otel.testing import run_at_once

PATIENCE = 90.0  # seconds for a server to come up or down, on a busy machine too
FERRETDB = "ferretdb-v1.24.2"


_Server = TypeVar("_Server", bound="Server")


class ServerMissingError(Exception):
    """A server's program is not installed."""


class Server(ABC):
    """A process that serves on a port of this machine, and that can be taken away and brought back."""

    name: str
    ending = signal.SIGTERM
    """What ends it without waiting for its clients."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"trifle-{self.name}-"))
        self.port = free_port()
        self.process: subprocess.Popen[Any] | None = None
        self._owner = os.getpid()
        atexit.register(self.remove)

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    def user(self) -> str | None:
        """Who has to run it; None for whoever runs the tests."""
        return None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **as_user(self.user())
            )
        self.process = process
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)  # another process's start can only be polled

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Stop it, clients or not."""
        if self.process is not None:
            self.process.send_signal(self.ending)
            self.process.wait(PATIENCE)
            self.process = None

    def freeze(self) -> None:
        """Make it hang: connections stay open, and nothing is answered."""
        self._signal_all(signal.SIGSTOP)
        assert self.process is not None
        os.waitpid(self.process.pid, os.WUNTRACED)  # it may be about to answer until it has stopped

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """Stop it and delete its folder. Does nothing in a forked child."""
        if os.getpid() == self._owner:
            if self.process is not None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _signal_all(self, kind: signal.Signals) -> None:
        """A signal to the process and to its children, which it did not start in a group of their own."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in [self.process.pid, *map(int, children)]:
            os.kill(pid, kind)


class Postgres(Server):
    """PostgreSQL, ordering texts as English does, with passwords."""

    name = "postgres"
    ending = signal.SIGINT
    password = "s3cret pass/word"

    def __init__(self) -> None:
        self.programs = postgres_programs()
        super().__init__()
        user = self.user()
        if user is not None:
            shutil.chown(self.folder, user)
        (self.folder / "password").write_text(self.password)
        (self.folder / "password").chmod(0o644)
        command: list[str | Path] = [self.programs / "initdb", "-D", self.folder / "data", "-U", "trifle", "--no-sync"]
        command += ["-E", "UTF8", "--locale-provider=icu", "--icu-locale=en", "--auth=scram-sha-256"]
        command.append(f"--pwfile={self.folder / 'password'}")
        subprocess.run(command, check=True, capture_output=True, cwd="/", **as_user(user))

    def command(self) -> Sequence[str | Path]:
        """Without waiting for the disk: what a killed machine loses is not tested here."""
        settings = {"fsync": "off", "unix_socket_directories": str(self.folder), "max_connections": "60"}
        command: list[str | Path] = [self.programs / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1"]
        return [*command, "-p", str(self.port), *(f"--{name}={value}" for name, value in settings.items())]

    def user(self) -> str | None:
        """PostgreSQL refuses to run as root."""
        return unprivileged_user() if os.geteuid() == 0 else None

    def is_ready(self) -> bool:
        """Whether it takes logins: it listens before it does."""
        command: list[str | Path] = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def url(self, database: str = "postgres", *, user: str = "trifle", password: str | None = None) -> str:
        """The URL of a database."""
        secret = (password or self.password).replace("/", "%2F").replace(" ", "%20")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"


class FerretDB(Server):
    """FerretDB 1 over SQLite, which takes everybody."""

    name = "ferretdb"
    ending = signal.SIGKILL  # anything else waits three seconds for clients

    def __init__(self) -> None:
        self.program = ferretdb_program()
        super().__init__()
        (self.folder / "data").mkdir()

    def command(self) -> Sequence[str | Path]:
        """The program of `build_servers.sh`, without waiting for the disk."""
        return [self.program, f"127.0.0.1:{self.port}", f"file:{self.folder}/data/?_pragma=synchronous(off)"]

    def url(self, database: str = "test") -> str:
        """The URL of a database."""
        return f"mongodb://127.0.0.1:{self.port}/{database}"


class Redis(Server):
    """Redis, without a file, a configuration or a password."""

    name = "redis"

    def __init__(self) -> None:
        found = shutil.which("redis-server")
        if found is None:
            raise ServerMissingError("redis-server (tests/build_servers.sh installs it)")
        self.program = found
        super().__init__()

    def command(self) -> Sequence[str | Path]:
        """Everything in memory; its folder is for what it insists on."""
        command: list[str | Path] = [self.program, "--port", str(self.port), "--bind", "127.0.0.1"]
        return [*command, "--dir", self.folder, "--save", "", "--appendonly", "no"]


@contextmanager
def removing(server: _Server) -> Iterator[_Server]:
    """Remove a server at the end of a `with`."""
    try:
        yield server
    finally:
        server.remove()


class Load:
    """Threads that put records like the sample into an index, each batch until there is no error.

    Attributes:
        done: the references of all that was put without an error.
        failures: what was raised in between.
    """

    def __init__(self, index: Index, sample: TraceRecord) -> None:
        self.index = index
        self.sample = sample
        self.done: list[str] = []
        self.failures: list[StoreUnavailable] = []
        self._over = threading.Event()

    def while_restarting(self, server: Server, *, threads: int, restarts: int) -> None:
        """Put as long as it takes to take the server away and bring it back that many times."""
        run_at_once([partial(self._restart, server, restarts), *(partial(self._put, name) for name in range(threads))])

    def _restart(self, server: Server, restarts: int) -> None:
        for _ in range(restarts):
            self._wait_for(self.done, 200)
            server.stop()
            self._wait_for(self.failures, 1)
            server.start()
        self._over.set()

    def _wait_for(self, items: Sequence[object], more: int) -> None:
        seen = len(items)
        while len(items) < seen + more:
            self._over.wait(0.01)

    def _put(self, name: int) -> None:
        for number in count():
            if self._over.is_set():
                return
            references = [f"{name}-{number:05}-{each:02}" for each in range(20)]
            while not self._put_once(references):
                self._over.wait(0.02)
            self.done.extend(references)

    def _put_once(self, references: Sequence[str]) -> bool:
        try:
            self.index.put([replace(self.sample, reference=reference) for reference in references])
        except StoreUnavailable as error:
            self.failures.append(error)
            return False
        return True


@functools.cache
def postgres() -> Postgres:
    """The session's PostgreSQL. Raises `ServerMissingError`."""
    server = Postgres()
    server.start()
    return server


@functools.cache
def ferretdb() -> FerretDB:
    """The session's FerretDB. Raises `ServerMissingError`."""
    server = FerretDB()
    server.start()
    return server


@functools.cache
def redis() -> Redis:
    """The session's Redis. Raises `ServerMissingError`."""
    server = Redis()
    server.start()
    return server


def postgres_programs() -> Path:
    """The folder with PostgreSQL's programs, of the newest version that is installed."""
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = [path.parent for path in sorted(installed, key=lambda path: float(path.parts[-3]))]
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise ServerMissingError("PostgreSQL (tests/build_servers.sh installs it)")
    return found[-1]


def ferretdb_program() -> Path:
    """FerretDB's program, where `build_servers.sh` puts it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    program = Path(os.environ.get("TRIFLE_TOOLS") or f"{cache}/trifle_otel/bin") / FERRETDB
    if not program.exists():
        raise ServerMissingError("FerretDB (tests/build_servers.sh builds it)")
    return program


def unprivileged_user() -> str:
    """A user who may own a database: the one of Debian's package, else nobody."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def as_user(name: str | None) -> dict[str, Any]:
    """What `subprocess` is told so that a program runs as somebody else."""
    if name is None:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
