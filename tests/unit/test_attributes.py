"""POSIX attributes in metadata: s3fs's form both ways, others' forms read, hostile ones harmless."""

from __future__ import annotations

import base64
import errno
import json
import stat
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluicefs.fs.attributes import (
    MAX_TIME_NS,
    MIN_TIME_NS,
    Attributes,
    Defaults,
    Xattrs,
    content_type,
    decode,
    encode,
    merge,
)

DEFAULTS = Defaults(uid=1000, gid=1001, file_mode=0o640, dir_mode=0o750)
MODIFIED = 1_700_000_000.0


def read(
    metadata: dict[str, str] | None,
    *,
    key_is_dir: bool = False,
    size: int = 5,
    content_type: str | None = None,
    allow_special: bool = False,
) -> Attributes:
    return decode(
        metadata,
        DEFAULTS,
        key_is_dir=key_is_dir,
        size=size,
        modified=MODIFIED,
        content_type=content_type,
        allow_special=allow_special,
    )[0]


TYPES = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
TIMES = st.integers(MIN_TIME_NS, MAX_TIME_NS)
IDS = st.integers(0, 2**32 - 2)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(lambda n: b"\0" not in n and n != b"security.capability"), st.binary(max_size=60)
)


@given(kind=TYPES, bits=st.integers(0, 0o7777), uid=IDS, gid=IDS, times=st.tuples(TIMES, TIMES, TIMES), rdev=IDS, xattrs=XATTRS)
def test_what_is_stored_is_read_back(
    kind: int, bits: int, uid: int, gid: int, times: tuple[int, int, int], rdev: int, xattrs: Xattrs
) -> None:
    size = 7 if kind in (stat.S_IFREG, stat.S_IFLNK) else 0
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    before = Attributes(kind | bits, uid, gid, size, *times, rdev=rdev if device else 0)
    stored = encode(before, xattrs)
    assert all(value.isascii() and value.isprintable() and not value.startswith("=?") for value in stored.values())
    arguments = {"key_is_dir": kind == stat.S_IFDIR, "size": size, "modified": MODIFIED}
    assert decode(stored, DEFAULTS, allow_special=True, **arguments) == (before, xattrs)  # type: ignore[arg-type]
    plain, _ = decode(stored, DEFAULTS, **arguments)  # type: ignore[arg-type]
    harmless = 0o7777 if kind == stat.S_IFDIR else 0o1777
    assert plain.mode == kind | (bits & harmless), "setuid and setgid of a file are dropped unless asked for"


NASTY = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")),
    st.sampled_from(
        ["999999", "nan", "1e400", "-1", "9" * 8192, "0x1ff", "٣", "1_0", " 420", "420\n", "[" * 8000, quote("[" * 4000)]
    ),
)
NAMES = ["mode", "uid", "gid", "mtime", "ctime", "atime", "xattr", "rdev"]
NAMES += ["file-permissions", "file-owner", "file-group", "file-mtime", "file-atime", "other"]


@given(
    metadata=st.dictionaries(st.sampled_from(NAMES), NASTY),
    key_is_dir=st.booleans(),
    size=st.integers(0, 2**43),
    modified=st.floats(),
    content_type=st.none() | st.text(max_size=20),
)
@example({"mode": "999999", "mtime": "nan"}, False, 1, float("nan"), None)
@example({"mode": "99" * 4000, "mtime": "1e400", "xattr": "%5B" * 4000}, False, 0, float("inf"), "application/x-directory")
def test_hostile_metadata_is_harmless(
    metadata: dict[str, str], key_is_dir: bool, size: int, modified: float, content_type: str | None
) -> None:
    attributes, xattrs = decode(
        metadata, DEFAULTS, key_is_dir=key_is_dir, size=size, modified=modified, content_type=content_type
    )
    kind = stat.S_IFMT(attributes.mode)
    assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    assert kind == stat.S_IFDIR or not attributes.mode & (stat.S_ISUID | stat.S_ISGID)
    assert (kind == stat.S_IFDIR) if key_is_dir else (size == 0 or kind in (stat.S_IFREG, stat.S_IFLNK))
    assert 0 <= attributes.uid < 2**32 - 1 and 0 <= attributes.gid < 2**32 - 1
    for time in (attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns):
        assert MIN_TIME_NS <= time <= MAX_TIME_NS
    assert b"security.capability" not in xattrs
    encode(attributes, xattrs)


@pytest.mark.parametrize("nonsense", ["999999", "-1", "nan", "", "0", "1e3", "4294967296", "rwx", "0o644"])
def test_a_mode_that_makes_no_sense_is_the_default(nonsense: str) -> None:
    assert read({"mode": nonsense}).mode == stat.S_IFREG | 0o640
    assert read({"mode": nonsense}, key_is_dir=True, size=0).mode == stat.S_IFDIR | 0o750


def test_a_bucket_written_by_s3fs_keeps_its_attributes() -> None:
    xattr = quote('{"user.note":"aGVsbG8="}', safe="")
    stored = {
        "mode": "33188",
        "uid": "33",
        "gid": "44",
        "mtime": "1700000001.000000042",
        "ctime": "1700000002.5",
        "xattr": xattr,
    }
    attributes, xattrs = decode(stored, DEFAULTS, key_is_dir=False, size=3, modified=MODIFIED)
    assert (attributes.mode, attributes.uid, attributes.gid, attributes.size) == (0o100644, 33, 44, 3)
    assert attributes.mtime_ns == attributes.atime_ns == 1_700_000_001_000_000_042
    assert attributes.ctime_ns == 1_700_000_002_500_000_000
    assert xattrs == {b"user.note": b"hello"}


