"""The mount against a plain local folder: same random steps, same outcomes; after unmount the bucket equals the folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import Bucket, new_bucket
from tests.faults.proxy import FaultProxy
from tests.faults.rules import chaos
from tests.model.bucket import bucket_differences
from tests.model.duel import Duel, compare_trees
from tests.model.generate import Limits
from tests.mount.helpers import User

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")]
ROOT = Path(__file__).parents[2]
PART = 5 * 1024 * 1024


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ([], Limits()),
        (["attr_ttl=0.1"], Limits(wait=0.06, forget=True)),
        (["attrs=full"], Limits()),
        ([f"part_size={PART}", "memory=33554432"], Limits(sizes=(PART, 2 * PART, 3 * PART + 7))),
    ],
    ids=["plain", "expiry", "full", "parts"],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_mount_on_the_reference_store_agrees(tmp_path: Path, options: list[str], limits: Limits, seed: int) -> None:
    local, other = tmp_path / "local", tmp_path / "mount"
    local.mkdir()
    other.mkdir()
    command = [sys.executable, "-m", "tests.model.memory_mount", str(other), str(local), "log_level=error", *options]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        duel = Duel(str(local), str(other))
        for run in range(4):
            found = duel.run(10 * seed + run, 120, limits=limits)
            assert found is None, str(found)
        subprocess.run(["fusermount", "-u", str(other)], check=True)
        output, _ = server.communicate(timeout=60)
        assert server.returncode == 0, output
    finally:
        if server.poll() is None:
            subprocess.run(["fusermount", "-u", "-z", str(other)], check=False)
            server.kill()
            server.communicate()


@pytest.fixture
def bucket(ministack: DevServer) -> Iterator[Bucket]:
    yield from new_bucket(ministack)


@pytest.fixture
def user(tmp_path: Path, bucket: Bucket) -> Iterator[User]:
    user = User(tmp_path / "home", bucket)
    user.home.mkdir()
    yield user
    user.clean_up()


def agree_over_a_remount(user: User, local: Path, *, runs: int, steps: int, seed: int) -> None:
    local.mkdir()
    path = user.mount("--stop-timeout", "60s")
    duel = Duel(str(local), path)
    for run in range(runs):
        found = duel.run(seed + run, steps)
        assert found is None, str(found)
    user.ok("unmount", path)
    with contextlib.closing(user.bucket.store()) as store:
        assert bucket_differences(store, str(local)) == []
    user.ok("mount", user.bucket.name, path)
    difference = compare_trees(str(local), path)
    assert difference is None, f"after a new mount: {difference}"
    user.ok("unmount", path)


def test_a_mount_agrees_and_so_does_the_next_one(user: User, tmp_path: Path) -> None:
    agree_over_a_remount(user, tmp_path / "local", runs=4, steps=120, seed=100)


@pytest.mark.parametrize("seed", range(2))
def test_with_one_request_in_seven_failing_it_still_agrees(user: User, tmp_path: Path, seed: int) -> None:
    with FaultProxy(user.bucket.server.endpoint, rules=chaos(0.15), seed=seed) as proxy:
        user.variables["AWS_ENDPOINT_URL"] = proxy.url
        agree_over_a_remount(user, tmp_path / "local", runs=5, steps=100, seed=200 + 10 * seed)
        assert proxy.faults.total() > 3  # of some 70 requests, fewer where changes were merged in time
