"""What a session found, for readers: Markdown with the ratios first, the same on the terminal, and a part of README.md.

A figure that was not measured is a dash, never a guess; whoever was disqualified is named with the reason.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import plots
from benchmarks.results import REFERENCES, Session
from benchmarks.workload import Target

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TABLE = "results.md"
NONE = "–"
_FORMATS = {"bytes up": lambda value: f"{value / 2**20:.1f} MiB", "requests": "{:.0f}".format, "GetObject": "{:.0f}".format}
_METHOD = """\
Ceiling: the same bytes by bare requests from one Python process with the same transport, without a mount. Floor: a llfuse
file system that answers from one buffer. Cold: a fresh mount, an empty cache folder, the machine's caches emptied before
the round. 0 ms is loopback; at 30 ms HAProxy holds back every request for that long. Requests are counted at HAProxy, in a
round of its own before the timed ones, which do not pass it; rows with a delay do in any case, so those count in their
first round, and hash what it reads. The first byte of a name not known takes a lookup (a listing) and a GET, which sluicefs
sends at the same time, so that after a stat it has it already; its ceiling is one GET of 128 KiB on an open connection.
JuiceFS stores chunks and keeps names in SQLite on this machine, so it is a yardstick and no peer. "cannot", "fails",
"wrong" stand for whoever did not get through; why is said at the end."""
_Rows = list[list[str]]


def write(session: Session, folder: Path) -> None:
    """Table and plots into `folder`; the JSON is there already."""
    (folder / TABLE).write_text(_document(session))
    plots.draw(session, folder)


def show(session: Session, console: Console) -> None:
    """Ratios, targets and faults on the terminal."""
    for title, rows in (("How many times as fast as the others", ratio_rows(session)), ("Targets", target_rows(session))):
        if len(rows) < 2:
            continue
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if number else "left", min_width=None if number else 20)
        for row in rows[1:]:
            table.add_row(*(cell.partition(" (")[0] for cell in row))  # the spread stands in the document
        console.print(table)
    for line in faults(session):
        console.print(line, highlight=False)


def write_readme(session: Session, folder: Path, readme: Path) -> None:
    """Puts plot and ratios between the marks of `readme`. Raises SystemExit: there are none."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{readme} lacks the lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    where = os.path.relpath(folder, readme.parent)
    part = (
        f"![Throughput and times, side by side]({where}/{plots.OVERVIEW})\n\n"
        f"How many times as fast as the others; measured on {_machine(session)}\n\n{_markdown(ratio_rows(session))}\n"
        f"\n[All figures]({where}/{TABLE}): requests, bytes and their price, processor, memory.\n"
    )
    readme.write_text(f"{before}{BEGIN}\n{part}{END}{after}")


def _document(session: Session) -> str:
    subject = session.subject
    parts = [
        "# Benchmarks",
        f"Measured on {_machine(session)}",
        _METHOD,
        f"## How many times as fast as … ({subject}, median of the rounds, each compared side by side)",
        _markdown(ratio_rows(session)),
        "## Targets",
        _markdown(target_rows(session)),
        "## What each measured: median (min to max), number of rounds",
        _markdown(value_rows(session)),
        "## Requests, bytes and their price on R2, one run each",
        _markdown(count_rows(session)),
        "## Processor and memory of the mount's processes",
        _markdown(cost_rows(session)),
    ]
    problems = faults(session)
    if problems:
        parts += ["## Faults and absences", "\n".join(f"- {line}" for line in problems)]
    parts += [f"![All workloads]({plots.BARS})", f"![One large cold read]({plots.CURVE})", f"![Requests]({plots.REQUESTS})"]
    return "\n\n".join(parts) + "\n"


# --- tables, their first row the heading


def ratio_rows(session: Session) -> _Rows:
    others = [name for name in session.contestants() if name != session.subject]
    rows = [["workload", session.subject, *(f"× {name}" for name in others)]]
    for workload, delay in session.rows():
        values = session.values(workload, delay, session.subject)
        ours = _amount(statistics.median(values.values()), session.units[workload]) if values else NONE
        cells = (_ratio(session.ratios(workload, delay, name)) or _word(session, workload, name) for name in others)
        rows.append([_row_name(session, workload, delay), ours, *cells])
    return rows


