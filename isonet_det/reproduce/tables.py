"""The rows of the paper's tables: the commands that run them, and what their folders hold."""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..analysis.pictures import read_metrics
from ..config import different_keys, get_cfg, merge_options
from ..engine.hooks import EXIT_STATUS
from ..engine.prepare import at_least_one, make_cfg
from ..engine.run_info import read_run_info
from ..errors import ISONetError
from ..model_zoo import get_config
from ..solver.schedule import epochs_to_iterations, get_key, scaled_to_workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: of its runs' folders.
        network: as the report calls it.
        config: the ready config.
        paper: the paper's number per section of the table; None where it says "did not converge".
        options: ``KEY VALUE`` words that make the row out of the config.
    """

    name: str
    network: str
    config: str
    paper: tuple[float | None, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """What the report compares.

    Attributes:
        title: its heading.
        task: before the slash in the logged names.
        metrics: after it; the first one is the paper's.
    """

    title: str
    task: str
    metrics: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the logged number that stands beside the paper's."""
        return f"{self.task}/{self.metrics[0]}"


# What a run may choose for itself without straying from the recipe.
FREE_KEYS = frozenset(
    {
        "OUTPUT_DIR",
        "SEED",
        "VIS_PERIOD",
        "MODEL.DEVICE",
        "DATALOADER.NUM_WORKERS",
        "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.CHECKPOINT_KEEP",
        "SOLVER.ACCUMULATE_STEPS",
        "SOLVER.REFERENCE_WORLD_SIZE",
        "TEST.EVAL_PERIOD",
    }
)


@dataclass(frozen=True)
class Table:
    """A table of the paper: its rows, and how one is trained.

    Attributes:
        title: such as "Table 6".
        root: the default folder of the runs' folders.
        module: that trains a row: ``python -m MODULE``.
        parser: of the module's command line.
        rows: by name, in the paper's order.
        sections: of the report.
        digits: after the point, as in the paper.
        free_keys: what a run may choose for itself.
        train_images: of the recipe's training set, where its schedule is in epochs; else None.
        note: what the report has to say of the rows.
    """

    title: str
    root: str
    module: str
    parser: Callable[[], argparse.ArgumentParser]
    rows: dict[str, Row]
    sections: tuple[Section, ...]
    digits: int = 1
    free_keys: frozenset[str] = FREE_KEYS
    train_images: int | None = None
    note: str = ""

    def recipe(self, row: Row) -> CfgNode:
        """The config of a row, before it is scaled to other processes."""
        cfg = get_config(row.config)
        merge_options(cfg, list(row.options))
        if self.train_images is not None:
            epochs_to_iterations(cfg, self.train_images)
        return cfg


@dataclass(frozen=True)
class Job:
    """One training: a row with a seed, a value of the swept key, and further options."""

    table: Table
    row: Row
    seed: int
    root: str
    sweep: tuple[str, str] | None = None
    options: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the job's folder."""
        swept = f"-{self.sweep[0].rsplit('.', 1)[-1]}={self.sweep[1]}" if self.sweep else ""
        return f"{self.row.name}{swept.replace('/', '_')}-seed{self.seed}"

    @property
    def output_dir(self) -> str:
        """The job's folder."""
        return os.path.join(self.root, self.name)

    def arguments(self) -> list[str]:
        """The arguments of the table's module, without those about processes."""
        words = ["--config-file", self.row.config, "--resume"]
        for dataset in self.datasets:
            words += ["--dataset", dataset]
        words += ["OUTPUT_DIR", self.output_dir, "SEED", str(self.seed)]
        return [*words, *self.row.options, *(self.sweep or ()), *self.options]

    def config(self, processes: int, data: bool = True) -> CfgNode:
        """The config as it will run on that many processes; without ``data``, except for what
        follows from the training set.

        Raises:
            ISONetError: an option that cannot be.
        """
        args = self.table.parser().parse_args(self.arguments())
        cfg = make_cfg(args)
        if data:
            cfg = args.trainer.complete_cfg(cfg, args.opts)
        return scaled_to_workers(cfg, processes)


