"""The control socket: requests and answers, private files, damage and strangers."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sluicefs import control, lifecycle, mount
from sluicefs.config import Config
from sluicefs.errors import UnmountError
from sluicefs.fs.filesystem import FileSystem
from sluicefs.fs.nodes import Node
from sluicefs.fuse.stopping import StopSignals
from sluicefs.store.api import Store


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control, "runtime_folder", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def server(runtime: Path) -> Iterator[control.Server]:
    release = threading.Event()

    def slow(_: dict[str, object]) -> dict[str, object]:
        release.wait(10)
        return {"slow": True}

    def broken(_: dict[str, object]) -> dict[str, object]:
        raise ValueError("cannot do this")

    made = control.Server(control.socket_path("/mnt/x"), {"echo": lambda args: args, "slow": slow, "broken": broken})
    made.start()
    yield made
    release.set()
    made.close()


def test_a_request_is_answered(server: control.Server) -> None:
    assert control.call("/mnt/x", "echo", a=1, b="ü\n") == {"a": 1, "b": "ü\n"}


def test_the_socket_is_private(server: control.Server) -> None:
    assert stat.S_IMODE(os.stat(control.socket_path("/mnt/x")).st_mode) == 0o600


def test_the_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert stat.S_IMODE(os.stat(control.runtime_folder()).st_mode) == 0o700


def test_a_failure_in_a_handler_is_told_and_the_server_lives(server: control.Server) -> None:
    with pytest.raises(control.ControlError, match="cannot do this"):
        control.call("/mnt/x", "broken")
    with pytest.raises(control.ControlError, match="no such request"):
        control.call("/mnt/x", "unheard")
    assert control.call("/mnt/x", "echo") == {}


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b'{"verb": []}\n', b'{"verb": "echo"', b"1" * 70000 + b"\n"]
)
def test_garbage_does_no_harm(server: control.Server, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(control.socket_path("/mnt/x"))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        assert b"no such request" in connection.makefile("rb").readline()
    assert control.call("/mnt/x", "echo") == {}


def test_a_slow_request_holds_up_no_other(server: control.Server) -> None:
    worker = threading.Thread(target=control.call, args=("/mnt/x", "slow"))
    worker.start()
    started = time.monotonic()
    assert control.call("/mnt/x", "echo", n=1) == {"n": 1}
    assert worker.is_alive() and time.monotonic() - started < 5
    with pytest.raises(TimeoutError):
        control.call("/mnt/x", "slow", timeout=0.05)


def test_nobody_there(runtime: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        control.call("/mnt/none", "echo")


def test_a_socket_left_by_a_crash_is_taken_over_a_live_one_is_not(server: control.Server, runtime: Path) -> None:
    with pytest.raises(OSError, match="another mount process"):
        control.Server(control.socket_path("/mnt/x"), {}).start()
    stale = control.socket_path("/mnt/stale")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stale)
    second = control.Server(stale, {"echo": lambda args: args})
    second.start()
    assert control.call("/mnt/stale", "echo") == {}
    second.close()
    assert not os.path.exists(stale)
    assert control.call("/mnt/x", "echo") == {}


def test_the_process_of_a_mount_is_found_wherever_its_socket_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, as root sees it, or one that was started with another XDG_RUNTIME_DIR."""
    row = control.MountPoint("/mnt/x", control.FS_TYPE, "sluicefs:b", f"rw,user_id={os.getuid()}", "0:41")
    monkeypatch.setattr(control, "mount_table", lambda: [row])
    places = [f"{tmp_path}/theirs", f"{tmp_path}/ours"]
    monkeypatch.setattr(control, "_runtime_places", lambda uid: places)
    server = control.Server(control.socket_path("/mnt/x"), {"echo": lambda args: args})
    server.start()
    places.reverse()
    assert control.call("/mnt/x", "echo", a=1) == {"a": 1} and control.listens("/mnt/x")
    server.close()
    assert not control.listens("/mnt/x")


