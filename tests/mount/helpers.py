"""The command line as a user has it: a process with a home, keys and a terminal's patience of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluicefs import control
from tests.conftest import Bucket

PATIENCE = 60  # seconds for one command


def let_others_in(folder: Path) -> None:
    """Other users can come through to `folder`, which pytest made for this one alone."""
    for part in (folder, *folder.parents[:3]):
        if part.stat().st_mode & 0o005 != 0o005:
            part.chmod(0o755)


@dataclass
class User:
    """Runs `sluicefs` in `home`, with the keys of `bucket`'s server."""

    home: Path
    bucket: Bucket
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "XDG_RUNTIME_DIR") if name in os.environ}
        server = self.bucket.server
        return {
            **keep,
            "HOME": str(self.home),
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            **self.variables,
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sluicefs", *words]

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(self.command(*words), text=True, env=self.environment, cwd=self.home, **given)

    def run(self, *words: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """`before`: a program that runs the command, with its arguments."""
        return subprocess.run(
            [*(before or []), *self.command(*words)],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
        )

    def ok(self, *words: str) -> str:
        """Its output; fails the test unless it succeeded."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def fails(self, status: int, *words: str, **options: Any) -> str:
        """Its sentence on stderr; fails the test unless it ended with `status` and one sentence."""
        done = self.run(*words, **options)
        assert done.returncode == status, f"status {done.returncode}, {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("sluicefs: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix("sluicefs: ").strip()

    def folder(self, name: str = "m") -> str:
        path = self.home / name
        path.mkdir()
        return str(path)

    def mount(self, *words: str, name: str = "m") -> str:
        """Mounts the bucket on a new folder and returns that."""
        path = self.folder(name)
        self.ok("mount", self.bucket.name, path, *words)
        return path

    def objects(self, prefix: str = "") -> list[str]:
        """What is in the bucket, markers included."""
        store = self.bucket.store()
        try:
            return [info.key for info in store.list(prefix).objects]
        finally:
            store.close()

    def clean_up(self) -> None:
        """Whatever a test left mounted below `home` is unmounted, and its processes have ended."""
        for row in reversed(control.mount_table()):
            if row.path.startswith(f"{self.home}/"):
                subprocess.run(["fusermount", "-u", "-z", row.path], check=False)
        try:
            wait_until(lambda: not processes(str(self.home)), 10)
        except AssertionError:
            for process in processes(str(self.home)):  # one that still tries to upload
                os.kill(process, signal.SIGKILL)
            raise


def processes(word: str) -> list[int]:
    """Mount processes whose command line has `word`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line and "sluicefs.daemon" in line:
            found.append(int(pid))
    return found


def wait_until(condition: Any, seconds: float = 30) -> None:
    """Fails the test when `condition()` is not true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
