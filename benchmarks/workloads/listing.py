"""`ls -l` of one large folder and `find` over many small ones: the real programs."""

from __future__ import annotations

from benchmarks.data import Dataset, File
from benchmarks.processes import run_command
from benchmarks.workload import Outcome, Scene, Sizes, Stopwatch, Target, Workload

_SIZE = 100


def _flat(sizes: Sizes) -> Dataset:
    return Dataset("flat", tuple(File(f"log-{number:05}.txt", _SIZE) for number in range(sizes.count(10_000))))


def _tree(sizes: Sizes) -> Dataset:
    keys = (f"d{folder:04}/f{number}.txt" for folder in range(sizes.count(1000)) for number in range(10))
    return Dataset("tree", tuple(File(key, _SIZE) for key in keys))


def _ls(scene: Scene) -> Outcome:
    watch = Stopwatch()
    lines = run_command(["ls", "-l", scene.root], timeout=110).decode().splitlines()
    seconds = watch.seconds
    found = {fields[-1]: fields[4] for fields in (line.split() for line in lines) if len(fields) > 8}
    expected = {file.key: str(file.size) for file in scene.dataset}
    wrong = [] if found == expected else [f"{len(found)} names listed, {len(expected)} stored, or sizes that differ"]
    return Outcome(seconds, len(found), 0, wrong)


def _find(scene: Scene) -> Outcome:
    watch = Stopwatch()
    found = run_command(["find", scene.root, "-type", "f"], timeout=110).decode().splitlines()
    seconds = watch.seconds
    found = [path for path in found if not path.startswith(f"{scene.root}/.")]  # JuiceFS has files of its own there
    expected = {f"{scene.root}/{file.key}" for file in scene.dataset}
    wrong = [] if set(found) == expected else [f"{len(found)} files found, {len(expected)} stored"]
    return Outcome(seconds, len(found), 0, wrong)


def _bare(scene: Scene) -> Outcome:
    """The pages of one flat listing, one after the other."""
    store = scene.open(scene.endpoint)
    watch = Stopwatch()
    token, count = None, 0
    while True:
        page = store.list("", token=token)
        count += len(page.objects)
        token = page.token
        if token is None:
            break
    seconds = watch.seconds
    store.close()
    return Outcome(seconds, count)


WORKLOADS = (
    Workload(
        "ls-l",
        "ls -l of {files} files",
        "s",
        _ls,
        _flat,
        _bare,
        quick=True,
        setup=45,
        each=16,
        wanted=2,
        targets=(Target("requests", "<=", 12), Target("x rclone", ">=", 1)),
    ),
    Workload(
        "find",
        "find over {files} files, 10 in a folder",
        "s",
        _find,
        _tree,
        _bare,
        setup=40,
        each=10,
        wanted=2,
        targets=(Target("requests", "<=", 40),),
    ),
)
