"""Training checkpoints: written whole, with a checksum, found again, and only by their own run."""

import itertools
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..errors import ISONetError
from ..files import sha256_of, write_file, write_hash, write_whole

logger = logging.getLogger(__name__)

BEST = "model_best"
# Keys, or sections, of a recipe that may be another when a run goes on: they do not touch what is
# trained, or (the second row) are taken up from where it goes on, which is said.
_FREE = (
    "OUTPUT_DIR", "TEST.", "VIS_PERIOD", "TRACKING", "CUDNN_BENCHMARK", "VERSION", "SEED",
    "DATASETS.TEST", "DATALOADER.NUM_WORKERS", "DATALOADER.UNREADABLE_LIMIT", "MODEL.DEVICE",
    "MODEL.WEIGHTS", "MODEL.COMPILE", "MODEL.CHANNELS_LAST", "MODEL.ISONET.CHECKPOINT_STAGES",
    "PROCESSES",
    "MODEL.ISONET.SUMMARY_PERIOD", "SOLVER.CHECKPOINT_", "SOLVER.EARLY_STOPPING.",
    "SOLVER.ON_NONFINITE", "SOLVER.NONFINITE_LIMIT", "SOLVER.REFERENCE_WORLD_SIZE",
    "PRETRAIN.ROOT", "PRETRAIN.EVAL_EPOCHS", "PRETRAIN.VAL_",
)  # fmt: skip
_TAKEN_UP = (
    "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.WARMUP_",
    "SOLVER.WEIGHT_DECAY", "SOLVER.MOMENTUM", "SOLVER.RES_MULTIPLIER_LR_FACTOR",
    "SOLVER.CLIP_GRADIENTS.", "SOLVER.AMP.", "SOLVER.BIAS_LR_FACTOR", "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE_STEPS", "MODEL.EMA.", "MODEL.ISONET.ORTHO_COEFF",
    "PRETRAIN.EPOCHS", "PRETRAIN.DROP_EPOCHS", "PRETRAIN.WARMUP_EPOCHS",
)  # fmt: skip
# What an earlier run leaves in a folder, and could be taken for a later one's.
_LEFT = (
    "model_[0-9]*.pth*", "model_best.pth*", "model_final.pth*", "ema_final.pth", "last_checkpoint",
    "metrics.json", "events.out.tfevents*", "inference", "curves.png", "predictions.png",
    "report.html",
)  # fmt: skip


def set_aside(folder: str) -> None:
    """Move what an earlier run left to the folder previous-N in its own."""
    left = [path for pattern in _LEFT for path in Path(folder).glob(pattern)]
    if left:
        names = (Path(folder, f"previous-{number}") for number in itertools.count(1))
        previous = next(path for path in names if not path.exists())
        previous.mkdir()
        for path in left:
            path.rename(previous / path.name)
        logger.warning("%s held an earlier run, which is in %s now", folder, previous)


class WholeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file is whole or not there, with a checksum beside it."""

    def save(self, name: str, **kwargs) -> None:
        """Write ``NAME.pth``; in the main process only."""
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        data = {"model": self.model.state_dict(), **kwargs}
        if getattr(self.model, "classes", None) is not None:
            data["classes"] = self.model.classes  # id and name of each
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        try:
            # Without one a file is read to see whether it is whole.
            Path(f"{path}.sha256").unlink(missing_ok=True)
            with write_whole(path) as f:
                torch.save(data, f)
            write_hash(path)
            if name != BEST:
                write_file(path.with_name("last_checkpoint"), path.name)
        except (OSError, RuntimeError) as error:
            raise ISONetError(
                f"checkpoint {path} cannot be written: {str(error).splitlines()[0]}; free some "
                f"space and run again with --resume (whole: {self.newest_whole()})"
            ) from error
        logger.info("Saved %s", path)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = super()._load_file(filename)
        if "trainer" in self.checkpointables:
            check_resumable(content, filename, self.model, self.checkpointables["trainer"])
        return content

    def remove(self, name: str) -> None:
        path = Path(self.save_dir) / f"{name}.pth"
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)

    def newest_whole(self) -> str | None:
        """The checkpoint that ``last_checkpoint`` names, else of the latest iteration, if whole."""
        folder = Path(self.save_dir)
        last = folder / "last_checkpoint"
        latest = last.read_text().strip() if last.is_file() else ""
        paths = [p for p in folder.glob("model_*.pth") if p.stem != BEST]
        for path in sorted(paths, key=lambda p: (p.name == latest, p.stem), reverse=True):
            reason = _broken(path)
            if reason is None:
                return str(path)
            logger.warning("Passing over the checkpoint %s: %s", path, reason)
        return None


def _broken(path: Path) -> str | None:
    note = path.with_name(f"{path.name}.sha256")
    if note.is_file():
        expected = note.read_text().split()[:1]
        digest = sha256_of(path)
        return None if expected == [digest] else f"its sha256 is {digest}, not {expected}"
    # Stock Detectron2 writes no checksum: see whether it can be read.
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        return (str(error).splitlines() or ["it cannot be read"])[0]
    return None


def check_resumable(content: Mapping[str, Any], path: str, model: nn.Module, trainer: Any) -> None:
    """Check that a checkpoint holds the state of this model, optimizer, recipe and classes."""
    if "trainer" not in content:
        raise ISONetError(f"--resume: {path} holds weights and no state of a run; {_hint(path)}")
    state = content["trainer"]
    labels: Any = getattr(model, "classes", None)
    before, now = ([c["name"] for c in k or ()] for k in (content.get("classes"), labels))
    if before and now:
        _compare(path, "the classes", before, now)
    compare_recipes(state.get("recipe", {}), trainer.recipe, path)
    states = content.get("model", {}), model.state_dict()
    saved, built = ({name: tuple(t.shape) for name, t in part.items()} for part in states)
    for name in {**saved, **built}:
        _compare(path, name, saved.get(name), built.get(name))
    optimizers = state.get("_trainer", state)["optimizer"], trainer.optimizer.state_dict()
    sizes = [[len(group["params"]) for group in part["param_groups"]] for part in optimizers]
    _compare(path, "parameter groups of the sizes", sizes[0], sizes[1])
    # Momentum of another shape than its parameter's would be read out of its bounds.
    places = [place for group in optimizers[0]["param_groups"] for place in group["params"]]
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for parameter, place in zip(parameters, places, strict=True):
        for key, value in optimizers[0]["state"].get(place, {}).items():
            if isinstance(value, torch.Tensor) and value.dim():
                what = f"{key} of the shape"
                _compare(path, what, tuple(value.shape), tuple(parameter.shape))
    if (done := state.get("iteration", -1) + 1) > trainer.max_iter:
        found = f"has done {done} iterations, more than SOLVER.MAX_ITER {trainer.max_iter}"
        raise ISONetError(f"--resume: the run in {path} {found}")


def _hint(path: str) -> str:
    return f"go on with its config, or name another OUTPUT_DIR than {Path(path).parent}"


def _compare(path: str, key: str, before: Any, now: Any, on: str = "") -> None:
    if before != now:
        found = f"was started{on} with {key} {before}, this config has {now}"
        raise ISONetError(f"--resume: the run in {path} {found}; {_hint(path)}")


def compare_recipes(before: Mapping[str, Any], now: Mapping[str, Any], path: str) -> None:
    processes = [recipe.get("PROCESSES") for recipe in (before, now)]
    for key in {**before, **now} if before and now else ():
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old == new or key.startswith(_FREE):
            continue
        if key == "SOLVER.IMS_PER_BATCH" and processes[0] != processes[1]:
            _compare(path, key, old, new, " on {} processes, not {},".format(*processes))
        if not key.startswith(_TAKEN_UP):
            _compare(path, key, old, new)
        logger.warning("--resume: %s was %s and is %s from here on", key, old, new)
