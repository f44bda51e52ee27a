"""Fuzz: what a store answers. XML of every kind, and HTTP heads and bodies over a real socket."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluicefs.errors import StoreError
from sluicefs.fs.names import Listing
from sluicefs.store import wire
from sluicefs.store.http import Answer, Connection, HttpError, Pool
from tests.fuzz import FUZZ

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
WORDS = [
    b"<ListBucketResult>",
    b"</ListBucketResult>",
    b'<ListBucketResult xmlns="x">',
    b"<Contents>",
    b"</Contents>",
    b"<Key>",
    b"</Key>",
    b"<Size>",
    b"</Size>",
    b"a/b",
    b"-1",
    b"12",
    b"99999999999999999999999",
    b"<CommonPrefixes>",
    b"</CommonPrefixes>",
    b"<Prefix>",
    b"</Prefix>",
    b"<IsTruncated>true</IsTruncated>",
    b"<NextContinuationToken/>",
    b"<!-- -->",
    b"<![CDATA[",
    b"]]>",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;",
    b"&#0;",
    b"&#x10ffff;",
    b"<EncodingType>url</EncodingType>",
    b"%ff%00",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'<?xml version="1.0" encoding="utf-16"?>',
    b'<?xml version="1.0" encoding="hex"?>',
    b"<?p?>",
    b"<Error><Code>NoSuchKey</Code></Error>",
    b"<DeleteResult>",
    b"<ListMultipartUploadsResult><Upload/>",
    b"<a:b/>",
    b"<a " * 50,
]
BYTES = st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=12)), max_size=30).map(b"".join)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufffe\uffff", min_codepoint=32), max_size=20)
FIELD = st.one_of(
    TEXT,
    st.sampled_from(["", "0", "7", "-5", "1_0", " 3", "٣", "²", "1e3", "9" * 19, "9" * 5000, "true", "2026-13-45T99:99:99Z"]),
)


@FUZZ
@given(BYTES)
@example(b'<?xml version="1.0" encoding="hex"?><a/>')
@example(b"<a>" * 100_000)
def test_any_bytes_are_xml_or_malformed(body: bytes) -> None:
    for read in (wire.parse, lambda body: wire.listing(body, "a/"), wire.uploads, wire.delete_errors):
        with contextlib.suppress(wire.MalformedError):
            read(body)
    assert isinstance(wire.error_for("GET", 500, body), StoreError)


@FUZZ
@given(st.lists(st.tuples(FIELD, FIELD, FIELD, FIELD), max_size=6), st.lists(FIELD, max_size=4), st.sampled_from(["", "a/"]))
@example([("a/b", "-5", "", "")], [], "a/")
@example([("a/b", "9" * 25, "", "")], [], "a/")
@example([("a/b", "٣", "", "")], [], "a/")
@example([], ["elsewhere/"], "a/")
@example([], [""], "")
def test_a_listing_is_right_or_refused(rows: list[tuple[str, str, str, str]], prefixes: list[str], prefix: str) -> None:
    found = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{escape(size)}</Size><ETag>{escape(etag)}</ETag>"
        f"<LastModified>{escape(at)}</LastModified></Contents>"
        for key, size, etag, at in rows
    )
    common = "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in prefixes)
    try:
        page = wire.listing(f"{HEAD}<ListBucketResult>{found}{common}</ListBucketResult>".encode(), prefix)
    except wire.MalformedError:
        good = all(k and k.startswith(prefix) and s.isascii() and s.isdigit() and len(s) < 19 for k, s, _, _ in rows)
        assert not good or not all(each and each.startswith(prefix) for each in prefixes)
        return
    assert [(info.key, str(info.size)) for info in page.objects] == [(key, size.lstrip("0") or "0") for key, size, _, _ in rows]
    assert page.prefixes == prefixes and all(each.startswith(prefix) and each for each in prefixes)
    listing = Listing(prefix)
    listing.add(page.objects, page.prefixes)
    for name, entry in listing.entries.items():
        assert "/" not in name and "\0" not in name and name not in ("", ".", "..")
        assert entry.info is None or 0 <= entry.info.size < 2**63


@FUZZ
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), max_size=5))
def test_url_encoded_keys_come_back_exactly(keys: list[str]) -> None:
    rows = "".join(f"<Contents><Key>{quote_plus(key)}</Key><Size>1</Size></Contents>" for key in keys)
    body = f"<ListBucketResult><EncodingType>url</EncodingType>{rows}</ListBucketResult>".encode()
    assert [info.key for info in wire.listing(body, "").objects] == keys


@FUZZ
@given(st.integers(300, 599), TEXT, TEXT)
def test_an_error_is_an_error(status: int, code: str, message: str) -> None:
    body = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>".encode()
    error = wire.error_for("GET", status, body)
    assert error.status == status and error.errno and error.code == code.strip()


@FUZZ
@given(FIELD, st.dictionaries(st.sampled_from(["last-modified", "content-type", "x-amz-meta-mode", "x-amz-meta-a"]), FIELD))
@example("e", {"last-modified": "Mon, 30 Feb 9999 99:99:99 GMT"})
@example("e", {"x-amz-meta-a": "=?utf-8?b?////?="})
@example("e", {"x-amz-meta-a": "=?hex?q?zz?="})
def test_headers_of_an_object(etag: str, fields: dict[str, str]) -> None:
    info = wire.object_info("k", {"etag": etag} | fields, 1)
    assert info.modified == info.modified and all(isinstance(value, str) for value in (info.metadata or {}).values())


HTTP = [
    b"HTTP/1.1 ",
    b"HTTP/1.0 ",
    b"200",
    b"206",
    b"100",
    b"2\xb20",
    b"404",
    b" OK",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b":",
    b" ",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: \xb2\r\n",
    b"Content-Length: " + b"9" * 5000 + b"\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"ffffffffffff\r\n",
    b"-5\r\n",
    b"0\r\nA: b\r\n",
    b"hello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"x" * 70_000,
]
STREAM = st.lists(st.one_of(st.sampled_from(HTTP), st.binary(max_size=8)), max_size=14).map(b"".join)


def exchange(stream: bytes, use: Callable[[Answer], Any]) -> Any:
    """What a client makes of `stream` followed by the end of the connection."""
    here, there = socket.socketpair()
    pool = Pool("http://127.0.0.1:9", size=1, timeout=5.0)
    here.settimeout(5.0)
    pool._connect = lambda end: Connection(here, 5.0)  # type: ignore[method-assign]
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    there.sendall(stream)
    there.shutdown(socket.SHUT_WR)
    begin = time.monotonic()
    try:
        answer = pool.exchange("GET", "/", "", None)
        try:
            return use(answer)
        finally:
            answer.close()
    finally:
        pool.close()
        here.close()
        there.close()
        if time.monotonic() - begin > 4:
            pytest.fail("it waited for a connection that had ended")


@FUZZ
@given(STREAM)
@example(b"HTTP/1.1 2\xb20 OK\r\n\r\n")
@example(b"HTTP/1.1 204 OK\r\nContent-Length: \xb2\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 5000)
def test_any_bytes_are_an_answer_or_an_http_error(stream: bytes) -> None:
    try:
        body = exchange(stream, lambda answer: answer.read(100_000))
    except HttpError:
        return
    assert b"HTTP/1." in stream and len(body) <= len(stream)


CHUNKS = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


@FUZZ
@given(CHUNKS, st.booleans(), st.integers(0, 60))
def test_a_body_comes_whole_or_not_at_all(chunks: list[bytes], chunked: bool, lost: int) -> None:
    body = b"".join(chunks)
    if chunked:
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    else:
        stream = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    whole = not lost
    try:
        assert exchange(stream[: len(stream) - lost], lambda answer: answer.read(10_000)) == body
    except HttpError:
        assert not whole
    else:
        assert whole


@FUZZ
@given(st.binary(max_size=3000), st.integers(0, 60))
def test_a_range_into_memory_is_counted_exactly(body: bytes, lost: int) -> None:
    stream = b"HTTP/1.1 206 Partial\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    kept = max(0, len(body) - lost)
    space = bytearray(len(body))
    reached = exchange(stream[: len(stream) - (len(body) - kept)], lambda answer: answer.read_into(memoryview(space)))
    assert reached == kept and space[:kept] == body[:kept]
