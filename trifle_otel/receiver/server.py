"""The OTLP receiver: its settings, its servers and its intake put together, from start to end.

It is for a process of its own (`trifle-otel receive`), which is configured for the archive already. What arrives goes
through `over_http` and `over_grpc` to `intake`, from there through `assemble` and `archiving` to the archive.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from trifle_otel.delivery import Delivery
from trifle_otel.errors import ConfigurationError, UsageError
from trifle_otel.executions import archiving as executions
from trifle_otel.executions.assemble import Assembler, Execution
from trifle_otel.otlp.spans import encoding_of
from trifle_otel.receiver.answers import FAULTY, Reason, Refused, encoded
from trifle_otel.receiver.bodies import Budget, inflated
from trifle_otel.receiver.intake import Intake
from trifle_otel.receiver.journal import Journal
from trifle_otel.receiver.over_grpc import GRPCServer
from trifle_otel.receiver.over_http import Gate, HTTPServer
from trifle_otel.runtime import Runtime

logger = logging.getLogger("trifle_otel")

HTTP_PORT: Final = 4418
GRPC_PORT: Final = 4417
"""Beside a collector's, which are 4318 and 4317."""

_WORKERS = 2  # threads that read bodies: more would wait for each other
_BODIES = 4  # of the largest size, in memory at a time
_GRACE = 5.0  # seconds that requests under way have to end, and complete executions to be archived
_SWITCH = 0.0005  # seconds: an answer passes three threads, and each waits for the one that sorts spans
_COLLECT = (20_000, 10, 20)  # spans are many and have no cycles: the usual thresholds cost a fifth of the throughput
_NEARLY_FULL = 0.9  # of the spool's limit, above which the spool would begin to drop


@dataclass(frozen=True, kw_only=True)
class ReceiverSettings:
    """What can be set.

    Attributes:
        host: address to listen at.
        port: of HTTP; 0: any that is free.
        grpc_port: of gRPC; None: no gRPC.
        token: what senders give as a bearer token; None: nothing.
        tls_cert: file of the server's certificate, and of those above it.
        tls_key: file of its key; None: it is in the same file.
        tls_client_ca: file of certificates that senders' certificates must be signed by; None: they need none.
        max_body: bytes of a request, decompressed.
        max_waiting: bytes of accepted requests that may wait on disk.
        settle: seconds that an execution whose root has come waits for spans that come late.
        wait: seconds that spans wait for their root.
        read_timeout: seconds that a client may take for each part of a request.
    """

    host: str = "127.0.0.1"
    port: int = HTTP_PORT
    grpc_port: int | None = GRPC_PORT
    token: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    max_body: int = 20 << 20
    max_waiting: int = 1 << 30
    settle: float = 2.0
    wait: float = 3600.0
    read_timeout: float = 20.0


class Receiver:
    """Receives into an archive, from `start` to `stop`, in the loop that calls them.

    Attributes:
        http_port: where HTTP is listened at, once it has started.
        grpc_port: where gRPC is; 0 for nowhere.
    """

    def __init__(self, settings: ReceiverSettings, intake: Intake) -> None:
        """Raises `UsageError` for settings that are not allowed."""
        _check(settings)
        self.settings = settings
        self.intake = intake
        self.http_port = 0
        self.grpc_port = 0
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="trifle-body")
        self._ending = False
        token = settings.token and settings.token.strip()  # secrets out of files end in a newline
        gate = Gate(token, settings.max_body, settings.read_timeout, Budget(_BODIES * settings.max_body))
        self._http = HTTPServer(self._take, gate, intake.check, self._is_alive, self._refused)
        self._grpc = GRPCServer(self._take, gate, intake.check, self._refused)

    async def start(self) -> None:
        """Begin. Raises `ConfigurationError` where it cannot listen or keep anything."""
        settings = self.settings
        context, credentials = _tls(settings)
        try:
            self.http_port = await self._http.start(settings.host, settings.port, context)
            if settings.grpc_port is not None:
                self.grpc_port = await self._grpc.start(settings.host, settings.grpc_port, credentials)
            self.intake.start()
        except OSError as error:
            await self.stop()
            raise ConfigurationError(f"the receiver cannot start: {error}") from error

    async def stop(self) -> None:
        """End: requests under way are answered, complete executions archived; the rest is for the next receiver."""
        self._ending = True
        await asyncio.gather(self._http.stop(_GRACE), self._grpc.stop(_GRACE))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.intake.close, self.settings.settle + _GRACE)
        self._pool.shutdown(wait=False)

    def _is_alive(self) -> bool:
        return self.intake.alive and not self._ending

    def _refused(self, reason: Reason) -> None:
        self.intake.metrics.request(reason.word)

    async def _take(self, body: bytes, kind: str, compressed: bool) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._taken, body, kind, compressed)

    def _taken(self, body: bytes, kind: str, compressed: bool) -> bytes:
        try:
            if compressed:
                body = inflated(body, self.settings.max_body)
            answer = self.intake.take(body, kind)
        except Refused:
            raise
        except Exception as error:  # ours: the sender hears of it, and others are served
            self.intake.troubles.report("a request failed", error)
            raise Refused(FAULTY, "the receiver failed on this request") from error
        self.intake.metrics.request("accepted")
        return encoded(answer, encoding_of(kind))


