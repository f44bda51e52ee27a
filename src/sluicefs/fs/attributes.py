"""POSIX attributes in object metadata: s3fs's form written, s3fs's, rclone's and the AWS file services' read.

Pure functions. Metadata is other people's input: `decode` must never raise on it, never grant a privilege nobody asked for,
and never hide the bytes of an object behind a file type that has none.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import math
import mimetypes
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from sluicefs.store.api import ObjectInfo

Xattrs = dict[bytes, bytes]

R2_METADATA_LIMIT = 8192  # bytes of names and values together
AWS_METADATA_LIMIT = 2048

DIRECTORY_TYPE = "application/x-directory"
DEFAULT_TYPE = "application/octet-stream"

# Times are kept as int64 nanoseconds by everything that packs them: the years 1677 to 2262.
MAX_TIME_NS = 2**63 - 1
MIN_TIME_NS = -(2**63)

_SECOND = 1_000_000_000
_MAX_ID = 2**32 - 2  # 2**32 - 1 is "no such user" to the kernel
_MAX_TARGET = 4095  # PATH_MAX less its NUL
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID  # of a file; setgid on a directory and the sticky bit give nobody a privilege
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_TYPES = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES))
_CAPABILITY = b"security.capability"  # as good as a setuid bit

_INTEGER = re.compile(r"[0-9]{1,20}\Z", re.ASCII)
_OCTAL = re.compile(r"[0-7]{1,7}\Z", re.ASCII)
_TIME = re.compile(r"(-?[0-9]{1,11})(?:\.([0-9]{0,40}))?\Z", re.ASCII)
_AWS_TIME = re.compile(r"(-?[0-9]{1,20})(ns)?\Z", re.ASCII)

_OURS = frozenset(("mode", "uid", "gid", "mtime", "ctime", "atime", "xattr", "rdev"))
# Digests of the content that other tools keep in metadata; they lie as soon as the content changes.
_DIGESTS = frozenset(("md5chksum", "s3cmd-attrs"))


@dataclass(frozen=True, slots=True)
class Defaults:
    """What an entry without attributes of its own gets. Modes are permission bits, the umask already taken away."""

    uid: int
    gid: int
    file_mode: int
    dir_mode: int


@dataclass(slots=True)
class Attributes:
    """What `stat` shows. `mode` is the full st_mode; size in bytes; times in nanoseconds since the epoch (int64)."""

    mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0


def encode(attributes: Attributes, xattrs: Mapping[bytes, bytes] | None = None) -> dict[str, str]:
    """The metadata that stores these attributes, names without `x-amz-meta-`, values plain ASCII. `size` is not stored."""
    metadata = {
        "mode": str(attributes.mode),
        "uid": str(attributes.uid),
        "gid": str(attributes.gid),
        "mtime": _format_time(attributes.mtime_ns),
        "ctime": _format_time(attributes.ctime_ns),
        "atime": _format_time(attributes.atime_ns),
    }
    if stat.S_IFMT(attributes.mode) in _DEVICES:
        metadata["rdev"] = str(attributes.rdev)
    if xattrs:
        metadata["xattr"] = _encode_xattrs(xattrs)
    return metadata


def decode(
    metadata: Mapping[str, str] | None,
    defaults: Defaults,
    *,
    key_is_dir: bool,
    size: int,
    modified: float,
    content_type: str | None = None,
    allow_special: bool = False,
) -> tuple[Attributes, Xattrs]:
    """The attributes of an object; whatever is absent or makes no sense comes from `defaults` and `modified` (seconds).

    `key_is_dir`: the key is a prefix or ends in "/". `allow_special` honours setuid and setgid of files and file capabilities.
    An empty object whose mode or content type says directory is one, whatever its key (`dir` and `dir/` are both in use).
    """
    found = metadata or {}
    mode, from_bucket = _decode_mode(found, key_is_dir, size, content_type)
    if not from_bucket:
        mode |= defaults.dir_mode if stat.S_ISDIR(mode) else defaults.file_mode
    elif not allow_special and not stat.S_ISDIR(mode):
        mode &= ~_PRIVILEGES
    modified_ns = _seconds_to_ns(modified)
    mtime = _first_time(found, "mtime", modified_ns)
    attributes = Attributes(
        mode=mode,
        uid=_decode_id(found, "uid", "file-owner", defaults.uid),
        gid=_decode_id(found, "gid", "file-group", defaults.gid),
        size=0 if stat.S_ISDIR(mode) else size,
        atime_ns=_first_time(found, "atime", mtime),
        mtime_ns=mtime,
        ctime_ns=_first_time(found, "ctime", modified_ns),
    )
    if stat.S_IFMT(mode) in _DEVICES:
        attributes.rdev = _decode_integer(found.get("rdev"), 2**32 - 1) or 0
    xattrs = _decode_xattrs(found.get("xattr"))
    if not allow_special:
        xattrs.pop(_CAPABILITY, None)
    return attributes, xattrs


def merge(
    original: Mapping[str, str] | None,
    ours: Mapping[str, str],
    *,
    content_changed: bool = False,
    limit: int = R2_METADATA_LIMIT,
) -> dict[str, str]:
    """`ours` over `original`: what other programs stored with the object stays, but for digests of content that changed.

    OSError ENOSPC when names and values together exceed `limit` bytes.
    """
    drop = _OURS | _DIGESTS if content_changed else _OURS
    merged = {name: value for name, value in (original or {}).items() if name not in drop}
    merged.update(ours)
    needed = sum(len((name + value).encode("utf-8", "replace")) for name, value in merged.items())
    if needed > limit:
        raise OSError(errno.ENOSPC, f"the attributes need {needed} bytes of object metadata, the store allows {limit}")
    return merged


def kind_of(info: ObjectInfo) -> int:
    """The type of file (S_IFMT of st_mode) that an object is by its own word, as far as it is known."""
    mode, _ = _decode_mode(info.metadata or {}, info.key.endswith("/"), info.size, info.content_type)
    return stat.S_IFMT(mode)


def says_directory(info: ObjectInfo) -> bool:
    """Whether an object is a directory by its own word, whatever its key."""
    return stat.S_ISDIR(kind_of(info))


def decode_xattrs(metadata: Mapping[str, str] | None) -> Xattrs:
    """The extended attributes in an object's metadata."""
    return _decode_xattrs((metadata or {}).get("xattr"))


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> str:
    """The value of the metadata `xattr`: URL-encoded JSON of base64."""
    return _encode_xattrs(xattrs)


