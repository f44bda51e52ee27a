"""`python -m tests.faults.blocking`: the longest that each system call blocks on a real mount under each fault.

One mount, one proxy and one process per fault: a descriptor that a child of another measurement inherits is flushed when that
closes it, and calls on one file wait for each other. Prints a table of seconds and errnos; ends with 1 if a call took longer
than SEMANTICS.md states, or said that something is not there which only could not be reached.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from sluicefs.devserver import DevServer
from tests.conftest import Bucket, new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User

MiB = 1024 * 1024
FOREVER = 3600.0
GIVE_UP = 20  # times the timeout: a call that takes so long is said to hang, and the fault ends
FAULTS = {  # as rules of the proxy, "*" stands for the verbs
    "no answer": ["no-answer:seconds=3600,verb=*"],
    "body stalls": ["stall:seconds=3600,verb=*"],
    "reset": ["reset-before:verb=*"],
    "503": ["503:verb=*"],
    "refused": [],
    "429, Retry-After 2": ["429:retry_after=2,verb=*"],
    "garbage XML": ["garbage:verb=*"],
    "403": ["403:verb=*"],
}
# Which requests fail: all of them, or those alone that change something, so that a call gets as far as it can before it fails.
SCOPES = {
    "": ["*"],
    ", changes only": ["Put*", "Co*", "Create*", "Upload*", "Delete*", "Abort*"],
    ", copies and completions only": ["Co*"],
}


def bound() -> int:
    """How many times --timeout a call may take, by SEMANTICS.md."""
    text = (Path(__file__).parents[2] / "SEMANTICS.md").read_text()
    found = re.search(r"within (\d+) times `--timeout`", text)
    assert found is not None, "SEMANTICS.md states no bound"
    return int(found[1])


@dataclass
class Case:
    """One mount on which one fault comes and goes."""

    path: Path
    proxy: FaultProxy
    timeout: float
    rules: list[str] | None  # None: every connection is refused
    took: dict[str, tuple[float, str]] = field(default_factory=dict)  # seconds, outcome
    works_again: bool = False
    longest: float = 0.0  # seconds, of one system call of the present measurement
    evidence: list[str] = field(default_factory=list)  # of calls that took longer than they may

    @contextmanager
    def fault(self) -> Iterator[None]:
        if self.rules is None:
            self.proxy.refuse(FOREVER)
        else:
            self.proxy.add(*self.rules)
        try:
            yield
        finally:
            self.proxy.clear()

    def measure(self, name: str, call: Callable[[], object]) -> None:
        """How long `call` takes under the fault; of several system calls, timed by `each`, the longest."""
        outcome = ""
        self.longest = 0.0

        def run() -> None:
            nonlocal outcome
            try:
                call()
                outcome = "ok"
            except OSError as error:
                outcome = errno.errorcode.get(error.errno or 0, str(error))

        thread = threading.Thread(target=run, daemon=True)
        at = time.time()
        with self.fault():
            begin = time.monotonic()
            thread.start()
            thread.join(GIVE_UP * self.timeout)
            self.took[name] = (outcome and self.longest) or time.monotonic() - begin, outcome or "HANGS"
        if self.took[name][0] > bound() * self.timeout:
            logs = [file.read_text() for file in (self.path.parent / ".local").rglob("*.log")]
            self.evidence += [f"{name}, begun at {at:.3f}", *(seen.line() for seen in self.proxy.events if seen.at > at), *logs]
        thread.join(2 * self.timeout)

    @contextmanager
    def each(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.longest = max(self.longest, time.monotonic() - begin)

    def quick(self) -> None:
        """The calls that need no long time."""
        here = self.path
        self.measure("stat", lambda: os.stat(here / "stat/x"))
        self.measure("readdir", lambda: os.listdir(here / "readdir"))
        self.measure("open", lambda: os.close(os.open(here / "open/x", os.O_RDONLY)))
        self.read("read", 4096)
        self.write("write, close", 100_000)
        self.write("write, fsync", 100_000, sync=True)
        self.measure("truncate", lambda: os.truncate(here / "truncate/x", 10))
        self.measure("rename", lambda: os.rename(here / "rename/x", here / "rename/y"))
        self.measure("unlink", lambda: os.unlink(here / "unlink/x"))
        self.measure("mkdir", lambda: os.mkdir(here / "mkdir/new"))
        self.measure("rmdir", lambda: os.rmdir(here / "rmdir"))

    def all(self) -> None:
        """Each call, on files that nothing is known of."""
        here = self.path
        self.quick()
        self.read("read 8 MiB", 8 * MiB)
        self.write("write, close 24 MiB", 24 * MiB)
        self.change("change a part, close")
        self.measure("rename a directory", lambda: os.rename(here / "folder", here / "folder2"))

    def again(self) -> None:
        """The fault is over."""
        data = os.urandom(1000)
        (self.path / "again").write_bytes(data)
        self.works_again = (self.path / "again").read_bytes() == data and os.stat(self.path / "stat/x").st_size == 100_000

    def read(self, name: str, length: int) -> None:
        handle = os.open(self.path / f"{name}/x", os.O_RDONLY)
        self.measure(name, lambda: os.read(handle, length))
        os.close(handle)

    def write(self, name: str, length: int, *, sync: bool = False) -> None:
        path = self.path / "write" / name
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        data = os.urandom(length)

        def go() -> None:
            try:
                for start in range(0, length, MiB):
                    with self.each():
                        os.write(handle, data[start : start + MiB])
                if sync:
                    with self.each():
                        os.fsync(handle)
            finally:
                if not sync:
                    with self.each():
                        os.close(handle)

        self.measure(name, go)
        if sync:
            os.close(handle)

    def change(self, name: str) -> None:
        handle = os.open(self.path / "change/x", os.O_RDWR)

        def go() -> None:
            try:
                with self.each():
                    os.pwrite(handle, b"changed", 10 * MiB)
            finally:
                with self.each():
                    os.close(handle)

        self.measure(name, go)


def fill(bucket: Bucket) -> None:
    store = bucket.store()
    try:
        for name in ("stat", "open", "truncate", "rename", "unlink", "readdir"):
            store.put(f"{name}/x", bytes(100_000))
        for name in ("read", "read 8 MiB"):  # too large to be fetched by `open`
            store.put(f"{name}/x", bytes(16 * MiB))
        store.put("change/x", bytes(24 * MiB))
        for name in ("write/", "mkdir/", "rmdir/", "folder/"):
            store.put(name, b"")
        for number in range(20):
            store.put(f"folder/{number}", b"x")
    finally:
        store.close()


def run(server: DevServer, home: Path, timeout: float, rules: list[str] | None, options: list[str], calls: str = "all") -> Case:
    """Mount, measure `calls` ("quick" or "all"), unmount."""
    home.mkdir()
    for bucket in new_bucket(server):
        fill(bucket)
        with FaultProxy(server.endpoint) as proxy:
            user = User(home, bucket, {"AWS_ENDPOINT_URL": proxy.url})
            given = [
                "--log-level",
                "info",
                "--timeout",
                f"{timeout:g}",
                "--attr-ttl",
                "0",
                "--part-size",
                "5M",
                "--memory",
                "64M",
                *options,
            ]
            case = Case(Path(user.mount(*given)), proxy, timeout, rules)
            try:
                getattr(case, calls)()
                case.again()
            finally:
                proxy.clear()
                user.run("unmount", str(case.path))
                with suppress(AssertionError):
                    user.clean_up()
        return case
    raise AssertionError


@dataclass
class Result:
    """What is left of a Case."""

    took: dict[str, tuple[float, str]]
    works_again: bool
    evidence: list[str]


def run_alone(home: Path, timeout: float, rules: list[str] | None, options: list[str]) -> Result:
    """`run` on a server of its own."""
    with DevServer("ministack") as server:
        case = run(server, home, timeout, rules, options)
    return Result(case.took, case.works_again, case.evidence)


def main() -> int:
    parser = argparse.ArgumentParser("tests.faults.blocking")
    parser.add_argument("--timeout", type=float, default=5.0, help="--timeout of the mounts, in seconds [5]")
    parser.add_argument("--write-mode", choices=("sync", "back"), default="sync")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="this one alone; repeatable")
    parser.add_argument("--at-once", type=int, default=4, help="mounts at the same time [4]")
    given = parser.parse_args()
    cases: dict[str, Result] = {}
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="blocking-") as home,
        ProcessPoolExecutor(given.at_once, mp_context=context) as pool,
    ):
        jobs = {}
        for fault in given.fault or FAULTS:
            for scope, verbs in SCOPES.items():
                rules = [rule.replace("verb=*", f"verb={verb}") for rule in FAULTS[fault] for verb in verbs]
                if not rules and scope:
                    continue  # there is no refusing of some requests only
                where = Path(home) / str(len(jobs))
                options = ["--write-mode", given.write_mode]
                jobs[fault + scope] = pool.submit(run_alone, where, given.timeout, rules or None, options)
        for name, job in jobs.items():
            cases[name] = job.result()
            show(name, cases[name], given.timeout)
    return judge(cases, given.timeout)


def show(name: str, case: Result, timeout: float) -> None:
    print(f"\n{name}")
    for call, (seconds, outcome) in case.took.items():
        print(f"  {call:22} {seconds:6.1f} s  {seconds / timeout:4.1f} x  {outcome}", flush=True)


def judge(cases: dict[str, Result], timeout: float) -> int:
    rows = [(seconds, call, fault, outcome) for fault, case in cases.items() for call, (seconds, outcome) in case.took.items()]
    seconds, call, fault, _ = max(rows)
    print(f"\nThe longest: {call} under {fault}, {seconds:.1f} s = {seconds / timeout:.1f} x --timeout; the bound: {bound()} x")
    wrong = [row for row in rows if row[0] > bound() * timeout or row[3] in ("HANGS", "ENOENT")]
    wrong += [(0.0, "every call", fault, "does not work again") for fault, case in cases.items() if not case.works_again]
    for seconds, call, fault, outcome in wrong:
        print(f"WRONG: {call} under {fault}: {seconds:.1f} s, {outcome}", *cases[fault].evidence, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
