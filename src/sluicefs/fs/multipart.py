"""Multipart uploads of one mount: parts that are sent while their file is still written, and the rest of them at the end.

Every method is called with the file's lock held, so a file has one upload at a time. It decides neither when a file is sent nor
what becomes of one that cannot be.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sluicefs.errors import CancelledError, ConditionFailedError, NotFoundError, StoreError, UnreachableError
from sluicefs.fs import parts
from sluicefs.fs.draft import Draft
from sluicefs.fs.parts import Plan
from sluicefs.fs.room import Room
from sluicefs.store.api import joined_etag

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

# So many parts of one file are on their way at once; the pool may run more for several files.
IN_FLIGHT = 8
COPY_RATE = 32 * parts.MiB  # bytes a second of `--timeout` that one copied part may have; a copy has four times as long
REPORT = 30.0  # seconds between two lines in the log about a long upload


@dataclass(slots=True)
class Stream:
    """A multipart upload under way. Parts are counted from 0 here."""

    key: str
    upload_id: str
    plan: Plan
    metadata: dict[str, str]
    content_type: str
    done: dict[int, str] = field(default_factory=dict)
    pending: dict[int, Future[str]] = field(default_factory=dict)
    staged: set[int] = field(default_factory=set)  # chunks whose bytes went into the staging file as they were sent
    next: int = 0  # parts below it have been sent once
    for_change: bool = False  # its parts are as large as the server can copy them
    given_up: bool = False  # parts that are queued need not be sent any more


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a file may take to be sent: in the background until somebody wants to write, or to a deadline."""

    draft: Draft
    background: bool = False
    deadline: float = math.inf

    def check(self) -> None:
        """Raises CancelledError: enough."""
        if self.background and self.draft.wanted:
            raise CancelledError("the file is being changed")
        if time.monotonic() > self.deadline:
            raise CancelledError("the time given for pending uploads is over", errno=errno.ETIMEDOUT)


