"""How long a mount takes until it answers, and the memory it then holds."""

from __future__ import annotations

from benchmarks.data import Dataset, File
from benchmarks.workload import Outcome, Scene, Sizes, Target, Workload


def _data(sizes: Sizes) -> Dataset:
    return Dataset("one", (File("hello.txt", 5),))


def _act(scene: Scene) -> Outcome:
    names = [entry.name for entry in scene.path.iterdir()]
    missing = [f"{file.key} is not listed" for file in scene.dataset if file.key not in names]
    return Outcome(scene.mount_seconds, 1, 0, missing)


WORKLOADS = (
    Workload(
        "mount",
        "mount until it answers",
        "s",
        _act,
        _data,
        cold=False,
        setup=4,
        each=3,
        wanted=5,
        targets=(Target("value", "<=", 0.6), Target("idle RSS MB", "<=", 90)),
    ),
)
