"""Fuzz: metadata that other programs wrote, the config file, options in fstab's form."""

from __future__ import annotations

import os
import stat
import tempfile

from hypothesis import example, given
from hypothesis import strategies as st

from sluicefs import config
from sluicefs.errors import InvalidMountConfigError
from sluicefs.fs import attributes
from sluicefs.fs.attributes import Defaults
from tests.fuzz import FUZZ

DEFAULTS = Defaults(uid=7, gid=8, file_mode=0o640, dir_mode=0o750)
NAMES = [
    "mode",
    "uid",
    "gid",
    "mtime",
    "ctime",
    "atime",
    "rdev",
    "xattr",
    "file-owner",
    "file-group",
    "file-permissions",
    "user-agent",
    "sluicefs-attributes",
    "file-mtime",
    "Mtime",
]
VALUES = [
    "999999",
    "nan",
    "inf",
    "-inf",
    "-1",
    "33261",
    "35309",
    "41471",
    "16877",
    "8630",
    "24996",
    "0o7777",
    "٣",
    "²",
    "1e400",
    "1_000",
    "9" * 5000,
    "-9223372036854775809",
    "99999999999.999999999999",
    "1.",
    ".5",
    "%7B%22a%22:%22AA==%22%7D",
    "%FF",
    "{}",
    "[]",
    "null",
    "%7B%22security.capability%22:%22AA==%22%7D",
    "[" * 3000,
    "%5B" * 3000,
    '{"a":1}',
    "4294967295",
    "-0",
    "0100755",
    "1677721599ns",
]
METADATA = st.dictionaries(st.sampled_from(NAMES), st.one_of(st.sampled_from(VALUES), st.text(max_size=20)))


@FUZZ
@given(
    METADATA, st.booleans(), st.integers(0, 2**62), st.floats(), st.sampled_from([None, "application/x-directory", "a/b", ""])
)
@example({"mode": "999999", "mtime": "nan"}, False, 3, 1.0, None)
@example({"xattr": "%5B" * 3000}, False, 3, 1.0, None)
@example({}, False, 3, float("nan"), None)
def test_any_metadata_gives_attributes(
    metadata: dict[str, str], is_dir: bool, size: int, modified: float, kind: str | None
) -> None:
    found, xattrs = attributes.decode(metadata, DEFAULTS, key_is_dir=is_dir, size=size, modified=modified, content_type=kind)
    assert stat.S_IFMT(found.mode) in attributes._TYPES and found.mode == stat.S_IFMT(found.mode) | stat.S_IMODE(found.mode)
    if not stat.S_ISDIR(found.mode):
        assert not found.mode & (stat.S_ISUID | stat.S_ISGID) and found.size == size
    assert b"security.capability" not in xattrs
    assert 0 <= found.uid < 2**32 - 1 and 0 <= found.gid < 2**32 - 1 and 0 <= found.rdev < 2**32
    assert all(-(2**63) <= time < 2**63 for time in (found.atime_ns, found.mtime_ns, found.ctime_ns))
    again, _ = attributes.decode(attributes.encode(found), DEFAULTS, key_is_dir=is_dir, size=size, modified=modified)
    assert (again.uid, again.gid, again.mtime_ns) == (found.uid, found.gid, found.mtime_ns)


WORDS = [
    "bucket",
    "prefix",
    "endpoint",
    "uid",
    "cache_size",
    "cache-size",
    "timeout",
    "file_mode",
    "region",
    "provider",
    "buckets",
    "memory",
    "attr_ttl",
    "log_file",
    "account_id",
    "part_size",
    "secret",
    " = ",
    "=",
    '"',
    "'",
    '"""',
    "\n",
    "[",
    "]",
    "[buckets.data]",
    "[[",
    "{",
    "}",
    ".",
    "1",
    "-1",
    "1e999",
    "nan",
    "inf",
    "0x10",
    "true",
    "9" * 400,
    "9" * 5000,
    '"http://h:99999"',
    '"http://[::1"',
    '"a\\u0000b"',
    "²",
    "2026-01-01",
    '"1' + "0" * 400 + 'T"',
    '"~nobody-here/x"',
    '"../x"',
    '"r2"',
    "[" * 3000,
    "ro",
    ",",
    "\0",
]
TEXT = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=20).map("".join)
# Of the form that gets past the TOML parser.
LINES = st.lists(
    st.tuples(
        st.sampled_from(sorted(config.OPTIONS)),
        st.one_of(
            st.sampled_from(
                ["nan", "inf", "-1", "9" * 400, "0.5", "true", "[]", "{}", "2026-01-01", '""', '"a\\u0000b"', '"²"', '"1e9"']
            ),
            st.sampled_from(
                ['"1' + "0" * 400 + 'T"', '"1' + "0" * 400 + 's"', '"' + "9" * 5000 + '"', '"http://h:99999/"', '"http://[x"']
            ),
            st.text(st.characters(min_codepoint=32, exclude_characters='"\\\x7f', exclude_categories=["Cs"]), max_size=9).map(
                lambda text: f'"{text}"'
            ),
        ),
    ),
    max_size=6,
    unique_by=lambda line: line[0],
).map(lambda lines: "".join(f"{name} = {value}\n" for name, value in lines))


@FUZZ
@given(st.one_of(TEXT, LINES, st.binary(max_size=60)))
@example("timeout = nan\n")
@example("attr_ttl = " + "9" * 400)
@example('memory = "1' + "0" * 400 + 'T"\n')
@example(f'uid = "{"9" * 5000}"\n')
@example("uid = " + "9" * 5000)
@example("a = " + "[" * 5000)
@example('cache_dir = "a\\u0000b"\n')
def test_any_config_file_is_a_config_or_a_sentence(text: str | bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
        file.flush()
        try:
            made = config.load("data", "/mnt/x", {"endpoint": "http://localhost:1"}, file=file.name, environment={})
        except InvalidMountConfigError as error:
            assert str(error).strip()
            return
    check(made)


@FUZZ
@given(
    st.one_of(
        TEXT, st.lists(st.tuples(st.sampled_from(sorted(config.OPTIONS)), TEXT)).map(lambda p: ",".join(map("=".join, p)))
    )
)
@example("memory=1" + "0" * 400 + "T")
@example("uid=" + "9" * 5000)
@example("timeout=" + "9" * 400 + "s")
def test_any_mount_options_are_flags_or_a_sentence(text: str) -> None:
    try:
        flags = config.parse_mount_options(text)
        made = config.load(
            "data", "/mnt/x", {"endpoint": "http://localhost:1"} | flags, environment={"SLUICEFS_CONFIG": os.devnull}
        )
    except InvalidMountConfigError as error:
        assert str(error).strip()
        return
    check(made)


def check(made: config.Config) -> None:
    """Every value is one that a mount can use."""
    assert 1 <= made.timeout <= 3600 and 0 <= made.attr_ttl <= 86400 and 0 <= made.stop_timeout <= 86400
    assert made.memory is not None and 64 << 20 <= made.memory < 2**63 and 5 << 20 <= made.part_size <= 4 << 30
    assert made.cache_size is None or 64 << 20 <= made.cache_size < 2**63
    assert not made.prefix.startswith("/") and ".." not in made.prefix.split("/") and "\0" not in made.prefix
    for path in (made.cache_dir, made.ca_bundle, made.log_file, made.region, made.endpoint):
        assert path is None or not any(ord(character) < 32 for character in path)
