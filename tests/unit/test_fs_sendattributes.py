"""Attributes that were set get to the bucket: after an outage, and also those that were set while others were being sent."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from sluicefs.config import MiB
from sluicefs.errors import UnreachableError
from sluicefs.fs import sendattributes
from sluicefs.fs.attributes import decode_xattrs
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.fs.xattrs import CONTENT_TYPE
from tests.unit.test_fs_attributes import ME, Make, failing, make
from tests.unit.test_fs_races import Held
from tests.unit.test_fs_rename import write

__all__ = ["make"]  # a fixture


@pytest.fixture
def store() -> Held:
    return Held()


def mode_in(store: Held, key: str) -> int:
    return int((store.head(key).metadata or {})["mode"]) & 0o777


def refused_until(store: Held, over: threading.Event) -> threading.Event:
    """Copies fail until `over`; what is returned says that one has."""
    tried = threading.Event()

    def before(verb: str, key: str) -> None:
        if verb == "copy" and not over.is_set():
            tried.set()
            raise UnreachableError("an outage")

    store.before = before
    return tried


def test_they_are_sent_by_themselves_after_an_outage(store: Held, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendattributes, "DELAY", 0.0)
    monkeypatch.setattr(sendattributes, "RETRY", (0.0, 0.0))
    fs, over, sent = make(), threading.Event(), threading.Event()
    tried = refused_until(store, over)
    copy = store.copy
    monkeypatch.setattr(store, "copy", lambda *args, **options: (copy(*args, **options), sent.set())[0])
    fs.setattr(write(fs, ROOT_INO, b"x", b"content"), SetAttr(mode=0o600))
    assert tried.wait(30)
    over.set()
    assert sent.wait(30)
    assert mode_in(store, "x") == 0o600


def test_nobody_says_that_all_is_sent_before_they_are(store: Held, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendattributes, "DELAY", 3600.0)
    monkeypatch.setattr(sendattributes, "RETRY", (3600.0, 3600.0))
    fs, over = make(), threading.Event()
    refused_until(store, over)
    ino = write(fs, ROOT_INO, b"x", b"content")
    fs.setattr(ino, SetAttr(mode=0o600))
    for _ in range(2):
        with failing(errno.EIO):
            fs.files.sync(fs.node(ino))
        assert [node.name for node, _ in fs.sync_all()] == ["x"]
        assert fs.pending() == 1
    over.set()
    fs.files.sync(fs.node(ino))
    assert mode_in(store, "x") == 0o600 and fs.pending() == 0


def while_copied(store: Held, do: Callable[[], None]) -> None:
    """Once, when a copy has been made and its answer is not there yet."""
    copy, todo = store.copy, [do]

    def then(*args: object, **options: object) -> str:
        etag: str = copy(*args, **options)  # type: ignore[arg-type]
        while todo:
            todo.pop()()
        return etag

    store.copy = then  # type: ignore[method-assign]


def xattrs(store: Held, key: str) -> dict[bytes, bytes]:
    return decode_xattrs(store.head(key).metadata)


@pytest.mark.parametrize("verb", ["set", "remove"])
@pytest.mark.parametrize("by", ["attributes", "rename"])
def test_xattrs_that_change_while_others_are_sent_are_kept(store: Held, make: Make, verb: str, by: str) -> None:
    fs = make()
    ino = write(fs, ROOT_INO, b"x", b"content")
    fs.setxattr(ino, b"user.a", b"1")
    if verb == "set":
        while_copied(store, lambda: fs.xattrs.set(fs.node(ino), b"user.b", b"2"))
    else:
        while_copied(store, lambda: fs.xattrs.set(fs.node(ino), b"user.a", None))
    send(fs, ino, by)
    fs.files.sync(fs.node(ino))
    assert xattrs(store, "y" if by == "rename" else "x") == ({b"user.a": b"1", b"user.b": b"2"} if verb == "set" else {})


def send(fs: FileSystem, ino: int, by: str) -> None:
    if by == "rename":
        fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    else:
        fs.files.sync(fs.node(ino))


def test_a_mode_that_is_set_while_the_file_is_renamed_is_sent(store: Held, make: Make) -> None:
    fs = make()
    ino = write(fs, ROOT_INO, b"x", b"content")
    while_copied(store, lambda: fs._set_attributes(fs.node(ino), SetAttr(mode=0o600)))
    send(fs, ino, "rename")
    fs.files.sync(fs.node(ino))
    assert mode_in(store, "y") == 0o600


def test_a_mode_that_was_set_before_a_rename_that_failed_is_sent(store: Held, make: Make) -> None:
    fs, over = make(), threading.Event()
    refused_until(store, over)
    ino = write(fs, ROOT_INO, b"x", b"content")
    fs.setattr(ino, SetAttr(mode=0o600))
    with failing(errno.EIO):
        send(fs, ino, "rename")
    over.set()
    fs.files.sync(fs.node(ino))
    assert mode_in(store, "x") == 0o600


def test_xattrs_of_a_directory_that_are_set_while_its_marker_is_written_are_kept(store: Held, make: Make) -> None:
    fs = make()
    folder = fs.mkdir(ROOT_INO, b"d", 0o755, ME).ino
    setting = threading.Thread(target=fs.setxattr, args=(folder, b"user.a", b"1"))

    def before(key: str) -> None:
        if key == "d/":
            store.before_put = lambda key: None
            setting.start()
            setting.join(0.3)  # it waits for this very request

    store.before_put = before
    fs.setattr(write(fs, folder, b"x", b"content"), SetAttr(mode=0o600))
    assert not fs.sync_all()
    setting.join(30)
    assert xattrs(store, "d/") == {b"user.a": b"1"}


def test_of_a_file_that_others_deleted_meanwhile_fsync_says_estale(store: Held, make: Make) -> None:
    fs = make()
    ino = write(fs, ROOT_INO, b"x", b"content")
    fs.setattr(ino, SetAttr(mode=0o600))
    store.delete("x")
    with failing(errno.ESTALE):
        fs.files.sync(fs.node(ino))
    assert fs.pending() == 0


@pytest.mark.parametrize("size", [1, 2 * MiB, 24 * MiB])
@pytest.mark.parametrize("kind", ["text/csv", "text/plain"])
def test_a_content_type_set_while_the_data_is_sent_is_sent_after_it(store: Held, make: Make, size: int, kind: str) -> None:
    fs = make(xattr=True, part_size=8 * MiB)
    handle, node = fs.create(ROOT_INO, b"x.txt", 0o644, os.O_RDWR, ME)
    if kind == "text/plain":
        fs.setxattr(node.ino, CONTENT_TYPE, b"text/html")
    for offset in range(0, size, MiB):
        fs.write(handle, offset, b"x" * min(size, MiB))

    def setting(key: str) -> None:
        store.before_put = lambda key: None
        other = threading.Thread(target=fs.setxattr, args=(node.ino, CONTENT_TYPE, kind.encode()))
        other.start()
        other.join(60)

    store.before_put = setting
    if size > 8 * MiB:  # its upload has begun
        setting("")
    fs.flush(handle)
    fs.release(handle)
    assert not fs.sync_all()
    assert store.head("x.txt").content_type == kind
