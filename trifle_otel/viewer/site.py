"""What all pages share: the archive, the settings, traces and tallies that were read just now."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

from starlette.requests import Request
from starlette.responses import Response

from trifle_otel.archive import Archive
from trifle_otel.heartbeat import told
from trifle_otel.records import TraceRecord
from trifle_otel.tallies import Tally
from trifle_otel.viewer import searching
from trifle_otel.viewer.finding import Finder
from trifle_otel.viewer.searching import Filters
from trifle_otel.viewer.settings import Settings
from trifle_otel.viewer.shelf import Shelf

TALLY_SECONDS = 15.0
MOST_TALLIES = 64
MOST_TAG_CURVES = 6
LOOKED_AT = 300
"""How many of the newest traces are looked at for their keys and tags."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A selection as a whole.

    Attributes:
        tally: what there is over time.
        by_tag: the same for each tag that is looked for, where there are several.
        keys: the most frequent keys of the newest traces.
        tags: their most frequent tags.
        looked_at: how many traces that is.
    """

    tally: Tally
    by_tag: dict[str, Tally]
    keys: list[tuple[str, int]]
    tags: list[tuple[str, int]]
    looked_at: int


class Site:
    """Given to every page.

    Args:
        archive: what is shown.
        settings: how.
        clock: seconds that never go back.
    """

    def __init__(self, archive: Archive, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.archive = archive
        self.settings = settings
        self.shelf = Shelf(archive)
        self.finder = Finder(archive)
        self._clock = clock
        self._own = secrets.token_hex(8)
        self._lock = threading.Lock()  # guards _overviews
        self._overviews: OrderedDict[Filters, tuple[float, Overview]] = OrderedDict()

    def overview(self, filters: Filters) -> Overview:
        """A selection as a whole, of any state; some seconds old at most."""
        filters = replace(filters, state="")
        now = self._clock()
        with self._lock:
            kept = self._overviews.get(filters)
        if kept is not None and now - kept[0] < TALLY_SECONDS:
            return kept[1]
        made = self._made(filters)
        with self._lock:
            self._overviews[filters] = (now, made)
            self._overviews.move_to_end(filters)
            while len(self._overviews) > MOST_TALLIES:
                self._overviews.popitem(last=False)
        return made

    def _made(self, filters: Filters) -> Overview:
        tags = filters.tags if len(filters.tags) > 1 and not filters.every_tag else ()
        newest = searching.search(self.archive, filters, limit=LOOKED_AT).records
        return Overview(
            searching.tally(self.archive, filters),
            {tag: searching.tally(self.archive, replace(filters, tags=(tag,))) for tag in tags[:MOST_TAG_CURVES]},
            _most(record.key for record in newest),
            _most(tag for record in newest for tag in record.tags),
            len(newest),
        )

    def silent(self, record: TraceRecord) -> str:
        """How long a running trace has not been heard of, in words; empty where there is nothing to say."""
        return told(record, self.settings.bump_every)

    def etag(self, request: Request, *shown: object) -> str:
        """What changes whenever a page would: `shown` is all that it shows which changes by itself.

        Settings, templates and the release are a process's own, and so is this.
        """
        parts = (self._own, request.url.path, request.url.query, shown)
        return f'W/"{blake2b(repr(parts).encode(errors="backslashreplace"), digest_size=12).hexdigest()}"'

    def trace(self, request: Request) -> TraceRecord:
        """The trace that a request names. Raises `NotFound`."""
        return self.archive.find(request.path_params["reference"])


def _most(values: Iterable[str]) -> list[tuple[str, int]]:
    counted = Counter(values)
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:10]


def unless_known(request: Request, tag: str, make: Callable[[], Response]) -> Response:
    """A page, or that the one which the browser has is still right."""
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": tag})
    response = make()
    if "cache-control" not in response.headers:
        response.headers["etag"] = tag
    return response


def not_kept(response: Response) -> Response:
    """A page that may soon be another one, though the index does not say so: what could not be read is there, say."""
    response.headers["cache-control"] = "no-store"
    return response
