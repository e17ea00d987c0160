"""Ports of this machine for servers that cannot be told to take any: nobody listens there, and no client is given one.

A server that can choose a port by itself, or take a socket that listens already, needs nothing of this.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 15_000  # well-known servers are below


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives to no connection until a server takes it.

    A port below those that clients get: one among them would sometimes be a client's before the server starts, and on
    a machine that runs a thousand tests, sometimes is every week.
    """
    highest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    while True:
        port = random.randrange(LOWEST, max(highest, LOWEST + 5_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
