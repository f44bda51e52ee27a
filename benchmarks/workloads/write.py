"""One large new file, written in order and closed."""

from __future__ import annotations

from benchmarks.data import Dataset, File, MiB, content, digest, stored_digest, upload
from benchmarks.workload import Outcome, Scene, Sizes, Stopwatch, Target, Workload, wait_stored
from benchmarks.workloads.big_read import verify_file


def _made(sizes: Sizes) -> Dataset:
    return Dataset("written", (File("written.bin", sizes.bytes(1024 * MiB, 512 * MiB)),))


def _file(scene: Scene) -> File:
    return _made(scene.sizes).files[0]


def _act(scene: Scene) -> Outcome:
    file = _file(scene)
    next(content(file))  # the noise is made once, before the clock starts
    watch = Stopwatch()
    with (scene.path / file.key).open("wb", buffering=0) as target:
        for piece in content(file):
            if target.write(piece) != len(piece):
                return Outcome(watch.seconds, 1, 0, ["a short write"])
    closed = watch.seconds
    wrong = wait_stored(scene, {file.key: file.size})
    seconds = watch.seconds if wrong or scene.plain else closed
    if scene.verify and not wrong:
        wrong = _verify(scene, file)
    return Outcome(seconds, 1, file.size, wrong, {"seconds to close": closed})


def _verify(scene: Scene, file: File) -> list[str]:
    if not scene.plain:
        return verify_file(scene.path, file)
    store = scene.open()
    found = stored_digest(store, file.key)
    store.close()
    return [] if found == digest(content(file)) else [f"{file.key}: wrong bytes stored"]


def _bare(scene: Scene) -> Outcome:
    """16 MiB parts by several connections."""
    store = scene.open(scene.endpoint)
    file = _file(scene)
    next(content(file))  # the noise is made once, before the clock starts
    watch = Stopwatch()
    upload(store, [file], parallel=scene.connections)
    seconds = watch.seconds
    store.close()
    return Outcome(seconds, 1, file.size)


WORKLOADS = (
    Workload(
        "write-one",
        "{size} file written",
        "MB/s",
        _act,
        bare=_bare,
        makes=_made,
        delays=(0, 30),
        quick=True,
        setup=3,
        each=25,
        wanted=2,
        targets=(
            Target("x ceiling", ">=", 0.85),
            Target("x s3fs", ">=", 1.5),
            Target("x ceiling", ">=", 0.85, delay=30),
            Target("x s3fs", ">=", 1.5, delay=30),
        ),
    ),
)
