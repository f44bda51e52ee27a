"""The process that does the runs: it reads what to do as JSON, a line each, and forks a child for each of them.

Never imported by the harness. A child may hang in a mount, and is then killed from outside. Forked, it need not import anything
again, which would take longer than many a run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.data import Readers, block, write_file
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


def _child(given: Mapping[str, Any]) -> None:
    """Does one run and ends. What came of it goes to the file `given["out"]`, words of failure to `given["err"]`."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(given["err"], os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.environ.update(given["environment"])
        outcome = perform(WORKLOADS[given["workload"]], given["part"], Scene(**given["scene"]))
        with open(given["out"], "w") as answer:
            json.dump(asdict(outcome), answer)
        status = 0
    except (OSError, CommandError) as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answers each line with the child's process id, and with its wait status when it has ended."""
    block("", 0)  # numpy and the noise, once for all
    for line in sys.stdin:
        given = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(given)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
