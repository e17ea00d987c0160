"""What a hostile job, payload, spool or archive may do: nothing outside what is theirs, and nobody is shown a secret.

What each module does with bad input is tested beside it; here is what holds across them, by docs/security.md.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import io
import os
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import trifle_otel as trifle
from trifle_otel import Archive, encoding, grep, reading
from trifle_otel.checkup import examine
from trifle_otel.encoding import encode_record
from trifle_otel.errors import ConfigurationError, DamagedArchive, TrifleError
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.patterns import Pattern
from trifle_otel.plain_files import open_below, read_plain, write_anew
from trifle_otel.reading import read_entries
from trifle_otel.receiver.journal import Journal
from trifle_otel.runtime import Troubles
from trifle_otel.shipper import Shipper
from trifle_otel.spool import Spool, save
from trifle_otel.stores.contract import Store
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.stores.parallel import take_at_once
from trifle_otel.testing import sample_record

unix = pytest.mark.skipif(os.name == "nt", reason="permissions and links are Unix's here")

# --- what the sources do not do

RUNS_WHAT_IT_READS = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "jsonpickle", "joblib"),
    *("xml", "lxml", "code", "codeop", "imp"),
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "input"}
STARTS_PROGRAMS = {"run", "Popen", "call", "check_call", "check_output"}
# RQ hands options of ours to the workers that it spawns, pickled with the rest of its worker and unpickled by it
ALLOWED = {("rq.py", "pickle")}
FORBIDDEN_CALLS = {"os.system", "os.popen", "os.execl", "os.spawnl", "subprocess.getoutput", "tempfile.mktemp"}


def sources() -> list[Path]:
    """The source files of the package that is imported here."""
    spec = importlib.util.find_spec("trifle_otel")
    assert spec is not None
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a source could run what was read, as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in RUNS_WHAT_IT_READS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_WHAT_IT_READS:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_NAMES | FORBIDDEN_CALLS:
                yield called
            if called.endswith("import_module") and isinstance(node.args[0], ast.Constant):
                yield from {str(node.args[0].value).split(".")[0]} & RUNS_WHAT_IT_READS
            for keyword in node.keywords if called.rpartition(".")[2] in STARTS_PROGRAMS else ():
                if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                    yield "shell="


def test_nothing_runs_what_it_reads() -> None:
    """No module of the package unpickles, evaluates, loads YAML or XML, or hands a text to a shell."""
    paths = sources()
    assert len(paths) > 100
    assert {(path.name, what) for path in paths for what in dangers(ast.parse(path.read_bytes()))} == ALLOWED


@pytest.mark.parametrize(
    "source, danger",
    [
        ("import pickle", "pickle"),
        ("def f():\n    from yaml import load", "yaml"),
        ("import xml.etree.ElementTree as e", "xml.etree.ElementTree"),
        ("importlib.import_module('marshal')", "marshal"),
        ("eval('1')", "eval"),
        ("subprocess.run('ls', shell=True)", "shell="),
        ("subprocess.run('ls', shell=shell)", "shell="),
        ("os.system('ls')", "os.system"),
    ],
)
def test_the_reader_of_sources_sees_it(source: str, danger: str) -> None:
    """What the test above looks for is found where it is, and what is harmless is not."""
    assert list(dangers(ast.parse(source))) == [danger]
    assert list(dangers(ast.parse("import json\npattern.compile('a')\nsubprocess.run(['ls'], shell=False)"))) == []


# --- permissions

RECORDING = """
import os, sys
os.umask(int(sys.argv[2], 8))
import trifle_otel as trifle
from pathlib import Path
root = Path(sys.argv[1])
permissions = {"permissions": sys.argv[3]} if len(sys.argv) > 3 else {}
index = f"sqlite:///{root}/beside/index.sqlite"
archive = trifle.configure(root / "a", index=index, payload_size_limit=1024, **permissions)
with trifle.tracer("jobs/live") as job:
    trifle.trace("x" * 5000)
    trifle.artifact("sub/page.html", "<p>")
