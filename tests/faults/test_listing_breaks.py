"""A listing that breaks off, or an entry that cannot be told, is an errno for whoever lists; the mount goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs import control
from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        yield made
        made.clean_up()


@pytest.mark.parametrize("rule", ["denied:verb=ListObjectsV2,skip=1", "garbage:verb=ListObjectsV2,skip=1"])
def test_a_later_page_of_a_listing_fails(user: User, rule: str) -> None:
    store = user.bucket.store()
    names = {f"n{number:04}" for number in range(1005)}
    for name in names:
        store.put(f"many/{name}", b"")
    store.close()
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        path = user.mount("--endpoint", proxy.url, "--timeout", "2")
        os.stat(f"{path}/many")
        proxy.reset_counts()
        proxy.add(rule)
        with pytest.raises(OSError) as caught:
            os.listdir(f"{path}/many")
        assert caught.value.errno in (errno.EACCES, errno.EIO)
        assert proxy.faults, "it was a later page that failed"
        proxy.clear()
        assert set(os.listdir(f"{path}/many")) == names
        user.ok("unmount", path)


_BREAKS = """
import sys
from sluicefs.config import Config
from sluicefs.fs.filesystem import DirHandle, FileSystem
from sluicefs.mount import serve
from sluicefs.store.memory import MemoryStore

told, forget = DirHandle.__getitem__, FileSystem.forget

def tell(self, index):
    entry = told(self, index)
    return ("bad" + chr(0xd800), *entry[1:]) if entry[0] == "bad" else entry

def fail(self, counts):
    forget(self, counts)
    raise KeyError("forget")

DirHandle.__getitem__, FileSystem.forget = tell, fail
store = MemoryStore()
store.put("d/bad", b"")
store.put("good/x", b"hello")
serve(Config(bucket="memory", mountpoint=sys.argv[1]), store, ready=lambda: print("ready", flush=True))
"""


def test_an_error_between_two_entries_or_while_forgetting_does_not_end_the_mount(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.mkdir()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-c", _BREAKS, str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            for _ in range(2):
                with pytest.raises(OSError) as caught:
                    os.listdir(path / "d")
                assert caught.value.errno == errno.EIO
            for number in range(3):
                (path / "good" / f"{number}").touch()
                (path / "good" / f"{number}").unlink()  # the kernel forgets it at once
            assert (path / "good" / "x").read_text() == "hello"
            assert process.poll() is None
        finally:
            if control.find_mount(str(path)) is not None:
                subprocess.run(["fusermount", "-u", "-z", str(path)], check=False)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "_direntry failed in a way it should not" in said and "_forget failed in a way it should not" in said
