"""`sluicefs recover` on the reference store: what is forgotten is in the bucket or whole in the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sluicefs import recovery
from sluicefs.config import Config
from sluicefs.errors import AccessDeniedError, BucketAccessError, SluiceError, StoreError, UnreachableError
from sluicefs.fs.nodes import ROOT_INO
from sluicefs.store.api import Store
from sluicefs.store.memory import MemoryStore
from tests.unit.test_writeback import ME, changed_but_unsent, open_fs


def saved(folder: Path, staging: Path, store: Store | SluiceError) -> dict[str, bytes]:
    def open_store() -> Store:
        if isinstance(store, SluiceError):
            raise store
        return store

    folder.mkdir()
    for path, _ in recovery.save(str(folder), str(staging), "bucket", open_store):
        assert os.path.exists(path)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Refusing(MemoryStore):
    def __init__(self, error: StoreError):
        super().__init__()
        self.error = error

    def get_into(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise self.error


@pytest.mark.parametrize(
    "store", [Refusing(UnreachableError("refused")), Refusing(AccessDeniedError("expired")), BucketAccessError("no bucket")]
)
def test_what_was_saved_without_its_base_is_kept_as_long_as_the_bucket_may_have_that(
    tmp_path: Path, store: Store | SluiceError
) -> None:
    reference, staging = MemoryStore(), tmp_path / "staging"
    changed_but_unsent(reference, staging).close()
    with pytest.raises(SluiceError, match="still kept: x "):
        saved(tmp_path / "without", staging, store)
    assert (tmp_path / "without" / "x").read_bytes() == b"\0\0\0\0more"
    assert saved(tmp_path / "with", staging, reference) == {"x": b"basemore"}
    assert not list(staging.iterdir())


def test_what_was_based_on_an_object_that_is_gone_is_saved_with_zeros(tmp_path: Path) -> None:
    reference, staging = MemoryStore(), tmp_path / "staging"
    changed_but_unsent(reference, staging).close()
    reference.put("x", b"another")
    assert saved(tmp_path / "saved", staging, reference) == {"x": b"\0\0\0\0more"}
    assert not list(staging.iterdir())


def test_of_files_of_one_name_each_that_could_not_be_sent_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    fs = open_fs(store, tmp_path)
    fs.files.writeback.close()
    for folder in (b"a", b"b", b"c"):
        parent = fs.mkdir(ROOT_INO, folder, 0o755, ME)
        handle, _ = fs.create(parent.ino, b"x", 0o644, os.O_RDWR | os.O_CREAT, ME)
        fs.flush(handle)
        fs.release(handle)
    fs.close()
    put = store.put

    def refused(key: str, *args: Any, **options: Any) -> str:
        if key in ("a/x", "b/x"):
            raise AccessDeniedError("refused")
        return put(key, *args, **options)

    monkeypatch.setattr(store, "put", refused)
    sent, failed = recovery.upload(Config("bucket", "/nowhere"), store, str(tmp_path))
    assert sent == 1 and failed.keys() == {"a/x", "b/x"}
