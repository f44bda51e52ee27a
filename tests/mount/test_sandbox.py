"""Sandboxes: what runs inside sees its buckets and programs and nothing else, and the buckets keep the data."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sluicefs
from sluicefs import Sandbox, control
from sluicefs.devserver import DevServer
from tests.conftest import Bucket, new_bucket
from tests.mount.helpers import User

SECRET_VARIABLE = "SANDBOX_TEST_VARIABLE"


@pytest.fixture
def bucket(ministack: DevServer) -> Iterator[Bucket]:
    yield from new_bucket(ministack)


@pytest.fixture
def mounted(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sandbox], Sandbox]]:
    """Mounts the bucket on /data of a sandbox."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv(SECRET_VARIABLE, "outside")
    keys = (bucket.server.access_key, bucket.server.secret_key)
    made = []

    def mount(sandbox: Sandbox) -> Sandbox:
        made.append(sandbox)
        sandbox.mount_bucket(bucket.name, "/data", endpoint=bucket.server.endpoint, region="us-east-1", credentials=keys)
        return sandbox

    yield mount
    for sandbox in made:
        sandbox.destroy()


def read(bucket: Bucket, key: str) -> bytes:
    store = bucket.store()
    try:
        return bytes(store.get(key)[1])
    finally:
        store.close()


def test_data_outlives_the_sandbox(bucket: Bucket, mounted: Callable[[Sandbox], Sandbox]) -> None:
    with mounted(Sandbox("data-processor")) as sandbox:
        sandbox.write_file("process.py", "open('/data/report.json', 'w').write('{}')")
        result = sandbox.exec(["python3", "process.py"])
        assert result.success, result.stderr
        folder = sandbox._folder
    assert folder is not None and not os.path.exists(folder)
    assert not [row for row in control.mount_table() if row.path.startswith(folder)]
    assert read(bucket, "report.json") == b"{}"
    with mounted(Sandbox("data-processor")) as again:
        assert again.read_file("/data/report.json") == "{}"
        assert not again.exec("ls process.py").success, "what was not in the bucket is gone"


def test_results_have_output_errors_and_status(mounted: Callable[[Sandbox], Sandbox]) -> None:
    with Sandbox("a") as sandbox:
        result = sandbox.exec("cat; echo bad >&2; exit 3", stdin="in")
        assert (result.stdout, result.stderr, result.exit_code, result.success) == ("in", "bad\n", 3, False)
        assert sandbox.exec(["echo", "a  b", "$HOME"]).stdout == "a  b $HOME\n"
        assert sandbox.exec("pwd", cwd="/tmp").stdout == "/tmp\n"
        assert sandbox.exec("echo $X", env={"X": "1"}).stdout == "1\n"
        assert sandbox.exec("kill -KILL $$").exit_code == 137
        assert sandbox.exec(["no-such-command"]).exit_code == 127
        assert sandbox.exec(["/etc/passwd"]).exit_code == 126
        with pytest.raises(sluicefs.InvalidMountConfigError, match="no command"):
            sandbox.exec([])


def test_a_timeout_ends_everything_it_started(mounted: Callable[[Sandbox], Sandbox]) -> None:
    with mounted(Sandbox("a")) as sandbox:
        started = time.monotonic()
        result = sandbox.exec("(while :; do date +%s%N > /data/tick; sleep 0.1; done) & echo begun; sleep 100", timeout=1.5)
        assert time.monotonic() - started < 20
        assert (result.exit_code, result.timed_out, result.stdout) == (124, True, "begun\n")
        tick = sandbox.read_file("/data/tick")
        time.sleep(0.5)
        assert sandbox.read_file("/data/tick") == tick


def test_no_network_unless_asked_for() -> None:
    probe = "import socket; print([name for _, name in socket.if_nameindex()])"
    with Sandbox("a") as closed, Sandbox("b", net=True) as open_:
        assert closed.exec(["python3", "-c", probe]).stdout == "['lo']\n"
        assert open_.exec(["python3", "-c", probe]).stdout == f"{[name for _, name in socket.if_nameindex()]}\n"


def test_the_dev_server_of_this_machine_is_out_of_reach(bucket: Bucket, mounted: Callable[[Sandbox], Sandbox]) -> None:
    code = f"import urllib.request; urllib.request.urlopen({bucket.server.endpoint!r}, timeout=5)"
    with mounted(Sandbox("a")) as sandbox:
        result = sandbox.exec(["python3", "-c", code])
        assert not result.success and "refused" in result.stderr


def test_neither_environment_nor_credentials_are_inside(bucket: Bucket, mounted: Callable[[Sandbox], Sandbox]) -> None:
    with mounted(Sandbox("a")) as sandbox:
        seen = sandbox.exec(
            "env; cat /proc/*/environ /proc/*/cmdline /proc/mounts; find / -xdev 2>/dev/null | head -100000"
        ).stdout
        assert bucket.server.secret_key not in seen and bucket.server.access_key not in seen
        assert SECRET_VARIABLE not in seen
        assert bucket.name in seen, "the bucket's name is no secret"


@pytest.mark.parametrize("path", ["/etc/shadow", "/root/.bashrc", "/sys/kernel", "/var/log", "/run"])
def test_this_machine_cannot_be_read(path: str) -> None:
    with Sandbox("a") as sandbox:
        assert not sandbox.exec(["cat", path]).stdout
        assert not sandbox.exec(["ls", path]).stdout


