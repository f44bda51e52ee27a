"""Names: making, removing and renaming files, directories, links and special files.

The kernel holds the parents' locks during each of these, so within one mount no two of them change one directory at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sluicefs.errors import ConditionFailedError, NotFoundError, StoreError
from sluicefs.fs.entries import Entry
from sluicefs.fs.names import FOLDER_SUFFIX, error, join_key
from sluicefs.fs.nodes import FileState, Node
from sluicefs.fs.rename import Gate, Renames, copy_object
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core
    from sluicefs.fs.draft import Draft
    from sluicefs.fs.files import Files

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

# An open file of up to this size is read in before its object is deleted; a larger one is copied aside by the server.
KEEP_OPEN = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the process's user and group."""

    uid: int
    gid: int


def _passing(verb: F) -> F:
    """A verb that changes names waits while a directory's rename takes its last step."""

    @functools.wraps(verb)
    def through(self: Namespace, *args: Any, **kwargs: Any) -> Any:
        with self.gate.shared():
            return verb(self, *args, **kwargs)

    return through  # type: ignore[return-value]


class Namespace:
    """The verbs on names of one mount."""

    def __init__(self, core: Core, files: Files):
        self.core = core
        self.files = files
        self.directories = core.directories
        self.gate = Gate()
        self._asks_first = True  # the store knows If-None-Match, or ignores it
        self._renames = Renames(core, files, self)

    def _writable(self) -> None:
        if self.core.config.read_only:
            raise error(errno.EROFS)

    # -- making -----------------------------------------------------------------------------------------------------------

    def find(self, parent: Node, name: str) -> Node | None:
        """The node of a name, or None."""
        try:
            return self.directories.lookup(parent, name)
        except OSError as failed:
            if failed.errno == errno.ENOENT and not isinstance(failed, StoreError):
                return None
            raise

    def _make(self, parent: Node, name: str, mode: int, caller: Caller, rdev: int = 0) -> Node:
        core = self.core
        self._writable()
        with core.lock:
            join_key(core.table.prefix_of(parent), name, directory=stat.S_ISDIR(mode))
        if self.find(parent, name) is not None:
            raise error(errno.EEXIST)
        with core.lock:
            node = core.table.add(parent, name, mode)
            node.uid, node.gid, node.rdev = caller.uid, caller.gid, rdev
            if parent.mode & stat.S_ISGID:
                node.gid = parent.gid
                if node.is_dir:
                    node.mode |= stat.S_ISGID
            node.atime_ns = node.mtime_ns = node.ctime_ns = time.time_ns()
            node.checked = time.monotonic()
            node.complete = True
            node.lookups += 1  # held while the bucket is asked; the caller takes it over
            self.directories.note(parent, name, Entry(name, node.is_dir, None))
            self.touch(parent)
            return node

    def _unmake(self, node: Node) -> None:
        """The bucket refused: as if `_make` had not been called."""
        with self.core.lock:
            node.unlinked = True
            node.lookups -= 1
            if node.parent is not None:
                self.directories.note(node.parent, node.name, None)
                node.parent.dir.distrust()  # there may be something of that name all the same
            self.core.table.detach(node)

    @_passing
    def create(self, parent: Node, name: str, mode: int, caller: Caller) -> Node:
        """A new regular file, sent when it is closed. Raises EEXIST. The node's lookup count is raised."""
        node = self._make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self.files.begin_new(node)
        return node

    @_passing
    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Node:
        """A directory, with its `name/` marker in the bucket. The node's lookup count is raised."""
        node = self._make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)
        try:
            self._put_marker(node, new=True)
        except BaseException:
            self._unmake(node)
            raise
        node.dir.listed_at = time.monotonic()  # we made it, so we know that it is empty
        return node

    def _put_marker(self, node: Node, *, new: bool = False) -> None:
        """`new`: EEXIST where another mount made the same directory since this one looked."""
        core = self.core
        key = core.stored.marker_key(node)
        if node.parent is not None and core.stored.differs(node):
            core.stored.announce(node.parent)
        put = self._put_where_nothing_is if new else core.store.put
        with core.stored.writing_marker(node):
            metadata, content_type = core.stored.metadata_of(node)
            etag = put(key, bytearray(), metadata=metadata, content_type=content_type)
            with core.lock:
                marker = ObjectInfo(key, 0, etag, time.time(), metadata, content_type)
                node.dir.marker, node.dir.asked = marker, time.monotonic()
                core.stored.sent(node, metadata)
                if node.parent is not None:
                    self.directories.note_directory(node)

    def _put_where_nothing_is(self, key: str, body: bytearray, *, metadata: dict[str, str], content_type: str) -> str:
        store = self.core.store
        try:
            return store.put(key, body, metadata=metadata, content_type=content_type, if_none_match=self._asks_first)
        except ConditionFailedError:
            there = store.head(key)
            if there.metadata == metadata:
                return there.etag  # it was this very request, whose first answer got lost
            raise error(errno.EEXIST) from None
        except StoreError as failed:
            if not self._asks_first or failed.status not in (400, 501):
                raise
            self._asks_first = False  # a store without conditions
            return store.put(key, body, metadata=metadata, content_type=content_type)

    def store_directory_attributes(self, node: Node) -> None:
        """mode, owner or times of a directory were set: its marker carries them."""
        if not node.unlinked:
            self._put_marker(node)

    @_passing
    def symlink(self, parent: Node, name: str, target: str, caller: Caller) -> Node:
        """A symbolic link: an object whose body is the target. The node's lookup count is raised."""
        node = self._make(parent, name, stat.S_IFLNK | 0o777, caller)
        self._put_special(node, target.encode("utf-8", "surrogateescape"))
        node.target = target
        return node

    @_passing
    def mknod(self, parent: Node, name: str, mode: int, rdev: int, caller: Caller) -> Node:
        """A FIFO, socket, device or empty regular file, in the bucket at once. The node's lookup count is raised."""
        node = self._make(parent, name, mode, caller, rdev)
        self._put_special(node, b"")
        return node

    def _put_special(self, node: Node, body: bytes) -> None:
        core = self.core
        try:
            assert node.parent is not None
            if not node.is_file or core.stored.differs(node):
                core.stored.announce(node.parent)  # what kind of file it is stands in its metadata
            metadata, content_type = core.committer.metadata_of(node)
            node.etag = core.committer.conditions.replace(core.key_of(node), bytearray(body), "", metadata, content_type)
        except BaseException:
            self._unmake(node)
            raise
        with core.lock:
            node.size = len(body)
            node.metadata = metadata
            self.directories.note_file(node)

    def readlink(self, node: Node) -> str:
        """What a symbolic link points to. EINVAL for anything else."""
        if not stat.S_ISLNK(node.mode):
            raise error(errno.EINVAL)
        if node.target is None:
            _, body = self.core.store.get(self.core.key_of(node), limit=4096)
            node.target = bytes(body).decode("utf-8", "surrogateescape")
        return node.target or ""

    # -- removing ---------------------------------------------------------------------------------------------------------

    @_passing
    def unlink(self, parent: Node, name: str) -> None:
        """Remove a name; who has the file open keeps its bytes."""
        self._writable()
        node = self.directories.lookup(parent, name)
        if node.is_dir:
            raise error(errno.EISDIR)
        with self.files.wanted(node.file):
            key = self.core.key_of(node)
            with self.kept_for_open_handles(node):
                if node.etag is not None or self.core.committer.covers(node):
                    self.core.store.delete(key)
            self.gone(node)
            self.unsave(node)
        self.keep_directory(parent)

    def unsave(self, node: Node | None) -> None:
        """What is unsent of a file without a name must not come back with the next mount. The file's lock is held."""
        if node is not None and node.draft is not None:
            node.draft.unsave()

    @contextmanager
    def kept_for_open_handles(self, node: Node) -> Iterator[None]:
        """While the object goes: what open handles may still read is brought here, or copied aside when it is large."""
        state, before = node.file, node.draft
        try:
            self._keep_for_open_handles(node)
            yield
        except BaseException:
            if not node.unlinked:  # it did not go
                draft, aside = state.draft, state.aside
                if aside is not None and draft is not None and draft.base is not None:
                    draft.base.key, draft.base.etag = self.core.key_of(node), node.etag or ""
                    state.aside = None
                    self.core.asides.delete(aside)
                if before is None and draft is not None:  # nobody has written to it
                    state.draft = None
                    draft.close()
            raise

    def _keep_for_open_handles(self, node: Node) -> None:
        core, state = self.core, node.file
        core.committer.abandon_of(node)
        if not state.opens or node.etag is None:
            return
        draft = self.files.draft(node)
        if draft.base is None or draft.base_limit == 0:
            return
        try:
            if draft.base_limit > KEEP_OPEN or not self._bring_here(draft):
                aside = core.asides.new()
                draft.base.etag = copy_object(core.store, draft.base.key, aside, draft.base.size, draft.base.etag)
                draft.base.key = state.aside = aside
        except OSError as failed:
            if failed.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            # Others replaced or deleted that version before: who has it open could not read it any more anyway.

    def _bring_here(self, draft: Draft) -> bool:
        """Read in what a draft still shows of its base. False: neither memory nor local disk has the room."""
        make_room = self.core.committer.make_room
        try:
            for start, end in draft.changed.gaps(0, draft.base_limit):
                while start < end:
                    length = min(draft.part_size, end - start)
                    piece = bytes(draft.read(start, length) or b"")
                    make_room(draft, length)
                    draft.write(start, piece)
                    start += length
            make_room(draft, 0)  # nobody writes to it any more who would see to that
        except OSError as failed:
            if failed.errno != errno.ENOSPC:
                raise
            return False
        return True

    def gone(self, node: Node) -> None:
        """A node lost its name."""
        with self.core.lock:
            parent = node.parent
            node.unlinked = True
            node.ctime_ns = time.time_ns()
            if isinstance(node.state, FileState):
                node.state.attributes_due = 0.0
            if parent is not None:
                self.directories.note(parent, node.name, None)
                self.touch(parent)
            self.core.table.detach(node)
        if not node.is_dir and node.draft is not None:
            self.core.committer.dispose(node)

    def touch(self, directory: Node) -> None:
        directory.mtime_ns = directory.ctime_ns = time.time_ns()

    def keep_directory(self, node: Node) -> None:
        """A directory known only by its last entry must not vanish with it: give it a marker."""
        state = node.dir
        if node.parent is None or state.entries or not state.listed_at or state.marker is not None:
            return
        try:
            self._put_marker(node)
        except StoreError as failed:
            log.warning("directory %s has no entry and no marker now, and may vanish: %s", node.name, failed)

    @_passing
    def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty directory. Raises ENOTEMPTY, ENOTDIR."""
        self._writable()
        node = self.directories.lookup(parent, name)
        if not node.is_dir:
            raise error(errno.ENOTDIR)
        self.require_empty(node)
        self._delete_markers(node)
        self.gone(node)
        self.keep_directory(parent)

    def require_empty(self, node: Node) -> None:
        """ENOTEMPTY if any key is below, be it one that cannot be shown, or a new file that is not in the bucket yet."""
        core = self.core
        with core.lock:
            prefix = core.table.prefix_of(node)
            if any(below.busy for below in core.table.below(node)):
                raise error(errno.ENOTEMPTY)
        page = core.store.list(prefix, limit=2)
        if any(info.key != prefix for info in page.objects) or page.prefixes:
            with core.lock:
                node.dir.distrust()
            raise error(errno.ENOTEMPTY)

    def marker_keys(self, node: Node) -> list[str]:
        """The keys that make a directory be there when it is empty: `dir/`, and the forms of other programs."""
        core = self.core
        own = core.key_of(node)
        assert node.parent is not None
        entry = node.parent.dir.entries.get(node.name)
        foreign = node.dir.foreign_marker
        if foreign is None and entry is not None and entry.info is not None and entry.info.key != own:
            foreign = entry.info.key
        if foreign is None:
            return [own]
        found = [own, foreign]
        for other in (own[:-1], own[:-1] + FOLDER_SUFFIX):  # where one of them is, another may be
            if other != foreign:
                try:
                    if not core.store.head(other).size:
                        found.append(other)
                except NotFoundError:
                    pass
        return found

    def _delete_markers(self, node: Node) -> None:
        for key in self.marker_keys(node):
            self.core.store.delete(key)

    # -- renaming ---------------------------------------------------------------------------------------------------------

    def rename(self, parent: Node, name: str, new_parent: Node, new_name: str) -> None:
        """rename(2), as `Renames` does it."""
        self._writable()
        self._renames.rename(parent, name, new_parent, new_name)
