"""AWS Signature Version 4 for S3, by hand: hmac and hashlib, the day's signing key kept. No network, no botocore.

The rules are botocore's (`S3SigV4Auth`), and tests compare the two byte by byte: the path is signed as it is sent, encoded
once, never normalised. A secret is never in `repr`, in a log line or in an error.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

# Proxies change these on the way; botocore leaves out the first four too. Cloudflare and GCS rewrite Accept-Encoding.
_NOT_SIGNED = frozenset(("expect", "transfer-encoding", "user-agent", "x-amzn-trace-id", "accept-encoding", "connection"))


@dataclass(frozen=True, slots=True)
class Keys:
    """One set of credentials as it stands now."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def encode_path(text: str) -> str:
    """`text` as it stands in a path and in its signature: UTF-8, everything but unreserved characters and `/` escaped."""
    return quote(text, safe="/~")


def encode_query(query: Mapping[str, str]) -> str:
    """The canonical query string: sorted, everything but unreserved characters escaped."""
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(query.items()))


class Signer:
    """Signs for one region and service. Thread-safe: its cached values are replaced as a whole."""

    def __init__(self, region: str, service: str = "s3") -> None:
        self.region = region
        self.service = service
        self._second: tuple[int, str] = (0, "")
        self._key: tuple[tuple[str, str], _Hmac] | None = None

    def timestamp(self, now: float | None = None) -> str:
        """`now` (seconds since the epoch) as `20261123T212500Z`."""
        second = int(time.time() if now is None else now)
        cached = self._second
        if cached[0] == second:
            return cached[1]
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        self._second = (second, stamp)
        return stamp

    def sign(
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        payload: str,
        keys: Keys,
        *,
        now: float | None = None,
    ) -> None:
        """Adds the signature to `headers` (lower-case names, `host` among them).

        `path` and `query` are encoded already; `payload` is the body's SHA-256 in hex, or UNSIGNED.
        """
        stamp = self.timestamp(now)
        headers["x-amz-content-sha256"] = payload
        headers["x-amz-date"] = stamp
        if keys.token:
            headers["x-amz-security-token"] = keys.token
        names = sorted(headers.keys() - _NOT_SIGNED)
        signed = ";".join(names)
        lines = "\n".join([f"{name}:{_trim(headers[name])}" for name in names])
        canonical = f"{method}\n{path}\n{query}\n{lines}\n\n{signed}\n{payload}"
        day = stamp[:8]
        scope = f"{day}/{self.region}/{self.service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = self._signing_key(keys.secret_key, day).hex_digest(text.encode())
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )

    def _signing_key(self, secret: str, day: str) -> _Hmac:
        cached = self._key
        if cached is not None and cached[0] == (secret, day):
            return cached[1]
        key = hmac.digest(f"AWS4{secret}".encode(), day.encode(), "sha256")
        for part in (self.region, self.service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        made = _Hmac(key)
        self._key = ((secret, day), made)
        return made


class _Hmac:
    """HMAC-SHA256 (RFC 2104) with a key of 32 bytes: both padded keys are hashed once, not with every message."""

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def hex_digest(self, message: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.hexdigest()


def _trim(value: str) -> str:
    """A header value as it is signed: runs of spaces count as one."""
    return " ".join(value.split()) if "  " in value or value[:1].isspace() or value[-1:].isspace() else value
