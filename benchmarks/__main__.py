"""`python -m benchmarks run` and `python -m benchmarks report`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import contestants as who
from benchmarks import report
from benchmarks.processes import CommandError
from benchmarks.proxy import ProxyError
from benchmarks.results import Run, Session
from benchmarks.session import Bench, Options, Reporter
from benchmarks.workloads import WORKLOADS
from sluicefs.errors import SluiceError

LATEST = Path(__file__).parent / "results" / "latest"
QUICK = Path(__file__).parents[1] / "build" / "bench-quick"
_QUICK_SCALE = 0.125
_QUICK_FIELD = ("sluicefs", "rclone", "s3fs")


@click.group()
def main() -> None:
    """Bucket mounts side by side."""


@main.command()
@click.option("--quick", is_flag=True, help="Fewer workloads, rounds and peers, small data: under 3 minutes.")
@click.option("--workload", envvar="WORKLOAD", help=f"Some of: {', '.join(WORKLOADS)}.")
@click.option("--rounds", envvar="ROUNDS", type=click.IntRange(1), help="Timed rounds.  [5 at most; quick 3]")
@click.option("--contestants", envvar="CONTESTANTS", help="Some of those in contestants.toml.")
@click.option("--contestants-file", type=click.Path(path_type=Path, exists=True), multiple=True, help="More of them.")
@click.option(
    "--minutes",
    envvar="MINUTES",
    type=click.FloatRange(0),
    help="Time for all; rounds are cut short, 0: never.  [14; quick 2.5; 0 with --rounds]",
)
@click.option("--scale", type=click.FloatRange(0, min_open=True), help="Size of the data; 1: as the targets.  [1; quick 0.125]")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--readme", is_flag=True, help="Put the table and a plot into README.md, between its bench marks.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def run(
    quick: bool,
    workload: str | None,
    rounds: int | None,
    contestants: str | None,
    contestants_file: tuple[Path, ...],
    minutes: float | None,
    scale: float | None,
    output: Path | None,
    readme: bool,
    as_json: bool,
) -> None:
    """Measure, and write JSON, a table and plots."""
    try:
        known = who.load(who.DEFAULT, *contestants_file)
    except who.ContestantError as error:
        raise click.UsageError(str(error)) from None
    usual = [name for name, one in WORKLOADS.items() if one.quick or not quick]
    names = _chosen("workload", workload, list(WORKLOADS)) or usual
    field = _chosen("contestant", contestants, list(known)) or [name for name in known if not quick or name in _QUICK_FIELD]
    if minutes is None:
        minutes = 2.5 if quick else 0.0 if rounds else 14.0
    options = Options(
        [WORKLOADS[name] for name in names],
        [known[name] for name in field],
        rounds=rounds or (3 if quick else 5),
        minutes=minutes,
        scale=scale or (_QUICK_SCALE if quick else 1.0),
        brief=bool(minutes) and not quick,
        limit=3.0 if quick else 6.0 if minutes else 20.0,
        thorough=not quick,
    )
    target = output or (QUICK if quick else LATEST)
    console = Console(stderr=True)
    try:
        with _Bar(console) as bar:
            session = Bench(options, target, bar).run()
    except KeyboardInterrupt:
        sys.exit("interrupted; everything is unmounted and stopped")
    except (SluiceError, ProxyError, CommandError, OSError) as error:
        sys.exit(f"the benchmark cannot work: {error}")
    _finish(session, target, readme, as_json, console)


@main.command(name="report")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--readme", is_flag=True, help="Put the table and a plot into README.md, between its bench marks.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def report_command(folder: Path, readme: bool, as_json: bool) -> None:
    """Write table and plots anew from the results in FOLDER."""
    try:
        session = Session.read(folder)
    except (OSError, ValueError, TypeError) as error:
        raise click.UsageError(f"{folder} holds no results: {error}") from None
    _finish(session, folder, readme, as_json, Console(stderr=True))


def _finish(session: Session, folder: Path, readme: bool, as_json: bool, console: Console) -> None:
    report.write(session, folder)
    if readme:
        report.write_readme(session, folder, Path(__file__).parents[1] / "README.md")
    if as_json:
        print(json.dumps(asdict(session)))
    else:
        report.show(session, Console())
    console.print(f"results in {folder}")


def _chosen(kind: str, given: str | None, known: list[str]) -> list[str]:
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise click.UsageError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


class _Bar(Reporter):
    """Progress on the terminal, and a line for each fault."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._row: tuple[str, int] | None = None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, total: int) -> None:
        self._task = self._progress.add_task("", total=total)

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def ended(self, run: Run) -> None:
        row = (run.workload, run.delay)
        if self._row is not None and row != self._row:
            self._progress.advance(self._task)
        self._row = row
        if run.fault or run.note:
            self._console.print(f"{run.workload} {run.delay} ms, {run.contestant}: {run.fault or run.note}", highlight=False)


if __name__ == "__main__":
    main()
