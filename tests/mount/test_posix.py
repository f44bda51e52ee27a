"""A mount behaves as a local disk does, verb by verb, for root, the owner, a member of the group and a stranger."""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.mount.helpers import let_others_in
from tests.mount.posix_checks import Outcomes, record
from tests.mount.reference import reference_mount

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="acts as several users, so root has to run it")

# What a mount does otherwise: (verb, label), and the words of SEMANTICS.md that say why.
KNOWN = {
    r"(write|truncate|open O_TRUNC), stranger, file with (2767|6766)(, after it)?": "on a file whose group may not execute",
    r"link, .*": "Hard links do not exist",
}


def reason(verb: str, label: str) -> str:
    return next((why for pattern, why in KNOWN.items() if re.fullmatch(pattern, f"{verb}, {label}")), "")


def table(expected: Outcomes, found: Outcomes) -> str:
    """Markdown: of each verb each outcome, how many checks have it on a local disk, how many on the mount, and when."""
    rows: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    for (verb, label), outcome in expected.items():
        kind = outcome if re.fullmatch("E[A-Z0-9]+", outcome) else "works"
        rows[verb, kind].append((label, found.get((verb, label)) == outcome))
    good = sum(expected[key] == found.get(key) for key in expected)
    lines = [f"{len(expected)} checks, {good} hold; the local disk's outcome is the right one.", ""]
    lines += ["| verb | outcome | checks | hold | when |", "| --- | --- | --- | --- | --- |"]
    for (verb, kind), checks in sorted(rows.items(), key=lambda row: (row[0][0], row[0][1] != "works", row[0][1])):
        why = os.strerror(getattr(errno, kind)) + ": " if kind != "works" else ""
        examples = "; ".join(label for label, _ in checks[:3]) + ("; …" if len(checks) > 3 else "")
        lines.append(f"| {verb} | {kind} | {len(checks)} | {sum(holds for _, holds in checks)} | {why}{examples} |")
    lines += ["", "What does not hold:", "", "| verb | check | local disk | mount | why |", "| --- | --- | --- | --- | --- |"]
    for (verb, label), outcome in expected.items():
        if (answer := found.get((verb, label))) != outcome:
            lines.append(f"| {verb} | {label} | {outcome} | {answer} | {reason(verb, label) or '?'} |")
    return "\n".join(lines) + "\n"


def test_every_verb_has_the_outcome_it_has_on_a_local_disk(tmp_path: Path) -> None:
    let_others_in(tmp_path)
    expected: Outcomes = {}
    found: Outcomes = {}
    for xattr in (False, True):  # the kernel treats a mount otherwise that has them
        parts = ("extended_attributes",) if xattr else ("kinds", "paths", "permissions", "special_bits", "times", "open_files")
        folder = tmp_path / f"xattr-{xattr}"
        (folder / "local").mkdir(parents=True)
        expected |= record(str(folder / "local"), parts)
        with reference_mount(folder, allow_other=True, provider="r2", xattr=xattr) as mount:
            below = Path(mount, "w")
            below.mkdir()
            found |= record(str(below), parts)
    report = table(expected, found)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "posix.md").write_text(report)
    print(report)
    wrong = {key: (expected[key], found.get(key)) for key in expected if expected[key] != found.get(key)}
    unexpected = {key: both for key, both in wrong.items() if not reason(*key)}
    assert not unexpected, f"{len(unexpected)} of {len(expected)}: {dict(list(unexpected.items())[:20])}"
    assert len(expected) > 2800 and len(wrong) <= 20


def test_each_known_deviation_has_its_reason_in_the_semantics() -> None:
    text = " ".join((ROOT / "SEMANTICS.md").read_text().split())
    assert [why for why in KNOWN.values() if why not in text] == []
