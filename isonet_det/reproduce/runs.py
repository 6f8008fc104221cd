"""What the folders of a table's runs hold."""

import os
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from detectron2.config import CfgNode

from ..analysis.curves import read_metrics, read_run_info
from ..config import different_keys, get_cfg, merge_config_file
from ..errors import ISONetError
from .tables import FREE_KEYS, Row, Table


@dataclass
class Run:
    """What a job's folder holds; ``config`` is None before the first iteration."""

    table: Table
    row: Row
    folder: str
    config: CfgNode | None = None
    results: dict[str, float] = field(default_factory=dict)
    iterations: int = 0
    strayed: list[str] = field(default_factory=list)
    hours: float | None = None
    images_per_second: float | None = None
    peak_gib: float | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.results)

    @property
    def is_the_recipe(self) -> bool:
        return self.finished and not self.strayed

    @property
    def status(self) -> str:
        if self.config is None:
            return "not started"
        if not self.finished:
            return f"unfinished, {self.iterations} of {self.config.SOLVER.MAX_ITER} iterations"
        return "TRIAL RUN, not the recipe" if self.strayed else "the recipe"


def read_config(folder: str) -> CfgNode | None:
    """A run's ``config.yaml``; None if there is none."""
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        return None
    cfg = get_cfg()
    merge_config_file(cfg, path)
    return cfg


def read_run(table: Table, folder: str, row: Row) -> Run:
    """Read a job's folder, whatever state it is in."""
    run = Run(table, row, folder, read_config(folder), info=read_run_info(folder))
    if run.config is None:
        return run
    solver, steps = run.config.SOLVER, run.config.SOLVER.ACCUMULATE_STEPS
    processes = run.info.get("processes", 0) if solver.REFERENCE_WORLD_SIZE else 0
    recipe = table.recipe(row, processes, steps)
    run.strayed = [
        f"{key} {attrgetter(key)(run.config)} (recipe: {attrgetter(key)(recipe)})"
        for key in sorted(different_keys(run.config, recipe) - (FREE_KEYS - {*row.options}))
    ]
    rows = read_metrics(folder)
    trained = [r for r in rows if "total_loss" in r]
    run.iterations = max((r["iteration"] + 1 for r in trained), default=0)
    run.hours = max((r["hours"] for r in rows if "hours" in r), default=None)
    run.peak_gib = max((r["max_mem_mb"] / 1024 for r in rows if "max_mem_mb" in r), default=None)
    seconds = [r["time"] for r in trained if "time" in r]
    run.images_per_second = solver.IMS_PER_BATCH / median(seconds) if seconds else None
    for r in rows:
        if table.metrics[0] in r and r["iteration"] == solver.MAX_ITER == run.iterations:
            run.results = {k: r[k] for k in table.metrics if k in r}
    return run


def find_runs(table: Table, root: str) -> list[Run]:
    """The folders under ``root`` that are named like a row, or so with a hyphen and more."""
    runs = [
        read_run(table, str(folder), row)
        for row in table.rows.values()
        for folder in sorted(Path(root).glob(f"{row.name}*"))
        if folder.is_dir() and folder.name.removeprefix(row.name)[:1] in ("", "-")
    ]
    if not runs:
        raise ISONetError(f"{root} has no folder of a row ({', '.join(table.rows)}); run one first")
    return runs
