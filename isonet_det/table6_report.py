"""The report of Table 6: Markdown, CSV and a chart, from the runs' folders."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev

from .files import write_whole
from .pictures import pyplot
from .table6 import Run

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def status(run: Run) -> str:
    """What a run is, in a few words."""
    if run.config is None:
        return "not started"
    if not run.finished:
        return f"unfinished, {run.iterations} of {run.config.SOLVER.MAX_ITER} iterations"
    if run.strayed:
        return "TRIAL RUN, not the recipe"
    return "the recipe"


def _ap(runs: Sequence[Run], key: str) -> str:
    values = [run.results[key] for run in runs if key in run.results]
    if not values:
        return "-"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _difference(runs: Sequence[Run], key: str, paper: float) -> str:
    values = [run.results[key] for run in runs if run.is_the_recipe and key in run.results]
    return f"{mean(values) - paper:+.1f}" if values else "-"


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[f"{run.variant}; {status(run)}"].append(run)
    return groups


def markdown(runs: Sequence[Run]) -> str:
    """The report as text."""
    lines = ["# Table 6", ""]
    trial = [run for run in runs if not run.is_the_recipe]
    if trial:
        lines += [
            f"**{len(trial)} of {len(runs)} runs are not the recipe of Table 6 or not finished: "
            "their numbers say nothing about the paper's.** How they strayed is listed below.",
            "",
        ]
    lines += [
        'The column "paper" is Table 6 of Qi et al., ICML 2020; all else was measured. ± is the '
        "standard deviation over seeds. A difference is given for finished runs of the recipe "
        "only.",
        "",
    ]
    for title, task, which in (("Boxes", "bbox", 0), ("Masks", "segm", 1)):
        lines += [
            f"## {title}",
            "",
            "| network | run | seeds | AP | paper | difference | AP50 | AP75 | APs | APm | APl |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for group in _grouped(runs).values():
            row = group[0].row
            numbers = [_ap(group, f"{task}/{metric}") for metric in METRICS]
            difference = _difference(group, f"{task}/AP", row.paper[which])
            cells = [row.network, status(group[0]), str(len(group)), numbers[0]]
            cells += [f"{row.paper[which]:.1f}", difference, *numbers[1:]]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "## Runs",
        "",
        "| folder | status | seed | processes x images x micro-batches | iterations | hours | "
        "images/s | peak GiB | device | commit | torch | detectron2 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        lines.append(f"| {' | '.join(_facts(run).values())} |")
    lines.append("")
    for run in trial:
        if run.strayed:
            lines += [f"`{os.path.basename(run.folder)}` strayed from the recipe:", ""]
            lines += [f"- {key}" for key in run.strayed] + [""]
    return "\n".join(lines)


def _facts(run: Run) -> dict[str, str]:
    solver = run.config.SOLVER if run.config else None
    info = {k: str(v) for k, v in run.info.items()}
    processes = run.info.get("processes")
    batch = "-"
    if solver and processes:
        images = solver.IMS_PER_BATCH / (processes * solver.ACCUMULATE_STEPS)
        batch = f"{processes} x {images:g} x {solver.ACCUMULATE_STEPS}"
    return {
        "folder": f"`{os.path.basename(run.folder)}`",
        "status": status(run),
        "seed": str(run.config.SEED) if run.config else "-",
        "batch": batch,
        "iterations": f"{run.iterations} of {solver.MAX_ITER}" if solver else "-",
        "hours": _number(run.hours, ".3g"),
        "images_per_second": _number(run.images_per_second, ".3g"),
        "peak_gib": _number(run.peak_gib, ".1f"),
        "device": info.get("device", "-"),
        "commit": info.get("commit", "-"),
        "torch": info.get("torch", "-"),
        "detectron2": info.get("detectron2", "-"),
    }


def table(runs: Sequence[Run]) -> str:
    """The runs as CSV, one line each, every number in full."""
    out = io.StringIO()
    metrics = [f"{task}/{metric}" for task in ("bbox", "segm") for metric in METRICS]
    head = [*_facts(runs[0]), *metrics, "paper bbox/AP", "paper segm/AP", "strayed"]
    writer = csv.writer(out)
    writer.writerow(["network", *head])
    for run in runs:
        numbers = [run.results.get(metric, "") for metric in metrics]
        facts = [value.strip("`") for value in _facts(run).values()]
        strayed = "; ".join(run.strayed)
        writer.writerow([run.row.network, *facts, *numbers, *run.row.paper, strayed])
    return out.getvalue()


def draw(runs: Sequence[Run], path: str) -> None:
    """Bars of box and mask AP beside the paper's; what is not the recipe is hatched and says
    so."""
    plt = pyplot()
    groups = list(_grouped(runs).values())
    trial = any(not run.is_the_recipe for run in runs)
    figure, axes = plt.subplots(
        1, 2, figsize=(4 + 2.5 * len(groups), 5), layout="constrained", sharey=True
    )
    for axis, task, which in zip(axes, ("bbox", "segm"), (0, 1), strict=True):
        for x, group in enumerate(groups):
            paper = group[0].row.paper[which]
            axis.bar(x - 0.2, paper, 0.38, color="0.75", label="paper" if x == 0 else None)
            axis.text(x - 0.2, paper, f"{paper:.1f}", ha="center", va="bottom")
            values = [r.results[f"{task}/AP"] for r in group if f"{task}/AP" in r.results]
            if values:
                recipe = group[0].is_the_recipe
                axis.bar(
                    x + 0.2,
                    mean(values),
                    0.38,
                    color="tab:blue" if recipe else "white",
                    edgecolor="tab:blue",
                    hatch=None if recipe else "//",
                    label="measured" if x == 0 else None,
                    yerr=stdev(values) if len(values) > 1 else None,
                )
                axis.text(x + 0.2, mean(values), f"{mean(values):.1f}", ha="center", va="bottom")
        labels = [
            group[0].row.network + ("" if group[0].is_the_recipe else "\n" + _short(group[0]))
            for group in groups
        ]
        axis.set_xticks(range(len(groups)), labels)
        axis.set_title({"bbox": "box AP", "segm": "mask AP"}[task])
        axis.grid(axis="y", alpha=0.3)
        axis.margins(y=0.2)  # room for the numbers and the legend
    axes[0].legend(loc="upper left", ncols=2)
    if trial:
        figure.suptitle(
            "HATCHED OR MISSING: not the recipe of Table 6, or not finished", color="red"
        )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _short(run: Run) -> str:
    return "unfinished" if not run.finished else "trial run"


def write_report(runs: Sequence[Run], folder: str) -> list[str]:
    """Write ``report.md``, ``report.csv`` and ``report.png``.

    Returns:
        their paths.
    """
    paths = [os.path.join(folder, f"report.{suffix}") for suffix in ("md", "csv", "png")]
    for path, content in zip(paths, (markdown(runs), table(runs)), strict=False):
        with write_whole(path) as f:
            f.write(content.encode())
    draw(runs, paths[2])
    return paths
