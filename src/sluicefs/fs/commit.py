"""Sends drafts to the bucket: whole small files in one request, long ones in equal parts while they are still being written.

Every method is called with the file's lock held unless it says otherwise. A draft leaves memory and staging only when the
bucket has answered for it; one that cannot be sent is made to survive this process.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from sluicefs.errors import CancelledError, ConditionFailedError, NotFoundError, StoreError, UnreachableError
from sluicefs.fs import attributes, parts
from sluicefs.fs.draft import INLINE, Draft, ReadBase
from sluicefs.fs.multipart import Multipart, Patience
from sluicefs.fs.names import conflict_name
from sluicefs.fs.nodes import Node, Version
from sluicefs.staging import Base, Record
from sluicefs.store.api import Buffer, ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

SMALL_BODY = 1 << 20  # bytes: smaller ones are composed without asking for room
TIMES = ("atime", "ctime", "mtime")
DISPOSALS = 4  # threads
CLOCKS = 60.0  # seconds that this machine's clock and the store's may differ
SLOW_DISK = 5.0  # seconds: what takes longer is told
STREAM_AGAIN = 10.0  # seconds after the store refused to begin an upload
COPY_LIMIT = 5 * parts.GiB
ROUNDS = 5  # tries with a condition while others replace the same object all the time
NO_CONDITIONS = (400, 501)  # what a store answers that does not know them


class Committer:
    """Uploads of one mount."""

    def __init__(self, core: Core, threads: int, memory: int):
        self.core = core
        self.multipart = Multipart(core, threads, memory)
        self.conditions = Conditions(core)
        # Not the uploads' threads: who waits for a file's lock there may wait for one that waits for its uploads.
        self._disposals = ThreadPoolExecutor(DISPOSALS, thread_name_prefix="dispose")
        self.attributes_changed: Callable[[Node], None] = lambda node: None  # `AttributeSender` sends them
        self.reads_of: Callable[[Version], ReadBase]  # how a draft reads its base: `Files` knows
        self.draft_of: Callable[[Node], Draft]  # a node's draft, begun if there is none: `Files` makes them

    # -- while writing ------------------------------------------------------------------------------------------------

    def progress(self, node: Node, draft: Draft) -> None:
        """After a write: send the parts that are full."""
        if draft.size - draft.base_limit > draft.part_size:
            self._send_while_written(node, draft)

    def make_room(self, draft: Draft, length: int) -> None:
        """Before a write of `length` bytes: hold the writer back while memory is full. OSError ENOSPC."""
        while self.core.dirty.used + length > self.core.dirty.limit:
            stream = self.multipart.streams.get(draft)
            if stream is not None and stream.pending and not self.multipart.keeps_sent(draft):
                self.multipart.reap(draft, stream, wait_for=min(stream.pending))
            elif not self._spill(draft):
                return

    def _spill(self, draft: Draft) -> bool:
        try:
            return draft.spill()
        except OSError as error:
            # One large file that fills memory and disk must not keep small ones from being written.
            memory = self.core.dirty
            if error.errno == errno.ENOSPC and draft.extents.used <= INLINE and memory.used < memory.limit * 5 // 4:
                return False
            raise

    def _send_while_written(self, node: Node, draft: Draft) -> None:
        """Failures are no matter yet: `close` will tell, and until then the data has a place."""
        if time.monotonic() < draft.stream_again:
            return
        try:
            self._send_full_parts(node, draft)
        except OSError as error:  # the journal's too: the write was taken in, and must not be said to have failed
            draft.stream_again = time.monotonic() + STREAM_AGAIN
            log.warning("%s cannot be sent while it is written: %s", node.name, error)

    def _send_full_parts(self, node: Node, draft: Draft) -> None:
        stream = self.multipart.streams.get(draft)
        if stream is None:
            plan = parts.plan_ahead(draft.size, draft.part_size)
            first = -(-draft.base_limit // plan.part_size) * plan.part_size
            if node.parent is None or not draft.can_be_sent(first, first + plan.part_size, plan.chunks):
                return
            metadata, content_type = self._metadata_ahead(node)
            stream = self.multipart.begin(draft, self.core.key_of(node), plan, metadata, content_type)
        elif draft.size > stream.plan.capacity:
            stream = self.multipart.replan(draft, stream, *self._metadata_ahead(node))
        self.multipart.send_full_parts(draft, stream)

    def before_write(self, node: Node, draft: Draft, offset: int, length: int) -> Draft:
        """The parts a write touches must not be under way, and count no longer; returns the draft to write to.

        A file that grew out of its parts is finished, and goes on as a change of that object: what it has is copied by the
        server then, and not sent again in larger parts. OSError EFBIG, ENOSPC, and those of `commit`.
        """
        end = offset + length
        if end > parts.MAX_OBJECT:
            raise OSError(errno.EFBIG, "an object has at most 4.995 TiB")
        if offset <= draft.size and self.multipart.outgrown(draft, end):
            log.info("%s outgrew its %d parts", node.name, parts.MAX_PARTS)
            self.commit(node)
            draft = self.draft_of(node)
        self.multipart.before_write(draft, offset, length)
        self.make_room(draft, length)
        return draft

    def before_truncate(self, draft: Draft, size: int) -> None:
        """Parts from the cut on count no longer. OSError EFBIG."""
        if size > parts.MAX_OBJECT:
            raise OSError(errno.EFBIG, "an object has at most 4.995 TiB")
        self.multipart.before_truncate(draft, size)

    # -- at close, fsync, unmount ---------------------------------------------------------------------------------------

    def commit(self, node: Node, *, background: bool = False, deadline: float = math.inf) -> None:
        """Make the bucket have what the file shows. Raises OSError; the draft is kept then, and survives this process.

        ESTALE: somebody else changed the object, and what was written here is beside it. `background`: nobody waits for it, so
        CancelledError when somebody wants to write. `deadline` (monotonic seconds): a long upload ends there, with ETIMEDOUT.
        """
        draft = node.draft
        if draft is None or node.unlinked:
            return  # nothing to keep: its name is gone, its bytes live as long as it is open
        try:
            key = self.core.key_of(node)
            if draft.restored is not None and self._bucket_has_it(node, draft, draft.restored, key):
                return
            self._commit_to(node, draft, key, Patience(draft, background, deadline))
        except CancelledError:
            raise
        except OSError as error:
            # It may have arrived all the same, and has to go when the file does.
            draft.replaces, draft.covers = True, None
            if isinstance(error, StoreError) and error.landed:
                draft.landed.add(error.landed)
            # The store refused the condition, or what the change is based on can be read no more.
            if error.errno != errno.ESTALE or not self._keep_conflict(node, draft, error):
                self.keep(node, draft, error)
            raise

    def _commit_to(self, node: Node, draft: Draft, key: str, patience: Patience) -> None:
        if node.parent is not None and self.core.stored.differs(node):
            self.core.stored.announce(node.parent)
        metadata, content_type = self.metadata_of(node)
        try:
            self.announce(node, draft, metadata)
        except OSError:
            if not draft.is_saved:  # else a crash would send the same data again, and it has to go where the disk is full
                raise
        if not draft.replaces:
            draft.covers = node.etag or ""
        stream = self.multipart.streams.get(draft)
        if stream is not None and stream.key != key:
            self.multipart.abandon(draft)
        try:
            sent = self._send(draft, key, metadata, content_type, _condition(draft), patience)
        except (ConditionFailedError, NotFoundError) as error:
            if not self._landed(draft, key) and error.code != "NoSuchUpload":
                raise
            sent = self._send(draft, key, metadata, content_type, _condition(draft), patience)
        self._committed(node, draft, key, *sent)

    def announce(self, node: Node, draft: Draft, metadata: dict[str, str]) -> None:
        """The record, if there is one, says durably with which attributes a draft goes. OSError: the disk refuses.

        They tell that what a crash left was sent.
        """
        if draft.saved is None:
            return
        journal, old = draft.saved
        if not (_same_version(old.metadata, metadata) and journal.settled(old.id)):  # they were set since
            record = self.record_of(node, draft, pending=old.pending, error=old.error)
            draft.save_head(replace(record, metadata={**record.metadata, **metadata}))

    def _landed(self, draft: Draft, key: str) -> bool:
        """Is what is in the way an earlier try of this very draft, which was given up? The draft is based on that then."""
        if not draft.landed:
            return False
        try:
            there = self.core.store.head(key)
        except NotFoundError:
            return False
        if there.etag not in draft.landed:
            return False
        log.info("%s: what could not be sent before had arrived all the same", key)
        self.multipart.abandon(draft)
        self._base_on(draft, key, there)
        return True

    def _base_on(self, draft: Draft, key: str, there: ObjectInfo) -> None:
        """An earlier state of this very draft is the object now: what still shows the base is the same in both."""
        draft.covers = there.etag
        if draft.base is not None and draft.base.key == key:
            draft.base, draft.base_limit = self.core.version(key, there.etag, there.size), min(draft.base_limit, there.size)
            draft.read_base = self.reads_of(draft.base)

    def _send(
        self,
        draft: Draft,
        key: str,
        metadata: dict[str, str],
        content_type: str,
        condition: str | None,
        patience: Patience | None = None,
    ) -> tuple[str, dict[str, str], str]:
        """Send all of a draft; returns the ETag, the metadata and the Content-Type that went with it.

        No `condition`: what it `covers` goes.
        """
        self.multipart.drop_unsuited(draft)
        stream = self.multipart.streams.get(draft)
        if stream is None and parts.single(draft.size, draft.part_size):
            return self._put(draft, key, metadata, content_type, condition), metadata, content_type
        if stream is None:
            stream = self.multipart.begin_at_end(draft, key, metadata, content_type)
        elif draft.size > stream.plan.capacity:
            stream = self.multipart.replan(draft, stream, metadata, content_type)
        return self.multipart.finish(draft, stream, condition, patience), stream.metadata, stream.content_type

    def _put(self, draft: Draft, key: str, metadata: dict[str, str], content_type: str, condition: str | None) -> str:
        composed = 0 if draft.size <= SMALL_BODY or draft.in_one_piece(0, draft.size) else draft.size
        with self.multipart.composing.holding(composed), draft.body(0, draft.size) as body:
            if condition is None:
                etag = self.conditions.replace(key, body, draft.covers, metadata, content_type)
            else:
                etag = self.conditions.change(key, body, condition, metadata, content_type)
            if draft.size <= self.core.keep_written:
                draft.whole = bytes(body)
            return etag

    def _committed(
        self, node: Node, draft: Draft, key: str, etag: str, metadata: dict[str, str], content_type: str | None
    ) -> None:
        core = self.core
        size = draft.size
        with core.lock:
            node.etag = etag
            node.size = size
            late = self._attributes_are_late(node, metadata, content_type)
            core.stored.sent(node, metadata)
            node.checked = time.monotonic()
            state = node.file
            state.version = core.version(key, etag, size)
            state.draft = None
            if node.parent is not None:
                core.directories.note_file(node)
        if draft.whole and len(draft.whole) == size:  # it is read again soon, or appended to
            state.version.blocks.insert(0, draft.whole)
        draft.close()
        if late and size <= COPY_LIMIT:
            self.attributes_changed(node)

    def _metadata_ahead(self, node: Node) -> tuple[dict[str, str], str]:
        """`metadata_of` for a file that is still being written. Last-Modified will tell its times, those of the end."""
        metadata, content_type = self.metadata_of(node)
        if not node.own:
            metadata = {name: value for name, value in metadata.items() if name not in TIMES}
        return metadata, content_type

    def _attributes_are_late(self, node: Node, sent: dict[str, str], content_type: str | None) -> bool:
        """Were attributes set after an upload began that carries them?"""
        if sent.get("xattr") != (node.metadata or {}).get("xattr"):
            return True
        if attributes.foreign_type(content_type, node.name) != node.content_type:
            return True
        now = attributes.encode(node)  # type: ignore[arg-type]
        names = ("mode", "uid", "gid", *(TIMES if node.own else ()))
        return any(sent.get(name) != now.get(name) for name in names)

    def metadata_of(self, node: Node) -> tuple[dict[str, str], str]:
        """(object metadata, Content-Type) of a file as it is now."""
        return self.core.stored.metadata_of(node, content_changed=True)

    # -- what must survive ------------------------------------------------------------------------------------------------

    def record_of(self, node: Node, draft: Draft, *, pending: bool, error: str = "", key: str = "") -> Record:
        """What the journal has to say of a draft, but for its bytes. Asks nobody. `key`: where it is soon."""
        metadata = {**(node.metadata or {}), **attributes.encode(node)}  # type: ignore[arg-type]
        base = draft.base if draft.base is not None and draft.base_limit else None
        return Record(
            id=draft.saved[1].id if draft.saved is not None else uuid.uuid4().hex,
            key=key or self.core.key_of(node),
            size=draft.size,
            base=Base(base.key, base.etag, base.size) if base is not None else None,
            etag=node.etag,
            replaces=draft.replaces,
            metadata=metadata,
            content_type=node.content_type,
            complete=node.complete,
            pending=pending,
            error=error,
            at=time.time(),
        )

    def keep(self, node: Node, draft: Draft, error: OSError) -> None:
        """It could not be sent: what was written survives this process all the same, for `recover` or the next mount."""
        if draft.is_saved:
            self.ease(draft)
            return
        began = time.monotonic()
        try:
            draft.save(self.record_of(node, draft, pending=self.core.config.write_mode == "back", error=str(error)))
            if (took := time.monotonic() - began) > SLOW_DISK:
                log.warning("%s was kept on local disk, which took %.0f s", node.name, took)
        except OSError as failed:
            log.error("%s is not in the bucket, and cannot be kept on disk either: %s", node.name, failed)

    def ease(self, draft: Draft) -> None:
        """A file that is safe in the journal leaves memory where that is half full."""
        if self.core.dirty.used > self.core.dirty.limit // 2:
            draft.shelve()

    def moved(self, node: Node, *, wait: bool = True, key: str = "") -> None:
        """A file has another name, base or attributes now: what is kept of it says so. OSError. `wait`: until the disk does.

        `key`: the name that it is about to get.
        """
        draft = node.draft
        if draft is not None and draft.saved is not None and node.parent is not None:
            old = draft.saved[1]
            draft.save_head(self.record_of(node, draft, pending=old.pending, error=old.error, key=key), wait=wait)

    def covered_by(self, node: Node) -> str | None:
        """The ETag of the object under a file's key, "" for none, None where that is not known."""
        return node.draft.covers if node.draft is not None and node.draft.replaces else node.etag or ""

    def covers(self, node: Node) -> bool:
        """Is the object under a file's key another file's, which this one was renamed over before it was sent?"""
        return node.draft is not None and node.draft.replaces

    def _bucket_has_it(self, node: Node, draft: Draft, record: Record, key: str) -> bool:
        """Was a draft that was restored from `record` sent before the crash, and only the record not struck out?

        ConditionFailedError: others wrote the file later than this was written, so it does not win.
        """
        known = node.etag, draft.covers
        try:
            info = self.core.store.head(key)
        except NotFoundError:
            draft.covers = ""
            return False
        draft.covers, theirs = info.etag, info.metadata or {}
        arrived = info.etag == record.landing or (info.size == record.size and _same_version(record.metadata, theirs))
        if arrived and not draft.version:
            draft.size = info.size  # it may have been written on since the record was stored
            self._committed(node, draft, key, info.etag, dict(theirs), info.content_type)
            return True
        if arrived:  # and was written on since
            self._base_on(draft, key, info)
        elif not draft.version and info.etag not in known and info.modified > record.at + CLOCKS:
            raise ConditionFailedError(f"{key} was replaced by someone else after the crash")
        draft.restored = None
        return False

    # -- letting go ---------------------------------------------------------------------------------------------------------

    def abandon_of(self, node: Node) -> None:
        """Abort the multipart upload of a node's draft, if there is one."""
        if node.draft is not None:
            self.multipart.abandon(node.draft)

    def discard(self, node: Node) -> None:
        """Forget what was written: the file was unlinked and its last handle closed."""
        draft = node.draft
        if draft is not None:
            self.multipart.abandon(draft)
            node.file.draft = None
            draft.close()
        aside, node.file.aside = node.file.aside, None
        if aside is not None:
            self.core.asides.delete(aside)

    def dispose(self, node: Node) -> None:
        """A node lost its name: what is unsent of it goes, soon, or with its last handle. No lock is needed."""
        self._disposals.submit(self._dispose, node)

    def _dispose(self, node: Node) -> None:
        try:
            with node.file.lock:
                if node.unlinked and not node.file.opens:
                    self.discard(node)
                elif node.draft is not None:
                    node.draft.unsave()
            with self.core.lock:
                self.core.table.drop_if_unused(node)
        except Exception:
            log.exception("%s could not be forgotten", node.name)

    # -- conflicts ----------------------------------------------------------------------------------------------------------

    def _keep_conflict(self, node: Node, draft: Draft, error: OSError) -> bool:
        """Someone else changed the object this change is based on: keep ours beside it. False: that failed."""
        core = self.core
        try:
            with core.lock:
                parent = node.parent
                if parent is None:
                    return False
                key = core.table.prefix_of(parent) + conflict_name(node.name)
            self.multipart.abandon(draft)
            metadata, content_type = attributes.encode(node), attributes.content_type(node.name)  # type: ignore[arg-type]
            self._send_conflict(draft, key, metadata, content_type)
        except OSError as failed:
            log.error("%s was changed by someone else, and our version could not be stored beside it: %s", node.name, failed)
            return False
        log.error("%s was changed by someone else (%s): our version is kept as %s", node.name, error, key)
        with core.lock:
            node.file.draft = None
            parent.dir.distrust()
            core.table.detach(node)
        draft.close()
        return True

    def _send_conflict(self, draft: Draft, key: str, metadata: dict[str, str], content_type: str) -> None:
        lost = draft.salvage()
        draft.covers = ""
        self._send(draft, key, metadata, content_type, None)
        if lost:
            log.warning("%s: %d bytes that were not changed are zeros: the version they were in is gone", key, sum(lost))

    def close(self) -> None:
        self._disposals.shutdown()
        self.multipart.close()


