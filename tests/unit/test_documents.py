"""What documents say of the code is there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_table_of_promises_names_is_there() -> None:
    named = re.findall(r"`([\w/]*\.py)?::(test_\w+)`", (TESTS / "RELIABILITY.md").read_text())
    file, missing = "", []
    for path, name in named:
        file = path or file
        if f"def {name}(" not in (TESTS / file).read_text():
            missing.append(f"{file}::{name}")
    assert len(named) > 70 and not missing
