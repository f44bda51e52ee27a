"""HTTP/1.1 over a pool of keep-alive connections, as little of it as S3 needs. Knows nothing of S3 and never retries a request
that the server may have begun to answer.

A body of stated length is received straight into the caller's memory (`recv_into`, the GIL released meanwhile). A small
GET costs one send and one receive.
"""

from __future__ import annotations

import queue
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from sluicefs.store.proxy import ProxyError, find_proxy, tunnel

MAX_HEAD = 64 * 1024  # bytes of a status line and headers; S3 allows 8 KiB of metadata
_HEAD_STEP = 8 * 1024  # bytes of one receive while the head is awaited
_STEP = 256 * 1024  # bytes between two progress calls
_FIRST_STEP = 16 * 1024  # bytes until the first; then twice as many each time
_SLICE = 0.2  # seconds between two looks at `cancelled` while nothing comes
_TRUSTED = 0.5  # seconds after which an unused connection is looked at before a request that can be sent again takes it
_LEAST = 1.0  # seconds that each wait of a try may take though its time is over
_IDLE = 50.0  # seconds after which an unused connection is not trusted any more
_MAX_LINE = 1024  # bytes of a chunk-size line
_MAX_TRAILERS = 64  # lines behind a chunked body
_LENGTH = re.compile(r"[0-9]{1,18}\Z")  # a signed 64-bit number holds it
_STATUS = re.compile(r"[1-9][0-9]{2}\Z")


class HttpError(OSError):
    """The exchange broke. `sent` is False when the server cannot have seen the whole request on a connection that was fresh."""


class StaleConnectionError(HttpError):
    """A reused connection had been closed by the server before it sent one byte of an answer."""


class Cancelled(Exception):
    """`cancelled()` said so."""


class Connection:
    """One connection and what was received beyond the last answer."""

    __slots__ = ("broken", "buffer", "filled", "poll", "raw", "reused", "since", "sock", "timeout", "view")

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.sock = sock
        self.raw = not isinstance(sock, ssl.SSLSocket)
        self.buffer = bytearray(MAX_HEAD)
        self.view = memoryview(self.buffer)
        self.filled = 0
        self.poll = select.poll()
        self.poll.register(sock.fileno(), select.POLLIN | select.POLLPRI)
        self.reused = False
        self.since = 0.0
        self.broken = False
        self.timeout = timeout

    def close(self) -> None:
        with suppress(OSError):
            self.sock.close()

    def is_fresh(self, now: float, trust: float) -> bool:
        """False when it idled too long, or has something to read: with nothing asked that is an end or an error.

        One that was in use less than `trust` seconds ago is not looked at.
        """
        idle = now - self.since
        return idle < trust or (idle < _IDLE and not self.poll.poll(0))

    def wait_timeout(self, seconds: float) -> None:
        """About `seconds`: a setting that is near enough stays, as each change is a system call."""
        if not seconds / 4 <= self.timeout <= seconds + 1:
            self.sock.settimeout(seconds)
            self.timeout = seconds

    def receive(self, view: memoryview, end: float, cancelled: Callable[[], bool] | None = None) -> int:
        """Some bytes into `view`, 0 at the end of the stream. `end`: monotonic time after which TimeoutError is raised."""
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer in time")
            if cancelled is not None:
                if cancelled():
                    self.broken = True
                    raise Cancelled
                left = min(left, _SLICE)
            try:
                self.wait_timeout(left)
                return self.sock.recv_into(view)
            except TimeoutError:
                continue


