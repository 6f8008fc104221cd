"""The report of a table: Markdown, CSV and a chart, from the runs' folders."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..analysis.curves import pyplot
from ..files import write_whole
from .runs import Run


def status(run: Run) -> str:
    """What a run is, in a few words."""
    if run.config is None:
        return "not started"
    if not run.finished:
        return f"unfinished, {run.iterations} of {run.config.SOLVER.MAX_ITER} iterations"
    if run.strayed:
        return "TRIAL RUN, not the recipe"
    return "the recipe"


def _measured(runs: Sequence[Run], key: str) -> str:
    digits = runs[0].table.digits
    values = [run.results[key] for run in runs if key in run.results]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _difference(runs: Sequence[Run], key: str, paper: float | None) -> str:
    values = [run.results[key] for run in runs if run.is_the_recipe and key in run.results]
    if not values or paper is None:
        return "-"
    return f"{np.mean(values) - paper:+.{runs[0].table.digits}f}"


def _paper(run: Run, section: int) -> str:
    value = run.row.paper[section]
    return "did not converge" if value is None else f"{value:.{run.table.digits}f}"


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[f"{run.variant}; {status(run)}"].append(run)
    return groups


def markdown(runs: Sequence[Run]) -> str:
    """The report as text."""
    table = runs[0].table
    lines = [f"# {table.title}", ""]
    trial = [run for run in runs if not run.is_the_recipe]
    done = len({run.row.name for run in runs if run.is_the_recipe})
    lines += [f"{done} of {len(table.rows)} rows are done.", ""]
    if trial:
        lines += [
            f"**{len(trial)} of {len(runs)} runs are not the recipe of {table.title} or not "
            "finished: their numbers say nothing about the paper's.** How they strayed is listed "
            "below.",
            "",
        ]
    lines += [
        'The column "paper" is Qi et al., ICML 2020; all else was measured. ± is the standard '
        "deviation over seeds. A difference is given for finished runs of the recipe only.",
        "",
    ]
    if table.note:
        lines += [table.note, ""]
    for which, section in enumerate(table.sections):
        head = ["network", "run", "seeds", section.metrics[0], "paper", "difference"]
        head += section.metrics[1:]
        lines += [f"## {section.title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for group in _grouped(runs).values():
            first = group[0]
            numbers = [_measured(group, f"{section.task}/{metric}") for metric in section.metrics]
            difference = _difference(group, section.key, first.row.paper[which])
            cells = [first.row.network, status(first), str(len(group)), numbers[0]]
            cells += [_paper(first, which), difference, *numbers[1:]]
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
    sections = runs[0].table.sections
    metrics = [f"{section.task}/{metric}" for section in sections for metric in section.metrics]
    head = [*_facts(runs[0]), *metrics, *(f"paper {section.key}" for section in sections)]
    writer = csv.writer(out)
    writer.writerow(["network", *head, "strayed"])
    for run in runs:
        numbers = [run.results.get(metric, "") for metric in metrics]
        facts = [value.strip("`") for value in _facts(run).values()]
        paper = ["" if value is None else value for value in run.row.paper]
        strayed = "; ".join(run.strayed)
        writer.writerow([run.row.network, *facts, *numbers, *paper, strayed])
    return out.getvalue()


def draw(runs: Sequence[Run], path: str) -> None:
    """Bars of the measured numbers beside the paper's; what is not the recipe is hatched and says
    so."""
    plt = pyplot()
    table = runs[0].table
    groups = list(_grouped(runs).values())
    figure, axes = plt.subplots(
        1,
        len(table.sections),
        figsize=(4 + 4 * len(table.sections), 2 + 0.8 * len(groups)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    unnamed = ["measured", "paper"]  # what the legend does not have yet
    for which, (axis, section) in enumerate(zip(axes[0], table.sections, strict=True)):
        for y, group in enumerate(groups):
            paper = group[0].row.paper[which]
            label = unnamed.pop() if "paper" in unnamed else None
            axis.barh(y - 0.2, paper or 0, 0.38, color="0.75", label=label)
            axis.text(paper or 0, y - 0.2, f" {_paper(group[0], which)}", va="center")
            values = [r.results[section.key] for r in group if section.key in r.results]
            if values:
                recipe = group[0].is_the_recipe
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                axis.barh(
                    y + 0.2,
                    np.mean(values),
                    0.38,
                    color="tab:blue" if recipe else "white",
                    edgecolor="tab:blue",
                    hatch=None if recipe else "//",
                    label=unnamed.pop() if unnamed else None,
                    xerr=spread or None,
                )
                number = f" {np.mean(values):.{table.digits}f}"
                axis.text(np.mean(values) + spread, y + 0.2, number, va="center")
        axis.set_title(section.title)
        axis.set_xlabel(section.metrics[0])
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.2)  # room for the numbers
    labels = [
        g[0].row.network + ("" if g[0].is_the_recipe else f"\n{_short(g[0])}") for g in groups
    ]
    axes[0][0].set_yticks(range(len(groups)), labels)
    axes[0][0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    if any(not run.is_the_recipe for run in runs):
        figure.suptitle(
            f"HATCHED OR MISSING: not the recipe of {table.title}, or not finished", color="red"
        )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _short(run: Run) -> str:
    if run.is_the_recipe:
        return ""
    return "\ntrial run" if run.finished else "\nunfinished"


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
