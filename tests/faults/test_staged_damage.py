"""Unsent data that the local disk has damaged: never sent as good, kept, and named by `recover`."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs import lifecycle
from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User, processes, wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
MiB = 1024 * 1024
FILES = {name: os.urandom(size) for name, size in (("small", 5000), ("small2", 5000), ("large", 18 * MiB), ("large2", MiB))}


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    """What a mount in back mode left when it was killed: the files are acknowledged, and none is in the bucket."""
    for bucket in new_bucket(ministack):
        with FaultProxy(ministack.endpoint) as proxy:
            made = User(tmp_path, bucket, {"AWS_ENDPOINT_URL": proxy.url, "XDG_STATE_HOME": str(tmp_path / "state")})
            path = made.mount("--write-mode", "back")
            proxy.add("denied:verb=Put*", "denied:verb=Create*")
            for name, data in FILES.items():
                Path(path, name).write_bytes(data)
            kill(path)
            proxy.clear()
            yield made
            made.clean_up()


def kill(path: str) -> None:
    """End a mount's process as a crash does."""
    for process in processes(path):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not processes(path) and lifecycle.is_dead(path))


def damage(user: User) -> list[Path]:
    """A bit of `small` and one of `large` are another; the files that hold them."""
    (journal,) = (user.home / "state").rglob("journal")
    base = sqlite3.connect(journal)
    body, name = (base.execute(f"SELECT {what} FROM files WHERE key=?", (key,)).fetchone()[0] for what, key in
                  (("body", "small"), ("file", "large")))  # fmt: skip
    base.execute("UPDATE files SET body=? WHERE key='small'", (body[:77] + bytes([body[77] ^ 1]) + body[78:],))
    base.commit()
    base.close()
    with open(journal.parent / name, "r+b") as file:
        file.seek(17 * MiB)
        (byte,) = file.read(1)
        file.seek(17 * MiB)
        file.write(bytes([byte ^ 64]))
    return [journal, journal.parent / name]


def test_a_damaged_one_is_never_sent_and_stays_and_recover_names_it(user: User) -> None:
    kept = damage(user)
    listed = user.ok("recover")
    assert listed.count(" is damaged") == 2 and listed.count("sent by the next mount") == 2
    path = str(user.home / "m")
    user.ok("mount", user.bucket.name, path)
    wait_until(lambda: set(user.objects()) >= {"small2", "large2"})
    assert sorted(os.listdir(path)) == ["large2", "small2"]
    assert Path(path, "large2").read_bytes() == FILES["large2"]
    user.ok("unmount", path)
    assert sorted(user.objects()) == ["large2", "small2"]
    log = "".join(file.read_text() for file in (user.home / "state").rglob("*.log"))
    assert all(f"unsent data of {name}, in" in log for name in ("small", "large"))
    done = user.run("recover", user.bucket.name, "--upload")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "2 of 2 files could not be sent and are still kept" in said and "large" in said and "small" in said
    assert sorted(user.objects()) == ["large2", "small2"]
    assert all(file.exists() for file in kept)


def test_a_damaged_one_can_be_saved_elsewhere_with_a_warning(user: User) -> None:
    damage(user)
    folder = user.home / "saved"
    said = user.ok("recover", user.bucket.name, "--save", str(folder)).splitlines()
    assert sorted(line.partition(":")[0] for line in said) == sorted(f"{folder}/{name}" for name in FILES)
    assert {line.partition(":")[0].rpartition("/")[2] for line in said if " is damaged" in line} == {"small", "large"}
    for name, data in FILES.items():
        wrong = sum(one != other for one, other in zip((folder / name).read_bytes(), data, strict=True))
        assert wrong == (name in ("small", "large"))
    assert user.ok("recover") == "Nothing is left unsent.\n"


def cut_short(user: User) -> Path:
    """A bit in the middle of the journal's write-ahead log is another; the folder."""
    (log,) = (user.home / "state").rglob("journal-wal")
    with open(log, "r+b") as file:
        file.seek(log.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return log.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "journal-shm"}


def test_a_journal_that_lost_its_latest_changes_is_not_sent_and_stays_and_recover_names_it(user: User) -> None:
    """SQLite alone would say nothing, and the next mount would delete the data files of the records that are gone."""
    folder = cut_short(user)
    before = contents(folder)
    path = str(user.home / "m")
    user.ok("mount", user.bucket.name, path)
    Path(path, "new").write_bytes(b"the mount works")
    user.ok("unmount", path)
    assert user.objects() == ["new"]
    assert f"nothing of what {folder} has unsent is sent" in "".join(
        file.read_text() for file in (user.home / "state").rglob("*.log")
    )
    assert f"changes are missing; the folder {folder} is left as it is" in user.ok("recover")
    said = user.run("recover", user.bucket.name, "--upload")
    assert said.returncode == 1 and str(folder) in said.stderr
    saved = user.home / "saved"
    said = user.run("recover", user.bucket.name, "--save", str(saved))
    assert said.returncode == 1 and str(folder) in said.stderr
    for line in said.stdout.splitlines():
        file, _, warning = line.partition(": ")
        assert Path(file).read_bytes() == FILES[Path(file).name] and "may be outdated" in warning
    assert contents(folder) == before, "all of it is still there"
    assert user.objects() == ["new"]


def test_a_journal_that_is_none_any_more_is_named_by_recover(user: User) -> None:
    (journal,) = (user.home / "state").rglob("journal")
    for path in journal.parent.glob("journal-*"):
        path.unlink()
    journal.write_bytes(b"no journal" * 1000)
    before = contents(journal.parent)
    assert f"the folder {journal.parent} is left as it is" in user.ok("recover")
    for words in (["--upload"], ["--save", str(user.home / "saved")]):
        said = user.run("recover", *words)
        assert said.returncode == 1 and str(journal.parent) in said.stderr and "Traceback" not in said.stderr
    assert contents(journal.parent) == before
