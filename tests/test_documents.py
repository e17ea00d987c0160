"""README and `docs/`: every sample is run, in the order of its page, and what is generated from the code is up to date.

A page becomes one program in a folder of its own: Python samples as they are, at their lines, shell samples by bash
where they stand. A sample with `title="name"` is a file of that name, for samples after it to run. A sample that needs
what a test has not (a server, a package index) says so in a comment before it; all such are listed here, so that the
mark does not spread. Where a command finds nothing on purpose, the comment names its exit code.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import pytest

import trifle_otel as trifle

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PROJECT = ROOT / "pyproject.toml"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

slow = pytest.mark.slow

NOT_RUN = {
    "README.md": {".ci/run runs it": 2, "installs packages": 3, "serves until it is stopped": 1},
    "bridge.md": {"needs Jaeger or Tempo": 1, "serves until it is stopped": 1},
    "conformance.md": {"needs another implementation": 1, "takes ten minutes": 1},
    "getting-started-celery.md": {"installs packages": 1, "needs Redis": 3},
    "getting-started-opentelemetry.md": {"installs packages": 1, "needs Jaeger or Tempo": 1},
    "getting-started-ruby.md": {"installs packages": 1, "needs S3 and MongoDB or PostgreSQL": 1},
    "operations.md": {"needs an S3 bucket": 1, "needs PostgreSQL": 1, "serves until it is stopped": 1},
    "security.md": {"needs root": 1, "needs the internet": 1},
}
"""Samples that are not run: for each page, why, and how many."""

CONTEXT = {
    "README.md": """
        def load(product): return {"number": product, "net": 100}
        def calculate(product): return product["net"] * 1.19
        html = "<p>page</p>"
        import trifle_otel as trifle
        trifle.configure(archive="./traces")
        with trifle.tracer("commodity/calculate/one", reference="01M85RBZMWKQ5T057R2XGV9YXE", tags=["product:9"]):
            trifle.fail()
        trifle.flush()
    """,
    "bridge.md": """
        import trifle_otel as trifle
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        provider = TracerProvider()
        open("app.py", "w").write("import trifle_otel")
    """,
    "integrations.md": """
        import celery as their_celery
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        import fastapi, flask
        class App(their_celery.Celery):  # stands for each framework's application
            add_middleware = fastapi.FastAPI().add_middleware
            flask = flask.Flask("shop")
            wsgi_app, url_map = flask.wsgi_app, flask.url_map
        app = App("shop", broker="memory://")
        pool, processes, numbers = ThreadPoolExecutor(), ProcessPoolExecutor(1), [1, 2]
    """,
    "troubleshooting.md": """
        import trifle_otel as trifle
        trifle.configure(archive="./traces")
        with trifle.tracer("jobs/one"):
            trifle.trace("A line")
    """,
}
"""What samples of a page take for granted, as its reader has it."""

ELSEWHERE = {("drivers.md", "python"): "test_drivers.py", ("drivers.md", "toml"): "test_drivers.py"}
"""Samples that other tests run."""

OUTPUT = {"text", "json"}
"""Languages of what is shown and is no sample."""


class Sample(NamedTuple):
    """A fenced block of a page; `line` is that of its first line, from 1."""

    page: str
    line: int
    language: str
    title: str
    text: str
    not_run: str
    code: int

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


_FENCE = re.compile(
    r"^(?:<!-- (?:not run: (?P<why>[^\n]+)|exit code (?P<code>[0-9]+)) -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


def samples_of(page: Path) -> list[Sample]:
    """All fenced blocks of a page."""
    text = page.read_text("utf-8")
    found = [
        Sample(
            page.name,
            text.count("\n", 0, match.start("text")) + 1,
            match["language"],
            match["title"] or "",
            match["text"],
            match["why"] or "",
            int(match["code"] or 0),
        )
        for match in _FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall("^ *```", text, re.MULTILINE)), f"{page.name} has fences that are not seen"
    return found


def program_of(page: Path) -> str:
    """A page as a Python program, whose lines are the page's."""
    lines = [""] * (page.read_text("utf-8").count("\n") + 1)
    lines[0] = "from context import *; from context import shell"
    for sample in samples_of(page):
        if sample.not_run or (sample.page, sample.language) in ELSEWHERE:
            continue
        if sample.title:
            lines[sample.line - 1] = f"open({sample.title!r}, 'w').write({sample.text!r})"
        elif sample.language == "sh":
            lines[sample.line - 1] = f"shell({sample.text!r}, {sample.code})"
        elif sample.language == "python":
            lines[sample.line - 1 : sample.line - 1 + sample.text.count("\n")] = sample.text.splitlines()
    return "\n".join(lines)


SHELL = '''
import subprocess

def shell(text, code):
    """Run a shell sample, once what was recorded is there to be found."""
    import trifle_otel
    trifle_otel.flush()
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], timeout=60)
    assert done.returncode == code, f"exit code {done.returncode}"
'''


def installed(folder: Path) -> Path:
    """A folder that tells of our entry points as an installation does: the tests may run from the sources."""
    groups = re.findall(
        r"^\[project\.entry-points\.([^\]]+)\]\n(.*?)\n\n", PROJECT.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    information = folder / "installed" / "trifle_otel-0.1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: trifle-otel\nVersion: 0.1.0\n")
    points = "\n".join(f"[{group}]\n{points}" for group, points in groups).replace('"', "")
    (information / "entry_points.txt").write_text(points)
    return information.parent


@slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_samples_of_a_page_run(page: Path, own_folder: Path) -> None:
    """One after the other, each with what those before it left; commands exit with 0, or as the page says."""
    pytest.importorskip("flask", reason="needs the extra `test`")
    if page.name == "getting-started-ruby.md":
        shutil.copytree(ROOT / "tests" / "golden" / "gzip" / "deferred" / "archive", own_folder / "archive")
    context = "\n".join(line[8:] for line in CONTEXT.get(page.name, "").splitlines())
    Path("context.py").write_text(SHELL + context, "utf-8")
    Path(page.stem.replace("-", "_") + ".py").write_text(program_of(page), "utf-8")
    paths = [str(own_folder), str(installed(own_folder)), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, page.stem.replace("-", "_") + ".py"],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "XDG_STATE_HOME": str(own_folder / "state"),
        },
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def test_samples_that_are_not_run_are_listed() -> None:
    """A mark that says why a sample is not run is one of those that are known."""
    marked: dict[str, dict[str, int]] = {}
    for page in PAGES:
        reasons = Counter(sample.not_run for sample in samples_of(page) if sample.not_run)
        if reasons:
            marked[page.name] = dict(reasons)
    assert marked == NOT_RUN


def test_every_sample_is_of_a_language_that_is_run() -> None:
    """A sample is Python or shell, a file that a sample after it uses, or run by another test; or it is output."""
    for page in PAGES:
        for sample in samples_of(page):
            known = sample.language in {"python", "sh"} | OUTPUT or (sample.page, sample.language) in ELSEWHERE
            assert known or sample.title or sample.not_run, f"{sample.place}: nobody runs {sample.language or 'this'}"


# what is generated


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """`docs/generate.py`, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_parts_are_up_to_date(page: Path, generate: ModuleType) -> None:
    """`python docs/generate.py` changes nothing."""
    text = page.read_text("utf-8")
    assert generate.filled(text) == text


def test_pages_have_the_generated_parts() -> None:
    """The settings, events and attributes are in the pages that are about them."""
    assert "<!-- generated: settings -->" in (ROOT / "docs" / "configuration.md").read_text("utf-8")
    conventions = (ROOT / "docs" / "conventions.md").read_text("utf-8")
    assert re.findall(r"<!-- generated: (\w+) -->", conventions) == ["events", "attributes"]


def test_the_readme_names_every_setting(generate: ModuleType) -> None:
    """Its table has a row for each setting, in the same order, with its default."""
    section = README.read_text("utf-8").split("\n## Settings\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))
    fields = generate.dataclasses.fields(generate.settings.Settings)
    assert list(rows) == [field.name for field in fields]
    defaults = generate.settings.Settings()
    for name, told in rows.items():
        default = getattr(defaults, name)
        written = str(default) if not isinstance(default, float) else f"{default:g}"
        if default is not None and name != "span_value_limit":
            assert f"`{written}`" in told, f"{name} is {written} by default"


def test_variables_that_are_no_settings_are_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is warned of a variable that the configuration's page names."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    named = re.findall(r"`(TRIFLE_[A-Z_]+)`", page.split("\n## Further variables\n")[1])
    others = [
        name for name in named if name not in {"TRIFLE_ARCHIVE", "TRIFLE_INDEX", "TRIFLE_SPOOL", "TRIFLE_BUMP_EVERY"}
    ]
    assert "TRIFLE_UI_TOKEN" in others
    for name in others:
        monkeypatch.setenv(name, "any")
    trifle.configure("./traces")
    assert caplog.messages == []


def test_metrics_are_told_alike() -> None:
    """The table of the metrics, which a test holds against the code in the README, is the same in the conventions."""

    def rows(path: Path) -> list[str]:
        row = r"^\| `trifle\.[a-z.]+` \| (?:counter|gauge|histogram), .+$"
        return re.findall(row, path.read_text("utf-8"), re.MULTILINE)

    assert rows(ROOT / "docs" / "conventions.md") == rows(README) != []


# the site


class _Fetched(HTMLParser):
    """What a browser fetches for a page without being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        url = given.get("src") if tag != "link" else given.get("href") if given.get("rel") != "canonical" else None
        if url:
            self.urls.append(url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as pages. A warning of mkdocs is an error."""
    pytest.importorskip("material", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), "--quiet"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("WARNING|ERROR", done.stderr), done.stderr
    return folder


@slow
def test_the_site_has_every_page_and_asks_nobody(site: Path) -> None:
    """Each document is a page, and no page names a script, style, picture or font of another host."""
    pages = {path.stem for path in site.glob("*.html")} - {"404"}
    assert pages == {page.stem for page in PAGES if page != README}
    for path in site.rglob("*.html"):
        fetched = _Fetched()
        fetched.feed(path.read_text("utf-8"))
        assert fetched.urls
        assert [url for url in fetched.urls if "//" in url.replace("///", "")] == [], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", path.read_text("utf-8")), path.name


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site, served by this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


@slow
def test_a_browser_asks_nobody_else(address: str, server_missing: Callable[[str], NoReturn]) -> None:
    """In Chromium, scripts included: the search finds, nothing is fetched from elsewhere, nothing overflows a phone."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        server_missing("Chromium")
    asked: list[str] = []
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index.html", "configuration.html", "peers.html"):
            page.goto(f"{address}/{name}")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.locator("label[for=__search]").first.click()
        page.get_by_placeholder("Search").press_sequentially("bump_every")
        page.locator(".md-search-result__link").first.wait_for(timeout=20_000)
        browser.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
