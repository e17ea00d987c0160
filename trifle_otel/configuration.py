"""`configure`, and what URLs of archives and indexes mean.

The one module that names drivers and reads the environment.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import unquote

from trifle_otel.conventions import own_version
from trifle_otel.errors import ConfigurationError, DamagedArchive, StoreUnavailable
from trifle_otel.locations import ARCHIVES, INDEXES, forget_memories, locate, open_index, spool_folder
from trifle_otel.redaction import Redactor
from trifle_otel.runtime import Runtime, at_first_use, forget_callbacks, install
from trifle_otel.settings import LONGEST_RETENTION, LONGEST_WAIT, Settings

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.trace import SpanKind, TracerProvider
    from typing_extensions import Unpack

    from trifle_otel.archive import Archive
    from trifle_otel.delivery import Delivery
    from trifle_otel.recording import Recording
    from trifle_otel.settings import Events, Mode, Permissions
    from trifle_otel.spool import Spool

logger = logging.getLogger("trifle_otel")

PREFIX = "TRIFLE_"
_IN_CODE_ALONE = {"context", "error_handler", "tracer_provider", "logger_provider"}
_NO_SETTINGS = {"TRIFLE_REQUIRE_SERVERS", "TRIFLE_TOKEN", "TRIFLE_UI_TOKEN", "TRIFLE_PAGER", "TRIFLE_PARENT_REFERENCE"}
READ_WAIT = 2.0
_PERMISSIONS = ("private", "group")
_ALLOWED_PERMISSIONS = "'private' or 'group'"


class Changes(TypedDict, total=False):
    """The keywords of `configure`: the fields of `Settings`, each optional."""

    index: str | None
    retention: int | Callable[[Recording], int | None]
    default_mode: Mode
    bump_every: float
    payload_size_limit: int
    context: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    serializer: str | Callable[[Any], str]
    error_handler: Callable[[BaseException], None] | None
    gzip: bool
    redaction: Redactor | bool
    spool: str | None
    spool_limit: int
    spool_age: float
    exit_timeout: float
    fsync: bool
    permissions: Permissions
    events: Events
    pending_span: bool
    max_spans: int
    span_events: int
    span_value_limit: int
    events_budget: int
    foreign_spans: bool | Callable[[str, str, SpanKind], object]
    service: str | None
    tracer_provider: TracerProvider | None
    logger_provider: LoggerProvider | None


_delivery: Delivery | None = None
_earlier: list[Delivery] = []  # of settings that were in force before, for traces that began then
_beside: list[Delivery] = []  # into other archives than the configured one, for exporters that name one
_lock = threading.RLock()


def configure(archive: str | os.PathLike[str] | None = None, **changes: Unpack[Changes]) -> Archive:
    """Set up this process, and give the archive that it records into. May be called again.

    Args:
        archive: URL of the archive (`./traces`, `file:///var/traces`, `memory:`); None: `TRIFLE_ARCHIVE`, else
            `./traces`.
        changes: the settings, see `Settings`. Each that is not given is read from the environment variable of its
            name in capitals after `TRIFLE_`, and has a default otherwise.

    Raises `ConfigurationError` for a setting or URL that is unknown or wrong, and for an archive that cannot be
    written; it names what is allowed. A locked index is no error: traces wait for it in the spool.
    """
    settings = make_settings(archive, dict(changes))
    with _lock:
        opened = _open(settings)
        _prepare(opened)
        before = _put_in_force(opened, settings)
        if before is not None:
            _earlier.append(before)
        earlier = [*_earlier]
    for delivery in earlier:
        _shut_down(delivery, settings.exit_timeout)
        if not delivery.is_used:
            with suppress(ValueError):  # another thread configures, too
                _earlier.remove(delivery)
    return opened


def reset() -> None:
    """Put this process back to before its first `configure`: for tests.

    Ships what waits, stops the background thread, and forgets settings, callbacks and `memory:` archives.
    """
    global _delivery  # noqa: PLW0603 - what this process is set up with
    with _lock:
        deliveries = _all_deliveries()
        _delivery = None
        _earlier.clear()
        _beside.clear()
        install(None)
        forget_callbacks()
        forget_memories()
    for delivery in deliveries:
        _shut_down(delivery, delivery.settings.exit_timeout)
        delivery.archive.close()


def _all_deliveries() -> list[Delivery]:
    return [*_earlier, *_beside] if _delivery is None else [*_earlier, *_beside, _delivery]


def make_settings(archive: str | os.PathLike[str] | None, changes: dict[str, Any]) -> Settings:
    """Settings from arguments, the environment and defaults, checked. Raises `ConfigurationError`."""
    known = {field.name: field for field in dataclasses.fields(Settings)}
    for name in changes:
        if name not in known:
            raise ConfigurationError(f"no setting {name!r}; {_meant(name, known)}")
    values = {**_from_opentelemetry(), **_from_environment(known), **changes}
    if archive is not None:
        values["archive"] = os.fspath(archive) if isinstance(archive, os.PathLike) else archive
    settings = Settings(**values)
    _check(settings)
    return settings


def open_archive(
    archive: str | os.PathLike[str], index: str | None = None, permissions: str | None = None, *, fsync: bool = False
) -> Archive:
    """The archive at a URL, with the index beside it or at another URL. Raises `ConfigurationError`.

    `permissions` and `fsync` are the settings of these names; None: `TRIFLE_PERMISSIONS`.
    """
    from trifle_otel.archive import Archive

    permissions = permissions or os.environ.get("TRIFLE_PERMISSIONS") or Settings().permissions
    if permissions not in _PERMISSIONS:
        raise ConfigurationError(f"permissions={permissions!r} is not allowed; it is {_ALLOWED_PERMISSIONS}")
    group = permissions == "group"
    location = locate(os.fspath(archive), group=group, fsync=fsync)
    index = index or location.index
    if index is None:
        raise ConfigurationError(f"the archive {location.uri} needs an index; name one: {INDEXES}")
    store = location.store()
    opened = Archive(store, open_index(index, group=group, buckets=store.buckets), url=location.uri)
    opened.group = group
    given = os.environ.get("TRIFLE_SPOOL")
    opened.spool = spool_folder(location.uri, given) if given else location.spool
    return opened


def _open(settings: Settings) -> Archive:
    """The archive of these settings, to be recorded into. Raises `ConfigurationError`."""
    opened = open_archive(settings.archive, settings.index, settings.permissions, fsync=settings.fsync)
    opened.store.check_names()
    return opened


def default_archive() -> str:
    """What commands read where no archive is named."""
    return os.environ.get("TRIFLE_ARCHIVE") or "./traces"


def default_index() -> str | None:
    """The index of commands where none is named; None: the one beside the archive."""
    return os.environ.get("TRIFLE_INDEX") or None


def default_bump_every() -> float:
    """The `bump_every` of whoever records from here, for commands that read; the default where that is no number."""
    try:
        seconds = float(os.environ.get("TRIFLE_BUMP_EVERY") or "")
    except ValueError:
        seconds = math.nan
    return min(max(0.0, seconds), LONGEST_WAIT) if math.isfinite(seconds) else Settings().bump_every


def default_pager() -> str | None:
    """The program that long output goes through: TRIFLE_PAGER, else PAGER; None where neither is set."""
    return os.environ.get("TRIFLE_PAGER", os.environ.get("PAGER"))


def otlp_variables() -> dict[str, str]:
    """What OpenTelemetry's variables say of how OTLP is sent, by their names after `OTEL_EXPORTER_OTLP_`."""
    prefix = "OTEL_EXPORTER_OTLP_"
    return {name[len(prefix) :]: value for name, value in os.environ.items() if name.startswith(prefix)}


