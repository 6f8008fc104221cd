"""The results of a table's runs: Markdown, CSV and a chart, and the detectors for the model zoo."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..analysis.curves import new_figure
from ..analysis.model_card import publish_detector, write_record
from ..files import write_file
from .runs import Run

_PAPER = (
    'The column "paper" is Qi et al., ICML 2020; all else was measured. A difference is given for '
    "finished runs of the recipe only."
)


def _group(runs: Sequence[Run]) -> list[list[Run]]:
    """By row, how they strayed, and status: what differs in its seed alone."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[(run.row.name, *run.strayed, run.status)].append(run)
    return list(groups.values())


def _mean(runs: Sequence[Run], key: str) -> tuple[float | None, float | None, str]:
    """The mean of a metric over runs, its spread, and both as text."""
    digits = runs[0].table.digits
    values = [run.results[key] for run in runs if key in run.results]
    mean = float(np.mean(values)) if values else None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    text = "-" if mean is None else f"{mean:.{digits}f}"
    return mean, spread, text if spread is None else f"{text} ± {spread:.{digits}f}"


def _paper(runs: Sequence[Run], which: int) -> str:
    value = runs[0].row.paper[which]
    return "did not converge" if value is None else f"{value:.{runs[0].table.digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(runs: Sequence[Run]) -> str:
    """The report as text."""
    table, trial = runs[0].table, [run for run in runs if not run.is_the_recipe]
    compared = ["paper", "difference"] if runs[0].row.paper else []
    of = "the paper's" if compared else "the table"
    done = len({run.row.name for run in runs if run.is_the_recipe})
    lines = [f"# {table.title}", "", f"{done} of {len(table.rows)} rows are done.", ""]
    if trial:
        lines += [
            f"**{len(trial)} of {len(runs)} runs are not the recipe or not finished: their numbers "
            f"say nothing about {of}.** How they strayed is listed below.",
            "",
        ]
    lines += [
        *([_PAPER] if compared else []),
        "± is the standard deviation over seeds. A batch is processes x images x micro-batches.",
        "",
    ]
    lines += [table.note, ""] if table.note else []
    for which, (title, keys) in enumerate(table.sections.items()):
        first, *others = (key.rpartition("/")[2] for key in keys)
        head = ["network", "run", "seeds", first, *compared, *others]
        lines += [f"## {title}", "", _line(head), "|---" * len(head) + "|"]
        for group in _group(runs):
            (mean, _, text), *more = (_mean(group, key) for key in keys)
            cells = [group[0].row.network, group[0].status, str(len(group)), text]
            if compared:
                paper, difference = group[0].row.paper[which], "-"
                if group[0].is_the_recipe and mean is not None and paper is not None:
                    difference = f"{mean - paper:+.{table.digits}f}"
                cells += [_paper(group, which), difference]
            lines.append(_line([*cells, *(cell for _, _, cell in more)]))
        lines.append("")
    facts = [_facts(run) for run in runs]
    lines += ["## Runs", "", _line(list(facts[0])), "|---" * len(facts[0]) + "|"]
    lines += [*(_line(list(fact.values())) for fact in facts), ""]
    for run in trial:
        if run.strayed:
            lines += [f"`{os.path.basename(run.folder)}` strayed from the recipe:", ""]
            lines += [*(f"- {key}" for key in run.strayed), ""]
    return "\n".join(lines)


def _facts(run: Run) -> dict[str, str]:
    facts = dict.fromkeys(("seed", "batch", "iterations"), "-")
    if run.config:
        solver, processes = run.config.SOLVER, run.info.get("processes")
        facts.update(seed=str(run.config.SEED), iterations=f"{run.iterations} of {solver.MAX_ITER}")
        if processes:
            images = solver.IMS_PER_BATCH / (processes * solver.ACCUMULATE_STEPS)
            facts["batch"] = f"{processes} x {images:g} x {solver.ACCUMULATE_STEPS}"
    costs = {key: getattr(run, key) for key in ("hours", "images_per_second", "peak_gib")}
    return {
        "folder": os.path.basename(run.folder),
        "status": run.status,
        **facts,
        **{k: "not measured" if v is None else f"{v:.3g}" for k, v in costs.items()},
        **{k: str(run.info.get(k, "-")) for k in ("device", "commit", "torch", "detectron2")},
    }


