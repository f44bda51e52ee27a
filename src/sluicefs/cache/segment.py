"""The form of one cache file: 32 MiB of one object version, sparse, with a checksum for each piece that is there.

    0       magic, version digest, object size, segment number, their checksum
    2 KiB   XXH3-64 of each grain of 128 KiB; 0: not there
    4 KiB   XXH3-64 of each page of 4 KiB; 0: not there by itself
    128 KiB the data, each byte at its own place

Big blocks are kept as grains: one checksum call per 128 KiB runs at memory speed. What a block holds of a grain it covers in
part (random reads, the ends of a block) is kept as pages. Checksums are seeded with the version and the place, so that bytes of
another object, another version or another offset never pass. Data is written before its checksum: a crash between the two
leaves a hole, one of the machine at worst a checksum that does not hold. Never decides what to keep, and never locks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_digest, xxh3_64_intdigest

GRAIN = 128 * 1024
PAGE = 4096
SEGMENT = 32 * 1024 * 1024

_HEADER = struct.Struct("=8s16sQQ")
_HEADER_SIZE = _HEADER.size + 8  # its own checksum follows
_MAGIC = b"sluice\x00\x01"
_GRAINS_AT = 2048
_PAGES_AT = 4096
_DATA_AT = 128 * 1024
_PAGES = GRAIN // PAGE  # entries of the second table for each of the first
NEW = 2 * PAGE  # bytes of disk of a file without data, at most
# Read, check and hand out this much at once: it stays in the processor's cache in between.
_STEP = 1024 * 1024
# Shorter runs are written through the page cache: there the disk's latency would count.
_DIRECT_FROM = 1024 * 1024
_MASK = 2**64 - 1


class Damaged(Exception):
    """What is on disk is not what was written."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring grains or pages: `count` pieces of `piece` bytes from `offset` in the object (the last may be shorter)."""

    piece: int
    offset: int
    count: int


def digest_of(*identity: str) -> bytes:
    """16 bytes that name an object version: endpoint, bucket, key, ETag."""
    return hashlib.blake2b("\0".join(identity).encode(errors="surrogatepass"), digest_size=16).digest()


def name_of(digest: bytes, index: int) -> str:
    """The file of segment `index`."""
    return f"{digest.hex()}.{index}"


def parse_name(name: str) -> tuple[bytes, int] | None:
    """The opposite of `name_of`; None if it is not a segment's."""
    stem, dot, index = name.partition(".")
    if len(stem) != 32 or not dot or not index.isascii() or not index.isdigit():
        return None
    try:
        return bytes.fromhex(stem), int(index)
    except ValueError:
        return None