def configure_from_environment() -> None:
    """At first use: set up what `TRIFLE_ARCHIVE` names, if it is set."""
    if _delivery is not None or not os.environ.get("TRIFLE_ARCHIVE"):
        return
    settings = make_settings(None, {})
    with _lock:
        if _delivery is not None:  # another thread has configured meanwhile
            return
        archive = _open(settings)
        remote = archive.store.remote or archive.index.remote
        try:
            if not remote:
                _prepare(archive)
        except DamagedArchive as error:  # nobody is there to repair it: payloads can be kept all the same
            logger.warning("rows wait until the index is repaired: %s", error)
        _put_in_force(archive, settings)
        if remote and _delivery is not None:  # this is a job's own thread, which waits for no network
            _delivery.shipper.prepare = archive.setup


def _put_in_force(archive: Archive, settings: Settings) -> Delivery | None:
    """Record into this archive from now on; gives what delivered to the one before."""
    global _delivery
    runtime, delivery = _make_runtime(archive, settings)
    runtime.on_provider = _watch_spans if settings.foreign_spans else None
    before, _delivery = _delivery, delivery
    install(runtime)
    return before


def runtime_into(
    archive: str | os.PathLike[str] | None, index: str | None = None, known: Runtime | None = None
) -> Runtime | None:
    """What archives what others recorded: None stands for the runtime in force, whichever that is.

    Where nothing is configured, this process is, for this archive; else one that is not the configured one has a
    runtime of its own, with the same settings: `known`, where it was made before. Raises `ConfigurationError`.
    """
    with _lock:
        if archive is None and index is None:
            configure_from_environment()
        if _delivery is None:
            changes = Changes() if index is None else Changes(index=index)
            configure(archive, **changes)
            return None
        if archive is None or locate(os.fspath(archive)).uri == _delivery.archive.url:
            return None
        if known is not None:
            return known
        settings = dataclasses.replace(_delivery.settings, archive=os.fspath(archive), index=index)
        opened = _open(settings)
        _prepare(opened)
        runtime, delivery = _make_runtime(opened, settings)
        _beside.append(delivery)
        return runtime


