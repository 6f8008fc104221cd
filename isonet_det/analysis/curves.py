"""The curves of runs, and what else their folders say."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ISONetError

logger = logging.getLogger(__name__)

# Ends of the names under which evaluations are logged.
EVALUATED = ("/AP", "/AP50", "/top1", "/top5")


def new_figure(rows: int, columns: int, width: float, height: float, **options: Any) -> Any:
    """A picture and its axes, which leave pyplot and its backend to the person."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Draw class names as they are: no formulas between $, and CJK where there is a font for it."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    fonts = sorted({font.name for font in fontManager.ttflist if "CJK" in font.name})
    sans = ["DejaVu Sans", *fonts[:1]]
    with matplotlib.rc_context({"text.parse_math": False, "font.sans-serif": sans}):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph ")
            yield


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


def read_run_info(folder: str) -> dict[str, Any]:
    """A run's ``run.json``; empty if there is none or it cannot be read."""
    try:
        with open(os.path.join(folder, "run.json")) as f:
            content = json.load(f)
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _plot(axis: Any, rows: Sequence[dict[str, Any]], name: str, label: str, marker: str) -> None:
    points = sorted((r["iteration"], r[name]) for r in rows if name in r)
    axis.plot(*zip(*points, strict=True), label=label, marker=marker)


def draw_curves(output_dir: str) -> None:
    """Write ``curves.png``: losses, AP or accuracy, and learning rate over a run's iterations."""
    rows = read_metrics(output_dir)
    if not rows:
        return
    keys = sorted({key for row in rows for key in row})
    panels = {
        "losses": [k for k in keys if "loss" in k and k != "loss_ortho"],
        "orthogonality penalty times gamma": [k for k in keys if k == "loss_ortho"],
        "evaluation (percent)": [k for k in keys if k.endswith(EVALUATED)],
        "learning rate": [k for k in keys if k == "lr"],
    }
    figure, axes = new_figure(2, 2, 12, 8)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            _plot(axis, rows, name, name, "." if "evaluation" in title else "")
        axis.set(title=title, xlabel="iteration", yscale="log" if title == "losses" else "linear")
        if names:
            axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    path = os.path.join(output_dir, "curves.png")
    figure.savefig(path, dpi=100)
    logger.info("Curves: %s", path)


def draw_comparison(runs: Mapping[str, str], metrics: Sequence[str], title: str, path: str) -> None:
    """Curves of several runs (label to folder) in one picture, a panel a metric."""
    figure, axes = new_figure(1, len(metrics), 6 * len(metrics), 4.5)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for label, folder in runs.items():
            rows = read_metrics(folder)
            if not any(metric in r for r in rows):
                raise ISONetError(f"{folder}/metrics.json has no {metric}")
            _plot(axis, rows, metric, label, ".")
        axis.set(title=metric, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=90)
