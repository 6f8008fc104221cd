"""What produced a run: versions, commit, devices, command; kept in the run's folder."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..data.register import parse_argument
from ..files import write_file
from ..weights.names import Checkpoint

logger = logging.getLogger(__name__)

FILE = "run.json"
MANY_EPOCHS = 200  # more of them than this are a mistake, most often


def _commit() -> str | None:
    """The commit of the clone that this package runs from, with "-dirty" for changed files."""
    folder = Path(__file__).resolve().parents[2]
    command = "git describe --always --dirty --abbrev=12 --exclude=*".split()
    try:
        described = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None if (folder / ".git").exists() else None


def collect(processes: int) -> dict[str, Any]:
    """The facts, with ``processes`` as the number of training processes."""
    from .. import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "isonet_det": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": sys.version.split()[0],
        "device": gpu or f"CPU, {torch.get_num_threads()} threads",
        "processes": processes,
        "command": sys.argv,
    }


def write_run_info(folder: str, processes: int, datasets: Sequence[str]) -> None:
    """Write ``run.json``; ``datasets`` are those of --dataset."""
    parsed = [parse_argument(argument) for argument in datasets]
    own = [f"{name}={':'.join(map(os.path.abspath, paths))}" for name, *paths in parsed]
    content = {**collect(processes), "datasets": own}
    write_file(os.path.join(folder, FILE), json.dumps(content, indent=1) + "\n")


def describe(trainer: Any) -> None:
    model, sets = trainer.checkpointer.model, []
    for name in dict.fromkeys(trainer.data_names()):
        counts = MetadataCatalog.get(name).get("counts")
        sets.append(name + (f" ({counts[0]} photos, {counts[1]} objects)" if counts else ""))
    logger.info("Data: %s", ", ".join(sets))

    frozen: list[str] = []
    for name, part in model.named_modules():
        trained = [p.requires_grad for p in part.parameters()]
        if (
            list(part.children())
            and trained
            and not any(trained)
            and not name.startswith(tuple(f"{n}." for n in frozen))
        ):
            frozen.append(name)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    kind = Checkpoint(model.state_dict()).network or "a backbone of another project"
    network = f"{type(model).__name__}, {kind}"
    still = ", ".join(frozen) or "nothing"
    logger.info("Network: %s, %.1f million parameters; frozen: %s", network, count, still)

    logger.info("Schedule: %s", _schedule(trainer))
    device = next(model.parameters()).device
    name = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    logger.info("Device: %s; processes: %d", name, comm.get_world_size())
    logger.info("Folder: %s, with more lines in log.txt", trainer.cfg.OUTPUT_DIR)


def _schedule(trainer: Any) -> str:
    """The schedule in words, and a warning if it is far too long."""
    rate = max(group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups)
    line = f"{trainer.max_iter} iterations, learning rate {rate:g}"
    images = trainer.images_of_a_step() * comm.get_world_size()
    if not images:
        return line
    photos = len(trainer.data_loader.dataset)
    epochs = trainer.max_iter * images / photos
    what = f"{trainer.max_iter} iterations of {images} images are {epochs:,.1f} epochs of {photos}"
    if epochs > MANY_EPOCHS:
        logger.warning(
            "%s photos: that is long; %d are 50 epochs. Set SOLVER.MAX_ITER (train.max_iter) and "
            "what goes with it, as small_data.yaml does",
            *(what, -(-50 * photos // images)),
        )
    return f"{what} photos; learning rate {rate:g}"
