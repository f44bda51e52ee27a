"""S3 on the wire: XML both ways, dates, headers of an object, and which error means what. No network, no state."""

from __future__ import annotations

import calendar
import errno
import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from sluicefs.errors import (
    AccessDeniedError,
    ClockSkewError,
    ConditionFailedError,
    NoSuchBucketError,
    NotFoundError,
    StoreError,
    TooLargeError,
)
from sluicefs.store import markers
from sluicefs.store.api import ListPage, ObjectInfo, Upload
from sluicefs.store.rules import decode_value

THROTTLED = frozenset(("SlowDown", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded"))
# Answered for the moment only. RequestTimeout and BadDigest are 400s that a new try of the same bytes can end.
TRANSIENT = THROTTLED | {
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "OperationAborted",
    "IncompleteBody",
    "BadDigest",
}
STALE_KEYS = frozenset(("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired"))

_META = "x-amz-meta-"
_SIZE = re.compile(r"[0-9]{1,18}\Z")  # a signed 64-bit number holds it
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")

_FORBIDDEN = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:0*(?:[0-8]|1[124-9]|2[0-9]|3[01])|x0*(?:[0-8b-cB-Ce-fE-F]|1[0-9a-fA-F]));"
)

_KINDS: dict[str, type[StoreError]] = {
    "NoSuchKey": NotFoundError,
    "NoSuchUpload": NotFoundError,
    "NotFound": NotFoundError,
    "NoSuchBucket": NoSuchBucketError,
    "PreconditionFailed": ConditionFailedError,
    "ConditionalRequestConflict": ConditionFailedError,
    "RequestTimeTooSkewed": ClockSkewError,
    "EntityTooLarge": TooLargeError,
    "MetadataTooLarge": TooLargeError,
    "KeyTooLongError": TooLargeError,
    "ExpiredToken": AccessDeniedError,
    "InvalidToken": AccessDeniedError,
    "InvalidAccessKeyId": AccessDeniedError,
}
_ERRNOS = {
    "InvalidRange": errno.EINVAL,
    "InvalidPart": errno.EINVAL,
    "InvalidPartOrder": errno.EINVAL,
    "EntityTooSmall": errno.EINVAL,
    "MetadataTooLarge": errno.ENOSPC,
    "KeyTooLongError": errno.ENAMETOOLONG,
    "NotImplemented": errno.ENOTSUP,
}
_STATUSES: dict[int, type[StoreError]] = {
    403: AccessDeniedError,
    401: AccessDeniedError,
    404: NotFoundError,
    409: StoreError,
    412: ConditionFailedError,
    413: TooLargeError,
}


class MalformedError(ValueError):
    """The body is not the XML that was due."""


def parse(body: bytes, *, lenient: bool = False) -> ElementTree.Element:
    """XML without its namespace. Document types and with them entities are refused. Raises MalformedError.

    `lenient` drops characters that XML forbids, which stores send when they repeat a key: only where no key is read.
    """
    if lenient:
        body = _FORBIDDEN.sub(b"", body)
    # In S3's answers every `<` of a value is escaped, so these words cannot stand in one; only UTF-16 has NULs or such a BOM.
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body or b"\0" in body[:64] or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise MalformedError("a document type or an encoding that S3 does not use")
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise MalformedError(str(error)) from None
    if root.tag.startswith("{"):
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    return root


def error_for(what: str, status: int, body: bytes) -> StoreError:
    """The error an answer means. `what`: verb and key, as the message's beginning."""
    code = message = ""
    try:
        root = parse(body, lenient=True) if body else None
    except MalformedError:
        root = None
    if root is not None:
        code = (root.findtext("Code") or root.findtext("Error/Code") or "").strip()
        message = (root.findtext("Message") or root.findtext("Error/Message") or "").strip()
    return named_error(what, status, code, message)


def named_error(what: str, status: int, code: str, message: str) -> StoreError:
    """The error kind for S3's word `code`, or for the status where there is none."""
    kind = _KINDS.get(code)
    if kind is None:
        kind = _STATUSES.get(status, StoreError)
    number = _ERRNOS.get(code, errno.EINVAL if status == 416 else None)
    said = ": ".join(part for part in (code, message[:300]) if part)
    return kind(f"{what}: the store answered {status} {said}".rstrip(), code=code, status=status, errno=number)


@functools.lru_cache(maxsize=4096)
def http_date(text: str) -> float:
    """Seconds since the epoch of `Mon, 23 Nov 2026 21:25:00 GMT`; 0 for anything else."""
    try:
        return float(calendar.timegm(time.strptime(text, "%a, %d %b %Y %H:%M:%S GMT")))
    except ValueError:
        return 0.0


@functools.lru_cache(maxsize=4096)
def iso_date(text: str) -> float:
    """Seconds since the epoch of `2026-11-23T21:25:00.123Z`, whole as HeadObject has them; 0 for anything else."""
    try:
        year, month, day = int(text[0:4]), int(text[5:7]), int(text[8:10])
        return float(calendar.timegm((year, month, day, int(text[11:13]), int(text[14:16]), int(text[17:19]))))
    except ValueError:
        return 0.0


