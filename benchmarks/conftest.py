"""Settings of pytest-benchmark: where the baseline is, and that it names no machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline")


def pytest_configure(config: Any) -> None:
    option = config.option
    if not hasattr(option, "benchmark_storage"):
        return  # pytest-benchmark is not installed
    # Another processor than the baseline's is said in a warning, and warnings are errors here.
    warnings.filterwarnings("ignore", message="Benchmark machine_info is different", category=Warning)
    option.benchmark_storage = f"file://{BASELINE}"
    if any(BASELINE.rglob("*.json")) and not option.benchmark_save and not option.benchmark_compare:
        option.benchmark_compare = True  # with the latest


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    kept = {"machine", "system", "python_implementation", "python_version"}
    cpu = {name: machine_info["cpu"].get(name) for name in ("brand_raw", "count")}
    for name in set(machine_info) - kept:
        del machine_info[name]
    machine_info["cpu"] = cpu
