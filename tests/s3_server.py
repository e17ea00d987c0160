"""S3-compatible servers for tests: real processes on a port of this machine.

`moto` checks signatures when told to, deletes in bulk, lists by pages and keeps lifecycle rules,
but in its memory: what it holds ends with it. `localbucket` keeps objects in a folder, so it can
be killed and started again; it checks no credentials, and knows neither bulk delete nor
lifecycle rules. Each proves what the other cannot.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

from ports import free_port

START_WITHIN = 60.0  # seconds; moto imports for a while


def is_installed(module: str) -> bool:
    """Whether the server's package is there."""
    return importlib.util.find_spec(module) is not None


class S3Server:
    """A server process, which may be killed, started again on the same port, and stopped from answering."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, *arguments, "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> S3Server:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_WITHIN
        while not self._answers():
            assert self._process.poll() is None, f"{self._command} ended by itself"
            assert time.monotonic() < end, f"{self._command} does not answer"
            time.sleep(0.05)
        return self

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it without a chance to finish anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it answer no more, while connections to it are still accepted."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a `hang`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def make_bucket(self, name: str) -> str:
        """A new bucket; gives its name."""
        self.request("PUT", f"/{name}")
        return name

    def request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """An unsigned request."""
        headers = {"Content-Type": "text/plain"} if data else {}
        request = urllib.request.Request(self.endpoint + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            body: bytes = answer.read()
        return body

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5):
                return True
        except (URLError, OSError):
            return False


def moto() -> S3Server:
    """A server that keeps all in its memory."""
    return S3Server("-m", "moto.server")


def localbucket(folder: Path) -> S3Server:
    """A server that keeps its objects below a folder."""
    return S3Server("-m", "localbucket", str(folder))
