"""Fixtures for every test: S3 servers of this session and a fresh bucket on one.

`ministack` and `seaweedfs` start on first use and end with the session. `server` runs a test on both, `bucket` gives it a new
bucket there, `open_store` stores on it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from sluicefs.devserver import DevServer
from sluicefs.store.s3 import S3Store

# A slow machine, or the sanitizers, must not make a test fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

os.environ.setdefault("SLUICEFS_DEBUG_LOCKS", "1")  # before fs is imported; mounts' processes inherit it

_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where CI=true nothing may be missing: a test that skips there has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI=true: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def ministack() -> Iterator[DevServer]:
    """MiniStack, or for a second pass the server that SERVER names."""
    kind = os.environ.get("SERVER", "ministack")
    with DevServer(kind, in_memory=kind == "seaweedfs") as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[DevServer]:
    with DevServer("seaweedfs", in_memory=True) as server:
        yield server


@pytest.fixture(params=["ministack", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> DevServer:
    found: DevServer = request.getfixturevalue(request.param)
    return found


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server, and the way to stores on it."""

    name: str
    server: DevServer

    def store(self, **options: Any) -> S3Store:
        """A store on the bucket; `options` replace S3Store's arguments."""
        keys = (self.server.access_key, self.server.secret_key)
        given: dict[str, Any] = {"endpoint": self.server.endpoint, "region": self.server.region, "credentials": keys}
        return S3Store(self.name, **(given | options))


def new_bucket(server: DevServer) -> Iterator[Bucket]:
    """A bucket of its own. SeaweedFS has room for some 200 at a time, so there it is deleted at the end, whatever is in it."""
    bucket = Bucket(f"test-{os.getpid()}-{next(_numbers)}", server)
    server.create_bucket(bucket.name)
    yield bucket
    if server.kind == "seaweedfs":
        server.delete_bucket(bucket.name)


@pytest.fixture
def bucket(server: DevServer) -> Iterator[Bucket]:
    """A fresh bucket on each server in turn."""
    yield from new_bucket(server)


@pytest.fixture
def open_store(bucket: Bucket) -> Iterator[Callable[..., S3Store]]:
    """Makes stores on `bucket`, closed at the end."""
    made: list[S3Store] = []

    def make(**options: Any) -> S3Store:
        made.append(bucket.store(**options))
        return made[-1]

    yield make
    for store in made:
        store.close()
