"""S3's object verbs over HTTP, whatever transport carries them. No botocore, no credentials.

Never trusts an answer further than it goes: a short body is not a whole one, a 200 can hold an error, a repeated write may
have been carried out the first time.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from sluicefs.errors import ConditionFailedError, NotFoundError, ShortBodyError, StoreError, UnreachableError
from sluicefs.store import markers, wire
from sluicefs.store.api import Buffer, Counters, ListPage, ObjectInfo, StoreFailure, Upload
from sluicefs.store.client import Budget, Client, Reply
from sluicefs.store.rules import MAX_LIST, as_bytes_view, check_header, check_key, encode_metadata
from sluicefs.store.sign import encode_path

_XML = 64 * 1024 * 1024  # bytes of XML answer that are taken; a page of 1,000 long keys has about 4 MiB
_SLOW = 4  # a server-side copy or a completion may take this many times the timeout

_UploadQuery = dict[str, str]
_Failures = list[tuple[str, StoreFailure]]  # named here: the class has a method called `list`


class Verbs:
    """One bucket behind a `Client`; see `store.api.Store` for the verbs. `provider`: whose rules to follow."""

    def __init__(self, bucket: str, client: Client, provider: str) -> None:
        self.bucket = bucket
        self.counters: Counters = client.counters
        self._client = client
        self._provider = provider
        self._timeout = client.timeout
        self._count_lock = threading.Lock()

    def close(self) -> None:
        """Drops the connections. The store is not used afterwards."""
        self._client.close()

    # --- reading

    def head(self, key: str) -> ObjectInfo:
        check_key(key)

        def read(answer: Reply) -> ObjectInfo:
            if answer.length is None:
                raise wire.MalformedError("no Content-Length")
            return wire.object_info(key, answer.headers, answer.length)

        try:
            return self._client.call("HeadObject", "HEAD", key, read)
        except StoreError as error:
            if error.code or error.status not in (400, 403):  # what has expired is a 400
                raise
        # A HEAD has no body to say why it was refused: a GET of one byte has.
        self.get(key, limit=1)
        return self._client.call("HeadObject", "HEAD", key, read)

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
        view = as_bytes_view(buffer)
        if not len(view):
            check_key(key)
            return self._head_version(key, offset, etag)
        end = offset + len(view)

        def begin(info: ObjectInfo) -> memoryview:
            if info.size < end:
                message = f"GetObject {key!r}: bytes {offset} to {end} of an object of {info.size} bytes"
                raise wire.named_error(message, 416, "InvalidRange", "the object ends before")
            return view

        return self._get(key, offset, end, begin, etag, progress, cancelled)

    def get_start(
        self,
        key: str,
        limit: int,
        begin: Callable[[ObjectInfo], Buffer | None],
        *,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ObjectInfo:
        return self._get(key, 0, limit, begin, None, progress, cancelled)

    def get(self, key: str, *, limit: int | None = None, etag: str | None = None) -> tuple[ObjectInfo, bytearray]:
        body = bytearray()
        if limit is not None and limit <= 0:
            check_key(key)
            return self._head_version(key, 0, etag), body

        def begin(info: ObjectInfo) -> bytearray:
            nonlocal body
            body = bytearray(info.size if limit is None else min(limit, info.size))
            return body

        try:
            info = self._get(key, 0, limit, begin, etag)
        except StoreError as error:
            if error.status != 416:
                raise
            return self._head_version(key, 0, etag), bytearray()  # an empty object has no range
        return info, body

    def _get(
        self,
        key: str,
        offset: int,
        end: int | None,
        begin: Callable[[ObjectInfo], Buffer | None],
        etag: str | None,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ObjectInfo:
        """GetObject of [offset, end), to the object's end where `end` is None; `begin` says once where it goes."""
        check_key(key)
        view: memoryview | None = None
        done = 0
        version = etag
        budget = Budget(self._timeout)

        def headers() -> dict[str, str]:
            wanted = {}
            stop = end if view is None else offset + len(view)
            if end is not None or done:
                wanted["range"] = f"bytes={offset + done}-{stop - 1 if stop is not None else ''}"
            if version is not None:
                wanted["if-match"] = f'"{version}"'
            return wanted

        def read(answer: Reply) -> ObjectInfo:
            nonlocal view, done, version
            # The head first: an error's text is no short object.
            info = wire.object_info(key, answer.headers, _range_start(answer, offset + done))
            if version is not None and info.etag != version:
                raise ConditionFailedError(
                    f"GetObject {key!r}: another version is there", code="PreconditionFailed", status=412
                )
            version = info.etag or version
            if view is None:
                buffer = begin(info)
                if buffer is None:
                    return info
                view = as_bytes_view(buffer)
            start = done
            try:
                if answer.length is None:
                    body = answer.read(len(view) - done)
                    view[done : done + len(body)] = body
                    done += len(body)
                    if progress is not None:
                        progress(done)
                else:
                    done = answer.read_into(view, done, progress=progress, cancelled=cancelled)
            finally:
                with self._count_lock:
                    self.counters.bytes_down += done - start
            if done > start:
                budget.progress()
            if done < len(view):
                raise ShortBodyError(f"GetObject {key!r}: the body ended after {done} of {len(view)} bytes", code="ShortBody")
            return info

        return self._client.call("GetObject", "GET", key, read, headers=headers, budget=budget, cancelled=cancelled)

    # --- writing

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
        check_key(key)
        if metadata and key.endswith("/") and markers.drops_metadata(self._client.server):
            content_type = markers.pack(content_type, metadata)
        headers = _object_headers(metadata, content_type) | _conditions(if_match, if_none_match)
        budget = Budget(self._timeout)
        with as_bytes_view(body) as view:  # an error's traceback would hold it, and nobody could write there
            try:
                return self._client.call("PutObject", "PUT", key, _etag, headers=headers, body=view, budget=budget)
            except (ConditionFailedError, NotFoundError) as error:
                if budget.repeated and self._is_ours(key, _md5(view)):
                    return self.head(key).etag  # an earlier try was carried out, only its answer was lost
                raise _as_condition(error, if_match) from None
            except StoreError as error:
                if _may_have_landed(error):
                    error.landed = _md5(view)
                raise

    def copy(
        self,
        source: str,
        target: str,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        if_source_match: str | None = None,
    ) -> str:
        check_key(source)
        check_key(target)
        headers = {"x-amz-copy-source": self._source(source)}
        if metadata is not None:
            headers |= {"x-amz-metadata-directive": "REPLACE"} | _object_headers(metadata, content_type)
        if if_source_match is not None:
            headers["x-amz-copy-source-if-match"] = f'"{if_source_match}"'
        read = _result("CopyObject", target, "CopyObjectResult")
        budget = self._slow()
        try:
            return self._client.call("CopyObject", "PUT", target, read, headers=headers, budget=budget)
        except ConditionFailedError:
            # Onto itself it may give the same bytes another ETag, so that a second try no longer finds the first's source.
            if source == target and metadata is not None and budget.repeated:
                there = self.head(target)
                if dict(there.metadata or {}) == {name.lower(): value for name, value in metadata.items()}:
                    return there.etag  # an earlier try was carried out, only its answer was lost
            raise

    def delete(self, key: str) -> None:
        check_key(key)
        with suppress(NotFoundError):
            self._client.call("DeleteObject", "DELETE", key, _ignore)

    def delete_many(self, keys: Iterable[str]) -> list[tuple[str, StoreFailure]]:
        failed: list[tuple[str, StoreFailure]] = []
        lost: StoreError | None = None  # when one request was given up, each more would wait as long again
        rest = iter(keys)
        while batch := list(itertools.islice(rest, MAX_LIST)):
            together = [key for key in batch if wire.fits_xml(key)]
            alone = [[key] for key in batch if not wire.fits_xml(key)]
            for group in [together, *alone] if together else alone:
                try:
                    if lost is not None:
                        raise lost
                    if group is together:
                        failed += self._delete_batch(group)
                    else:
                        self.delete(group[0])
                except StoreError as error:
                    failed += [(key, error) for key in group]
                    lost = error if _may_have_landed(error) or error.status == 429 else None
        return failed

    # --- multipart

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str | None = None) -> str:
        check_key(key)
        verb = "CreateMultipartUpload"
        read = _result(verb, key, "InitiateMultipartUploadResult", "UploadId")
        headers = _object_headers(metadata, content_type)
        return self._client.call(verb, "POST", key, read, query={"uploads": ""}, headers=headers)

    def upload_part(self, key: str, upload_id: str, number: int, body: Buffer) -> str:
        check_key(key)
        query = {"partNumber": str(number), "uploadId": upload_id}
        with as_bytes_view(body) as view:
            return self._client.call("UploadPart", "PUT", key, _etag, query=query, body=view)

    def copy_part(self, key: str, upload_id: str, number: int, source: str, offset: int, length: int) -> str:
        check_key(key)
        query = {"partNumber": str(number), "uploadId": upload_id}
        headers = {
            "x-amz-copy-source": self._source(source),
            "x-amz-copy-source-range": f"bytes={offset}-{offset + length - 1}",
        }
        read = _result("UploadPartCopy", key, "CopyPartResult")
        return self._client.call("UploadPartCopy", "PUT", key, read, query=query, headers=headers, budget=self._slow())

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> str:
        check_key(key)
        verb = "CompleteMultipartUpload"
        headers = _conditions(if_match, if_none_match)
        if headers and self._provider != "s3":
            # Not every store heeds a condition here: look first, which leaves a race of one round trip where it does not.
            self._check_version(key, if_match)
        headers["content-type"] = "application/xml"
        body = memoryview(wire.complete_body(parts))
        read = _result(verb, key, "CompleteMultipartUploadResult")
        budget = self._slow()
        try:
            return self._client.call(
                verb, "POST", key, read, query={"uploadId": upload_id}, headers=headers, body=body, budget=budget
            )
        except (ConditionFailedError, NotFoundError) as error:
            expected = _joined_etag(parts)
            if budget.repeated and expected and self._is_ours(key, expected):
                return expected
            raise _as_condition(error, if_match) if error.code != "NoSuchUpload" else error from None
        except StoreError as error:
            if _may_have_landed(error):
                error.landed = _joined_etag(parts) or ""
            raise

    def abort_upload(self, key: str, upload_id: str) -> None:
        check_key(key)
        with suppress(NotFoundError):
            self._client.call("AbortMultipartUpload", "DELETE", key, _ignore, query={"uploadId": upload_id})

    def list_uploads(self, prefix: str) -> list[Upload]:
        found: list[Upload] = []
        marks: _UploadQuery | None = {}
        while marks is not None:
            query = {"uploads": "", "prefix": prefix, "encoding-type": "url", **marks}
            page, marks = self._client.call("ListMultipartUploads", "GET", "", _read_uploads, query=query)
            found += page
        return found

    # --- listing

    def list(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, start_after: str | None = None, limit: int = 1000
    ) -> ListPage:
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url", "max-keys": str(max(1, min(limit, MAX_LIST)))}
        if delimiter:
            query["delimiter"] = delimiter
        if token is not None:
            query["continuation-token"] = token
        elif start_after is not None:
            query["start-after"] = start_after
        return self._client.call(
            "ListObjectsV2", "GET", "", lambda answer: wire.listing(answer.read(_XML), prefix), query=query
        )

    def peek(self, seconds: float) -> None:
        """Asks for one entry of the listing, giving up after `seconds`: is the bucket there and are we let in?"""
        budget = Budget(min(seconds, self._timeout))
        query = {"list-type": "2", "max-keys": "1"}
        self._client.call(
            "ListObjectsV2", "GET", "", lambda answer: wire.listing(answer.read(_XML), ""), query=query, budget=budget
        )

    # --- inside

    def _slow(self) -> Budget:
        return Budget(self._timeout * _SLOW)

    def _source(self, key: str) -> str:
        return encode_path(f"/{self.bucket}/{key}")

    def _head_version(self, key: str, offset: int, etag: str | None) -> ObjectInfo:
        info = self.head(key)
        if etag is not None and info.etag != etag:
            raise ConditionFailedError(f"GetObject {key!r}: another version is there", code="PreconditionFailed", status=412)
        if offset > info.size:
            raise wire.named_error(f"GetObject {key!r}", 416, "InvalidRange", f"the object has {info.size} bytes")
        return info

    def _check_version(self, key: str, if_match: str | None) -> None:
        """Raises ConditionFailedError unless version `if_match` (None: no version) is there."""
        try:
            there = self.head(key).etag
        except NotFoundError:
            there = None
        if there != if_match:
            message = f"CompleteMultipartUpload {key!r}: another version is there"
            raise ConditionFailedError(message, code="PreconditionFailed", status=412)

    def _is_ours(self, key: str, etag: str) -> bool:
        try:
            return self.head(key).etag == etag
        except NotFoundError:
            return False

    def _delete_batch(self, keys: Sequence[str]) -> _Failures:
        body = wire.delete_body(keys)
        md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers = {"content-md5": md5, "content-type": "application/xml"}
        rows = self._client.call(
            "DeleteObjects",
            "POST",
            "",
            lambda answer: wire.delete_errors(answer.read(_XML)),
            query={"delete": ""},
            headers=headers,
            body=memoryview(body),
        )
        return [
            (key, wire.named_error(f"DeleteObjects {key!r}", 200, code, message))
            for key, code, message in rows
            if code not in ("NoSuchKey", "NotFound")
        ]


