"""One trace: what is known about it, and one page of its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from trifle_otel import value_html, value_trees
from trifle_otel.arrangement import Opened
from trifle_otel.errors import TrifleError
from trifle_otel.records import ERROR, TraceRecord
from trifle_otel.references import segments
from trifle_otel.strict_json import to_json
from trifle_otel.viewer import lines, neighbours
from trifle_otel.viewer.finding import Matches
from trifle_otel.viewer.site import Site, not_kept, unless_known
from trifle_otel.viewer.templates import page, short
from trifle_otel.viewer.urls import Urls, urls_of
from trifle_otel.wording import call, duration, visible

ALL, OVERVIEW, PROBLEMS, MATCHES = "all", "overview", "problems", "matches"
MOST_FIND = 200
MOST_TROUBLES = 5
REFRESH_SECONDS = 2
MOST_RELATED = 10
MOST_ARTIFACTS = 50
MOST_TAGS = 100
MOST_ARGUMENTS = 2_000
MOST_VALUE = 50_000
"""Characters of the arguments in the title, and of a value that a record holds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a trace is asked for: a view, a line, a text to find, whether blocks come folded."""

    view: str
    line: int | None
    find: str
    folded: bool

    @classmethod
    def of(cls, request: Request) -> Asked:
        """What a request asks for; what makes no sense is left out."""
        params = request.query_params
        find = params.get("q", "").strip()[:MOST_FIND]
        view = params.get("view", ALL)
        if view not in (OVERVIEW, PROBLEMS) and not (view == MATCHES and find):
            view = ALL
        return cls(view, _line(params.get("line", "")), find, params.get("fold") == "1")

    def params(self, **changes: str | int | None) -> dict[str, str | int | None]:
        """The same as a query string has it, with changes."""
        own: dict[str, str | int | None] = {
            "view": None if self.view == ALL else self.view,
            "q": self.find or None,
            "fold": 1 if self.folded else None,
        }
        return {**own, **changes}


def _line(text: str) -> int | None:
    if text == "end":
        return 10**12
    return max(int(text), 1) if text.isascii() and text.isdigit() and len(text) <= 12 else None


def trace_page(site: Site, request: Request) -> Response:
    """The page."""
    record = site.trace(request)
    asked = Asked.of(request)
    around = Around.of(site, record)
    tag = site.etag(request, record, site.silent(record), around.states)
    return unless_known(request, tag, lambda: _page(site, request, record, around, asked))


@dataclass(frozen=True, slots=True)
class Around:
    """Other traces that a trace's page leads to.

    Attributes:
        others: those of the same trace id, the newest, as many as are shown.
        more_others: whether there are more of them.
        before: the execution of the same key before it.
        after: the one after it.
        last_success: what a failed one is best compared with, where that is not the one before.
    """

    others: list[TraceRecord]
    more_others: bool
    before: TraceRecord | None
    after: TraceRecord | None
    last_success: TraceRecord | None

    @classmethod
    def of(cls, site: Site, record: TraceRecord) -> Around:
        """Looks for them."""
        most = MOST_RELATED + 2  # the trace itself is one of them, and one more than are shown
        same_id = site.archive.search(trace_id=record.trace_id, limit=most) if record.trace_id else None
        others = [other for other in same_id.records if other.reference != record.reference] if same_id else []
        before = neighbours.before(site.archive, record)
        success = None
        if record.state == ERROR and before is not None and before.state == ERROR:
            success = neighbours.before(site.archive, record, state="success")
        more = len(others) > MOST_RELATED
        return cls(others[:MOST_RELATED], more, before, neighbours.after(site.archive, record), success)

    @property
    def states(self) -> list[object]:
        """What is shown of them that changes."""
        each = (*self.others, None, self.before, self.after, self.last_success)
        return [self.more_others, *(None if other is None else (other.reference, other.state) for other in each)]


def _page(site: Site, request: Request, record: TraceRecord, around: Around, asked: Asked) -> Response:
    trace = site.shelf.open(record)
    urls = urls_of(request.scope)
    matches = site.finder.find(trace, asked.find) if asked.find else Matches()
    if matches.places and asked.line is None and asked.view == ALL:
        return RedirectResponse(urls.trace(record.reference, asked.params(), line=matches.places[0] + 1), 303)
    places = _places(trace, asked, matches.places)
    shown = lines.window(trace, places, line=asked.line, find=asked.find, excerpts=matches.excerpts)
    values = {
        "record": record,
        "trace": trace,
        "asked": asked,
        "silent": site.silent(record),
        "refresh": None if record.finished else REFRESH_SECONDS,
        "may_replay": site.settings.replay is not None and record.finished,
        **_about(site, urls, record, trace),
        "others": around.others,
        "more_others": urls.list({"trace_id": record.trace_id}) if around.more_others else None,
        "before": around.before,
        "after": around.after,
        "last_success": around.last_success,
        **_navigation(urls, record, trace, asked, shown, matches),
        "next_problem": _next_problem(urls, record, trace, asked, places[shown.end :]),
        "window": shown,
    }
    made = page(request.scope, "trace.html", values)
    return not_kept(made) if trace.entries.damaged or matches.troubles else made


def _places(trace: Opened, asked: Asked, matches: Sequence[int]) -> Sequence[int]:
    if asked.view == MATCHES:
        return matches
    return {ALL: trace.order, OVERVIEW: trace.overview, PROBLEMS: trace.problems}[asked.view]


def _about(site: Site, urls: Urls, record: TraceRecord, trace: Opened) -> dict[str, object]:
    """What is around the lines."""
    names = segments(record.key)
    crumbs = [(name.rpartition("/")[2], urls.list({"path": name})) for name in names]
    return {
        "title": short(call(record)),
        "crumbs": crumbs,
        "arguments": short(call(record).removeprefix(visible(record.key)), MOST_ARGUMENTS),
        "took": duration(trace.duration_ns) if trace.duration_ns else "< 1 ms",
        "tags": [(tag, urls.list({"tag": tag})) for tag in record.tags[:MOST_TAGS]],
        "more_tags": max(len(record.tags) - MOST_TAGS, 0),
        "meta": _value(record.meta),
        "context": [(name, _value(value)) for name, value in record.context.items()],
        "counters": _counters(record),
        "links": [
            (name, _filled(template, record, trace))
            for name, template in site.settings.links.items()
            if record.trace_id
        ],
        "artifacts": [(place + 1, trace.entries[place]) for place in trace.artifacts[:MOST_ARTIFACTS]],
        "more_artifacts": max(len(trace.artifacts) - MOST_ARTIFACTS, 0),
    }


def _navigation(
    urls: Urls, record: TraceRecord, trace: Opened, asked: Asked, shown: lines.Window, matches: Matches
) -> dict[str, object]:
    """Where one can go from here within the trace."""
    reference = record.reference
    amounts = {ALL: len(trace.entries), OVERVIEW: None, PROBLEMS: len(trace.problems)}
    names = {ALL: "All lines", OVERVIEW: "Overview", PROBLEMS: "Errors and warnings"}
    views = [
        (
            name,
            urls.trace(reference, asked.params(view=None if view == ALL else view, q=None)),
            asked.view == view,
            amounts[view],
        )
        for view, name in names.items()
    ]
    first = trace.first_error
    return {
        "views": views,
        "first_error": None if first is None else urls.trace(reference, asked.params(view=None), line=first + 1),
        "matches": _matches(urls, reference, asked, shown, matches),
        "pages": _pages(urls, reference, asked, shown),
        "fold_url": urls.trace(reference, asked.params(fold=None if asked.folded else 1, line=asked.line)),
        "line_url": lambda number: urls.trace(reference, line=number),
        "whole_url": lambda number: urls.line(reference, number, {"q": asked.find}),
    }


def _next_problem(urls: Urls, record: TraceRecord, trace: Opened, asked: Asked, after: Sequence[int]) -> str | None:
    """Where the first error or warning is of the lines after those that are shown."""
    problems = set(trace.problems)
    place = next((place for place in after if place in problems), None) if problems else None
    return None if place is None else urls.trace(record.reference, asked.params(), line=place + 1)


@dataclass(frozen=True, slots=True)
class Found:
    """What was looked for: how often it is there, where else (on other pages too), and what was not looked into."""

    amount: int
    here: int
    before: str | None
    after: str | None
    before_page: str | None
    after_page: str | None
    only: str
    everything: str
    clear: str
    omitted: int
    troubles: list[str]


def _matches(urls: Urls, reference: str, asked: Asked, shown: lines.Window, matches: Matches) -> Found | None:
    if not asked.find:
        return None
    numbers = [place + 1 for place in matches.places]
    here = _here(numbers, asked.line)
    first, last = _on_page(numbers, shown)

    def at(place: int) -> str | None:
        if not 0 <= place < len(numbers):
            return None
        return urls.trace(reference, asked.params(view=None), line=numbers[place])

    return Found(
        len(numbers),
        here + 1,
        at(here - 1),
        at(here + 1),
        at(first - 1),
        at(last + 1),
        urls.trace(reference, asked.params(view=MATCHES)),
        urls.trace(reference, asked.params(view=None)),
        urls.trace(reference, asked.params(view=None, q=None, line=asked.line)),
        matches.omitted,
        matches.troubles[:MOST_TROUBLES],
    )


def _on_page(numbers: Sequence[int], shown: lines.Window) -> tuple[int, int]:
    """Which of the lines that were found are on the page that is shown: the first and the last of them.

    Where none is, what lies before and after the page is before and after these two all the same.
    """
    on_page = {row.number for row in shown.rows if row.kind != "around"}
    places = [place for place, number in enumerate(numbers) if number in on_page]
    if places:
        return places[0], places[-1]
    before = sum(number < min(on_page, default=0) for number in numbers)
    return before, before - 1


def _here(numbers: Sequence[int], line: int | None) -> int:
    """Which of the lines that were found a line is, or the one next to it; -1 where none is asked for."""
    if line is None:
        return -1
    if line in numbers:  # in the order in which they are shown, which need not be that of their numbers
        return numbers.index(line)
    return next((place for place, number in enumerate(numbers) if number >= line), 0)


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages around the one that is shown."""

    number: int
    total: int
    first: str | None
    before: str | None
    after: str | None
    last: str | None


