"""One request to the store, made to succeed: signed, sent, tried again where that can help, bounded, and counted.

Knows HTTP answers and S3's error words, not what the verbs mean. No botocore; a secret never reaches a message.
"""

from __future__ import annotations

import logging
import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from sluicefs.errors import (
    AccessDeniedError,
    CancelledError,
    ClockSkewError,
    ConditionFailedError,
    ShortBodyError,
    StoreError,
    StoreTimeoutError,
    UnreachableError,
)
from sluicefs.store import wire
from sluicefs.store.api import Counters
from sluicefs.store.http import Cancelled, Pool, StaleConnectionError
from sluicefs.store.sign import EMPTY_SHA256, UNSIGNED, Keys, Signer, encode_path, encode_query

log = logging.getLogger("sluicefs.store")

T = TypeVar("T")

_FIRST_PAUSE = 0.1  # seconds, doubled each time
_LONGEST_PAUSE = 5.0
_SIGNATURE_TRIES = 3  # R2 answers SignatureDoesNotMatch under load to requests that are right
_ERROR_BODY = 64 * 1024  # bytes of an error answer that are read
_TELL_EVERY = 60.0  # seconds between two lines in the log about a store that refuses us
_GIVEN_UP_AT_ONCE = frozenset(("TLS", "DNS"))


class Credentials(Protocol):
    """Where keys come from."""

    def keys(self) -> Keys:
        """Keys that are valid now, renewed first where that is due. Raises AccessDeniedError when that fails."""

    def renew(self, refused: Keys) -> bool:
        """The store refused these keys: looks for others; True when there are some."""


