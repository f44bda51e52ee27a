"""A raw-socket HTTP server that plays a script: one act for each request, on as many connections as are opened."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

Act = Callable[["Peer", bytes], None]


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open = True

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        self.open = False
        self.sock.close()

    def reset(self) -> None:
        """An RST, not an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class ScriptedServer:
    """Plays `acts` in order; the last one goes on for ever. `requests` holds every request with its body."""

    def __init__(self, *acts: Act, context: ssl.SSLContext | None = None) -> None:
        self.acts = list(acts)
        self.requests: list[bytes] = []
        self.connections = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._begin(self._accept)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def endpoint(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _begin(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(sock)
            self._begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._peers.append(sock)
            peer = Peer(sock)
            while peer.open:
                request = read_request(sock)
                if not request:
                    break
                with self._lock:
                    self.requests.append(request)
                    act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
                act(peer, request)
        except OSError:
            pass
        finally:
            sock.close()


def read_request(sock: socket.socket) -> bytes:
    """One request with its body, empty at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    while found and len(body) < int(found[1]):
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def head(status: str, length: int, **fields: str) -> bytes:
    """The head of an answer; `_` in a field's name stands for `-`."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{lines}\r\n".encode()


def answer(status: str, body: bytes = b"", **fields: str) -> Act:
    """A whole answer."""
    return lambda peer, request: peer.send(head(status, len(body), **fields) + body)


def refusal(status: str, code: str, **fields: str) -> Act:
    """An S3 error."""
    return answer(status, f"<Error><Code>{code}</Code><Message>told</Message></Error>".encode(), **fields)


def serve_object(
    data: bytes, *, cut: int | None = None, end: Callable[[Peer], None] = Peer.close, etag: str | None = None
) -> Act:
    """Answers GET (ranges too) and HEAD of `data`; after `cut` bytes of the body the connection ends with `end`."""
    version = etag or hashlib.md5(data).hexdigest()

    def act(peer: Peer, request: bytes) -> None:
        found = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", request)
        first, last = (int(found[1]), min(int(found[2]), len(data) - 1)) if found else (0, len(data) - 1)
        part = data[first : last + 1]
        fields = {"ETag": f'"{version}"', "Last_Modified": "Mon, 23 Nov 2026 21:25:00 GMT"}
        if found:
            fields["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        top = head("206 Partial Content" if found else "200 OK", len(part), **fields)
        if request.startswith(b"HEAD"):
            peer.send(top)
        elif cut is None:
            peer.send(top + part)
        else:
            peer.send(top + part[:cut])
            time.sleep(0.05)  # a reset drops what the peer has not read yet
            end(peer)

    return act


def hang(peer: Peer, request: bytes) -> None:
    """No answer until the peer ends."""
    peer.sock.recv(1)


def reset(peer: Peer, request: bytes) -> None:
    peer.reset()
