"""Memory that threads share by the byte."""

from __future__ import annotations

import threading
import time

from sluicefs.fs.room import Room


def test_who_finds_too_little_waits_until_it_is_given_back():
    room = Room(10)
    room.take(6)
    got = threading.Event()
    thread = threading.Thread(target=lambda: (room.take(5), got.set()))
    thread.start()
    assert not got.wait(0.05)
    room.give(6)
    assert got.wait(10)
    thread.join()
    assert room.used == 5


def test_more_than_all_of_it_is_given_to_who_is_alone():
    room = Room(10)
    with room.holding(25):
        assert room.used == 25
    assert room.used == 0


def test_a_large_wish_is_not_passed_over_by_small_ones():
    room = Room(10)
    room.take(5)
    order: list[int] = []

    def ask(count: int) -> None:
        with room.holding(count):
            order.append(count)

    threads = []
    for count in (9, 1, 2):
        threads.append(threading.Thread(target=ask, args=(count,)))
        threads[-1].start()
        end = time.monotonic() + 10
        while len(room._waiting) < len(threads) and time.monotonic() < end:
            time.sleep(0.001)
    assert order == []
    room.give(5)
    for thread in threads:
        thread.join()
    assert order[0] == 9 and room.used == 0
