"""A proxy of plain HTTP/1.1 that breaks requests on purpose, between a client and an S3 server.

What no rule touches is passed on byte for byte (the Host header too, so signatures hold), at the speed of the loopback.
Every request is recorded. One thread per client connection, each with its own connection to the server.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

from tests.faults.rules import ActiveRule, Event, Request, Rule

_CHUNK = 512 * 1024
_MAX_HEAD = 256 * 1024


@dataclass(slots=True)
class _Late:
    """A whole request that the server has not seen yet."""

    event: Event
    head: bytes
    body: bytes


class _Dropped(Exception):
    """The connection is over, by the peer or by a fault."""


class FaultProxy:
    """Listens on a port of 127.0.0.1 (`port` 0: any) and forwards to `upstream` ("http://host:port").

    Rules are tried in order; delays add up, the first other fault that applies is done. The same seed and the same
    order of requests give the same faults. Use as a context manager, or `start` and `close`.
    """

    def __init__(
        self,
        upstream: str,
        *,
        port: int = 0,
        rules: Iterable[Rule] = (),
        seed: int = 0,
        log: Callable[[Event], object] | None = None,
    ):
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._seed = seed
        self._log = log
        self._lock = threading.Lock()
        self._rules: list[ActiveRule] = []
        self._made = 0
        self._epoch = 0
        self._sockets: set[socket.socket] = set()
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._reopen: threading.Timer | None = None
        self._late: list[_Late] = []
        self.events: deque[Event] = deque(maxlen=100_000)
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.port = port
        for rule in rules:
            self.add(rule)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, *rules: Rule | str) -> None:
        """Put rules in force from the next request on."""
        with self._lock:
            for rule in rules:
                draws = random.Random(f"{self._seed}/{self._made}")
                self._made += 1
                self._rules.append(ActiveRule(Rule.parse(rule) if isinstance(rule, str) else rule, draws))

    def clear(self) -> None:
        """Take all rules away, and a refusal; connections that stall are let go."""
        with self._lock:
            self._rules.clear()
            self._epoch += 1
            reopen, self._reopen = self._reopen, None
        if reopen is not None:
            reopen.cancel()
            self._listen()

    def reset_counts(self) -> None:
        """Forget the requests seen so far."""
        with self._lock:
            self.counts.clear()
            self.faults.clear()
            self.events.clear()

    def refuse(self, seconds: float) -> None:
        """Drop every connection and refuse new ones for so long."""
        with self._lock:
            self._stop_listening()
            self._reopen = threading.Timer(seconds, self._listen)
            self._reopen.daemon = True
            self._reopen.start()
        self._drop_all()

    def release(self) -> list[int]:
        """Let the server carry out what rules have made late, now and in order; the statuses it answers with."""
        with self._lock:
            held, self._late = self._late, []
        for late in held:
            self._carry_out(late)
        return [late.event.status for late in held]

    def _hold(self, late: _Late, seconds: float) -> None:
        """Not before a time, unless `release` is quicker."""

        def due() -> None:
            with self._lock:
                if late not in self._late:
                    return
                self._late.remove(late)
            with contextlib.suppress(OSError, _Dropped):
                self._carry_out(late)

        with self._lock:
            self._late.append(late)
        timer = threading.Timer(seconds, due)
        timer.daemon = True
        timer.start()

    def _carry_out(self, late: _Late) -> None:
        server = self._connect(None)
        try:
            server.send(late.head)
            server.send(late.body)
            late.event.status = _parse_answer(server.head())[0]
        finally:
            self._release(server.sock)

    def start(self) -> None:
        self._listen()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            if self._reopen is not None:
                self._reopen.cancel()
            self._stop_listening()
        self._drop_all()

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _listen(self) -> None:
        with self._lock:
            if self._closing.is_set() or self._listener is not None:
                return
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(256)
            self.port = listener.getsockname()[1]
            self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="fault-proxy").start()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            self._listener.close()
            self._listener = None

    def _drop_all(self) -> None:
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True, name="fault-proxy").start()

    def _keep(self, sock: socket.socket) -> socket.socket:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.add(sock)
        return sock

    def _release(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)
        sock.close()

    def _admit(self, request: Request) -> tuple[Event, float, Rule | None]:
        """Record a request and draw what happens to it: (its record, seconds to wait first, fault)."""
        event = Event(request, time.time())
        delay = 0.0
        with self._lock:
            self.counts[request.verb] += 1
            self.events.append(event)
            for active in self._rules:
                if active.applies(request):
                    event.fault = active.rule.fault
                    self.faults[event.fault] += 1
                    if event.fault != "delay":
                        return event, delay, active.rule
                    delay += active.rule.seconds
        return event, delay, None

    def _serve(self, sock: socket.socket) -> None:
        client = _Peer(self._keep(sock))
        server: _Peer | None = None
        try:
            while True:
                head = client.head()
                exchange = _Exchange(self, client, server, Request.parse(head), head)
                try:
                    exchange.run()
                finally:
                    server = exchange.server
                    if self._log is not None:
                        self._log(exchange.event)
                if exchange.request.headers.get("connection", "").lower() == "close":
                    return
        except (_Dropped, OSError, ValueError):
            return
        finally:
            self._release(client.sock)
            if server is not None:
                self._release(server.sock)

    def _connect(self, present: _Peer | None) -> _Peer:
        """The connection to the server: the present one unless the server has closed it meanwhile."""
        if present is not None:
            if not present.readable():
                return present
            self._release(present.sock)
        return _Peer(self._keep(socket.create_connection(self._upstream, timeout=600)))

    def _stall(self, client: _Peer, seconds: float) -> None:
        """Keep the client waiting until it gives up, the rules are cleared or the proxy closes."""
        end, epoch = time.monotonic() + seconds, self._epoch
        while time.monotonic() < end and self._epoch == epoch and not self._closing.wait(0.02):
            if client.readable():
                break
        raise _Dropped


class _Exchange:
    """One request and its answer."""

    def __init__(self, proxy: FaultProxy, client: _Peer, server: _Peer | None, request: Request, head: bytes):
        self.request = request
        self.server = server
        self.event, self._delay, self._rule = proxy._admit(request)
        self._proxy = proxy
        self._client = client
        self._head = head
        self._body_taken = False

    def run(self) -> None:
        """Raises _Dropped or OSError when the client's connection cannot go on."""
        rule = self._rule
        if self._delay:
            self._proxy._closing.wait(self._delay)
        before = {
            "status": self._answer_error,
            "error-in-200": lambda: self._answer(200, _error_document("InternalError")),
            "garbage": lambda: self._answer(200, b'<?xml version="1.0"?><ListBucketResult><Contents><Key>\xff<'),
            "garbage-http": lambda: self._answer_raw(b"\x16\x03\x01\x02 no protocol you know\r\n" * 20),
            "reset-before": self._client.reset,
            "reset-request": self._reset_in_request,
            "no-answer": self._no_answer,
            "late": self._make_late,
            "refuse": self._refuse,
        }
        if rule is not None and rule.fault in before:
            before[rule.fault]()
            return
        self.server = self._proxy._connect(self.server)
        self._forward(self.server)
        self._relay(self.server)

    def _forward(self, server: _Peer) -> None:
        server.send(self._head_to_send())
        for piece in self._request_body():
            server.send(piece)

    def _head_to_send(self) -> bytes:
        """The request's head; a client that waits before it sends a body is told to go on."""
        if "100-continue" not in self.request.headers.get("expect", "").lower():
            return self._head
        self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return b"\r\n".join(line for line in self._head.split(b"\r\n") if not line.lower().startswith(b"expect:"))

    def _make_late(self) -> None:
        assert self._rule is not None
        late = _Late(self.event, self._head_to_send(), b"".join(bytes(piece) for piece in self._request_body()))
        self._proxy._hold(late, self._rule.seconds)
        self._client.reset()

    def _request_body(self) -> Iterator[memoryview]:
        if self._body_taken:
            return
        self._body_taken = True
        for piece in self._client.body(self.request.headers):
            self.event.bytes_up += len(piece)
            yield piece

    def _drain(self) -> None:
        if "100-continue" not in self.request.headers.get("expect", "").lower():
            for _ in self._request_body():
                pass

    def _relay(self, server: _Peer) -> None:
        head = server.head()
        status, headers = _parse_answer(head)
        while status < 200:
            head = server.head()
            status, headers = _parse_answer(head)
        self.event.etag = headers.get("etag", "")
        rule = self._rule
        has_body = self.request.method != "HEAD" and status not in (204, 304)
        pieces = server.body(headers, to_the_end=True) if has_body else iter(())
        if rule is None:
            self.event.status = status
            self._client.send(head)
            for piece in pieces:
                self._client.send(piece)
                self.event.bytes_down += len(piece)
            if has_body and "content-length" not in headers and "transfer-encoding" not in headers:
                raise _Dropped
        elif rule.fault == "status-after":
            for _ in pieces:
                pass
            self._answer_error()
        elif rule.fault == "reset-after":
            self._client.reset()
        else:
            self.event.status = status
            length = int(headers.get("content-length") or 0)
            self._break_off(rule, head, pieces, length // 2 if rule.after is None else min(rule.after, length))

    def _break_off(self, rule: Rule, head: bytes, pieces: Iterator[memoryview], left: int) -> None:
        self._client.send(head)
        for piece in pieces:
            self._client.send(piece[:left])
            self.event.bytes_down += min(left, len(piece))
            left -= len(piece)
            if left <= 0:
                break
        if rule.fault == "stall":
            self._proxy._stall(self._client, rule.seconds)
        elif rule.fault == "reset-response":
            time.sleep(0.02)  # a reset throws away what the client has not read yet; let it read
            self._client.reset()
        raise _Dropped

    def _answer_error(self) -> None:
        assert self._rule is not None
        extra = "" if self._rule.retry_after is None else f"Retry-After: {self._rule.retry_after}\r\n"
        self._answer(self._rule.status, _error_document(self._rule.code), extra)

    def _answer(self, status: int, body: bytes, extra: str = "") -> None:
        self._drain()
        head = f"HTTP/1.1 {status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        self.event.status = status
        self._client.send(head.encode() + (b"" if self.request.method == "HEAD" else body))
        if not self._body_taken:
            raise _Dropped  # the client waits for 100 Continue; its body may or may not follow

    def _answer_raw(self, answer: bytes) -> None:
        self._drain()
        self._client.send(answer)
        raise _Dropped

    def _reset_in_request(self) -> None:
        if "100-continue" in self.request.headers.get("expect", "").lower():
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        half = self.request.content_length // 2
        for _ in self._request_body():
            if self.event.bytes_up >= half:
                break
        self._client.reset()

    def _no_answer(self) -> None:
        assert self._rule is not None
        self._drain()
        self._proxy._stall(self._client, self._rule.seconds)

    def _refuse(self) -> None:
        assert self._rule is not None
        self._proxy.refuse(self._rule.seconds)
        self._client.reset()


class _Peer:
    """One end: a socket and what was read of it too early."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._early = bytearray()
        self._buffer = memoryview(bytearray(_CHUNK))

    def send(self, data: bytes | memoryview) -> None:
        self.sock.sendall(data)

    def readable(self) -> bool:
        """Something is there to read, or the other side has closed."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Dropped

    def head(self) -> bytes:
        """Start line and headers, with the empty line."""
        return self._until(b"\r\n\r\n")

    def body(self, headers: dict[str, str] | object, *, to_the_end: bool = False) -> Iterator[memoryview]:
        """The body's bytes as they stand on the wire (chunk headers too), in pieces that are valid until the next."""
        assert isinstance(headers, dict)
        if "chunked" in headers.get("transfer-encoding", "").lower():
            yield from self._chunked()
        elif "content-length" in headers:
            yield from self._exactly(int(headers["content-length"]))
        elif to_the_end:
            while piece := self._some(_CHUNK):
                yield piece

    def _exactly(self, length: int) -> Iterator[memoryview]:
        while length:
            piece = self._some(min(length, _CHUNK))
            if not piece:
                raise _Dropped
            length -= len(piece)
            yield piece

    def _chunked(self) -> Iterator[memoryview]:
        while True:
            line = self._until(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield memoryview(line)
            if not size:
                while line != b"\r\n":
                    line = self._until(b"\r\n")
                    yield memoryview(line)
                return
            yield from self._exactly(size + 2)

    def _some(self, most: int) -> memoryview:
        if self._early:
            piece = memoryview(bytes(self._early[:most]))
            del self._early[:most]
            return piece
        return self._buffer[: self.sock.recv_into(self._buffer[:most])]

    def _until(self, mark: bytes) -> bytes:
        while True:
            end = self._early.find(mark)
            if end >= 0:
                end += len(mark)
                found = bytes(self._early[:end])
                del self._early[:end]
                return found
            count = self.sock.recv_into(self._buffer)
            if not count or len(self._early) > _MAX_HEAD:
                raise _Dropped
            self._early += self._buffer[:count]


def _parse_answer(head: bytes) -> tuple[int, dict[str, str]]:
    line, *rest = head.decode("latin-1").split("\r\n")
    pairs = (header.partition(":") for header in rest if header)
    return int(line.split(" ", 2)[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _error_document(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>made by a test</Message></Error>'.encode()
    )
