"""What every payload store does, as tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trifle_otel.errors import NotFound, UsageError
from trifle_otel.records import Folder
from trifle_otel.stores.contract import Store
from trifle_otel.testing.samples import run_at_once


class StoreContract:
    """What every payload store does."""

    @pytest.fixture
    def store(self) -> Store:
        """The store to test, empty. Give your own."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self, store: Store) -> Folder:
        """A trace's folder in a bucket of the store."""
        return Folder(7, "commodity/calculate/one", "01KDYAK3SEABCDEFGHJKMNPQRS", store.pick_bucket())

    def test_bytes_are_read_as_written(self, store: Store, folder: Folder) -> None:
        """What was written under a name is read under it, byte for byte, empty contents too."""
        for name, data in (("data_1.json.gz", bytes(range(256)) * 300), ("artifacts/empty", b"")):
            store.write(folder, name, data)
            with store.open(folder, name) as stream:
                assert stream.read() == data

    def test_a_file_is_stored_and_kept(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Contents may come from a file, which stays where it is."""
        source = tmp_path / "source"
        source.write_bytes(b"contents" * 100_000)
        store.write(folder, "artifacts/a", source)
        with store.open(folder, "artifacts/a") as stream:
            assert stream.read() == b"contents" * 100_000
        assert source.exists()

    def test_writing_again_replaces(self, store: Store, folder: Folder) -> None:
        """The last contents of a name count, shorter ones too."""
        store.write(folder, "record.json", b"a longer text")
        store.write(folder, "record.json", b"short")
        with store.open(folder, "record.json") as stream:
            assert stream.read() == b"short"
        assert store.names(folder) == ["record.json"]

    def test_a_stream_can_be_read_in_pieces(self, store: Store, folder: Folder) -> None:
        """A stream gives as many bytes as are asked for, and nothing at its end."""
        store.write(folder, "artifacts/a", b"0123456789")
        with store.open(folder, "artifacts/a") as stream:
            assert [stream.read(4), stream.read(4), stream.read(4), stream.read(4)] == [b"0123", b"4567", b"89", b""]

    def test_names_are_all_names_sorted(self, store: Store, folder: Folder) -> None:
        """All names of a folder come sorted, artifacts in folders included, of this folder alone."""
        names = ["artifacts/b", "artifacts/sub dir/übersicht.txt", "data_1.json.gz", "data_10.json.gz", "record.json"]
        for name in reversed(names):
            store.write(folder, name, b"x")
        store.write(folder._replace(reference="01KDYAK3SEABCDEFGHJKMNPQRT"), "data_7.json", b"x")
        assert store.names(folder) == names

    def test_what_is_not_there_is_not_found(self, store: Store, folder: Folder) -> None:
        """An unknown name is `NotFound`; a folder that is not there has no names, and can be deleted."""
        assert store.names(folder) == []
        store.delete(folder)
        with pytest.raises(NotFound):
            store.open(folder, "data_1.json.gz")
        store.write(folder, "data_1.json.gz", b"x")
        for name in ("data_2.json.gz", "artifacts/data_1.json.gz", "data_1.json.gzx"):
            with pytest.raises(NotFound):
                store.open(folder, name)

    def test_a_source_that_is_not_there_is_not_found(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Storing a file that is not there is `NotFound`, and leaves nothing."""
        with pytest.raises(NotFound):
            store.write(folder, "artifacts/a", tmp_path / "missing")
        assert store.names(folder) == []

    def test_delete_takes_one_folder(self, store: Store, folder: Folder) -> None:
        """All of a folder is deleted, and nothing of its neighbours, whose paths begin alike."""
        others = [
            folder._replace(reference=folder.reference + "X"),
            folder._replace(key=f"{folder.key}/{folder.reference}", reference="below"),
            folder._replace(retention=70),
        ]
        for each in (folder, *others):
            for name in ("data_1.json", "record.json", "artifacts/a/b/c"):
                store.write(each, name, b"x")
        store.delete(folder)
        assert store.names(folder) == []
        for each in others:
            assert store.names(each) == ["artifacts/a/b/c", "data_1.json", "record.json"]

    def test_folders_are_all_folders(self, store: Store, folder: Folder) -> None:
        """Every trace's folder is found, whatever its key looks like, each once."""
        folders = {
            folder,
            folder._replace(reference="01KDYAK3SEABCDEFGHJKMNPQRT"),
            folder._replace(retention=180, key="Space Job/ünï/日本語"),
            folder._replace(key=f"{folder.key}/{folder.reference}", reference="below"),
            folder._replace(key="a", reference="only-a-record"),
        }
        for each in folders:
            if each.reference != "only-a-record":
                store.write(each, "data_1.json.gz", b"x")
                store.write(each, "artifacts/data_1.json", b"x")
            store.write(each, "record.json", b"x")
        found = list(store.folders())
        assert {each._replace(bucket=None) for each in found} == {each._replace(bucket=None) for each in folders}
        assert len(found) == len(folders)

    def test_a_local_folder_is_taken(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """A local folder becomes the trace's folder and is gone; calling again afterwards does no harm."""
        local = local_folder(tmp_path, {"data_1.json.gz": b"1", "record.json": b"r", "artifacts/a/b": b"ab"})
        store.take(folder, local)
        store.take(folder, local)
        assert not local.exists()
        assert contents(store, folder) == {"artifacts/a/b": b"ab", "data_1.json.gz": b"1", "record.json": b"r"}

    def test_a_local_folder_is_taken_into_one_that_is_there(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Files of a folder that is taken join those that are there, and replace those of the same name."""
        for name in ("data_1.json.gz", "record.json", "artifacts/a/b"):
            store.write(folder, name, b"old")
        store.take(
            folder, local_folder(tmp_path, {"data_2.json.gz": b"2", "record.json": b"new", "artifacts/a/c": b"ac"})
        )
        assert contents(store, folder) == {
            "artifacts/a/b": b"old",
            "artifacts/a/c": b"ac",
            "data_1.json.gz": b"old",
            "data_2.json.gz": b"2",
            "record.json": b"new",
        }

    def test_taking_what_was_never_there_is_not_found(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """A local folder that is not there, for a trace that is not there either, is `NotFound`."""
        with pytest.raises(NotFound):
            store.take(folder, tmp_path / "missing")

    def test_several_local_folders_are_taken(self, store: Store, folder: Folder, tmp_path: Path) -> None:
        """Folders taken together are all there and gone locally; one that is not there is told in its place."""
        moves = []
        for number in range(12):
            place = tmp_path / str(number)
            place.mkdir()
            files = {"data_1.json.gz": b"%d" % number, "record.json": b"r", "artifacts/a/b": b"ab"}
            moves.append((folder._replace(reference=f"ref-{number}"), local_folder(place, files)))
        moves.insert(5, (folder._replace(reference="missing"), tmp_path / "missing"))
        errors = store.take_many(moves)
        assert [type(error) for error in errors] == [type(None)] * 5 + [NotFound] + [type(None)] * 7
        del moves[5]
        for number, (each, local) in enumerate(moves):
            assert not local.exists()
            expected = {"artifacts/a/b": b"ab", "data_1.json.gz": b"%d" % number, "record.json": b"r"}
            assert contents(store, each) == expected

    def test_taking_no_folders_does_nothing(self, store: Store) -> None:
        """An empty batch has no results and leaves nothing."""
        assert store.take_many([]) == []
        assert list(store.folders()) == []

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../record.json", "artifacts/../../x", "/etc/passwd", "artifacts//x", "a\0b", "sub/x"]
    )
    def test_unsafe_names_are_refused(self, store: Store, folder: Folder, name: str) -> None:
        """A name that leads out of the folder, or is none, is `UsageError` for reading and writing."""
        with pytest.raises(UsageError):
            store.write(folder, name, b"x")
        with pytest.raises(UsageError):
            store.open(folder, name)

    @pytest.mark.parametrize(
        "changes",
        [
            {"key": "../x"},
            {"key": "a/../../../x"},
            {"key": "/etc"},
            {"key": ""},
            {"key": "a//b"},
            {"key": "a\0b"},
            {"key": "lone \udc80 surrogate"},
            {"reference": ".."},
            {"reference": "a/b"},
            {"reference": ""},
            {"retention": -1},
        ],
    )
    def test_unsafe_folders_are_refused(self, store: Store, folder: Folder, changes: dict[str, Any]) -> None:
        """A folder that leads elsewhere is `UsageError`, whatever is asked of it."""
        unsafe = folder._replace(**changes)
        with pytest.raises(UsageError):
            store.write(unsafe, "data_1.json", b"x")
        with pytest.raises(UsageError):
            store.names(unsafe)
        with pytest.raises(UsageError):
            store.delete(unsafe)

    def test_setup_and_check_harm_nothing(self, store: Store, folder: Folder) -> None:
        """Setting up twice and checking leave what is there, and no trace of themselves."""
        store.write(folder, "data_1.json", b"x")
        store.setup()
        store.setup()
        store.check()
        assert [each._replace(bucket=None) for each in store.folders()] == [folder._replace(bucket=None)]
        assert store.names(folder) == ["data_1.json"]

    def test_writers_at_once_leave_one_whole_file(self, store: Store, folder: Folder) -> None:
        """Of several threads that write one name at once, one wins with all of its bytes."""
        payloads = [bytes([number]) * 200_000 for number in range(6)]
        run_at_once([lambda data=data: store.write(folder, "data_1.json", data) for data in payloads])
        with store.open(folder, "data_1.json") as stream:
            assert stream.read() in payloads
        assert store.names(folder) == ["data_1.json"]


def local_folder(where: Path, files: dict[str, bytes]) -> Path:
    """A new folder below `where` with these files, as a spool hands it to a store."""
    local = where / "local"
    for name, data in files.items():
        path = local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return local


def contents(store: Store, folder: Folder) -> dict[str, bytes]:
    """Everything in a folder of a store."""
    found = {}
    for name in store.names(folder):
        with store.open(folder, name) as stream:
            found[name] = stream.read()
    return found
