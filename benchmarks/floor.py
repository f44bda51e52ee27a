"""The floor: a llfuse file system that answers every read from one buffer. What any mount by llfuse costs, and no more.

Its files have the names and sizes of a JSON list, all in the root, and bytes of no meaning. `python -m benchmarks.floor DIR
LIST` returns when it is mounted.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llfuse

from benchmarks.processes import is_mounted, module_command

_LARGEST_READ = 128 * 1024
_READ_AHEAD_KIB = 1024
_LONG = 300.0  # seconds the kernel may trust a name or an attribute


class Floor(llfuse.Operations):  # type: ignore[misc, unused-ignore]
    """Flat, read-only."""

    def __init__(self, files: list[tuple[str, int]]) -> None:
        super().__init__()
        self._inodes = {os.fsencode(name): llfuse.ROOT_INODE + 1 + number for number, (name, _) in enumerate(files)}
        self._sizes = {llfuse.ROOT_INODE + 1 + number: size for number, (_, size) in enumerate(files)}
        self._buffer = memoryview(bytes(_LARGEST_READ))

    def getattr(self, inode: int, ctx: Any = None) -> Any:
        entry = llfuse.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == llfuse.ROOT_INODE else stat.S_IFREG | 0o444
        entry.st_size = self._sizes.get(inode, 0)
        entry.entry_timeout = entry.attr_timeout = _LONG
        return entry

    def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        if name not in self._inodes:
            raise llfuse.FUSEError(errno.ENOENT)
        return self.getattr(self._inodes[name])

    def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    def readdir(self, handle: int, offset: int) -> Any:
        for number, (name, inode) in enumerate(self._inodes.items()):
            if number >= offset:
                yield name, self.getattr(inode), number + 1

    def open(self, inode: int, flags: int, ctx: Any) -> int:
        return inode

    def read(self, handle: int, offset: int, size: int) -> memoryview:
        return self._buffer[: max(0, min(size, self._sizes[handle] - offset))]

    def statfs(self, ctx: Any) -> Any:
        return llfuse.StatvfsData()


def serve(mountpoint: str, listing: str, kind: type[Floor] = Floor) -> None:
    """Mounts and answers until it is unmounted."""
    files = [(name, size) for name, size in json.loads(Path(listing).read_text())]
    options = {"fsname=floor", "ro", "max_background=64", "max_readahead=1048576", "default_permissions"}
    llfuse.init(kind(files), mountpoint, options)
    device = _device(mountpoint)
    Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(_READ_AHEAD_KIB))
    try:
        llfuse.main()
    finally:
        llfuse.close()


def _device(mountpoint: str) -> str:
    """ "MAJOR:MINOR" of the mount, from the kernel's table: a stat would wait for this very process."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == mountpoint:
            return fields[2]
    raise SystemExit(f"{mountpoint} is not mounted")


def main() -> None:
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3])
        return
    mountpoint, listing = sys.argv[1:3]
    start(module_command("floor", "--serve", mountpoint, listing), mountpoint)


def start(command: list[str], mountpoint: str) -> None:
    """Runs `command` in the background; returns when it has mounted."""
    process = subprocess.Popen(command, start_new_session=True)
    while not is_mounted(mountpoint):
        if process.poll() is not None:
            raise SystemExit(f"the floor ended with status {process.returncode}")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
