"""Starts a mount's process and ends it, for the command line and the API. Never serves a mount itself, never loads FUSE.

A mountpoint is looked at only where that cannot hang: before anything is mounted, or after its process said it is ready.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sluicefs import control, errors
from sluicefs.config import Config
from sluicefs.daemon import SECRETS
from sluicefs.errors import InvalidMountConfigError, MountError, UnmountError

Progress = Callable[[int, int], None]
"""Called with the files and the bytes still to be uploaded."""

_PATIENCE = 60.0  # seconds the process may take to answer, beyond the store's timeout
_END_SECONDS = 3.0  # what a process without a mount and without pending uploads may take to end


def check(config: Config) -> None:
    """What can be known before anything is started. Raises InvalidMountConfigError and MountError."""
    check_fuse()
    if config.allow_other and not allows_other():
        raise MountError("--allow-other needs the line user_allow_other in /etc/fuse.conf; add it, or mount as root.")
    _check_mountpoint(config.mountpoint)
    _check_places(config)
    if config.cache_dir is not None:
        try:
            os.makedirs(config.cache_dir, mode=0o700, exist_ok=True)
            tempfile.TemporaryFile(dir=config.cache_dir).close()
        except OSError as error:
            raise MountError(
                f"The cache folder {config.cache_dir} cannot be written: {error.strerror}. Give another with --cache-dir."
            ) from None


def check_fuse() -> None:
    """Raises MountError when FUSE cannot work on this machine."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except FileNotFoundError:
        raise MountError(
            "There is no /dev/fuse. Load the kernel's module (modprobe fuse), or start the container with "
            "--device /dev/fuse --cap-add SYS_ADMIN."
        ) from None
    except OSError as error:
        raise MountError(
            f"/dev/fuse cannot be opened: {error.strerror}. Allow this user to read and write it, or give the container "
            "--device /dev/fuse."
        ) from None
    if shutil.which("fusermount") is None and os.getuid() != 0:
        raise MountError("The program fusermount is missing. Install it: apt-get install fuse.")


def allows_other() -> bool:
    """This user may let others see a mount (mount.fuse(8))."""
    if os.getuid() == 0:
        return True
    with contextlib.suppress(OSError), open("/etc/fuse.conf") as lines:
        return any(line.strip() == "user_allow_other" for line in lines)
    return False


def start(config: Config, credentials: Any = None) -> None:
    """Start a mount in a process of its own; returns when it answers. `config` has passed `check`.

    `credentials`: (access key, secret key[, token]), a mapping with the usual names, or None to look for them. Raises
    SluiceError kinds; then nothing is mounted.
    """
    secrets = {name: os.environ[name] for name in SECRETS if name in os.environ}
    log_file = config.log_file or _log_file(config.mountpoint)
    order = {
        "config": asdict(config),
        "credentials": credentials,
        "secrets": secrets,
        "log_file": log_file,
    }
    code = "from sluicefs.daemon import main; main()"
    read_end, write_end = os.pipe()
    try:
        with open(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log_stream:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(write_end), f"{config.bucket}:/{config.prefix}", config.mountpoint],
                stdin=subprocess.PIPE,
                stdout=log_stream,
                stderr=log_stream,
                pass_fds=(write_end,),
                cwd="/",
                env=_environment(),
            )
    except OSError as error:
        os.close(read_end)
        raise MountError(f"The mount process could not be started: {error}. The log file was to be {log_file}.") from None
    finally:
        os.close(write_end)
    with open(read_end, "rb", buffering=0) as answer:
        with contextlib.suppress(BrokenPipeError):
            process.communicate(json.dumps(order).encode())
        line = _read_line(answer, config.timeout + _PATIENCE)
    if not line:
        raise MountError(
            f"The mount process ended or hung before the mount answered. Its log is {log_file}:\n{_tail(log_file)}"
        )
    said = json.loads(line)
    if said["kind"] != "ready":
        kind = getattr(errors, said["kind"], MountError)
        raise kind(said["text"])
    _check_mounted(config.mountpoint)


