"""Fuzz tests of everything that reads foreign bytes: only the documented errors, no hang, and nothing wrong taken as good.

In `make test` the same few examples each time; `make fuzz` draws new ones for FUZZ_MINUTES, shared by all tests, and says how
many it tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.fuzz import MINUTES

_tried: dict[str, int] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test its share of the time."""
    ours = [item for item in items if isinstance(item, pytest.Function) and hasattr(item.obj, "hypothesis")]
    for item in ours:
        if MINUTES:
            item.add_marker(pytest.mark.timeout(0))
            item.obj.hypothesis.inner_test = _count(item.name, item.obj.hypothesis.inner_test)
            item.obj = _repeat(item.obj, MINUTES * 60 / len(ours))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, count in sorted(_tried.items()):
        terminalreporter.write_line(f"{count:>9,} examples  {name}")


def _count(name: str, test: Callable[..., None]) -> Callable[..., None]:
    def counted(*args: Any, **kwargs: Any) -> None:
        _tried[name] = _tried.get(name, 0) + 1
        test(*args, **kwargs)

    return counted


def _repeat(test: Callable[..., None], seconds: float) -> Callable[..., None]:
    def repeated(*args: Any, **kwargs: Any) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            test(*args, **kwargs)

    return repeated
