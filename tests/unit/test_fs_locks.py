"""The order of locks is checked in all tests: an inversion raises before the thread waits."""

from __future__ import annotations

import threading

import pytest

from sluicefs.fs import locks
from sluicefs.fs.locks import LockOrderError, Rank
from sluicefs.fs.nodes import DirState, FileState
from sluicefs.fs.rename import Gate


def test_an_inversion_is_an_error_and_the_order_is_none() -> None:
    assert locks.DEBUG
    gate, directory, file, other = Gate(), DirState().lock, FileState().lock, FileState().lock
    core = locks.factory(Rank.CORE, threading.RLock)()
    with gate.shared(), directory, file, file, other, core, core, file:
        pass
    for outer, inner in (
        (core, file),
        (file, directory),
        (core, directory),
        (directory, directory),
        (directory, DirState().lock),
    ):
        with outer, pytest.raises(LockOrderError):
            inner.acquire()
    with file, pytest.raises(LockOrderError), gate.shared():
        pass
    with gate.shared(), pytest.raises(LockOrderError), gate.alone():
        pass
    with gate.alone(), directory:  # nothing was left behind
        pass


def test_who_does_not_wait_may_try_any() -> None:
    file, core = FileState().lock, locks.factory(Rank.CORE, threading.RLock)()
    with core:
        assert file.acquire(blocking=False)
        file.release()
