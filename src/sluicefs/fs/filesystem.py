"""The filesystem of one mount, by inode number: every verb a kernel asks for, in terms of neither FUSE nor S3.

Errors are OSError with the errno POSIX names for the case. Nodes that are returned are read-only to the caller.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import stat
import time
from dataclasses import dataclass

from sluicefs.config import Config
from sluicefs.fs.core import Core
from sluicefs.fs.files import Files, Handle
from sluicefs.fs.names import RESERVED, decode_name, error
from sluicefs.fs.namespace import Caller, Namespace
from sluicefs.fs.nodes import FileState, Node
from sluicefs.fs.xattrs import ExtendedAttributes
from sluicefs.store.api import Store

# mtime set to a time this far from now (nanoseconds) was chosen by somebody, and a listing would not show it.
BY_HAND = 100_000_000


@dataclass(frozen=True, slots=True)
class SetAttr:
    """What setattr changes; None: leave it. Times in nanoseconds, size in bytes."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class DirHandle:
    """One open directory: the names as they were when reading began. A name takes 8 bytes here, the rest is made on demand."""

    def __init__(self, fs: FileSystem, node: Node):
        self.node = node
        self._fs = fs
        self._names: list[str] | None = None

    def begin(self) -> None:
        """Take the names as they are now."""
        node = self.node
        if not node.unlinked:
            self._fs.core.directories.load(node)
        with self._fs.core.lock:
            self._names = [".", "..", *node.dir.entries] if not node.unlinked else [".", ".."]

    @property
    def begun(self) -> bool:
        return self._names is not None

    def __len__(self) -> int:
        return len(self._names or ())

    def __getitem__(self, index: int) -> tuple[str, int, int]:
        """(name, inode number, st_mode type) of one entry. IndexError at the end."""
        name = (self._names or [])[index]
        node = self.node
        if index < 2:
            return name, (node if index == 0 else node.parent or node).ino, stat.S_IFDIR
        child = (node.children or {}).get(name)
        if child is not None:
            return name, child.ino, stat.S_IFMT(child.mode)
        return name, self._fs.core.table.ino_for(node, name), node.dir.entries.kind(name)


