"""`show --html`: one page that shows all of a trace, loads nothing, runs nothing, and folds by itself."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import NoReturn

import pytest

pytest.importorskip("cyclopts", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")
pytest.importorskip("markupsafe", reason="needs the extra `cli`")

import viewing
from reading_commands import Run, runner
from viewing import Trace

from trifle_otel.archive import Archive
from trifle_otel.cli import report_html
from trifle_otel.records import RUNNING

TODAY, FULL, HOSTILE, LIVE, MIXED, LONG = (f"01KTEST{number:019}" for number in (2, 50, 60, 70, 80, 90))
HAZARD = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Page(HTMLParser):
    """What is on a page: elements with their attributes, the texts, and whether all that begins also ends."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Note whether it is the one that was opened last."""
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        """Note a text."""
        if "style" in self.open:
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All texts."""
        return "".join(self.words)

    def values(self, attribute: str) -> list[str]:
        """The values of an attribute, of all elements."""
        return [
            value or "" for _, attributes in self.elements for name, value in attributes.items() if name == attribute
        ]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with something of everything; tests do not change it."""
    path = tmp_path_factory.mktemp("archive")
    viewing.everything(path).close()
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


def report(run: Run, folder: Path, reference: str, *options: str) -> Page:
    """The page of a trace."""
    done = run("show", reference, "--html", "page.html", "--archive", str(folder), *options)
    assert (done.code, done.out, done.err) == (0, "", "")
    return Page(Path("page.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("reference", [TODAY, FULL, HOSTILE, LIVE, MIXED, LONG])
@pytest.mark.parametrize("options", [[], ["--full"]])
def test_nothing_is_loaded_and_nothing_runs(run: Run, folder: Path, reference: str, options: list[str]) -> None:
    """No script, no handler, no address but places in the page and pictures in it; the policy forbids the rest."""
    page = report(run, folder, reference, *options)
    assert page.wrong == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "video", "audio", "source"}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("style", "srcset", "action", "ping")]
    assert all(re.fullmatch(r"#[LA]\d+", value) for value in page.values("href"))
    assert all(
        re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+", src) for src in page.values("src")
    )
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    (policy,) = (meta for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in page.style
    assert not HAZARD.search(page.source)


def test_each_line_is_there_once_and_can_be_pointed_at(run: Run, folder: Path) -> None:
    """Every line has its number as an anchor, in the order in which lines are shown; blocks fold, open at first."""
    for reference in (TODAY, HOSTILE, LONG):
        page = report(run, folder, reference)
        with Archive.open(folder) as archive:
            total = len(archive.entries(reference))
        anchors = [value for value in page.values("id") if value.startswith("L")]
        assert anchors == [f"L{number}" for number in range(1, total + 1)]
    blocks = [attributes for attributes in page.named("details") if attributes.get("class") == "block"]
    assert len(blocks) > 800
    assert all("open" in attributes for attributes in blocks)


def test_what_is_known_stands_above(run: Run, folder: Path) -> None:
    """State, call, reference, time, tags, meta, context, and where errors and warnings are."""
    page = report(run, folder, FULL)
    for word in ('prices/landed/good(9, ["DE","FR"])', FULL, "2026-11-24 11:59:00 UTC", "product:9", "trace_id"):
        assert word in page.text
    assert re.search(r"37: 37 success|37: 36 success, 1 debug", page.text)
    problems = report(run, folder, HOSTILE)
    assert "✗ 9 errors, lines 3" in problems.text
    assert "! 9 warnings, lines 4" in problems.text


def test_values_are_pretty_and_fold(run: Run, folder: Path) -> None:
    """JSON and Python's values are trees that fold; what is no value is shown as it is."""
    page = report(run, folder, FULL)
    groups = [attributes for attributes in page.named("details") if attributes.get("class") == "v-group"]
    assert groups
    assert "v-name" in page.values("class")
    assert '{"a": [1, 2' + "," * 200 in page.text


def test_long_texts_are_cut_and_say_so(run: Run, folder: Path) -> None:
    """A line of 1 MB folds, and is cut with its whole length told; `--full` has it whole, stored beside or not."""
    page = report(run, folder, FULL)
    assert "y" * report_html.MOST_CHARACTERS in page.text
    assert "y" * (report_html.MOST_CHARACTERS + 1) not in page.text
    assert "… (1 MB in all, --full takes it in)" in page.text
    assert "x" * 150_000 + "\nthe end of it" in page.text
    full = report(run, folder, FULL, "--full")
    assert "y" * 1_000_000 in full.text
    assert "in all" not in full.text


def test_all_long_texts_together_are_bounded(run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the page has as much text as it may, of further long texts there is a beginning; short ones are whole."""
    monkeypatch.setattr(report_html, "MOST_ALTOGETHER", 1_000)
    with Archive.open("./traces") as archive:
        trace = Trace("job", number=1)
        for letter in "abc":
            trace.line(letter * 900).line(f"short {letter}")
        trace.store(archive)
    page = report(run, Path("traces"), f"01KTEST{1:019}")
    assert "a" * 900 in page.text
    assert "b" * 120 in page.text
    assert "c" * 121 not in page.text
    assert page.text.count("short") == 3


def test_artifacts_are_in_the_page(run: Run, folder: Path) -> None:
    """Pictures as pictures by what they are, text as text, HTML and SVG too; anything else is named."""
    page = report(run, folder, FULL)
    (image,) = page.named("img")
    assert image["src"] == f"data:image/png;base64,{base64.b64encode(viewing.PNG).decode()}"
    assert image["alt"] == "chart.png"
    assert f"<h1>Hi</h1>{viewing.SCRIPT}" in page.text
    assert f"<svg xmlns='http://www.w3.org/2000/svg'>{viewing.SCRIPT}</svg>" in page.text
    assert "Not in this page: it is no text, or a large picture." in page.text
    targets = set(page.values("id"))
    assert {value.removeprefix("#") for value in page.values("href")} <= targets


def test_pictures_that_are_large_stay_outside(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that cannot be attached to anything helps nobody."""
    monkeypatch.setattr(report_html, "MOST_IMAGE", len(viewing.PNG) - 1)
    assert report(run, folder, FULL).named("img") == []


def test_long_traces_come_folded_but_for_what_went_wrong(
    run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above some thousands of lines only blocks around a problem are open."""
    monkeypatch.setattr(report_html, "MANY_LINES", 5)
    with Archive.open("./traces") as archive:
        trace = Trace("job", number=1)
        trace.opens("fine").line("x").closes("1")
        trace.opens("bad").opens("worse").line("no", "error").closes("2").closes("3").store(archive)
    page = report(run, Path("traces"), f"01KTEST{1:019}")
    blocks = {attributes["id"]: "open" in attributes for attributes in page.named("details") if attributes.get("id")}
    assert blocks == {"L2": False, "L6": True, "L7": True}


def test_damage_is_told_in_the_page_and_beside(run: Run, own_folder: Path) -> None:
    """What can be read is in it; the exit code is 1, and the page names what is missing."""
    with Archive.open("./traces") as archive:
        record = Trace("job", number=1).artifact("gone.txt", b"x").line("last").store(archive, parts=3)
    files = Path("traces", record.folder.path)
    (files / "data_1.json.gz").write_bytes(b"")
    (files / "artifacts/gone.txt").unlink()
    done = run("show", record.reference, "--html", "page.html")
    page = Page(Path("page.html").read_text())
    assert done.code == 1
    assert f"part 1 of trace {record.reference} is damaged" in done.err
    assert f"part 1 of trace {record.reference} is damaged" in page.text
    assert "It is not in the archive." in page.text
    assert "last" in page.text


def test_a_running_trace_and_one_without_lines(run: Run, own_folder: Path) -> None:
    """Blocks that are open say so; a trace of which nothing is stored yet has a page too."""
    with Archive.open("./traces") as archive:
        viewing.running(1).store(archive, RUNNING)
        empty = Trace("job", number=2).record(RUNNING, parts=0, length=0)
        archive.index.put([empty])
    page = report(run, Path("traces"), f"01KTEST{1:019}")
    assert "so far" in page.text
    assert page.text.count("open") == 2
    assert "job" in report(run, Path("traces"), empty.reference).text


def test_the_file_appears_whole_or_not_at_all(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays until the page is complete; a folder that is not there is told in one line."""
    Path("page.html").write_text("before")

    def fails(self: report_html.Report) -> Iterator[str]:
        yield "half"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(report_html.Report, "page", fails)
        done = run("show", TODAY, "--html", "page.html", "--archive", str(folder))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert [path.read_text() for path in Path().iterdir()] == ["before"]
    for wrong in ("nowhere/page.html", "."):
        done = run("show", TODAY, "--html", wrong, "--archive", str(folder))
        assert (done.code, done.err.count("\n")) == (1, 1)
    assert run("show", TODAY, "--html", "x", "--json", "--archive", str(folder)).code == 2


def test_what_is_no_file_stays_what_it_is(run: Run, folder: Path) -> None:
    """A pipe gets the page, and a device such as /dev/null is not replaced by it; a link still leads where it led."""
    os.mkfifo("pipe")
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(Path("pipe").read_text, encoding="utf-8")
        try:
            assert run("show", TODAY, "--html", "pipe", "--archive", str(folder)).code == 0
            assert Path("pipe").is_fifo()
        finally:
            os.close(os.open("pipe", os.O_RDWR | os.O_NONBLOCK))  # whatever happened, the reader is to end
        assert read.result(10) == report(run, folder, TODAY).source
    Path("link.html").symlink_to("linked.html")
    assert run("show", TODAY, "--html", "link.html", "--archive", str(folder)).code == 0
    assert Path("link.html").is_symlink()
    assert Path("linked.html").is_file()


def test_the_page_can_be_piped(run: Run, folder: Path) -> None:
    """`-` is the standard output."""
    done = run("show", TODAY, "--html", "-", "--archive", str(folder))
    assert done.out == report(run, folder, TODAY).source


def test_a_browser_shows_it(run: Run, folder: Path, server_missing: Callable[[str], NoReturn]) -> None:
    """In a real browser nothing is asked for, nothing runs, the style counts, and blocks and values fold."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        server_missing("Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        for reference in (HOSTILE, FULL):
            report(run, folder, reference)
            page.goto(Path("page.html").absolute().as_uri())
            assert page.evaluate("window.hacked") is None
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert said == []
        line = page.locator("#L4")
        assert line.is_visible()
        page.locator("#L3 > summary").click()
        assert not line.is_visible()
        value = page.locator("#L6 details.value")
        value.locator("> summary").click()
        assert value.locator(".v-group").first.is_visible()
        assert page.locator("h1").evaluate("element => getComputedStyle(element).fontWeight") == "600"
        browser.close()
