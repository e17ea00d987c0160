"""What a viewer is told: who may look, and where its links lead. Checked here, once."""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trifle_otel.errors import ConfigurationError
from trifle_otel.records import TraceRecord

PLACEHOLDERS = ("trace_id", "span_id", "reference", "key", "start_ms", "end_ms")
LOOPBACK = ("127.0.0.1", "::1")

Replay = Callable[[TraceRecord], str]
"""Sends a trace's spans once more, and says in one line what came of it. Raises a `TrifleError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a viewer behaves.

    Attributes:
        token: what whoever looks must know; None: whoever reaches the viewer may look.
        user_header: the name of a header in which a reverse proxy names who has logged in; requests with it need no
            token where they come from one of `proxies`.
        proxies: addresses of reverse proxies.
        hosts: the names under which the viewer may be asked for, in small letters, without the port; None: any.
            Without a token it needs them: else a page elsewhere could lead its own name here, and read.
        links: what is offered for each trace: a name, and a URL with placeholders (`PLACEHOLDERS`) in braces.
        replay: sends a trace once more; None where that is not allowed.
        bump_every: seconds between two signs of life of a running trace, as those who record are set.

    Raises `ConfigurationError`.
    """

    token: str | None = None
    user_header: str | None = None
    proxies: tuple[str, ...] = LOOPBACK
    hosts: frozenset[str] | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    replay: Replay | None = None
    bump_every: float = 15

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token and self.token.isascii()):
            raise ConfigurationError("the token must be one or more ASCII characters")
        for address in self.proxies:
            _check_address(address)
        for name, template in self.links.items():
            _check_link(name, template)


def is_loopback(host: str) -> bool:
    """Whether an address to listen at can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise ConfigurationError(f"not the address of a proxy: {address!r}; it is as 10.0.0.5 or ::1") from error


def _check_link(name: str, template: str) -> None:
    if not template.startswith(("http://", "https://")):
        raise ConfigurationError(f"the link {name!r} must begin with http:// or https://, not as {template!r}")
    try:
        named = {placeholder for _, placeholder, _, _ in string.Formatter().parse(template) if placeholder is not None}
        if named <= set(PLACEHOLDERS):
            template.format(**dict.fromkeys(PLACEHOLDERS, ""))
    except (ValueError, LookupError) as error:
        raise ConfigurationError(f"the link {name!r} is no template: {error}") from error
    if not named or not named <= set(PLACEHOLDERS):
        allowed = ", ".join(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS)
        raise ConfigurationError(f"the link {name!r} names {', '.join(sorted(named)) or 'nothing'}; it is of {allowed}")
