"""The web viewer in a real browser: what people do there, hostile contents, narrow screens, accessibility.

Needs Chromium (Debian's package) and Playwright, which drives it; the accessibility check needs axe-core, which
`tests/build_servers.sh` fetches.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("starlette", reason="needs the extra `viewer`")
pytest.importorskip("uvicorn", reason="needs the extra `viewer`")
pytest.importorskip("playwright", reason="needs the extra `test`")

import uvicorn
import viewing
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from viewing import Trace

from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part
from trifle_otel.records import RUNNING
from trifle_otel.viewer.app import make_app
from trifle_otel.viewer.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

AXE = "axe-core-4.14.1.js"
REFERENCE = "01KTEST{:019}"
FULL, HOSTILE, LIVE, MIXED, LONG = (f"/traces/{REFERENCE.format(number)}" for number in (50, 60, 70, 80, 90))
COMPARED = f"/compare?left={REFERENCE.format(1)}&right={REFERENCE.format(2)}"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EVERY_PAGE = [
    "/",
    "/?path=prices&tag=product%3A9&tag=store%3A7&since=2026-11-01",
    "/?since=nonsense",
    "/?path=none",
    FULL,
    f"{FULL}?view=problems",
    f"{FULL}?q=stone&line=1",
    f"{FULL}?q=end+of+it&line=31",
    f"{FULL}/lines/31?q=end+of+it",
    HOSTILE,
    LIVE,
    MIXED,
    f"{LONG}?line=1500",
    f"{LONG}?view=overview&fold=1",
    f"{FULL}/lines/32",
    f"{FULL}/artifacts/chart.png",
    f"{FULL}/artifacts/data.json",
    f"{FULL}/artifacts/raw.bin",
    COMPARED,
    f"/compare?left={HOSTILE[8:]}&right={FULL[8:]}",
    "/nowhere",
]
WATCH = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
        window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serves an application on this machine; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="module")
def browser(server_missing: Callable[[str], NoReturn]) -> Iterator[Browser]:
    """A Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        server_missing("Chromium (tests/build_servers.sh installs it)")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a viewer of an archive with something of everything."""
    with viewing.everything(tmp_path_factory.mktemp("archive")) as archive, served(make_app(archive)) as url:
        yield url


class Watched:
    """A browser's window, and what must not happen in it.

    Attributes:
        page: the window.
        complaints: errors on the console and in scripts, requests to elsewhere, dialogs.
    """

    def __init__(self, context: BrowserContext, site: str) -> None:
        self.context = context
        self.site = site
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.add_init_script(WATCH)
        self.page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        self.page.on("pageerror", lambda error: self._note(True, str(error)))
        self.page.on("dialog", lambda dialog: self._note(True, dialog.message))
        self.page.on("request", lambda request: self._note(not request.url.startswith(site), request.url))

    def _note(self, bad: bool, what: str) -> None:
        if bad and not re.search(r"status of 40[04]", what):  # pages that say what is wrong
            self.complaints.append(what)

    def go(self, url: str) -> Page:
        """Open a page, and wait until it is there."""
        self.page.goto(f"{self.site}{url}")
        self.page.wait_for_load_state("load")
        return self.page

    def check(self) -> None:
        """Nothing happened that must not."""
        assert self.complaints == []
        assert self.page.evaluate("window.violations") == []
        assert self.page.evaluate("window.hacked") is None


@pytest.fixture
def window(browser: Browser, site: str) -> Iterator[Watched]:
    """A window of a usual width; at the end nothing may have happened that must not."""
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    made = Watched(context, site)
    yield made
    made.check()
    context.close()


def test_looking_for_a_trace(window: Watched) -> None:
    """From the list one comes by a tab, a filter that is typed, and its chip, to a trace, and back by its path."""
    page = window.go("/")
    expect(page.locator(".trace")).to_have_count(8)
    page.keyboard.press("s")
    page.keyboard.type("product:9")
    page.keyboard.press("Enter")
    expect(page.locator(".chip-text")).to_have_text("product:9")
    expect(page.locator(".trace")).to_have_count(4)
    page.locator(".tabs a", has_text="Error").click()
    expect(page.locator(".trace")).to_have_count(1)
    page.get_by_label("Without tag product:9").click()
    expect(page.locator(".trace")).to_have_count(3)
    page.locator(".trace .call", has_text="prices/landed/good").click()
    expect(page.locator("h1")).to_contain_text("good")
    page.locator(".crumbs a", has_text="landed").click()
    expect(page.locator(".chip-text")).to_have_text("prices/landed")


def test_filters_are_filled_in(window: Watched) -> None:
    """Times and durations are filled into a form; what makes no sense is said, and stays to be corrected."""
    page = window.go("/")
    page.get_by_text("More filters").click()
    page.get_by_label("Took at least").fill("soon")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert")).to_contain_text("not a duration")
    page.get_by_label("Took at least").fill("30ms")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".trace")).to_have_count(2)


def test_charts_lead_to_their_period(window: Watched) -> None:
    """A column of a chart leads to the traces of its time."""
    page = window.go("/")
    page.locator(".chart .column").first.click()
    expect(page.locator(".trace")).to_have_count(1)
    expect(page.locator(".chip", has_text="since")).to_be_visible()


def test_pages_of_the_list(browser: Browser, tmp_path: Path) -> None:
    """Older traces are on the next page, and from there one comes back to the newest."""
    with Archive.open(tmp_path / "archive") as archive:
        for number in range(60):
            Trace("many/one", number=number, minutes_ago=number).store(archive)
        with served(make_app(archive)) as url:
            context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
            page = Watched(context, url).go("/")
            expect(page.locator(".trace")).to_have_count(50)
            page.get_by_role("link", name="Older").click()
            expect(page.locator(".trace")).to_have_count(10)
            page.get_by_role("link", name="Newest").click()
            expect(page.locator(".trace")).to_have_count(50)
            context.close()


def test_folding(window: Watched) -> None:
    """Blocks fold by a click, by the keyboard, and all at once; results unfold to trees, whose groups fold too."""
    page = window.go(FULL)
    inner = page.get_by_text("Rate of the country").first
    expect(inner).to_be_visible()
    page.locator("#L7 > details > summary .tx").click()
    expect(inner).to_be_hidden()
    page.locator("#L7 > details > summary").focus()
    page.keyboard.press("Enter")
    expect(inner).to_be_visible()
    page.keyboard.press("f")
    expect(inner).to_be_hidden()
    page.get_by_role("link", name="Unfold all").click()
    expect(inner).to_be_visible()
    result = page.locator("#L20")
    result.locator("summary").first.click()
    expect(result.locator(".v-name", has_text="gross")).to_be_visible()
    result.locator(".v-group .v-group > summary").first.click()
    expect(result.locator(".v-group .v-group .v-item").first).to_be_hidden()


def test_finding(window: Watched) -> None:
    """What is looked for is gone to on whatever page it is, marked, and from match to match by keys, over pages."""
    page = window.go(LONG)
    page.keyboard.press("/")
    page.keyboard.type("item 41")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"q=item\+41&line=289#L289"))
    expect(page.locator("#L289 mark").first).to_be_in_viewport()
    expect(page.locator(".found")).to_contain_text("1 of 14 lines")
    page.keyboard.press("n")
    expect(page.locator(".is-found")).to_have_attribute("id", "L294")
    page.keyboard.press("n")
    page.wait_for_url(re.compile(r"line=2872#L2872"))
    for _ in range(11):
        page.keyboard.press("n")
    expect(page.locator(".is-found")).to_have_count(1)
    last = page.locator(".is-found").get_attribute("id")
    page.keyboard.press("n")  # there is no further one
    expect(page.locator(".is-found")).to_have_attribute("id", str(last))
    page.reload()
    page.keyboard.press("p")
    page.wait_for_url(re.compile(r"line=294#L294"))
    page.keyboard.press("p")
    expect(page.locator(".is-found")).to_have_attribute("id", "L289")
    page.get_by_role("link", name="Only these lines").click()
    expect(page.locator(".ln.match")).to_have_count(14)


def test_a_match_beside_the_lines_is_led_to(window: Watched) -> None:
    """A text in a message that is stored beside the lines is found, and its page opens where it is."""
    page = window.go(FULL)
    page.keyboard.press("/")
    page.keyboard.type("END of it")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("line=31#L31"))
    expect(page.locator("#L31 mark")).to_have_text("end of it")
    page.locator("#L31 .rest").click()
    expect(page.locator(".file mark")).to_be_in_viewport()


def test_a_match_in_a_folded_result_is_shown(window: Watched) -> None:
    """A result that holds what is looked for is unfolded, and the match is marked in it."""
    page = window.go(f"{FULL}?q=%27gross%27")
    expect(page.locator("#L20 .whole mark")).to_be_visible()


def test_the_first_error_and_the_next_problem(window: Watched) -> None:
    """A link leads to the first error on whatever page; a key to the next error or warning, unfolding what it is in."""
    page = window.go(LONG)
    page.get_by_role("link", name="First error").click()
    page.wait_for_url(re.compile("line=2914#L2914"))
    expect(page.locator("#L2914")).to_be_in_viewport()
    page = window.go(f"/traces/{REFERENCE.format(3)}?fold=1")
    for number in (14, 15, 16):
        page.keyboard.press("e")
        expect(page.locator(".is-found")).to_have_attribute("id", f"L{number}")
        expect(page.locator(f"#L{number}")).to_be_in_viewport()


def test_the_next_problem_is_never_behind(browser: Browser, tmp_path: Path) -> None:
    """The key goes from problem to problem over pages, on from a match or a line that was gone to, and ends there."""
    trace = Trace("import/stock", number=1)
    states = {5: "warning", 9: "error", 1_500: "warning", 1_600: "error", 2_900: "warning"}
    for number in range(2, 3_001):
        trace.line("a match" if number in (7, 1_550) else "one", states.get(number, "success"))
    with Archive.open(tmp_path / "archive") as archive:
        trace.store(archive, "error")
        with served(make_app(archive)) as url:
            context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
            window = Watched(context, url)
            page = window.go(f"/traces/{trace.reference}")
            for number in (5, 9):
                press_and_see(page, "e", number)
            for number, key in ((1_500, "e"), (1_600, "e"), (2_900, "e")):
                press_and_see(page, key, number)
            page.keyboard.press("e")  # there is no further one
            page.wait_for_timeout(300)
            assert page.url.endswith("#L2900")
            page = window.go(f"/traces/{trace.reference}?q=a+match&line=1#L1")
            for number, key in ((7, "n"), (9, "e"), (1_500, "e"), (1_550, "n"), (1_600, "e")):
                press_and_see(page, key, number)
            page.locator("#L1590 .no").click()
            press_and_see(page, "e", 1_600)
            window.check()
            context.close()


def press_and_see(page: Page, key: str, number: int) -> None:
    """A key leads to a line, on this page or another."""
    page.keyboard.press(key)
    gone_to = page.locator(f"#L{number}.is-found, #L{number}:target")
    expect(gone_to).to_have_count(1)
    expect(gone_to).to_be_in_viewport()


def test_a_link_to_a_line_shows_it(window: Watched) -> None:
    """A copied link to a line opens its page with that line in sight, though blocks come folded."""
    page = window.go(f"{LONG}?line=2500&fold=1#L2500")
    expect(page.locator("#L2500")).to_be_in_viewport()
    page.locator("#L2500 .no").first.click()
    assert page.url.endswith("#L2500")


def test_pages_of_lines(window: Watched) -> None:
    """Keys lead to the next and the previous page; a number to its line."""
    page = window.go(LONG)
    page.keyboard.press("]")
    page.wait_for_url(re.compile("line=1001"))
    page.keyboard.press("[")
    page.wait_for_url(re.compile("line=1#L1|line=1$|line=1&"))
    page.get_by_label("Line", exact=True).first.fill("2345")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("line=2345"))
    expect(page.locator("#L2345")).to_be_attached()


def test_keys_can_be_turned_off(window: Watched) -> None:
    """Whoever needs letters for something else turns the keys off, and they stay off."""
    page = window.go(FULL)
    page.locator(".keys summary").click()
    page.get_by_label("Use these keys").uncheck()
    page = window.go(FULL)
    page.locator("main").focus()
    page.keyboard.press("/")
    expect(page.locator("#q")).not_to_be_focused()


def test_comparing(window: Watched) -> None:
    """From a trace one comes to the comparison with the one before, which names what differed first, and its lines."""
    page = window.go(f"/traces/{REFERENCE.format(2)}")
    page.get_by_role("link", name="Compare with it").click()
    expect(page.locator(".first")).to_contain_text("Tax › Rate of the country")
    expect(page.locator(".first del")).to_have_text("19")
    expect(page.locator(".first ins")).to_have_text("21")
    page.locator(".first a", has_text="line 8 of the second").click()
    expect(page.locator("#L8")).to_be_in_viewport()


def test_a_running_trace_is_followed(browser: Browser, tmp_path: Path) -> None:
    """New lines of a trace that runs come by themselves; what was folded stays folded; the end is shown, and final."""
    trace = viewing.running()
    with Archive.open(tmp_path / "archive") as archive:
        record = trace.store(archive, RUNNING)
        with served(make_app(archive)) as url:
            context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
            window = Watched(context, url)
            page = window.go(LIVE)
            expect(page.locator(".runs").first).to_contain_text("open, ")
            page.locator("#L3 > details > summary .tx").click()
            grow(archive, trace, 2, "half of it")
            expect(page.get_by_text("half of it")).to_be_visible(timeout=10_000)
            expect(page.get_by_text("20 rows")).to_be_hidden()
            page.evaluate("document.querySelector('#L1').classList.add('is-found')")
            grow(archive, trace, 3, "most of it")
            expect(page.get_by_text("most of it")).to_be_visible(timeout=10_000)
            expect(page.locator(".is-found")).to_have_attribute("id", "L1")  # where keys go on from
            page.get_by_label("Find in this trace", exact=True).last.focus()
            trace.closes("20").closes("done")
            archive.store.write(record.folder, "data_4.json.gz", encode_part(trace.entries[-4:]))
            archive.index.put([trace.record("success", parts=4)])
            with page.expect_response(lambda response: response.status == 200, timeout=10_000):
                pass  # the end has come, while somebody types
            expect(page.locator(".title .state")).to_contain_text("running")
            page.locator("main").focus()
            expect(page.locator(".title .state")).to_contain_text("success", timeout=10_000)
            expect(page.locator(".runs")).to_have_count(0)
            assert page.evaluate("document.body.dataset.refresh") == ""
            window.check()
            context.close()


def grow(archive: Archive, trace: Trace, part: int, message: str) -> None:
    """Add a line to a trace that runs."""
    trace.line(message)
    archive.store.write(trace.record().folder, f"data_{part}.json.gz", encode_part(trace.entries[-1:]))
    archive.index.put([trace.record(RUNNING, parts=part)])


def test_a_list_of_what_runs_is_followed(browser: Browser, tmp_path: Path) -> None:
    """A trace that begins while a list with a running one is looked at appears in it."""
    with Archive.open(tmp_path / "archive") as archive:
        viewing.running().store(archive, RUNNING)
        with served(make_app(archive)) as url:
            context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
            page = Watched(context, url).go("/")
            expect(page.locator(".trace")).to_have_count(1)
            page.get_by_text("As a table").click()
            viewing.price(1, minutes_ago=0).store(archive)
            expect(page.locator(".trace")).to_have_count(2, timeout=15_000)
            expect(page.get_by_role("table").get_by_text("Half took")).to_be_visible()  # what was unfolded stays so
            context.close()


def test_artifacts(window: Watched) -> None:
    """A picture is shown in its line; HTML and SVG are shown as text, and their bytes are downloads that do not run."""
    page = window.go(FULL)
    assert page.locator("#L22 img").evaluate("picture => picture.naturalWidth") == 8
    expect(page.locator("#L27 img")).to_be_hidden()  # named like one
    for name in ("page.html", "logo.svg"):
        page = window.go(f"{FULL}/artifacts/{name}")
        expect(page.locator("pre")).to_contain_text("window.hacked=1")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == name
        with page.expect_download(), pytest.raises(Exception, match="Download is starting"):
            page.goto(f"{window.site}{FULL}/data/{name}?show=1")


def test_nothing_that_was_recorded_runs(window: Watched) -> None:
    """On no page does hostile content run, load anything, or break what is around it."""
    for url in EVERY_PAGE:
        page = window.go(url)
        expect(page.locator("footer")).to_contain_text("Times are in UTC.")
        assert page.locator("main").count() == 1
        window.check()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_page_is_wider_than_the_screen(browser: Browser, site: str, viewport: dict[str, int]) -> None:
    """No page has to be scrolled sideways, a megabyte in one line or not; every line's text is within the screen."""
    context = browser.new_context(viewport=viewport)  # type: ignore[arg-type]
    window = Watched(context, site)
    for url in EVERY_PAGE:
        page = window.go(url)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), url
        outside = page.locator(".ln .tx").evaluate_all(
            "all => all.filter(e => e.getBoundingClientRect().right > innerWidth).length"
        )
        assert outside == 0, url
    context.close()


