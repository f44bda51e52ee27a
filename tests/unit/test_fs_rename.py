"""Rename: all or nothing, whatever is open, unsent, large, under way or failing."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import MiB
from sluicefs.errors import StoreError, UnreachableError
from sluicefs.fs import rename
from sluicefs.fs.core import UPLOAD_THREADS
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.fs.stored import FLAG, ROOT_MARKER
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import ME, Make, failing, find, make, names

__all__ = ["make"]  # a fixture


class Awkward(MemoryStore):
    """Calls `before(verb, key)` ahead of each copy and delete; what that raises is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[str, str], None] = lambda verb, key: None

    def copy(self, source: str, target: str, **options: Any) -> str:
        self.before("copy", source)
        return super().copy(source, target, **options)

    def delete(self, key: str) -> None:
        self.before("delete", key)
        super().delete(key)

    def delete_many(self, wanted: Any) -> list[tuple[str, OSError]]:
        failed: list[tuple[str, OSError]] = []
        for key in wanted:
            try:
                self.delete(key)
            except OSError as error:
                failed.append((key, error))
        return failed

    def content(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        token: str | None = None
        while True:
            page = self.list("", token=token)
            found |= {info.key: bytes(self.get(info.key)[1]) for info in page.objects}
            token = page.token
            if token is None:
                return found


@pytest.fixture
def store() -> Awkward:
    return Awkward()


def write(fs: FileSystem, parent: int, name: bytes, data: bytes) -> int:
    handle, node = fs.create(parent, name, 0o644, os.O_RDWR, ME)
    fs.write(handle, 0, data)
    fs.flush(handle)
    fs.release(handle)
    return node.ino


def refuse(verb: str, after: int = 0) -> Callable[[str, str], None]:
    """Let `after` of these calls pass, then refuse them all."""
    count = iter(range(1 << 30))

    def before(called: str, key: str) -> None:
        if called == verb and next(count) >= after:
            raise StoreError("the disk of the server is on fire", status=500)

    return before


def test_a_directory_of_5000_files(store: Awkward, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for i in range(5000):
        store.put(f"old/{i % 7}/{i:04}", b"%d" % i)
    running, most = set(), [0]

    def before(verb: str, key: str) -> None:
        running.add(threading.get_ident())
        most[0] = max(most[0], len(running))
        time.sleep(0.0005)
        running.discard(threading.get_ident())

    fs = make()
    known = find(fs, "old/3/0003")
    handle = fs.open(known.ino, os.O_RDONLY)
    store.before = before
    store.counters.requests.clear()
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert 8 < most[0] <= 64
    assert store.counters.requests["CopyObject"] == 5000
    assert bytes(fs.read(handle, 0, 10)) == b"3" and find(fs, "new/3/0003") is known
    fs.release(handle)
    assert names(fs) == ["new"] == names(make())
    assert store.content() == {"new/": b""} | {f"new/{i % 7}/{i:04}": b"%d" % i for i in range(5000)}
    assert "renamed old/ to new/: 5000 objects" in caplog.text


@pytest.mark.parametrize("onto_empty", [False, True])
def test_a_copy_that_fails_leaves_everything_as_it_was(store: Awkward, make: Make, onto_empty: bool) -> None:
    fs = make()
    old = fs.mkdir(ROOT_INO, b"old", 0o750, ME).ino
    for i in range(100):
        write(fs, old, b"%d" % i, b"content")
    if onto_empty:
        fs.mkdir(ROOT_INO, b"new", 0o711, ME)
    before = store.content()
    store.before = refuse("copy", after=50)
    with failing(errno.EIO):
        fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    store.before = lambda verb, key: None
    assert store.content() == before
    assert stat.S_IMODE(find(fs, "old").mode) == 0o750 and len(names(fs, "old")) == 100
    if onto_empty:
        assert stat.S_IMODE(find(fs, "new").mode) == 0o711
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert names(fs) == ["new"] and len(names(fs, "new")) == 100


def test_copies_under_way_when_one_fails_are_undone_too(store: Awkward, make: Make) -> None:
    for i in range(100):
        store.put(f"old/{i:03}", b"content")
    fs = make()
    before = store.content()
    others = threading.Event()

    def refuse_the_first(verb: str, key: str) -> None:
        if verb == "copy" and key == "old/000":
            raise StoreError("refused")
        if verb == "copy":
            others.wait(0.3)  # they end after it has failed

    store.before = refuse_the_first
    with failing(errno.EIO):
        fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    others.set()
    store.before = lambda verb, key: None
    time.sleep(0.1)
    assert store.content() == before


def test_old_names_that_cannot_be_deleted_lose_nothing_and_go_with_the_next_try(store: Awkward, make: Make) -> None:
    for name in "abc":
        store.put(f"old/{name}", name.encode())
    fs = make()
    store.before = refuse("delete", after=1)
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert len([key for key in store.content() if key.startswith("new/")]) == 4
    assert len([key for key in store.content() if key.startswith("old/")]) > 0
    store.before = lambda verb, key: None
    fs.mkdir(ROOT_INO, b"x", 0o755, ME)
    fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    assert sorted(store.content()) == ["new/", "new/a", "new/b", "new/c", "y/"]


def test_a_file_whose_old_name_cannot_be_deleted_keeps_it(store: Awkward, make: Make) -> None:
    fs = make()
    write(fs, ROOT_INO, b"a", b"content")
    store.before = lambda verb, key: refuse("delete")(verb, key) if key == "a" else None
    with failing(errno.EIO):
        fs.rename(ROOT_INO, b"a", ROOT_INO, b"b")
    assert store.content() == {"a": b"content"} and names(fs) == ["a"]


def test_writers_below_lose_nothing(store: Awkward, make: Make) -> None:
    """Files are written, made and removed in a directory while it is renamed back and forth."""
    fs = make()
    top = fs.mkdir(ROOT_INO, b"0", 0o755, ME).ino
    inner = fs.mkdir(top, b"in", 0o755, ME).ino
    for i in range(30):
        write(fs, inner, b"old%d" % i, b"old")
    expected: dict[str, bytes] = {f"old{i}": b"old" for i in range(30)}
    stop, failures = threading.Event(), []

    def work(number: int) -> None:
        try:
            for turn in range(10_000):
                if stop.is_set():
                    return
                name = f"{number}-{turn % 5}"
                data = f"{number} {turn}".encode() * 50
                if name in expected and turn % 3 == 0:
                    fs.unlink(inner, name.encode())
                    del expected[name]
                    continue
                if name in expected:
                    handle = fs.open(fs.lookup(inner, name.encode()).ino, os.O_WRONLY | os.O_TRUNC)
                else:
                    handle, _ = fs.create(inner, name.encode(), 0o644, os.O_WRONLY, ME)
                fs.write(handle, 0, data)
                fs.flush(handle)
                fs.release(handle)
                expected[name] = data
        except BaseException as error:
            failures.append(error)

    store.before = lambda verb, key: time.sleep(0.001)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    renames = 0
    for turn in range(15):
        try:
            fs.rename(ROOT_INO, b"%d" % renames, ROOT_INO, b"%d" % (renames + 1))
            renames += 1
        except OSError as error:
            assert error.errno == errno.EBUSY, f"turn {turn}: {error!r}"
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures, failures
    assert not fs.sync_all()
    assert renames > 3
    found = {key: data for key, data in store.content().items() if not key.endswith("/") and key != ROOT_MARKER}
    assert found == {f"{renames}/in/{name}": data for name, data in expected.items()}
    other = make()
    assert names(other) == [str(renames)] and names(other, f"{renames}/in") == sorted(expected)


@pytest.mark.parametrize("size", [12, 25])
def test_a_large_object_is_copied_in_equal_parts(
    store: Awkward, make: Make, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """R2 refuses parts of different sizes, and so does the reference store."""
    monkeypatch.setattr(rename, "COPY_LIMIT", 10 * 1024**2)
    monkeypatch.setattr(rename, "COPY_PART", 5 * 1024**2)
    monkeypatch.setattr(rename, "MAX_PARTS", 4)
    data = os.urandom(1024) * 1024 * size
    store.put("large", data, metadata={"author": "somebody"}, content_type="text/x-large")
    fs = make()
    handle = fs.open(find(fs, "large").ino, os.O_RDONLY)
    fs.rename(ROOT_INO, b"large", ROOT_INO, b"moved")
    info, found = store.get("moved")
    assert found == data and (info.metadata or {})["author"] == "somebody" and info.content_type == "text/x-large"
    assert store.counters.requests["UploadPartCopy"] == {12: 3, 25: 4}[size]
    assert bytes(fs.read(handle, len(data) - 5, 5)) == data[-5:]
    fs.release(handle)
    fs.mkdir(ROOT_INO, b"d", 0o755, ME)
    fs.rename(ROOT_INO, b"moved", find(fs, "d").ino, b"large")
    fs.rename(ROOT_INO, b"d", ROOT_INO, b"e")
    info, found = store.get("e/large")
    assert found == data and (info.metadata or {})["author"] == "somebody" and info.content_type == "text/x-large"
    assert store.list_uploads("") == []


def test_attributes_and_flags_of_nested_directories_are_kept(store: Awkward, make: Make) -> None:
    fs = make()
    top = fs.mkdir(ROOT_INO, b"top", 0o755, ME).ino
    inner = fs.mkdir(top, b"inner", 0o700, ME).ino
    ino = write(fs, inner, b"program", b"#!")
    fs.setattr(ino, SetAttr(mode=0o755, mtime_ns=10**18))
    fs.symlink(top, b"link", b"inner/program", ME)
    assert not fs.sync_all()
    fs.rename(ROOT_INO, b"top", ROOT_INO, b"moved")
    for prefix in ("moved/", "moved/inner/"):
        assert (store.head(prefix).metadata or {})[FLAG] == "1"
    for other in (fs, make()):
        assert stat.S_IMODE(find(other, "moved/inner").mode) == 0o700
        program = find(other, "moved/inner/program")
        assert stat.S_IMODE(program.mode) == 0o755 and program.mtime_ns == 10**18
        assert other.readlink(find(other, "moved/link").ino) == b"inner/program"
    fs.rename(find(fs, "moved/inner").ino, b"program", ROOT_INO, b"program")
    assert stat.S_IMODE(find(make(), "program").mode) == 0o755, "the root's flag was set for it"


def test_unsent_files_go_to_their_new_name(store: Awkward, make: Make) -> None:
    fs = make()
    top = fs.mkdir(ROOT_INO, b"top", 0o755, ME).ino
    handle, _ = fs.create(top, b"new", 0o644, os.O_RDWR, ME)
    fs.write(handle, 0, b"before ")
    fs.rename(ROOT_INO, b"top", ROOT_INO, b"moved")
    fs.write(handle, 7, b"after")
    fs.flush(handle)
    fs.release(handle)
    assert store.content() == {"moved/": b"", "moved/new": b"before after"}


def test_what_others_change_meanwhile_is_not_lost(store: Awkward, make: Make) -> None:
    for i in range(20):
        store.put(f"old/{i}", b"old")
    once = iter([True])

    def before(verb: str, key: str) -> None:
        if verb == "copy" and next(once, False):
            time.sleep(0.05)
            store.put("old/3", b"newer")
            store.put("old/late", b"late")
            MemoryStore.delete(store, "old/5")

    store.before = before
    fs = make()
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    content = store.content()
    assert content["new/3"] == b"newer" and content["new/late"] == b"late" and "new/5" not in content
    assert not [key for key in content if key.startswith("old")]


def test_errors_of_rename(store: Awkward, make: Make, tmp_path: Path) -> None:
    fs = make()
    one, two = fs.mkdir(ROOT_INO, b"one", 0o755, ME).ino, fs.mkdir(ROOT_INO, b"two", 0o755, ME).ino
    write(fs, two, b"file", b"x")
    write(fs, ROOT_INO, b"file", b"x")
    before = store.content()
    for source, target, expected in (
        ((ROOT_INO, b"one"), (one, b"below"), errno.EINVAL),
        ((ROOT_INO, b"one"), (ROOT_INO, b"two"), errno.ENOTEMPTY),
        ((ROOT_INO, b"one"), (ROOT_INO, b"file"), errno.ENOTDIR),
        ((ROOT_INO, b"file"), (ROOT_INO, b"one"), errno.EISDIR),
        ((ROOT_INO, b"none"), (ROOT_INO, b"any"), errno.ENOENT),
        ((ROOT_INO, b"file"), (ROOT_INO, b"n" * 256), errno.ENAMETOOLONG),
        ((ROOT_INO, b"file"), (ROOT_INO, b".sluicefs-x"), errno.EPERM),
    ):
        with failing(expected):
            fs.rename(*source, *target)
    assert store.content() == before


def test_a_large_file_that_was_cut_to_nothing_is_renamed_before_that_is_sent(store: Awkward, make: Make) -> None:
    """CopyObject takes no object of its size."""
    fs = make()
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR, ME)
    fs.setattr(node.ino, SetAttr(size=rename.COPY_LIMIT + 1))
    fs.flush(handle)
    fs.setattr(node.ino, SetAttr(size=0))
    fs.write(handle, 0, b"new")
    fs.rename(ROOT_INO, b"x", ROOT_INO, b"y")
    fs.flush(handle)
    fs.release(handle)
    assert store.content() == {"y": b"new"}


def test_files_that_are_sent_as_they_are_renamed_do_not_wait_for_those_they_replace(store: Awkward, make: Make) -> None:
    """More of them at once than there are threads for uploads; each in parts, over one that is open."""
    fs = make(part_size=5 * MiB)
    count = UPLOAD_THREADS + 1
    together = threading.Barrier(count)
    renamed_unsent = fs.files.renamed_unsent

    def at_once(*how: Any) -> None:
        together.wait(60)
        renamed_unsent(*how)

    fs.files.renamed_unsent = at_once  # type: ignore[method-assign]
    handles = []
    for i in range(count):
        handles.append(fs.open(write(fs, ROOT_INO, b"old%d" % i, b"old"), os.O_RDONLY))
        handle, _ = fs.create(ROOT_INO, b"new%d" % i, 0o644, os.O_RDWR, ME)
        for offset in (10 * MiB, 0):  # the other way round: nothing is sent before
            fs.write(handle, offset, b"%d" % i)
        handles.append(handle)
    renaming = [
        threading.Thread(target=fs.rename, args=(ROOT_INO, b"new%d" % i, ROOT_INO, b"old%d" % i), daemon=True)
        for i in range(count)
    ]
    for thread in renaming:
        thread.start()
    for thread in renaming:
        thread.join(60)
    assert not any(thread.is_alive() for thread in renaming)
    for handle in handles:
        fs.release(handle)
    assert {key: body[10 * MiB :] for key, body in store.content().items()} == {f"old{i}": b"%d" % i for i in range(count)}


@pytest.mark.parametrize("why", ["an outage", "a full disk"])
def test_what_is_open_under_the_new_name_keeps_its_bytes_when_nobody_knows_whether_the_old_one_went(
    store: Awkward, make: Make, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    fs = make(attr_ttl=3600.0)
    write(fs, ROOT_INO, b"old", b"ours")
    handle = fs.open(write(fs, ROOT_INO, b"new", b"replaced"), os.O_RDONLY)

    def lost(*_: object) -> Any:
        raise UnreachableError("no answer")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        if why == "an outage":
            patch.setattr(store, "delete", lost)
            patch.setattr(store, "head", lost)
        else:
            patch.setattr(fs.core.committer, "moved", full)
        with failing(errno.EIO if why == "an outage" else errno.ENOSPC):
            fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert bytes(fs.read(handle, 0, 100)) == b"replaced"
    again = fs.open(find(fs, "new").ino, os.O_RDONLY)
    assert bytes(fs.read(again, 0, 100)) == b"ours"
    for number in (handle, again):
        fs.release(number)
    assert store.content() == {"old": b"ours", "new": b"ours"}
