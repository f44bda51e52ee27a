"""What a mount asks of the kernel for reading, and what it reads again without asking the bucket."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sluicefs.config import MiB
from tests.faults.proxy import FaultProxy
from tests.faults.rules import Rule
from tests.mount.helpers import User, wait_until

FILES = {f"set/{number:02}.bin": random.Random(number).randbytes(9 * MiB + number) for number in range(12)}


@pytest.fixture
def filled(user: User) -> User:
    store = user.bucket.store()
    for key, data in FILES.items():
        store.put(key, data)
    store.close()
    return user


def status(user: User, mount: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(user.ok("status", mount, "--json"))
    return found


def read_all(mount: str) -> None:
    for key, data in FILES.items():
        assert Path(mount, key).read_bytes() == data, key


def test_the_kernel_is_asked_for_long_read_ahead(user: User) -> None:
    mount = user.mount()
    Path(mount, "x").write_bytes(b"x")
    device = os.stat(mount).st_dev
    assert Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text().strip() == "1024"


def test_many_requests_may_be_under_way_at_once(user: User) -> None:
    device = os.stat(user.mount()).st_dev
    connections = user.folder("connections")
    subprocess.run(["mount", "-t", "fusectl", "none", connections], check=True)
    try:
        assert Path(connections, str(os.minor(device)), "max_background").read_text().strip() == "64"
    finally:
        subprocess.run(["umount", connections], check=True)


def test_what_was_warmed_is_read_from_the_disk_alone_after_a_remount(filled: User) -> None:
    """Though memory, and with it the queue to the disk, is far smaller than what is warmed."""
    words = ("--cache-dir", str(filled.home / "cache"), "--cache-size", "200M", "--memory", "64M")
    mount = filled.mount(*words)
    assert f"{len(FILES)} files" in filled.ok("warm", f"{mount}/set")
    assert status(filled, mount)["disk"]["bytes_skipped"] == 0
    filled.ok("unmount", mount)
    filled.ok("mount", filled.bucket.name, mount, *words)
    read_all(mount)
    assert "GetObject" not in status(filled, mount)["requests"]


def test_what_the_kernel_has_read_already_is_warmed_all_the_same(filled: User) -> None:
    cache = filled.home / "cache"
    mount = filled.mount("--cache-dir", str(cache), "--cache-size", "200M", "--memory", "64M")
    read_all(mount)  # faster than the disk, maybe
    filled.ok("warm", f"{mount}/set", f"{mount}/set/00.bin")
    user_files = sum(path.stat().st_blocks * 512 for path in (cache / "blocks").rglob("*") if path.is_file())
    assert user_files >= sum(map(len, FILES.values()))


def test_what_was_just_written_is_warmed_too(filled: User) -> None:
    words = ("--cache-dir", str(filled.home / "cache"), "--cache-size", "200M")
    mount = filled.mount(*words)
    Path(mount, "set/new").write_bytes(b"new" * 10_000)
    assert Path(mount, "set/new").read_bytes() == b"new" * 10_000
    filled.ok("warm", f"{mount}/set/new")
    filled.ok("unmount", mount)
    filled.ok("mount", filled.bucket.name, mount, *words)
    assert Path(mount, "set/new").read_bytes() == b"new" * 10_000
    assert "GetObject" not in status(filled, mount)["requests"]


def test_two_mounts_share_a_cache(filled: User) -> None:
    words = ("--cache-dir", str(filled.home / "cache"), "--cache-size", "200M")
    first, second = filled.mount(*words, name="a"), filled.mount(*words, name="b")
    filled.ok("warm", first)
    read_all(second)
    assert "GetObject" not in status(filled, second)["requests"]


def test_warm_says_what_is_wrong(filled: User) -> None:
    mount = filled.mount()
    assert "is not on a mount of sluicefs" in filled.fails(2, "warm", str(filled.home))
    assert "does not exist" in filled.fails(2, "warm", f"{mount}/nowhere")


def test_warm_takes_a_store_that_is_away_for_that(filled: User) -> None:
    with FaultProxy(filled.bucket.server.endpoint) as proxy:
        mount = filled.mount("--endpoint", proxy.url, "--timeout", "1", "--attr-ttl", "0")
        os.stat(f"{mount}/set")
        proxy.add(Rule("status", status=403, code="AccessDenied"))
        assert "cannot be read: Permission denied" in filled.fails(1, "warm", f"{mount}/set")
        assert "cannot be read: Permission denied" in filled.fails(1, "warm", f"{mount}")


def test_warm_ends_on_ctrl_c_in_the_middle_of_a_file(user: User) -> None:
    store = user.bucket.store()
    store.put("long", bytearray(48 * MiB))
    store.close()
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        mount = user.mount("--endpoint", proxy.url)
        proxy.add(Rule("delay", verb="GetObject", seconds=1.0))
        process = user.start("warm", mount)
        wait_until(lambda: proxy.counts["GetObject"])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert status(user, mount)["bytes_down"] < 32 * MiB
