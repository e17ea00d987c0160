"""`docs/drivers.md`: its example passes its own tests, and is used by its URL, as any package's driver is."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.errors import ConfigurationError

DOCUMENT = Path(__file__).parents[1] / "docs" / "drivers.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which the document's package is imported, as if it were installed."""
    (driver, tests), (points,) = (
        [text for language, text in BLOCKS if language == wanted] for wanted in ("python", "toml")
    )
    folder = tmp_path / "packages"
    (folder / "trifle_box-1.0.dist-info").mkdir(parents=True)
    (folder / "trifle_box.py").write_text(driver, "utf-8")
    (folder / "test_box.py").write_text(tests, "utf-8")
    lines = re.sub(r'\[project\.entry-points\."(.+)"\]', r"[\1]", points).replace('"', "")
    (folder / "trifle_box-1.0.dist-info" / "entry_points.txt").write_text(lines)
    (folder / "trifle_box-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: trifle-box\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("trifle_box", None)


def test_the_example_passes_the_contract(package: Path) -> None:
    """The document's store, held to all that a store has to do by the document's own test file."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio", package / "test_box.py"],
        cwd=package,
        env={"PYTHONPATH": f"{package}:{DOCUMENT.parents[1]}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[0-9]{2} passed", done.stdout, re.MULTILINE)


def test_the_example_is_used_by_its_url(package: Path, tmp_path: Path) -> None:
    """A job records into it, and what it recorded is found, read, indexed anew and deleted."""
    url, index = f"box://{tmp_path}/traces.box?speed=9", f"sqlite://{tmp_path}/index.sqlite"
    trifle.configure(url, index=index)
    with trifle.tracer("jobs/one", mode="deferred") as job:
        trifle.trace("x" * 200_000)
        trifle.artifact("a.txt", "kept")
    assert trifle.flush(5)
    with Archive.open(url, index) as archive:
        assert archive.url == f"box://{tmp_path}/traces.box"
        assert len(archive.entries(job.reference)) == 3
        assert archive.artifact(job.reference, "a.txt") == b"kept"
        assert archive.reindex() == 1
        archive.delete(job.reference)
        assert list(archive.store.folders()) == []


def test_wrong_urls_of_a_driver_are_told(package: Path, tmp_path: Path) -> None:
    """It needs an index, says itself what is wrong with its URL, and one that cannot be loaded is named."""
    with pytest.raises(ConfigurationError, match="needs an index"):
        Archive.open("box:///x.box")
    with pytest.raises(ConfigurationError, match="it is box:///file"):
        Archive.open("box:", "memory:")
    with pytest.raises(ConfigurationError, match=r"driver of box: .*trifle_box:BoxIndex.* cannot be loaded"):
        Archive.open("memory:", "box:///x.box")
    with pytest.raises(ConfigurationError, match="unknown scheme 'boxes'"):
        Archive.open("boxes:///x.box", "memory:")


def test_the_example_is_short() -> None:
    """What the document says is little work is little work."""
    lines = [line for line in BLOCKS[0][1].splitlines() if line.strip()]
    assert len(lines) <= 55