with trifle.tracer("jobs/deferred", mode="deferred"):
    trifle.trace("line")
assert trifle.flush(20)
print(job.reference)
from trifle_otel.receiver.journal import Journal
journal = Journal(root / "received")
journal.open()
entry = journal.write(b"request")
entry.left = 2
journal.settle({entry: [0, 1], journal.write(b"another"): [0]})
journal.write(b"waits")
with trifle.tracer("jobs/dies"):
    trifle.trace("line")
    sys.stdout.flush()
    from trifle_otel.runtime import runtime
    runtime().sink.bump(trifle.current())
    os._exit(0)
"""


def recorded(root: Path, umask: str, *permissions: str) -> str:
    """Have a child record with a umask, and die in the middle of a trace; a reference."""
    command = [sys.executable, "-c", RECORDING, str(root), umask, *permissions]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def modes(*roots: Path) -> dict[str, int]:
    """The permissions of all that lies below these folders, by path."""
    paths = [path for root in roots for path in (root, *sorted(root.rglob("*")))]
    return {str(path.relative_to(roots[0].parent)): stat.S_IMODE(path.stat().st_mode) for path in paths}


@unix
@pytest.mark.parametrize("umask", ["000", "077"])
def test_all_that_is_made_is_its_owners_alone(tmp_path: Path, umask: str) -> None:
    """Whatever the umask: archive, artifacts, index with its log, spool, and what a receiver keeps."""
    recorded(tmp_path, umask)
    found = modes(tmp_path / "a", tmp_path / "beside", tmp_path / "received")
    kinds = {path.rpartition("/")[2].partition("-")[0] for path in found}
    assert {"record.json", "page.html", "index.sqlite", "lock", "data_1.json.gz"} <= kinds
    assert any(path.endswith(".pb") for path in found)
    assert any(path.endswith(".log") for path in found)
    assert any(path.endswith("-wal") for path in found)
    folders = {path for path in found if (tmp_path / path).is_dir()}
    assert {path: oct(mode) for path, mode in found.items() if mode != (0o700 if path in folders else 0o600)} == {}


@unix
@pytest.mark.parametrize("umask", ["000", "077"])
def test_a_group_may_read_what_it_is_given(tmp_path: Path, umask: str) -> None:
    """With `permissions="group"` the archive and its index can be read by their group; the spool cannot."""
    recorded(tmp_path, umask, "group")
    found = modes(tmp_path / "a", tmp_path / "beside")
    private = {path: mode for path, mode in found.items() if "/.spool" in path}
    assert private
    for path, mode in found.items():
        folder = (tmp_path / path).is_dir()
        if path in private or path == "beside":
            assert oct(mode) == oct(0o700 if folder else 0o600), path
        else:
            assert oct(mode) == oct(0o750 if folder else 0o640), path


@unix
def test_folders_that_are_there_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that was opened to others on purpose is not closed, and one that was closed is not opened."""
    for number, (given, permissions) in enumerate(((0o2775, "private"), (0o700, "group"))):
        root = tmp_path / str(number)
        (root / "7/jobs").mkdir(parents=True)
        for folder in (root, root / "7", root / "7/jobs"):
            folder.chmod(given)
        (root / "index.sqlite").touch()
        (root / "index.sqlite").chmod(given & 0o666)
        monkeypatch.setenv("TRIFLE_PERMISSIONS", permissions)
        trifle.configure(root)
        with trifle.tracer("jobs/one"):
            pass
        assert trifle.flush(5)
        kept = [root, root / "7", root / "7/jobs"]
        assert {oct(stat.S_IMODE(folder.stat().st_mode)) for folder in kept} == {oct(given)}
        assert stat.S_IMODE((root / "index.sqlite").stat().st_mode) == given & 0o666


