"""The web viewer: what pages show and where they lead, hostile contents, who may look, what cannot be asked for."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs the extra `viewer`")
pytest.importorskip("jinja2", reason="needs the extra `viewer`")

import viewing
from starlette.requests import ClientDisconnect
from viewing import HOSTILE, NOW, PNG, TRACE_ID, Client, Trace

from trifle_otel import value_html, value_trees
from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_cursor, encode_part
from trifle_otel.errors import ConfigurationError, StoreUnavailable
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.records import RUNNING, Position, TraceRecord
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.testing import sample_record
from trifle_otel.viewer import compare_page, files, finding, neighbours
from trifle_otel.viewer.app import make_app
from trifle_otel.viewer.settings import Settings

REFERENCE = "01KTEST{:019}"
FULL, HOSTILE_ONE, LIVE, MIXED, LONG = (REFERENCE.format(number) for number in (50, 60, 70, 80, 90))
BIDI = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An archive with something of everything; tests do not change it."""
    with viewing.everything(tmp_path_factory.mktemp("archive")) as made:
        yield made


@pytest.fixture(scope="module")
def client(archive: Archive) -> Client:
    """Its viewer, open to whoever asks."""
    return Client(make_app(archive))


def in_memory(*traces: Trace) -> Archive:
    """An archive of these traces alone."""
    made = Archive(MemoryStore(), MemoryIndex())
    for trace in traces:
        trace.store(made)
    return made


