"""`sluicefs warm`: read files of a mount once, so that the next reader finds them in its cache."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sluicefs import control
from sluicefs.errors import BucketAccessError, InvalidMountConfigError

READERS = 8  # as many as a mount fetches at once for one long file
PIECE = 1024 * 1024  # bytes a read


@click.command(short_help="Fetch files into the cache.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def warm(paths: tuple[str, ...]) -> None:
    """Fetch every file at or below each PATH into the mount's cache: the disk cache if it has one, else memory."""
    files = list(_files(paths))
    total = sum(size for _, size in files)
    columns = (TextColumn("warming"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    failed: list[str] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("warm", total=total)

        def read(path: str) -> None:
            try:
                with open(path, "rb", buffering=0) as file:
                    while piece := file.read(PIECE):
                        progress.advance(task, len(piece))
            except OSError as error:
                failed.append(f"{path}: {error.strerror}")

        with ThreadPoolExecutor(READERS) as pool:
            for _ in pool.map(read, (path for path, _ in files)):
                pass
    if failed:
        raise BucketAccessError(f"{len(failed)} of {len(files)} files could not be read: {'; '.join(failed[:5])}")
    click.echo(f"{len(files)} files, {total / 2**20:.1f} MiB")


def _files(paths: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every regular file at or below the paths, links not followed."""
    mounts = [row.path for row in control.list_mounts()]
    for path in paths:
        real = os.path.realpath(path)
        if not any(real == mount or real.startswith(mount + "/") for mount in mounts):
            raise InvalidMountConfigError(f"{path} is not on a mount of sluicefs. `sluicefs status` lists those there are.")
        if not os.path.lexists(real):
            raise InvalidMountConfigError(f"{path} does not exist.")
        if not os.path.isdir(real):
            yield real, os.path.getsize(real)
            continue
        for folder, _, names in os.walk(real):
            for name in sorted(names):
                found = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(found.st_mode):
                    yield os.path.join(folder, name), found.st_size
