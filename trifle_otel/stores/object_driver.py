"""obstore: loaded when it is needed, made anew after a fork, its errors translated to ours.

What is stored where is not known here; see `objects`.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import tempfile
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from trifle_otel.errors import (
    ConfigurationError,
    DamagedArchive,
    MissingDependency,
    NotFound,
    StoreUnavailable,
    TrifleError,
    UsageError,
)
from trifle_otel.stores.contract import OutOfReach
from trifle_otel.stores.object_urls import ObjectLocation

RETRIES = 2  # the shipper tries again itself, with longer pauses
RETRY_WITHIN = 10.0  # seconds
LONGEST_STREAM = timedelta(days=1)


class Refused(StoreUnavailable):
    """The store answered, and refuses: wrong credentials, no such bucket, another region.

    It waits like a store that is out of reach, since somebody may mend it; `check` tells it as
    `ConfigurationError`.
    """


_loaded: dict[int, Any] = {}  # the obstore of each process that this one descends from, by its id
_lock = threading.Lock()  # guards the loading


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent's may be held by a thread that is not here
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def load_obstore() -> Any:
    """The module `obstore` for this process. Raises `MissingDependency`.

    Its threads do not survive a fork: in a child of a process that had used it, each call would hang for ever.
    Such a child loads the library a second time, from a copy, which has threads of its own.
    """
    module = _loaded.get(os.getpid())
    if module is None:
        with _lock:
            module = _loaded.get(os.getpid())
            if module is None:
                module = _loaded[os.getpid()] = _load_a_copy() if _loaded else _load()
    return module


def _load() -> Any:
    try:
        obstore = importlib.import_module("obstore")
        importlib.import_module("obstore.store")
    except ImportError as error:
        raise MissingDependency("object storage needs obstore: pip install 'trifle-otel[s3]'") from error
    return obstore


def _load_a_copy() -> Any:
    """Load obstore from a copy of its files (15 MB for a moment, some 30 ms)."""
    place = Path(str(sys.modules["obstore"].__file__)).parent
    before = _without_obstore()
    folder = tempfile.mkdtemp(prefix="trifle-obstore-")
    try:
        shutil.copytree(place, os.path.join(folder, "obstore"), ignore=shutil.ignore_patterns("*.pyi", "__pycache__"))
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        obstore = importlib.import_module("obstore")
        importlib.import_module("obstore.store")
        return obstore
    except (OSError, ImportError) as error:
        raise StoreUnavailable(f"obstore cannot be loaded again after a fork: {error}") from error
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
        shutil.rmtree(folder, ignore_errors=True)  # what is loaded stays loaded
        _without_obstore()
        sys.modules.update(before)


def _without_obstore() -> dict[str, Any]:
    names = [name for name in sys.modules if name == "obstore" or name.startswith("obstore.")]
    return {name: sys.modules.pop(name) for name in names}


def open_bucket(location: ObjectLocation, bucket: str, connect_timeout: float, request_timeout: float) -> Any:
    """obstore's client of one bucket. Raises `ConfigurationError`. Connects to nothing yet."""
    stores = load_obstore().store
    waits = {
        "connect_timeout": timedelta(seconds=connect_timeout),
        # for an answer, and for each piece of it: a large object may take longer as a whole
        "read_timeout": timedelta(seconds=request_timeout),
        "timeout": LONGEST_STREAM,
    }
    options: dict[str, Any] = {
        "client_options": {**waits, **({"allow_http": True} if _is_plain(location.endpoint) else {})},
        "retry_config": {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_WITHIN),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=1), "base": 2},
        },
    }
    kind, settings = _settings(location, bucket)
    try:
        client = getattr(stores, kind)(bucket, **settings, **options)
    except Exception as error:
        failure = ConfigurationError(f"{location.scheme}://{bucket} cannot be opened: {_first_line(error)}")
    else:
        _never_freed(client)
        return client
    raise failure