def test_the_stored_form_is_the_one_s3fs_reads() -> None:
    attributes = Attributes(0o100600, 1, 2, 9, atime_ns=5, mtime_ns=1_500_000_000, ctime_ns=0)
    assert encode(attributes, {b"user.a": b"\xff"}) == {
        "mode": "33152",
        "uid": "1",
        "gid": "2",
        "mtime": "1.500000000",
        "ctime": "0.000000000",
        "atime": "0.000000005",
        "xattr": "%7B%22user.a%22%3A%22%2Fw%3D%3D%22%7D",
    }
    assert "rdev" in encode(Attributes(stat.S_IFCHR | 0o600, 0, 0, 0, 0, 0, 0, rdev=259))


def test_rclone_is_read() -> None:
    assert read({"mtime": "1354040105.123456789"}).mtime_ns == 1_354_040_105_123_456_789
    assert read({"mtime": "1354040105.5"}).mtime_ns == 1_354_040_105_500_000_000
    assert read({"mode": "100755"}).mode == 0o100755, "rclone --metadata writes octal"
    assert read({"mode": "40711"}, key_is_dir=True, size=0).mode == 0o040711


def test_the_aws_file_services_are_read_where_s3fs_said_nothing() -> None:
    stored = {"file-permissions": "0100604", "file-owner": "7", "file-group": "8", "file-mtime": "1595002920000000001ns"}
    attributes = read(stored)
    assert (attributes.mode, attributes.uid, attributes.gid) == (0o100604, 7, 8)
    assert attributes.mtime_ns == 1_595_002_920_000_000_001
    assert read({"file-mtime": "1595002920123"}).mtime_ns == 1_595_002_920_123_000_000
    assert read({**stored, "mode": "33152", "uid": "9"}).mode == 0o100600
    assert read({"file-permissions": "0644"}).mode == 0o100644


def test_an_object_without_attributes_has_the_defaults() -> None:
    for metadata in (None, {}, {"author": "someone"}):
        attributes = read(metadata)
        assert (attributes.mode, attributes.uid, attributes.gid) == (0o100640, 1000, 1001)
        assert attributes.mtime_ns == attributes.ctime_ns == 1_700_000_000 * 10**9


def test_a_mode_without_permissions_that_was_set_on_purpose_stays() -> None:
    assert read({"mode": str(stat.S_IFREG)}).mode == stat.S_IFREG


def test_types_never_hide_bytes() -> None:
    assert read({"mode": str(stat.S_IFDIR | 0o755)}, size=9).mode == 0o100755
    assert read({"mode": str(stat.S_IFIFO | 0o644)}, size=9).mode == 0o100644
    assert read({"mode": str(stat.S_IFLNK | 0o777)}, size=5000).mode == 0o100777
    assert read({"mode": str(stat.S_IFLNK | 0o777)}, size=0).mode == 0o100777
    assert read({"mode": str(stat.S_IFREG | 0o644)}, size=0, key_is_dir=True).mode == 0o040644


def test_an_empty_object_can_be_a_directory() -> None:
    assert read({"mode": str(stat.S_IFDIR | 0o700)}, size=0).mode == 0o040700
    assert read({}, size=0, content_type="application/x-directory; charset=UTF-8").mode == 0o040750
    assert read({}, size=0, content_type="text/plain").mode == 0o100640


def test_file_capabilities_are_a_privilege() -> None:
    stored = {"xattr": quote(json.dumps({"security.capability": base64.b64encode(b"x").decode()}))}
    assert decode(stored, DEFAULTS, key_is_dir=False, size=1, modified=0)[1] == {}
    assert decode(stored, DEFAULTS, key_is_dir=False, size=1, modified=0, allow_special=True)[1] == {
        b"security.capability": b"x"
    }


def test_one_bad_xattr_does_not_cost_the_others() -> None:
    stored = {"xattr": quote('{"user.ok":"YQ==","user.bad":"***","":"YQ==","user.n":3,"user.\\ud800":"YQ=="}')}
    assert decode(stored, DEFAULTS, key_is_dir=False, size=1, modified=0)[1] == {b"user.ok": b"a"}
    assert unquote(encode(read({}), {b"user.\xff": b""})["xattr"]) == '{"user.\\udcff":""}'


def test_merge_keeps_what_others_stored() -> None:
    original = {"author": "someone", "mode": "1", "xattr": "gone", "md5chksum": "abc", "file-owner": "4"}
    ours = encode(read({}))
    assert merge(original, ours) == {"author": "someone", "md5chksum": "abc", "file-owner": "4", **ours}
    assert "md5chksum" not in merge(original, ours, content_changed=True)
    assert "xattr" not in merge(original, ours)


def test_metadata_over_the_limit_is_enospc() -> None:
    assert merge({"a": "b" * 2047}, {}, limit=2048)
    with pytest.raises(OSError) as caught:
        merge({"a": "b" * 2048}, {}, limit=2048)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        merge({}, encode(read({}), {b"user.big": bytes(8192)}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text/plain"),
        ("a.JSON", "application/json"),
        ("a.csv", "text/csv"),
        ("a.html", "text/html"),
        ("a.png", "image/png"),
        ("a.parquet", "application/vnd.apache.parquet"),
        ("a.jsonl", "application/x-ndjson"),
        ("a.tar.gz", "application/gzip"),
        ("a.tar", "application/x-tar"),
        ("a.safetensors", "application/octet-stream"),
        ("README", "application/octet-stream"),
        (".html", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_the_content_type_follows_the_name(name: str, expected: str) -> None:
    assert content_type(name) == expected


@given(st.text(max_size=40))
def test_every_name_has_a_sendable_content_type(name: str) -> None:
    assert content_type(name).isascii() and "/" in content_type(name)
