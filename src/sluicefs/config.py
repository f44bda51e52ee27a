"""Every option of a mount, once: its default, its unit and its help. A leaf: imports `errors` only.

`Config` is filled from, later wins: defaults, the config file, the binding, the environment, flags. It never holds a secret.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

MiB = 1024 * 1024
GiB = 1024 * MiB


def option(default: Any, help: str, *, unit: str = "", choices: tuple[str, ...] = (), short: str = "") -> Any:
    """A dataclass field that carries what the command line shows: help text, unit ("bytes", "seconds", "octal"), choices."""
    return dataclasses.field(
        default=default, metadata={"help": help, "unit": unit, "choices": choices, "short": short}
    )


@dataclass(frozen=True, slots=True)
class Config:
    """What one mount is asked to be. Sizes are bytes, times seconds, modes permission bits."""

    bucket: str
    mountpoint: str
    prefix: str = option("", "only keys below this prefix, shown as the root of the mount ('' or 'users/1/')")
    endpoint: str | None = option(None, "URL of the S3 endpoint")
    region: str | None = option(None, "region to sign for (R2: auto)")
    account_id: str | None = option(None, "Cloudflare account; gives the R2 endpoint")
    provider: str = option("auto", "whose rules to follow", choices=("auto", "r2", "s3", "gcs", "other"))
    read_only: bool = option(False, "refuse every change with EROFS")
    allow_other: bool = option(False, "let other users see the mount")
    uid: int | None = option(None, "owner of files that carry no owner [the mounting user]")
    gid: int | None = option(None, "group of files that carry no group [the mounting user's]")
    file_mode: int = option(0o644, "mode of files that carry no mode", unit="octal")
    dir_mode: int = option(0o755, "mode of directories that carry no mode", unit="octal")
    umask: int = option(0, "bits taken away from every default mode", unit="octal")
    cache_dir: str | None = option(None, "folder of the disk cache [off]")
    cache_size: int | None = option(None, "size of the disk cache [off; 10 GiB where only --cache-dir is given]", unit="bytes")
    memory: int | None = option(None, "memory for data [512 MiB, or a quarter of the machine's if less]", unit="bytes")
    part_size: int = option(16 * MiB, "size of the parts of an upload", unit="bytes")
    attr_ttl: float = option(1.0, "how long a listing or an attribute is trusted", unit="seconds")
    attrs: str = option("auto", "ask for each entry's own attributes", choices=("auto", "listing", "full"))
    xattr: bool = option(False, "extended attributes (slows down small writes)")
    write_mode: str = option("sync", "close answers when the bucket (sync) or the local disk (back) has the data", choices=("sync", "back"))
    timeout: float = option(30.0, "longest wait for one answer of the store", unit="seconds")
    stop_timeout: float = option(300.0, "longest time for pending uploads at unmount", unit="seconds")
    ca_bundle: str | None = option(None, "file of certificates to trust [the system's]")
    foreground: bool = option(False, "stay in the foreground", short="-f")
    log_level: str = option("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_file: str | None = option(None, "where a mount in the background logs [a file in the user's state folder]")
