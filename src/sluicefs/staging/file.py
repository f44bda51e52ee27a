"""The staging file of one changed file: its unsent bytes at their own offsets, in a sparse file of the mount's folder.

Bytes that a journal record relies on are never written over: the file is copied first, and the old one goes with the record. It
has a lock of its own, so that parts can be written to it while the draft they belong to is read and written.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import suppress

from sluicefs.engine import SpanSet
from sluicefs.staging import checks
from sluicefs.staging.folder import Staging, leave_some, sync_folder

COPY = 1 << 20


class StagingFile:
    """Made in `staging` with the first byte. Thread-safe, but for `close`. Raises OSError (ENOSPC, EIO)."""

    def __init__(self, staging: Staging):
        self._staging = staging
        self._lock = threading.Lock()
        self._fd = -1
        self._path = ""
        self._written = SpanSet()  # positions that hold something
        self._frozen = SpanSet()  # those that a journal record relies on
        self._sums: dict[int, tuple[list[tuple[int, int]], str]] = {}  # by grain: what is summed up, the sum
        self._old: list[int] = []

    @property
    def name(self) -> str:
        """The file's name in its folder, "" while there is none."""
        return os.path.basename(self._path)

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`."""
        with self._lock:
            self._make()
            if self._frozen.touches(offset, offset + len(data)):
                self._renew()
            for grain, _ in checks.grains([(offset, offset + len(data))]):
                self._sums.pop(grain, None)
            start = offset
            while len(data):
                count = os.pwrite(self._fd, data, offset)
                data = data[count:]
                offset += count
            self._written.add(start, offset)

    def read(self, view: memoryview, start: int) -> None:
        """Fill `view` from `start`, all of it written before."""
        while len(view):
            count = os.preadv(self._fd, [view], start)
            if count <= 0:
                raise OSError(errno.EIO, "the staging file is shorter than it should be")
            view = view[count:]
            start += count

    def covers(self, start: int, end: int) -> bool:
        """Has all of [start, end) been written?"""
        return self._written.covers(start, end)

    def mapped(self, start: int, end: int) -> memoryview:
        """[start, end) as memory that is the page cache's; what was never written is zeros."""
        with self._lock:
            self._make()
            if os.fstat(self._fd).st_size < end:
                os.ftruncate(self._fd, end)
            low = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            mapping = mmap.mmap(self._fd, end - low, prot=mmap.PROT_READ, offset=low)
        return memoryview(mapping)[start - low :]

    def _make(self) -> None:
        if self._fd < 0:
            self._fd, self._path = self._staging.new_file()

    def _renew(self) -> None:
        """Go on in a copy: a journal record relies on bytes that are about to be written over."""
        fd, path = self._staging.new_file()
        try:
            for start, end in self._written:
                while start < end:
                    count = self._copy(fd, start, end - start)
                    if count <= 0:
                        raise OSError(errno.EIO, "the staging file is shorter than it should be")
                    start += count
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        self._old.append(self._fd)  # readers may be in it
        self._fd, self._path = fd, path
        self._frozen = SpanSet()

    def _copy(self, target: int, start: int, length: int) -> int:
        try:
            return os.copy_file_range(self._fd, target, length, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return os.pwrite(target, os.pread(self._fd, min(COPY, length), start), start)

    # -- with a journal -----------------------------------------------------------------------------------------------------

    def persist(self, folder: str, spans: list[tuple[int, int]]) -> tuple[str, list[str]]:
        """Durable, in `folder`, that of the journal; `spans` are not written over from now on. The file's name, its sums.

        Nor is what was frozen before, until `settled` says that no older record stands.
        """
        with self._lock:
            self._make()
            if os.path.dirname(self._path) != folder:  # the journal is that of a mount that was taken over
                path = os.path.join(folder, self.name)
                os.rename(self._path, path)
                self._path = path
            sums = [self._sum(number, there) for number, there in checks.grains(spans)]
            os.fsync(self._fd)
            sync_folder(folder)
            for start, end in spans:
                self._frozen.add(start, end)
            return self.name, sums

    def settled(self, spans: list[tuple[int, int]]) -> None:
        """The record that relies on `spans` is the only one."""
        with self._lock:
            self._frozen = SpanSet()
            for start, end in spans:
                self._frozen.add(start, end)

    def _sum(self, number: int, spans: list[tuple[int, int]]) -> str:
        known, found = self._sums.get(number, ([], ""))
        if known != spans:
            found = checks.of_file(self._fd, spans)
            self._sums[number] = spans, found
        return found

    def open(self, path: str, spans: list[tuple[int, int]], sums: list[str]) -> None:
        """Be the data file of a record, with its bytes at `spans`. OSError EIO where `sums` say that they are damaged."""
        self._path = path
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        leave_some(fd)
        self._fd = fd
        if spans and os.fstat(self._fd).st_size < spans[-1][1]:
            raise OSError(errno.EIO, f"{path} is shorter than it should be")
        checks.check_file(fd, spans, sums)
        for start, end in spans:
            self._written.add(start, end)
            self._frozen.add(start, end)

    def thaw(self) -> None:
        """No record relies on it any more."""
        with self._lock:
            self._frozen = SpanSet()

    # -- letting go ---------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Nothing in it counts any more; the next byte gets a new file."""
        with self._lock:
            if self._fd >= 0:
                self._old.append(self._fd)
                with suppress(OSError):
                    os.unlink(self._path)
                self._fd, self._path = -1, ""
                self._written, self._frozen = SpanSet(), SpanSet()
                self._sums.clear()

    def close_old(self) -> None:
        """Nobody reads the files any more that this one is a copy of."""
        old, self._old = self._old, []
        for fd in old:
            os.close(fd)

    def close(self, *, keep: str | None = None) -> None:
        """Give back the disk's space, unless the file's name is `keep`."""
        if self._fd >= 0:
            if self.name != keep:
                with suppress(OSError):
                    os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1
        self.close_old()
