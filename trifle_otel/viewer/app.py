"""The viewer as an ASGI application: which URL is which page, and what is said where one cannot be shown."""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import Callable
from functools import partial

try:
    import jinja2  # noqa: F401 - whether they are there
    import starlette  # noqa: F401
except ImportError as error:
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(
        f"the viewer needs starlette and jinja2: pip install 'trifle-otel[viewer]' ({error})"
    ) from error

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from trifle_otel.archive import Archive
from trifle_otel.errors import DamagedArchive, NotFound, StoreUnavailable, TrifleError, UsageError
from trifle_otel.viewer.access import Guard
from trifle_otel.viewer.compare_page import compare_page
from trifle_otel.viewer.files import artifact_data, artifact_page, line_page, line_text
from trifle_otel.viewer.list_page import list_page
from trifle_otel.viewer.settings import Settings
from trifle_otel.viewer.site import Site
from trifle_otel.viewer.templates import page
from trifle_otel.viewer.trace_page import replay, trace_page
from trifle_otel.viewer.urls import STATIC, version

logger = logging.getLogger("trifle_otel")

_Page = Callable[[Site, Request], Response]
_STATIC = {path.name for path in STATIC.iterdir()}
_YEAR = "public, max-age=31536000, immutable"


def make_app(archive: Archive, settings: Settings | None = None) -> ASGIApp:
    """The viewer of an archive: to be served, or mounted into another application at whatever path.

    Without settings whoever reaches it may look: then who does is the business of the application around it. The
    archive stays the caller's to close.
    """
    settings = settings or Settings()
    site = Site(archive, settings)

    def route(path: str, made: _Page, methods: tuple[str, ...] = ("GET",)) -> Route:
        return Route(path, partial(made, site), methods=list(methods))

    routes = [
        route("/", list_page),
        route("/compare", compare_page),
        route("/traces/{reference}", trace_page),
        route("/traces/{reference}/lines/{number:int}", line_page),
        route("/traces/{reference}/lines/{number:int}/text", line_text),
        route("/traces/{reference}/artifacts/{name:path}", artifact_page),
        route("/traces/{reference}/data/{name:path}", artifact_data),
        route("/static/{name}", _static),
    ]
    if settings.replay is not None:
        routes.append(route("/traces/{reference}/replay", replay, ("POST",)))
    pages = Starlette(
        routes=routes, exception_handlers={TrifleError: _failed, HTTPException: _refused, Exception: _broken}
    )
    return Guard(pages, settings)


def _static(_: Site, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404)
    kept = _YEAR if request.query_params.get("v") == version(name) else "no-cache"
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FileResponse(STATIC / name, media_type=kind, headers={"cache-control": kept})


def _failed(request: Request, error: Exception) -> Response:
    """What is said about an error that the library knows."""
    if isinstance(error, NotFound):
        return _message(request, 404, "Not there", str(error))
    if isinstance(error, UsageError):
        return _message(request, 400, "That cannot be", str(error))
    if isinstance(error, StoreUnavailable):
        return _message(request, 503, "Out of reach", str(error), {"retry-after": "5"})
    logger.warning("the viewer cannot show a page: %s", error)
    return _message(request, 500, "Damaged" if isinstance(error, DamagedArchive) else "That failed", str(error))


def _refused(request: Request, error: Exception) -> Response:
    """What is said where no page has that URL."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    told = "There is no such page." if status == 404 else "That is not how pages are asked for."
    return _message(request, status, "Not there", told)


def _broken(request: Request, error: Exception) -> Response:
    """What is said about an error of ours; the server logs it."""
    return _message(request, 500, "That failed", f"The viewer made a mistake: {type(error).__name__}.")


def _message(request: Request, status: int, title: str, told: str, headers: dict[str, str] | None = None) -> Response:
    values = {"title": title, "told": told[:1].upper() + told[1:], "back": None}
    return page(request.scope, "message.html", values, status=status, headers=headers)
