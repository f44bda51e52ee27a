"""A user with a bucket on MiniStack; a file that needs another has its own `user`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicefs.devserver import DevServer
from tests.conftest import new_bucket
from tests.mount.helpers import User


@pytest.fixture
def user(tmp_path: Path, ministack: DevServer) -> Iterator[User]:
    for bucket in new_bucket(ministack):
        made = User(tmp_path, bucket)
        yield made
        made.clean_up()
