"""Uploads that fail: nobody is told that all is well, and no byte is lost, whatever ends the mount then."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sluicefs import control, lifecycle
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, processes, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
NO_UPLOADS = ("denied:verb=PutObject", "denied:verb=UploadPart*", "denied:verb=C*Upload")
MiB = 1024 * 1024


def kill(path: str) -> None:
    """End a mount's process as a crash does."""
    for process in processes(path):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not processes(path) and lifecycle.is_dead(path))


def log(user: User) -> str:
    """What the mounts' processes had to say."""
    return "".join(file.read_text() for file in (user.home / ".local").rglob("*.log"))


def stored(user: User, key: str) -> bytes:
    store = user.bucket.store()
    try:
        return bytes(store.get(key)[1])
    finally:
        store.close()


def write_and_fail(path: Path, data: bytes, number: int = errno.EACCES) -> None:
    """Write; `close` must say why it failed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    for start in range(0, len(data), MiB):
        os.write(handle, data[start : start + MiB])
    with pytest.raises(OSError) as failed:
        os.close(handle)
    assert failed.value.errno == number


@pytest.mark.parametrize("size", [1000, 12 * MiB], ids=["small", "parts"])
def test_sync_a_failed_close_says_so_and_recover_has_the_data_after_a_crash(user: User, proxy: FaultProxy, size: int) -> None:
    data = os.urandom(size)
    path = Path(user.mount("--part-size", "5M"))
    proxy.add(*NO_UPLOADS)
    write_and_fail(path / "file", data)
    assert (path / "file").read_bytes() == data, "the mount still shows it"
    kill(str(path))
    proxy.clear()
    assert "file" in user.ok("recover") and "1 file" not in user.objects()
    user.ok("mount", user.bucket.name, str(path))
    time.sleep(1.5)
    assert "file" not in user.objects(), "the application was told that it failed: nothing is sent behind its back"
    user.ok("unmount", str(path))
    assert user.bucket.name in user.ok("recover", user.bucket.name, "--list")
    user.ok("recover", user.bucket.name, "--upload")
    assert stored(user, "file") == data
    assert user.ok("recover") == "Nothing is left unsent.\n"


def test_recover_saves_elsewhere(user: User, proxy: FaultProxy) -> None:
    store = user.bucket.store()
    old = os.urandom(12 * MiB)
    store.put("d/file", bytearray(old))
    store.close()
    path = Path(user.mount("--part-size", "5M"))
    proxy.add(*NO_UPLOADS)
    handle = os.open(path / "d/file", os.O_WRONLY)
    os.pwrite(handle, b"changed", 6 * MiB)
    with pytest.raises(OSError):
        os.close(handle)
    kill(str(path))
    proxy.clear()
    folder = user.home / "saved"
    said = user.ok("recover", str(path), "--save", str(folder))
    assert said == f"{folder}/d/file\n"
    assert (folder / "d/file").read_bytes() == old[: 6 * MiB] + b"changed" + old[6 * MiB + 7 :]
    assert user.ok("recover") == "Nothing is left unsent.\n"
    assert stored(user, "d/file") == old


def test_recover_does_not_forget_what_it_could_not_read_of_the_bucket(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount("--timeout", "1"))
    (path / "old").write_text("old")
    changed, new = os.open(path / "old", os.O_WRONLY | os.O_APPEND), os.open(path / "new", os.O_WRONLY | os.O_CREAT)
    os.write(changed, b"more")
    os.write(new, b"new")
    proxy.add(*NO_UPLOADS)
    for handle in (changed, new):
        with pytest.raises(OSError):
            os.close(handle)
    kill(str(path))
    assert "old" in user.ok("recover", "m"), "a dead mount is no bucket"
    assert "cannot be made" in user.fails(1, "recover", "--save", "/proc/nowhere")
    proxy.clear()
    proxy.add("denied")
    done = user.run("recover", "--save", str(user.home / "saved"))
    assert done.returncode == 1 and "1 files could not be saved whole and are still kept: old" in done.stderr
    assert (user.home / "saved/new").read_text() == "new" and (user.home / "saved/old").read_bytes() == b"\0\0\0more"
    assert user.ok("recover").count("\n") == 1
    proxy.clear()
    (user.home / "sluicefs.toml").write_text(f'[buckets.MINE]\nbucket = "{user.bucket.name}"\n')
    both = [user.start("recover", "--upload", "MINE") for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert "1 files are in their bucket now" in said[0][0] + said[1][0]
    assert stored(user, "old") == b"oldmore"
    assert user.ok("recover", "MINE") == "Nothing is left unsent.\n"


def test_sync_the_next_fsync_sends_what_an_earlier_one_could_not(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount())
    handle = os.open(path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"one")
    proxy.add(*NO_UPLOADS)
    with pytest.raises(OSError):
        os.fsync(handle)
    os.write(handle, b"two")
    proxy.clear()
    os.fsync(handle)
    assert stored(user, "file") == b"onetwo"
    os.close(handle)
    user.ok("unmount", str(path))
    assert user.ok("recover") == "Nothing is left unsent.\n"


def test_a_change_that_was_kept_is_sent_on_top_of_what_it_is_based_on(user: User, proxy: FaultProxy) -> None:
    store = user.bucket.store()
    old = os.urandom(16 * MiB)
    store.put("file", bytearray(old))
    store.close()
    path = Path(user.mount("--part-size", "5M", "--write-mode", "back"))
    proxy.add(*NO_UPLOADS)
    with open(path / "file", "r+b") as file:
        file.seek(7 * MiB)
        file.write(b"changed")
    kill(str(path))
    proxy.clear()
    user.ok("mount", user.bucket.name, str(path), "--part-size", "5M")
    expected = old[: 7 * MiB] + b"changed" + old[7 * MiB + 7 :]
    assert (path / "file").read_bytes() == expected
    wait_until(lambda: stored(user, "file") == expected)
    assert proxy.counts["UploadPartCopy"] >= 2, "the rest was copied by the server"
    user.ok("unmount", str(path))


def test_back_what_close_acknowledged_is_readable_at_once_after_a_crash_and_then_sent(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount("--write-mode", "back"))
    (path / "a/b").mkdir(parents=True)
    proxy.add(*NO_UPLOADS)
    files = {f"a/b/f{number}": os.urandom(1 << number) for number in range(8, 22)}
    for name, data in files.items():
        (path / name).write_bytes(data)
    os.rename(path / "a/b/f8", path / "a/moved")
    files["a/moved"] = files.pop("a/b/f8")
    (path / "a/b/f9").unlink()
    del files["a/b/f9"]
    pending = control.call(str(path), "status")["pending"]
    assert pending == {"files": len(files), "bytes": sum(map(len, files.values()))}
    time.sleep(0.1)  # an unlinked file's record goes without anybody waiting
    kill(str(path))
    user.ok("mount", user.bucket.name, str(path), "--write-mode", "back")
    assert sorted(os.listdir(path / "a/b")) == sorted(name[4:] for name in files if name.startswith("a/b/"))
    for name, data in files.items():
        assert (path / name).read_bytes() == data
    assert not [key for key in user.objects() if not key.endswith("/")], "none of it is in the bucket yet"
    proxy.clear()
    user.ok("unmount", str(path))
    for name, data in files.items():
        assert stored(user, name) == data


def test_back_unlink_and_rename_over_do_not_wait_for_an_upload(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount("--write-mode", "back", "--part-size", "5M"))
    proxy.add("delay:verb=UploadPart,seconds=1")
    for name in ("unlinked", "replaced"):
        before = proxy.counts["UploadPart"]
        (path / name).write_bytes(bytes(40 * MiB))
        wait_until(lambda before=before: proxy.counts["UploadPart"] > before)  # type: ignore[misc]
        if name == "unlinked":
            (path / name).unlink()
        else:
            (path / "new").write_bytes(b"new")
            os.rename(path / "new", path / name)
    assert proxy.counts["CompleteMultipartUpload"] == 0
    proxy.clear()
    user.ok("unmount", str(path))
    assert stored(user, "replaced") == b"new"
    assert [key for key in user.objects() if not key.startswith(".")] == ["replaced"]
    assert proxy.counts["CompleteMultipartUpload"] == 0
    assert user.ok("recover") == "Nothing is left unsent.\n"


def test_unmount_shows_how_far_it_is(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount("--write-mode", "back", "--part-size", "5M"))
    proxy.add("delay:verb=UploadPart,seconds=0.5")
    (path / "file").write_bytes(os.urandom(60 * MiB))
    seen, terminal = os.openpty()
    with user.start("unmount", str(path), stderr=terminal, stdout=subprocess.DEVNULL) as unmount:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(seen, 4096):
                shown += piece
    os.close(seen)
    assert unmount.returncode == 0
    assert b"uploading 1 files" in shown and "\u2501".encode() in shown
    assert len(stored(user, "file")) == 60 * MiB


def test_sigterm_in_the_middle_of_a_long_write_ends_in_time_and_keeps_what_was_written(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount("--part-size", "5M", "--stop-timeout", "1"))
    proxy.add("delay:verb=UploadPart,seconds=1")
    handle = os.open(path / "file", os.O_WRONLY | os.O_CREAT)
    data = os.urandom(40 * MiB)
    for start in range(0, len(data), MiB):
        os.write(handle, data[start : start + MiB])
    (mount,) = processes(str(path))
    os.kill(mount, signal.SIGTERM)
    wait_until(lambda: not processes(str(path)))
    with pytest.raises(OSError):
        os.close(handle)
    proxy.clear()
    store = user.bucket.store()
    assert store.list_uploads("") == []
    store.close()
    assert "file" not in user.objects() and "file" in user.ok("recover")
    assert f"1 files could not be sent to {user.bucket.name}, `sluicefs recover {user.bucket.name}` has them: file" in log(user)
    user.ok("recover", user.bucket.name, "--upload")
    assert stored(user, "file") == data


def test_back_unmount_in_an_outage_ends_in_time_and_keeps_all(user: User, proxy: FaultProxy) -> None:
    path = Path(user.mount("--write-mode", "back", "--stop-timeout", "1", "--timeout", "2"))
    (path / "file").write_bytes(b"data")
    proxy.add("503")
    started = time.monotonic()
    os.kill(processes(str(path))[0], signal.SIGTERM)
    wait_until(lambda: not processes(str(path)))
    assert time.monotonic() - started < 20, "within --stop-timeout and what was under way"
    proxy.clear()
    assert f"1 files could not be sent to {user.bucket.name}, the next mount sends them: file" in log(user), (
        "it says what is left"
    )
    assert "sent by the next mount" in user.ok("recover")
    user.ok("mount", user.bucket.name, str(path))
    wait_until(lambda: "file" in user.objects())
    user.ok("unmount", str(path))
    assert stored(user, "file") == b"data"


def test_a_second_mount_takes_nothing_from_a_living_one(user: User, proxy: FaultProxy) -> None:
    first = Path(user.mount("--write-mode", "back", "--part-size", "5M"))
    proxy.add("denied:verb=PutObject")
    (first / "staged").write_bytes(b"staged")
    handle = os.open(first / "streamed", os.O_WRONLY | os.O_CREAT)
    data = os.urandom(12 * MiB)
    os.write(handle, data)
    wait_until(lambda: proxy.counts["UploadPart"] >= 2)
    second = user.mount(name="second")
    assert user.ok("recover") == "Nothing is left unsent.\n"
    user.ok("unmount", second)
    proxy.clear()
    os.close(handle)
    user.ok("unmount", str(first))
    assert (stored(user, "staged"), stored(user, "streamed")) == (b"staged", data)
    assert proxy.counts["AbortMultipartUpload"] == 0
