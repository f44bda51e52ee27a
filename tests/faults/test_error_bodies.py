"""What a mount makes of answers that are no data: EIO for the reader, never their text, never a part of a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
MiB = 1024 * 1024
SIZES = {"small": 50_000, "large": 9 * MiB}  # fetched by `open`; fetched as it is read
FAULTS = {
    "500": "status",
    "error-in-200": "error-in-200",
    "garbage": "garbage",
    "garbage-http": "garbage-http",
    "short:after=0": "short",
    "reset-response:after=0": "reset-response",
    "status-after": "status-after",
}


@pytest.fixture
def files(user: User) -> dict[str, bytes]:
    store = user.bucket.store()
    made = {name: os.urandom(size) for name, size in SIZES.items()}
    for name, data in made.items():
        store.put(name, data)
    store.close()
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_always_wrong_is_an_errno_and_one_that_was_wrong_twice_is_data(
    user: User, proxy: FaultProxy, files: dict[str, bytes], fault: str
) -> None:
    path = Path(user.mount("--timeout", "2", "--attr-ttl", "0"))
    rule = f"{fault}{',' if ':' in fault else ':'}verb=GetObject"
    proxy.add(rule)
    for name, data in files.items():
        handle = None
        seen = b""
        with pytest.raises(OSError) as failed:
            handle = os.open(path / name, os.O_RDONLY)
            while len(seen) < len(data):
                piece = os.read(handle, 65536)
                assert piece, "an end that is none"
                seen += piece
                assert data.startswith(seen)
            raise AssertionError("read whole")
        if handle is not None:
            os.close(handle)
        assert failed.value.errno in (errno.EIO, errno.ETIMEDOUT), failed.value
    proxy.clear()
    proxy.add(f"{rule},times=2")
    for name, data in files.items():
        assert (path / name).read_bytes() == data
    assert proxy.faults[FAULTS[fault]] > 4
    user.ok("unmount", str(path))
