"""Two threads at once on every structure of the engine, as fast as they can: contents stay right, the books balance."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

from sluicefs.engine import Block, BlockCache, BlockMap, DirtyMemory, Extents, Reader
from sluicefs.engine.readahead import PatternProbe
from sluicefs.engine.spans import SpanSet

SECONDS = 0.4
KiB = 1024
SOURCE = random.Random(2).randbytes(4 << 20)


def race(*works: Callable[[random.Random], None]) -> None:
    """Each on a thread of its own, over and over; the first failure is raised here."""
    failed: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def run(work: Callable[[random.Random], None], seed: int) -> None:
        dice = random.Random(seed)
        try:
            while time.monotonic() < end and not failed:
                work(dice)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work, seed)) for seed, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]


def test_spans() -> None:
    spans = SpanSet()

    def change(base: int) -> Callable[[random.Random], None]:
        def step(dice: random.Random) -> None:
            start = base + dice.randrange(1000)
            spans.add(start, start + 50)
            assert spans.covers(start, start + 50)
            spans.remove(start + 10, start + 20)
            assert not spans.touches(start + 10, start + 20)
            assert spans.gaps(start + 10, start + 20) == [(start + 10, start + 20)]

        return step

    race(change(0), change(100_000))
    ranges = list(spans)
    assert ranges and all(a < b < c for (a, b), (c, _) in itertools.pairwise(ranges))
    assert spans.total == sum(end - start for start, end in ranges) == spans.bytes_within(0, 200_000)


def test_extents() -> None:
    memory = DirtyMemory(64 << 20)
    extents = Extents(64 * KiB, memory)

    def write(base: int) -> Callable[[random.Random], None]:
        def step(dice: random.Random) -> None:
            offset = base + dice.randrange(256 * KiB)
            data = SOURCE[offset : offset + dice.randrange(1, 9000)]
            extents.write(offset, data)
            space = bytearray(len(data))
            extents.overlay(offset, space)
            assert space == data
            if dice.random() < 0.02:
                extents.drop(base // (64 * KiB) + dice.randrange(4))

        return step

    race(write(0), write(1 << 20))
    for start, end in extents.spans():
        space = bytearray(end - start)
        extents.overlay(start, space)
        assert space == SOURCE[start:end]
    extents.clear()
    assert memory.used == 0 and extents.used == 0


def test_blocks_and_readers_within_a_small_budget() -> None:
    cache = BlockCache(1 << 20)
    blocks = BlockMap(cache)
    size = len(SOURCE)

    def fetch(block: Block, urgent: bool = False) -> None:
        block.writable()[:] = SOURCE[block.offset : block.offset + block.size]
        block.advance(block.size)
        block.finish()

    readers = [Reader(blocks, size, fetch) for _ in range(2)]

    def read(reader: Reader) -> Callable[[random.Random], None]:
        def step(dice: random.Random) -> None:
            offset = dice.randrange(size - 1)
            for _ in range(dice.randrange(1, 6)):
                length = min(dice.randrange(1, 70_000), size - offset)
                found = reader.try_read(offset, length)
                while found is None:
                    for block in reader.demand(offset, length):
                        fetch(block)
                    found = reader.collect(offset, length, 5.0)
                assert bytes(found) == SOURCE[offset : offset + length]
                offset = (offset + length) % (size - 1)
            if dice.random() < 0.02:
                blocks.clear()

        return step

    race(read(readers[0]), read(readers[1]))
    for reader in readers:
        reader.close()
    assert cache.in_flight == 0
    blocks.clear()
    assert cache.used == 0


def test_one_block_filled_and_waited_for() -> None:
    def step(dice: random.Random) -> None:
        block = Block(0, 64 * KiB)
        seen: list[bool] = []

        def wait() -> None:
            seen.append(block.wait(40_000, 5.0) and bytes(memoryview(block)[:40_000]) == SOURCE[:40_000])

        thread = threading.Thread(target=wait)
        thread.start()
        space = block.writable()
        for start in range(0, 64 * KiB, 8 * KiB):
            space[start : start + 8 * KiB] = SOURCE[start : start + 8 * KiB]
            block.advance(start + 8 * KiB)
        block.finish()
        thread.join(10)
        assert seen == [True] and block.done

    race(step, step)


def test_a_probe_of_two_readers() -> None:
    probe = PatternProbe()

    def step(dice: random.Random) -> None:
        offset = dice.randrange(1 << 30)
        for _ in range(8):
            found, _ = probe.read(offset, 4096)
            slot = found if found >= 0 else -1 - found  # a new stream is told as -1 - slot
            offset += 4096
        assert 0 <= probe.window(slot, 8 << 20) <= 8 << 20

    race(step, step)
