"""How a file is cut into the parts of a multipart upload: arithmetic only.

R2 takes at most 10,000 parts, all of one size but the last, which is not larger; copied parts count too. So the size is chosen
before the first part is sent, and a file that outgrows it needs another upload.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MiB = 1024**2
GiB = 1024**3
MAX_PARTS = 10_000
MIN_PART = 5 * MiB
MAX_PART = 4995 * GiB // 1000  # 4.995 GiB
MAX_OBJECT = 4995 * 1024 * GiB // 1000  # 4.995 TiB
MAX_PUT = 4995 * GiB // 1000
MAX_COPY = 512 * MiB  # of a changed object in one request: it must end before its time is over
FEW = 4  # chunks
SIDE_BY_SIDE = 8  # copies at once: fewer and larger ones would only take longer
REQUEST = 256 * 1024  # bytes that could be sent in the time of a copy, which is also what it may cost


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


def few_chunks(plan: Plan, changed: Iterable[tuple[int, int]]) -> set[int] | None:
    """The chunks that `changed` touches; None where they are too many to send again in larger parts."""
    found: set[int] = set()
    for start, end in changed:
        if end - start > FEW * plan.chunk_size:
            return None
        found.update(range(start // plan.chunk_size, -(-end // plan.chunk_size)))
        if len(found) > FEW:
            return None
    return found


def uploaded(plan: Plan, size: int, chunks: set[int]) -> int:
    """Bytes of the parts that some chunks of the file lie in: they cannot be copied."""
    spans = [plan.span(index, size) for index in {chunk // plan.chunks for chunk in chunks}]
    return sum(end - start for start, end in spans)


def plan_change(size: int, chunk_size: int, changed: Iterable[tuple[int, int]], largest: int = MAX_COPY) -> Plan:
    """The plan of an object of which `changed` is new; the server copies the rest, in parts of at most `largest` bytes.

    Larger parts are fewer requests, but those that are not copied are sent as a whole: no more than two chunks.
    """
    best = plan_for(size, chunk_size)
    chunks = few_chunks(best, changed)
    if chunks is None:
        return best
    sent = uploaded(best, size, chunks)
    least = best.count(size) * REQUEST + sent
    for count in range(best.chunks + 1, min(largest, size // SIDE_BY_SIDE) // chunk_size + 1):
        plan = Plan(chunk_size, count)
        sent = uploaded(plan, size, chunks)
        cost = plan.count(size) * REQUEST + sent
        if sent <= 2 * chunk_size and cost < least:
            best, least = plan, cost
    return best


def suits_change(plan: Plan, size: int, changed: Iterable[tuple[int, int]]) -> bool:
    """Do the parts that `plan_change` chose once still suit what is changed by now?"""
    chunks = few_chunks(plan, changed)
    return plan.chunks == 1 or (chunks is not None and uploaded(plan, size, chunks) <= 2 * plan.chunk_size)


def single(size: int, chunk_size: int) -> bool:
    """Is the file sent in one request?"""
    return size <= min(2 * chunk_size, MAX_PUT)
