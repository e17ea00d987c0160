"""`ui`: the web viewer of an archive, served on this machine, or with a token or behind a proxy to others."""

from __future__ import annotations

import gc
import socket
from typing import Annotated

from cyclopts import Parameter

from trifle_otel.archive import Archive
from trifle_otel.cli.options import Many, Place, opened
from trifle_otel.cli.visible import count, visible
from trifle_otel.configuration import default_bump_every, otlp_variables
from trifle_otel.errors import MissingDependency, UsageError
from trifle_otel.records import TraceRecord
from trifle_otel.viewer.settings import LOOPBACK, Replay, Settings, is_loopback

_Secret = Annotated[str | None, Parameter(env_var="TRIFLE_UI_TOKEN", show_default=False)]


def ui(
    *,
    host: str = "127.0.0.1",
    port: int = 8420,
    token: _Secret = None,
    user_header: str | None = None,
    proxy: Many = None,
    link: Many = None,
    replay: str | None = None,
    root_path: str = "",
    place: Place | None = None,
) -> int:
    """Show the archive in a browser, until interrupted. Nothing can be changed there.

    Parameters
    ----------
    host
        Address to listen at. Others than this machine's own need --token or --user-header.
    port
        0 for any that is free.
    token
        What whoever looks must know: in a form, as ?token=… in the first URL, or as a bearer token. Arguments can be
        seen by others on the machine, the environment less.
    user_header
        The header in which a reverse proxy names who has logged in (X-Forwarded-User).
    proxy
        Address of that proxy, if it is not on this machine; may be repeated.
    link
        A link for each trace, as in "Jaeger=http://localhost:16686/trace/{trace_id}"; there are {trace_id}, {span_id},
        {reference}, {key}, {start_ms} and {end_ms}. May be repeated.
    replay
        An OTLP endpoint (http://localhost:4318) to which a trace may be sent once more, by a button on its page.
    root_path
        The path that a reverse proxy serves it at.
    """
    if root_path and not root_path.startswith("/"):
        raise UsageError(f"--root-path {root_path!r} is not allowed; it begins with a slash, as in /traces")
    hosts = _hosts(host, protected=bool(token or user_header))
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise MissingDependency(f"the viewer needs uvicorn: pip install 'trifle-otel[viewer]' ({error})") from error
    from trifle_otel.viewer.app import make_app

    with opened(place) as archive, _listening(host, port) as listener:
        settings = Settings(
            token=token or None,
            user_header=user_header,
            proxies=tuple(proxy) if proxy else LOOPBACK,
            hosts=hosts,
            links=dict(map(_link, link or ())),
            replay=_replaying(archive, replay) if replay else None,
            bump_every=default_bump_every(),
        )
        config = uvicorn.Config(
            make_app(archive, settings),
            root_path=root_path.rstrip("/"),
            log_level="warning",
            access_log=False,  # it would show the token
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(visible(f"Showing {archive.url} at http://{shown}:{number}{config.root_path}/"), flush=True)
        # Long traces are many small objects without cycles: the collector would look at them again and again.
        gc.set_threshold(100_000, 20, 50)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _hosts(host: str, *, protected: bool) -> frozenset[str] | None:
    """The names that an unprotected viewer answers to. Raises `UsageError` where it would be open to others."""
    if protected:
        return None
    if not is_loopback(host):
        raise UsageError(
            f"at {host} others can reach the viewer: give a --token, or name the --user-header of the proxy before it"
        )
    return frozenset({"localhost", *LOOPBACK, host})


def _replaying(archive: Archive, endpoint: str) -> Replay:
    """What sends a trace to an endpoint. Raises `UsageError` for what is no endpoint."""
    from trifle_otel.otlp.endpoint import MOST_BYTES, endpoint_of
    from trifle_otel.otlp.sending import Sender
    from trifle_otel.replaying import replay

    target = endpoint_of(endpoint, None, otlp_variables())

    def send(record: TraceRecord) -> str:
        with Sender(target) as sender:
            report = replay.Replay(archive, sender, most_bytes=MOST_BYTES[target.protocol]).run([record])
        problems = "".join(f" {problem}" for problem in report.problems[:3])
        return f"{count(report.spans, 'span')} sent to {target.name}.{problems}"

    return send


def _link(text: str) -> tuple[str, str]:
    name, equals, template = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"not a link: {text!r}; it is as in Jaeger=http://localhost:16686/trace/{{trace_id}}")
    return name.strip(), template


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UsageError` where it cannot."""
    if not 0 <= port <= 65_535:
        raise UsageError(f"not a port: {port}; it is from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}") from error