def test_the_table_of_mounts_is_read() -> None:
    rows = {row.path: row for row in control.mount_table()}
    assert "/" in rows and rows["/proc"].fs_type == "proc"
    found = control.find_mount("/proc")
    assert found is not None and not found.is_ours
    assert control.find_mount("/proc/self") is None


def test_whatever_anybody_mounted_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        rb"30 1 0:40 / /a\040b\134040 rw - tmpfs  rw",
        b"31 1 0:41 / /a\xa0\xc2\xa0b\rc\x0b rw shared:1 - fuse.sluicefs sluicefs:b:/\\043 rw,user_id=0",
    )
    monkeypatch.setattr(control, "open", lambda *_: io.BytesIO(b"".join(line + b"\n" for line in lines)), raising=False)
    one, two = control.mount_table()
    assert (one.path, one.source, one.options) == (r"/a b\040", "", "rw")
    assert (os.fsencode(two.path), two.source, two.device) == (b"/a\xa0\xc2\xa0b\rc\x0b", "sluicefs:b:/#", "0:41")
    assert two.is_ours


def test_a_path_is_followed_as_the_kernel_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "far/m").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("far/away")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-m").symlink_to("link/../m")
    monkeypatch.chdir(tmp_path)
    row = control.MountPoint(f"{tmp_path}/far/m", control.FS_TYPE, "sluicefs:b", "rw", "0:41")
    monkeypatch.setattr(control, "mount_table", lambda: [row])
    for path in ("m", "m/", "./m", "link/../m", "link/..", "to-m", "to-m/", "", ".", "/", "nowhere/x", str(tmp_path / "m/.")):
        assert control.real_path(path) == os.path.realpath(path), path
    control.real_path("loop")


def test_an_unmount_is_refused_however_many_files_could_not_be_sent(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that did not fit would be none, and a mount that does not answer is unmounted."""
    nodes = [Node(number, None, f"{number}", 0o100644) for number in range(10_000)]
    failed = [(node, OSError(errno.EIO, "the store does not answer, as is said at some length here " * 2)) for node in nodes]
    fs = SimpleNamespace(sync_all=lambda: failed, pending=lambda: len(failed))
    handlers = mount._handlers(Config("b", "/mnt/x"), cast(Store, None), cast(FileSystem, fs), StopSignals())
    flush = handlers["flush"]
    server = control.Server(control.socket_path("/mnt/x"), {"flush": flush, "status": lambda _: {"pid": 0}})
    server.start()
    monkeypatch.setattr(control, "find_mount", lambda path: control.MountPoint(path, "fuse.sluicefs", "sluicefs:b", "", "0:1"))
    monkeypatch.setattr(lifecycle, "is_dead", lambda path: False)
    monkeypatch.setattr(lifecycle, "_unmount", lambda path: pytest.fail("it was unmounted"))
    with pytest.raises(UnmountError, match=r"^10000 files are not in the bucket yet: 0 "):
        lifecycle.stop("/mnt/x")
    server.close()


@pytest.mark.parametrize("mine", [True, False])
def test_a_mount_that_took_the_place_of_one_that_is_waited_for_is_not_stopped(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, mine: bool
) -> None:
    told: list[object] = []
    signals = cast(StopSignals, SimpleNamespace(stop=lambda: told.append(1)))
    stop = mount._handlers(Config("b", "/mnt/x"), cast(Store, None), cast(FileSystem, None), signals)["stop"]
    monkeypatch.setattr(threading, "Timer", lambda _, work: SimpleNamespace(start=work))
    monkeypatch.setattr(lifecycle, "_END_SECONDS", 0)
    with subprocess.Popen(["sleep", "60"]) as process:

        def stopped(asked: dict[str, object]) -> dict[str, object]:
            stop(asked | {"pid": os.getpid()} if mine and asked["pid"] == process.pid else asked)
            process.kill()
            return {}

        server = control.Server(control.socket_path("/mnt/x"), {"stop": stopped})
        server.start()
        lifecycle._wait_for_end(process.pid, "/mnt/x")
        server.close()
    assert told == ([1] if mine else [])