class Page(HTMLParser):
    """What is on a page: elements with their attributes, texts, and whether everything that begins also ends."""

    VOID = ("meta", "link", "input", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One begins."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One that is empty."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """One ends."""
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        """Some text."""
        self.words.append(data)

    def links(self, part: str = "") -> list[str]:
        """Where links lead that have this part in them."""
        return [str(attrs["href"]) for tag, attrs in self.elements if tag == "a" and part in str(attrs.get("href"))]

    @property
    def text(self) -> str:
        """All texts."""
        return " ".join("".join(self.words).split())


def page(client: Client, url: str, status: int = 200, **headers: str) -> Page:
    """A page, which is whole."""
    answer = client.get(url, **headers)
    assert answer.status == status, answer.text
    found = Page(answer.text)
    assert (found.open, found.unbalanced) == ([], [])
    return found


def traces_on(found: Page) -> list[str]:
    """The references of the rows of a list."""
    calls = [attrs for tag, attrs in found.elements if tag == "a" and attrs.get("class") == "call"]
    return [urlsplit(str(attrs["href"])).path.rpartition("/")[2] for attrs in calls]


def numbers_on(found: Page) -> list[int]:
    """The numbers of the lines that a page shows."""
    return [int(str(attrs["href"])[2:]) for _, attrs in found.elements if attrs.get("class") == "no"]


# the list


def test_the_list_shows_the_newest_first(client: Client) -> None:
    """Every trace has a row with its state, its call, its time and its tags, the newest first."""
    found = page(client, "/")
    assert traces_on(found) == [REFERENCE.format(number) for number in (50, 60, 70, 80, 90, 3, 2, 1)]
    assert 'prices/landed/good(9, ["DE","FR"])' in found.text
    assert "2026-11-24 11:59:00" in found.text
    assert "/?tag=product%3A9" in found.links()


@pytest.mark.parametrize(
    "query, numbers",
    [
        ("state=error", [60, 90, 3]),
        ("path=prices", [50, 3, 2, 1]),
        ("path=prices&path=sync%2Fstock", [50, 80, 3, 2, 1]),
        ("path=prices&path=prices%2Flanded", [50, 3, 2, 1]),
        ("tag=product%3A9", [50, 3, 2, 1]),
        ("tag=product%3A9&tag=none", [50, 3, 2, 1]),
        ("tag=product%3A9&tag=none&tags=all", []),
        ("tag=product%3A9&tag=store%3A7&tags=all", [50, 3, 2, 1]),
        ("since=2026-11-24T11:30:00Z&until=2026-11-24T11:57:30Z", [70, 80, 90, 3]),
        ("min=30ms", [50, 60]),
        (f"trace_id={TRACE_ID}&state=running", [70]),
        ("path=prices&state=success&until=2026-11-24", [1]),
        ("path=%20/prices/%20", [50, 3, 2, 1]),
    ],
)
def test_filters_hold_together(client: Client, query: str, numbers: list[int]) -> None:
    """What is asked for by paths, tags, state, time, duration and trace id is what is listed, and nothing else."""
    assert traces_on(page(client, f"/?{query}")) == [REFERENCE.format(number) for number in numbers]


def test_filters_stay_in_every_link(client: Client) -> None:
    """Tabs and chips keep the other filters; a chip's cross leaves out that chip alone."""
    found = page(client, "/?path=prices&tag=product%3A9&tag=store%3A7&state=success")
    tab = next(link for link in found.links() if "state=error" in link)
    assert parse_qs(urlsplit(tab).query) == {"path": ["prices"], "tag": ["product:9", "store:7"], "state": ["error"]}
    crosses = [
        attrs for _, attrs in found.elements if (attrs.get("aria-label") or "").startswith("Without tag store:7")
    ]
    assert parse_qs(urlsplit(str(crosses[0]["href"])).query) == {
        "path": ["prices"],
        "tag": ["product:9"],
        "state": ["success"],
    }


def test_pages_go_on_by_a_cursor() -> None:
    """Following the link to older traces, over several paths too, shows each of them once, in order."""
    made = Archive(MemoryStore(), MemoryIndex())
    records = [
        sample_record(
            reference=f"{number:026}", key=f"key{number % 3}/one", first_at=NOW - timedelta(seconds=number // 2)
        )
        for number in range(130)
    ]
    made.index.put(records)
    client = Client(make_app(made))
    url, seen = "/?path=key0&path=key1", []
    while url:
        found = page(client, url)
        seen += traces_on(found)
        url = next((str(attrs["href"]) for tag, attrs in found.elements if attrs.get("rel") == "next"), "")
    wanted = [record for record in records if record.key != "key2/one"]
    wanted.sort(key=lambda record: (record.first_at, record.reference), reverse=True)
    assert seen == [record.reference for record in wanted]


def test_no_page_of_the_list_is_empty() -> None:
    """Where a multiple of a page's rows is found, the last page leads to no older ones; a page after it says so."""
    made = Archive(MemoryStore(), MemoryIndex())
    records = [
        sample_record(reference=f"{number:026}", key=f"key{number % 2}", first_at=NOW - timedelta(seconds=number))
        for number in range(100)
    ]
    made.index.put(records)
    client = Client(make_app(made))
    for url, last in (("/", records[99]), ("/?path=key0&path=key1", records[99]), ("/?path=key0", records[98])):
        while older := next_link(page(client, url)):
            url = older
        assert traces_on(page(client, url))[-1] == last.reference
    moment = int(records[99].first_at.timestamp()) * 10**9
    beyond = page(client, f"/?cursor={encode_cursor(Position(moment, records[99].reference))}")
    assert "There are no older ones." in beyond.text
    assert [attrs["href"] for _, attrs in beyond.elements if attrs.get("rel") == "first"] == ["/"]


def next_link(found: Page) -> str:
    """Where the link to the next page leads; empty where there is none."""
    return next((str(attrs["href"]) for tag, attrs in found.elements if tag == "a" and attrs.get("rel") == "next"), "")


@pytest.mark.parametrize(
    "query, said",
    [
        ("cursor=nonsense", "cursor"),
        ("state=great", "no such state"),
        ("since=yesterday", "not a time"),
        ("min=long", "not a duration"),
    ],
)
def test_what_cannot_be_looked_for_is_said(client: Client, query: str, said: str) -> None:
    """A filter that makes no sense gives a page that says so, and keeps what was filled in."""
    found = page(client, f"/?path=prices&{query}", 400)
    assert said in found.text
    assert "prices" in found.text


@pytest.mark.parametrize(
    "typed, url",
    [
        (FULL, f"/traces/{FULL}"),
        (TRACE_ID.upper(), f"/?state=error&trace_id={TRACE_ID}"),
        ("product:9", "/?tag=product%3A9&state=error"),
        ("prices/landed/", "/?path=prices%2Flanded&state=error"),
        ("never/was", "/?path=never%2Fwas&state=error"),
    ],
)
def test_one_box_takes_everything(client: Client, typed: str, url: str) -> None:
    """A reference leads to its trace; a trace id, a tag and a path become filters beside those that are there."""
    answer = client.get(f"/?state=error&add={quote(typed)}")
    assert (answer.status, answer.headers["location"]) == (303, url)


def test_charts_have_a_table_with_the_same_figures(client: Client) -> None:
    """Beside the pictures, which are hidden from screen readers, stand the figures, with links to each period."""
    found = page(client, "/?path=prices")
    assert "4 traces, 99 lines" in found.text
    pictures = [attrs for tag, attrs in found.elements if tag == "svg" and attrs.get("viewbox") == "0 0 360 96"]
    assert len(pictures) == 3
    assert all(attrs["aria-hidden"] == "true" for attrs in pictures)
    assert any("since=2026-11-24T11%3A00%3A00Z" in link for link in found.links())
    assert "10 min" in found.text or "1 h" in found.text


def test_several_tags_have_a_chart_of_their_own(client: Client) -> None:
    """Where any of several tags is looked for, each has its curve."""
    assert "Traces by tag" in page(client, "/?tag=product%3A9&tag=store%3A7").text


def test_a_partial_tally_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all traces were counted, the page says so, and its tabs have a plus."""
    monkeypatch.setattr(MemoryIndex, "tallied", 3)
    made = in_memory(*(viewing.price(number, minutes_ago=number) for number in range(1, 6)))
    text = page(Client(make_app(made)), "/").text
    assert "The newest 3 alone" in text
    assert "All 3+" in text


def test_an_empty_archive_says_so(tmp_path: Path) -> None:
    """Nothing found, nothing there, and an index that knows nothing of what is stored, are three things."""
    made = Archive(MemoryStore(), MemoryIndex())
    client = Client(make_app(made))
    assert "No traces are here yet." in page(client, "/").text
    record = viewing.price(1, minutes_ago=1).store(made)
    assert "No trace matches." in page(client, "/?path=none").text
    made.index.delete([record.reference])
    assert "trifle-otel reindex" in page(Client(make_app(made)), "/").text


def test_a_list_of_what_runs_is_asked_for_again(client: Client) -> None:
    """A page with a running trace refreshes, without JavaScript too; one without does not."""
    assert 'http-equiv="refresh"' in client.get("/?state=running").text
    assert 'http-equiv="refresh"' not in client.get("/?state=success").text


def test_a_running_trace_that_is_silent_is_told_of(client: Client) -> None:
    """A trace that runs, and was not heard of for long, is not shown as if it were fine."""
    assert "silent for" in page(client, "/?state=running").text
    assert "silent for" in page(client, f"/traces/{LIVE}").text


def test_how_long_a_running_trace_has_taken_goes_on() -> None:
    """Its record tells, though no line has come since: in whole milliseconds, and not how old the last line is."""
    made = Archive(MemoryStore(), MemoryIndex())
    record = viewing.running().store(made, RUNNING, duration=9_000)
    client = Client(make_app(made))
    for duration, said in ((9_000, "9 s"), (16_000, "16 s"), (7_200_000, "2 h")):
        made.index.put([replace(record, duration=duration, last_at=NOW + timedelta(milliseconds=duration))])
        found = page(client, f"/traces/{LIVE}").text
        assert f"took {said} so far" in found
        assert f"open, {said}" in found


# one trace


def test_a_trace_shows_every_line_numbered(client: Client, archive: Archive) -> None:
    """All lines are there in their order, with their numbers, texts, the breadcrumb and what is known."""
    found = page(client, f"/traces/{REFERENCE.format(3)}")
    entries = archive.entries(REFERENCE.format(3))
    assert numbers_on(found) == list(range(1, len(entries) + 1))
    for entry in entries:
        said = entry.message.removesuffix(" ↴")
        assert " ".join(said[:60].split()) in found.text
    crumbs = [link for link in found.links() if link == "/" or link.startswith("/?path")]
    assert crumbs[1:] == ["/", "/?path=prices", "/?path=prices%2Flanded", "/?path=prices%2Flanded%2Fgood"]
    for text in ("2 errors", "1 warning", "trace_id", '(9, ["DE","FR"])', "7 days"):
        assert text in found.text


def test_blocks_fold_with_duration_and_share(client: Client) -> None:
    """A block is something that folds, with how long it took and its share of the block around it."""
    text = client.get(f"/traces/{REFERENCE.format(1)}").text
    tax = text[text.index("Tax") - 400 : text.index("Rate of the country") + 700]
    assert "<details" in tax
    assert "5 ms" in tax
    assert "20 % of the block around it" in tax
    assert re.search(r'class="ln i\d[^"]*head"', text)
    assert "+5 ms" in text  # since the section before


def test_folded_blocks_come_folded(client: Client) -> None:
    """`fold=1` gives all blocks folded, so that folding works without JavaScript."""
    opened, folded = (client.get(f"/traces/{LONG}{query}").text for query in ("", "?fold=1"))
    assert re.search(r'<details class="block"[^>]* open', opened)
    assert not re.search(r'<details class="block"[^>]* open', folded)
    assert 'class="fold-all"' in folded


def test_long_results_are_folded_as_trees(client: Client) -> None:
    """A long result is one line that unfolds to a tree, whether it is JSON or a `repr`."""
    text = client.get(f"/traces/{REFERENCE.format(1)}").text
    assert '<span class="v-name">&#34;net&#34;</span>: <span class="v-number">100</span>' in text
    assert '<span class="v-name">&#39;gross&#39;</span>' in text


def test_a_page_has_a_thousand_lines(client: Client, archive: Archive) -> None:
    """Pages of a long trace follow each other without a gap, and blocks go on from one to the next."""
    total = len(archive.entries(LONG))
    url, seen = f"/traces/{LONG}", []
    while url:
        found = page(client, url)
        around = len([attrs for _, attrs in found.elements if "around-row" in str(attrs.get("class"))])
        seen += numbers_on(found)[around:]
        url = next((str(attrs["href"]) for _, attrs in found.elements if attrs.get("rel") == "next"), "")
        assert len(numbers_on(found)) <= 1_000 + around
    assert seen == list(range(1, total + 1))


@pytest.mark.parametrize("line, first", [("1", 1), ("1000", 1), ("1001", 1001), ("end", 2001), ("99999999", 2001)])
def test_a_line_is_on_its_page(client: Client, line: str, first: int) -> None:
    """A link to a line leads to the page that it is on, one beyond the end to the last page."""
    found = page(client, f"/traces/{LONG}?line={line}")
    around = len([attrs for _, attrs in found.elements if "around-row" in str(attrs.get("class"))])
    assert numbers_on(found)[around] == first


@pytest.mark.parametrize("line", ["0", "-1", "x", "1e9", "٣", "9" * 40])
def test_a_line_that_is_none_gives_the_first_page(client: Client, line: str) -> None:
    """What is no number of a line is left out."""
    assert numbers_on(page(client, f"/traces/{LONG}?line={quote(line)}"))[0] == 1


def test_the_first_error_is_linked(client: Client, archive: Archive) -> None:
    """From the first page a link leads to the first error, on whatever page that is."""
    entries = archive.entries(LONG)
    number = next(number for number, entry in enumerate(entries, 1) if entry.state == "error")
    assert f"/traces/{LONG}?line={number}#L{number}" in page(client, f"/traces/{LONG}").links()
    assert number in numbers_on(page(client, f"/traces/{LONG}?line={number}"))


def test_errors_and_warnings_alone(client: Client) -> None:
    """The view of problems has those lines, and the blocks that they are in."""
    found = page(client, f"/traces/{REFERENCE.format(3)}?view=problems")
    assert numbers_on(found) == [14, 15, 16]
    assert "No errors and no warnings." in page(client, f"/traces/{REFERENCE.format(1)}?view=problems").text


def test_the_overview_has_blocks_heads_and_results(client: Client) -> None:
    """The overview leaves out plain lines and closing lines."""
    found = page(client, f"/traces/{REFERENCE.format(1)}?view=overview")
    assert numbers_on(found) == [2, 3, 6, 7, 8, 10, 13, 14, 16, 17, 18, 20]


def with_offloaded(number: int, *texts: str) -> Trace:
    """A trace with a block for each of these results, which are stored beside it."""
    trace = Trace("large/one", number=number)
    for place, text in enumerate(texts):
        trace.opens(f"Step {place}").closes("x")
        trace.entries.pop()
        trace.offloaded(f"↳ {text}")
        trace.entries[-1]["span"] = trace.entries[-2]["span"]
    return trace


def test_finding_looks_into_what_is_stored_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text in a message beside the lines is found, shown with what is around it, and marked on its own page."""
    client = Client(make_app(in_memory(with_offloaded(1, "x" * 300_000 + " the Needle <b> " + "y" * 10, "none"))))
    url = f"/traces/{REFERENCE.format(1)}"
    assert client.get(f"{url}?q=needle").headers["location"] == f"{url}?q=needle&line=4#L4"
    answer = client.get(f"{url}?q=needle&line=4")
    assert "the <mark>Needle</mark> &lt;b&gt; yyyyyyyyyy" in answer.text
    assert f"{url}/lines/4?q=needle" in Page(answer.text).links()
    shown = page(client, f"{url}/lines/4?q=needle")
    assert ("part 2" in shown.text, [tag for tag, _ in shown.elements].count("mark")) == (True, 1)
    assert "No line has “part_row”" in page(client, f"{url}?q=part_row").text
    monkeypatch.setattr(finding, "MOST_BESIDE", 1_000)
    limited = page(client, f"{url}?q=none&line=1").text
    assert "1 of 1 line with “none”" in limited
    assert "1 message stored beside the lines was not looked into" in limited


def test_finding_leads_to_the_first_match(client: Client) -> None:
    """A search in a trace leads to its first match; from there to the next, and to the matches alone."""
    answer = client.get(f"/traces/{LONG}?q=ITEM+400")
    assert answer.status == 303
    assert answer.headers["location"] == f"/traces/{LONG}?q=ITEM+400&line=2802#L2802"
    found = page(client, answer.headers["location"].partition("#")[0])
    assert "1 of 2 lines with “ITEM 400”" in found.text
    assert f"/traces/{LONG}?q=ITEM+400&line=2807#L2807" in found.links()
    assert "<mark>Item 400</mark>" in client.get(f"/traces/{LONG}?q=ITEM+400&line=2802").text
    assert numbers_on(page(client, f"/traces/{LONG}?q=ITEM+400&view=matches")) == [2802, 2807]
    assert "No line has “nowhere”" in page(client, f"/traces/{LONG}?q=nowhere").text


def test_blocks_that_ran_at_once_are_kept_apart(client: Client) -> None:
    """Lines of two blocks that ran at the same time are shown with their block, numbered as they happened."""
    found = page(client, f"/traces/{MIXED}")
    assert numbers_on(found) == [1, 2, 3, 5, 7, 9, 11, 12, 4, 6, 8, 10, 13, 14, 15, 16]
    assert "Blocks that ran at the same time" in found.text
    for line in ("10", "14"):
        assert numbers_on(page(client, f"/traces/{MIXED}?line={line}"))[0] == 1


def test_what_runs_shows_its_open_blocks(client: Client) -> None:
    """A running trace is refreshed, and each open block has the time that it has taken so far."""
    text = client.get(f"/traces/{LIVE}").text
    assert text.count('class="runs" data-since="') == 2
    assert 'data-refresh="2"' in text
    assert 'http-equiv="refresh"' in text
    assert "open, " in text


def test_a_page_that_has_not_changed_is_not_sent_again() -> None:
    """A browser that has a page is told that it is right, until the trace has grown."""
    trace = viewing.running()
    made = Archive(MemoryStore(), MemoryIndex())
    record = trace.store(made, RUNNING)
    client = Client(make_app(made))
    first = client.get(f"/traces/{LIVE}")
    again = client.get(f"/traces/{LIVE}", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    trace.line("one more")
    made.store.write(record.folder, "data_2.json.gz", encode_part(trace.entries[-1:]))
    made.index.put([trace.record(RUNNING, parts=2)])
    grown = client.get(f"/traces/{LIVE}", if_none_match=first.headers["etag"])
    assert grown.status == 200
    assert "one more" in grown.text


def test_a_page_that_would_be_another_is_sent_again() -> None:
    """Not the record alone counts: the executions around it do, what could be read of it, and how the viewer is set."""
    made = Archive(MemoryStore(), MemoryIndex())
    first, second = viewing.price(1, minutes_ago=60), viewing.price(2, minutes_ago=30)
    record = first.store(made)
    client = Client(make_app(made))
    url = f"/traces/{record.reference}"
    alone = client.get(url)
    second.store(made)
    followed = client.get(url, if_none_match=alone.headers["etag"])
    assert (followed.status, 'rel="next"' in followed.text) == (200, True)
    linked = Client(make_app(made, Settings(links={"Jaeger": "https://x/{trace_id}"})))
    assert "https://x/" in linked.get(url, if_none_match=followed.headers["etag"]).text
    compared = f"/compare?left={first.reference}&right={second.reference}"
    two = client.get(compared)
    viewing.price(3, minutes_ago=10).store(made)
    assert REFERENCE.format(3) in client.get(compared, if_none_match=two.headers["etag"]).text


@pytest.mark.parametrize("url", [f"/traces/{LONG}", f"/compare?left={LONG}&right={LONG}"])
def test_a_damaged_page_is_not_kept(url: str) -> None:
    """What cannot be read now may be there later, of which the index says nothing."""
    made = Archive(MemoryStore(), MemoryIndex())
    record = viewing.long(600).store(made, parts=3)
    whole = made.store.open(record.folder, "data_2.json.gz").read()
    made.store.write(record.folder, "data_2.json.gz", b"nonsense")
    client = Client(make_app(made))
    damaged = client.get(url)
    assert "part 2 of trace" in damaged.text
    assert damaged.headers["cache-control"] == "no-store"
    made.store.write(record.folder, "data_2.json.gz", whole)
    again = client.get(url, if_none_match=damaged.headers.get("etag", ""))
    assert (again.status, "part 2 of trace" in again.text) == (200, False)


def test_an_empty_list_is_not_kept() -> None:
    """Why nothing is there is asked of the store, of which the index knows nothing."""
    made = Archive(MemoryStore(), MemoryIndex())
    client = Client(make_app(made))
    assert "No traces are here yet." in client.get("/").text
    trace = viewing.price(1, minutes_ago=1)
    made.store.write(trace.record().folder, "data_1.json.gz", encode_part(trace.entries))
    assert "trifle-otel reindex" in client.get("/", if_none_match=client.get("/").headers.get("etag", "")).text


def test_matches_follow_each_other_as_they_are_shown(client: Client) -> None:
    """Where blocks ran at the same time, the next match is the one below, whatever its number is."""
    seen, url = [], f"/traces/{MIXED}?q=shop&line=3"
    for _ in range(10):
        found = page(client, url)
        seen.append(int(parse_qs(urlsplit(url).query)["line"][0]))
        after = [attrs["href"] for tag, attrs in found.elements if attrs.get("class") == "match-after"]
        if not after:
            break
        url = str(after[0]).partition("#")[0]
    assert seen == [3, 11, 4, 13]


def test_neighbours_and_relatives_are_linked(client: Client) -> None:
    """From a trace links lead to the executions of its key before and after it, to a comparison, to its trace id."""
    found = page(client, f"/traces/{REFERENCE.format(2)}")
    relations = {str(attrs.get("rel")): attrs["href"] for tag, attrs in found.elements if tag == "a" and "rel" in attrs}
    assert relations["prev"] == f"/traces/{REFERENCE.format(1)}"
    assert relations["next"] == f"/traces/{REFERENCE.format(3)}"
    assert f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}" in found.links()
    assert f"/?trace_id={TRACE_ID}" in found.links()
    assert f"/traces/{LIVE}" in found.links()


@pytest.mark.parametrize("amount, said", [(1, "1 other"), (10, "10 others"), (11, "more than 10 others")])
def test_it_is_said_when_a_trace_id_has_more_traces(amount: int, said: str) -> None:
    """So many others are shown, and where there are more, they are led to; whatever the age of the one shown."""
    made = in_memory(*(Trace("job", number=number, minutes_ago=number) for number in range(amount + 1)))
    client = Client(make_app(made))
    for number in (0, amount):
        found = page(client, f"/traces/{REFERENCE.format(number)}")
        assert f"About this trace · {said} of the same trace id" in found.text
        assert ("and more" in found.text) == (amount > 10)


def test_a_page_knows_the_next_problem_after_it() -> None:
    """Whichever lines are shown: the next error or warning among those is led to, and none where there is none."""
    trace = Trace("import/stock", number=1)
    for number in range(2, 3_001):
        trace.line("one", {5: "warning", 1_500: "error", 2_900: "warning"}.get(number, "success"))
    client = Client(make_app(in_memory(trace)))
    url = f"/traces/{trace.reference}"
    for query, line in (("", 1_500), ("line=1001", 2_900), ("line=2001", None), ("q=one&line=5", 1_500)):
        tools = next(attrs for _, attrs in page(client, f"{url}?{query}").elements if attrs.get("class") == "tools")
        asked = "q=one&" if "q=" in query else ""
        assert tools.get("data-beyond") == (line and f"{url}?{asked}line={line}#L{line}")
    tools = next(attrs for _, attrs in page(client, f"{url}?view=overview").elements if attrs.get("class") == "tools")
    assert "data-beyond" not in tools


def test_links_elsewhere_come_from_templates(archive: Archive) -> None:
    """A template's placeholders are filled with the trace's own values, quoted."""
    template = "https://tempo.example/explore?id={trace_id}&at={start_ms}&key={key}"
    found = page(Client(make_app(archive, Settings(links={"Tempo": template}))), f"/traces/{REFERENCE.format(2)}")
    start = int((NOW - timedelta(hours=1)).timestamp() * 1000)
    link = f"https://tempo.example/explore?id={TRACE_ID}&at={start}&key=prices%2Flanded%2Fgood"
    assert link in found.links()


@pytest.mark.parametrize(
    "link",
    [
        *("javascript:alert({trace_id})", "https://x/{nothing}", "https://x/", "https://x/{trace_id", "/{trace_id}"),
        *("https://x/{trace_id:d}", "https://x/{trace_id:{width}}"),
    ],
)
def test_a_template_that_cannot_be_a_link_is_refused(link: str) -> None:
    """Only http and https, only the placeholders that there are, and only what can be filled in."""
    with pytest.raises(ConfigurationError, match="link"):
        Settings(links={"Jaeger": link})


def test_damage_is_said_and_the_rest_shown() -> None:
    """A trace with a damaged part shows what can be read, and names the part."""
    made = Archive(MemoryStore(), MemoryIndex())
    record = viewing.long(600).store(made, parts=3)
    made.store.write(record.folder, "data_2.json.gz", b"nonsense")
    found = page(Client(make_app(made)), f"/traces/{LONG}")
    assert "part 2 of trace" in found.text
    assert "Item 0" in found.text
    assert "done" in found.text


def test_ruby_archives_are_shown(golden: Path, tmp_path: Path) -> None:
    """What Trifle::Traces for Ruby wrote is listed and shown, every line, with its artifacts."""
    folders = sorted(path for path in golden.glob("*/*/archive") if path.is_dir())
    assert folders
    for number, folder in enumerate(folders):
        shutil.copytree(folder, tmp_path / str(number))
        with Archive.open(tmp_path / str(number)) as made:
            made.reindex()
            client = Client(make_app(made))
            references = traces_on(page(client, "/"))
            assert references
            for reference in references:
                found = page(client, f"/traces/{reference}")
                assert sorted(numbers_on(found)) == list(range(1, len(made.entries(reference)) + 1))
                for link in found.links(f"/traces/{reference}/"):
                    page(client, link)


# lines and artifacts


def test_long_lines_are_cut_with_a_link(client: Client) -> None:
    """A line of a megabyte is cut, and has a page of its own in parts, and a download with all of it."""
    answer = client.get(f"/traces/{FULL}")
    assert len(answer.body) < 120_000
    url = f"/traces/{FULL}/lines/32"
    assert url in page(client, f"/traces/{FULL}").links()
    parts = 0
    while url:
        found = page(client, url)
        parts += "".join(found.words).count("y" * 1_000)
        url = next((str(attrs["href"]) for _, attrs in found.elements if attrs.get("rel") == "next"), "")
    assert parts == 1_000
    download = client.get(f"/traces/{FULL}/lines/32/text")
    assert download.body == b"y" * 1_000_000
    assert download.headers["content-disposition"].startswith("attachment")


def test_messages_stored_beside_are_shown(client: Client) -> None:
    """A message that was too long for its part is linked in its place, and shown whole."""
    assert "stored beside the lines" in page(client, f"/traces/{FULL}").text
    assert "the end of it" in page(client, f"/traces/{FULL}/lines/31").text
    assert client.get(f"/traces/{FULL}/lines/31/text").body.endswith(b"\nthe end of it")


@pytest.mark.parametrize("size", [199_999, 200_000, 200_001, 400_000])
def test_parts_of_a_text_cut_no_character(size: int) -> None:
    """However a text of several bytes a character is cut into parts, each character is whole, in one part."""
    text = "€" * (size // 3) + "!" * (size % 3)
    made = in_memory(viewing.price(1, minutes_ago=1).artifact("a.txt", text.encode()).line(text))
    client = Client(make_app(made))
    for start in (f"/traces/{REFERENCE.format(1)}/artifacts/a.txt", f"/traces/{REFERENCE.format(1)}/lines/22"):
        url, seen = start, ""
        while url:
            answer = client.get(url)
            assert answer.status == 200
            seen += unescape(re.findall(r'<pre class="file"[^>]*>(.*?)</pre>', answer.text, re.DOTALL)[0])
            found = Page(answer.text)
            url = next((str(attrs["href"]) for _, attrs in found.elements if attrs.get("rel") == "next"), "")
        assert seen == text


def test_pictures_are_shown_by_their_first_bytes(client: Client) -> None:
    """A picture is shown as what it is; what only has a picture's name is a download."""
    shown = client.get(f"/traces/{FULL}/data/chart.png?show=1")
    assert (shown.headers["content-type"], shown.body) == ("image/png", PNG)
    assert "content-disposition" not in shown.headers
    fake = client.get(f"/traces/{FULL}/data/fake.png?show=1")
    assert fake.headers["content-type"] == "application/octet-stream"
    assert fake.headers["content-disposition"].startswith("attachment")
    assert "<img" in client.get(f"/traces/{FULL}/artifacts/chart.png").text
    assert "<img" not in client.get(f"/traces/{FULL}/artifacts/fake.png").text


async def test_an_artifact_is_closed_though_its_client_has_gone() -> None:
    """A browser that goes away before the first byte leaves no file open."""
    stream = BytesIO(b"all of it")

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        raise OSError("gone")

    with pytest.raises((OSError, ClientDisconnect)):
        await files.Download(b"", stream)({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert stream.closed


@pytest.mark.parametrize("name", ["page.html", "logo.svg", "raw.bin", "sub dir/übersicht.txt", "chart.png"])
def test_artifacts_are_downloads_in_a_sandbox(client: Client, archive: Archive, name: str) -> None:
    """Whatever an artifact is, its bytes go out unchanged, as a download that no browser would run."""
    for query in ("", "?show=1"):
        answer = client.get(f"/traces/{FULL}/data/{quote(name)}{query}")
        assert answer.status == 200
        assert answer.body == archive.artifact(FULL, name)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("sandbox")
        if name != "chart.png" or not query:
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")


def test_texts_of_artifacts_are_shown_escaped(client: Client) -> None:
    """Text is shown as text, JSON as a tree, and what is neither is only to be downloaded."""
    html = client.get(f"/traces/{FULL}/artifacts/page.html").text
    assert "&lt;h1&gt;Hi&lt;/h1&gt;&lt;script&gt;" in html
    assert 'class="v-constant">null' in client.get(f"/traces/{FULL}/artifacts/data.json").text
    assert "no text" in page(client, f"/traces/{FULL}/artifacts/raw.bin").text
    assert "Zażółć" in page(client, f"/traces/{FULL}/artifacts/sub%20dir/%C3%BCbersicht.txt").text


# hostile contents


PAGES = [
    "/",
    f"/traces/{HOSTILE_ONE}",
    f"/traces/{HOSTILE_ONE}?view=problems",
    f"/traces/{HOSTILE_ONE}?view=overview&fold=1",
    f"/traces/{HOSTILE_ONE}/lines/3",
    f"/compare?left={HOSTILE_ONE}&right={FULL}",
    f"/compare?left={FULL}&right={HOSTILE_ONE}",
    *(f"/?tag={quote(text)}" for text in HOSTILE),
    *(f"/?path={quote(text)}&since={quote(text)}" for text in HOSTILE),
    *(f"/traces/{HOSTILE_ONE}?q={quote(text)}&line=1" for text in HOSTILE),
    *(f"/traces/{quote(text, safe='')}" for text in HOSTILE),
    *(f"/traces/{FULL}/artifacts/{quote(text)}" for text in HOSTILE),
]
OWN_ELEMENTS = """
html head meta title link script noscript body a header svg path form label input button main nav ul li span details
summary fieldset legend div section figure figcaption line text rect polyline circle p strong table caption thead tr th
tbody td h1 h2 footer dl dt dd kbd time b code img mark del ins select option pre
"""
OWN_SCRIPT = re.compile(r"/static/viewer\.js\?v=[0-9a-f]+")


@pytest.mark.parametrize("url", PAGES)
def test_nothing_that_was_recorded_becomes_markup(client: Client, url: str) -> None:
    """Whatever texts hold, pages have our elements alone, no handlers, no styles, no script but ours, no odd links."""
    answer = client.get(url)
    assert answer.status in (200, 303, 400, 404)
    found = Page(answer.text)
    assert (found.open, found.unbalanced) == ([], [])
    for tag, attrs in found.elements:
        assert tag in OWN_ELEMENTS.split()
        assert not any(name.startswith("on") or name in ("style", "srcdoc") for name in attrs)
        if tag == "script":
            assert OWN_SCRIPT.fullmatch(str(attrs["src"]))
        for name in ("href", "src", "action"):
            target = attrs.get(name)
            assert target is None or target.startswith(("/", "#")), (name, target)
            assert target is None or not target.startswith("//")
    shown = re.sub(r'(<input [^>]*)value="[^"]*"', r"\1", answer.text)  # what is sent back is sent as it was given
    assert not BIDI.search(shown.replace("\n", ""))


def test_hostile_texts_are_there_to_be_read(client: Client) -> None:
    """Nothing is left out either: each text is shown, with what would steer or hide made visible."""
    text = page(client, f"/traces/{HOSTILE_ONE}").text
    for said in (
        "<script>window.hacked=1</script>",
        "javascript:window.hacked=1",
        "{{ 7*7 }}",
        "\\u202etxt.exe",
        "␛[31m",
    ):
        assert said in text


@given(st.text(max_size=400), st.text(max_size=20))
def test_any_text_is_shown_as_text(text: str, find: str) -> None:
    """A line of any characters, whatever is looked for in it, is on the page as text alone."""
    from trifle_otel.viewer.texts import marked

    found = Page(str(marked(text, find)))
    assert {tag for tag, _ in found.elements} <= {"mark"}
    assert (found.open, found.unbalanced) == ([], [])


@given(st.text(alphabet="{}[](),:='\"<>ab1 \\\n", max_size=200))
def test_any_value_gives_whole_markup(text: str) -> None:
    """What looks like a value, however broken, gives whole markup of ours or is left as it is."""
    value = value_trees.parse(text)
    if value is not None:
        found = Page(str(value_html.html(value)))
        assert {tag for tag, _ in found.elements} <= {"span", "div", "details", "summary"}
        assert (found.open, found.unbalanced) == ([], [])
        kept = re.sub(r"\s|,", "", "".join(value_trees.lines(value)))
        assert kept == re.sub(r"\s|,", "", text)


def nested(depth: int) -> str:
    """A value in brackets."""
    return "[" * depth + "]" * depth


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "[" + '\\"' * 99_000,
        "[" + "'\\" * 99_000,
        nested(100_000),
        "[" + "1," * 300_000 + "]",
        "[" * 50,
        "{'a': 1]",
        "plain",
        "12",
    ],
)
def test_what_is_too_much_or_no_value_is_left_as_it_is(text: str) -> None:
    """Very deep, very long and damaged values, and texts that are none, are not made into trees."""
    assert value_trees.parse(text) is None


SPANS = st.sampled_from(["a", "b", "c", None])
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "message": st.sampled_from(["x ↴", "x ↵", "↳ 1", "line"]),
            "type": st.sampled_from(["text", "raw", "media", "head"]),
            "level": st.integers(0, 2),
            "state": st.sampled_from(["success", "error"]),
        },
        optional={"span": SPANS, "parent": SPANS, "ns": st.integers(0, 9), "size": st.integers(0, 9)},
    ),
    max_size=14,
)


