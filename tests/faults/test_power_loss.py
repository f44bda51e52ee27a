"""Power loss in back mode: what `close` and `fsync` acknowledged is on the disk itself, not only in the kernel's memory.

The state folder is an ext4 of its own on a loop device. A copy of its image is what a machine would find that lost power then.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sluicefs import lifecycle
from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, processes, wait_until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop devices"),
]
KiB, MiB = 1024, 1024 * 1024
SIZES = (1000, 300 * KiB, 0, 6 * MiB, 20 * KiB, 900 * KiB)


@contextmanager
def disk(image: Path, folder: Path) -> Iterator[None]:
    """`image` mounted on `folder`; the kernel writes nothing by itself for ten minutes."""
    subprocess.run(["mount", "-o", "loop,commit=600", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def kill(path: str) -> None:
    for process in processes(path):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not processes(path) and lifecycle.is_dead(path))
    subprocess.run(["fusermount", "-u", "-z", path], check=True)


def test_what_was_acknowledged_survives_a_power_loss(tmp_path: Path, ministack: DevServer) -> None:
    image, state = tmp_path / "image", tmp_path / "state"
    state.mkdir()
    image.touch()
    os.truncate(image, 128 * MiB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    copies: list[tuple[Path, dict[str, bytes]]] = []
    for bucket in new_bucket(ministack):
        with FaultProxy(ministack.endpoint, rules=[]) as proxy:
            user = User(tmp_path, bucket, {"AWS_ENDPOINT_URL": proxy.url, "XDG_STATE_HOME": str(state)})
            words = ("--write-mode", "back", "--part-size", "5M")
            try:
                with disk(image, state):
                    path = user.mount(*words)
                    proxy.add("denied:verb=Put*", "denied:verb=Create*")
                    expected: dict[str, bytes] = {}
                    for number in range(18):
                        name, data = f"f{number % 9}", os.urandom(SIZES[number % 6])
                        with open(os.path.join(path, name), "wb") as file:
                            file.write(data)
                            if number % 5 == 4:
                                file.flush()
                                os.fsync(file.fileno())
                                file.write(b"more")
                                data += b"more"
                        expected[name] = data
                        if number % 3 == 2:
                            copies.append((tmp_path / f"copy-{number}", dict(expected)))
                            shutil.copyfile(image, copies[-1][0])
                    kill(path)
                for copy, expected in copies:
                    with disk(copy, state):
                        user.ok("mount", bucket.name, path, *words)
                        assert {name: Path(path, name).read_bytes() for name in os.listdir(path)} == expected
                        kill(path)
                proxy.clear()
                with disk(copies[-1][0], state):
                    user.ok("mount", bucket.name, path, *words)
                    user.ok("unmount", path)
                    assert user.ok("recover") == "Nothing is left unsent.\n"
                assert sorted(user.objects()) == sorted(copies[-1][1])
            finally:
                proxy.clear()
                user.clean_up()
