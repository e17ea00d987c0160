"""The list of traces: filters as chips, tabs by state, charts, one page of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from trifle_otel.errors import InvalidCursor, UsageError
from trifle_otel.records import ERROR, RUNNING, SUCCESS, WARNING, Page, TraceRecord
from trifle_otel.viewer import searching
from trifle_otel.viewer.charts import Charts, charts
from trifle_otel.viewer.searching import Filters
from trifle_otel.viewer.site import Overview, Site, not_kept, unless_known
from trifle_otel.viewer.templates import page
from trifle_otel.viewer.urls import Urls, urls_of

TABS = (("", "All"), (RUNNING, "Running"), (SUCCESS, "Success"), (WARNING, "Warning"), (ERROR, "Error"))
PERIODS = (("1h", "1 hour"), ("24h", "1 day"), ("7d", "1 week"), ("30d", "30 days"), ("", "any time"))
REFRESH_SECONDS = 5
MOST_TAGS = 8


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter that is set, and where it is not."""

    kind: str
    text: str
    without: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A tab, a period, a key or a tag: where it leads, and how many traces it has."""

    text: str
    url: str
    current: bool = False
    amount: int | None = None
    state: str = ""


def list_page(site: Site, request: Request) -> Response:
    """The page."""
    filters = Filters.of(request.query_params)
    urls = urls_of(request.scope)
    added = searching.understood(site.archive, request.query_params.get("add", ""), filters)
    if isinstance(added, TraceRecord):
        return RedirectResponse(urls.trace(added.reference), 303)
    if added is not None:
        return RedirectResponse(urls.list(added.params()), 303)
    cursor = request.query_params.get("cursor") or None
    try:
        found = searching.search(site.archive, filters, cursor=cursor)
        overview = site.overview(filters)
    except InvalidCursor:
        return _page(request, filters, told="This page's cursor is none: begin at the newest.", status=400)
    except UsageError as error:
        return _page(request, filters, told=f"{error}", status=400)
    silent = [site.silent(record) for record in found.records]
    tag = site.etag(request, filters, found, overview, silent)
    return unless_known(request, tag, lambda: _found_page(site, request, filters, found, overview))


def _found_page(site: Site, request: Request, filters: Filters, found: Page, overview: Overview) -> Response:
    made = _page(
        request,
        filters,
        silent=site.silent,
        found=found,
        overview=overview,
        nothing="" if found.records else _nothing(site, filters, bool(request.query_params.get("cursor"))),
        refresh=any(not record.finished for record in found.records),
    )
    return made if found.records else not_kept(made)


def _page(
    request: Request,
    filters: Filters,
    *,
    silent: Callable[[TraceRecord], str] | None = None,
    found: Page | None = None,
    overview: Overview | None = None,
    told: str = "",
    nothing: str = "",
    refresh: bool = False,
    status: int = 200,
) -> Response:
    urls = urls_of(request.scope)
    drawn = charts(overview.tally, overview.by_tag) if overview else None
    values = {
        "filters": filters,
        "told": told,
        "nothing": nothing,
        "chips": _chips(urls, filters),
        "tabs": _tabs(urls, filters, drawn),
        "periods": _periods(urls, filters),
        "charts": drawn,
        "narrowed": lambda line: urls.list({**filters.params(), "since": _iso(line.start), "until": _iso(line.end)}),
        "keys": _keys(urls, filters, overview),
        "tags": _tags(urls, filters, overview),
        "looked_at": overview.looked_at if overview else 0,
        "records": found.records if found else [],
        "silent": silent,
        "most_tags": MOST_TAGS,
        "service": _service,
        "tag_url": lambda tag: urls.list({"tag": tag}),
        "next": urls.list({**filters.params(), "cursor": found.cursor}) if found and found.cursor else None,
        "first": urls.list(filters.params()) if request.query_params.get("cursor") else None,
        "refresh": REFRESH_SECONDS if refresh else None,
    }
    return page(request.scope, "list.html", values, status=status)


def _chips(urls: Urls, filters: Filters) -> list[Chip]:
    found = []
    for path in filters.paths:
        rest = tuple(each for each in filters.paths if each != path)
        found.append(Chip("path", path, urls.list(replace(filters, paths=rest).params())))
    for tag in filters.tags:
        rest = tuple(each for each in filters.tags if each != tag)
        found.append(Chip("tag", tag, urls.list(replace(filters, tags=rest).params())))
    others = (
        ("trace id", filters.trace_id, replace(filters, trace_id="")),
        ("since", filters.since, replace(filters, since="")),
        ("until", filters.until, replace(filters, until="")),
        ("at least", filters.min_duration, replace(filters, min_duration="")),
    )
    return found + [Chip(kind, text, urls.list(without.params())) for kind, text, without in others if text]


def _tabs(urls: Urls, filters: Filters, drawn: Charts | None) -> list[Choice]:
    amounts: dict[str, int] = {"": drawn.traces, **drawn.states} if drawn else {}
    return [
        Choice(
            name,
            urls.list(replace(filters, state=state).params()),
            filters.state == state,
            amounts.get(state, 0),
            state,
        )
        for state, name in TABS
    ]


def _periods(urls: Urls, filters: Filters) -> list[Choice]:
    return [
        Choice(
            name,
            urls.list(replace(filters, since=since, until="").params()),
            filters.since == since and not filters.until,
        )
        for since, name in PERIODS
    ]


def _keys(urls: Urls, filters: Filters, overview: Overview | None) -> list[Choice]:
    return [
        Choice(key, urls.list(replace(filters, paths=(key,)).params()), key in filters.paths, amount)
        for key, amount in (overview.keys if overview else ())
    ]


def _tags(urls: Urls, filters: Filters, overview: Overview | None) -> list[Choice]:
    return [
        Choice(tag, urls.list(replace(filters, tags=(*filters.tags, tag)).params()), tag in filters.tags, amount)
        for tag, amount in (overview.tags if overview else ())
    ]


def _nothing(site: Site, filters: Filters, later_page: bool) -> str:
    """Why there is nothing: no trace matches, or the index knows of none though the store holds some.

    On a later page there was something before it, unless that was thrown away.
    """
    if later_page:
        return "There are no older ones."
    if filters.any or searching.search(site.archive, Filters(), limit=1).records:
        return "No trace matches."
    if next(iter(site.archive.store.folders()), None) is not None:
        return "The index is empty, yet there are traces: trifle-otel reindex fills it from them."
    return "No traces are here yet."


def _service(record: TraceRecord) -> str:
    service = record.context.get("service")
    return service if isinstance(service, str) else ""


def _iso(moment: object) -> str:
    return str(moment).replace(" ", "T").replace("+00:00", "Z")
