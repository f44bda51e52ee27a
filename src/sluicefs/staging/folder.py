"""The staging folder of a bucket, and in it a folder for each mount, locked while its process lives.

A mount makes its folder when it first has something to keep. What a mount that died left is taken over by the next one, or by
`sluicefs recover`; a folder whose lock is held is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import resource
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from sluicefs.staging.journal import FILES, Journal, StartedUpload, missing_commits

log = logging.getLogger(__name__)

# Descriptors that data files leave to connections and the rest: without them nothing could be sent any more. At most a half.
RESERVE = 128


@dataclass(slots=True)
class Left:
    """The locked folder of a mount: this one's own, or one whose mount is gone.

    `damage`: its journal has lost its latest changes. What it has may be outdated, so it is not sent, and nothing is changed.
    """

    path: str
    lock: int
    journal: Journal
    damage: str = ""

    def release(self) -> None:
        """Let go. A folder that owes nothing is deleted; one that does waits for the next mount or for `recover`."""
        with contextlib.suppress(OSError):
            empty = not self.damage and self.journal.empty()
            self.journal.close()
            if empty:
                shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


class Staging:
    """The folders of one bucket below `root` (made, 0700). `about` is written into the journal for `recover`."""

    def __init__(self, root: str, about: dict[str, str] | None = None):
        self.root = root
        self.about = about or {}
        self._own: Left | None = None
        self._lock = threading.Lock()
        self.adopted: list[Left] = []
        self.damaged: dict[str, str] = {}  # folders that `adopt` left as they are, and why

    @property
    def journal(self) -> Journal:
        """This mount's journal, made on first use. OSError."""
        return self._folder().journal

    @property
    def journals(self) -> list[Journal]:
        """This mount's and those taken over; none is made."""
        own = [self._own.journal] if self._own is not None else []
        return own + [left.journal for left in self.adopted]

    def _folder(self) -> Left:
        own = self._own
        if own is not None:
            return own
        with self._lock:
            if self._own is None:
                self._own = self._make()
            return self._own

    def _make(self) -> Left:
        while True:
            path = os.path.join(self.root, f"mount-{uuid.uuid4().hex[:12]}")
            os.makedirs(path, mode=0o700)
            lock = _lock(path)
            if lock is not None:  # else somebody cleaning up was quicker
                break
        try:
            journal = Journal(path)
            journal.describe(self.about)
            sync_folder(path)
            sync_folder(self.root)
        except BaseException:
            os.close(lock)
            shutil.rmtree(path, ignore_errors=True)
            raise
        return Left(path, lock, journal)

    def new_file(self) -> tuple[int, str]:
        """A new data file: (file descriptor, path). OSError ENOSPC, also where this process may open no more of them."""
        path = os.path.join(self._folder().path, f"data-{uuid.uuid4().hex}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            leave_some(fd)
        except OSError:
            os.unlink(path)
            raise
        return fd, path

    def adopt(self) -> list[Left]:
        """Take over what mounts that are gone left. Data files that no record names are deleted."""
        taken = []
        for left in _free(self.root):
            if left.damage:
                log.error("nothing of what %s has unsent is sent, and it stays there: %s", left.path, left.damage)
                self.damaged[left.path] = left.damage
                left.release()
                continue
            named = {record.file for record in left.journal.records()}
            if left.journal.damaged:
                named.update(os.listdir(left.path))  # the damaged rows may name any of them
            for name in os.listdir(left.path):
                if name not in FILES and name not in named:
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(left.path, name))
            if left.journal.empty():
                left.release()
            else:
                taken.append(left)
        self.adopted += taken
        return taken

    def give_back(self, left: Left) -> None:
        """Nothing in it is for this mount."""
        self.adopted.remove(left)
        left.release()

    def others_uploads(self) -> list[StartedUpload]:
        """The multipart uploads of other mounts that live on this machine."""
        mine = {left.path for left in self.adopted} | ({self._own.path} if self._own is not None else set())
        found: list[StartedUpload] = []
        for path in _folders(self.root):
            if path not in mine:
                with contextlib.suppress(OSError):
                    journal = Journal(path, read_only=True)
                    found += journal.uploads()
                    journal.close()
        return found

    def close(self) -> None:
        """Release every folder; those that owe nothing are gone afterwards."""
        for left in [*self.adopted, *([self._own] if self._own is not None else [])]:
            left.release()
        self.adopted, self._own = [], None


def leave_some(fd: int) -> None:
    """Close a data file just opened, with ENOSPC, where too few descriptors are left: the lowest free one is always taken."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and fd >= limit - min(RESERVE, limit // 2):
        os.close(fd)
        raise OSError(errno.ENOSPC, f"{limit} open files are too few for so much unsent data: raise the limit (ulimit -n)")


def scan(root: str, unreadable: dict[str, str] | None = None) -> Iterator[Left]:
    """Every locked folder of a bucket whose mount is gone, with `damage` or without; the caller releases it.

    `unreadable` takes the folders whose journal is none any more, and why.
    """
    return _free(root, unreadable)


def sync_folder(path: str) -> None:
    """fsync(2) of a directory: the names in it are durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folders(root: str) -> list[str]:
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    return [os.path.join(root, name) for name in names if name.startswith("mount-")]


def _free(root: str, unreadable: dict[str, str] | None = None) -> Iterator[Left]:
    for path in _folders(root):
        lock = _lock(path)
        if lock is None:
            continue
        if not os.path.exists(os.path.join(path, FILES[0])):  # its mount died before it kept anything
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            continue
        journal: Journal | None = None
        damage = ""
        try:
            if missing := missing_commits(path):
                damage = f"its journal is damaged: its latest {missing} changes are missing"
            journal = Journal(path, read_only=bool(damage))  # else SQLite throws away what it could not read
            journal.check()
        except OSError as error:
            log.error("the unsent data in %s cannot be read and is left as it is: %s", path, error)
            if unreadable is not None:
                unreadable[path] = error.strerror or str(error)
            with contextlib.suppress(OSError):
                if journal is not None:
                    journal.close()
            os.close(lock)
        else:
            yield Left(path, lock, journal, damage)


def _lock(path: str) -> int | None:
    """The folder's lock, or None where another process has it or the folder is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
            log.warning("%s cannot be locked: %s", path, error)
    os.close(handle)
    return None
