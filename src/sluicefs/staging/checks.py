"""Checksums (XXH3) of unsent data on local disk, so that what a disk has damaged is never sent as good.

A data file has one for each 16 MiB of its positions, over the bytes there that a record relies on: saving a long file again
after a small change reads only what is new.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator

import xxhash

GRAIN = 16 << 20
_PIECE = 1 << 20

Span = tuple[int, int]


def grains(spans: Iterable[Span]) -> Iterator[tuple[int, list[Span]]]:
    """(number, what of `spans` lies in it) of each grain that has some. `spans` are in order."""
    number, found = -1, list[Span]()
    for start, end in spans:
        while start < end:
            if start // GRAIN != number and found:
                yield number, found
                found = []
            number = start // GRAIN
            stop = min(end, (number + 1) * GRAIN)
            found.append((start, stop))
            start = stop
    if found:
        yield number, found


def of_bytes(data: bytes | bytearray | memoryview) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def of_file(fd: int, spans: list[Span]) -> str:
    """Of bytes and positions. OSError EIO where some are not there."""
    digest = xxhash.xxh3_64()
    buffer = memoryview(bytearray(_PIECE))
    for start, end in spans:
        digest.update(struct.pack("<QQ", start, end))
        while start < end:
            count = os.preadv(fd, [buffer[: end - start]], start)
            if not count:
                raise OSError(errno.EIO, "the data file is shorter than it should be")
            digest.update(buffer[:count])
            start += count
    return digest.hexdigest()


def check_bytes(data: bytes | bytearray | memoryview, sums: list[str]) -> None:
    """OSError EIO unless `data` is what `sums` were made of. Without sums nothing is known."""
    if sums and sums != [of_bytes(data)]:
        raise OSError(errno.EIO, "the data is damaged")


def check_file(fd: int, spans: list[Span], sums: list[str]) -> None:
    """OSError EIO unless a data file has at `spans` what `sums` were made of. Reads all of it."""
    if sums and sums != [of_file(fd, there) for _, there in grains(spans)]:
        raise OSError(errno.EIO, "the data file is damaged")