def table(runs: Sequence[Run]) -> str:
    """The runs as CSV, one line each, every number in full."""
    out, sections, rows = io.StringIO(), runs[0].table.sections, []
    for run in runs:
        papers = zip(sections.values(), run.row.paper, strict=False)  # none outside the paper
        rows.append(
            {
                "network": run.row.network,
                **_facts(run),
                **{metric: run.results.get(metric, "") for metric in run.table.metrics},
                **{f"paper {keys[0]}": value for keys, value in papers},
                "strayed": "; ".join(run.strayed),
            }
        )
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def draw(runs: Sequence[Run], path: str) -> None:
    """Bars of the measured numbers beside the paper's; hatched where it is not the recipe."""
    sections, groups = runs[0].table.sections, _group(runs)
    size = 4 + 4 * len(sections), 2 + 0.8 * len(groups)
    figure, axes = new_figure(1, len(sections), *size, sharey=True)
    for which, (axis, (title, keys)) in enumerate(zip(axes[0], sections.items(), strict=True)):
        for y, group in enumerate(groups):
            if paper := group[0].row.paper:
                bars = axis.barh(y - 0.2, paper[which] or 0, 0.38, color="0.75")
                axis.bar_label(bars, [f" paper: {_paper(group, which)}"])
            mean, spread, text = _mean(group, keys[0])
            look = {"color": "tab:blue"}
            if not group[0].is_the_recipe:
                look = {"color": "white", "hatch": "//"}
            bars = axis.barh(y + 0.2, mean or 0, 0.38, xerr=spread, edgecolor="tab:blue", **look)
            axis.bar_label(bars, [f" {text}"])
        axis.set(title=title, xlabel=keys[0].rpartition("/")[2])
        axis.margins(x=0.3)  # room for the numbers
    labels = [f"{group[0].row.network}\n{group[0].status.split(',')[0]}" for group in groups]
    axes[0][0].set_yticks(range(len(groups)), labels)
    axes[0][0].invert_yaxis()
    if any(not run.is_the_recipe for run in runs):
        figure.suptitle("HATCHED OR MISSING: not the recipe, or not finished", color="red")
    figure.savefig(path, dpi=90)


def write_report(runs: Sequence[Run], folder: str) -> list[str]:
    """Write ``report.md``, ``report.csv`` and ``report.png``; returns their paths."""
    paths = [os.path.join(folder, f"report.{suffix}") for suffix in ("md", "csv", "png")]
    for path, content in zip(paths, (markdown(runs), table(runs)), strict=False):
        write_file(path, content)
    draw(runs, paths[2])
    return paths


def publish_rows(runs: Sequence[Run], output_dir: str, zoo: Path, base_url: str = "") -> list[Path]:
    """Publish, of each finished row, the seed in the middle; returns the zoo records' paths."""
    paths = []
    for group in _group([run for run in runs if run.is_the_recipe]):
        table, row = group[0].table, group[0].row
        values = [run.results[table.metrics[0]] for run in group]
        # The lower of two in the middle: the best seed alone would promise too much.
        middle = group[int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])]
        name = f"{table.title.lower().replace(' ', '')}-{row.name}"
        repeats = [run.folder for run in group if run is not middle]
        record = publish_detector(middle.folder, name, output_dir, repeats=repeats)
        if base_url:
            file = Path(record.source).name
            record = replace(record, source=f"{base_url.rstrip('/')}/{name}/{file}")
        paths.append(write_record(record, f"{middle.folder}/config.yaml", zoo))
    return paths
