"""Kills a mount in the middle of its work, again and again, and looks at what the bucket has after the next mount.

A child process writes files with checkable content and says which ones `close` or `fsync` acknowledged; SIGKILL (or SIGTERM)
hits the mount at a random moment of that. Content names its file and version, so torn or mixed data is seen.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from sluicefs.errors import NotFoundError
from tests.conftest import Bucket

MiB = 1024 * 1024
PART = 5 * MiB
SIZES = (0, 1, 4096, 65536, 300_000, 2 * MiB, 12 * MiB, 17 * MiB)

SERVE = """
import os, sys
from sluicefs.config import Config
from sluicefs.mount import serve
from sluicefs.store.s3 import S3Store
bucket, endpoint, region, access, secret, mountpoint, mode = sys.argv[1:]
config = Config(bucket=bucket, mountpoint=mountpoint, endpoint=endpoint, region=region, write_mode=mode, part_size=5 << 20,
                memory=64 << 20, timeout=10)
store = S3Store(bucket, endpoint=endpoint, region=region, credentials=(access, secret))
serve(config, store, ready=lambda: print("ready", flush=True))
store.close()
"""

# Writes until it is killed or the mount is: a file is created, or written over by a rename, or rewritten in place.
WRITE = """
import os, random, sys
sys.path.insert(0, os.getcwd())
from tests.faults.crash import SIZES, content
folder, seed = sys.argv[1], int(sys.argv[2])
dice = random.Random(seed)
mount = os.stat(folder).st_dev
def done(*words):
    if os.stat(folder).st_dev == mount:  # else it was unmounted, and what is written goes beside it
        print("done", *words, flush=True)
for version in range(seed * 1000 + 1, seed * 1000 + 1000):
    name = f"f{dice.randrange(12)}"
    data = content(name, version, dice.choice(SIZES))
    how = dice.choice(["new", "rename", "fsync"])
    path = os.path.join(folder, f"t{version}" if how == "rename" else name)
    print("begin", name, version, len(data), flush=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for start in range(0, len(data), 131072):
        os.write(fd, data[start:start + 131072])
    if how == "fsync":
        os.fsync(fd)
        done(name, version, len(data))
    os.close(fd)
    if how == "rename":
        os.rename(path, os.path.join(folder, name))
    done(name, version, len(data))
"""


def content(name: str, version: int, size: int) -> bytes:
    """`size` bytes that say whose they are every 32 bytes."""
    line = b"%-8s version %08d --------\n" % (name.encode(), version)
    return (line[:31] + b"\n") * (size // 32) + line[: size % 32]


@dataclass
class Crash:
    """One bucket, one mount that dies and comes back."""

    bucket: Bucket
    folder: Path
    mode: str
    acknowledged: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (version, size)
    begun: dict[str, dict[int, int]] = field(default_factory=dict)  # name: size by version
    process: subprocess.Popen[str] | None = None

    @property
    def mountpoint(self) -> Path:
        return self.folder / "m"

    def mount(self) -> None:
        self.mountpoint.mkdir(exist_ok=True)
        server = self.bucket.server
        words = [self.bucket.name, server.endpoint, server.region, server.access_key, server.secret_key]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *words, str(self.mountpoint), self.mode],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(self.folder / "state")},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill_while_writing(self, seed: int, number: int = signal.SIGKILL) -> None:
        """Let a child write for a random while, then end the mount with a signal."""
        dice = random.Random(seed)
        assert self.process is not None
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(self.mountpoint), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert writer.stdout is not None
        self._note(writer.stdout.readline())
        time.sleep(dice.random() ** 2 * 1.5)
        self.process.send_signal(number)
        self.process.wait(120)
        for line in writer.stdout:
            self._note(line)
        writer.wait(20)
        writer.stdout.close()
        self.end()

    def _note(self, line: str) -> None:
        match = re.fullmatch(r"(begin|done) (\w+) (\d+) (\d+)\n", line)
        if match is None:
            return
        name, version, size = match[2], int(match[3]), int(match[4])
        if match[1] == "begin":
            self.begun.setdefault(name, {})[version] = size
        else:
            self.acknowledged[name] = version, size

    def unmount(self) -> None:
        """As a user does: everything pending is sent first."""
        assert self.process is not None
        for _ in range(50):
            if subprocess.run(["fusermount", "-u", str(self.mountpoint)], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        assert self.process.wait(60) == 0
        self.end()

    def end(self) -> None:
        if self.process is not None:
            if self.process.stdout is not None:
                self.process.stdout.close()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process = None
        subprocess.run(["fusermount", "-u", "-z", str(self.mountpoint)], stderr=subprocess.DEVNULL, check=False)

    def check(self, *, partly: bool = False) -> None:
        """After a remount and unmount: what was acknowledged is there, or what came after it, whole; nothing is left over.

        `partly`: what was being written may be there as far as it had come, as at an fsync.
        """
        store = self.bucket.store()
        try:
            for name, (version, _) in self.acknowledged.items():
                try:
                    data = bytes(store.get(name)[1])
                except NotFoundError:
                    raise AssertionError(f"{name}, version {version}, was acknowledged and is not there") from None
                self._check_content(name, version, data, partly)
            assert store.list_uploads("") == [], "uploads left behind"
        finally:
            store.close()
        left = [path for path in (self.folder / "state").rglob("*") if path.is_file()]
        assert left == [], "staging is empty when all is sent"

    def _check_content(self, name: str, acknowledged: int, data: bytes, partly: bool) -> None:
        possible = {acknowledged: self.acknowledged[name][1]}
        possible |= {version: size for version, size in self.begun[name].items() if version > acknowledged}
        # O_TRUNC in place: what was being written may show as far as a close or fsync got.
        for version, size in possible.items():
            cut = partly and version > acknowledged and len(data) < size
            if (len(data) == size or cut) and data == content(name, version, size)[: len(data)]:
                return
        head = data[:40]
        raise AssertionError(f"{name}: {len(data)} bytes beginning {head!r} are no version of {sorted(possible.items())}")
