"""The demonstration job written with what people use else: its lines and results on disk, traces a second.

Each contender keeps all lines of the job (some 316 entries a trace), what each step returned, the nesting and the time
of each, in files; that nothing is missing is counted on disk after each run. Each runs in fresh processes, in turn
with the others, until the last byte is written. Artifacts, which few traces have, are left to ours. What else each
side does differs: ours also screens secrets, compresses, indexes, and is durable at the end of each trace. Spans of
the bare SDK, of logfire and of ours go into the SDK's exporter of OTLP JSON files through a `BatchSpanProcessor` whose
queue holds them all, since the usual one of 2,048 loses most of what a busy job makes.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import RATE, Row
from benchmarks.peer_jobs import (
    LINE,
    RESULT,
    SPANS_FILE,
    Value,
    archive,
    both,
    use_eliot,
    use_logfire,
    use_logging,
    use_otel,
    use_structlog,
)
from benchmarks.traces import Finish, Run, floor, in_a_process, measure

MEMORY = Path("/dev/shm")


class Kept(NamedTuple):
    """What a contender left on disk."""

    lines: int
    results: int


class Contender(NamedTuple):
    """What the table calls it, which package it needs, what sets it up, and what counts what it left on disk."""

    label: str
    package: str
    prepare: Callable[[Path], Finish]
    kept: Callable[[Path], Kept]


def _in_the_floor(folder: Path) -> Kept:
    return _in_parts(folder.glob("finished/*/data_*.json.gz"))


def _in_the_archive(folder: Path) -> Kept:
    return _in_parts((folder / "archive").glob("**/data_*.json.gz"))


def _in_parts(parts: Iterator[Path]) -> Kept:
    """Lines in the Trifle format: no block's opening or closing, nor what announces the trace, nor artifacts."""
    lines = results = 0
    for part in parts:
        for entry in json.loads(gzip.decompress(part.read_bytes())):
            if entry["type"] == "raw":
                results += 1
            elif entry["type"] != "media" and not entry["message"].endswith((" ↴", " ↵")):
                lines += not entry["message"].startswith("Tracer has been initialized for ")
    return Kept(lines, results)


def _in_the_log(folder: Path) -> Kept:
    with open(folder / "job.log", encoding="utf-8") as file:
        kinds = [line.split(" ", 6)[5] for line in file]
    return Kept(kinds.count(LINE), kinds.count(RESULT))


def _in_structlog(folder: Path) -> Kept:
    kinds = [found["kind"] for found in _json_lines(folder / "job.jsonl")]
    return Kept(kinds.count(LINE), kinds.count(RESULT))


def _in_eliot(folder: Path) -> Kept:
    found = list(_json_lines(folder / "job.jsonl"))
    lines = sum(message.get("message_type") == LINE for message in found)
    return Kept(lines, sum(RESULT in message for message in found))


def _in_spans(folder: Path) -> Kept:
    names = [event["name"] for span in _spans(folder) for event in span.get("events", ())]
    return Kept(names.count(LINE), names.count(RESULT))


def _in_logfire(folder: Path) -> Kept:
    lines = results = 0
    for span in _spans(folder):
        lines += span["name"] == LINE
        results += any(attribute["key"] == RESULT for attribute in span.get("attributes", ()))
    return Kept(lines, results)


def _in_both(folder: Path) -> Kept:
    """Of ours both sides have to be complete."""
    names = [event["name"] for span in _spans(folder) for event in span.get("events", ())]
    on_spans = Kept(names.count("trifle.text"), names.count("trifle.result"))
    archived = _in_the_archive(folder)
    announced = sum("trifle.key" in str(span.get("attributes")) for span in _spans(folder))
    if on_spans != (archived.lines + announced, archived.results):
        raise RuntimeError(f"the spans have {on_spans}, the archive {archived} of {announced} traces")
    return archived


