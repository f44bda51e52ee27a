"""`sluicefs recover` on the reference store: what is forgotten is in the bucket or whole in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sluicefs import recovery
from sluicefs.errors import AccessDeniedError, BucketAccessError, SluiceError, StoreError, UnreachableError
from sluicefs.store.api import Store
from sluicefs.store.memory import MemoryStore
from tests.unit.test_writeback import changed_but_unsent


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