def _make_runtime(archive: Archive, settings: Settings) -> tuple[Runtime, Delivery]:
    """What records into this archive, and delivers to it."""
    from trifle_otel.delivery import Delivery

    own_version()  # now: a child that is forked while another thread imports what this needs would hang in it
    runtime = Runtime(settings, None)
    beside = archive.spool
    archive.spool = spool_folder(archive.url, settings.spool) if settings.spool else beside
    spool = _open_spool(archive, settings)
    direct = spool is not None and spool.root == beside and not archive.store.remote
    delivery = Delivery(archive, spool, settings, runtime.troubles, direct=direct)
    runtime.sink = delivery
    archive.before_reading = lambda: delivery.flush(READ_WAIT)
    if spool is not None:
        delivery.shipper.start()
    return runtime, delivery


def _watch_spans(provider: TracerProvider) -> None:
    """Record what other instrumentations do inside traces, where a provider takes processors, as the SDK's does."""
    if hasattr(provider, "add_span_processor"):
        from trifle_otel.span_processor import add_to

        add_to(provider)


def _prepare(archive: Archive) -> None:
    """Create what is missing, and prove that the archive can be written."""
    try:
        archive.store.setup()
        archive.store.check()
    except StoreUnavailable as error:
        if not archive.store.remote:
            raise ConfigurationError(f"the archive {archive.url} cannot be written: {error}") from error
        logger.warning("the archive %s cannot be written now; traces wait in the spool: %s", archive.url, error)
    try:
        archive.index.setup()
    except StoreUnavailable as error:
        logger.warning("the index of %s cannot be written now; rows wait: %s", archive.url, error)


def _open_spool(archive: Archive, settings: Settings) -> Spool | None:
    """A spool where it can be written: in its place, else in the user's state folder, else none but memory."""
    if archive.spool is None:
        return None
    from trifle_otel.spool import Spool

    for root in (archive.spool, spool_folder(archive.url)):
        spool = Spool(root, fsync=settings.fsync)
        try:
            spool.open()
        except OSError as error:
            logger.warning("the spool %s cannot be written: %s", root, error)
        else:
            return spool
    logger.warning("no spool can be written: what waits for the archive is in memory, and lost if the process dies")
    return None


def _meant(name: str, known: Mapping[str, object]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}There are {', '.join(sorted(known))}"


