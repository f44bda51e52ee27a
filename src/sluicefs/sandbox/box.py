"""`Sandbox`: a folder that is thrown away, commands that see nothing else, and buckets that stay.

A bucket is mounted outside, where its credentials are, and only bound into the sandbox: no key is ever inside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Any, overload

from sluicefs.api import Credentials, Mount, configure, mount_config
from sluicefs.config import Config
from sluicefs.errors import InvalidMountConfigError, MountError, UnmountError
from sluicefs.sandbox import bubblewrap

_TIMED_OUT = 124  # the exit status timeout(1) gives

# A file is read and written by a process inside, where a symbolic link cannot lead out. Its last line on stderr is the errno.
_READ = """
import shutil, sys
try:
    with open(sys.argv[1], "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
except OSError as error:
    sys.exit(f"errno {error.errno}")
"""
_WRITE = """
import shutil, sys
try:
    with open(sys.argv[1], "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
except OSError as error:
    sys.exit(f"errno {error.errno}")
"""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended. `exit_code` as a shell gives it: 128 + N where signal N ended it, 124 where `timeout` did."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool = False

    @property
    def success(self) -> bool:
        """The exit code is 0."""
        return self.exit_code == 0


class Sandbox:
    """A disposable place to run commands in. A context manager: leaving it destroys it, and the buckets keep the data.

    `name`: for people; letters, digits, '-', '_', '.'. `net`: let commands use the network. Raises InvalidMountConfigError.
    """

    def __init__(self, name: str, *, net: bool = False) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise InvalidMountConfigError(f"{name!r} cannot be a sandbox's name: up to 63 letters, digits, '-', '_' and '.'.")
        self.name = name
        self.net = net
        self._mounts: dict[str, Mount] = {}
        self._folder: str | None = tempfile.mkdtemp(prefix=f"sluicefs-sandbox-{name}-")
        bubblewrap.prepare(self._folder)

    def __repr__(self) -> str:
        return f"Sandbox({self.name!r}, mounts={sorted(self._mounts)})"

    def mount_bucket(
        self,
        bucket: str,
        path: str,
        *,
        endpoint: str | None = None,
        prefix: str = "",
        read_only: bool = False,
        credentials: Credentials | None = None,
        config_file: str | None = None,
        **options: Any,
    ) -> Mount:
        """Mount `bucket` (or a binding) on `path` inside; arguments and errors as `sluicefs.mount_bucket` has them.

        Commands that run already do not see it.
        """
        config = configure(
            bucket, "/", endpoint=endpoint, prefix=prefix, read_only=read_only, config_file=config_file, **options
        )
        return self.mount_config(config, path, credentials)

    def mount_config(self, config: Config, path: str, credentials: Credentials | None = None) -> Mount:
        """`mount_bucket` for a Config from `config.load`, whose mountpoint is passed over."""
        path = self._inside(path)
        clash = next(
            (one for one in self._mounts if f"{path}/".startswith(f"{one}/") or f"{one}/".startswith(f"{path}/")), None
        )
        if clash is not None:
            raise InvalidMountConfigError(
                f"{path} cannot be mounted: a bucket is mounted on {clash}. Choose paths side by side."
            )
        if not bubblewrap.is_free(path):
            raise InvalidMountConfigError(f"{path} is a folder of the system. Choose another, such as /data.")
        outside = tempfile.mkdtemp(prefix="mount-", dir=self._ours())
        log = config.log_file or f"{outside}.log"  # it goes with the sandbox
        try:
            mount = mount_config(
                replace(config, mountpoint=os.path.realpath(outside), foreground=False, log_file=log), credentials
            )
        except BaseException:
            os.rmdir(outside)
            raise
        self._mounts[path] = mount
        return mount

    def unmount_bucket(self, path: str) -> None:
        """Upload what is pending below `path`, and unmount it. Raises UnmountError; then it stays mounted."""
        path = self._inside(path)
        if path not in self._mounts:
            raise UnmountError(f"No bucket is mounted on {path} in {self!r}.")
        mount = self._mounts[path]
        mount.unmount()
        del self._mounts[path]
        os.rmdir(mount.mountpoint)

    def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = bubblewrap.WORKSPACE,
        stdin: str | bytes = b"",
    ) -> ExecResult:
        """Run `command` (a list, or a text for /bin/sh) and wait for it, at most `timeout` seconds.

        Its environment is clean but for `env`. When the time is over everything it started is ended.
        """
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = self._run(command, given, timeout=timeout, env=env, cwd=cwd)
        out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        timed_out = done.returncode is None
        return ExecResult(out, err, _TIMED_OUT if timed_out else done.returncode, timed_out)

    def run(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Run `command` on our own stdin, stdout and stderr; returns its exit code."""
        with self._start(command, env, bubblewrap.WORKSPACE, None, None) as process:
            try:
                return process.wait()
            except BaseException:
                process.kill()
                raise

    def write_file(self, path: str, content: str | bytes) -> None:
        """Write a file inside; a relative path starts at /home/sandbox. Raises OSError as `open` does."""
        self._python(_WRITE, path, content.encode() if isinstance(content, str) else content)

    @overload
    def read_file(self, path: str, encoding: str = "utf-8") -> str: ...
    @overload
    def read_file(self, path: str, encoding: None) -> bytes: ...
    def read_file(self, path: str, encoding: str | None = "utf-8") -> str | bytes:
        """Content of a file inside, as bytes where `encoding` is None. Raises OSError as `open` does."""
        content = self._python(_READ, path, b"")
        return content if encoding is None else content.decode(encoding)

    def destroy(self) -> None:
        """Upload what is pending, unmount, and delete the sandbox; nothing if it is destroyed already.

        Raises UnmountError when a bucket cannot be unmounted: then the sandbox stays, as it holds that data.
        """
        if self._folder is None:
            return
        for path in list(self._mounts):
            self.unmount_bucket(path)
        shutil.rmtree(self._folder, onerror=_force)
        self._folder = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.destroy()
        except UnmountError:
            if error is None:
                raise  # else the first error is the one to see

    # --- inside

    def _ours(self) -> str:
        if self._folder is None:
            raise MountError(f"The sandbox {self.name!r} is destroyed. Make a new one: the buckets have the data.")
        return self._folder

    def _inside(self, path: str) -> str:
        if not path.startswith("/") or "\0" in path:
            raise InvalidMountConfigError(f"{path!r} must be an absolute path inside the sandbox, such as /data.")
        return "/" + posixpath.normpath(path).lstrip("/")

    def _start(
        self,
        command: str | Sequence[str],
        env: Mapping[str, str] | None,
        cwd: str,
        stdin: int | None,
        output: int | IO[bytes] | None,
    ) -> subprocess.Popen[bytes]:
        if not command:
            raise InvalidMountConfigError("There is no command to run: give a list of words, or a text for /bin/sh.")
        # By way of a shell, as bwrap ends with 1 where there is no such command, and not with 127.
        words = ["/bin/sh", "-c", *([command] if isinstance(command, str) else ['exec "$@"', "sh", *command])]
        mounts = {path: (mount.mountpoint, mount.config.read_only) for path, mount in self._mounts.items()}
        line = bubblewrap.command_line(self._ours(), mounts, net=self.net, cwd=cwd)
        return subprocess.Popen(
            [*line, *words], stdin=stdin, stdout=output, stderr=output, cwd="/", env=bubblewrap.environment(env or {})
        )

    def _run(
        self, command: str | Sequence[str], stdin: bytes, *, timeout: float | None, env: Mapping[str, str] | None, cwd: str
    ) -> subprocess.CompletedProcess[bytes]:
        """`returncode` None: the time was over."""
        with self._start(command, env, cwd, subprocess.PIPE, subprocess.PIPE) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                process.kill()  # bwrap's death ends all that is inside
                out, err = process.communicate()
                return subprocess.CompletedProcess([], None, out, err)  # type: ignore[arg-type]
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def _python(self, program: str, path: str, stdin: bytes) -> bytes:
        command = [sys.executable, "-I", "-S", "-c", program, path]
        done = self._run(command, stdin, timeout=None, env=None, cwd=bubblewrap.WORKSPACE)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip()
        match = re.search(r"^errno (\d+)$", said, re.MULTILINE)
        number = int(match[1]) if match else errno.EIO
        raise OSError(number, os.strerror(number) if match else said, path)


def _force(function: Any, path: str, _: Any) -> None:
    """A folder without write permission must not stop the deletion."""
    os.chmod(os.path.dirname(path), 0o700)
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
    if function in (os.unlink, os.remove):
        os.unlink(path)
    else:
        shutil.rmtree(path)
