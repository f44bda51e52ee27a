"""Each way a mount can fail: its own sentence with the fix, its exit status, and nothing mounted."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sluicefs import control
from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.faults.rules import Rule
from tests.mount.helpers import User, processes


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        path = made.folder()
        yield made
        row = control.find_mount(path)
        made.clean_up()
        assert row is None, "nothing is mounted"
        assert not processes(path), "no process is left"


def refused(user: User, *words: str, status: int = 1, bucket: str | None = None) -> str:
    return user.fails(status, "mount", bucket or user.bucket.name, str(user.home / "m"), *words)


def closed_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


def test_a_wrong_secret_key(user: User) -> None:
    user.variables["AWS_SECRET_ACCESS_KEY"] = "wrong" * 8
    said = refused(user)
    assert "The secret key does not belong to access key" in said and "SignatureDoesNotMatch" in said
    assert "wrongwrong" not in said


def test_an_unknown_access_key(user: User) -> None:
    user.variables["AWS_ACCESS_KEY_ID"] = "AKIANOBODYKNOWSTHIS0"
    assert "AKIANOBODYKNOWSTHIS0" in refused(user)


def test_half_a_pair_of_keys(user: User) -> None:
    user.variables["AWS_SECRET_ACCESS_KEY"] = ""
    assert "AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not" in refused(user)


def test_no_credentials_names_every_place_looked_at(user: User) -> None:
    user.variables.update(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    said = refused(user)
    for place in ("AWS_ACCESS_KEY_ID", "R2_ACCESS_KEY_ID", ".aws/credentials", "metadata service", "API token"):
        assert place in said


@pytest.mark.parametrize("line", ["[broken", "credential_process = /bin/false", "credential_process = /nowhere"])
def test_broken_sources_of_credentials(user: User, line: str) -> None:
    user.variables.update(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    (user.home / ".aws").mkdir()
    (user.home / ".aws" / "config").write_text(f"[default]\n{line}\n")
    said = refused(user)
    assert said.startswith("The credentials cannot be had: ") and "~/.aws" in said


def test_a_proxy_that_is_not_there(user: User) -> None:
    user.variables.update(http_proxy="http://127.0.0.1:9", no_proxy="")
    assert "the proxy 127.0.0.1:9 cannot be reached" in refused(user, "--timeout", "1")


def test_an_unknown_bucket(user: User) -> None:
    assert "There is no bucket 'no-such-bucket' at http://127.0.0.1" in refused(user, bucket="no-such-bucket")


def test_a_dead_endpoint(user: User) -> None:
    said = refused(user, "--endpoint", f"http://127.0.0.1:{closed_port()}")
    assert "Nothing listens at http://127.0.0.1:" in said and "check host and port" in said


def test_a_name_that_nobody_has(user: User) -> None:
    assert "bucket.invalid" in refused(user, "--endpoint", "https://bucket.invalid")


def test_https_where_plain_http_is_spoken(user: User) -> None:
    said = refused(user, "--endpoint", user.bucket.server.endpoint.replace("http:", "https:"))
    assert "TLS" in said


def test_a_server_that_speaks_no_s3(user: User) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        said = refused(user, "--endpoint", f"http://127.0.0.1:{server.server_port}", "--timeout", "2")
        server.shutdown()
    assert "malformed" in said


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Rule("status", status=403, code="RequestTimeTooSkewed"), "This machine's clock is wrong"),
        (Rule("status", status=403, code="AccessDenied"), "may not"),
        (Rule("status", status=400, code="ExpiredToken"), "expired"),
        (Rule("no-answer", seconds=30), "did not answer in time"),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_what_the_store_refuses(user: User, rule: Rule, says: str) -> None:
    with FaultProxy(user.bucket.server.endpoint) as proxy:
        proxy.add(rule)
        assert says in refused(user, "--endpoint", proxy.url, "--timeout", "3")


def test_a_mountpoint_that_is_mounted_already(user: User) -> None:
    other = user.mount(name="other")
    said = user.fails(1, "mount", user.bucket.name, other)
    assert f"{other} is a mount already" in said and "sluicefs unmount" in said
    user.ok("unmount", other)


def test_a_missing_folder(user: User) -> None:
    said = user.fails(2, "mount", user.bucket.name, "/nowhere/at/all")
    assert said == "The folder /nowhere/at/all does not exist. Make it first: mkdir -p /nowhere/at/all"


def test_a_file_for_a_mountpoint(user: User) -> None:
    (user.home / "file").touch()
    assert "is not a folder" in user.fails(2, "mount", user.bucket.name, str(user.home / "file"))


def test_no_dev_fuse(user: User) -> None:
    bwrap = shutil.which("bwrap")
    assert bwrap
    without = [bwrap, "--bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--"]
    said = user.fails(1, "mount", user.bucket.name, str(user.home / "m"), before=without)
    assert said.startswith("There is no /dev/fuse.") and "--device /dev/fuse" in said


def test_a_cache_folder_that_cannot_be_written(user: User) -> None:
    (user.home / "file").touch()
    said = refused(user, "--cache-dir", str(user.home / "file" / "cache"))
    assert "The cache folder" in said and "cannot be written" in said and "--cache-dir" in said


def test_what_the_mount_writes_to_is_not_inside_it(user: User) -> None:
    inside = str(user.home / "m" / "x")
    assert "--cache-dir" in refused(user, "--cache-dir", inside, status=2)
    assert "--log-file" in refused(user, "--log-file", inside, status=2)
    said = user.fails(2, "mount", user.bucket.name, str(user.home))
    assert "unsent data" in said and "inside the mountpoint" in said and "XDG_STATE_HOME" in said
    assert "inside the mountpoint" in user.fails(2, "mount", user.bucket.name, "/")


def test_a_folder_for_unsent_data_that_cannot_be_made(user: User) -> None:
    (user.home / "file").touch()
    user.variables["XDG_STATE_HOME"] = str(user.home / "file")
    assert "cannot be made" in refused(user, "--log-file", str(user.home / "log"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "lots"], "--memory must be a size"),
        (["--attrs", "some"], "--attrs must be one of"),
        (["-o", "frobnicate"], "no such option"),
        (["--config", "/nowhere.toml"], "does not exist"),
        (["--endpoint", "example.com"], "no URL"),
        (["--account-id", "me"], "not a Cloudflare account's"),
    ],
)
def test_wrong_options_end_with_status_2(user: User, words: list[str], says: str) -> None:
    if words[0] == "--account-id":
        user.variables["AWS_ENDPOINT_URL"] = ""
    assert says in refused(user, *words, status=2)


@pytest.mark.parametrize(
    "words", [["mount"], ["mount", "bucket"], ["mount", "bucket", "m", "--frobnicate"], ["frobnicate"], ["unmount"], ["run"]]
)
def test_wrong_usage_ends_with_status_2(user: User, words: list[str]) -> None:
    done = user.run(*words)
    assert done.returncode == 2
    assert "Error: " in done.stderr and "Traceback" not in done.stderr


def test_only_debug_shows_a_traceback(user: User) -> None:
    done = user.run("mount", "no-such-bucket", str(user.home / "m"), "--log-level", "debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "There is no bucket" in done.stderr
    assert user.bucket.server.secret_key not in done.stderr
    user.variables["SLUICEFS_LOG_LEVEL"] = "debug"
    assert "Traceback" in user.run("status", "/nowhere").stderr, "where there is no such option"


def test_a_log_file_that_cannot_be_written(user: User) -> None:
    for words in (["-f"], []):
        said = refused(user, "--log-file", "/proc/nowhere/x", *words)
        assert "/proc/nowhere/x" in said and "should not" not in said