class Reply(Protocol):
    """An answer whose head is in; see `store.http.Answer`, which is one."""

    status: int
    headers: dict[str, str]
    length: int | None

    def read_into(
        self,
        view: memoryview,
        start: int = 0,
        *,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> int:
        """Fills `view` from `start`; the position reached is short when the body broke off."""

    def read(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes."""

    def close(self) -> None:
        """Gives the connection back."""


class Transport(Protocol):
    """Signs a request and sends it."""

    def send(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        keys: Keys,
        wait: float,
        left: float,
        cancelled: Callable[[], bool] | None,
    ) -> Reply:
        """The answer's head; the body is still to be read. `wait`, `left` and what it raises: see `http.Pool.exchange`."""

    def close(self) -> None:
        """Drops the connections."""


class LightTransport:
    """Our own signer on our own connections: a tenth of the processor time of a whole client."""

    def __init__(self, pool: Pool, endpoint: str, region: str) -> None:
        self._pool = pool
        self._signer = Signer(region)
        self._host = urlsplit(endpoint).netloc.rpartition("@")[2]

    def send(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        keys: Keys,
        wait: float,
        left: float,
        cancelled: Callable[[], bool] | None,
    ) -> Reply:
        headers = {"host": self._host, **headers}
        # The body is not hashed: TLS protects it, and hashing would cost more than all the rest.
        self._signer.sign(method, path, query, headers, UNSIGNED if body else EMPTY_SHA256, keys)
        if body is not None:
            headers["content-length"] = str(len(body))
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers):
            raise ValueError("a header value holds a line break")
        lines += "accept-encoding: identity\r\nuser-agent: sluicefs\r\n"
        target = f"{path}?{query}" if query else path
        return self._pool.exchange(method, target, lines, body, wait=wait, left=left, cancelled=cancelled)

    def close(self) -> None:
        self._pool.close()


class Budget:
    """How long and how often one call may go on trying. `seconds` count anew with every `progress`."""

    def __init__(self, seconds: float) -> None:
        self.tries = 1
        self._seconds = seconds
        self._began = time.monotonic()
        self._pause = _FIRST_PAUSE
        self._signatures = 0

    @property
    def repeated(self) -> bool:
        """A try before this one may have been carried out though its answer was lost."""
        return self.tries > 1

    @property
    def left(self) -> float:
        """Seconds until giving up."""
        return self._began + self._seconds - time.monotonic()

    def progress(self) -> None:
        """Bytes arrived: patience begins anew."""
        self._began = time.monotonic()
        self._pause = _FIRST_PAUSE

    def wait_or_raise(self, error: StoreError, retry_after: float, cancelled: Callable[[], bool] | None) -> None:
        """Sleeps before the next try, or raises `error` when another try cannot help or would come too late."""
        if error.code == "SignatureDoesNotMatch":
            self._signatures += 1
            if self._signatures >= _SIGNATURE_TRIES:
                raise error
        elif not _is_transient(error):
            raise error
        pause = max(retry_after, random.uniform(0.5, 1.0) * self._pause)
        if pause >= self.left:
            raise error
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self.tries += 1
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            if cancelled is not None and cancelled():
                raise CancelledError("cancelled between two tries")
            time.sleep(min(left, 0.2))


def _is_transient(error: StoreError) -> bool:
    if isinstance(error, (UnreachableError, ShortBodyError)):
        return error.code not in _GIVEN_UP_AT_ONCE
    if isinstance(error, ConditionFailedError):
        return False
    return error.status in (429, 500, 502, 503, 504) or error.code in wire.TRANSIENT


class Client:
    """Requests to one bucket. Thread-safe. `timeout`: seconds without progress after which a call gives up."""

    def __init__(
        self, bucket: str, endpoint: str, transport: Transport, credentials: Credentials, timeout: float, counters: Counters
    ) -> None:
        self.counters = counters
        self.timeout = timeout
        self.server = ""  # what the first answer's Server header said
        self._base = encode_path(f"{urlsplit(endpoint).path.rstrip('/')}/{bucket}")
        self._where = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._transport = transport
        self._credentials = credentials
        self._lock = threading.Lock()
        self._refused = False
        self._told = -math.inf  # monotonic time of the last line about it

    def call(
        self,
        verb: str,
        method: str,
        key: str,
        read: Callable[[Reply], T],
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        body: memoryview | None = None,
        budget: Budget | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> T:
        """What `read` makes of the answer (status below 300). `headers` may be a function, asked before each try.

        Raises StoreError kinds whose message names verb, key and cause. `read` may raise them too, or MalformedError.
        """
        budget = budget or Budget(self.timeout)
        path = f"{self._base}/{encode_path(key)}" if key else self._base
        text = encode_query(query) if query else ""
        while True:
            keys: Keys | None = None
            retry_after = 0.0
            try:
                keys = self._credentials.keys()
                sent = (headers() if callable(headers) else headers) or {}
                answer = self._send(verb, method, path, text, sent, body, keys, budget, cancelled)
                try:
                    if answer.status < 300:
                        if not self.server:
                            self.server = answer.headers.get("server", "")
                        if self._refused:
                            self._let_in()
                        return read(answer)
                    retry_after = _retry_after(answer.headers)
                    error = _failure(f"{verb} {key!r}", answer)
                finally:
                    answer.close()
            except StoreError as raised:
                error = raised
            except wire.MalformedError as raised:
                error = UnreachableError(f"{verb} {key!r}: the answer is malformed: {raised}", code="Malformed")
            except Cancelled:
                raise CancelledError(f"{verb} {key!r}: cancelled") from None
            except (OSError, ValueError) as raised:
                error = self._broken(f"{verb} {key!r}", raised, budget)
            if error.code in wire.STALE_KEYS and keys is not None and budget.left > 0 and self._credentials.renew(keys):
                log.warning("%s; trying again with renewed credentials", error.strerror)
                budget.tries += 1
                continue
            try:
                budget.wait_or_raise(error, retry_after, cancelled)
            except AccessDeniedError as denied:
                self._shut_out(denied)
                raise
            with self._lock:
                self.counters.retries += 1
            log.info("%s; try %d", error.strerror, budget.tries)

    def close(self) -> None:
        """Drops the connections."""
        self._transport.close()

    def _shut_out(self, error: AccessDeniedError) -> None:
        """One line, however many calls fail so."""
        with self._lock:
            now = time.monotonic()
            tell = now - self._told > _TELL_EVERY
            self._refused, self._told = True, now if tell else self._told
        if tell:
            log.error(
                "%s. Calls end with EACCES until the store lets us in: renew the credentials, or grant them access.",
                error.strerror,
            )

    def _let_in(self) -> None:
        with self._lock:
            said, self._refused = self._refused, False
        if said:
            log.info("the store lets us in again")

    def _send(
        self,
        verb: str,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        keys: Keys,
        budget: Budget,
        cancelled: Callable[[], bool] | None,
    ) -> Reply:
        while True:
            wait = self._wait(method, budget)
            with self._lock:
                self.counters.requests[verb] = self.counters.requests.get(verb, 0) + 1
                if body is not None and method == "PUT":
                    self.counters.bytes_up += len(body)
            try:
                return self._transport.send(method, path, query, headers, body, keys, wait, budget.left, cancelled)
            except StaleConnectionError:
                # The server closed an idle connection as we took it: not a failure. Each such try uses one up, so this ends.
                budget.tries += 1  # yet it may have been carried out
                with self._lock:
                    self.counters.requests[verb] -= 1
                    if body is not None and method == "PUT":
                        self.counters.bytes_up -= len(body)
                if method == "POST":
                    raise

    def _wait(self, method: str, budget: Budget) -> float:
        """Seconds for the answer to begin. A read that hangs is tried once more within the budget, a write may take it all."""
        share = self.timeout / 2 if method in ("GET", "HEAD") else self.timeout
        return max(1.0, min(share, budget.left))

    def _broken(self, what: str, error: Exception, budget: Budget) -> StoreError:
        """The kind of a failure below HTTP."""
        where = self._where
        if isinstance(error, ssl.SSLCertVerificationError):
            return UnreachableError(f"{what}: the certificate of {where} is not trusted: {error.verify_message}", code="TLS")
        if isinstance(error, ssl.SSLError):
            return UnreachableError(f"{what}: no TLS with {where}: {error.reason or error}", code="TLSBroken")
        if isinstance(error, socket.gaierror):
            lasting = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            code = "DNS" if lasting else "DNSTemporary"
            return UnreachableError(f"{what}: the name of {where} cannot be resolved: {error.strerror}", code=code)
        if isinstance(error, TimeoutError):
            return StoreTimeoutError(f"{what}: {where} did not answer in time (try {budget.tries})", code="Timeout")
        if isinstance(error, OSError):
            code = "ConnectionRefused" if isinstance(error, ConnectionRefusedError) else "ConnectionBroken"
            return UnreachableError(
                f"{what}: no answer from {where}: {error.strerror or error} (try {budget.tries})", code=code
            )
        return StoreError(f"{what}: {error}", code="InvalidArgument")


def _failure(what: str, answer: Reply) -> StoreError:
    try:
        body = answer.read(_ERROR_BODY)
    except OSError:
        body = b""  # the status says enough
    error = wire.error_for(what, answer.status, body)
    if isinstance(error, ClockSkewError):
        there = answer.headers.get("date", "unknown")
        return ClockSkewError(f"{error.strerror} (the store's clock says {there})", code=error.code, status=error.status)
    if isinstance(error, AccessDeniedError) and not error.code and answer.headers.get("x-amz-bucket-region"):
        region = answer.headers["x-amz-bucket-region"]
        return AccessDeniedError(f"{error.strerror} (the bucket is in region {region})", status=error.status)
    return error


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the store asks to wait; a date in place of a number is not honoured."""
    text = headers.get("retry-after", "")
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else 0.0
