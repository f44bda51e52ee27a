"""Sends drafts to the bucket: whole small files in one request, long ones in equal parts while they are still being written.

Every method is called with the file's lock held, so a file has one upload at a time. A draft leaves memory and staging only
when the bucket has answered for it.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sluicefs.errors import StoreError
from sluicefs.fs.draft import Draft
from sluicefs.fs.nodes import Node

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Streaming:
    """A multipart upload that runs while its file is written. Part numbers are chunk indices + 1."""

    key: str
    upload_id: str
    done: dict[int, str] = field(default_factory=dict)
    pending: dict[int, Future[str]] = field(default_factory=dict)
    next: int = 0  # chunks below it have been sent once


class Committer:
    """Uploads of one mount."""

    def __init__(self, core: Core, threads: int):
        self.core = core
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="upload")
        self.streams: dict[Draft, Streaming] = {}
        self._lock = threading.Lock()

    # -- while writing ------------------------------------------------------------------------------------------------

    def progress(self, node: Node, draft: Draft) -> None:
        """After a write: send the parts that are full, and hold the writer back while memory is full."""
        if draft.base_limit == 0 and draft.size > draft.part_size:
            self._send_full_parts(node, draft)
        while self.core.dirty.full:
            stream = self.streams.get(draft)
            if stream is not None and stream.pending:
                self._reap(draft, stream, wait_for=min(stream.pending))
            elif not draft.spill():
                return

    def before_write(self, draft: Draft, offset: int, length: int) -> None:
        """The chunks a write touches must not be under way, and parts sent of them count no longer."""
        stream = self.streams.get(draft)
        if stream is None:
            return
        size = draft.part_size
        for index in range(offset // size, (offset + max(length, 1) - 1) // size + 1):
            if index in stream.pending:
                self._reap(draft, stream, wait_for=index)
            stream.done.pop(index, None)

    def before_truncate(self, draft: Draft, size: int) -> None:
        """Parts from the cut on count no longer."""
        stream = self.streams.get(draft)
        if stream is None:
            return
        low = min(size, draft.size) // draft.part_size
        for index in [index for index in stream.pending if index >= low]:
            self._reap(draft, stream, wait_for=index)
        for index in [index for index in stream.done if index >= low]:
            del stream.done[index]

    def _send_full_parts(self, node: Node, draft: Draft) -> None:
        stream = self.streams.get(draft)
        if stream is None:
            if node.parent is None or not draft.extents.covers(0, draft.part_size):
                return
            key = self.core.key_of(node)
            metadata, content_type = self.metadata_of(node)
            upload_id = self.core.store.create_upload(key, metadata=metadata, content_type=content_type)
            stream = self.streams[draft] = Streaming(key, upload_id)
        self._reap(draft, stream)
        for index in range(stream.next, draft.size // draft.part_size):
            start = index * draft.part_size
            if start + draft.part_size >= draft.size or not draft.extents.covers(start, start + draft.part_size):
                return
            view = draft.extents.view(index, 0, draft.part_size)
            stream.pending[index] = self.pool.submit(self._send_chunk, draft, stream, index, view)
            stream.next = index + 1

    def _send_chunk(self, draft: Draft, stream: Streaming, index: int, view: memoryview) -> str:
        with view:
            draft.stage(view, index * draft.part_size)
            return self.core.store.upload_part(stream.key, stream.upload_id, index + 1, view)

    def _reap(self, draft: Draft, stream: Streaming, wait_for: int | None = None) -> None:
        """Take in parts that have been sent; wait for one of them if asked to."""
        if wait_for is not None:
            stream.pending[wait_for].exception()
        for index, future in list(stream.pending.items()):
            if not future.done():
                continue
            del stream.pending[index]
            error = future.exception()
            if error is None:
                stream.done[index] = future.result()
                start = index * draft.part_size
                draft.mark_staged(index, start, start + draft.part_size)
            else:
                log.warning("part %d of %s: %s; it is sent again at close", index + 1, stream.key, error)

    # -- at close, fsync, unmount ---------------------------------------------------------------------------------------

    def commit(self, node: Node) -> None:
        """Make the bucket have what the file shows. Raises StoreError; the draft is kept then."""
        draft = node.draft
        if draft is None:
            return
        if node.unlinked or node.parent is None:
            return  # nothing to keep: its name is gone, its bytes live as long as it is open
        try:
            self._commit_to(node, draft, self.core.key_of(node))
        except OSError as error:
            if error.errno == errno.ESTALE:  # the store refused, or the base could not be read any more
                self._keep_conflict(node, draft, error)
            raise

    def _commit_to(self, node: Node, draft: Draft, key: str) -> None:
        if node.parent is not None and self.core.stored.differs(node):
            self.core.stored.announce(node.parent)
        metadata, content_type = self.metadata_of(node)
        condition = None if draft.replaced or draft.base is None else draft.base.etag
        stream = self.streams.get(draft)
        if stream is not None and stream.key != key:
            self.abandon(draft)
            stream = None
        if stream is None and draft.size <= 2 * draft.part_size:
            etag = self.core.store.put(
                key, self._whole(draft), metadata=metadata, content_type=content_type, if_match=condition
            )
        else:
            etag = self._finish_upload(draft, stream, key, metadata, content_type, condition)
        self._committed(node, draft, key, etag, metadata)

    def _whole(self, draft: Draft) -> object:
        """The file's bytes as one buffer, without a copy where they lie in one chunk."""
        if 0 < draft.size <= draft.part_size and draft.extents.covers(0, draft.size):
            return draft.extents.view(0, 0, draft.size)
        body = bytearray(draft.size)
        draft.fill(0, body)
        return body

    def _finish_upload(
        self,
        draft: Draft,
        stream: Streaming | None,
        key: str,
        metadata: dict[str, str],
        content_type: str,
        condition: str | None,
    ) -> str:
        store, size = self.core.store, draft.part_size
        if stream is None:
            stream = Streaming(key, store.create_upload(key, metadata=metadata, content_type=content_type))
            self.streams[draft] = stream
        for index in list(stream.pending):
            if index in stream.pending:
                self._reap(draft, stream, wait_for=index)
        count = max(1, -(-draft.size // size))
        todo = [index for index in range(count) if index not in stream.done]
        try:
            self._send_rest(draft, stream, todo)
            parts = [(index + 1, stream.done[index]) for index in range(count)]
            etag = store.complete_upload(key, stream.upload_id, parts, if_match=condition)
        except Exception:
            self.abandon(draft)
            raise
        del self.streams[draft]
        return etag

    def _send_rest(self, draft: Draft, stream: Streaming, todo: list[int]) -> None:
        """The missing parts: copied by the server where the base still shows, else composed and sent, a few at a time."""
        size = draft.part_size
        running: dict[int, Future[str]] = {}
        try:
            for index in todo:
                start, end = index * size, min((index + 1) * size, draft.size)
                if draft.base is not None and end <= draft.base_limit and not draft.changed.touches(start, end):
                    running[index] = self.pool.submit(
                        self.core.store.copy_part, stream.key, stream.upload_id, index + 1, draft.base.key, start, end - start
                    )
                else:
                    body = bytearray(end - start)
                    draft.fill(start, body)
                    running[index] = self.pool.submit(
                        self.core.store.upload_part, stream.key, stream.upload_id, index + 1, body
                    )
                    del body
                while len(running) >= 4:
                    first = next(iter(running))
                    stream.done[first] = running.pop(first).result()
            while running:
                first = next(iter(running))
                stream.done[first] = running.pop(first).result()
        finally:
            for future in running.values():
                future.exception()

    def _committed(self, node: Node, draft: Draft, key: str, etag: str, metadata: dict[str, str]) -> None:
        core = self.core
        size = draft.size
        with core.lock:
            node.etag = etag
            node.size = size
            node.metadata = metadata
            node.complete = True
            node.checked = time.monotonic()
            state = node.file
            state.version = core.version(key, etag, size)
            state.draft = None
            if node.parent is not None:
                core.directories.note_file(node)
        if size <= core.keep_written and draft.extents.covers(0, size) and size:
            with draft.extents.view(0, 0, size) as view:
                state.version.blocks.insert(0, view)
        draft.close()

    def abandon(self, draft: Draft) -> None:
        """Abort the multipart upload of a draft, if it has one. Its bytes stay in memory and staging."""
        stream = self.streams.pop(draft, None)
        if stream is None:
            return
        for index in list(stream.pending):
            if index in stream.pending:
                self._reap(draft, stream, wait_for=index)
        try:
            self.core.store.abort_upload(stream.key, stream.upload_id)
        except StoreError as error:
            log.warning("the upload of %s could not be aborted, the store will drop it in time: %s", stream.key, error)

    def abandon_of(self, node: Node) -> None:
        """Abort the multipart upload of a node's draft, if there is one."""
        if node.draft is not None:
            self.abandon(node.draft)

    def discard(self, node: Node) -> None:
        """Forget what was written: the file was unlinked and its last handle closed."""
        draft = node.draft
        if draft is not None:
            self.abandon(draft)
            node.file.draft = None
            draft.close()
        aside, node.file.aside = node.file.aside, None
        if aside is not None:
            try:
                self.core.store.delete(aside)
            except StoreError as error:
                log.warning("%s, kept for a file that was open, could not be deleted: %s", aside, error)

    def metadata_of(self, node: Node) -> tuple[dict[str, str], str]:
        """(object metadata, Content-Type) of a file as it is now."""
        return self.core.stored.metadata_of(node, content_changed=True)

    def _keep_conflict(self, node: Node, draft: Draft, error: OSError) -> None:
        """Someone else changed the object this change is based on: keep ours beside it."""
        core = self.core
        with core.lock:
            parent = node.parent
            if parent is None:
                return
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            name = f"{node.name}.conflict-{socket.gethostname()}-{stamp}"
            key = core.table.prefix_of(parent) + name
        try:
            body = bytearray(draft.size)
            draft.fill(0, body)
        except (OSError, TimeoutError):  # the base is gone: only what was written here can be kept
            log.warning("%s: the version this change was based on is gone; unchanged parts of %s are zeros", node.name, key)
            body = bytearray(draft.size)
            draft.base_limit = 0
            draft.fill(0, body)
        metadata, content_type = self.metadata_of(node)
        try:
            core.store.put(key, body, metadata=metadata, content_type=content_type)
        except StoreError as failed:
            log.error("%s was changed by someone else, and our version could not be stored as %s: %s", node.name, key, failed)
            return
        log.error("%s was changed by someone else (%s): our version is kept as %s", node.name, error, key)
        with core.lock:
            node.file.draft = None
            parent.dir.listed_at = 0.0
            core.table.detach(node)
        draft.close()

    def close(self) -> None:
        self.pool.shutdown()