def _same_version(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Are these the attributes of one state of a file?"""
    return all(one.get(name) == other.get(name) for name in ("mtime", "ctime", "mode"))


class Conditions:
    """PutObject with a condition, so that a request that broke off here and is carried out late undoes nothing.

    Does the endpoint heed If-Match? Asked once, when it first matters; where it does not, HEAD comes before a change.
    """

    def __init__(self, core: Core):
        self.core = core
        self.heeded: bool | None = True if core.config.provider in ("r2", "s3") else None
        self.refused = False  # a request that carries a condition is not taken at all

    def replace(self, key: str, body: Buffer, there: str | None, metadata: dict[str, str], content_type: str) -> str:
        """The last writer wins, whatever is there by now. `there`: the ETag as far as is known, "" for none, None: unknown."""
        put = functools.partial(self.core.store.put, key, body, metadata=metadata, content_type=content_type)
        for _ in range(0 if self.refused else ROUNDS):
            try:
                if there is None:
                    there = self._etag(key)
                return put(if_match=there or None, if_none_match=not there)
            except (ConditionFailedError, NotFoundError):
                there = None
            except StoreError as error:
                if error.status not in NO_CONDITIONS:
                    raise
                etag = put()
                self.refused = True
                log.warning("this endpoint takes no conditions: a request that reaches it late can undo what came after it")
                return etag
        return put()

    def change(self, key: str, body: Buffer, condition: str, metadata: dict[str, str], content_type: str) -> str:
        """Only if version `condition` is there, else ConditionFailedError."""
        if self.heeded is None:
            self.heeded = self._probe()
        if not self.heeded and self._etag(key) != condition:
            raise ConditionFailedError(f"{key} was replaced by someone else")
        put = functools.partial(self.core.store.put, key, body, metadata=metadata, content_type=content_type)
        try:
            return put() if self.refused else put(if_match=condition)
        except NotFoundError as error:
            raise ConditionFailedError(f"{key} was deleted by someone else") from error

    def _etag(self, key: str) -> str:
        try:
            return self.core.store.head(key).etag
        except NotFoundError:
            return ""

    def _probe(self) -> bool:
        store = self.core.store
        key = f"{self.core.config.prefix}.sluicefs-probe-{uuid.uuid4().hex}"
        try:
            store.put(key, bytearray(), if_match="d41d8cd98f00b204e9800998ecf8427e")
        except (ConditionFailedError, NotFoundError):
            return True
        except UnreachableError:
            raise  # that says nothing, and what was to be sent could not be either
        except StoreError as error:
            self.refused = error.status in NO_CONDITIONS
            log.debug("the question whether conditions are heeded was refused: %s", error)
            return False
        store.delete(key)
        log.warning("this endpoint ignores If-Match: two writers who change one file within one round trip can lose a change")
        return False


def _condition(draft: Draft) -> str | None:
    """The ETag of the version that a change of a part holds for; None for a whole file."""
    return None if draft.replaced or draft.base is None else draft.base.etag
