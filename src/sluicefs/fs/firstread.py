"""A file that is looked up by a name nobody has listed is most likely opened: its first bytes are asked for at once.

It only saves a round trip: the answer says all that HEAD does, and its bytes are where `read` looks for them. It must never
hold up what a listing answers, and brings no more than a few bodies in a row that nobody reads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from sluicefs.engine import Block
from sluicefs.errors import CancelledError, NotFoundError, StoreError
from sluicefs.fs.entries import Entry
from sluicefs.fs.nodes import Version
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

T = TypeVar("T")

SIZE = 128 * 1024  # bytes; a kernel asks for no more at once
AT_ONCE = 4
UNREAD = 8  # bodies in a row that nobody reads before no more are asked for
REMEMBERED = 64
EXTENSION = 10  # letters and digits behind a name's last dot


class FirstRead:
    """The first bytes of one object, under way. `info` is there as soon as the answer begins; `missing`: there is no object."""

    def __init__(self, core: Core, key: str):
        self.key = key
        self.started = time.monotonic()
        self.info: ObjectInfo | None = None
        self.missing = False
        self._core = core
        self._over = False
        self._unwanted = False
        self._changed = threading.Condition()
        self._version: Version | None = None  # its blocks are known only as long as somebody holds them
        self._block: Block | None = None

    def run(self) -> None:
        """On a thread of the pool."""
        error: Exception | None = None
        try:
            self._core.store.get_start(self.key, SIZE, self._begin, progress=self._advance, cancelled=self._cancelled)
        except NotFoundError as caught:
            self.missing, error = True, caught
        except StoreError as caught:
            error = caught
            if not isinstance(caught, CancelledError) and caught.status != 416:
                log.debug("the first bytes of %s: %s", self.key, caught)  # who waits asks once more, and says what is wrong
        except Exception as caught:
            error = caught
            raise
        finally:
            if self._block is not None:
                self._block.finish(error)
            self._version = self._block = None
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _begin(self, info: ObjectInfo) -> memoryview | None:
        if self._unwanted:
            return None
        version = self._core.version(self.key, info.etag, info.size)
        self._block = version.blocks.claim(0, min(info.size, SIZE))
        if self._block is not None:
            version.blocks.confirmed = max(version.blocks.confirmed, self.started)
        self._version = version
        if self._core.config.attrs == "listing":
            info = replace(info, metadata=None, content_type=None)
        with self._changed:
            self.info = info
            self._changed.notify_all()
        return self._block.writable() if self._block is not None else None

    def _advance(self, count: int) -> None:
        if self._block is not None:
            self._block.advance(count)

    def _cancelled(self) -> bool:
        return self._block.cancelled() if self._block is not None else self._unwanted

    def wait(self, enough: Callable[[], bool] = lambda: False, seconds: float | None = None) -> ObjectInfo | None:
        """What `info` is when it is there or will not come, when it is `enough`, or `seconds` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self.info is not None or self._over or enough(), seconds)
            return self.info

    def wake(self) -> None:
        """Let who waits look whether it is enough."""
        with self._changed:
            self._changed.notify_all()

    def drop(self) -> None:
        """It is not wanted, unless it has begun."""
        self._unwanted = True


class FirstReads:
    """When first bytes are asked for, and on which threads."""

    def __init__(self, core: Core):
        self.core = core
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._busy = 0  # threads of the pool
        self._bodies = 0
        self._left = UNREAD  # bodies that may come before one is read
        self._asked: OrderedDict[str, None] = OrderedDict()  # keys of the last files that were looked up so

    def begin(self, key: str, name: str, known: Entry | None) -> FirstRead | None:
        """Ask for the first bytes of a file, if it is likely that they are read. `known`: what an old listing said."""
        if not self._likely(name, known):
            return None
        with self._lock:
            self._asked[key] = None
            if len(self._asked) > REMEMBERED:
                self._asked.popitem(last=False)
            if not self._left or self._bodies == AT_ONCE or self._busy + 2 > 2 * AT_ONCE:
                return None
            self._left -= 1
            self._bodies += 1
        found = FirstRead(self.core, key)
        self.submit(found.run).add_done_callback(lambda _: self._ended_body(found))
        return found

    def _likely(self, name: str, known: Entry | None) -> bool:
        if self.core.disk is not None:  # it may have the bytes, once the version is known
            return False
        if known is not None:
            if known.is_dir or known.info is None or not known.info.size:
                return False
            return not len(self.core.version(known.info.key, known.info.etag, known.info.size).blocks)
        stem, _, extension = name.rpartition(".")
        return bool(stem) and len(extension) <= EXTENSION and extension.isalnum() and not extension.isdigit()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` on one of the pool's threads."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(2 * AT_ONCE, thread_name_prefix="first")
            self._busy += 1
            future = self._pool.submit(work)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[T]) -> None:
        with self._lock:
            self._busy -= 1
        failed = future.exception()
        if failed is not None and not isinstance(failed, OSError):
            log.error("a look-up failed in a way it should not", exc_info=failed)

    def _ended_body(self, found: FirstRead) -> None:
        with self._lock:
            self._bodies -= 1
            if found.info is None:  # there was no body
                self._left = min(UNREAD, self._left + 1)

    def opened(self, key: str) -> None:
        """A file is read: was it looked up just now?"""
        with self._lock:
            if self._asked.pop(key, self) is None:
                self._left = min(UNREAD, self._left + 2)

    @property
    def waiting(self) -> bool:
        """Is there any file whose opening matters?"""
        return bool(self._asked)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
