"""`sluicefs mount`, `unmount`, `status`, `top`, `doctor` and `dev-server`, run as a user runs them."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sluicefs import control
from tests.conftest import Bucket
from tests.faults.proxy import FaultProxy
from tests.faults.rules import Rule
from tests.mount.helpers import User, processes, wait_until


def read(bucket: Bucket, key: str) -> bytes:
    store = bucket.store()
    try:
        return bytes(store.get(key)[1])
    finally:
        store.close()


def test_mount_returns_when_the_mount_answers_and_unmount_when_the_bucket_has_it_all(user: User) -> None:
    path = user.folder()
    before = os.stat(path).st_dev
    assert user.ok("mount", user.bucket.name, path) == ""
    assert os.stat(path).st_dev != before, "the mount answers in the process that asked for it"
    assert len(processes(path)) == 1
    Path(path, "report.txt").write_text("hello")
    assert user.ok("unmount", path) == ""
    assert os.stat(path).st_dev == before
    assert processes(path) == [], "its process has ended"
    assert read(user.bucket, "report.txt") == b"hello"


def test_a_prefix_is_the_root(user: User) -> None:
    path = user.folder()
    user.ok("mount", f"{user.bucket.name}:/users/1", path)
    Path(path, "a").write_text("x")
    user.ok("unmount", path)
    assert "users/1/a" in user.objects()


def test_a_binding_of_the_config_file(user: User) -> None:
    (user.home / "sluicefs.toml").write_text(f'[buckets.DATA]\nbucket = "{user.bucket.name}"\nprefix = "p"\nread_only = true\n')
    path = user.folder()
    user.ok("mount", "DATA", path)
    with pytest.raises(OSError) as caught:
        Path(path, "a").write_text("x")
    assert caught.value.errno == errno.EROFS
    user.ok("unmount", path)


def test_a_folder_with_a_space_and_an_umlaut(user: User) -> None:
    path = user.mount(name="my döcs")
    Path(path, "a").write_text("x")
    assert json.loads(user.ok("status", path, "--json"))["mountpoint"] == path
    user.ok("unmount", path)
    assert user.objects() == ["a"]


@pytest.mark.parametrize("name", [b"\xff\xa0".decode(errors="surrogateescape"), "a\u00a0\r\t\\b", "ü" * 127])
def test_a_folder_of_any_name(user: User, name: str) -> None:
    path = user.mount(name=name)
    Path(path, "a").write_text("x")
    assert json.loads(user.ok("status", path, "--json"))["mountpoint"] == path
    user.variables["PYTHONIOENCODING"] = "ascii:strict"
    user.ok("status", path)
    user.ok("unmount", path)
    assert user.objects() == ["a"]


def test_a_prefix_of_any_characters_asks_nothing_of_fuse(user: User) -> None:
    path = user.folder()
    user.ok("mount", f"{user.bucket.name}:/a,allow_other/ü b\\,#", path)
    Path(path, "x").write_text("x")
    row = control.find_mount(path)
    assert row is not None and "allow_other" not in row.options
    user.ok("unmount", path)
    assert user.objects() == ["a,allow_other/ü b\\,#/x"]


def test_the_form_of_mount_8_and_fstab(user: User) -> None:
    program = os.path.join(os.path.dirname(sys.executable), "mount.sluicefs")
    path = user.folder()
    words = [program, user.bucket.name, path, "-o", "ro,noauto,noexec,_netdev,x-systemd.automount,umask=027"]
    subprocess.run(words, env=user.environment, cwd=user.home, check=True, timeout=60)
    assert os.stat(path).st_mode & 0o777 == 0o750
    assert os.statvfs(path).f_flag & os.ST_NOEXEC
    with pytest.raises(OSError) as caught:
        os.mkdir(f"{path}/d")
    assert caught.value.errno == errno.EROFS
    user.ok("unmount", path)


def test_what_mount_8_adds_on_its_own(user: User) -> None:
    program = os.path.join(os.path.dirname(sys.executable), "mount.sluicefs")
    path = user.folder()
    words = [program, user.bucket.name, path, "-s", "-n", "-v", "-o", "rw"]
    subprocess.run([*words, "-f"], env=user.environment, cwd=user.home, check=True, timeout=60)
    assert control.find_mount(path) is None, "-f is all but the mount"
    subprocess.run(words, env=user.environment, cwd=user.home, check=True, timeout=60)
    user.ok("unmount", path)


def test_mount_without_stdin_stdout_and_stderr(user: User) -> None:
    path = user.folder()
    closed = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash"]
    assert user.run("mount", user.bucket.name, path, before=closed).returncode == 0
    Path(path, "a").write_text("x")
    assert user.run("unmount", path, before=closed).returncode == 0
    assert user.objects() == ["a"]


def test_a_module_in_the_working_folder_is_not_run(user: User) -> None:
    (user.home / "llfuse.py").write_text("raise SystemExit('hijacked')")
    (user.home / "json.py").write_text("raise SystemExit('hijacked')")
    program = os.path.join(os.path.dirname(sys.executable), "sluicefs")
    path = user.folder()
    subprocess.run([program, "mount", user.bucket.name, path], env=user.environment, cwd=user.home, check=True, timeout=60)
    for name in ("llfuse.py", "json.py"):
        os.unlink(user.home / name)  # `python -m` of the other tests does look there
    user.ok("unmount", path)


def test_status_shows_each_mount(user: User) -> None:
    path = user.mount()
    Path(path, "a").write_text("x" * 1000)
    answer = json.loads(user.ok("status", path, "--json"))
    assert (answer["bucket"], answer["mountpoint"], answer["alive"]) == (user.bucket.name, path, True)
    assert answer["requests"]["PutObject"] == 1 and answer["bytes_up"] == 1000
    assert path in [row["mountpoint"] for row in json.loads(user.ok("status", "--json"))]
    text = user.ok("status", path)
    assert user.bucket.name in text and "PutObject 1" in text and "0 files" in text
    user.ok("unmount", path)
    assert path not in user.ok("status")
    assert "is not a mount of sluicefs" in user.fails(2, "status", path)


def test_top_shows_the_same_live(user: User) -> None:
    path = user.mount()
    process = user.start("top", path)
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in err
    assert "pending" in out and path[:20] in out.replace("\n", "")
    user.ok("unmount", path)


def test_unmount_while_busy_loses_nothing(user: User) -> None:
    path = user.mount()
    with open(f"{path}/a", "w") as file:
        file.write("one ")
        file.flush()
        said = user.fails(1, "unmount", path)
        assert "is in use by" in said and f"process {os.getpid()}" in said
        file.write("two")
    user.ok("unmount", path)
    assert read(user.bucket, "a") == b"one two"


def test_unmount_names_a_mount_inside(user: User) -> None:
    path = user.mount()
    inner = user.mount(name="m/inner")
    assert f"is in use by the mount on {inner}" in user.fails(1, "unmount", path)
    user.ok("unmount", inner)
    user.ok("unmount", path)


def test_unmount_ends_a_mount_that_a_container_still_has(user: User) -> None:
    path = Path(user.mount())
    container = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE
    )
    try:
        assert container.stdout is not None and container.stdout.readline() == b"ready\n"
        (path / "x").write_bytes(b"x")
        user.ok("unmount", str(path))
        assert not processes(str(path))
        user.ok("mount", user.bucket.name, str(path))
        assert (path / "x").read_bytes() == b"x"
    finally:
        container.kill()
        container.communicate()


def test_unmount_while_the_store_is_away_keeps_the_data_mounted(user: User) -> None:
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        path = user.mount("--endpoint", proxy.url, "--timeout", "2")
        proxy.add(Rule("status", verb="PutObject", status=503, code="SlowDown"))
        with pytest.raises(OSError):
            Path(path, "a").write_text("precious")
        said = user.fails(1, "unmount", path)
        assert "1 files are not in the bucket yet: a (" in said and "stays mounted" in said
        assert Path(path, "a").read_text() == "precious"
        proxy.clear()
        user.ok("unmount", path)
    assert read(user.bucket, "a") == b"precious"


def test_a_second_mount_on_a_live_one_is_refused_without_harm(user: User) -> None:
    path = user.mount()
    Path(path, "a").write_text("x")
    assert "is a mount already" in user.fails(1, "mount", user.bucket.name, path)
    assert Path(path, "a").read_text() == "x"
    user.ok("unmount", path)


def test_of_two_that_mount_on_one_folder_at_once_one_wins(user: User) -> None:
    path = user.folder()
    both = [user.start("mount", user.bucket.name, path) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    assert all("should not" not in text for text in said)
    assert len([row for row in control.mount_table() if row.path == path]) == 1
    user.ok("unmount", path)


def test_a_mount_nobody_waits_for_any_more_is_not_made(user: User) -> None:
    path = user.folder()
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        proxy.add(Rule("delay", seconds=2.0))
        process = user.start("mount", user.bucket.name, path, "--endpoint", proxy.url)
        wait_until(lambda: proxy.counts)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == 130
        wait_until(lambda: not processes(path))
    assert control.find_mount(path) is None


def test_a_mount_whose_process_hangs_hangs_nobody_else(user: User) -> None:
    path = user.mount()
    pid = json.loads(user.ok("status", "--json", path))["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "does not answer: timed out" in user.ok("status") and "clean up" not in user.ok("status", path)
        assert "stays mounted" in user.fails(1, "unmount", path)
    finally:
        os.kill(pid, signal.SIGCONT)
    user.ok("unmount", path)


def test_what_a_crash_left_is_cleaned_up_by_the_next_mount(user: User) -> None:
    path = user.mount()
    Path(path, "a").write_text("x")
    os.kill(processes(path)[0], signal.SIGKILL)
    wait_until(lambda: not processes(path))
    with pytest.raises(OSError) as caught:
        os.stat(path)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert "its process is gone" in user.ok("status", path)
    user.ok("mount", user.bucket.name, path)
    assert Path(path, "a").read_text() == "x"
    user.ok("unmount", path)


def test_what_a_crash_left_is_seen_though_the_kernel_remembers_its_root(user: User) -> None:
    path = user.mount("--attr-ttl", "1h")
    os.stat(path)
    os.kill(processes(path)[0], signal.SIGKILL)
    wait_until(lambda: not processes(path))
    os.stat(path)
    assert "its process is gone" in user.ok("status", path)
    user.ok("mount", user.bucket.name, path)
    user.ok("unmount", path)


def test_what_a_crash_left_is_cleaned_up_by_unmount(user: User) -> None:
    path = user.mount()
    os.kill(processes(path)[0], signal.SIGKILL)
    wait_until(lambda: not processes(path))
    user.ok("unmount", path)
    assert control.find_mount(path) is None
    assert os.listdir(path) == []


def test_unmount_of_what_is_no_mount_of_ours(user: User) -> None:
    assert "is not a mount" in user.fails(1, "unmount", user.folder())
    assert "a mount of proc, not of sluicefs" in user.fails(1, "unmount", "/proc")


def test_in_the_foreground_it_tells_the_supervisor_and_ends_on_sigterm(user: User) -> None:
    path = user.folder()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"{user.home}/notify")
        supervisor.settimeout(30)
        user.variables["NOTIFY_SOCKET"] = f"{user.home}/notify"
        process = user.start("mount", user.bucket.name, path, "--foreground")
        assert b"READY=1" in supervisor.recv(1000)
    Path(path, "a").write_text("x")
    file = os.open(f"{path}/open", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"not closed yet")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    with pytest.raises(OSError):
        os.close(file)
    assert control.find_mount(path) is None
    assert read(user.bucket, "a") == b"x"
    assert read(user.bucket, "open") == b"not closed yet"


def test_the_secret_is_nowhere_to_be_seen(user: User) -> None:
    cache = user.folder("cache")
    path = user.mount("--cache-dir", cache, "--log-level", "debug")
    Path(path, "a").write_text("x")
    secret = user.bucket.server.secret_key.encode()
    (process,) = processes(path)
    for name in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{process}/{name}").read_bytes()
    user.ok("unmount", path)
    files = [file for file in user.home.rglob("*") if file.is_file()]
    assert [file for file in files if file.suffix == ".log"], "the log is below the home"
    assert not [file for file in files if secret in file.read_bytes()]
    for folder in [cache, *(folder for folder in user.home.rglob("staging/*") if folder.is_dir())]:
        assert os.stat(folder).st_mode & 0o077 == 0 or folder == cache


def test_doctor_finds_all_well(user: User) -> None:
    findings = json.loads(user.ok("doctor", user.bucket.name, "--json"))
    assert all(finding["ok"] for finding in findings)
    names = [finding["check"] for finding in findings]
    assert names == ["FUSE", "fusermount", "name", "connection", "clock", "credentials", "list", "write", "read", "delete"]
    assert user.objects() == [], "the probe object is gone"
    assert user.bucket.server.secret_key not in user.ok("doctor", user.bucket.name)


def test_doctor_says_what_is_wrong_and_the_fix(user: User) -> None:
    user.variables["AWS_SECRET_ACCESS_KEY"] = "x" * 40
    done = user.run("doctor", user.bucket.name)
    assert done.returncode == 1
    assert "FAIL  list" in done.stdout and "The secret key does not belong to" in done.stdout
    assert not done.stderr


def test_dev_server_prints_what_a_shell_needs(user: User) -> None:
    server = user.start("dev-server", "--bucket", "mine-too")
    try:
        lines = [server.stdout.readline() for _ in range(5)] if server.stdout else []
        exported = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines if line.startswith("export "))
        path = user.folder()
        user.variables.update(exported)
        user.ok("mount", "mine-too", path)
        Path(path, "a").write_text("x")
        user.ok("unmount", path)
    finally:
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=30)
    assert server.returncode == 0 and "Traceback" not in err


def test_dev_server_ends_with_its_server(user: User) -> None:
    starter = user.start("dev-server")
    assert starter.stdout is not None and "export" in [starter.stdout.readline() for _ in range(2)][1]
    children = " ".join(found.read_text() for found in Path(f"/proc/{starter.pid}/task").glob("*/children")).split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, err = starter.communicate(timeout=30)
    assert starter.returncode == 1 and "ministack ended with status -9" in err and "Traceback" not in err
