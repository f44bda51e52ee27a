"""The benchmark harness without servers and mounts: counting, ratios, descriptions, commands that must end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import contestants, plan, plots, report
from benchmarks.data import BLOCK, File, content, digest
from benchmarks.processes import MARK, CommandError, Meter, end_marked, marked, run_command
from benchmarks.proxy import Counts, classify
from benchmarks.results import Run, Session
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize(
    ("method", "target", "copies", "verb"),
    [
        ("GET", "/b?list-type=2&prefix=a%2F", False, "ListObjects"),
        ("GET", "/b/", False, "ListObjects"),
        ("GET", "/b?location", False, "GetBucketLocation"),
        ("GET", "/b?uploads&prefix=x", False, "ListMultipartUploads"),
        ("GET", "/b/a/b.txt", False, "GetObject"),
        ("HEAD", "/b/a", False, "HeadObject"),
        ("HEAD", "/b", False, "HeadBucket"),
        ("PUT", "/b/a", False, "PutObject"),
        ("PUT", "/b/a", True, "CopyObject"),
        ("PUT", "/b/a?partNumber=1&uploadId=u", False, "UploadPart"),
        ("PUT", "/b/a?partNumber=1&uploadId=u", True, "UploadPartCopy"),
        ("POST", "/b/a?uploads=", False, "CreateMultipartUpload"),
        ("POST", "/b/a?uploadId=u", False, "CompleteMultipartUpload"),
        ("DELETE", "/b/a?uploadId=u", False, "AbortMultipartUpload"),
        ("DELETE", "/b/a", False, "DeleteObject"),
        ("POST", "/b?delete", False, "DeleteObjects"),
        ("GET", "/", False, "ListBuckets"),
    ],
)
def test_requests_are_told_apart(method: str, target: str, copies: bool, verb: str) -> None:
    assert classify(method, target, copies) == verb


def test_counts_add_up_and_cost_what_r2_asks() -> None:
    counts = Counts()
    for line in (
        "PUT /b/a 200 1000 200 -",
        "GET /b/a 206 300 5000 -",
        "GET /b?list-type=2 200 300 900 -",
        "DELETE /b/a 204 1 1 -",
    ):
        counts.add(line)
    counts.add("PUT /b/c 404 10 10 /b/a")
    counts.add("<BADREQ> - 400 0 0 -")  # a connection nobody used
    assert counts.requests == {"PutObject": 1, "GetObject": 1, "ListObjects": 1, "DeleteObject": 1, "CopyObject": 1}
    assert (counts.up, counts.down, counts.refused, counts.total) == (1611, 6111, 1, 5)
    assert counts.dollars == pytest.approx(3 * 4.5e-6 + 0.36e-6)


def test_any_range_of_a_file_is_known_and_no_two_blocks_are_alike() -> None:
    file = File("a/b", 3 * BLOCK + 777)
    whole = b"".join(content(file))
    assert len(whole) == file.size
    assert b"".join(content(file, BLOCK - 5, 2 * BLOCK)) == whole[BLOCK - 5 : 3 * BLOCK - 5]
    assert digest(content(file)) == digest([whole])
    other = b"".join(content(File("a/c", file.size)))
    for start in range(0, BLOCK, 8 * 1021):
        words = {whole[base + start : base + start + 8] for base in (0, BLOCK, 2 * BLOCK)}
        assert len(words | {other[start : start + 8]}) == 4


# --- commands


def test_a_command_that_does_not_end_is_ended_with_its_children() -> None:
    begin = time.monotonic()
    with pytest.raises(CommandError, match="no end after"):
        run_command(["sh", "-c", "sleep 471 & sleep 471"], timeout=0.5)
    assert time.monotonic() - begin < 5
    left = subprocess.run(["pgrep", "-f", "^sleep 471$"], capture_output=True).stdout
    assert left == b""


def test_a_failed_command_tells_its_last_words() -> None:
    with pytest.raises(CommandError, match=r"sh: status 3: first \| second"):
        run_command(["sh", "-c", "echo first >&2; echo second >&2; exit 3"], timeout=10)
    with pytest.raises(CommandError, match=r"no-such-program: No such file"):
        run_command(["no-such-program"], timeout=10)


def test_marked_processes_are_found_measured_and_ended() -> None:
    mark = f"test-{os.getpid()}"
    busy = "import os,time\nif os.fork() == 0:\n os.setsid()\nend=time.time()+90\nwhile time.time()<end: pass"
    process = subprocess.Popen([sys.executable, "-c", busy], env=dict(os.environ) | {MARK: mark})
    try:
        end = time.monotonic() + 60
        while len(marked(mark)) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        meter = Meter(marked(mark))
        meter.start()
        while meter._cpu() - meter._before < 0.1 and time.monotonic() < end:
            time.sleep(0.02)
        usage = meter.stop()
        assert usage.cpu > 0.05
        assert usage.rss_idle > 4_000_000
        assert end_marked(mark) == 2
        assert marked(mark) == []
    finally:
        process.kill()
        process.wait()


# --- contestants


def test_those_that_come_with_it_are_well_described() -> None:
    known = contestants.load(contestants.DEFAULT)
    assert list(known) == ["sluicefs", "rclone", "rclone-tuned", "s3fs", "juicefs"]
    folder = Path("/nowhere")
    place = contestants.Place("http://e", "b", "r", "ACCESS", "SECRET", folder, folder, folder)
    for one in known.values():
        words = [place.fill(word) for words in (one.mount, one.unmount, *one.prepare, *one.extra.values()) for word in words]
        assert not any("SECRET" in word or "{" in word for word in words), "a key in a command line, or a placeholder left"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[x]\nmount = ['a']", "needs mount and unmount"),
        ("[x]\nmount = ['a']\nunmount = ['b']\ncolour = 1", "unknown colour"),
        ("[x", "more.toml"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "more.toml"
    file.write_text(text)
    with pytest.raises(contestants.ContestantError, match=why):
        contestants.load(contestants.DEFAULT, file)


# --- rounds


def test_every_workload_is_verified_and_counted_in_exactly_one_round_before_any_other() -> None:
    rows = plan.Plan(WORKLOADS.values(), 60, 5).rows
    for name, workload in WORKLOADS.items():
        seen = [
            plan.is_verified(delay, number)
            for one, delay in rows
            if one.name == name
            for number in range(plan.first_round(workload, delay), 6)
        ]
        assert seen[0] and seen.count(True) == 1, name


def test_the_time_is_divided_among_all_rows() -> None:
    whole = plan.Plan(WORKLOADS.values(), 600, 5)
    first, last = whole.share(0), whole.share(len(whole.rows) - 1)
    assert 0 < first < 100
    assert 590 < last <= 600, "the last row may have all that is left"
    assert plan.Plan(WORKLOADS.values(), 0, 5).share(0) == 0
    assert plan.Plan(WORKLOADS.values(), float("inf"), 5).share(3) == float("inf")


def test_a_further_round_is_for_all_that_is_compared_or_for_nobody() -> None:
    took = {"sluicefs": 4.0, "ceiling": 2.0, "quick": 3.0, "slow": 30.0}
    firm = ["sluicefs", "ceiling", "floor"]
    assert plan.takers(took, firm, 5) == set()
    assert plan.takers(took, firm, 10) == {"sluicefs", "ceiling", "quick"}
    assert plan.takers(took, firm, 100) == set(took)
    assert plan.takers({"sluicefs": 1.0}, firm, 100) == set(), "nobody to compare with"


def test_each_round_begins_with_another_contestant() -> None:
    turns = [plan.turn(["a", "b", "c"], 0, number) for number in range(3)]
    assert [turn[0] for turn in turns] == ["a", "b", "c"]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)


# --- results


def _session() -> Session:
    """Two rounds of sluicefs against a slow and a fast peer, one that is not plain, and one that was disqualified."""
    session = Session(
        {"date": "2026-11-23 00:00 UTC", "cpu": "2 x CPU", "memory": "24 GiB", "kernel": "6.18", "python": "3.11"},
        {"scale": 1.0},
        plain={"sluicefs": True, "slow": True, "fast": True, "chunks": False, "liar": True},
        units={"read": "MB/s", "list": "s"},
        titles={"read": "a file read", "list": "a listing"},
        targets={
            "read": [{"figure": "x peers", "relation": ">=", "limit": 2.5, "delay": 0}],
            "list": [{"figure": "requests", "relation": "<=", "limit": 12, "delay": 0}],
        },
        finished=True,
    )
    values = {"sluicefs": (300, 400), "slow": (100, 100), "fast": (150, 160), "chunks": (900, 900), "ceiling": (600, 500)}
    for number in (0, 1, 2):
        for name, (first, second) in values.items():
            value = None if number == 0 else (first, second)[number - 1]
            counts = {"total": 3, "requests": {"GetObject": 3}, "up": 9, "down": 2_000_000, "dollars": 1e-6, "refused": 0}
            extra = {"curve": [(0.1, 10_000_000), (1.0, 300_000_000)]} if number else {}
            run = Run(
                "read", 0, name, number, value, 1.0, 1, 1_000_000, cpu=0.5, counts=None if number else counts, extra=extra
            )
            session.runs.append(run)
    session.runs.append(Run("read", 0, "liar", 0, fault="wrong: big.bin: wrong bytes"))
    session.runs.append(Run("read", 0, "liar", 1, value=9999))
    session.runs += [Run("list", 0, name, 1, value) for name, value in (("sluicefs", 0.5), ("slow", 2.0))]
    return session


def test_ratios_are_taken_within_a_round_and_more_is_always_better() -> None:
    session = _session()
    assert session.ratios("read", 0, "slow") == [3, 4]
    assert session.ratios("read", 0, "ceiling") == [0.5, 0.8]
    assert session.ratios("list", 0, "slow") == [4]
    assert session.ratios("read", 0, "peers") == [2, 2.5], "the best that stores plain objects; a liar is none"
    assert session.figure("x peers", "read", 0) == 2.25


def test_a_wrong_answer_disqualifies_whatever_its_speed() -> None:
    session = _session()
    assert session.values("read", 0, "liar") == {}
    assert session.ratios("read", 0, "liar") == []
    assert any("liar: wrong: big.bin" in line for line in report.faults(session))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong: a: wrong bytes", "wrong answer"),
        ("act: no end after 120 s", "hangs"),
        ("its process has ended", "dies"),
        ("act: status 1: OSError: [Errno 5] Input/output error", "fails: Input/output error"),
        ("mount failed: sh: status 7", "fails"),
    ],
)
def test_a_failure_is_told_in_words(fault: str, words: str) -> None:
    session = _session()
    session.runs.append(Run("list", 0, "fast", 1, fault=fault))
    assert session.failure("list", "fast") == words
    assert session.values("list", 0, "fast") == {}
    session.known = {"fast": {"list": "cannot list"}}
    assert session.failure("list", "fast") == (words if words == "wrong answer" else "cannot list")
    header, row = (rows[number] for rows in [report.ratio_rows(session)] for number in (0, -1))
    assert row[header.index("× fast")] == ("wrong" if words == "wrong answer" else "cannot")


def test_targets_are_judged_and_what_was_not_measured_is_a_dash() -> None:
    rows = {row[0]: row for row in report.target_rows(_session())}
    assert rows["a file read"][2:] == ["≥ 2.50", "2.25", "**missed**"]
    assert rows["a listing"][3:] == ["–", "–"]


def test_results_survive_the_file_and_make_tables_and_pictures(tmp_path: Path) -> None:
    _session().save(tmp_path)
    session = Session.read(tmp_path)
    assert session.ratios("read", 0, "slow") == [3, 4]
    report.write(session, tmp_path)
    text = (tmp_path / report.TABLE).read_text()
    assert text.index("How many times as fast") < text.index("## Targets") < text.index("## Requests")
    assert "| a file read | 350 MB/s |" in text
    for name in (plots.OVERVIEW, plots.BARS, plots.CURVE, plots.REQUESTS):
        assert (tmp_path / name).read_text().rstrip().endswith("</svg>")


def test_the_readme_changes_between_its_marks_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_readme(_session(), tmp_path / "benchmarks" / "latest", readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n![")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "benchmarks/latest/overview.svg" in text
    assert text.count("| a file read |") == 1
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the lines"):
        report.write_readme(_session(), tmp_path, readme)


def test_a_curve_in_equal_steps_keeps_every_byte() -> None:
    times, rates = plots._binned([(0.3, 30_000_000), (0.31, 90_000_000), (2.0, 200_000_000)])
    assert len(times) == 20
    assert sum(rates) * 0.1 == pytest.approx(200)
    assert max(rates) < 700
