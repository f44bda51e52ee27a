"""Inodes in memory: what is known of each name, and where it hangs. No network, no locks: `Core.lock` guards it.

A node exists while the kernel knows it (lookup count), while it is open or holds unsent data, or while it has such children.
"""

from __future__ import annotations

import errno
import itertools
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from sluicefs.engine import BlockMap
from sluicefs.fs import locks
from sluicefs.fs.entries import Entries, etag_of, modified_ns_of, size_of
from sluicefs.fs.gaps import Gaps
from sluicefs.fs.names import error
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.draft import Draft

ROOT_INO = 1


@dataclass(slots=True)
class Version:
    """One version of an object: what `open` pins, what If-Match names, whose blocks the cache holds.

    `moving`: it is being renamed; key and ETag are those of the copy, which its node does not know yet.
    """

    key: str
    etag: str
    size: int
    blocks: BlockMap
    moving: bool = False


@dataclass(slots=True)
class FileState:
    """What a file has only while it is open, or dirty, or was read. `lock` guards `draft`; it is taken before `Core.lock`."""

    lock: threading.RLock = field(default_factory=locks.factory(locks.Rank.FILE, threading.RLock))
    version: Version | None = None
    draft: Draft | None = None
    opens: int = 0
    writers: int = 0
    aside: str | None = None  # where the server keeps the bytes of an unlinked, still open, large object
    attributes_due: float = 0.0  # monotonic seconds; 0: the bucket has them


@dataclass(slots=True)
class DirState:
    """What is known of a directory's entries.

    `listed_at`: when the listing that `entries` came from was asked for (monotonic seconds; 0: never). `used`: when it last
    answered. `changed`: when this mount itself last changed a name, so that an older listing does not undo it. `probes` and
    `big_until` steer how one name is asked for, `gaps` are names known to be missing; `walked` and `order` notice a walk.
    `stores_attributes`: entries have attributes of their own in the bucket; `flag_of` is the marker's version that said so.
    `asked`: when its marker was last read or written (monotonic seconds). `directories_asked`: when the attributes of
    directories in it were last asked for (monotonic seconds).
    """

    entries: Entries = field(default_factory=Entries)
    listed_at: float = 0.0
    used: float = 0.0
    changed: dict[str, float] = field(default_factory=dict)
    probes: int = 0
    big_until: float = 0.0
    gaps: Gaps = field(default_factory=Gaps)
    marker: ObjectInfo | None = None
    foreign_marker: str | None = None  # `dir` or `dir_$folder$`, which another program made
    stores_attributes: bool = False
    flag_of: str | None = None
    asked: float = 0.0
    directories_asked: float = 0.0
    walked: int = 0
    left_out: int = 0  # keys the listing does not show
    order: list[str] | None = None  # names of the files, sorted
    last_opened: int = -2
    opened_in_order: int = 0
    fetched_to: int = 0  # files before this one, in `order`, were fetched ahead or need not be
    lock: threading.Lock = field(default_factory=locks.factory(locks.Rank.DIRECTORY, threading.Lock))

    def distrust(self) -> None:
        """The bucket may have other entries: ask before anything else is said of them."""
        self.listed_at = 0.0
        self.gaps.clear()


