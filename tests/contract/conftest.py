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
from tests.contract.keys import ODD_PUNCTUATION

STORES = ["memory", "ministack-light", "ministack-botocore", "seaweedfs-light", "seaweedfs-botocore"]

_NO_PART_RULE = "parts of any size and in any order are taken"
GAPS: dict[tuple[str, str, str | None], str] = {
    # server, test, its key
    ("ministack", "test_parts_out_of_order_are_refused", None): _NO_PART_RULE,
    ("ministack", "test_small_parts_are_refused", None): _NO_PART_RULE,
    ("ministack", "test_unequal_parts_are_refused", None): _NO_PART_RULE,
    ("ministack", "test_a_last_part_larger_than_the_others_is_refused", None): _NO_PART_RULE,
    ("ministack", "test_copy_to_itself_without_a_change_is_refused", None): "a self-copy without change is taken",
    ("ministack", "test_uploads_of_odd_keys", "return\rhere"): "ListMultipartUploads does not know encoding-type",
    ("ministack", "test_uploads_of_odd_keys", "control\x01\x1f\x7f"): "ListMultipartUploads does not know encoding-type",
    ("seaweedfs", "test_unequal_parts_are_refused", None): "only R2 has the equal-part rule",
    ("seaweedfs", "test_a_last_part_larger_than_the_others_is_refused", None): "only R2 has the equal-part rule",
    ("seaweedfs", "test_a_part_sent_again_replaces_the_first", None): "the replaced part's ETag is still taken",
    ("seaweedfs", "test_flat_order_is_that_of_whole_keys", None): "lists in tree order: d/a before d-x",
    ("seaweedfs", "test_empty_prefix_is_gone_with_its_last_object", None): "an empty directory is listed for two minutes",
    ("seaweedfs", "test_double_slash_is_a_prefix_of_its_own", None): "// collapses to /",
    ("seaweedfs", "test_a_directory_marker_can_be_copied", None): "NoSuchKey",
    ("seaweedfs", "test_odd_keys", "a//b"): "// collapses to /",
    ("seaweedfs", "test_odd_keys", ODD_PUNCTUATION): "a backslash becomes a slash",
    ("seaweedfs", "test_odd_keys", "dir/"): "the body of a directory marker is dropped",
    ("seaweedfs", "test_odd_keys", "k" * 1000): "names over 255 bytes are refused",
    ("seaweedfs", "test_uploads_of_odd_keys", "a+b"): "ListMultipartUploads says url encoding but does not encode",
    ("seaweedfs", "test_uploads_of_odd_keys", "%41"): "ListMultipartUploads says url encoding but does not encode",
    ("seaweedfs", "test_uploads_of_odd_keys", "control\x01\x1f\x7f"): "control characters are replaced",
    ("seaweedfs", "test_uploads_of_odd_keys", "a//b"): "// collapses to /",
    ("seaweedfs", "test_uploads_of_odd_keys", ODD_PUNCTUATION): "a backslash becomes a slash",
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store of each kind."""
    kind: str = request.param
    gap = GAPS.get((kind.partition("-")[0], request.node.originalname, request.node.callspec.params.get("key")))
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
