"""A bucket that somebody filled to do harm: whatever it says, the mount lives, and nothing outside it is reached."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.helpers import let_others_in

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")
ROOT = Path(__file__).parents[2]
SPECIAL = ("links", "nodes")  # what they are a listing does not tell; `open` does

# A mount on the reference store, into which anything can be put. Keys that no store takes are passed over.
SERVE = """
import stat, sys
from sluicefs.config import Config
from sluicefs.mount import serve
from sluicefs.store.memory import MemoryStore
store = MemoryStore()
EVIL = b"evil"
KEYS = ["../x", "/x", "//x", "a//b", ".", "..", "./y", "a/../../../x", "a/./b", "../../etc/passwd", "", "k" * 1024]
KEYS += ["d/" + "m" * 300, "d/" * 500 + "deep", "nul\\0", "control\\x01\\x1f\\x7f", "new\\nline", "return\\r", "<&>\\"'.xml"]
KEYS += ["e\\u0301", "\\u202egpj.exe", "\\ufffe", " ", "sp ace ", "-rf", "*", "$(touch pwned)", "%2e%2e%2fx", "back\\\\slash"]
KEYS += ["]]>", "x/y", "x", ".sluicefs-root", "dir_$folder$", "c:x"]
for key in KEYS:
    try:
        store.put(key, EVIL)
    except Exception as error:
        print("refused", ascii(key), file=sys.stderr)
def put(key, body=EVIL, **metadata):
    store.put(key, body, metadata=metadata)
put("attributes/mode", mode="999999", mtime="nan", ctime="1e400", uid="-1", gid="4294967295", rdev="x")
put("attributes/huge", mode="9" * 1000, mtime="9" * 1000)
put("attributes/full", **{f"n{i}": "v" * 250 for i in range(31)})
put("attributes/xattr", mode=str(0o100644), xattr="%7B%22security.capability%22%3A%22AQAAAgAgAAAAAAAAAAAAAAAAAAA%3D%22%7D")
put("attributes/suid", open("/usr/bin/id", "rb").read(), mode=str(0o104755), uid="0", gid="0")
put("attributes/sgid", mode=str(0o102755))
NODES = {"disk": (stat.S_IFBLK, 0x800), "memory": (stat.S_IFCHR, 0x101), "fifo": (stat.S_IFIFO, 0)}
for name, (kind, rdev) in NODES.items():
    put(f"nodes/{name}", b"", mode=str(kind | 0o666), rdev=str(rdev))
put("nodes/dir-with-bytes", mode=str(stat.S_IFDIR | 0o777))
LINKS = {"absolute": "/etc/passwd", "up": "../" * 20 + "etc/passwd", "self": "self", "long": "l" * 5000, "nul": "a\\0b"}
LINKS |= {"empty": "", "bytes": "\\udcff"}
for name, target in LINKS.items():
    put(f"links/{name}", target.encode("utf-8", "surrogateescape"), mode=str(stat.S_IFLNK | 0o777))
mountpoint, *words = sys.argv[1:]
options = dict(word.split("=") for word in words)
config = Config(bucket="memory", mountpoint=mountpoint, provider="r2", allow_other=True, xattr=True, **options)
serve(config, store, ready=lambda: print("ready", flush=True))
"""


@pytest.fixture(params=["auto", "full", "listing"])
def mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    let_others_in(tmp_path)
    path = tmp_path / "outer" / "m"
    path.mkdir(parents=True)
    for canary in (tmp_path / "x", tmp_path / "outer/x"):
        canary.write_text("mine")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path), f"attrs={request.param}"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready\n"
        yield path
        assert server.poll() is None, "the mount lives"
        subprocess.run(["fusermount", "-u", str(path)], check=True)
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            subprocess.run(["fusermount", "-u", "-z", str(path)], check=False)
            server.kill()
            server.wait()
        server.stdout.close()
    assert [canary.read_text() for canary in (tmp_path / "x", tmp_path / "outer/x")] == ["mine", "mine"]
    assert sorted(os.listdir(tmp_path / "outer")) == ["m", "x"]


def everything(folder: Path) -> list[Path]:
    return [Path(base, name) for base, folders, files in os.walk(folder) for name in (*folders, *files)]


def test_all_of_it_can_be_looked_at_copied_changed_and_removed(mount: Path, tmp_path: Path) -> None:
    found = everything(mount)
    assert len(found) > 40
    for path in found:
        info = path.lstat()
        assert path.name not in ("", ".", "..") and len(os.fsencode(path.name)) <= 255
        assert stat.S_ISDIR(info.st_mode) or not info.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert info.st_uid < 2**32 - 1 and info.st_gid < 2**32 - 1
        with suppress(OSError):
            os.listxattr(path, follow_symlinks=False)
            assert "security.capability" not in os.listxattr(path, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            with suppress(OSError):
                os.readlink(path)
        elif stat.S_ISREG(info.st_mode) and path.parent.name not in SPECIAL:
            assert len(path.read_bytes()) == info.st_size
    for path in found:
        if stat.S_ISREG(path.lstat().st_mode) and path.parent.name not in SPECIAL:
            with open(path, "ab") as out:
                out.write(b", more")
            os.utime(path)
            path.chmod(0o600)
    out = tmp_path / "copy"
    out.mkdir()
    subprocess.run(["cp", "-r", "--no-dereference", f"{mount}/.", str(out)], capture_output=True)
    assert sum(path.is_file() and not path.is_symlink() for path in everything(out)) > 20
    os.rename(mount / "attributes", mount / "renamed")
    assert (mount / "renamed/mode").read_bytes() == b"evil, more"
    subprocess.run(["rm", "-rf", *(str(path) for path in mount.iterdir())], capture_output=True)
    (mount / "new").write_text("it still works")
    assert (mount / "new").read_text() == "it still works"


def test_what_it_says_of_privileges_and_devices_counts_for_nothing(mount: Path) -> None:
    """The kernel is told as well: even a bit that came through would not count."""
    (line,) = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines() if f" {mount} " in line]
    assert {"nosuid", "nodev"} <= set(line[3].split(","))
    program = mount / "attributes/suid"
    assert not program.stat().st_mode & stat.S_ISUID
    if os.getuid() == 0:
        program.chmod(0o4755)
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(program), "-u"]
        assert subprocess.run(nobody, capture_output=True, text=True, check=True).stdout == "65534\n"
    for name in ("disk", "memory"):
        path = mount / "nodes" / name
        if not stat.S_ISREG(path.lstat().st_mode):  # a listing alone does not tell
            with pytest.raises(PermissionError):
                os.open(path, os.O_RDONLY | os.O_NONBLOCK)