@given(ENTRIES, st.sampled_from(["", "?view=problems", "?view=overview", "?q=line&view=matches", "?fold=1"]))
def test_any_entries_give_a_whole_page(stored: list[dict[str, object]], query: str) -> None:
    """Whatever an archive holds, every line is on the page once, each block together, and all that opens ends."""
    trace = Trace("any/thing", number=1)
    trace.entries = [{"at": 1, **{name: value for name, value in each.items() if value}} for each in stored]
    client = Client(make_app(in_memory(trace)))
    found = page(client, f"/traces/{REFERENCE.format(1)}{query}")
    if query in ("", "?fold=1"):
        assert sorted(numbers_on(found)) == list(range(1, len(stored) + 1))
        assert ("Blocks that ran at the same time" in found.text) == (numbers_on(found) != sorted(numbers_on(found)))
    else:
        assert set(numbers_on(found)) <= set(range(1, len(stored) + 1))


def test_large_records_do_not_make_large_pages() -> None:
    """Arguments, contexts and tags of a megabyte are cut wherever they are shown."""
    huge = "x" * 1_000_000
    trace = Trace("large/one", number=1, meta=[huge, {"a": huge}], tags=[huge, *(f"t{n}" for n in range(1_000))])
    made = Archive(MemoryStore(), MemoryIndex())
    trace.store(made, context={"trace_id": TRACE_ID, "blob": huge, "list": [huge], "service": huge})
    client = Client(make_app(made))
    for url in ("/", f"/traces/{REFERENCE.format(1)}"):
        shown = re.sub(r'href="[^"]*"', "", client.get(url).text)
        assert len(shown) < 250_000