def target_rows(session: Session) -> _Rows:
    rows = [["workload", "figure", "target", "measured", ""]]
    for workload, delay, target, value in session.verdicts():
        verdict = NONE if value is None else "met" if target.holds(value) else "**missed**"
        name = _row_name(session, workload, delay)
        rows.append([name, target.figure, _limit(target), _figure(target.figure, value), verdict])
    return rows


def value_rows(session: Session) -> _Rows:
    names = session.contestants()
    rows = [["workload", *names]]
    for workload, delay in session.rows():
        unit, cells = session.units[workload], []
        for name in names:
            values = list(session.values(workload, delay, name).values())
            if not values:
                cells.append(session.failure(workload, name) or NONE)
            else:
                middle = _amount(statistics.median(values), unit)
                spread = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
                cells.append(f"{middle}{spread}, {len(values)}")
        rows.append([_row_name(session, workload, delay), *cells])
    return rows


def count_rows(session: Session) -> _Rows:
    rows = [["workload", "contestant", "requests", "by verb", "MB up", "MB down", "US cents per 1,000 runs"]]
    for workload, delay in session.rows():
        for name in session.contestants():
            run = session.counted(workload, delay, name)
            if run is None or run.counts is None or name in REFERENCES:
                continue
            counts = run.counts
            verbs = ", ".join(f"{verb} {number}" for verb, number in counts["requests"].items())
            price = counts["dollars"] * 100 * 1000
            row = [str(counts["total"]), verbs, f"{counts['up'] / 1e6:.2f}", f"{counts['down'] / 1e6:.2f}", f"{price:.2f}"]
            rows.append([_row_name(session, workload, delay), name, *row])
    return rows


def cost_rows(session: Session) -> _Rows:
    rows = [["workload", "contestant", "CPU s per GB", "CPU ms per file or read", "RSS idle MB", "RSS peak MB"]]
    for workload, delay in session.rows():
        for name in session.contestants():
            if name.startswith("ceiling") or not session.values(workload, delay, name):
                continue
            figures = [session.figure(figure, workload, delay, name) for figure in ("CPU s/GB", "CPU ms/file")]
            figures += [session.figure(figure, workload, delay, name) for figure in ("idle RSS MB", "peak RSS MB")]
            rows.append([_row_name(session, workload, delay), name, *(_number(value) for value in figures)])
    return rows


def faults(session: Session) -> list[str]:
    """A line for each contestant that is absent, was disqualified, or left something behind."""
    found = [f"{name}: left out, {why}" for name, why in session.left_out.items()]
    for run in session.runs:
        text = run.fault or run.note
        line = f"{_row_name(session, run.workload, run.delay)}, {run.contestant}: {text}"
        if text and line not in found:
            found.append(line)
    if not session.finished:
        found.append("the run was ended before all workloads were through")
    return found


# --- words


def _machine(session: Session) -> str:
    machine = session.machine
    skip = ("date", "cpu", "memory", "kernel")
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in skip)
    scale = session.options["scale"]
    size = "" if scale == 1 else f" Data at {scale:g} of its full size."
    return f"{machine['date']}: {machine['cpu']}, {machine['memory']}, Linux {machine['kernel']}; {versions}.{size}"


def _row_name(session: Session, workload: str, delay: int) -> str:
    return session.titles[workload] + (f", {delay} ms" if delay else "")


def _limit(target: Target) -> str:
    return f"{'≥' if target.relation == '>=' else '≤'} {_figure(target.figure, target.limit)}"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return NONE
    return _FORMATS[name](value) if name in _FORMATS else _number(value)


def _ratio(ratios: list[float]) -> str:
    """Median, with least and most where there are several; "" for none."""
    if not ratios:
        return ""
    middle = _number(statistics.median(ratios))
    return middle if len(ratios) < 2 else f"{middle} ({_number(min(ratios))}–{_number(max(ratios))})"


def _word(session: Session, workload: str, name: str) -> str:
    """The first word of why there is no ratio: cannot, fails, hangs, dies, wrong."""
    return session.failure(workload, name).partition(" ")[0].rstrip(":") or NONE


def _amount(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}"


def _number(value: float | None) -> str:
    """Two to three digits that count."""
    if value is None:
        return NONE
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:,.{digits}f}" if size >= 0.1 or not value else f"{value:.2g}"


def _markdown(rows: _Rows) -> str:
    if len(rows) < 2:
        return "Nothing measured."
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    return "\n".join(lines)
