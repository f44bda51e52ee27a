"""Back mode on the reference store: many small files take neither memory nor descriptors, the later of two records counts."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import Config, MiB
from sluicefs.errors import AccessDeniedError
from sluicefs.fs import writeback
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO, Node
from sluicefs.staging import Journal, Record
from sluicefs.store.memory import MemoryStore

ME = Caller(os.getuid(), os.getgid())
FILES = 300
SIZE = 100_000


class Away(MemoryStore):
    """The reference store; takes nothing while `away`."""

    away = True

    def put(self, key, body, **options):  # type: ignore[no-untyped-def]
        if self.away:
            raise AccessDeniedError("away")
        return super().put(key, body, **options)


class Meeting(MemoryStore):
    """The reference store; a put ends when sixteen of them have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(16)

    def put(self, key, body, **options):  # type: ignore[no-untyped-def]
        if not key.startswith("."):
            self.barrier.wait(60)
        return super().put(key, body, **options)


def open_fs(store: MemoryStore, folder: Path, mode: str = "back") -> FileSystem:
    options = {"part_size": 5 * MiB, "memory": 64 * MiB, "attr_ttl": 3600.0, "write_mode": mode}
    return FileSystem(Config("bucket", "/nowhere", **options), store, str(folder))  # type: ignore[arg-type]


