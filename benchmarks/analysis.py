"""What people run on such a mount: DuckDB over Parquet, pandas over CSV, random records, grep. Times and bytes side by side.

`python -m benchmarks.analysis run` prints a table and writes JSON and Markdown. The work is done in a process of its own; every
run is on a cold mount, through the counting door, and its answer is compared with that of the local data.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import contestants, machine
from benchmarks.contestants import Fault, Mount, Place, fusermount3
from benchmarks.data import File as Noise
from benchmarks.data import MiB, upload
from benchmarks.processes import CommandError, drop_caches, module_command, run_command
from benchmarks.proxy import Counts, Proxy
from benchmarks.workload import REGION, Stopwatch
from sluicefs.devserver import DevServer
from sluicefs.store.s3 import S3Store

LATEST = Path(__file__).parent / "results" / "analysis"
FIELD = ("sluicefs", "rclone", "s3fs")
LIMIT = 20.0  # seconds after which the random records end; their rate is what counts
TIMEOUT = 300.0
RECORD = 4096
RECORDS = 10_000
BIG = 2048 * MiB
WIDE, ROWS, GROUPS = 64, 2_100_000, 16
FOLDERS, TEXTS = 50, 100

Act = Callable[[Path], dict[str, Any]]


# -- what is run ------------------------------------------------------------------------------------------------------------


def parquet(root: Path) -> dict[str, Any]:
    import duckdb

    watch = Stopwatch()
    found = duckdb.sql(f"SELECT sum(c3), count(*), max(c40) FROM '{root}/wide.parquet'").fetchall()[0]
    return {"seconds": watch.seconds, "answer": [round(value, 3) for value in found]}


def read_csv(root: Path) -> dict[str, Any]:
    import pandas

    watch = Stopwatch()
    frame = pandas.read_csv(root / "table.csv")
    return {"seconds": watch.seconds, "answer": [len(frame), round(float(frame["c1"].sum()), 3)]}


def records(root: Path) -> dict[str, Any]:
    chance = random.Random(1)
    count = 0
    watch = Stopwatch()
    descriptor = os.open(root / "big.bin", os.O_RDONLY)
    for _ in range(RECORDS):
        if len(os.pread(descriptor, RECORD, chance.randrange(BIG // RECORD) * RECORD)) != RECORD:
            return {"seconds": watch.seconds, "answer": "a short read"}
        count += 1
        if watch.seconds > LIMIT:
            break
    os.close(descriptor)
    return {"seconds": watch.seconds, "count": count, "answer": "whole"}


def grep(root: Path) -> dict[str, Any]:
    watch = Stopwatch()
    found = subprocess.run(["grep", "-r", "-l", "needle", "texts"], cwd=root, capture_output=True, text=True)
    return {"seconds": watch.seconds, "answer": len(found.stdout.splitlines())}


ACTS: dict[str, tuple[str, Act]] = {
    "parquet": ("DuckDB: 2 of 64 columns, Parquet of {wide}", parquet),
    "csv": ("pandas: read_csv of {table}", read_csv),
    "records": (f"random records of 4 KiB in 2 GiB, {RECORDS:,} or {LIMIT:.0f} s", records),
    "grep": (f"grep -r over {FOLDERS * TEXTS:,} files of 16 KiB", grep),
}


# -- what it is run on ------------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """The local data: a wide Parquet file, a table, texts. The big file is noise, made where it is stored."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    noise = numpy.random.default_rng(1)
    names = [f"c{number}" for number in range(WIDE)]
    schema = pyarrow.schema([(name, pyarrow.float64()) for name in names])
    with pyarrow.parquet.ParquetWriter(folder / "wide.parquet", schema, compression="none", use_dictionary=False) as writer:
        for _ in range(GROUPS):
            writer.write_table(pyarrow.table({name: noise.random(ROWS // GROUPS) for name in names}, schema=schema))
    with (folder / "table.csv").open("w") as table:
        table.write("name,c1,c2,c3,c4,c5,c6\n")
        for number, row in enumerate(noise.random((1_000_000, 6)).round(8).tolist()):
            table.write(f"row{number},{','.join(map(str, row))}\n")
    words = random.Random(2)
    for number in range(FOLDERS * TEXTS):
        path = folder / "texts" / f"{number // TEXTS:03}" / f"{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = words.randbytes(8192).hex()
        path.write_text(text[:8000] + (" needle " if number % 50 == 7 else "") + text[8000:])


def store_all(folder: Path, store: S3Store) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = str(path.relative_to(folder))
            if path.stat().st_size < 100 * MiB:
                store.put(key, bytearray(path.read_bytes()))
                continue
            upload_id, done = store.create_upload(key), []
            with path.open("rb") as source:
                while piece := source.read(16 * MiB):
                    done.append((len(done) + 1, store.upload_part(key, upload_id, len(done) + 1, bytearray(piece))))
            store.complete_upload(key, upload_id, done)
    upload(store, [Noise("big.bin", BIG)])


# -- running it -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One task of one contestant: seconds, what was fetched, or why not."""

    task: str
    contestant: str
    seconds: float = 0.0
    count: int = 0
    down: int = 0
    requests: int = 0
    fault: str = ""


def once(task: str, contestant: contestants.Contestant, place: Place, proxy: Proxy, expected: object) -> Run:
    run = Run(task, contestant.name)
    mount = Mount(contestant, place)
    try:
        mount.prepare()
        drop_caches()
        mount.start()
        try:
            proxy.take()
            output = run_command(module_command("analysis", "act", task, str(place.mountpoint)), timeout=TIMEOUT)
            counts: Counts = proxy.take()
        finally:
            mount.stop()
    except (Fault, CommandError) as error:
        run.fault = str(error)
        return run
    found = json.loads(output)
    run.seconds, run.count = found["seconds"], found.get("count", 1)
    run.down, run.requests = counts.down, counts.total
    run.fault = "" if found["answer"] == expected else f"wrong: {found['answer']} and not {expected}"
    return run


def measure(rounds: int, tasks: list[str]) -> tuple[list[Run], dict[str, str]]:
    """All runs, interleaved, and the titles of the tasks."""
    known = contestants.load(contestants.DEFAULT)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="analysis-") as name, DevServer("seaweedfs", in_memory=True) as server:
        data, here = Path(name, "data"), Path(name)
        data.mkdir()
        make(data)
        sizes = {path.stem: f"{path.stat().st_size / 1e6:,.0f} MB" for path in data.iterdir() if path.is_file()}
        server.create_bucket("analysis")
        keys = (server.access_key, server.secret_key)
        store = S3Store("analysis", endpoint=server.endpoint, region=REGION, credentials=keys, timeout=120)
        store_all(data, store)
        store.close()
        expected = {task: "whole" if task == "records" else ACTS[task][1](data)["answer"] for task in tasks}
        with fusermount3(here), Proxy(server.endpoint, here) as proxy:
            todo = [(task, one) for task in tasks for _ in range(rounds) for one in FIELD if known[one].is_installed]
            for number, (task, one) in enumerate(track(todo, "measuring", console=Console(stderr=True), transient=True)):
                for folder in ("mnt", "cache", one):
                    Path(name, f"{number}", folder).mkdir(parents=True, mode=0o700)
                place = Path(name, f"{number}")
                at = Place(proxy.endpoints[0], "analysis", REGION, *keys, place / "mnt", place / "cache", place / one)
                runs.append(once(task, known[one], at, proxy, expected[task]))
    return runs, {task: ACTS[task][0].format(**sizes) for task in tasks}


def rows(runs: list[Run], titles: dict[str, str]) -> Iterator[list[str]]:
    """Task, contestant, time, rate of the records, MB fetched, requests: the median of the rounds."""
    for task, title in titles.items():
        for name in FIELD:
            mine = [run for run in runs if (run.task, run.contestant) == (task, name)]
            if not mine:
                continue
            fault = next((run.fault for run in mine if run.fault), "")
            if fault:
                yield [title, name, fault, "", ""]
                continue
            took = sorted(mine, key=lambda run: run.count / run.seconds)
            middle = took[len(took) // 2]
            seconds = statistics.median(run.seconds for run in mine)
            time = f"{middle.count / middle.seconds:,.0f} a second" if task == "records" else f"{seconds:.2f} s"
            yield [title, name, time, f"{middle.down / 1e6:,.0f}", f"{middle.requests:,}"]


@click.group()
def main() -> None:
    """Programs on mounts, side by side."""


@main.command(name="act", hidden=True)
@click.argument("task", type=click.Choice(list(ACTS)))
@click.argument("root", type=click.Path(path_type=Path))
def act_command(task: str, root: Path) -> None:
    print(json.dumps(ACTS[task][1](root)))


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Cold runs of each.")
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(ACTS)), help="Only these.")
@click.option("--output", type=click.Path(path_type=Path), default=LATEST, help="Folder of the results.")
def run(rounds: int, tasks: tuple[str, ...], output: Path) -> None:
    """Measure, print a table, and write it as JSON and Markdown."""
    runs, titles = measure(rounds, list(tasks or ACTS))
    head = ["task", "mount", "time", "MB fetched", "requests"]
    table = Table(*head)
    for row in rows(runs, titles):
        table.add_row(*row)
    Console().print(table)
    output.mkdir(parents=True, exist_ok=True)
    (output / "analysis.json").write_text(json.dumps([vars(each) for each in runs], indent=1) + "\n")
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows(runs, titles))]
    about = f"Measured on {machine.describe()['date']}; cold mounts, median of {rounds}."
    (output / "analysis.md").write_text("\n".join(["# Programs on a mount", "", about, "", *lines]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
