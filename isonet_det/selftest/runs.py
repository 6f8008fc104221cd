"""What takes processes of its own: two devices against one, and a run that is killed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data import render_shapes
from .checks import SMALL, SMALL_CONFIG, Check, at_most, backbone_step, exact_products, relative
from .measure import random_batch

_ITERATIONS = 12


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def _three_updates(rank: int, kind: str, folder: str) -> None:
    """Three steps in one of two processes, each with half of the batch."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
    )
    comm.create_local_process_group(2)
    with exact_products():
        step = backbone_step(device, random_batch(4, 64, 64)[2 * rank : 2 * rank + 2])
        model = step.model
        step.model = DistributedDataParallel(model)
        for _ in range(3):
            step.run_step()
    torch.save(_weights(model), f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


def two_processes(device: torch.device) -> Iterator[Check]:
    """Two processes with half of a batch each against one with all of it."""
    name = "two processes against one: weights after three updates"
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        yield Check(name, None, "not run", "two GPUs")
        return
    with exact_products():
        step = backbone_step(device, random_batch(4, 64, 64))
        before = _weights(step.model)
        for _ in range(3):
            step.run_step()
    moved = _weights(step.model) - before
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_three_updates, (device.type, folder), nprocs=2)
        first, second = (torch.load(f"{folder}/{rank}.pth") for rank in range(2))
    yield at_most(name, relative(first - before, moved), 1e-3)
    same = torch.equal(first, second)
    yield Check("two processes: both have the same weights", same, "compared", "bit by bit")


def kill_and_resume(device: torch.device) -> Iterator[Check]:
    """A run that is killed after a checkpoint and resumed, against one that is not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_shapes(folder / "set", 8, 3)

        def start(run: str, *flags: str) -> subprocess.Popen:
            words = [sys.executable, "-W", "ignore", "-m", "isonet_det.train"]
            words += ["--config-file", SMALL_CONFIG, *flags]
            words += ["--dataset", f"drawn={folder}/set/annotations.json:{folder}/set/images"]
            words += [*SMALL, "DATASETS.TRAIN", "('drawn',)", "MODEL.DEVICE", str(device)]
            words += ["SOLVER.MAX_ITER", str(_ITERATIONS), "SOLVER.STEPS", "(6,)"]
            words += ["SOLVER.CHECKPOINT_PERIOD", "3", "OUTPUT_DIR", str(folder / run)]
            with open(folder / f"{run}.txt", "a") as log:
                return subprocess.Popen(words, stdout=log, stderr=log)

        plain, cut = start("plain"), start("cut")
        pointer = folder / "cut" / "last_checkpoint"
        while cut.poll() is None and not pointer.is_file():
            time.sleep(0.02)
        cut.kill()
        cut.wait()
        killed = not (folder / "cut" / "model_final.pth").exists()
        resumed = start("cut", "--resume")
        status = (plain.wait(), resumed.wait())
        line = "a run killed after a checkpoint and resumed: weights at the end"
        if status != (0, 0) or not killed:
            last = (folder / "cut.txt").read_text().strip().splitlines()[-1:]
            reason = f"exit status {status}, killed {killed}: {' '.join(last)}"
            yield Check(line, False, reason, "the uninterrupted run's")
            return
        weights = [
            torch.load(os.path.join(folder, run, "model_final.pth"), map_location="cpu")["model"]
            for run in ("plain", "cut")
        ]
        if device.type == "cpu":
            same = all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
            yield Check(line, same, "compared", "the uninterrupted run's, bit by bit")
        else:
            resumed_weights, expected = (
                torch.cat([t.flatten().double() for t in w.values()]) for w in reversed(weights)
            )
            yield at_most(line, relative(resumed_weights, expected), 1e-3)
