"""The reference store: what only it can be asked, and its cost."""

from __future__ import annotations

import time

import pytest

from sluicefs.errors import ConditionFailedError, NotFoundError
from sluicefs.store.memory import MemoryStore

GIB = 1024**3
MIB = 1024**2


def test_a_sparse_object_of_200_gib_is_cheap() -> None:
    store = MemoryStore()
    store.put_sparse("big", 200 * GIB, {100 * GIB: b"middle", 200 * GIB - 4: b"tail"})
    buffer = bytearray(b"x" * 3 * MIB)
    store.get_into("big", 100 * GIB - MIB, buffer)
    assert buffer == bytes(MIB) + b"middle" + bytes(2 * MIB - 6)
    tail = bytearray(8)
    assert store.get_into("big", 200 * GIB - 8, tail).size == 200 * GIB
    assert tail == b"\0\0\0\0tail"


def test_zero_parts_and_copied_parts_share_memory() -> None:
    store = MemoryStore()
    store.put_sparse("source", 40 * GIB, {0: b"head"})
    upload = store.create_upload("m")
    parts = [(number, store.copy_part("m", upload, number, "source", 5 * MIB * number, 5 * MIB)) for number in range(1, 4)]
    parts.append((4, store.upload_part("m", upload, 4, bytes(MIB))))
    store.complete_upload("m", upload, parts)
    assert store.head("m").size == 16 * MIB
    assert all(data is None for _, data in store._objects["m"].pieces)


def test_a_small_least_part_can_be_asked_for() -> None:
    store = MemoryStore(min_part=4)
    upload = store.create_upload("m")
    parts = [(number, store.upload_part("m", upload, number, b"abcd")) for number in (1, 2)]
    store.complete_upload("m", upload, parts)
    assert store.get("m")[1] == b"abcdabcd"


def test_a_failed_condition_ends_the_upload_as_on_r2() -> None:
    store = MemoryStore()
    store.put("m", b"there")
    upload = store.create_upload("m")
    part = store.upload_part("m", upload, 1, b"x")
    with pytest.raises(ConditionFailedError):
        store.complete_upload("m", upload, [(1, part)], if_none_match=True)
    with pytest.raises(NotFoundError):
        store.complete_upload("m", upload, [(1, part)])


def test_listing_among_many_keys_costs_a_page() -> None:
    store = MemoryStore()
    for number in range(100_000):
        store.put(f"d{number % 100:02d}/{number:06d}", b"")
    store.list("", limit=1)  # merges what is new
    began = time.process_time()
    for _ in range(50):
        page = store.list("", delimiter="/")
        store.put("d50/new", b"")
        store.delete("d50/new")
    many = time.process_time() - began
    assert len(page.prefixes) == 100
    began = time.process_time()
    sorted(store._objects)
    assert many / 50 < max(20 * (time.process_time() - began), 0.05)


def test_order_survives_deletions_and_returns() -> None:
    store = MemoryStore()
    for number in range(3000):
        store.put(f"{number:04d}", b"")
    store.list("")
    store.delete_many([f"{number:04d}" for number in range(0, 3000, 3)])
    store.delete_many([f"{number:04d}" for number in range(1, 3000, 3)])
    store.put("0000", b"back")
    keys, token = [], None
    while True:
        page = store.list("", token=token, limit=700)
        keys += [info.key for info in page.objects]
        token = page.token
        if token is None:
            break
    assert keys == ["0000"] + [f"{number:04d}" for number in range(2, 3000, 3)]


def test_a_listing_goes_on_past_keys_that_went_meanwhile() -> None:
    store = MemoryStore()
    for key in ("a/1", "a/2", "b/1", "c"):
        store.put(key, b"")
    page = store.list("", delimiter="/", limit=1)
    store.delete_many(["a/1", "a/2", "b/1"])
    rest = store.list("", delimiter="/", token=page.token)
    assert (page.prefixes, rest.prefixes, [info.key for info in rest.objects]) == (["a/"], [], ["c"])
