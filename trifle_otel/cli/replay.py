"""`replay`: archived traces, sent to an OTLP endpoint, for Jaeger or Tempo to show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from trifle_otel import configuration
from trifle_otel.archive import Archive
from trifle_otel.cli.finding import resolve
from trifle_otel.cli.options import Flag, Many, Place, opened
from trifle_otel.cli.terminal import complain, progress
from trifle_otel.cli.visible import count, size, visible
from trifle_otel.errors import TrifleError, UsageError
from trifle_otel.queries import MAX_LIMIT
from trifle_otel.records import RUNNING, Page, TraceRecord

if TYPE_CHECKING:
    from trifle_otel.otlp.endpoint import Endpoint
    from trifle_otel.replaying.replay import Report

MOST_COMPLAINTS = 20


@Parameter(name="*")
@dataclass(frozen=True)
class Search:
    """Which traces, where none are named: those for which all that is given holds, the newest first."""

    segment: str | None = None
    """The key, or the path that it begins with (prices/landed)."""
    tag: Many = None
    """One of these tags; may be repeated."""
    all_tags: Many = None
    """Every one of these tags; may be repeated."""
    state: str | None = None
    """running, success, warning or error."""
    since: str | None = None
    """Began at that time or later: ISO 8601, or how long ago (90s, 15m, 1h, 3d, 2w)."""
    until: str | None = None
    """Began before that time."""
    min_duration: str | None = None
    """Took at least this long: milliseconds, or as in 250ms, 1.5s, 2m."""
    trace_id: str | None = None
    """OpenTelemetry's trace id, 32 hex digits."""
    sampled_out: Flag = False
    """Only those whose spans were sampled out, so that no backend has seen them."""
    limit: int | None = None
    """How many to look at [default: all]."""
    cursor: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Go on after the page of `search` that gave this cursor."""

    def page(self, archive: Archive, cursor: str | None, most: int) -> Page:
        """A page of what is found."""
        return archive.search(
            segment=self.segment,
            any_tags=self.tag or (),
            all_tags=self.all_tags or (),
            state=self.state,
            since=self.since,
            until=self.until,
            min_duration=self.min_duration,
            trace_id=self.trace_id,
            limit=most,
            cursor=cursor,
        )


class Chosen:
    """The traces that a command is about, read as they are needed.

    Attributes:
        total: how many there are; None where that is not known beforehand.
        running: how many a search left out since they still run.
    """

    def __init__(self, archive: Archive, references: tuple[str, ...], search: Search) -> None:
        self.running = 0
        self._archive = archive
        self._search = search
        self._named: list[TraceRecord] | None = None
        if references:
            if search != Search():
                raise UsageError("traces are either named, or searched for")
            self._named = list(
                {found.reference: found for found in (resolve(archive, one) for one in references)}.values()
            )
            self.total: int | None = len(self._named)
            return
        if search == Search():
            raise UsageError("no trace is named; give references, or what to search for (--since 1d, --state error, …)")
        if search.limit is not None and search.limit < 1:
            raise UsageError(f"not a limit: {search.limit}; it is a whole number above 0")
        self._first = search.page(archive, search.cursor, self._most(search.limit))
        found = len(self._first.records)
        known = (self._first.cursor is None or found == search.limit) and not search.sampled_out
        self.total = found if known else None

    def __iter__(self) -> Iterator[TraceRecord]:
        """Their records."""
        if self._named is not None:
            yield from self._named
            return
        for record in self._found():
            if self._search.sampled_out and record.context.get("sampled") is not False:
                continue
            if record.state == RUNNING and self._search.state != RUNNING:
                self.running += 1
            else:
                yield record

    def _found(self) -> Iterator[TraceRecord]:
        left, page = self._search.limit, self._first
        while True:
            yield from page.records
            left = None if left is None else left - len(page.records)
            if page.cursor is None or left == 0:
                return
            page = self._search.page(self._archive, page.cursor, self._most(left))

    @staticmethod
    def _most(left: int | None) -> int:
        return MAX_LIMIT if left is None else min(left, MAX_LIMIT)


def replay(
    *references: str,
    endpoint: str | None = None,
    protocol: str | None = None,
    full: Flag = False,
    rate: float | None = None,
    dry_run: Flag = False,
    search: Search | None = None,
    place: Place | None = None,
) -> int:
    """Send archived traces to an OTLP endpoint with their own ids, times and nesting, for Jaeger or Tempo to show.

    Headers, certificates and compression come from OpenTelemetry's variables, OTEL_EXPORTER_OTLP_HEADERS and so on.

    Parameters
    ----------
    references
        The traces' references, or the beginnings of them; without any, the traces that a search finds.
    endpoint
        As in http://collector:4318, https://host/otlp or collector:4317 [default: OTEL_EXPORTER_OTLP_ENDPOINT, else
        http://localhost:4318].
    protocol
        http/protobuf or grpc [default: what the URL tells].
    full
        Send whole payloads, as far as requests hold them, instead of previews of 2,048 bytes.
    rate
        Spans a second at the most.
    dry_run
        Only say what would be sent.
    """
    from trifle_otel.otlp.endpoint import MOST_BYTES, endpoint_of
    from trifle_otel.otlp.sending import Sender
    from trifle_otel.replaying.replay import Replay

    target = endpoint_of(endpoint, protocol, configuration.otlp_variables())
    with opened(place) as archive, contextlib.ExitStack() as stack:
        chosen = Chosen(archive, references, search or Search())
        sender = None if dry_run else stack.enter_context(Sender(target))
        work = Replay(archive, sender, most_bytes=MOST_BYTES[target.protocol], full=full, rate=rate)
        failure: TrifleError | None = None
        try:
            with progress("Sending traces", chosen.total) as bar:
                work.run(chosen, progress=lambda: bar.advance(bar.task_ids[0]))
        except TrifleError as error:
            failure = error
        return _tell(work.report, chosen, target, failure, dry_run=dry_run)


def _tell(report: Report, chosen: Chosen, target: Endpoint, failure: TrifleError | None, *, dry_run: bool) -> int:
    """Say what became of it. Gives the exit code; raises what ended it before anything was sent."""
    if failure is not None and not report.requests:
        raise failure
    if chosen.running:
        complain(f"left out {count(chosen.running, 'trace')} that still run: name them to send what there is")
    if not report.requests and not report.failed:
        complain("no trace matches")
        return 1
    done = "Would send" if dry_run else "Sent"
    spans, requests = count(report.spans, "span"), count(report.requests, "request")
    where = f"to {visible(target.name)}"
    print(f"{done} {count(report.traces, 'trace')} {where}: {spans} in {requests} ({size(report.size)}).")
    if report.lines_omitted:
        print(f"{count(report.lines_omitted, 'line')} are in the archive alone.")
    if report.shortened:
        print(f"{count(report.shortened, 'value')} had to be shortened so that each span fits into a request.")
    for problem in report.problems[:MOST_COMPLAINTS]:
        complain(problem)
    if len(report.problems) > MOST_COMPLAINTS:
        complain(f"and {len(report.problems) - MOST_COMPLAINTS:,} more")
    if report.failed:
        complain(f"{count(len(report.failed), 'trace')} not sent, or not wholly: {_some(report.failed)}")
    if failure is not None:
        complain(f"stopped before the end: {failure}")
    return 1 if report.failed or failure is not None else 0


def _some(references: dict[str, None]) -> str:
    shown = list(references)[:MOST_COMPLAINTS]
    return ", ".join(shown) + (" …" if len(references) > len(shown) else "")
