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
from sluicefs.errors import SluiceError
from sluicefs.fs.filesystem import FileSystem
from sluicefs.staging import Journal, Left, Record, scan
from sluicefs.store.api import Store

PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Unsent:
    """One file that is not in its bucket. `pending`: the next mount sends it by itself. Bytes; seconds since the epoch."""

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


def staging_root() -> str:
    """The folder of all buckets' staging folders."""
    return os.path.join(platformdirs.user_state_dir("sluicefs"), "staging")


def find(bucket: str | None = None, mountpoint: str | None = None) -> list[Unsent]:
    """What is unsent of mounts that are gone, oldest first; of one bucket or one mountpoint if asked for. OSError."""
    found = []
    for root in _roots():
        for left in scan(root):
            try:
                about = left.journal.about()
                if _wanted(about, bucket, mountpoint):
                    found += [_unsent(root, about, record) for record in left.journal.records()]
            finally:
                left.release()
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
            )
    raise FileNotFoundError(unsent.root)


def upload(config: Config, store: Store, root: str) -> dict[str, str]:
    """Send everything left below `root`; returns what could not be sent, with why. Conflicts end up beside their files."""
    fs = FileSystem(dataclasses.replace(config, attrs="auto", write_mode="sync"), store, root)
    try:
        fs.take_over(everything=True)
        failed = fs.sync_all()
        return {node.name: str(error) for node, error in failed if node.draft is not None}
    finally:
        fs.close()


def save(folder: str, root: str, bucket: str, open_store: Callable[[], Store]) -> list[tuple[str, str]]:
    """Write everything left below `root` into `folder`, by key, and forget it; returns (path, warning or "").

    `open_store` is asked only for what needs bytes of the bucket; where those cannot be had, they are zeros, with a warning.
    """
    done = []
    for left in scan(root):
        try:
            if left.journal.about().get("bucket") != bucket:
                continue
            for record in left.journal.records():
                path = _free_path(folder, record.key)
                warning = _write(path, left, record, open_store)
                left.journal.forget(record.id)
                if record.file is not None:
                    with suppress(OSError):
                        os.unlink(os.path.join(left.path, record.file))
                done.append((path, warning))
        finally:
            left.release()
    return done


def _roots() -> list[str]:
    top = staging_root()
    try:
        return [os.path.join(top, name) for name in sorted(os.listdir(top))]
    except FileNotFoundError:
        return []


def _wanted(about: dict[str, str], bucket: str | None, mountpoint: str | None) -> bool:
    return (bucket is None or about.get("bucket") == bucket) and (mountpoint is None or about.get("mountpoint") == mountpoint)


def _unsent(root: str, about: dict[str, str], record: Record) -> Unsent:
    staged = sum(end - start for start, end in record.present)
    return Unsent(
        about.get("endpoint", ""),
        about.get("bucket", ""),
        about.get("prefix", ""),
        record.key,
        record.size,
        staged,
        record.at,
        record.pending,
        record.error,
        root,
    )


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


def _write(path: str, left: Left, record: Record, open_store: Callable[[], Store]) -> str:
    warning = ""
    with open(path, "xb") as out:
        out.truncate(record.size)
        if record.base is not None:
            try:
                store = open_store()
                for start, end in _unchanged(record):
                    while start < end:
                        buffer = bytearray(min(PIECE * 8, end - start))
                        store.get_into(record.base.key, start, buffer, etag=record.base.etag)
                        os.pwrite(out.fileno(), buffer, start)
                        start += len(buffer)
            except (OSError, SluiceError) as error:
                warning = f"what was not changed is zeros, as the bucket no longer has it: {error}"
        for start, piece in _staged(left.journal, record):
            os.pwrite(out.fileno(), piece, start)
        os.fsync(out.fileno())
    mode, mtime = record.metadata.get("mode", ""), record.metadata.get("mtime", "")
    with suppress(OSError, ValueError):
        os.chmod(path, int(mode) & 0o777)
        os.utime(path, (float(mtime), float(mtime)))
    return warning


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
