"""What the S3 store does when the network or the server fails, on both transports."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sluicefs.errors import (
    AccessDeniedError,
    CancelledError,
    ConditionFailedError,
    NoSuchBucketError,
    NotFoundError,
    ShortBodyError,
    StoreError,
    StoreTimeoutError,
    UnreachableError,
)
from sluicefs.store.s3 import S3Store
from sluicefs.store.sign import Keys
from tests.unit.scripted import Act, Peer, ScriptedServer, answer, hang, head, refusal, reset, serve_object

DATA = bytes(range(256)) * 4000
SECRET = "SECRETSECRETSECRET"
MakeStore = Callable[..., S3Store]


@pytest.fixture(params=["light", "botocore"])
def make(request: pytest.FixtureRequest) -> MakeStore:
    def store(server: ScriptedServer, **options: Any) -> S3Store:
        given = {"endpoint": server.endpoint, "credentials": ("KEY", SECRET), "timeout": 3.0, "light": request.param == "light"}
        return S3Store("bucket", **(given | options))

    return store


@pytest.mark.parametrize("end", [Peer.close, Peer.reset], ids=["closed", "reset"])
def test_short_body_is_resumed_where_it_broke(make: MakeStore, end: Callable[[Peer], None]) -> None:
    with ScriptedServer(serve_object(DATA, cut=300_000, end=end), serve_object(DATA)) as server:
        store = make(server)
        buffer, seen = bytearray(900_000), []
        info = store.get_into("k", 1000, buffer, progress=seen.append)
        assert buffer == DATA[1000:901_000]
        assert info.size == len(DATA)
        assert seen == sorted(seen)
        assert seen[-1] == len(buffer)
        found = re.search(rb"bytes=(\d+)-900999", server.requests[1])
        assert found is not None
        assert 1000 < int(found[1]) <= 301_000  # http.client drops what it read before a reset
        assert f'if-match: "{info.etag}"'.encode() in server.requests[1].lower()
        assert (store.counters.retries, store.counters.requests) == (1, {"GetObject": 2})
        assert store.counters.bytes_down == len(buffer)
        store.close()


def test_whole_get_is_resumed_too(make: MakeStore) -> None:
    with ScriptedServer(serve_object(DATA, cut=500_000), serve_object(DATA)) as server:
        store = make(server)
        assert store.get("k")[1] == DATA
        assert b"bytes=500000-" in server.requests[1]
        store.close()


def test_resumed_body_of_another_version_is_never_mixed_in(make: MakeStore) -> None:
    with ScriptedServer(serve_object(DATA, cut=1000), serve_object(DATA, etag="other")) as server:
        store = make(server)
        with pytest.raises(ConditionFailedError):
            store.get_into("k", 0, bytearray(5000))
        store.close()


def test_body_that_is_always_short_ends_as_such(make: MakeStore) -> None:
    with ScriptedServer(serve_object(DATA, cut=0)) as server:
        store = make(server, timeout=1.0)
        began = time.monotonic()
        with pytest.raises(ShortBodyError, match=r"GetObject 'k'.* 0 of 5000"):
            store.get_into("k", 0, bytearray(5000))
        assert time.monotonic() - began < 4
        assert store.counters.retries >= 2
        store.close()


def test_stalled_body_is_a_timeout(make: MakeStore) -> None:
    def stall(peer: Peer, request: bytes) -> None:
        peer.send(head("206 Partial Content", 5000, ETag='"x"', Content_Range=f"bytes 0-4999/{len(DATA)}") + DATA[:100])
        peer.sock.recv(1)

    with ScriptedServer(stall) as server:
        store = make(server, timeout=1.0)
        began = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.get_into("k", 0, bytearray(5000))
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - began < 6
        store.close()


def test_no_answer_is_a_timeout_and_never_not_found(make: MakeStore) -> None:
    with ScriptedServer(hang) as server:
        store = make(server, timeout=1.0)
        began = time.monotonic()
        with pytest.raises(StoreTimeoutError):
            store.head("k")
        assert time.monotonic() - began < 5
        store.close()


def test_of_many_deletions_none_is_asked_for_after_one_was_given_up(make: MakeStore) -> None:
    """Each would wait as long again."""
    keys = [f"k{number}" for number in range(2500)] + ["control\x01"]
    with ScriptedServer(hang) as server:
        store = make(server, timeout=1.0)
        failed = store.delete_many(keys)
        assert [key for key, _ in failed] == keys
        assert all(isinstance(error, UnreachableError) for _, error in failed)
        assert store.counters.requests == {"DeleteObjects": 1}
        store.close()


def test_nobody_there_is_unreachable(make: MakeStore) -> None:
    with ScriptedServer(hang) as server:
        store = make(server, timeout=1.0)
    with pytest.raises(UnreachableError, match=r"HeadObject 'k'.*127\.0\.0\.1") as caught:
        store.head("k")
    assert caught.value.errno == errno.EIO
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize(
    "act",
    [
        refusal("503 Slow Down", "SlowDown"),
        refusal("500 Error", "InternalError"),
        answer("502 Bad Gateway", b"<html>bad gateway"),
        answer("504 Timeout"),
        refusal("429 Too Many", "TooManyRequests"),
        refusal("400 Bad", "RequestTimeout"),
        refusal("403 Forbidden", "SignatureDoesNotMatch"),
        reset,
    ],
    ids=["503", "500", "502", "504", "429", "RequestTimeout", "spurious403", "reset"],
)
def test_passing_failures_are_tried_again(make: MakeStore, act: Act) -> None:
    with ScriptedServer(act, act, answer("200 OK", ETag='"e1"')) as server:
        store = make(server)
        assert store.upload_part("k", "u", 1, b"12345") == "e1"
        assert [request.rpartition(b"\r\n")[2] for request in server.requests] == [b"12345"] * 3
        assert store.counters.retries == 2
        store.close()


def test_retry_after_is_honoured(make: MakeStore) -> None:
    with ScriptedServer(refusal("429 Too Many", "TooManyRequests", Retry_After="1"), answer("200 OK", ETag='"e"')) as server:
        store = make(server)
        began = time.monotonic()
        store.put("k", b"")
        assert time.monotonic() - began >= 1.0
        store.close()


def test_a_wrong_secret_is_believed_after_a_few_tries(make: MakeStore) -> None:
    with ScriptedServer(refusal("403 Forbidden", "SignatureDoesNotMatch")) as server:
        store = make(server)
        with pytest.raises(AccessDeniedError) as caught:
            store.put("k", b"")
        assert (caught.value.code, caught.value.errno) == ("SignatureDoesNotMatch", errno.EACCES)
        assert len(server.requests) == 3
        store.close()


def test_lasting_failures_are_not_tried_again(make: MakeStore) -> None:
    cases = [
        ("403 Forbidden", "AccessDenied", AccessDeniedError, errno.EACCES),
        ("404 Not Found", "NoSuchKey", NotFoundError, errno.ENOENT),
        ("404 Not Found", "NoSuchBucket", NoSuchBucketError, errno.EIO),
        ("412 Failed", "PreconditionFailed", ConditionFailedError, errno.ESTALE),
        ("400 Bad", "InvalidArgument", StoreError, errno.EIO),
    ]
    for status, code, kind, number in cases:
        with ScriptedServer(refusal(status, code)) as server:
            store = make(server)
            with pytest.raises(kind) as caught:
                store.get("k")
            assert (caught.value.errno, caught.value.code, len(server.requests)) == (number, code, 1)
            store.close()


def test_an_error_body_never_becomes_data(make: MakeStore) -> None:
    buffer = bytearray(b"-" * 10)
    with ScriptedServer(answer("503 Oops", b"x" * 10)) as server:
        store = make(server, timeout=0.5)
        with pytest.raises(StoreError):
            store.get_into("k", 0, buffer)
        store.close()
    assert buffer == b"-" * 10


def test_a_whole_object_is_not_taken_for_a_range(make: MakeStore) -> None:
    with ScriptedServer(answer("200 OK", DATA[:5000], ETag='"e"')) as server:
        store = make(server, timeout=0.5)
        with pytest.raises(UnreachableError, match="in place of a range"):
            store.get_into("k", 10, bytearray(10))
        store.close()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>other</Key><Size>1</Size></Contents></ListBucketResult>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><ListBucketResult/>',
        b"<Other/>",
        b"",
    ],
    ids=["html", "no-token", "no-size", "wrong-prefix", "entity", "other", "empty"],
)
def test_garbage_is_no_listing(make: MakeStore, body: bytes) -> None:
    with ScriptedServer(answer("200 OK", body)) as server:
        store = make(server, timeout=0.5)
        with pytest.raises(UnreachableError, match=r"malformed|closed before"):
            store.list("a")
        store.close()


def test_an_error_inside_a_200_is_found(make: MakeStore) -> None:
    good = b"<CompleteMultipartUploadResult><ETag>&quot;e-1&quot;</ETag></CompleteMultipartUploadResult>"
    with ScriptedServer(refusal("200 OK", "InternalError"), answer("200 OK", b"\n  " + good)) as server:
        store = make(server)
        assert store.complete_upload("k", "u", [(1, "e")]) == "e-1"
        store.close()
    with ScriptedServer(refusal("200 OK", "InvalidPart")) as server:
        store = make(server)
        with pytest.raises(StoreError, match="InvalidPart"):
            store.complete_upload("k", "u", [(1, "e")])
        store.close()


def test_a_put_whose_answer_was_lost_counts_as_done(make: MakeStore) -> None:
    with ScriptedServer(reset, refusal("412 Failed", "PreconditionFailed"), serve_object(b"mine")) as server:
        store = make(server)
        assert store.put("k", b"mine", if_none_match=True) == hashlib.md5(b"mine").hexdigest()
        store.close()
    with ScriptedServer(reset, refusal("412 Failed", "PreconditionFailed"), serve_object(b"theirs")) as server:
        store = make(server)
        with pytest.raises(ConditionFailedError):
            store.put("k", b"mine", if_none_match=True)
        store.close()


def test_a_completion_whose_answer_was_lost_counts_as_done(make: MakeStore) -> None:
    part = hashlib.md5(b"part")
    whole = f"{hashlib.md5(part.digest()).hexdigest()}-1"
    with ScriptedServer(reset, refusal("404 Gone", "NoSuchUpload"), serve_object(b"part", etag=whole)) as server:
        store = make(server)
        assert store.complete_upload("k", "u", [(1, part.hexdigest())]) == whole
        store.close()
    with ScriptedServer(reset, refusal("404 Gone", "NoSuchUpload"), serve_object(b"part", etag="other-1")) as server:
        store = make(server)
        with pytest.raises(NotFoundError):
            store.complete_upload("k", "u", [(1, part.hexdigest())])
        store.close()


@pytest.mark.parametrize("mtime", ["5.25", "6"], ids=["ours", "theirs"])
def test_a_copy_onto_itself_whose_answer_was_lost_counts_as_done(make: MakeStore, mtime: str) -> None:
    """It gives an object of several parts another ETag, so that the second try finds its source gone."""
    there = answer("200 OK", **{"ETag": '"new"', "Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT", "x-amz-meta-mtime": "5.25"})
    with ScriptedServer(reset, refusal("412 Failed", "PreconditionFailed"), there) as server:
        store = make(server)
        if mtime == "5.25":
            assert store.copy("k", "k", metadata={"mtime": mtime}, if_source_match="old-2") == "new"
        else:
            with pytest.raises(ConditionFailedError):
                store.copy("k", "k", metadata={"mtime": mtime}, if_source_match="old-2")
        store.close()


def test_cancelled_while_nothing_comes() -> None:
    with ScriptedServer(hang) as server:
        store = S3Store("bucket", endpoint=server.endpoint, credentials=("KEY", SECRET), timeout=30, light=True)
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        with pytest.raises(CancelledError):
            store.get_into("k", 0, bytearray(10), cancelled=stop.is_set)
        assert time.monotonic() - began < 2
        store.close()


@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request"])
def test_a_refused_head_says_why(make: MakeStore, status: str) -> None:
    def act(peer: Peer, request: bytes) -> None:
        body = b"<Error><Code>ExpiredToken</Code></Error>"
        peer.send(head(status, len(body)) + (b"" if request.startswith(b"HEAD") else body))

    with ScriptedServer(act) as server:
        store = make(server)
        with pytest.raises(AccessDeniedError, match="ExpiredToken"):
            store.head("k")
        store.close()


def test_expired_credentials_are_renewed(make: MakeStore) -> None:
    class Renewable:
        now = Keys("OLD", "old secret", "old token")

        def keys(self) -> Keys:
            return self.now

        def renew(self, refused: Keys) -> bool:
            self.now = Keys("NEW", "new secret", "new token")
            return refused.access_key == "OLD"

    with ScriptedServer(refusal("403 Forbidden", "ExpiredToken"), answer("200 OK", ETag='"e"')) as server:
        store = make(server, credentials=Renewable())
        store.put("k", b"")
        assert b"Credential=OLD/" in server.requests[0]
        assert b"Credential=NEW/" in server.requests[1]
        assert b"new token" in server.requests[1]
        store.close()


def test_the_secret_is_nowhere(make: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(refusal("503 Slow", "SlowDown"), refusal("403 Forbidden", "AccessDenied")) as server:
        store = make(server, credentials=("KEY", SECRET, "TOKENTOKENTOKEN"))
        with pytest.raises(AccessDeniedError) as caught:
            store.put("k", b"")
        said = [repr(store), repr(caught.value), str(caught.value), repr(vars(store)), caplog.text, repr(Keys("K", SECRET))]
        assert not [text for text in said if SECRET in text or "TOKENTOKEN" in text]
        assert all(SECRET.encode() not in request for request in server.requests)
        store.close()