class FileSystem:
    """All verbs. Thread-safe; calls wait for the bucket where they must, each within the store's bounds."""

    def __init__(self, config: Config, store: Store, staging: str):
        self.core = Core(config, store, staging)
        self.files = Files(self.core)
        self.names = Namespace(self.core, self.files)
        self.xattrs = ExtendedAttributes(self.core, self.files, self.names)
        self._handles: dict[int, Handle] = {}
        self._directories: dict[int, DirHandle] = {}
        self._next = itertools.count(1)

    # -- inodes -----------------------------------------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        """The node of a number the kernel holds. ESTALE where it is unknown."""
        node = self.core.table.by_ino.get(ino)
        if node is None:
            raise error(errno.ESTALE)
        return node

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        """Find a name; the node's lookup count is raised. "." and ".." work too. ENOENT, ENOTDIR, ENAMETOOLONG."""
        parent = self.node(parent_ino)
        if len(name) > 255:
            raise error(errno.ENAMETOOLONG)
        while True:
            if name == b".":
                node = parent
            elif name == b"..":
                node = parent.parent or parent
            else:
                node = self.core.directories.lookup(parent, _name_to_find(name), opening=True)
            with self.core.lock:
                if node.ino in self.core.table.by_ino:  # else it was dropped between the two locks
                    node.lookups += 1
                    return node

    def missing_for(self, parent_ino: int, name: bytes) -> float:
        """For how long (seconds) the kernel may remember that a name was not found."""
        return self.core.directories.missing_for(self.node(parent_ino), name.decode("utf-8", "replace"))

    def forget(self, counts: list[tuple[int, int]]) -> None:
        """The kernel gave back lookups: (inode number, count) each."""
        with self.core.lock:
            for ino, count in counts:
                node = self.core.table.by_ino.get(ino)
                if node is not None:
                    self.core.table.forget(node, count)

    def getattr(self, ino: int) -> Node:
        """The node with attributes at most `--attr-ttl` old."""
        node = self.node(ino)
        if node is self.core.table.root:
            if not node.complete and self.core.config.attrs != "listing":
                self.core.stored.learn(node)
        elif not node.is_dir and not node.busy and node.parent is not None:
            self.core.directories.refresh(node)
        return node

    def setattr(self, ino: int, change: SetAttr) -> Node:
        """Change attributes; the size goes to the bucket before this returns unless the file is open for writing.

        ENOSPC: the store has no room for so much metadata; nothing is changed then.
        """
        node = self._to_change(ino)
        if change.size is not None:
            if node.is_dir:
                raise error(errno.EISDIR)
            with self.names.gate.shared():
                if not node.busy:
                    self.core.directories.refresh(node)
                handle = self.files.attach(node, False)  # a rename of a directory above waits for its lock from now on
            try:
                self.files.truncate(node, change.size)  # beyond the gate, as writes are: it may send all of a long file
            finally:
                self.files.release(handle)
        others = (change.mode, change.uid, change.gid, change.atime_ns, change.mtime_ns)
        if any(value is not None for value in others):
            with self.names.gate.shared():
                self._set_attributes(node, change)
        return node

    def _set_attributes(self, node: Node, change: SetAttr) -> None:
        self.core.stored.learn_again(node)
        before = (node.mode, node.uid, node.gid, node.atime_ns, node.mtime_ns, node.ctime_ns, node.own)
        with self.core.lock:
            self._apply(node, change)
        try:
            if node.is_dir:
                self.names.store_directory_attributes(node)
            else:
                self.core.stored.metadata_of(node)
                self.files.attributes.changed(node)
        except OSError:
            with self.core.lock:
                node.mode, node.uid, node.gid, node.atime_ns, node.mtime_ns, node.ctime_ns, node.own = before
            raise

    def _apply(self, node: Node, change: SetAttr) -> None:
        node.ctime_ns = now = time.time_ns()
        if change.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(change.mode)
        if change.uid is not None:
            node.uid = change.uid
        if change.gid is not None:
            node.gid = change.gid
        if change.atime_ns is not None:
            node.atime_ns = change.atime_ns
        if change.mtime_ns is not None:
            node.mtime_ns = change.mtime_ns
            node.own = node.own or abs(now - change.mtime_ns) > BY_HAND

    def _to_change(self, ino: int) -> Node:
        """The node whose attributes are to change. EROFS; ESTALE: another object has its name, and nobody would store them."""
        node = self.node(ino)
        if self.core.config.read_only:
            raise error(errno.EROFS)
        if node.parent is None and not node.unlinked and node is not self.core.table.root:
            raise error(errno.ESTALE)
        return node

    # -- extended attributes ----------------------------------------------------------------------------------------------

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Raises ENODATA."""
        return self.xattrs.get(self.node(ino), name)

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Raises E2BIG, ENOSPC, EOPNOTSUPP, EPERM."""
        node = self._to_change(ino)
        with self.names.gate.shared():
            self.xattrs.set(node, name, value)

    def listxattr(self, ino: int) -> list[bytes]:
        return self.xattrs.names(self.node(ino))

    def removexattr(self, ino: int, name: bytes) -> None:
        """Raises ENODATA."""
        node = self._to_change(ino)
        with self.names.gate.shared():
            self.xattrs.set(node, name, None)

    # -- files ------------------------------------------------------------------------------------------------------------

    def _new_handle(self, handle: Handle) -> int:
        number = next(self._next)
        self._handles[number] = handle
        return number

    def handle(self, number: int) -> Handle:
        try:
            return self._handles[number]
        except KeyError:
            raise error(errno.EBADF) from None

    def open(self, ino: int, flags: int) -> int:
        """Open a file; returns a handle number. ESTALE: the name now means another object."""
        node = self.node(ino)
        if node.parent is None and not node.unlinked:
            raise error(errno.ESTALE)  # another object has its name; the kernel looks it up once more
        if (flags & os.O_ACCMODE) == os.O_RDONLY:
            return self._new_handle(self.files.open(node, flags))
        with self.names.gate.shared():
            return self._new_handle(self.files.open(node, flags))

    def create(self, parent_ino: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Node]:
        """Create and open; (handle number, node with its lookup count raised). An existing file is opened unless O_EXCL."""
        parent = self.node(parent_ino)
        text = decode_name(name)
        try:
            node = self.names.create(parent, text, mode, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            node = self.lookup(parent_ino, name)
            try:
                if not (node.is_file or node.is_dir):
                    raise error(errno.ESTALE) from None  # the kernel looks again, and follows the link or opens the FIFO itself
                return self.open(node.ino, flags), node
            except BaseException:
                self.forget([(node.ino, 1)])  # the kernel will not know of it
                raise
        return self._new_handle(self.files.attach(node, True)), node

    def read(self, number: int, offset: int, length: int, *, tried: bool = False) -> memoryview | bytes | bytearray:
        """Up to `length` bytes, fewer only at the end. `tried`: the handle's `try_read` was asked just before, in vain."""
        return self.files.read(self.handle(number), offset, length, tried=tried)

    def write(self, number: int, offset: int, data: bytes) -> int:
        return self.files.write(self.handle(number), offset, data)

    def flush(self, number: int) -> None:
        self.files.flush(self.handle(number))

    def fsync(self, number: int) -> None:
        self.files.sync(self.handle(number).node)

    def release(self, number: int) -> None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            self.files.release(handle)

    # -- directories ------------------------------------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        node = self.node(ino)
        if not node.is_dir:
            raise error(errno.ENOTDIR)
        number = next(self._next)
        self._directories[number] = DirHandle(self, node)
        return number

    def entries(self, number: int, *, again: bool = False) -> DirHandle:
        """The names of an open directory, "." and ".." first: (name, inode number, st_mode type) by index."""
        handle = self._directories[number]
        if again or not handle.begun:
            handle.begin()
        handle.node.dir.used = time.monotonic()  # a walk goes on
        return handle

    def releasedir(self, number: int) -> None:
        self._directories.pop(number, None)

    # -- names ------------------------------------------------------------------------------------------------------------

    def mkdir(self, parent_ino: int, name: bytes, mode: int, caller: Caller) -> Node:
        return self.names.mkdir(self.node(parent_ino), decode_name(name), mode, caller)

    def mknod(self, parent_ino: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        return self.names.mknod(self.node(parent_ino), decode_name(name), mode, rdev, caller)

    def symlink(self, parent_ino: int, name: bytes, target: bytes, caller: Caller) -> Node:
        text = target.decode("utf-8", "surrogateescape")
        return self.names.symlink(self.node(parent_ino), decode_name(name), text, caller)

    def readlink(self, ino: int) -> bytes:
        return self.names.readlink(self.node(ino)).encode("utf-8", "surrogateescape")

    def unlink(self, parent_ino: int, name: bytes) -> None:
        self.names.unlink(self.node(parent_ino), _name_to_find(name))

    def rmdir(self, parent_ino: int, name: bytes) -> None:
        self.names.rmdir(self.node(parent_ino), _name_to_find(name))

    def rename(self, parent_ino: int, name: bytes, new_parent_ino: int, new_name: bytes) -> None:
        new_parent, new = self.node(new_parent_ino), decode_name(new_name)
        self.names.rename(self.node(parent_ino), _name_to_find(name), new_parent, new)
        with self.core.lock:
            node = (new_parent.children or {}).get(new)
            if node is not None:  # the kernel may have forgotten it meanwhile
                self.core.table.drop_if_unused(node)

    # -- the whole --------------------------------------------------------------------------------------------------------

    def sync_all(self, deadline: float = math.inf) -> list[tuple[Node, OSError]]:
        """Send everything unsent; returns what could not be sent, with why. `deadline`: monotonic seconds."""
        return self.files.sync_all(deadline)

    def take_over(self, *, everything: bool = False) -> None:
        """Bring back and send what a crash left, `everything`: also what applications were told had failed."""
        self.files.take_over(everything=everything)

    def drop_memory(self) -> None:
        """Forget the bytes of the bucket that memory has: who reads them gets them from the disk cache or the bucket."""
        with self.core.lock:
            states = [node.state for node in self.core.table.by_ino.values()]
            versions = [state.version for state in states if isinstance(state, FileState) and state.version is not None]
        for version in versions:
            version.blocks.drop_ended()

    def pending(self) -> int:
        """How many files hold data or attributes the bucket does not have."""
        return len(self.files.dirty_nodes())

    def close(self) -> None:
        """End all threads. Call `sync_all` first."""
        self.files.close()
        self.core.close()


def _name_to_find(name: bytes) -> str:
    """A name to look for: one that cannot exist is simply not there."""
    try:
        text = name.decode("utf-8")
        if text.startswith(RESERVED):
            raise error(errno.ENOENT)
        return text
    except UnicodeDecodeError:
        raise error(errno.ENOENT) from None
