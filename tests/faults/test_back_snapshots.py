"""Back mode, thousands of crashes: whatever moment the machine stops at, the next mount has all that was acknowledged.

A random sequence of changes runs on `fs/` over the reference store. After many of them journal, data files and bucket are
copied as a crash would leave them, what no fsync wrote down excepted, and a second filesystem takes over the copy.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from sluicefs.config import Config, MiB
from sluicefs.fs import writeback
from sluicefs.fs.draft import INLINE
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore

ME = Caller(os.getuid(), os.getgid())
NAMES = [b"a", b"b", b"c", b"d"]
SIZES = [0, 0, 1, 1, 100, 5000, INLINE + 1, 6 * MiB]


class Machine:
    """One filesystem, what it acknowledged, and copies of what it would leave."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.dice = random.Random(seed)
        self.store = MemoryStore()
        (folder / "staging").mkdir()
        self.fs = open_fs(self.store, folder / "staging")
        self.expected: dict[bytes, bytes] = {}
        self.told: list[str] = []
        self.copies = 0

    def step(self) -> None:
        verb = self.dice.choice(["rewrite", "rewrite", "append", "rename", "rename", "unlink", "truncate", "chmod", "pause"])
        name = self.dice.choice(NAMES)
        self.told.append(f"{verb} {name.decode()}")
        getattr(self, verb)(name)

    def rewrite(self, name: bytes) -> None:
        data = self.dice.randbytes(self.dice.choice(SIZES))
        if name not in self.expected:
            handle, node = self.fs.create(ROOT_INO, name, 0o644, os.O_WRONLY | os.O_CREAT, ME)
        else:
            node = self.fs.lookup(ROOT_INO, name)
            self.fs.setattr(node.ino, SetAttr(size=0))  # as the kernel does for O_TRUNC
            self.expected[name] = b""
            handle = self.fs.open(node.ino, os.O_WRONLY)
        self.fs.write(handle, 0, data)
        self.fs.flush(handle)
        self.fs.release(handle)
        self.fs.forget([(node.ino, 1)])
        self.expected[name] = data

    def append(self, name: bytes) -> None:
        if name in self.expected:
            node = self.fs.lookup(ROOT_INO, name)
            handle = self.fs.open(node.ino, os.O_WRONLY)
            self.fs.write(handle, len(self.expected[name]), b"more")
            self.fs.fsync(handle)
            self.expected[name] += b"more"
            self.fs.flush(handle)
            self.fs.release(handle)
            self.fs.forget([(node.ino, 1)])

    def rename(self, name: bytes) -> None:
        new = self.dice.choice(NAMES)
        if name in self.expected and new != name:
            with self.held(name), self.held(new):
                self.fs.rename(ROOT_INO, name, ROOT_INO, new)
            self.expected[new] = self.expected.pop(name)
            self.told[-1] += f" {new.decode()}"

    def unlink(self, name: bytes) -> None:
        if name in self.expected:
            with self.held(name):
                self.fs.unlink(ROOT_INO, name)
            del self.expected[name]

    @contextmanager
    def held(self, name: bytes) -> Iterator[None]:
        """The kernel has looked a name up before it renames or removes it."""
        node = self.fs.lookup(ROOT_INO, name) if name in self.expected else None
        yield
        if node is not None:
            self.fs.forget([(node.ino, 1)])

    def truncate(self, name: bytes) -> None:
        if name in self.expected:
            size = self.dice.choice([0, 1, len(self.expected[name]) // 2, len(self.expected[name]) + 10])
            node = self.fs.lookup(ROOT_INO, name)
            self.fs.setattr(node.ino, SetAttr(size=size))
            self.fs.forget([(node.ino, 1)])
            self.expected[name] = self.expected[name][:size].ljust(size, b"\0")

    def chmod(self, name: bytes) -> None:
        if name in self.expected:
            node = self.fs.lookup(ROOT_INO, name)
            self.fs.setattr(node.ino, SetAttr(mode=0o600))
            self.fs.forget([(node.ino, 1)])

    def pause(self, name: bytes) -> None:
        time.sleep(self.dice.random() * 0.01)

    def crash(self) -> None:
        """Copy what is durable now, and let a second filesystem take it over, once or twice over."""
        self.copies += 1
        staging = self.folder / f"copy-{self.copies}"
        with ExitStack() as locks:
            for journal in self.fs.core.staging.journals:
                locks.enter_context(journal._lock)  # the journal stands still: this is one moment
            shutil.copytree(self.folder / "staging", staging, copy_function=copy_if_there)
            store = copied(self.store)
        other = open_fs(store, staging)
        other.take_over()
        if self.dice.random() < 0.3:  # it dies too, before it has sent all
            other.files.writeback._stopping = True
            with ExitStack() as locks:
                for journal in other.core.staging.journals:
                    locks.enter_context(journal._lock)
                shutil.copytree(staging, staging.with_suffix(".2"), copy_function=copy_if_there)
                store = copied(store)
            other.close()
            staging = staging.with_suffix(".2")
            other = open_fs(store, staging)
            other.take_over()
        failed = other.sync_all()
        assert failed == [], f"{failed} after " + ", ".join(self.told[-12:])
        other.close()
        self.compare(store)
        assert [path for path in staging.rglob("*") if path.is_file()] == [], "nothing is owed when all is sent"
        assert store.list_uploads("") == []

    def compare(self, store: MemoryStore) -> None:
        found = {info.key.encode(): bytes(store.get(info.key)[1]) for info in store.list("").objects}
        if found != self.expected:
            sizes = [{name.decode(): len(data) for name, data in files.items()} for files in (found, self.expected)]
            raise AssertionError(f"found {sizes[0]}, expected {sizes[1]} (bytes) after\n" + "\n".join(self.told[-40:]))

    def end(self) -> None:
        assert self.fs.sync_all() == []
        self.fs.close()
        self.compare(self.store)


def open_fs(store: MemoryStore, staging: Path) -> FileSystem:
    options = {"part_size": 5 * MiB, "memory": 64 * MiB, "attr_ttl": 3600.0, "attrs": "listing", "write_mode": "back"}
    return FileSystem(Config("bucket", "/nowhere", **options), store, str(staging))  # type: ignore[arg-type]


def copied(store: MemoryStore) -> MemoryStore:
    made = MemoryStore()
    with store._lock:
        for name in ("_objects", "_uploads", "_order", "_new", "_dead"):
            setattr(made, name, copy.copy(getattr(store, name)))
    return made


def copy_if_there(source: str, target: str) -> None:
    if source.endswith("-shm"):  # SQLite's shared memory: gone with the processes
        return
    with suppress(FileNotFoundError):  # a data file that no record names any more
        shutil.copyfile(source, target)


def play(folder: Path, seed: int, steps: int) -> None:
    machine = Machine(folder, seed)
    for _ in range(steps):
        machine.step()
        if machine.dice.random() < 0.3:
            machine.crash()
    machine.end()
    assert machine.copies


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_at_any_moment_loses_nothing(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "QUIET", 0.004)  # what is sent meets what is changed all the time
    play(tmp_path, seed, 60)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 140))
def test_thousands_of_crashes(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "QUIET", 0.004)
    play(tmp_path, seed, 200)
