"""The store of R2 and its kin, put together: endpoint, credentials, transport. The only importer of botocore.

botocore gives the credential chain, and a second transport for what the light one cannot do (proxies that are not plain
HTTP ones); both pass the same contract suite. botocore is imported only when one of the two is needed: it costs a mount
0.1 s and 20 MB. A secret never reaches `repr`, a log or a message.
"""

from __future__ import annotations

import io
import logging
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from sluicefs.errors import AccessDeniedError, BucketAccessError, MissingCredentialsError, StoreError
from sluicefs.store.advice import advice
from sluicefs.store.api import Counters
from sluicefs.store.client import Client, Credentials, LightTransport, Reply, Transport
from sluicefs.store.credentials import Explicit, find_credentials
from sluicefs.store.http import Cancelled, HttpError, Pool
from sluicefs.store.proxy import ProxyError, find_proxy
from sluicefs.store.sign import Keys
from sluicefs.store.verbs import Verbs

_RENEW_EVERY = 5.0  # seconds between two looks for new credentials
_STEP = 256 * 1024  # bytes between two progress calls


def resolve_credentials(explicit: Explicit | None = None, environment: Mapping[str, str] | None = None) -> Credentials:
    """Credentials in the documented order; see `store.credentials.find_credentials`."""
    return find_credentials(explicit, environment, ChainCredentials.find)


class S3Store(Verbs):
    """One bucket behind an S3 endpoint; see `store.api.Store` for the verbs.

    `timeout`: seconds without progress after which a call gives up, retries included. `connections`: at most that many at
    once. `light`: False for botocore's transport, None to choose. Raises MissingCredentialsError, and BucketAccessError for a
    `ca_bundle` that cannot be read.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str,
        region: str = "auto",
        credentials: Explicit | None = None,
        provider: str = "auto",
        timeout: float = 30.0,
        connections: int = 16,
        ca_bundle: str | None = None,
        light: bool | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.region = region
        transport: Transport
        try:
            if _is_light(endpoint) if light is None else light:
                pool = Pool(endpoint, size=connections, timeout=timeout, ca_bundle=ca_bundle)
                transport = LightTransport(pool, endpoint, region)
            else:
                transport = BotocoreTransport(endpoint, region, timeout, connections, ca_bundle)
        except OSError as error:
            raise BucketAccessError(f"The certificates in {ca_bundle!r} cannot be read: {error}. Give a PEM file.") from None
        self._credentials = resolve_credentials(credentials)
        super().__init__(bucket, Client(bucket, endpoint, transport, self._credentials, timeout, Counters()), provider)

    def __repr__(self) -> str:
        return f"S3Store({self.bucket!r}, endpoint={self.endpoint!r}, region={self.region!r})"

    def probe(self, seconds: float = 5.0) -> None:
        """Asks for one entry of the listing. Raises BucketAccessError: what is wrong, and what to do."""
        try:
            self.peek(seconds)
        except StoreError as error:
            try:
                key = self._credentials.keys().access_key
            except StoreError:
                key = "unknown"
            raise BucketAccessError(advice(error, self.bucket, self.endpoint, self.region, key)) from error


class ChainCredentials:
    """botocore's own chain: profiles, SSO, web identity, process, container, instance. Renewed before they expire."""

    def __init__(self, session_credentials: Any) -> None:
        self._found = session_credentials
        self._lock = threading.Lock()
        self._looked = time.monotonic()

    def __repr__(self) -> str:
        return f"ChainCredentials(from {getattr(self._found, 'method', 'unknown')})"

    @classmethod
    def find(cls) -> ChainCredentials | None:
        """What the chain finds; None where it finds nothing. Raises MissingCredentialsError where it is broken."""
        try:
            found = cls._search()
        except AccessDeniedError as error:
            raise MissingCredentialsError(
                f"The {error.strerror}. Check AWS_PROFILE and the files in ~/.aws, or log in anew; or set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY."
            ) from error
        return None if found is None else cls(found)

    @staticmethod
    def _search() -> Any:
        import botocore.exceptions
        import botocore.session

        _hush()
        try:
            return botocore.session.Session().get_credentials()
        except (botocore.exceptions.BotoCoreError, OSError) as error:
            said = str(error).rstrip(".: ")
            raise AccessDeniedError(f"credentials cannot be had: {said}", code="Credentials") from None

    def keys(self) -> Keys:
        import botocore.exceptions

        try:
            frozen = self._found.get_frozen_credentials()  # renews them when they are about to expire
        except (botocore.exceptions.BotoCoreError, OSError) as error:
            raise AccessDeniedError(f"credentials cannot be renewed: {error}", code="Credentials") from None
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def renew(self, refused: Keys) -> bool:
        """Looks through the chain again, at most every five seconds: a file may have been rewritten."""
        with self._lock:
            if time.monotonic() - self._looked < _RENEW_EVERY:
                return self.keys() != refused
            self._looked = time.monotonic()
            found = self._search()
            if found is not None:
                self._found = found
            return self.keys() != refused


