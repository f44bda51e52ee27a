"""`python -m tests.soak`: mixed load with faults on one mount for an hour; memory and descriptors stay flat, all bytes right.

Writes what it saw into build/soak/: a line of JSON every few seconds and a plot, and what explains a failure: every request
(requests.log), every step (steps.log) and the mount's log, with times. Ends with 1 if anything was wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sluicefs.config import parse_size
from sluicefs.devserver import DevServer
from sluicefs.store.s3 import S3Store
from tests.faults.proxy import FaultProxy
from tests.faults.rules import chaos
from tests.soak.load import Worker
from tests.soak.plot import draw

BUCKET = "soak"
STUCK = 120.0  # seconds for one step, a large file's several calls and their retries included
BESIDE_MEMORY = 100_000_000  # bytes that may be resident beside --memory
GROWTH = 1.25  # the last third's resident memory against the middle third's
OUTAGE = (60.0, 3.0)  # every so many seconds the server is away for so long


@click.command()
@click.option("--minutes", type=float, default=60.0, envvar="SOAK_MINUTES", show_default=True)
@click.option("--workers", type=int, default=6, show_default=True)
@click.option("--faults", type=float, default=0.02, show_default=True, help="Share of requests that fail.")
@click.option("--write-mode", type=click.Choice(["sync", "back"]), default="sync", show_default=True)
@click.option("--memory", default="128M", show_default=True, help="--memory of the mount.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/soak"), show_default=True)
def main(minutes: float, workers: int, faults: float, write_mode: str, memory: str, seed: int, output: Path) -> None:
    """Mixed load with faults on one mount."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as home, DevServer("ministack") as server:
        server.create_bucket(BUCKET)
        with (
            open(output / "requests.log", "w") as requests,
            FaultProxy(server.endpoint, rules=chaos(faults), seed=seed, log=lambda seen: requests.write(seen.line())) as proxy,
        ):
            (output / "mount.log").unlink(missing_ok=True)
            options = ["--write-mode", write_mode, "--memory", memory]
            options += ["--log-level", "info", "--log-file", str((output / "mount.log").absolute())]
            mount = Mount(Path(home), proxy.url, server, options)
            try:
                mount.start()
                problems, summary = soak(mount, proxy, minutes * 60, workers, seed, output)
                proxy.clear()
                problems += mount.stop()
            finally:
                mount.kill()
        problems += compare(server, summary.pop("workers"))
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    draw(samples, output)
    problems += judged(samples, parse_size(memory))
    summary |= {"problems": problems}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name, value in summary.items():
        print(f"{name}: {value}")
    sys.exit(1 if problems else 0)


