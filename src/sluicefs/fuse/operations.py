"""FUSE requests in, filesystem verbs out. The only room, with `mount`, that knows llfuse; it decides nothing itself.

llfuse holds one global lock in every handler: each handler that may wait drops it first (`waiting`). Any exception but
FUSEError would end the mount: `boundary` turns all of them into an errno.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import llfuse

from sluicefs.errors import AccessDeniedError
from sluicefs.fs.filesystem import DirHandle, FileSystem, SetAttr
from sluicefs.fs.namespace import Caller
from sluicefs.fs.nodes import Node

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
BLOCK = 4096
# What statfs shows: R2 has no limit, and 32-bit programs choke on more.
CAPACITY_BLOCKS = 1 << 42
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EPERM, errno.EINVAL,
            errno.ENAMETOOLONG, errno.ENODATA, errno.ESTALE, errno.EILSEQ, errno.E2BIG, errno.EOPNOTSUPP}  # fmt: skip


def boundary(handler: F) -> F:
    """Every error leaves as an errno; the surprising ones are logged with their cause. EIO by default."""

    @functools.wraps(handler)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except llfuse.FUSEError:
            raise
        except OSError as error:
            number = error.errno or errno.EIO
            if number not in EXPECTED and not isinstance(error, AccessDeniedError):  # of which the store tells once
                log.warning("%s: %s", handler.__name__, error)
            raise llfuse.FUSEError(number) from None
        except Exception:
            log.exception("%s failed in a way it should not", handler.__name__)
            raise llfuse.FUSEError(errno.EIO) from None

    return guarded  # type: ignore[return-value]


def waiting(handler: F) -> F:
    """`boundary`, with llfuse's lock dropped meanwhile: the handler may wait for the network."""

    @functools.wraps(handler)
    def unlocked(*args: Any, **kwargs: Any) -> Any:
        with llfuse.lock_released:
            return handler(*args, **kwargs)

    return boundary(unlocked)  # type: ignore[return-value]


