"""Large files read cold and in order: one, and four at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.data import Dataset, File, MiB, Readers, content, digest
from benchmarks.workload import Outcome, Scene, Sizes, Stopwatch, Target, Workload

_PIECE = MiB  # bytes asked for in one read()
_RANGE = 16 * MiB  # bytes of one bare GET, as sluicefs does it
_MEMORY = 512 * 1.048576 + 100  # MB: what sluicefs may take for data, and 100
_BIN = 0.05  # seconds between two points of the curve


def one_file(sizes: Sizes) -> Dataset:
    return Dataset("big", (File("big.bin", sizes.bytes(2048 * MiB)),))


def four_files(sizes: Sizes) -> Dataset:
    """2 GiB in all, not 8: they are in memory, and once more in JuiceFS's form."""
    return Dataset("four", tuple(File(f"part-{number}.bin", sizes.bytes(512 * MiB, 256 * MiB)) for number in range(4)))


def read_file(path: Path, curve: list[tuple[float, int]] | None = None, hasher: Any = None) -> int:
    """Reads a file to its end; returns its length. `curve` gets (seconds, bytes so far), `hasher` all bytes."""
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    watch, total, next_point = Stopwatch(), 0, 0.0
    with path.open("rb", buffering=0) as source:
        while read := source.readinto(buffer):
            total += read
            if hasher is not None:
                hasher.update(view[:read])
            if curve is not None and watch.seconds >= next_point:
                curve.append((watch.seconds, total))
                next_point = watch.seconds + _BIN
    if curve is not None:
        curve.append((watch.seconds, total))
    return total


def verify_file(root: Path, file: File) -> list[str]:
    """What is wrong with what the mount gives for `file`."""
    hasher = xxhash.xxh3_128()
    return verdict(file, read_file(root / file.key, None, hasher), hasher)


def verdict(file: File, size: int, hasher: Any) -> list[str]:
    """What is wrong with `size` bytes, of which `hasher` (None: not looked at) has seen all."""
    if size != file.size:
        return [f"{file.key}: {size} bytes read, {file.size} stored"]
    if hasher is None:
        return []
    return [] if hasher.hexdigest() == digest(content(file)) else [f"{file.key}: wrong bytes"]


def act(scene: Scene) -> Outcome:
    """All files at once, a thread each. To verify they are hashed as they come, 0.1 s a GB at most, and compared afterwards."""
    files = scene.dataset
    curve: list[tuple[float, int]] = []
    ends = [0.0] * len(files)
    totals = [0] * len(files)
    hashers = [xxhash.xxh3_128() if scene.verify else None for _ in files]
    watch = Stopwatch()

    def work(index: int) -> None:
        path = scene.path / files[index].key
        totals[index] = read_file(path, curve if len(files) == 1 else None, hashers[index])
        ends[index] = watch.seconds

    Readers(len(files)).run(work)
    seconds = watch.seconds
    checked = zip(files, totals, hashers, strict=True)
    problems = [problem for file, total, hasher in checked for problem in verdict(file, total, hasher)]
    extra: dict[str, object] = {"curve": curve} if curve else {}
    if len(files) > 1:  # 1: all came in at the same rate
        extra["slowest reader's share"] = min(ends) / max(ends)
    return Outcome(seconds, len(files), sum(totals), problems, extra)


def bare(scene: Scene) -> Outcome:
    """The same bytes by parallel ranged GETs into memory that is already there."""
    store = scene.open(scene.endpoint)
    ranges = iter([(file, offset) for file in scene.dataset for offset in range(0, file.size, _RANGE)])
    lock = threading.Lock()
    curve: list[tuple[float, int]] = []
    total = 0
    buffers = [memoryview(bytearray(_RANGE)) for _ in range(scene.connections)]
    watch = Stopwatch()

    def work(index: int) -> None:
        nonlocal total
        while True:
            with lock:
                found = next(ranges, None)
            if found is None:
                return
            file, offset = found
            part = buffers[index][: min(_RANGE, file.size - offset)]
            store.get_into(file.key, offset, part)
            with lock:
                total += len(part)
                curve.append((watch.seconds, total))

    Readers(scene.connections).run(work)
    seconds = watch.seconds
    store.close()
    return Outcome(seconds, len(scene.files), total, [], {"curve": curve} if len(scene.files) == 1 else {})


def first_byte(scene: Scene) -> Outcome:
    """Open a large file by a name not yet looked up, and read its first 4 KiB: a lookup (a listing), then a small GET."""
    return _first_4k(scene)


def first_byte_known(scene: Scene) -> Outcome:
    """The same after a stat of the file, which the clock leaves out: the first GET alone."""
    (scene.path / scene.dataset[0].key).stat()
    return _first_4k(scene)


def _first_4k(scene: Scene) -> Outcome:
    file = scene.dataset[0]
    watch = Stopwatch()
    descriptor = os.open(scene.path / file.key, os.O_RDONLY)
    data = os.read(descriptor, 4096)
    seconds = watch.seconds
    os.close(descriptor)
    expected = bytes(next(content(file, 0, 4096)))
    return Outcome(seconds, 1, len(data), [] if data == expected else [f"{file.key}: wrong first bytes"])


def bare_first_byte(scene: Scene) -> Outcome:
    """One small ranged GET on a connection that is open already."""
    store = scene.open(scene.endpoint)
    buffer = bytearray(128 * 1024)
    store.list("")  # as a mount has, it has asked for the listing, and not for the object
    watch = Stopwatch()
    store.get_into(scene.dataset[0].key, 0, buffer)
    seconds = watch.seconds
    store.close()
    return Outcome(seconds, 1, len(buffer))


_FIRST: Any = {
    "delays": (0, 30),
    "setup": 0,
    "each": 4,
    "wanted": 5,
    "targets": (Target("x ceiling", ">=", 1 / 1.3), Target("x ceiling", ">=", 1 / 1.3, delay=30)),
}

WORKLOADS = (
    Workload(
        "read-one",
        "{size} file read cold, in order",
        "MB/s",
        act,
        one_file,
        bare,
        delays=(0, 30),
        floor=True,
        second=True,
        quick=True,
        setup=32,
        each=40,
        wanted=2,
        targets=(
            Target("x ceiling", ">=", 0.85),
            Target("x rclone", ">=", 2.5),
            Target("x s3fs", ">=", 2),
            Target("CPU s/GB", "<=", 0.7),
            Target("peak RSS MB", "<=", _MEMORY),
            Target("x ceiling", ">=", 0.8, delay=30),
        ),
    ),
    Workload(
        "read-four",
        "{files} files, {size} in all, read at once, cold",
        "MB/s",
        act,
        four_files,
        bare,
        delays=(0, 30),
        setup=17,
        each=14,
        wanted=2,
        targets=(
            Target("x ceiling", ">=", 0.85),
            Target("slowest reader's share", ">=", 0.5),
            Target("peak RSS MB", "<=", _MEMORY),
            Target("x ceiling", ">=", 0.8, delay=30),
        ),
    ),
    Workload(
        "first-byte",
        "first byte of a {size} file, cold, name not known",
        "ms",
        first_byte,
        one_file,
        bare_first_byte,
        **_FIRST,
    ),
    Workload(
        "first-byte-known",
        "first byte of a {size} file, cold, after a stat",
        "ms",
        first_byte_known,
        one_file,
        bare_first_byte,
        **_FIRST,
    ),
)
