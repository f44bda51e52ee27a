"""The disk for unsent data is full: `write` says ENOSPC or waits for the bucket, and what was acknowledged stays whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, wait_until

MiB = 1024 * 1024
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE, and root for a small tmpfs"
)


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer, proxy: FaultProxy) -> Iterator[User]:
    """Its state folder has 24 MiB."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(state)], check=True)
    for bucket in new_bucket(ministack):
        variables = {"AWS_ENDPOINT_URL": proxy.url, "XDG_STATE_HOME": str(state)}
        made = User(tmp_path, bucket, variables)
        yield made
        proxy.clear()
        made.clean_up()
    subprocess.run(["umount", "-l", str(state)], check=False, stderr=subprocess.DEVNULL)


def stored(user: User, key: str) -> bytes:
    store = user.bucket.store()
    try:
        return bytes(store.get(key)[1])
    finally:
        store.close()


OPTIONS = ("--part-size", "5M", "--memory", "64M")


def write_until_refused(path: Path, piece: bytes, most: int) -> tuple[int, int]:
    """(pieces that were written, errno of the one that was not or of close)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    number, refused = 0, 0
    try:
        while number < most:
            os.write(handle, piece)
            number += 1
    except OSError as error:
        refused = error.errno or 0
    try:
        os.close(handle)
    except OSError as error:
        refused = refused or error.errno or 0
    return number, refused


def test_a_long_file_that_cannot_be_sent_ends_in_enospc(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount(*OPTIONS))
    before = os.urandom(3 * MiB)
    (path / "before").write_bytes(before)
    proxy.add("denied:verb=UploadPart", "denied:verb=CreateMultipartUpload")
    piece = os.urandom(MiB)
    written, refused = write_until_refused(path / "long", piece, 80)
    assert refused == errno.ENOSPC and 16 <= written < 80
    assert (path / "long").stat().st_size == written * MiB, "what was refused is not in the file"
    assert (path / "before").read_bytes() == before
    (path / "after").write_bytes(b"small files still go")
    assert stored(user, "after") == b"small files still go"
    (path / "long").unlink()
    proxy.clear()
    wait_until(lambda: shutil.disk_usage(user.variables["XDG_STATE_HOME"]).used < 4 * MiB)  # given back a moment later
    (path / "next").write_bytes(piece * 30)
    user.ok("unmount", str(path))
    assert stored(user, "before") == before
    assert stored(user, "next") == piece * 30
    assert [key for key in user.objects() if not key.startswith(".")] == ["after", "before", "next"]
    assert user.ok("recover") == "Nothing is left unsent.\n"


def test_back_mode_without_room_sends_at_once(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount(*OPTIONS, "--write-mode", "back"))
    files = {f"f{number}": os.urandom(4 * MiB) for number in range(12)}
    for name, data in files.items():
        (path / name).write_bytes(data)
    for name, data in files.items():
        assert (path / name).read_bytes() == data
    user.ok("unmount", str(path))
    for name, data in files.items():
        assert stored(user, name) == data


def test_back_mode_without_room_and_without_a_bucket_refuses_and_keeps_the_rest(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount(*OPTIONS, "--write-mode", "back"))
    proxy.add("denied:verb=PutObject")
    kept, refused = {}, 0
    for number in range(12):
        data = os.urandom(4 * MiB)
        handle = os.open(path / f"f{number}", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(handle, data)
        finally:
            try:
                os.close(handle)
                kept[f"f{number}"] = data
            except OSError as error:
                refused += 1
                assert error.errno in (errno.ENOSPC, errno.EACCES)
                (path / f"f{number}").unlink()
    assert refused and len(kept) >= 2
    proxy.clear()
    user.ok("unmount", str(path))
    for name, data in kept.items():
        assert stored(user, name) == data