def test_reading_needs_no_javascript(browser: Browser, site: str) -> None:
    """Without JavaScript one looks for a trace, reads it, folds, finds, pages and compares all the same."""
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{site}/")
    page.locator("#add").fill("prices/landed")
    page.keyboard.press("Enter")
    expect(page.locator(".trace")).to_have_count(4)
    page.locator(".trace .call").first.click()
    page.locator("#L7 > details > summary .tx").click()
    expect(page.get_by_text("Rate of the country").first).to_be_hidden()
    page.locator("#q").fill("Publishing")
    page.keyboard.press("Enter")
    expect(page.locator("mark").first).to_be_in_viewport()
    page.get_by_role("link", name="Fold all").click()
    expect(page.locator("details.block[open]")).to_have_count(0)
    page.get_by_role("link", name="Compare with it").click()
    expect(page.locator(".compared")).to_be_visible()
    context.close()


def test_the_token_is_asked_for_once(browser: Browser, tmp_path: Path) -> None:
    """A form takes the token, and the cookie lets in from then on; its pages pass the policy too."""
    with Archive.open(tmp_path / "archive") as archive:
        viewing.price(1, minutes_ago=1).store(archive)
        with served(make_app(archive, Settings(token="a token of some length"))) as url:
            context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{url}/?state=success")
            assert page.locator(".together").evaluate("form => getComputedStyle(form).display") == "flex"  # our style
            page.get_by_label("token", exact=False).fill("wrong")
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_be_visible()
            page.locator("#token").fill("a token of some length")
            page.keyboard.press("Enter")
            expect(page.locator(".trace")).to_have_count(1)
            assert page.url == f"{url}/?state=success"
            page.goto(f"{url}/traces/{REFERENCE.format(1)}")
            expect(page.locator("h1")).to_contain_text("good")
            assert page.evaluate("document.cookie") == ""
            context.close()


