"""Options as the kernel and other users see them: owners, modes, prefixes, extended attributes, long directories."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, let_others_in
from tests.mount.reference import reference_mount
from tests.unit.test_fs_attributes import failing

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="acts as several users, so root has to run it")


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    let_others_in(tmp_path)
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        yield made
        made.clean_up()


def put(user: User, **objects: bytes) -> None:
    store = user.bucket.store()
    for key, body in objects.items():
        store.put(key.replace("__", "/"), body)
    store.close()


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *command]
    return subprocess.run(words, capture_output=True, text=True)


def test_owner_and_modes_of_what_carries_none(user: User) -> None:
    put(user, d__x=b"x")
    words = ["--uid", "65101", "--gid", "65201", "--file-mode", "0666", "--dir-mode", "0777", "--umask", "027", "--allow-other"]
    mount = user.mount(*words)
    for path, mode in ((mount, 0o40750), (f"{mount}/d", 0o40750), (f"{mount}/d/x", 0o100640)):
        info = os.stat(path)
        assert (info.st_uid, info.st_gid, info.st_mode) == (65101, 65201, mode), path
    assert as_nobody("cat", f"{mount}/d/x").returncode != 0
    assert Path(mount, "d/x").read_bytes() == b"x", "root may"


def test_without_allow_other_nobody_else_sees_it(user: User) -> None:
    mount = user.mount()
    assert as_nobody("ls", mount).returncode != 0
    other = user.mount("--allow-other", name="other")
    assert as_nobody("ls", other).returncode == 0


def test_two_prefixes_of_one_bucket(user: User) -> None:
    one, two, whole = user.folder("1"), user.folder("2"), user.folder("whole")
    user.ok("mount", f"{user.bucket.name}:/users/1", one)
    user.ok("mount", f"{user.bucket.name}:/users/2", two)
    user.ok("mount", user.bucket.name, whole)
    Path(one, "x").write_text("one")
    Path(two, "x").write_text("two")
    os.chmod(one, 0o711)
    assert Path(whole, "users/1/x").read_text() == "one" and Path(whole, "users/2/x").read_text() == "two"
    assert os.listdir(one) == ["x"] and os.listdir(f"{whole}/users/1") == ["x"]
    assert stat.S_IMODE(os.stat(f"{two}/..").st_mode) == stat.S_IMODE(os.stat(user.home).st_mode), "no way up but the right one"


def test_keys_that_are_not_shown_are_counted_in_status(user: User) -> None:
    put(user, x=b"x", x__y=b"y")
    store = user.bucket.store()
    store.put("a//b", b"")
    store.put("n" * 300, b"")
    store.close()
    mount = user.mount()
    assert sorted(os.listdir(mount)) == ["a", "x"] and os.listdir(f"{mount}/a") == []
    status = json.loads(user.ok("status", "--json", mount))
    assert status["left_out_count"] == 3 and "x" in status["left_out"]


def test_a_replaced_object_of_the_same_size_leaves_no_stale_page(user: User) -> None:
    put(user, x=b"1" * 300_000)
    mount = user.mount("--attr-ttl", "0.2")
    path = f"{mount}/x"
    for digit in (b"1", b"2", b"3"):
        put(user, x=digit * 300_000)
        time.sleep(0.3)
        assert Path(path).read_bytes() == digit * 300_000
        assert Path(path).read_bytes() == digit * 300_000  # out of the kernel's pages


def test_flags_of_setxattr(user: User) -> None:
    mount = user.mount("--xattr")
    path = f"{mount}/x"
    Path(path).write_text("x")
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with failing(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    with failing(errno.ENODATA):
        os.setxattr(path, "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3" and os.listxattr(path) == ["user.a"]
    with failing(errno.ENOSPC):
        for i in range(100):
            os.setxattr(path, f"user.{i}", b"v" * 200)
    with failing(errno.EOPNOTSUPP):
        os.setxattr(path, "security.x", b"v")
    with failing(errno.EPERM):
        os.setxattr(path, "user.sluicefs.etag", b"v")
    os.removexattr(path, "user.a")
    with failing(errno.ENODATA):
        os.getxattr(path, "user.a")
    Path(path).write_text("still writable")
    plain = user.mount(name="plain")
    for verb in (lambda: os.getxattr(f"{plain}/x", "user.0"), lambda: os.setxattr(f"{plain}/x", "user.0", b"")):
        with failing(errno.EOPNOTSUPP):
            verb()


def test_a_long_directory_is_read_whole_while_it_changes(tmp_path: Path) -> None:
    with reference_mount(tmp_path) as mount:
        expected = {f"{i:04}-{'n' * 100}" for i in range(1500)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: Path(mount, name).touch(), expected))
        seen = []
        with os.scandir(mount) as entries:
            for number, entry in enumerate(entries):
                seen.append(entry.name)
                if number % 100 == 0:
                    Path(mount, f"late-{number}").touch()
                    os.unlink(f"{mount}/{entry.name}")
        assert len(seen) == len(set(seen)) and expected <= set(seen)
        assert len(os.listdir(mount)) == 1500
        assert {name for name in os.listdir(mount) if not name.startswith("late")} < expected


def test_what_renameat2_and_others_do_not_do(tmp_path: Path) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with reference_mount(tmp_path) as mount:
        Path(mount, "a").write_text("a")
        Path(mount, "b").write_text("b")
        for flag, target in ((1, "new"), (2, "b"), (4, "new")):  # NOREPLACE, EXCHANGE, WHITEOUT
            assert libc.renameat2(-100, f"{mount}/a".encode(), -100, f"{mount}/{target}".encode(), flag) == -1
            assert ctypes.get_errno() == errno.EINVAL
        with failing(errno.EPERM):
            os.link(f"{mount}/a", f"{mount}/c")
        with failing(errno.EOPNOTSUPP):
            os.open(mount, os.O_TMPFILE | os.O_RDWR)
        with open(f"{mount}/sparse", "w+b") as file:
            file.seek(1 << 20)
            file.write(b"end")
            file.flush()
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == (1 << 20) + 3
            with failing(errno.EOPNOTSUPP):
                fallocate(libc, file.fileno())


def fallocate(libc: object, fd: int) -> None:
    import ctypes

    if libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(4096)):  # type: ignore[attr-defined]
        raise OSError(ctypes.get_errno(), "fallocate")


def test_read_only_sends_no_write_request_whatever_is_tried(user: User) -> None:
    put(user, d__x=b"x", big=b"b" * 300_000)
    server = user.bucket.server
    with FaultProxy(server.endpoint) as proxy:
        user.variables["AWS_ENDPOINT_URL"] = proxy.url
        mount = user.mount("--read-only", "--xattr")
        for verb in (
            lambda: os.open(f"{mount}/new", os.O_CREAT | os.O_WRONLY),
            lambda: os.open(f"{mount}/d/x", os.O_WRONLY | os.O_APPEND),
            lambda: os.truncate(f"{mount}/d/x", 0),
            lambda: os.mkdir(f"{mount}/new"),
            lambda: os.rmdir(f"{mount}/d"),
            lambda: os.unlink(f"{mount}/d/x"),
            lambda: os.rename(f"{mount}/d", f"{mount}/e"),
            lambda: os.symlink("aim", f"{mount}/new"),
            lambda: os.mkfifo(f"{mount}/new"),
            lambda: os.chmod(f"{mount}/d", 0o700),
            lambda: os.chown(f"{mount}/d/x", 1, 1),
            lambda: os.utime(f"{mount}", (1, 1)),
            lambda: os.setxattr(f"{mount}/d/x", "user.a", b"1"),
            lambda: os.removexattr(f"{mount}/d/x", "user.a"),
        ):
            with failing(errno.EROFS):
                verb()
        assert Path(mount, "d/x").read_bytes() == b"x" and len(Path(mount, "big").read_bytes()) == 300_000
        subprocess.run(["ls", "-lR", mount], check=True, capture_output=True)
        user.ok("unmount", mount)
        assert {event.request.method for event in proxy.events} <= {"GET", "HEAD"}


ODD = ["new\nline", "per%cent", "%2F", "a+b", "a&b", "space ", " space", "back\\slash", "<xml>&amp;\"'", "emoji😀", "é"]
ODD += ["tab\t", "~", "#", "?q=1", "*", "a;b", "..x", "...", "a%20b", "\u2028", "\ufeffbom", "日本語", "x" * 255]
ODD += ["Case", "case"]


def test_names_of_any_characters(user: User) -> None:
    mount = user.mount()
    for name in ODD:
        Path(mount, name).mkdir()
        Path(mount, name, name).write_text(name)
        os.symlink(name, f"{mount}/{name}/link")
    with failing(errno.EILSEQ):
        Path(mount, "e\u0301").mkdir()
    user.ok("unmount", mount)
    user.ok("mount", user.bucket.name, mount)
    assert sorted(os.listdir(mount)) == sorted(ODD)
    os.mkdir(f"{mount}/moved")
    for name in ODD:
        assert Path(mount, name, "link").read_text() == name
        os.rename(f"{mount}/{name}", f"{mount}/moved/{name}")
    os.rename(f"{mount}/moved", f"{mount}/again")
    for name in ODD:
        assert Path(mount, "again", name, name).read_text() == name
    subprocess.run(["rm", "-rf", f"{mount}/again"], check=True)
    assert set(user.objects()) <= {".sluicefs-root"}


def test_a_directory_that_is_walked_and_changed_while_it_is_renamed(user: User) -> None:
    mount = user.mount()
    for i in range(60):
        os.makedirs(f"{mount}/0/{i % 3}", exist_ok=True)
        Path(mount, "0", str(i % 3), str(i)).write_text(str(i))
    inside = os.open(f"{mount}/0/1", os.O_RDONLY)
    over = threading.Event()
    made: set[str] = set()

    def change() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with os.fdopen(os.open(f"new-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=inside), "w") as file:
                file.write("new")
            made.add(f"new-{number}")
            if number % 3 == 0:
                os.unlink(f"new-{number - 1}", dir_fd=inside)
                made.discard(f"new-{number - 1}")

    def walk() -> None:
        while not over.is_set():
            subprocess.run(["find", mount, "-size", "+9"], capture_output=True)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(change), pool.submit(walk)]
        for i in range(4):
            os.rename(f"{mount}/{i}", f"{mount}/{i + 1}")
            seen = {name for _, _, files in os.walk(f"{mount}/{i + 1}") for name in files if not name.startswith("new")}
            assert len(seen) == 60
        over.set()
        for one in running:
            one.result()
    os.close(inside)
    assert {name for name in os.listdir(f"{mount}/4/1") if name.startswith("new")} == made
    assert all(Path(mount, "4/1", name).read_text() == "new" for name in made)
    subprocess.run(["rm", "-rf", f"{mount}/4"], check=True)
    user.ok("unmount", mount)
    assert set(user.objects()) <= {".sluicefs-root"}


def test_a_deep_path(user: User) -> None:
    mount = user.mount()
    levels = [f"level-{i:04}" for i in range(80)]
    path = "/".join([mount, *levels])
    os.makedirs(path)
    Path(path, "x").write_text("deep")
    os.rename(f"{mount}/{levels[0]}", f"{mount}/top")
    path = "/".join([mount, "top", *levels[1:]])
    assert Path(path, "x").read_text() == "deep"
    with failing(errno.ENAMETOOLONG):
        os.rename(f"{mount}/top", f"{mount}/{'t' * 250}")
    assert Path(path, "x").read_text() == "deep"
    subprocess.run(["rm", "-rf", f"{mount}/top"], check=True)
    assert user.objects() == []
