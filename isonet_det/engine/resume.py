"""Whether a checkpoint is one of the run that is to go on."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ISONetError

logger = logging.getLogger(__name__)

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
        raise ISONetError(
            f"--resume: the run in {path} has done {done} iterations, SOLVER.MAX_ITER is "
            f"{trainer.max_iter}; expected at least {done}"
        )


def _hint(path: str) -> str:
    folder = os.path.dirname(path) or "."
    return f"go on with the config of that run, or name another OUTPUT_DIR than {folder}"


def _compare(path: str, key: str, before: Any, now: Any, on: str = "") -> None:
    if before != now:
        raise ISONetError(
            f"--resume: the run in {path} was started{on} with {key} {before}, this config has "
            f"{now}; {_hint(path)}"
        )


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
