"""mode, owner, times and xattrs of files whose data is in the bucket already: sent soon after they were set, or at fsync.

Several changes go together. What could not be sent stays due: it is tried again, and nobody says that all is sent meanwhile.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sluicefs.errors import AccessDeniedError, NotFoundError, UnreachableError
from sluicefs.fs.nodes import Node
from sluicefs.fs.rename import copy_object

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

# Changes of a closed file wait this long (seconds) for company: `cp -p` and rsync make three in a row.
DELAY = 0.5
RETRY = (1.0, 60.0)  # seconds between tries, at first and at most

Rebase = Callable[[Node, str, str], None]


class AttributeSender:
    """The queue of one mount and its thread. `rebase(node, key, etag)` is told of the copy."""

    def __init__(self, core: Core, rebase: Rebase):
        self.core = core
        self._rebase = rebase
        self._due: set[Node] = set()
        self._tries: dict[Node, int] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="attributes", daemon=True)
        self._thread.start()

    def changed(self, node: Node) -> None:
        """Attributes of a file were set: they go up with its data, or soon by themselves."""
        state = node.file
        with self.core.lock:
            draft = state.draft
            if draft is None and node.etag is not None and not node.unlinked:
                state.attributes_due = time.monotonic() + DELAY
        if draft is not None and draft.saved is not None and state.lock.acquire(blocking=False):
            try:  # else it is being sent, and what came too late for that follows by itself
                self.core.committer.moved(node, wait=False)
            finally:
                state.lock.release()
        if state.attributes_due:
            self._wake(node)

    def _wake(self, node: Node) -> None:
        with self._changed:
            self._due.add(node)
            self._changed.notify()

    def send(self, node: Node) -> None:
        """One CopyObject onto itself with the new metadata. The file's lock is held. OSError: they are due again."""
        core, state = self.core, node.file
        with core.lock:
            state.attributes_due = 0.0
            if node.parent is None or node.etag is None or state.draft is not None:
                return
            key, etag = core.table.key_of(node), node.etag
            parent = node.parent
        try:
            if core.stored.differs(node):
                core.stored.announce(parent)
            metadata, content_type = core.stored.metadata_of(node)
            new_etag = copy_object(core.store, key, key, node.size, etag, metadata, content_type)
        except OSError as error:
            node.checked = 0.0  # it may have been carried out: whoever opens the file next asks for its ETag first
            if isinstance(error, NotFoundError):
                raise OSError(errno.ESTALE, f"{key} was deleted by someone else") from error
            if error.errno != errno.ESTALE:  # else the object they belong to is gone
                self._again(node)
            raise
        with self._changed:
            self._tries.pop(node, None)
        with core.lock:
            core.stored.sent(node, metadata)
            self._rebase(node, key, new_etag)

    def _again(self, node: Node) -> None:
        with self._changed:
            if self._stopping:
                return
            tries = self._tries[node] = self._tries.get(node, 0) + 1
            node.file.attributes_due = time.monotonic() + min(RETRY[1], RETRY[0] * 2 ** min(tries, 10))
            self._due.add(node)
            self._changed.notify()

    def _next(self) -> Node | None:
        """The next file to send; None: the end. Waits."""
        with self._changed:
            while True:
                if not self._due:
                    if self._stopping:
                        return None
                    self._changed.wait()
                    continue
                node = min(self._due, key=lambda node: node.file.attributes_due)
                wait = node.file.attributes_due - time.monotonic()
                if wait <= 0 or self._stopping:
                    self._due.discard(node)
                    return node
                self._changed.wait(wait)

    def _work(self) -> None:
        while (node := self._next()) is not None:
            try:
                with node.file.lock:
                    if node.file.attributes_due:
                        self.send(node)
            except Exception as error:
                if not isinstance(error, AccessDeniedError):  # of which the store tells once
                    log.error("the attributes of %s could not be stored: %s", node.name, error)
                if self._stopping and isinstance(error, UnreachableError):
                    with self._changed:
                        self._due.clear()  # each more would wait as long again
            if not node.file.attributes_due:
                with self._changed:
                    self._tries.pop(node, None)
            with self.core.lock:
                self.core.table.drop_if_unused(node)

    def close(self) -> None:
        """Send what is due and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(30)
