"""The folder that mounts share: its lock, how much of it is used, and who leaves first.

There is no index that could be wrong: the files are the index, their mtime is when they were last used, their blocks what they
cost. One number, the bytes used, is kept in the lock file; a crash can leave it too high, never too low, and each mount counts
anew when it begins. Readers never lock: whoever has a file open reads on while it is evicted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sluicefs.cache.segment import PAGE, Damaged, Segment, name_of, parse_name, size_in

_USED = struct.Struct("=Q")
NEW_FILE = "new"
# How many of the least recently used files one look at the folder remembers; bounds memory where there are millions.
_VICTIMS = 16384


@dataclass(slots=True)
class Totals:
    """Bytes on disk (`used`, directories too), files, and when the least recently used was used (seconds since the epoch)."""

    used: int = 0
    segments: int = 0
    oldest: float = 0.0


class Folder:
    """The folder `blocks` in `path`, made (0700) where it is missing. Raises OSError where that is not possible."""

    def __init__(self, path: str):
        self.path = os.path.join(path, "blocks")
        self._victims: list[tuple[int, str]] = []
        self._lock = -1
        self._open()

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is not a folder of this user", self.path)
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(self.path, 0o700)
        lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.close()
        self._lock = lock

    def close(self) -> None:
        """Give back the descriptor. The folder may be used again: it is opened anew."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that write here. Waits; the kernel frees the lock of a process that dies."""
        while True:
            if self._lock < 0:
                self._open()
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if os.fstat(self._lock).st_nlink:
                break
            self.close()  # the folder was deleted under us
            self._victims = []
        try:
            yield
        finally:
            if self._lock >= 0:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    # -- used bytes: all of these under the lock ------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes of disk in use, at most (may be read without the lock)."""
        data = os.pread(self._lock, _USED.size, 0) if self._lock >= 0 else b""
        return int(_USED.unpack(data)[0]) if len(data) == _USED.size else 0

    def set_used(self, count: int) -> None:
        os.pwrite(self._lock, _USED.pack(max(count, 0)), 0)

    def add_used(self, count: int) -> None:
        self.set_used(self.used() + count)

    def count(self, writing: str = "", reserved: int = 0) -> Totals:
        """Look at every file: sets the bytes used right, and learns which files leave first.

        The caller is at work on the file `writing` and has `reserved` bytes for it.
        """
        if writing != NEW_FILE:
            self.discard(NEW_FILE)  # of a writer that died
        totals = Totals(used=_disk(os.stat(self.path)) + PAGE)

        def files() -> Iterator[tuple[int, str]]:
            for name, found in self._scan():
                totals.used += _disk(found)
                totals.segments += 1
                yield found.st_mtime_ns, name

        self._victims = heapq.nsmallest(_VICTIMS, files())
        totals.oldest = self._victims[0][0] / 1e9 if self._victims else 0.0
        self._victims.reverse()
        self.set_used(totals.used + reserved)
        return totals

    def make_room(self, need: int, limit: int, writing: str = "", reserved: int = 0) -> tuple[bool, int]:
        """Evict, least recently used first, until `need` more bytes fit into `limit`; never the file that is written.

        `writing` and `reserved` are as in `count`. Returns whether they fit now, and how many files left.
        """
        # Directory blocks grow unseen between two looks: some 90 bytes a file, and a file costs two pages at least.
        limit -= limit // 64
        used, evicted, fresh = self.used(), 0, False
        while used + need > limit:
            if not self._victims:
                if fresh:
                    self.set_used(used)
                    return False, evicted
                self.set_used(used)
                used, fresh = self.count(writing, reserved).used + reserved, True
                continue
            mtime, name = self._victims.pop()
            if name == writing:
                continue
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(self.file(name))
                if found.st_mtime_ns == mtime:  # else it was used since: not its turn
                    os.unlink(self.file(name))
                    used -= _disk(found)
                    evicted += 1
        if evicted:
            self.set_used(used)
        return True, evicted

    def create(self) -> int:
        """A descriptor of a new file that has no segment's name yet; there is one such file at a time."""
        return os.open(self.file(NEW_FILE), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def publish(self, name: str) -> None:
        """Name the new file."""
        os.rename(self.file(NEW_FILE), self.file(name))

    def discard(self, name: str) -> None:
        """Delete a file whose bytes the caller counts."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file(name))

    def heal(self, name: str) -> tuple[int, int]:
        """Check every piece of one file and take out what is damaged; returns the good bytes, and the bad pieces."""
        parsed = parse_name(name)
        try:
            fd = os.open(self.file(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0, 0
        try:
            if parsed is None or name_of(*parsed) != name:
                raise Damaged("its name is not a segment's")
            segment = Segment(fd, *parsed, size_in(fd))
            segment.load()
            return segment.heal()
        except Damaged:
            self.add_used(-_disk(os.fstat(fd)))
            self.discard(name)
            return 0, 1
        finally:
            os.close(fd)

    def clear(self) -> Totals:
        """Delete all files; returns what there was."""
        totals = self.count()
        for name, _ in self._scan():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(name))
        self.count()
        return totals

    # -- without the lock -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every segment's file."""
        return [name for name, _ in self._scan()]

    def _scan(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if parse_name(entry.name) is not None:
                    try:
                        yield entry.name, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue


def _disk(found: os.stat_result) -> int:
    return found.st_blocks * 512
