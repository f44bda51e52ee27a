"""Four users who make system calls, each in a process of its own, and what they can do beyond the functions of `os`.

Everything a user does here ends with nothing left open, and returns what can be compared: no times, no inode numbers.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import socket
import stat
import time
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
Outcome = str


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


def synced(path: str) -> None:
    """fsync(2) of a file, or of a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def moved_into(path: str, folder: str) -> None:
    os.rename(path, f"{folder}/{os.path.basename(path)}")


def executed_and_written(path: str) -> str:
    """What writing to a running program is."""
    with open(path, "wb") as file:
        file.write(content("/bin/sleep"))
    os.chmod(path, 0o755)
    process = os.posix_spawn(path, [path, "10"], {})
    try:
        return opened(path, os.O_WRONLY)
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
