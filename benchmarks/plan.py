"""What is measured when: the rows in order, each one's share of the time, and who takes part in a round.

Every contestant gets one timed round of every row, however long that takes; the time decides on the rounds after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.workload import Workload


class Plan:
    """The rows of `workloads`, and `seconds` for all of them (infinite: as many rounds as were asked for)."""

    def __init__(self, workloads: Iterable[Workload], seconds: float, rounds: int) -> None:
        self.rows = [(workload, delay) for workload in workloads for delay in sorted(workload.delays, reverse=True)]
        self._rounds = rounds
        self._end = time.monotonic() + seconds
        self._needs = [self._need(*row) for row in self.rows]

    def share(self, index: int) -> float:
        """Seconds for row `index`, out of what is left now: in proportion to what each row is known to need."""
        left = max(0.0, self._end - time.monotonic())
        return left * self._needs[index] / sum(self._needs[index:])

    def _need(self, workload: Workload, delay: int) -> float:
        setup = workload.setup if delay == max(workload.delays) else 0.0
        return setup + workload.each * min(workload.wanted, self._rounds)


def first_round(workload: Workload, delay: int) -> int:
    """0 counts and verifies without being timed. A delayed row does that in its round 1: it goes through the door anyway."""
    return 1 if max(workload.delays) else 0


def is_verified(delay: int, number: int) -> bool:
    """Whether what is read or stored is checked in round `number` of such a row."""
    return number == 0 or (delay > 0 and number == 1)


def turn(names: Sequence[str], index: int, number: int) -> list[str]:
    """The order of a round. It starts with another one each time: the first after the caches are emptied has it hardest."""
    start = (index + number) % len(names) if names else 0
    return [*names[start:], *names[:start]]


def takers(took: Mapping[str, float], firm: Iterable[str], left: float) -> set[str]:
    """Who takes part in one more round that may last `left` seconds: all of `firm`, then the quick ones; or nobody.

    `took`: what each of the field took the last time. A round without what it is compared with says nothing.
    """
    needed = {name for name in firm if name in took}
    chosen: set[str] = set()
    for name in sorted(took, key=lambda name: (name not in needed, took[name])):
        left -= took[name]
        if left < 0:
            break
        chosen.add(name)
    return chosen if needed <= chosen and len(chosen) > 1 else set()
