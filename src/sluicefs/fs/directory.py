"""What is in a directory: listings, look-ups from them, and how long either is trusted.

Network calls are made without `Core.lock`; answers are merged under it. An answer never undoes what this mount did after
the request was sent.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sluicefs.errors import NotFoundError
from sluicefs.fs import attributes
from sluicefs.fs.asking import Asking, Likely
from sluicefs.fs.entries import Entry, etag_of
from sluicefs.fs.firstread import FirstRead
from sluicefs.fs.names import FOLDER_SUFFIX, Listing, valid_name
from sluicefs.fs.nodes import DirState, FileState, Node, Version
from sluicefs.fs.stored import NEAR
from sluicefs.store.api import ObjectInfo

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

# A walk may use a listing past its time, each name that is there once: one of a page for at most WALK seconds and only while
# it does not pause for PAUSE, as to ask again is one request; a longer one for WALK seconds or until it pauses.
WALK = 60.0
PAUSE = 1.0
PAGE = 1000
# A directory that did not fit into one page is asked name by name for this long (seconds) before a page is tried again.
BIG = 30.0


class Directories:
    """Look-ups and listings of one mount."""

    def __init__(self, core: Core):
        self.core = core
        self.ttl = core.config.attr_ttl
        self.asking = Asking(core.store, around=self.ttl > 0)
        self.left_out: set[str] = set()  # keys that were reported
        self.left_out_count = 0  # keys not shown in the directories listed so far
        self._file_mode = stat.S_IFREG | core.defaults.file_mode  # one object for all nodes
        self._dir_mode = stat.S_IFDIR | core.defaults.dir_mode

    # -- listings -------------------------------------------------------------------------------------------------------

    def fresh(self, state: DirState, name: str | None = None, child: Node | None = None) -> bool:
        """May the listing answer? Within its TTL always; later, during a walk, once for each name."""
        now = time.monotonic()
        age = now - state.listed_at
        if not state.listed_at:
            return False
        if age <= self.ttl:
            state.used = now
            return True
        if name is None or name not in state.entries:  # somebody may have made it since
            return False
        young, going_on = age <= WALK, now - state.used <= PAUSE
        if not (young and going_on) and not (len(state.entries) > PAGE and (young or going_on)):
            return False
        if child is not None:
            if child.late == state.listed_at:
                return False
            child.late = state.listed_at
        state.used = now
        return True

    def load(self, node: Node, *, wanted: str | None = None) -> bool:
        """Make the listing of `node` fresh.

        `wanted`: for the sake of this name. False then, if the listing does not fit into one page.
        """
        core, state = self.core, node.dir
        with state.lock:  # one LIST at a time; whoever waited finds it fresh
            while not self.fresh(state):
                ahead = core.walks.listing_of(node, WALK)
                if ahead is not None and (wanted is None or wanted in ahead[0].entries):
                    listing, started = ahead
                else:
                    started = time.monotonic()
                    with core.lock:
                        prefix = core.table.prefix_of(node)
                    found = self._list(prefix, wanted is not None)
                    if found is None:
                        state.big_until = started + BIG
                        return False
                    listing = found
                core.stored.find_marker(listing)
                core.stored.complete(node, listing)
                with core.lock:
                    if core.table.prefix_of(node) == listing.prefix:  # else it was renamed meanwhile
                        self._report_left_out(listing)
                        self._merge(node, listing, started)
                        child = (node.children or {}).get(wanted or "")
                        if child is not None:
                            child.late = started  # it was answered for
                        return True
            return True

    def _list(self, prefix: str, first_page_only: bool) -> Listing | None:
        listing = Listing(prefix)
        token: str | None = None
        while True:
            page = self.core.store.list(prefix, delimiter="/", token=token)
            listing.add(page.objects, page.prefixes)
            self.asking.see(page)
            token = page.token
            if token is None:
                return listing
            if first_page_only:
                return None

    def names_in_order(self, node: Node) -> list[str]:
        """The names of the files of the last listing, sorted. Under `Core.lock`."""
        state = node.dir
        if state.order is None:
            state.order = sorted(name for name in state.entries if not state.entries.is_dir(name))
        return state.order

    def _report_left_out(self, listing: Listing) -> None:
        for key, reason in listing.left_out.examples:
            if key not in self.left_out and len(self.left_out) < 10_000:
                self.left_out.add(key)
                log.warning("key %r is not shown: %s", key, reason)

    def _merge(self, node: Node, listing: Listing, started: float) -> None:
        state, core = node.dir, self.core
        assert node.children is not None
        newer = {name for name, at in state.changed.items() if at >= started}
        entries = listing.entries
        for name in newer:  # what we did since the request was sent stands
            if name in state.entries:
                entries[name] = state.entries[name]
            else:
                entries.pop(name, None)
        state.changed = {name: at for name, at in state.changed.items() if at >= started}
        for name, child in list(node.children.items()):
            entries.share(name)
            if name in newer:
                continue
            entry = entries.get(name)
            if entry is None:
                if core.table.in_use(child):
                    entries[name] = Entry(name, child.is_dir, None)  # not in the bucket yet, but it is there
                else:
                    core.table.detach(child)
            elif entry.is_dir != child.is_dir:
                if not core.table.in_use(child):
                    core.table.detach(child)
            elif entry.is_dir:
                if entry.info is not None and entry.info.metadata is not None:
                    self.take_attributes(child, entry.info)
            elif entry.info is not None:
                self._confirm(child, entry.info, started)
        self.left_out_count += listing.left_out.count - state.left_out
        state.left_out = listing.left_out.count
        state.entries = entries
        state.listed_at = started
        state.used = time.monotonic()
        state.probes = 0
        state.big_until = 0.0
        state.marker = listing.marker
        state.order = None
        state.last_opened = -2
        state.walked = 0

    def _confirm(self, child: Node, info: ObjectInfo, at: float) -> bool:
        """Compare a known file with what the bucket says now. A new version gets a new node: no old page is served for it."""
        if child.etag == info.etag or child.draft is not None:
            child.checked = max(child.checked, at)
            if info.metadata is not None and not child.busy:
                kind = stat.S_IFMT(child.mode)
                self.take_attributes(child, info)
                if stat.S_IFMT(child.mode) != kind:  # its own metadata says what a listing could not
                    self._supersede(child, info)
                    return False
            return True
        if child.checked > at:
            return True
        self._supersede(child, info)
        return False

    def _supersede(self, child: Node, info: ObjectInfo) -> None:
        """The name means another object now: the next look-up makes a new node of it."""
        if child.parent is not None:
            child.parent.dir.entries[child.name] = Entry(child.name, attributes.says_directory(info), info)
        self.core.table.detach(child)

    # -- one name -------------------------------------------------------------------------------------------------------

    def missing_for(self, parent: Node, name: str) -> float:
        """For how long (seconds) a name that was just not found may be taken for missing."""
        now = time.monotonic()
        with self.core.lock:
            told = max(parent.dir.listed_at, parent.dir.gaps.told(name, now - self.ttl))
        left = told + self.ttl - now
        return left if left > 0 else self.ttl

    def lookup(self, parent: Node, name: str, *, opening: bool = False) -> Node:
        """The node of `name`, its lookup count not yet raised. OSError ENOENT, ENOTDIR. `opening`: it may be read next."""
        core = self.core
        if not parent.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not valid_name(name):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        with core.lock:
            assert parent.children is not None
            child = parent.children.get(name)
            state = parent.dir
            now = time.monotonic()
            if child is not None and (child.draft is not None or (now - child.checked <= self.ttl and not child.is_dir)):
                return child
            if self.fresh(state, name, child):
                return self._from_entry(parent, name)
            if child is None and name not in state.entries and state.gaps.told(name, now - self.ttl):
                state.gaps.useful()
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            state.probes += 1
            try_list = now >= state.big_until and (child is None or state.probes > 2)
            first = self._first_read(parent, name, child) if opening else None
        if try_list and (self.load(parent, wanted=name) if first is None else self._load_beside(parent, name, first)):
            with core.lock:
                return self._from_entry(parent, name)
        return self._probe(parent, name, first)

    def _first_read(self, parent: Node, name: str, child: Node | None) -> FirstRead | None:
        """The first bytes of a file that nobody has looked up yet, on their way, where that is worth it. Under `Core.lock`."""
        core, state = self.core, parent.dir
        known = state.entries.get(name)
        prefix = core.table.prefix_of(parent)
        if child is not None or core.walks.knows(prefix) or (known is None and (state.listed_at or state.gaps.likely)):
            return None
        return core.first_reads.begin(prefix + name, name, known)

    def _load_beside(self, parent: Node, name: str, first: FirstRead) -> bool:
        """`load`, but when `first` has found a file the listing goes on by itself. False: the listing is not what tells."""
        loading = self.core.first_reads.submit(lambda: self.load(parent, wanted=name))
        loading.add_done_callback(lambda _: first.wake())
        info = first.wait(loading.done)
        if info is not None and not self._as_listed(info):
            return loading.result()  # whether its own attributes count is for the directory's marker to say
        if loading.done() and loading.exception() is not None:
            first.wait()
        elif loading.done() and loading.result():
            with self.core.lock:
                entry = parent.dir.entries.get(name)
            if entry is not None and entry.is_dir:
                first.drop()
                return True
            if entry is not None:  # it is on its way, and whoever reads would have to ask for the same bytes
                first.wait(seconds=time.monotonic() - first.started)
        if first.info is not None:
            return False
        found = loading.result()
        if found:
            first.drop()
        return found

    def _as_listed(self, info: ObjectInfo) -> bool:
        """Has a file the attributes that a listing of its directory will show, whatever the directory's marker says?"""
        if self.core.config.attrs != "auto":
            return True
        defaults = self.core.defaults
        shown, _ = attributes.decode(None, defaults, key_is_dir=False, size=info.size, modified=info.modified)
        found, _ = attributes.decode(
            info.metadata,
            defaults,
            key_is_dir=False,
            size=info.size,
            modified=info.modified,
            content_type=info.content_type,
        )
        return found == shown

    def _from_entry(self, parent: Node, name: str) -> Node:
        assert parent.children is not None
        entry = parent.dir.entries.get(name)
        child = parent.children.get(name)
        if entry is None:
            if child is not None and self.core.table.in_use(child):
                return child
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if child is None:
            child = self.instantiate(parent, entry)
            child.late = parent.dir.listed_at
        return child

    def _probe(self, parent: Node, name: str, first: FirstRead | None = None) -> Node:
        """Ask for one name, for which `first` may be under way."""
        core = self.core
        while True:
            started = time.monotonic() if first is None else first.started
            with core.lock:
                assert parent.children is not None
                prefix, gaps = core.table.prefix_of(parent), parent.dir.gaps
                known, child = parent.dir.entries.get(name), parent.children.get(name)
                likely = Likely.FILE
                if child.is_dir if child is not None else known is not None and known.is_dir:
                    likely = Likely.DIRECTORY
                elif gaps.likely and known is None and child is None and first is None:
                    likely = Likely.MISSING
            if first is not None and first.key != prefix + name:
                first = None
                continue
            info, is_dir, gap = self.asking.ask(prefix, name, known, gaps.width, likely, first)
            with core.lock:
                if core.table.prefix_of(parent) == prefix:  # else it was renamed meanwhile
                    if gap is not None:
                        gaps.add(gap)
                    found = self._found(parent, name, info, is_dir, started)
                    found.late = parent.dir.listed_at
                    if first is not None and info is not None and first.info is info and parent.dir.lock.locked():
                        # Nobody knows which answer is newer: the listing that is under way does not undo this one.
                        parent.dir.entries[name] = Entry(name, False, info)
                        parent.dir.changed[name] = time.monotonic()
                    return found
            first = None

    def _found(self, parent: Node, name: str, info: ObjectInfo | None, is_dir: bool, started: float) -> Node:
        """The node of a name that was asked for at `started`. ENOENT. Under `Core.lock`."""
        core = self.core
        assert parent.children is not None
        child = parent.children.get(name)
        if child is None:
            parent.dir.gaps.likely = info is None and not is_dir
        if parent.dir.changed.get(name, 0.0) >= started:
            if child is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return child
        if info is None and not is_dir:
            if parent.dir.listed_at > started and name in parent.dir.entries:
                return self._from_entry(parent, name)  # asked for before it was made, and listed since
            if child is not None:
                if core.table.in_use(child):
                    return child
                core.table.detach(child)
            parent.dir.entries.pop(name, None)
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        parent.dir.gaps.there(name)
        entry = Entry(name, is_dir, info)
        if info is not None and info.key.endswith(FOLDER_SUFFIX):
            parent.dir.entries[name] = entry  # rmdir has to delete it
        if child is not None and child.is_dir == is_dir:
            if is_dir or info is None:
                child.checked = started
                return child
            if self._confirm(child, info, started):
                return child
        elif child is not None and core.table.in_use(child):
            return child
        return self.instantiate(parent, entry, started)

    # -- nodes ----------------------------------------------------------------------------------------------------------

    def instantiate(self, parent: Node, entry: Entry, at: float | None = None) -> Node:
        """A new node for an entry of a listing or of a HEAD."""
        core = self.core
        kind = 0o040000 if entry.is_dir else 0o100000
        node = core.table.add(parent, entry.name, kind)
        parent.dir.entries.share(entry.name)
        node.checked = parent.dir.listed_at if at is None else at
        info = entry.info
        if info is None:
            info = ObjectInfo(entry.name + "/", 0, "", core.started)
        self.take_attributes(node, info)
        if not entry.is_dir:
            packed = parent.dir.entries.packed(entry.name)
            if packed is not None and not node.complete and etag_of(packed) == info.etag:
                node.take_packed(packed)
            else:
                node.etag, node.size = info.etag, info.size
        return node

    def take_attributes(self, node: Node, info: ObjectInfo) -> None:
        """Let a node have the attributes of an object. Under `Core.lock`."""
        if info.metadata is None and info.content_type is None:  # from a listing, the common case: nothing to decode
            defaults = self.core.defaults
            node.mode = self._dir_mode if node.is_dir else self._file_mode
            node.uid, node.gid = defaults.uid, defaults.gid
            modified = round(info.modified * 1_000_000) * 1000
            node.times = (modified, modified, modified)
            return
        found, _ = attributes.decode(
            info.metadata,
            self.core.defaults,
            key_is_dir=node.is_dir,
            size=info.size,
            modified=info.modified,
            content_type=info.content_type,
        )
        if (found.mode & 0o170000) == 0o040000 and not node.is_dir:  # an empty object that says directory, no children yet
            node.children = {}
        node.mode, node.uid, node.gid, node.rdev = found.mode, found.uid, found.gid, found.rdev
        node.times = (found.atime_ns, found.mtime_ns, found.ctime_ns)
        if info.metadata is not None:
            node.complete = True
            node.metadata = dict(info.metadata) or None
            node.content_type = None if node.is_dir else attributes.foreign_type(info.content_type, node.name)
            node.own = "mtime" in info.metadata and abs(node.mtime_ns - int(info.modified * 1e9)) > NEAR

    def refresh(self, node: Node) -> None:
        """Ask the bucket for a file again if its TTL is over. OSError ESTALE if it is gone or another version is there now."""
        core = self.core
        started = time.monotonic()
        with core.lock:
            if node.parent is None or node.is_dir or node.draft is not None or started - node.checked <= self.ttl:
                return
            state = node.state
            if isinstance(state, FileState) and state.version is not None:
                node.checked = max(node.checked, state.version.blocks.confirmed)  # a GET with If-Match said so
                if started - node.checked <= self.ttl:
                    return
            key = core.table.key_of(node)
        try:
            info = core.store.head(key)
        except NotFoundError:
            with core.lock:
                if node.checked > started or node.draft is not None:
                    return  # it was renamed or written meanwhile
                if node.parent is not None:
                    node.parent.dir.entries.pop(node.name, None)
                    core.table.detach(node)
            raise OSError(errno.ESTALE, "the object was deleted by someone else") from None
        with core.lock:
            if not self._confirm(node, info, started):
                raise OSError(errno.ESTALE, "the object was replaced by someone else")

    def replaced(self, node: Node) -> None:
        """The bucket has another version, or none: the next look-up asks and makes a new node."""
        with self.core.lock:
            parent = node.parent
            node.checked = 0.0
            if parent is not None and node.draft is None:
                parent.dir.distrust()
                self.core.table.detach(node)

    def version_of(self, node: Node) -> Version:
        """The version that `node` stands for, with the blocks known of it."""
        core, state = self.core, node.file
        with core.lock:
            if state.version is None or (state.version.etag != node.etag and not state.version.moving):
                assert node.etag is not None
                state.version = core.version(core.table.key_of(node), node.etag, node.size)
            return state.version

    def note(self, parent: Node, name: str, entry: Entry | None) -> None:
        """This mount changed a name: listings under way must not undo it. Under `Core.lock`."""
        state = parent.dir
        state.changed[name] = time.monotonic()
        self.core.walks.forget()
        if entry is None:
            state.entries.pop(name, None)
        else:
            state.entries[name] = entry

    def note_directory(self, node: Node) -> None:
        """Put a directory of this mount into its parent's listing. Under `Core.lock`."""
        assert node.parent is not None
        marker, known = node.dir.marker, None
        if marker is not None and marker.metadata is not None:  # should the kernel forget the node, the next one is like it
            known = replace(marker, key=self.core.table.key_of(node))
        before = node.parent.dir.entries.get(node.name)
        if before is not None and before.info is not None and not before.info.key.endswith("/"):
            node.dir.foreign_marker = before.info.key
        self.note(node.parent, node.name, Entry(node.name, True, known))

    def note_file(self, node: Node) -> None:
        """Put a file of this mount into its parent's listing as it is now. Under `Core.lock`."""
        assert node.parent is not None
        info = None
        if node.etag is not None:
            key = self.core.table.key_of(node)
            info = ObjectInfo(key, node.size, node.etag, time.time(), node.metadata, node.content_type)
        self.note(node.parent, node.name, Entry(node.name, False, info))