def stop(mountpoint: str, *, progress: Progress | None = None) -> None:
    """Upload what is pending, unmount, and wait until the process is gone. A mount left by a crash is cleaned up.

    Raises UnmountError: not a mount, busy, or data that cannot be uploaded; then it stays mounted and nothing is lost.
    """
    row = control.find_mount(mountpoint)
    if row is None:
        raise UnmountError(f"{mountpoint} is not a mount. `sluicefs status` lists those there are.")
    if not row.is_ours:
        raise UnmountError(f"{mountpoint} is a mount of {row.fs_type}, not of sluicefs. Use umount for it.")
    if is_dead(row.path):
        _unmount(row.path, lazily=True)
        return
    try:
        process = control.call(row.path, "status")["pid"]
        count, failed = _flush(row.path, progress)
    except TimeoutError:
        raise UnmountError(
            f"The process of the mount on {row.path} does not answer, so what is pending cannot be sent. It stays mounted; "
            "look at its log, or end its process and unmount again."
        ) from None
    except (OSError, control.ControlError):
        process, count, failed = None, 0, {}  # it cannot be asked; it uploads what is pending when it notices
    if count:
        names = ", ".join(f"{name} ({why})" for name, why in list(failed.items())[:5])
        raise UnmountError(
            f"{count} files are not in the bucket yet: {names}. {row.path} stays mounted and keeps them; try again when "
            "the store answers."
        )
    _unmount(row.path)
    if process is not None:
        _wait_for_end(process, row.path)


def is_dead(path: str) -> bool:
    """The mount's process is gone: "transport endpoint is not connected"."""
    if control.listens(path):
        return False  # and a look at it would wait for it
    try:
        os.statvfs(path)  # never answered from the kernel's caches, as stat is for --attr-ttl
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _check_mountpoint(path: str) -> None:
    row = control.find_mount(path)
    if row is not None and row.is_ours:
        if not is_dead(path):
            raise MountError(f"{path} is a mount already, of {row.source}. Unmount it first: sluicefs unmount {path}")
        _unmount(path, lazily=True)
    elif row is not None and row.fs_type.startswith("fuse"):
        raise MountError(
            f"{path} is a mount already, of {row.fs_type} ({row.source}). Unmount it first, or choose another folder."
        )
    if not os.path.lexists(path):
        raise InvalidMountConfigError(f"The folder {path} does not exist. Make it first: mkdir -p {path}")
    if not os.path.isdir(path):
        raise InvalidMountConfigError(f"{path} is not a folder; a mount needs one.")
    if not os.access(path, os.W_OK):
        raise MountError(f"The folder {path} is not writable for this user, so FUSE will not mount on it. Choose one of yours.")


def _check_places(config: Config) -> None:
    """What the mount's process writes to must not lie in its own mount, where each would wait for the other."""
    for what, place, way in (
        ("cache folder", config.cache_dir, "--cache-dir"),
        ("log file", config.log_file, "--log-file"),
        ("folder for unsent data and logs", _state_folder(), "XDG_STATE_HOME"),
    ):
        if place is not None and f"{os.path.realpath(place)}/".startswith(f"{config.mountpoint.rstrip('/')}/"):
            raise InvalidMountConfigError(
                f"The {what}, {place}, is inside the mountpoint {config.mountpoint}. Choose another place with {way}."
            )


def _check_mounted(path: str) -> None:
    """The parent's own look: what the process says it mounted is here, and answers."""
    try:
        os.stat(path)
    except OSError as error:
        raise MountError(f"The mount on {path} does not answer: {error.strerror}.") from None
    row = control.find_mount(path)
    if row is None or not row.is_ours:
        raise MountError(f"The mount process says it mounted {path}, but there is no mount here. Is it in another namespace?")


