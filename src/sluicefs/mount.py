"""The composition root: wires the rooms together, runs the mount, and sends what is pending before it ends.

llfuse keeps one session per process, so a process serves one mount. The daemon must never touch its own mountpoint.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import llfuse
import platformdirs

from sluicefs import control
from sluicefs.config import Config
from sluicefs.errors import MountError, UnmountError
from sluicefs.fs.filesystem import FileSystem
from sluicefs.fs.nodes import Node
from sluicefs.fuse.operations import Operations
from sluicefs.fuse.stopping import StopSignals
from sluicefs.store.api import Store

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024
MAX_BACKGROUND = 64
EXAMPLES = 20  # failures that are told by name: an answer over the control socket has its bounds


def staging_folder(config: Config) -> str:
    """The private folder (0700) where this bucket's unsent data lies. OSError where it cannot be made."""
    name = hashlib.sha256(f"{config.endpoint}\n{config.bucket}\n{config.prefix}".encode()).hexdigest()[:16]
    folder = os.path.join(platformdirs.user_state_dir("sluicefs"), "staging", name)
    for place in (os.path.dirname(folder), folder):
        os.makedirs(place, mode=0o700, exist_ok=True)
        os.chmod(place, 0o700)
    return folder


def fuse_options(config: Config) -> set[str]:
    """What is asked of libfuse 2.9 (mount.fuse(8))."""
    # Quoted: a comma in a prefix would begin another option, and llfuse takes nothing but ASCII.
    prefix = ":/" + quote(config.prefix.rstrip("/")) if config.prefix else ""
    options = {
        f"fsname=sluicefs:{config.bucket}{prefix}",
        "subtype=sluicefs",
        "default_permissions",
        "big_writes",
        "nonempty",
        f"max_background={MAX_BACKGROUND}",
        f"max_readahead={READ_AHEAD_KIB * 1024}",
    }
    if config.allow_other:
        options.add("allow_other")
    if config.read_only:
        options.add("ro")
    if config.noexec:
        options.add("noexec")
    return options


class _Operations(Operations):
    """Operations that say when the kernel's first request has arrived, and raise its read-ahead before the first file is open.

    Not at the first request: the kernel takes the answer to that for a reason to lower it again (fs/fuse/inode.c,
    process_init_reply).
    """

    def __init__(self, fs: FileSystem, mountpoint: str, started: Callable[[], None]):
        super().__init__(fs)
        self._started = started
        self._mountpoint: str | None = mountpoint

    def init(self) -> None:
        # On a thread of its own: llfuse's lock is held here, and an answer to the kernel is due first.
        threading.Thread(target=self._started, name="started", daemon=True).start()

    def open(self, inode: int, flags: int, ctx: Any) -> int:
        self._raise_read_ahead()
        handle: int = super().open(inode, flags, ctx)
        return handle

    def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[int, llfuse.EntryAttributes]:
        self._raise_read_ahead()
        made: tuple[int, llfuse.EntryAttributes] = super().create(parent_inode, name, mode, flags, ctx)
        return made

    def _raise_read_ahead(self) -> None:
        mountpoint, self._mountpoint = self._mountpoint, None
        if mountpoint is not None:
            _raise_read_ahead(mountpoint)


def serve(config: Config, store: Store, *, ready: Callable[[], None]) -> None:
    """Mount, call `ready` once the mount answers, and serve until it is unmounted or told to stop (SIGTERM, SIGINT, control
    socket).

    Before it returns, everything pending has been sent, within `config.stop_timeout` seconds. Raises MountError if the mount
    cannot be made, UnmountError if data could not be sent.
    """
    try:
        staging = staging_folder(config)
    except OSError as error:
        raise MountError(
            f"The folder for unsent data cannot be made: {error}. Set XDG_STATE_HOME to a writable place."
        ) from error
    with StopSignals() as stop_signals:
        fs = FileSystem(config, store, staging)
        try:
            server = control.Server(control.socket_path(config.mountpoint), _handlers(config, store, fs, stop_signals))
            server.start()  # before the mount: of two that begin at once on one folder, one ends here
        except OSError as error:
            fs.close()
            if error.errno == errno.EADDRINUSE:
                raise MountError(
                    f"The process of another mount on {config.mountpoint} is still there: one that is being made, or one that "
                    "was unmounted and sends what is pending. Wait for it."
                ) from error
            raise MountError(
                f"{config.mountpoint} cannot be mounted, as there can be no control socket: {error}. Set XDG_RUNTIME_DIR to a "
                "folder of this user."
            ) from error
        try:
            if not config.read_only:
                fs.take_over()
            _mount(_Operations(fs, config.mountpoint, ready), config)
        except BaseException:
            server.close()
            fs.close()
            raise
        try:
            reason = llfuse.main()
            log.info("%s", "unmounted" if reason is None else f"stopping on signal {signal.Signals(reason).name}")
        finally:
            stop_signals.end()  # a second one ends the process at once: what was acknowledged is in the bucket or the journal
            failed = _send_pending(fs, config.stop_timeout)
            llfuse.close(unmount=True)
            server.close()
            fs.close()
    if failed:
        after = "the next mount sends them" if config.write_mode == "back" else f"`sluicefs recover {config.bucket}` has them"
        raise UnmountError(f"{len(failed)} files could not be sent to {config.bucket}, {after}: {', '.join(failed[:5])}")


