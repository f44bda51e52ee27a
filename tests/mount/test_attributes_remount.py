"""Attributes outlive a mount: a tree comes back as it was, here and for s3fs, and one that s3fs wrote is read."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.helpers import User, wait_until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="stores other users' files, so root has to run it")


def plant(root: Path) -> None:
    """A tree with every attribute that should survive."""
    root.mkdir()
    (root / "plain.txt").write_text("plain")
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "secret").write_text("secret")
    (root / "secret").chmod(0o600)
    (root / "empty").touch()
    (root / "ünïcödé name").write_text("x" * 100_000)
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/deep").write_text("deep")
    (root / "nothing").mkdir()
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "shared").mkdir()
    (root / "shared").chmod(0o2770)
    (root / "private/inner").mkdir(parents=True)
    (root / "private").chmod(0o700)
    (root / "link").symlink_to("plain.txt")
    (root / "absolute").symlink_to("/etc/hostname")
    (root / "dangling").symlink_to("nowhere/at all")
    (root / "a/up").symlink_to("../plain.txt")
    os.mkfifo(root / "fifo")
    os.chown(root / "secret", 65101, 65201)
    os.chown(root / "nothing", 65101, 65201)
    os.lchown(root / "link", 65102, 65202)
    odd = {
        "plain.txt": 1,
        "program": 1_000_000_000.123456789,
        "secret": 4_102_444_800,
        "a/b/c/deep": -86400,
        "nothing": 86400,
        "a": 7e8,
    }
    for name, seconds in odd.items():
        os.utime(root / name, (seconds, seconds))
    os.utime(root / "dangling", (12345, 67890), follow_symlinks=False)


def transfer(source: str, target: str) -> None:
    """tar c | tar x, extended attributes included."""
    with subprocess.Popen(["tar", "-C", source, "--xattrs", "-c", "."], stdout=subprocess.PIPE) as packer:
        subprocess.run(["tar", "-C", target, "--xattrs", "-xp"], stdin=packer.stdout, check=True)
    assert packer.returncode == 0


def differences(source: str, target: str, *options: str) -> str:
    command = ["rsync", "-an", "--checksum", "--delete", "--itemize-changes", *options, f"{source}/", f"{target}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_tree_comes_back_as_it_was(user: User) -> None:
    source = user.home / "source"
    plant(source)
    os.setxattr(source / "plain.txt", "user.note", b"\0\xff binary")
    os.setxattr(source / "a", "user.of.directory", b"d" * 300)
    mount = user.mount("--xattr")
    transfer(str(source), mount)
    assert differences(str(source), mount, "-X") == ""
    user.ok("unmount", mount)
    for options in (("--xattr",), ("--xattr", "--attrs", "full")):
        user.ok("mount", user.bucket.name, mount, *options)
        assert differences(str(source), mount, "-X") == ""
        user.ok("unmount", mount)
    user.ok("mount", user.bucket.name, mount, "--attrs", "listing")
    assert Path(mount, "plain.txt").stat().st_mtime > time.time() - 3600, "a listing has no times of ours"
    user.ok("unmount", mount)


def test_times_survive_a_rename_and_a_remount(user: User) -> None:
    mount = user.mount()
    Path(mount, "old").mkdir()
    for name in ("old/file", "other"):
        Path(mount, name).write_text(name)
    time.sleep(2.5)
    before = os.stat(f"{mount}/old/file").st_mtime_ns, os.stat(f"{mount}/other").st_mtime_ns
    os.rename(f"{mount}/old", f"{mount}/new")
    os.rename(f"{mount}/other", f"{mount}/another")
    user.ok("unmount", mount)
    user.ok("mount", user.bucket.name, mount)
    for name, mtime in zip(("new/file", "another"), before, strict=True):
        assert abs(os.stat(f"{mount}/{name}").st_mtime_ns - mtime) < 1.5e9  # a listing's times have whole seconds


@contextmanager
def s3fs(user: User) -> Iterator[str]:
    """The bucket mounted by s3fs."""
    server = user.bucket.server
    keys = user.home / "keys"
    keys.write_text(f"{server.access_key}:{server.secret_key}")
    keys.chmod(0o600)
    path = user.home / "s3fs"
    path.mkdir(exist_ok=True)
    options = f"passwd_file={keys},url={server.endpoint},use_path_request_style,use_xattr=1,allow_other"
    subprocess.run(["s3fs", user.bucket.name, str(path), "-o", options], check=True)
    wait_until(lambda: os.path.ismount(path))
    yield str(path)
    subprocess.run(["umount", str(path)], check=True)
    wait_until(lambda: not os.path.ismount(path))


def shown(root: str) -> dict[str, tuple[object, ...]]:
    """What lstat says of everything below, and where links point."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
            size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            found[os.path.relpath(path, root)] = (
                stat.filemode(info.st_mode), info.st_uid, info.st_gid, size, info.st_mtime_ns // 10**9, target
            )  # fmt: skip
    return found


def test_s3fs_shows_what_we_wrote(user: User) -> None:
    source = user.home / "source"
    plant(source)
    os.utime(source / "a/b/c/deep", (5, 5))  # s3fs knows no times before 1970
    mount = user.mount()
    transfer(str(source), mount)
    user.ok("unmount", mount)
    with s3fs(user) as other:
        there = shown(other)
    assert there.pop(".sluicefs-root"), "the one object of our own, which others see"
    assert there == shown(str(source))


def test_what_s3fs_wrote_is_shown(user: User) -> None:
    source = user.home / "source"
    plant(source)
    os.utime(source / "a/b/c/deep", (5, 5))
    with s3fs(user) as other:
        subprocess.run(["cp", "-a", source, f"{other}/tree"], check=True)
        os.setxattr(f"{other}/tree/plain.txt", "user.note", b"\0\xff")
    with s3fs(user) as other:
        written = shown(other)
    mount = user.mount("--attrs", "full", "--xattr")
    assert shown(mount) == written
    assert written["tree/secret"][:3] == ("-rw-------", 65101, 65201)
    assert os.getxattr(f"{mount}/tree/plain.txt", "user.note") == b"\0\xff"
    assert os.listxattr(f"{mount}/tree/plain.txt") == ["user.note"]