def _environment() -> dict[str, str]:
    """Ours less the secrets. The package is found wherever this process found it."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    places = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    places += [os.path.abspath(place) for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    return {**environment, "PYTHONPATH": os.pathsep.join(places)}


def _state_folder() -> str:
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "sluicefs")


def _log_file(mountpoint: str) -> str:
    """This mount's log in the user's state folder."""
    folder = os.path.join(_state_folder(), "log")
    name = os.fsencode(os.path.basename(mountpoint))[:64].decode(errors="ignore") or "root"  # a name has room for 255 bytes
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise MountError(
            f"The folder {folder} for logs cannot be made: {error.strerror}. Set XDG_STATE_HOME to a writable place."
        ) from None
    return os.path.join(folder, f"{name}-{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]}.log")


def _tail(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as lines:
        return "".join(lines.readlines()[-5:]).strip()


def _read_line(stream: Any, seconds: float) -> bytes:
    """One line, b"" at the end of the stream or of the time."""
    end, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        if not select.select([stream], [], [], max(0, end - time.monotonic()))[0]:
            return b""
        piece = stream.read(65536)
        if not piece:
            return b""
        line += piece
    return line


def _flush(path: str, progress: Progress | None) -> tuple[int, dict[str, str]]:
    """Upload what is pending, reporting meanwhile; returns how many files failed, and some of them with why."""
    answers: list[Any] = []

    def work() -> None:
        try:
            answers.append(control.call(path, "flush", timeout=None))
        except (OSError, control.ControlError) as error:
            answers.append(error)

    worker = threading.Thread(target=work, name="flush", daemon=True)
    worker.start()
    worker.join(0.2)
    while worker.is_alive():
        if progress is not None:
            with contextlib.suppress(OSError, control.ControlError):
                pending = control.call(path, "status")["pending"]
                progress(pending["files"], pending["bytes"])
        worker.join(0.2)
    if isinstance(answers[0], Exception):
        raise answers[0]
    failed: dict[str, str] = answers[0]["failed"]
    return answers[0].get("failed_count", len(failed)), failed  # a mount may be older than this


def _unmount(path: str, *, lazily: bool = False) -> None:
    program = shutil.which("fusermount")
    command = [program, "-u", *(["-z"] if lazily else []), path] if program else ["umount", *(["-l"] if lazily else []), path]
    environment = _environment() | {"LC_ALL": "C"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode == 0 or control.find_mount(path) is None:
        return
    said = done.stderr.strip()
    if "busy" in said:
        users = _users(path)
        by = f" by {', '.join(users)}" if users else ""
        raise UnmountError(f"{path} is in use{by}. Close what uses it (also shells that stand in it), then try again.")
    raise UnmountError(f"{path} could not be unmounted: {said or 'no reason given'}.")


def _users(path: str) -> list[str]:
    """Mounts below `path`, and processes with a file open or their working folder there; only links are read."""
    found = [f"the mount on {row.path}" for row in control.mount_table() if row.path.startswith(f"{path}/")]
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            links = [f"/proc/{process}/cwd", *(f"/proc/{process}/fd/{n}" for n in os.listdir(f"/proc/{process}/fd"))]
            for link in links:
                with contextlib.suppress(OSError):
                    if os.readlink(link) == path or os.readlink(link).startswith(f"{path}/"):
                        with open(f"/proc/{process}/comm") as name:
                            found.append(f"{name.read().strip()} (process {process})")
                        break
    return found[:5]


def _wait_for_end(process: int, path: str) -> None:
    """Until the mount's process has ended: only then is everything done.

    It goes on by itself where another mount namespace (a container that got the folder) still has the mount, so after a moment
    it is told to stop; there the mount is "not connected" then.
    """
    try:
        handle = os.pidfd_open(process)
    except OSError:
        return  # gone already
    try:
        if select.select([handle], [], [], _END_SECONDS)[0]:
            return
        with contextlib.suppress(OSError, control.ControlError):
            control.call(path, "stop", pid=process)
        if not select.select([handle], [], [], 600)[0]:
            raise UnmountError(f"{path} is unmounted, but its process {process} still runs after ten minutes. Look at its log.")
    finally:
        os.close(handle)
