"""What every part of the filesystem shares: the tree, its lock, the caches, the store. Made once per mount.

Locks, in the order they are taken (`locks` asserts it in tests): the renames' `Gate`, a directory's `DirState.lock`, a file's
`FileState.lock` (two files: by inode number), `Core.lock`. Nobody waits for the network or for another lock while holding
`Core.lock`.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import cast

from sluicefs.cache import DiskCache
from sluicefs.config import Config, MiB
from sluicefs.engine import BlockCache, DirtyMemory
from sluicefs.fs import locks
from sluicefs.fs.attributes import Defaults
from sluicefs.fs.commit import Committer
from sluicefs.fs.directory import Directories
from sluicefs.fs.fetching import Fetcher
from sluicefs.fs.firstread import FirstReads
from sluicefs.fs.nodes import Node, NodeTable, Version
from sluicefs.fs.stored import StoredAttributes
from sluicefs.fs.uploads import Asides, JournalingStore
from sluicefs.fs.walk import Walks
from sluicefs.staging import Staging
from sluicefs.store.api import Store

READ_THREADS = 16
UPLOAD_THREADS = 8


class Core:
    """The shared state of one mount. `staging` is a private folder on local disk for data that is not in the bucket yet."""

    def __init__(self, config: Config, store: Store, staging: str):
        memory = config.memory or 512 * MiB
        self.config = config
        about = {"endpoint": config.endpoint or "", "bucket": config.bucket, "prefix": config.prefix}
        about |= {"region": config.region or "", "provider": config.provider, "mountpoint": config.mountpoint}
        about["ca_bundle"] = config.ca_bundle or ""
        self.staging = Staging(staging, about)
        self.store = store = cast(Store, JournalingStore(store, self.staging))
        self.asides = Asides(store, self.staging, config.prefix)
        self.started = time.time()
        self.lock = locks.factory(locks.Rank.CORE, threading.RLock)()
        self.defaults = Defaults(
            uid=os.getuid() if config.uid is None else config.uid,
            gid=os.getgid() if config.gid is None else config.gid,
            file_mode=config.file_mode & ~config.umask & 0o7777,
            dir_mode=config.dir_mode & ~config.umask & 0o7777,
        )
        self.table = NodeTable(config.prefix, stat.S_IFDIR | self.defaults.dir_mode)
        root = self.table.root
        root.uid, root.gid = self.defaults.uid, self.defaults.gid
        root.mtime_ns = root.ctime_ns = root.atime_ns = int(self.started * 1e9)
        # Reads and unsent writes share the budget, a quarter for the latter: parts in flight bound what writing needs.
        self.dirty = DirtyMemory(max(memory // 4, 2 * config.part_size))
        self.cache = BlockCache(max(memory - self.dirty.limit, 16 * MiB))
        self.keep_written = 1 * MiB  # small files just written are most likely read again
        self.disk: DiskCache | None = None
        if config.cache_dir is not None and config.cache_size is not None:
            where = {"endpoint": config.endpoint or "", "bucket": config.bucket}
            self.disk = DiskCache(config.cache_dir, config.cache_size, queue_bytes=memory // 2, **where)
        self.fetcher = Fetcher(store, self.cache, READ_THREADS, self.disk)
        self.committer = Committer(self, UPLOAD_THREADS, memory)
        self.directories = Directories(self)
        self.stored = StoredAttributes(self)
        self.walks = Walks(self)
        self.first_reads = FirstReads(self)

    def key_of(self, node: Node) -> str:
        """The key of a node that is in the tree."""
        with self.lock:
            return self.table.key_of(node)

    def version(self, key: str, etag: str, size: int) -> Version:
        return self.fetcher.version(key, etag, size)

    def close(self) -> None:
        """End the threads. Everything was committed before."""
        self.first_reads.close()
        self.fetcher.close()
        self.committer.close()
        self.stored.close()
        self.staging.close()
