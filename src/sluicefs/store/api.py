"""What sluicefs asks of an object store. A protocol and its value types: no network, no other room.

Every store passes `tests/contract/`. All calls are thread-safe and block until the answer is there; every call is bounded
in time and raises `StoreError` kinds only (see `sluicefs.errors`). Keys are full keys (`str`, no leading slash added or
removed). Offsets and lengths are bytes, times are seconds since the epoch, ETags are as the store gives them without quotes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Buffer = Any  # an object with the buffer protocol; `collections.abc.Buffer` from Python 3.12 on


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version of one object. `metadata` is None where the answer did not carry it (a listing); its names are lower case."""

    key: str
    size: int
    etag: str
    modified: float
    metadata: Mapping[str, str] | None = None
    content_type: str | None = None
    storage_class: str | None = None


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing. `token` continues it; None: this was the last page."""

    objects: list[ObjectInfo]
    prefixes: list[str]
    token: str | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: float


@dataclass(slots=True)
class Counters:
    """Requests by verb and body bytes, for `status` and for tests that assert counts. Retries count as requests."""

    requests: dict[str, int] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    retries: int = 0


class Store(Protocol):
    """One bucket."""

    counters: Counters

    def head(self, key: str) -> ObjectInfo:
        """HeadObject. Raises NotFoundError."""

    def get_into(
        self,
        key: str,
        offset: int,
        buffer: Buffer,
        *,
        etag: str | None = None,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ObjectInfo:
        """Ranged GetObject: fills the whole of `buffer` (writable, C-contiguous bytes) from `offset`, with If-Match if `etag`.

        `progress(n)` is called as bytes land: the first n bytes of `buffer` are valid. `cancelled()` is asked between
        reads; True raises CancelledError and drops the connection. A short body is retried from where it broke off, then
        ShortBodyError. A range beyond the end of the object raises StoreError with errno EINVAL. ConditionFailedError
        when `etag` is not the current version, NotFoundError when the object is gone.
        """

    def get_start(
        self,
        key: str,
        limit: int,
        begin: Callable[[ObjectInfo], Buffer | None],
        *,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ObjectInfo:
        """GetObject of the first `limit` bytes of whatever version is there, which nobody knows yet.

        `begin(info)` is called once, when the answer begins, and returns where they go, up to min(limit, info.size) bytes;
        None: none are wanted. The rest as `get_into`. An empty object has no range: StoreError with status 416.
        """

    def get(self, key: str, *, limit: int | None = None, etag: str | None = None) -> tuple[ObjectInfo, bytearray]:
        """GetObject: the whole object, or its first `limit` bytes (`info.size` is the object's size either way)."""

    def put(
        self,
        key: str,
        body: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        """PutObject; returns the ETag. ConditionFailedError when the condition does not hold."""

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str | None = None) -> str:
        """CreateMultipartUpload; returns the upload id."""

    def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> str:
        """UploadPart, numbers from 1; returns the part's ETag."""

    def copy_part(self, key: str, upload_id: str, number: int, source: str, offset: int, length: int) -> str:
        """UploadPartCopy of `source`[offset:offset+length]; returns the part's ETag."""

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        """CompleteMultipartUpload with (number, ETag) in order; returns the object's ETag. An error inside a 200 is found."""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload; an upload that is gone already is no error."""

    def list_uploads(self, prefix: str) -> list[Upload]:
        """ListMultipartUploads, all pages."""

    def copy(
        self,
        source: str,
        target: str,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        if_source_match: str | None = None,
    ) -> str:
        """CopyObject (at most 5 GiB); returns the new ETag. `metadata` given: REPLACE (with `content_type`), else COPY."""

    def delete(self, key: str) -> None:
        """DeleteObject; a key that is not there is no error."""

    def delete_many(self, keys: Iterable[str]) -> list[tuple[str, StoreFailure]]:
        """DeleteObjects in batches of 1,000; returns what could not be deleted, with why."""

    def list(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, start_after: str | None = None, limit: int = 1000
    ) -> ListPage:
        """ListObjectsV2, one page, keys in UTF-8 byte order, keys URL-encoded on the wire and decoded here."""

    def close(self) -> None:
        """Drop the connections. The store is not used afterwards."""


StoreFailure = OSError


def joined_etag(parts: Sequence[tuple[int, str]]) -> str | None:
    """The ETag a multipart object of these parts has, None where the parts' ETags are not MD5s."""
    try:
        joined = b"".join(bytes.fromhex(etag) for _, etag in parts)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