def test_tags_are_looked_for_as_they_are() -> None:
    """A tag keeps its slashes and spaces: only paths are tidied."""
    made = in_memory(Trace("a", number=1, tags=["/x/ y "]))
    client = Client(make_app(made))
    link = next(link for link in page(client, "/").links() if "tag=" in link)
    assert traces_on(page(client, link)) == [REFERENCE.format(1)]


@pytest.mark.parametrize("text", ["soft\xadhyphen", "\u202eback\u202c", '"quoted" <b>&amp;', "zero\u200bwidth"])
def test_forms_send_back_what_was_given(text: str) -> None:
    """What is looked for comes again out of every form just as it was given, and finds the same."""
    made = in_memory(Trace("a", number=1, tags=[text]).line(text))
    client = Client(make_app(made))
    url = f"/?tag={quote(text)}&path={quote(text)}&since={quote(text)}&trace_id={quote(text)}"
    names = ("tag", "tag", "path", "path", "since", "since", "trace_id", "trace_id")
    assert inputs(page(client, url, 400), *names) == [(name, text) for name in sorted(names)]
    assert traces_on(page(client, f"/?tag={quote(text)}")) == [REFERENCE.format(1)]
    assert inputs(page(client, f"/traces/{REFERENCE.format(1)}?q={quote(text)}&line=1"), "q") == [("q", text)]


