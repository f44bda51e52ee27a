"""Names that are not there: what one page of a listing tells of all names around the one that was asked for.

Pure data, guarded by `Core.lock`; asks nobody. It must never call a name missing that a page, in the order of S3 or in that of
a tree (names of directories without their slash, as SeaweedFS lists them), may hold further on.
"""

from __future__ import annotations

from collections.abc import Iterable

from sluicefs.fs.names import FOLDER_SUFFIX
from sluicefs.store.api import ListPage

KEPT = 16  # gaps of one directory
NARROW, WIDE = 20, 1000  # names a page may show


def before(name: str) -> str:
    """What to list after, so that `name` comes first, and a directory of that name too."""
    code = ord(name[-1]) - 1
    if code <= 0x20:
        return name[:-1]
    return f"{name[:-1]}{chr(code if not 0xD800 <= code < 0xE000 else 0xD7FF)}\U0010ffff"


def in_order(page: ListPage) -> bool:
    """Are the keys of a page in the order of S3, or in that of a tree?"""
    keys, prefixes = [info.key for info in page.objects], page.prefixes
    bare = [prefix[:-1] for prefix in prefixes]
    return keys == sorted(keys) and (prefixes == sorted(prefixes) or bare == sorted(bare))


class Gap:
    """What a page told: no names but `shown` from `start` (not in it) to `end` (in it; None: to the last).

    `at`: when it was asked for (monotonic seconds).
    """

    __slots__ = ("at", "end", "shown", "start")

    def __init__(self, start: str, shown: Iterable[str], *, whole: bool, at: float):
        self.start, self.at = start, at
        self.shown = set(shown)
        # Everything up to the largest name is on the page, in either order: a directory's slash only moves it back.
        self.end = None if whole else max(self.shown, default=start)

    def misses(self, name: str) -> bool:
        """Is it certain that there is nothing of this name: no file, no directory, no marker `name_$folder$`?"""
        return (
            name > self.start
            and name not in self.shown
            and (self.end is None or name + FOLDER_SUFFIX <= self.end)
            and not name.endswith(FOLDER_SUFFIX)
        )


class Gaps:
    """The gaps of one directory that were told last.

    `likely`: the last name that was asked for was missing, so the next one may be. `width`: how many names the next page should
    show: more where pages answer for other names too, fewer where names are far apart.
    """

    __slots__ = ("_told", "likely", "width")

    def __init__(self) -> None:
        self._told: list[Gap] = []  # the oldest first; a deque would take 700 bytes of every directory
        self.likely = False
        self.width = NARROW

    def add(self, gap: Gap) -> None:
        """A page was asked for."""
        self._told.append(gap)
        del self._told[:-KEPT]
        self.width = max(NARROW, self.width // 2)

    def told(self, name: str, since: float) -> float:
        """When it was last told (monotonic seconds, from `since` on) that there is nothing of this name; 0: it was not."""
        while self._told and self._told[0].at < since:
            del self._told[0]
        for gap in reversed(self._told):
            if gap.at >= since and gap.misses(name):
                return gap.at
        return 0.0

    def there(self, name: str) -> None:
        """There is something of this name, whatever was told before."""
        for gap in self._told:
            gap.shown.add(name)

    def useful(self) -> None:
        """A gap saved a request."""
        self.width = min(WIDE, self.width * 2)

    def clear(self) -> None:
        """Nothing is certain any more."""
        self._told.clear()
