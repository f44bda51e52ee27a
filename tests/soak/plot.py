"""The plot of a soak: four series over time, one below the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

SERIES = {"rss": "resident memory (MB)", "descriptors": "descriptors", "threads": "threads", "pending": "files not yet sent"}


def draw(samples: list[dict[str, Any]], folder: Path) -> None:
    """`soak.svg` and `soak.png` in `folder`."""
    figure, axes = plt.subplots(len(SERIES), 1, sharex=True, figsize=(8, 8), layout="constrained")
    minutes = [sample["at"] / 60 for sample in samples]
    for axis, (name, title) in zip(axes, SERIES.items(), strict=True):
        scale = 1e6 if name == "rss" else 1
        axis.plot(minutes, [sample[name] / scale for sample in samples], color="#0072b2", linewidth=1.2)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    if samples:
        last = samples[-1]
        axes[0].set_title(f"{last['steps']:,} steps, {last['requests']:,} requests, {last['retries']:,} tried again")
    for kind in ("svg", "png"):
        figure.savefig(folder / f"soak.{kind}", dpi=110)
    plt.close(figure)
