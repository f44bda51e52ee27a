"""Inodes: stable while they are known, forgotten when they are not, counted right under stress, small by the million."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import threading
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.api import ListPage, ObjectInfo
from sluicefs.store.memory import MemoryStore
from tests.unit.test_fs_attributes import ME, Make, find, make, names, store

__all__ = ["make", "store"]  # fixtures

ENTRIES = 30_000


class Endless(MemoryStore):
    """A bucket with one folder of many files, none of which takes memory."""

    def list(self, prefix: str, *, delimiter: str = "", token: str | None = None, **_: Any) -> ListPage:
        if not prefix:
            return ListPage([], ["many/"], None)
        start = int(token or 0)
        end = min(start + 1000, ENTRIES)
        objects = [
            ObjectInfo(f"many/file-{i:010}.bin", i * 7, hashlib.md5(b"%d" % i).hexdigest(), 1.7e9 + i)
            for i in range(start, end)
        ]
        return ListPage(objects, [], str(end) if end < ENTRIES else None)


@pytest.mark.parametrize("store", [Endless()], ids=["endless"])
def test_an_inode_takes_at_most_600_bytes(make: Make) -> None:
    fs = make(attr_ttl=60.0)
    folder = find(fs, "many").ino
    tracemalloc.start()
    try:
        handle = fs.opendir(folder)
        assert len(fs.entries(handle)) == ENTRIES + 2
        listed = tracemalloc.get_traced_memory()[0] / ENTRIES
        fs.releasedir(handle)
        for i in range(ENTRIES):
            node = fs.lookup(folder, b"file-%010d.bin" % i)
        gc.collect()
        known = tracemalloc.get_traced_memory()[0] / ENTRIES
        assert (node.size, node.mtime_ns) == ((ENTRIES - 1) * 7, (1_700_000_000 + ENTRIES - 1) * 10**9)
        fs.forget([(node.ino, 1) for node in list((fs.node(folder).children or {}).values())])
        gc.collect()
        forgotten = tracemalloc.get_traced_memory()[0] / ENTRIES
    finally:
        tracemalloc.stop()
    assert len(fs.core.table.by_ino) == 2
    print(f"bytes an inode: {listed:.0f} listed, {known:.0f} known to the kernel, {forgotten:.0f} forgotten")
    assert listed <= 250 and known <= 600 and forgotten <= listed + 100


def test_readdir_and_stat_agree_and_numbers_stay(store: MemoryStore, make: Make) -> None:
    for i in range(50):
        store.put(f"d/{i}", b"x")
    fs = make(attr_ttl=0.0)
    folder = find(fs, "d")
    handle = fs.opendir(folder.ino)
    seen = {name: ino for name, ino, _ in fs.entries(handle)}
    fs.releasedir(handle)
    for _ in range(2):
        assert {name: fs.lookup(folder.ino, name.encode()).ino for name in names(fs, "d")} == {
            name: ino for name, ino in seen.items() if name not in (".", "..")
        }
    assert seen["."] == folder.ino and seen[".."] == ROOT_INO


def test_a_forgotten_number_is_gone_and_an_open_one_is_not(make: Make) -> None:
    fs = make()
    handle, node = fs.create(ROOT_INO, b"x", 0o644, os.O_RDWR, ME)
    fs.write(handle, 0, b"data")
    fs.forget([(node.ino, 1)])
    assert fs.getattr(node.ino).size == 4, "it is open"
    fs.flush(handle)
    fs.release(handle)
    assert len(fs.core.table.by_ino) == 1
    with pytest.raises(OSError):
        fs.getattr(node.ino)
    fs.forget([(node.ino, 5), (12345, 1)])  # of numbers nobody knows


def test_look_ups_are_counted_right_under_stress(make: Make) -> None:
    """Eight threads look up, create, rename, remove and forget; when all counts were given back, only the root is left."""
    fs = make(attr_ttl=0.01)
    folders = [fs.mkdir(ROOT_INO, b"%d" % i, 0o755, ME).ino for i in range(3)]
    counts: Counter[int] = Counter(folders)
    guard, failures = threading.Lock(), []
    locks = {ino: threading.Lock() for ino in folders}  # the kernel's: one change of a directory at a time

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(1500):
                folder, name = choose.choice(folders), b"%d" % choose.randrange(6)
                other = choose.choice(folders)
                try:
                    action = choose.random()
                    if action < 0.5:
                        with locks[folder]:
                            node = fs.lookup(folder, name)
                            with guard:
                                counts[node.ino] += 1
                    elif action < 0.7:
                        with locks[folder]:
                            handle, node = fs.create(folder, name, 0o644, os.O_WRONLY, ME)
                            with guard:
                                counts[node.ino] += 1
                        fs.flush(handle)
                        fs.release(handle)
                    elif action < 0.8:
                        with locks[folder]:
                            fs.unlink(folder, name)
                    elif action < 0.9 and folder != other:
                        first, second = sorted((folder, other))
                        with locks[first], locks[second]:
                            fs.rename(folder, name, other, name)
                    else:
                        with guard:
                            known = [ino for ino in counts if ino not in folders and counts[ino]]
                            if not known:
                                continue
                            ino = choose.choice(known)
                            given = choose.randint(1, counts[ino])
                            counts[ino] -= given
                        fs.forget([(ino, given)])
                except FileNotFoundError:
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert not fs.sync_all()
    for ino, count in counts.items():
        node = fs.core.table.by_ino.get(ino)
        assert (node.lookups if node is not None else 0) == count, "every look-up was counted once"
    fs.forget([(ino, count) for ino, count in counts.items() if count])
    assert list(fs.core.table.by_ino) == [ROOT_INO]