def _spans(folder: Path) -> Iterator[dict[str, Value]]:
    for request in _json_lines(folder / SPANS_FILE):
        for resource in request["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]


def _json_lines(path: Path) -> Iterator[dict[str, Value]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


CONTENDERS = {
    "archive": Contender("ours, the archive alone", "trifle_otel", archive, _in_the_archive),
    "both": Contender("ours, archive and spans", "opentelemetry.exporter.otlp.json", both, _in_both),
    "floor": Contender("bare prototype", "orjson", floor, _in_the_floor),
    "logging": Contender("`logging` into a file", "logging", use_logging, _in_the_log),
    "structlog": Contender("structlog, JSON into a file", "structlog", use_structlog, _in_structlog),
    "eliot": Contender("eliot into a file", "eliot", use_eliot, _in_eliot),
    "otel": Contender("the bare SDK, OTLP JSON file", "opentelemetry.exporter.otlp.json", use_otel, _in_spans),
    "logfire": Contender("logfire, OTLP JSON file", "logfire", use_logfire, _in_logfire),
}
MOST = {
    "archive": {"floor": 2.0, "logging": 1.0, "structlog": 1.0, "eliot": 1.0, "otel": 1.0, "logfire": 1.0},
    "both": {"otel": 1 / 0.75, "logfire": 1.0},
}
"""How many times as many traces a second a peer may make, of each of ours."""


def rows(folder: Path, rounds: int, traces: int) -> Iterator[Row]:
    """All figures of this module: in memory, and in `folder` on disk."""
    with ExitStack() as stack:
        places = {"on disk": folder}
        if os.access(MEMORY, os.W_OK):
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="trifle-benchmarks-", dir=MEMORY))
            places = {"in memory": Path(made), **places}
        for where, place in places.items():
            runs = [_all_once(place, number, traces) for number in range(rounds)]
            yield from _rates(where, runs)
            if where == next(iter(places)):
                yield from _processor_times(runs)


def _all_once(folder: Path, number: int, traces: int) -> dict[str, Run]:
    """Each contender that is installed once; the order turns from round to round."""
    names = [name for name, peer in CONTENDERS.items() if _is_there(peer, number)]
    names = names[number % len(names) :] + names[: number % len(names)]
    runs, kept = {}, {}
    for name in names:
        place = folder / f"{name}-{number}"
        runs[name] = in_a_process(name, place, traces, "benchmarks.peers")
        kept[name] = CONTENDERS[name].kept(place)
    if len(set(kept.values())) != 1:
        raise RuntimeError(f"not all have kept the same: {kept}")
    print(f"  each has kept {kept['archive']}", file=sys.stderr)
    return runs


def _is_there(peer: Contender, number: int) -> bool:
    try:
        there = importlib.util.find_spec(peer.package) is not None
    except ModuleNotFoundError:
        there = False
    if not there and not number:
        print(f"  {peer.package} is not installed: {peer.label} is left out", file=sys.stderr)
    return there


def _rates(where: str, runs: list[dict[str, Run]]) -> Iterator[Row]:
    for ours, peers in MOST.items():
        for peer, most in peers.items():
            if not {ours, peer} <= runs[0].keys():
                continue
            first, second = (statistics.median(run[name].rate for run in runs) for name in (ours, peer))
            ratio = statistics.median(run[peer].rate / run[ours].rate for run in runs)
            what = f"whole job {where}, {CONTENDERS[ours].label}"
            yield Row(what, first, RATE, CONTENDERS[peer].label, second, ratio, most)


def _processor_times(runs: list[dict[str, Run]]) -> Iterator[Row]:
    for ours, peers in MOST.items():
        for peer in peers:
            if not {ours, peer} <= runs[0].keys():
                continue
            first, second = (statistics.median(run[name].cpu for run in runs) for name in (ours, peer))
            ratio = statistics.median(run[ours].cpu / run[peer].cpu for run in runs)
            what = f"whole job, {CONTENDERS[ours].label}, CPU"
            yield Row(what, first, "µs a trace", CONTENDERS[peer].label, second, ratio)


def main() -> None:
    """One run in this process, as JSON: what `rows` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=int, default=600)
    given = parser.parse_args()
    run = measure(given.contender, CONTENDERS[given.contender].prepare, given.folder, given.traces)
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
