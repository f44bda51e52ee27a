"""Blocks, their cache and the readers over them: every byte right, every byte accounted for, whatever the order of events."""

from __future__ import annotations

import os
import queue
import random
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluicefs.engine import Block, BlockCache, BlockMap, Reader

MiB = 1 << 20
FIRST = 256 * 1024  # bytes: what is fetched at a file's start
SOURCE = random.Random(1).randbytes(24 * MiB)


class Source:
    """Fills blocks from SOURCE on threads, in pieces; fails every `fail_every`th fetch."""

    def __init__(self, threads: int = 4, fail_every: int = 0, pause: float = 0.0):
        self.jobs: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self.fetched: list[tuple[int, int]] = []
        self.fail_every, self.pause = fail_every, pause
        self.threads = [threading.Thread(target=self._work) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def queue(self, block: Block, urgent: bool = False) -> None:
        self.jobs.put(block)

    def fill(self, block: Block) -> None:
        self.fetched.append((block.offset, block.size))
        if self.fail_every and len(self.fetched) % self.fail_every == 0:
            block.finish(OSError(5, "as told"))
            return
        space = block.writable()
        for start in range(0, block.size, 300_000):
            if block.cancelled():
                block.finish(OSError(4, "taken back"))
                return
            if self.pause:
                time.sleep(self.pause)
            end = min(start + 300_000, block.size)
            space[start:end] = SOURCE[block.offset + start : block.offset + end]
            block.advance(end)
        block.finish()

    def _work(self) -> None:
        while (block := self.jobs.get()) is not None:
            self.fill(block)

    def close(self) -> None:
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    made.close()


def read(reader: Reader, source: Source, offset: int, length: int) -> bytes:
    """As the filesystem reads: memory first, then ask for what is missing and wait."""
    data = reader.try_read(offset, length)
    while data is None:
        mine = reader.demand(offset, length)
        for block in mine:
            source.fill(block)
        data = reader.collect(offset, length, 20)
        for block in mine:
            if data is None and block.error is not None and not block.cancelled():
                raise block.error
    return bytes(data)


def idle(cache: BlockCache) -> None:
    """Wait until no fetch is under way."""
    deadline = time.monotonic() + 10
    while cache.in_flight and time.monotonic() < deadline:
        time.sleep(0.005)
    assert cache.in_flight == 0


reads = st.lists(st.tuples(st.integers(0, len(SOURCE)), st.integers(1, 600_000), st.integers(0, 1)), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reads, st.sampled_from([2 * MiB, 16 * MiB, 64 * MiB]), st.sampled_from([0, 5]))
def test_every_read_is_right_and_the_books_balance(asked: list[tuple[int, int, int]], budget: int, fail_every: int) -> None:
    cache = BlockCache(budget)
    blocks = BlockMap(cache)
    source = Source(threads=2, fail_every=fail_every)
    readers = [Reader(blocks, len(SOURCE), source.queue) for _ in range(2)]
    try:
        for offset, length, which in asked:
            try:
                assert read(readers[which], source, offset, length) == SOURCE[offset : offset + length]
            except OSError as error:
                assert fail_every and error.errno == 5
        for reader in readers:
            reader.close()
        idle(cache)
        assert cache.streams == 0
        assert cache.used <= max(budget, 8 * MiB)
        blocks.clear()
        assert (cache.used, cache.in_flight, len(blocks)) == (0, 0, 0)
    finally:
        source.close()


def test_many_threads_read_one_file_at_once(source: Source) -> None:
    cache = BlockCache(12 * MiB)
    blocks = BlockMap(cache)
    wrong: list[int] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        reader = Reader(blocks, len(SOURCE), source.queue)
        position = 0
        for _ in range(250):
            position = position + 131072 if choose.random() < 0.8 else choose.randrange(len(SOURCE))
            if read(reader, source, position, 131072) != SOURCE[position : position + 131072]:
                wrong.append(position)
        reader.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    idle(cache)
    assert cache.streams == 0
    blocks.clear()
    assert cache.used == 0


def test_bytes_are_usable_before_their_block_is_full() -> None:
    cache = BlockCache(MiB)
    block = BlockMap(cache).claim(0, MiB)
    assert block is not None
    space = block.writable()
    space[:1000] = SOURCE[:1000]
    block.advance(1000)
    assert block.wait(1000, 0.01)
    assert bytes(memoryview(block)[:1000]) == SOURCE[:1000]
    with pytest.raises(TimeoutError):
        block.wait(1001, 0.01)
    block.finish(OSError(5, "broken off"))
    assert not block.wait(1001, 1)
    assert cache.used == cache.in_flight == 0


def test_one_byte_has_one_fetch_however_many_ask() -> None:
    cache = BlockCache(16 * MiB)
    blocks = BlockMap(cache)
    first = Reader(blocks, len(SOURCE), lambda block, urgent: None)
    second = Reader(blocks, len(SOURCE), lambda block, urgent: None)
    mine = first.demand(5 * MiB, 131072)
    assert len(mine) == 1
    assert second.demand(5 * MiB, 131072) == []


def test_what_is_read_again_survives_one_long_read(source: Source) -> None:
    cache = BlockCache(12 * MiB)
    favourite, long = BlockMap(cache), BlockMap(cache)
    reader = Reader(favourite, 4 * MiB, source.queue, whole=0)
    for _ in range(3):
        for offset in range(0, 4 * MiB, 131072):
            read(reader, source, offset, 131072)
    scan = Reader(long, len(SOURCE), source.queue)
    for offset in range(0, len(SOURCE), 131072):
        read(scan, source, offset, 131072)
    assert favourite.covers(0, 4 * MiB)
    reader.close()
    scan.close()


def test_the_first_fetch_is_small_and_the_window_doubles(source: Source) -> None:
    cache = BlockCache(256 * MiB)
    reader = Reader(BlockMap(cache), len(SOURCE), source.queue)
    for offset in range(0, len(SOURCE), 131072):
        read(reader, source, offset, 131072)
    idle(cache)
    sizes = [size for _, size in sorted(source.fetched)]
    assert sizes[0] == 256 * 1024
    assert max(sizes) >= 4 * MiB
    assert sum(sizes) == len(SOURCE)
    reader.close()


def test_random_reads_fetch_little_more_than_was_asked(source: Source) -> None:
    cache = BlockCache(256 * MiB)
    reader = Reader(BlockMap(cache), 1 << 40, lambda block, urgent: source.fetched.append((block.offset, block.size)))
    choose = random.Random(2)
    for _ in range(200):
        reader.try_read(offset := choose.randrange(1 << 28) * 4096, 131072)
        source.fetched += [(block.offset, block.size) for block in reader.demand(offset, 131072)]
    assert sum(size for _, size in source.fetched) <= 1.5 * 200 * 131072


def test_small_reads_here_and_there_are_no_run() -> None:
    """Reads that lie near each other by chance prove nothing about what is between them."""
    fetched: list[int] = []
    reader = Reader(BlockMap(BlockCache(256 * MiB)), 1 << 30, lambda block, urgent: fetched.append(block.size))
    choose = random.Random(5)
    for _ in range(400):
        reader.try_read(offset := choose.randrange(4096) * 4096, 4096)
        fetched += [block.size for block in reader.demand(offset, 4096)]
    assert sum(fetched) <= 1.5 * 400 * 4096 + FIRST


@pytest.mark.parametrize(("budget", "whole"), [(512 * MiB, True), (256 * MiB, False)], ids=["has room", "too large"])
def test_a_file_read_all_over_is_fetched_whole(budget: int, whole: bool) -> None:
    """Once an eighth of it was asked for in pieces, and only where it fits in a quarter of memory."""
    size, piece = 96 * MiB, 128 * 1024
    blocks = BlockMap(BlockCache(budget))
    fetched: list[int] = []

    def fill(block: Block, urgent: bool = False) -> None:
        fetched.append(block.size)
        block.advance(block.size)
        block.finish()

    reader = Reader(blocks, size, fill)
    for offset in random.Random(3).sample(range(4 * MiB, size, 4 * MiB + piece), 22) * 8:
        reader.try_read(offset, piece)
        for block in reader.demand(offset, piece):
            fill(block)
    assert sum(fetched) <= 22 * piece, "little more than was asked"
    for offset in random.Random(4).sample(range(0, size, piece), 200):
        for block in reader.demand(offset, piece):
            fill(block)
    assert blocks.covers(0, size) is whole
    assert sum(fetched) <= (size * 9 // 8 + 2 * FIRST if whole else 222 * piece + FIRST)
    assert not whole or len(fetched) < 130
    reader.close()


@pytest.mark.parametrize("stride", [3 * MiB, -131072], ids=["strided", "backward"])
def test_a_regular_jump_is_fetched_ahead(source: Source, stride: int) -> None:
    cache = BlockCache(256 * MiB)
    reader = Reader(BlockMap(cache), len(SOURCE), source.queue)
    start = 0 if stride > 0 else 12 * MiB
    for i in range(7):
        offset = start + i * stride
        assert read(reader, source, offset, 131072) == SOURCE[offset : offset + 131072]
    idle(cache)
    ahead = start + 7 * stride
    assert reader.try_read(ahead, 131072) is not None
    reader.close()


def test_closing_a_reader_takes_back_what_it_asked_ahead() -> None:
    cache = BlockCache(256 * MiB)
    blocks = BlockMap(cache)
    asked: list[Block] = []
    reader = Reader(blocks, 1 << 30, lambda block, urgent: asked.append(block))
    for offset in range(0, MiB, 131072):
        reader.try_read(offset, 131072)
    assert asked
    assert cache.streams == 1
    reader.close()
    assert all(block.cancelled() for block in asked)
    assert (cache.streams, cache.in_flight, cache.used) == (0, 0, 0)


def test_closing_a_reader_takes_back_the_rest_of_the_file_and_another_asks_anew() -> None:
    blocks = BlockMap(BlockCache(256 * MiB))
    asked: list[Block] = []
    for _ in range(2):
        reader = Reader(blocks, 48 * MiB, lambda block, urgent: asked.append(block))
        for offset in range(8 * MiB, 48 * MiB, 5 * MiB):
            for block in reader.demand(offset, MiB):
                block.advance(block.size)
                block.finish()
        assert sum(block.size for block in asked if not block.cancelled()) >= 32 * MiB
        reader.close()
        assert all(block.cancelled() for block in asked)


def test_a_seek_takes_back_what_is_no_longer_wanted() -> None:
    cache = BlockCache(256 * MiB)
    asked: list[Block] = []
    reader = Reader(BlockMap(cache), 1 << 34, lambda block, urgent: asked.append(block))
    for offset in range(0, 4 * MiB, 131072):
        reader.try_read(offset, 131072)
    before = len(asked)
    for i in range(40):
        reader.try_read((1 << 30) + i * 97 * MiB, 131072)
    assert before
    assert all(block.cancelled() for block in asked[:before])
    reader.close()


def test_the_budget_is_shared_by_the_streams() -> None:
    cache = BlockCache(32 * MiB)
    asked: list[Block] = []
    readers = [Reader(BlockMap(cache), 1 << 34, lambda block, urgent: asked.append(block)) for _ in range(4)]
    for offset in range(0, 8 * MiB, 131072):
        for reader in readers:
            reader.try_read(offset, 131072)
    assert cache.streams == 4
    assert cache.used <= cache.budget
    for reader in readers:
        reader.close()
    assert (cache.streams, cache.used) == (0, 0)


def test_a_known_small_file_is_put_in_and_read_back() -> None:
    blocks = BlockMap(BlockCache(MiB))
    blocks.insert(0, b"just written")
    reader = Reader(blocks, 12, lambda block, urgent: None)
    assert bytes(reader.try_read(5, 100) or b"") == b"written"
    assert reader.try_read(12, 10) == b""
    view = reader.try_read(0, 4)
    with pytest.raises(TypeError):
        view[0] = 1  # type: ignore[index]


def test_a_block_evicted_while_a_reply_holds_it_keeps_its_bytes() -> None:
    cache = BlockCache(MiB)
    blocks = BlockMap(cache)
    blocks.insert(0, SOURCE[:MiB])
    view = Reader(blocks, MiB, lambda block, urgent: None).try_read(0, 1000)
    BlockMap(cache).insert(0, os.urandom(MiB))
    assert not blocks.covers(0, 1)
    assert bytes(view or b"") == SOURCE[:1000]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("size", [48 * MiB, 192 * MiB], ids=["kept", "passing through"])
def test_many_readers_stay_within_the_budget(size: int) -> None:
    """Evicted blocks leave memory though their readers are still open; spare pages for new ones are few."""
    cache = BlockCache(64 * MiB)

    def fill(block: Block, urgent: bool = False) -> None:
        block.writable()[:] = bytes(block.size)
        block.advance(block.size)
        block.finish()

    fill(BlockMap(cache).claim(0, 8 * MiB))
    before = resident()
    readers = [Reader(BlockMap(cache), size, fill) for _ in range(768 * MiB // size)]
    for offset in range(0, size, 128 * 1024):
        for reader in readers:
            while reader.try_read(offset, 128 * 1024) is None:
                for block in reader.demand(offset, 128 * 1024):
                    fill(block)
        assert cache.stats()["used"] <= 64 * MiB
    assert resident() - before <= (64 + 40) * MiB


def test_reads_that_come_in_reverse_fetch_nothing_again() -> None:
    """The kernel's reads of a forward reader arrive out of order; what left memory is not asked for anew."""
    cache = BlockCache(64 * MiB)
    fetched: list[int] = []

    def fill(block: Block, urgent: bool = False) -> None:
        fetched.append(block.size)
        block.advance(block.size)
        block.finish()

    reader = Reader(BlockMap(cache), 128 * MiB, fill)
    for group in range(0, reader.size, MiB):
        for offset in range(group + MiB - 128 * 1024, group - 1, -128 * 1024):
            while reader.try_read(offset, 128 * 1024) is None:
                for block in reader.demand(offset, 128 * 1024):
                    fill(block)
    assert sum(fetched) == reader.size


def test_a_file_too_large_to_be_kept_leaves_as_it_is_read() -> None:
    cache = BlockCache(64 * MiB)
    fetched: list[int] = []

    def fill(block: Block, urgent: bool = False) -> None:
        fetched.append(block.size)
        block.advance(block.size)
        block.finish()

    kept, passing = Reader(BlockMap(cache), 8 * MiB, fill), Reader(BlockMap(cache), 256 * MiB, fill)
    for reader in (kept, passing):
        for offset in range(0, reader.size, 128 * 1024):
            while reader.try_read(offset, 128 * 1024) is None:
                for block in reader.demand(offset, 128 * 1024):
                    fill(block)
    assert sum(fetched) == 264 * MiB
    assert cache.stats()["used"] <= 9 * MiB  # the small file, and the blocks that were not read ahead
    assert all(kept.try_read(offset, 4096) is not None for offset in range(0, 8 * MiB, 128 * 1024))
    assert cache.stats()["evictions"] == 0


def test_drop_ended_leaves_what_is_under_way() -> None:
    cache = BlockCache(100)
    blocks = BlockMap(cache)
    blocks.insert(0, b"x" * 10)
    under_way = blocks.claim(10, 30)
    assert under_way is not None
    blocks.drop_ended()
    assert len(blocks) == 1 and cache.used == 20 and not blocks.covers(0, 1)
    under_way.writable()[:] = b"y" * 20
    under_way.advance(20)
    under_way.finish()
    assert blocks.covers(10, 30)
    blocks.drop_ended()
    assert len(blocks) == 0 and cache.used == 0