class Segment:
    """An open segment file. `begin` and `end` bound the bytes of the object that belong to it. The caller closes `fd`."""

    def __init__(self, fd: int, digest: bytes, index: int, size: int):
        self.fd = fd
        self.begin = index * SEGMENT
        self.end = min(self.begin + SEGMENT, size)
        self._size = size
        self._seed = int.from_bytes(digest[:8], "little")
        self._header = _sealed(_HEADER.pack(_MAGIC, digest, size, index))
        self._head = bytearray(_PAGES_AT)
        self._grains = memoryview(self._head)[_GRAINS_AT:].cast("Q")

    def load(self) -> os.stat_result:
        """Read the table of grains. Raises Damaged if this is not the segment's file, or not all of it."""
        found = os.fstat(self.fd)
        if (
            os.preadv(self.fd, [self._head], 0) != _PAGES_AT
            or self._head[:_HEADER_SIZE] != self._header
            or found.st_size != _DATA_AT + self.end - self.begin
        ):
            raise Damaged("it is not the file of this segment")
        return found

    def create(self) -> None:
        """Make an empty file the segment's. It gets its final size now: filesystems give growing files more than they need."""
        os.pwrite(self.fd, self._header, 0)
        os.ftruncate(self.fd, _DATA_AT + self.end - self.begin)

    # -- reading --------------------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview, done: int, landed: Callable[[int], object]) -> None:
        """Fill `buffer`, which holds the bytes from `offset` on and `done` of them already, as far as they are there.

        `landed(n)`: the first n are in place and checked. Raises Damaged.
        """
        while done < len(buffer):
            count = self._read_some(offset + done, buffer[done : done + _STEP])
            if not count:
                break
            done += count
            landed(done)

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        grain = (offset - self.begin) // GRAIN
        sums, first, piece = self._grains, grain, GRAIN
        if not sums[grain]:
            sums = self._page_sums(grain)
            first, piece = (offset - self.begin) % GRAIN // PAGE, PAGE
            if not sums[first]:
                return 0
        start = offset - offset % piece
        stop = min(start + piece, self._size)
        if start < offset or stop > offset + len(buffer):  # a part of one piece: the whole of it is checked
            whole = memoryview(bytearray(stop - start))
            self._fill(start, whole)
            self._check(start, whole, piece, sums[first : first + 1])
            count = min(len(buffer), stop - offset)
            buffer[:count] = whole[offset - start : offset - start + count]
            return count
        last = first + 1
        while last < len(sums) and sums[last] and min(stop + piece, self._size) <= offset + len(buffer) and stop < self.end:
            stop = min(stop + piece, self._size)
            last += 1
        self._fill(offset, buffer[: stop - offset])
        self._check(offset, buffer[: stop - offset], piece, sums[first:last])
        return stop - offset

    def _page_sums(self, grain: int) -> memoryview:
        sums = bytearray(_PAGES * 8)
        if os.preadv(self.fd, [sums], _PAGES_AT + grain * _PAGES * 8) != len(sums):
            raise Damaged("its end is missing")
        return memoryview(sums).cast("Q")

    def _fill(self, offset: int, buffer: memoryview) -> None:
        if os.preadv(self.fd, [buffer], _DATA_AT + offset - self.begin) != len(buffer):
            raise Damaged("its end is missing")

    def _check(self, offset: int, data: memoryview, piece: int, sums: memoryview) -> None:
        seed = self._seed + offset
        for at, expected in zip(range(0, len(data), piece), sums, strict=True):
            if (xxh3_64_intdigest(data[at : at + piece], (seed + at) & _MASK) or 1) != expected:
                raise Damaged(f"the checksum of the bytes at {offset + at} does not hold")

    # -- writing --------------------------------------------------------------------------------------------------------

    def missing(self, start: int, stop: int) -> list[Run]:
        """What of the object's bytes [start, stop), which lie in this segment, can be kept and is not there yet."""
        runs: list[Run] = []
        offset = start - start % GRAIN
        while offset < stop:
            end = min(offset + GRAIN, self._size)
            grain = (offset - self.begin) // GRAIN
            if not self._grains[grain]:
                if start <= offset and end <= stop:
                    _extend(runs, GRAIN, offset)
                else:
                    self._missing_pages(runs, grain, max(start, offset), min(stop, end))
            offset += GRAIN
        return runs

    def _missing_pages(self, runs: list[Run], grain: int, start: int, stop: int) -> None:
        sums = self._page_sums(grain)
        for offset in range(start + -start % PAGE, stop, PAGE):
            if min(offset + PAGE, self._size) <= stop and not sums[offset % GRAIN // PAGE]:
                _extend(runs, PAGE, offset)

    def cost(self, runs: list[Run]) -> int:
        """At most so many bytes of disk are needed to write `runs`: the data, the tables, what the filesystem adds."""
        return sum(run.piece * run.count + 3 * PAGE for run in runs)

    def write(self, offset: int, data: memoryview, runs: list[Run], *, direct: bool) -> None:
        """Keep `runs` of `data`, which are the object's bytes from `offset` on. First all data, then its checksums.

        `direct`: long runs past the page cache, if that is possible.
        """
        sums: list[tuple[int, bytes]] = []
        for run in runs:
            piece = data[run.offset - offset : run.offset - offset + run.piece * run.count]
            at = run.offset - self.begin
            if not direct or len(piece) < _DIRECT_FROM or not _write_direct(self.fd, piece, _DATA_AT + at):
                _write_all(self.fd, piece, _DATA_AT + at)
            seed = self._seed + run.offset
            table = _GRAINS_AT if run.piece == GRAIN else _PAGES_AT
            values = [
                xxh3_64_intdigest(piece[start : start + run.piece], (seed + start) & _MASK) or 1
                for start in range(0, len(piece), run.piece)
            ]
            sums.append((table + at // run.piece * 8, struct.pack(f"={run.count}Q", *values)))
        for place, values_ in sums:
            _write_all(self.fd, memoryview(values_), place)

    def heal(self) -> tuple[int, int]:
        """Check all that is there and take away the checksums that do not hold; returns the good bytes, and the bad pieces."""
        good = bad = 0
        for offset, length, place in self._pieces():
            try:
                if length <= 0:
                    raise Damaged("a checksum beyond the end")
                self.read(offset, memoryview(bytearray(length)), 0, lambda _: None)
                good += length
            except Damaged:
                os.pwrite(self.fd, bytes(8), place)
                bad += 1
        return good, bad

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """Offset and length of all that is there, and where in the file its checksum is."""
        for grain, known in enumerate(self._grains):
            offset = self.begin + grain * GRAIN
            if known:
                yield offset, min(GRAIN, self.end - offset), _GRAINS_AT + grain * 8
                continue
            if offset >= self.end:
                continue
            for page, known in enumerate(self._page_sums(grain), grain * _PAGES):
                start = self.begin + page * PAGE
                if known:
                    yield start, min(PAGE, self.end - start), _PAGES_AT + page * 8


def size_in(fd: int) -> int:
    """The object size that a segment file states. Raises Damaged where it states none."""
    head = os.pread(fd, _HEADER_SIZE, 0)
    fields = head[: _HEADER.size]
    if len(head) != _HEADER_SIZE or not head.startswith(_MAGIC) or head != _sealed(fields):
        raise Damaged("it is not a segment's file")
    size: int = _HEADER.unpack(fields)[2]
    return size


def _sealed(header: bytes) -> bytes:
    return header + xxh3_64_digest(header)


def _extend(runs: list[Run], piece: int, offset: int) -> None:
    if runs and runs[-1].piece == piece and runs[-1].offset + piece * runs[-1].count == offset:
        runs[-1] = Run(piece, runs[-1].offset, runs[-1].count + 1)
    else:
        runs.append(Run(piece, offset, 1))


def _write_direct(fd: int, data: memoryview, at: int) -> bool:
    """Write past the page cache: a quarter of the processor time, and no flood of dirty pages before somebody's fsync.

    False where the filesystem, or where `data` lies in memory, does not allow it. Nobody else uses `fd`.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        try:
            return os.pwrite(fd, data, at) == len(data)
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False


def _write_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count
