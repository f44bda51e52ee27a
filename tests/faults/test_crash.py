"""SIGKILL and SIGTERM at random moments: what was acknowledged is there, nothing is torn, nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import Bucket, new_bucket
from tests.faults.crash import Crash

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs FUSE")


@pytest.fixture
def crash_bucket(ministack: DevServer) -> Iterator[Bucket]:
    yield from new_bucket(ministack)


def crash_often(bucket: Bucket, folder: Path, mode: str, seeds: range) -> None:
    crash = Crash(bucket, folder, mode)
    store = bucket.store()
    others = store.create_upload("f0/somebody-elses")
    try:
        for seed in seeds:
            crash.mount()
            crash.kill_while_writing(seed)
            if seed % 4 == 3:
                crash.mount()
                crash.unmount()
                assert [upload.upload_id for upload in store.list_uploads("")] == [others], f"seed {seed}"
                store.abort_upload("f0/somebody-elses", others)
                crash.check()
                others = store.create_upload("f0/somebody-elses")
        crash.mount()
        crash.unmount()
        store.abort_upload("f0/somebody-elses", others)
        crash.check()
        assert crash.acknowledged
    finally:
        crash.end()
        store.close()


@pytest.mark.parametrize("mode", ["sync", "back"])
def test_twelve_kills(crash_bucket: Bucket, tmp_path: Path, mode: str) -> None:
    crash_often(crash_bucket, tmp_path, mode, range(12))


@pytest.mark.parametrize("mode", ["sync", "back"])
def test_after_sigterm_all_that_was_acknowledged_is_in_the_bucket_already(
    crash_bucket: Bucket, tmp_path: Path, mode: str
) -> None:
    crash = Crash(crash_bucket, tmp_path, mode)
    try:
        for seed in range(6):
            crash.mount()
            crash.kill_while_writing(500 + seed, signal.SIGTERM)
            crash.check(partly=True)
        assert crash.acknowledged
    finally:
        crash.end()


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["sync", "back"])
def test_two_hundred_kills(crash_bucket: Bucket, tmp_path: Path, mode: str) -> None:
    crash_often(crash_bucket, tmp_path, mode, range(100, 300))
