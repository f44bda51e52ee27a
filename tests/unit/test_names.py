"""Names and keys: what may be a name, and what one listing shows of the keys in a bucket."""

from __future__ import annotations

import errno
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicefs.fs.names import (
    FOLDER_SUFFIX,
    Entry,
    Listing,
    conflict_name,
    decode_name,
    encode_name,
    join_key,
    split_listing,
    valid_name,
)
from sluicefs.store.api import ObjectInfo


def obj(key: str, size: int = 1) -> ObjectInfo:
    return ObjectInfo(key=key, size=size, etag="e", modified=0.0)


def delimiter_listing(keys: dict[str, int], prefix: str) -> tuple[list[ObjectInfo], list[str]]:
    """What ListObjectsV2 with delimiter "/" answers for these keys (key to size)."""
    objects, prefixes = [], set()
    for key in sorted(keys, key=str.encode):
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            if "/" in rest:
                prefixes.add(prefix + rest.partition("/")[0] + "/")
            else:
                objects.append(obj(key, keys[key]))
    return objects, sorted(prefixes, key=str.encode)


def kinds(listing: Listing) -> dict[str, str]:
    return {entry.name: "dir" if entry.is_dir else "file" for entry in listing.entries.values()}


def test_a_plain_listing() -> None:
    listing = split_listing("p/", [obj("p/", 0), obj("p/a"), obj("p/b")], ["p/c/"])
    assert kinds(listing) == {"a": "file", "b": "file", "c": "dir"}
    assert listing.marker is not None and listing.marker.key == "p/"
    assert listing.left_out.count == 0


def test_keys_that_cannot_be_names_are_left_out_and_counted() -> None:
    listing = split_listing(
        "", [obj("."), obj(".."), obj("n" * 256), obj("a\0b"), obj("ok")], ["/", "../", "./", "d/", "e" * 256 + "/"]
    )
    assert kinds(listing) == {"ok": "file", "d": "dir"}
    assert listing.left_out.count == 8
    assert len(listing.left_out.examples) == 8


def test_a_million_bad_keys_keep_a_few_examples_only() -> None:
    listing = split_listing("", (obj("..") for _ in range(1000)), [])
    assert listing.left_out.count == 1000 and len(listing.left_out.examples) == 8


@pytest.mark.parametrize("file_first", [True, False])
def test_a_directory_shadows_a_file_of_its_name_across_pages(file_first: bool) -> None:
    pages: list[tuple[list[ObjectInfo], list[str]]] = [([obj("x")], []), ([], ["x/"])]
    listing = Listing("")
    for objects, prefixes in pages if file_first else reversed(pages):
        listing.add(objects, prefixes)
    assert listing.entries == {"x": Entry("x", True, None)}
    assert listing.left_out.examples == [("x", "a directory has the same name")]


@pytest.mark.parametrize("file_first", [True, False])
def test_an_empty_object_beside_the_prefix_is_its_marker(file_first: bool) -> None:
    pages: list[tuple[list[ObjectInfo], list[str]]] = [([obj("x", 0)], []), ([], ["x/"])]
    listing = Listing("")
    for objects, prefixes in pages if file_first else reversed(pages):
        listing.add(objects, prefixes)
    assert listing.entries == {"x": Entry("x", True, obj("x", 0))}
    assert listing.left_out.count == 0


def test_hadoop_markers_are_directories_unless_they_hold_bytes() -> None:
    listing = split_listing("", [obj("d" + FOLDER_SUFFIX, 0), obj("f" + FOLDER_SUFFIX, 3)], [])
    assert kinds(listing) == {"d": "dir", "f" + FOLDER_SUFFIX: "file"}
    info = listing.entries["d"].info
    assert info is not None and info.key == "d" + FOLDER_SUFFIX


def test_a_hadoop_marker_gives_way_to_a_real_file() -> None:
    for objects in itertools.permutations([obj("d" + FOLDER_SUFFIX, 0), obj("d", 5)]):
        listing = split_listing("", objects, [])
        assert kinds(listing) == {"d": "file"}
    assert split_listing("", [obj(FOLDER_SUFFIX, 0)], []).left_out.count == 1


