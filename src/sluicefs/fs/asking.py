"""Asks the bucket what one name is, with as few requests as tell it. Holds no lock, and changes no node."""

from __future__ import annotations

import enum
import time

from sluicefs.errors import NotFoundError
from sluicefs.fs import attributes
from sluicefs.fs.entries import Entry
from sluicefs.fs.firstread import FirstRead
from sluicefs.fs.gaps import Gap, before, in_order
from sluicefs.fs.names import FOLDER_SUFFIX, Listing
from sluicefs.store.api import ListPage, ObjectInfo, Store


class Likely(enum.Enum):
    """What a name most likely is."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    MISSING = enum.auto()


class Asking:
    """Questions about single names. `around`: an answer may tell of other names too, as somebody remembers it."""

    def __init__(self, store: Store, *, around: bool):
        self._store = store
        self._around_too = around
        self._in_order = True  # so far all listings were; where they are not, a page tells of the names it shows alone

    def see(self, page: ListPage) -> None:
        """A page of a listing by delimiter: is this a store that lists in order?"""
        self._in_order = self._in_order and in_order(page)

    def ask(
        self, prefix: str, name: str, known: Entry | None, width: int, likely: Likely, first: FirstRead | None
    ) -> tuple[ObjectInfo | None, bool, Gap | None]:
        """(object of a name, whether it is a directory, what was told of the names around it).

        HEAD, and where that does not tell, a LIST from that name on of up to `width` names; first what tells most `likely`.
        """
        if likely is Likely.DIRECTORY and self._any_below(prefix, name):
            return None, True, None
        gap, shown = self._around(prefix, name, width) if likely is Likely.MISSING else (None, None)
        if gap is not None and gap.misses(name):
            return None, False, gap
        info = self._head(prefix + name) if first is None else self._answer(first)
        if info is not None and info.size:
            return info, False, gap
        if name.endswith(FOLDER_SUFFIX):
            info = None  # a directory's marker is no file
        if info is None and gap is None:
            gap, shown = self._around(prefix, name, width)
            if gap is not None and gap.misses(name):
                return None, False, gap
        marker = shown or known
        if info is None and marker is not None and marker.info is not None and marker.info.key.endswith(FOLDER_SUFFIX):
            info = self._head(marker.info.key)  # a listing said that this makes it a directory
            if info is not None:
                return info, True, gap
        if shown is not None and shown.is_dir:
            return info, True, gap
        is_dir = likely is not Likely.DIRECTORY and self._any_below(prefix, name)
        return info, is_dir or (info is not None and attributes.says_directory(info)), gap

    def _any_below(self, prefix: str, name: str) -> bool:
        page = self._store.list(f"{prefix}{name}/", limit=1)
        return bool(page.objects or page.prefixes)

    def _around(self, prefix: str, name: str, width: int) -> tuple[Gap | None, Entry | None]:
        """One page of names, this one or what comes next first: what it tells of all of them, and what it shows of this one."""
        if not self._around_too or not self._in_order:
            return None, None
        start, started = before(name), time.monotonic()
        page = self._store.list(prefix, delimiter="/", start_after=prefix + start or None, limit=width)
        listing = Listing(prefix)
        listing.add(page.objects, page.prefixes)
        self.see(page)
        gap = Gap(start, listing.entries, whole=page.token is None, at=started) if self._in_order else None
        return gap, listing.entries.get(name)

    def _answer(self, first: FirstRead) -> ObjectInfo | None:
        info = first.wait()
        return info if info is not None or first.missing else self._head(first.key)

    def _head(self, key: str) -> ObjectInfo | None:
        try:
            return self._store.head(key)
        except NotFoundError:
            return None
