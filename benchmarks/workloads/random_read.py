"""128 KiB read at random places of a large cold file, by 1 and by 16 threads."""

from __future__ import annotations

import os
import random

from benchmarks.data import File, Readers, content
from benchmarks.workload import Outcome, Scene, Stopwatch, Target, Workload
from benchmarks.workloads.big_read import one_file

_SIZE = 128 * 1024


def _plan(scene: Scene, threads: int) -> list[list[int]]:
    """Offsets for each thread, on 4 KiB borders; the same for every contestant of a round."""
    count = scene.sizes.count(256 if threads == 1 else 1024) // threads
    size = scene.dataset[0].size
    chance = random.Random(f"{size} {threads} {scene.limit}")
    return [[chance.randrange((size - _SIZE) // 4096) * 4096 for _ in range(count)] for _ in range(threads)]


def _act(scene: Scene, threads: int) -> Outcome:
    file = scene.dataset[0]
    plan = _plan(scene, threads)
    wrong: list[str] = []
    done = [0] * threads
    watch = Stopwatch()

    def work(index: int) -> None:
        descriptor = os.open(scene.path / file.key, os.O_RDONLY)
        try:
            for offset in plan[index]:
                if watch.seconds > scene.limit:
                    break
                data = os.pread(descriptor, _SIZE, offset)
                done[index] += 1
                if scene.verify and not _is_right(file, offset, data):
                    wrong.append(f"{file.key}: wrong bytes at {offset}")
        finally:
            os.close(descriptor)

    Readers(threads).run(work)
    return Outcome(watch.seconds, sum(done), sum(done) * _SIZE, wrong[:3])


def _is_right(file: File, offset: int, data: bytes) -> bool:
    return data == b"".join(content(file, offset, _SIZE))


def _bare(scene: Scene, threads: int) -> Outcome:
    store = scene.open(scene.endpoint)
    plan = _plan(scene, threads)
    watch = Stopwatch()

    def work(index: int) -> None:
        buffer = bytearray(_SIZE)
        for offset in plan[index]:
            store.get_into(scene.dataset[0].key, offset, buffer)

    Readers(threads).run(work)
    seconds = watch.seconds
    store.close()
    count = sum(len(offsets) for offsets in plan)
    return Outcome(seconds, count, count * _SIZE)


def _one(scene: Scene) -> Outcome:
    return _act(scene, 1)


def _sixteen(scene: Scene) -> Outcome:
    return _act(scene, 16)


def _bare_one(scene: Scene) -> Outcome:
    return _bare(scene, 1)


def _bare_sixteen(scene: Scene) -> Outcome:
    return _bare(scene, 16)


_TARGETS = (Target("x peers", ">=", 1), Target("bytes down / asked", "<=", 1.5))

WORKLOADS = (
    Workload(
        "random-1",
        "random 128 KiB reads, cold, one thread",
        "reads/s",
        _one,
        one_file,
        _bare_one,
        setup=13,
        each=12,
        targets=_TARGETS,
    ),
    Workload(
        "random-16",
        "random 128 KiB reads, cold, 16 threads",
        "reads/s",
        _sixteen,
        one_file,
        _bare_sixteen,
        quick=True,
        setup=20,
        each=18,
        targets=_TARGETS,
    ),
)