def _ignore(answer: Reply) -> None:
    answer.read(_XML)


def _etag(answer: Reply) -> str:
    answer.read(_XML)
    etag = wire.unquoted(answer.headers.get("etag", ""))
    if not etag:
        raise wire.MalformedError("no ETag")
    return etag


def _result(verb: str, key: str, tag: str, field: str = "ETag") -> Callable[[Reply], str]:
    """Reads `field` of a `tag` document. A 200 can hold an error instead: it is raised as if it had come with its status."""

    def read(answer: Reply) -> str:
        body = answer.read(_XML).strip()
        root = wire.parse(body, lenient=True)
        if root.tag == "Error":
            raise wire.error_for(f"{verb} {key!r}", answer.status, body)
        value = root.findtext(field) if root.tag == tag else None
        if not value:
            raise wire.MalformedError(f"a {root.tag[:40]} in place of a {tag}")
        return wire.unquoted(value)

    return read


def _read_uploads(answer: Reply) -> tuple[list[Upload], _UploadQuery | None]:
    return wire.uploads(answer.read(_XML))


def _range_start(answer: Reply, start: int) -> int:
    """The size of the object whose range from `start` on the answer is. Raises MalformedError for any other range."""
    if answer.status != 206:
        if start or answer.length is None:
            raise wire.MalformedError("the whole object in place of a range")
        return answer.length
    unit, _, rest = answer.headers.get("content-range", "").partition(" ")
    span, _, size = rest.partition("/")
    if unit != "bytes" or span.partition("-")[0] != str(start) or not re.fullmatch("[0-9]{1,18}", size):
        raise wire.MalformedError(f"range {rest[:60]!r} in place of one from {start}")
    return int(size)


