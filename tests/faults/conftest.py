"""A user whose mounts reach MiniStack through a fault proxy; a file that needs another has its own `user`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.faults.proxy import FaultProxy
from tests.mount.helpers import User


@pytest.fixture
def proxy(ministack: DevServer) -> Iterator[FaultProxy]:
    with FaultProxy(ministack.endpoint) as made:
        yield made


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer, proxy: FaultProxy) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket, {"AWS_ENDPOINT_URL": proxy.url})
        yield made
        proxy.clear()
        made.clean_up()
