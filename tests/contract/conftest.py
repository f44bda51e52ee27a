"""The contract runs over five stores: the reference, and each server by the light path and by botocore's transport.

A server's known gap is named once, in GAPS; the test of that name is then expected to fail there, strictly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from sluicefs.devserver import DevServer
from sluicefs.store.api import Store
from sluicefs.store.memory import MemoryStore
from tests.conftest import new_bucket

STORES = ["memory", "ministack-light", "ministack-botocore", "seaweedfs-light", "seaweedfs-botocore"]

GAPS: dict[tuple[str, str], str] = {}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store of each kind."""
    kind: str = request.param
    name = request.node.name.removesuffix("]").replace(f"[{kind}-", "[").replace(f"[{kind}", "[").removesuffix("[")
    plain = request.node.originalname
    for test in (plain, name):
        gap = GAPS.get((kind.partition("-")[0], test))
        if gap is not None:
            request.applymarker(pytest.mark.xfail(reason=gap, strict=True))
    if kind == "memory":
        yield cast(Store, MemoryStore())
        return
    server, _, path = kind.partition("-")
    found: DevServer = request.getfixturevalue(server)
    for bucket in new_bucket(found):
        made = bucket.store(light=path == "light", timeout=20)
        yield made
        made.close()
