"""Steps of a model test: what they are, and a player that carries them out below a folder and notes what came of it.

A step is a JSON-able list `[verb, argument, …]`. Any list of steps can be played on any folder: a step that makes no sense
there (a closed slot, a missing file) has an errno as its outcome, and that is compared too. Paths are relative to the folder.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = list[Any]
Outcome = tuple[Any, ...]

FLAGS = {name: getattr(os, name) for name in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND")}
RECENT = 3600  # seconds: an older mtime was set on purpose
_NO_SLOT: Outcome = ("no such slot",)


def content(seed: int, length: int) -> bytes:
    """The bytes a write step stands for; no two writes of a script write the same."""
    return random.Random(seed).randbytes(length)


def describe(status: os.stat_result) -> dict[str, Any]:
    """What `stat` must agree on. Times only where they were set: a script sets old ones."""
    kind = stat.S_IFMT(status.st_mode)
    found: dict[str, Any] = {"mode": oct(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
    if kind in (stat.S_IFREG, stat.S_IFLNK):
        found["size"] = status.st_size
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        found["rdev"] = status.st_rdev
    if kind in (stat.S_IFREG, stat.S_IFDIR):  # a pipe's times are the kernel's own affair
        found["mtime_ns"] = status.st_mtime_ns
    return found


class Player:
    """Plays steps below `root`; holds the open descriptors in numbered slots."""

    def __init__(self, root: str):
        self.root = root
        self._slots: dict[int, int] = {}
        os.makedirs(root, exist_ok=True)

    def play(self, step: Step) -> Outcome:
        """("ok", value…), ("errno", name) or a word of its own; never raises OSError."""
        verb, *arguments = step
        action: Callable[..., Outcome | None] = getattr(self, "do_" + verb)
        try:
            return action(*arguments) or ("ok",)
        except OSError as error:
            return ("errno", errno.errorcode.get(error.errno or 0, str(error)))

    def open_slots(self) -> list[int]:
        return sorted(self._slots)

    def size(self, slot: int) -> int:
        """Bytes of the regular file in this slot, else 0."""
        status = os.fstat(self._slots[slot]) if slot in self._slots else None
        return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else 0

    def close_all(self) -> list[Outcome]:
        return [self.play(["close", slot]) for slot in self.open_slots()]

    def _path(self, path: str) -> str:
        return os.path.join(self.root, path)

    def do_wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def do_forget(self) -> None:
        """Make the kernel forget what it knows of files that are not open, as it does when memory is short. Root only."""
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("2")

    def do_open(self, slot: int, path: str, flags: list[str], mode: int = 0o644) -> Outcome | None:
        if slot in self._slots:
            return ("slot in use",)
        value = os.O_NONBLOCK  # a FIFO without a partner would hold us for ever
        for name in flags:
            value |= FLAGS[name]
        self._slots[slot] = os.open(self._path(path), value, mode)
        return None

    def do_close(self, slot: int) -> Outcome | None:
        if slot not in self._slots:
            return _NO_SLOT
        os.close(self._slots.pop(slot))
        return None

    def do_pread(self, slot: int, offset: int, length: int) -> Outcome:
        if slot not in self._slots:
            return _NO_SLOT
        return ("ok", os.pread(self._slots[slot], length, offset))

    def do_read(self, slot: int, length: int) -> Outcome:
        if slot not in self._slots:
            return _NO_SLOT
        return ("ok", os.read(self._slots[slot], length))

    def do_pwrite(self, slot: int, offset: int, seed: int, length: int) -> Outcome:
        if slot not in self._slots:
            return _NO_SLOT
        return ("ok", os.pwrite(self._slots[slot], content(seed, length), offset))

    def do_write(self, slot: int, seed: int, length: int) -> Outcome:
        if slot not in self._slots:
            return _NO_SLOT
        return ("ok", os.write(self._slots[slot], content(seed, length)))

    def do_seek(self, slot: int, offset: int, whence: int) -> Outcome:
        if slot not in self._slots:
            return _NO_SLOT
        if stat.S_ISDIR(os.fstat(self._slots[slot]).st_mode):
            return ("a directory's offsets are its own",)
        return ("ok", os.lseek(self._slots[slot], offset, whence))

    def do_mmap_write(self, slot: int, offset: int, seed: int, length: int) -> Outcome | None:
        if slot not in self._slots:
            return _NO_SLOT
        status = os.fstat(self._slots[slot])
        size = status.st_size
        if not stat.S_ISREG(status.st_mode) or offset + length > size or not length:
            return ("nothing to map",)
        with mmap.mmap(self._slots[slot], size) as mapped:
            mapped[offset : offset + length] = content(seed, length)
            mapped.flush()
        return None

    def do_ftruncate(self, slot: int, length: int) -> Outcome | None:
        if slot not in self._slots:
            return _NO_SLOT
        os.ftruncate(self._slots[slot], length)
        return None

    def do_fsync(self, slot: int) -> Outcome | None:
        if slot not in self._slots:
            return _NO_SLOT
        os.fsync(self._slots[slot])
        return None

    def do_fstat(self, slot: int) -> Outcome:
        if slot not in self._slots:
            return _NO_SLOT
        return ("stat", describe(os.fstat(self._slots[slot])))

    def do_fchmod(self, slot: int, mode: int) -> Outcome | None:
        if slot not in self._slots:
            return _NO_SLOT
        os.fchmod(self._slots[slot], mode)
        return None

    def do_truncate(self, path: str, length: int) -> None:
        os.truncate(self._path(path), length)

    def do_rename(self, old: str, new: str) -> None:
        os.rename(self._path(old), self._path(new))

    def do_unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._path(path), mode)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(self._path(path))

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._path(path))

    def do_readlink(self, path: str) -> Outcome:
        return ("ok", os.readlink(self._path(path)))

    def do_mknod(self, path: str, mode: int) -> None:
        os.mknod(self._path(path), mode)

    def do_chmod(self, path: str, mode: int) -> None:
        os.chmod(self._path(path), mode)

    def do_chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._path(path), uid, gid, follow_symlinks=False)

    def do_utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._path(path), ns=(atime_ns, mtime_ns))

    def do_stat(self, path: str) -> Outcome:
        return ("stat", describe(os.lstat(self._path(path))))

    def do_listdir(self, path: str) -> Outcome:
        with os.scandir(self._path(path)) as entries:
            return ("ok", sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries))

    def do_cat(self, path: str) -> Outcome:
        fd = os.open(self._path(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            pieces = []
            while piece := os.read(fd, 1 << 20):
                pieces.append(piece)
        finally:
            os.close(fd)
        return ("ok", b"".join(pieces))


def agree(left: Outcome, right: Outcome, *, now_ns: int) -> bool:
    """Whether the same step had the same outcome on both sides; `left` is the plain local folder."""
    if left[0] == right[0] == "stat":
        ours, theirs = dict(left[1]), dict(right[1])
        mine, other = ours.pop("mtime_ns", None), theirs.pop("mtime_ns", None)
        return ours == theirs and _times_agree(mine, other, ours["mode"].startswith("0o40"), now_ns)
    either = (("errno", "ENOTEMPTY"), ("errno", "EEXIST"))  # POSIX allows both, for rmdir and for rename
    return left == right or (left in either and right in either)


def _times_agree(local: int | None, other: int | None, is_directory: bool, now_ns: int) -> bool:
    if local is None or other is None:
        return local == other
    if abs(now_ns - local) > RECENT * 10**9:
        return local == other
    # A bucket has no directory times of its own: a directory changed meanwhile may show any.
    return is_directory or abs(local - other) < 30 * 10**9


def short(outcome: Outcome) -> str:
    """An outcome for people."""
    return repr(tuple(f"<{len(v)} bytes {v[:12].hex()}…>" if isinstance(v, bytes) and len(v) > 12 else v for v in outcome))