class Mount:
    """`sluicefs mount` in a home of its own."""

    def __init__(self, home: Path, endpoint: str, server: DevServer, options: list[str]):
        self.path = home / "m"
        self.path.mkdir()
        self.options = options
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sluicefs", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def start(self) -> None:
        done = self.run("mount", BUCKET, str(self.path), *self.options)
        if done.returncode:
            raise SystemExit(done.stderr)

    def sample(self) -> dict[str, Any]:
        """Bytes, counts; what the daemon says of itself."""
        status = json.loads(self.run("status", str(self.path), "--json").stdout)
        pid = status["pid"]
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        return {
            "rss": int(fields["VmRSS"].split()[0]) * 1024,
            "threads": int(fields["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "pending": status["pending"]["files"],
            "requests": sum(status["requests"].values()),
            "retries": status["retries"],
        }

    def stop(self) -> list[str]:
        done = self.run("unmount", str(self.path), timeout=600)
        return [] if done.returncode == 0 else [f"unmount: {done.stderr.strip()}"]

    def kill(self) -> None:
        subprocess.run(["fusermount", "-u", "-z", str(self.path)], stderr=subprocess.DEVNULL, check=False)


def soak(
    mount: Mount, proxy: FaultProxy, seconds: float, count: int, seed: int, output: Path
) -> tuple[list[str], dict[str, Any]]:
    """Load until the time is over or something is wrong; samples and steps go into `output`."""
    stop = threading.Event()
    steps_log = open(output / "steps.log", "w", buffering=1)  # noqa: SIM115 - workers that hang may outlive this function
    workers = [Worker(mount.path / f"w{number}", seed * 1000 + number, stop, steps_log) for number in range(count)]
    problems: list[str] = []
    begin = time.monotonic()
    outage = begin + OUTAGE[0]
    columns = (TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
    with open(output / "samples.jsonl", "w") as out, Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("soak", total=seconds)
        for worker in workers:
            worker.start()
        while (now := time.monotonic()) < begin + seconds and not stop.is_set():
            stop.wait(min(5.0, seconds / 20))
            if now > outage:
                outage = now + OUTAGE[0]
                proxy.refuse(OUTAGE[1])
            sample = {"at": round(now - begin, 1), "steps": sum(worker.steps.total() for worker in workers), **mount.sample()}
            out.write(json.dumps(sample) + "\n")
            out.flush()
            progress.update(task, completed=now - begin, description=f"{sample['steps']} steps")
            for worker in workers:
                if worker.is_alive() and now - worker.since > STUCK:
                    problems.append(f"{worker.name} is stuck in {worker.doing}")
                    stop.set()
        stop.set()
    for worker in workers:
        worker.join(STUCK)
        if worker.is_alive():
            problems.append(f"{worker.name} does not come back from {worker.doing}")
        if worker.wrong:
            problems.append(worker.wrong)
    steps = {verb: sum(worker.steps[verb] for worker in workers) for verb in sorted({v for w in workers for v in w.steps})}
    longest = {verb: round(max(worker.longest.get(verb, 0.0) for worker in workers), 2) for verb in steps}
    summary = {
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "steps": steps,
        "longest step (seconds)": longest,
        "requests that failed on purpose": dict(proxy.faults),
        "workers": workers,
    }
    return problems, summary


def compare(server: DevServer, workers: list[Worker]) -> list[str]:
    """What the bucket has, read by a plain client, against what was acknowledged."""
    keys = (server.access_key, server.secret_key)
    store = S3Store(BUCKET, endpoint=server.endpoint, region=server.region, credentials=keys)
    problems = []
    try:
        for worker in workers:
            prefix, token, found = f"{worker.folder.name}/", None, set[str]()
            while True:
                page = store.list(prefix, token=token)
                found |= {info.key.removeprefix(prefix) for info in page.objects if not info.key.endswith("/")}
                token = page.token
                if token is None:
                    break
            if found != set(worker.files):
                problems.append(f"{prefix}: {sorted(found ^ set(worker.files))} are in the bucket or in the model alone")
            for name in found & set(worker.files):
                if bytes(store.get(prefix + name)[1]) != worker.files[name]:
                    problems.append(f"{prefix}{name} has other bytes than were acknowledged")
        if left := store.list_uploads(""):
            problems.append(f"{len(left)} multipart uploads were left behind")
    finally:
        store.close()
    return problems


def judged(samples: list[dict[str, Any]], memory: int) -> list[str]:
    """Does anything grow, or take more than it may? The first third fills the caches, so the other two are compared."""
    highest = max((sample["rss"] for sample in samples), default=0)
    if highest > memory + BESIDE_MEMORY:
        return [f"{highest} bytes were resident, with --memory {memory}"]
    third = len(samples) // 3
    if third < 3:
        return []
    problems = []
    middle, last = samples[third : 2 * third], samples[2 * third :]
    for name, growth, free in (("rss", GROWTH, 0), ("descriptors", 1.0, 16), ("threads", 1.0, 8)):
        before, after = (max(sample[name] for sample in part) for part in (middle, last))
        if after > before * growth + free:
            problems.append(f"{name} grew from {before} to {after}")
    return problems


if __name__ == "__main__":
    main()
