"""What a workload is: the data it needs, what is done to the mount, what is done without one, and what it must reach.

`act`, `bare` and `prime` run in a process of their own (`benchmarks.actor`), so the harness never waits inside a dead mount.
They time themselves; what they verify, they verify outside the timed part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data import Dataset, File, MiB
from sluicefs.store.s3 import S3Store

REGION = "us-east-1"
HIGHER = {"MB/s", "files/s", "reads/s"}  # units in which more is better


@dataclass(frozen=True)
class Sizes:
    """Scales full sizes. `brief`: the time is limited, so a file that can be smaller without another answer is."""

    scale: float = 1.0
    brief: bool = False

    def bytes(self, full: int, brief: int = 0) -> int:
        """`full`, or `brief` where that is given and the time is limited."""
        return max(MiB, int((brief if brief and self.brief else full) * self.scale) // MiB * MiB)

    def count(self, full: int) -> int:
        return max(8, int(full * self.scale))


@dataclass
class Outcome:
    """What one run did. `wrong`: what verification found, and it disqualifies. `extra`: figures of this workload only."""

    seconds: float
    operations: int = 1
    bytes: int = 0
    wrong: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def value(self, unit: str) -> float:
        """In the workload's unit."""
        if unit == "MB/s":
            return self.bytes / self.seconds / 1e6
        if unit in ("files/s", "reads/s"):
            return self.operations / self.seconds
        return self.seconds * (1000 if unit == "ms" else 1)


@dataclass
class Scene:
    """Where a workload runs. `endpoint` is the door of this run, `direct` the server itself (for checks, uncounted).

    `serial` differs in every run of a session; `limit`: seconds after which a long series may stop early.
    """

    root: str
    bucket: str
    endpoint: str
    direct: str
    files: list[tuple[str, int]]
    scale: float = 1.0
    brief: bool = False
    serial: int = 0
    delay: int = 0
    limit: float = 20.0
    mount_seconds: float = 0.0
    verify: bool = False
    plain: bool = True

    @property
    def path(self) -> Path:
        return Path(self.root)

    @property
    def dataset(self) -> list[File]:
        return [File(key, size) for key, size in self.files]

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.scale, self.brief)

    @property
    def connections(self) -> int:
        """How many the ceiling uses for large files: as many as sluicefs has under way for one."""
        return 8

    def open(self, endpoint: str = "") -> S3Store:
        """The bucket without a mount, by `endpoint` (the server itself where none is given); keys from the environment."""
        return S3Store(self.bucket, endpoint=endpoint or self.direct, region=REGION, connections=32, timeout=60)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """One figure of sluicefs that must be at least or at most `limit`.

    `figure`: "x NAME" is how many times as fast as NAME (a contestant, "ceiling", "floor", "peers": the best that stores plain
    objects), or a name from `benchmarks.results.FIGURES`.
    """

    figure: str
    relation: str
    limit: float
    delay: int = 0

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.relation == ">=" else value <= self.limit


@dataclass(frozen=True)
class Workload:
    """See the module. `title` may hold {files} and {size}, those of its data, or of what it `makes`.

    `data`: None for an empty bucket of its own in every run; `changes`: it changes `data`. `prime` runs on an earlier mount
    with the same cache. `extra` names mount arguments; who has none is left out if `extra_needed`, else takes part as it is.
    `floor`: compared with the null file system; `second`: with bare GETs from another server, too. `cold`: caches are emptied
    before each round. `setup`, `each`: seconds that its data with a round 0, and one round of everybody, take on two cores;
    `wanted`: rounds a row should have. They divide the time. `timeout`: seconds for one run.
    """

    name: str
    title: str
    unit: str
    act: Callable[[Scene], Outcome]
    data: Callable[[Sizes], Dataset] | None = None
    bare: Callable[[Scene], Outcome] | None = None
    makes: Callable[[Sizes], Dataset] | None = None
    prime: Callable[[Scene], Outcome] | None = None
    delays: tuple[int, ...] = (0,)
    floor: bool = False
    second: bool = False
    cold: bool = True
    extra: str = ""
    extra_needed: bool = True
    changes: bool = False
    quick: bool = False
    timeout: float = 120.0
    setup: float = 4.0
    each: float = 4.0
    wanted: float = 3.0
    targets: tuple[Target, ...] = ()


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin


def wait_stored(scene: Scene, expected: dict[str, int], timeout: float = 60.0) -> list[str]:
    """Returns when every key is in the bucket with its size; else, after `timeout` seconds, what is missing. Plain objects."""
    if not scene.plain:
        return []
    store = scene.open()
    missing = dict(expected)
    end = time.monotonic() + timeout
    try:
        while True:
            token = None
            while True:
                page = store.list("", token=token)
                for info in page.objects:
                    if missing.get(info.key) == info.size:
                        del missing[info.key]
                token = page.token
                if token is None:
                    break
            if not missing or time.monotonic() > end:
                return [f"{len(missing)} objects missing or of wrong size, such as {next(iter(missing))}"] if missing else []
            time.sleep(0.02)
    finally:
        store.close()
