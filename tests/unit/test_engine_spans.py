"""SpanSet against its twin, a set of integers; Extents against a bytearray and a set of positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicefs.engine import DirtyMemory, Extents, SpanSet
from sluicefs.engine.readahead import PatternProbe

END = 200
position = st.integers(0, END)
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), position, position), max_size=40)


def spans_of(positions: set[int]) -> list[tuple[int, int]]:
    """The twin's spans: maximal runs of consecutive integers."""
    found: list[tuple[int, int]] = []
    for one in sorted(positions):
        if found and found[-1][1] == one:
            found[-1] = (found[-1][0], one + 1)
        else:
            found.append((one, one + 1))
    return found


@given(steps, position, position)
def test_a_span_set_is_a_set_of_positions(changes: list[tuple[str, int, int]], low: int, high: int) -> None:
    spans, twin = SpanSet(), set[int]()
    for verb, start, end in changes:
        touched = set(range(start, end))
        if verb == "add":
            assert spans.add(start, end) == len(touched - twin)
            twin |= touched
        else:
            assert spans.remove(start, end) == len(touched & twin)
            twin -= touched
        assert list(spans) == spans_of(twin)
    asked = set(range(low, high))
    assert spans.total == len(twin)
    assert len(spans) == len(spans_of(twin))
    assert spans.covers(low, high) == (asked <= twin)
    assert spans.touches(low, high) == bool(asked & twin)
    assert spans.bytes_within(low, high) == len(asked & twin)
    assert spans.within(low, high) == spans_of(asked & twin)
    assert spans.gaps(low, high) == spans_of(asked - twin)
    spans.clear()
    assert list(spans) == []


CHUNK = 64
writes = st.tuples(st.just("write"), st.integers(0, 300), st.binary(max_size=150))
cuts = st.tuples(st.just("truncate"), st.integers(0, 400), st.none())
drops = st.tuples(st.just("drop"), st.integers(0, 7), st.none())


