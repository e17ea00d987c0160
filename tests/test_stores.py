"""The payload stores: each passes the contract, and files keep their promises on a disk that is hostile or full."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import trifle_otel
from trifle_otel.errors import ConfigurationError, DamagedArchive, NotFound, StoreUnavailable
from trifle_otel.records import Folder
from trifle_otel.stores.contract import Store
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.testing import StoreContract, contents, local_folder, run_at_once

REPOSITORY = Path(trifle_otel.__file__).parents[1]
FOLDER = Folder(7, "commodity/calculate/one", "01KDYAK3SEABCDEFGHJKMNPQRS")


class TestFileStore(StoreContract):
    """Files pass the contract."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """A store in a folder that is not there yet."""
        return FileStore(tmp_path / "archive")


class TestMemoryStore(StoreContract):
    """Memory passes the contract."""

    @pytest.fixture
    def store(self) -> Store:
        """A new store."""
        return MemoryStore()


class BaseTake(FileStore):
    """Files, taken in one by one as the contract's own `take` does it for other stores."""

    take = Store.take


class TestContractsOwnTake(StoreContract):
    """What the contract does for stores that have no `take` of their own."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """A store without a rename."""
        return BaseTake(tmp_path / "archive")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the store."""
    return tmp_path / "archive"


