"""Look-ups on real mounts of a real server, which lists in an order of its own: two mounts and one large directory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sluicefs import control
from tests.conftest import Bucket
from tests.mount.helpers import User, wait_until

TTL = 1.0  # --attr-ttl


@pytest.fixture
def user(tmp_path: Path, bucket: Bucket) -> Iterator[User]:
    made = User(tmp_path, bucket)
    yield made
    made.clean_up()


def fill(bucket: Bucket, keys: list[str]) -> None:
    store = bucket.store()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, key.encode()), keys))
    finally:
        store.close()


def requests_of(path: Path) -> dict[str, int]:
    found: dict[str, int] = control.call(str(path), "status")["requests"]
    return found


def test_new_files_in_a_large_directory_are_one_request_each_and_others_see_them(user: User) -> None:
    fill(user.bucket, [f"d/{number:05}" for number in range(1100)])
    one, two = Path(user.mount()), Path(user.mount(name="two"))
    assert len(os.listdir(one / "d")) == 1100
    time.sleep(TTL + 0.1)
    before, began = requests_of(one), time.monotonic()
    for number in range(300):
        (one / "d" / f"new-{number:05}").write_bytes(b"one")
        assert not (two / "d" / f"other-{number:05}").exists()  # the other mount asks for names all the time
    took = time.monotonic() - began
    after = requests_of(one)
    spent = {verb: count - before.get(verb, 0) for verb, count in after.items() if count != before.get(verb, 0)}
    assert spent.pop("PutObject") == 300
    # Once a TTL: one LIST for all new names, one to see that the directory is there.
    assert sum(spent.values()) <= 2 * (took / TTL + 2), spent
    time.sleep(TTL + 0.1)
    assert all((two / "d" / f"new-{number:05}").read_bytes() == b"one" for number in range(0, 300, 29))


def test_what_one_mount_makes_around_missing_names_is_seen_by_the_other(user: User) -> None:
    odd = ["n", "n-", "n-1", "n.d", "n!", "n0", "na", "N", "ñ", "n 1"]
    fill(user.bucket, [f"d/{number:05}" for number in range(1100)])
    one, two = Path(user.mount()), Path(user.mount(name="two"))
    for path in (one, two):
        for name in odd:
            assert not (path / "d" / name).exists()
    for name in odd[::2]:
        (one / "d" / name).write_bytes(name.encode())
    for name in odd[1::2]:
        (one / "d" / name).mkdir()
        (one / "d" / name / "x").write_bytes(b"below")
    time.sleep(TTL + 0.1)
    for name in reversed(odd):
        path = two / "d" / name
        assert (path / "x").read_bytes() == b"below" if path.is_dir() else path.read_bytes() == name.encode()
    with (two / "d" / "n").open("ab") as file:  # O_APPEND | O_CREAT
        file.write(b" and more")
    assert (two / "d" / "n").read_bytes() == b"n and more"


def test_a_cold_small_file_costs_a_listing_and_a_get(user: User) -> None:
    fill(user.bucket, ["set/a.bin", "set/b.bin"])
    path = Path(user.mount())
    os.stat(path / "set")
    before = requests_of(path)
    assert (path / "set" / "b.bin").read_bytes() == b"set/b.bin"
    wait_until(lambda: requests_of(path).get("ListObjectsV2", 0) > before.get("ListObjectsV2", 0))  # the bytes may be first
    after = requests_of(path)
    assert [after.get(verb, 0) - before.get(verb, 0) for verb in ("ListObjectsV2", "GetObject", "HeadObject")] == [1, 1, 0]
    assert (path / "set" / "a.bin").read_bytes() == b"set/a.bin"
