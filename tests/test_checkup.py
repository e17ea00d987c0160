"""`doctor`: what it finds in an archive that is well, and in ones that are not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.checkup import examine
from trifle_otel.cli import main
from trifle_otel.references import derived_reference
from trifle_otel.spool import Spool


def states(archive: Archive) -> dict[str, list[str]]:
    """What was looked at, and what was found."""
    found: dict[str, list[str]] = {}
    for finding in examine(archive):
        found.setdefault(finding.what, []).append(finding.state)
    return found


def test_a_sound_archive_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    """Everything is well, and no trace of the test stays behind."""
    trifle.configure(tmp_path / "a")
    with trifle.tracer("jobs/one"):
        pass
    assert trifle.flush(5)
    with Archive.open(tmp_path / "a") as archive:
        assert {state for found in states(archive).values() for state in found} == {"success"}
        assert [record.key for record in archive.search().records] == ["jobs/one"]
        assert [folder.key for folder in archive.store.folders()] == ["jobs/one"]


def test_stored_traces_that_the_index_does_not_know_are_named(tmp_path: Path) -> None:
    """An index that was lost is made anew by the next trace, and then looks well by itself."""
    lost = derived_reference(int(time.time() - 7200) * 1000, "lost")
    trifle.configure(tmp_path / "a")
    with trifle.tracer("jobs/one", reference=lost):
        pass
    assert trifle.flush(5)
    with Archive.open(tmp_path / "a") as archive:
        assert "unknown" not in states(archive)
        archive.index.delete([lost])
        with trifle.tracer("jobs/two"):
            pass
        assert trifle.flush(5)
        (finding,) = [finding for finding in examine(archive) if finding.what == "unknown"]
        assert finding.state == "warning"
        assert lost in finding.message
        assert "reindex" in finding.message
        archive.reindex()
        assert "unknown" not in states(archive)


def test_what_has_waited_for_long_and_what_was_put_aside_is_named(tmp_path: Path) -> None:
    """A spool that nobody ships, and one with traces that cannot be shipped, are warnings."""
    with Archive.open(tmp_path / "a") as archive:
        archive.setup()
        assert archive.spool is not None
        spool = Spool(archive.spool)
        folder = spool.folder("one")
        spool.write(folder, "record.json", b"{}")
        os.utime(f"{folder}/record.json", (time.time() - 7200, time.time() - 7200))
        (archive.spool / "unshippable" / "two").mkdir(parents=True)
        assert states(archive)["spool"] == ["success", "warning", "warning"]
        spool.forget()


def test_what_waits_for_another_url_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's name was mistyped, and mended: what waits for the wrong one is not forgotten."""
    with Archive.open(tmp_path / "a") as archive:
        archive.setup()
        monkeypatch.setattr(archive.store, "remote", True)
        archive.spool = tmp_path / "spool" / "this"
        other = Spool(tmp_path / "spool" / "other")
        other.write(other.folder("one"), "record.json", b"{}")
        found = [finding for finding in examine(archive) if finding.what == "spool"]
        assert [finding.state for finding in found] == ["success", "warning"]
        assert str(other.root) in found[1].message
        other.forget()


def test_what_is_shipped_while_it_is_looked_at_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that end meanwhile move what lay in the spool."""
    with Archive.open(tmp_path / "a") as archive:
        archive.setup()
        assert archive.spool is not None
        spool = Spool(archive.spool)
        spool.folder("one")
        monkeypatch.setattr(Path, "glob", lambda self, _: iter([self / "moved" / "record.json"]))
        assert states(archive)["spool"] == ["success"]
        spool.forget()


@pytest.mark.skipif(os.name == "nt", reason="permissions are Unix's")
def test_a_folder_that_others_may_open_is_named(tmp_path: Path) -> None:
    """An archive holds whatever jobs were called with: others on the machine should not read it by accident."""
    with Archive.open(tmp_path / "a") as archive:
        archive.setup()
        os.chmod(tmp_path / "a", 0o755)
        assert "warning" in states(archive)["permissions"]


def test_a_damaged_index_is_an_error_that_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the command that mends it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.sqlite").write_bytes(b"no database at all" * 100)
    assert main(["doctor", "--archive", str(tmp_path / "a")]) == 1
    out = capsys.readouterr().out
    assert "✗ error" in out
    assert "reindex" in out


def test_a_sound_archive_gives_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And JSON on request."""
    with Archive.open(tmp_path / "a") as archive:
        archive.setup()
    assert main(["doctor", "--json", "--archive", str(tmp_path / "a")]) == 0
    assert '{"what": "index", "state": "success"' in capsys.readouterr().out