def _from_environment(known: Mapping[str, dataclasses.Field[Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in os.environ.items():
        if not variable.startswith(PREFIX) or variable in _NO_SETTINGS:
            continue
        name = variable[len(PREFIX) :].lower()
        if name in _IN_CODE_ALONE:
            logger.warning("the environment variable %s is not read: %s is set in code, by configure", variable, name)
        elif name not in known:
            others = {each: field for each, field in known.items() if each not in _IN_CODE_ALONE}
            logger.warning("the environment variable %s is no setting; %s", variable, _meant(name, others))
        elif text:
            values[name] = _parsed(variable, text, known[name].default)
    return values


def _parsed(variable: str, text: str, default: object) -> Any:
    try:
        if isinstance(default, bool):
            return _BOOLEANS[text.strip().lower()]
        if isinstance(default, int) and not variable.endswith(("_EVERY", "_TIMEOUT", "_AGE")):
            return int(text)
        if isinstance(default, int | float):
            return float(text)
    except (ValueError, KeyError) as error:
        kind = "true or false" if isinstance(default, bool) else "a number"
        raise ConfigurationError(f"{variable}={text!r} is not {kind}") from error
    return text


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _from_opentelemetry() -> dict[str, Any]:
    """The SDK's own limits and the service's name, from the variables that OpenTelemetry defines."""
    values: dict[str, Any] = {}
    events = _number("OTEL_SPAN_EVENT_COUNT_LIMIT")
    if events is not None:
        values["span_events"] = events
    lengths = [
        _number(name) for name in ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT")
    ]
    given = [length for length in lengths if length]
    if given:
        values["span_value_limit"] = min([2048, *given])
    service = os.environ.get("OTEL_SERVICE_NAME") or _resource_attribute("service.name")
    if service:
        values["service"] = service
    return values


def _resource_attribute(name: str) -> str:
    """An attribute of `OTEL_RESOURCE_ATTRIBUTES`, which is `name=value,…` with values percent-encoded; "" for none."""
    found = ""
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            found = unquote(value.strip())
    return found


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "").strip()
    return int(text) if text.isdecimal() else None


def _check(settings: Settings) -> None:
    """Refuse values that would only show when a job runs."""
    for name, (holds, allowed) in (*_rules_of_storing(settings), *_rules_of_recording(settings)):
        if not holds:
            raise ConfigurationError(f"{name}={getattr(settings, name)!r} is not allowed; it is {allowed}")


_Rule = tuple[str, tuple[bool, str]]
"""A setting's name, whether its value is allowed, and what is."""


def _rules_of_storing(settings: Settings) -> Iterator[_Rule]:
    yield "archive", (isinstance(settings.archive, str), f"a path or a URL: {ARCHIVES}")
    yield "index", (settings.index is None or isinstance(settings.index, str), f"None or a URL: {INDEXES}")
    yield "spool", (settings.spool is None or isinstance(settings.spool, str), "None or a folder's path")
    days = settings.retention
    allowed = callable(days) or _whole(days, 1, LONGEST_RETENTION)
    yield "retention", (allowed, f"whole days from 1 to {LONGEST_RETENTION}, or a callable")
    yield "default_mode", (settings.default_mode in ("live", "deferred"), "'live' or 'deferred'")
    yield "bump_every", (_at_least(settings.bump_every, 0.01), "seconds from 0.01")
    yield "payload_size_limit", (_whole(settings.payload_size_limit, 1024), "bytes, a whole number from 1024")
    yield "spool_limit", (_whole(settings.spool_limit, 1), "bytes, a whole number from 1")
    yield "spool_age", (_at_least(settings.spool_age, 1), "seconds from 1")
    yield "exit_timeout", (_at_least(settings.exit_timeout, 0), "seconds from 0")
    yield "gzip", (isinstance(settings.gzip, bool), "True or False")
    yield "fsync", (isinstance(settings.fsync, bool), "True or False")
    yield "permissions", (settings.permissions in _PERMISSIONS, _ALLOWED_PERMISSIONS)


def _rules_of_recording(settings: Settings) -> Iterator[_Rule]:
    yield "events", (settings.events in ("span", "log", "both"), "'span', 'log' or 'both'")
    yield "pending_span", (isinstance(settings.pending_span, bool), "True or False")
    yield "max_spans", (_whole(settings.max_spans, 0), "a whole number from 0")
    yield "span_events", (_whole(settings.span_events, 0), "a whole number from 0")
    yield "span_value_limit", (_whole(settings.span_value_limit, 1), "bytes, a whole number from 1")
    yield "events_budget", (_whole(settings.events_budget, 0), "bytes, a whole number from 0")
    yield "redaction", (isinstance(settings.redaction, bool | Redactor), "True, False or a Redactor")
    known = callable(settings.serializer) or settings.serializer in ("repr", "str", "json")
    yield "serializer", (known, "'repr', 'str', 'json' or a callable")
    foreign = settings.foreign_spans
    yield "foreign_spans", (isinstance(foreign, bool) or callable(foreign), "True, False or a callable")
    yield "service", (settings.service is None or isinstance(settings.service, str), "a text or None")
    yield "context", (callable(settings.context) or isinstance(settings.context, Mapping), "a mapping or a callable")
    handler, provider = settings.error_handler, settings.tracer_provider
    yield "error_handler", (handler is None or callable(handler), "a callable or None")
    yield "tracer_provider", (provider is None or hasattr(provider, "get_tracer"), "a TracerProvider or None")
    logs = settings.logger_provider
    yield "logger_provider", (logs is None or hasattr(logs, "get_logger"), "a LoggerProvider or None")


def _at_least(value: object, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= least


def _whole(value: object, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _at_exit() -> None:
    for delivery in _all_deliveries():
        _shut_down(delivery, delivery.settings.exit_timeout)


def _shut_down(delivery: Delivery, timeout: float) -> None:
    delivery.shutdown(min(timeout, LONGEST_WAIT))


def _after_fork() -> None:
    """In a forked child: a thread that is gone may have been configuring."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
at_first_use(configure_from_environment)
atexit.register(_at_exit)