def _mount(operations: Operations, config: Config) -> None:
    """llfuse.init. Raises MountError with what libfuse and fusermount had to say, which they write to stderr."""
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            llfuse.init(operations, config.mountpoint, fuse_options(config))
        except RuntimeError as error:
            why = os.pread(said.fileno(), 1000, 0).decode(errors="replace").strip() or error
            raise MountError(
                f"FUSE refused to mount {config.mountpoint}: {why}. `sluicefs doctor {config.bucket}` checks what is missing."
            ) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            with contextlib.suppress(OSError):
                os.write(2, os.pread(said.fileno(), 1 << 20, 0))  # and what others logged meanwhile


def _send_pending(fs: FileSystem, seconds: float) -> list[str]:
    """Send what is unsent, trying again until it works or the time is over; returns the names of what is left."""
    end = time.monotonic() + seconds
    pause = 0.5
    while True:
        failed = fs.sync_all(end)
        for node, error in failed:
            log.error("%s is not in the bucket: %s", node.name, error)
        if not failed or time.monotonic() + pause > end:
            return [_left(node) for node, _ in failed]
        if all(error.errno in (errno.EACCES, errno.ESTALE, errno.EFBIG) for _, error in failed):
            return [_left(node) for node, _ in failed]  # trying again does not help
        time.sleep(pause)
        pause = min(pause * 2, 10)


def _left(node: Node) -> str:
    return node.name if node.draft is not None else f"{node.name} (only its attributes, which are lost)"


def _raise_read_ahead(mountpoint: str) -> None:
    """Let the kernel ask 1 MiB ahead, so that 8 reads are in flight and not 2. Only root may; without it reading is slower."""
    try:
        found = next((row for row in reversed(control.mount_table()) if row.path == mountpoint and row.is_ours), None)
        if found is not None:
            with open(f"/sys/class/bdi/{found.device}/read_ahead_kb", "w") as setting:
                setting.write(str(READ_AHEAD_KIB))
    except OSError as error:
        log.debug("the kernel's read-ahead stays as it is: %s", error)


def _handlers(
    config: Config, store: Store, fs: FileSystem, stop_signals: StopSignals
) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """What the control socket answers."""
    started = time.time()

    def status(_: dict[str, Any]) -> dict[str, Any]:
        core = fs.core
        return {
            "bucket": config.bucket,
            "prefix": config.prefix,
            "endpoint": config.endpoint,
            "mountpoint": config.mountpoint,
            "pid": os.getpid(),
            "started": started,
            "read_only": config.read_only,
            "write_mode": config.write_mode,
            "cache": core.cache.stats(),
            "disk": core.disk.stats() if core.disk is not None else None,
            "pending": {"files": fs.pending(), "bytes": fs.files.unsent()},
            "if_match": core.committer.conditions.heeded,
            "inodes": len(core.table.by_ino),
            "left_out": sorted(core.directories.left_out)[:20],
            "left_out_count": core.directories.left_out_count,
            **asdict(store.counters),
        }

    def flush(_: dict[str, Any]) -> dict[str, Any]:
        failed = fs.sync_all()
        examples = {node.name: str(error) for node, error in failed[:EXAMPLES]}
        return {"pending": fs.pending(), "failed": examples, "failed_count": len(failed)}

    def stop(asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("pid", os.getpid()) == os.getpid():  # else it is meant for one that was mounted here before
            threading.Timer(0.05, stop_signals.stop).start()  # after this answer is out
        return {}

    def drop_memory(_: dict[str, Any]) -> dict[str, Any]:
        fs.drop_memory()
        return {}

    return {"status": status, "flush": flush, "drop-memory": drop_memory, "stop": stop}
