"""`sluicefs recover`."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any

import click

from sluicefs import control, lifecycle
from sluicefs.cli.options import size
from sluicefs.config import bucket_of
from sluicefs.errors import SluiceError

if TYPE_CHECKING:
    from sluicefs.recovery import Unsent


@click.command(short_help="What a crash or an outage left unsent: list it, upload it, save it elsewhere.")
@click.argument("what", metavar="[DIR|BUCKET]", required=False)
@click.option("--list", "listing", is_flag=True, help="Only say what there is (the default).")
@click.option("--upload", is_flag=True, help="Send it to its bucket.")
@click.option("--save", metavar="FOLDER", help="Write it into FOLDER instead, and forget it.")
def recover(what: str | None, listing: bool, upload: bool, save: str | None) -> None:
    """Data that mounts could not send before they ended: of the mount DIR, of BUCKET, or all of it.

    What applications were told had failed is never sent by itself. With --write-mode back nobody was told, and the
    next mount of the bucket sends it.
    """
    if upload + listing + (save is not None) > 1:
        raise click.UsageError("--list, --upload and --save exclude each other.")
    from sluicefs import recovery

    bucket, mountpoint = _which(what)
    found = recovery.find(bucket, mountpoint)
    if not found:
        click.echo("Nothing is left unsent.")
        return
    if upload:
        _upload(found)
    elif save is not None:
        _save(found, os.path.abspath(save))
    else:
        for unsent in found:
            click.echo(_line(unsent))


def _which(what: str | None) -> tuple[str | None, str | None]:
    if what is None:
        return None, None
    path = control.real_path(what)
    row = control.find_mount(path)
    mounted = row is not None and row.is_ours
    if mounted or os.sep in what.partition(":")[0] or os.path.isdir(path):
        if mounted and not lifecycle.is_dead(path):
            raise SluiceError(f"{path} is mounted; it sends what is unsent. `sluicefs status {path}` says how much there is.")
        return None, path
    return bucket_of(what), None


def _line(unsent: Unsent) -> str:
    if not unsent.bucket:
        return unsent.error
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unsent.at))
    why = "sent by the next mount" if unsent.pending and not unsent.damaged else unsent.error or "not sent"
    return f"{unsent.bucket}/{unsent.key}  {size(unsent.size)} ({size(unsent.staged)} unsent)  {when}  {why}"


def _upload(found: list[Unsent]) -> None:
    from sluicefs import daemon, recovery

    failed, sent = _lost(found), 0
    for unsent in _one_of_each(found):
        config = recovery.config_of(unsent)
        store = daemon.open_store(config)
        try:
            count, left = recovery.upload(config, store, unsent.root)
            sent, failed = sent + count, failed | left
        finally:
            store.close()
    if failed:
        names = ", ".join(f"{name} ({why})" for name, why in list(failed.items())[:5])
        raise SluiceError(f"{len(failed)} of {len(found)} files could not be sent and are still kept: {names}")
    click.echo(f"{sent} files are in their bucket now.")
    if sent < len(found):
        raise SluiceError(f"{len(found) - sent} files are in the hands of another process now; `sluicefs status` shows mounts.")


def _save(found: list[Unsent], folder: str) -> None:
    from sluicefs import daemon, recovery

    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise SluiceError(f"The folder {folder} cannot be made: {error.strerror}. Give another with --save.") from None
    for unsent in _one_of_each(found):
        config = recovery.config_of(unsent)
        open_store: Any = functools.lru_cache(maxsize=1)(functools.partial(daemon.open_store, config))
        for path, warning in recovery.save(folder, unsent.root, unsent.bucket, open_store):
            click.echo(path + (f": {warning}" if warning else ""))
    if lost := _lost(found):
        raise SluiceError(f"{len(lost)} folders cannot be read and are still kept: {'; '.join(lost)}")


def _lost(found: list[Unsent]) -> dict[str, str]:
    """What does not say any more whose it is."""
    return {unsent.error: "nobody knows whose it is" for unsent in found if not unsent.bucket}


def _one_of_each(found: list[Unsent]) -> list[Unsent]:
    return list({(unsent.root, unsent.bucket): unsent for unsent in found if unsent.bucket}.values())
