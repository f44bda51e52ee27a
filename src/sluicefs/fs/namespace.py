"""Names: making, removing and renaming files, directories, links and special files.

The kernel holds the parents' locks during each of these, so within one mount no two of them change one directory at once.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sluicefs.errors import StoreError
from sluicefs.fs import attributes
from sluicefs.fs.names import Entry, join_key
from sluicefs.fs.nodes import FileState, Node
from sluicefs.fs.stored import FLAG
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core
    from sluicefs.fs.files import Files

log = logging.getLogger(__name__)

COPY_LIMIT = 5 * 1024**3  # CopyObject; larger objects are copied part by part
COPY_PART = 512 * 1024**2
# An open file of up to this size is read in before its object is deleted; a larger one is copied aside by the server.
KEEP_OPEN = 64 * 1024**2
ORPHANS = ".sluicefs-orphans/"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the process's user and group."""

    uid: int
    gid: int


def error(number: int, detail: str = "") -> OSError:
    return OSError(number, detail or os.strerror(number))


class Namespace:
    """The verbs on names of one mount."""

    def __init__(self, core: Core, files: Files):
        self.core = core
        self.files = files
        self.directories = core.directories

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
        if core.config.read_only:
            raise error(errno.EROFS)
        with core.lock:
            if parent.ino not in core.table.by_ino:
                raise error(errno.ENOENT)
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
            self._touch(parent)
            return node

    def _unmake(self, node: Node) -> None:
        """The bucket refused: as if `_make` had not been called."""
        with self.core.lock:
            node.unlinked = True
            node.lookups -= 1
            if node.parent is not None:
                self.directories.note(node.parent, node.name, None)
            self.core.table.detach(node)

    def create(self, parent: Node, name: str, mode: int, caller: Caller) -> Node:
        """A new regular file, sent when it is closed. Raises EEXIST. The node's lookup count is raised."""
        node = self._make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self.files.begin_new(node)
        return node

    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Node:
        """A directory, with its `name/` marker in the bucket. The node's lookup count is raised."""
        node = self._make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)
        try:
            self._put_marker(node)
        except BaseException:
            self._unmake(node)
            raise
        node.dir.listed_at = time.monotonic()  # we made it, so we know that it is empty
        return node

    def _put_marker(self, node: Node) -> None:
        core = self.core
        key = core.stored.marker_key(node)
        if node.parent is not None and core.stored.differs(node):
            core.stored.announce(node.parent)
        ours = attributes.encode(node)  # type: ignore[arg-type]
        if node.dir.stores_attributes:
            ours[FLAG] = "1"
        metadata = attributes.merge(node.metadata, ours)
        etag = core.store.put(key, bytearray(), metadata=metadata, content_type=attributes.DIRECTORY_TYPE)
        node.dir.marker = ObjectInfo(key, 0, etag, time.time())
        node.metadata = metadata

    def store_directory_attributes(self, node: Node) -> None:
        """mode, owner or times of a directory were set: its marker carries them."""
        self._put_marker(node)

    def symlink(self, parent: Node, name: str, target: str, caller: Caller) -> Node:
        """A symbolic link: an object whose body is the target. The node's lookup count is raised."""
        node = self._make(parent, name, stat.S_IFLNK | 0o777, caller)
        self._put_special(node, target.encode("utf-8", "surrogateescape"))
        node.target = target
        return node

    def mknod(self, parent: Node, name: str, mode: int, rdev: int, caller: Caller) -> Node:
        """A FIFO, socket, device or empty regular file, in the bucket at once. The node's lookup count is raised."""
        node = self._make(parent, name, mode, caller, rdev)
        self._put_special(node, b"")
        return node

    def _put_special(self, node: Node, body: bytes) -> None:
        core = self.core
        try:
            assert node.parent is not None
            core.stored.announce(node.parent)  # what kind of file it is stands in its metadata
            metadata, content_type = core.committer.metadata_of(node)
            node.etag = core.store.put(core.key_of(node), bytearray(body), metadata=metadata, content_type=content_type)
        except BaseException:
            self._unmake(node)
            raise
        with core.lock:
            node.size = len(body)
            node.metadata = metadata
            self.directories.note_file(node)

    def readlink(self, node: Node) -> str:
        if not stat.S_ISLNK(node.mode):
            raise error(errno.EINVAL)
        if node.target is None:
            _, body = self.core.store.get(self.core.key_of(node), limit=4096)
            node.target = bytes(body).decode("utf-8", "surrogateescape")
        return node.target

    # -- removing ---------------------------------------------------------------------------------------------------------

    def unlink(self, parent: Node, name: str) -> None:
        """Remove a name; who has the file open keeps its bytes."""
        if self.core.config.read_only:
            raise error(errno.EROFS)
        node = self.directories.lookup(parent, name)
        if node.is_dir:
            raise error(errno.EISDIR)
        with node.file.lock:
            key = self.core.key_of(node)
            self._keep_for_open_handles(node)
            if node.etag is not None:
                self.core.store.delete(key)
            self._gone(node)
        self._keep_directory(parent)

    def _keep_for_open_handles(self, node: Node) -> None:
        """Before the object goes: what open handles may still read is brought here, or copied aside when it is large."""
        core, state = self.core, node.file
        core.committer.abandon_of(node)
        if not state.opens or node.etag is None:
            return
        draft = self.files.draft(node)
        if draft.base is None or draft.base_limit == 0:
            return
        if draft.base_limit <= KEEP_OPEN:
            for start, end in draft.changed.gaps(0, draft.base_limit):
                while start < end:
                    length = min(draft.part_size, end - start)
                    draft.write(start, bytes(draft.read(start, length)))
                    start += length
        else:
            aside = f"{core.config.prefix}{ORPHANS}{uuid.uuid4().hex}"
            draft.base.etag = self._copy(draft.base.key, aside, draft.base.size, draft.base.etag)
            draft.base.key = aside
            state.aside = aside

    def _gone(self, node: Node) -> None:
        """A node lost its name."""
        with self.core.lock:
            parent = node.parent
            node.unlinked = True
            node.ctime_ns = time.time_ns()
            if isinstance(node.state, FileState):
                node.state.attributes_due = 0.0
            if parent is not None:
                self.directories.note(parent, node.name, None)
                self._touch(parent)
            self.core.table.detach(node)

    def _touch(self, directory: Node) -> None:
        directory.mtime_ns = directory.ctime_ns = time.time_ns()

    def _keep_directory(self, node: Node) -> None:
        """A directory known only by its last entry must not vanish with it: give it a marker."""
        state = node.dir
        if node.parent is None or state.entries or not state.listed_at or state.marker is not None:
            return
        try:
            self._put_marker(node)
        except StoreError as failed:
            log.warning("directory %s has no entry and no marker now, and may vanish: %s", node.name, failed)

    def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty directory. Raises ENOTEMPTY, ENOTDIR."""
        if self.core.config.read_only:
            raise error(errno.EROFS)
        node = self.directories.lookup(parent, name)
        if not node.is_dir:
            raise error(errno.ENOTDIR)
        self._require_empty(node)
        self._delete_markers(node)
        self._gone(node)
        self._keep_directory(parent)

    def _require_empty(self, node: Node) -> None:
        self.directories.load(node, force=True)
        with self.core.lock:
            if node.dir.entries or any(child.busy for child in (node.children or {}).values()):
                raise error(errno.ENOTEMPTY)

    def _delete_markers(self, node: Node) -> None:
        core = self.core
        keys = {core.key_of(node)}
        assert node.parent is not None
        entry = node.parent.dir.entries.get(node.name)
        if entry is not None and entry.info is not None:
            keys.add(entry.info.key)  # `dir` or `dir_$folder$`, made by other programs
        for key in keys:
            core.store.delete(key)

    # -- renaming ---------------------------------------------------------------------------------------------------------

    def rename(self, parent: Node, name: str, new_parent: Node, new_name: str) -> None:
        """rename(2): over an existing file or an empty directory too; open handles go on."""
        core = self.core
        if core.config.read_only:
            raise error(errno.EROFS)
        node = self.directories.lookup(parent, name)
        target = self.find(new_parent, new_name)
        if target is node:
            return
        with core.lock:
            join_key(core.table.prefix_of(new_parent), new_name, directory=node.is_dir)
            above: Node | None = new_parent
            while above is not None:
                if above is node:
                    raise error(errno.EINVAL)
                above = above.parent
        if target is not None:
            if node.is_dir and not target.is_dir:
                raise error(errno.ENOTDIR)
            if target.is_dir and not node.is_dir:
                raise error(errno.EISDIR)
        if node.is_dir:
            if target is not None:
                self._require_empty(target)
            self._rename_directory(node, target, new_parent, new_name)
        else:
            self._rename_file(node, target, new_parent, new_name)
        self._keep_directory(parent)

    def _rename_file(self, node: Node, target: Node | None, new_parent: Node, new_name: str) -> None:
        core = self.core
        with ExitStack() as locks:
            for locked in sorted((n for n in (node, target) if n is not None), key=lambda n: n.ino):
                locks.enter_context(locked.file.lock)
            old_key = core.key_of(node)
            with core.lock:
                new_key = core.table.prefix_of(new_parent) + new_name
            if target is not None:
                self._keep_for_open_handles(target)
            if node.etag is None:
                self._move(node, target, new_parent, new_name)
                if target is not None and target.etag is not None:
                    core.committer.commit(node)  # the old content must not stay under a name that now means another file
                return
            metadata = content_type = None
            node.ctime_ns = time.time_ns()
            if node.file.attributes_due:
                metadata = attributes.merge(node.metadata, attributes.encode(node))  # type: ignore[arg-type]
                content_type = attributes.content_type(new_name)
            etag = self._copy(old_key, new_key, node.size_in_bucket, node.etag, metadata, content_type)
            core.store.delete(old_key)
            self._move(node, target, new_parent, new_name)
            with core.lock:
                if metadata is not None:
                    node.metadata = metadata
                    node.file.attributes_due = 0.0
                self.files.rebase(node, new_key, etag)

    def _move(self, node: Node, target: Node | None, new_parent: Node, new_name: str) -> None:
        core = self.core
        with core.lock:
            old_parent = node.parent
            assert old_parent is not None
            if target is not None:
                self._gone(target)
            entry = old_parent.dir.entries.get(node.name) or Entry(new_name, node.is_dir, None)
            self.directories.note(old_parent, node.name, None)
            core.table.move(node, new_parent, new_name)
            self.directories.note(new_parent, new_name, Entry(new_name, entry.is_dir, None if node.is_dir else entry.info))
            self._touch(old_parent)
            self._touch(new_parent)
            node.ctime_ns = time.time_ns()

    def _copy(
        self,
        source: str,
        target: str,
        size: int,
        etag: str,
        metadata: dict[str, str] | None = None,
        content_type: str | None = None,
    ) -> str:
        """Server-side copy of an object of any size; returns the new ETag."""
        store = self.core.store
        if size <= COPY_LIMIT:
            return store.copy(source, target, metadata=metadata, content_type=content_type, if_source_match=etag)
        info = store.head(source)
        if info.etag != etag:
            raise error(errno.ESTALE, f"{source} was replaced by someone else")
        upload_id = store.create_upload(
            target, metadata=metadata or info.metadata, content_type=content_type or info.content_type
        )
        try:
            parts = []
            for number, start in enumerate(range(0, size, COPY_PART), 1):
                length = min(COPY_PART, size - start)
                parts.append((number, store.copy_part(target, upload_id, number, source, start, length)))
            if store.head(source).etag != etag:  # UploadPartCopy has no condition of its own on R2
                raise error(errno.ESTALE, f"{source} was replaced by someone else")
            return store.complete_upload(target, upload_id, parts)
        except BaseException:
            store.abort_upload(target, upload_id)
            raise

    def _rename_directory(self, node: Node, target: Node | None, new_parent: Node, new_name: str) -> None:
        """Copy every key below, re-parent the node, delete the old keys. A failure before the re-parent undoes the copies."""
        core = self.core
        for below in core.table.below(node):
            if isinstance(below.state, FileState):
                self.files.sync(below)
        old_prefix = core.key_of(node)
        with core.lock:
            new_prefix = join_key(core.table.prefix_of(new_parent), new_name, directory=True)
        infos = []
        token: str | None = None
        while True:
            page = core.store.list(old_prefix, token=token)
            infos += page.objects
            token = page.token
            if token is None:
                break
        copied: dict[str, str] = {}  # new key: new ETag (that of a multipart object changes with a copy)

        def copy(info: object) -> None:
            new_key = new_prefix + info.key[len(old_prefix) :]  # type: ignore[attr-defined]
            copied[new_key] = self._copy(info.key, new_key, info.size, info.etag)  # type: ignore[attr-defined]

        try:
            for _ in core.committer.pool.map(copy, infos):
                pass
            if not any(info.key == old_prefix for info in infos):
                core.store.put(new_prefix, b"", content_type=attributes.DIRECTORY_TYPE)
        except Exception:
            core.store.delete_many(list(copied))
            raise
        old_entry = node.parent.dir.entries.get(node.name) if node.parent is not None else None
        self._move(node, target, new_parent, new_name)
        with core.lock:
            node.dir.marker = ObjectInfo(new_prefix, 0, "", time.time())
            node.dir.flag_of = None
            node.dir.listed_at = 0.0
            for below in core.table.below(node):
                if below.is_dir:
                    below.dir.listed_at = 0.0
                elif below.etag is not None:
                    key = core.table.key_of(below)
                    if key in copied:
                        self.files.rebase(below, key, copied[key])
                    else:  # it was gone from the bucket before we listed
                        below.checked = 0.0
        old_keys = [info.key for info in infos]
        if old_entry is not None and old_entry.info is not None:
            old_keys.append(old_entry.info.key)
        failed = core.store.delete_many(old_keys)
        for key, why in failed:
            log.error("%s was copied to its new name but could not be deleted: %s", key, why)
        log.info("renamed %s to %s: %d objects", old_prefix, new_prefix, len(infos))
