"""Credentials revoked under a live mount: EACCES, never ENOENT or an empty file; when they hold again, so does the mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")


def test_revoked_is_eacces_and_renewed_works_again(user: User, proxy: FaultProxy) -> None:
    store = user.bucket.store()
    store.put("a", b"there all along")
    store.close()
    path = user.mount("--attr-ttl", "0")
    assert "a" in os.listdir(path)
    proxy.add("denied:verb=*")
    for use in (lambda: Path(path, "a").read_bytes(), lambda: Path(path, "b").write_bytes(b"x")):
        with pytest.raises(OSError) as refused:
            use()
        assert refused.value.errno == errno.EACCES
    proxy.clear()
    assert Path(path, "a").read_bytes() == b"there all along"
    Path(path, "c").write_bytes(b"again")
    user.ok("unmount", path)
    log = "".join(file.read_text() for file in user.home.rglob("*.log"))
    assert "403" in log or "AccessDenied" in log