class Operations(llfuse.Operations):  # type: ignore[misc]
    """llfuse's handlers over one FileSystem."""

    def __init__(self, fs: FileSystem):
        super().__init__()
        self.fs = fs
        self.ttl = fs.core.config.attr_ttl
        self.xattr = fs.core.config.xattr

    def _entry(self, node: Node) -> llfuse.EntryAttributes:
        entry = llfuse.EntryAttributes()
        entry.st_ino = node.ino
        entry.st_mode = node.mode
        entry.st_nlink = 0 if node.unlinked else 1
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_rdev = node.rdev
        entry.st_size = node.size
        entry.st_blksize = 1 << 20
        entry.st_blocks = (node.size + 511) // 512
        entry.st_atime_ns = node.atime_ns
        entry.st_mtime_ns = node.mtime_ns
        entry.st_ctime_ns = node.ctime_ns
        entry.generation = 0
        # An entry that a walk got from a listing past its time is good for as long again, or `open` would ask once more.
        left = node.checked + self.ttl - time.monotonic()
        entry.attr_timeout = entry.entry_timeout = left if left > 0 else self.ttl
        return entry

    # -- inodes -----------------------------------------------------------------------------------------------------------

    @waiting
    def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> llfuse.EntryAttributes:
        try:
            return self._entry(self.fs.lookup(parent_inode, name))
        except FileNotFoundError:
            if self.ttl <= 0:
                raise
            missing = llfuse.EntryAttributes()  # a negative entry: the kernel remembers that the name is not there
            missing.st_ino = 0
            missing.entry_timeout = missing.attr_timeout = self.fs.missing_for(parent_inode, name)
            return missing

    @waiting
    def _forget(self, inode_list: list[tuple[int, int]]) -> None:
        self.fs.forget(inode_list)

    def forget(self, inode_list: list[tuple[int, int]]) -> None:
        with contextlib.suppress(llfuse.FUSEError):  # logged; there is no answer to a FORGET, and llfuse ends at any error
            self._forget(inode_list)

    @waiting
    def getattr(self, inode: int, ctx: Any) -> llfuse.EntryAttributes:
        return self._entry(self.fs.getattr(inode))

    @waiting
    def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> llfuse.EntryAttributes:
        change = SetAttr(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(self.fs.setattr(inode, change))

    @waiting
    def readlink(self, inode: int, ctx: Any) -> bytes:
        return self.fs.readlink(inode)

    # -- files ------------------------------------------------------------------------------------------------------------

    @waiting
    def open(self, inode: int, flags: int, ctx: Any) -> int:
        return self.fs.open(inode, flags)

    @waiting
    def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[int, llfuse.EntryAttributes]:
        number, node = self.fs.create(parent_inode, name, mode, flags, Caller(ctx.uid, ctx.gid))
        return number, self._entry(node)

    @boundary
    def read(self, fh: int, off: int, size: int) -> Any:
        data = self.fs.handle(fh).try_read(off, size)
        if data is not None:
            return data
        with llfuse.lock_released:
            return self.fs.read(fh, off, size, tried=True)

    @waiting
    def write(self, fh: int, off: int, buf: bytes) -> int:
        return self.fs.write(fh, off, buf)

    @waiting
    def flush(self, fh: int) -> None:
        self.fs.flush(fh)

    @waiting
    def fsync(self, fh: int, datasync: bool) -> None:
        self.fs.fsync(fh)

    @waiting
    def release(self, fh: int) -> None:
        self.fs.release(fh)

    # -- directories ------------------------------------------------------------------------------------------------------

    @boundary
    def opendir(self, inode: int, ctx: Any) -> int:
        return self.fs.opendir(inode)

    def readdir(self, fh: int, off: int) -> Iterator[tuple[bytes, llfuse.EntryAttributes, int]]:
        return self._readdir(fh, off)

    @boundary
    def _readdir(self, fh: int, off: int) -> Iterator[tuple[bytes, llfuse.EntryAttributes, int]]:
        with llfuse.lock_released:
            entries = self.fs.entries(fh, again=off == 0)
        return self._direntries(entries, off)

    def _direntries(self, entries: DirHandle, off: int) -> Iterator[tuple[bytes, llfuse.EntryAttributes, int]]:
        entry = llfuse.EntryAttributes()  # llfuse copies what it needs before it asks for the next one
        for index in range(off, len(entries)):
            yield self._direntry(entries, index, entry), entry, index + 1

    @boundary  # of its own: this runs while llfuse iterates, when `_readdir` has returned
    def _direntry(self, entries: DirHandle, index: int, entry: llfuse.EntryAttributes) -> bytes:
        name, entry.st_ino, entry.st_mode = entries[index]
        return name.encode("utf-8")

    @boundary
    def releasedir(self, fh: int) -> None:
        self.fs.releasedir(fh)

    @boundary
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names are in the bucket as soon as the call that made them returned."""

    @waiting
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> llfuse.EntryAttributes:
        return self._entry(self.fs.mkdir(parent_inode, name, mode, Caller(ctx.uid, ctx.gid)))

    @waiting
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> llfuse.EntryAttributes:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        return self._entry(self.fs.mknod(parent_inode, name, mode, rdev, Caller(ctx.uid, ctx.gid)))

    @waiting
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> llfuse.EntryAttributes:
        return self._entry(self.fs.symlink(parent_inode, name, target, Caller(ctx.uid, ctx.gid)))

    @waiting
    def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self.fs.unlink(parent_inode, name)

    @waiting
    def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self.fs.rmdir(parent_inode, name)

    @waiting
    def rename(self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, ctx: Any) -> None:
        self.fs.rename(parent_inode_old, name_old, parent_inode_new, name_new)

    @boundary
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> None:
        raise llfuse.FUSEError(errno.EPERM)  # an object has one key

    @boundary
    def statfs(self, ctx: Any) -> llfuse.StatvfsData:
        data = llfuse.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK
        data.f_blocks = data.f_bfree = data.f_bavail = CAPACITY_BLOCKS
        data.f_files = data.f_ffree = data.f_favail = 1 << 40
        data.f_namemax = 255
        return data

    # -- extended attributes ----------------------------------------------------------------------------------------------

    def getxattr(self, inode: int, name: bytes, ctx: Any = None) -> bytes:  # llfuse gives no ctx for XATTR_CREATE, REPLACE
        if not self.xattr:
            raise llfuse.FUSEError(errno.ENOSYS)  # the kernel then stops asking before every write
        if name == b"security.capability":
            raise llfuse.FUSEError(errno.ENODATA)  # asked before every write: no look-up, no lock dropped
        return self._getxattr(inode, name)

    @waiting
    def _getxattr(self, inode: int, name: bytes) -> bytes:
        return self.fs.getxattr(inode, name)

    @waiting
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        self._require_xattr()
        self.fs.setxattr(inode, name, value)

    @waiting
    def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        self._require_xattr()
        return self.fs.listxattr(inode)

    @waiting
    def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        self._require_xattr()
        self.fs.removexattr(inode, name)

    def _require_xattr(self) -> None:
        if not self.xattr:
            raise llfuse.FUSEError(errno.ENOSYS)
