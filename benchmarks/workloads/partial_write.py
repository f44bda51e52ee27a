"""4 KiB appended to, and changed in, a large object: what matters is how much is uploaded again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.data import Dataset, File, MiB, content, digest
from benchmarks.workload import Outcome, Scene, Sizes, Stopwatch, Target, Workload
from sluicefs.store.s3 import S3Store

_EDIT = 4096
_STEP = 16 * MiB
_PATIENCE = 60.0  # seconds for the change to reach the bucket
_TWO_PARTS = 2 * 16 * MiB + 64 * 1024  # bytes up, with what requests and headers take


def _data(sizes: Sizes) -> Dataset:
    """A little over 1 GiB: s3fs 1.90 copies pieces of 512 MiB, and fails (EntityTooSmall) where less than 5 MiB is over."""
    return Dataset("edit", (File("edit.bin", sizes.bytes(1032 * MiB, 520 * MiB)),))


def _edit(scene: Scene) -> bytes:
    return b"".join(content(File(f"edit {scene.serial}", _EDIT)))


def _stored(store: S3Store, key: str, size: int, edit: bytes = b"", at: int = 0) -> Iterator[bytes]:
    """The object as it is stored, with `edit` laid over it."""
    buffer = bytearray(_STEP)
    for offset in range(0, size, _STEP):
        length = min(_STEP, size - offset)
        part = memoryview(buffer)[:length]
        store.get_into(key, offset, part)
        if edit and offset < at + len(edit) and at < offset + length:
            first, last = max(at, offset), min(at + len(edit), offset + length)
            part[first - offset : last - offset] = edit[first - at : last - at]
        yield bytes(part)
    if at + len(edit) > size:
        yield edit[max(0, size - at) :]


def _change(scene: Scene, append: bool) -> Outcome:
    key = scene.dataset[0].key
    edit = _edit(scene)
    store = scene.open()
    size = (scene.path / key).stat().st_size
    before = store.head(key).etag if scene.plain else ""
    at = size if append else size // 3 // 4096 * 4096 + 4096 * (scene.serial % 16)
    expected = digest(_stored(store, key, size, edit, at)) if scene.verify and scene.plain else ""

    watch = Stopwatch()
    descriptor = os.open(scene.path / key, os.O_WRONLY | (os.O_APPEND if append else 0))
    try:
        written = os.write(descriptor, edit) if append else os.pwrite(descriptor, edit, at)
    finally:
        os.close(descriptor)
    while scene.plain and store.head(key).etag == before and watch.seconds < _PATIENCE:
        time.sleep(0.01)
    seconds = watch.seconds

    wrong = [] if written == _EDIT else ["a short write"]
    after = size + (_EDIT if append else 0)
    if scene.plain:
        stored = store.head(key)
        if stored.etag == before or stored.size != after:
            return Outcome(seconds, 1, _EDIT, [f"{key}: not stored {seconds:.0f} s after the close"])
        if expected and digest(_stored(store, key, after)) != expected:
            wrong.append(f"{key}: wrong bytes stored")
        buffer = bytearray(_EDIT)
        store.get_into(key, at, buffer)
    else:
        with (scene.path / key).open("rb") as source:
            source.seek(at)
            buffer = bytearray(source.read(_EDIT))
    if buffer != edit:
        wrong.append(f"{key}: the change is not there")
    store.close()
    return Outcome(seconds, 1, _EDIT, wrong)


def _append(scene: Scene) -> Outcome:
    return _change(scene, append=True)


def _overwrite(scene: Scene) -> Outcome:
    return _change(scene, append=False)


_TARGETS = (Target("bytes up", "<=", _TWO_PARTS, delay=30),)
_CHANGES: Any = {"changes": True, "delays": (0, 30), "setup": 10, "each": 14, "wanted": 2, "targets": _TARGETS}

WORKLOADS = (
    Workload("append", "4 KiB appended to a {size} object", "s", _append, _data, **_CHANGES),
    Workload("overwrite", "4 KiB changed in a {size} object", "s", _overwrite, _data, **_CHANGES),
)
