"""Two mounts append to the same files, rename, list and change them at random: nothing that was taken in is nowhere.

What each appends is unique. Whatever `write` took in must be in some object at the end, be it a conflict's; errors are ESTALE
for what the other replaced, and ENOENT for names that are not there. Files are created only where none was, and whole.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from sluicefs.config import Config, MiB
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore

ME = Caller(os.getuid(), os.getgid())
NAMES = [b"a", b"b", b"c"]
VERBS = ["append", "append", "hold", "write", "write", "write", "drop", "listing", "rename", "chmod", "stat", "upload"]


class Pair:
    """Two mounts of one bucket; the first may be in back mode, and creates nothing then: nobody would know of it."""

    def __init__(self, folder: Path, mode: str, seed: int):
        self.dice = random.Random(seed)
        self.store = MemoryStore()
        self.mounts: list[FileSystem] = []
        for number, write_mode in enumerate((mode, "sync")):
            (folder / f"{number}").mkdir()
            options = {"part_size": 5 * MiB, "memory": 64 * MiB, "attr_ttl": 0.0, "write_mode": write_mode}
            config = Config("bucket", "/nowhere", **options)  # type: ignore[arg-type]
            self.mounts.append(FileSystem(config, self.store, str(folder / f"{number}")))
        self.held: list[tuple[FileSystem, int]] = []
        self.taken: list[bytes] = []
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        verb, fs, name = self.dice.choice(VERBS), self.dice.choice(self.mounts), self.dice.choice(NAMES)
        try:
            getattr(self, verb)(fs, name)
        except OSError as error:
            assert error.errno == errno.ESTALE or (error.errno == errno.ENOENT and verb not in ("write", "drop")), error

    def take(self, fs: FileSystem, handle: int) -> None:
        data = b"<%d>" % self.steps
        fs.write(handle, fs.handle(handle).node.size, data)
        self.taken.append(data)

    def append(self, fs: FileSystem, name: bytes) -> None:
        try:
            handle = fs.open(fs.lookup(ROOT_INO, name).ino, os.O_RDWR)
        except FileNotFoundError:
            if fs.core.config.write_mode == "back":
                raise
            handle, _ = fs.create(ROOT_INO, name, 0o644, os.O_RDWR, ME)
        self.take(fs, handle)
        self.close(fs, handle)

    def hold(self, fs: FileSystem, name: bytes) -> None:
        self.held.append((fs, fs.open(fs.lookup(ROOT_INO, name).ino, os.O_RDWR)))

    def write(self, _: FileSystem, __: bytes) -> None:
        if self.held:
            fs, handle = self.dice.choice(self.held)
            self.take(fs, handle)
            if self.dice.random() < 0.7:
                fs.fsync(handle)

    def drop(self, _: FileSystem, __: bytes) -> None:
        if self.held:
            self.close(*self.held.pop(self.dice.randrange(len(self.held))))

    def close(self, fs: FileSystem, handle: int) -> None:
        try:
            fs.flush(handle)
        finally:
            fs.release(handle)

    def listing(self, fs: FileSystem, _: bytes) -> None:
        handle = fs.opendir(ROOT_INO)
        fs.entries(handle)
        fs.releasedir(handle)

    def rename(self, fs: FileSystem, name: bytes) -> None:
        fs.rename(ROOT_INO, name, ROOT_INO, b"renamed-%d" % self.steps)

    def chmod(self, fs: FileSystem, name: bytes) -> None:
        fs.setattr(fs.lookup(ROOT_INO, name).ino, SetAttr(mode=self.dice.choice([0o600, 0o644])))

    def stat(self, fs: FileSystem, name: bytes) -> None:
        fs.getattr(fs.lookup(ROOT_INO, name).ino)

    def upload(self, fs: FileSystem, _: bytes) -> None:
        fs.sync_all()

    def end(self) -> bytes:
        """Everything that is in the bucket when all is sent."""
        while self.held:
            try:
                self.drop(self.mounts[0], b"")
            except OSError as error:
                assert error.errno == errno.ESTALE
        for fs in self.mounts:
            while failed := fs.sync_all():
                assert {error.errno for _, error in failed} == {errno.ESTALE}, "a conflict is told once"
            fs.close()
        return b"".join(bytes(self.store.get(info.key)[1]) for info in self.store.list("").objects)


@pytest.mark.parametrize("mode", ["sync", "back"])
@pytest.mark.parametrize("seed", range(6))
def test_what_either_took_in_is_somewhere(tmp_path: Path, mode: str, seed: int) -> None:
    pair = Pair(tmp_path, mode, seed)
    for _ in range(400):
        pair.step()
    found = pair.end()
    assert len(pair.taken) > 30
    assert [data for data in pair.taken if data not in found] == []