def inputs(found: Page, *names: str) -> list[tuple[str, str]]:
    """The values of a page's inputs of these names."""
    values = [
        (str(attrs["name"]), str(attrs.get("value")))
        for tag, attrs in found.elements
        if tag == "input" and "name" in attrs
    ]
    return sorted((name, value) for name, value in values if name in names)


def test_a_very_deep_trace_is_shown() -> None:
    """A thousand blocks in each other give a page that browsers can take."""
    trace = Trace("deep/one", number=1)
    for level in range(1_000):
        trace.opens(f"level {level}")
    client = Client(make_app(in_memory(trace)))
    found = page(client, f"/traces/{REFERENCE.format(1)}?line=end")
    assert sum(tag == "details" for tag, _ in found.elements) < 80
    assert "level 999" in page(client, f"/traces/{REFERENCE.format(1)}?line=1001").text


# two executions


def test_the_first_result_that_differs_is_named(client: Client) -> None:
    """The comparison names the innermost step whose result was the first to differ, with both results."""
    found = page(client, f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}")
    assert "The first step whose result differs Tax › Rate of the country" in found.text
    assert "3 steps of another result" in found.text
    assert f"/traces/{REFERENCE.format(1)}?line=8#L8" in found.links()
    assert (
        "<del><mark>19</mark></del>"
        in client.get(f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}").text
    )


