"""File names and object keys: which names can be keys, which keys can be names, and what one listing shows.

Pure functions. A key that cannot be a file name must never break a listing, nor reach the kernel: it is left out and counted.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from sluicefs.fs.entries import Entries, Entry
from sluicefs.store.api import ObjectInfo

MAX_NAME = 255  # bytes; NAME_MAX of Linux
MAX_KEY = 1024  # bytes of UTF-8; S3 and R2
FOLDER_SUFFIX = "_$folder$"  # Hadoop's marker of the directory `dir` is the empty object `dir_$folder$`
RESERVED = ".sluicefs-"  # names that begin so are this filesystem's own objects: not shown, and not to be had


def error(number: int, detail: str = "") -> OSError:
    """An OSError of this errno, with the system's words unless there are better ones."""
    return OSError(number, detail or os.strerror(number))


def decode_name(raw: bytes, *, nfc: bool = True) -> str:
    """The name of a new entry as a part of a key.

    Raises OSError: EILSEQ for what is not UTF-8 (or not NFC where `nfc`: R2 normalises keys, so two names could become one
    object), ENAMETOOLONG over 255 bytes, EINVAL for a name no key can carry, EPERM for a reserved one.
    """
    if len(raw) > MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, f"a name of {len(raw)} bytes; {MAX_NAME} are allowed")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, f"the name {raw!r} is not UTF-8, and object keys must be") from None
    if nfc and not unicodedata.is_normalized("NFC", name):
        raise OSError(errno.EILSEQ, f"the name {name!r} is not in Unicode form NFC, and the store would change it")
    if not valid_name(name, nfc=nfc) or name.endswith(FOLDER_SUFFIX):
        raise OSError(errno.EINVAL, f"the name {name!r} cannot be part of an object key")
    if name.startswith(RESERVED):
        raise OSError(errno.EPERM, f"names beginning with {RESERVED} are sluicefs's own")
    return name


def encode_name(name: str) -> bytes:
    """The bytes the kernel gets for a valid name."""
    return name.encode("utf-8")


def valid_name(name: bytes | str, *, nfc: bool = False) -> bool:
    """Whether this can be the name of a file: what `lookup` and listings ask."""
    try:
        raw, text = (name, name.decode("utf-8")) if isinstance(name, bytes) else (name.encode("utf-8"), name)
    except UnicodeError:
        return False
    if not 0 < len(raw) <= MAX_NAME or text in (".", "..") or "/" in text or "\0" in text:
        return False
    return not nfc or text.isascii() or unicodedata.is_normalized("NFC", text)


def join_key(prefix: str, name: str, *, directory: bool = False) -> str:
    """The key of `name` in the directory `prefix` ("" or ending in "/"). OSError ENAMETOOLONG over 1,024 bytes."""
    key = f"{prefix}{name}/" if directory else prefix + name
    if len(key) > MAX_KEY // 4 and len(key.encode("utf-8")) > MAX_KEY:
        raise OSError(errno.ENAMETOOLONG, f"the object key would be over {MAX_KEY} bytes: {key[:80]}…")
    return key


def conflict_name(name: str) -> str:
    """NAME.conflict-HOST-TIME, within 255 bytes. TIME has nanoseconds: no two are the same."""
    host = "".join(char if char.isalnum() or char in "-." else "-" for char in socket.gethostname())[:64]
    seconds, rest = divmod(time.time_ns(), 10**9)
    end = f".conflict-{host}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{rest:09d}"
    while len((name + end).encode()) > MAX_NAME:
        name = name[:-1]
    return name + end


@dataclass(slots=True)
class LeftOut:
    """Keys a listing does not show: how many, and a few of them with the reason."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, reason: str) -> None:
        self.count += 1
        if len(self.examples) < 8:
            self.examples.append((key, reason))


class Listing:
    """The entries of one directory, gathered from the pages of a delimiter listing in whatever order they come.

    One name, one entry: a directory shadows a file of its name (`x` beside `x/y`), as in mountpoint-s3. An empty `x` beside
    `x/` is taken for a marker of the directory, not for a file; `x_$folder$` gives way to a real file `x`.
    """

    def __init__(self, prefix: str, *, nfc: bool = False):
        self.prefix = prefix
        self.entries = Entries(prefix)
        self.marker: ObjectInfo | None = None
        self.left_out = LeftOut()
        self._nfc = nfc
        self.own: list[ObjectInfo] = []  # this filesystem's own objects, which are not shown
        self._guessed: set[str] = set()  # directories known from `_$folder$` alone

    def add(self, objects: Iterable[ObjectInfo], prefixes: Iterable[str]) -> None:
        """Take in one page."""
        for info in objects:
            self._add_object(info)
        for prefix in prefixes:
            rest = self._relative(prefix)
            if rest is not None and not rest.startswith(RESERVED):
                self._add_directory(rest.partition("/")[0], prefix, None)

    def _relative(self, key: str) -> str | None:
        if not key.startswith(self.prefix):
            self.left_out.add(key, "not below the prefix that was listed")
            return None
        return key[len(self.prefix) :]

    def _add_object(self, info: ObjectInfo) -> None:
        rest = self._relative(info.key)
        if rest is None:
            return
        if not rest:
            self.marker = info
        elif rest.startswith(RESERVED):
            self.own.append(info)
        elif "/" in rest:  # a store that does not roll up, or a flat listing
            name, _, below = rest.partition("/")
            self._add_directory(name, info.key, None if below else info)
        elif info.size == 0 and rest.endswith(FOLDER_SUFFIX):
            self._add_folder_marker(rest[: -len(FOLDER_SUFFIX)], info)
        else:
            self._add_file(rest, info)

    def _add_file(self, name: str, info: ObjectInfo) -> None:
        if not self._check(name, info.key):
            return
        present = self.entries.get(name)
        if present is not None and present.is_dir and name not in self._guessed:
            self._shadow(info)
            if info.size == 0 and present.info is None:
                self.entries[name] = Entry(name, True, info)
            return
        self._guessed.discard(name)
        self.entries[name] = Entry(name, False, info)

    def _add_directory(self, name: str, key: str, marker: ObjectInfo | None) -> None:
        if not self._check(name, key):
            return
        present = self.entries.get(name)
        info = marker
        if present is not None and present.info is not None:
            if not present.is_dir:
                self._shadow(present.info)
            if info is None and present.info.size == 0:
                info = present.info
        self._guessed.discard(name)
        self.entries[name] = Entry(name, True, info)

    def _add_folder_marker(self, name: str, info: ObjectInfo) -> None:
        if not self._check(name, info.key):
            return
        present = self.entries.get(name)
        if present is None:
            self._guessed.add(name)
            self.entries[name] = Entry(name, True, info)
        elif present.is_dir and present.info is None:
            self.entries[name] = Entry(name, True, info)

    def _shadow(self, info: ObjectInfo) -> None:
        if info.size:
            self.left_out.add(info.key, "a directory has the same name")

    def _check(self, name: str, key: str) -> bool:
        if valid_name(name, nfc=self._nfc):
            return True
        self.left_out.add(key, "not a possible file name")
        return False


def split_listing(prefix: str, objects: Iterable[ObjectInfo], prefixes: Iterable[str], *, nfc: bool = False) -> Listing:
    """A `Listing` of one page; `add` the others to it."""
    listing = Listing(prefix, nfc=nfc)
    listing.add(objects, prefixes)
    return listing