@pytest.fixture
def store(root: Path) -> FileStore:
    """A store of files."""
    return FileStore(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount(["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)])
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def mount(arguments: list[str]) -> None:
    """Mount, or skip where that is not allowed."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, check=False, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


def leftovers(root: Path) -> list[str]:
    """Temporary files that were left behind."""
    return [path.name for path in root.rglob(".tmp-*")]


def test_the_layout_is_triflelike(store: FileStore, root: Path) -> None:
    """Files lie at `<retention>/<key>/<reference>/<name>` with their bytes, as Ruby's File driver has them."""
    store.write(FOLDER, "data_1.json.gz", b"part")
    store.write(FOLDER, "artifacts/sub dir/a.txt", b"artifact")
    base = root / "7/commodity/calculate/one/01KDYAK3SEABCDEFGHJKMNPQRS"
    assert (base / "data_1.json.gz").read_bytes() == b"part"
    assert (base / "artifacts/sub dir/a.txt").read_bytes() == b"artifact"


def test_nobody_else_may_read(store: FileStore, root: Path) -> None:
    """Folders are made for their owner alone, and so are files."""
    store.setup()
    store.write(FOLDER, "artifacts/a/b", b"x")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*")) if path.is_dir()}
    assert modes == {0o700}
    assert stat.S_IMODE((root / FOLDER.path / "artifacts/a/b").stat().st_mode) == 0o600


def test_a_new_trace_is_taken_by_one_rename(store: FileStore, root: Path, tmp_path: Path) -> None:
    """A folder that is taken for a new trace is the same folder afterwards, not a copy."""
    local = local_folder(tmp_path, {"data_1.json": b"x"})
    number = local.stat().st_ino
    store.take(FOLDER, local)
    assert (root / FOLDER.path).stat().st_ino == number


def test_the_record_comes_last(root: Path, tmp_path: Path) -> None:
    """Where files are moved one by one, `record.json` is the last of them."""
    order: list[str] = []

    class Watched(FileStore):
        def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
            order.append(name)
            super().write(folder, name, data)

    store = Watched(root)
    FileStore(root).write(FOLDER, "data_1.json", b"x")
    names = ["record.json", "artifacts/record.json", "artifacts/z", "data_2.json", "zzz"]
    store.take(FOLDER, local_folder(tmp_path, dict.fromkeys(names, b"x")))
    assert order == ["artifacts/record.json", "artifacts/z", "data_2.json", "zzz", "record.json"]


def test_taking_goes_on_where_it_stopped(root: Path, tmp_path: Path) -> None:
    """A take that failed half-way is finished by the next one, with nothing lost."""

    class Failing(FileStore):
        left = 2

        def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
            if not self.left:
                raise StoreUnavailable("full")
            self.left -= 1
            super().write(folder, name, data)

    FileStore(root).write(FOLDER, "data_1.json", b"1")
    store = Failing(root)
    local = local_folder(tmp_path, {f"data_{n}.json": str(n).encode() for n in range(2, 6)})
    with pytest.raises(StoreUnavailable):
        store.take(FOLDER, local)
    store.left = 9
    store.take(FOLDER, local)
    assert contents(store, FOLDER) == {f"data_{n}.json": str(n).encode() for n in range(1, 6)}


def test_taking_from_another_disk(small_disk: Path, store: FileStore) -> None:
    """A folder on another file system is copied in whole, and gone there."""
    local = local_folder(small_disk, {"data_1.json": b"1" * 9_000, "artifacts/a": b"a", "record.json": b"r"})
    store.take(FOLDER, local)
    assert contents(store, FOLDER) == {"artifacts/a": b"a", "data_1.json": b"1" * 9_000, "record.json": b"r"}
    assert not local.exists()


def test_a_full_disk_is_unavailable_and_leaves_no_half_file(small_disk: Path) -> None:
    """What does not fit is `StoreUnavailable`, and neither a half file nor a temporary one is left."""
    store = FileStore(small_disk / "archive")
    store.write(FOLDER, "data_1.json", b"x" * 1000)
    with pytest.raises(StoreUnavailable, match="No space left") as caught:
        store.write(FOLDER, "data_2.json", b"x" * 200_000)
    assert isinstance(caught.value.__cause__, OSError)
    assert store.names(FOLDER) == ["data_1.json"]
    assert leftovers(small_disk) == []
    store.write(FOLDER, "data_3.json", b"x" * 1000)


def test_a_full_disk_keeps_the_old_contents(small_disk: Path) -> None:
    """Replacing a file with one that does not fit leaves the file as it was."""
    store = FileStore(small_disk)
    store.write(FOLDER, "record.json", b"old")
    with pytest.raises(StoreUnavailable):
        store.write(FOLDER, "record.json", b"x" * 200_000)
    assert contents(store, FOLDER) == {"record.json": b"old"}


def test_a_read_only_disk(small_disk: Path, tmp_path: Path) -> None:
    """On a read-only file system reading works, and writing, taking and deleting are `StoreUnavailable`."""
    store = FileStore(small_disk)
    store.write(FOLDER, "data_1.json", b"x")
    mount(["-o", "remount,ro", str(small_disk)])
    assert contents(store, FOLDER) == {"data_1.json": b"x"}
    with pytest.raises(StoreUnavailable, match="Read-only"):
        store.write(FOLDER, "data_2.json", b"x")
    with pytest.raises(StoreUnavailable):
        store.take(FOLDER._replace(reference="other"), local_folder(tmp_path, {"data_1.json": b"x"}))
    with pytest.raises(StoreUnavailable):
        store.delete(FOLDER)
    assert (tmp_path / "local/data_1.json").exists()


def test_a_file_in_place_of_the_folder(root: Path, tmp_path: Path) -> None:
    """Where the archive's folder is a file, setting up says so, and writing and taking are `StoreUnavailable`."""
    root.write_text("not a folder")
    store = FileStore(root)
    with pytest.raises(ConfigurationError, match="not a folder"):
        store.setup()
    with pytest.raises(StoreUnavailable):
        store.write(FOLDER, "data_1.json", b"x")
    with pytest.raises(StoreUnavailable):
        store.take(FOLDER, local_folder(tmp_path, {"data_1.json": b"x"}))
    assert root.read_text() == "not a folder"


def test_the_folder_vanishes(store: FileStore, root: Path, tmp_path: Path) -> None:
    """After the whole archive was removed under it, a store writes and takes on, and finds nothing of before."""
    store.setup()
    store.write(FOLDER, "data_1.json", b"before")
    root.rename(tmp_path / "moved away")
    assert store.names(FOLDER) == []
    assert list(store.folders()) == []
    with pytest.raises(NotFound):
        store.open(FOLDER, "data_1.json")
    store.take(FOLDER, local_folder(tmp_path, {"data_2.json": b"after"}))
    store.write(FOLDER, "data_3.json", b"after")
    assert store.names(FOLDER) == ["data_2.json", "data_3.json"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the archive that links lead to; it holds a trace's file."""
    place = tmp_path / "outside"
    (place / "artifacts").mkdir(parents=True)
    (place / "data_1.json").write_bytes(b"secret")
    (place / "artifacts/a").write_bytes(b"secret")
    return place


@pytest.mark.parametrize("link", ["7", "7/commodity", "7/commodity/calculate/one", FOLDER.path])
def test_links_in_the_path_are_never_followed(
    store: FileStore, root: Path, outside: Path, tmp_path: Path, link: str
) -> None:
    """Where a folder on the way to a trace is a link, everything is refused, and what it leads to is untouched."""
    place = root / link
    place.parent.mkdir(parents=True)
    below = Path(FOLDER.path).relative_to(link)
    (outside / below).mkdir(parents=True, exist_ok=True)
    (outside / below / "data_1.json").write_bytes(b"secret")
    place.symlink_to(outside, target_is_directory=True)
    local = local_folder(tmp_path, {"data_2.json": b"x"})
    before = sorted(path.as_posix() for path in outside.rglob("*"))
    with pytest.raises(DamagedArchive, match="symbolic link"):
        store.open(FOLDER, "data_1.json")
    with pytest.raises(DamagedArchive):
        store.write(FOLDER, "data_2.json", b"x")
    with pytest.raises(DamagedArchive):
        store.names(FOLDER)
    with pytest.raises(DamagedArchive):
        store.delete(FOLDER)
    with pytest.raises((DamagedArchive, StoreUnavailable)):
        store.take(FOLDER, local)
    assert list(store.folders()) == []
    assert sorted(path.as_posix() for path in outside.rglob("*")) == before


def test_links_in_a_folder_are_never_followed(store: FileStore, root: Path, outside: Path) -> None:
    """Links among a trace's files are neither listed nor read; deleting the trace removes them alone."""
    place = root / FOLDER.path
    place.mkdir(parents=True)
    (place / "data_1.json").symlink_to(outside / "data_1.json")
    (place / "artifacts").symlink_to(outside / "artifacts")
    store.write(FOLDER, "data_2.json", b"x")
    assert store.names(FOLDER) == ["data_2.json"]
    for name in ("data_1.json", "artifacts/a"):
        with pytest.raises(DamagedArchive):
            store.open(FOLDER, name)
    with pytest.raises(DamagedArchive):
        store.write(FOLDER, "artifacts/b", b"x")
    store.delete(FOLDER)
    assert not place.exists()
    assert (outside / "data_1.json").read_bytes() == b"secret"
    assert sorted(path.name for path in (outside / "artifacts").iterdir()) == ["a"]


def test_writing_over_a_link_replaces_the_link(store: FileStore, root: Path, outside: Path) -> None:
    """A file that is written where a link lies takes its place; what the link led to stays as it was."""
    place = root / FOLDER.path
    place.mkdir(parents=True)
    (place / "data_1.json").symlink_to(outside / "data_1.json")
    store.write(FOLDER, "data_1.json", b"ours")
    assert contents(store, FOLDER) == {"data_1.json": b"ours"}
    assert (outside / "data_1.json").read_bytes() == b"secret"


def test_a_named_pipe_does_not_hang_a_reader(store: FileStore, root: Path) -> None:
    """What is neither file nor folder is damage, said at once."""
    place = root / FOLDER.path
    place.mkdir(parents=True)
    os.mkfifo(place / "data_1.json")
    with pytest.raises(DamagedArchive, match="not a regular file"):
        store.open(FOLDER, "data_1.json")
    assert store.names(FOLDER) == []


def test_only_traces_are_folders(store: FileStore, root: Path) -> None:
    """The spool, the index, strange retention classes, loose files and keyless references are passed over."""
    store.write(FOLDER, "data_1.json", b"x")
    for path in (
        *(".spool/7/a/ref/data_1.json", "index.sqlite", "seven/a/ref/data_1.json", "-7/a/ref/data_1.json"),
        *("٧/a/ref/data_1.json", "07/a/ref/data_1.json", "7/ref/data_1.json", "7/data_1.json", "7/a/empty/notes.txt"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    assert list(store.folders()) == [FOLDER]


def test_folders_that_are_nested_without_end_hide_no_trace(store: FileStore, root: Path) -> None:
    """Whoever may write into an archive cannot keep it from being listed, by depth or by length of a path."""
    store.write(FOLDER, "data_1.json", b"x")
    store.write(FOLDER._replace(reference="odd"), "artifacts/a", b"x")
    nest(root / "7", "k", 1500)
    nest(root / "7", "k" * 250, 20)
    nest(root / FOLDER._replace(reference="odd").path / "artifacts", "k", 1500)
    assert list(store.folders()) == [FOLDER]
    assert store.names(FOLDER._replace(reference="odd")) == ["artifacts/a"]
    store.delete(FOLDER._replace(reference="odd"))
    assert not (root / FOLDER._replace(reference="odd").path).exists()
    subprocess.run(["rm", "-rf", root / "7"], check=True)  # pytest's own cleaning up would nest as deeply


def nest(folder: Path, name: str, depth: int) -> None:
    """Make folders of one name in each other: a path of all of them may be longer than the system takes."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_deleting_removes_emptied_parents(store: FileStore, root: Path) -> None:
    """With a trace go the folders that it leaves empty, and no other."""
    other = FOLDER._replace(key="commodity/other")
    for folder in (FOLDER, other):
        store.write(folder, "data_1.json", b"x")
    store.delete(FOLDER)
    assert sorted(path.name for path in (root / "7/commodity").iterdir()) == ["other"]
    store.delete(other)
    assert list(root.iterdir()) == []


def test_cleaning_while_writing(store: FileStore) -> None:
    """Folders that a cleanup removes under a writer are made again: nothing written is lost."""
    done = threading.Event()
    failures: list[BaseException] = []

    def clean() -> None:
        other = FOLDER._replace(reference="other")
        try:
            while not done.is_set():
                store.write(other, "data_1.json", b"x")
                store.delete(other)
        except BaseException as error:
            failures.append(error)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for number in range(300):
            folder = FOLDER._replace(reference=f"ref-{number}")
            store.write(folder, "data_1.json", b"x")
            assert store.names(folder) == ["data_1.json"]
            store.delete(folder)
    finally:
        done.set()
        cleaner.join()
    assert failures == []


def test_readers_never_see_a_half_file(store: FileStore) -> None:
    """While a file is replaced again and again, every reader gets one of its contents, whole."""
    payloads = [bytes([number]) * 100_000 for number in range(2)]
    store.write(FOLDER, "record.json", payloads[0])

    def write() -> None:
        for number in range(100):
            store.write(FOLDER, "record.json", payloads[number % 2])

    def read() -> None:
        for _ in range(100):
            with store.open(FOLDER, "record.json") as stream:
                assert stream.read() in payloads

    run_at_once([write, read, read])


def test_half_written_files_of_a_dead_process_are_no_files(store: FileStore, root: Path) -> None:
    """A process killed while it writes leaves no file under the name, and what it left goes with the trace."""
    script = """
import os, pathlib, signal, sys
from trifle_otel.records import Folder
from trifle_otel.stores import files
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
files.FileStore(pathlib.Path(sys.argv[1])).write(Folder(7, "a", "ref"), "data_1.json", b"x" * 100_000)
"""
    died = subprocess.run([sys.executable, "-c", script, str(root)], check=False, cwd=REPOSITORY)
    assert died.returncode == -9
    folder = Folder(7, "a", "ref")
    assert len(leftovers(root)) == 1
    assert store.names(folder) == []
    assert list(store.folders()) == []
    store.delete(folder)
    assert leftovers(root) == []


def test_the_system_s_error_is_the_cause(root: Path) -> None:
    """The operating system's own error stays reachable behind ours."""
    root.write_text("")
    with pytest.raises(StoreUnavailable) as caught:
        FileStore(root).write(FOLDER, "data_1.json", b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ENOTDIR, errno.EEXIST)
