"""The entries of one directory, packed: a million of them must fit into memory. Pure data; no network, no locks."""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

from sluicefs.store.api import ObjectInfo

_PACKED = struct.Struct("<QdI16s")  # size, Last-Modified, parts of a multipart ETag (0: none), the 16 bytes of the ETag
_ETAG = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,5}))?\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory. `info`: the object of a file; of a directory the object seen to mark it, or None.

    A directory's marker may be `dir/`, `dir` or `dir_$folder$`: `info.key` says which, and rmdir has to delete it.
    """

    name: str
    is_dir: bool
    info: ObjectInfo | None


class Entries(MutableMapping[str, Entry]):
    """Name to `Entry`, in the order they were added. A plain file takes some 180 bytes, not 600: its name and 36 packed bytes.

    `prefix`: the keys' common beginning. What cannot be packed without loss (metadata, another key) is kept as it is.
    """

    __slots__ = ("_found", "prefix")

    def __init__(self, prefix: str = ""):
        self.prefix = prefix
        self._found: dict[str, bytes | Entry | None] = {}  # None: a directory without a marker

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._found[name] = self._pack(name, entry)

    def __getitem__(self, name: str) -> Entry:
        return self._unpack(name, self._found[name])

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def is_dir(self, name: str) -> bool:
        """Without making an `Entry`. KeyError."""
        found = self._found[name]
        return found is None or (type(found) is Entry and found.is_dir)

    def kind(self, name: str) -> int:
        """The type bits of st_mode, or 0 where only the object's own metadata tell, and the kernel had better look it up."""
        found = self._found.get(name, b"")
        if type(found) is not Entry:
            return stat.S_IFDIR if found is None else stat.S_IFREG
        if found.is_dir:
            return stat.S_IFDIR
        return 0 if found.info is not None and found.info.metadata is not None else stat.S_IFREG

    def share(self, name: str) -> None:
        """Use this very string as the key: whoever else keeps it, a name is in memory once."""
        if name in self._found:
            self._found[name] = self._found.pop(name)

    def packed(self, name: str) -> bytes | None:
        """The packed form of a plain file; None for anything else."""
        found = self._found.get(name)
        return found if type(found) is bytes else None

    def _pack(self, name: str, entry: Entry) -> bytes | Entry | None:
        info = entry.info
        if info is None:
            return None if entry.is_dir else entry
        if entry.is_dir or info.metadata is not None or info.content_type is not None:
            return entry
        match = _ETAG.match(info.etag)
        if match is None or len(info.key) != len(self.prefix) + len(name) or info.key != self.prefix + name:
            return entry
        return _PACKED.pack(info.size, info.modified, int(match[2] or 0), bytes.fromhex(match[1]))

    def _unpack(self, name: str, found: bytes | Entry | None) -> Entry:
        if found is None:
            return Entry(name, True, None)
        if type(found) is Entry:
            return found
        assert isinstance(found, bytes)
        size, modified, _, _ = _PACKED.unpack(found)
        return Entry(name, False, ObjectInfo(self.prefix + name, size, etag_of(found), modified))


def etag_of(packed: bytes) -> str:
    """The ETag of a packed entry."""
    _, _, parts, digest = _PACKED.unpack(packed)
    etag: str = digest.hex()
    return f"{etag}-{parts}" if parts else etag


def size_of(packed: bytes) -> int:
    """Bytes of the object of a packed entry."""
    size: int = _PACKED.unpack(packed)[0]
    return size


def modified_ns_of(packed: bytes) -> int:
    """Last-Modified of a packed entry in nanoseconds, exact to the microsecond."""
    modified: float = _PACKED.unpack(packed)[1]
    return round(modified * 1_000_000) * 1000