def foreign_type(found: str | None, name: str) -> str | None:
    """The Content-Type to keep: None where there is none, or the one that belongs to the name anyway."""
    nobody_said = not found or found == "binary/octet-stream"
    return None if nobody_said or found == content_type(name) else found


# Written out, not read from the machine's mime.types: the same name gives the same type everywhere.
_MIME = mimetypes.MimeTypes(filenames=())
_MORE_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".arrow": "application/vnd.apache.arrow.file",
    ".feather": "application/vnd.apache.arrow.file",
    ".avro": "application/vnd.apache.avro",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".md": "text/markdown",
    ".log": "text/plain",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".woff2": "font/woff2",
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".sqlite": "application/vnd.sqlite3",
    ".ipynb": "application/x-ipynb+json",
    ".zst": "application/zstd",
    ".7z": "application/x-7z-compressed",
}
# The object is the compressed file itself, so the compression is its type and never a Content-Encoding.
_COMPRESSED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/octet-stream",
}


def content_type(name: str) -> str:
    """The Content-Type of a new file of this name, by its last extension."""
    dot = name.rfind(".")
    if dot < 1:
        return DEFAULT_TYPE
    extension = name[dot:].lower()
    if extension in _MORE_TYPES:
        return _MORE_TYPES[extension]
    if extension in _MIME.encodings_map:
        return _COMPRESSED.get(_MIME.encodings_map[extension], DEFAULT_TYPE)
    return _MIME.types_map[True].get(extension, DEFAULT_TYPE)


def _decode_mode(found: Mapping[str, str], key_is_dir: bool, size: int, content_type: str | None) -> tuple[int, bool]:
    """(st_mode, whether its permission bits come from the bucket)."""
    stored = _stored_mode(found)
    kind = stat.S_IFMT(stored or 0)
    bare_type = (content_type or "").partition(";")[0].strip().lower()
    if key_is_dir or (size == 0 and (kind == stat.S_IFDIR or (not kind and bare_type == DIRECTORY_TYPE))):
        kind = stat.S_IFDIR
    elif kind == stat.S_IFLNK:
        if not 0 < size <= _MAX_TARGET:
            kind = stat.S_IFREG
    elif size or not kind or kind == stat.S_IFDIR:
        kind = stat.S_IFREG  # bytes must stay readable, whatever the mode claims
    if stored is None:
        return kind, False
    return kind | stat.S_IMODE(stored), True


