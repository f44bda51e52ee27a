"""Attributes that listings do not carry: when entries have to be asked one by one, and how that is known without asking.

`--attrs full` asks for every entry. `auto` asks only in directories where this filesystem stored attributes that differ from
what a listing shows; the directory's `dir/` marker says so in its metadata. `listing` never asks.
"""

from __future__ import annotations

import errno
import logging
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sluicefs.config import Config
from sluicefs.errors import NotFoundError, StoreError
from sluicefs.fs import attributes
from sluicefs.fs.entries import Entry
from sluicefs.fs.names import RESERVED, Listing, error
from sluicefs.fs.nodes import Node
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

FLAG = "sluicefs-attributes"  # in the metadata of a marker: "1" where entries have attributes of their own
# The root of a bucket has no marker of its own (its key would be empty): this hidden object stands in.
ROOT_MARKER = RESERVED + "root"
THREADS = 64
MARKERS = 64  # markers that are written at once, at most
# A listing does not tell whether a directory's marker has changed; its attributes are asked for again after so long (seconds).
DIRECTORIES_TTL = 60.0
# Last-Modified has whole seconds and an upload takes a while: times this near to it (nanoseconds) need no HEAD to be told.
NEAR = 2_000_000_000


def metadata_limit(config: Config) -> int:
    """Bytes of metadata the store takes. Where nobody says whose rules hold, AWS's: what fits there fits everywhere."""
    host = urlsplit(config.endpoint or "").hostname or ""
    wide = config.provider in ("r2", "gcs") or (
        config.provider == "auto" and host.endswith((".cloudflarestorage.com", "storage.googleapis.com"))
    )
    return attributes.R2_METADATA_LIMIT if wide else attributes.AWS_METADATA_LIMIT


