"""HTTP proxies as the environment names them: which one holds for an endpoint, and the tunnel through it for TLS."""

from __future__ import annotations

import base64
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_MAX_HEAD = 16 * 1024  # bytes of a proxy's answer to CONNECT


class ProxyError(OSError):
    """The proxy is of a kind that cannot be used, or refused."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy and the header line that lets us in, "" for none."""

    host: str
    port: int
    authorization: str = field(repr=False)


def find_proxy(endpoint: str, proxies: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy the environment names for `endpoint`; `proxies` (scheme to URL) instead of the environment.

    Raises ProxyError for one that is not an HTTP proxy.
    """
    parts = urlsplit(endpoint)
    known = urllib.request.getproxies() if proxies is None else proxies
    url = known.get(parts.scheme) or known.get("all")
    if not url or (proxies is None and urllib.request.proxy_bypass(f"{parts.hostname}:{parts.port or 0}")):
        return None
    named = urlsplit(url if "//" in url else f"//{url}")
    if named.scheme not in ("", "http") or not named.hostname:
        raise ProxyError(f"the proxy for {parts.hostname} must be an http:// one, not {named.scheme}://")
    authorization = ""
    if named.username is not None:
        pair = f"{unquote(named.username)}:{unquote(named.password or '')}".encode()
        authorization = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
    return Proxy(named.hostname, named.port or 80, authorization)


def tunnel(sock: socket.socket, target: str, authorization: str, timeout: float) -> None:
    """CONNECT through an HTTP proxy."""
    sock.settimeout(timeout)
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n".encode("latin-1"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)  # not one byte beyond the head: the next is the server's TLS
        if not byte or len(head) > _MAX_HEAD:
            raise ProxyError("the proxy closed the connection")
        head += byte
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise ProxyError(f"the proxy refused the connection: {head.splitlines()[0][:60]!r}")
