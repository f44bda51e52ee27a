"""Others replace or remove what this mount has open or unsent: who writes is told, and nothing that was taken in is dropped."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from sluicefs.errors import UnreachableError
from sluicefs.fs import namespace
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import ME, Make, failing, find, make, names

__all__ = ["make"]  # a fixture


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def content(store: MemoryStore) -> dict[str, bytes]:
    return {info.key: bytes(store.get(info.key)[1]) for info in store.list("").objects}


def opened(fs: FileSystem, store: MemoryStore) -> int:
    """A handle on `x`, which has been read from."""
    store.put("x", b"base base")
    handle = fs.open(find(fs, "x").ino, os.O_RDWR)
    assert bytes(fs.read(handle, 0, 100)) == b"base base"
    return handle


def find_out(fs: FileSystem, handle: int, how: str) -> None:
    """This mount hears that the object is another one now."""
    if how == "listing":
        names(fs)
    elif how == "look-up":
        fs.lookup(ROOT_INO, b"x")
    else:
        with failing(errno.ESTALE):
            fs.open(fs.handle(handle).node.ino, os.O_RDONLY)


@pytest.mark.parametrize("mode", ["sync", "back"])
@pytest.mark.parametrize("how", ["listing", "look-up", "open"])
def test_who_writes_to_what_is_known_to_be_replaced_is_told(store: MemoryStore, make: Make, how: str, mode: str) -> None:
    fs = make(attr_ttl=0.0, write_mode=mode)
    handle = opened(fs, store)
    store.put("x", b"theirs")
    find_out(fs, handle, how)
    with failing(errno.ESTALE):
        fs.write(handle, 0, b"mine")
    with failing(errno.ESTALE):
        fs.setattr(fs.handle(handle).node.ino, SetAttr(size=0))
    with failing(errno.ESTALE):
        fs.setattr(fs.handle(handle).node.ino, SetAttr(mode=0o600))
    with failing(errno.ESTALE):
        fs.setxattr(fs.handle(handle).node.ino, b"user.a", b"1")
    assert bytes(fs.read(handle, 0, 100)) == b"base base", "what is in memory can still be read"
    fs.flush(handle)
    fs.release(handle)
    assert content(store) == {"x": b"theirs"}


def test_who_writes_on_after_a_conflict_is_told_again(store: MemoryStore, make: Make) -> None:
    fs = make(attr_ttl=0.0)
    handle = opened(fs, store)
    fs.write(handle, 0, b"mine")
    store.put("x", b"theirs")
    with failing(errno.ESTALE):
        fs.fsync(handle)
    with failing(errno.ESTALE):
        fs.write(handle, 9, b" more")
    fs.release(handle)
    assert sorted(content(store).values()) == [b"mine base", b"theirs"]


def test_a_file_that_others_deleted_while_it_is_open_is_not_written_in_vain(store: MemoryStore, make: Make) -> None:
    fs = make(attr_ttl=0.0)
    handle = opened(fs, store)
    store.delete("x")
    find_out(fs, handle, "open")
    with failing(errno.ESTALE):
        fs.write(handle, 0, b"mine")
    fs.release(handle)


@pytest.mark.parametrize("depth", ["d", "d/e"])
@pytest.mark.parametrize("by", [None, "a file"])
def test_a_directory_that_others_removed_stays_while_something_in_it_is_unsent(
    store: MemoryStore, make: Make, depth: str, by: str | None
) -> None:
    fs = make(attr_ttl=0.0)
    store.put(f"{depth}/x", b"x")
    handle, _ = fs.create(find(fs, depth).ino, b"y", 0o644, os.O_RDWR, ME)
    fs.write(handle, 0, b"unsent")
    store.delete(f"{depth}/x")
    if by is not None:
        store.put("d", b"a file")
    for _ in range(4):  # asked for alone, then with a listing
        assert fs.lookup(ROOT_INO, b"d").is_dir
    with failing(errno.ENOTEMPTY):
        fs.rmdir(ROOT_INO, b"d")
    fs.flush(handle)
    fs.release(handle)
    assert content(store)[f"{depth}/y"] == b"unsent"


def test_a_file_that_others_made_a_directory_of_stays_while_it_is_open(store: MemoryStore, make: Make) -> None:
    fs = make(attr_ttl=0.0)
    handle = opened(fs, store)
    store.delete("x")
    store.put("x/y", b"y")
    assert fs.lookup(ROOT_INO, b"x").is_file
    fs.write(handle, 0, b"mine")
    with failing(errno.ESTALE):
        fs.flush(handle)
    fs.release(handle)
    assert sorted(content(store).values()) == [b"mine base", b"y"]


def test_a_rename_is_one_also_for_who_asks_for_the_old_name_just_then(store: MemoryStore, make: Make) -> None:
    fs = make(attr_ttl=0.0)
    store.put("x", b"content")
    node = find(fs, "x")
    delete = store.delete

    def asked_for_after(key: str) -> None:
        delete(key)
        with failing(errno.ESTALE):
            fs.getattr(node.ino)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "delete", asked_for_after)
        fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    assert find(fs, "y") is node is fs.node(node.ino)
    assert names(fs) == ["y"] and content(store) == {"y": b"content"}


@pytest.mark.parametrize("size", [9, namespace.KEEP_OPEN + 1], ids=["small", "large"])
@pytest.mark.parametrize("how", ["unlink", "rename"])
@pytest.mark.parametrize("by", ["replaced", "deleted"])
def test_a_name_goes_though_others_replaced_the_object_that_is_open(
    store: MemoryStore, make: Make, how: str, by: str, size: int
) -> None:
    fs = make(attr_ttl=3600.0)
    store.put("x", bytes(size))
    store.put("other", b"other")
    handle = fs.open(find(fs, "x").ino, os.O_RDONLY)
    store.delete("x")
    if by == "replaced":
        store.put("x", b"theirs")
    if how == "unlink":
        fs.unlink(ROOT_INO, b"x")
    else:
        fs.rename(ROOT_INO, b"other", ROOT_INO, b"x")
    with failing(errno.ESTALE):
        fs.read(handle, 0, 100)
    assert not fs.sync_all()
    assert content(store) == ({"other": b"other"} if how == "unlink" else {"x": b"other"})
    fs.release(handle)


@pytest.mark.parametrize("fails", ["get_into", "delete"])
def test_a_file_that_was_only_read_and_could_not_be_deleted_has_nothing_to_send(
    store: MemoryStore, make: Make, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = make(attr_ttl=3600.0)
    store.put("x", b"x")
    handle = fs.open(find(fs, "x").ino, os.O_RDONLY)

    def unreachable(*_: object, **__: object) -> None:
        raise UnreachableError("an outage")

    with monkeypatch.context() as patch:
        patch.setattr(store, fails, unreachable)
        with failing(errno.EIO):
            fs.unlink(ROOT_INO, b"x")
    assert fs.pending() == 0
    fs.release(handle)


def test_what_landed_though_its_answer_was_lost_can_be_renamed(
    store: MemoryStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("x", b"base")
    fs = make(write_mode="back")
    fs.files.writeback.close()
    handle = fs.open(find(fs, "x").ino, os.O_WRONLY | os.O_TRUNC)
    fs.write(handle, 0, b"mine")
    fs.flush(handle)
    put = store.put

    def lost(*args: Any, **options: Any) -> None:
        error = UnreachableError("no answer")
        error.landed = put(*args, **options)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(fs.core.store, "put", lost)
        assert fs.sync_all()
    fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    fs.release(handle)
    assert not fs.sync_all()
    assert content(store) == {"y": b"mine"}
