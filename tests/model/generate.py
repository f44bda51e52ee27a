"""Random steps: weighted towards files that exist, boundaries that break things and several descriptors at once."""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass

from tests.model.steps import Player, Step

NAMES = ("a", "b", "c", "a!", "a.b", "é", "with space", "a%2Fb+c&d")
EDGES = (0, 1, 511, 4095, 4096, 4097, 65536, 131071, 131072, 131073, 200_000)
WRITE_FLAGS = (
    ["O_WRONLY", "O_CREAT", "O_TRUNC"],
    ["O_RDWR", "O_CREAT"],
    ["O_WRONLY", "O_CREAT", "O_EXCL"],
    ["O_WRONLY", "O_CREAT", "O_APPEND"],
    ["O_RDWR"],
    ["O_RDWR", "O_APPEND"],
    ["O_RDWR", "O_TRUNC"],
    ["O_WRONLY"],
)
WEIGHTS = {
    "open": 18,
    "close": 8,
    "pread": 7,
    "read": 4,
    "pwrite": 10,
    "write": 8,
    "seek": 2,
    "mmap_write": 2,
    "ftruncate": 4,
    "truncate": 3,
    "fsync": 3,
    "fstat": 3,
    "fchmod": 1,
    "rename": 9,
    "unlink": 4,
    "mkdir": 6,
    "rmdir": 3,
    "symlink": 2,
    "readlink": 1,
    "mknod": 1,
    "chmod": 3,
    "chown": 1,
    "utime": 3,
    "stat": 6,
    "listdir": 4,
    "cat": 6,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What may appear. `sizes` are extra offsets and lengths in bytes (a part's size, say), drawn now and then.

    `wait`: seconds of a pause now and then, for what is trusted for a time only; 0: none. `forget`: let the kernel forget too.
    """

    slots: int = 4
    sizes: tuple[int, ...] = ()
    wait: float = 0.0
    forget: bool = False
    without: frozenset[str] = frozenset()


class Generator:
    """Steps for a player in its present state; the same seed and the same states give the same steps."""

    def __init__(self, seed: int, player: Player, limits: Limits | None = None):
        self._random = random.Random(seed)
        self._player = player
        self._root = player.root
        self._limits = limits or Limits()
        verbs = {verb: weight for verb, weight in WEIGHTS.items() if verb not in self._limits.without}
        if self._limits.wait:
            verbs["wait"] = 5
        if self._limits.forget:
            verbs["forget"] = 5
        self._verbs, self._weights = list(verbs), list(verbs.values())
        self._writes = 0

    def step(self) -> Step:
        draw = self._random
        verb = draw.choices(self._verbs, self._weights)[0]
        slot = self._slot(open_already=verb != "open")
        if verb == "open":
            flags = ["O_RDONLY"] if draw.random() < 0.25 else draw.choice(WRITE_FLAGS)
            path = self._path(existing=0.4 if "O_CREAT" in flags else 0.95, prefer="file")
            return ["open", slot, path, flags, draw.choice((0o644, 0o600, 0o755))]
        if verb == "wait":
            return [verb, self._limits.wait]
        if verb == "forget":
            return [verb]
        if verb in ("close", "fsync", "fstat"):
            return [verb, slot]
        if verb == "pread":
            return [verb, slot, self._offset(slot), self._size()]
        if verb == "read":
            return [verb, slot, self._size()]
        if verb == "pwrite":
            return [verb, slot, self._offset(slot), self._next(), self._size()]
        if verb == "mmap_write":
            return [
                verb,
                slot,
                offset := self._offset(slot),
                self._next(),
                draw.randrange(1, max(2, self._player.size(slot) - offset)),
            ]
        if verb == "write":
            return [verb, slot, self._next(), self._size()]
        if verb == "seek":
            return [verb, slot, *draw.choice(((0, os.SEEK_SET), (0, os.SEEK_END), (1000, os.SEEK_SET), (-1, os.SEEK_CUR)))]
        if verb == "ftruncate":
            return [verb, slot, self._size()]
        if verb == "fchmod":
            return [verb, slot, draw.choice((0o640, 0o700))]
        return self._path_step(verb)

    def _path_step(self, verb: str) -> Step:
        draw = self._random
        prefer = {"truncate": "file", "cat": "file", "listdir": "dir", "rmdir": "dir", "unlink": "file"}.get(verb, "")
        path = self._path(existing=0.9, prefer=prefer)
        if verb == "truncate":
            return [verb, path, self._size()]
        if verb == "rename":
            return [verb, path, self._path(existing=0.45)]
        if verb == "mkdir":
            return [verb, self._path(existing=0.15), draw.choice((0o755, 0o700))]
        if verb == "symlink":
            return [verb, draw.choice((*NAMES[:3], "a/b", "missing")), self._path(existing=0.1)]
        if verb == "mknod":
            return [verb, self._path(existing=0.1), draw.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG)) | 0o640]
        if verb == "chmod":
            return [verb, path, draw.choice((0o600, 0o644, 0o755, 0o444, 0o000))]
        if verb == "chown":
            return [verb, path, draw.choice((0, 1000)), draw.choice((0, 1001))]
        if verb == "utime":
            return [verb, path, 10**18, draw.randrange(10**9, 10**18)]
        return [verb, path]  # stat, listdir, cat, unlink, rmdir, readlink

    def _next(self) -> int:
        self._writes += 1
        return self._writes

    def _slot(self, *, open_already: bool) -> int:
        present = self._player.open_slots()
        every = range(self._limits.slots)
        likely = present if open_already else [slot for slot in every if slot not in present]
        return self._random.choice(likely if likely and self._random.random() < 0.95 else every)

    def _offset(self, slot: int) -> int:
        size = self._player.size(slot)
        return self._random.randrange(size) if size and self._random.random() < 0.6 else self._size()

    def _size(self) -> int:
        draw = self._random
        kind = draw.random()
        if kind < 0.5:
            return draw.randrange(300)
        if kind < 0.55 and self._limits.sizes:
            return max(0, draw.choice(self._limits.sizes) + draw.randrange(-1, 2))
        return draw.choice(EDGES) if kind < 0.85 else draw.randrange(300_000)

    def _path(self, existing: float, prefer: str = "") -> str:
        draw = self._random
        if draw.random() < existing:
            found: dict[str, list[str]] = {"file": [], "dir": []}
            for folder, folders, files in os.walk(self._root):
                folders.sort()
                below = os.path.relpath(folder, self._root) if folder != self._root else ""
                found["dir"] += [os.path.join(below, name) for name in folders]
                found["file"] += [os.path.join(below, name) for name in sorted(files)]
            wanted = found.get(prefer if draw.random() < 0.85 else "") or found["file"] + found["dir"]
            if wanted:
                return draw.choice(wanted)
        folder = ""
        while len(folder) < 20 and draw.random() < 0.45:
            base = os.path.join(self._root, folder)
            inner = sorted(e.name for e in os.scandir(base) if e.is_dir(follow_symlinks=False)) if os.path.isdir(base) else []
            folder = os.path.join(folder, draw.choice(inner) if inner else draw.choice(NAMES))
        return os.path.join(folder, draw.choice(NAMES))
