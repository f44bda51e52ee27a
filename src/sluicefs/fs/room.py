"""Memory that several threads share by the byte: who finds too little free waits for his turn. Knows nothing of files."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """`limit` bytes. Who asks for more than that gets it when nobody else holds any; turns are in the order of asking."""

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Returns when `count` bytes are this thread's; `give` them back."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and (not self.used or self.used + count <= self.limit))
            self._waiting.popleft()
            self.used += count
            self._changed.notify_all()  # there may be enough for the next one too

    def give(self, count: int) -> None:
        with self._changed:
            self.used -= count
            self._changed.notify_all()

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """`take` and `give` around a block; nothing for 0 bytes."""
        if not count:
            yield
            return
        self.take(count)
        try:
            yield
        finally:
            self.give(count)
