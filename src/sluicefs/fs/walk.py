"""Notices a walk and runs ahead of it: one flat listing for many directories, small files fetched before they are opened.

Nothing here is needed for a right answer; it only saves round trips. What is fetched ahead is bounded in count and bytes.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from sluicefs.fs.names import Listing
from sluicefs.fs.nodes import Node, Version

if TYPE_CHECKING:
    from sluicefs.fs.core import Core

log = logging.getLogger(__name__)

# Listing this many subdirectories of one directory within a walk's time makes a walk.
SUBDIRECTORIES = 2
KEPT_LISTINGS = 20_000  # directories listed ahead and not asked for yet
PAUSE = 1.0  # seconds without a directory asked for: the walk is over, and what was listed ahead is old
SMALL = 1024 * 1024  # an object of up to this size is one GET
# Files opened one after the other in listing order before siblings are fetched: three in a row by chance are rare.
IN_ORDER = 3
SIBLINGS = 64
SIBLING_BYTES = 16 * 1024 * 1024


class Walks:
    """What was listed and fetched ahead for one mount."""

    def __init__(self, core: Core):
        self.core = core
        self._listings: OrderedDict[str, tuple[Listing, float]] = OrderedDict()
        self._used = 0.0  # when the last one was asked for (monotonic seconds)
        self._changes = 0  # of names, by this mount

    # -- directories ----------------------------------------------------------------------------------------------------

    def listing_of(self, node: Node, walk: float) -> tuple[Listing, float] | None:
        """A complete listing of `node` from a flat listing, and when that was asked for; None: list it by itself.

        `walk`: for how long (seconds) a listing may be used. Each is handed out once. Asks for a page if a walk is on.
        """
        core = self.core
        with core.lock:
            parent = node.parent
            if parent is None:
                return None
            prefix, above = core.table.prefix_of(node), core.table.prefix_of(parent)
            state = parent.dir
            if not state.listed_at or time.monotonic() - state.listed_at > walk:
                state.walked = 0
                return self._take(prefix, walk)
            state.walked += 1
            walking = state.walked > SUBDIRECTORIES
        found = self._take(prefix, walk)
        if found is None and walking:
            self._list_flat(above, prefix, self._before(parent, above, prefix))
            found = self._take(prefix, walk)
        return found

    def knows(self, prefix: str) -> bool:
        """Is there a listing of `prefix` that `listing_of` may give? Under `Core.lock`."""
        return prefix in self._listings

    def _take(self, prefix: str, walk: float) -> tuple[Listing, float] | None:
        with self.core.lock:
            now = time.monotonic()
            if now - self._used > PAUSE:
                self._listings.clear()
            self._used = now
            found = self._listings.pop(prefix, None)
        return found if found is not None and time.monotonic() - found[1] <= walk else None

    def _before(self, parent: Node, above: str, prefix: str) -> str | None:
        """A key behind which `prefix` comes next: the end of the directory before it, which every order of keys agrees on."""
        with self.core.lock:
            earlier = [key for name in parent.dir.entries if (key := f"{above}{name}/") < prefix]
        return max(earlier) + "\U0010ffff" if earlier else None

    def _list_flat(self, above: str, prefix: str, before: str | None) -> None:
        """One page of all keys below `above` and after `before`: keep the listing of every directory that it shows whole."""
        started, changes = time.monotonic(), self._changes
        page = self.core.store.list(above, start_after=before)
        found: dict[str, Listing] = {}
        last = page.objects[-1].key if page.objects else ""
        for info in page.objects:
            if info.key < prefix:
                continue
            path = info.key[len(above) :].split("/")
            for depth in range(1, len(path)):
                directory = above + "/".join(path[:depth]) + "/"
                if directory not in found:
                    found[directory] = Listing(directory)
                rest = info.key[len(directory) :]
                name, slash, _ = rest.partition("/")
                if slash:
                    if name not in found[directory].entries:
                        found[directory].add((), (f"{directory}{name}/",))
                else:
                    found[directory].add((info,), ())
        keys = [info.key for info in page.objects]
        if keys != sorted(keys, key=str.encode):
            return  # not in the order of S3: what is whole cannot be told
        with self.core.lock:
            self._used = time.monotonic()
            if self._changes != changes:
                return
            for directory, listing in found.items():
                if page.token is not None and last.startswith(directory):
                    continue  # it may go on on the next page
                self._listings[directory] = (listing, started)
            while len(self._listings) > KEPT_LISTINGS:
                self._listings.popitem(last=False)

    def forget(self) -> None:
        """This mount changed a name: what was listed ahead may be wrong now. Under `Core.lock`."""
        self._changes += 1
        if self._listings:
            self._listings.clear()

    # -- files ----------------------------------------------------------------------------------------------------------

    def opened(self, node: Node) -> None:
        """A small file is read: if its directory is read in listing order, fetch the next files."""
        core = self.core
        ahead: list[tuple[Version, int]] = []
        with core.lock:
            parent = node.parent
            if parent is None or not parent.dir.entries:
                return
            state = parent.dir
            order = core.directories.names_in_order(parent)
            index = bisect.bisect_left(order, node.name)
            if index == len(order) or order[index] != node.name or index == state.last_opened:
                return
            in_order = state.last_opened < index <= state.last_opened + 2
            state.opened_in_order = state.opened_in_order + 1 if in_order else 0
            state.last_opened = index
            if state.opened_in_order < IN_ORDER:
                state.fetched_to = 0
                return
            first, end = max(index + 1, state.fetched_to), index + 1 + min(SIBLINGS, 2**state.opened_in_order)
            if first - index > SIBLINGS // 2:
                return  # enough are on their way
            ahead = self._siblings(parent, order, index + 1, first, end)
        for version, size in ahead:
            block = version.blocks.claim(0, size)
            if block is not None:
                core.fetcher.enqueue(version, block)

    def _siblings(self, parent: Node, order: list[str], start: int, first: int, end: int) -> list[tuple[Version, int]]:
        """What to fetch of `order[first:end]`; the files from `start` on share the budget."""
        core, state = self.core, parent.dir
        assert parent.children is not None
        budget = min(SIBLING_BYTES, core.cache.budget // 4)
        wanted = []
        for position in range(start, min(end, len(order))):
            state.fetched_to = position
            name = order[position]
            entry = state.entries.get(name)
            if entry is None or entry.is_dir or entry.info is None or not 0 < entry.info.size <= SMALL:
                continue
            child = parent.children.get(name)
            if child is not None and child.draft is not None:
                continue
            budget -= entry.info.size
            if budget < 0:
                break
            if position < first:
                continue
            version = core.version(entry.info.key, entry.info.etag, entry.info.size)
            if not version.blocks:
                wanted.append((version, entry.info.size))
        return wanted
