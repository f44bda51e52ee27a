"""Many files of 64 KiB: read in listing order, and created, each by one thread."""

from __future__ import annotations

import os

from benchmarks.data import Dataset, File, Readers, content, digest, write_file
from benchmarks.workload import Outcome, Scene, Sizes, Stopwatch, Target, Workload, wait_stored

_SIZE = 64 * 1024
_CONNECTIONS = 16  # of the ceilings: as many as sluicefs opens


def _data(sizes: Sizes) -> Dataset:
    return Dataset("small", tuple(File(f"train/{number:05}.bin", _SIZE) for number in range(sizes.count(2000))))


def _made(sizes: Sizes) -> Dataset:
    return Dataset("made", tuple(File(f"new-{number:05}.bin", _SIZE) for number in range(sizes.count(2000))))


def _read(scene: Scene) -> Outcome:
    """In the order of the listing; a slow one is stopped after `limit` seconds, and its rate is that of what it read."""
    wrong: list[str] = []
    found: dict[str, str] = {}
    sizes = {file.key.rpartition("/")[2]: file for file in scene.dataset}
    folder = scene.path / "train"
    watch = Stopwatch()
    names = sorted(os.listdir(folder))
    count = 0
    for name in names:
        with (folder / name).open("rb", buffering=0) as source:
            data = source.read()
        count += 1
        if scene.verify:
            found[name] = digest([data])
        elif len(data) != _SIZE:
            wrong.append(f"{name}: {len(data)} bytes")
        if watch.seconds > scene.limit:
            break
    seconds = watch.seconds
    wrong += [f"{name}: wrong bytes" for name, seen in found.items() if name in sizes and seen != digest(content(sizes[name]))]
    if len(names) != len(sizes):
        wrong.append(f"{len(names)} names listed, {len(sizes)} stored")
    return Outcome(seconds, count, count * _SIZE, wrong[:3])


def _bare_read(scene: Scene) -> Outcome:
    store = scene.open(scene.endpoint)
    keys = [file.key for file in scene.dataset]
    watch = Stopwatch()

    def work(index: int) -> None:
        buffer = bytearray(_SIZE)
        for key in keys[index::_CONNECTIONS]:
            store.get_into(key, 0, buffer)

    Readers(_CONNECTIONS).run(work)
    seconds = watch.seconds
    store.close()
    return Outcome(seconds, len(keys), len(keys) * _SIZE)


def _create(scene: Scene) -> Outcome:
    """New files; the clock runs until all of them are in the bucket."""
    files = _made(scene.sizes).files
    next(content(files[0]))  # the noise is made once, before the clock starts
    watch = Stopwatch()
    made = []
    for file in files:
        write_file(scene.path / file.key, file)
        made.append(file)
        if watch.seconds > scene.limit:
            break
    closed = watch.seconds
    wrong = wait_stored(scene, {file.key: file.size for file in made})
    seconds = watch.seconds if scene.plain else closed
    if scene.verify and scene.plain and not wrong:
        store = scene.open()
        for file in made:
            if store.get(file.key)[1] != b"".join(content(file)):
                wrong.append(f"{file.key}: wrong bytes stored")
        store.close()
    return Outcome(seconds, len(made), len(made) * _SIZE, wrong[:3], {"seconds to close": closed})


def _bare_create(scene: Scene) -> Outcome:
    """One PUT after the other, as one writer who waits for each would."""
    return _put(scene, 1)


def _bare_parallel_create(scene: Scene) -> Outcome:
    """PUTs side by side, as one writer who need not wait could."""
    return _put(scene, _CONNECTIONS)


def _put(scene: Scene, connections: int) -> Outcome:
    """A slow one is stopped after `limit` seconds."""
    store = scene.open(scene.endpoint)
    files = _made(scene.sizes).files
    next(content(files[0]))  # the noise is made once, before the clock starts
    done = [0] * connections
    watch = Stopwatch()

    def work(index: int) -> None:
        for file in files[index::connections]:
            store.put(file.key, bytearray(next(content(file))))
            done[index] += 1
            if watch.seconds > scene.limit:
                break

    Readers(connections).run(work)
    seconds = watch.seconds
    store.close()
    return Outcome(seconds, sum(done), sum(done) * _SIZE)


WORKLOADS = (
    Workload(
        "small-read",
        "{files} files of 64 KiB read in listing order",
        "files/s",
        _read,
        _data,
        _bare_read,
        delays=(0, 30),
        quick=True,
        setup=9,
        each=24,
        wanted=2,
        targets=(
            Target("x peers", ">=", 3),
            Target("CPU ms/file", "<=", 0.2),
            Target("x peers", ">=", 3, delay=30),
        ),
    ),
    Workload(
        "small-create",
        "{files} files of 64 KiB created, sync",
        "files/s",
        _create,
        bare=_bare_create,
        makes=_made,
        delays=(0, 30),
        quick=True,
        setup=2,
        each=32,
        wanted=2,
        targets=(
            Target("x s3fs", ">=", 2),
            Target("x s3fs", ">=", 2, delay=30),
            Target("requests per file", "<=", 1.01, delay=30),
        ),
    ),
    Workload(
        "small-create-back",
        "{files} files of 64 KiB created, write-back if it has one, until stored",
        "files/s",
        _create,
        bare=_bare_parallel_create,
        makes=_made,
        delays=(0, 30),
        extra="back",
        extra_needed=False,
        setup=2,
        each=30,
        wanted=2,
        targets=(Target("x s3fs", ">=", 5), Target("x s3fs", ">=", 5, delay=30)),
    ),
)