def _object_headers(metadata: Mapping[str, str] | None, content_type: str | None) -> dict[str, str]:
    check_header(content_type)
    headers = {f"x-amz-meta-{name}": value for name, value in encode_metadata(metadata).items()}
    if content_type is not None:
        headers["content-type"] = content_type
    return headers


def _conditions(if_match: str | None, if_none_match: bool) -> dict[str, str]:
    headers = {}
    if if_match is not None:
        headers["if-match"] = f'"{if_match}"'
    if if_none_match:
        headers["if-none-match"] = "*"
    return headers


def _as_condition(error: StoreError, if_match: str | None) -> StoreError:
    """AWS answers NoSuchKey to If-Match on a key that is gone: the condition failed all the same."""
    if if_match is None or isinstance(error, ConditionFailedError):
        return error
    return ConditionFailedError(error.strerror or "", code=error.code, status=error.status)


def _may_have_landed(error: StoreError) -> bool:
    """Is it unknown whether the store has carried the request out, or will yet?"""
    return isinstance(error, UnreachableError) or error.status >= 500


def _md5(view: memoryview) -> str:
    return hashlib.md5(view, usedforsecurity=False).hexdigest()


def _joined_etag(parts: Sequence[tuple[int, str]]) -> str | None:
    """The ETag a multipart object of these parts has, None where the parts' ETags are not MD5s."""
    try:
        joined = b"".join(bytes.fromhex(etag) for _, etag in parts)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