class _Archive:
    """Where executions go: the archive that this process records into."""

    def __init__(self, runtime: Runtime, delivery: Delivery) -> None:
        self._runtime = runtime
        self._shipper = delivery.shipper
        self._limit = delivery.settings.spool_limit * _NEARLY_FULL

    def archive(self, execution: Execution) -> object:
        return executions.archive(execution, self._runtime)

    def has_room(self) -> bool:
        return self._shipper.waits().bytes < self._limit

    def is_idle(self) -> bool:
        return self._shipper.flush(0)


def make_intake(settings: ReceiverSettings, runtime: Runtime) -> Intake:
    """An intake into the archive of a configured process. Raises `ConfigurationError` where it has no spool on disk."""
    delivery = runtime.sink
    if not isinstance(delivery, Delivery) or delivery.spool is None:
        raise ConfigurationError("the receiver needs a spool on disk, beside which it keeps what it has accepted")
    root = delivery.spool.root
    journal = Journal(root.with_name(f"{root.name}-received"), fsync=delivery.settings.fsync)

    def assembling(deliver: Callable[[Any], None], dropped: Callable[[Any], None]) -> Assembler:
        return Assembler(deliver, dropped=dropped, settle=settings.settle, wait=settings.wait)

    archive = _Archive(runtime, delivery)
    return Intake(
        journal, assembling, archive, runtime.troubles, settle=settings.settle, max_waiting=settings.max_waiting
    )


def serve(settings: ReceiverSettings, runtime: Runtime, started: Callable[[Receiver], None]) -> None:
    """Receive until SIGTERM or SIGINT comes. `started` is called once requests are taken. Raises `UsageError`."""
    receiver = Receiver(settings, make_intake(settings, runtime))
    sys.setswitchinterval(_SWITCH)
    gc.set_threshold(*_COLLECT)
    asyncio.run(_serve(receiver, started))


async def _serve(receiver: Receiver, started: Callable[[Receiver], None]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def end(which: signal.Signals) -> None:
        loop.remove_signal_handler(which)  # the second time it ends at once
        ended.set()

    for which in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(which, end, which)
    await receiver.start()
    started(receiver)
    await ended.wait()
    await receiver.stop()


def _check(settings: ReceiverSettings) -> None:
    """Refuse what would only show when requests come. Raises `UsageError`."""
    for name, holds, allowed in (
        ("port", 0 <= settings.port <= 65535, "from 0 to 65535"),
        ("grpc_port", 0 <= (settings.grpc_port or 0) <= 65535, "from 0 to 65535"),
        ("max_body", settings.max_body >= 1024, "bytes, from 1024"),
        ("max_waiting", settings.max_waiting >= 1024, "bytes, from 1024"),
        ("settle", 0 <= settings.settle <= 600, "seconds from 0 to 600"),  # the end waits for it, too
        ("wait", settings.wait > 0, "seconds above 0"),
        ("read_timeout", settings.read_timeout > 0, "seconds above 0"),
    ):
        if not holds:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {getattr(settings, name)} is not allowed; it is {allowed}")
    if settings.token is not None and not settings.token.strip():
        raise UsageError("the token is empty")
    if settings.token is not None and not (settings.token.isascii() and settings.token.strip().isprintable()):
        raise UsageError("the token holds what no header can: it is of plain ASCII characters")
    if settings.tls_cert is None and (settings.tls_key or settings.tls_client_ca):
        raise UsageError("--tls-key and --tls-client-ca need --tls-cert")
    if not _is_local(settings.host) and not settings.token and not settings.tls_client_ca:
        logger.warning("%s can be reached by others, and no token is asked for", settings.host)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(settings: ReceiverSettings) -> tuple[ssl.SSLContext | None, grpc.ServerCredentials | None]:
    """What both servers need for TLS. Raises `ConfigurationError`."""
    if settings.tls_cert is None:
        return None, None
    key = settings.tls_key or settings.tls_cert
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_cert, key)
        context.set_alpn_protocols(["http/1.1"])
        authority = None
        if settings.tls_client_ca is not None:
            authority = settings.tls_client_ca.read_bytes()
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        pair = key.read_bytes(), settings.tls_cert.read_bytes()
    except OSError as error:  # also what OpenSSL refuses
        raise ConfigurationError(f"the certificates cannot be used: {error}") from error
    return context, grpc.ssl_server_credentials([pair], authority, authority is not None)
