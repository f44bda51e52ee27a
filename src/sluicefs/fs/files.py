"""Open files: reading, writing, and when what was written is sent.

A handle follows its node: after this mount's own commit it reads the new version; a version that somebody else replaced ends in
ESTALE, never in a mixture.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sluicefs.engine import Reader
from sluicefs.errors import CancelledError
from sluicefs.fs.draft import Draft, ReadBase
from sluicefs.fs.fetching import INLINE, WAITED, GoneError
from sluicefs.fs.nodes import FileState, Node, Version
from sluicefs.fs.sendattributes import AttributeSender
from sluicefs.fs.walk import SMALL
from sluicefs.fs.writeback import WriteBack

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

LARGEST_READ = 128 * 1024  # bytes: the kernel asks for no more at once

# Files sent at once when everything has to be.
SYNC_THREADS = 16

# A block can be evicted or taken back between being asked for and being read; so often in a row only if something is wrong.
ROUNDS = 100


class Handle:
    """One open file description."""

    __slots__ = ("node", "reader", "state", "version", "writable")

    def __init__(self, node: Node, writable: bool):
        self.node = node
        self.state: FileState = node.file
        self.writable = writable
        self.reader: Reader | None = None
        self.version: Version | None = None

    def try_read(self, offset: int, length: int) -> memoryview | bytes | None:
        """The bytes if they are in memory, without waiting for anything; else None."""
        state = self.state
        if state.draft is not None or state.version is not self.version or self.reader is None:
            return None
        return self.reader.try_read(offset, length)


class Files:
    """The verbs on open files."""

    def __init__(self, core: Core):
        self.core = core
        self.attributes = AttributeSender(core, self.rebase)
        self.writeback = WriteBack(core, self._new_draft)
        core.committer.attributes_changed = self.attributes.changed
        core.committer.draft_of = self.draft
        core.committer.reads_of = self._reads_of

    def open(self, node: Node, flags: int) -> Handle:
        """Open a regular file. OSError ESTALE where the object was replaced: look the name up again."""
        writable = (flags & os.O_ACCMODE) != os.O_RDONLY
        if node.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if writable and self.core.config.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not (writable and flags & os.O_TRUNC):
            self._check_version(node, writable)
        handle = self.attach(node, writable)
        if writable and flags & os.O_TRUNC:
            try:
                self.truncate(node, 0)
            except BaseException:
                self.release(handle)
                raise
        return handle

    def _check_version(self, node: Node, writable: bool) -> None:
        """Is the object still the one that `node` stands for? A small one is asked by fetching it: it will be read anyway."""
        core = self.core
        if not writable and node.etag is not None and 0 < node.size <= SMALL and node.draft is None:
            core.walks.opened(node)
            if core.first_reads.waiting and node.parent is not None:
                core.first_reads.opened(core.key_of(node))
            if time.monotonic() - node.checked > core.config.attr_ttl:
                version = core.directories.version_of(node)
                if not version.blocks.covers(0, node.size):
                    try:
                        self.read_version(self.reader(version), version, 0, node.size)
                    except OSError as error:
                        if error.errno != errno.ESTALE:
                            raise
                        core.directories.replaced(node)
                        raise
        core.directories.refresh(node)

    def attach(self, node: Node, writable: bool) -> Handle:
        with self.core.lock:
            handle = Handle(node, writable)
            handle.state.opens += 1
            handle.state.writers += writable
            return handle

    def release(self, handle: Handle) -> None:
        """The last reference to the description is gone. Data that came after the last flush (mmap) is sent here."""
        state, node = handle.state, handle.node
        if handle.reader is not None:
            handle.reader.close()
        with self.core.lock:
            state.writers -= handle.writable
            last_writer = handle.writable and not state.writers
        if last_writer and state.draft is not None and not node.unlinked:
            try:
                with state.lock:
                    self._store(node)
            except OSError as error:
                log.error("%s could not be sent when it was closed; it is kept and tried again: %s", node.name, error)
        with self.core.lock:
            state.opens -= 1
            last = not state.opens
        if last and node.unlinked:
            with state.lock:
                self.core.committer.discard(node)
        if last:
            with self.core.lock:
                self.core.table.drop_if_unused(node)

    # -- reading --------------------------------------------------------------------------------------------------------

    def read(self, handle: Handle, offset: int, length: int, *, tried: bool = False) -> memoryview | bytes | bytearray:
        """Up to `length` bytes; waits for the bucket where it must. `tried`: `handle.try_read` was asked just before."""
        node, state = handle.node, handle.state
        while (draft := state.draft) is not None:
            data = self._read_draft(node, draft, offset, length)
            if data is not None:
                return data
        reader, version = handle.reader, handle.version
        if reader is None or version is None or version is not state.version:
            reader, version = self._follow(handle)
            tried = False
        return self.read_version(reader, version, offset, length, node, tried=tried)

    def _read_draft(self, node: Node, draft: Draft, offset: int, length: int) -> bytes | bytearray | None:
        """Bytes of unsent data, without waiting for an upload of it. None: it is in the bucket now."""
        key = draft.base.key if draft.base is not None else ""
        try:
            return draft.read(offset, length)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            with node.file.lock:
                if draft.base is not None and draft.base.key != key:  # it was just being renamed
                    return draft.read(offset, length)
            raise

    def _follow(self, handle: Handle) -> tuple[Reader, Version]:
        """Let a handle read the version its node stands for now."""
        version = self.core.directories.version_of(handle.node)
        with self.core.lock:
            if handle.reader is None or handle.version is not version:
                if handle.reader is not None:
                    handle.reader.close()
                handle.version, handle.reader = version, self.reader(version)
            return handle.reader, version

    def reader(self, version: Version) -> Reader:
        return Reader(version.blocks, version.size, self.core.fetcher.queue_for(version))

    def read_version(
        self, reader: Reader, version: Version, offset: int, length: int, node: Node | None = None, *, tried: bool = False
    ) -> memoryview | bytes:
        """Bytes of one version, from memory or the bucket. ESTALE when the bucket has it no more. `tried`: memory was asked."""
        data = None if tried else reader.try_read(offset, length)
        try:
            for _ in range(ROUNDS):
                if data is not None:
                    break
                try:
                    data = self._fetched(reader, version, offset, length)
                except GoneError as gone:
                    if (gone.key, gone.etag) == (version.key, version.etag):
                        raise
                    # It was just being renamed, or fetched ahead under its old name: it is there under the new one.
        except GoneError as error:
            if node is not None:
                self.core.directories.replaced(node)
            raise OSError(errno.ESTALE, f"{version.key} was replaced or deleted while it was open") from error
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, f"{version.key}: {error}") from error
        if data is None:
            raise OSError(
                errno.EIO, f"{version.key}: the bytes at {offset} left memory {ROUNDS} times before they could be read"
            )
        return data

    def _fetched(self, reader: Reader, version: Version, offset: int, length: int) -> memoryview | bytes | None:
        """Bytes that had to be fetched, or were under way. None: they left memory before they could be read."""
        bound = self.core.config.timeout * 3 + 5  # a fetch ends by itself before; this is the net below it
        mine = reader.demand(offset, length)
        enqueue = self.core.fetcher.queue_for(version)
        for block in mine[1:]:
            enqueue(block, True)
        if mine:
            needed = offset + length - mine[0].offset
            if mine[0].size <= min(INLINE, needed + WAITED):
                self.core.fetcher.fetch(version, mine[0])
            else:
                enqueue(mine[0], True)
        data = reader.collect(offset, length, bound)
        for block in mine if data is None else ():
            # It failed before anybody could wait for it. (Read-ahead taken back is no failure: ask again.)
            if block.error is not None and not isinstance(block.error, CancelledError):
                raise block.error
        return data

    # -- writing --------------------------------------------------------------------------------------------------------

    def draft(self, node: Node) -> Draft:
        """The draft of a node, begun now if there is none. The file's lock is held."""
        if (draft := node.draft) is None:
            base = self.core.directories.version_of(node) if node.etag is not None else None
            draft = self._begin(node, base)
        return draft

    def _begin(self, node: Node, base: Version | None) -> Draft:
        """A draft of a file that has none. OSError ESTALE where another object has its name: nobody would ever send it."""
        draft = self._new_draft(base, node.size if base else 0)
        with self.core.lock:  # no file with a draft is taken out of the tree
            if node.parent is None and not node.unlinked:
                raise OSError(errno.ESTALE, f"{node.name} was replaced or deleted by someone else")
            node.file.draft = draft
        return draft

    def _new_draft(self, base: Version | None, size: int) -> Draft:
        return Draft(
            base,
            size,
            part_size=self.core.config.part_size,
            memory=self.core.dirty,
            staging=self.core.staging,
            read_base=self._reads_of(base) if base is not None else None,
        )

    def _reads_of(self, base: Version) -> ReadBase:
        """How a draft reads the version it is based on."""
        reader = self.reader(base)

        def read_base(offset: int, length: int) -> object:
            # Whoever composes a part asks for all he wants; what an application reads may be read ahead of.
            return self.read_version(reader, base, offset, length, tried=length > LARGEST_READ)

        return read_base

    def begin_new(self, node: Node) -> None:
        """A file that was just created: an empty draft, sent at close even if nothing is written."""
        node.file.draft = self._new_draft(None, 0)

    def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Take in bytes; returns how many. Waits only where memory is full."""
        node, state = handle.node, handle.state
        with self.wanted(state):
            draft = self.core.committer.before_write(node, self.draft(node), offset, len(data))
            draft.write(offset, data)
            node.size = draft.size
            node.mtime_ns = node.ctime_ns = time.time_ns()
            self.core.committer.progress(node, draft)
        return len(data)

    def truncate(self, node: Node, size: int) -> None:
        """Set the size; sent at once if nobody has the file open for writing."""
        state = node.file
        if self.core.config.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        with self.wanted(state):
            draft = self._begin(node, None) if size == 0 and state.draft is None else self.draft(node)
            self.core.committer.before_truncate(draft, size)
            draft.truncate(size)
            node.size = size
            node.mtime_ns = node.ctime_ns = time.time_ns()
            if not state.writers:
                self._store(node)

    @contextmanager
    def wanted(self, state: FileState) -> Iterator[None]:
        """The file's lock. An upload in the background gives way to whoever changes the file."""
        if not state.lock.acquire(blocking=False):
            draft = state.draft
            if draft is not None:
                draft.wanted += 1
            try:
                state.lock.acquire()
            finally:
                if draft is not None:
                    draft.wanted -= 1
        try:
            yield
        finally:
            state.lock.release()

    def _store(self, node: Node) -> None:
        """Make what was written safe as `--write-mode` says: in the bucket, or on local disk. The file's lock is held."""
        if self.core.config.write_mode == "back":
            self.writeback.store(node)
        else:
            self.core.committer.commit(node)

    def flush(self, handle: Handle) -> None:
        """close(2) of one descriptor: 0 only when the data is safe."""
        if handle.writable:
            self.sync(handle.node)

    def sync(self, node: Node) -> None:
        """fsync(2): data and attributes are safe, or an error says why not."""
        state = node.file
        with self.wanted(state):
            self._store(node)
            if state.attributes_due:
                self.attributes.send(node)

    def upload(self, node: Node, deadline: float = math.inf) -> None:
        """Data and attributes are in the bucket, whatever the mode, or an error says why not. `deadline`: monotonic seconds."""
        state = node.file
        with self.wanted(state):  # else the deadline would begin when an upload in the background ends
            self.core.committer.commit(node, deadline=deadline)
            if state.attributes_due:
                self.attributes.send(node)

    def renamed_unsent(self, node: Node, old_key: str, replaces: bool, covers: str | None) -> None:
        """A file that was never sent has another name now; `replaces`: an object is there, `covers` as a draft has it.

        The file's lock is held.
        """
        draft = node.draft
        if draft is None:
            return
        had, draft.replaces, draft.covers = draft.replaces, replaces, covers
        if replaces:  # the old content must not stay under a name that now means another file
            if self.core.config.write_mode == "back":
                draft.version += 1  # the record has to say so
            self._store(node)
        else:
            self.core.committer.moved(node)
        if had:
            self.core.store.delete(old_key)

    def rebase(self, node: Node, key: str, etag: str) -> None:
        """The same bytes are now under another key or ETag (a server-side copy): what is cached stays good."""
        node.etag = etag
        node.checked = time.monotonic()
        self.reads_from(node, key, etag)
        if node.parent is not None:
            self.core.directories.note_file(node)

    def reads_from(self, node: Node, key: str, etag: str, *, moving: bool = False) -> None:
        """From now on the bytes of a file's version are fetched there. `moving`: the node gets to know later."""
        state = node.file
        if state.version is not None:  # in place: the draft on top of it, open handles and queued fetches all hold this one
            state.version.etag = etag
            self.core.fetcher.adopt(key, state.version)
        elif state.opens:  # its first read may come before it has its new name
            state.version = self.core.version(key, etag, node.size_in_bucket)
        if state.version is not None:
            state.version.moving = moving

    # -- the end --------------------------------------------------------------------------------------------------------

    def dirty_nodes(self) -> list[Node]:
        """Files with unsent data or attributes."""
        with self.core.lock:
            found = []
            for node in self.core.table.by_ino.values():
                state = node.state
                if not isinstance(state, FileState) or node.unlinked:
                    continue
                if state.draft is not None or state.attributes_due:
                    found.append(node)
            return found

    def sync_all(self, deadline: float = math.inf) -> list[tuple[Node, OSError]]:
        """Send everything, several files at a time, until `deadline` (monotonic seconds); returns what could not be sent."""
        nodes = self.dirty_nodes()
        failed: list[tuple[Node, OSError]] = []
        waiting = iter(nodes)

        def work() -> None:
            for node in waiting_one_by_one():
                try:
                    if time.monotonic() > deadline:
                        raise OSError(errno.ETIMEDOUT, "the time given for pending uploads is over")
                    self.upload(node, deadline)
                except OSError as error:
                    failed.append((node, error))
                with self.core.lock:
                    self.core.table.drop_if_unused(node)

        def waiting_one_by_one() -> Iterator[Node]:
            while True:
                with self.core.lock:
                    node = next(waiting, None)
                if node is None:
                    return
                yield node

        threads = [threading.Thread(target=work, name=f"sync-{i}") for i in range(min(SYNC_THREADS, len(nodes)) - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        return failed

    def unsent(self) -> int:
        """Bytes written that the bucket does not have."""
        return sum(node.draft.unsent for node in self.dirty_nodes() if node.draft is not None)

    def take_over(self, *, everything: bool = False) -> None:
        """What mounts that crashed left is here again, and sent; `everything` is sent when `sync_all` is called."""
        for node in self.writeback.take_over(everything=everything):
            if not everything:
                self.writeback.schedule(node, 0.0)

    def close(self) -> None:
        """Send pending attributes and end the threads. Data that could not be sent is kept on disk."""
        self.writeback.close()
        self.attributes.close()
        for node in self.dirty_nodes():
            with node.file.lock:
                if node.draft is not None:
                    self.core.committer.keep(node, node.draft, OSError(errno.EIO, "the mount ended before it was sent"))
                    self.core.committer.abandon_of(node)
                    node.draft.let_go()
