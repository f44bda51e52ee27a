"""Write-back: what `close` made safe on local disk is sent to the bucket soon, and after a crash by the next mount.

A file is sent when it has been quiet for a second, so that create, write, close and rename over another name are one upload;
where many wait, the oldest at once and the others soon. It must never send what the application was told had failed: that
waits for `sluicefs recover`.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sluicefs.errors import CancelledError
from sluicefs.fs import attributes
from sluicefs.fs.draft import Draft
from sluicefs.fs.entries import Entry
from sluicefs.fs.names import conflict_name
from sluicefs.fs.nodes import Node, Version
from sluicefs.fs.uploads import abort_left
from sluicefs.staging import Journal, Record
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

QUIET = 1.0  # seconds
MANY = 16  # files that wait: more than these, and the oldest is sent whatever it does,
SOON = 0.1  # and until none is left the others have been quiet long enough after so many seconds
OLDEST = 15.0  # seconds: a file that is written all the time is sent after so long
RETRY = (1.0, 60.0)  # seconds between tries, at first and at most
THREADS = 16
# Unsent data on disk: half of what is free when the mount begins, within these bounds (bytes). Beyond it, close waits for the
# bucket as in sync mode.
LIMITS = (64 * 1024**2, 64 * 1024**3)
FILES = 10_000  # as many at most: each takes memory and perhaps a descriptor

NewDraft = Callable[[Version | None, int], Draft]


class WriteBack:
    """The queue of one mount and its threads, which start with the first file."""

    def __init__(self, core: Core, new_draft: NewDraft):
        self.core = core
        self.new_draft = new_draft
        self._due: dict[Node, float] = {}  # in the order they came
        self._since: dict[Node, float] = {}
        self._tries: dict[Node, int] = {}
        self._later: set[Node] = set()  # those that could not be sent when it was their turn
        self._rush = False  # there were many, and they are not through yet
        self._sending: set[Node] = set()
        self._bytes: dict[Node, int] = {}
        self._total = 0
        self._changed = threading.Condition()
        self._watch = math.inf  # monotonic seconds: a thread looks at the queue then, without being told
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._limit: int | None = None
        self.damaged: dict[str, str] = {}  # keys of what `take_over` could not bring back, and why; it stays where it is

    # -- what must survive ------------------------------------------------------------------------------------------------

    def store(self, node: Node) -> None:
        """close(2), fsync(2): when this returns, the data survives a crash of this machine. The file's lock is held."""
        core, draft = self.core, node.draft
        if draft is None or node.unlinked:
            return
        full = self.staged + draft.unsent > self.limit or (len(self._bytes) >= FILES and node not in self._bytes)
        if full and not draft.is_saved:
            core.committer.commit(node)  # as fast as the bucket takes it: it is the only place left
            return
        try:
            if draft.is_saved:
                core.committer.announce(node, draft, attributes.encode(node))  # type: ignore[arg-type]
            else:
                draft.save(core.committer.record_of(node, draft, pending=True))
        except OSError as error:
            log.warning("%s cannot be kept on local disk, so it is sent at once: %s", node.name, error)
            core.committer.commit(node)
            return
        core.committer.ease(draft)
        self.schedule(node)

    @property
    def staged(self) -> int:
        """Bytes on local disk that the bucket does not have."""
        return self._total

    @property
    def limit(self) -> int:
        if self._limit is None:
            room = os.statvfs(self.core.staging.root)
            self._limit = max(LIMITS[0], min(LIMITS[1], room.f_bavail * room.f_frsize // 2))
        return self._limit

    # -- sending ------------------------------------------------------------------------------------------------------------

    def schedule(self, node: Node, delay: float | None = None, *, later: bool = False) -> None:
        """Send a file's draft when it has been quiet for `delay` seconds [QUIET]; `later`: not before, however many wait."""
        draft = node.draft
        now = time.monotonic()
        delay = QUIET if delay is None else delay
        with self._changed:
            if self._stopping:
                return
            self._due.pop(node, None)
            self._due[node] = now + delay
            (self._later.add if later else self._later.discard)(node)
            self._since.setdefault(node, now)
            self._total -= self._bytes.get(node, 0)
            self._bytes[node] = draft.unsent if draft is not None else 0
            self._total += self._bytes[node]
            if len(self._threads) < THREADS and len(self._due) > len(self._threads) - len(self._sending):
                thread = threading.Thread(target=self._work, name=f"write-back-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            if len(self._due) > MANY or now + min(delay, SOON) < self._watch:
                self._changed.notify()

    def _next(self) -> Node | None:
        """The next file to send; None: the end. Waits."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                wait = None
                many = len(self._due) > MANY
                self._rush = many or (self._rush and len(self._due) > len(self._later))
                early = max(0.0, QUIET - SOON) if self._rush else 0.0
                for node, due in self._due.items():
                    left = due - now
                    if node not in self._later:
                        left = 0.0 if many else left - early
                    if left <= 0:
                        del self._due[node]
                        self._sending.add(node)
                        if self._due:  # somebody has to look after the others meanwhile
                            self._changed.notify()
                        return node
                    wait = left if wait is None else min(wait, left)
                if wait is not None:
                    self._watch = min(self._watch, now + wait)
                self._changed.wait(wait)
                self._watch = math.inf
            return None

    def _work(self) -> None:
        while (node := self._next()) is not None:
            again: float | None = None
            try:
                again = self._send(node)
            except Exception:
                log.exception("%s could not be sent", node.name)
                again = RETRY[1]
            finally:
                with self._changed:
                    self._sending.discard(node)
                    if node not in self._due and again is None:
                        self._total -= self._bytes.pop(node, 0)
                        self._since.pop(node, None)
                        self._tries.pop(node, None)
                        self._later.discard(node)
            if again is not None:
                self.schedule(node, again, later=True)

    def _send(self, node: Node) -> float | None:
        """Send one file; returns after how many seconds to try again, or None."""
        core, state = self.core, node.file
        with state.lock:
            draft = state.draft
            if draft is None:
                return None
            being_written = state.writers and not draft.is_saved
            if being_written and time.monotonic() - self._since.get(node, 0.0) < OLDEST:
                return QUIET
            try:
                core.committer.commit(node, background=True)
            except CancelledError:
                return QUIET
            except OSError as error:
                if state.draft is None:  # a conflict: it is beside the file now
                    return None
                tries = self._tries[node] = self._tries.get(node, 0) + 1
                again: float = min(RETRY[1], RETRY[0] * 2 ** min(tries, 10))
                log.warning("%s is not in the bucket yet, next try in %.0f s: %s", node.name, again, error)
                return again
        with core.lock:
            core.table.drop_if_unused(node)
        return None

    def close(self) -> None:
        """End the threads; what is being sent is interrupted between two parts."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            sending = list(self._sending)
        for node in sending:
            draft = node.draft
            if draft is not None:
                draft.wanted += 1
        for thread in self._threads:
            thread.join(self.core.config.timeout + 5)

    # -- after a crash ------------------------------------------------------------------------------------------------------

    def take_over(self, *, everything: bool = False) -> list[Node]:
        """Bring back what mounts that are gone left unsent, readable at once; `everything`: also what waits for `recover`.

        Their multipart uploads are aborted. Returns the files; they are not scheduled yet.
        """
        core = self.core
        found: dict[str, tuple[Journal, Record]] = {}
        for left in core.staging.adopt():
            abort_left(core.store, core.staging, left)
            records = [record for record in left.journal.records() if record.pending or everything]
            self.damaged |= dict.fromkeys(left.journal.damaged, f"its record in {left.path} is damaged")
            for record in records:
                key = record.key  # `_outdated` gives the earlier of two another
                other, latest = found.get(key), (left.journal, record)
                if other is not None:
                    if other[1].at > record.at:
                        other, latest = latest, other
                    self._outdated(*other, by=latest[0], found=found)
                found[key] = latest
            if not records:
                core.staging.give_back(left)
        self.damaged |= core.staging.damaged
        nodes = []
        for journal, record in found.values():
            try:
                nodes.append(self._restore(journal, record))
            except OSError as error:
                log.error("unsent data of %s, in %s, is not sent and stays there: %s", record.key, journal.folder, error)
                self.damaged[record.key] = str(error)
        if nodes:
            log.info("%d files that were not sent before a crash are sent now", len(nodes))
        return nodes

    def _outdated(self, journal: Journal, record: Record, *, by: Journal, found: dict[str, tuple[Journal, Record]]) -> None:
        """A later record has the same key: in the same mount a rename took its name, else it is a conflict."""
        if journal is by:
            journal.forget(record.id)
            return
        folder, _, name = record.key.rpartition("/")
        old, record.key = record.key, f"{folder}/{conflict_name(name)}" if folder else conflict_name(name)
        log.error("%s was left unsent by two mounts: the earlier version is kept as %s", old, record.key)
        journal.put(record, keep_body=True)
        found[record.key] = journal, record

    def _restore(self, journal: Journal, record: Record) -> Node:
        core = self.core
        prefix = core.table.prefix
        if not record.key.startswith(prefix):
            raise OSError(errno.ESTALE, f"it is not below {prefix}")
        *folders, name = record.key[len(prefix) :].split("/")
        base = record.base
        draft = self.new_draft(core.version(base.key, base.etag, base.size) if base is not None else None, record.size)
        draft.restore(journal, record)
        draft.replaces = True  # it may have been sent just before the crash, and has to go when the file does
        with core.lock:
            parent = core.table.root
            for folder in folders:
                assert parent.children is not None
                child = parent.children.get(folder)
                if child is None or not child.is_dir:
                    core.directories.note(parent, folder, Entry(folder, True, None))
                    child = core.directories.instantiate(parent, Entry(folder, True, None))
                parent = child
            info = ObjectInfo(record.key, record.size, "", record.at, record.metadata, record.content_type)
            core.directories.note(parent, name, Entry(name, False, None))
            node = core.table.add(parent, name, 0o100000)
            core.directories.take_attributes(node, info)
            node.size, node.etag, node.complete = record.size, record.etag, record.complete
        node.file.version = draft.base  # a rename tells it where its bytes are then
        node.file.draft = draft
        return node