def _pages(urls: Urls, reference: str, asked: Asked, shown: lines.Window) -> Pages | None:
    if len(shown.starts) <= 1:
        return None

    def at(number: int) -> str | None:
        if not 0 <= number < len(shown.starts) or number == shown.page:
            return None
        return urls.trace(reference, asked.params(line=shown.starts[number]))

    last = len(shown.starts) - 1
    return Pages(shown.page + 1, last + 1, at(0), at(shown.page - 1), at(shown.page + 1), at(last))


def _counters(record: TraceRecord) -> list[tuple[str, str]]:
    found = []
    for name in ("states", "types"):
        counted = record.counters.get(name)
        if isinstance(counted, dict):
            said = ", ".join(
                f"{amount:,} {kind}" for kind, amount in counted.items() if isinstance(amount, int) and amount
            )
            found.append((name, said))
    depth = record.counters.get("max_level")
    if isinstance(depth, int):
        found.append(("levels", f"{depth + 1}"))
    return [(name, said) for name, said in found if said]


def _value(value: object) -> Markup | str:
    """A value out of a record, as a tree where it is large."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else to_json(value).decode()
    if isinstance(value, str) or len(text) > MOST_VALUE:
        return short(text, MOST_VALUE)
    parsed = value_trees.parse(text)
    return text if parsed is None else value_html.html(parsed)


def _filled(template: str, record: TraceRecord, trace: Opened) -> str:
    start = datetime.fromtimestamp(0, timezone.utc)
    begin = (record.first_at - start) // timedelta(milliseconds=1)
    values = {
        "trace_id": record.trace_id or "",
        "span_id": record.span_id or "",
        "reference": record.reference,
        "key": record.key,
        "start_ms": str(begin),
        "end_ms": str(begin + trace.duration_ns // 1_000_000 + 1),
    }
    return template.format(**{name: quote(value, safe="") for name, value in values.items()})


def replay(site: Site, request: Request) -> Response:
    """Send the trace once more, and say what came of it."""
    record = site.trace(request)
    send = site.settings.replay
    try:
        told = send(record) if send else "This viewer may not do that."
    except TrifleError as error:
        told = f"It could not be sent: {error}"
    values = {"title": "Sent once more", "told": told, "back": urls_of(request.scope).trace(record.reference)}
    return page(request.scope, "message.html", values)
