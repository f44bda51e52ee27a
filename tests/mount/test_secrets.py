"""The secret key is nowhere but in the memory of the process that signs with it, whatever that process leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, processes, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
WATCHED = """#!/bin/sh
{ tr '\\0' '\\n' < /proc/$$/cmdline; env; } >> "$HOME/children"
exec "$REAL_FUSERMOUNT" "$@"
"""


def holding(folder: Path, secret: bytes, mountpoint: Path) -> list[Path]:
    """Files below `folder` that have the secret in their name or in their bytes."""
    found = []
    for base, folders, files in os.walk(folder):
        if str(mountpoint.name) in folders and Path(base) == mountpoint.parent:
            folders.remove(mountpoint.name)
        found += [Path(base, name) for name in files if secret in os.fsencode(name) or secret in Path(base, name).read_bytes()]
    return found


def private(folder: Path) -> bool:
    return all(Path(base).stat().st_mode & 0o777 == 0o700 for base, _, _ in os.walk(folder))


@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_it_is_in_no_log_no_cache_and_no_unsent_data_whatever_goes_wrong(user: User, end: str) -> None:
    secret = user.bucket.server.secret_key.encode()
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        user.variables |= {"AWS_ENDPOINT_URL": proxy.url, "XDG_STATE_HOME": str(user.home / "state")}
        cache = user.home / "cache"
        path = Path(user.mount("--cache-dir", str(cache), "--log-level", "debug", "--write-mode", "back", "--timeout", "2"))
        (path / "read").write_bytes(os.urandom(300_000))
        user.ok("unmount", str(path))
        user.ok("mount", user.bucket.name, str(path), "--cache-dir", str(cache), "--log-level", "debug", "--write-mode", "back",
                "--timeout", "2")  # fmt: skip
        (path / "read").read_bytes()
        for rule in ("denied", "403", "expired", "garbage-http", "reset-before", "500"):
            proxy.add(rule)
            for name in ("a", "b"):
                (path / f"{name}-{rule}").open("wb").close()
                with pytest.raises(OSError):
                    os.listdir(path / "missing")
            proxy.clear()
        proxy.add("denied:verb=*")
        (path / "small").write_bytes(b"unsent")
        (path / "large").write_bytes(os.urandom(600_000))
        (process,) = processes(str(path))
        for about in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{process}/{about}").read_bytes()
        assert [file for file in (user.home / "state").rglob("data-*") if file.is_file()], "unsent data is on disk"
        assert holding(user.home, secret, path) == [], "while it is mounted"
        assert private(user.home / "state/sluicefs/staging") and private(cache)
        if end == "kill":
            os.kill(process, signal.SIGABRT)
        else:
            proxy.clear()
            user.ok("unmount", str(path))
        wait_until(lambda: not processes(str(path)))
    assert list((user.home / "state").rglob("*.log")), "the log is below the home"
    assert holding(user.home, secret, path) == []


def test_no_child_has_it_in_its_environment(user: User) -> None:
    secret = user.bucket.server.secret_key
    folder = user.home / "bin"
    folder.mkdir()
    (folder / "fusermount").write_text(WATCHED)
    (folder / "fusermount").chmod(0o755)
    real = subprocess.run(["which", "fusermount"], capture_output=True, text=True, check=True).stdout.strip()
    user.variables |= {"PATH": f"{folder}:{os.environ['PATH']}", "REAL_FUSERMOUNT": real, "AWS_SESSION_TOKEN": ""}
    path = user.mount()
    user.ok("unmount", path)
    seen = (user.home / "children").read_text()
    assert path in seen and "AWS_ACCESS_KEY_ID" in seen, "the child was watched"
    assert secret not in seen


def test_a_crash_leaves_no_core(user: User) -> None:
    """All of the process's memory would be in it."""
    path = user.folder()
    words = ["prlimit", "--core=unlimited", *user.command("mount", user.bucket.name, path, "--foreground")]
    process = subprocess.Popen(words, env=user.environment, cwd=user.home, stderr=subprocess.DEVNULL)
    wait_until(lambda: os.path.ismount(path))
    (core,) = [line for line in Path(f"/proc/{process.pid}/limits").read_text().splitlines() if "core file" in line]
    assert core.split()[4:6] == ["0", "0"]
    process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT
    assert os.WTERMSIG(status) == signal.SIGABRT and not os.WCOREDUMP(status)
    assert list(user.home.glob("core*")) == []