class Multipart:
    """Streams by draft."""

    def __init__(self, core: Core, threads: int, memory: int):
        self.core = core
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="upload")
        self.streams: dict[Draft, Stream] = {}
        self.composing = Room(memory // 8)  # bodies that had to be composed in memory, over all files

    def begin(self, draft: Draft, key: str, plan: Plan, metadata: dict[str, str], content_type: str) -> Stream:
        upload_id = self.core.store.create_upload(key, metadata=metadata, content_type=content_type)
        # What the base shows is copied at the end; only what lies wholly behind it can be sent before.
        first = -(-draft.base_limit // plan.part_size)
        stream = self.streams[draft] = Stream(key, upload_id, plan, metadata, content_type, next=first)
        return stream

    def begin_at_end(self, draft: Draft, key: str, metadata: dict[str, str], content_type: str) -> Stream:
        """Begin the upload of all of a draft, of which nothing has been sent yet."""
        if draft.base is None or draft.base_gone or not draft.base_limit:
            return self.begin(draft, key, parts.plan_for(draft.size, draft.part_size), metadata, content_type)
        largest = min(parts.MAX_COPY, int(self.core.config.timeout * COPY_RATE))
        plan = parts.plan_change(draft.size, draft.part_size, draft.changed, largest)
        stream = self.begin(draft, key, plan, metadata, content_type)
        stream.for_change = True
        return stream

    def drop_unsuited(self, draft: Draft) -> None:
        """An upload that could not be ended, of a file that was changed since, may have parts too large to be sent again."""
        stream = self.streams.get(draft)
        if stream is not None and stream.for_change and not parts.suits_change(stream.plan, draft.size, draft.changed):
            self.abandon(draft)

    # -- while the file is written --------------------------------------------------------------------------------------

    def send_full_parts(self, draft: Draft, stream: Stream) -> None:
        """Send the parts that are full and lie before the last byte: what comes after them must not be larger."""
        self.reap(draft, stream)
        while len(stream.pending) < IN_FLIGHT * 4:
            start, end = stream.plan.span(stream.next, draft.size)
            if not draft.can_be_sent(start, end, stream.plan.chunks):
                return
            body = draft.body(start, end)
            job = self._send_chunk if draft.extents.sending(stream.next) and stream.plan.chunks == 1 else self._send_part
            stream.pending[stream.next] = self.pool.submit(job, draft, stream, stream.next, body)
            stream.next += 1

    def _send_chunk(self, draft: Draft, stream: Stream, index: int, body: memoryview) -> str:
        """Send a chunk as it lies in memory; where memory is half full, it goes to the staging file too and leaves memory then.

        Its bytes are needed until the upload is complete, and that may fail: they must be somewhere.
        """
        with body:
            if not stream.given_up and self.core.dirty.used > self.core.dirty.limit // 2:
                draft.stage(body, index * stream.plan.part_size)
                stream.staged.add(index)
            return self._upload(stream, index, body)

    def _send_part(self, draft: Draft, stream: Stream, index: int, body: memoryview) -> str:
        with body:
            return self._upload(stream, index, body)

    def _upload(self, stream: Stream, index: int, body: memoryview) -> str:
        if stream.given_up:
            raise CancelledError("the upload was given up")
        return self.core.store.upload_part(stream.key, stream.upload_id, index + 1, body)

    def reap(self, draft: Draft, stream: Stream, wait_for: int | None = None) -> None:
        """Take in parts that have been sent; wait for one of them if asked to."""
        if wait_for is not None:
            stream.pending[wait_for].exception()
        for index, future in list(stream.pending.items()):
            if not future.done():
                continue
            del stream.pending[index]
            staged = index in stream.staged
            stream.staged.discard(index)
            error = future.exception()
            if error is None:
                stream.done[index] = future.result()
                if staged:
                    draft.sent(index)
            elif not stream.given_up:
                log.warning("part %d of %s: %s; it is sent again at close", index + 1, stream.key, error)

    def keeps_sent(self, draft: Draft) -> bool:
        """Is the first chunk in memory one that was sent already?"""
        stream = self.streams.get(draft)
        chunks = draft.extents.indices()
        return stream is not None and stream.plan.chunks == 1 and bool(chunks) and chunks[0] in stream.done

    def outgrown(self, draft: Draft, end: int) -> bool:
        """Has the file's upload no part left for a write that ends at `end`?"""
        stream = self.streams.get(draft)
        return stream is not None and end > stream.plan.capacity

    def before_write(self, draft: Draft, offset: int, length: int) -> None:
        """The parts a write touches must not be under way, and count no longer."""
        stream = self.streams.get(draft)
        if stream is None:
            return
        for index in stream.plan.touched(offset, length):
            if index in stream.pending:
                self.reap(draft, stream, wait_for=index)
            stream.done.pop(index, None)

    def before_truncate(self, draft: Draft, size: int) -> None:
        """Parts from the cut on count no longer."""
        stream = self.streams.get(draft)
        if stream is None:
            return
        low = min(size, draft.size) // stream.plan.part_size
        for index in [index for index in stream.pending if index >= low]:
            if index in stream.pending:
                self.reap(draft, stream, wait_for=index)
        for index in [index for index in stream.done if index >= low]:
            del stream.done[index]
        stream.next = min(stream.next, low)

    # -- at the end -------------------------------------------------------------------------------------------------------

    def finish(self, draft: Draft, stream: Stream, condition: str | None, patience: Patience | None = None) -> str:
        """Send what is missing and complete the upload; returns the ETag. The draft keeps its bytes whatever happens.

        A refusal aborts the upload; where the store could not be reached, the parts it has wait for the next try. So they do
        for the CancelledError of `patience`.
        """
        self._wait(draft, stream, patience)
        count = stream.plan.count(draft.size)
        try:
            self._send_rest(draft, stream, [index for index in range(count) if index not in stream.done], patience)
            if condition is not None:  # the second look: not every store heeds the condition below
                self._look_at_base(draft)
            sent = [(index + 1, stream.done[index]) for index in range(count)]
            draft.lands(joined_etag(sent) or "")  # a crash right after it must not send it again
            etag = self.core.store.complete_upload(stream.key, stream.upload_id, sent, if_match=condition)
        except (CancelledError, UnreachableError):
            raise
        except BaseException as error:
            self.abandon(draft)
            if condition is not None and isinstance(error, StoreError):
                self._look_at_base(draft)  # a shorter object, for one, cannot be copied from
            raise
        del self.streams[draft]
        return etag

    def _wait(self, draft: Draft, stream: Stream, patience: Patience | None = None) -> None:
        for index in list(stream.pending):
            if patience is not None:
                patience.check()
            if index in stream.pending:
                self.reap(draft, stream, wait_for=index)

    def _send_rest(self, draft: Draft, stream: Stream, todo: list[int], patience: Patience | None) -> None:
        """The missing parts: copied by the server where the base still shows, else composed and sent, a few at a time."""
        running: dict[int, Future[str]] = {}
        checked = False
        reported = time.monotonic()
        copies = [index for index in todo if draft.unchanged(*stream.plan.span(index, draft.size))]
        # A few copies run while what must be fetched is composed; the others follow.
        first, later = set(copies[: IN_FLIGHT - 1]), set(copies[IN_FLIGHT - 1 :])
        todo = sorted(todo, key=lambda index: (index in later, index not in first))
        try:
            for index in todo:
                if time.monotonic() - reported > REPORT:
                    reported = time.monotonic()
                    log.info("sending %s: %d of %d parts", stream.key, len(stream.done), stream.plan.count(draft.size))
                if patience is not None:
                    patience.check()
                while len(running) >= IN_FLIGHT:
                    self._take_first(stream, running)
                start, end = stream.plan.span(index, draft.size)
                if draft.unchanged(start, end):
                    assert draft.base is not None
                    if not checked:  # a copied part carries no condition on R2: looked at before and after
                        checked = True
                        self._look_at_base(draft)
                    running[index] = self.pool.submit(
                        self.core.store.copy_part, stream.key, stream.upload_id, index + 1, draft.base.key, start, end - start
                    )
                else:
                    running[index] = self._submit_body(draft, stream, index, start, end)
            while running:
                self._take_first(stream, running)
        finally:
            for index, future in running.items():
                if future.exception() is None:
                    stream.done[index] = future.result()

    def _look_at_base(self, draft: Draft) -> None:
        """Raises ConditionFailedError where the bucket has another object there, or none."""
        assert draft.base is not None
        try:
            there = self.core.store.head(draft.base.key).etag
        except NotFoundError:
            there = ""
        if there != draft.base.etag:
            raise ConditionFailedError(f"{draft.base.key} was replaced or deleted by someone else")

    def _submit_body(self, draft: Draft, stream: Stream, index: int, start: int, end: int) -> Future[str]:
        if draft.in_one_piece(start, end):
            return self.pool.submit(self._send_part, draft, stream, index, draft.body(start, end))
        self.composing.take(end - start)
        try:
            future = self.pool.submit(self._send_part, draft, stream, index, draft.body(start, end))
        except BaseException:
            self.composing.give(end - start)
            raise
        future.add_done_callback(lambda _: self.composing.give(end - start))
        return future

    def _take_first(self, stream: Stream, running: dict[int, Future[str]]) -> None:
        first = next(iter(running))
        future = running[first]
        future.exception()
        del running[first]
        stream.done[first] = future.result()

    def abandon(self, draft: Draft) -> None:
        """Abort the upload of a draft, if it has one. Its bytes stay in memory and staging."""
        stream = self.streams.pop(draft, None)
        if stream is None:
            return
        stream.given_up = True
        self._wait(draft, stream)
        try:
            self.core.store.abort_upload(stream.key, stream.upload_id)
        except StoreError as error:
            log.warning("the upload of %s could not be aborted; the next mount tries again: %s", stream.key, error)

    def replan(self, draft: Draft, stream: Stream, metadata: dict[str, str], content_type: str) -> Stream:
        """The file outgrew its parts: begin again with larger ones, from the staging file."""
        log.info("%s outgrew %d parts of %d bytes", stream.key, parts.MAX_PARTS, stream.plan.part_size)
        self.abandon(draft)
        return self.begin(draft, stream.key, parts.plan_ahead(draft.size, draft.part_size), metadata, content_type)

    def close(self) -> None:
        for draft in list(self.streams):
            self.abandon(draft)
        self.pool.shutdown()
