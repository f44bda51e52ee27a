"""`sluicefs warm`: read files of a mount once, so that the next reader finds them in its cache."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sluicefs import control
from sluicefs.errors import BucketAccessError, InvalidMountConfigError

READERS = 8  # as many as a mount fetches at once for one long file
PIECE = 1024 * 1024  # bytes a read
LOOK = 0.02  # seconds between two looks at the disk caches


@click.command(short_help="Fetch files into the cache.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def warm(paths: tuple[str, ...]) -> None:
    """Fetch every file at or below each PATH into the mount's cache: the disk cache if it has one, else memory."""
    disks = Disks({_mount_of(path) for path in paths})
    files = list(_files(paths))
    total = sum(size for _, size in files)
    columns = (TextColumn("warming"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    failed: list[str] = []
    stop = threading.Event()  # Ctrl-C: the readers do not go on to the end of their files
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("warm", total=total)

        def read(path: str) -> None:
            try:
                with open(path, "rb", buffering=0) as file:
                    if disks:  # what only the kernel holds would not come by
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    while not stop.is_set() and disks.wait() and (piece := file.read(PIECE)):
                        progress.advance(task, len(piece))
            except OSError as error:
                failed.append(f"{path}: {error.strerror}")

        with ThreadPoolExecutor(READERS) as pool:
            try:
                for _ in pool.map(read, (path for path, _ in files)):
                    pass
            except BaseException:
                stop.set()
                raise
        skipped = disks.finish()
    if failed:
        raise BucketAccessError(f"{len(failed)} of {len(files)} files could not be read: {'; '.join(failed[:5])}")
    if skipped > 0:
        raise BucketAccessError(
            f"{skipped / 2**20:.1f} of {total / 2**20:.1f} MiB did not get into the disk cache: its disk is full or too slow. "
            "`sluicefs status` shows it; warm again."
        )
    click.echo(f"{len(files)} files, {total / 2**20:.1f} MiB")


class Disks:
    """The disk caches of `mounts`. A mount lets no reader wait for its disk; here reading waits, so that all gets there."""

    def __init__(self, mounts: set[str]) -> None:
        self._mounts = [mount for mount in mounts if self._disk(mount)]
        for mount in self._mounts:
            control.call(mount, "drop-memory")  # what is in memory only would not come by the disk cache
        self._skipped_before = self._skipped()
        self._go = threading.Event()
        self._go.set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __bool__(self) -> bool:
        return bool(self._mounts)

    def wait(self) -> bool:
        """Until the disks have caught up a little. True."""
        return self._go.wait()

    def finish(self) -> int:
        """Waits until all is written; returns how many bytes the caches did not take."""
        self._done.set()
        self._thread.join()
        while any(self._disk(mount).get("queued") for mount in self._mounts):
            time.sleep(LOOK)
        return self._skipped() - self._skipped_before

    def _skipped(self) -> int:
        return sum(self._disk(mount).get("bytes_skipped", 0) for mount in self._mounts)

    def _watch(self) -> None:
        while self._mounts and not self._done.wait(LOOK):
            full = False
            for mount in self._mounts:
                disk = self._disk(mount)
                full = full or disk.get("queued", 0) > disk.get("queue_limit", 0) // 8  # the rest is for what is under way
            if full:
                self._go.clear()
            else:
                self._go.set()
        self._go.set()

    @staticmethod
    def _disk(mount: str) -> dict[str, int]:
        try:
            disk: dict[str, int] = control.call(mount, "status")["disk"] or {}
            return disk
        except (control.ControlError, OSError):
            return {}  # reading from it says what is wrong


def _mount_of(path: str) -> str:
    """The mount that `path` is on. Raises InvalidMountConfigError."""
    real = os.path.realpath(path)
    for row in control.list_mounts():
        if real == row.path or real.startswith(row.path + "/"):
            return row.path
    raise InvalidMountConfigError(f"{path} is not on a mount of sluicefs. `sluicefs status` lists those there are.")


def _files(paths: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every regular file at or below the paths, links not followed.

    Raises InvalidMountConfigError for a path that is not there, BucketAccessError for what cannot be looked at.
    """

    def refuse(error: OSError) -> None:
        raise error

    try:
        for path in paths:
            real = os.path.realpath(path)
            try:
                found = os.lstat(real)
            except FileNotFoundError:
                raise InvalidMountConfigError(f"{path} does not exist.") from None
            if not stat.S_ISDIR(found.st_mode):
                yield real, found.st_size
                continue
            for folder, _, names in os.walk(real, onerror=refuse):
                for name in sorted(names):
                    found = os.lstat(os.path.join(folder, name))
                    if stat.S_ISREG(found.st_mode):
                        yield os.path.join(folder, name), found.st_size
    except OSError as error:
        raise BucketAccessError(f"{error.filename} cannot be read: {error.strerror}. Nothing was fetched yet.") from error