def test_values_are_compared_by_their_lines(client: Client) -> None:
    """Of two large results only the items that differ are shown, with what is around them."""
    text = client.get(f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}").text
    assert "<del>  &#39;gross&#39;: 119,</del>" in text
    assert "<ins>  &#39;gross&#39;: 121,</ins>" in text


def test_what_is_stored_beside_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large results of one size that differ late in them are told apart; what would be too much is said."""
    texts = ["1" * 120_000 + digit + "1" * 300 for digit in "47"]
    made = in_memory(with_offloaded(1, texts[0], "same"), with_offloaded(2, texts[1], "same"))
    url = f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}"
    answer = Client(make_app(made)).get(url)
    assert "1 step</b> of another result" in answer.text
    assert f"…{'1' * 120}<mark>4</mark>{'1' * 120}…" in answer.text
    assert "compared by size alone" not in answer.text
    monkeypatch.setattr(compare_page, "MOST_BESIDE", 1_000)
    limited = page(Client(make_app(made)), url).text
    assert "Nothing differs in what was compared." in limited
    assert "2 messages stored beside the lines are compared by size alone" in limited


def test_a_comparison_tells_what_it_could_not_read() -> None:
    """Damage and missing messages are said: what is not there is not the same."""
    first, second = with_offloaded(1, "one"), with_offloaded(2, "two")
    made = in_memory(first, second)
    made.store.delete(second.record().folder)
    made.store.write(second.record().folder, "data_1.json.gz", encode_part(second.entries))
    text = page(Client(make_app(made)), f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}").text
    assert "Not all of it can be compared" in text
    assert "part_row_" in text


def test_a_step_that_never_ended_is_compared_with_one_that_did() -> None:
    """That is another state, and is said so: what was open to the end has no state of its own."""
    ended, died = (
        Trace("job", number=number, minutes_ago=number).opens("Loading").line("asking the catalogue")
        for number in (1, 2)
    )
    ended.closes("None").entries.pop()  # nor did its result reach the archive
    found = page(Client(make_app(in_memory(ended, died))), f"/compare?left={ended.reference}&right={died.reference}")
    assert "success → never ended" in found.text


def test_the_same_execution_twice_differs_in_nothing(client: Client) -> None:
    """An execution compared with itself has nothing to tell."""
    assert "Nothing differs" in page(client, f"/compare?left={FULL}&right={FULL}").text


def test_long_comparisons_have_pages() -> None:
    """Many differences come in pages that follow each other."""
    first, second = Trace("a", number=1), Trace("a", number=2)
    for number in range(700):
        first.opens(f"step <{number}>").closes("1")
        second.opens(f"step <{number}>").closes("2")
    client = Client(make_app(in_memory(first, second)))
    url = f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}"
    found = page(client, url)
    following = next(str(attrs["href"]) for _, attrs in found.elements if attrs.get("rel") == "next")
    assert "step <498>" in found.text
    assert "step <498>" not in page(client, following).text
    assert "step <499>" in page(client, following).text
    assert "step <699>" in page(client, following).text


# what cannot be asked for


@pytest.mark.parametrize(
    "url",
    [
        "/traces/01NOTTHERE",
        f"/traces/{FULL}/lines/0",
        f"/traces/{FULL}/lines/38",
        f"/traces/{FULL}/lines/-1",
        f"/traces/{FULL}/lines/x",
        f"/traces/{FULL}/lines/99999999999999999999999",
        f"/traces/{FULL}/artifacts/none.txt",
        f"/traces/{FULL}/artifacts/chart.png?part=1",
        f"/traces/{FULL}/artifacts/chart.png?part=999999",
        f"/traces/{FULL}/data/none.txt",
        f"/traces/{FULL}/data/..%2Fdata_1.json.gz",
        f"/traces/{FULL}/data/../data_1.json.gz",
        f"/traces/{FULL}/data/%2e%2e%2f%2e%2e%2frecord.json",
        f"/traces/{FULL}/data/..%5Crecord.json",
        f"/traces/{FULL}/data//etc/passwd",
        f"/traces/{FULL}/data/%2Fetc%2Fpasswd",
        f"/traces/{FULL}/data/a%00b",
        f"/traces/{FULL}/data/",
        f"/traces/..%2F{FULL}",
        "/traces/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/traces/",
        f"/compare?left={FULL}",
        "/compare",
        "/static/../app.py",
        "/static/..%2Fapp.py",
        "/static/none.css",
        "/nowhere",
    ],
)
def test_what_is_not_there_is_said(client: Client, url: str) -> None:
    """Unknown references, lines, artifacts and pages, and paths that lead out, are answered with 404 and a page."""
    found = page(client, url, 404)
    assert "Not there" in found.text or "Not here" in found.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(client: Client, method: str) -> None:
    """All but reading is refused."""
    answer = client.ask(method, "/", origin="http://localhost:8420")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_head_is_answered_without_a_body(client: Client) -> None:
    """HEAD gives the headers of a page, and no more."""
    answer = client.ask("HEAD", "/")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")


class OutOfReach(MemoryIndex):
    """An index that does not answer."""

    def search(self, query: object) -> list[TraceRecord]:
        """Nothing."""
        raise StoreUnavailable("the index <b>db</b> cannot be reached")


def test_an_index_out_of_reach_is_said() -> None:
    """While the index does not answer, a page says so, and when to come back."""
    answer = Client(make_app(Archive(MemoryStore(), OutOfReach()))).get("/")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "The index &lt;b&gt;db&lt;/b&gt; cannot be reached" in answer.text


class Broken(MemoryIndex):
    """An index with a mistake in it."""

    def search(self, query: object) -> list[TraceRecord]:
        """A mistake."""
        raise ZeroDivisionError("secret detail")


def test_a_mistake_of_ours_is_a_page_too() -> None:
    """An error that nobody expected gives a page with all headers, without details, and goes on to the server."""
    sent: list[dict[str, object]] = []

    async def watched(scope: object, receive: object, send: Callable[[dict[str, object]], object]) -> None:
        async def noting(message: dict[str, object]) -> None:
            sent.append(message)

        await make_app(Archive(MemoryStore(), Broken()))(scope, receive, noting)  # type: ignore[arg-type]

    with pytest.raises(ZeroDivisionError):
        Client(watched).get("/")
    assert sent[0]["status"] == 500
    assert b"content-security-policy" in dict(sent[0]["headers"])  # type: ignore[call-overload]
    assert b"secret detail" not in b"".join(message.get("body", b"") for message in sent)  # type: ignore[misc]


@pytest.mark.parametrize(
    "url", ["/", f"/traces/{FULL}", "/nowhere", f"/traces/{FULL}/data/raw.bin", "/static/viewer.css", "/?state=x"]
)
def test_every_answer_has_its_headers(client: Client, url: str) -> None:
    """No answer lets a browser guess types, run what is not ours, or be shown in a frame."""
    headers = client.get(url).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_static_files_are_kept_until_they_change(client: Client) -> None:
    """Files of ours have a version in their URL, under which they may be kept for ever."""
    url = next(str(attrs["href"]) for tag, attrs in page(client, "/").elements if attrs.get("rel") == "stylesheet")
    answer = client.get(url)
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    assert client.get("/static/viewer.css?v=other").headers["cache-control"] == "no-cache"


def test_style_sheet_and_script_ask_for_nothing_elsewhere(client: Client) -> None:
    """Neither loads anything: no URL of another host, no imports, no fonts."""
    for name in ("viewer.css", "viewer.js", "icon.svg"):
        text = client.get(f"/static/{name}").text
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)|eval\(|innerHTML", text)


# who may look


TOKEN = "correct horse battery staple"


@pytest.fixture
def guarded(archive: Archive) -> Client:
    """A viewer that needs a token."""
    return Client(make_app(archive, Settings(token=TOKEN)))


@pytest.mark.parametrize(
    "url", ["/", f"/traces/{FULL}", f"/traces/{FULL}/data/raw.bin", "/static", "/nowhere", f"//static/../traces/{FULL}"]
)
def test_without_the_token_there_is_a_form(guarded: Client, url: str) -> None:
    """Whatever is asked for without the token, the answer is a form for it, and tells nothing."""
    answer = guarded.get(url)
    assert answer.status == 401
    assert 'type="password"' in answer.text
    assert "prices" not in answer.text
    for wrong in ("x", TOKEN[:-1], TOKEN + " ", "ö"):
        assert guarded.get(f"{url}?token={quote(wrong)}").status == 401
    assert guarded.get(url, authorization=f"Bearer {TOKEN}x").status == 401
    assert guarded.get(url, authorization=f"Basic {TOKEN}").status == 401
    assert guarded.get(url, cookie="trifle=x; trifle_=; =").status == 401


def test_the_form_has_a_style(guarded: Client, archive: Archive) -> None:
    """The viewer's own files are there for whoever is asked for the token, below whatever root, and nothing else is."""
    for name in ("viewer.css", "viewer.js", "icon.svg"):
        assert guarded.get(f"/static/{name}").status == 200
    assert guarded.get(f"/static/../traces/{FULL}").status == 404
    assert guarded.post("/static/viewer.css").status == 401
    below = Client(make_app(archive, Settings(token=TOKEN)), root="/traces")
    assert below.get("/traces/static/viewer.css").status == 200
    assert below.get("/traces/static/lines/1").status == 404
    assert below.get(f"/traces/traces/{FULL}").status == 401
    slashed = Client(make_app(archive, Settings(token=TOKEN)), root="/traces/")
    assert slashed.get("/traces/static/lines/1").status == 401