def _stored_mode(found: Mapping[str, str]) -> int | None:
    """The stored st_mode, its type 0 or a known one; None where there is none that makes sense."""
    text = found.get("mode")
    mode = _decode_integer(text, 0o177777)
    if mode is None or stat.S_IFMT(mode) not in _TYPES | {0}:
        # `rclone copy --metadata` writes octal; "100644" and "40755" are no modes in decimal, so nothing is ambiguous.
        mode = _decode_octal(text)
    if mode is None:
        mode = _decode_octal(found.get("file-permissions"))
    return mode or None  # "0" is what some tools write for "unknown"


def _decode_octal(text: str | None) -> int | None:
    if text is None or not _OCTAL.match(text):
        return None
    mode = int(text, 8)
    return mode if mode <= 0o177777 and stat.S_IFMT(mode) in _TYPES | {0} else None


def _decode_integer(text: str | None, highest: int) -> int | None:
    if text is None or not _INTEGER.match(text):
        return None
    value = int(text)
    return value if value <= highest else None


def _decode_id(found: Mapping[str, str], name: str, aws_name: str, default: int) -> int:
    for candidate in (name, aws_name):
        value = _decode_integer(found.get(candidate), _MAX_ID)
        if value is not None:
            return value
    return default


def _first_time(found: Mapping[str, str], name: str, default: int) -> int:
    value = _parse_time(found.get(name))
    if value is None:
        value = _parse_aws_time(found.get("file-" + name))
    return default if value is None else value


def _format_time(time_ns: int) -> str:
    seconds, rest = divmod(max(MIN_TIME_NS, min(MAX_TIME_NS, time_ns)), _SECOND)
    return f"{seconds}.{rest:09d}"


def _parse_time(text: str | None) -> int | None:
    """`sec.NNNNNNNNN` (the fraction counts upwards also before 1970, as in a timespec) or rclone's shorter fraction."""
    match = _TIME.match(text) if text is not None else None
    if match is None:
        return None
    fraction = (match[2] or "")[:9].ljust(9, "0")
    value = int(match[1]) * _SECOND + int(fraction)
    return value if MIN_TIME_NS <= value <= MAX_TIME_NS else None


def _parse_aws_time(text: str | None) -> int | None:
    """Nanoseconds with the suffix "ns", else milliseconds (FSx for Lustre user guide, "POSIX metadata")."""
    match = _AWS_TIME.match(text) if text is not None else None
    if match is None:
        return None
    value = int(match[1]) * (1 if match[2] else 1_000_000)
    return value if MIN_TIME_NS <= value <= MAX_TIME_NS else None


def _seconds_to_ns(seconds: float) -> int:
    if not math.isfinite(seconds) or abs(seconds) > MAX_TIME_NS // _SECOND:
        return 0
    # Through microseconds: Last-Modified has no finer part, and a float has no more digits.
    return round(seconds * 1_000_000) * 1000


def _encode_xattrs(xattrs: Mapping[bytes, bytes]) -> str:
    plain = {name.decode("utf-8", "surrogateescape"): base64.b64encode(value).decode("ascii") for name, value in xattrs.items()}
    return quote(json.dumps(plain, separators=(",", ":")), safe="")


def _decode_xattrs(text: str | None) -> Xattrs:
    if not text:
        return {}
    try:
        loaded = json.loads(unquote_to_bytes(text))
    except (ValueError, RecursionError):
        return {}
    xattrs: Xattrs = {}
    if isinstance(loaded, dict):
        for name, value in loaded.items():
            try:
                raw = name.encode("utf-8", "surrogateescape")
                if 0 < len(raw) <= 255 and b"\0" not in raw and isinstance(value, str):
                    xattrs[raw] = base64.b64decode(value, validate=True)
            except (UnicodeEncodeError, binascii.Error, ValueError):
                continue
    return xattrs