class Node:
    """One inode. Times are nanoseconds since the epoch; `etag` is None until the object exists in the bucket.

    `checked`: when the bucket last confirmed it (monotonic seconds). `complete`: its own metadata has been read. `own`: its
    times differ from what a listing alone would show. `late`: `listed_at` of the listing that answered for it after its time.
    `content_type`: what the bucket has, where it is not the one that belongs to the name.
    """

    __slots__ = (
        "_etag",
        "_flags",
        "_size",
        "_special",
        "_times",
        "checked",
        "children",
        "content_type",
        "gid",
        "ino",
        "late",
        "lookups",
        "metadata",
        "mode",
        "name",
        "parent",
        "state",
        "uid",
    )

    def __init__(self, ino: int, parent: Node | None, name: str, mode: int):
        self.ino = ino
        self.parent = parent
        self.name = name
        self.mode = mode
        self.uid = 0
        self.gid = 0
        # A million nodes must fit into memory: `_etag` may be an entry's packed form, shared with the listing, and what is None
        # of size and times is in there.
        self._etag: str | bytes | None = None
        self._size: int | None = 0
        self._times: tuple[int, int, int] | None = (0, 0, 0)
        self._special: int | str | None = None
        self._flags = 0
        self.checked = 0.0
        self.late = 0.0
        self.metadata: dict[str, str] | None = None
        self.content_type: str | None = None
        self.lookups = 0
        self.children: dict[str, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.state: FileState | DirState | None = None

    def take_packed(self, packed: bytes) -> None:
        """ETag, size and times are those of a packed entry."""
        self._etag, self._size, self._times = packed, None, None

    @property
    def etag(self) -> str | None:
        """The ETag of the version it stands for."""
        etag = self._etag
        return etag_of(etag) if isinstance(etag, bytes) else etag

    @etag.setter
    def etag(self, etag: str | None) -> None:
        self._size, self._times = self.size, self.times
        self._etag = etag

    @property
    def size(self) -> int:
        """Bytes."""
        size = self._size
        if size is None:
            assert isinstance(self._etag, bytes)
            size = size_of(self._etag)
        return size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size

    @property
    def times(self) -> tuple[int, int, int]:
        """atime, mtime, ctime in nanoseconds."""
        times = self._times
        if times is None:
            assert isinstance(self._etag, bytes)
            modified = modified_ns_of(self._etag)
            times = (modified, modified, modified)
        return times

    @times.setter
    def times(self, times: tuple[int, int, int]) -> None:
        self._times = times

    @property
    def atime_ns(self) -> int:
        return self.times[0]

    @atime_ns.setter
    def atime_ns(self, atime: int) -> None:
        _, mtime, ctime = self.times
        self._times = (atime, mtime, ctime)

    @property
    def mtime_ns(self) -> int:
        return self.times[1]

    @mtime_ns.setter
    def mtime_ns(self, mtime: int) -> None:
        atime, _, ctime = self.times
        self._times = (atime, mtime, ctime)

    @property
    def ctime_ns(self) -> int:
        return self.times[2]

    @ctime_ns.setter
    def ctime_ns(self, ctime: int) -> None:
        atime, mtime, _ = self.times
        self._times = (atime, mtime, ctime)

    def _flag(self, bit: int, on: bool) -> None:
        self._flags = self._flags | bit if on else self._flags & ~bit

    @property
    def unlinked(self) -> bool:
        return bool(self._flags & 1)

    @unlinked.setter
    def unlinked(self, on: bool) -> None:
        self._flag(1, on)

    @property
    def complete(self) -> bool:
        return bool(self._flags & 2)

    @complete.setter
    def complete(self, on: bool) -> None:
        self._flag(2, on)

    @property
    def own(self) -> bool:
        return bool(self._flags & 4)

    @own.setter
    def own(self, on: bool) -> None:
        self._flag(4, on)

    @property
    def rdev(self) -> int:
        """Of a device: its number."""
        return self._special if isinstance(self._special, int) else 0

    @rdev.setter
    def rdev(self, rdev: int) -> None:
        if rdev:
            self._special = rdev

    @property
    def target(self) -> str | None:
        """Of a symlink: what it points to, once it was read."""
        return self._special if isinstance(self._special, str) else None

    @target.setter
    def target(self, target: str) -> None:
        self._special = target

    @property
    def is_dir(self) -> bool:
        return self.children is not None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def size_in_bucket(self) -> int:
        """Bytes of the object as the bucket has it, whatever is unsent."""
        draft = self.draft
        if draft is None:
            return self.size
        return draft.base.size if draft.base is not None else 0

    @property
    def dir(self) -> DirState:
        if self.state is None:
            self.state = DirState()
        assert isinstance(self.state, DirState)
        return self.state

    @property
    def file(self) -> FileState:
        if self.state is None:
            self.state = FileState()
        assert isinstance(self.state, FileState)
        return self.state

    @property
    def draft(self) -> Draft | None:
        """Data and size that the bucket does not have yet."""
        state = self.state
        return state.draft if isinstance(state, FileState) else None

    @property
    def busy(self) -> bool:
        """Open, or with unsent data: what this mount knows of it beats any listing."""
        state = self.state
        return isinstance(state, FileState) and (state.opens > 0 or state.draft is not None or state.attributes_due > 0)

    def __repr__(self) -> str:
        return f"<Node {self.ino} {self.name!r} {stat.filemode(self.mode)}>"


class NodeTable:
    """All inodes by number, and the tree they form. Keys are derived from the parent chain, so a rename touches one node."""

    def __init__(self, prefix: str, root_mode: int):
        self.prefix = prefix
        self.root = Node(ROOT_INO, None, "", root_mode)
        self.by_ino: dict[int, Node] = {ROOT_INO: self.root}
        self._salt = itertools.count(1)

    def prefix_of(self, node: Node) -> str:
        """The key prefix of a directory: "" or ending in "/". OSError ENOENT, ESTALE: it is not in the tree any more."""
        names: list[str] = []
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        if node is not self.root:  # never take what hung below a directory that is gone for something below the root
            raise error(errno.ENOENT if node.unlinked else errno.ESTALE)
        names.reverse()
        return self.prefix + "/".join(names) + "/" if names else self.prefix

    def key_of(self, node: Node) -> str:
        """The object key of a node (of a directory: that of its marker)."""
        if node.is_dir:
            return self.prefix_of(node)
        if node.parent is None:
            raise error(errno.ENOENT if node.unlinked else errno.ESTALE)
        return self.prefix_of(node.parent) + node.name

    def ino_for(self, parent: Node, name: str) -> int:
        """The number a new node of this name would get: the same as long as nothing else has it, so readdir and stat agree."""
        base = f"{parent.ino}/{name}".encode("utf-8", "surrogatepass")
        ino = xxhash.xxh3_64_intdigest(base) >> 1
        while ino <= ROOT_INO or ino in self.by_ino:
            ino = xxhash.xxh3_64_intdigest(base + b"#%d" % next(self._salt)) >> 1
        return ino

    def add(self, parent: Node, name: str, mode: int) -> Node:
        """Make a node and hang it under `parent`; whatever had the name there is detached."""
        assert parent.children is not None
        old = parent.children.get(name)
        if old is not None:
            self.detach(old)
        node = Node(self.ino_for(parent, name), parent, name, mode)
        self.by_ino[node.ino] = node
        parent.children[name] = node
        return node

    def detach(self, node: Node) -> None:
        """Take a node out of the tree; it lives on by number while the kernel or a handle holds it."""
        parent = node.parent
        if parent is not None and parent.children is not None and parent.children.get(node.name) is node:
            del parent.children[node.name]
        node.parent = None
        self.drop_if_unused(node)

    def move(self, node: Node, parent: Node, name: str) -> None:
        """Re-parent, also what was detached. The number stays, and so does every open handle."""
        assert parent.children is not None
        if node.parent is not None and node.parent.children is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        self.by_ino.setdefault(node.ino, node)
        node.parent, node.name = parent, name
        parent.children[name] = node

    def forget(self, node: Node, count: int) -> None:
        """The kernel gave back `count` lookups."""
        node.lookups = max(0, node.lookups - count)
        self.drop_if_unused(node)

    def drop_if_unused(self, node: Node) -> None:
        while not node.lookups and node.ino != ROOT_INO and not node.busy and not node.children:
            parent = node.parent
            if self.by_ino.get(node.ino) is node:
                del self.by_ino[node.ino]
            if parent is None:
                return
            if parent.children is not None and parent.children.get(node.name) is node:
                del parent.children[node.name]
            node.parent = None
            node = parent

    def in_use(self, node: Node) -> bool:
        """Is it, or anything below it, open or with unsent data?"""
        return node.busy or any(below.busy for below in self.below(node))

    def below(self, node: Node) -> Iterator[Node]:
        """Every known node under a directory."""
        for child in list((node.children or {}).values()):
            yield child
            if child.is_dir:
                yield from self.below(child)
