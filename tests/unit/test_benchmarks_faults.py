"""The harness against contestants that lie, die, hang, refuse or stay: each is named, nothing is left, and the run goes on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import contestants
from benchmarks.contestants import Contestant, search_path
from benchmarks.data import Dataset, File
from benchmarks.results import Session
from benchmarks.session import Bench, Options
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("haproxy", path=search_path()) is None, reason="haproxy is not installed"),
    pytest.mark.skipif(os.getuid() != 0, reason="dropping caches needs root"),
    pytest.mark.timeout(300),
]

FAULTY = """
import os, sys, time
from benchmarks import floor

class Faulty(floor.Floor):
    def read(self, handle, offset, size):
        if sys.argv[1] == "dies":
            os._exit(1)
        if sys.argv[1] == "hangs":
            time.sleep(600)
        return super().read(handle, offset, size)  # bytes of no meaning: a lie

if sys.argv[2] == "--serve":
    floor.serve(sys.argv[3], sys.argv[4], Faulty)
else:
    floor.start([sys.executable, __file__, sys.argv[1], "--serve", *sys.argv[2:4]], sys.argv[2])
"""
SIZE = 1024 * 1024


def _faulty(name: str, script: Path, unmount: tuple[str, ...] = ("fusermount", "-u", "{mountpoint}")) -> Contestant:
    mount = [sys.executable, str(script), name, "{mountpoint}", "{state}/files"]
    files = {"files": f'[["big.bin", {SIZE}]]'}
    return Contestant(name, sys.executable, mount, unmount, environment={"PYTHONPATH": str(ROOT)}, files=files)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One run of a good contestant among bad ones; what it leaves behind is looked at in the end."""
    folder = tmp_path_factory.mktemp("faults")
    script = folder / "faulty.py"
    script.write_text(FAULTY)
    good = contestants.load(contestants.DEFAULT)["sluicefs"]
    field = [
        _faulty("lies", script),
        _faulty("dies", script),
        _faulty("hangs", script),
        dataclasses.replace(good, name="stays", unmount=["true"]),
        dataclasses.replace(good, name="refuses", mount=["sh", "-c", "echo no such door >&2; exit 7"]),
        dataclasses.replace(good, name="absent", program="no-such-program"),
        good,
    ]
    workload = dataclasses.replace(WORKLOADS["read-one"], data=_small, delays=(0,), timeout=8.0, second=False)
    yield Bench(Options([workload], field, rounds=1, scale=0.001), folder).run()
    left = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"sluicefs-bench-{os.getpid()}-" in line]
    assert left == []
    assert list(Path("/dev/shm").glob(f"sluicefs-bench-{os.getpid()}-*")) == []
    assert subprocess.run(["pgrep", "-f", str(script)], capture_output=True).stdout == b""


def _small(sizes: object) -> Dataset:
    return Dataset("big", (File("big.bin", SIZE),))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("lies", "wrong: big.bin: wrong bytes"),
        ("dies", "act: "),
        ("hangs", "no end after 8 s"),
        ("refuses", "mount failed: sh: status 7: no such door"),
    ],
)
def test_a_faulty_contestant_is_named_and_has_no_value(session: Session, name: str, fault: str) -> None:
    assert fault in session.fault("read-one", 0, name)
    assert session.values("read-one", 0, name) == {}
    assert len(session.of("read-one", 0, name)) == 1, "it was not asked again"


def test_a_mount_left_behind_is_noted(session: Session) -> None:
    runs = session.of("read-one", 0, "stays")
    assert [run.note for run in runs] == ["left its mount behind, its process did not end"] * 2


def test_a_contestant_that_is_not_installed_is_named_and_left_out(session: Session) -> None:
    assert session.left_out == {"absent": "no-such-program is not installed"}
    assert session.of("read-one", 0, "absent") == []


def test_the_others_are_measured(session: Session) -> None:
    assert session.finished
    for name in ("sluicefs", "ceiling", "floor"):
        assert session.values("read-one", 0, name)[1] > 0
    counted = session.counted("read-one", 0, "sluicefs")
    assert counted is not None and counted.counts is not None
    assert counted.counts["requests"]["GetObject"] >= 1
    assert SIZE <= counted.counts["down"] < 1.1 * SIZE
    assert session.figure("CPU s/GB", "read-one", 0) is not None


def test_an_interrupted_run_leaves_nothing_and_keeps_what_it_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "run", "--quick", "--workload", "read-one,small-read", "--scale", "0.01"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "results.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        words = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
        process.wait()
    assert "interrupted" in words
    assert process.returncode == 1
    session = Session.read(tmp_path)
    assert session.rows()[0] == ("read-one", 30)
    assert not session.finished
    mark = f"sluicefs-bench-{process.pid}-"
    assert mark not in Path("/proc/self/mounts").read_text()
    assert list(Path("/dev/shm").glob(f"{mark}*")) == []
    assert subprocess.run(["pgrep", "-f", mark], capture_output=True).stdout == b""
