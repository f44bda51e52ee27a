"""Brings blocks in: the one place where the engine's wish for bytes becomes a ranged GET.

A bounded pool of threads serves read-ahead; a reader that waits fetches a small block itself, on its own thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable

from sluicefs.cache import DiskCache
from sluicefs.engine import Block, BlockCache, BlockMap
from sluicefs.errors import AccessDeniedError, CancelledError, ConditionFailedError, NotFoundError
from sluicefs.fs.nodes import Version
from sluicefs.store.api import Store

log = logging.getLogger(__name__)

# A waiting reader fetches up to this much itself: handing it over costs two thread switches.
INLINE = 1024 * 1024
# A block that goes on for more than this (bytes) behind what is waited for is handed over all the same: the answer need not
# wait for the rest.
WAITED = 64 * 1024


class GoneError(ConditionFailedError):
    """Version `etag` is not under `key`. A rename of ours may have taken it elsewhere since it was asked for."""

    def __init__(self, error: ConditionFailedError | NotFoundError, key: str, etag: str):
        super().__init__(error.strerror or "", code=error.code, status=error.status)
        self.key = key
        self.etag = etag


class Fetcher:
    """Queue and threads for read-ahead over one store."""

    def __init__(self, store: Store, cache: BlockCache, threads: int, disk: DiskCache | None = None):
        self.store = store
        self.cache = cache
        self.disk = disk
        self._jobs: queue.SimpleQueue[tuple[Version, Block] | None] = queue.SimpleQueue()
        self._maps: weakref.WeakValueDictionary[tuple[str, str], BlockMap] = weakref.WeakValueDictionary()
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def version(self, key: str, etag: str, size: int) -> Version:
        """The version object of (key, ETag), with the blocks that are still known of it."""
        name = (key, etag)
        blocks = self._maps.get(name)
        if blocks is None:
            blocks = self._maps[name] = BlockMap(self.cache)
        return Version(key, etag, size, blocks)

    def adopt(self, key: str, version: Version) -> None:
        """The object is now under `key` (a rename): its blocks stay good."""
        version.key = key
        self._maps[(key, version.etag)] = version.blocks

    def enqueue(self, version: Version, block: Block) -> None:
        """Fetch a block soon, on one of the pool's threads."""
        self._jobs.put((version, block))

    def queue_for(self, version: Version) -> Callable[[Block, bool], None]:
        """The `fetch` callable of a `Reader`."""

        def enqueue(block: Block, urgent: bool) -> None:
            self._jobs.put((version, block))

        return enqueue

    def fetch(self, version: Version, block: Block) -> None:
        """Fill one block, now, on this thread. Errors end up in the block, and with those who wait for it."""
        error: Exception | None = None
        found = 0  # bytes that the disk cache had
        key, etag = version.key, version.etag
        try:
            if block.cancelled():
                error = CancelledError("read-ahead was taken back")
            else:
                started = time.monotonic()
                space = block.writable()
                if self.disk is not None:
                    found = self.disk.read_into(key, etag, version.size, block.offset, space, block.advance)
                if found < block.size:
                    self.store.get_into(
                        key,
                        block.offset + found,
                        space[found:],
                        etag=etag,
                        progress=(lambda count: block.advance(found + count)) if found else block.advance,
                        cancelled=block.cancelled,
                    )
                    version.blocks.confirmed = max(version.blocks.confirmed, started)  # If-Match held
                block.advance(block.size)
        except (ConditionFailedError, NotFoundError) as caught:
            error = GoneError(caught, key, etag)
            log.info("read of %s at %d: %s", key, block.offset, caught)
        except Exception as caught:
            error = caught
            if not isinstance(caught, (CancelledError, AccessDeniedError)):  # the store tells of the latter
                log.warning("read of %s at %d failed: %s", key, block.offset, caught)
        finally:
            block.finish(error)
        if self.disk is not None and error is None and found < block.size:
            self.disk.put(key, etag, version.size, block.offset, block)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self.fetch(*job)
            del job

    def close(self) -> None:
        """End the threads; what is queued is dropped."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(5)
        if self.disk is not None:
            self.disk.close()
