"""How long a call can wait for a store that does not answer, counted and not timed: each request that is given up costs its
whole budget, and no call may come to more timeouts than SEMANTICS.md states, whichever verbs are not answered.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import Config
from sluicefs.errors import StoreTimeoutError
from sluicefs.fs.filesystem import FileSystem, SetAttr
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.memory import MemoryStore
from tests.faults.blocking import bound
from tests.unit.test_fs_attributes import ME, find, names

MiB = 1024 * 1024
COSTS = Counter({"copy": 4, "copy_part": 4, "complete_upload": 4})  # timeouts, those of `store.verbs`; every other verb: 1
VERBS = ["head", "get_into", "get", "put", "copy", "delete", "delete_many", "list"]
VERBS += ["create_upload", "upload_part", "copy_part", "complete_upload", "abort_upload", "list_uploads"]


class Unanswered(MemoryStore):
    """The reference store; while `dead` is set, verbs that match it are given up. `waited`: timeouts of this thread.

    Those of other threads wait side by side: of each verb, the longest counts.
    """

    def __init__(self) -> None:
        super().__init__(min_part=1)
        self.dead: tuple[str, ...] = ()
        self.mine = threading.get_ident()
        self.waited = 0
        self.others: dict[str, int] = {}
        for verb in VERBS:
            setattr(self, verb, self._may_fail(verb, getattr(self, verb)))

    def _may_fail(self, verb: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not any(fnmatchcase(verb, pattern) for pattern in self.dead):
                return real(*args, **kwargs)
            if threading.get_ident() == self.mine:
                self.waited += COSTS[verb] or 1
            else:
                self.others[verb] = COSTS[verb] or 1
            error = StoreTimeoutError(f"{verb}: no answer", code="Timeout")
            if verb == "delete_many":
                return [(key, error) for key in args[0]]
            raise error

        return call


def open_and(use: Callable[[FileSystem, int], object], path: str, flags: int) -> Callable[[FileSystem], Callable[[], object]]:
    def prepare(fs: FileSystem) -> Callable[[], object]:
        handle = fs.open(find(fs, path).ino, flags)
        return lambda: use(fs, handle)

    return prepare


def written(path: str, size: int) -> Callable[[FileSystem], Callable[[], object]]:
    """A new file of so many bytes; the call is its close."""

    def prepare(fs: FileSystem) -> Callable[[], object]:
        handle, _ = fs.create(ROOT_INO, path.encode(), 0o600, os.O_WRONLY, ME)
        fs.write(handle, 0, os.urandom(size))
        return lambda: fs.flush(handle)

    return prepare


def changed(path: str, at: int) -> Callable[[FileSystem], Callable[[], object]]:
    """A change in the middle of a file; the call is its close."""

    def prepare(fs: FileSystem) -> Callable[[], object]:
        handle = fs.open(find(fs, path).ino, os.O_WRONLY)
        fs.write(handle, at, b"changed")
        return lambda: fs.flush(handle)

    return prepare


def dirty_and_renamed(fs: FileSystem) -> Callable[[], object]:
    handle = fs.open(find(fs, "dir/1").ino, os.O_WRONLY)
    fs.write(handle, 0, b"changed")
    return lambda: fs.rename(ROOT_INO, b"dir", ROOT_INO, b"dir2")


CALLS: dict[str, Callable[[FileSystem], Callable[[], object]]] = {
    "stat": lambda fs: lambda: find(fs, "small"),
    "stat of a missing name": lambda fs: lambda: find(fs, "missing"),
    "readdir": lambda fs: lambda: names(fs, "dir"),
    "open": lambda fs: lambda: fs.open(find(fs, "small").ino, os.O_RDONLY),
    "open to truncate": lambda fs: lambda: fs.open(find(fs, "small").ino, os.O_RDWR | os.O_TRUNC),
    "read": open_and(lambda fs, handle: fs.read(handle, 0, 4096), "large", os.O_RDONLY),
    "write": open_and(lambda fs, handle: fs.write(handle, 5, b"x"), "large", os.O_RDWR),
    "append": open_and(lambda fs, handle: fs.write(handle, 1000, b"x"), "small", os.O_RDWR | os.O_APPEND),
    "close of a small file": written("new", 1000),
    "close of a long file": written("new", 13 * MiB),
    "close of a changed small file": changed("small", 10),
    "close of a changed long file": changed("large", 7 * MiB),
    "truncate": lambda fs: lambda: fs.setattr(find(fs, "large").ino, SetAttr(size=MiB)),
    "chmod": lambda fs: lambda: fs.setattr(find(fs, "small").ino, SetAttr(mode=0o600)),
    "fsync after chmod": open_and(
        lambda fs, handle: (fs.setattr(fs.handle(handle).node.ino, SetAttr(mode=0o600)), fs.fsync(handle)), "small", os.O_RDWR
    ),
    "rename": lambda fs: lambda: fs.rename(ROOT_INO, b"small", ROOT_INO, b"renamed"),
    "rename over": lambda fs: lambda: fs.rename(ROOT_INO, b"small", ROOT_INO, b"small2"),
    "rename of a long file": lambda fs: lambda: fs.rename(ROOT_INO, b"large", ROOT_INO, b"renamed"),
    "rename of a directory": lambda fs: lambda: fs.rename(ROOT_INO, b"dir", ROOT_INO, b"dir2"),
    "rename of a directory over an empty one": lambda fs: lambda: fs.rename(ROOT_INO, b"dir", ROOT_INO, b"empty"),
    "rename of a directory with an unsent file": dirty_and_renamed,
    "unlink": lambda fs: lambda: fs.unlink(ROOT_INO, b"small"),
    "unlink of the last entry": lambda fs: lambda: fs.unlink(find(fs, "bare").ino, b"x"),
    "unlink while open": lambda fs: (fs.open(find(fs, "small").ino, os.O_RDONLY), lambda: fs.unlink(ROOT_INO, b"small"))[1],
    "mkdir": lambda fs: lambda: fs.mkdir(ROOT_INO, b"new", 0o700, ME),
    "rmdir": lambda fs: lambda: fs.rmdir(ROOT_INO, b"empty"),
    "symlink": lambda fs: lambda: fs.symlink(ROOT_INO, b"link", b"aim", ME),
    "mknod": lambda fs: lambda: fs.mknod(ROOT_INO, b"fifo", 0o010644, 0, ME),
}
DEAD = [
    ("*",),
    ("[!hlg]*",),
    ("cop*", "complete*"),
    ("put", "del*", "abort*"),
    ("head",),
    ("list",),
    *((v,) for v in VERBS[2:]),
]


@pytest.fixture
def store() -> Iterator[Unanswered]:
    made = Unanswered()
    for key in ("small", "small2", "bare/x", "dir/1", "dir/2"):
        made.put(key, bytes(1000))
    for key in ("dir/", "empty/"):
        made.put(key, b"")
    made.put("large", bytes(13 * MiB))
    yield made


@pytest.mark.parametrize("dead", DEAD, ids=" ".join)
@pytest.mark.parametrize("call", CALLS)
def test_no_call_waits_longer_than_is_stated(store: Unanswered, tmp_path: Path, call: str, dead: tuple[str, ...]) -> None:
    config = Config("bucket", "/nowhere", part_size=5 * MiB, memory=64 * MiB, attr_ttl=0.0, timeout=5.0)
    fs = FileSystem(config, store, str(tmp_path))
    try:
        go = CALLS[call](fs)
        store.dead = dead
        with suppress(OSError):
            go()
        waited = store.waited + sum(store.others.values())
        assert waited <= bound(), f"{call}: {waited} timeouts"
    finally:
        store.dead = ()
        fs.close()
