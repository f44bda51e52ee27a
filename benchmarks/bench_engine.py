"""The kernels of the engine, one at a time, by pytest-benchmark: split, merge, hit, miss, eviction, coalescing, hashing.

`make bench-engine` compares with the baseline in `benchmarks/baseline/`; `ARGS=--benchmark-save=baseline` makes a new one. Each
benchmark asserts that what it timed was right. No time is asserted: those of two machines are no measure of each other.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import xxhash

from sluicefs.engine import Block, BlockCache, BlockMap, DirtyMemory, Extents, Reader, SpanSet

KiB, MiB = 1024, 1024 * 1024
PAGE, REQUEST, BLOCK = 4 * KiB, 128 * KiB, 8 * MiB


def _fill(block: Block, urgent: bool = False) -> None:
    """A fetch that costs nothing but the engine's own part."""
    block.advance(block.size)
    block.finish()


def _reader(size: int, budget: int) -> tuple[Reader, BlockMap, BlockCache]:
    cache = BlockCache(budget)
    blocks = BlockMap(cache)
    return Reader(blocks, size, _fill), blocks, cache


def test_split_around_known_spans(benchmark: Any) -> None:
    """What is missing of 1,000 known pages, every other one of a range."""
    spans = SpanSet()
    for number in range(1000):
        spans.add(number * 2 * PAGE, number * 2 * PAGE + PAGE)
    gaps = benchmark(spans.gaps, 0, 2000 * PAGE)
    assert len(gaps) == 1000


def test_merge_of_spans(benchmark: Any) -> None:
    """1,000 spans that fill the gaps between 1,000 others, until one is left."""

    def merge() -> SpanSet:
        spans = SpanSet()
        for start in itertools.chain(range(0, 2000, 2), range(1, 2000, 2)):
            spans.add(start * PAGE, (start + 1) * PAGE)
        return spans

    assert list(benchmark(merge)) == [(0, 2000 * PAGE)]


def test_hit(benchmark: Any) -> None:
    """A 128 KiB read of what is in memory: the route of nearly every read."""
    reader, blocks, _ = _reader(BLOCK, 64 * MiB)
    blocks.insert(0, bytes(BLOCK))
    data = benchmark(reader.try_read, 3 * REQUEST, REQUEST)
    assert len(data) == REQUEST
    reader.close()


def test_miss(benchmark: Any) -> None:
    """A 128 KiB read of what is not: claimed, filled without a network, collected; an older one goes for it."""
    size = 1 << 50
    reader, _, cache = _reader(size, 64 * MiB)
    chance = random.Random(1)  # an even stride would be read ahead
    offsets = itertools.cycle([chance.randrange(size // REQUEST) * REQUEST for _ in range(20_000)])

    def miss() -> Any:
        offset = next(offsets)
        data = reader.try_read(offset, REQUEST)
        if data is None:
            for block in reader.demand(offset, REQUEST):
                _fill(block)
            data = reader.collect(offset, REQUEST, 5)
        return data

    assert len(benchmark(miss)) == REQUEST
    assert cache.misses > 1000
    reader.close()


def test_eviction(benchmark: Any) -> None:
    """A 1 MiB block into a full cache of 64."""
    cache = BlockCache(64 * MiB)
    blocks = BlockMap(cache)
    starts = itertools.count(0, MiB)
    for _ in range(64):
        _fill(_claimed(blocks, next(starts)))
    benchmark(lambda: _fill(_claimed(blocks, next(starts))))
    assert cache.evictions > 0
    assert cache.used <= 64 * MiB


def _claimed(blocks: BlockMap, start: int) -> Block:
    block = blocks.claim(start, start + MiB)
    assert block is not None
    return block


def test_coalescing_of_small_writes(benchmark: Any) -> None:
    """256 writes of 4 KiB in order, which become one extent of 1 MiB."""
    page = bytes(PAGE)

    def write() -> Extents:
        extents = Extents(16 * MiB, DirtyMemory(64 * MiB))
        for offset in range(0, MiB, PAGE):
            extents.write(offset, page)
        return extents

    assert benchmark(write).spans() == [(0, MiB)]


def test_hashing_of_a_block(benchmark: Any) -> None:
    """XXH3 of 1 MiB, as the disk cache checks it."""
    data = memoryview(bytearray(MiB))
    assert benchmark(xxhash.xxh3_64_intdigest, data) == xxhash.xxh3_64(data).intdigest()