def _is_light(endpoint: str) -> bool:
    try:
        find_proxy(endpoint)
    except ProxyError:
        return False
    return True


class BotocoreTransport:
    """botocore's signer on botocore's connections (urllib3): every kind of proxy, at 0.4 ms of processor time a request."""

    def __init__(self, endpoint: str, region: str, timeout: float, connections: int, ca_bundle: str | None) -> None:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.config import Config
        from botocore.credentials import Credentials as BotocoreCredentials
        from botocore.httpsession import URLLib3Session

        _hush()
        proxies = {} if urllib.request.proxy_bypass(_netloc(endpoint)) else urllib.request.getproxies()
        system = ssl.get_default_verify_paths().cafile
        self._session = URLLib3Session(
            verify=ca_bundle or system or True,
            proxies=proxies,
            timeout=(min(timeout, 10.0), timeout),
            max_pool_connections=connections,
        )
        if ca_bundle is not None and not os.path.isfile(ca_bundle):
            raise FileNotFoundError(ca_bundle)
        self._origin = f"{endpoint.split('//')[0]}//{_netloc(endpoint)}"
        self._region = region
        self._timeout = timeout
        # Unsigned bodies: TLS protects them, and hashing would cost more than all the rest.
        self._context = {"client_config": Config(s3={"payload_signing_enabled": False})}
        self._auth, self._request, self._credentials = S3SigV4Auth, AWSRequest, BotocoreCredentials

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
        from botocore import exceptions

        if cancelled is not None and cancelled():
            raise Cancelled
        url = f"{self._origin}{path}{'?' + query if query else ''}"
        request = self._request(method, url, dict(headers), data=b"" if body is None else body, stream_output=True)
        request.context.update(self._context)
        self._auth(self._credentials(keys.access_key, keys.secret_key, keys.token), "s3", self._region).add_auth(request)
        request.headers["Accept-Encoding"] = "identity"
        request.headers["User-Agent"] = "sluicefs"
        try:
            return BotocoreReply(self._session.send(request.prepare()), method)
        except (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError):
            raise TimeoutError("no answer in time") from None
        except exceptions.BotoCoreError as error:
            raise (_cause(error) or HttpError(str(error))) from None

    def close(self) -> None:
        self._session.close()


class BotocoreReply:
    """An answer on botocore's transport; the same doors as `http.Answer`."""

    def __init__(self, response: Any, method: str) -> None:
        self._raw = response.raw
        self.status: int = response.status_code
        self.headers = {name.lower(): str(value) for name, value in response.headers.items()}
        stated = self.headers.get("content-length", "")
        self.length = int(stated) if stated.isascii() and stated.isdigit() else None
        self._left = 0 if method == "HEAD" else self.length

    def read_into(
        self,
        view: memoryview,
        start: int = 0,
        *,
        progress: Callable[[int], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> int:
        raw: io.RawIOBase = self._raw._fp  # http.client's response: its readinto lands in our memory, urllib3's would copy
        position = start
        goal = min(len(view), start + (self._left or 0))
        while position < goal:
            if cancelled is not None and cancelled():
                raise Cancelled
            try:
                got = raw.readinto(view[position : min(goal, position + _STEP)])
            except TimeoutError:
                raise
            except OSError:
                break
            if not got:
                break
            position += got
            if progress is not None:
                progress(position)
        if self._left is not None:
            self._left -= position - start
        return position

    def read(self, limit: int) -> bytes:
        body = bytearray()
        try:
            while self._left != 0 and (piece := self._raw._fp.read(min(_STEP, limit + 1 - len(body)))):
                body += piece
                if len(body) > limit:
                    raise HttpError(f"an answer of more than {limit} bytes")
        except OSError:
            raise
        except Exception as error:  # http.client.IncompleteRead and its kin are no OSErrors
            raise HttpError(f"the answer broke off: {error!r}") from None
        if self._left is not None:
            self._left -= len(body)
            if self._left:
                raise HttpError("the answer broke off")
        else:
            self._left = 0
        return bytes(body)

    def close(self) -> None:
        if self._left == 0:
            self._raw.release_conn()
        else:
            self._raw.close()


def _cause(error: BaseException) -> OSError | None:
    """The socket's or TLS's own error beneath those of botocore and urllib3."""
    inner: BaseException | None = getattr(error, "kwargs", {}).get("error") or error.__cause__ or error.__context__
    for _ in range(10):
        if inner is None or isinstance(inner, OSError):
            break
        inner = inner.__cause__ or inner.__context__ or next((arg for arg in inner.args if isinstance(arg, Exception)), None)
    return inner if isinstance(inner, OSError) else None


def _hush() -> None:
    """botocore's debug log holds session tokens and the answers of credential services: it stays off whatever is asked for."""
    logging.getLogger("botocore").setLevel(logging.INFO)


def _netloc(endpoint: str) -> str:
    return urlsplit(endpoint).netloc.rpartition("@")[2]
