"""Every error sluicefs raises on purpose. A leaf: imports nothing of the project.

Two families. `SluiceError` speaks to people at set-up time (command line, API): each message says what was tried, why it
failed and what to do. `StoreError` is an `OSError`: each kind carries the errno an application on the mount gets to see.
"""

from __future__ import annotations

import errno as _errno


class SluiceError(Exception):
    """Base of the public family; `str(error)` is a sentence for people."""


class MissingCredentialsError(SluiceError):
    """No credentials were found; the message names every place looked at."""


class InvalidMountConfigError(SluiceError):
    """The request itself is wrong (an option, a path, a binding): exit status 2 on the command line."""


class BucketAccessError(SluiceError):
    """The bucket could not be reached or the store refused us."""


class MountError(SluiceError):
    """The mount could not be made, or ended by itself."""


class UnmountError(SluiceError):
    """The mount could not be ended, or data is still pending."""


class StoreError(OSError):
    """A request to the store failed. `errno` is what the mount's user sees; `code` the store's own word (may be "").

    `landed`: the ETag that the object has if the request was carried out all the same; "" where that cannot be or is not known.
    """

    default_errno = _errno.EIO

    def __init__(self, message: str, *, code: str = "", status: int = 0, errno: int | None = None):
        super().__init__(self.default_errno if errno is None else errno, message)
        self.code = code
        self.status = status
        self.landed = ""


class NotFoundError(StoreError):
    """No such object, or no such upload (404 NoSuchKey, NoSuchUpload)."""

    default_errno = _errno.ENOENT


class NoSuchBucketError(StoreError):
    """The bucket does not exist. EIO on a mount: a vanished bucket must not look like an empty one."""


class ConditionFailedError(StoreError):
    """If-Match or If-None-Match did not hold (412, or 409 ConditionalRequestConflict): another version is there."""

    default_errno = _errno.ESTALE


class AccessDeniedError(StoreError):
    """403: the key may not do this. `code` tells bad signature, unknown key, expired token apart."""

    default_errno = _errno.EACCES


class ClockSkewError(AccessDeniedError):
    """403 RequestTimeTooSkewed: this machine's clock is wrong."""


class UnreachableError(StoreError):
    """No answer: connection refused, reset, DNS, TLS. Never taken for "deleted"."""


class StoreTimeoutError(UnreachableError):
    """No answer within the bound."""

    default_errno = _errno.ETIMEDOUT


class ShortBodyError(StoreError):
    """The body ended before its stated length, after all tries."""


class TooLargeError(StoreError):
    """EntityTooLarge, MetadataTooLarge, KeyTooLong: the store's limits."""

    default_errno = _errno.EFBIG


class CancelledError(StoreError):
    """The caller withdrew the request while it ran."""

    default_errno = _errno.EINTR
