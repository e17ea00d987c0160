"""`receive`: an OTLP receiver that archives what plain OpenTelemetry applications and collectors send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import trifle_otel as trifle
from trifle_otel.cli.options import Flag, Place
from trifle_otel.cli.visible import visible
from trifle_otel.configuration import default_index
from trifle_otel.errors import MissingDependency
from trifle_otel.runtime import runtime

if TYPE_CHECKING:
    from trifle_otel.receiver.server import Receiver

_Secret = Annotated[str | None, Parameter(env_var="TRIFLE_TOKEN", show_default=False)]


def receive(
    *,
    host: str = "127.0.0.1",
    port: int = 4418,
    grpc_port: int = 4417,
    no_grpc: Flag = False,
    token: _Secret = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_client_ca: Path | None = None,
    max_body: int = 20 << 20,
    max_waiting: int = 1 << 30,
    settle: float = 2.0,
    wait: float = 3600.0,
    read_timeout: float = 20.0,
    place: Place | None = None,
) -> int:
    """Take OTLP traces in over HTTP and gRPC, and archive each local root span as a trace, until interrupted.

    What was accepted is on disk before it is answered.

    Parameters
    ----------
    host
        Address to listen at; 0.0.0.0 for all.
    port
        Of OTLP over HTTP (POST /v1/traces, GET /health); 0 for any that is free.
    grpc_port
        Of OTLP over gRPC.
    no_grpc
        Only HTTP.
    token
        What senders must give as a bearer token. Arguments can be seen by others on the machine, the environment less.
    tls_cert
        File of the certificate to serve with, in PEM.
    tls_key
        File of its key, if it is not in the same file.
    tls_client_ca
        File of the certificates that senders' certificates must be signed by.
    max_body
        Bytes of a request, decompressed, above which it is refused.
    max_waiting
        Bytes of accepted requests that may wait on disk; above it senders are told to come back later.
    settle
        Seconds that an execution whose root has come waits for spans that come later.
    wait
        Seconds that spans wait for their root, at most.
    read_timeout
        Seconds that a client may take for each part of a request.
    """
    try:
        from trifle_otel.receiver.server import ReceiverSettings, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trifle_otel"):
            raise
        raise MissingDependency(f"{error.name} is not installed: pip install 'trifle-otel[receiver]'") from error
    settings = ReceiverSettings(
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        token=token or None,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        max_body=max_body,
        max_waiting=max_waiting,
        settle=settle,
        wait=wait,
        read_timeout=read_timeout,
    )
    place = place or Place()
    archive = trifle.configure(place.name, index=place.index or default_index())
    serve(settings, runtime(), lambda receiver: _say(receiver, archive.url))
    return 0


def _say(receiver: Receiver, archive: str) -> None:
    """One line for people, and for what waits until it is there."""
    host, scheme = receiver.settings.host, "https" if receiver.settings.tls_cert else "http"
    shown = f"[{host}]" if ":" in host else host
    grpc = f" and {shown}:{receiver.grpc_port} (gRPC)" if receiver.grpc_port else ""
    print(visible(f"Receiving at {scheme}://{shown}:{receiver.http_port}/v1/traces{grpc}, into {archive}"), flush=True)
