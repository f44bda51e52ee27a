"""What mounts left unsent when they died, or could not send and said so: list it, upload it, save it elsewhere.

It never touches what a living mount has, and deletes nothing that is not in the bucket or in the folder asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import platformdirs

from sluicefs.config import Config
from sluicefs.errors import ConditionFailedError, NoSuchBucketError, NotFoundError, SluiceError
from sluicefs.fs.filesystem import FileSystem
from sluicefs.staging import Journal, Left, Record, checks, scan
from sluicefs.store.api import Store

PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Unsent:
    """One file that is not in its bucket. `pending`: the next mount sends it by itself. Bytes; seconds since the epoch.

    `damaged`: the local disk has not kept it as it was written. It is never sent, and stays until somebody takes it.
    """

    endpoint: str
    bucket: str
    prefix: str
    key: str
    size: int
    staged: int
    at: float
    pending: bool
    error: str
    root: str
    damaged: bool = False


def staging_root() -> str:
    """The folder of all buckets' staging folders."""
    return os.path.join(platformdirs.user_state_dir("sluicefs"), "staging")


def find(bucket: str | None = None, mountpoint: str | None = None) -> list[Unsent]:
    """What is unsent of mounts that are gone, oldest first; of one bucket or one mountpoint if asked for. OSError.

    Reads all of it, to see whether it is undamaged. A folder that does not say whose it is any more is given with every one.
    """
    found = []
    for root in _roots():
        unreadable: dict[str, str] = {}
        for left in scan(root, unreadable):
            try:
                about = left.journal.about()
                if not about or _wanted(about, bucket, mountpoint):
                    found += [_unsent(root, about, left, record) for record in left.journal.records()]
                    why = f"a record is damaged; the folder {left.path} is left as it is"
                    found += [_unreadable(root, about, key, why) for key in left.journal.damaged]
                    if left.damage:
                        found.append(_unreadable(root, about, "?", f"{left.damage}; the folder {left.path} is left as it is"))
            finally:
                left.release()
        found += [_unreadable(root, {}, "?", f"{why}; the folder {path} is left as it is") for path, why in unreadable.items()]
    return sorted(found, key=lambda unsent: unsent.at)


def config_of(unsent: Unsent) -> Config:
    """What it takes to open the bucket that `unsent` belongs to."""
    for left in scan(unsent.root):
        try:
            about = left.journal.about()
        finally:
            left.release()
        if about.get("bucket") == unsent.bucket:
            return Config(
                bucket=unsent.bucket,
                mountpoint=about.get("mountpoint", ""),
                prefix=unsent.prefix,
                endpoint=unsent.endpoint,
                region=about.get("region") or "us-east-1",
                provider=about.get("provider", "auto"),
                ca_bundle=about.get("ca_bundle") or None,
            )
    raise FileNotFoundError(unsent.root)


def upload(config: Config, store: Store, root: str) -> tuple[int, dict[str, str]]:
    """Send everything left below `root` that no other process has taken over. Conflicts end up beside their files.

    Returns how many files were sent, and what could not be sent, with why.
    """
    fs = FileSystem(dataclasses.replace(config, attrs="auto", write_mode="sync"), store, root)
    try:
        fs.take_over(everything=True)
        taken = fs.pending()
        failed = {fs.core.key_of(node): str(error) for node, error in fs.sync_all() if node.draft is not None}
        return taken - len(failed), fs.files.writeback.damaged | failed
    finally:
        fs.close()


def save(folder: str, root: str, bucket: str, open_store: Callable[[], Store]) -> Iterator[tuple[str, str]]:
    """Write everything left below `root` into `folder`, by key, and forget it; gives (path, warning or "") of each.

    `open_store` is asked only for what needs bytes of the bucket; where those cannot be had, they are zeros, with a warning,
    and unless that is for good the record stays. What cannot be read stays where it is, and so does all of a folder whose
    journal has lost its end: SluiceError, when all others are saved.
    """
    failed: dict[str, str] = {}
    for left in scan(root):
        try:
            if left.journal.about().get("bucket") != bucket:
                continue
            for record in left.journal.records():
                path = _free_path(folder, record.key)
                try:
                    warning, again = _write(path, left, record, open_store)
                except OSError as error:
                    failed[record.key] = str(error)
                    continue
                if again:
                    failed[record.key] = "the bucket could not be read"
                    yield path, warning
                    continue
                if left.damage:
                    yield path, f"it may be outdated: {left.damage}"
                    continue
                left.journal.forget(record.id)
                if record.file is not None:
                    with suppress(OSError):
                        os.unlink(os.path.join(left.path, record.file))
                yield path, warning
            failed |= dict.fromkeys(left.journal.damaged, f"its record in {left.path} is damaged")
            if left.damage:
                failed[left.path] = f"{left.damage}; its data-* files are the bytes of large files"
        finally:
            left.release()
    if failed:
        names = ", ".join(f"{key} ({why})" for key, why in list(failed.items())[:5])
        raise SluiceError(f"{len(failed)} files could not be saved whole and are still kept: {names}")


