"""The trainings of a table's rows: their commands, and running them."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..cli import EXIT_STATUS
from ..config import different_keys
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from ..solver.schedule import scaled_to_workers
from .runs import read_config, read_run
from .table import Row, Table

logger = logging.getLogger(__name__)


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
        cfg = build_cfg(self.row.config, self.all_options, self.datasets)
        if data:
            cfg = self.table.trainer.complete_cfg(cfg, self.all_options)
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
        ISONetError: an option that is wrong.
    """
    for job in jobs:
        job.config(gpus * machines, data=False)
    commands = [
        f"{_launch(job, launcher, gpus, machines)} {shlex.join(job.arguments())}" for job in jobs
    ]
    if launcher == "slurm":
        return slurm_script(commands, gpus, machines)
    lines = []
    for job, command in zip(jobs, commands, strict=True):
        lines += [f"# {job.name}", command]
    if launcher == "torchrun" and machines > 1:
        lines.insert(0, "# On every machine, with JOB_ID alike and HEAD the name of the first.")
    return "\n".join(lines) + "\n"


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
            if read_run(job.table, job.output_dir, job.row).finished:
                logger.info("%s is done.", job.name)
                continue
        logger.info("%s: %s", job.name, "resuming" if earlier is not None else "starting")
        command = [sys.executable, "-W", "ignore", "-m", job.table.module]
        status = subprocess.run([*command, "--num-gpus", str(gpus), *job.arguments()]).returncode
        if status in EXIT_STATUS.values():
            sys.exit(status)
        if status != 0:
            raise ISONetError(
                f"{job.name} ended with status {status}; its log is {job.output_dir}/log.txt; run "
                "the same command again to go on"
            )
