"""The connection pool: reuse, bounds, framing, TLS, proxies."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sluicefs.errors import BucketAccessError, StoreTimeoutError, UnreachableError
from sluicefs.store.http import Answer, HttpError, Pool
from sluicefs.store.proxy import ProxyError, find_proxy
from sluicefs.store.s3 import S3Store
from tests.unit.scripted import Peer, ScriptedServer, answer, hang, head, serve_object

DATA = bytes(range(256)) * 40


def fetch(pool: Pool, limit: int = 1 << 20) -> bytes:
    reply = pool.exchange("GET", "/", "host: x\r\n", None)
    try:
        return reply.read(limit)
    finally:
        reply.close()


def store_on(server: ScriptedServer, **options: object) -> S3Store:
    given: dict[str, object] = {"endpoint": server.endpoint, "credentials": ("K", "S"), "timeout": 3.0, "light": True}
    return S3Store("bucket", **(given | options))  # type: ignore[arg-type]


def test_connections_are_reused() -> None:
    with ScriptedServer(serve_object(DATA)) as server:
        store = store_on(server)
        for _ in range(20):
            store.get_into("k", 0, bytearray(100))
            store.head("k")
        assert server.connections == 1
        store.close()


def test_at_most_so_many_connections() -> None:
    def slow(peer: Peer, request: bytes) -> None:
        time.sleep(0.02)
        serve_object(DATA)(peer, request)

    with ScriptedServer(slow) as server:
        store = store_on(server, connections=3)
        threads = [threading.Thread(target=store.get_into, args=("k", 0, bytearray(500))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.counters.requests == {"GetObject": 20}
        assert server.connections == 3
        store.close()


def test_waiting_for_a_connection_is_bounded() -> None:
    with ScriptedServer(hang) as server:
        store = store_on(server, connections=1, timeout=1.0)
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                store.head("k")
            except StoreTimeoutError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 3
        assert time.monotonic() - began < 8
        store.close()


@pytest.mark.parametrize("framing", [{"Transfer_Encoding": "chunked"}, {"Content_Length": "100"}], ids=["chunked", "length"])
def test_a_body_that_does_not_begin_is_given_up_when_the_calls_time_is_over(framing: dict[str, str]) -> None:
    """Not a whole timeout later: this test hangs then."""

    def stall(peer: Peer, request: bytes) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in framing.items())
        peer.send(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode())
        peer.sock.recv(1)

    with ScriptedServer(stall) as server:
        pool = Pool(server.endpoint, timeout=3600.0)
        reply = pool.exchange("GET", "/", "host: x\r\n", None, left=0.0)
        with pytest.raises(TimeoutError):
            reply.read(1000)
        reply.close()
        pool.close()


def test_a_connection_the_server_closed_costs_no_retry() -> None:
    def close_after(peer: Peer, request: bytes) -> None:
        serve_object(DATA)(peer, request)
        peer.close()

    with ScriptedServer(close_after) as server:
        store = store_on(server)
        for _ in range(5):
            store.get_into("k", 0, bytearray(100))
        assert (store.counters.retries, store.counters.requests) == (0, {"GetObject": 5})
        store.close()


def test_a_connection_closed_as_we_send_costs_no_retry() -> None:
    seen = 0

    def close_at_the_second(peer: Peer, request: bytes) -> None:
        nonlocal seen
        seen += 1
        peer.close() if seen == 2 else serve_object(DATA)(peer, request)

    with ScriptedServer(close_at_the_second) as server:
        store = store_on(server)
        store.get_into("k", 0, bytearray(100))
        store.get_into("k", 0, bytearray(100))
        assert (store.counters.retries, store.counters.requests, len(server.requests)) == (0, {"GetObject": 2}, 3)
        store.close()


def test_an_unread_body_is_not_taken_for_the_next_answer() -> None:
    with ScriptedServer(answer("200 OK", b"x" * 1000), answer("200 OK", b"second")) as server:
        pool = Pool(server.endpoint)
        pool.exchange("GET", "/", "host: x\r\n", None).close()
        assert fetch(pool) == b"second"
        assert server.connections == 2
        pool.close()


def test_chunked_bodies() -> None:
    chunks = b"5\r\nhello\r\n" + b"6;ext=1\r\n world\r\n" + b"0\r\nTrailer: x\r\n\r\n"
    top = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with ScriptedServer(lambda peer, _: peer.send(top + chunks), answer("200 OK", b"next")) as server:
        pool = Pool(server.endpoint)
        assert fetch(pool) == b"hello world"
        assert fetch(pool) == b"next"
        assert server.connections == 1
        pool.close()


@pytest.mark.parametrize("chunks", [b"zz\r\nhello", b"5\r\nhel", b"5\r\nhelloXX0\r\n\r\n", b"1" * 5000, b"-5\r\n"])
def test_malformed_chunks(chunks: bytes) -> None:
    def act(peer: Peer, _: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        peer.close()

    with ScriptedServer(act) as server:
        pool = Pool(server.endpoint)
        with pytest.raises(HttpError):
            fetch(pool)
        pool.close()


def test_body_until_the_end_of_the_connection() -> None:
    def act(peer: Peer, _: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + DATA)
        peer.close()

    with ScriptedServer(act) as server:
        pool = Pool(server.endpoint)
        assert fetch(pool) == DATA
        pool.close()


@pytest.mark.parametrize(
    "top",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    ],
    ids=["not-http", "status", "length", "two-lengths", "large"],
)
def test_malformed_heads(top: bytes) -> None:
    with ScriptedServer(lambda peer, _: peer.send(top)) as server:
        pool = Pool(server.endpoint, timeout=2)
        with pytest.raises(HttpError):
            fetch(pool)
        pool.close()


def test_more_than_the_limit_is_refused() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n"
    with ScriptedServer(answer("200 OK", b"x" * 100), lambda peer, _: peer.send(chunked)) as server:
        pool = Pool(server.endpoint)
        for _ in range(2):
            with pytest.raises(HttpError, match="at most 99"):
                fetch(pool, 99)
        pool.close()


def test_continue_is_passed_over() -> None:
    both = b"HTTP/1.1 100 Continue\r\n\r\n" + head("200 OK", 2) + b"ok"
    with ScriptedServer(lambda peer, _: peer.send(both)) as server:
        pool = Pool(server.endpoint)
        assert fetch(pool) == b"ok"
        pool.close()


def test_a_refusal_in_the_middle_of_an_upload_is_heard() -> None:
    refusal = b"<Error><Code>EntityTooLarge</Code></Error>"
    top = head("413 Too Large", len(refusal), Connection="close") + refusal
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        sock.recv(1000)
        sock.sendall(top)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 20):
            pass
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    pool = Pool(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=5)
    body = memoryview(bytes(20_000_000))
    reply: Answer = pool.exchange("PUT", "/", f"host: x\r\ncontent-length: {len(body)}\r\n", body)
    assert (reply.status, reply.read(1000)) == (413, refusal)
    reply.close()
    pool.close()
    thread.join(10)
    listener.close()


def test_a_server_that_closes_its_side_and_takes_no_more_is_no_timeout() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        sock, _ = listener.accept()
        sock.recv(1000)
        sock.shutdown(socket.SHUT_WR)
        over.wait(60)
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    pool = Pool(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20)
    body = memoryview(bytes(20_000_000))
    try:
        with pytest.raises(HttpError, match="closed before an answer"):
            pool.exchange("PUT", "/", f"host: x\r\ncontent-length: {len(body)}\r\n", body)
    finally:
        over.set()
        pool.close()
        thread.join(10)
        listener.close()


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1 and a server's context that shows it."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.parametrize("light", [True, False], ids=["light", "botocore"])
def test_tls_is_verified(certificate: tuple[Path, ssl.SSLContext], light: bool) -> None:
    cert, context = certificate
    large = DATA * 100
    with ScriptedServer(serve_object(large), context=context) as server:
        trusting = store_on(server, ca_bundle=str(cert), light=light)
        assert trusting.get("k")[1] == large
        buffer = bytearray(700_000)
        trusting.get_into("k", 5, buffer)
        assert buffer == large[5:700_005]
        trusting.close()
        wary = store_on(server, light=light)
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"certificate of 127\.0\.0\.1") as caught:
            wary.head("k")
        assert caught.value.code == "TLS"
        assert time.monotonic() - began < 2  # no use in trying again
        with pytest.raises(BucketAccessError, match=r"is not trusted.*--ca-bundle"):
            wary.probe()
        wary.close()


def test_large_upload_over_tls(certificate: tuple[Path, ssl.SSLContext]) -> None:
    cert, context = certificate
    with ScriptedServer(answer("200 OK", ETag='"e"'), context=context) as server:
        store = store_on(server, ca_bundle=str(cert), timeout=60.0)
        body = DATA * 300
        store.put("k", body)
        store.put("k", body[:100])
        assert server.requests[0].endswith(body)
        assert server.requests[1].endswith(body[:100])
        assert server.connections == 1
        store.close()


def test_a_ca_bundle_that_is_not_there(tmp_path: Path) -> None:
    for light in (True, False):
        with pytest.raises(BucketAccessError, match="cannot be read"):
            S3Store("b", endpoint="https://x", credentials=("K", "S"), ca_bundle=str(tmp_path / "no.pem"), light=light)


# --- proxies


def test_plain_requests_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(serve_object(DATA)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        store = S3Store("bucket", endpoint="http://store.invalid", credentials=("K", "S"), timeout=3)
        assert store.get("k")[1] == DATA
        assert proxy.requests[0].startswith(b"GET http://store.invalid:80/bucket/k HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in proxy.requests[0]
        assert b"host: store.invalid\r\n" in proxy.requests[0]
        store.close()


def test_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(serve_object(DATA)) as server:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        store = store_on(server)
        assert store.get("k")[1] == DATA
        store.close()


def test_tls_through_a_proxy(certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    cert, context = certificate
    with ScriptedServer(serve_object(DATA), context=context) as server:

        def connect(peer: Peer, request: bytes) -> None:
            assert request.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n".encode())
            upstream = socket.create_connection(("127.0.0.1", server.port))
            peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")

            def pump(source: socket.socket, target: socket.socket) -> None:
                try:
                    while data := source.recv(65536):
                        target.sendall(data)
                    target.shutdown(socket.SHUT_WR)
                except OSError:
                    pass

            back = threading.Thread(target=pump, args=(upstream, peer.sock))
            back.start()
            pump(peer.sock, upstream)
            back.join()
            upstream.close()

        with ScriptedServer(connect) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("no_proxy", "")
            store = store_on(server, ca_bundle=str(cert))
            assert store.get("k")[1] == DATA
            assert len(proxy.requests) == 1
            store.close()


def test_other_proxies_are_left_to_botocore() -> None:
    with pytest.raises(ProxyError, match="socks5"):
        find_proxy("https://x", {"https": "socks5://127.0.0.1:1"})
    assert find_proxy("https://x", {}) is None