def _roots() -> list[str]:
    top = staging_root()
    try:
        return [os.path.join(top, name) for name in sorted(os.listdir(top))]
    except FileNotFoundError:
        return []


def _wanted(about: dict[str, str], bucket: str | None, mountpoint: str | None) -> bool:
    return (bucket is None or about.get("bucket") == bucket) and (mountpoint is None or about.get("mountpoint") == mountpoint)


def _unsent(root: str, about: dict[str, str], left: Left, record: Record) -> Unsent:
    damage = _damage(left, record) or left.damage
    return Unsent(
        about.get("endpoint", ""),
        about.get("bucket", ""),
        about.get("prefix", ""),
        record.key,
        record.size,
        sum(end - start for start, end in record.present),
        record.at,
        record.pending,
        damage or record.error,
        root,
        bool(damage),
    )


def _unreadable(root: str, about: dict[str, str], key: str, why: str) -> Unsent:
    """What nothing is known of but perhaps its key."""
    where = (about.get("endpoint", ""), about.get("bucket", ""), about.get("prefix", ""))
    return Unsent(*where, key, 0, 0, 0.0, False, why, root, True)


def _damage(left: Left, record: Record) -> str:
    """What is wrong with the bytes of a record, "" if they are as they were written."""
    try:
        if record.file is None:
            checks.check_bytes(left.journal.body(record.id), record.sums)
        else:
            with open(os.path.join(left.path, record.file), "rb") as file:
                checks.check_file(file.fileno(), record.present, record.sums)
    except OSError as error:
        return f"{error.strerror} ({left.path})"
    return ""


def _free_path(folder: str, key: str) -> str:
    """A path below `folder` that is not taken. Keys come from names of files, so none leads out of it; that is checked."""
    path = os.path.normpath(os.path.join(folder, key))
    if not path.startswith(os.path.abspath(folder) + os.sep):
        raise ValueError(f"{key!r} leads out of {folder}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = f"{path}.{number}"
    return free


def _write(path: str, left: Left, record: Record, open_store: Callable[[], Store]) -> tuple[str, bool]:
    """A warning, "" if there is none, and whether another time could do better."""
    warning, again = _damage(left, record), False
    with open(path, "xb") as out:
        out.truncate(record.size)
        if record.base is not None:
            try:
                for start, end in _unchanged(record):
                    while start < end:
                        buffer = bytearray(min(PIECE * 8, end - start))
                        open_store().get_into(record.base.key, start, buffer, etag=record.base.etag)
                        os.pwrite(out.fileno(), buffer, start)
                        start += len(buffer)
            except (OSError, SluiceError) as error:
                again = not isinstance(error.__cause__ or error, (NotFoundError, NoSuchBucketError, ConditionFailedError))
                why = "could not be read" if again else "no longer has it"
                warning = f"what was not changed is zeros, as the bucket {why}: {error}"
        for start, piece in _staged(left.journal, record):
            os.pwrite(out.fileno(), piece, start)
        os.fsync(out.fileno())
    mode, mtime = record.metadata.get("mode", ""), record.metadata.get("mtime", "")
    with suppress(OSError, ValueError):
        os.chmod(path, int(mode) & 0o777)
        os.utime(path, (float(mtime), float(mtime)))
    return warning, again


def _unchanged(record: Record) -> Iterator[tuple[int, int]]:
    position = 0
    for start, end in [*sorted(record.changed), (record.base_limit, record.base_limit)]:
        if position < min(start, record.base_limit):
            yield position, min(start, record.base_limit)
        position = max(position, end)


def _staged(journal: Journal, record: Record) -> Iterator[tuple[int, bytes]]:
    if record.file is None:
        body, position = journal.body(record.id), 0
        for start, end in record.present:
            yield start, bytes(body[position : position + end - start])
            position += end - start
        return
    with open(os.path.join(journal.folder, record.file), "rb") as file:
        for start, end in record.present:
            file.seek(start)
            while start < end:
                data = file.read(min(PIECE, end - start))
                if not data:
                    raise OSError(f"{file.name} is shorter than it should be")
                yield start, data
                start += len(data)
