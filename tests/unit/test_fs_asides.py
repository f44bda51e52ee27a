"""Large files that are deleted while they are open are copied aside in the bucket: no longer than somebody may read them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sluicefs.config import Config
from sluicefs.errors import AccessDeniedError
from sluicefs.fs import namespace
from sluicefs.fs.filesystem import FileSystem
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import find


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "KEEP_OPEN", 0)


def open_fs(store: MemoryStore, folder: Path, prefix: str = "") -> FileSystem:
    fs = FileSystem(Config("bucket", "/nowhere", prefix=prefix), store, str(folder))
    fs.take_over()
    return fs


def deleted_while_open(fs: FileSystem, store: MemoryStore) -> int:
    store.put(f"{fs.core.config.prefix}x", b"content")
    handle = fs.open(find(fs, "x").ino, os.O_RDONLY)
    fs.unlink(ROOT_INO, b"x")
    return handle


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("").objects]


@pytest.mark.parametrize("prefix", ["", "some/where/", ".sluicefs-orphans/"])
def test_what_a_crash_left_is_deleted_by_the_next_mount_and_what_a_live_one_keeps_is_not(tmp_path: Path, prefix: str) -> None:
    store, staging = MemoryStore(), tmp_path / "staging"
    staging.mkdir()
    fs = open_fs(store, staging, prefix)
    handle = deleted_while_open(fs, store)
    assert len(keys(store)) == 1
    shutil.copytree(staging, tmp_path / "crashed")
    beside = open_fs(store, staging, prefix)
    assert bytes(fs.read(handle, 0, 100)) == b"content"
    beside.close()
    store.put(f"{prefix}mine", b"")
    open_fs(store, tmp_path / "crashed", prefix).close()
    assert keys(store) == [f"{prefix}mine"]
    assert not list((tmp_path / "crashed").iterdir())
    fs.release(handle)
    fs.close()
    assert not list(staging.iterdir())


@pytest.mark.parametrize("open_still", [True, False])
def test_what_could_not_be_deleted_is_by_the_next_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_still: bool
) -> None:
    store = MemoryStore()
    fs = open_fs(store, tmp_path)
    handle = deleted_while_open(fs, store)

    def refused(key: str) -> None:
        raise AccessDeniedError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(fs.core.asides._store, "delete", refused)
        if not open_still:
            fs.release(handle)
        fs.close()
    assert len(keys(store)) == 1
    open_fs(store, tmp_path).close()
    assert not keys(store) and not list(tmp_path.iterdir())
