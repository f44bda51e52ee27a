"""A file read again: from the mount's memory with the page cache dropped, and from its disk cache after a remount."""

from __future__ import annotations

from benchmarks.data import Dataset, File, MiB
from benchmarks.processes import drop_caches
from benchmarks.workload import Outcome, Scene, Sizes, Stopwatch, Target, Workload
from benchmarks.workloads.big_read import read_file, verify_file


def _data(sizes: Sizes) -> Dataset:
    return Dataset("again", (File("again.bin", sizes.bytes(256 * MiB)),))


def _again(scene: Scene) -> Outcome:
    file = scene.dataset[0]
    if scene.verify:
        return Outcome(1, 1, file.size, verify_file(scene.path, file))
    watch = Stopwatch()
    total = read_file(scene.path / file.key)
    return Outcome(watch.seconds, 1, total, [] if total == file.size else [f"{file.key}: {total} bytes read"])


def _warm(scene: Scene) -> Outcome:
    read_file(scene.path / scene.dataset[0].key)
    drop_caches()
    return _again(scene)


def _prime(scene: Scene) -> Outcome:
    watch = Stopwatch()
    total = read_file(scene.path / scene.dataset[0].key)
    return Outcome(watch.seconds, 1, total)


WORKLOADS = (
    Workload(
        "reread-memory",
        "{size} file read again, page cache dropped",
        "MB/s",
        _warm,
        _data,
        floor=True,
        setup=14,
        each=10,
        wanted=2,
        targets=(Target("x floor", ">=", 0.8),),
    ),
    Workload(
        "reread-disk",
        "{size} file read again after a remount, disk cache kept",
        "MB/s",
        _again,
        _data,
        prime=_prime,
        floor=True,
        setup=14,
        each=10,
        wanted=2,
        extra="disk-cache",
        targets=(Target("x floor", ">=", 0.6), Target("GetObject", "<=", 0)),
    ),
)
