"""A mount process that is killed while it renames a directory: the old one is whole, or the new one is."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.mount.helpers import User, processes, wait_until

FILES = 300


@pytest.mark.parametrize("copied", [1, 100, FILES], ids="after {} copies".format)
def test_a_kill_leaves_the_old_directory_whole_or_the_new_one(user: User, copied: int) -> None:
    store = user.bucket.store()
    for i in range(FILES):
        store.put(f"old/{i % 3}/{i}", b"%d" % i)
    mount = user.mount()
    (daemon,) = processes(mount)
    mover = subprocess.Popen(["mv", "-T", f"{mount}/old", f"{mount}/new"], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(store.list("new/").objects) >= copied)
    os.kill(daemon, signal.SIGKILL)
    mover.wait(30)
    subprocess.run(["fusermount", "-u", "-z", mount], check=True)
    wait_until(lambda: not processes(mount))
    time.sleep(0.2)

    def content(prefix: str) -> dict[str, bytes]:
        keys = [info.key for info in store.list(prefix).objects if not info.key.endswith("/")]
        return {key.removeprefix(prefix): bytes(store.get(key)[1]) for key in keys}

    whole = {f"{i % 3}/{i}": b"%d" % i for i in range(FILES)}
    old, new = content("old/"), content("new/")
    assert old == whole or new == whole
    assert new.items() <= whole.items() and old.items() <= whole.items(), "no torn copy"
    user.ok("mount", user.bucket.name, mount)
    if old == whole:  # what SEMANTICS.md says to do
        subprocess.run(["rm", "-rf", f"{mount}/new"], check=True)
        os.rename(f"{mount}/old", f"{mount}/new")
    assert sum(len(files) for _, _, files in os.walk(f"{mount}/new")) == FILES
    user.ok("unmount", mount)
    assert content("new/") == whole
    store.close()
