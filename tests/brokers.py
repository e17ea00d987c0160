"""Brokers of jobs for tests, started and stopped like the other servers: Redis (see `servers`) and RabbitMQ."""

from __future__ import annotations

import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ports import free_port
from servers import PATIENCE, Redis, Server, ServerMissingError, redis

__all__ = ["RabbitMQ", "Redis", "Worker", "rabbitmq", "redis"]


class RabbitMQ(Server):
    """RabbitMQ, everything of it in its folder, with a port mapper of its own, whoever runs it."""

    name = "rabbitmq"
    ending = signal.SIGKILL  # the script in front of it would wait for it, and it for its clients

    def __init__(self) -> None:
        self.program = rabbitmq_program()
        super().__init__()
        self.mapper_port = free_port()
        self.mapper: subprocess.Popen[Any] | None = None

    def command(self) -> Sequence[str | Path]:
        """The server itself, not Debian's script in front of it, which changes the user."""
        settings = {
            "HOME": self.folder,
            "ERL_EPMD_PORT": self.mapper_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"trifle{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": free_port(),
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia",
            "RABBITMQ_LOG_BASE": self.folder / "logs",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": self.folder / "pid",
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "environment",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_SERVER_START_ARGS": "-noinput +S 1:1",
            "RUNNING_UNDER_SYSTEMD": "true",  # no script stays in front of it
            "ERL_CRASH_DUMP_SECONDS": "0",
        }
        return ["env", *(f"{name}={value}" for name, value in settings.items()), self.program]

    def start(self) -> None:
        """Start it behind its own port mapper, and wait until it talks."""
        (self.folder / ".erlang.cookie").write_text(secrets.token_hex(10))
        (self.folder / ".erlang.cookie").chmod(0o400)
        self.mapper = subprocess.Popen(["epmd", "-port", str(self.mapper_port), "-address", "127.0.0.1"], cwd="/")
        super().start()

    def is_ready(self) -> bool:
        """Whether it answers as AMQP does: it greets a client that says hello."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def remove(self) -> None:
        """Stop both, and delete the folder."""
        if self.mapper is not None and os.getpid() == self._owner:
            self.mapper.kill()
            self.mapper.wait()
            self.mapper = None
        super().remove()

    def url(self) -> str:
        """The URL of its only virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


@functools.cache
def rabbitmq() -> RabbitMQ:
    """The session's RabbitMQ. Raises `ServerMissingError`."""
    server = RabbitMQ()
    server.start()
    return server


def rabbitmq_program() -> Path:
    """RabbitMQ's program, of the newest version that is installed."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not found:
        raise ServerMissingError("RabbitMQ (tests/build_servers.sh installs it)")
    return found[-1]


class Worker:
    """A worker of a job framework: a process that has said that it is ready, with its children.

    Args:
        command: what runs it, after the interpreter.
        ready: the text in its log that says that it takes jobs.
        folder: where it runs, and where its log is.
        environment: what it gets beyond the tests' own.
    """

    def __init__(self, command: Sequence[str], ready: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / f"worker-{secrets.token_hex(3)}.log"
        paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        everything = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=everything
            )
        try:
            self.wait_for(ready)
        except BaseException:
            self.kill()
            raise

    @property
    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until its log has a text."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the worker did not say {text!r}: {self.said[-4000:]}")
            time.sleep(0.02)  # another process's log can only be polled

    def children(self) -> list[int]:
        """Ids of its child processes."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, and wait for it; gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill it and its children at once."""
        if self.process.poll() is None:
            pids = [*self.children(), self.process.pid]
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.wait(PATIENCE)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
