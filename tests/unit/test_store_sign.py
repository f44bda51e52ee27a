"""Our signer agrees with botocore's, byte by byte."""

from __future__ import annotations

from datetime import datetime, timezone
from unittest import mock

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from sluicefs.store.sign import EMPTY_SHA256, UNSIGNED, Keys, Signer, encode_path, encode_query

NOW = datetime(2026, 11, 23, 21, 25, 7, tzinfo=timezone.utc)


def by_botocore(
    method: str, path: str, query: str, headers: dict[str, str], body: bytes, keys: Keys, region: str
) -> dict[str, str]:
    request = AWSRequest(method, f"https://host.example{path}{'?' + query if query else ''}", dict(headers), data=body)
    request.context["client_config"] = Config(s3={"payload_signing_enabled": not body})
    with mock.patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token), "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def by_us(method: str, path: str, query: str, headers: dict[str, str], body: bytes, keys: Keys, region: str) -> dict[str, str]:
    signed = {"host": "host.example", **headers}
    Signer(region).sign(method, path, query, signed, UNSIGNED if body else EMPTY_SHA256, keys, now=NOW.timestamp())
    del signed["host"]
    return signed


KEYS = [Keys("AKID", "secret/+="), Keys("AKID", "secret", "session//token==")]


@pytest.mark.parametrize("keys", KEYS, ids=["plain", "token"])
@pytest.mark.parametrize("key", ["a", "a b+c", "a//b/../c/./d", "é/日本/🎈", "%41?#&=<>'\"", "~-_.!*();:@$,[]{}|\\^`", "dir/"])
@pytest.mark.parametrize("region", ["auto", "eu-central-1"])
def test_golden(keys: Keys, key: str, region: str) -> None:
    path = encode_path(f"/bucket/{key}")
    headers = {"range": "bytes=0-99", "if-match": '"abc"', "x-amz-meta-name": "some  value", "content-type": "text/plain"}
    for method, query, body in (
        ("GET", "", b""),
        ("PUT", encode_query({"partNumber": "1", "uploadId": "a/b+c=~"}), b"body"),
        ("POST", encode_query({"uploads": ""}), b""),
        ("GET", encode_query({"list-type": "2", "prefix": key, "delimiter": "/", "encoding-type": "url"}), b""),
    ):
        ours = by_us(method, path, query, headers, body, keys, region)
        assert ours == by_botocore(method, path, query, headers, body, keys, region)


@given(st.text(min_size=1, max_size=60), st.dictionaries(st.text("abc-", min_size=1), st.text(max_size=20), max_size=4))
def test_any_key_and_query(key: str, query: dict[str, str]) -> None:
    try:
        key.encode()
        "".join(query.values()).encode()
    except UnicodeEncodeError:
        return
    arguments = ("GET", encode_path(f"/b/{key}"), encode_query(query), {}, b"", KEYS[0], "auto")
    assert by_us(*arguments) == by_botocore(*arguments)


def test_a_new_day_gets_a_new_key() -> None:
    signer = Signer("auto")
    seen = []
    for now in (NOW.timestamp(), NOW.timestamp() + 86400, NOW.timestamp()):
        headers = {"host": "h"}
        signer.sign("GET", "/", "", headers, EMPTY_SHA256, KEYS[0], now=now)
        seen.append(headers["authorization"])
    assert seen[0] == seen[2] != seen[1]
    assert "/20261124/auto/s3/aws4_request" in seen[1]
