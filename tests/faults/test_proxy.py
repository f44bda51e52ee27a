"""The fault proxy does to a request what its rules say, and nothing to the others."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from tests.faults.proxy import FaultProxy
from tests.faults.rules import FAULTS, Request, Rule, chaos

BODY = bytes(range(256)) * 4096  # 1 MiB


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers GET with BODY, PUT with what was put (chunked where asked), and keeps the headers it saw."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: ClassVar[list[tuple[str, str, bytes]]] = []

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # resets are what these tests are about
            super().handle()

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        if "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.seen.append((self.command, self.headers["Host"], b""))
        self._reply(BODY)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.command, self.headers["Host"], body))
        self._reply(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def proxy(upstream: str) -> Iterator[FaultProxy]:
    Echo.seen.clear()
    with FaultProxy(upstream) as proxy:
        yield proxy


def ask(
    proxy: FaultProxy, method: str = "GET", path: str = "/b/k", body: bytes | None = None, timeout: float = 5
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request(method, path, body, {"Host": "bucket.example"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_a_rule_everything_passes_unchanged(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    for method, path, body in [
        ("GET", "/b/k", None),
        ("PUT", "/b/k", BODY),
        ("HEAD", "/b/k", None),
        ("GET", "/b/chunked", None),
        ("PUT", "/b/k", b""),
    ]:
        connection.request(method, path, body, {"Host": "bucket.example"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read() == (b"" if method == "HEAD" else BODY if body is None else body)
    connection.close()
    assert {host for _, host, _ in Echo.seen} == {"bucket.example"}
    assert proxy.counts == {"GetObject": 2, "PutObject": 2, "HeadObject": 1}
    assert [event.fault for event in proxy.events] == [""] * 5
    assert proxy.events[1].bytes_up == len(BODY)


def test_a_client_that_waits_for_100_continue_gets_it(proxy: FaultProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as sock:
        sock.sendall(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 100")
        sock.sendall(b"abc")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("short_name", ["403", "429", "500", "503"])
def test_a_status_never_reaches_the_server(proxy: FaultProxy, short_name: str) -> None:
    proxy.add(f"{short_name}:times=1,retry_after=7")
    status, body = ask(proxy, "PUT", body=BODY)
    assert (status, b"<Error>" in body) == (int(short_name), True)
    assert Echo.seen == []
    assert ask(proxy) == (200, BODY)
    assert proxy.faults == {"status": 1}


def test_a_status_afterwards_hides_a_success(proxy: FaultProxy) -> None:
    proxy.add("status-after:status=500,times=1")
    assert ask(proxy, "PUT", body=b"kept")[0] == 500
    assert Echo.seen[0][2] == b"kept"


@pytest.mark.parametrize("fault", ["reset-before", "reset-request", "reset-after"])
def test_a_reset_leaves_no_answer(proxy: FaultProxy, fault: str) -> None:
    proxy.add(f"{fault}:times=1")
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        ask(proxy, "PUT", body=BODY)
    time.sleep(0.05)
    assert len(Echo.seen) == (1 if fault == "reset-after" else 0)
    assert ask(proxy, "PUT", body=BODY) == (200, BODY)


def test_a_reset_in_the_answer(proxy: FaultProxy) -> None:
    proxy.add("reset-response:after=1000")
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        ask(proxy)


def test_a_short_body_ends_in_good_order(proxy: FaultProxy) -> None:
    proxy.add("short:after=1000")
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == BODY[:1000]


@pytest.mark.parametrize("fault", ["stall", "no-answer"])
def test_a_stall_lasts_until_the_client_gives_up_or_the_rules_are_cleared(proxy: FaultProxy, fault: str) -> None:
    proxy.add(f"{fault}:seconds=60")
    with pytest.raises(TimeoutError):
        ask(proxy, timeout=0.3)
    threading.Timer(0.2, proxy.clear).start()
    begin = time.monotonic()
    with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)):
        ask(proxy, timeout=30)
    assert time.monotonic() - begin < 5


def test_garbage_and_errors_in_a_200(proxy: FaultProxy) -> None:
    proxy.add("garbage:key=g", "error-in-200:key=e", "garbage-http:key=h")
    assert ask(proxy, path="/b/g")[0] == 200
    assert b"<Error>" in ask(proxy, path="/b/e")[1]
    with pytest.raises(http.client.BadStatusLine):
        ask(proxy, path="/b/h")
    assert Echo.seen == []


def test_refused_for_a_while(proxy: FaultProxy) -> None:
    proxy.refuse(0.4)
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    time.sleep(0.6)
    assert ask(proxy) == (200, BODY)
    proxy.add("refuse:seconds=0.4,times=1")
    with pytest.raises(ConnectionError):
        ask(proxy)
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    time.sleep(0.6)
    assert ask(proxy) == (200, BODY)


def test_delays_add_up_and_let_other_faults_follow(proxy: FaultProxy) -> None:
    proxy.add("delay:seconds=0.1", "delay:seconds=0.15", "500:key=bad")
    begin = time.monotonic()
    assert ask(proxy) == (200, BODY)
    assert time.monotonic() - begin >= 0.25
    assert ask(proxy, path="/b/bad")[0] == 500


def test_rules_pick_their_requests(proxy: FaultProxy) -> None:
    proxy.add("500:verb=GetObject,key=dir/*,skip=1,times=2")
    assert [ask(proxy, path="/b/dir/x")[0] for _ in range(4)] == [200, 500, 500, 200]
    proxy.add("500:verb=PutObject")
    assert ask(proxy, path="/b/other")[0] == 200


def test_the_same_seed_gives_the_same_faults(upstream: str) -> None:
    def run(seed: int) -> list[int]:
        with FaultProxy(upstream, rules=[Rule.parse("500:probability=0.4")], seed=seed) as proxy:
            return [ask(proxy, "HEAD")[0] for _ in range(40)]

    first = run(7)
    assert first == run(7) != run(8)
    assert 200 in first and 500 in first


@pytest.mark.parametrize("text", ["nonsense", "500:verb", "500:colour=red", "delay:seconds=soon"])
def test_a_bad_rule_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Rule.parse(text)


def test_chaos_covers_the_faults_a_client_must_survive() -> None:
    rules = chaos(0.12)
    assert sum(rule.probability for rule in rules) == pytest.approx(0.12)
    assert {rule.fault for rule in rules} <= set(FAULTS)


@pytest.mark.parametrize(
    ("line", "verb", "key"),
    [
        ("GET /b?list-type=2&prefix=x", "ListObjectsV2", ""),
        ("GET /b/?uploads=", "ListMultipartUploads", ""),
        ("GET /b/a%20b/c?x=1", "GetObject", "a b/c"),
        ("HEAD /b", "HeadBucket", ""),
        ("PUT /b/k?partNumber=1&uploadId=u", "UploadPart", "k"),
        ("POST /b/k?uploads", "CreateMultipartUpload", "k"),
        ("POST /b/k?uploadId=u", "CompleteMultipartUpload", "k"),
        ("POST /b?delete", "DeleteObjects", ""),
        ("DELETE /b/k?uploadId=u", "AbortMultipartUpload", "k"),
        ("DELETE /b/k", "DeleteObject", "k"),
    ],
)
def test_requests_are_named_as_s3_names_them(line: str, verb: str, key: str) -> None:
    request = Request.parse(f"{line} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert (request.verb, request.key) == (verb, key)
    assert Request.parse(b"PUT /b/k HTTP/1.1\r\nx-amz-copy-source: /b/j\r\n\r\n").verb == "CopyObject"
