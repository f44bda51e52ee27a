"""The Python API of a mount: `mount_bucket` and `Mount`. The mount lives in a process of its own, as on the command line.

So a mount outlives an interpreter that forgets it: use it as a context manager, or call `unmount`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from sluicefs import control, lifecycle
from sluicefs.config import OPTIONS, Config, load
from sluicefs.errors import InvalidMountConfigError, MountError, UnmountError

Credentials = Sequence[str] | Mapping[str, str]
"""(access key, secret key) or (access key, secret key, session token), or a mapping with access_key, secret_key, token."""


def mount_bucket(
    bucket: str,
    mountpoint: str | os.PathLike[str],
    *,
    endpoint: str | None = None,
    prefix: str = "",
    read_only: bool = False,
    credentials: Credentials | None = None,
    config_file: str | None = None,
    **options: Any,
) -> Mount:
    """Mount `bucket` (or a binding of the config file) on the directory `mountpoint`; returns when it answers.

    `prefix`: only keys below it, shown as the root. `read_only=True` refuses every change; a read-only binding stays so either
    way. `credentials`: None looks for them as the command line does. `options` are those of `sluicefs mount`, with
    underscores: sizes in bytes or as "16M", times in seconds. Raises InvalidMountConfigError, MissingCredentialsError,
    BucketAccessError, MountError; then nothing is mounted.
    """
    where = os.fspath(mountpoint)
    config = configure(bucket, where, endpoint=endpoint, prefix=prefix, read_only=read_only, config_file=config_file, **options)
    return mount_config(config, credentials)


def configure(
    bucket: str, mountpoint: str, *, endpoint: str | None, prefix: str, read_only: bool, config_file: str | None, **options: Any
) -> Config:
    """The Config of what `mount_bucket` was given. Raises InvalidMountConfigError."""
    for name in options:
        if name not in OPTIONS or name == "foreground":
            raise InvalidMountConfigError(f"mount_bucket() has no option {name!r}. Those of `sluicefs mount --help` are taken.")
    flags = {**options, "endpoint": endpoint, "prefix": prefix, "read_only": read_only or None}
    return load(bucket, mountpoint, flags, file=config_file)


def mount_config(config: Config, credentials: Credentials | None = None) -> Mount:
    """`mount_bucket` for a Config from `config.load`."""
    lifecycle.check(config)
    lifecycle.start(config, _plain(credentials))
    return Mount(config)


class Mount:
    """A mounted bucket. A context manager: leaving it unmounts."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"Mount({self.config.bucket!r}, {self.mountpoint!r})"

    @property
    def mountpoint(self) -> str:
        """The directory's absolute path."""
        return self.config.mountpoint

    def flush(self) -> None:
        """Upload everything that is pending. Raises MountError, naming the files that could not be."""
        try:
            answer = control.call(self.mountpoint, "flush", timeout=None)
        except (OSError, control.ControlError) as error:
            raise MountError(f"The mount on {self.mountpoint} cannot be asked to upload: {error}.") from None
        if answer["failed"]:
            names = ", ".join(f"{name} ({why})" for name, why in list(answer["failed"].items())[:5])
            raise MountError(f"{answer.get('failed_count', len(answer['failed']))} files are not in the bucket yet: {names}.")

    def stats(self) -> dict[str, Any]:
        """What `sluicefs status --json` shows: pending uploads, cache, requests by verb, bytes. Raises MountError."""
        try:
            return control.call(self.mountpoint, "status")
        except (OSError, control.ControlError) as error:
            raise MountError(f"The mount on {self.mountpoint} does not answer: {error}.") from None

    def unmount(self) -> None:
        """Upload what is pending, unmount, wait until it is done; nothing if it is unmounted already.

        Raises UnmountError when the mount is busy or data cannot be uploaded; then it stays mounted.
        """
        row = control.find_mount(self.mountpoint)
        if row is not None and row.is_ours:
            lifecycle.stop(self.mountpoint)

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.unmount()
        except UnmountError:
            if error is None:
                raise  # else the first error is the one to see; the mount stays, with its data


def _plain(credentials: Any) -> Any:
    """As it can go through a pipe to the mount's process. Raises InvalidMountConfigError, with no secret in it."""
    if credentials is None:
        return None
    plain = dict(credentials) if isinstance(credentials, Mapping) else credentials
    values = plain.values() if isinstance(plain, dict) else plain
    if not isinstance(plain, dict | list | tuple) or not all(value is None or isinstance(value, str) for value in values):
        raise InvalidMountConfigError(
            "credentials must be (access key, secret key), perhaps with a session token, or a mapping with access_key, "
            "secret_key and token; all of them text."
        )
    return plain