def test_a_store_that_does_not_roll_up() -> None:
    listing = split_listing("", [obj("a/", 0), obj("b/c")], [])
    assert listing.entries == {"a": Entry("a", True, obj("a/", 0)), "b": Entry("b", True, None)}


PIECES = st.sampled_from(["x", "y", "x!", "é", "..", ".", "", "n" * 256, "d" + FOLDER_SUFFIX, "d", "\x01", "e\u0301"])
KEYS = st.lists(PIECES, min_size=1, max_size=4).map("/".join)


@given(keys=st.dictionaries(KEYS, st.integers(0, 2), max_size=12), seed=st.integers(0, 1000), nfc=st.booleans())
def test_any_bucket_gives_a_listing_the_kernel_can_take(keys: dict[str, int], seed: int, nfc: bool) -> None:
    objects, prefixes = delimiter_listing(keys, "")
    whole = split_listing("", objects, prefixes, nfc=nfc)
    for name, entry in whole.entries.items():
        assert name == entry.name and valid_name(encode_name(name), nfc=nfc)
    # Every key is shown, is part of a directory, marks one, or is counted.
    for info in objects:
        name = info.key.removesuffix(FOLDER_SUFFIX) if info.size == 0 else info.key
        assert info.key == "" or name in whole.entries or info.key in whole.entries or whole.left_out.count
    for prefix in prefixes:
        name = prefix[:-1]
        assert not valid_name(name, nfc=nfc) or whole.entries[name].is_dir
    # The order and the cutting into pages do not matter.
    items: list[ObjectInfo | str] = [*objects, *prefixes]
    random.Random(seed).shuffle(items)
    paged = Listing("", nfc=nfc)
    for item in items:
        paged.add([item] if isinstance(item, ObjectInfo) else [], [item] if isinstance(item, str) else [])
    assert kinds(paged) == kinds(whole)
    assert paged.left_out.count == whole.left_out.count


@given(st.binary(max_size=300))
def test_a_name_from_the_kernel_is_a_key_part_or_an_errno(raw: bytes) -> None:
    try:
        name = decode_name(raw)
    except OSError as error:
        assert error.errno in (errno.EILSEQ, errno.ENAMETOOLONG, errno.EINVAL)
    else:
        assert encode_name(name) == raw and valid_name(raw, nfc=True)
        assert kinds(split_listing("p/", [obj("p/" + name)], [])) == {name: "file"}


@given(st.text(max_size=300))
def test_valid_names_agree_in_both_forms(name: str) -> None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        assert not valid_name(name)
    else:
        assert valid_name(name) == valid_name(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xff", errno.EILSEQ),
        ("e\u0301".encode(), errno.EILSEQ),
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"a_$folder$", errno.EINVAL),
        (b"n" * 256, errno.ENAMETOOLONG),
    ],
)
def test_names_that_cannot_be_keys_have_a_clear_errno(raw: bytes, expected: int) -> None:
    with pytest.raises(OSError) as caught:
        decode_name(raw)
    assert caught.value.errno == expected


def test_a_name_that_is_not_nfc_is_fine_where_the_store_keeps_bytes() -> None:
    assert decode_name("e\u0301".encode(), nfc=False) == "e\u0301"


def test_keys_have_1024_bytes() -> None:
    prefix = "é" * 255 + "/" + "é" * 255 + "/"  # 1,022 bytes
    assert join_key(prefix, "ab") == prefix + "ab"
    for name, directory in (("abc", False), ("ab", True)):
        with pytest.raises(OSError) as caught:
            join_key(prefix, name, directory=directory)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_no_two_conflicts_have_one_name() -> None:
    found = [conflict_name("x") for _ in range(1000)]
    assert len(set(found)) == 1000 and sorted(found) == found
    assert len(conflict_name("é" * 127).encode()) <= 255