def _settings(location: ObjectLocation, bucket: str) -> tuple[str, dict[str, Any]]:
    if location.scheme == "gs":
        return "GCSStore", {}
    if location.scheme == "az":
        return "AzureStore", _given(account_name=location.account, endpoint=location.endpoint)
    settings = _given(region=location.region, endpoint=location.endpoint)
    path_style = location.path_style if location.path_style is not None else location.endpoint is not None or None
    if path_style is not None:
        settings["virtual_hosted_style_request"] = not path_style
    if path_style is False and location.endpoint is not None:
        parts = urlsplit(location.endpoint)
        settings["endpoint"] = urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))
    if not location.bulk_delete:
        settings["disable_bulk_delete"] = True
    return "S3Store", settings


def _given(**values: str | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _is_plain(endpoint: str | None) -> bool:
    return endpoint is not None and endpoint.startswith("http://")


def _never_freed(client: Any) -> None:
    """Keep a client for ever, in forked children too.

    Freeing it there, at the interpreter's end at the latest, takes locks of threads that were not forked.
    """
    try:
        import ctypes  # noqa: PLC0415 - some builds of Python have none
    except ImportError:
        return
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


_STATUS = re.compile(r"status code: (\d{3})")
# of a whole answer, or of one object among those that a request was to delete
_CODE = re.compile(r"(?:<Code>|\(code: )([\w.-]{1,100})(?:</Code>|\))")
_MENDED_BY_WAITING = {
    "ExpiredToken",
    "RequestTimeout",
    "BadDigest",
    "OperationAborted",
    "SlowDown",
    "TokenRefreshRequired",
}
_REFUSALS = {
    *("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed"),
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "InvalidRegion", "NotImplemented"),
}
_CAUSES = {
    "ConnectionRefused": "the connection is refused",
    "dns error": "the host's name is unknown",
    "TimedOut": "no answer came in time",
    "ConnectionReset": "the connection was broken",
    "IncompleteMessage": "the connection was broken",
}


def translated(error: Exception, what: str) -> TrifleError:
    """Our error for one of obstore's, about `what` (an object's URL).

    The message holds the store's error code and no more of its answer, which can repeat keys and tokens; the cause
    is the driver's error with that text alone.
    """
    text = str(error)
    code = _CODE.search(text)
    status = _STATUS.search(text)
    kind = _kind(type(error).__name__, int(status.group(1)) if status else None, code.group(1) if code else "", text)
    failure = kind(f"{what}: {_explained(text, status, code.group(1) if code else '')}")
    failure.__cause__ = _short(error)
    return failure


def _kind(name: str, status: int | None, code: str, text: str) -> type[TrifleError]:
    if code in _MENDED_BY_WAITING or "169.254." in text:
        return OutOfReach
    if code in _REFUSALS or status in (301, 401, 403) or "incorrectly configured region" in text:
        return Refused
    if name in ("PermissionDeniedError", "UnauthenticatedError"):
        return Refused
    if name == "FileNotFoundError":
        return NotFound
    if name == "InvalidPathError":
        return DamagedArchive
    if name == "ValueError" or status in (400, 405, 411, 413, 414):
        return UsageError
    return OutOfReach


def _explained(text: str, status: re.Match[str] | None, code: str) -> str:
    if "169.254." in text:
        return "no credentials were found, neither in the environment nor of the instance"
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return f"the bucket is not there ({code})"
    if code == "NotImplemented" or (status and status.group(1) == "501"):
        return "the server does not know this request; for deleting, bulk_delete=false in the URL may help"
    if "incorrectly configured region" in text:
        return "the bucket is in another region; name it, as in ?region=eu-central-1"
    if code == "NoSuchKey" or (status and status.group(1) == "404"):
        return "it is not there"
    if status or code:
        return " ".join(filter(None, ("the store answered", status and status.group(1), code)))
    for sign, meaning in _CAUSES.items():
        if sign in text:
            return f"out of reach: {meaning}"
    return _first_line_of(text)


def _first_line(error: Exception) -> str:
    return _first_line_of(str(error))


def _first_line_of(text: str) -> str:
    status = _STATUS.search(text)
    return (text[: status.end()] if status else text).partition("\n")[0].partition("<")[0][:300]


def _short(error: Exception) -> Exception:
    try:
        return type(error)(_first_line(error))
    except Exception:  # a class of another shape
        return RuntimeError(type(error).__name__)