def test_permissions_that_mean_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a setting, and as a variable where an archive is only opened."""
    with pytest.raises(ConfigurationError, match="permissions='0644' is not allowed; it is 'private' or 'group'"):
        trifle.configure(tmp_path, permissions="0644")  # type: ignore[arg-type]
    monkeypatch.setenv("TRIFLE_PERMISSIONS", "public")
    with pytest.raises(ConfigurationError, match="'private' or 'group'"):
        Archive.open(tmp_path)


READING = """
import os, sys
from trifle_otel import Archive

def look():
    records = archive.search().records
    last = [entry.message for entry in archive.entries(records[0])][-1] if records else None
    print(len(records), last, flush=True)

archive = Archive.open(sys.argv[1])
look()  # loads all that is needed: the other user may not read where Python lies
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(65534)
archive = Archive.open(sys.argv[2])
for _ in sys.stdin:
    look()
try:
    archive.delete(archive.search().records[0])
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine may look into, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become another user")
def test_a_viewer_of_the_group_sees_what_a_worker_writes(tmp_path: Path, open_folder: Path) -> None:
    """Another user of the group reads the archive, sees each trace that comes, and can change nothing."""
    root = open_folder / "a"
    root.mkdir()
    os.chown(root, 0, 54321)
    root.chmod(0o2750)  # new folders get its group
    archive = trifle.configure(root, permissions="group")

    def record(line: str) -> None:
        with trifle.tracer("jobs/one"):
            trifle.trace(line)
        assert trifle.flush(5)

    record("line 1")
    archive.close()  # the last connection takes SQLite's log with it
    warm = trifle.configure(tmp_path / "warm")
    with trifle.tracer("jobs/one"):
        pass
    assert trifle.flush(5)
    warm.close()
    command = [sys.executable, "-c", READING, str(tmp_path / "warm"), str(root), "54321"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline().startswith("1 ")
        for number in range(1, 5):
            print(file=reader.stdin, flush=True)
            assert reader.stdout.readline() == f"{number} line {number}\n"
            trifle.configure(root, permissions="group")
            record(f"line {number + 1}")
        reader.stdin.close()
        assert reader.stdout.read() == "StoreUnavailable\n"
        assert reader.wait(10) == 0


@unix
def test_doctor_knows_what_the_group_is_meant_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `permissions` allows is no warning; what goes beyond it is one."""
    monkeypatch.setenv("TRIFLE_PERMISSIONS", "group")
    trifle.configure(tmp_path / "a")

    def said() -> list[str]:
        with Archive.open(tmp_path / "a") as archive:
            return [f"{found.state}: {found.message}" for found in examine(archive) if found.what == "permissions"]

    assert said() == [
        f"success: {tmp_path}/a is for its group to read",
        f"success: {tmp_path}/a/.spool is its owner's alone",
    ]
    (tmp_path / "a").chmod(0o777)
    assert "warning" in said()[0]
    assert "chmod 750" in said()[0]


# --- links, pipes and folders in the place of files

SECRET = b"a secret of this machine"


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file that a hostile writer wants to see, or to be overwritten; it stays as it is."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    yield path
    assert path.read_bytes() == SECRET


def pipe(path: Path, _: Path) -> None:
    """A named pipe that nobody writes to."""
    os.mkfifo(path)


def link(path: Path, target: Path) -> None:
    """A symbolic link."""
    path.symlink_to(target)


def dangling(path: Path, target: Path) -> None:
    """A symbolic link to what is not there yet."""
    path.symlink_to(target.with_name("made-through-a-link"))


def device(path: Path, _: Path) -> None:
    """A link to a device without end."""
    path.symlink_to("/dev/zero")


def folder(path: Path, _: Path) -> None:
    """A folder."""
    path.mkdir()


def hard_link(path: Path, target: Path) -> None:
    """A second name of the same file: nothing tells it from the first."""
    os.link(target, path)


odd = pytest.mark.parametrize("make", [link, dangling, pipe, device])


class Remote(MemoryStore):
    """A store that takes files as object storage does, several at once."""

    def take_many(self, moves: Any) -> list[Exception | None]:
        """As object storage does it."""
        return take_at_once(self, moves, 4)


stores = pytest.mark.parametrize("kind", [FileStore, MemoryStore, Remote])


def store_of(kind: type[Store], tmp_path: Path) -> Store:
    """A store of that kind."""
    return FileStore(tmp_path / "archive") if kind is FileStore else kind()


def stored(store: Store) -> bytes:
    """All bytes that a store would give to a reader."""
    found = b""
    for trace in store.folders():
        for name in store.names(trace):
            with store.open(trace, name) as stream:
                found += stream.read()
    return found


def hostile(root: Path, state: str = "success", **files: bytes) -> Path:
    """A trace in the spool of a process that is gone; its folder."""
    spool = Spool(root)
    local = Path(spool.folder("01KDYAK3SEABCDEFGHJKMNPQRS"))
    record = sample_record(state=state, parts=1, length=1)
    save(spool, str(local), {"data_1.json": b'[{"at":1,"message":"x"}]', **files}, encode_record(record))
    spool.forget()
    return local


def adopted(root: Path, store: Store) -> tuple[MemoryIndex, Troubles]:
    """Have what is in a spool shipped; what came into the index, and what was said."""
    index, troubles = MemoryIndex(), Troubles(None)
    Shipper(store, index, Spool(root), troubles).adopt()
    return index, troubles


@unix
@pytest.mark.timeout(60)
@odd
@stores
@pytest.mark.parametrize(
    "name", ["data_2.json", "data_2.json.gz", "artifacts", "artifacts/a", "journal_2.json", ".record.json"]
)
def test_a_spool_leads_nowhere(
    tmp_path: Path, secret: Path, kind: type[Store], make: Callable[[Path, Path], None], name: str
) -> None:
    """What a hostile process leaves in a trace's folder instead of files is neither read, nor followed, nor written
    through, and the trace is brought in all the same."""
    for state in ("success", "running"):
        local = hostile(tmp_path / state, state)
        (local / name).parent.mkdir(exist_ok=True)
        make(local / name, secret)
        store = store_of(kind, tmp_path / state)
        index, _ = adopted(tmp_path / state, store)
        assert index.find("01KDYAK3SEABCDEFGHJKMNPQRS") is not None
        assert SECRET not in stored(store)
        assert not secret.with_name("made-through-a-link").exists()


@unix
@pytest.mark.timeout(60)
@odd
@pytest.mark.parametrize("name", ["lock", "record.json", "rows-1.json"])
def test_what_a_spool_needs_is_read_where_it_is_a_file_alone(
    tmp_path: Path, secret: Path, make: Callable[[Path, Path], None], name: str
) -> None:
    """A lock, record or note that leads elsewhere is none; what other processes left is brought in all the same."""
    local = hostile(tmp_path / "spool")
    place = (local if name == "record.json" else local.parent) / name
    place.unlink(missing_ok=True)
    make(place, secret)
    other = Spool(tmp_path / "spool")
    record = sample_record(reference="another")
    save(other, other.folder("another"), {}, encode_record(record))
    other.forget()
    store = MemoryStore()
    index, _ = adopted(tmp_path / "spool", store)
    assert index.find("another") is not None
    assert SECRET not in stored(store)
    assert not secret.with_name("made-through-a-link").exists()


@unix
def test_what_is_too_old_is_dropped_where_it_lies(tmp_path: Path, secret: Path) -> None:
    """Bounding a spool removes links, and never what they lead to."""
    from trifle_otel.adoption import Adopter

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    local = hostile(tmp_path / "spool")
    link(local.parent / "a-folder", outside)
    link(local.parent / "rows-1.json", secret)
    troubles = Troubles(None)
    Adopter(MemoryStore(), MemoryIndex(), Spool(tmp_path / "spool"), troubles, age=-1).bound(0, down=True)
    assert not local.exists()
    assert not os.path.lexists(local.parent / "a-folder")
    assert (outside / "kept").exists()


@unix
def test_a_closed_trace_is_written_into_no_file_of_others(tmp_path: Path, secret: Path) -> None:
    """A hard link that lies where the last part goes, or in the place of a damaged one, is replaced, not written to."""
    local = hostile(tmp_path / "spool", "running")
    hard_link(local / "data_2.json", secret)  # damaged: it is mended
    hard_link(local / "data_3.json", secret)
    index, _ = adopted(tmp_path / "spool", FileStore(tmp_path / "a"))
    record = index.find("01KDYAK3SEABCDEFGHJKMNPQRS")
    assert record is not None
    assert record.parts == 4


@pytest.mark.timeout(30)
def test_a_dead_process_claims_very_many_parts(tmp_path: Path) -> None:
    """Its number of parts is a number, not work to be done; and thousands of files are looked at once."""
    local = hostile(tmp_path, "running")
    record = sample_record(state="running", parts=10**12)
    (local / "record.json").write_bytes(encode_record(record))
    for number in range(2, 3000):
        (local / f"data_{number}.json").write_bytes(b"[]")
    index, _ = adopted(tmp_path, MemoryStore())
    assert index.find(record.reference) is not None
    more = hostile(tmp_path, "running")
    for number in range(2, 3000):
        (more / f"data_{number}.json").write_bytes(b"[]")
    index, _ = adopted(tmp_path, MemoryStore())
    found = index.find(record.reference)
    assert found is not None
    assert found.parts == 3000


@unix
@odd
def test_a_receivers_journal_leads_nowhere(tmp_path: Path, secret: Path, make: Callable[[Path, Path], None]) -> None:
    """What a receiver that died left is taken where it is a file alone."""
    left = Journal(tmp_path / "received")
    left.open()
    entry = left.write(b"request")
    own = Path(entry.path).parent
    left._spool.forget()
    make(own / "0000000009.pb", secret)
    make(own / "done-0000000010.log", secret)
    journal = Journal(tmp_path / "received")
    assert [each.read() for each in journal.adopt()] == [b"request"]
    journal.close()


@unix
def test_no_folder_becomes_a_link_while_it_is_read(tmp_path: Path, secret: Path) -> None:
    """Each folder on the way is opened from the one before: a path is not looked at first and followed then."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"x")
    with os.fdopen(open_below(str(tmp_path), "a/b/file"), "rb") as stream:
        assert stream.read() == b"x"
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "d").symlink_to(secret)
    for path in ("c/b/file", "d"):
        with pytest.raises(DamagedArchive, match="links are not followed"):
            open_below(str(tmp_path), path)
    for path in ("a/missing/file", "a/b/missing", "a/b/file/more"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            open_below(str(tmp_path), path)
    with pytest.raises(DamagedArchive):
        open_below(str(tmp_path), "a/b")


@unix
def test_hard_links_are_read_and_never_written_to(tmp_path: Path, secret: Path) -> None:
    """Backups are made of hard links, so they are files like others; a write replaces one, and a delete unlinks it."""
    store, record = FileStore(tmp_path / "a"), sample_record()
    place = tmp_path / "a" / record.folder.path
    place.mkdir(parents=True)
    hard_link(place / "data_1.json", secret)
    with store.open(record.folder, "data_1.json") as stream:
        assert stream.read() == SECRET
    store.write(record.folder, "data_1.json", b"ours")
    hard_link(place / "data_2.json", secret)
    store.delete(record.folder)
    assert not place.exists()


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    """Of a file that somebody else made, no more than what can be meant is held in memory."""
    write_anew(tmp_path / "a", b"12345")
    assert read_plain(tmp_path / "a", 5) == b"12345"
    with pytest.raises(DamagedArchive, match="larger than 4 bytes"):
        read_plain(tmp_path / "a", 4)


# --- archives of somebody else: what an index or a record says about places


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../../outside"},
        {"key": "/outside"},
        {"key": "a//b"},
        {"key": "."},
        {"reference": "../../../outside"},
        {"reference": ".."},
        {"key": "a\0b"},
    ],
)
def test_a_record_that_leads_outside(tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Reading and deleting refuse it, and the clean-up goes on with the next one."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/data_1.json").write_bytes(SECRET)
    store, index = FileStore(tmp_path / "archive/root"), MemoryIndex()
    archive = Archive(store, index)
    wrong, right = sample_record(**changes), sample_record(reference="zz", key="jobs/one")
    store.write(right.folder, "data_1.json", b"[]")
    index.put([wrong, right])
    with pytest.raises(TrifleError):
        archive.entries(wrong)
    with pytest.raises(TrifleError):
        archive.artifact(wrong, "data_1.json")
    assert archive.cleanup(now=right.expires_at + timedelta(days=1)) == 2
    assert store.names(right.folder) == []
    assert (tmp_path / "outside/data_1.json").read_bytes() == SECRET
    assert "is left where it is" in caplog.text


