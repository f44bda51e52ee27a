"""The contract of single objects: put, head, get, ranges, conditions, copies, deletions, metadata, keys."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable

import pytest

from sluicefs.errors import CancelledError, ConditionFailedError, NotFoundError, StoreError, TooLargeError
from sluicefs.store.api import ObjectInfo, Store
from tests.contract.keys import ODD_KEYS


def refused(kind: type[StoreError], call: Callable[[], object]) -> StoreError:
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def test_put_then_head_then_get(store: Store) -> None:
    before = time.time()
    etag = store.put("dir/a.txt", b"hello", metadata={"mode": "33188"}, content_type="text/plain")
    assert etag == hashlib.md5(b"hello").hexdigest()
    info = store.head("dir/a.txt")
    assert (info.key, info.size, info.etag) == ("dir/a.txt", 5, etag)
    assert info.content_type == "text/plain"
    assert dict(info.metadata or {})["mode"] == "33188"
    assert before - 5 < info.modified < time.time() + 5
    assert info.modified == int(info.modified)
    got, body = store.get("dir/a.txt")
    assert (got, bytes(body)) == (info, b"hello")


def test_a_directory_marker_keeps_its_metadata(store: Store) -> None:
    assert not store.list("").objects
    told = {"mode": "16877", "user.note": "caf\u00e9 & 100 % \"=\" ;", "empty": ""}
    for number in ("1", "2"):
        etag = store.put("dir/", b"", metadata={**told, "number": number}, content_type="application/x-directory")
        info = store.head("dir/")
        assert (info.size, info.etag, info.content_type) == (0, etag, "application/x-directory")
        assert dict(info.metadata or {}) == {**told, "number": number}
    assert store.get("dir/")[0].metadata == info.metadata
    store.put("dir/", b"", content_type="application/x-directory")
    assert not store.head("dir/").metadata


def test_a_directory_marker_can_be_copied(store: Store) -> None:
    etag = store.put("dir/", b"", metadata={"mode": "16877"}, content_type="application/x-directory")
    assert store.copy("dir/", "other/", if_source_match=etag) == etag
    assert dict(store.head("other/").metadata or {}) == {"mode": "16877"}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_put_takes_any_buffer(store: Store, kind: Callable[[bytes], object]) -> None:
    store.put("x", kind(b"12345"))
    assert bytes(store.get("x")[1]) == b"12345"


def test_empty_object(store: Store) -> None:
    etag = store.put("empty", b"")
    assert store.head("empty").size == 0
    assert bytes(store.get("empty")[1]) == b""
    assert bytes(store.get("empty", limit=10)[1]) == b""
    assert store.get_into("empty", 0, bytearray(), etag=etag).size == 0


def test_missing_object_is_not_found(store: Store) -> None:
    for call in (lambda: store.head("no"), lambda: store.get("no"), lambda: store.get_into("no", 0, bytearray(1))):
        error = refused(NotFoundError, call)
        assert error.errno == errno.ENOENT
        assert "'no'" in str(error)
    refused(NotFoundError, lambda: store.copy("no", "x"))
    store.delete("no")


def test_ranges(store: Store) -> None:
    body = bytes(range(256)) * 4096
    etag = store.put("r", body)
    for offset, length in ((0, 1), (0, len(body)), (1, 7), (len(body) - 3, 3), (70_000, 900_000)):
        buffer = bytearray(length)
        info = store.get_into("r", offset, buffer, etag=etag)
        assert buffer == body[offset : offset + length]
        assert (info.size, info.etag) == (len(body), etag)
    assert bytes(store.get("r", limit=10)[1]) == body[:10]
    assert store.get("r", limit=10)[0].size == len(body)
    assert bytes(store.get("r", limit=len(body) * 2)[1]) == body


@pytest.mark.parametrize("offset,length", [(100, 1), (99, 2), (0, 101), (5000, 10)])
def test_range_beyond_the_end_is_einval(store: Store, offset: int, length: int) -> None:
    store.put("r", bytes(100))
    assert refused(StoreError, lambda: store.get_into("r", offset, bytearray(length))).errno == errno.EINVAL


def test_progress_grows_to_the_whole(store: Store) -> None:
    body = bytes(range(251)) * 10_000
    store.put("p", body)
    buffer, seen = bytearray(len(body)), []

    def progress(count: int) -> None:
        assert buffer[:count] == body[:count]
        seen.append(count)

    store.get_into("p", 0, buffer, progress=progress)
    assert seen == sorted(seen)
    assert seen[-1] == len(body)
    assert len(seen) >= 4


@pytest.mark.parametrize("size", [1, 1000, 200_000])
def test_the_start_of_an_unknown_version(store: Store, size: int) -> None:
    body = (bytes(range(251)) * 1000)[:size]
    etag = store.put("s.bin", body, metadata={"mode": "33188"}, content_type="text/x-odd")
    wanted = bytearray(min(size, 4096))
    seen: list[ObjectInfo] = []
    landed: list[int] = []

    def begin(info: ObjectInfo) -> bytearray:
        assert not landed
        seen.append(info)
        return wanted

    info = store.get_start("s.bin", 4096, begin, progress=landed.append)
    assert seen == [info] and wanted == body[:4096] and landed[-1] == len(wanted)
    assert (info.key, info.size, info.etag, info.content_type) == ("s.bin", size, etag, "text/x-odd")
    assert info.metadata == {"mode": "33188"} and info.modified == store.head("s.bin").modified


def test_a_start_that_nobody_wants_is_dropped(store: Store) -> None:
    store.put("s.bin", bytes(200_000))
    assert store.get_start("s.bin", 100_000, lambda info: None).size == 200_000
    assert store.counters.bytes_down == 0
    refused(CancelledError, lambda: store.get_start("s.bin", 100_000, lambda i: bytearray(100_000), cancelled=lambda: True))
    assert store.head("s.bin").size == 200_000


def test_a_start_of_nothing(store: Store) -> None:
    refused(NotFoundError, lambda: store.get_start("no", 4096, lambda info: None))
    store.put("empty", b"")
    assert refused(StoreError, lambda: store.get_start("empty", 4096, lambda info: None)).status == 416


def test_cancelled_read_ends(store: Store) -> None:
    store.put("c", bytes(4 * 1024 * 1024))
    error = refused(CancelledError, lambda: store.get_into("c", 0, bytearray(4 * 1024 * 1024), cancelled=lambda: True))
    assert error.errno == errno.EINTR
    assert store.head("c").size == 4 * 1024 * 1024


def test_get_if_match(store: Store) -> None:
    old = store.put("v", b"one")
    new = store.put("v", b"two")
    assert refused(ConditionFailedError, lambda: store.get_into("v", 0, bytearray(3), etag=old)).errno == errno.ESTALE
    refused(ConditionFailedError, lambda: store.get("v", etag=old))
    assert bytes(store.get("v", etag=new)[1]) == b"two"
    store.delete("v")
    refused(NotFoundError, lambda: store.get_into("v", 0, bytearray(3), etag=new))


def test_put_if_none_match(store: Store) -> None:
    store.put("n", b"first", if_none_match=True)
    refused(ConditionFailedError, lambda: store.put("n", b"second", if_none_match=True))
    assert bytes(store.get("n")[1]) == b"first"


def test_put_if_match(store: Store) -> None:
    first = store.put("m", b"first")
    second = store.put("m", b"second", if_match=first)
    refused(ConditionFailedError, lambda: store.put("m", b"third", if_match=first))
    assert store.head("m").etag == second


def test_put_if_match_on_a_deleted_key(store: Store) -> None:
    etag = store.put("m", b"first")
    store.delete("m")
    refused(ConditionFailedError, lambda: store.put("m", b"x", if_match=etag))
    refused(NotFoundError, lambda: store.head("m"))


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: ascii(key)[1:-1][:30])
def test_odd_keys(store: Store, key: str) -> None:
    store.put(key, b"1")
    assert store.head(key).key == key
    assert bytes(store.get(key)[1]) == b"1"
    assert [info.key for info in store.list("").objects] == [key]
    store.copy(key, "plain")
    assert bytes(store.get("plain")[1]) == b"1"
    upload = store.create_upload(key)
    store.complete_upload(key, upload, [(1, store.upload_part(key, upload, 1, b"22"))])
    assert bytes(store.get(key)[1]) == b"22"
    assert store.delete_many([key, "plain"]) == []
    assert store.list("").objects == []


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: ascii(key)[1:-1][:30])
def test_uploads_of_odd_keys(store: Store, key: str) -> None:
    upload = store.create_upload(key)
    assert [(found.key, found.upload_id) for found in store.list_uploads("")] == [(key, upload)]
    store.abort_upload(key, upload)
    assert store.list_uploads("") == []


def test_impossible_keys(store: Store) -> None:
    assert refused(StoreError, lambda: store.put("", b"")).errno == errno.EINVAL
    assert refused(TooLargeError, lambda: store.put("é" * 513, b"")).errno == errno.ENAMETOOLONG
    assert refused(StoreError, lambda: store.put("\udc80", b"")).errno == errno.EILSEQ


METADATA = {
    "Mode": "33188",
    "mtime": "1795474106.000000001",
    "accent": "café",
    "cjk": "日本",
    "percent": "a%20b",
    "rfc2047": "=?UTF-8?Q?x?=",
    "marked": "UTF-8''x",
    "spaces": " both ",
    "lines": "a\r\nx-amz-meta-evil: 1",
    "quotes": "a\"b'c\\d;e,f",
}


def test_metadata_survives(store: Store) -> None:
    store.put("x", b"", metadata=METADATA)
    expected = {name.lower(): value for name, value in METADATA.items()}
    assert dict(store.head("x").metadata or {}) == expected
    store.copy("x", "y")
    assert dict(store.head("y").metadata or {}) == expected
    part = bytes(1000)
    upload = store.create_upload("z", metadata=METADATA, content_type="image/png")
    store.complete_upload("z", upload, [(1, store.upload_part("z", upload, 1, part))])
    info = store.head("z")
    assert (dict(info.metadata or {}), info.content_type) == (expected, "image/png")


def test_metadata_limits(store: Store) -> None:
    assert refused(TooLargeError, lambda: store.put("x", b"", metadata={"a": "b" * 8192})).errno == errno.ENOSPC
    assert refused(StoreError, lambda: store.put("x", b"", metadata={"a b": "c"})).errno == errno.EINVAL
    assert refused(StoreError, lambda: store.put("x", b"", content_type="a\r\nb: c")).errno == errno.EINVAL


def test_copy(store: Store) -> None:
    etag = store.put("s", b"data", metadata={"a": "1"}, content_type="text/css")
    assert store.copy("s", "t") == store.head("t").etag
    info, body = store.get("t")
    assert (bytes(body), dict(info.metadata or {}), info.content_type) == (b"data", {"a": "1"}, "text/css")
    store.copy("s", "t", metadata={"b": "2"}, content_type="text/html", if_source_match=etag)
    info = store.head("t")
    assert (dict(info.metadata or {}), info.content_type) == ({"b": "2"}, "text/html")
    store.copy("s", "s", metadata={"c": "3"})
    assert dict(store.head("s").metadata or {}) == {"c": "3"}


def test_copy_of_another_version_is_refused(store: Store) -> None:
    old = store.put("s", b"one")
    store.put("s", b"two")
    refused(ConditionFailedError, lambda: store.copy("s", "t", if_source_match=old))
    refused(NotFoundError, lambda: store.head("t"))


def test_copy_to_itself_without_a_change_is_refused(store: Store) -> None:
    store.put("s", b"one")
    assert refused(StoreError, lambda: store.copy("s", "s")).status == 400


def test_delete_many(store: Store) -> None:
    keys = [f"d/{number:04d}" for number in range(1203)]
    for key in keys[::10]:
        store.put(key, b"")
    store.put("kept", b"")
    assert store.delete_many(iter(keys)) == []
    assert [info.key for info in store.list("").objects] == ["kept"]
    assert store.counters.requests["DeleteObjects"] == 2


def test_counters(store: Store) -> None:
    store.put("a", b"12345")
    store.head("a")
    store.get("a")
    store.get_into("a", 1, bytearray(2))
    store.list("")
    store.copy("a", "b")
    upload = store.create_upload("m")
    parts = [(1, store.upload_part("m", upload, 1, b"123")), (2, store.copy_part("m", upload, 2, "a", 0, 2))]
    store.list_uploads("")
    store.abort_upload("m", upload)
    assert [number for number, _ in parts] == [1, 2]
    store.delete("a")
    store.delete_many(["b"])
    upload = store.create_upload("n")
    store.complete_upload("n", upload, [(1, store.upload_part("n", upload, 1, b"1234"))])
    expected = {
        "PutObject": 1,
        "HeadObject": 1,
        "GetObject": 2,
        "ListObjectsV2": 1,
        "CopyObject": 1,
        "CreateMultipartUpload": 2,
        "UploadPart": 2,
        "UploadPartCopy": 1,
        "ListMultipartUploads": 1,
        "AbortMultipartUpload": 1,
        "DeleteObject": 1,
        "DeleteObjects": 1,
        "CompleteMultipartUpload": 1,
    }
    assert store.counters.requests == expected
    assert (store.counters.bytes_up, store.counters.bytes_down, store.counters.retries) == (5 + 3 + 4, 5 + 2, 0)
