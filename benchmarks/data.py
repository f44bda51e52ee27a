"""What is stored: objects whose every byte follows from their key and position, so that any range can be checked.

A file is made of 1 MiB blocks, each the same noise plus a number of its own: two blocks share no 8-byte word at the same place.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from sluicefs.store.api import Store

MiB = 1024 * 1024
BLOCK = MiB
_PART = 16 * MiB
_STRIDE = 0x9E3779B97F4A7C15  # odd, so multiples of it differ modulo 2**64


@dataclass(frozen=True)
class File:
    """One object: its key and its size in bytes."""

    key: str
    size: int


@dataclass(frozen=True)
class Dataset:
    """The objects of one bucket."""

    name: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@cache
def _noise() -> Any:
    import numpy

    return numpy.random.default_rng(1).integers(0, 2**64, BLOCK // 8, dtype=numpy.uint64)


def block(key: str, number: int) -> memoryview:
    """Block `number` of the file `key`: 1 MiB."""
    import numpy

    shift = ((zlib.crc32(key.encode()) << 20) + number) * _STRIDE % 2**64
    return memoryview((_noise() + numpy.uint64(shift)).view(numpy.uint8)).cast("B")


def content(file: File, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
    """The bytes of `file` from `offset`, at most 1 MiB at a time."""
    end = file.size if length is None else min(file.size, offset + length)
    while offset < end:
        start = offset % BLOCK
        piece = block(file.key, offset // BLOCK)[start : min(BLOCK, start + end - offset)]
        yield piece
        offset += len(piece)


def digest(pieces: Iterable[Any]) -> str:
    """XXH3-128 of the pieces in order."""
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def upload(store: Store, files: Iterable[File], parallel: int = 4) -> None:
    """Stores plain objects, `parallel` requests at once. Raises StoreError."""
    with ThreadPoolExecutor(parallel) as pool:

        def small(file: File) -> None:
            store.put(file.key, bytearray().join(content(file)))

        def part(file: File, upload_id: str, number: int) -> tuple[int, str]:
            body = bytearray().join(content(file, (number - 1) * _PART, _PART))
            return number, store.upload_part(file.key, upload_id, number, body)

        given = list(files)
        for _ in pool.map(small, [file for file in given if file.size <= _PART]):
            pass
        for file in given:
            if file.size > _PART:
                upload_id = store.create_upload(file.key)
                count = -(-file.size // _PART)
                parts = list(pool.map(part, [file] * count, [upload_id] * count, range(1, count + 1)))
                store.complete_upload(file.key, upload_id, parts)


def stored_digest(store: Store, key: str) -> str:
    """XXH3-128 of an object as the store gives it, in 16 MiB ranges. Raises StoreError."""
    size = store.head(key).size

    def pieces() -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_PART))
        for offset in range(0, size, _PART):
            part = buffer[: min(_PART, size - offset)]
            store.get_into(key, offset, part)
            yield part

    return digest(pieces())


def write_file(path: Path, file: File) -> None:
    """A new file with its content, by plain writes. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as target:
        for piece in content(file):
            target.write(piece)


class Readers:
    """Runs `work(index)` in threads that start together; the first error of any is raised in the caller."""

    def __init__(self, count: int) -> None:
        self._count = count

    def run(self, work: Any) -> None:
        errors: list[BaseException] = []
        gate = threading.Barrier(self._count)

        def one(index: int) -> None:
            try:
                gate.wait(60)
                work(index)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(index,)) for index in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
