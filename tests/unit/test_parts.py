"""How files are cut into parts: arithmetic, to R2's limits."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluicefs.config import MiB
from sluicefs.fs import parts

GiB = 1024 * MiB


@pytest.mark.parametrize("chunk", [5 * MiB, 16 * MiB, 16 * MiB + 1, 512 * MiB, 4 * GiB])
@pytest.mark.parametrize(
    "size", [0, 1, 10_000 * 5 * MiB, 10_000 * 16 * MiB, 10_000 * 16 * MiB + 1, 200 * GiB, parts.MAX_OBJECT]
)
def test_a_plan_keeps_the_stores_rules(size: int, chunk: int) -> None:
    plan = parts.plan_for(size, chunk)
    count = plan.count(size)
    assert 1 <= count <= 10_000
    assert parts.MIN_PART <= plan.part_size <= parts.MAX_PART and plan.part_size % chunk == 0
    assert plan.span(0, size)[0] == 0 and plan.span(count - 1, size)[1] == size
    lengths = {end - start for start, end in (plan.span(index, size) for index in range(count - 1))}
    assert lengths <= {plan.part_size}, "all but the last are equal"
    start, end = plan.span(count - 1, size)
    assert end - start <= plan.part_size, "the last is not larger"
    if size <= 10_000 * chunk:
        assert plan.part_size == chunk, "no larger than it must be"


@given(
    st.integers(33 * MiB, 20 * GiB),
    st.sampled_from([5 * MiB, 16 * MiB, 64 * MiB]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 40 * MiB)), max_size=4),
)
@example(GiB + 4096, 16 * MiB, [(1.0, 4096)])
def test_a_change_is_sent_in_equal_parts_and_its_large_ones_send_no_more_than_two_chunks(
    size: int, chunk: int, changes: list[tuple[float, int]]
) -> None:
    spans = sorted((int(at * (size - length)), int(at * (size - length)) + length) for at, length in changes if length < size)
    plan, usual = parts.plan_change(size, chunk, spans), parts.plan_for(size, chunk)

    def sent(plan: parts.Plan) -> int:
        indices = {index for start, end in spans for index in plan.touched(start, end - start)}
        return sum(end - start for start, end in (plan.span(index, size) for index in indices))

    assert plan.part_size % chunk == 0 and plan.count(size) <= usual.count(size)
    if plan != usual:
        assert sent(plan) <= 2 * chunk and chunk < plan.part_size <= parts.MAX_COPY
        assert plan.count(size) >= parts.SIDE_BY_SIDE
        assert parts.suits_change(plan, size, spans)
        assert not parts.suits_change(plan, size, [*spans, (0, 1), (size // 2, size // 2 + 2 * chunk)])


@pytest.mark.parametrize(
    ("size", "copied"), [(GiB, 8), (1032 * MiB, 8), (1000 * MiB, 31), (10 * GiB, 20), (100 * GiB, 200)], ids=str
)
def test_an_append_to_a_large_object_is_a_few_large_copies(size: int, copied: int) -> None:
    plan = parts.plan_change(size + 4096, 16 * MiB, [(size, size + 4096)])
    assert plan.count(size + 4096) <= copied + 3
    assert parts.plan_change(size + 4096, 16 * MiB, [(size, size + 4096)], 64 * MiB).part_size <= 64 * MiB


def test_a_change_in_the_middle_sends_two_chunks_where_that_saves_many_copies() -> None:
    assert parts.plan_change(GiB, 16 * MiB, [(GiB // 2, GiB // 2 + 4096)]).part_size == 16 * MiB
    assert parts.plan_change(10 * GiB, 16 * MiB, [(5 * GiB, 5 * GiB + 4096)]).part_size == 32 * MiB


def test_an_object_that_only_got_shorter_is_copied_in_large_parts() -> None:
    assert parts.plan_change(GiB, 16 * MiB, []).part_size == 128 * MiB


def test_nothing_is_larger_than_an_object_can_be() -> None:
    assert parts.plan_for(parts.MAX_OBJECT, 16 * MiB).part_size == 528 * MiB
    with pytest.raises(ValueError):
        parts.plan_for(parts.MAX_OBJECT + 1, 16 * MiB)


def test_a_growing_file_is_planned_anew_a_few_times_only() -> None:
    plan, plans = parts.plan_for(1, 16 * MiB), 1
    while plan.capacity < parts.MAX_OBJECT:
        plan, plans = parts.plan_ahead(plan.capacity + 1, 16 * MiB), plans + 1
    assert plans <= 4