@unix
def test_a_trace_that_is_a_link_holds_up_no_clean_up(tmp_path: Path, secret: Path) -> None:
    """Its row goes, the link and what it leads to stay, and the rest is deleted."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data_1.json").write_bytes(SECRET)
    store, index = FileStore(tmp_path / "a"), MemoryIndex()
    archive = Archive(store, index)
    first, second = sample_record(reference="a"), sample_record(reference="b")
    store.write(second.folder, "data_1.json", b"[]")
    (tmp_path / "a" / first.folder.path).symlink_to(outside)
    index.put([first, second])
    archive.cleanup(now=first.expires_at + timedelta(days=1))
    assert index.find("a") is index.find("b") is None
    assert (outside / "data_1.json").exists()
    assert not (tmp_path / "a" / second.folder.path).exists()
    assert archive.reindex() == 0


@pytest.mark.timeout(20)
def test_an_index_that_forgets_nothing_ends_the_clean_up() -> None:
    """A trigger in a file of SQLite, made by somebody else, may put back what is deleted: that is damage."""

    class Stubborn(MemoryIndex):
        """Keeps everything."""

        def delete(self, references: Sequence[str]) -> None:
            """Do nothing."""

    index = Stubborn()
    index.put([sample_record()])
    with pytest.raises(DamagedArchive, match="keeps what is deleted"):
        Archive(MemoryStore(), index).cleanup()


# --- limits


def bomb(entries: int) -> tuple[bytes, int]:
    """A part that is small, and how large it is when unpacked."""
    plain = b"[" + b",".join([b'{"at":1,"message":"x"}'] * entries) + b"]"
    return gzip.compress(plain), len(plain)


def test_many_parts_unpack_to_no_more_than_one_limit() -> None:
    """Each part may be within its limit: what all of them hold together is bounded, and the rest is named."""
    store, record = MemoryStore(), sample_record(parts=5)
    data, size = bomb(100)
    for number in range(1, 6):
        store.write(record.folder, encoding.part_name(number), data)
    found = read_entries(store, record.folder, 5, most=2 * size + size // 2)
    assert 200 <= len(found) < 300
    assert [damage.part for damage in found.damaged] == [3, 4, 5]
    assert len(read_entries(store, record.folder, 5)) == 500


@pytest.mark.parametrize("unit", [b"{}", b'{"a":[]}', b'{"a":[[[]]]}'])
def test_parts_of_very_many_small_values_are_not_built(monkeypatch: pytest.MonkeyPatch, unit: bytes) -> None:
    """What takes two bytes in JSON takes a hundred in memory: that is bounded. Brackets in texts are none."""
    monkeypatch.setattr(reading, "MAX_TRACE_VALUES", 1000)
    store, record = MemoryStore(), sample_record(parts=4)
    for number in range(1, 5):
        store.write(record.folder, encoding.part_name(number), gzip.compress(b"[%s]" % b",".join([unit] * 900)))
    found = read_entries(store, record.folder, 4)
    assert len(found) <= 1800
    assert [damage.part for damage in found.damaged][-2:] == [3, 4]
    assert "more than the 1,000 values" in str(found.damaged[-1])
    text = b'[{"at":1,"message":"%s \\" [ {"}]' % (b"[{" * 5_000)
    for number in range(1, 5):
        store.write(record.folder, encoding.part_name(number), gzip.compress(text))
    assert len(read_entries(store, record.folder, 4)) == 4


def test_grep_unpacks_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search holds what is read of a trace, which has the same bound."""
    store, record = MemoryStore(), sample_record(parts=3, length=300)
    data, size = bomb(100)
    for number in range(1, 4):
        store.write(record.folder, encoding.part_name(number), data)
    unpacked: list[int] = []
    unpack = encoding.unpack_part

    def unpacking(part: bytes, *, limit: int = encoding.MAX_PART_BYTES) -> bytes | None:
        contents = unpack(part, limit=limit)
        unpacked.append(len(contents or b""))
        return contents

    monkeypatch.setattr(encoding, "unpack_part", unpacking)
    monkeypatch.setattr(grep, "Room", lambda: reading.Room(size))
    list(grep.search(store, [record], Pattern("nothing")))
    assert sum(unpacked[:2]) <= 2 * size


