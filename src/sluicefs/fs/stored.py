"""Attributes that listings do not carry: when entries have to be asked one by one, and how that is known without asking.

`--attrs full` asks for every entry. `auto` asks only in directories where this filesystem stored attributes that differ from
what a listing shows; the directory's `dir/` marker says so in its metadata. `listing` never asks.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from sluicefs.errors import NotFoundError, StoreError
from sluicefs.fs import attributes
from sluicefs.fs.names import Entry, Listing
from sluicefs.fs.nodes import Node
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

FLAG = "sluicefs-attributes"  # in the metadata of a marker: "1" where entries have attributes of their own
# The root of a bucket has no marker of its own (its key would be empty): this hidden object stands in.
HIDDEN = ".sluicefs-"
ROOT_MARKER = HIDDEN + "root"
THREADS = 64


class StoredAttributes:
    """Completes listings with metadata, and keeps the markers' flags."""

    def __init__(self, core: Core):
        self.core = core
        self._pool: ThreadPoolExecutor | None = None

    def marker_key(self, node: Node) -> str:
        """The key whose metadata speaks for a directory."""
        prefix = self.core.key_of(node)
        return prefix or ROOT_MARKER

    def hide(self, node: Node, listing: Listing) -> None:
        """Take this filesystem's own objects out of the listing of the root."""
        if node.parent is None:
            for name in [name for name in listing.entries if name.startswith(HIDDEN)]:
                entry = listing.entries.pop(name)
                if name == ROOT_MARKER and listing.prefix == "":
                    listing.marker = entry.info

    def complete(self, node: Node, listing: Listing) -> None:
        """Ask for the entries' own attributes where they may have some. The directory's lock is held."""
        how = self.core.config.attrs
        if how == "listing" or (how == "auto" and not self._flagged(node, listing)):
            return
        state = node.dir
        wanted = []
        for name, entry in listing.entries.items():
            known = state.entries.get(name)
            if known is not None and known.info is not None and known.info.metadata is not None and _same(known, entry):
                listing.entries[name] = known
            elif entry.info is None or entry.info.metadata is None:
                wanted.append(entry)
        if not wanted:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="head")
        for entry, info in zip(wanted, self._pool.map(lambda entry: self._head(listing.prefix, entry), wanted), strict=True):
            if info is not None:
                listing.entries[entry.name] = replace(entry, info=info)

    def _flagged(self, node: Node, listing: Listing) -> bool:
        state = node.dir
        if listing.marker is None:
            state.stores_attributes, state.flag_of = False, None
        elif state.flag_of != f"{listing.marker.etag} {listing.marker.modified}":
            try:
                metadata = self.core.store.head(listing.marker.key).metadata
            except NotFoundError:
                metadata = None
            state.stores_attributes = (metadata or {}).get(FLAG) == "1"
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
        key = self.marker_key(node)
        try:
            found = core.store.head(key)
            metadata = dict(found.metadata or {})
        except NotFoundError:
            metadata = {}
        if metadata.get(FLAG) != "1":
            metadata[FLAG] = "1"
            core.store.put(key, bytearray(), metadata=metadata, content_type=attributes.DIRECTORY_TYPE)
        state.stores_attributes = True
        state.marker = ObjectInfo(key, 0, "", core.started)
        state.flag_of = None

    def differs(self, node: Node) -> bool:
        """Would a listing alone show other attributes than the node has? Times count where they were set by hand."""
        defaults = self.core.defaults
        mode = (0o040000 | defaults.dir_mode) if node.is_dir else (0o100000 | defaults.file_mode)
        return node.own or node.mode != mode or node.uid != defaults.uid or node.gid != defaults.gid

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _same(known: Entry, entry: Entry) -> bool:
    if entry.info is None or known.info is None:
        return False  # a common prefix: its marker may have changed unseen
    return (
        known.is_dir == entry.is_dir
        and known.info.etag == entry.info.etag
        and abs(known.info.modified - entry.info.modified) < 1
    )
