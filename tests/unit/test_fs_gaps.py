"""Names that are not there: asked for once for many, and never called missing when they are there."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import Config
from sluicefs.errors import StoreError
from sluicefs.fs import directory
from sluicefs.fs.filesystem import FileSystem
from sluicefs.fs.gaps import Gap, Gaps, before
from sluicefs.store.api import ListPage
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import ME, Make, failing, find, make, names
from tests.unit.test_fs_requests import Bench

__all__ = ["make"]  # a fixture

A_SECOND = 300  # files that one writer makes


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Time stands still, but for what a test lets pass: counts must not depend on how busy the machine is."""
    now = [time.monotonic()]

    def later(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield later


def create(bench: Bench, folder: int, name: str, data: bytes = b"x") -> None:
    """As the kernel does: it looks, creates, writes, closes and forgets."""
    with pytest.raises(FileNotFoundError):
        bench.fs.lookup(folder, name.encode())
    handle, node = bench.fs.create(folder, name.encode(), 0o644, os.O_WRONLY | os.O_CREAT, ME)
    bench.fs.write(handle, 0, data)
    bench.fs.flush(handle)
    bench.fs.release(handle)
    bench.fs.forget([(node.ino, 1)])


@pytest.mark.parametrize(
    ("there", "order", "more"),
    [(0, "sorted", 1.01), (3000, "sorted", 1.01), (0, "random", 1.03), (3000, "random", 1.05)],
)
def test_a_new_file_is_one_request_in_any_directory(
    store: MemoryStore, make: Make, clock: Callable[[float], None], there: int, order: str, more: float
) -> None:
    for i in range(there):
        store.put(f"d/{i * 7919 % 3001:06}.old", b"")
    bench = Bench(make(), store)
    folder = bench.walk("d") if there else bench.fs.mkdir(1, b"d", 0o755, ME).ino
    assert len(bench.names("d")) == there + 2
    new = [f"{i:06}.new" for i in range(2000)]
    if order == "random":
        random.Random(1).shuffle(new)
    clock(5)  # the listing is old
    bench.reset()
    for name in new:
        create(bench, folder, name)
        clock(1 / A_SECOND)
    assert bench.requests["PutObject"] == 2000
    assert sum(bench.requests.values()) <= 2000 * more, bench.requests


def test_names_in_order_cost_one_request_in_a_directory_that_was_never_listed(
    store: MemoryStore, make: Make, clock: Callable[[float], None]
) -> None:
    for i in range(1500):
        store.put(f"d/{i:06}.old", b"")
    bench = Bench(make(), store)
    folder = bench.walk("d")
    bench.reset()
    for i in range(600):
        create(bench, folder, f"x{i:06}")
        clock(1 / A_SECOND)
    assert sum(bench.requests.values()) <= 600 + 1 + 1 + 2, bench.requests


def test_a_missing_name_in_a_huge_directory_brings_a_short_page(store: MemoryStore, make: Make) -> None:
    for i in range(20_000):
        store.put(f"d/{i * 7919 % 20_000:05}0", b"")
    limits: list[int] = []
    listed = store.list

    def watched(prefix: str, **options: Any) -> ListPage:
        limits.append(options.get("limit", 1000))
        return listed(prefix, **options)

    store.list = watched  # type: ignore[method-assign]
    bench = Bench(make(), store)
    folder = bench.walk("d")
    for i in range(50):
        with pytest.raises(FileNotFoundError):
            bench.fs.lookup(folder, b"%05d1" % (i * 397))
    assert sum(limits[2:]) <= 50 * 20, "after the root and the first page"


@pytest.mark.parametrize("there", [10, 1500])
def test_what_another_mount_makes_is_seen_after_the_ttl(
    store: MemoryStore, make: Make, clock: Callable[[float], None], there: int
) -> None:
    for i in range(there):
        store.put(f"d/{i:05}", b"")
    bench = Bench(make(), store)
    folder = bench.walk("d")
    create(bench, folder, "new-1")
    create(bench, folder, "new-2")
    store.put("d/new-3", b"theirs")
    store.put("d/sub/x", b"theirs")
    clock(1.01)
    assert bench.fs.lookup(folder, b"new-3").size == 6
    assert bench.fs.lookup(folder, b"sub").is_dir
    handle, node = bench.fs.create(folder, b"new-3", 0o644, os.O_WRONLY | os.O_CREAT | os.O_APPEND, ME)
    bench.fs.write(handle, node.size, b" and ours")
    bench.fs.flush(handle)
    bench.fs.release(handle)
    assert bytes(store.get("d/new-3")[1]) == b"theirs and ours"
    with failing(errno.EEXIST):
        bench.fs.create(folder, b"new-3", 0o644, os.O_WRONLY | os.O_CREAT | os.O_EXCL, ME)


def test_the_kernel_remembers_a_missing_name_no_longer_than_it_is_known(
    store: MemoryStore, make: Make, clock: Callable[[float], None]
) -> None:
    for i in range(1500):
        store.put(f"d/{i:05}", b"")
    fs = make()
    folder = find(fs, "d").ino
    for name, age in ((b"x1", 0.0), (b"x2", 0.7)):  # the second is told by the page that told of the first
        clock(age)
        with failing(errno.ENOENT):
            fs.lookup(folder, name)
        assert fs.missing_for(folder, name) <= 1.0 - age + 1e-6


def test_a_name_that_was_found_is_not_missing_again(store: MemoryStore, make: Make) -> None:
    for i in range(1500):
        store.put(f"d/{i:05}", b"x")
    fs = make()
    folder = find(fs, "d").ino
    with failing(errno.ENOENT):
        fs.lookup(folder, b"x1")
    store.put("d/x2", b"theirs")
    node = fs.core.directories._probe(fs.node(folder), "x2")  # somebody asked while the page was under way
    fs.core.table.forget(node, 0)
    assert fs.lookup(folder, b"x2").size == 6


def test_what_is_shown_around_a_missing_name_is_asked_for_by_itself(store: MemoryStore, make: Make) -> None:
    for i in range(1500):
        store.put(f"d/{i:05}", b"x")
    store.put("d/x9", b"theirs", metadata={"mode": str(0o100600)})
    fs = make()
    folder = find(fs, "d").ino
    with failing(errno.ENOENT):
        fs.lookup(folder, b"x1")
    assert fs.lookup(folder, b"x9").mode == 0o100600  # its metadata are known, though the page had none


def test_a_refused_file_may_be_there_all_the_same(store: MemoryStore, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(1500):
        store.put(f"d/{i:05}", b"x")
    fs = make()
    folder = find(fs, "d").ino
    put = store.put

    def arrives(key: str, body: Any, **options: Any) -> str:
        etag = put(key, body, **options)
        if key == "d/link":
            raise StoreError("the answer got lost")
        return etag

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", arrives)
        with failing(errno.EIO):
            fs.symlink(folder, b"link", b"target", ME)
    assert fs.readlink(fs.lookup(folder, b"link").ino) == b"target"


ODD = ["a", "a-", "a-b", "a!", "a.txt", "a0", "a b", "aa", "A", "é", "z", "~", "\U0001f388", "\ufb01", "a$", "a_", "b", "b-c"]


class Tree(MemoryStore):
    """Lists as SeaweedFS does: directories by their names without the slash."""

    def order(self, keys: list[str]) -> list[str]:
        return sorted(keys, key=lambda key: key.rstrip("/"))

    def list(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, start_after: str | None = None, limit: int = 1000
    ) -> ListPage:
        page = super().list(prefix, delimiter=delimiter)
        infos = {info.key: info for info in page.objects}
        keys = self.order([*infos, *page.prefixes])
        behind = token or start_after
        if behind is not None:
            keys = keys[self.position(keys, behind) :]
        keys, rest = keys[:limit], keys[limit:]
        objects = [infos[key] for key in keys if key in infos]
        return ListPage(objects, [key for key in keys if key not in infos], keys[-1] if rest else None)

    def position(self, keys: list[str], behind: str) -> int:
        return sum(key.rstrip("/") <= behind.rstrip("/") for key in keys)


class Backwards(Tree):
    """Lists in an order of its own."""

    def order(self, keys: list[str]) -> list[str]:
        return sorted(keys, reverse=True)

    def position(self, keys: list[str], behind: str) -> int:
        return sum(key >= behind for key in keys)


class FromTheStart(Tree):
    """Does not know `start_after`."""

    def position(self, keys: list[str], behind: str) -> int:
        return keys.index(behind) + 1 if behind in keys else 0


@pytest.mark.parametrize("kind", [MemoryStore, Tree, Backwards, FromTheStart])
@pytest.mark.parametrize("seed", range(8))
def test_no_name_that_is_there_is_called_missing(
    kind: type[MemoryStore], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr("sluicefs.fs.gaps.NARROW", 3)
    monkeypatch.setattr("sluicefs.fs.gaps.WIDE", 5)
    monkeypatch.setattr(directory, "PAGE", 0)
    store = kind()
    there = {}
    for name in chance.sample(ODD, 10):
        form = chance.choice(["file", "file", "directory", "hadoop"])
        store.put({"file": f"d/{name}", "directory": f"d/{name}/x", "hadoop": f"d/{name}_$folder$"}[form], b"")
        there[name] = form != "file"
    fs = FileSystem(Config("bucket", "/nowhere"), store, str(tmp_path))  # type: ignore[arg-type]
    folder = find(fs, "d")
    if seed % 2 or kind is Backwards:  # a listing shows its order; the first page of any directory is looked at
        names(fs, "d")
        clock(2)
    for _ in range(60):
        folder.dir.big_until = time.monotonic() + 60  # as if it were a large directory
        name = chance.choice(ODD)
        try:
            assert fs.lookup(folder.ino, name.encode()).is_dir == there[name]
        except FileNotFoundError:
            assert name not in there or (there[name] and f"d/{name}_$folder$" in all_keys(store) and not folder.dir.listed_at)
        clock(chance.choice([0.0, 0.1, 1.5]))
    fs.close()


def all_keys(store: MemoryStore) -> set[str]:
    return {info.key for info in MemoryStore.list(store, "").objects}


@pytest.mark.parametrize("name", [*ODD, "\x01", " ", "\ue000", "\U00010000", "a\x00b"[:1], "0", "x\U0010ffff"])
def test_a_page_about_a_name_begins_before_it(name: str) -> None:
    start = before(name)
    assert start < name
    start.encode()
    assert not [other for other in ODD if start < other < name and not other.startswith(name[:-1])]


def test_a_page_tells_of_names_whose_every_form_it_would_show() -> None:
    gap = Gap("a", ["b", "b-c", "c"], whole=False, at=1.0)
    assert gap.misses("ab") and gap.misses("b0")
    assert not gap.misses("a"), "before its beginning"
    assert not gap.misses("b") and not gap.misses("c"), "shown"
    assert not gap.misses("c-"), "after its end"
    assert not Gap("a", ["b"], whole=False, at=1.0).misses("ab_$folder$")
    assert not Gap("a", ["b!"], whole=False, at=1.0).misses("b"), "b/ would come after b!"
    assert Gap("a", ["b!"], whole=True, at=1.0).misses("b")
    assert Gap("a", [], whole=True, at=1.0).misses("zzz")
    assert not Gap("a", [], whole=False, at=1.0).misses("b")


def test_answers_that_came_out_of_order_are_trusted_no_longer_than_others() -> None:
    gaps = Gaps()
    gaps.add(Gap("m", [], whole=True, at=2.0))
    gaps.add(Gap("a", ["c"], whole=False, at=1.0))  # asked earlier, answered later
    assert gaps.told("b", since=0.5) == 1.0
    assert gaps.told("b", since=1.5) == 0.0
    assert gaps.told("n", since=1.5) == 2.0
