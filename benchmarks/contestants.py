"""Who is measured: programs described in TOML, and one mount of one of them.

A mount is watched from outside: whoever dies, refuses to end or leaves its mount behind is reported and cleared away, and
the run goes on. Secrets go into the environment or a private file, never into a command line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import MARK, CommandError, end_marked, is_mounted, marked, run_command

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = Path(__file__).with_name("contestants.toml")
_MOUNT, _UNMOUNT, _PREPARE = 60.0, 120.0, 120.0  # seconds
_LOOK_EVERY = 0.002  # seconds
_GOING = 3.0  # seconds the mount may stay after its unmount command
_ENDING = 15.0  # seconds the processes may


class ContestantError(Exception):
    """A description that cannot be used."""


class Fault(Exception):
    """A contestant did what it must not; the message says what."""


@dataclass(frozen=True)
class Contestant:
    """One table of the TOML file."""

    name: str
    program: str
    mount: Sequence[str]
    unmount: Sequence[str]
    prepare: Sequence[Sequence[str]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)
    plain: bool = True
    only: Sequence[str] = ()
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        return shutil.which(self.program, path=search_path()) is not None


@dataclass(frozen=True)
class Place:
    """What the placeholders stand for. `state` lives as long as the bucket, `cache` is emptied before a cold mount."""

    endpoint: str
    bucket: str
    region: str
    access_key: str
    secret_key: str
    mountpoint: Path
    cache: Path
    state: Path

    def fill(self, text: str) -> str:
        try:
            return text.format_map({name: str(getattr(self, name)) for name in self.__dataclass_fields__})
        except (KeyError, ValueError, IndexError) as error:
            raise ContestantError(f"placeholder {error} in {text!r} is not known") from None


def load(*files: Path) -> dict[str, Contestant]:
    """Contestants by name; a later file replaces what an earlier one said. Raises ContestantError."""
    found: dict[str, Contestant] = {}
    for file in files:
        try:
            tables = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ContestantError(f"{file}: {error}") from None
        for name, table in tables.items():
            found[name] = _contestant(name, table, file)
    return found


def _contestant(name: str, table: Any, file: Path) -> Contestant:
    if not isinstance(table, dict) or not {"mount", "unmount"} <= table.keys():
        raise ContestantError(f"{file}: [{name}] needs mount and unmount")
    unknown = table.keys() - Contestant.__dataclass_fields__.keys()
    if unknown:
        raise ContestantError(f"{file}: [{name}] has unknown {', '.join(sorted(unknown))}")
    return Contestant(name=name, program=table.pop("program", table["mount"][0]), **table)


def search_path() -> str:
    """PATH with the folder of this Python first."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@contextlib.contextmanager
def fusermount3(folder: Path) -> Iterator[None]:
    """libfuse 2's fusermount under the name that rclone asks for, where only that one is installed: they speak the same."""
    found = shutil.which("fusermount", path=search_path())
    before = os.environ.get("PATH", "")
    if found and shutil.which("fusermount3", path=search_path()) is None:
        (folder / "bin").mkdir()
        (folder / "bin" / "fusermount3").symlink_to(found)
        os.environ["PATH"] = f"{before}:{folder / 'bin'}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


class Mount:
    """One mount of `contestant` at `place`. `seconds`: until it answered. Raises Fault from `start` and `stop`."""

    def __init__(self, contestant: Contestant, place: Place, extra: str = "") -> None:
        self._contestant = contestant
        self._place = place
        self._mark = uuid.uuid4().hex
        self._command = [*contestant.mount, *(contestant.extra[extra] if extra else ())]
        self.seconds = 0.0

    def prepare(self) -> None:
        """Writes the files and runs what must be run once a bucket."""
        for name, text in self._contestant.files.items():
            file = self._place.state / name
            file.touch(mode=0o600)
            file.write_text(self._place.fill(text))
        done = self._place.state / ".prepared"
        if not done.exists():
            for command in self._contestant.prepare:
                self._run(command, _PREPARE)
            done.touch()

    def start(self) -> None:
        """Returns when the mount answers a stat."""
        mountpoint = self._place.mountpoint
        begin = time.monotonic()
        try:
            self._run(self._command, _MOUNT)
            while not is_mounted(mountpoint):
                if time.monotonic() - begin > _MOUNT:
                    raise Fault(f"not mounted after {_MOUNT:.0f} s")
                time.sleep(_LOOK_EVERY)
            run_command(["stat", "-c", "%F", str(mountpoint)], timeout=_MOUNT)
        except BaseException as error:
            self.clear()
            if isinstance(error, CommandError):
                raise Fault(f"mount failed: {error}") from None
            raise
        self.seconds = time.monotonic() - begin

    def pids(self) -> list[int]:
        """The processes behind the mount. Raises Fault: there are none."""
        found = marked(self._mark)
        if not found:
            raise Fault("its process has ended")
        return found

    def stop(self) -> None:
        """Unmounts, waits for the processes to end. Raises Fault, after clearing up, when that does not happen by itself."""
        try:
            self._run(self._contestant.unmount, _UNMOUNT)
        except CommandError as error:
            why = self.clear()
            raise Fault(f"unmount failed: {error}{why and '; ' + why}") from None
        except BaseException:
            self.clear()
            raise
        begin = time.monotonic()
        while (left := is_mounted(self._place.mountpoint)) or marked(self._mark):
            if time.monotonic() - begin > (_GOING if left else _ENDING):
                break
            time.sleep(0.02)
        why = self.clear()
        if why:
            raise Fault(why)

    def clear(self) -> str:
        """Takes away what is left of the mount, by force; says what there was, "" for nothing."""
        left = []
        mountpoint = self._place.mountpoint
        for _ in range(8):
            if not is_mounted(mountpoint):
                break
            left = ["left its mount behind"]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["umount", "-l", str(mountpoint)], capture_output=True, timeout=20)
        if end_marked(self._mark):
            left.append("its process did not end")
        return ", ".join(left)

    def _run(self, command: Sequence[str], timeout: float) -> None:
        filled = [self._place.fill(word) for word in command]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "R2_", "RCLONE_"))}
        environment |= {name: self._place.fill(value) for name, value in self._contestant.environment.items()}
        environment |= {MARK: self._mark, "PATH": search_path()}
        found = shutil.which(filled[0], path=environment["PATH"])
        run_command([found or filled[0], *filled[1:]], timeout=timeout, env=environment, cwd="/")
