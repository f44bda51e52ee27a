"""Real programs write to a mount, in both write modes: after unmount the bucket holds exactly what they left there."""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sluicefs import control
from tests.model.bucket import all_objects
from tests.mount.helpers import User

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")


def run(*words: str | Path, cwd: Path | None = None) -> str:
    quiet = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    people = {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **quiet, **people},
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    """Regular files and links below a folder, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path).encode()
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def make_source(folder: Path, files: int = 40) -> Path:
    """A tree with files of several sizes, times in the past and modes."""
    source = folder / "source"
    for number in range(files):
        path = source / f"d{number % 4}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1 << (number % 18)))
        os.chmod(path, 0o600 + number % 8)
        os.utime(path, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789 + number))
    return source


def sqlite(target: Path, journal: str) -> None:
    base = sqlite3.connect(target / "base.sqlite")
    assert base.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
    base.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB)")
    for start in range(0, 400, 100):
        with base:
            base.executemany("INSERT INTO t VALUES (?, ?)", [(n, os.urandom(500)) for n in range(start, start + 100)])
    with base:
        base.execute("DELETE FROM t WHERE n % 3 = 0")
    base.execute("BEGIN")
    base.execute("DELETE FROM t")
    base.rollback()
    assert base.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert base.execute("SELECT count(*) FROM t").fetchone()[0] == 266
    base.close()


def git(target: Path, home: Path) -> None:
    origin = make_source(home).parent / "origin"
    run("git", "init", "-q", "-b", "main", origin)
    shutil.copytree(home / "source", origin / "files")
    run("git", "add", ".", cwd=origin)
    run("git", "commit", "-qm", "one", cwd=origin)
    clone = target / "clone"
    run("git", "clone", "-q", origin, clone)
    (clone / "new").write_text("new\n")
    (clone / "files/d0/f0").unlink()
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "two", cwd=clone)
    run("git", "gc", "-q", "--prune=now", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""


def pip(target: Path, home: Path) -> None:
    wheel = home / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    files = {f"tiny/m{number}.py": f"value = {number}\n" for number in range(20)}
    files |= {"tiny/__init__.py": "", f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"}
    files |= {f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    run(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target / "site", wheel)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tiny.m7; print(tiny.m7.value)"
    assert run(sys.executable, "-c", code, target / "site") == "7\n"


def unpack(target: Path, home: Path) -> None:
    source = make_source(home)
    archive = home / "a.tar.gz"
    run("tar", "czf", archive, "-C", source, ".")
    run("tar", "xzf", archive, "-C", target)
    packed = home / "a.zip"
    run(sys.executable, "-m", "zipfile", "-c", packed, f"{source}/d0", f"{source}/d1")
    run("unzip", "-q", packed, "-d", target / "zip")
    for path in source.rglob("f*"):
        there = target / path.relative_to(source)
        assert there.read_bytes() == path.read_bytes()
        assert there.stat().st_mtime_ns // 10**9 == path.stat().st_mtime_ns // 10**9


def editors(target: Path, home: Path) -> None:
    """As vim, emacs and atomic writers save."""
    path = target / "text"
    path.write_text("first\n")
    for number in range(3):
        backup, swap = target / "text~", target / ".text.swp"
        swap.write_bytes(os.urandom(4096))
        os.rename(path, backup)
        with open(path, "x") as out:
            out.write(f"second {number}\n")
            out.flush()
            os.fsync(out.fileno())
        backup.unlink()
        swap.unlink()
    for number in range(20):
        temporary = target / f"text.{number}.tmp"
        temporary.write_text(f"third {number}\n" * 1000)
        os.replace(temporary, path)
        assert path.read_text().startswith(f"third {number}\n")
    gone = target / "gone.tmp"
    gone.write_text("x")
    os.replace(gone, target / "other")
    (target / "other").unlink()


def in_place(target: Path, home: Path) -> None:
    """dd conv=notrunc, appends, truncations both ways, holes, a shared mapping; the same on a local file."""
    for folder in (target, home / "local"):
        folder.mkdir(exist_ok=True)
        path = folder / "big"
        path.write_bytes(bytes(range(256)) * (12 * 4096))
        patch = home / "patch"
        patch.write_bytes(b"patch" * 1000)
        run("dd", f"if={patch}", f"of={path}", "bs=1000", "seek=7000", "conv=notrunc", "status=none")
        with open(path, "ab") as out:
            out.write(b"appended")
        os.truncate(path, 11_000_001)
        os.truncate(path, 13_000_000)
        with open(path, "r+b") as file:
            file.seek(14_000_000)
            file.write(b"after a hole")
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            mapping[5_000_000:5_000_100] = b"m" * 100
            mapping[12_999_990:13_000_010] = b"n" * 20
            mapping.flush()
        with open(path, "r+b") as file:
            mapping = mmap.mmap(file.fileno(), 0)
        mapping[0:4] = b"late"  # after close
        mapping.close()
    assert (target / "big").read_bytes() == (home / "local/big").read_bytes()


PROGRAMS: dict[str, Callable[[Path, Path], None]] = {
    "sqlite": lambda target, home: sqlite(target, "delete"),
    "sqlite-wal": lambda target, home: sqlite(target, "wal"),
    "git": git,
    "pip": pip,
    "unpack": unpack,
    "editors": editors,
    "in-place": in_place,
}


@pytest.mark.parametrize("mode", ["sync", "back"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_bucket_holds_exactly_what_a_program_wrote(user: User, program: str, mode: str) -> None:
    target = Path(user.mount("--write-mode", mode, "--part-size", "5M"))
    PROGRAMS[program](target, user.home)
    expected = tree(target)
    user.ok("unmount", str(target))
    store = user.bucket.store()
    try:
        found = {info.key: bytes(store.get(info.key)[1]) for info in all_objects(store) if not info.key.endswith("/")}
        assert store.list_uploads("") == []
    finally:
        store.close()
    found.pop(".sluicefs-root", None)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def uploads_of(path: Path) -> dict[str, int]:
    """Requests so far that changed objects."""
    requests: dict[str, int] = control.call(str(path), "status")["requests"]
    return {verb: count for verb, count in requests.items() if verb.startswith(("Put", "Upload", "Copy", "Complete"))}


def test_rsync_of_1000_unchanged_files_uploads_nothing(user: User) -> None:
    source = make_source(user.home, 1000)
    target = Path(user.mount())
    run("rsync", "-a", f"{source}/", f"{target}/")
    control.call(str(target), "flush")
    before = uploads_of(target)
    run("rsync", "-a", f"{source}/", f"{target}/")
    control.call(str(target), "flush")
    assert uploads_of(target) == before
    user.ok("unmount", str(target))
    user.ok("mount", user.bucket.name, str(target))
    assert run("rsync", "-ai", f"{source}/", f"{target}/") == "", "nor after a remount"
    assert not uploads_of(target)


def test_a_copy_with_its_times_is_one_request_a_file(user: User) -> None:
    source = make_source(user.home) / "d0"
    target = Path(user.mount())
    os.mkdir(target / "d0")
    run("cp", "-p", source / "f0", target / "d0")  # tells the directory's marker that its entries have attributes
    control.call(str(target), "flush")
    before = uploads_of(target)
    run("cp", "-p", *[path for path in source.iterdir() if path.name != "f0"], target / "d0")
    control.call(str(target), "flush")
    after = uploads_of(target)
    assert after["PutObject"] - before["PutObject"] == 9
    assert after.get("CopyObject", 0) == before.get("CopyObject", 0)
    user.ok("unmount", str(target))


def test_create_write_close_rename_over_is_one_upload_in_back_mode(user: User) -> None:
    target = Path(user.mount("--write-mode", "back"))
    (target / "settled").write_text("old")
    control.call(str(target), "flush")
    before = uploads_of(target)
    for number in range(5):
        (target / "t").write_text(f"new {number}")
        os.replace(target / "t", target / "settled")
    control.call(str(target), "flush")
    assert uploads_of(target)["PutObject"] - before["PutObject"] == 1
    (target / "t").write_text("newest")
    os.replace(target / "t", target / "settled")
    (target / "settled").unlink()
    user.ok("unmount", str(target))
    assert user.objects() == []
