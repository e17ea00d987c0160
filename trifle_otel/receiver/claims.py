"""Which request each span came with, until it is archived, and what is left of requests that are mostly done.

A long job's spans come with those of many short ones, so that their requests would be kept for hours for the sake of a
few spans: `compact` writes what is still wanted of such requests into one. On disk they are `journal`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trifle_otel.otlp.spans import PROTOBUF, parse_request
from trifle_otel.receiver.journal import Entry, Journal
from trifle_otel.span_data import SpanData

SPARSE: Final = 4
"""A request is mostly done when no more than one in so many of its spans is wanted."""

COMPACTED: Final = 4 << 20
"""Bytes after which another request is begun."""

Claim = tuple[Entry, int]
"""A span's place: the request that it came with, and its number in it."""

Places = dict[Entry, list[int]]
"""Numbers of spans, by request."""


class Claims:
    """Where the spans came from that are held. For one thread."""

    def __init__(self) -> None:
        self._claims: dict[str, dict[str, Claim]] = {}  # by trace and span id
        self._repeats: dict[tuple[str, str], list[Claim]] = {}  # of spans that are claimed already

    def __bool__(self) -> bool:
        return bool(self._claims)

    def add(self, span: SpanData, entry: Entry, number: int) -> None:
        """A span has come."""
        claim = entry, number
        if self._claims.setdefault(span.trace_id, {}).setdefault(span.span_id, claim) is not claim:
            self._repeats.setdefault((span.trace_id, span.span_id), []).append(claim)

    def release(self, spans: Iterable[SpanData]) -> Places:
        """These are archived: where they came from; of a span that came several times all places."""
        done: Places = {}
        for span in spans:
            claim = self._pop(span)
            if claim is not None:
                done.setdefault(claim[0], []).append(claim[1])
            if self._repeats:
                for entry, number in self._repeats.pop((span.trace_id, span.span_id), ()):
                    done.setdefault(entry, []).append(number)
        return done

    def drop(self, spans: Iterable[SpanData]) -> Places:
        """These came again, and nobody wants them: where they came from. Their claims are the last of their ids."""
        done: Places = {}
        for span in spans:
            key = span.trace_id, span.span_id
            repeats = self._repeats.get(key)
            claim = repeats.pop() if repeats else self._pop(span)
            if repeats == []:
                del self._repeats[key]
            if claim is not None:
                done.setdefault(claim[0], []).append(claim[1])
        return done

    def compact(self, journal: Journal) -> None:
        """Write what is wanted of requests that are mostly done into new ones, and remove those.

        Raises `OSError` and `MalformedRequest` where one cannot be read or written; then the rest stays as it is.
        """
        wanted: dict[Entry, set[int]] = {}
        for entry, number in self._all():
            wanted.setdefault(entry, set()).add(number)
        sparse = {
            entry: numbers
            for entry, numbers in wanted.items()
            # what is neither wanted nor done is not known to be durable: such a request stays as it is
            if len(numbers) == entry.left and len(numbers) * SPARSE <= entry.spans
        }
        while sparse:
            self._merge(journal, sparse)

    def _merge(self, journal: Journal, sparse: dict[Entry, set[int]]) -> None:
        """Make one request of the first of these, which are taken out."""
        request = ExportTraceServiceRequest()
        places: list[Claim] = []
        merged: list[Entry] = []
        size = 0
        while sparse and size < COMPACTED:
            entry, numbers = next(iter(sparse.items()))
            part = _only(parse_request(entry.read(), PROTOBUF), numbers)
            size += part.ByteSize()  # that of the whole, asked for each time, would take a thousand requests seconds
            request.MergeFrom(part)
            places += [(entry, number) for number in sorted(numbers)]
            merged.append(entry)
            del sparse[entry]
        new = journal.write(request.SerializeToString())
        new.left = new.spans = len(places)
        self._move({place: (new, number) for number, place in enumerate(places)})
        for entry in merged:
            journal.remove(entry)

    def _move(self, moved: dict[Claim, Claim]) -> None:
        for of_trace in self._claims.values():
            for span_id, claim in of_trace.items():
                if claim in moved:
                    of_trace[span_id] = moved[claim]
        for repeats in self._repeats.values():
            repeats[:] = [moved.get(claim, claim) for claim in repeats]

    def _all(self) -> Iterator[Claim]:
        for of_trace in self._claims.values():
            yield from of_trace.values()
        for repeats in self._repeats.values():
            yield from repeats

    def _pop(self, span: SpanData) -> Claim | None:
        of_trace = self._claims.get(span.trace_id, {})
        claim = of_trace.pop(span.span_id, None)
        if not of_trace:
            self._claims.pop(span.trace_id, None)
        return claim


def _only(request: ExportTraceServiceRequest, numbers: set[int]) -> ExportTraceServiceRequest:
    """A request of the spans of these numbers, with their resources and scopes."""
    only = ExportTraceServiceRequest()
    number = 0
    for of_resource in request.resource_spans:
        new_resource = None
        for of_scope in of_resource.scope_spans:
            first = number
            number += len(of_scope.spans)
            wanted = [span for at, span in enumerate(of_scope.spans, first) if at in numbers]
            if wanted:
                if new_resource is None:
                    new_resource = only.resource_spans.add(resource=of_resource.resource)
                new_resource.scope_spans.add(scope=of_scope.scope, spans=wanted)
    return only