def content(number: int) -> bytes:
    return b"%07d\n" % number * (SIZE // 8)


def create(fs: FileSystem, number: int) -> int:
    """Closed with its data in it; returns the inode number."""
    handle, node = fs.create(ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR | os.O_CREAT, ME)
    fs.write(handle, 0, content(number))
    fs.flush(handle)
    fs.release(handle)
    return node.ino


def read(fs: FileSystem, ino: int) -> bytes:
    handle = fs.open(ino, os.O_RDONLY)
    data = bytes(fs.read(handle, 0, 2 * SIZE))
    fs.release(handle)
    return data


def test_many_files_are_sent_side_by_side(tmp_path: Path) -> None:
    store = Meeting()
    fs = open_fs(store, tmp_path)
    for number in range(48):
        create(fs, number)
    assert not fs.sync_all()
    assert len(store.list("f").objects) == 48
    fs.close()


def test_files_of_a_burst_need_not_be_quiet_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone file waits for what may come; the last ones of many go as soon as those before them."""
    monkeypatch.setattr(writeback, "QUIET", 3600.0)
    store = MemoryStore()
    fs = open_fs(store, tmp_path)
    for number in range(40):
        create(fs, number)
    end = time.monotonic() + 60
    while len(store.list("f").objects) < 40 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(store.list("f").objects) == 40
    create(fs, 40)
    time.sleep(3 * writeback.SOON)
    assert len(store.list("f").objects) == 40, "it is alone again"
    assert not fs.sync_all()
    fs.close()


def test_a_file_whose_turn_has_not_come_is_not_asked_again_and_again(tmp_path: Path) -> None:
    """More files are open, written and stored than are sent at once: each waits until it is quiet or fifteen seconds old."""
    store = MemoryStore()
    fs = open_fs(store, tmp_path)
    tries: list[object] = []
    send = fs.files.writeback._send

    def counted(node: Node) -> float | None:
        tries.append(node)
        return send(node)

    fs.files.writeback._send = counted  # type: ignore[method-assign]
    handles = []
    for number in range(2 * writeback.MANY):
        handle, _ = fs.create(ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR | os.O_CREAT, ME)
        fs.write(handle, 0, b"stored")
        fs.fsync(handle)
        fs.write(handle, 6, b" and written on")
        handles.append(handle)
    time.sleep(0.5)
    assert len(tries) <= 2 * len(handles)
    for handle in handles:
        fs.flush(handle)
        fs.release(handle)
    assert not fs.sync_all()
    fs.close()


def test_many_small_files_wait_in_the_journal_and_not_in_memory(tmp_path: Path) -> None:
    store = Away()
    fs = open_fs(store, tmp_path)
    limit = fs.core.dirty.limit
    inodes = {number: create(fs, number) for number in range(FILES)}
    assert limit < SIZE * FILES
    assert fs.core.dirty.used <= limit
    assert not list(tmp_path.rglob("data-*")), "none needs a file, and a descriptor, of its own"
    assert fs.files.unsent() == sum(len(content(number)) for number in range(FILES))
    assert [number for number, ino in inodes.items() if read(fs, ino) != content(number)] == []
    handle = fs.open(inodes[FILES - 1], os.O_RDWR)
    fs.write(handle, 8, b"changed\n")
    fs.flush(handle)
    fs.release(handle)
    fs.close()

    fs = open_fs(store, tmp_path)
    fs.take_over()
    assert fs.core.dirty.used <= limit, "nor after a crash"  # what is being sent is there
    changed = content(FILES - 1)[:8] + b"changed\n" + content(FILES - 1)[16:]
    assert read(fs, fs.lookup(ROOT_INO, b"f%d" % (FILES - 1)).ino) == changed
    assert read(fs, fs.lookup(ROOT_INO, b"f0").ino) == content(0)
    store.away = False
    assert not fs.sync_all()
    fs.close()
    assert [n for n in range(FILES - 1) if bytes(store.get(f"f{n}")[1]) != content(n)] == []
    assert bytes(store.get(f"f{FILES - 1}")[1]) == changed
    assert list(tmp_path.iterdir()) == []


def test_an_unlinked_open_file_keeps_what_was_in_the_journal(tmp_path: Path) -> None:
    fs = open_fs(Away(), tmp_path)
    handle, node = fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR | os.O_CREAT, ME)
    fs.write(handle, 0, b"data")
    fs.flush(handle)
    draft = node.draft
    assert draft is not None
    draft.shelve()
    assert fs.core.dirty.used == 0
    fs.unlink(ROOT_INO, b"file")
    assert bytes(fs.read(handle, 0, 10)) == b"data"
    fs.release(handle)
    fs.close()


def test_no_more_files_wait_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "FILES", 3)
    fs = open_fs(Away(), tmp_path)
    for number in range(3):
        create(fs, number)
    with pytest.raises(AccessDeniedError):
        create(fs, 3)
    handle = fs.open(fs.lookup(ROOT_INO, b"f0").ino, os.O_RDWR)
    fs.write(handle, 0, b"one that waits already")
    fs.flush(handle)
    fs.release(handle)
    fs.close()


def test_the_later_record_counts_though_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path))
    journal.put(Record(id="old", key="file", size=3, at=time.time()), b"old")
    journal.close()
    journal = Journal(str(tmp_path))
    journal.put(Record(id="new", key="temporary", size=3, at=time.time() - 86400), b"new")
    renamed = Record(id="new", key="file", size=3, at=time.time() - 86400)
    journal.put(renamed, keep_body=True)
    assert [(record.id, record.key) for record in journal.records()] == [("old", "file"), ("new", "file")]
    journal.close()


@pytest.mark.parametrize("waited", [True, False])
def test_what_is_sent_is_known_by_its_record_though_its_mode_was_set_before(tmp_path: Path, waited: bool) -> None:
    """Else a crash before the record is struck out makes a conflict of what was sent."""
    seen: list[tuple[str, str]] = []

    class Looking(MemoryStore):
        def put(self, key, body, **options):  # type: ignore[no-untyped-def]
            if key == "x":
                on_disk = Journal(os.path.dirname(node.draft.saved[0].path), read_only=True)  # type: ignore[union-attr, index]
                (record,) = on_disk.records()
                on_disk.close()
                saved = record.metadata
                seen.extend((saved[name], options["metadata"][name]) for name in ("mode", "mtime", "ctime"))
            return super().put(key, body, **options)

    fs = open_fs(Looking(), tmp_path)
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_WRONLY | os.O_CREAT, ME)
    fs.write(handle, 0, b"data")
    fs.flush(handle)
    setting = threading.Thread(target=fs.setattr, args=(node.ino, SetAttr(mode=0o600)))
    with node.file.lock if waited else nullcontext():  # as whoever is about to send it
        setting.start()
        setting.join()
        fs.files.upload(node)
    assert len(seen) == 3 and all(record == sent for record, sent in seen), seen
    fs.release(handle)
    assert not fs.sync_all()
    fs.close()


def changed_but_unsent(store: MemoryStore, folder: Path, at: int = 4) -> FileSystem:
    """`x`, four bytes, is in the bucket; what was written to it since is in the journal."""
    folder.mkdir()
    store.put("x", b"base")
    fs = open_fs(store, folder)
    fs.files.writeback.close()
    handle = fs.open(fs.lookup(ROOT_INO, b"x").ino, os.O_RDWR)
    fs.write(handle, at, b"more")
    fs.flush(handle)
    fs.release(handle)
    return fs


def content_of(store: MemoryStore) -> dict[str, bytes]:
    return {info.key: bytes(store.get(info.key)[1]) for info in store.list("").objects}


def taken_over(store: MemoryStore, folder: Path, rename: bool = False) -> dict[str, bytes]:
    """What the next mount makes of it."""
    fs = open_fs(store, folder)
    fs.files.writeback.close()
    fs.take_over()
    if rename:
        fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    assert not fs.sync_all()
    fs.close()
    return content_of(store)


@pytest.mark.parametrize(("at", "whole"), [(4, b"basemore"), (0, b"more")])
@pytest.mark.parametrize("over", [None, b"another"])
def test_a_crash_while_a_file_is_renamed_does_not_part_a_change_from_its_base(
    tmp_path: Path, over: bytes | None, at: int, whole: bytes
) -> None:
    store = MemoryStore()
    if over is not None:
        store.put("y", over)
    fs = changed_but_unsent(store, tmp_path / "staging", at)
    delete, found = store.delete, []

    def crashing(key: str) -> None:
        for step in ("before", "after"):
            shutil.copytree(tmp_path / "staging", tmp_path / step)
            other = MemoryStore()
            for there, data in content_of(store).items():
                other.put(there, data, metadata=store.head(there).metadata)
            found.append(taken_over(other, tmp_path / step))
            delete(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "delete", crashing)
        fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    assert found == [{"x": b"base", "y": whole}, {"y": whole}]
    fs.close()


def test_a_rename_that_fails_after_the_copy_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    store = MemoryStore()
    fs = changed_but_unsent(store, tmp_path / "staging")

    def refused(key: str) -> None:
        raise AccessDeniedError("not now")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "delete", refused)
        with pytest.raises(AccessDeniedError):
            fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    fs.close()
    assert taken_over(store, tmp_path / "staging") == {"x": b"basemore"}


def test_what_a_crash_left_can_be_renamed_before_it_is_sent(tmp_path: Path) -> None:
    store = MemoryStore()
    changed_but_unsent(store, tmp_path / "staging").close()
    assert taken_over(store, tmp_path / "staging", rename=True) == {"y": b"basemore"}


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_mounts_that_left_the_same_file_both_are_sent(tmp_path: Path, first: int) -> None:
    """Whichever folder is looked at first."""
    store = MemoryStore()
    left = [open_fs(store, tmp_path) for _ in range(2)]
    left.sort(key=lambda fs: fs.core.staging.journal.folder, reverse=bool(first))
    for number, fs in enumerate(left):
        fs.files.writeback.close()
        handle, _ = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR | os.O_CREAT, ME)
        fs.write(handle, 0, content(number))
        fs.flush(handle)
        fs.release(handle)
    for fs in left:
        fs.close()
    found = taken_over(store, tmp_path)
    assert found.pop("x") == content(1)
    ((name, data),) = found.items()
    assert name.startswith("x.conflict-") and data == content(0)


class FullDisk:
    """A database that refuses the statements of one kind."""

    def __init__(self, base: sqlite3.Connection, kind: str):
        self.base, self.kind = base, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        if statement.startswith(self.kind):
            raise sqlite3.OperationalError("database or disk is full")
        return self.base.execute(statement, values)


@contextmanager
def full_disk(journal: Journal, kind: str) -> Iterator[None]:
    """The disk refuses what `journal` wants to do of one kind meanwhile."""
    base = journal._base
    journal._base = FullDisk(base, kind)  # type: ignore[assignment]
    try:
        yield
    finally:
        journal._base = base


def test_a_record_that_could_not_be_struck_out_does_not_undo_what_came_after_it(tmp_path: Path) -> None:
    store, staging = MemoryStore(), tmp_path / "staging"
    staging.mkdir()
    fs = open_fs(store, staging)
    fs.files.writeback.close()
    handle, _ = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR | os.O_CREAT, ME)
    fs.write(handle, 0, b"old")
    fs.flush(handle)
    with full_disk(fs.core.staging.journal, "DELETE"):
        assert not fs.sync_all()
        assert content_of(store) == {"x": b"old"}
    fs.write(handle, 0, b"new")
    fs.flush(handle)
    assert not fs.sync_all()
    shutil.copytree(staging, tmp_path / "crashed")
    assert taken_over(store, tmp_path / "crashed") == {"x": b"new"}
    fs.release(handle)
    fs.close()
    assert not list(staging.iterdir())


@pytest.mark.parametrize("full", [False, True], ids=["", "a full disk"])
def test_a_long_append_that_was_completed_just_before_a_crash_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """It was begun while the file was written, so the object does not have the times that the record has."""
    store, staging = MemoryStore(), tmp_path / "staging"
    fs = changed_but_unsent(store, staging)
    handle = fs.open(fs.lookup(ROOT_INO, b"x").ino, os.O_RDWR)
    for offset in range(MiB, 20 * MiB, MiB):
        fs.write(handle, offset, b"x" * MiB)
    fs.flush(handle)
    complete, journal = store.complete_upload, fs.core.staging.journal

    def crashing(*args: Any, **options: Any) -> str:
        etag = complete(*args, **options)
        shutil.copytree(staging, tmp_path / "crashed")
        return etag

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(store, "complete_upload", crashing)
    with monkeypatch.context() as patch:
        if full:
            patch.setattr(journal, "put", refused)
        assert not fs.sync_all()
    if not full:
        assert taken_over(store, tmp_path / "crashed").keys() == {"x"}
    fs.release(handle)
    fs.close()
    assert store.head("x").size == 20 * MiB


@pytest.mark.parametrize("later", [True, False])
def test_a_whole_file_that_a_crash_left_does_not_win_over_a_later_one(tmp_path: Path, later: bool) -> None:
    store, staging = MemoryStore(clock=lambda: now), tmp_path / "staging"
    staging.mkdir()
    now = time.time() - 86400
    store.put("x", b"before")
    fs = open_fs(store, staging)
    fs.files.writeback.close()
    handle = fs.open(fs.lookup(ROOT_INO, b"x").ino, os.O_WRONLY | os.O_TRUNC)
    fs.write(handle, 0, b"ours")
    fs.flush(handle)
    fs.release(handle)
    fs.close()
    now += 2 * 86400 if later else 3600
    store.put("x", b"theirs")
    again = open_fs(store, staging)
    again.files.writeback.close()
    again.take_over()
    assert bool(again.sync_all()) == later
    again.close()
    found = content_of(store)
    assert found.pop("x") == (b"theirs" if later else b"ours")
    assert list(found.values()) == ([b"ours"] if later else [])
