"""Two mounts change one file: the later change of a part gets ESTALE and is kept beside it; whole files: the last wins."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.mount.helpers import User, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
MiB = 1024 * 1024


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        yield made
        made.clean_up()


def conflicts(user: User) -> dict[str, bytes]:
    store = user.bucket.store()
    try:
        return {key: bytes(store.get(key)[1]) for key in user.objects() if ".conflict-" in key}
    finally:
        store.close()


@pytest.mark.parametrize("size", [100_000, 23 * MiB], ids=["small", "parts"])
def test_the_later_of_two_appends_is_estale_and_kept(user: User, size: int) -> None:
    one = Path(user.mount("--attr-ttl", "0", "--part-size", "5M", name="one"))
    two = Path(user.mount("--attr-ttl", "0", "--part-size", "5M", name="two"))
    start = os.urandom(size)
    (one / "log").write_bytes(start)
    first, second = (os.open(mount / "log", os.O_RDWR | os.O_APPEND) for mount in (one, two))
    os.pread(second, size, 0)  # what has been read before can be kept even when its version is gone
    os.write(first, b"first")
    os.write(second, b"second")
    os.close(first)
    with pytest.raises(OSError) as failed:
        os.close(second)
    assert failed.value.errno == errno.ESTALE
    assert (one / "log").read_bytes() == start + b"first"
    assert (two / "log").read_bytes() == start + b"first", "the later one's next open sees the other's"
    ((key, kept),) = conflicts(user).items()
    assert key.startswith(f"log.conflict-{socket.gethostname()}-")
    assert kept == start + b"second"
    assert key in os.listdir(two)
    user.ok("unmount", str(one))
    user.ok("unmount", str(two))
    assert user.ok("recover") == "Nothing is left unsent.\n"


@pytest.mark.parametrize("mode", ["sync", "back"])
def test_who_writes_to_what_this_mount_has_seen_replaced_is_told(user: User, mode: str) -> None:
    one = Path(user.mount("--attr-ttl", "0", name="one"))
    two = Path(user.mount("--attr-ttl", "0", "--write-mode", mode, name="two"))
    (one / "log").write_bytes(b"start")
    log = os.open(two / "log", os.O_RDWR)
    assert os.pread(log, 100, 0) == b"start"
    (one / "log").write_bytes(b"another")
    assert (two / "log").read_bytes() == b"another"
    with pytest.raises(OSError) as failed:
        os.pwrite(log, b"more", 5)
    assert failed.value.errno == errno.ESTALE
    os.close(log)
    for mount in (one, two):
        user.ok("unmount", str(mount))
    assert list(user.objects()) == ["log"]


def test_a_conflict_in_back_mode_is_kept_too(user: User) -> None:
    one = Path(user.mount("--attr-ttl", "0", name="one"))
    two = Path(user.mount("--attr-ttl", "0", "--write-mode", "back", name="two"))
    (one / "log").write_bytes(b"start ")
    assert (two / "log").read_bytes() == b"start "
    with open(two / "log", "ab") as log:
        log.write(b"two")
    (one / "log").write_bytes(b"one")
    wait_until(lambda: conflicts(user))
    assert list(conflicts(user).values()) == [b"start two"]
    user.ok("unmount", str(two))
    assert (one / "log").read_bytes() == b"one"
    user.ok("unmount", str(one))


def test_of_two_whole_files_the_last_one_wins(user: User) -> None:
    one = Path(user.mount("--attr-ttl", "0", name="one"))
    two = Path(user.mount("--attr-ttl", "0", name="two"))
    (one / "file").write_bytes(b"old")
    first, second = (os.open(mount / "file", os.O_WRONLY | os.O_TRUNC) for mount in (one, two))
    os.write(first, b"first")
    os.write(second, b"second")
    os.close(second)
    os.close(first)
    assert (two / "file").read_bytes() == b"first"
    assert not conflicts(user)
    user.ok("unmount", str(one))
    user.ok("unmount", str(two))