@pytest.mark.parametrize(
    "path",
    ["/usr/x", "/etc/x", "/x", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness", "/proc/irq/default_smp_affinity"],
)
def test_this_machine_cannot_be_changed(path: str) -> None:
    """The kernel's settings too: they belong to user 0, and a root who starts a sandbox is user 0 outside."""
    with Sandbox("a") as sandbox:
        with pytest.raises(OSError):
            sandbox.write_file(path, "60")
        assert "Read-only" in sandbox.exec(f"echo 60 > {path}").stderr or not os.path.exists(path)


def test_a_link_does_not_lead_out(mounted: Callable[[Sandbox], Sandbox], tmp_path: Path) -> None:
    target = tmp_path / "outside"
    target.write_text("untouched")
    with mounted(Sandbox("a")) as sandbox:
        sandbox.exec(f"ln -s {target} link; ln -s {target} /data/link; ln -s / root; ln -s /data/../..{tmp_path} up")
        for path in ("link", "/data/link", f"root{target}", "up/outside", f"../../../../{target}"):
            with pytest.raises(FileNotFoundError):
                sandbox.read_file(path)
            with pytest.raises(OSError):
                sandbox.write_file(path, "changed")
    assert target.read_text() == "untouched"


def test_what_a_command_leaves_does_not_move_the_next_ones_mounts(mounted: Callable[[Sandbox], Sandbox]) -> None:
    with mounted(Sandbox("a")) as sandbox:
        sandbox.exec("rm -rf /data /bin /tmp/* ; ln -s /etc /data; ln -s /etc /tmp/x")
        assert sandbox.exec("echo fine > /data/y && cat /data/y").stdout == "fine\n"


def test_files_are_written_and_read_as_text_or_bytes(mounted: Callable[[Sandbox], Sandbox]) -> None:
    with mounted(Sandbox("a")) as sandbox:
        sandbox.write_file("/data/ü", "größer\n")
        assert sandbox.read_file("/data/ü") == "größer\n"
        big = os.urandom(3_000_000)
        sandbox.write_file("/data/big", big)
        assert sandbox.read_file("/data/big", encoding=None) == big
        with pytest.raises(FileNotFoundError):
            sandbox.read_file("/data/none")
        with pytest.raises(IsADirectoryError):
            sandbox.read_file("/data")
        assert sandbox.exec("stat -c %u /data/big; id -u").stdout == "1000\n1000\n"


def test_a_read_only_bucket(bucket: Bucket, mounted: Callable[[Sandbox], Sandbox]) -> None:
    keys = {"access_key": bucket.server.access_key, "secret_key": bucket.server.secret_key}
    with mounted(Sandbox("a")) as sandbox:
        sandbox.write_file("/data/x", "1")
        options = {"endpoint": bucket.server.endpoint, "region": "us-east-1", "credentials": keys}
        sandbox.mount_bucket(bucket.name, "/frozen", read_only=True, **options)
        assert sandbox.exec("cat /frozen/x").stdout == "1"
        assert "Read-only" in sandbox.exec("echo 2 > /frozen/x").stderr
        sandbox.unmount_bucket("/frozen")
        assert not sandbox.exec("ls /frozen").success


@pytest.mark.parametrize(
    "path", ["/", "/usr/x", "/proc", "/etc", "/dev/shm", "/home/sandbox", "/tmp/x", "data", "/data/../usr", "/data"]
)
def test_paths_a_bucket_cannot_be_mounted_on(path: str, bucket: Bucket, mounted: Callable[[Sandbox], Sandbox]) -> None:
    with mounted(Sandbox("a")) as sandbox, pytest.raises(sluicefs.InvalidMountConfigError):
        sandbox.mount_bucket(bucket.name, path, endpoint=bucket.server.endpoint)


def test_a_destroyed_sandbox_says_so() -> None:
    sandbox = Sandbox("a")
    sandbox.destroy()
    sandbox.destroy()
    with pytest.raises(sluicefs.MountError, match="is destroyed"):
        sandbox.exec("ls")
    with pytest.raises(sluicefs.InvalidMountConfigError):
        Sandbox("../x")


def test_run_is_one_command_in_a_sandbox(tmp_path: Path, bucket: Bucket) -> None:
    user = User(tmp_path, bucket)
    done = user.run("run", "--mount", f"{bucket.name}:/in:/data", "--", "sh", "-c", "echo hi > /data/a; cat /data/a; exit 7")
    assert (done.returncode, done.stdout) == (7, "hi\n"), done.stderr
    assert "in/a" in user.objects()
    read_only = user.run("run", "--mount", f"{bucket.name}:/data:ro", "--", "touch", "/data/b")
    assert read_only.returncode != 0 and "Read-only" in read_only.stderr
    assert "write BUCKET:/PATH" in user.fails(2, "run", "--mount", "data", "--", "true")
    user.clean_up()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_told_to_stop_uploads_and_leaves_nothing(tmp_path: Path, bucket: Bucket, number: signal.Signals) -> None:
    user = User(tmp_path, bucket, {"TMPDIR": str(tmp_path)})
    words = ("run", "--mount", f"{bucket.name}:/data", "--", "sh", "-c", "echo x > /data/x; echo ready; sleep 60")
    process = user.start(*words)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert read(bucket, "x") == b"x\n"
    assert not list(tmp_path.glob("sluicefs-sandbox-*")) and not list(tmp_path.rglob("*.log"))
    assert not [row for row in control.mount_table() if row.path.startswith(str(tmp_path))]