class Answer:
    """A status, headers (lower-case names) and a body still to be read. Call `close` when done, in any case."""

    __slots__ = ("_chunked", "_connection", "_first", "_left", "_pool", "_timeout", "headers", "length", "status")

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        status: int,
        headers: dict[str, str],
        timeout: float,
        first: float,
        *,
        no_body: bool,
    ) -> None:
        """`timeout`: seconds without progress after which the body has stalled; before there is any, `first`."""
        self._pool = pool
        self._connection: Connection | None = connection
        self._timeout = timeout
        self._first = first
        self.status = status
        self.headers = headers
        self._chunked = headers.get("transfer-encoding", "").lower().endswith("chunked")
        stated = headers.get("content-length")
        self.length: int | None = None
        if no_body or status in (204, 304):
            self._chunked = False
            self._left = 0
        elif self._chunked or stated is None:
            self._left = -1
        else:
            if not _LENGTH.match(stated):
                connection.broken = True
                raise HttpError(f"the answer states a length of {stated[:40]!r}")
            self._left = int(stated)
        if stated is not None and _LENGTH.match(stated) and not self._chunked:
            self.length = int(stated)
        if headers.get("connection", "").lower() == "close" or (self._left < 0 and not self._chunked):
            connection.broken = True  # not to be used again

    def read_into(
        self,
        view: memoryview,
        start: int = 0,
        *,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> int:
        """Fills `view` from `start` with a body of stated length; returns the position reached, short when it broke off.

        `progress(n)`: n bytes of `view` are there. Raises Cancelled, and TimeoutError when nothing comes for the timeout.
        """
        connection = self._connection
        if connection is None or self._left < 0:
            raise HttpError("the answer states no length")
        position = start
        goal = min(len(view), start + self._left)
        if connection.filled:
            take = min(connection.filled, goal - position)
            view[position : position + take] = connection.view[:take]
            _shift(connection, take)
            position += take
        told, step = start, _FIRST_STEP
        patience = time.monotonic() + self._first
        try:
            while position < goal:
                piece = view[position : min(goal, position + _STEP)]
                reached = position + connection.receive(piece, patience, cancelled)
                if reached == position:
                    connection.broken = True
                    break
                position = reached
                if position - told >= step:
                    told, step = position, min(2 * step, _STEP)
                    patience = time.monotonic() + self._timeout
                    if progress is not None:
                        progress(position)
        except BaseException as error:
            connection.broken = True
            if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                raise
        finally:
            self._left -= position - start
        if position > told and progress is not None:
            progress(position)
        return position

    def read(self, limit: int) -> bytes:
        """The whole body, of whatever framing. Raises HttpError when it is longer than `limit` bytes or breaks off."""
        if self._left >= 0:
            if self._left > limit:
                raise HttpError(f"an answer of {self._left} bytes, at most {limit} are taken")
            body = bytearray(self._left)
            if self.read_into(memoryview(body)) < len(body):
                raise HttpError("the answer broke off")
            return bytes(body)
        pieces: list[bytes] = []
        total = 0
        while piece := (self._read_chunk(limit) if self._chunked else self._read_some()):
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise HttpError(f"an answer of more than {limit} bytes")
        self._left = 0
        return b"".join(pieces)

    def close(self) -> None:
        """Gives the connection back, or drops it where a part of the body was left unread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection, reusable=self._left == 0 and not connection.broken)

    def _read_some(self) -> bytes:
        connection = self._connection
        assert connection is not None
        if not connection.filled:
            count = connection.receive(memoryview(connection.buffer), time.monotonic() + self._first)
            connection.filled = count
        piece = bytes(connection.buffer[: connection.filled])
        connection.filled = 0
        return piece

    def _take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        connection = self._connection
        assert connection is not None
        pieces = bytearray(connection.buffer[: min(count, connection.filled)])
        _shift(connection, len(pieces))
        while len(pieces) < count:
            more = bytearray(min(count - len(pieces), _STEP))
            got = connection.receive(memoryview(more), time.monotonic() + self._first)
            if not got:
                connection.broken = True
                raise HttpError("the answer broke off inside a chunk")
            pieces += more[:got]
        return bytes(pieces)

    def _line(self) -> bytes:
        connection = self._connection
        assert connection is not None
        while (found := connection.buffer.find(b"\r\n", 0, connection.filled)) < 0:
            if connection.filled > _MAX_LINE:
                connection.broken = True
                raise HttpError("the answer's chunks are malformed")
            free = memoryview(connection.buffer)[connection.filled :]
            got = connection.receive(free, time.monotonic() + self._first)
            if not got:
                connection.broken = True
                raise HttpError("the answer broke off between chunks")
            connection.filled += got
        line = bytes(connection.buffer[:found])
        _shift(connection, found + 2)
        return line

    def _read_chunk(self, limit: int) -> bytes:
        text = self._line().partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,12}", text):
            if self._connection is not None:
                self._connection.broken = True
            raise HttpError("the answer's chunks are malformed")
        size = int(text, 16)
        if size > limit:
            raise HttpError(f"a chunk of {size} bytes, at most {limit} are taken")
        if not size:
            for _ in range(_MAX_TRAILERS):
                if not self._line():
                    return b""
            raise HttpError("the answer's trailers do not end")
        piece = self._take(size)
        if self._line():
            raise HttpError("the answer's chunks are malformed")
        return piece


def _shift(connection: Connection, count: int) -> None:
    left = connection.filled - count
    if left:
        connection.buffer[:left] = connection.buffer[count : connection.filled]
    connection.filled = left


class Pool:
    """Connections to one origin: at most `size` at once; a caller that finds none free waits for at most `timeout` seconds.

    TLS is verified against `ca_bundle` (a file), else the system's certificates. HTTP_PROXY, HTTPS_PROXY and NO_PROXY hold.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        size: int = 16,
        timeout: float = 30.0,
        ca_bundle: str | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> None:
        parts = urlsplit(endpoint)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.timeout = timeout
        self.proxy = find_proxy(endpoint, proxies)
        self._tls = ssl.create_default_context(cafile=ca_bundle) if self.secure else None
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()  # a semaphore in C; threading's is Python
        for _ in range(size):
            self._free.put(None)
        self._closed = False

    def exchange(
        self,
        method: str,
        target: str,
        headers: str,
        body: memoryview | None,
        *,
        wait: float | None = None,
        left: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Answer:
        """Sends one request and reads the head of its answer.

        `headers`: ready lines, each ended by CRLF. `wait`: seconds until the answer must begin, while nothing can be sent
        [the pool's timeout]; `left`: until its body must, at most [the pool's timeout after its head]. Raises
        StaleConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, OSError, Cancelled.
        """
        began = time.monotonic()
        wait = self.timeout if wait is None else wait
        try:
            self._free.get(timeout=min(self.timeout, wait))
        except queue.Empty:
            raise TimeoutError(f"all connections were busy for {min(self.timeout, wait):g} s") from None
        connection: Connection | None = None
        try:
            connection = self._take_idle(_TRUSTED if method == "GET" else 0.0) or self._connect(began + wait)
            if self.proxy is not None and not self.secure:
                target = f"http://{self.host}:{self.port}{target}"
                headers = self.proxy.authorization + headers
            head = f"{method} {target} HTTP/1.1\r\n{headers}\r\n".encode("latin-1")
            self._send(connection, head, body)
            now = time.monotonic()
            end = now + wait if body else max(began + wait, now + wait / 2)
            status, fields = self._read_head(connection, end, cancelled)
            first = self.timeout
            if left is not None:
                first = max(_LEAST, min(first, began + left - time.monotonic()))
            return Answer(self, connection, status, fields, self.timeout, first, no_body=method == "HEAD")
        except BaseException:
            if connection is not None:
                connection.close()
            self._free.put(None)
            raise

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """For `Answer.close` only."""
        if reusable and not connection.filled and not self._closed:
            connection.since = time.monotonic()
            connection.reused = True
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()
        self._free.put(None)

    def close(self) -> None:
        """Drops the idle connections; busy ones are dropped as they come back."""
        self._closed = True
        self.drop_idle()

    def drop_idle(self) -> None:
        """After the endpoint failed once, what is idle is not trusted either."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take_idle(self, trust: float) -> Connection | None:
        now = time.monotonic()
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()  # the one used last: the others may grow old and go
                old = self._idle.pop(0) if self._idle and now - self._idle[0].since > _IDLE else None
            if old is not None:
                old.close()
            if connection.is_fresh(now, trust):
                return connection
            connection.close()

    def _connect(self, end: float) -> Connection:
        proxy = self.proxy
        address = (proxy.host, proxy.port) if proxy is not None else (self.host, self.port)
        try:
            sock = socket.create_connection(address, timeout=max(_LEAST, min(self.timeout, 10.0, end - time.monotonic())))
        except (ConnectionRefusedError, socket.gaierror) as error:
            if proxy is None:
                raise
            raise ProxyError(f"the proxy {proxy.host}:{proxy.port} cannot be reached: {error.strerror}") from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                if proxy is not None:
                    tunnel(sock, f"{self.host}:{self.port}", proxy.authorization, self.timeout)
                sock = self._tls.wrap_socket(sock, server_hostname=self.host)
            sock.settimeout(self.timeout)
            return Connection(sock, self.timeout)
        except BaseException:
            sock.close()
            raise

    def _send(self, connection: Connection, head: bytes, body: memoryview | None) -> None:
        sock = connection.sock
        try:
            if not body:
                sock.sendall(head)  # the socket's buffer takes it at once
                return
            connection.wait_timeout(self.timeout)
            if connection.raw:
                sent = sock.sendmsg((head, body[:_STEP])) - len(head)
                if sent < 0:
                    sock.sendall(head[sent:])
                    sent = 0
            elif len(body) < 16384:
                sock.sendall(head + body)
                return
            else:
                sock.sendall(head)
                sent = 0
            ready = select.poll()
            ready.register(sock.fileno(), select.POLLOUT | select.POLLRDHUP)
            while sent < len(body):
                events = ready.poll(self.timeout * 1000)
                if not events:
                    raise TimeoutError("the body was not taken in time")
                if events[0][1] & ~select.POLLOUT:  # the server has closed: send would wait for room that never comes
                    connection.broken = True
                    return
                sent += sock.send(body[sent : sent + 4 * _STEP])
        except TimeoutError:
            raise
        except OSError as error:
            # The server may have refused the request early and closed: what it said is worth more than the broken pipe.
            connection.broken = True
            if not connection.poll.poll(200):
                raise self._lost(connection, error) from None

    def _read_head(
        self, connection: Connection, end: float, cancelled: Callable[[], bool] | None
    ) -> tuple[int, dict[str, str]]:
        view = connection.view
        while True:
            found = connection.buffer.find(b"\r\n\r\n", 0, connection.filled)
            if found >= 0:
                status, fields = _parse_head(str(view[:found], "latin-1"))
                _shift(connection, found + 4)
                if status >= 200:
                    return status, fields
                continue  # 100 Continue and its kind
            if connection.filled == MAX_HEAD:
                raise HttpError(f"the answer's headers are larger than {MAX_HEAD} bytes")
            try:
                # A little at a time: what comes of a long body goes to the caller's memory without passing through here.
                got = connection.receive(view[connection.filled : connection.filled + _HEAD_STEP], end, cancelled)
            except TimeoutError:
                raise
            except OSError as error:
                raise self._lost(connection, error) from None
            if not got:
                raise self._lost(connection, None)
            connection.filled += got

    def _lost(self, connection: Connection, error: OSError | None) -> HttpError:
        why = (error.strerror or str(error)) if error is not None else "the connection was closed before an answer"
        if connection.reused and not connection.filled:
            return StaleConnectionError(why)
        return HttpError(why)


def _parse_head(head: str) -> tuple[int, dict[str, str]]:
    """Status and headers; of a header that stands twice the last counts, but lengths must agree. HttpError: not HTTP/1."""
    first, *lines = head.split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not _STATUS.match(status):
        raise HttpError(f"the answer is not HTTP: {first[:60]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        if name == "content-length" and fields.get(name, value) != value:
            raise HttpError("the answer states two lengths")  # RFC 9112, 6.3
        fields[name] = value
    return int(status), fields
