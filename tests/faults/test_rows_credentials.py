"""Credentials that expire or are revoked under a live mount: EACCES, never ENOENT or an empty file, one clear line in the log;
when they hold again, so does the mount.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
TROUBLE = {"denied": "AccessDenied", "expired": "ExpiredToken", "403": "SignatureDoesNotMatch"}


def log_lines(user: User) -> list[str]:
    return "".join(file.read_text() for file in (user.home / ".local").rglob("*.log")).splitlines()


def fails_with_eacces(*uses: Callable[[], object]) -> None:
    for use in uses:
        with pytest.raises(OSError) as refused:
            use()
        assert refused.value.errno == errno.EACCES


@pytest.fixture
def path(user: User) -> Path:
    """A mount with a file that has not been read yet."""
    store = user.bucket.store()
    store.put("a", b"there all along")
    store.close()
    path = Path(user.mount("--attr-ttl", "0", "--log-level", "info"))
    assert "a" in os.listdir(path)
    return path


@pytest.mark.parametrize("trouble", TROUBLE)
def test_revoked_is_eacces_with_one_line_and_granted_again_works_again(
    user: User, proxy: FaultProxy, path: Path, trouble: str
) -> None:
    proxy.add(f"{trouble}:verb=*")
    for number in range(5):
        fails_with_eacces(
            lambda: os.listdir(path),
            (path / "a").read_bytes,
            (path / "a").stat,
            lambda number=number: (path / f"b{number}").write_bytes(b"x"),
            (path / "a").unlink,
            lambda: os.rename(path / "a", path / "c"),
        )
    said = [line for line in log_lines(user) if TROUBLE[trouble] in line and "; try " not in line]
    assert len(said) == 1 and "renew the credentials" in said[0] and " ERROR " in said[0], said
    proxy.clear()
    assert (path / "a").read_bytes() == b"there all along"
    (path / "c").write_bytes(b"again")
    assert [line for line in log_lines(user) if "lets us in again" in line]
    user.ok("unmount", str(path))
    assert {"a", "c"} <= set(user.objects())


def test_keys_that_are_renewed_in_the_file_are_used_without_a_new_mount(user: User, proxy: FaultProxy) -> None:
    server = user.bucket.server

    def write_keys(access_key: str) -> None:
        folder = user.home / ".aws"
        folder.mkdir(exist_ok=True)
        keys = {"access_key_id": access_key, "secret_access_key": server.secret_key}
        (folder / "new").write_text("[default]\n" + "".join(f"aws_{name} = {value}\n" for name, value in keys.items()))
        (folder / "new").rename(folder / "credentials")

    write_keys(server.access_key)
    user.variables |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    path = Path(user.mount("--attr-ttl", "0"))
    (path / "a").write_bytes(b"before")
    write_keys("AKIANOTANYMORE000000")
    proxy.add("expired:verb=*")
    end = (
        time.monotonic() + 6
    )  # keys are looked for again every five seconds: then some are found that the server does not know
    while time.monotonic() < end:
        fails_with_eacces((path / "a").stat, lambda: (path / "b").write_bytes(b"x"))
        time.sleep(0.5)
    proxy.clear()
    fails_with_eacces((path / "a").stat, lambda: (path / "b").write_bytes(b"x"))
    write_keys(server.access_key)

    def works() -> bool:
        try:
            return (path / "a").read_bytes() == b"before"
        except PermissionError:
            return False

    wait_until(works)
    (path / "c").write_bytes(b"after")
    user.ok("unmount", str(path))
    assert {"a", "c"} <= set(user.objects())
    said = log_lines(user)
    assert len([line for line in said if "renew the credentials" in line]) == 1
    assert not [line for line in said if server.secret_key in line]
