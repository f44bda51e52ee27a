"""How a file is cut into the parts of a multipart upload: arithmetic only.

R2 takes at most 10,000 parts, all of one size but the last, which is not larger; copied parts count too. So the size is chosen
before the first part is sent, and a file that outgrows it needs another upload.
"""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1024**2
GiB = 1024**3
MAX_PARTS = 10_000
MIN_PART = 5 * MiB
MAX_PART = 4995 * GiB // 1000  # 4.995 GiB
MAX_OBJECT = 4995 * 1024 * GiB // 1000  # 4.995 TiB
MAX_PUT = 4995 * GiB // 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """Parts of `part_size` bytes, which is `chunks` chunks of `chunk_size`."""

    chunk_size: int
    chunks: int

    @property
    def part_size(self) -> int:
        return self.chunk_size * self.chunks

    @property
    def capacity(self) -> int:
        """The largest file that fits."""
        return min(MAX_OBJECT, self.part_size * MAX_PARTS)

    def count(self, size: int) -> int:
        """How many parts a file of `size` bytes has; an empty one has one."""
        return max(1, -(-size // self.part_size))

    def span(self, index: int, size: int) -> tuple[int, int]:
        """[start, end) of the part `index`, counted from 0."""
        start = index * self.part_size
        return start, min(start + self.part_size, size)

    def touched(self, offset: int, length: int) -> range:
        """The parts in which [offset, offset + length) lies."""
        return range(offset // self.part_size, (offset + max(length, 1) - 1) // self.part_size + 1)


def plan_for(size: int, chunk_size: int) -> Plan:
    """The plan of a file of `size` bytes: parts of one chunk, or of as many as it takes. ValueError: it fits no store."""
    if size > MAX_OBJECT:
        raise ValueError(f"{size} bytes are more than an object can have")
    chunks = max(1, -(-size // (chunk_size * MAX_PARTS)))
    if chunk_size * chunks > MAX_PART:
        raise ValueError(f"{size} bytes do not fit into {MAX_PARTS} parts of {chunk_size}-byte chunks")
    return Plan(chunk_size, chunks)


def plan_ahead(size: int, chunk_size: int) -> Plan:
    """The plan of a file that has `size` bytes and grows: if one chunk a part is not enough, four times the room."""
    plan = plan_for(size, chunk_size)
    return plan if plan.chunks == 1 else plan_for(min(MAX_OBJECT, 4 * size), chunk_size)


def single(size: int, chunk_size: int) -> bool:
    """Is the file sent in one request?"""
    return size <= min(2 * chunk_size, MAX_PUT)
