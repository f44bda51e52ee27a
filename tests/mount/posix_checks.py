"""POSIX, verb by verb: the same steps on a local disk and on a mount must have the same outcomes.

`record(root)` takes every step below `root` as one of four users and returns {(verb, label): outcome}; the local disk's answer
is the right one by definition. Run as root. No step depends on the clock's resolution or on inode numbers.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import multiprocessing
import os
import socket
import stat
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# name: (uid, gid, supplementary groups)
USERS: dict[str, tuple[int, int, list[int]]] = {
    "root": (0, 0, []),
    "owner": (65101, 65201, [65201, 65203]),
    "member": (65102, 65202, [65202, 65201]),  # of the owner's group, by a supplementary one
    "stranger": (65103, 65204, [65204]),
}
OWNER, GROUP = 65101, 65201
KINDS = ("file", "dir", "full", "fifo", "socket", "link", "dirlink", "dangling", "loop", "missing")
Outcome = str
Outcomes = dict[tuple[str, str], Outcome]


def _serve(connection: Connection, uid: int, gid: int, groups: list[int]) -> None:
    """One user's process: calls functions of `os` and of this module by name."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.umask(0o022)
    while True:
        name, arguments, options = connection.recv()
        if not name:
            return
        try:
            function = globals()[name] if name in globals() else getattr(os, name)
            connection.send((True, function(*arguments, **options)))
        except OSError as error:
            connection.send((False, errno.errorcode.get(error.errno or 0, str(error))))


