"""POSIX, verb by verb: the same steps on a local disk and on a mount must have the same outcomes.

`record(root)` takes every step below `root` as one of four users and returns {(verb, label): outcome}; the local disk's answer
is the right one by definition. Run as root. No step depends on the clock's resolution or on inode numbers.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from tests.mount.posix_actor import GROUP, OWNER, USERS, Actor, Outcome

Outcomes = dict[tuple[str, str], Outcome]
KINDS = ("file", "dir", "full", "fifo", "socket", "link", "dirlink", "dangling", "loop", "missing")


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
            "fsync": ("synced",),
            "truncate below zero": ("truncate", -1),
            "truncate too far": ("truncate", 2**63 - 1),
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
            self.check("link", f"{kind}, onto itself", self.me.outcome("link", path, path, follow_symlinks=False))
            self.check("link", kind, self.me.outcome("link", path, path + "2", follow_symlinks=False))
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
            inner, other = self.make("full", self.folder(0o777) + "/inner"), self.folder(0o777)
            self.me.call("chown", inner, OWNER, GROUP)
            self.me.call("chmod", inner, mode)
            label = f"{who}, a directory with {mode:04o} to another parent"
            self.check("rename", label, actor.outcome("moved_into", inner, other))
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
            self.check("utime", f"{label}, atime only", actor.outcome("utimens", path, 5, None))
            self.check("chown", f"{label}, to nobody else", actor.outcome("chown", path, -1, -1))
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
        self.check("open w", "of a running program", self.me.outcome("executed_and_written", f"{folder}/program"))
        self.check("rmdir", "of the working directory", self.me.outcome("in_removed_directory", f"{folder}/gone"))

    def extended_attributes(self) -> None:
        """user.*, trusted.* and what else there could be, on every kind of file, with each flag."""
        for kind in KINDS:
            path = self.make(kind, self.folder() + "/name")
            for follow in (True, False):
                label = f"{kind}{'' if follow else ', nofollow'}"
                for verb, arguments in {
                    "getxattr": ("user.a",),
                    "setxattr": ("user.a", b"\0\xff" * 50),
                    "listxattr": (),
                    "removexattr": ("user.a",),
                }.items():
                    self.check(verb, label, self.me.outcome(verb, path, *arguments, follow_symlinks=follow))
        path = self.make("file", self.folder(0o777) + "/file")
        self.me.call("chown", path, OWNER, GROUP)
        for label, name, value, flags in (
            ("replace what is not there", "user.a", b"1", os.XATTR_REPLACE),
            ("create", "user.a", b"2", os.XATTR_CREATE),
            ("create what is there", "user.a", b"3", os.XATTR_CREATE),
            ("replace", "user.a", b"4", os.XATTR_REPLACE),
            ("empty value", "user.empty", b"", 0),
            ("no name", "user.", b"1", 0),
            ("no space", "plain", b"1", 0),
            ("system", "system.x", b"1", 0),
            ("name of 255 bytes", "user." + "n" * 250, b"1", 0),
            ("name of 256 bytes", "user." + "n" * 251, b"1", 0),
            ("unicode", "user.ünï", "wörter".encode(), 0),
        ):
            self.check("setxattr", label, self.me.outcome("setxattr", path, name, value, flags))
            self.check("getxattr", f"{label}, after it", self.me.outcome("getxattr", path, name))
        self.check("listxattr", "all", str(sorted(self.me.call("listxattr", path))))
        for who, mode in itertools.product(USERS, (0o644, 0o400, 0o666, 0o600)):
            self.me.call("chmod", path, mode)
            label = f"{who}, file with {mode:04o}"
            for name in ("user.a", "trusted.a"):
                self.check("setxattr", f"{label}, {name}", self.actors[who].outcome("setxattr", path, name, who.encode()))
                self.check("getxattr", f"{label}, {name}", self.actors[who].outcome("getxattr", path, name))
            self.check("removexattr", label, self.actors[who].outcome("removexattr", path, "user.empty"))
            self.check("removexattr", f"{label}, again", self.actors[who].outcome("removexattr", path, "user.empty"))
        times = [self.me.call("stamps", path)]
        time.sleep(0.012)
        self.me.call("setxattr", path, "user.a", b"later")
        times.append(self.me.call("stamps", path))
        self.check("setxattr", "times that move", str([one != two for one, two in zip(*times, strict=True)][1:]))

    def close(self) -> None:
        for actor in self.actors.values():
            actor.close()


def record(root: str, parts: tuple[str, ...]) -> Outcomes:
    """Every outcome of these methods of `Checks` below `root`, an empty directory."""
    os.chmod(root, 0o755)
    checks = Checks(root)
    try:
        for part in parts:
            getattr(checks, part)()
    finally:
        checks.close()
    return checks.outcomes
