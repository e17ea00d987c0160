"""Real servers for tests, each started once a session on a loopback port, in a temporary folder, and stopped at the end.

PostgreSQL comes from the system, FerretDB (MongoDB's protocol over SQLite) from `tests/build_servers.sh`. Where one is
not there, `ServerMissing` says what is.
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
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

PATIENCE = 30.0  # seconds for a server to come up or down
FERRETDB = "ferretdb-v1.24.2"


_Server = TypeVar("_Server", bound="Server")


class ServerMissing(Exception):
    """A server's program is not installed."""


class Server(ABC):
    """A process that serves on a port of this machine, and that can be taken away and brought back."""

    name: str
    ending = signal.SIGTERM
    """What ends it without waiting for its clients."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"trifle-{self.name}-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
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
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **as_user(self.user())
            )
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
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
        subprocess.run(
            [
                *(self.programs / "initdb", "-D", self.folder / "data", "-U", "trifle", "--no-sync", "-E", "UTF8"),
                *("--locale-provider=icu", "--icu-locale=en", "--auth=scram-sha-256"),
                f"--pwfile={self.folder / 'password'}",
            ],
            check=True,
            capture_output=True,
            cwd="/",
            **as_user(user),
        )

    def command(self) -> Sequence[str | Path]:
        """Without waiting for the disk: what a killed machine loses is not tested here."""
        settings = {"fsync": "off", "unix_socket_directories": str(self.folder), "max_connections": "60"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [
            *(self.programs / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1"),
            *("-p", str(self.port), *options),
        ]

    def user(self) -> str | None:
        """PostgreSQL refuses to run as root."""
        return unprivileged_user() if os.geteuid() == 0 else None

    def is_ready(self) -> bool:
        """Whether it takes logins: it listens before it does."""
        command = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
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


@contextmanager
def removing(server: _Server) -> Iterator[_Server]:
    """Remove a server at the end of a `with`."""
    try:
        yield server
    finally:
        server.remove()


@functools.cache
def postgres() -> Postgres:
    """The session's PostgreSQL. Raises `ServerMissing`."""
    server = Postgres()
    server.start()
    return server


@functools.cache
def ferretdb() -> FerretDB:
    """The session's FerretDB. Raises `ServerMissing`."""
    server = FerretDB()
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
        raise ServerMissing("PostgreSQL (tests/build_servers.sh installs it)")
    return found[-1]


def ferretdb_program() -> Path:
    """FerretDB's program, where `build_servers.sh` puts it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    program = Path(os.environ.get("TRIFLE_TOOLS") or f"{cache}/trifle_otel/bin") / FERRETDB
    if not program.exists():
        raise ServerMissing("FerretDB (tests/build_servers.sh builds it)")
    return program


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
