"""`sluicefs mount` and `sluicefs unmount`."""

from __future__ import annotations

import sys
from typing import Any

import click

from sluicefs import lifecycle
from sluicefs.cli.options import config_from, mount_options
from sluicefs.config import Config
from sluicefs.errors import InvalidMountConfigError, MountError


@click.command(short_help="Mount a bucket on a directory.")
@click.argument("target", metavar="BUCKET[:/PREFIX]")
@click.argument("directory", metavar="DIR")
@mount_options
def mount(target: str, directory: str, **given: Any) -> None:
    """Mount BUCKET, or what lies below PREFIX in it, on DIR; returns when the mount answers.

    BUCKET may be a binding of the config file. Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the same
    with R2_, or a profile in ~/.aws; never from an option. SIZE is a number with K, M, G or T; TIME one with ms, s, min or h.
    """
    config = config_from(target, directory, given)
    lifecycle.check(config)
    if config.foreground:
        _serve_here(config)
    else:
        lifecycle.start(config)


@click.command(short_help="Upload what is pending, then unmount.")
@click.argument("directory", metavar="DIR")
def unmount(directory: str) -> None:
    """Upload what is pending on the mount DIR, then unmount it; returns when its process has ended."""
    if not directory:
        raise InvalidMountConfigError("The mountpoint is empty: name a folder.")
    bar = _Bar()
    try:
        lifecycle.stop(directory, progress=bar.show)
    finally:
        bar.close()


def _serve_here(config: Config) -> None:
    from sluicefs import daemon

    try:
        daemon.log_to(config, config.log_file)
    except OSError as error:
        raise MountError(f"The log file {config.log_file} cannot be written: {error.strerror}. Give another.") from None
    store = daemon.open_store(config)
    daemon.run(config, store, daemon.notify_supervisor)


class _Bar:
    """A progress bar that appears with the first report; none where nothing is pending, or nobody looks."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._most = 0

    def show(self, files: int, size: int) -> None:
        if not sys.stderr.isatty() or (not size and self._progress is None):
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("uploading", total=size)
        self._most = max(self._most, size)
        self._progress.update(self._task, total=self._most, completed=self._most - size, description=f"uploading {files} files")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
