"""The S3 store behind the fault proxy: right bytes or a clear errno within the bound, never wrong data."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sluicefs.devserver import DevServer
from sluicefs.errors import ConditionFailedError, NotFoundError
from sluicefs.store.s3 import S3Store
from tests.conftest import Bucket, new_bucket
from tests.faults.proxy import FaultProxy
from tests.faults.rules import Rule, chaos

MiB = 1024 * 1024
DATA = random.Random(1).randbytes(2 * MiB + 77)
PART = random.Random(2).randbytes(5 * MiB)
TIMEOUT = 2.0  # seconds the store is given
BOUND = 4 * TIMEOUT + 2  # seconds within which every call must end; copies are given four times the timeout


@pytest.fixture
def bucket(ministack: DevServer) -> Iterator[Bucket]:
    yield from new_bucket(ministack)


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[FaultProxy]:
    with FaultProxy(bucket.server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(bucket: Bucket, proxy: FaultProxy) -> Iterator[S3Store]:
    """Reaches the bucket through `proxy`; the object `k` is there."""
    store = bucket.store(endpoint=proxy.url, timeout=TIMEOUT)
    store.put("k", bytearray(DATA), metadata={"mode": "33188"})
    yield store
    proxy.clear()
    store.close()


@pytest.fixture
def impatient(store: S3Store, bucket: Bucket, proxy: FaultProxy) -> Iterator[S3Store]:
    """Gives up after a second."""
    impatient = bucket.store(endpoint=proxy.url, timeout=1.0)
    yield impatient
    impatient.close()


def read(store: S3Store) -> None:
    buffer = bytearray(MiB)
    store.get_into("k", 1000, buffer)
    assert buffer == DATA[1000 : 1000 + MiB]


def get(store: S3Store) -> None:
    assert store.get("k")[1] == DATA


def head(store: S3Store) -> None:
    info = store.head("k")
    assert (info.size, dict(info.metadata or {})) == (len(DATA), {"mode": "33188"})


def put(store: S3Store) -> None:
    etag = store.put("new", bytearray(DATA))
    assert store.get("new", etag=etag)[1] == DATA


def put_if_absent(store: S3Store) -> None:
    etag = store.put("once", bytearray(DATA), if_none_match=True)
    assert store.head("once").etag == etag
    with pytest.raises(ConditionFailedError):
        store.put("once", b"x", if_none_match=True)


def replace(store: S3Store) -> None:
    etag = store.put("k2", b"one")
    assert store.get("k2", etag=store.put("k2", b"two", if_match=etag))[1] == b"two"


def copy(store: S3Store) -> None:
    store.copy("k", "copy", metadata={"a": "b"}, content_type="text/plain")
    assert store.get("copy")[1] == DATA


def listing(store: S3Store) -> None:
    page = store.list("", delimiter="/")
    assert ([info.key for info in page.objects], page.prefixes, page.token) == (["k"], [], None)


def multipart(store: S3Store) -> None:
    upload = store.create_upload("big")
    parts = [(1, store.upload_part("big", upload, 1, bytearray(PART))), (2, store.copy_part("big", upload, 2, "k", 7, MiB))]
    store.complete_upload("big", upload, parts)
    assert store.get("big")[1] == PART + DATA[7 : 7 + MiB]
    assert store.list_uploads("") == []


def abort(store: S3Store) -> None:
    upload = store.create_upload("never")
    store.abort_upload("never", upload)
    assert store.list_uploads("never") == []


def delete(store: S3Store) -> None:
    store.delete("k")
    with pytest.raises(NotFoundError):
        store.head("k")


def delete_many(store: S3Store) -> None:
    assert store.delete_many(["k", "absent"]) == []
    with pytest.raises(NotFoundError):
        store.head("k")


ACTIONS: list[Callable[[S3Store], None]] = [read, get, head, put, put_if_absent, replace, copy, listing, multipart, abort]
ACTIONS += [delete, delete_many]
PASSING = ["500", "503", "429:retry_after=1", "403", "reset-before", "reset-request", "reset-after", "status-after"]
PASSING += ["reset-response", "short", "refuse:seconds=0.3", "garbage-http"]


LOST_ANSWERS = ["reset-after", "status-after", "reset-response", "short"]
VERBS = {"GetObject", "HeadObject", "PutObject", "CopyObject", "ListObjectsV2", "CreateMultipartUpload", "UploadPart"}
VERBS |= {"UploadPartCopy", "CompleteMultipartUpload", "AbortMultipartUpload", "DeleteObject", "DeleteObjects"}


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_changes_nothing(
    store: S3Store, proxy: FaultProxy, action: Callable[[S3Store], None], fault: str
) -> None:
    # Each verb the action uses meets the fault once; see below for the one that is left out.
    verbs = VERBS - {"CreateMultipartUpload"} if fault in LOST_ANSWERS else VERBS
    separator = "," if ":" in fault else ":"
    proxy.add(*(f"{fault}{separator}verb={verb},times=1" for verb in sorted(verbs)))
    action(store)
    assert proxy.faults.total() > 0 or (action is abort and fault == "reset-response")


def test_an_upload_whose_creation_was_not_answered_is_all_that_is_left(store: S3Store, proxy: FaultProxy) -> None:
    proxy.add("reset-after:verb=CreateMultipartUpload,times=1")
    upload = store.create_upload("big")
    store.abort_upload("big", upload)
    assert len(store.list_uploads("")) == 1, "nobody was told its id: only a later look at the bucket can find it"


LASTING = [
    ("503", errno.EIO),
    ("429", errno.EIO),
    ("403", errno.EACCES),
    ("denied", errno.EACCES),
    ("reset-before", errno.EIO),
    ("refuse:seconds=60", errno.EIO),
    ("no-answer:seconds=60", errno.ETIMEDOUT),
    ("garbage-http", errno.EIO),
]


@pytest.mark.parametrize("action", [read, head, put, copy, listing], ids=lambda action: action.__name__)
@pytest.mark.parametrize(("fault", "expected"), LASTING)
def test_a_lasting_fault_is_an_errno_within_the_bound(
    impatient: S3Store, proxy: FaultProxy, action: Callable[[S3Store], None], fault: str, expected: int
) -> None:
    proxy.add(fault)
    begin = time.monotonic()
    with pytest.raises(OSError) as caught:
        action(impatient)
    assert caught.value.errno == expected, caught.value
    assert time.monotonic() - begin < BOUND


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("short:after=0", {errno.EIO}),
        ("stall:after=0,seconds=60", {errno.ETIMEDOUT}),
        ("reset-response:after=0", {errno.EIO}),
    ],
)
@pytest.mark.parametrize("action", [read, get], ids=lambda action: action.__name__)
def test_a_body_that_never_comes_is_no_data(
    store: S3Store, proxy: FaultProxy, action: Callable[[S3Store], None], fault: str, expected: set[int]
) -> None:
    proxy.add(f"{fault},verb=GetObject" if ":" in fault else f"{fault}:verb=GetObject")
    begin = time.monotonic()
    with pytest.raises(OSError) as caught:
        action(store)
    assert caught.value.errno in expected, caught.value
    assert time.monotonic() - begin < BOUND


@pytest.mark.parametrize("fault", ["garbage", "error-in-200"])
@pytest.mark.parametrize("action", [read, get], ids=["read", "get"])
def test_an_error_in_a_200_never_becomes_data(
    store: S3Store, proxy: FaultProxy, action: Callable[[S3Store], None], fault: str
) -> None:
    proxy.add(f"{fault}:verb=GetObject")
    with pytest.raises(OSError) as caught:
        action(store)
    assert caught.value.errno == errno.EIO


def test_after_an_outage_the_same_store_works_again(store: S3Store, proxy: FaultProxy) -> None:
    proxy.refuse(TIMEOUT + 1)
    with pytest.raises(OSError) as caught:
        store.head("k")
    assert caught.value.errno == errno.EIO, "unreachable is never ENOENT"
    time.sleep(2)
    get(store)


def test_a_short_outage_is_not_noticed(store: S3Store, proxy: FaultProxy) -> None:
    proxy.refuse(TIMEOUT / 5)
    get(store)


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_under_chaos_leave_what_was_asked_for(bucket: Bucket, seed: int) -> None:
    rules = [*chaos(0.15), Rule("reset-after", probability=0.02), Rule("status-after", status=500, probability=0.02)]
    with FaultProxy(bucket.server.endpoint, rules=rules, seed=seed) as proxy:
        store = bucket.store(endpoint=proxy.url, timeout=20)
        failures: list[str] = []

        def client(number: int) -> None:
            try:
                play(store, f"{number}/", random.Random(f"{seed}/{number}"))
            except Exception as error:
                failures.append(f"client {number}: {error!r}")

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()
        assert failures == []
        assert proxy.faults.total() > 20


def play(store: S3Store, prefix: str, draw: random.Random) -> None:
    """80 random requests on keys of its own, checked against a dict."""
    model: dict[str, tuple[str, bytes]] = {}
    for _ in range(80):
        key = prefix + draw.choice("abcde")
        verb = draw.choice(("put", "put", "conditional", "read", "read", "copy", "delete", "list", "multipart"))
        body = draw.randbytes(draw.choice((0, 10, 5000, 300_000)))
        if verb == "put":
            model[key] = store.put(key, bytearray(body)), body
        elif verb == "conditional":
            if key in model:
                model[key] = store.put(key, bytearray(body), if_match=model[key][0]), body
            else:
                model[key] = store.put(key, bytearray(body), if_none_match=True), body
        elif verb == "read" and key in model:
            etag, expected = model[key]
            offset = draw.randrange(len(expected) + 1)
            buffer = bytearray(len(expected) - offset)
            if buffer:
                store.get_into(key, offset, buffer, etag=etag)
            assert buffer == expected[offset:], f"wrong bytes of {key}"
        elif verb == "read":
            with pytest.raises(NotFoundError):
                store.head(key)
        elif verb == "copy" and key in model:
            model[prefix + "copy"] = store.copy(key, prefix + "copy"), model[key][1]
        elif verb == "delete":
            store.delete(key)
            model.pop(key, None)
        elif verb == "multipart" and draw.random() < 0.3:
            upload = store.create_upload(key)
            parts = [
                (number, store.upload_part(key, upload, number, bytearray(piece))) for number, piece in ((1, PART), (2, body))
            ]
            model[key] = store.complete_upload(key, upload, parts), PART + body
        elif verb == "list":
            assert {info.key: info.etag for info in store.list(prefix).objects} == {
                key: etag for key, (etag, _) in model.items()
            }
    for key, (etag, expected) in model.items():
        assert store.get(key, etag=etag)[1] == expected
