"""How other processes of the same user talk to a mount's process: JSON lines over a Unix socket. A leaf: stdlib only.

Each mount has one socket, mode 0600, in a folder of mode 0700, named after its mountpoint. A secret is never asked for nor
answered. Nothing here touches a mountpoint: a look at it would wait for the mount's process, which may be gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], dict[str, Any]]

FS_TYPE = "fuse.sluicefs"
_LONGEST_LINE = 1 << 20  # bytes of one request or answer


class ControlError(Exception):
    """The mount's process answered that it could not do what was asked."""


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of the kernel's table of mounts. `source` is `sluicefs:BUCKET[:/PREFIX]` for ours, `device` `MAJOR:MINOR`."""

    path: str
    fs_type: str
    source: str
    options: str
    device: str

    @property
    def is_ours(self) -> bool:
        """A mount of sluicefs, alive or dead."""
        return self.fs_type == FS_TYPE


def runtime_folder() -> str:
    """This user's private folder of sockets, made where it is missing. Raises OSError when none can be."""
    uid = os.getuid()
    places = _runtime_places(uid)
    for place in places:
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            pass
        except OSError:
            continue
        found = os.lstat(place)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
            raise PermissionError(errno.EPERM, "the folder of control sockets belongs to someone else", place)
        os.chmod(place, 0o700)
        return place
    raise OSError(errno.EACCES, f"no folder for control sockets can be made; tried {', '.join(places)}")


def _runtime_places(uid: int) -> list[str]:
    """Where a user's processes may have that folder, the best first. They need not have our XDG_RUNTIME_DIR, nor TMPDIR."""
    given = os.environ.get("XDG_RUNTIME_DIR") if uid == os.getuid() else None
    places = ["/run/sluicefs"] if uid == 0 else [f"{place}/sluicefs" for place in (given, f"/run/user/{uid}") if place]
    return list(dict.fromkeys([*places, f"{tempfile.gettempdir()}/sluicefs-{uid}", f"/tmp/sluicefs-{uid}"]))


def socket_path(mountpoint: str) -> str:
    """The control socket for a mount of this user on `mountpoint`."""
    return os.path.join(runtime_folder(), _socket_name(real_path(mountpoint)))


def _socket_name(path: str) -> str:
    return f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


def _socket_of(mountpoint: str) -> str:
    """The control socket that the process of the mount on `mountpoint` has, whoever runs it; ours where there is none."""
    own = socket_path(mountpoint)
    row = None if os.path.exists(own) else find_mount(mountpoint)
    if row is not None:
        uid = _owner(row)
        for place in _runtime_places(uid):
            found = os.path.join(place, _socket_name(row.path))
            with contextlib.suppress(OSError):
                if os.lstat(place).st_uid == os.lstat(found).st_uid == uid:
                    return found
    return own


class Server:
    """Answers each request with what the handler of its verb returns; each connection on a thread of its own."""

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Begin to listen. Raises OSError, EADDRINUSE when another process answers on this path."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(self._path)
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        self._socket = listener
        threading.Thread(target=self._accept, args=(listener,), name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening and remove the socket. Answers under way may be cut off."""
        listener, self._socket = self._socket, None
        if listener is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                if self._socket is not listener:
                    return  # closed
                log.exception("the control socket could not accept a connection")
                continue
            threading.Thread(target=self._serve, args=(connection,), name="control", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if _peer(connection) not in (0, os.getuid()):
                return
            with connection.makefile("rwb") as stream:
                while line := stream.readline(_LONGEST_LINE):
                    stream.write(json.dumps(self._answer(line)).encode() + b"\n")
                    stream.flush()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb = request.pop("verb")
            handler = self._handlers[verb]
        except (ValueError, KeyError, AttributeError, TypeError):
            return {"error": "no such request"}
        try:
            return {"answer": handler(request)}
        except Exception as error:
            log.warning("%s asked over the control socket failed", verb, exc_info=True)
            return {"error": str(error) or type(error).__name__}


def call(mountpoint: str, verb: str, *, timeout: float | None = 10.0, **args: Any) -> dict[str, Any]:
    """Ask the process of the mount on `mountpoint`. `timeout` in seconds, None waits for ever.

    Raises ConnectionError when no process answers there, TimeoutError, and ControlError with what the process said.
    """
    return call_socket(_socket_of(mountpoint), verb, timeout=timeout, **args)


def listens(mountpoint: str) -> bool:
    """The process of the mount on `mountpoint` is there, whether it answers or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(_socket_of(mountpoint))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # too many wait for it already
    return True


def call_socket(path: str, verb: str, *, timeout: float | None = 10.0, **args: Any) -> dict[str, Any]:
    """`call`, by the socket's path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except FileNotFoundError:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "no mount process listens", path) from None
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps({"verb": verb, **args}).encode() + b"\n")
            stream.flush()
            line = stream.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise ConnectionResetError(errno.ECONNRESET, "the mount process ended before it answered", path)
    answer = json.loads(line)
    if "error" in answer:
        raise ControlError(answer["error"])
    result: dict[str, Any] = answer["answer"]
    return result


def mount_table() -> list[MountPoint]:
    """What is mounted in this process's view, in the kernel's order: of two on one path the later is on top.

    Read as bytes: anybody's path may hold what is not UTF-8, or any space or end of line but the kernel's own; a source may
    be empty.
    """
    rows = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().split(b"\n")[:-1]:
            left, _, right = line.partition(b" - ")
            fields = left.split(b" ")
            fs_type, source, options = map(_unescaped, right.split(b" ")[:3])
            rows.append(MountPoint(_unescaped(fields[4]), fs_type, source, options, _unescaped(fields[2])))
    return rows


def find_mount(mountpoint: str) -> MountPoint | None:
    """The mount whose root is exactly `mountpoint`."""
    path = real_path(mountpoint)
    return next((row for row in reversed(mount_table()) if row.path == path), None)


def real_path(path: str) -> str:
    """`os.path.realpath`, but for a mount of sluicefs itself without a look at it."""
    ours = {row.path for row in mount_table() if row.is_ours}
    for _ in range(40):  # links, as many as the kernel follows
        folder, name = os.path.split(path.rstrip("/") or "/")
        path = os.path.realpath(path) if name in ("", ".", "..") else os.path.join(os.path.realpath(folder), name)
        if path in ours or not os.path.islink(path):
            return path
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path


def list_mounts() -> list[MountPoint]:
    """This user's mounts of sluicefs (root sees everybody's), alive or dead, sorted by path."""
    uid = os.getuid()
    ours = [row for row in mount_table() if row.is_ours]
    return sorted({row.path: row for row in ours if uid in (0, _owner(row))}.values(), key=lambda row: row.path)


def _owner(row: MountPoint) -> int:
    found = [word.partition("=")[2] for word in row.options.split(",") if word.startswith("user_id=")]
    return int(found[0]) if found else 0


def _unescaped(text: bytes) -> str:
    r"""The kernel writes space, tab, newline, # and backslash as \040, \011, \012, \043, \134."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text))


def _peer(connection: socket.socket) -> int:
    """User id at the other end (unix(7), SO_PEERCRED)."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _remove_stale(path: str) -> None:
    """Remove a socket that a crash left. Raises OSError EADDRINUSE when somebody answers on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another mount process listens here", path)
