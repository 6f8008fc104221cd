"""The curves of runs, from their ``metrics.json``."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ISONetError

logger = logging.getLogger(__name__)

# Ends of the names under which evaluations are logged.
EVALUATED = ("/AP", "/AP50", "/top1", "/top5")


def pyplot():
    """matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def try_to_draw(draw: Callable[..., Any], *args: Any) -> None:
    """Call a function that draws; what goes wrong is a warning, as the run itself is done."""
    try:
        draw(*args)
    except Exception as error:  # fonts, disks, photos: nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("A picture could not be drawn: %s", reason)


def read_metrics(output_dir: str) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.json``; a half-written last line is left out."""
    rows = []
    path = os.path.join(output_dir, "metrics.json")
    if os.path.isfile(path):
        with open(path) as f:
            for line in f:
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
    return rows


def draw_curves(output_dir: str) -> str | None:
    """Write ``curves.png``: losses, AP or accuracy, and learning rate over a run's iterations.

    Returns:
        the picture's path; None when nothing was logged.
    """
    rows = read_metrics(output_dir)
    if not rows:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    keys = {key for row in rows for key in row}
    panels = [
        ("loss", sorted(k for k in keys if "loss" in k), True),
        ("evaluation", sorted(k for k in keys if k.endswith(EVALUATED)), False),
        ("learning rate", ["lr"] if "lr" in keys else [], False),
    ]
    for axis, (title, names, log) in zip(axes, panels, strict=True):
        marker = "." if title == "evaluation" else ""
        for name in names:
            points = [(r["iteration"], r[name]) for r in rows if name in r]
            axis.plot(*zip(*points, strict=True), label=name, marker=marker)
        axis.set(title=title, xlabel="iteration")
        if log:
            axis.set_yscale("log")
        if names:
            axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    path = os.path.join(output_dir, "curves.png")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    logger.info("Curves: %s", path)
    return path


def draw_comparison(runs: Mapping[str, str], metrics: Sequence[str], title: str, path: str) -> None:
    """Curves of several runs in one picture, a panel a metric.

    Args:
        runs: label to ``OUTPUT_DIR``.
        metrics: names as in ``metrics.json``.
        title: above the panels.
        path: of the picture.

    Raises:
        ISONetError: a folder holds no run, or one that has logged nothing of a metric.
    """
    for folder in runs.values():
        if not os.path.isfile(os.path.join(folder, "metrics.json")):
            raise ISONetError(f"{folder} is no run's OUTPUT_DIR: there is no metrics.json in it")
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(6 * len(metrics), 4.5), squeeze=False, layout="constrained"
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        for label, folder in runs.items():
            points = [(r["iteration"], r[metric]) for r in read_metrics(folder) if metric in r]
            if not points:
                raise ISONetError(f"{folder}/metrics.json has no {metric}")
            axis.plot(*zip(*sorted(points), strict=True), label=label, marker=".")
        axis.set(title=metric, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=90)
    plt.close(figure)
