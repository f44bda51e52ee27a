"""S3's rules on keys, metadata and sizes that every store checks before it asks anybody. No network, no state.

Non-ASCII metadata: header values are plain ASCII on the wire, because servers disagree about everything else (R2 may decode
RFC 2047). A value that is not printable ASCII, that has spaces at an end, or that could be taken for an encoded one is sent
as RFC 8187 has it, `UTF-8''caf%C3%A9`, and read back by the same rule; RFC 2047 words, which AWS answers for values that
other programs stored raw, are decoded too.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from email.errors import HeaderParseError
from email.header import decode_header
from urllib.parse import quote, unquote

from sluicefs.errors import StoreError, TooLargeError
from sluicefs.store.api import Buffer

MAX_KEY = 1024  # bytes of UTF-8
MAX_METADATA = 8192  # bytes of names and values together (R2; AWS: 2 KiB)
MAX_COPY = 5 * 1024**3  # bytes, CopyObject and UploadPartCopy
MAX_PARTS = 10_000
MIN_PART = 5 * 1024 * 1024  # bytes, all parts but the last
MAX_LIST = 1000  # entries of one page, keys of one DeleteObjects

_MARK = "UTF-8''"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_PLAIN = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?\Z")


def as_bytes_view(buffer: Buffer) -> memoryview:
    """A flat view of `buffer` in bytes."""
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def check_key(key: str) -> None:
    """Raises StoreError: EINVAL for an empty key, EILSEQ for one that is not UTF-8, TooLargeError beyond 1,024 bytes."""
    if not key:
        raise StoreError("an object's key must not be empty", code="InvalidArgument", errno=errno.EINVAL)
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError:
        raise StoreError(f"key {key!r} is not valid UTF-8", code="InvalidURI", errno=errno.EILSEQ) from None
    if size > MAX_KEY:
        message = f"key {key[:40]!r}... has {size} bytes, at most {MAX_KEY} are possible"
        raise TooLargeError(message, code="KeyTooLongError", errno=errno.ENAMETOOLONG)


def encode_value(value: str) -> str:
    """A metadata value as it is sent: printable ASCII."""
    if _PLAIN.match(value) and not value.startswith(("=?", _MARK)):
        return value
    return _MARK + quote(value, safe=" !#$&()*,/:;=?@[]_-.~", errors="surrogateescape").replace(" ", "%20")


def decode_value(value: str) -> str:
    """The metadata value that was meant: undoes `encode_value`, decodes RFC 2047 words, leaves the rest alone."""
    if value.startswith(_MARK):
        return unquote(value[len(_MARK) :], errors="surrogateescape")
    if value.startswith("=?") and value.endswith("?="):
        try:
            return "".join(
                part if isinstance(part, str) else part.decode(charset or "ascii") for part, charset in decode_header(value)
            )
        except (HeaderParseError, UnicodeDecodeError, LookupError, ValueError):
            return value
    return value


def encode_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """`metadata` as it is sent, names in lower case. Raises StoreError (EINVAL, a bad name), TooLargeError beyond the limit."""
    encoded: dict[str, str] = {}
    for name, value in (metadata or {}).items():
        if not _NAME.match(name):
            raise StoreError(f"metadata name {name!r} cannot be sent in a header", code="InvalidArgument", errno=errno.EINVAL)
        encoded[name.lower()] = encode_value(value)
    size = sum(len(name) + len(value) for name, value in encoded.items())
    if size > MAX_METADATA:
        message = f"metadata has {size} bytes, at most {MAX_METADATA} are possible"
        raise TooLargeError(message, code="MetadataTooLarge", errno=errno.ENOSPC)
    return encoded


def check_header(value: str | None) -> None:
    """Raises StoreError (EINVAL) for a header value that could end its line."""
    if value is not None and not (value.isascii() and value.isprintable()):
        raise StoreError(f"{value!r} cannot be sent in a header", code="InvalidArgument", errno=errno.EINVAL)