def axe_script(server_missing: Callable[[str], NoReturn]) -> Path:
    """Where `build_servers.sh` puts axe-core."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    script = Path(os.environ.get("TRIFLE_TOOLS") or f"{cache}/trifle_otel/bin") / AXE
    if not script.exists():
        server_missing("axe-core (tests/build_servers.sh fetches it)")
    return script


@pytest.mark.parametrize("scheme, viewport", [("light", WIDE), ("dark", NARROW)], ids=["light", "dark and narrow"])
def test_pages_are_accessible(
    browser: Browser,
    site: str,
    scheme: Any,
    viewport: dict[str, int],
    server_missing: Callable[[str], NoReturn],
) -> None:
    """axe-core finds nothing to complain about on any page, light or dark, wide or narrow, with all unfolded."""
    axe = axe_script(server_missing).read_text()
    # The policy of the pages keeps axe out as it keeps everything out.
    context = browser.new_context(viewport=viewport, color_scheme=scheme, bypass_csp=True)  # type: ignore[arg-type]
    window = Watched(context, site)
    for url in EVERY_PAGE:
        page = window.go(url)
        page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
        page.evaluate(axe)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")
        said = [
            (each["id"], node["html"][:200], node["failureSummary"][:300])
            for each in found["violations"]
            for node in each["nodes"][:3]
        ]
        assert said == [], url
    context.close()
