"""Many at once on one mount: open descriptors, readers and writers, names in a directory."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
KiB, MiB = 1024, 1024 * 1024
ROOT = Path(__file__).parents[2]

# A mount on the reference store with `count` objects of `size` bytes in the directory `d`.
SERVE = """
import sys
from sluicefs.config import Config
from sluicefs.mount import serve
from sluicefs.store.memory import MemoryStore
mountpoint, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = MemoryStore()
for number in range(count):
    store.put(f"d/{number:06}", (b"%07d" % number * (size // 7 + 1))[:size])
serve(Config(bucket="memory", mountpoint=mountpoint), store, ready=lambda: print("ready", flush=True))
assert not [info for info in store.list("d/").objects if info.size > size]
"""


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        yield made
        made.clean_up()


@contextmanager
def memory_mount(folder: Path, count: int, size: int, *, descriptors: int | None = None) -> Iterator[Path]:
    """`descriptors`: the process's own limit."""
    path = folder / "m"
    path.mkdir()
    limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors else []
    server = subprocess.Popen(
        [*limit, sys.executable, "-c", SERVE, str(path), str(count), str(size)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state")},
    )
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield path
        subprocess.run(["fusermount", "-u", str(path)], check=True)
        assert server.wait(120) == 0
    finally:
        if server.poll() is None:
            subprocess.run(["fusermount", "-u", "-z", str(path)], check=False)
            server.kill()
            server.wait()
        if server.stdout is not None:
            server.stdout.close()


@contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < count + 1000:
        pytest.skip(f"this user may open {before[1]} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def keep_open(folder: Path, count: int) -> None:
    """Reading and writing descriptors, while the mount's process may have 100 of its own."""
    with many_descriptors(count), memory_mount(folder, 100, 1000, descriptors=100) as path, ExitStack() as stack:
        handles = []
        for number in range(count):
            reading = number % 10
            flags = os.O_RDONLY if reading else os.O_RDWR | os.O_CREAT
            name = f"d/{number % 100:06}" if reading else f"w{number}"
            handles.append(os.open(path / name, flags, 0o644))
            stack.callback(os.close, handles[-1])
        for number, handle in enumerate(handles):
            if number % 10:
                assert os.pread(handle, 7, 7) == b"%07d" % (number % 100)
            else:
                os.pwrite(handle, b"%07d" % number, 0)
        for number, handle in enumerate(handles):
            if not number % 10:
                assert os.pread(handle, 7, 0) == b"%07d" % number


def test_a_thousand_descriptors_cost_the_mount_none_of_its_own(tmp_path: Path) -> None:
    keep_open(tmp_path, 1_000)


@pytest.mark.soak
def test_ten_thousand_descriptors(tmp_path: Path) -> None:
    keep_open(tmp_path, 10_000)


def test_at_its_own_limit_of_descriptors_a_mount_refuses_and_then_sends_all_it_acknowledged(user: User) -> None:
    """Unsent data on local disk takes one a file; those for the bucket must not run out."""
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        user.variables["AWS_ENDPOINT_URL"] = proxy.url
        path = Path(user.folder())
        words = user.command("mount", user.bucket.name, str(path), "--write-mode", "back")
        subprocess.run(["prlimit", "--nofile=120:120", *words], env=user.environment, cwd=user.home, check=True)
        proxy.add("denied:verb=PutObject")
        kept, refused = {}, 0
        for number in range(100):
            data = os.urandom(260 * KiB)
            handle = os.open(path / f"f{number}", os.O_WRONLY | os.O_CREAT)
            try:
                os.write(handle, data)
            finally:
                try:
                    os.close(handle)
                    kept[f"f{number}"] = data
                except OSError as error:
                    refused += 1
                    assert error.errno in (errno.EACCES, errno.ENOSPC)
        assert refused and len(kept) >= 30
        proxy.refuse(0.1)  # no connection is left: new ones are needed
        proxy.clear()
        user.ok("unmount", str(path))
    store = user.bucket.store()
    for name, data in kept.items():
        assert store.get(name)[1] == data
    store.close()


def test_sixty_four_readers_and_writers_at_once(user: User) -> None:
    """Half of them write files of their own, half read what is there and what the others have closed."""
    store = user.bucket.store()
    there = {f"there/{number}": os.urandom(300 * KiB + number) for number in range(16)}
    for name, data in there.items():
        store.put(name, data)
    path = Path(user.mount("--memory", "64M"))
    (path / "new").mkdir()
    written: dict[str, str] = {}  # name: digest

    def write(number: int) -> None:
        dice = random.Random(number)
        for round_ in range(3):
            name = f"new/{number}-{round_}"
            data = dice.randbytes(dice.choice((10, 5000, 200 * KiB, 2 * MiB)))
            with open(path / name, "wb") as file:
                for start in range(0, len(data), 64 * KiB):
                    file.write(data[start : start + 64 * KiB])
            written[name] = hashlib.sha256(data).hexdigest()

    def read(number: int) -> None:
        dice = random.Random(number)
        for _ in range(8):
            name, data = dice.choice(list(there.items()))
            start = dice.randrange(len(data))
            with open(path / name, "rb") as file:
                file.seek(start)
                assert file.read(100_000) == data[start : start + 100_000], name
            if written:
                name, digest = dice.choice(list(written.items()))
                assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest, name

    with ThreadPoolExecutor(64) as pool:
        for job in [pool.submit(write if number % 2 else read, number) for number in range(64)]:
            job.result()
    user.ok("unmount", str(path))
    assert len(written) == 32 * 3
    for name, digest in written.items():
        assert hashlib.sha256(store.get(name)[1]).hexdigest() == digest, name
    store.close()


def read_directory(folder: Path, count: int) -> None:
    with memory_mount(folder, count, 20) as path:
        names = [f"{number:06}" for number in range(count)]
        with os.scandir(path / "d") as entries:
            found = sorted((entry.name, entry.inode()) for entry in entries)
        assert [name for name, _ in found] == names
        for name, number in found:
            status = os.stat(path / "d" / name)
            assert (status.st_size, status.st_ino) == (20, number)
        (path / "d/new").write_bytes(b"x")
        (path / "d" / names[0]).unlink()
        assert sorted(os.listdir(path / "d")) == [*names[1:], "new"]


def test_a_directory_of_three_thousand_entries(tmp_path: Path) -> None:
    read_directory(tmp_path, 3_000)


@pytest.mark.soak
def test_a_directory_of_a_hundred_thousand_entries(tmp_path: Path) -> None:
    read_directory(tmp_path, 100_000)
