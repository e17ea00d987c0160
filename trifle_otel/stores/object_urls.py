"""What the URL of an object store names: buckets, prefix and how they are reached.

No credentials: those come from the client's usual chain, and a URL that holds some is refused
without being repeated. Who talks to the store is `objects`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from trifle_otel.errors import ConfigurationError, UsageError
from trifle_otel.records import Folder
from trifle_otel.stores.contract import checked_path

DEFAULT_PREFIX = "traces"
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "s3": ("endpoint", "region", "path_style", "bulk_delete"),
    "gs": (),
    "az": ("account", "endpoint"),
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CREDENTIAL = re.compile(r"key|secret|token|passw|credential|sas|signature", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_CHAIN = "credentials come from the environment, the web identity or the instance"


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """Where an archive lies in object storage.

    `bulk_delete` is whether many objects may be deleted by one request: not every S3-compatible
    server knows that. `path_style` is None where the client decides.
    """

    scheme: str
    buckets: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    bulk_delete: bool = True
    account: str | None = None

    @property
    def url(self) -> str:
        """The URL without its options."""
        return f"{self.scheme}://{','.join(self.buckets)}/{self.prefix}"


def parse_object_url(url: str) -> ObjectLocation:
    """The location that `s3://bucket,bucket/prefix?endpoint=…`, `gs://…` or `az://…` names.

    Options of `s3`: `endpoint` (http or https), `region`, `path_style` (true where an endpoint is given) and
    `bulk_delete` (true); of `az`: `account` and `endpoint`. Raises `ConfigurationError`, which names what is allowed.
    """
    parts = _split(url)
    if "@" in parts.netloc:
        raise ConfigurationError(f"the {parts.scheme}: URL holds credentials; leave them out: {_CHAIN}")
    options = _options(parts)
    return ObjectLocation(
        parts.scheme,
        _buckets(parts),
        _prefix(parts),
        endpoint=_endpoint(options["endpoint"]) if "endpoint" in options else None,
        region=options.get("region"),
        path_style=_boolean("path_style", options["path_style"]) if "path_style" in options else None,
        bulk_delete=_boolean("bulk_delete", options.get("bulk_delete", "true")),
        account=options.get("account"),
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"the archive's URL cannot be read: {error}") from None
    if parts.scheme not in OPTIONS:
        raise ConfigurationError(f"{parts.scheme!r} names no object store; it is {', '.join(OPTIONS)}")
    if parts.fragment:
        raise ConfigurationError(f"the {parts.scheme}: URL has a fragment (#…), which means nothing here")
    return parts


def _buckets(parts: SplitResult) -> tuple[str, ...]:
    buckets = tuple(parts.netloc.split(","))
    for bucket in buckets:
        if not _BUCKET.fullmatch(bucket):
            raise ConfigurationError(f"{bucket!r} is no bucket's name; write {parts.scheme}://bucket,bucket/prefix")
    if len(set(buckets)) < len(buckets):
        raise ConfigurationError(f"a bucket is named twice: {parts.netloc}")
    return buckets


def _prefix(parts: SplitResult) -> str:
    prefix = unquote(parts.path).strip("/")
    if not prefix:
        return DEFAULT_PREFIX
    try:
        checked_path(Folder(0, prefix, "x"))
    except UsageError as error:
        raise ConfigurationError(f"the prefix {prefix!r} cannot be used: {error}") from error
    if _CONTROL.search(prefix):
        raise ConfigurationError(f"the prefix {prefix!r} holds control characters")
    return prefix


def _options(parts: SplitResult) -> dict[str, str]:
    allowed = OPTIONS[parts.scheme]
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed:
            raise ConfigurationError(_unknown(name, parts.scheme))
        if not value:
            raise ConfigurationError(f"the option {name} is empty")
        options[name] = value
    return options


def _unknown(name: str, scheme: str) -> str:
    allowed = OPTIONS[scheme]
    if _CREDENTIAL.search(name):
        return f"the option {name!r} looks like a credential; leave it out: {_CHAIN}"
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{scheme}: has no option {name!r}; {hint}it takes {', '.join(allowed) or 'none'}"


def _endpoint(text: str) -> str:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError as error:
        raise ConfigurationError(f"the endpoint cannot be read: {error}") from None
    if "@" in parts.netloc:
        raise ConfigurationError(f"the endpoint holds credentials; leave them out: {_CHAIN}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"the endpoint {text!r} is no http:// or https:// address")
    return text.rstrip("/")


def _boolean(name: str, text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ConfigurationError(f"{name}={text!r} is not true or false") from None
