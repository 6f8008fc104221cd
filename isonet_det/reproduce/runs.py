"""What the folders of a table's runs hold."""

import os
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..analysis.curves import read_metrics
from ..config import different_keys, get_cfg
from ..engine.run_info import read_run_info
from ..errors import ISONetError
from ..solver.schedule import scale_to_processes
from .table import Row, Table


@dataclass
class Run:
    """What a job's folder holds.

    Attributes:
        table, row: which row it is.
        folder: its path.
        config: as it ran; None before its first iteration.
        results: the last evaluation, "bbox/AP" or "classification/top1" and so on; empty until
            the end.
        iterations: how many are done.
        strayed: the keys that differ from the recipe (scaled to the run's processes), as
            "KEY value (recipe: value)".
        hours, images_per_second, peak_gib: of the training; None where not known.
        info: what :mod:`isonet_det.engine.run_info` recorded.
    """

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
        """Whether all its iterations and the evaluation after them are done."""
        return bool(self.results)

    @property
    def is_the_recipe(self) -> bool:
        """Whether its numbers may stand beside the paper's."""
        return self.finished and not self.strayed

    @property
    def variant(self) -> str:
        """What groups runs: the row and how it strayed."""
        return "; ".join([self.row.name, *self.strayed])


def read_config(folder: str) -> CfgNode | None:
    """A run's ``config.yaml``; None if there is none.

    Raises:
        ISONetError: it cannot be read.
    """
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        return None
    cfg = get_cfg()
    try:
        with open(path) as f:
            cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(f)))
    except (OSError, yaml.YAMLError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ISONetError(f"{path} is no config of a run: {reason}") from error
    return cfg


def read_run(table: Table, folder: str, row: Row) -> Run:
    """Read a job's folder, whatever state it is in.

    Raises:
        ISONetError: its config cannot be read.
    """
    run = Run(table, row, folder, read_config(folder), info=read_run_info(folder))
    if run.config is None:
        return run
    cfg = run.config
    reference = table.recipe(row)
    steps = cfg.SOLVER.ACCUMULATE_STEPS
    reference.SOLVER.ACCUMULATE_STEPS = steps
    processes = run.info.get("processes", reference.SOLVER.REFERENCE_WORLD_SIZE // steps)
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        reference = scale_to_processes(reference, processes)
    run.strayed = [
        f"{key} {attrgetter(key)(cfg)} (recipe: {attrgetter(key)(reference)})"
        for key in sorted(different_keys(cfg, reference) - table.free_keys)
    ]
    rows = read_metrics(folder)
    trained = [r for r in rows if "total_loss" in r]
    if trained:
        run.iterations = max(r["iteration"] for r in trained) + 1
        run.hours = max((r["hours"] for r in rows if "hours" in r), default=None)
        seconds = [r["time"] for r in trained if "time" in r]
        if seconds:
            run.images_per_second = cfg.SOLVER.IMS_PER_BATCH / median(seconds)
        memory = [r["max_mem_mb"] for r in rows if "max_mem_mb" in r]
        run.peak_gib = max(memory) / 1024 if memory else None
    for r in rows:
        evaluated = table.sections[0].key in r
        if evaluated and r["iteration"] == cfg.SOLVER.MAX_ITER == run.iterations:
            tasks = tuple(f"{section.task}/" for section in table.sections)
            run.results = {k: v for k, v in r.items() if k.startswith(tasks)}
    return run


def find_runs(table: Table, root: str) -> list[Run]:
    """The runs under ``root``: every folder named like a row or, as a job's, with more after a
    hyphen; in the table's order.

    Raises:
        ISONetError: there is none.
    """
    runs = []
    for row in table.rows.values():
        for folder in sorted(Path(root).glob(f"{row.name}*")):
            if folder.is_dir() and folder.name.removeprefix(row.name)[:1] in ("", "-"):
                runs.append(read_run(table, str(folder), row))
    if not runs:
        raise ISONetError(f"{root} has no folder of a row ({', '.join(table.rows)}); run one first")
    return runs