class StoredAttributes:
    """Completes listings with metadata, keeps the markers' flags, and says what metadata an object gets."""

    def __init__(self, core: Core):
        self.core = core
        self.limit = metadata_limit(core.config)
        self._pool: ThreadPoolExecutor | None = None
        self._writing = [threading.Lock() for _ in range(MARKERS)]

    @property
    def pool(self) -> ThreadPoolExecutor:
        """For many small requests at once."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="many")
        return self._pool

    def marker_key(self, node: Node) -> str:
        """The key whose metadata speaks for a directory."""
        prefix = self.core.key_of(node)
        return prefix or ROOT_MARKER

    def writing_marker(self, node: Node) -> threading.Lock:
        """To be held over the request that writes a directory's marker: it says all, and a late one undoes another."""
        return self._writing[node.ino % MARKERS]

    def find_marker(self, listing: Listing) -> None:
        """The marker of a bucket's root is a hidden object."""
        if not listing.prefix:
            listing.marker = next((info for info in listing.own if info.key == ROOT_MARKER), None)

    # -- what an object's metadata is to be ----------------------------------------------------------------------------------

    def learn(self, node: Node) -> None:
        """Know the object's own metadata before it is replaced, as other people's things may be in it.

        OSError ESTALE: another object is there now, or another kind of file than a listing could tell.
        """
        if node.complete or node.unlinked or (node.etag is None and not node.is_dir):
            return
        core = self.core
        key = self.marker_key(node) if node.is_dir else core.key_of(node)
        try:
            info = core.store.head(key)
        except NotFoundError:
            if node.is_dir:
                node.complete, node.dir.stores_attributes, node.dir.asked = True, False, time.monotonic()
                return
            if node.draft is not None:
                return
            core.directories.replaced(node)
            raise error(errno.ESTALE, f"{key} was deleted by someone else") from None
        if not node.is_dir and node.draft is None and info.etag != node.etag:
            core.directories.replaced(node)
            raise error(errno.ESTALE, f"{key} was replaced by someone else")
        with core.lock:
            self.take(node, info)

    def learn_again(self, node: Node) -> None:
        """`learn`, also where another mount may have changed a directory's marker since: what it says must not be undone."""
        if node.is_dir and time.monotonic() - node.dir.asked > self.core.config.attr_ttl:
            node.complete = False
        self.learn(node)

    def take(self, node: Node, info: ObjectInfo) -> None:
        """Let a node have the attributes of its own object; what changed here meanwhile stays. Under `Core.lock`."""
        kind, mtime, ctime = stat.S_IFMT(node.mode), node.mtime_ns, node.ctime_ns
        core = self.core
        core.directories.take_attributes(node, info)
        if stat.S_IFMT(node.mode) != kind and node.parent is not None:
            node.parent.dir.entries[node.name] = Entry(node.name, attributes.says_directory(info), info)
            core.table.detach(node)
            raise error(errno.ESTALE, f"{info.key} is another kind of file than it looked")
        if node.is_dir:
            node.dir.stores_attributes = (info.metadata or {}).get(FLAG) == "1"
            node.dir.asked = time.monotonic()
            if mtime > int(core.started * 1e9):  # entries came or went
                node.mtime_ns, node.ctime_ns = max(mtime, node.mtime_ns), max(ctime, node.ctime_ns)
        elif node.draft is not None:
            node.mtime_ns, node.ctime_ns = mtime, ctime

    def metadata_of(self, node: Node, *, content_changed: bool = False, name: str = "") -> tuple[dict[str, str], str]:
        """(object metadata, Content-Type) of a node as it is now, under the new name `name` if there is one.

        OSError ENOSPC when the store would not take it.
        """
        self.learn(node)
        ours = attributes.encode(node)  # type: ignore[arg-type]
        known = node.metadata or {}
        if "xattr" in known:
            ours["xattr"] = known["xattr"]
        if node.is_dir and node.dir.stores_attributes:
            ours[FLAG] = "1"
        metadata = attributes.merge(known, ours, content_changed=content_changed, limit=self.limit)
        if node.is_dir:
            return metadata, attributes.DIRECTORY_TYPE
        return metadata, node.content_type or attributes.content_type(name or node.name)

    def sent(self, node: Node, metadata: dict[str, str]) -> None:
        """The object has `metadata` now. xattrs that were set or removed here meanwhile stay so. Under `Core.lock`."""
        ours = (node.metadata or {}).get("xattr")
        if ours != metadata.get("xattr"):
            metadata = {name: value for name, value in metadata.items() if name != "xattr"}
            if ours is not None:
                metadata["xattr"] = ours
        node.metadata, node.complete = metadata, True

    # -- what a listing does not tell ----------------------------------------------------------------------------------------

    def complete(self, node: Node, listing: Listing) -> None:
        """Ask for the entries' own attributes where they may have some. The directory's lock is held."""
        how = self.core.config.attrs
        if how == "listing" or (how == "auto" and not self._flagged(node, listing)):
            return
        state = node.dir
        wanted = []
        again = time.monotonic() - state.directories_asked > DIRECTORIES_TTL
        if again:
            state.directories_asked = time.monotonic()
        for name, entry in listing.entries.items():
            known = state.entries.get(name)
            if known is not None and known.info is not None and known.info.metadata is not None and _same(known, entry, again):
                listing.entries[name] = known
            elif entry.info is None or entry.info.metadata is None:
                wanted.append(entry)
        if not wanted:
            return
        for entry, info in zip(wanted, self.pool.map(lambda entry: self._head(listing.prefix, entry), wanted), strict=True):
            if info is not None:
                is_dir = entry.is_dir or attributes.says_directory(info)
                listing.entries[entry.name] = replace(entry, info=info, is_dir=is_dir)

    def _flagged(self, node: Node, listing: Listing) -> bool:
        state = node.dir
        if listing.marker is None:
            state.stores_attributes, state.flag_of = False, None
        elif state.flag_of != f"{listing.marker.etag} {listing.marker.modified}":
            try:
                info = self.core.store.head(listing.marker.key)
                state.stores_attributes = (info.metadata or {}).get(FLAG) == "1"
                if node.parent is None:
                    with self.core.lock:
                        self.take(node, info)
            except NotFoundError:
                state.stores_attributes = False
            state.flag_of = f"{listing.marker.etag} {listing.marker.modified}"
        return state.stores_attributes

    def _head(self, prefix: str, entry: Entry) -> ObjectInfo | None:
        key = entry.info.key if entry.info is not None else f"{prefix}{entry.name}/"
        try:
            return self.core.store.head(key)
        except NotFoundError:  # a directory without a marker; or deleted since, which the next listing will tell
            return entry.info
        except StoreError as error:
            log.warning("the attributes of %s are not known: %s", key, error)
            return entry.info

    def announce(self, node: Node) -> None:
        """Before an entry of the directory `node` gets attributes of its own: flag the marker, once."""
        core, state = self.core, node.dir
        if core.config.attrs == "listing" or state.stores_attributes:
            return
        with self.writing_marker(node):
            if node.dir.stores_attributes:  # many files are sent at once
                return
            self.learn_again(node)
            metadata = dict(node.metadata or {})
            if not self._is_flagged(node):  # it may be, as others write it too
                metadata[FLAG] = "1"
                key = self.marker_key(node)
                etag = core.store.put(key, bytearray(), metadata=metadata, content_type=attributes.DIRECTORY_TYPE)
                state.stores_attributes = True
                state.marker = ObjectInfo(key, 0, etag, time.time())
                state.flag_of, state.asked = None, time.monotonic()
            with core.lock:
                self.sent(node, metadata)

    @staticmethod
    def _is_flagged(node: Node) -> bool:
        return node.dir.stores_attributes

    def differs(self, node: Node) -> bool:
        """Would a listing alone show other attributes than the node has? Times count where they were set by hand."""
        defaults = self.core.defaults
        mode = (0o040000 | defaults.dir_mode) if node.is_dir else (0o100000 | defaults.file_mode)
        return node.own or node.mode != mode or node.uid != defaults.uid or node.gid != defaults.gid

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _same(known: Entry, entry: Entry, ask_directories: bool) -> bool:
    """Is what is known of an entry still what the bucket has, as far as a listing can tell?"""
    if entry.info is None or known.info is None:  # a common prefix: its marker may have changed unseen
        return known.is_dir and entry.is_dir and not ask_directories
    return (
        known.is_dir == entry.is_dir
        and known.info.etag == entry.info.etag
        and abs(known.info.modified - entry.info.modified) < 1
    )
