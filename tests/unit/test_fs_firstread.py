"""The first bytes of a file that nobody has listed come beside its directory's listing: one round trip, at a bounded price."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sluicefs.errors import StoreError
from sluicefs.fs.firstread import AT_ONCE, SIZE, UNREAD
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.fs.stored import FLAG
from sluicefs.store.api import ListPage, ObjectInfo
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import Make, failing, find, make, names
from tests.unit.test_fs_requests import Bench

__all__ = ["make"]  # a fixture


class Gated(MemoryStore):
    """LIST and the GET of first bytes wait for their gates. `started`: keys whose GET began. `before`: called for each GET."""

    def __init__(self) -> None:
        super().__init__()
        self.lists, self.gets = threading.Event(), threading.Event()
        self.lists.set()
        self.gets.set()
        self.started: list[str] = []
        self.answered: list[str] = []
        self.before: Callable[[str], None] = lambda key: None

    def list(self, prefix: str, **options: Any) -> ListPage:
        page = super().list(prefix, **options)
        assert self.lists.wait(20)
        return page

    def get_start(self, key: str, limit: int, begin: Any, **options: Any) -> ObjectInfo:
        self.started.append(key)
        self.before(key)
        assert self.gets.wait(20)
        try:
            return super().get_start(key, limit, begin, **options)
        finally:
            self.answered.append(key)


@pytest.fixture
def store() -> Iterator[Gated]:
    store = Gated()
    yield store
    store.lists.set()
    store.gets.set()


def settled(fs: Any) -> None:
    """Wait until nothing is under way beside."""
    deadline = time.monotonic() + 10
    while fs.core.first_reads._busy:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_bytes_do_not_wait_for_the_listing(store: Gated, make: Make) -> None:
    store.put("set/a.bin", os.urandom(100))
    store.put("set/b.bin", b"content")
    bench = Bench(make(), store)
    bench.walk("set")
    bench.reset()
    store.lists.clear()
    assert bench.read("set/b.bin") == b"content"
    store.lists.set()
    settled(bench.fs)
    assert bench.requests == {"ListObjectsV2": 1, "GetObject": 1}
    bench.reset()
    assert bench.walk("set/a.bin") and bench.read("set/b.bin") == b"content"
    assert not bench.requests, "the listing came too"


def test_a_cold_small_file_is_a_listing_and_a_get(store: Gated, make: Make) -> None:
    store.put("set/b.bin", os.urandom(65536))
    bench = Bench(make(), store)
    bench.reset()
    assert len(bench.read("set/b.bin")) == 65536
    settled(bench.fs)
    assert bench.requests == {"ListObjectsV2": 2, "GetObject": 1}


@pytest.mark.parametrize("attrs", ["auto", "listing", "full"])
@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("metadata", [{"mode": str(0o100640)}, {"mtime": "1000000000.5"}, {"author": "somebody"}, None])
def test_attributes_are_those_that_a_listing_shows(
    store: Gated, make: Make, attrs: str, flagged: bool, metadata: dict[str, str] | None
) -> None:
    store.put("d/", b"", metadata={FLAG: "1"} if flagged else {})
    store.put("d/file.bin", b"content", metadata=metadata)
    fs, listed = make(attrs=attrs), make(attrs=attrs)
    assert names(listed, "d") == ["file.bin"]
    right = find(listed, "d/file.bin")
    store.started.clear()
    for _ in range(2):
        found = find(fs, "d/file.bin")
        assert (found.mode, found.mtime_ns) == (right.mode, right.mtime_ns)
        settled(fs)
    assert store.started == ["d/file.bin"]
    bench = Bench(fs, store)
    bench.reset()
    assert bench.read("d/file.bin") == b"content" and not bench.requests, "whatever told of it, its bytes are here"


def test_a_large_file_goes_on_behind_its_first_bytes(store: Gated, make: Make) -> None:
    data = os.urandom(5_000_000)
    store.put("large.bin", data)
    bench = Bench(make(), store)
    assert bench.read("large.bin") == data
    assert store.started == ["large.bin"]
    assert store.counters.bytes_down == len(data), "nothing twice"


@pytest.mark.parametrize("name", ["missing.txt", "folder.d"])
def test_what_is_no_file_waits_for_the_listing_alone(store: Gated, make: Make, name: str) -> None:
    store.put("folder.d/x", b"x")
    bench = Bench(make(), store)
    bench.reset()
    store.gets.clear()
    if name == "folder.d":
        assert bench.fs.lookup(ROOT_INO, name.encode()).is_dir
    else:
        with failing(errno.ENOENT):
            bench.walk(name)
    assert bench.requests == {"ListObjectsV2": 1} and not store.answered
    store.gets.set()
    settled(bench.fs)
    bench.reset()
    for _ in range(2):
        with failing(errno.ENOENT):
            bench.walk("missing.txt")
    assert not bench.requests


def test_a_get_that_hangs_holds_a_stat_up_no_longer_than_the_listing_took(store: Gated, make: Make) -> None:
    store.put("file.txt", b"content")
    bench = Bench(make(), store)
    store.gets.clear()
    assert bench.walk("file.txt")
    assert not store.answered
    store.gets.set()


def test_names_that_do_not_look_like_files_bring_no_bytes(store: Gated, make: Make) -> None:
    fs = make()
    for i, name in enumerate(("README", ".hidden", "v1.2", "folder", "a.way-too-long-for-an-extension", "a.b c", "end.")):
        store.put(f"d{i}/{name}", b"x")
        assert find(fs, f"d{i}/{name}").size == 1
        fs.core.table.root.dir.distrust()
    assert not store.started


def test_a_directory_that_was_listed_tells_for_nothing(store: Gated, make: Make) -> None:
    store.put("d/there.txt", b"x")
    fs = make(attr_ttl=0.05)
    assert names(fs, "d") == ["there.txt"]
    time.sleep(0.1)
    d = find(fs, "d").ino
    with failing(errno.ENOENT):
        fs.lookup(d, b"new.txt")  # as it is before a file is made
    assert not store.started


def test_with_a_disk_cache_the_version_is_asked_for_first(store: Gated, make: Make, tmp_path: Path) -> None:
    store.put("file.bin", b"content")
    fs = make(cache_dir=str(tmp_path / "cache"), cache_size=1 << 30)
    find(fs, "file.bin")
    assert not store.started


def test_an_unknown_file_of_a_huge_directory_is_one_get(store: Gated, make: Make) -> None:
    for i in range(1500):
        store.put(f"d/{i:05}.bin", b"%d" % i)
    bench = Bench(make(), store)
    bench.walk("d")
    assert bench.read("d/00700.bin") == b"700"
    settled(bench.fs)
    bench.reset()
    for i in range(0, 1500, 11):
        assert bench.read(f"d/{i:05}.bin") == b"%d" % i
    settled(bench.fs)
    assert bench.requests == {"GetObject": 137}


def test_files_that_are_only_looked_at_bring_few_bodies(store: Gated, make: Make) -> None:
    for i in range(1500):
        store.put(f"d/{i:05}.bin", bytes(200))
    bench = Bench(make(), store)
    folder = bench.walk("d")
    for i in range(100):
        bench.fs.lookup(folder, b"%05d.bin" % i)
    settled(bench.fs)
    assert len(store.started) == UNREAD
    assert bench.requests["HeadObject"] == 100 - UNREAD
    for i in range(200, 220):  # whoever begins to read has them again
        assert len(bench.read(f"d/{i:05}.bin")) == 200
    assert len(store.started) >= UNREAD + 18


def test_what_is_not_there_takes_no_turn_of_what_is(store: Gated, make: Make) -> None:
    store.put("d/file.bin", b"content")
    fs = make()
    d = find(fs, "d")
    for i in range(2 * UNREAD):
        d.dir.distrust()
        with failing(errno.ENOENT):
            fs.lookup(d.ino, b"%d.bin" % i)
        settled(fs)
    d.dir.distrust()
    d.dir.entries.clear()
    assert fs.lookup(d.ino, b"file.bin").size == 7
    assert store.started == [*(f"d/{i}.bin" for i in range(2 * UNREAD)), "d/file.bin"]


def test_few_are_under_way_at_once(store: Gated, make: Make) -> None:
    for i in range(40):
        store.put(f"d{i}/file.bin", b"x")
    fs = make()
    folders = [find(fs, f"d{i}").ino for i in range(40)]
    store.gets.clear()
    threads = [threading.Thread(target=fs.lookup, args=(folder, b"file.bin")) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "all look-ups went through"
    assert 1 <= len(store.started) <= AT_ONCE
    store.gets.set()


@pytest.mark.parametrize("status", [403, 500])
def test_a_refused_get_is_no_matter(store: Gated, make: Make, status: int) -> None:
    store.put("file.bin", b"content")
    fs = make()

    def refuse(key: str) -> None:
        raise StoreError("no", status=status)

    store.before = refuse
    assert find(fs, "file.bin").size == 7


def test_a_refused_listing_is_told_unless_the_file_was_found(store: Gated, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("file.bin", b"content")
    bench = Bench(make(), store)

    def refuse(prefix: str, **options: Any) -> ListPage:
        raise StoreError("no", status=403, errno=errno.EACCES)

    with monkeypatch.context() as patch:
        patch.setattr(store, "list", refuse)
        assert bench.read("file.bin") == b"content"
        with failing(errno.EACCES):
            bench.walk("other.bin")


def test_an_empty_file_is_found_by_the_listing(store: Gated, make: Make) -> None:
    store.put("file.bin", b"")
    bench = Bench(make(), store)
    assert bench.read("file.bin") == b""


def test_what_is_replaced_between_the_two_answers_is_never_mixed(store: Gated, make: Make) -> None:
    store.put("file.bin", b"one" * 100_000)
    bench = Bench(make(), store)

    def replaced(key: str) -> None:
        while "ListObjectsV2" not in store.counters.requests:
            time.sleep(0.001)
        store.put("file.bin", b"two" * 100_000)

    store.before = replaced
    store.lists.clear()
    opened = bench.fs.open(bench.walk("file.bin"), os.O_RDONLY)
    store.lists.set()  # its answer is from before
    settled(bench.fs)
    assert find(bench.fs, "file.bin").ino == bench.fs.handle(opened).node.ino
    assert bytes(bench.fs.read(opened, 0, 131072)) == (b"two" * 100_000)[:131072]
    bench.fs.release(opened)
    assert bench.read("file.bin") == b"two" * 100_000


def test_what_another_mount_does_after_the_answers_is_seen_after_the_ttl(store: Gated, make: Make) -> None:
    for name in ("gone.bin", "new.bin"):
        store.put(f"{name[0]}/{name}", b"one")
    fs = make(attr_ttl=0.05)
    for path in ("g/gone.bin", "n/new.bin"):
        assert find(fs, path).size == 3
    settled(fs)
    store.delete("g/gone.bin")
    store.put("n/new.bin", b"other")
    time.sleep(0.1)
    with failing(errno.ENOENT):
        find(fs, "g/gone.bin")
    assert find(fs, "n/new.bin").size == 5


def test_a_renamed_parent_is_asked_for_under_its_new_name(store: Gated, make: Make) -> None:
    store.put("old/file.bin", b"content")
    fs = make()
    old = find(fs, "old").ino
    moved: list[bool] = []

    def before(key: str) -> None:
        if not moved:
            moved.append(True)
            renaming = threading.Thread(target=fs.rename, args=(ROOT_INO, b"old", ROOT_INO, b"new"))
            renaming.start()
            renaming.join(10)

    store.before = before
    assert fs.lookup(old, b"file.bin").size == 7
    settled(fs)
    assert fs.core.key_of(find(fs, "new/file.bin")) == "new/file.bin"


def test_a_body_that_breaks_off_is_an_error_of_the_read_not_of_the_look_up(
    store: Gated, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("file.bin", bytes(SIZE))
    bench = Bench(make(), store)
    bodies: list[int] = []
    get_into = store.get_into

    def breaks(key: str, offset: int, buffer: Any, **options: Any) -> ObjectInfo:
        bodies.append(len(buffer))
        if len(bodies) == 1:
            options["progress"](1000)
            raise StoreError("broken")
        return get_into(key, offset, buffer, **options)

    monkeypatch.setattr(store, "get_into", breaks)
    handle = bench.fs.open(bench.walk("file.bin"), os.O_RDONLY)
    settled(bench.fs)
    assert bytes(bench.fs.read(handle, 0, SIZE)) == bytes(SIZE)
    assert bodies == [SIZE, SIZE]
    bench.fs.release(handle)
