"""The Python API: what it takes, what it refuses, and a mount driven by it."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sluicefs
from sluicefs import control
from sluicefs.devserver import DevServer
from tests.conftest import Bucket, new_bucket


@pytest.fixture
def bucket(ministack: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield from new_bucket(ministack)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "m").mkdir()
    return str(tmp_path / "m")


def access(bucket: Bucket) -> dict[str, object]:
    server = bucket.server
    return {"endpoint": server.endpoint, "region": server.region, "credentials": (server.access_key, server.secret_key)}


def test_a_mount_is_a_context_manager(bucket: Bucket, folder: str) -> None:
    with sluicefs.mount_bucket(bucket.name, folder, prefix="/users/1", **access(bucket)) as mount:  # type: ignore[arg-type]
        assert mount.mountpoint == folder
        with open(f"{folder}/a", "w") as file:
            file.write("x")
            file.flush()
            mount.flush()
            store = bucket.store()
            assert bytes(store.get("users/1/a")[1]) == b"x", "flush uploads what is still open"
            store.close()
        assert mount.stats()["requests"]["PutObject"] >= 1
    assert control.find_mount(folder) is None
    mount.unmount()  # again does no harm
    with pytest.raises(sluicefs.MountError):
        mount.stats()


def test_a_busy_mount_stays_and_says_who_uses_it(bucket: Bucket, folder: str) -> None:
    mount = sluicefs.mount_bucket(bucket.name, folder, **access(bucket))  # type: ignore[arg-type]
    with open(f"{folder}/a", "w"), pytest.raises(sluicefs.UnmountError, match=str(os.getpid())):
        mount.unmount()
    assert os.listdir(folder) == ["a"]
    mount.unmount()


def test_an_error_inside_is_not_hidden_by_one_of_unmount(bucket: Bucket, folder: str) -> None:
    with pytest.raises(ZeroDivisionError), sluicefs.mount_bucket(bucket.name, folder, **access(bucket)) as mount:  # type: ignore[arg-type]
        file = open(f"{folder}/a", "w")  # noqa: SIM115 - open beyond the block on purpose
        raise ZeroDivisionError
    file.close()
    mount.unmount()


@pytest.mark.parametrize("kind", ["triple", "mapping"])
def test_credentials_may_be_a_sequence_or_a_mapping(bucket: Bucket, folder: str, kind: str) -> None:
    key, secret = bucket.server.access_key, bucket.server.secret_key
    given = [key, secret, None] if kind == "triple" else {"access_key": key, "secret_key": secret}
    sluicefs.mount_bucket(bucket.name, folder, **{**access(bucket), "credentials": given}).unmount()  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["AKIA-secret", (b"AKIA", b"secret"), {"AKIA", "secret"}, object()])
def test_what_cannot_be_credentials_is_refused(folder: str, given: Any) -> None:
    with pytest.raises(sluicefs.InvalidMountConfigError, match="credentials must be") as caught:
        sluicefs.mount_bucket("bucket", folder, endpoint="http://127.0.0.1:1", credentials=given)
    assert "secret'" not in str(caught.value)


def test_wrong_credentials_are_an_access_error(bucket: Bucket, folder: str) -> None:
    wrong = {**access(bucket), "credentials": (bucket.server.access_key, "wrong" * 8)}
    with pytest.raises(sluicefs.BucketAccessError, match="secret key") as caught:
        sluicefs.mount_bucket(bucket.name, folder, **wrong)  # type: ignore[arg-type]
    assert "wrongwrong" not in str(caught.value)
    assert control.find_mount(folder) is None


@pytest.mark.parametrize("option", ["memroy", "foreground", "bucket", "mountpoint"])
def test_an_option_that_is_none_is_refused(option: str, folder: str) -> None:
    with pytest.raises((sluicefs.InvalidMountConfigError, TypeError)):
        sluicefs.mount_bucket("bucket", folder, endpoint="http://127.0.0.1:1", **{option: "1"})


def test_a_missing_folder_is_the_callers_mistake() -> None:
    with pytest.raises(sluicefs.InvalidMountConfigError, match="mkdir -p /nowhere/x"):
        sluicefs.mount_bucket("bucket", "/nowhere/x", endpoint="http://127.0.0.1:1")


def test_all_that_is_public_can_be_had() -> None:
    for name in sluicefs.__all__:
        assert getattr(sluicefs, name).__doc__
    with pytest.raises(AttributeError):
        _ = sluicefs.nonesuch
    assert sluicefs.__version__ == importlib.metadata.version("sluicefs")


@pytest.mark.parametrize(
    "name", ["MissingCredentialsError", "InvalidMountConfigError", "BucketAccessError", "MountError", "UnmountError"]
)
def test_the_errors_are_one_family(name: str) -> None:
    assert issubclass(getattr(sluicefs, name), sluicefs.SluiceError)