def test_a_record_is_read_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `record.json` of gigabytes is not read into memory when an index is rebuilt, or when a row is looked up."""
    from trifle_otel.adoption import is_stored

    store, record = MemoryStore(), sample_record()
    store.write(record.folder, "record.json", encode_record(record))
    store.write(record.folder, "data_1.json", b'[{"at":1767323045,"message":"x"}]')
    assert is_stored(store, record)
    monkeypatch.setattr(encoding, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("trifle_otel.adoption.MAX_RECORD_BYTES", 100)
    assert not is_stored(store, record)
    archive = Archive(store, MemoryIndex())
    assert archive.reindex() == 1  # derived from the entries
    assert archive.find(record.reference).tags == ()


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000, b'[{"message":' + b"[" * 100_000])
def test_deep_json_is_damage(nested: bytes) -> None:
    """Of a part, a record, and a cursor; nothing overflows."""
    with pytest.raises(DamagedArchive):
        encoding.decode_part(nested, compressed=False)
    with pytest.raises(DamagedArchive):
        encoding.decode_record(nested)


def test_a_large_artifact_is_printed_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`show --artifact` into a pipe holds a piece of it at a time."""
    pytest.importorskip("cyclopts")
    from trifle_otel.cli.show import _print_artifact

    class Endless(io.RawIOBase):
        """Gives a hundred megabytes, and remembers the largest piece that was asked for."""

        given, largest = 0, 0

        def read(self, size: int = -1) -> bytes:
            """Zeros."""
            assert size > 0, "all of it at once"
            self.largest = max(self.largest, size)
            self.given += size
            return bytes(size) if self.given <= 100 << 20 else b""

    stream = Endless()
    archive = Archive(MemoryStore(), MemoryIndex())
    monkeypatch.setattr(archive, "open_artifact", lambda *_: stream)
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert _print_artifact(archive, sample_record(), "a") == 0
    assert stream.largest <= 1 << 20
    assert (tmp_path / "out").stat().st_size == 100 << 20