def test_the_token_becomes_a_cookie(guarded: Client) -> None:
    """A URL with the token leads to the same page without it, with a cookie that scripts and other sites cannot use."""
    answer = guarded.get(f"/?state=error&token={quote(TOKEN)}&path=prices")
    assert (answer.status, answer.headers["location"]) == (303, "/?state=error&path=prices")
    cookie = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=lax", "Path=/"):
        assert part in cookie
    assert TOKEN not in cookie
    name, _, value = cookie.partition(";")[0].partition("=")
    assert traces_on(page(guarded, "/?path=prices", cookie=f"other=1; {name}={value}"))
    assert guarded.get("/", cookie=f"{name}={value}x").status == 401
    assert guarded.get("/", cookie=f"{name}={TOKEN}").status == 401


def test_the_form_takes_the_token(guarded: Client) -> None:
    """What is typed into the form leads to the page that was asked for; a wrong token to the form again."""
    answer = guarded.post("/?state=error", f"token={quote(TOKEN)}", origin="http://localhost:8420")
    assert (answer.status, answer.headers["location"]) == (303, "/?state=error")
    assert "set-cookie" in answer.headers
    wrong = guarded.post("/", "token=wrong", origin="http://localhost:8420")
    assert (wrong.status, "That is not the token" in wrong.text) == (401, True)
    assert guarded.post("/", "token=" + "x" * 10_000).status == 401


def test_a_bearer_token_is_enough(guarded: Client) -> None:
    """Programs give the token in a header."""
    assert guarded.get("/", authorization=f"bearer {TOKEN}").status == 200


def test_no_url_leads_to_another_host(guarded: Client) -> None:
    """A path that begins with two slashes does not become a redirection elsewhere."""
    answer = guarded.get(f"//evil.example/x?token={quote(TOKEN)}")
    assert answer.headers["location"] == "/evil.example/x"


def test_a_proxys_word_counts_where_it_comes_from_the_proxy(archive: Archive) -> None:
    """The header of whoever has logged in is believed from the proxy's address, and from nowhere else."""
    app = make_app(archive, Settings(user_header="X-Forwarded-User", proxies=("10.0.0.5",)))
    assert Client(app, client="10.0.0.5").get("/", x_forwarded_user="ada").status == 200
    assert Client(app, client="10.0.0.5").get("/").status == 401
    assert Client(app, client="10.0.0.5").get("/", x_forwarded_user="").status == 401
    assert Client(app, client="10.0.0.6").get("/", x_forwarded_user="ada").status == 401
    assert Client(app, client="127.0.0.1").get("/", x_forwarded_user="ada").status == 401


@pytest.mark.parametrize("token", ["", "schlüssel"])
def test_a_token_that_protects_nothing_is_refused(token: str) -> None:
    """An empty one, as of a variable that is not set, would let everybody in who gives none."""
    with pytest.raises(ConfigurationError, match="token"):
        Settings(token=token)


def test_names_of_other_hosts_are_refused(archive: Archive) -> None:
    """A viewer without a token answers to its own names: a page elsewhere cannot lead its name here, and read."""
    client = Client(make_app(archive, Settings(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))))
    for host in ("localhost:8420", "LOCALHOST", "127.0.0.1:1", "[::1]:8420"):
        assert client.get("/", host=host).status == 200
    for host in ("evil.example", "localhost.evil.example:8420", "", "[::2]"):
        assert client.get("/", host=host).status == 421


@pytest.mark.parametrize("proxies", [("proxy.local",), ("10.0.0.0/8",), ("",)])
def test_a_proxy_is_an_address(proxies: tuple[str, ...]) -> None:
    """What is no address is refused: it would never match."""
    with pytest.raises(ConfigurationError, match="not the address of a proxy"):
        Settings(user_header="X-User", proxies=proxies)