class Actor:
    """Somebody who makes system calls."""

    def __init__(self, name: str):
        context = multiprocessing.get_context("fork")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, *USERS[name]), daemon=True)
        self._process.start()
        other.close()

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The result; OSError as it came."""
        done, result = self._ask(name, arguments, options)
        if not done:
            raise OSError(getattr(errno, result), f"{result}: {name}{arguments}")
        return result

    def outcome(self, name: str, *arguments: Any, **options: Any) -> Outcome:
        """ "ok", a plain result, or the errno's name."""
        done, result = self._ask(name, arguments, options)
        if not done:
            return str(result)
        return "ok" if result is None else f"ok {result}"

    def _ask(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[bool, Any]:
        self._connection.send((name, arguments, options))
        done, result = self._connection.recv()
        return done, result

    def close(self) -> None:
        self._connection.send(("", (), {}))
        self._process.join(10)
        self._process.close()
        self._connection.close()


# -- what an actor can do, each ending with nothing left open ------------------------------------------------------------------


def opened(path: str, flags: int, mode: int = 0o666) -> str:
    fd = os.open(path, flags | os.O_NONBLOCK, mode)
    try:
        return stat.filemode(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def written(path: str, data: bytes = b"x", flags: int = os.O_WRONLY) -> int:
    fd = os.open(path, flags | os.O_NONBLOCK)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def digest(path: str) -> str:
    return hashlib.sha256(content(path)).hexdigest()


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        os.chdir(os.path.dirname(path))  # a socket's path has 108 bytes at most
        try:
            endpoint.bind(os.path.basename(path))
        finally:
            os.chdir("/")


def listed(path: str) -> list[str]:
    return sorted(os.listdir(path))


def shown(path: str) -> tuple[str, int, int, int]:
    found = os.lstat(path)
    return stat.filemode(found.st_mode), found.st_uid, found.st_gid, 0 if stat.S_ISDIR(found.st_mode) else found.st_size


def renamed_back(path: str, other: str) -> None:
    os.rename(path, other)
    os.rename(other, path)


def on_unlinked(path: str) -> list[object]:
    """What a file that lost its name can still do."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.unlink(path)
        results: list[object] = [os.fstat(fd).st_nlink, os.pread(fd, 100, 0)]
        results += [os.pwrite(fd, b"more", 4), os.pread(fd, 100, 0)]
        os.ftruncate(fd, 2)
        results += [os.pread(fd, 100, 0), os.fstat(fd).st_size]
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        again = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(again, b"another")
        results += [os.pread(fd, 100, 0), os.pread(again, 100, 0), os.fstat(again).st_nlink]
        os.close(again)
        return [*results, content(path), stat.filemode(os.fstat(fd).st_mode)]
    finally:
        os.close(fd)


def on_renamed(path: str, other: str, *, over: bool) -> list[object]:
    """A file open while it is renamed, perhaps over one that is open too."""
    fd = os.open(path, os.O_RDWR)
    target = os.open(other, os.O_RDWR | os.O_CREAT) if over else -1
    try:
        if over:
            os.write(target, b"target")
        os.rename(path, other)
        results: list[object] = [os.pread(fd, 100, 0), os.pwrite(fd, b"AB", 1), content(other), os.fstat(fd).st_nlink]
        if over:
            results += [os.pread(target, 100, 0), os.fstat(target).st_nlink, os.pwrite(target, b"!", 6)]
            results += [os.pread(target, 100, 0), content(other)]
        os.fsync(fd)
        return results
    finally:
        os.close(fd)
        if over:
            os.close(target)


def flag_effects(path: str) -> list[object]:
    """O_APPEND, O_TRUNC, O_EXCL and positions."""
    results: list[object] = []
    with open(path, "wb") as file:
        file.write(b"0123456789")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    other = os.open(path, os.O_RDWR | os.O_APPEND)
    os.write(fd, b"a")
    os.write(other, b"b")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"c")
    results += [os.pread(fd, 100, 0), os.fstat(other).st_size]
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    results += [os.fstat(fd).st_size, os.pread(fd, 10, 0)]
    os.ftruncate(fd, 5)
    os.write(other, b"end")
    results.append(os.pread(fd, 100, 0))
    os.close(fd)
    os.close(other)
    return results


def stamps(path: str) -> tuple[int, int, int]:
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns


# -- the checks ----------------------------------------------------------------------------------------------------------


class Checks:
    """Takes the steps and keeps the outcomes."""

    def __init__(self, root: str):
        self.root = root
        self.actors = {name: Actor(name) for name in USERS}
        self.me = self.actors["root"]
        self.outcomes: Outcomes = {}
        self._numbers = itertools.count()

    def check(self, verb: str, label: str, outcome: Outcome) -> None:
        key = (verb, label)
        assert key not in self.outcomes, key
        self.outcomes[key] = outcome.replace(self.root, "ROOT")

    def folder(self, mode: int = 0o755, uid: int = OWNER, gid: int = GROUP) -> str:
        """A new directory."""
        path = f"{self.root}/{next(self._numbers)}"
        self.me.call("mkdir", path)
        self.me.call("chown", path, uid, gid)
        self.me.call("chmod", path, mode)
        return path

    def make(self, kind: str, path: str) -> str:
        call = self.me.call
        if kind == "file":
            call("written", path, b"content", os.O_WRONLY | os.O_CREAT)
        elif kind in ("dir", "full"):
            call("mkdir", path)
            if kind == "full":
                call("written", path + "/x", b"x", os.O_WRONLY | os.O_CREAT)
        elif kind == "fifo":
            call("mkfifo", path)
        elif kind == "socket":
            call("bind", path)
        elif kind == "link":
            call("written", path + ".aim", b"aimed", os.O_WRONLY | os.O_CREAT)
            call("symlink", os.path.basename(path) + ".aim", path)
        elif kind == "dirlink":
            call("mkdir", path + ".aim")
            call("symlink", os.path.basename(path) + ".aim", path)
        elif kind == "dangling":
            call("symlink", "nowhere", path)
        elif kind == "loop":
            call("symlink", os.path.basename(path), path)
        return path

    def kinds(self) -> None:
        """Every verb on every kind of file, and rename of every kind onto every kind."""
        verbs: dict[str, tuple[Any, ...]] = {
            "open r": ("opened", os.O_RDONLY),
            "open w": ("opened", os.O_RDWR),
            "open O_DIRECTORY": ("opened", os.O_RDONLY | os.O_DIRECTORY),
            "open O_NOFOLLOW": ("opened", os.O_RDONLY | os.O_NOFOLLOW),
            "open O_CREAT": ("opened", os.O_RDWR | os.O_CREAT),
            "open O_CREAT|O_EXCL": ("opened", os.O_RDWR | os.O_CREAT | os.O_EXCL),
            "open O_TRUNC": ("opened", os.O_RDWR | os.O_TRUNC),
            "open O_PATH": ("opened", os.O_PATH),
            "lstat": ("shown",),
            "access": ("access", os.R_OK),
            "chmod": ("chmod", 0o640),
            "chown": ("chown", 65103, 65204),
            "lchown": ("lchown", 65103, 65204),
            "utime": ("utime", (1, 2)),
            "truncate": ("truncate", 3),
            "unlink": ("unlink",),
            "rmdir": ("rmdir",),
            "mkdir": ("mkdir",),
            "mkfifo": ("mkfifo",),
            "mknod": ("mknod", 0o100644),
            "readlink": ("readlink",),
            "listdir": ("listed",),
            "listdir nofollow": ("opened", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW),
        }
        for verb, (function, *arguments) in verbs.items():
            for kind in KINDS:
                path = self.make(kind, self.folder() + "/name")
                self.check(verb, kind, self.me.outcome(function, path, *arguments))
                self.check(verb, f"{kind}, after it", self.me.outcome("shown", path))
                self.check(verb, f"{kind}, the directory after it", self.me.outcome("listed", os.path.dirname(path)))
        for kind in KINDS:
            path = self.make(kind, self.folder() + "/name")
            self.check("symlink", kind, self.me.outcome("symlink", "aim", path))
            self.check("utime nofollow", kind, self.me.outcome("utime", path, (5, 6), follow_symlinks=False))
        for kind, onto in itertools.product(KINDS, KINDS):
            folder = self.folder()
            path, other = self.make(kind, folder + "/one"), self.make(onto, folder + "/two")
            self.check("rename", f"{kind} onto {onto}", self.me.outcome("rename", path, other))
            self.check("rename", f"{kind} onto {onto}, after it", self.me.outcome("shown", other))
            self.check("rename", f"{kind} onto {onto}, the directory after it", self.me.outcome("listed", folder))

    def paths(self) -> None:
        """Errors of paths, in POSIX's order."""
        folder = self.folder(0o755)
        for kind in ("file", "dir", "link", "dirlink", "loop", "fifo"):
            self.make(kind, f"{folder}/{kind}")
        long = "n" * 255
        paths = {
            "below a file": f"{folder}/file/x",
            "below a missing one": f"{folder}/missing/x",
            "below a loop": f"{folder}/loop/x",
            "below a fifo": f"{folder}/fifo/x",
            "below a link to a file": f"{folder}/link/x",
            "255 bytes": f"{folder}/{long}",
            "256 bytes": f"{folder}/{long}n",
            "256 bytes below": f"{folder}/{long}n/x",
            "4,096 bytes": folder + "/d" * ((4096 - len(folder)) // 2) + "/x",
            "slash after a file": f"{folder}/file/",
            "slash after a missing one": f"{folder}/missing/",
            "slash after a directory": f"{folder}/dir/",
            "slash after a link to a directory": f"{folder}/dirlink/",
            "dot": f"{folder}/dir/.",
            "dot dot": f"{folder}/dir/..",
            "empty": "",
            "doubled slashes": f"{folder}//dir///..//file",
        }
        verbs: dict[str, tuple[Any, ...]] = {
            "stat": ("stat_mode",),
            "open r": ("opened", os.O_RDONLY),
            "open O_CREAT": ("opened", os.O_RDWR | os.O_CREAT),
            "mkdir": ("mkdir",),
            "mkfifo": ("mkfifo",),
            "rmdir": ("rmdir",),
            "unlink": ("unlink",),
            "chmod": ("chmod", 0o700),
            "chown": ("chown", 0, 0),
            "utime": ("utime", (3, 4)),
            "truncate": ("truncate", 1),
            "readlink": ("readlink",),
            "access": ("access", os.F_OK),
            "listdir": ("listed",),
            "statvfs": ("vfs_name_max",),
        }
        for (verb, (function, *arguments)), (label, path) in itertools.product(verbs.items(), paths.items()):
            self.check(verb, label, self.me.outcome(function, path, *arguments))
            if verb in ("rmdir", "unlink", "mkdir", "mkfifo"):  # as it was
                for kind in ("file", "dir"):
                    if not self.me.outcome("shown", f"{folder}/{kind}").startswith("ok"):
                        self.make(kind, f"{folder}/{kind}")
                for made in (f"{folder}/missing", f"{folder}/{long}"):
                    self.me.outcome("rmdir", made)
                    self.me.outcome("unlink", made)
        for label, path in paths.items():
            self.check("rename", f"from {label}", self.me.outcome("rename", path, f"{folder}/new"))
            self.me.outcome("rename", f"{folder}/new", path)
            source = self.make("file", f"{folder}/source")
            self.check("rename", f"to {label}", self.me.outcome("rename", source, path))
            self.me.outcome("unlink", source)
            self.me.outcome("unlink", f"{folder}/{long}")
            for kind in ("file", "dir"):
                if not self.me.outcome("shown", f"{folder}/{kind}").startswith("ok"):
                    self.make(kind, f"{folder}/{kind}")
            self.check("symlink", f"at {label}", self.me.outcome("symlink", "aim", path))
            self.me.outcome("unlink", f"{folder}/{long}")
        self.me.call("mkdir", f"{folder}/dir/below")
        self.check("rename", "into itself", self.me.outcome("rename", f"{folder}/dir", f"{folder}/dir/below/x"))
        self.check("rename", "onto its parent", self.me.outcome("rename", f"{folder}/dir/below", f"{folder}/dir"))
        self.check("rename", "onto itself", self.me.outcome("rename", f"{folder}/dir", f"{folder}/dir"))
        self.check("symlink", "target of 4,095 bytes", self.me.outcome("symlink", "t" * 4095, f"{folder}/far"))
        self.check("readlink", "of 4,095 bytes", self.me.outcome("readlink", f"{folder}/far"))
        self.check("symlink", "target of 4,096 bytes", self.me.outcome("symlink", "t" * 4096, f"{folder}/farther"))
        self.check("symlink", "empty target", self.me.outcome("symlink", "", f"{folder}/none"))

    def permissions(self) -> None:
        """Who may do what: each permission of directory and file for owner, member of the group, stranger and root."""
        for bits, who in itertools.product(range(8), USERS):
            mode = bits << {"owner": 6, "member": 3, "stranger": 0, "root": 0}[who]
            actor, folder = self.actors[who], self.folder()
            path = self.make("file", f"{folder}/file")
            self.make("dir", f"{folder}/sub")
            self.me.call("chmod", folder, mode)
            label = f"{who} in a directory with {mode:04o}"
            self.check("lstat", label, actor.outcome("shown", path))
            self.check("listdir", label, actor.outcome("listed", folder))
            self.check("open O_CREAT", label, actor.outcome("opened", f"{folder}/new", os.O_RDWR | os.O_CREAT))
            self.check("mkdir", label, actor.outcome("mkdir", f"{folder}/made"))
            self.check("mkfifo", label, actor.outcome("mkfifo", f"{folder}/fifo"))
            self.check("symlink", label, actor.outcome("symlink", "aim", f"{folder}/link"))
            self.check("rename", label, actor.outcome("renamed_back", path, f"{folder}/other"))
            self.check("unlink", label, actor.outcome("unlink", path))
            self.check("rmdir", label, actor.outcome("rmdir", f"{folder}/sub"))
            self.check("listdir", f"{label}, after it", self.me.outcome("listed", folder))
        for bits, who in itertools.product(range(8), USERS):
            mode = bits << {"owner": 6, "member": 3, "stranger": 0, "root": 0}[who]
            actor, path = self.actors[who], self.make("file", self.folder(0o777) + "/file")
            self.me.call("chown", path, OWNER, GROUP)
            self.me.call("chmod", path, mode)
            label = f"{who} with {mode:04o}"
            self.check("open r", label, actor.outcome("opened", path, os.O_RDONLY))
            self.check("open w", label, actor.outcome("opened", path, os.O_WRONLY))
            self.check("open rw", label, actor.outcome("opened", path, os.O_RDWR))
            self.check("access", f"{label}, x", actor.outcome("access", path, os.X_OK))
            self.check("access", f"{label}, rw", actor.outcome("access", path, os.R_OK | os.W_OK))
            self.check("truncate", label, actor.outcome("truncate", path, 2))
            self.check("utime", f"{label}, now", actor.outcome("touched", path))
            self.check("utime", f"{label}, given", actor.outcome("utime", path, (1, 2)))
            self.check("chmod", label, actor.outcome("chmod", path, mode | 0o4000))
            self.check("lstat", f"{label}, after chmod", self.me.outcome("shown", path))
            self.check("chown", f"{label}, user", actor.outcome("chown", path, 65103, -1))
            self.check(
                "chown", f"{label}, own group", actor.outcome("chown", path, -1, USERS[who][2][-1] if who != "root" else 7)
            )
            self.check("chown", f"{label}, strange group", actor.outcome("chown", path, -1, 65299))
            self.check("lstat", f"{label}, after chown", self.me.outcome("shown", path))

    def special_bits(self) -> None:
        """Sticky and setgid directories; setuid and setgid of files that change."""
        for mode, who, whose in itertools.product((0o1777, 0o0777), USERS, ("owner", "stranger")):
            folder = self.folder(mode, USERS["member"][0])
            actor, label = self.actors[who], f"{who}, file of {whose}, directory with {mode:04o}"
            for kind in ("file", "dir", "fifo", "link"):
                path = self.make(kind, f"{folder}/{kind}")
                self.me.call("lchown", path, USERS[whose][0], USERS[whose][1])
            self.check("rename", label, actor.outcome("renamed_back", f"{folder}/file", f"{folder}/other"))
            over = self.make("file", f"{folder}/own")
            self.me.call("chown", over, USERS[who][0], USERS[who][1])
            self.check("rename", f"{label}, over it", actor.outcome("rename", over, f"{folder}/fifo"))
            self.check("unlink", label, actor.outcome("unlink", f"{folder}/file"))
            self.check("unlink", f"{label}, link", actor.outcome("unlink", f"{folder}/link"))
            self.check("rmdir", label, actor.outcome("rmdir", f"{folder}/dir"))
        for who in USERS:
            folder = self.folder(0o2777, OWNER, 65203)
            actor = self.actors[who]
            for verb, name, arguments in (
                ("open O_CREAT", "opened", (os.O_RDWR | os.O_CREAT, 0o2775)),
                ("mkdir", "mkdir", (0o775,)),
                ("mkfifo", "mkfifo", (0o664,)),
                ("mknod", "mknod", (0o100664,)),
            ):
                path = f"{folder}/{name}"
                self.check(verb, f"{who} in a setgid directory", actor.outcome(name, path, *arguments))
                self.check(verb, f"{who} in a setgid directory, after it", self.me.outcome("shown", path))
        for mode, who in itertools.product((0o4777, 0o2777, 0o6777, 0o2767, 0o6766, 0o0777), USERS):
            for verb, steps in {
                "write": ("written",),
                "truncate": ("truncate", 3),
                "chown": ("chown", -1, GROUP),
                "chmod": ("chmod", mode),
                "open O_TRUNC": ("opened", os.O_WRONLY | os.O_TRUNC),
            }.items():
                path = self.make("file", self.folder(0o777) + "/file")
                self.me.call("chown", path, OWNER, GROUP)
                self.me.call("chmod", path, mode)
                label = f"{who}, file with {mode:04o}"
                self.check(verb, label, self.actors[who].outcome(steps[0], path, *steps[1:]))
                self.check(verb, f"{label}, after it", self.me.outcome("shown", path))
        for mask in (0, 0o022, 0o077, 0o777):
            self.me.call("umask", mask)
            folder = f"{self.root}/{next(self._numbers)}"
            self.me.call("mkdir", folder, 0o777)
            self.check("mkdir", f"umask {mask:03o}", self.me.outcome("shown", folder))
            self.me.call("opened", f"{folder}/file", os.O_CREAT | os.O_WRONLY, 0o6777)
            self.check("open O_CREAT", f"umask {mask:03o}", self.me.outcome("shown", f"{folder}/file"))
            self.me.call("mknod", f"{folder}/node", 0o010666)
            self.check("mknod", f"umask {mask:03o}", self.me.outcome("shown", f"{folder}/node"))
        self.me.call("umask", 0o022)
        for kind, number in (("character", stat.S_IFCHR), ("block", stat.S_IFBLK)):
            path = f"{self.root}/{kind}"
            self.check("mknod", kind, self.me.outcome("mknod", path, number | 0o600, os.makedev(259, 70000)))
            self.check("mknod", f"{kind}, its number", self.me.outcome("device", path))
            self.check(
                "mknod", f"{kind}, by a stranger", self.actors["stranger"].outcome("mknod", path + "2", number | 0o600, 1)
            )

    def times(self) -> None:
        """Which times of file and directory move with which verb."""
        steps: dict[str, Callable[[str], tuple[Any, ...]]] = {
            "lstat": lambda path: ("shown", path),
            "chmod": lambda path: ("chmod", path, 0o600),
            "chown": lambda path: ("chown", path, 65103, 65204),
            "truncate": lambda path: ("truncate", path, 2),
            "write": lambda path: ("written", path),
            "utime": lambda path: ("utime", path, (1, 2)),
            "rename": lambda path: ("rename", path, path + "2"),
            "unlink": lambda path: ("unlink", path),
            "open O_CREAT": lambda path: ("opened", path + "new", os.O_CREAT | os.O_RDWR),
            "mkdir": lambda path: ("mkdir", path + "dir"),
            "symlink": lambda path: ("symlink", "aim", path + "link"),
            "mkfifo": lambda path: ("mkfifo", path + "fifo"),
        }
        for verb, step in steps.items():
            folder = self.folder()
            path = self.make("file", f"{folder}/file")
            self.me.call("utime", path, (1000, 2000))
            before = self.me.call("stamps", path), self.me.call("stamps", folder)
            time.sleep(0.012)
            self.me.call(*step(path))
            found = path + "2" if verb == "rename" else path
            after = (before[0] if verb == "unlink" else self.me.call("stamps", found)), self.me.call("stamps", folder)
            for what, old, new in zip(("file", "directory"), before, after, strict=True):
                moved = [name for name, one, two in zip(("mtime", "ctime"), old[1:], new[1:], strict=True) if one != two]
                self.check(verb, f"times of the {what} that move", str(moved))
        folder = self.folder()
        path = self.make("file", f"{folder}/file")
        for label, ns in {
            "nanoseconds": (123456789, 987654321012345678),
            "before 1970": (-1, -1_500_000_000),
            "far": (4_102_444_800 * 10**9 + 1, 4_102_444_800 * 10**9 + 999_999_999),
        }.items():
            self.check("utime", label, self.me.outcome("utime", path, ns=ns))
            self.check("utime", f"{label}, after it", self.me.outcome("atime_mtime", path))
        self.me.call("utime", path, ns=(11, 12))
        self.check("utime", "UTIME_OMIT of atime", self.me.outcome("utimens", path, None, 77))
        self.check("utime", "UTIME_OMIT of mtime", self.me.outcome("utimens", path, 88, None))
        self.check("utime", "UTIME_OMIT, after it", self.me.outcome("atime_mtime", path))
        self.check("utime", "UTIME_NOW", self.me.outcome("now_is_now", path))
        self.make("link", f"{folder}/link")
        self.me.call("utime", f"{folder}/link", ns=(5, 6), follow_symlinks=False)
        self.check("utime nofollow", "after it", self.me.outcome("atime_mtime", f"{folder}/link"))

    def open_files(self) -> None:
        """Files that lose or change their names while they are open."""
        for who in ("root", "owner"):
            actor = self.actors[who]
            for size in (b"content", b"c" * 300_000):
                folder = self.folder(0o777)
                path = f"{folder}/file"
                self.make("file", path)
                self.me.call("chmod", path, 0o666)
                label = f"{who}, {len(size)} bytes"
                self.check("unlink", f"while open, {label}", actor.outcome("on_unlinked", path))
                self.check("unlink", f"while open, {label}, after it", self.me.outcome("listed", folder))
                for over in (False, True):
                    path = f"{folder}/moving{over}"
                    actor.call("opened", path, os.O_CREAT | os.O_RDWR)
                    actor.call("written", path, size)
                    outcome = actor.outcome("on_renamed", path, f"{folder}/moved{over}", over=over)
                    self.check("rename", f"while open, over an open one: {over}, {label}", outcome)
                    self.check("rename", f"while open, over: {over}, {label}, after it", self.me.outcome("listed", folder))
                    self.check("rename", f"{over}, {label}, content", self.me.outcome("digest", f"{folder}/moved{over}"))
                self.check("write", f"flags, {label}", actor.outcome("flag_effects", f"{folder}/flags"))
        folder = self.folder()
        self.check("rmdir", "of the working directory", self.me.outcome("in_removed_directory", f"{folder}/gone"))

    def close(self) -> None:
        for actor in self.actors.values():
            actor.close()


def stat_mode(path: str) -> str:
    return stat.filemode(os.stat(path).st_mode)


def vfs_name_max(path: str) -> int:
    return os.statvfs(path).f_namemax


def device(path: str) -> tuple[int, int]:
    number = os.lstat(path).st_rdev
    return os.major(number), os.minor(number)


def touched(path: str) -> None:
    os.utime(path)


def atime_mtime(path: str) -> tuple[int, int]:
    return stamps(path)[:2]


def now_is_now(path: str) -> bool:
    os.utime(path)
    return all(abs(stamp - time.time_ns()) < 2_000_000_000 for stamp in stamps(path))


def utimens(path: str, atime: int | None, mtime: int | None) -> None:
    """utimensat(2) with UTIME_OMIT for None; Python has no name for it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    values = (ctypes.c_long * 4)(0, 0x3FFFFFFE if atime is None else atime, 0, 0x3FFFFFFE if mtime is None else mtime)
    if libc.utimensat(-100, os.fsencode(path), values, 0):
        raise OSError(ctypes.get_errno(), path)


def in_removed_directory(path: str) -> list[object]:
    os.mkdir(path)
    os.chdir(path)
    try:
        os.rmdir(path)
        results: list[object] = [os.listdir(".")]
        for step in (lambda: os.mkdir("x"), lambda: os.open("x", os.O_CREAT | os.O_RDWR), lambda: os.stat("x")):
            try:
                results.append(step())
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])
        return results
    finally:
        os.chdir("/")


PARTS = ("kinds", "paths", "permissions", "special_bits", "times", "open_files")


def record(root: str, parts: tuple[str, ...] = PARTS) -> Outcomes:
    """Every outcome below `root`, an empty directory."""
    os.chmod(root, 0o755)
    checks = Checks(root)
    try:
        for part in parts:
            getattr(checks, part)()
    finally:
        checks.close()
    return checks.outcomes
