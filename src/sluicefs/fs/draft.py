"""What was written to one file and is not in the bucket yet.

Dirty bytes lie in memory (`Extents`), and when there are many of them or they have been sent, in a staging file. Below them
shows the version the change is based on. Every method is called with the file's lock held; nothing here talks to the bucket.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from sluicefs.engine import DirtyMemory, Extents, SpanSet
from sluicefs.fs.nodes import Version

ReadBase = Callable[[int, int], object]  # (offset, length) -> bytes of the base version


class Draft:
    """A changed file: `size` bytes, of which [0, base_limit) still show `base` where nothing was written over."""

    def __init__(
        self, base: Version | None, size: int, *, part_size: int, memory: DirtyMemory, staging: str, read_base: ReadBase | None
    ):
        self.base = base
        self.size = size
        self.base_limit = base.size if base else 0
        self.part_size = part_size
        self.extents = Extents(part_size, memory)
        self.staged = SpanSet()
        self.changed = SpanSet()  # everything that differs from the base, wherever its bytes lie
        self.read_base = read_base
        self._staging = staging
        self._staging_fd = -1
        if size < self.base_limit:
            self.base_limit = size
        self.replaced = base is None  # the whole file is new: last writer wins, no condition

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take in bytes. BufferError while the chunk is being sent: let that end, then again."""
        self.extents.write(offset, data)
        end = offset + len(data)
        if offset > self.size:  # the hole reads as zeros, and the base must not show through it
            self.changed.add(self.size, offset)
        self.changed.add(offset, end)
        if end > self.size:
            self.size = end

    def truncate(self, size: int) -> None:
        """Set the size; what is cut off is gone, what is added reads as zeros."""
        if size < self.size:
            self.extents.truncate(size)
            self.staged.remove(size, self.size)
            self.changed.remove(size, self.size)
            self.base_limit = min(self.base_limit, size)
            if size == 0:
                self.replaced = True
        elif size > self.size:
            self.changed.add(self.size, size)
        self.size = size

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """At most `length` bytes from `offset`, as the file would be if it were closed now. May fetch parts of the base."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        buffer = bytearray(length)
        self.fill(offset, buffer)
        return buffer

    def fill(self, offset: int, buffer: bytearray) -> None:
        """Fill the zeroed `buffer` with the file's bytes from `offset`."""
        view = memoryview(buffer)
        end = offset + len(buffer)
        if self.base is not None and offset < self.base_limit:
            for start, stop in self.changed.gaps(offset, min(end, self.base_limit)):
                self._fill_base(view, offset, start, stop)
        for start, stop in self.staged.within(offset, end):
            self._fill_staged(view[start - offset : stop - offset], start)
        self.extents.overlay(offset, buffer)

    def _fill_base(self, view: memoryview, offset: int, start: int, stop: int) -> None:
        assert self.read_base is not None
        while start < stop:
            piece = memoryview(self.read_base(start, min(stop - start, 1 << 20)))  # type: ignore[arg-type]
            if not len(piece):
                raise OSError(5, "the object is shorter than its size")
            view[start - offset : start - offset + len(piece)] = piece
            start += len(piece)

    def _fill_staged(self, view: memoryview, start: int) -> None:
        while len(view):
            count = os.preadv(self._staging_fd, [view], start)
            if count <= 0:
                raise OSError(5, "the staging file is shorter than it should be")
            view = view[count:]
            start += count

    # -- the staging file ---------------------------------------------------------------------------------------------

    def stage(self, data: memoryview, offset: int) -> None:
        """Keep bytes in the staging file too (OSError ENOSPC where the disk is full). `mark_staged` makes them count."""
        if self._staging_fd < 0:
            self._staging_fd, path = tempfile.mkstemp(dir=self._staging)
            os.unlink(path)
        while len(data):
            count = os.pwrite(self._staging_fd, data, offset)
            data = data[count:]
            offset += count

    def mark_staged(self, index: int, start: int, end: int) -> None:
        """[start, end) of the file is in the staging file: its chunk may leave memory."""
        self.staged.add(start, end)
        self.extents.drop(index)

    def spill(self) -> bool:
        """Move the first chunk that is not being sent to the staging file; False if there is none."""
        for index in self.extents.indices():
            if self.extents.sending(index):
                continue
            base = index * self.part_size
            for start, end in self.extents.spans(index):
                with self.extents.view(index, start - base, end - base) as view:
                    self.stage(view, start)
                self.staged.add(start, end)
            self.extents.drop(index)
            return True
        return False

    def close(self) -> None:
        """Give back memory and disk."""
        self.extents.clear()
        if self._staging_fd >= 0:
            os.close(self._staging_fd)
            self._staging_fd = -1
