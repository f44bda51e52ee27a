"""Commands that always end, and what the processes behind a mount cost.

Every process that a contestant starts inherits one environment variable. By it they are found again, however often they fork
or change session: to be measured, and to be ended. Nothing here may wait without a bound, nor end a process without the mark.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "BENCH_MOUNT_MARK"
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_EVERY = 0.05  # seconds


class CommandError(Exception):
    """A command failed or took too long; the message ends with its last words."""


def run_command(
    command: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    name: str = "",
) -> bytes:
    """Standard output of a command. Raises CommandError: not to be run, other status than 0, or over `timeout` seconds.

    Files take the output, not pipes: a daemon keeps its standard output open, and a pipe would be waited for.
    """
    nothing = subprocess.DEVNULL
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        name = name or os.path.basename(command[0])
        try:
            process = subprocess.Popen(command, stdin=nothing, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True)
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}") from None
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CommandError(f"{name}: no end after {timeout:.0f} s{last_words(err)}") from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                _reap(process)
        if status:
            why = f"signal {-status}" if status < 0 else f"status {status}"
            raise CommandError(f"{name}: {why}{last_words(err) or last_words(out)}")
        out.seek(0)
        return out.read()


def _reap(process: subprocess.Popen[bytes]) -> None:
    """A killed process that waits in the kernel for an answer of a mount ends only when that mount does: not waited for."""
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        threading.Thread(target=process.wait, name="reaper", daemon=True).start()


def last_words(file: object) -> str:
    """The last two lines of an open file, after a colon; "" where it is empty."""
    file.seek(0)  # type: ignore[attr-defined]
    text: str = file.read()[-4000:].decode(errors="replace")  # type: ignore[attr-defined]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ": " + " | ".join(lines[-2:])[-400:] if lines else ""


def marked(mark: str) -> list[int]:
    """Ids of the living processes that carry `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def end_marked(mark: str, grace: float = 2.0) -> int:
    """Ends what carries `mark`, gently and then not; returns how many there were."""
    first = found = marked(mark)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        end = time.monotonic() + grace
        while found and time.monotonic() < end:
            time.sleep(0.02)
            found = [pid for pid in marked(mark) if _state(pid) != "Z"]
    return len(first)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@dataclass(frozen=True)
class Usage:
    """What a set of processes took: CPU seconds, and resident memory in bytes (before, at most)."""

    cpu: float = 0.0
    rss_idle: int = 0
    rss_peak: int = 0


class Meter:
    """Measures processes between `start` and `stop`; children that ended meanwhile are counted through their parent."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._before = self._cpu()
        self._idle = self._peak = self._rss()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Usage:
        self._stopped.set()
        self._thread.join()
        self._peak = max(self._peak, self._rss())
        return Usage(self._cpu() - self._before, self._idle, self._peak)

    def _sample(self) -> None:
        while not self._stopped.wait(_SAMPLE_EVERY):
            self._peak = max(self._peak, self._rss())

    def _cpu(self) -> float:
        ticks = 0
        for pid in self._pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime: proc_pid_stat(5)
        return ticks / _TICK

    def _rss(self) -> int:
        pages = 0
        for pid in self._pids:
            with contextlib.suppress(OSError, IndexError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * _PAGE


def drop_caches() -> None:
    """Empties the page, dentry and inode caches of the machine. Needs root: without it cold is not cold, so it raises OSError.

    Nothing is synced before: what is measured is not on a disk, and other people's dirty pages are not waited for.
    """
    Path("/proc/sys/vm/drop_caches").write_text("3")


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `benchmarks.MODULE` with this Python."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def is_mounted(mountpoint: str | os.PathLike[str]) -> bool:
    """From the kernel's table, without touching the mount, which may be dead."""
    wanted = os.fspath(mountpoint).replace(" ", "\\040")
    return any(line.split(" ")[1] == wanted for line in Path("/proc/self/mounts").read_text().splitlines())
