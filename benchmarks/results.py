"""What was measured, as plain values: written as JSON after every workload, read back by the report.

A run is one contestant once through one workload. Ratios are taken within a round, side by side, then the median of them.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.workload import HIGHER, Target

FILE = "results.json"
WRONG = "wrong answer"
REFERENCES = ("ceiling", "ceiling-ministack", "floor")


@dataclass
class Run:
    """One contestant, one round. Round 0 counts and verifies and is not timed. `fault`: why it has no value.

    `took`: seconds with mount and all, but without the time its data took to store.
    """

    workload: str
    delay: int
    contestant: str
    round: int
    value: float | None = None
    seconds: float = 0.0
    operations: int = 0
    bytes: int = 0
    mount_seconds: float = 0.0
    cpu: float = 0.0
    rss_idle: int = 0
    rss_peak: int = 0
    counts: dict[str, Any] | None = None
    mount_counts: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    note: str = ""
    took: float = 0.0


@dataclass
class Session:
    """All runs of one `benchmarks run`. `units`, `titles` and `targets` are by workload; `left_out` says why, by contestant.

    `known`: what a failure means in words, by contestant and workload.
    """

    machine: dict[str, str]
    options: dict[str, Any]
    subject: str = "sluicefs"
    plain: dict[str, bool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    targets: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    known: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    finished: bool = False
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FILE}.part"
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        part.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Session:
        """Raises OSError, ValueError."""
        document = json.loads((folder / FILE).read_text())
        document["runs"] = [Run(**run) for run in document["runs"]]
        return cls(**document)

    # --- questions

    def rows(self) -> list[tuple[str, int]]:
        """(workload, delay): workloads in the order measured, the smallest delay of each first."""
        names = list(dict.fromkeys(run.workload for run in self.runs))
        return sorted({(run.workload, run.delay) for run in self.runs}, key=lambda row: (names.index(row[0]), row[1]))

    def contestants(self) -> list[str]:
        """The subject first, the references last."""
        known = [*self.plain, *REFERENCES]
        found = dict.fromkeys(run.contestant for run in self.runs)
        names = sorted(found, key=lambda name: known.index(name) if name in known else len(known))
        return sorted(names, key=lambda name: (name != self.subject, name in REFERENCES, name == "floor"))

    def of(self, workload: str, delay: int, contestant: str) -> list[Run]:
        return [run for run in self.runs if (run.workload, run.delay, run.contestant) == (workload, delay, contestant)]

    def fault(self, workload: str, delay: int, contestant: str) -> str:
        """Why it has no place in this row, "" where it has one. One fault disqualifies, whatever came before."""
        return next((run.fault for run in self.of(workload, delay, contestant) if run.fault), "")

    def failure(self, workload: str, contestant: str) -> str:
        """In a word or two, what disqualified it at any delay; "" for nothing."""
        of = [run for run in self.runs if (run.workload, run.contestant) == (workload, contestant)]
        fault = next((run.fault for run in of if run.fault), "")
        if not fault or fault.startswith("wrong: "):
            return fault and WRONG
        if workload in self.known.get(contestant, {}):
            return self.known[contestant][workload]
        if "no end after" in fault:
            return "hangs"
        if "its process has ended" in fault or "not connected" in fault:
            return "dies"
        found = re.search(r"\[Errno \d+\] ([A-Z][\w /]+)", fault)
        return f"fails: {found[1]}" if found else "fails"

    def values(self, workload: str, delay: int, contestant: str) -> dict[int, float]:
        """Value by round, of timed rounds; empty when disqualified."""
        if self.fault(workload, delay, contestant) or self.failure(workload, contestant) == WRONG:
            return {}
        runs = self.of(workload, delay, contestant)
        return {run.round: run.value for run in runs if run.round > 0 and run.value is not None}

    def ratios(self, workload: str, delay: int, other: str) -> list[float]:
        """How many times as fast the subject was as `other`, by round; "peers": the best of them, by median."""
        if other == "peers":
            found = [self.ratios(workload, delay, name) for name, plain in self.plain.items() if plain and name != self.subject]
            return min((ratios for ratios in found if ratios), key=statistics.median, default=[])
        ours, theirs = self.values(workload, delay, self.subject), self.values(workload, delay, other)
        pairs = [(ours[number], theirs[number]) for number in ours if number in theirs]
        higher = self.units[workload] in HIGHER
        return [mine / its if higher else its / mine for mine, its in pairs if mine > 0 and its > 0]

    def counted(self, workload: str, delay: int, contestant: str) -> Run | None:
        """The run whose counts stand for this row."""
        runs = [run for run in self.of(workload, delay, contestant) if run.counts is not None and not run.fault]
        return runs[0] if runs else None

    def figure(self, name: str, workload: str, delay: int, contestant: str = "") -> float | None:
        """A figure of a target, None where it was not measured."""
        if name.startswith("x "):
            ratios = self.ratios(workload, delay, name[2:])
            return statistics.median(ratios) if ratios else None
        who = contestant or self.subject
        if self.fault(workload, delay, who):
            return None
        if name in COUNTED:
            run = self.counted(workload, delay, who)
            return None if run is None else COUNTED[name](run)
        runs = [run for run in self.of(workload, delay, who) if run.round > 0]
        found = [MEASURED[name](run) if name in MEASURED else run.extra.get(name) for run in runs]
        known = [value for value in found if value is not None]
        return statistics.median(known) if known else None

    def verdicts(self) -> list[tuple[str, int, Target, float | None]]:
        """Every target of the rows measured, with its figure."""
        found = []
        for workload, delay in self.rows():
            for target in (Target(**given) for given in self.targets.get(workload, [])):
                if target.delay == delay:
                    found.append((workload, delay, target, self.figure(target.figure, workload, delay)))
        return found


def _counts(run: Run) -> dict[str, Any]:
    assert run.counts is not None
    return run.counts


COUNTED: dict[str, Callable[[Run], float | None]] = {
    "requests": lambda run: _counts(run)["total"],
    "requests per file": lambda run: _counts(run)["total"] / run.operations if run.operations else None,
    "GetObject": lambda run: _counts(run)["requests"].get("GetObject", 0),
    "bytes up": lambda run: _counts(run)["up"],
    "bytes down / asked": lambda run: _counts(run)["down"] / run.bytes if run.bytes else None,
    "dollars": lambda run: _counts(run)["dollars"],
}
MEASURED: dict[str, Callable[[Run], float | None]] = {
    "value": lambda run: run.value,
    "CPU s/GB": lambda run: run.cpu / (run.bytes / 1e9) if run.bytes else None,
    "CPU ms/file": lambda run: run.cpu * 1000 / run.operations if run.operations else None,
    "idle RSS MB": lambda run: run.rss_idle / 1e6,
    "peak RSS MB": lambda run: run.rss_peak / 1e6,
}
FIGURES = (*COUNTED, *MEASURED)
