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

from ..cli import EXIT_STATUS, MISTAKE
from ..config import HEADS, different_keys, has_unknown_classes
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from .runs import read_config, read_run
from .tables import Row, Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One training of a row: its folder, and all ``KEY VALUE`` words."""

    table: Table
    row: Row
    output_dir: str
    options: list[str]
    datasets: Sequence[str] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        return os.path.basename(self.output_dir)

    @property
    def finished(self) -> bool:
        return read_run(self.table, self.output_dir, self.row).finished

    def arguments(self) -> list[str]:
        """The arguments of the table's module, without those about processes."""
        datasets = [word for dataset in self.datasets for word in ("--dataset", dataset)]
        return ["--config-file", self.row.config, "--resume", *datasets, *self.options]

    def config(self, processes: int, data: bool = True) -> CfgNode:
        """As the engine will run it; without ``data``, but for what follows from the data."""
        cfg = build_cfg(self.row.config, self.options, self.datasets, processes)
        needs_data = self.table.train_images is not None
        return self.table.trainer.complete_cfg(cfg) if data and needs_data else cfg


def make_jobs(
    table: Table,
    rows: Sequence[str],
    seeds: Sequence[int],
    root: str,
    sweep: str | None = None,
    options: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> list[Job]:
    """The jobs of some rows (none: all): one for every seed and every value of the swept key."""
    for name in rows:
        if name not in table.rows:
            raise ISONetError(
                f"{table.title} has no row {name}; its rows are {', '.join(table.rows)}"
            )
    key, _, rest = (sweep or "").partition("=")
    if sweep is not None and not (key and rest):
        raise ISONetError(f"--sweep is KEY=VALUE,VALUE..., found {sweep!r}")
    jobs = []
    for row in [table.rows[name] for name in rows or table.rows]:
        for value in rest.split(","):
            swept = f"-{key.rsplit('.', 1)[-1]}={value}".replace("/", "_") if key else ""
            for seed in dict.fromkeys(seeds):
                folder = os.path.join(root, f"{row.name}{swept}-seed{seed}")
                words = ["OUTPUT_DIR", folder, "SEED", str(seed), *row.options]
                words += [*((key, value) if key else ()), *options]
                jobs.append(Job(table, row, folder, words, datasets, seed))
    return jobs


def plan(jobs: Sequence[Job], launcher: str, gpus: int, machines: int = 1) -> str:
    """The jobs as commands, with ``gpus`` per machine; checked by building their configs."""
    cost = _expected_hours(jobs, gpus * machines)
    start = _launch(jobs[0].table.module, launcher, gpus, machines)
    commands = [f"{start} {shlex.join(job.arguments())}" for job in jobs]
    if launcher == "slurm":
        script = (Path(__file__).parent / "slurm.sh").read_text()
        values = {"LAST": len(commands) - 1, "MACHINES": machines, "GPUS": gpus}
        for name, value in {**values, "ROWS": "\n  ".join(map(shlex.quote, commands))}.items():
            script = script.replace(f"@{name}@", str(value))
        return script + cost
    lines = [f"# {job.name}\n{line}" for job, line in zip(jobs, commands, strict=True)]
    if launcher == "torchrun" and machines > 1:
        lines.insert(0, "# On every machine, with JOB_ID alike and HEAD the name of the first.")
    return "\n".join(lines) + "\n" + cost


def _expected_hours(jobs: Sequence[Job], processes: int) -> str:
    """What the jobs may be expected to take, from the published pace, as a shell's comment."""
    solvers = [job.config(processes, data=False).SOLVER for job in jobs]
    if jobs[0].table.pace is None:
        return ""
    seconds, images, source = jobs[0].table.pace
    hours = [s.MAX_ITER * s.IMS_PER_BATCH * seconds / images / processes / 3600 for s in solvers]
    return (
        f"# Expected: {hours[0]:.1f} hours a run, {sum(hours):.0f} for the {len(jobs)} one after "
        f"another, at {seconds} s\n# for {images} images per GPU ({source}).\n"
    )


def _launch(module: str, launcher: str, gpus: int, machines: int) -> str:
    """The words before a job's arguments; those with a $ are the shell's to fill in."""
    if launcher == "torchrun":
        meet = "--standalone"
        if machines > 1:
            meet = "--rdzv-backend=c10d --rdzv-id=$JOB_ID --rdzv-endpoint=$HEAD:29500"
        return f"torchrun --nnodes={machines} --nproc-per-node={gpus} {meet} -m {module}"
    words = f"python -m {module} --num-gpus {gpus}"
    if launcher == "slurm" and machines > 1:
        # Detectron2's own processes, whose exit status says whether to queue again.
        words += f" --num-machines {machines} --machine-rank $SLURM_NODEID"
        words += " --dist-url tcp://$HEAD:$PORT"
    return words


def run_jobs(jobs: Sequence[Job], gpus: int) -> None:
    """Run or resume what is not done; a job that was told to stop ends this process too."""
    for job in jobs:
        wanted, earlier = job.config(gpus), read_config(job.output_dir)
        if earlier is not None:
            free = {"DATALOADER.NUM_WORKERS", "INPUT.MASK_FORMAT"}  # which follows from the data
            if has_unknown_classes(wanted):
                free |= {f"MODEL.{section}.NUM_CLASSES" for section in HEADS}
            if other := different_keys(wanted, earlier) - free:
                found = f"{job.output_dir} holds a run of another config"
                raise ISONetError(f"{found} ({', '.join(sorted(other))} differ): another --root")
            if job.finished:
                logger.info("%s is done.", job.name)
                continue
        logger.info("%s: %s", job.name, "resuming" if earlier is not None else "starting")
        command = [sys.executable, "-W", "ignore", "-m", job.table.module]
        with subprocess.Popen([*command, "--num-gpus", str(gpus), *job.arguments()]) as process:
            status = process.wait()  # its own lines tell the time that is left
        if status in (*EXIT_STATUS.values(), MISTAKE):  # which it has said
            sys.exit(status)
        if status != 0:
            log = f"see {job.output_dir}/log.txt; the same command again goes on"
            raise ISONetError(f"{job.name} ended with status {status}: {log}")