@given(st.lists(st.one_of(writes, writes, writes, cuts, drops), max_size=30))
def test_extents_are_bytes_at_positions(changes: list[tuple[str, int, bytes | None]]) -> None:
    memory = DirtyMemory(1000)
    extents, bytes_twin, twin = Extents(CHUNK, memory), bytearray(600), set[int]()
    for verb, where, data in changes:
        if data is not None:
            touched = set(range(where, where + len(data)))
            assert extents.write(where, data) == len(touched - twin)
            bytes_twin[where : where + len(data)] = data
            twin |= touched
        elif verb == "truncate":
            extents.truncate(where)
            twin = {one for one in twin if one < where}
        else:
            gone = {one for one in twin if one // CHUNK == where}
            assert extents.drop(where) == len(gone)
            twin -= gone
        assert extents.used == len(twin)
        assert memory.used % 4096 == 0 and len(twin) <= memory.used
        found = bytearray(b"\xff" * 600)
        assert extents.overlay(0, found) == len(twin)
        for one in range(600):
            assert found[one] == (bytes_twin[one] if one in twin else 0xFF)
    assert {one for start, end in extents.spans() for one in range(start, end)} == twin
    for start, end in spans_of(twin):
        assert extents.covers(start, end)
        assert not extents.covers(start, end + 1)
    extents.clear()
    assert memory.used == 0


def test_a_chunk_that_is_being_sent_refuses_writes_and_keeps_its_bytes() -> None:
    extents = Extents(CHUNK, DirtyMemory(1000))
    extents.write(0, bytes(range(CHUNK)))
    with extents.view(0, 0, CHUNK) as view:
        assert extents.sending(0)
        with pytest.raises(BufferError):
            extents.write(3, b"x")
        extents.write(CHUNK, b"the next chunk is free")
        assert bytes(view) == bytes(range(CHUNK))
    assert not extents.sending(0)
    extents.write(3, b"x")
    with pytest.raises(ValueError, match="dirty"):
        extents.view(1, 0, CHUNK)


def test_dirty_memory_is_given_back_with_its_file() -> None:
    memory = DirtyMemory(4096)
    extents = Extents(CHUNK, memory)
    extents.write(0, bytes(100))
    assert memory.full
    del extents
    assert memory.used == 0
    assert not memory.full


def test_memory_of_a_chunk_that_was_sent_serves_the_next_and_goes_back_with_the_file() -> None:
    size = 2 << 20
    memory = DirtyMemory(4 * size)
    extents = Extents(size, memory)
    for index in range(4):
        for start in range(0, size, 256 << 10):
            extents.write(index * size + start, bytes([index + 1]) * (256 << 10))
    assert memory.kept == 0
    for index in range(3):
        extents.drop(index)
        assert memory.used + memory.kept <= memory.limit
    assert memory.kept == 3 * size
    for start in range(0, size, 512 << 10):
        extents.write(5 * size + start, b"x" * (512 << 10))
    assert memory.kept == 2 * size
    assert bytes(extents.view(5, 0, size)) == b"x" * size, "nothing of what was there before"
    assert bytes(extents.view(3, 0, size)) == b"\4" * size
    extents.clear()
    assert (memory.used, memory.kept) == (0, 0)


def test_memory_that_is_still_looked_at_serves_nobody_else() -> None:
    size = 2 << 20
    memory = DirtyMemory(4 * size)
    extents = Extents(size, memory)
    for start in range(0, size, 512 << 10):
        extents.write(start, b"x" * (512 << 10))
    view = extents.view(0, 0, size)
    extents.drop(0)
    assert memory.kept == 0
    for start in range(0, size, 512 << 10):
        extents.write(start, b"y" * (512 << 10))
    assert bytes(view) == b"x" * size


def test_a_byte_here_and_there_counts_as_the_pages_it_takes() -> None:
    memory = DirtyMemory(1 << 30)
    extents = Extents(16 << 20, memory)
    for page in range(0, 4096, 2):
        extents.write(page * 4096 + 100, b"x")
        extents.write(page * 4096 + 200, b"y")
    assert (extents.used, memory.used) == (4096, 2048 * 4096)
    extents.drop(0)
    assert (extents.used, memory.used) == (0, 0)


def test_growing_a_chunk_keeps_its_bytes() -> None:
    extents = Extents(16 << 20, DirtyMemory(1 << 30))
    written = bytearray()
    for i in range(3000):
        piece = bytes([i % 251]) * 777
        extents.write(len(written), piece)
        written += piece
    found = bytearray(len(written))
    assert extents.overlay(0, found) == len(written)
    assert found == written


def test_a_sequential_run_earns_its_window_and_a_random_one_does_not() -> None:
    probe = PatternProbe()
    grain = 128 * 1024
    first, _ = probe.read(1 << 30, grain)
    slot = -1 - first
    assert first < 0
    assert probe.window(slot, 64 << 20) == 0
    for i in range(1, 64):
        assert probe.read((1 << 30) + i * grain, grain)[0] == slot
        assert probe.window(slot, 64 << 20) == min((i + 1) * grain, 64 << 20)
    assert probe.read(5 << 30, grain)[0] < 0


def test_a_run_from_the_start_of_a_file_earns_eight_times_as_much() -> None:
    probe = PatternProbe()
    grain = 128 * 1024
    slot = -1 - probe.read(0, grain)[0]
    probe.read(grain, grain)
    assert probe.window(slot, 64 << 20) == 16 * grain
    assert probe.block_size(64 << 20, 8 << 20) == 8 << 20
    assert probe.block_size(0, 8 << 20) == 256 * 1024


@pytest.mark.parametrize("distance", [10 << 20, -(1 << 20)])
def test_a_constant_stride_is_noticed(distance: int) -> None:
    probe = PatternProbe()
    hits = [probe.read((1 << 30) + i * distance, 128 * 1024)[1] for i in range(6)]
    assert hits[-1] >= 3
