"""The order of the filesystem's locks, asserted in tests: SLUICEFS_DEBUG_LOCKS=1 makes every lock know its rank.

Without it these are the plain locks of `threading` and cost nothing. It must never wait by itself, nor change what a lock does.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

log = logging.getLogger(__name__)

DEBUG = os.environ.get("SLUICEFS_DEBUG_LOCKS") == "1"
L = TypeVar("L")


class Rank(enum.IntEnum):
    """Who holds one of a rank may wait only for higher ones, and for others of rank FILE (whose order is the inode number)."""

    GATE = 0
    DIRECTORY = 1
    FILE = 2
    CORE = 3


class LockOrderError(RuntimeError):
    """A thread was about to wait for a lock out of order: sooner or later two would wait for each other."""


_mine = threading.local()


def check(rank: Rank, lock: object) -> None:
    """Before waiting for `lock`. LockOrderError."""
    held: list[tuple[Rank, object]] = _mine.__dict__.setdefault("held", [])
    if any(other is lock for _, other in held):  # taken again, which a plain Lock or the gate does not survive
        if rank in (Rank.FILE, Rank.CORE):
            return
    elif not held or max(other for other, _ in held) < rank or (rank == Rank.FILE == max(other for other, _ in held)):
        return
    error = LockOrderError(f"{rank.name} is taken while {', '.join(other.name for other, _ in held)} is held")
    log.error("%s", error, stack_info=True)
    raise error


def taken(rank: Rank, lock: object) -> None:
    """The thread holds `lock` (once more)."""
    _mine.__dict__.setdefault("held", []).append((rank, lock))


def left(rank: Rank, lock: object) -> None:
    """The thread gave `lock` back (once)."""
    held: list[tuple[Rank, object]] = _mine.held
    del held[max(i for i, (_, other) in enumerate(held) if other is lock)]


def factory(rank: Rank, kind: Callable[[], L]) -> Callable[[], L]:
    """What makes locks of `kind` (Lock or RLock): `kind` itself, or in debugging one that checks."""
    return (lambda: cast(L, _Ranked(rank, kind()))) if DEBUG else kind


class _Ranked:
    def __init__(self, rank: Rank, lock: Any):
        self.rank, self.lock = rank, lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:  # who does not wait cannot stand in anybody's way
            check(self.rank, self)
        got: bool = self.lock.acquire(blocking, timeout)
        if got:
            taken(self.rank, self)
        return got

    def release(self) -> None:
        self.lock.release()
        left(self.rank, self)

    def locked(self) -> bool:
        return bool(self.lock.locked())

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()
