"""Which spans of which requests are still wanted, and requests that are mostly done."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.proto")

from receiving import SECOND, START, body_of, span_of

from trifle_otel.otlp.spans import PROTOBUF, parse_request, spans_of
from trifle_otel.receiver import claims as request_claims
from trifle_otel.receiver.claims import Claims
from trifle_otel.receiver.journal import Entry, Journal
from trifle_otel.span_data import SpanData


def data(trace: int, number: int) -> SpanData:
    """A span with these ids."""
    return SpanData(f"{trace:032x}", f"{number:016x}", None, "a", START, START + SECOND)


def entry_of(number: int) -> Entry:
    """A request that is nowhere."""
    return Entry(number, "", 0)


def test_a_span_s_places_are_told_when_it_is_archived() -> None:
    """By request, with its number there; once."""
    claims, first, second = Claims(), entry_of(1), entry_of(2)
    assert not claims
    claims.add(data(1, 1), first, 0)
    claims.add(data(1, 2), second, 0)
    claims.add(data(2, 1), first, 1)
    assert claims.release([data(1, 1), data(1, 2)]) == {first: [0], second: [0]}
    assert claims.release([data(1, 1)]) == {}
    assert claims.release([data(2, 1), data(9, 9)]) == {first: [1]}
    assert not claims


def test_a_span_that_came_several_times_is_done_in_all_places() -> None:
    """Once it is archived; what the assembler drops is done alone, the last first."""
    claims, first, second, third = Claims(), entry_of(1), entry_of(2), entry_of(3)
    for entry in (first, second, third):
        claims.add(data(1, 1), entry, 5)
    assert claims.drop([data(1, 1)]) == {third: [5]}
    assert claims.release([data(1, 1)]) == {first: [5], second: [5]}
    claims.add(data(1, 1), second, 7)
    assert claims.drop([data(1, 1)]) == {second: [7]}
    assert not claims


def kept(journal: Journal, claims: Claims, traces: range) -> Entry:
    """A request with one span of each of these traces, all of them claimed."""
    entry = journal.write(body_of([span_of(trace, 1) for trace in traces]))
    entry.left = entry.spans = len(traces)
    for number, trace in enumerate(traces):
        claims.add(data(trace, 1), entry, number)
    return entry


def left_in(root: Path) -> list[list[int]]:
    """Numbers of the traces in each request."""
    files = sorted(root.glob("*/*.pb"))
    return [[int(span.trace_id, 16) for span in spans_of(parse_request(path.read_bytes(), PROTOBUF))] for path in files]


def test_what_is_left_of_requests_that_are_mostly_done_becomes_one(tmp_path: Path) -> None:
    """With its resources; the others stay, and what is done afterwards is done in the new one."""
    journal, claims = Journal(tmp_path), Claims()
    journal.open()
    for first in (10, 20, 30):
        kept(journal, claims, range(first, first + 10))
    journal.settle(claims.release([data(trace, 1) for trace in (*range(11, 19), *range(20, 28), 30)]))
    assert [len(traces) for traces in left_in(tmp_path)] == [10, 10, 10]
    claims.compact(journal)
    assert left_in(tmp_path) == [list(range(30, 40)), [10, 19, 28, 29]]
    assert journal.size == sum(path.stat().st_size for path in tmp_path.glob("*/*.pb"))
    newest = max(tmp_path.glob("*/*.pb"))
    assert {span.resource["service.name"] for span in spans_of(parse_request(newest.read_bytes(), PROTOBUF))} == {
        "shop"
    }

    journal.settle(claims.release([data(10, 1)]))
    journal.close()
    following = Journal(tmp_path)
    following.open()
    assert [entry.done for entry in following.adopt()] == [{0}, {0}]
    following.close()


def test_requests_are_not_made_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where much is left, it becomes several."""
    monkeypatch.setattr(request_claims, "COMPACTED", 100)
    journal, claims = Journal(tmp_path), Claims()
    journal.open()
    for first in range(0, 200, 10):
        kept(journal, claims, range(first + 1, first + 11))
    journal.settle(claims.release([data(trace, 1) for trace in range(1, 201) if trace % 10]))
    claims.compact(journal)
    assert sorted(trace for traces in left_in(tmp_path) for trace in traces) == list(range(10, 201, 10))
    assert 2 < len(left_in(tmp_path)) < 20
    journal.close()


def test_what_is_not_known_to_be_done_is_kept(tmp_path: Path) -> None:
    """A span that was released and not settled keeps its request as it is: it may have to be archived again."""
    journal, claims = Journal(tmp_path), Claims()
    journal.open()
    kept(journal, claims, range(1, 11))
    done = claims.release([data(trace, 1) for trace in range(1, 10)])
    claims.compact(journal)
    assert left_in(tmp_path) == [list(range(1, 11))]
    journal.settle(done)
    claims.compact(journal)
    assert left_in(tmp_path) == [[10]]
    journal.close()
