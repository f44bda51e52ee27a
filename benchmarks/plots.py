"""The pictures of a session, as SVG: bars with whiskers, throughput over time, requests. Colours the colour-blind can tell.

Each picture is 830 points wide: a README's column. A contestant keeps its colour and marker from picture to picture.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.results import Session
from benchmarks.workload import HIGHER

OVERVIEW, BARS, CURVE, REQUESTS = "overview.svg", "bars.svg", "throughput.svg", "requests.svg"
_WIDTH = 8.3 * 100 / 72  # inches; SVG counts 72 points to one
_PALETTE = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")  # Okabe and Ito
_GREYS = {"ceiling": "#555555", "ceiling-ministack": "#808080", "floor": "#AAAAAA"}
_LABELS = {"ceiling": "ceiling (no mount)", "ceiling-ministack": "same, MiniStack", "floor": "floor (no store)"}
_MARKERS = "osD^vPX"
_OVERVIEW = [("read-one", 0), ("read-one", 30), ("write-one", 0), ("small-read", 0), ("small-read", 30), ("small-create", 0)]
_OVERVIEW += [("random-16", 0), ("ls-l", 0)]
_BIN = 0.1  # seconds
_STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sluicefs",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "axes.axisbelow": True,
}


def draw(session: Session, folder: Path, kind: str = "svg") -> None:
    """Every picture there is data for, into `folder`; an older one that there is none for is deleted."""
    import matplotlib

    matplotlib.use("Agg")
    rows = [row for row in session.rows() if sum(bool(session.values(*row, name)) for name in session.contestants()) > 1]
    overview = [row for row in _OVERVIEW if row in rows] or rows[:8]
    with matplotlib.rc_context(_STYLE):
        pictures = {
            OVERVIEW: _bars(session, overview),
            BARS: _bars(session, rows),
            CURVE: _curves(session),
            REQUESTS: _requests(session),
        }
        for name, figure in pictures.items():
            path = (folder / name).with_suffix(f".{kind}")
            path.unlink(missing_ok=True)
            if figure is not None:
                figure.savefig(path, metadata={"Date": None} if kind == "svg" else None)
                _close(figure)


def _bars(session: Session, rows: list[tuple[str, int]]) -> Any:
    """One small chart for each workload: a bar for each contestant, the median, with a whisker from least to most."""
    import matplotlib.pyplot as plt

    rows = [row for row in rows if any(session.values(*row, name) for name in session.contestants())]
    if not rows:
        return None
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    bars = max(len(_measured(session, row)) for row in rows)
    size = (_WIDTH, lines * (0.75 + 0.27 * bars))
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, row in zip(axes.flat, rows, strict=False):
        _bar_chart(session, axis, row)
    for axis in list(axes.flat)[len(rows) :]:
        axis.set_visible(False)
    return figure


def _measured(session: Session, row: tuple[str, int]) -> list[str]:
    """Who has a bar, or a word in place of one."""
    return [name for name in session.contestants() if session.values(*row, name) or session.failure(row[0], name)]


def _bar_chart(session: Session, axis: Any, row: tuple[str, int]) -> None:
    workload, delay = row
    unit = session.units[workload]
    names = _measured(session, row)
    most = 0.0
    for place, name in enumerate(names):
        values = list(session.values(workload, delay, name).values())
        if not values:
            axis.annotate(
                session.failure(workload, name).partition(" ")[0].rstrip(":"),
                (0, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=11,
                style="italic",
            )
            continue
        middle = statistics.median(values)
        most = max(most, *values)
        whisker = [[middle - min(values)], [max(values) - middle]]
        hatch = "//" if name in _GREYS else None
        axis.barh(place, middle, height=0.72, color=_colour(session, name), hatch=hatch, edgecolor="white")
        if len(values) > 1:
            axis.errorbar(middle, place, xerr=whisker, color="black", capsize=3, linewidth=1.2)
        axis.annotate(
            _short(middle), (max(values), place), xytext=(5, 0), textcoords="offset points", va="center", ha="left", fontsize=11
        )
    axis.set_yticks(range(len(names)), [_LABELS.get(name, name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, most * 1.22)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(_locator(5))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.grid(axis="x", color="#e5e5e5")
    better = "more" if unit in HIGHER else "less"
    title = session.titles[workload] + (f", {delay}\u00a0ms" if delay else "")
    axis.set_title(_folded(title), loc="left", fontweight="bold")
    axis.set_xlabel(f"{unit} ({better} is better)", fontsize=10.5)


def _curves(session: Session) -> Any:
    """Throughput over time of one large cold read; the round nearest to the median. The floor would flatten all others."""
    import matplotlib.pyplot as plt

    rows = list(dict.fromkeys((run.workload, run.delay) for run in session.runs if run.extra.get("curve")))
    if not rows:
        return None
    figure, axes = plt.subplots(len(rows), 1, figsize=(_WIDTH, 3.4 * len(rows)), squeeze=False, layout="constrained")
    for axis, (workload, delay) in zip(axes.flat, rows, strict=True):
        for name in session.contestants():
            curve = _typical_curve(session, workload, delay, name)
            if curve and name not in ("ceiling-ministack", "floor"):  # the former's file is a smaller one
                times, rates = _binned(curve)
                style = {"linestyle": "--"} if name in _GREYS else {}
                width = 2.6 if name == session.subject else 1.6
                axis.plot(times, rates, color=_colour(session, name), label=_LABELS.get(name, name), linewidth=width, **style)
        axis.set_title(session.titles[workload] + f", {delay} ms", loc="left", fontweight="bold")
        axis.set_ylabel("MB/s")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.grid(color="#e5e5e5")
    axes.flat[-1].set_xlabel("seconds since the file was opened")
    axes.flat[0].legend(ncols=2, frameon=False, loc="upper right")
    return figure


def _typical_curve(session: Session, workload: str, delay: int, name: str) -> list[tuple[float, int]]:
    values = session.values(workload, delay, name)
    runs = [run for run in session.of(workload, delay, name) if run.round in values and run.extra.get("curve")]
    if not runs:
        return []
    middle = statistics.median(values.values())
    best = min(runs, key=lambda run: abs((run.value or 0) - middle))
    return [(float(when), int(total)) for when, total in best.extra["curve"]]


def _binned(curve: list[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """(seconds, MB/s) in equal steps of about a thirtieth of the whole, each drawn at its middle."""
    end = curve[-1][0]
    steps = max(1, min(30, int(end / _BIN)))
    edges = [end * number / steps for number in range(steps + 1)]
    totals = [_total_at(curve, when) for when in edges]
    rates = [(after - before) / (end / steps) / 1e6 for before, after in pairwise(totals)]
    return [(left + right) / 2 for left, right in pairwise(edges)], rates


def _total_at(curve: list[tuple[float, int]], when: float) -> float:
    """Bytes after `when` seconds, on a straight line between two points of the curve."""
    before = (0.0, 0)
    for point in curve:
        if point[0] >= when:
            width = point[0] - before[0]
            return before[1] + (point[1] - before[1]) * ((when - before[0]) / width if width else 1)
        before = point
    return before[1]


def _requests(session: Session) -> Any:
    """A line for each workload, a mark for each contestant; the scale is logarithmic."""
    import matplotlib.pyplot as plt

    names = [name for name in session.contestants() if name not in _GREYS]
    counted = [row for row in session.rows() if any(session.counted(*row, name) for name in names)]
    rows = list({row[0]: row for row in reversed(counted)}.values())[::-1]  # the smallest delay that was counted
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(_WIDTH, 1.4 + 0.5 * len(rows)), layout="constrained")
    for number, name in enumerate(names):
        across, down = [], []
        for place, row in enumerate(rows):
            run = session.counted(*row, name)
            if run is not None and run.counts is not None:
                across.append(max(run.counts["total"], 0.7))
                down.append(place + (number - (len(names) - 1) / 2) * 0.13)
        if across:
            marker = _MARKERS[number % len(_MARKERS)]
            axis.scatter(across, down, color=_colour(session, name), marker=marker, label=name, s=46, zorder=3)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [_folded(session.titles[row[0]], 34) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    for place in range(1, len(rows), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="#f5f5f5", zorder=0)
    axis.grid(axis="x", color="#dddddd")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("requests for the whole workload (less is better; at the left edge: none)")
    figure.legend(ncols=len(names), frameon=False, loc="outside upper center")
    return figure


def _colour(session: Session, name: str) -> str:
    if name in _GREYS:
        return _GREYS[name]
    known = [session.subject, *(one for one in session.plain if one != session.subject)]
    return _PALETTE[known.index(name) % len(_PALETTE)]


def _locator(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)


def _folded(text: str, width: int = 40) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)
