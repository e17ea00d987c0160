"""What a reader of the web viewer waits for: the first byte of a trace's page, until it can be used, and the list.

`trifle-otel ui` runs in a process of its own and is asked over HTTP, as by a browser: for a trace that it has not read
before, then for another page of it. Until a page can be used is measured by a real Chromium, where there is one. The
peers are what no viewer can do without: reading the trace's parts, searching for one page of records.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.harness import Row

if TYPE_CHECKING:
    from trifle_otel.archive import Archive

LINES = (300, 10_000, 100_000)
TRACES = 5
"""Traces of each length, twice: each is opened for the first time once, over HTTP or in a browser."""
MOST = {300: 100.0, 10_000: 300.0, 100_000: 1_000.0}
"""Milliseconds until the first byte of a trace that was not read before."""
MOST_AGAIN, MOST_LIST = 200.0, 500.0
LISTS = {
    "newest": "/",
    "of a path": "/?path=commodity",
    "of a tag": "/?tag=product:7",
    "errors of a path": "/?path=commodity&state=error",
    "longer than 1 s": "/?min=1s",
}
_KEY = "import/catalogue"


def rows(folder: Path, records: int) -> Iterator[Row]:
    """All figures of this module."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from _traces(folder / "traces")
    yield from _lists(folder / "list", records)


def _traces(folder: Path) -> Iterator[Row]:
    from trifle_otel.archive import Archive

    references = {lines: [_record(folder, lines) for _ in range(2 * TRACES)] for lines in LINES}
    with Archive.open(folder) as archive, _viewer(folder) as port:
        _first_byte(port, "/")
        for lines, made in references.items():
            names, in_browser = made[:TRACES], made[TRACES:]
            read = _median(archive, names)
            pages = [(f"/traces/{name}", f"/traces/{name}?line={lines}") for name in names]
            both = [[_first_byte(port, url) for url in urls] for urls in pages]
            first, again = (statistics.median(times) for times in zip(*both, strict=True))
            peer = "reading its parts"
            yield Row(f"{lines:,} lines, first byte", first, "ms", peer, read, first / read, highest=MOST[lines])
            yield Row(f"{lines:,} lines, another page", again, "ms", peer, read, again / read, highest=MOST_AGAIN)
            for usable in _usable(port, in_browser):
                yield Row(f"{lines:,} lines, usable", usable, "ms", peer, read, usable / read, highest=1_000.0)


def _record(folder: Path, lines: int) -> str:
    """Make a trace of about so many lines: items with steps in them, each with a result."""
    import trifle_otel as trifle

    trifle.configure(archive=folder)
    with trifle.tracer(_KEY, meta=[lines], mode="deferred") as job:
        for item in range(max(lines // 20, 1)):
            with trifle.block(f"Item {item}", head=item % 50 == 0) as block:
                for step in range(4):
                    with trifle.block(f"Step {step}") as inner:
                        trifle.trace(f"Loading row {item * step} of the warehouse")
                        inner.result({"row": item * step, "price": 12.5, "name": f"Item {item}"})
                block.result({"ok": True, "id": item})
        trifle.trace("One item has no price", state="error")
    trifle.flush(timeout=60)
    assert job.reference is not None
    return job.reference


def _median(archive: Archive, references: list[str]) -> float:
    samples = []
    for reference in references:
        record = archive.find(reference)
        start = perf_counter()
        archive.entries(record)
        samples.append((perf_counter() - start) * 1e3)
    return statistics.median(samples)


def _lists(folder: Path, records: int) -> Iterator[Row]:
    from benchmarks.searches import _fill
    from trifle_otel.archive import Archive

    folder.mkdir()
    with Archive.open(folder) as archive:
        started = perf_counter()
        _fill(archive.index, records)
        print(f"  {records:,} records: {perf_counter() - started:.0f} s", file=sys.stderr)
        with _viewer(folder) as port:
            _first_byte(port, "/static/viewer.css")
            search = _timed(lambda: archive.search(limit=50))
            for what, url in LISTS.items():
                first = _first_byte(port, url)
                name = f"list over {records:,} records, {what}, first byte"
                yield Row(name, first, "ms", "a search for 50", search, first / search, highest=MOST_LIST)


def _timed(call: Callable[[], object]) -> float:
    samples = []
    for _ in range(20):
        start = perf_counter()
        call()
        samples.append((perf_counter() - start) * 1e3)
    return statistics.median(samples)


@contextlib.contextmanager
def _viewer(folder: Path) -> Iterator[int]:
    """`trifle-otel ui` over an archive; gives its port."""
    command = [sys.executable, "-m", "trifle_otel", "ui", "--port", "0", "--archive", str(folder)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    process = subprocess.Popen(command, env=plain, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        yield int(said.rstrip("/\n").rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()


def _first_byte(port: int, url: str) -> float:
    """Milliseconds from asking to the first byte of the answer; all of it is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    start = perf_counter()
    connection.request("GET", url)
    answer = connection.getresponse()
    taken = (perf_counter() - start) * 1e3
    answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{url} was answered with {answer.status}")
    return taken


def _usable(port: int, references: list[str]) -> Iterator[float]:
    """Milliseconds until a browser has made a page that it can scroll, of traces that nobody has read before."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None or importlib.util.find_spec("playwright") is None:
        print("  Chromium or Playwright is not there: pages are not opened in a browser", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        samples = []
        for reference in references:
            page.goto(f"http://127.0.0.1:{port}/traces/{reference}")
            page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            samples.append(page.evaluate("performance.now()"))
        browser.close()
    yield statistics.median(samples)