def object_info(key: str, headers: Mapping[str, str], size: int) -> ObjectInfo:
    """What the headers of a HEAD or GET say about the object. Raises MalformedError without an ETag: no object, then."""
    if "etag" not in headers:
        raise MalformedError("the answer has no ETag, so it is not an object's")
    metadata = {name[len(_META) :]: decode_value(value) for name, value in headers.items() if name.startswith(_META)}
    content_type = headers.get("content-type")
    if content_type is not None and key.endswith("/"):
        content_type, packed = markers.unpack(content_type)
        metadata |= packed
    return ObjectInfo(
        key,
        size,
        unquoted(headers.get("etag", "")),
        http_date(headers.get("last-modified", "")),
        metadata,
        content_type,
        headers.get("x-amz-storage-class", "STANDARD"),
    )


def unquoted(etag: str) -> str:
    """An ETag without its quotes."""
    return etag[1:-1] if len(etag) > 1 and etag[0] == '"' == etag[-1] else etag.removeprefix("W/").strip('"')


def listing(body: bytes, prefix: str) -> ListPage:
    """A ListObjectsV2 answer. Raises MalformedError, also when something that a listing must have is not there."""
    root = parse(body)
    if root.tag != "ListBucketResult":
        raise MalformedError(f"a {root.tag[:40]} in place of a listing")
    decode = unquote_plus if root.findtext("EncodingType") == "url" else str
    objects: list[ObjectInfo] = []
    prefixes: list[str] = []
    token: str | None = None
    truncated = False
    for child in root:
        if child.tag == "Contents":
            fields = {field.tag: field.text or "" for field in child}
            try:
                key, size = decode(fields["Key"]), fields["Size"]
            except KeyError:
                raise MalformedError("an entry without key or size") from None
            if not key or not _SIZE.match(size):
                raise MalformedError("an entry whose key or size is none")
            if not key.startswith(prefix):
                raise MalformedError("an entry that was not asked for")
            etag, modified = unquoted(fields.get("ETag", "")), iso_date(fields.get("LastModified", ""))
            objects.append(ObjectInfo(key, int(size), etag, modified, None, None, fields.get("StorageClass") or "STANDARD"))
        elif child.tag == "CommonPrefixes":
            common = decode(child.findtext("Prefix") or "")
            if not common or not common.startswith(prefix):
                raise MalformedError("a common prefix that was not asked for")
            prefixes.append(common)
        elif child.tag == "NextContinuationToken":
            token = child.text
        elif child.tag == "IsTruncated":
            truncated = (child.text or "").strip() == "true"
    if truncated and not token:
        raise MalformedError("a truncated listing without the token of its next page")
    return ListPage(objects, prefixes, token if truncated else None)


def uploads(body: bytes) -> tuple[list[Upload], dict[str, str] | None]:
    """A ListMultipartUploads answer, and the query of its next page."""
    root = parse(body)
    if root.tag != "ListMultipartUploadsResult":
        raise MalformedError(f"a {root.tag[:40]} in place of a listing")
    decode = unquote_plus if root.findtext("EncodingType") == "url" else str
    found = [
        Upload(decode(each.findtext("Key") or ""), each.findtext("UploadId") or "", iso_date(each.findtext("Initiated") or ""))
        for each in root.findall("Upload")
    ]
    if root.findtext("IsTruncated") != "true":
        return found, None
    marks = {"key-marker": root.findtext("NextKeyMarker") or "", "upload-id-marker": root.findtext("NextUploadIdMarker") or ""}
    if not marks["key-marker"]:
        raise MalformedError("a truncated listing without the marker of its next page")
    marks["key-marker"] = decode(marks["key-marker"])
    return found, marks


def complete_body(parts: Sequence[tuple[int, str]]) -> bytes:
    """The body of CompleteMultipartUpload."""
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag></Part>" for number, etag in parts
    )
    head = '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    return f"{head}{rows}</CompleteMultipartUpload>".encode()


def fits_xml(key: str) -> bool:
    """False for keys with characters that XML 1.0 has no way to write: they are deleted one by one."""
    return _NOT_XML.search(key) is None


def delete_body(keys: Iterable[str]) -> bytes:
    """The body of DeleteObjects, which answers errors only."""
    # A bare CR would be read as a line feed.
    rows = "".join(f"<Object><Key>{escape(key, {chr(13): '&#13;', chr(10): '&#10;'})}</Key></Object>" for key in keys)
    return f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>{rows}</Delete>'.encode()


def delete_errors(body: bytes) -> list[tuple[str, str, str]]:
    """Key, code and message of what a DeleteObjects could not delete."""
    root = parse(body)
    if root.tag != "DeleteResult":
        raise MalformedError(f"a {root.tag[:40]} in place of a DeleteResult")
    rows = root.findall("Error")
    return [(row.findtext("Key") or "", row.findtext("Code") or "", row.findtext("Message") or "") for row in rows]
