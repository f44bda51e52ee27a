"""`sluicefs cache stat|clear|verify`: the disk cache, whether mounts use it at the moment or not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import click

from sluicefs.cache import Folder
from sluicefs.cli.options import size
from sluicefs.config import usual_cache_dir
from sluicefs.errors import InvalidMountConfigError, SluiceError

_folder = click.option("--cache-dir", metavar="DIR", help="Its folder [that of the config file, else ~/.cache/sluicefs].")


@click.group(short_help="Look at, check or empty the disk cache.")
def cache() -> None:
    """Look at, check or empty the disk cache. Mounts that use it go on."""


@cache.command(short_help="How much is in it.")
@_folder
@click.option("--json", "as_json", is_flag=True, help="As JSON; sizes in bytes.")
def stat(cache_dir: str | None, as_json: bool) -> None:
    """Show how much disk the cache takes."""

    def look(folder: Folder) -> None:
        totals = folder.count()
        age = max(time.time() - totals.oldest, 0) if totals.oldest else 0
        if as_json:
            shown = {"folder": folder.path, "used": totals.used, "files": totals.segments, "oldest_seconds": round(age)}
            click.echo(json.dumps(shown, indent=2))
        else:
            since = f", used within the last {_duration(age)}" if totals.segments else ""
            click.echo(f"{folder.path}  {size(totals.used)} in {totals.segments} files{since}")

    _with_folder(cache_dir, look)


@cache.command(short_help="Delete what is in it.")
@_folder
def clear(cache_dir: str | None) -> None:
    """Delete everything in the cache. What is read again is fetched again."""

    def empty(folder: Folder) -> None:
        totals = folder.clear()
        click.echo(f"Deleted {totals.segments} files of {size(totals.used)}.")

    _with_folder(cache_dir, empty)


@cache.command(short_help="Check every byte in it.")
@_folder
def verify(cache_dir: str | None) -> None:
    """Check every byte in the cache and take out what is damaged: it is fetched again when it is read.

    Exit status 1 if anything was damaged: then mistrust the disk. Mounts check what they read anyway.
    """
    good = bad = 0

    def check(folder: Folder) -> None:
        nonlocal good, bad
        for name in folder.names():
            with folder.locked():  # one file at a time, so that mounts can write in between
                found, damaged = folder.heal(name)
            good += found
            bad += damaged
            if damaged:
                click.echo(f"{folder.file(name)}: {damaged} damaged, taken out")

    _with_folder(cache_dir, check, lock=False)
    click.echo(f"{size(good)} are good, {bad or 'no'} damaged pieces.")
    if bad:
        raise click.exceptions.Exit(1)


def _with_folder(cache_dir: str | None, work: Callable[[Folder], None], *, lock: bool = True) -> None:
    """Call `work` with the cache's folder, which must be there."""
    place = os.path.abspath(os.path.expanduser(cache_dir)) if cache_dir is not None else usual_cache_dir()
    if not os.path.isdir(os.path.join(place, "blocks")):
        raise InvalidMountConfigError(f"There is no disk cache in {place}. Name its folder with --cache-dir.")
    try:
        folder = Folder(place)
        try:
            if lock:
                with folder.locked():
                    work(folder)
            else:
                work(folder)
        finally:
            folder.close()
    except OSError as error:
        raise SluiceError(f"The disk cache in {place} cannot be used: {error.strerror or error}.") from error


def _duration(seconds: float) -> str:
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{max(seconds, 1):.0f} seconds"
