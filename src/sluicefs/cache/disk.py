"""The disk cache of one mount, as the filesystem sees it: bytes in on a thread of its own, bytes out checked.

It must never make a read fail, nor wait for the disk to take something in: what cannot be written in time is not cached. A disk
that is full or fails switches it off for a while.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sluicefs.cache.folder import NEW_FILE, Folder
from sluicefs.cache.segment import NEW, SEGMENT, Damaged, Segment, digest_of, name_of

log = logging.getLogger(__name__)

OFF_SECONDS = 60.0  # after an error of the disk
USE_SECONDS = 10.0  # a file's last use is noted at most this often
CLOSE_SECONDS = 10.0  # for what is still to be written at the end


@dataclass(slots=True)
class _Put:
    digest: bytes
    size: int
    offset: int
    data: memoryview


@dataclass(slots=True)
class _Heal:
    name: str


class DiskCache:
    """At most `limit` bytes of disk in `folder`, for the objects of one bucket. Mounts may share a folder: each keeps all of it
    within its own limit when it writes.

    `queue_bytes` bounds what waits to be written; it is memory that blocks just fetched take up anyway. All calls are
    thread-safe, and none raises OSError.
    """

    def __init__(self, folder: str, limit: int, *, endpoint: str, bucket: str, queue_bytes: int = 64 << 20):
        self.folder = folder
        self.limit = limit
        self.endpoint = endpoint
        self.bucket = bucket
        self.hits = self.misses = 0  # blocks wanted: all of it was here, or not
        self.bytes_read = self.bytes_written = self.bytes_skipped = 0
        self.evictions = self.damaged = 0
        self._queue_bytes = queue_bytes
        self._queued = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Put | _Heal | threading.Event | None] = queue.SimpleQueue()
        self._files: Folder | None = None
        self._path = os.path.join(folder, "blocks")
        self._off_until = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="disk-cache", daemon=True)
        self._thread.start()

    # -- out ------------------------------------------------------------------------------------------------------------

    def read_into(
        self, key: str, etag: str, size: int, offset: int, buffer: memoryview, progress: Callable[[int], object]
    ) -> int:
        """Fill `buffer` with the bytes from `offset` of a version of `size` bytes; returns how many of them, from the first on,
        are here. `progress(n)`: the first n are in place and checked.
        """
        if not etag or self._off():
            return 0
        digest = digest_of(self.endpoint, self.bucket, key, etag)
        done = 0
        while done < len(buffer):
            index = (offset + done) // SEGMENT
            stop = min(len(buffer), (index + 1) * SEGMENT - offset)
            done += self._read_segment(digest, size, index, offset, buffer, done, stop, progress)
            if done < stop:
                break
        with self._lock:
            self.bytes_read += done
            if done == len(buffer):
                self.hits += 1
            else:
                self.misses += 1
        return done

    def _read_segment(
        self,
        digest: bytes,
        size: int,
        index: int,
        offset: int,
        buffer: memoryview,
        start: int,
        stop: int,
        progress: Callable[[int], object],
    ) -> int:
        """`read_into`, for the part [start, stop) of the buffer, which lies in one segment; returns the bytes of it."""
        name = name_of(digest, index)
        done = start

        def landed(count: int) -> None:
            nonlocal done
            done = count
            progress(count)

        for attempt in range(2):
            try:
                fd = os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                break
            except OSError as error:
                self._switch_off(error)
                break
            try:
                segment = Segment(fd, digest, index, size)
                found = segment.load()
                segment.read(offset, buffer[:stop], done, landed)
                if done > start and time.time() - found.st_mtime > USE_SECONDS:
                    os.utime(fd)
                break
            except Damaged as error:
                if attempt:  # the first time its checksums may have been read while they were being written
                    self._report(name, fd, error)
            except OSError as error:
                self._switch_off(error)
                break
            finally:
                os.close(fd)
        return done - start

    def _report(self, name: str, fd: int, error: Damaged) -> None:
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_nlink:  # else it was evicted meanwhile
                log.warning("cache file %s is damaged: %s; its bytes are fetched again", name, error)
                self.damaged += 1
                self._jobs.put(_Heal(name))

    # -- in -------------------------------------------------------------------------------------------------------------

    def put(self, key: str, etag: str, size: int, offset: int, data: Any) -> None:
        """Keep `data`, the bytes from `offset` of a version of `size` bytes. Returns at once; `data` must not change later."""
        view = memoryview(data).cast("B")
        with self._lock:
            if not etag or self._closed or self._off() or self._queued + len(view) > self._queue_bytes:
                self.bytes_skipped += len(view)
                return
            self._queued += len(view)
        self._jobs.put(_Put(digest_of(self.endpoint, self.bucket, key, etag), size, offset, view))

    def flush(self, seconds: float) -> bool:
        """Wait until what was put is on disk, at most so long; False if it is not."""
        done = threading.Event()
        self._jobs.put(done)
        return done.wait(seconds)

    def close(self) -> None:
        """Write what waits, within a bound, and end."""
        with self._lock:
            self._closed = True
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)

    def stats(self) -> dict[str, int | str | bool]:
        """Bytes and counts, for `status`."""
        files = self._files
        used = 0
        if files is not None:
            with contextlib.suppress(OSError):
                used = files.used()
        with self._lock:
            return {
                "folder": self.folder,
                "limit": self.limit,
                "used": used,
                "on": not self._off(),
                "queued": self._queued,
                "queue_limit": self._queue_bytes,
                "hits": self.hits,
                "misses": self.misses,
                "bytes_read": self.bytes_read,
                "bytes_written": self.bytes_written,
                "bytes_skipped": self.bytes_skipped,
                "evictions": self.evictions,
                "damaged": self.damaged,
            }

    # -- the thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._begin()
        except OSError as error:
            self._switch_off(error)
        while True:
            job = self._jobs.get()
            if job is None:
                break
            if isinstance(job, threading.Event):
                job.set()
                continue
            try:
                if isinstance(job, _Heal):
                    self._heal(job)
                elif not self._off():
                    self._put(job)
            except OSError as error:
                self._switch_off(error)
            except Exception:
                log.exception("the disk cache could not take in a block")
            finally:
                if isinstance(job, _Put):
                    with self._lock:
                        self._queued -= len(job.data)
                del job  # and with it the block's memory
        if self._files is not None:
            self._files.close()

    def _begin(self) -> Folder:
        """Open the folder, count what is there, and bring it within the limit."""
        if self._files is None:
            files = Folder(self.folder)
            with files.locked():
                files.count()
                self.evictions += files.make_room(0, self.limit)[1]
            self._files = files
        return self._files

    def _heal(self, job: _Heal) -> None:
        files = self._begin()
        with files.locked():
            files.heal(job.name)

    def _put(self, job: _Put) -> None:
        files = self._begin()
        offset, stop = job.offset, job.offset + len(job.data)
        while offset < stop:
            index = offset // SEGMENT
            end = min(stop, (index + 1) * SEGMENT)
            with files.locked():
                self._put_segment(files, job, index, offset, end)
            offset = end

    def _put_segment(self, files: Folder, job: _Put, index: int, start: int, stop: int) -> None:
        """Write the part [start, stop) of a block. Bytes are counted as used before they are, so that a crash leaves the count
        too high, never too low.
        """
        name = name_of(job.digest, index)
        path = files.file(name)
        counted, before, keep = NEW, 0, False
        files.add_used(counted)
        try:
            fd, new = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), False
        except FileNotFoundError:
            fd, new = files.create(), True
        current = NEW_FILE if new else name
        try:
            segment = Segment(fd, job.digest, index, job.size)
            if new:
                segment.create()
            else:
                before = _disk(fd)
            segment.load()
            runs = segment.missing(start, stop)
            keep = not new
            if runs:
                cost = segment.cost(runs)
                room, evicted = files.make_room(cost, self.limit, current, counted)
                self.evictions += evicted
                if room:
                    files.add_used(cost)
                    counted += cost
                    # The page cache costs more processor time, but takes in what the disk is too slow for.
                    segment.write(job.offset, job.data, runs, direct=self._queued < self._queue_bytes // 2)
                    self.bytes_written += sum(run.piece * run.count for run in runs)
                    if new:
                        files.publish(name)  # whoever reads sees all of it or nothing
                        keep = True
        except Damaged:
            pass  # it goes; the next one who reads these bytes brings them back
        finally:
            if not keep:
                files.discard(current)
            files.add_used((_disk(fd) if keep else 0) - before - counted)
            os.close(fd)

    # -- off ------------------------------------------------------------------------------------------------------------

    def _off(self) -> bool:
        return time.monotonic() < self._off_until

    def _switch_off(self, error: OSError) -> None:
        if self._off():
            return
        self._off_until = time.monotonic() + OFF_SECONDS
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        log.warning("the disk cache in %s is off for %.0f s: %s", self.folder, OFF_SECONDS, why)


def _disk(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512
