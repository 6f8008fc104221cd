"""The trainings of a table's rows: their commands, and running them."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from detectron2.config import CfgNode

from ..analysis.curves import read_metrics
from ..cli import EXIT_STATUS
from ..config import different_keys
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from .runs import read_config, read_run
from .table import Row, Table

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0  # between looks at a run's metrics, for the hours that it has left


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

    @property
    def all_options(self) -> list[str]:
        """``KEY VALUE`` words: folder, seed, the row's, the swept key's and further ones."""
        words = ["OUTPUT_DIR", self.output_dir, "SEED", str(self.seed), *self.row.options]
        return [*words, *(self.sweep or ()), *self.options]

    def arguments(self) -> list[str]:
        """The arguments of the table's module, without those about processes."""
        words = ["--config-file", self.row.config, "--resume"]
        for dataset in self.datasets:
            words += ["--dataset", dataset]
        return [*words, *self.all_options]

    def config(self, processes: int, data: bool = True) -> CfgNode:
        """The config as it will run on that many processes; without ``data``, except for what
        follows from the training set.

        Raises:
            ISONetError: an option that is wrong.
        """
        cfg = build_cfg(self.row.config, self.all_options, self.datasets, processes)
        return self.table.trainer.complete_cfg(cfg) if data else cfg


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
        ISONetError: an option that is wrong.
    """
    cost = expected_hours(jobs, gpus * machines)
    commands = [
        f"{_launch(job, launcher, gpus, machines)} {shlex.join(job.arguments())}" for job in jobs
    ]
    if launcher == "slurm":
        return slurm_script(commands, gpus, machines) + cost
    lines = []
    for job, command in zip(jobs, commands, strict=True):
        lines += [f"# {job.name}", command]
    if launcher == "torchrun" and machines > 1:
        lines.insert(0, "# On every machine, with JOB_ID alike and HEAD the name of the first.")
    return "\n".join(lines) + "\n" + cost


def expected_hours(jobs: Sequence[Job], processes: int) -> str:
    """What the jobs may be expected to take, from the published pace, as a shell's comment; ""
    where none is published.

    Args:
        jobs: of one table.
        processes: GPUs in all.

    Raises:
        ISONetError: an option that is wrong.
    """
    hours = []
    for job in jobs:
        solver = job.config(processes, data=False).SOLVER
        pace = job.table.pace
        if pace is not None:
            images = solver.IMS_PER_BATCH / processes
            hours.append(solver.MAX_ITER * pace.seconds * images / pace.images / 3600)
    if not hours or pace is None:
        return ""
    return (
        f"# Expected: {hours[0]:.1f} hours a run, {sum(hours):.0f} for the {len(jobs)} one after "
        f"another, at {pace.seconds} s\n# for {pace.images} images per GPU ({pace.source}).\n"
    )


def _launch(job: Job, launcher: str, gpus: int, machines: int) -> str:
    """The words before a job's arguments; those with a $ are the shell's to fill in."""
    module = f"-m {job.table.module}"
    if launcher == "torchrun":
        words = f"torchrun --nnodes={machines} --nproc-per-node={gpus}"
        if machines > 1:
            words += " --rdzv-backend=c10d --rdzv-id=$JOB_ID --rdzv-endpoint=$HEAD:29500"
        else:
            words += " --standalone"
        return f"{words} {module}"
    words = f"python {module} --num-gpus {gpus}"
    if launcher == "slurm" and machines > 1:
        # Detectron2's own processes, whose exit status says whether to queue again.
        words += f" --num-machines {machines} --machine-rank $SLURM_NODEID"
        words += " --dist-url tcp://$HEAD:$PORT"
    elif launcher == "slurm":
        words += " --dist-url auto"  # several rows may share a machine
    return words


def slurm_script(commands: Sequence[str], gpus: int, machines: int) -> str:
    """``slurm.sh`` for some commands.

    Args:
        commands: one per array task, in the shell's words.
        gpus: per machine.
        machines: how many.
    """
    script = (Path(__file__).parent / "slurm.sh").read_text()
    for name, value in (
        ("LAST", str(len(commands) - 1)),
        ("MACHINES", str(machines)),
        ("GPUS", str(gpus)),
        ("ROWS", "\n  ".join(shlex.quote(command) for command in commands)),
    ):
        script = script.replace(f"@{name}@", value)
    return script


def run_jobs(jobs: Sequence[Job], gpus: int) -> None:
    """Run what is not done, one after another; what was interrupted is resumed.

    Raises:
        ISONetError: a job's folder holds another run, or a row failed.
        SystemExit: a row was told to stop, with its exit status.
    """
    for job in jobs:
        wanted = job.config(gpus)
        earlier = read_config(job.output_dir)
        if earlier is not None:
            other = different_keys(wanted, earlier) - {"DATALOADER.NUM_WORKERS"}
            if other:
                raise ISONetError(
                    f"{job.output_dir} holds a run of another config ({', '.join(sorted(other))} "
                    "differ); delete it or name another --root"
                )
            if _is_finished(job):
                logger.info("%s is done.", job.name)
                continue
        logger.info("%s: %s", job.name, "resuming" if earlier is not None else "starting")
        command = [sys.executable, "-W", "ignore", "-m", job.table.module]
        with subprocess.Popen([*command, "--num-gpus", str(gpus), *job.arguments()]) as process:
            later = [j for j in jobs[jobs.index(job) + 1 :] if not _is_finished(j)]
            status = _wait(process, job, wanted.SOLVER.MAX_ITER, len(later))
        if status in EXIT_STATUS.values():
            sys.exit(status)
        if status != 0:
            raise ISONetError(
                f"{job.name} ended with status {status}; its log is {job.output_dir}/log.txt; run "
                "the same command again to go on"
            )


def _is_finished(job: Job) -> bool:
    return read_run(job.table, job.output_dir, job.row).finished


def _timed_rows(job: Job) -> list[dict[str, Any]]:
    return [row for row in read_metrics(job.output_dir) if "total_loss" in row and "time" in row]


def _wait(process: subprocess.Popen, job: Job, max_iter: int, later: int) -> int:
    """The exit status of a run; after its first hundred iterations a line says how many hours it
    has left, and with it the ``later`` runs of the same length."""
    rows = _timed_rows(job)
    start, told = (rows[-1]["iteration"] if rows else -1), False
    while True:
        try:
            return process.wait(None if told else POLL_SECONDS)
        except subprocess.TimeoutExpired:
            rows = _timed_rows(job)
        if rows and rows[-1]["iteration"] >= start + 100:
            logger.info("%s: %s", job.name, hours_left(rows, max_iter, later))
            told = True


def hours_left(rows: Sequence[dict[str, Any]], max_iter: int, later: int) -> str:
    """Hours to go at the pace of the latest hundred iterations, for people.

    Args:
        rows: of the run's metrics.json that have a "time".
        max_iter: of each run.
        later: how many runs of the same length come after it.
    """
    done = rows[-1]["iteration"] + 1
    seconds = median(r["time"] for r in rows if r["iteration"] >= done - 100)
    left = (max_iter - done) * seconds / 3600
    every = left + later * max_iter * seconds / 3600
    text = f"{seconds:.3f} s an iteration, {left:.1f} hours left"
    return text if not later else f"{text}, {every:.0f} with the {later} runs after it"
