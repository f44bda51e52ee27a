"""Mount a Cloudflare R2 or S3 bucket as a local directory: `mount_bucket`, `Sandbox`, and the errors they raise.

Importing this is cheap: what a name needs is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicefs.errors import (
    BucketAccessError,
    InvalidMountConfigError,
    MissingCredentialsError,
    MountError,
    SluiceError,
    UnmountError,
)

if TYPE_CHECKING:
    from sluicefs.api import Mount, mount_bucket
    from sluicefs.sandbox import ExecResult, Sandbox

__version__ = "0.1.0"

__all__ = [
    "BucketAccessError",
    "ExecResult",
    "InvalidMountConfigError",
    "MissingCredentialsError",
    "Mount",
    "MountError",
    "Sandbox",
    "SluiceError",
    "UnmountError",
    "mount_bucket",
]

_LATE = {"Mount": "api", "mount_bucket": "api", "ExecResult": "sandbox", "Sandbox": "sandbox"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'sluicefs' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"sluicefs.{_LATE[name]}"), name)
