"""Where credentials come from, and what is said when a bucket cannot be used."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from sluicefs.errors import BucketAccessError, MissingCredentialsError
from sluicefs.store.s3 import S3Store, resolve_credentials
from sluicefs.store.sign import Keys
from tests.unit.scripted import ScriptedServer, answer, hang, refusal

AWS = {"AWS_ACCESS_KEY_ID": "AWSKEY", "AWS_SECRET_ACCESS_KEY": "awssecret", "AWS_SESSION_TOKEN": "awstoken"}
R2 = {"R2_ACCESS_KEY_ID": "R2KEY", "R2_SECRET_ACCESS_KEY": "r2secret"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process with no credentials anywhere; the folder holds the AWS files it would look at."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "R2_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


def profile(folder: Path, access: str) -> None:
    (folder / "credentials").write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = filesecret\n")


def test_order(bare: Path) -> None:
    profile(bare, "FILEKEY")
    given = ("GIVEN", "givensecret")
    assert resolve_credentials(given, AWS | R2).keys() == Keys("GIVEN", "givensecret")
    assert resolve_credentials(None, AWS | R2).keys() == Keys("AWSKEY", "awssecret", "awstoken")
    assert resolve_credentials(None, R2).keys() == Keys("R2KEY", "r2secret")
    assert resolve_credentials(None, {}).keys() == Keys("FILEKEY", "filesecret")


def test_forms_of_explicit_credentials() -> None:
    expected = Keys("A", "S", "T")
    for given in (
        expected,
        ("A", "S", "T"),
        {"access_key_id": "A", "secret_access_key": "S", "session_token": "T"},
        {"accessKeyId": "A", "secretAccessKey": "S", "sessionToken": "T"},
        {"aws_access_key_id": "A", "aws_secret_access_key": "S", "aws_session_token": "T"},
    ):
        found = resolve_credentials(given)
        assert found.keys() == expected
        assert "S'" not in repr(found)
    for wrong in (("A",), "AS", {"access_key": "A"}, ("A", "")):
        with pytest.raises(MissingCredentialsError):
            resolve_credentials(wrong)


def test_none_found_names_every_place(bare: Path) -> None:
    with pytest.raises(MissingCredentialsError) as caught:
        resolve_credentials(None, {})
    for place in (
        "AWS_ACCESS_KEY_ID",
        "R2_ACCESS_KEY_ID",
        "profile 'default'",
        "credentials",
        "config",
        "metadata",
        "API token",
    ):
        assert place in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "R2_SECRET_ACCESS_KEY"])
def test_half_a_pair_is_a_mistake(bare: Path, name: str) -> None:
    with pytest.raises(MissingCredentialsError, match=f"{name} is set but "):
        resolve_credentials(None, {name: "x"})


def test_a_rewritten_file_renews(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluicefs.store.s3._RENEW_EVERY", 0.0)
    profile(bare, "OLD")
    with ScriptedServer(refusal("403 Forbidden", "InvalidAccessKeyId"), answer("200 OK", ETag='"e"')) as server:
        store = S3Store("b", endpoint=server.endpoint, timeout=3)
        profile(bare, "NEW")
        store.put("k", b"")
        assert b"Credential=OLD/" in server.requests[0]
        assert b"Credential=NEW/" in server.requests[1]
        store.close()


# --- probe: each trouble its own sentence, with the fix


def trouble(endpoint: str, bucket: str = "b", credentials: tuple[str, str] = ("K", "S"), **options: object) -> str:
    store = S3Store(bucket, endpoint=endpoint, credentials=credentials, region="us-east-1", **options)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(BucketAccessError) as caught:
        store.probe(2.0)
    assert time.monotonic() - began < 8
    store.close()
    assert credentials[1] not in str(caught.value) or len(credentials[1]) == 1
    return str(caught.value)


def test_probe_on_a_server(server: DevServer) -> None:
    server.create_bucket("probed")
    keys = (server.access_key, server.secret_key)
    store = S3Store("probed", endpoint=server.endpoint, region=server.region, credentials=keys)
    store.probe()
    assert store.counters.requests == {"ListObjectsV2": 1}
    store.close()
    assert "There is no bucket 'other'" in trouble(server.endpoint, "other", keys)
    assert "The secret key does not belong" in trouble(server.endpoint, "probed", (server.access_key, "wrong-secret"))
    assert "The access key id 'nobody' is unknown" in trouble(server.endpoint, "probed", ("nobody", "wrong-secret"))


def plain(listener: socket.socket) -> None:
    """What an HTTP server says to a TLS greeting."""
    with suppress(OSError):
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_probe_without_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "Nothing listens at" in trouble(f"http://127.0.0.1:{port}")
    assert "the endpoint http://sluicefs.invalid is unknown" in trouble("http://sluicefs.invalid")
    with ScriptedServer(hang) as server:
        assert "did not answer in time" in trouble(server.endpoint)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=plain, args=(listener,), daemon=True).start()
        assert "does not speak TLS" in trouble(f"https://127.0.0.1:{listener.getsockname()[1]}")
    with ScriptedServer(answer("200 OK", b"<html>welcome")) as server:
        assert "is not an S3 store" in trouble(server.endpoint)


@pytest.mark.parametrize(
    "status,code,words",
    [
        ("403 Forbidden", "RequestTimeTooSkewed", "clock is wrong"),
        ("403 Forbidden", "AccessDenied", "may not list bucket 'b'"),
        ("400 Bad", "ExpiredToken", "have expired"),
        ("400 Bad", "AuthorizationHeaderMalformed", "check that region"),
        ("503 Slow", "SlowDown", "The store failed"),
    ],
)
def test_probe_of_refusals(status: str, code: str, words: str) -> None:
    with ScriptedServer(refusal(status, code, Date="Mon, 23 Nov 2026 21:25:00 GMT")) as server:
        said = trouble(server.endpoint)
        assert words in said
        assert code in said
