"""The contract of multipart uploads."""

from __future__ import annotations

import hashlib

import pytest

from sluicefs.errors import ConditionFailedError, NotFoundError, StoreError
from sluicefs.store.api import Store

MIB = 1024 * 1024


def blob(size: int, seed: int) -> bytes:
    return (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]


def upload_three(store: Store, key: str) -> tuple[str, list[tuple[int, str]], bytes]:
    upload = store.create_upload(key)
    bodies = [blob(5 * MIB, 1), blob(5 * MIB, 2), blob(1000, 3)]
    parts = [(number, store.upload_part(key, upload, number, body)) for number, body in enumerate(bodies, 1)]
    return upload, parts, b"".join(bodies)


def test_parts_become_one_object(store: Store) -> None:
    upload, parts, body = upload_three(store, "m")
    with pytest.raises(NotFoundError):
        store.head("m")
    etag = store.complete_upload("m", upload, parts)
    info, got = store.get("m")
    assert (info.etag, info.size) == (etag, len(body))
    assert got == body
    assert store.list_uploads("") == []
    middle = bytearray(MIB)
    store.get_into("m", 5 * MIB - 1000, middle, etag=etag)
    assert middle == body[5 * MIB - 1000 : 6 * MIB - 1000]


def test_a_part_sent_again_replaces_the_first(store: Store) -> None:
    upload = store.create_upload("m")
    old = store.upload_part("m", upload, 1, b"old")
    new = store.upload_part("m", upload, 1, b"new")
    with pytest.raises(StoreError):
        store.complete_upload("m", upload, [(1, old)])
    store.complete_upload("m", upload, [(1, new)])
    assert bytes(store.get("m")[1]) == b"new"


def test_copied_parts(store: Store) -> None:
    source = blob(12 * MIB, 7)
    store.put("source", source)
    upload = store.create_upload("m")
    parts = [
        (1, store.copy_part("m", upload, 1, "source", 0, 5 * MIB)),
        (2, store.upload_part("m", upload, 2, blob(5 * MIB, 9))),
        (3, store.copy_part("m", upload, 3, "source", 10 * MIB, 2 * MIB)),
    ]
    store.complete_upload("m", upload, parts)
    assert store.get("m")[1] == source[: 5 * MIB] + blob(5 * MIB, 9) + source[10 * MIB :]


def test_copied_part_of_a_missing_source(store: Store) -> None:
    upload = store.create_upload("m")
    with pytest.raises(NotFoundError):
        store.copy_part("m", upload, 1, "no", 0, 10)
    store.abort_upload("m", upload)


def test_abort_drops_the_upload(store: Store) -> None:
    upload, parts, _ = upload_three(store, "m")
    store.abort_upload("m", upload)
    store.abort_upload("m", upload)
    assert store.list_uploads("") == []
    with pytest.raises(NotFoundError):
        store.complete_upload("m", upload, parts)
    with pytest.raises(NotFoundError):
        store.upload_part("m", upload, 1, b"x")
    with pytest.raises(NotFoundError):
        store.head("m")


def test_list_uploads_by_prefix(store: Store) -> None:
    made = {(key, store.create_upload(key)) for key in ("a/1", "a/2", "a/2", "b/1")}
    assert {(found.key, found.upload_id) for found in store.list_uploads("")} == made
    assert {found.key for found in store.list_uploads("a/")} == {"a/1", "a/2"}
    assert all(found.initiated > 1_600_000_000 for found in store.list_uploads(""))


def test_complete_if_none_match(store: Store) -> None:
    upload = store.create_upload("m")
    parts = [(1, store.upload_part("m", upload, 1, b"later"))]
    store.put("m", b"first")
    with pytest.raises(ConditionFailedError):
        store.complete_upload("m", upload, parts, if_none_match=True)
    assert bytes(store.get("m")[1]) == b"first"


def test_complete_if_match(store: Store) -> None:
    etag = store.put("m", b"first")
    upload = store.create_upload("m")
    parts = [(1, store.upload_part("m", upload, 1, b"later"))]
    store.complete_upload("m", upload, parts, if_match=etag)
    assert bytes(store.get("m")[1]) == b"later"
    upload = store.create_upload("m")
    parts = [(1, store.upload_part("m", upload, 1, b"too late"))]
    with pytest.raises(ConditionFailedError):
        store.complete_upload("m", upload, parts, if_match=etag)
    assert bytes(store.get("m")[1]) == b"later"


def test_a_part_that_is_not_there(store: Store) -> None:
    upload = store.create_upload("m")
    etag = store.upload_part("m", upload, 1, b"x")
    with pytest.raises(StoreError):
        store.complete_upload("m", upload, [(1, etag), (2, etag)])
    with pytest.raises(NotFoundError):
        store.head("m")


def test_parts_out_of_order_are_refused(store: Store) -> None:
    upload, parts, _ = upload_three(store, "m")
    with pytest.raises(StoreError):
        store.complete_upload("m", upload, [parts[1], parts[0]])


def test_small_parts_are_refused(store: Store) -> None:
    upload = store.create_upload("m")
    parts = [(number, store.upload_part("m", upload, number, bytes(1000))) for number in (1, 2)]
    with pytest.raises(StoreError):
        store.complete_upload("m", upload, parts)


def test_unequal_parts_are_refused(store: Store) -> None:
    upload = store.create_upload("m")
    sizes = (5 * MIB, 6 * MIB, 1000)
    parts = [(number, store.upload_part("m", upload, number, blob(size, number))) for number, size in enumerate(sizes, 1)]
    with pytest.raises(StoreError):
        store.complete_upload("m", upload, parts)


def test_a_last_part_larger_than_the_others_is_refused(store: Store) -> None:
    upload = store.create_upload("m")
    sizes = (5 * MIB, 5 * MIB + 1)
    parts = [(number, store.upload_part("m", upload, number, blob(size, number))) for number, size in enumerate(sizes, 1)]
    with pytest.raises(StoreError):
        store.complete_upload("m", upload, parts)
