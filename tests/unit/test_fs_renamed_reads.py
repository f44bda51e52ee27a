"""Reads of what this mount is renaming: the bytes are there all the time, under one name or the other."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import Config
from sluicefs.errors import StoreError
from sluicefs.fs import rename
from sluicefs.fs.filesystem import FileSystem
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.api import ObjectInfo
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import failing, find, names


class HeldReads(MemoryStore):
    """A GetObject of a key in `held` waits for its event first."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    def get_into(self, key: str, *arguments: Any, **options: Any) -> ObjectInfo:
        self.asked.append(key)
        if key in self.held:
            assert self.held[key].wait(30)
        return super().get_into(key, *arguments, **options)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[HeldReads, FileSystem]]:
    store = HeldReads()
    fs = FileSystem(Config("bucket", "/nowhere"), store, str(tmp_path))
    yield store, fs
    assert not fs.sync_all()
    fs.close()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def read(fs: FileSystem, path: str) -> bytes:
    node = find(fs, path)
    handle = fs.open(node.ino, os.O_RDONLY)
    data = bytes(fs.read(handle, 0, 1 << 20))
    fs.release(handle)
    return data


@pytest.mark.parametrize("use", ["read", "append"])
def test_what_was_being_fetched_ahead_when_it_was_renamed_is_there_under_its_new_name(
    held: tuple[HeldReads, FileSystem], use: str
) -> None:
    """The fetch finds nothing under the old name: nobody else has changed anything."""
    store, fs = held
    for i in range(10):
        store.put(f"d/{i}", b"content")
    names(fs, "d")
    assert read(fs, "d/7") == b"content"
    version = find(fs, "d/7").file.version
    assert version is not None
    version.blocks.clear()  # it left memory
    store.held["d/7"] = threading.Event()
    store.asked.clear()
    for i in range(5):
        assert read(fs, f"d/{i}") == b"content"
    wait_until(lambda: "d/7" in store.asked)
    folder = find(fs, "d").ino
    fs.rename(folder, b"7", folder, b"x")
    threading.Timer(0.2, store.held["d/7"].set).start()
    if use == "read":
        assert read(fs, "d/x") == b"content"
    else:
        handle = fs.open(find(fs, "d/x").ino, os.O_RDWR)
        fs.write(handle, 7, b", more")
        fs.flush(handle)
        fs.release(handle)
        assert store.get("d/x")[1] == b"content, more"
    assert [info.key for info in store.list("d/").objects] == [f"d/{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)] + ["d/x"]


@pytest.mark.parametrize("limit", [rename.COPY_LIMIT, 1 << 20], ids=["copy", "copied in parts"])
@pytest.mark.parametrize("before", [True, False], ids=["read before", "first read"])
def test_an_open_file_is_read_while_it_is_renamed(
    held: tuple[HeldReads, FileSystem], monkeypatch: pytest.MonkeyPatch, before: bool, limit: int
) -> None:
    """Its old name is gone already, and the rename is not over. In parts, the copy has another ETag."""
    monkeypatch.setattr(rename, "COPY_LIMIT", limit)
    store, fs = held
    data = os.urandom(3 << 20)
    store.put("old", data)
    handle = fs.open(find(fs, "old").ino, os.O_RDONLY)
    if before:
        assert bytes(fs.read(handle, 0, 10)) == data[:10]
    real = store.delete

    def delete(key: str) -> None:
        real(key)
        assert bytes(fs.read(handle, 1 << 20, 4096)) == data[1 << 20 : (1 << 20) + 4096]

    monkeypatch.setattr(store, "delete", delete)
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    fs.release(handle)


def test_an_open_file_whose_rename_is_taken_back_goes_on_under_its_old_name(
    held: tuple[HeldReads, FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, fs = held
    data = os.urandom(3 << 20)
    store.put("old", data)
    handle = fs.open(find(fs, "old").ino, os.O_RDONLY)

    def delete(key: str) -> None:
        raise StoreError("refused")

    monkeypatch.setattr(store, "delete", delete)
    with failing(errno.EIO):
        fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    monkeypatch.undo()
    assert [info.key for info in store.list("").objects] == ["old"]
    assert bytes(fs.read(handle, 2 << 20, 4096)) == data[2 << 20 : (2 << 20) + 4096]
    fs.release(handle)