# --- secrets

PASSWORD = "s3cr3t-Horse"
PLACES = {
    "a password of PostgreSQL": ["--index", f"postgresql://joe:{PASSWORD}@127.0.0.1:1/d"],
    "one in its query": ["--index", f"postgresql://joe@127.0.0.1:1/d?password={PASSWORD}"],
    "one of MongoDB": ["--index", f"mongodb://joe:{PASSWORD}@127.0.0.1:1/d?serverSelectionTimeoutMS=50"],
    "one that is not quoted": ["--index", f"mongodb://joe:{PASSWORD}/x@127.0.0.1:1/d"],
    "a scheme with a typo": ["--index", f"postgrse://joe:{PASSWORD}@h/d"],
    "one with an @": ["--index", f"postgrse://joe:a@{PASSWORD}@h/d"],
    "one in the query of a typo": ["--index", f"postgrse://joe@h/d?password={PASSWORD}"],
    "a forgotten colon": ["--index", f"postgresql//joe:{PASSWORD}@h/d"],
    "a key of object storage": ["--archive", f"s3://AKIAEXAMPLE:{PASSWORD}@bucket/x", "--index", "memory:"],
    "a secret among its options": ["--archive", f"s3://bucket/x?secret_access_key={PASSWORD}", "--index", "memory:"],
    "one in its endpoint": ["--archive", f"s3://b/x?endpoint=http://joe:{PASSWORD}@127.0.0.1:1", "--index", "memory:"],
    "one for a file": ["--archive", f"file://joe:{PASSWORD}@host/x"],
    "one for a scheme that there is not": ["--archive", f"ftp://joe:{PASSWORD}@host/x"],
}
COMMANDS = [["ls"], ["show", "01"], ["search"], ["doctor"], ["doctor", "--json"], ["setup"], ["reindex"], ["cleanup"]]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_command_shows_a_password(
    place: list[str], own_folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with a URL, or out of reach: nothing on either stream, and nothing in the log."""
    for package in ("cyclopts", "psycopg", "pymongo", "obstore"):
        pytest.importorskip(package)
    from trifle_otel.cli import main

    for command in COMMANDS:
        main([*command, *place])
        out, err = capsys.readouterr()
        assert out + err
        assert PASSWORD not in out + err + caplog.text, command
        assert "Traceback" not in err


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_process_that_records_shows_a_password(
    place: list[str], own_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Configured in code or by variables; neither in the log nor in an error, its causes included."""
    for package in ("psycopg", "pymongo", "obstore"):
        pytest.importorskip(package)
    options = dict(zip(place[::2], place[1::2], strict=True))
    archive, index = options.get("--archive", str(own_folder / "a")), options.get("--index")
    shown: list[str] = []
    try:
        trifle.configure(
            archive, index=index, exit_timeout=0.1, error_handler=lambda error: shown.append(said_of(error))
        )
    except ConfigurationError as error:
        shown.append(said_of(error))
    else:
        with trifle.tracer("jobs/one"):
            pass
        trifle.flush(0.3)
    monkeypatch.setenv("TRIFLE_EXIT_TIMEOUT", "0.1")
    monkeypatch.setenv("TRIFLE_ARCHIVE", archive)
    if index:
        monkeypatch.setenv("TRIFLE_INDEX", index)
    with trifle.tracer("jobs/two"):
        pass
    trifle.flush(0.1)
    assert shown or caplog.text
    assert PASSWORD not in "".join(shown) + caplog.text


def said_of(error: BaseException | None) -> str:
    """All that a traceback of an error would say of it and of its causes."""
    return "".join(traceback.format_exception(error)) if error is not None else ""


def test_tokens_are_not_shown(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the receiver and of the viewer, of headers, and of an endpoint's URL; not by --help either."""
    pytest.importorskip("cyclopts")
    pytest.importorskip("uvicorn")
    from trifle_otel.cli import main

    environment = {
        "TRIFLE_TOKEN": PASSWORD,
        "TRIFLE_UI_TOKEN": PASSWORD,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{PASSWORD}",
    }
    with trifle.configure(own_folder / "a"), trifle.tracer("jobs/one") as job:
        pass
    assert trifle.flush(5)
    place = ["--archive", str(own_folder / "a")]
    with pytest.MonkeyPatch.context() as context:
        for name, value in environment.items():
            context.setenv(name, value)
        for command in (
            ["receive", "--help"],
            ["ui", "--help"],
            ["ui", "--host", "256.0.0.1", *place],
            ["receive", "--port", "99999", *place],
            ["ui", "--replay", f"http://joe:{PASSWORD}@127.0.0.1:bad", *place],
            ["replay", job.reference, "--endpoint", f"http://joe:{PASSWORD}@127.0.0.1:1", *place],
            ["doctor", *place],
        ):
            main(command)
            out, err = capsys.readouterr()
            assert out + err
            assert PASSWORD not in out + err, command
            assert "Traceback" not in err