def make_jobs(
    table: Table,
    rows: Sequence[str],
    seeds: Sequence[int],
    root: str,
    sweep: str | None = None,
    options: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> list[Job]:
    """The jobs of some rows: every seed, and every value of a swept key.

    Args:
        table: the paper's.
        rows: names; none for all of them.
        seeds: one job each.
        root: the folder of their folders.
        sweep: ``KEY=VALUE,VALUE...``, for a choice that the paper leaves open.
        options: further ``KEY VALUE`` pairs.
        datasets: ``--dataset`` arguments of tools/train_net.py.

    Raises:
        ISONetError: an unknown row, or a sweep that cannot be read.
    """
    for name in rows:
        if name not in table.rows:
            raise ISONetError(
                f"{table.title} has no row {name}; its rows are {', '.join(table.rows)}"
            )
    values: list[tuple[str, str] | None] = [None]
    if sweep is not None:
        key, equals, rest = sweep.partition("=")
        if not (key and equals and rest):
            raise ISONetError(f"--sweep is KEY=VALUE,VALUE..., found {sweep!r}")
        values = [(key, value) for value in rest.split(",")]
    return [
        Job(table, table.rows[name], seed, root, value, tuple(options), tuple(datasets))
        for name in (rows or table.rows)
        for value in values
        for seed in seeds
    ]


def plan(jobs: Sequence[Job], launcher: str, gpus: int, machines: int = 1) -> str:
    """The jobs as commands, checked by building their configs.

    Args:
        jobs: from :func:`make_jobs`.
        launcher: "local", "torchrun" or "slurm".
        gpus: per machine.
        machines: how many; "local" has one.

    Raises:
        ISONetError: an option that cannot be.
    """
    for job in jobs:
        job.config(gpus * machines, data=False)
    if launcher == "local":
        start, end = ["python"], ["--num-gpus", str(gpus)]
    else:
        start, end = ["torchrun", f"--nnodes={machines}", f"--nproc-per-node={gpus}"], []
        if machines > 1:
            start += ["--rdzv-backend=c10d", "--rdzv-id=$JOB_ID", "--rdzv-endpoint=$HEAD:29500"]
        else:
            start += ["--standalone"]
    commands = [
        f"{' '.join([*start, '-m', job.table.module, *end])} {shlex.join(job.arguments())}"
        for job in jobs
    ]
    if launcher == "slurm":
        return _slurm_script(commands, gpus, machines)
    lines = []
    for job, command in zip(jobs, commands, strict=True):
        lines += [f"# {job.name}", command]
    if machines > 1:
        lines.insert(0, "# On every machine, with JOB_ID alike and HEAD the name of the first.")
    return "\n".join(lines) + "\n"


def _slurm_script(commands: Sequence[str], gpus: int, machines: int) -> str:
    again = EXIT_STATUS[signal.SIGTERM]
    rows = "\n".join(f"  {shlex.quote(command)}" for command in commands)
    return f"""#!/bin/bash
#SBATCH --job-name=isonet_det
#SBATCH --array=0-{len(commands) - 1}
#SBATCH --nodes={machines}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --requeue
#SBATCH --signal=TERM@300
# A row that is preempted saves its state, exits with {again} and is queued again.
commands=(
{rows}
)
export JOB_ID=$SLURM_JOB_ID
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun bash -c "${{commands[$SLURM_ARRAY_TASK_ID]}}"
status=$?
if [ "$status" -eq {again} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


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
        info: what :mod:`isonet_det.run_info` recorded.
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
        reference = scaled_to_workers(reference, processes)
    run.strayed = [
        f"{key} {get_key(cfg, key)} (recipe: {get_key(reference, key)})"
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


def run_jobs(jobs: Sequence[Job], gpus: int) -> None:
    """Run what is not done, one after another; what was interrupted is resumed.

    Raises:
        ISONetError: a job's folder holds another run, or a row failed.
        SystemExit: a row was told to stop, with its exit status.
    """
    for job in jobs:
        wanted = job.config(gpus)
        there = read_config(job.output_dir)
        if there is not None:
            other = different_keys(wanted, there) - {"DATALOADER.NUM_WORKERS"}
            if other:
                raise ISONetError(
                    f"{job.output_dir} holds a run of another config ({', '.join(sorted(other))} "
                    "differ); delete it or name another --root"
                )
            if read_run(job.table, job.output_dir, job.row).finished:
                logger.info("%s is done.", job.name)
                continue
        logger.info("%s: %s", job.name, "resuming" if there is not None else "starting")
        command = [sys.executable, "-W", "ignore", "-m", job.table.module]
        status = subprocess.run([*command, "--num-gpus", str(gpus), *job.arguments()]).returncode
        if status in EXIT_STATUS.values():
            sys.exit(status)
        if status != 0:
            raise ISONetError(
                f"{job.name} ended with status {status}; its log is {job.output_dir}/log.txt; run "
                "the same command again to go on"
            )


def add_arguments(parser: argparse.ArgumentParser, table: Table) -> None:
    """The arguments that plan and run share."""
    parser.add_argument("--root", default=table.root, help="the folder of the rows' folders")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=", ".join(table.rows))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--sweep", metavar="KEY=VALUE,VALUE...", help="one job per value")
    parser.add_argument("--num-gpus", type=at_least_one, default=8, help="per machine")
    if table.train_images is None:
        parser.add_argument("--dataset", action="append", help="as for train_net.py")
    parser.set_defaults(dataset=[])
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs for every row")