# within other applications


def test_it_can_be_mounted(archive: Archive) -> None:
    """Mounted at a path of another application, all links of all pages lead below that path."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    client = Client(Starlette(routes=[Mount("/ops/traces", app=make_app(archive))]))
    for url in ("/", f"/traces/{FULL}", f"/traces/{FULL}/artifacts/chart.png", f"/compare?left={FULL}&right={FULL}"):
        found = page(client, f"/ops/traces{url}")
        for tag, attrs in found.elements:
            for name in ("href", "src", "action"):
                target = attrs.get(name)
                assert target is None or target.startswith(("/ops/traces/", "#")), (tag, target)
    answer = client.get(f"/ops/traces/?add={FULL}")
    assert answer.headers["location"] == f"/ops/traces/traces/{FULL}"


def test_a_root_that_servers_take_off_the_path_is_known(archive: Archive) -> None:
    """Behind a proxy that takes its path off, links have it, and so has the way to the page after the token."""
    client = Client(make_app(archive, Settings(token=TOKEN)), root="/ops")
    answer = client.get(f"/?token={quote(TOKEN)}")
    assert answer.headers["location"] == "/ops/"
    assert "Path=/ops" in answer.headers["set-cookie"]
    found = page(client, "/", authorization=f"Bearer {TOKEN}")
    assert found.links(FULL) == [f"/ops/traces/{FULL}"]


# sending once more


def test_a_trace_can_be_sent_once_more_where_that_is_allowed(archive: Archive) -> None:
    """The button is there where it works; what it does is done for our own form alone, and told."""
    sent: list[str] = []

    def send(record: TraceRecord) -> str:
        sent.append(record.reference)
        return "3 spans sent to <nowhere>"

    client = Client(make_app(archive, Settings(replay=send)))
    url = f"/traces/{FULL}/replay"
    assert url in client.get(f"/traces/{FULL}").text
    assert "3 spans sent to &lt;nowhere&gt;" in client.post(url, origin="http://localhost:8420").text
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}):
        assert client.post(url, **headers).status == 405
    assert client.get(url).status == 405
    assert sent == [FULL]


def test_nothing_is_sent_where_it_is_not_allowed(client: Client) -> None:
    """Without that setting there is no button, and nothing behind it."""
    assert "replay" not in client.get(f"/traces/{FULL}").text
    assert client.post(f"/traces/{FULL}/replay", origin="http://localhost:8420").status == 405


# other executions of a key


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.sampled_from(["a/b", "a/b/c", "a"])), min_size=1, max_size=40),
    st.data(),
)
def test_neighbours_are_the_nearest_of_the_key(times: list[tuple[int, str]], data: st.DataObject) -> None:
    """Of any executions at any times, before and after one come the nearest of the same key."""
    records = [
        sample_record(reference=f"{number:026}", key=key, first_at=NOW + timedelta(seconds=second))
        for number, (second, key) in enumerate(times)
    ]
    made = Archive(MemoryStore(), MemoryIndex())
    made.index.put(records)
    ordered = sorted(records, key=lambda record: (record.first_at, record.reference))
    record = data.draw(st.sampled_from(records))
    same = [each for each in ordered if each.key == record.key]
    place = same.index(record)
    assert neighbours.before(made, record) == (same[place - 1] if place else None)
    assert neighbours.after(made, record) == (same[place + 1] if place + 1 < len(same) else None)


def test_the_next_of_very_many_is_found() -> None:
    """Where thousands ran since, the next execution is found all the same."""
    made = Archive(MemoryStore(), MemoryIndex())
    records = [
        sample_record(reference=f"{number:026}", key="a", first_at=NOW + timedelta(seconds=number / 10))
        for number in range(3_000)
    ]
    made.index.put(records)
    assert neighbours.after(made, records[7]) == records[8]
    assert neighbours.after(made, records[-1]) is None


def test_the_list_is_not_counted_anew_for_each_reader(archive: Archive) -> None:
    """Tallies are some seconds old at most, and kept for that time: each page does not count all over again."""
    from trifle_otel.viewer.searching import Filters
    from trifle_otel.viewer.site import TALLY_SECONDS, Site

    now = [100.0]
    site = Site(archive, Settings(), clock=lambda: now[0])
    first = site.overview(Filters())
    assert site.overview(Filters(state="error")) is first
    assert site.overview(Filters(paths=("prices",))) is not first
    now[0] += TALLY_SECONDS
    assert site.overview(Filters()) is not first


def test_traces_are_kept_within_a_bound(archive: Archive) -> None:
    """The last traces that were read are kept, up to a number of lines; one that has grown is read anew."""
    from trifle_otel.viewer.shelf import Shelf

    shelf = Shelf(archive, most_lines=3_000)
    long, full = archive.find(LONG), archive.find(FULL)
    first = shelf.open(long)
    assert shelf.open(long) is first
    assert shelf.open(replace(long, length=long.length + 1)) is not first
    shelf.open(long)
    for number in (1, 2, 3, 50, 60, 70, 80):
        shelf.open(archive.find(REFERENCE.format(number)))
    assert shelf.open(full) is shelf.open(full)
    assert sum(len(opened.entries) for opened in shelf._kept.values()) <= 3_000


def test_what_was_found_is_kept_within_a_bound(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers about long traces are long: those that were asked for last are kept, up to a number of lines."""
    from trifle_otel.arrangement import opened
    from trifle_otel.viewer.finding import Finder

    monkeypatch.setattr(finding, "MOST_LINES", 1_000)
    finder = Finder(archive)
    record = archive.find(LONG)
    long = opened(record, archive.entries(record))
    answers = {text: finder.find(long, text) for text in ("price", "item", "41", "42")}
    assert finder.find(long, "42") is answers["42"]
    assert finder.find(long, "price") is not answers["price"]
    assert 0 < sum(len(kept.places) for kept in finder._kept.values()) <= 1_000


def test_a_cursor_of_another_archive_is_taken(client: Client) -> None:
    """A cursor is a place in time: one that no trace has is a place between two."""
    moment = int(NOW.timestamp() - 600) * 10**9
    assert traces_on(page(client, f"/?cursor={encode_cursor(Position(moment, 'x'))}")) == [
        REFERENCE.format(number) for number in (3, 2, 1)
    ]


# the command


@pytest.mark.parametrize(
    "options, said",
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--link", "Jaeger"], "not a link"),
        (["--link", "Jaeger=ftp://x/{trace_id}"], "http://"),
        (["--port", "99999"], "from 0 to 65535"),
        (["--proxy", "nobody"], "not the address of a proxy"),
        (["--replay", "ftp://x"], "ftp"),
        (["--root-path", "traces"], "begins with a slash"),
    ],
)
def test_the_command_refuses_what_is_wrong(
    archive: Archive, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Being open to others without a token, and options that make no sense, end with code 2 and a reason."""
    pytest.importorskip("cyclopts")
    from trifle_otel.cli import main

    port = [] if "--port" in options else ["--port", "0"]
    assert main(["ui", "--archive", archive.url.removeprefix("file://"), *port, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "jinja2"])
def test_a_package_that_is_missing_is_named(
    archive: Archive, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one of the viewer's packages the command says which extra to install."""
    pytest.importorskip("cyclopts")
    from trifle_otel.cli import main

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "trifle_otel.viewer.app")
    assert main(["ui", "--archive", archive.url, "--port", "0"]) == 2
    assert "pip install 'trifle-otel[viewer]'" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(archive: Archive) -> None:
    """`trifle-otel ui` says where it listens, answers there, and ends when it is interrupted."""
    pytest.importorskip("cyclopts")
    command = [sys.executable, "-m", "trifle_otel", "ui", "--port", "0", "--archive", archive.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        assert found, process.communicate()
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert "server" not in {name.lower() for name, _ in answer.getheaders()}
        assert FULL in answer.read().decode()
        connection.request("GET", "/", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 421
        connection.close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
