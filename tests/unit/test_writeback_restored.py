"""Back mode after a crash, and before one: what is written or renamed then, and attributes that were set before an fsync."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import MiB
from sluicefs.fs.filesystem import SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore
from tests.unit.test_writeback import ME, content, content_of, create, full_disk, open_fs, taken_over


@pytest.mark.parametrize("mode", ["sync", "back"])
@pytest.mark.parametrize("new", [b"OURS", b"our"])
@pytest.mark.parametrize("base", [b"", b"base "])
@pytest.mark.parametrize("renamed", [False, True])
def test_what_is_written_after_a_crash_is_sent_though_what_the_crash_left_had_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: bytes, new: bytes, mode: str, renamed: bool
) -> None:
    """The record was just not struck out."""
    store, staging, end = MemoryStore(), tmp_path / "staging", len(base)
    staging.mkdir()
    store.put("x", base)
    fs = open_fs(store, staging)
    fs.files.writeback.close()
    handle = fs.open(fs.lookup(ROOT_INO, b"x").ino, os.O_WRONLY | (0 if base else os.O_TRUNC))
    fs.write(handle, end, b"ours")
    fs.flush(handle)
    put = store.put

    def crashing(*args: Any, **options: Any) -> str:
        etag = put(*args, **options)
        shutil.copytree(staging, tmp_path / "crashed", dirs_exist_ok=True)
        return etag

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", crashing)
        assert not fs.sync_all()
    fs.release(handle)
    fs.close()
    again = open_fs(store, tmp_path / "crashed", mode)
    again.files.writeback.close()
    again.take_over()
    name = b"y" if renamed else b"x"
    if renamed:
        again.rename(ROOT_INO, b"x", ROOT_INO, name)
    ino = again.lookup(ROOT_INO, name).ino
    handle = again.open(ino, os.O_WRONLY)
    again.write(handle, end, new)
    again.setattr(ino, SetAttr(size=end + len(new)))
    again.flush(handle)
    assert not again.sync_all()
    assert content_of(store) == {name.decode(): base + new}
    again.release(handle)
    again.close()


def test_what_a_crash_left_can_be_renamed_over_what_others_wrote_since(tmp_path: Path) -> None:
    store, staging = MemoryStore(clock=lambda: now), tmp_path / "staging"
    staging.mkdir()
    now = time.time()
    fs = open_fs(store, staging)
    fs.files.writeback.close()
    create(fs, 0)
    fs.close()
    now += 86400
    store.put("x", b"theirs")
    again = open_fs(store, staging, "sync")
    again.files.writeback.close()
    again.take_over()
    again.rename(ROOT_INO, b"f0", ROOT_INO, b"x")
    again.close()
    assert content_of(store) == {"x": content(0)}


@pytest.mark.parametrize("full", [False, True], ids=["", "a full disk meanwhile"])
def test_attributes_that_were_set_before_fsync_survive_a_crash_after_it(tmp_path: Path, full: bool) -> None:
    store, staging = MemoryStore(), tmp_path / "staging"
    staging.mkdir()
    fs = open_fs(store, staging)
    fs.files.writeback.close()
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR | os.O_CREAT, ME)
    fs.write(handle, 0, b"data")
    fs.fsync(handle)
    fs.setattr(node.ino, SetAttr(mode=0o600))
    if full:
        journal = fs.core.staging.journal
        with full_disk(journal, "UPDATE"):
            journal.flush()
    fs.fsync(handle)
    shutil.copytree(staging, tmp_path / "crashed")
    assert taken_over(store, tmp_path / "crashed")["x"] == b"data"
    assert int((store.head("x").metadata or {})["mode"]) & 0o777 == 0o600
    fs.release(handle)
    fs.close()


def test_attributes_that_a_full_disk_does_not_take_do_not_keep_the_data_from_being_sent(tmp_path: Path) -> None:
    store = MemoryStore()
    fs = open_fs(store, tmp_path)
    fs.files.writeback.close()
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR | os.O_CREAT, ME)
    fs.write(handle, 0, b"data")
    fs.fsync(handle)
    with full_disk(fs.core.staging.journal, "UPDATE"):
        fs.setattr(node.ino, SetAttr(mode=0o600))
        fs.fsync(handle)
        assert content_of(store)["x"] == b"data"
        assert int((store.head("x").metadata or {})["mode"]) & 0o777 == 0o600
    fs.release(handle)
    fs.close()


def test_what_was_completed_just_before_a_crash_has_its_size_though_it_was_longer_than_what_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written on after it was stored, and sent as it was then."""
    store, staging = MemoryStore(), tmp_path / "staging"
    staging.mkdir()
    fs = open_fs(store, staging)
    fs.files.writeback.close()
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR | os.O_CREAT, ME)
    for offset in range(0, 12 * MiB, MiB):
        fs.write(handle, offset, b"x" * MiB)
    fs.fsync(handle)
    fs.write(handle, 12 * MiB, b"more")
    complete = store.complete_upload

    def crashing(*args: Any, **options: Any) -> str:
        etag = complete(*args, **options)
        shutil.copytree(staging, tmp_path / "crashed")
        return etag

    with monkeypatch.context() as patch:
        patch.setattr(store, "complete_upload", crashing)
        fs.files.upload(node)
    fs.release(handle)
    fs.close()
    again = open_fs(store, tmp_path / "crashed")
    again.files.writeback.close()
    again.take_over()
    ino = again.lookup(ROOT_INO, b"x").ino
    assert not again.sync_all()
    handle = again.open(ino, os.O_RDONLY)
    assert again.getattr(ino).size == 12 * MiB + 4
    assert bytes(again.read(handle, 12 * MiB, 100)) == b"more"
    again.release(handle)
    again.close()
