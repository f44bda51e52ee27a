"""The process that does one run of a workload: reads what to do as JSON from standard input, writes what came of it as JSON.

Never imported by the harness: it may hang in a mount, and is then killed from outside.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from benchmarks.data import Readers, write_file
from benchmarks.processes import CommandError
from benchmarks.workload import Outcome, Scene, Stopwatch, Workload
from benchmarks.workloads import WORKLOADS

_WRITERS = 8


def populate(scene: Scene) -> Outcome:
    """Writes the data through the mount, for contestants that store it in a form of their own."""
    watch = Stopwatch()
    files = scene.dataset

    def work(index: int) -> None:
        for file in files[index::_WRITERS]:
            write_file(scene.path / file.key, file)

    Readers(_WRITERS).run(work)
    return Outcome(watch.seconds, len(scene.files), sum(size for _, size in scene.files))


def perform(workload: Workload, part: str, scene: Scene) -> Outcome:
    """One part of a workload: act, bare, prime or populate."""
    if part == "populate":
        return populate(scene)
    work = {"act": workload.act, "bare": workload.bare, "prime": workload.prime}[part]
    if work is None:
        raise SystemExit(f"{workload.name} has no {part}")
    return work(scene)


def main() -> None:
    given = json.load(sys.stdin)
    try:
        outcome = perform(WORKLOADS[given["workload"]], given["part"], Scene(**given["scene"]))
    except (OSError, CommandError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
