"""Settings of the fuzz tests: a few examples, the same each time, unless FUZZ_MINUTES asks for new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
FUZZ = settings(
    derandomize=not MINUTES,
    max_examples=500 if MINUTES else 60,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
FEW = settings(FUZZ, max_examples=25)  # where each starts a filesystem
