"""Whether a checkpoint is one of the run that is to go on."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ISONetError

logger = logging.getLogger(__name__)

# Ends of the names of parameters whose shapes follow from the number of classes.
_OF_CLASSES = ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias")
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
    """Check that a checkpoint holds the state of this model, optimizer, recipe and these classes.
    Momentum of another shape than its parameter's would be read out of its bounds."""
    folder = os.path.dirname(path) or "."
    hint = f"go on with the config of that run, or name another OUTPUT_DIR than {folder}"
    if "trainer" not in content:
        raise ISONetError(
            f"--resume: {path} holds weights and no state of a run; name another OUTPUT_DIR than "
            f"{folder}, and the file as MODEL.WEIGHTS"
        )
    _compare_weights(content.get("model", {}), path, model, hint)
    labels: Any = getattr(model, "classes", None)
    before, now = ([c["name"] for c in k or ()] for k in (content.get("classes"), labels))
    if before and now and before != now:
        raise ISONetError(
            f"--resume: the run in {path} was started with the classes {before}, the training data "
            f"have {now}; {hint}"
        )
    state = content["trainer"]
    compare_recipes(state.get("recipe", {}), trainer.recipe, path, hint)
    _check_optimizer(path, trainer.optimizer, state.get("_trainer", state), hint)
    done = state.get("iteration", -1) + 1
    if done > trainer.max_iter:
        raise ISONetError(
            f"--resume: the run in {path} has done {done} iterations, SOLVER.MAX_ITER is "
            f"{trainer.max_iter}; expected at least {done}"
        )


def _compare_weights(saved: Mapping[str, Any], path: str, model: nn.Module, hint: str) -> None:
    built = model.state_dict()
    names = [n for n in {**built, **saved} if n not in built or n not in saved]
    shapes = [n for n in built if n in saved and built[n].shape != torch.Size(saved[n].shape)]
    if names or shapes:
        name = (names or shapes)[0]
        actual, expected = (
            f"{tuple(state[name].shape)}" if name in state else "nothing"
            for state in (saved, built)
        )
        by_classes = not names and all(
            n.endswith(_OF_CLASSES) or ".mask_head.predictor." in n for n in shapes
        )
        what = "was started with another NUM_CLASSES" if by_classes else "has another model"
        raise ISONetError(
            f"--resume: the run in {path} {what}: {name}: expected {expected} by this "
            f"config, got {actual}; {hint}"
        )


def compare_recipes(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str, hint: str
) -> None:
    processes = [recipe.get("PROCESSES") for recipe in (before, now)]
    for key in {**before, **now} if before and now else ():
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old == new or key.startswith(_FREE):
            continue
        scaled = key == "SOLVER.IMS_PER_BATCH" and processes[0] != processes[1]
        if scaled or not key.startswith(_TAKEN_UP):
            on = " on {} processes, not {},".format(*processes) if scaled else ""
            raise ISONetError(
                f"--resume: the run in {path} was started{on} with {key} {old}, this config has "
                f"{new}; {hint}"
            )
        logger.warning("--resume: %s was %s and is %s from here on", key, old, new)


def _check_optimizer(
    path: str, optimizer: torch.optim.Optimizer, step: Mapping[str, Any], hint: str
) -> None:
    state = step.get("optimizer")
    if state is None:
        return
    now = [len(group["params"]) for group in optimizer.param_groups]
    before = [len(group["params"]) for group in state["param_groups"]]
    if now != before:
        raise ISONetError(
            f"--resume: the run in {path} trains {sum(before)} parameters in {len(before)} groups, "
            f"this config {sum(now)} in {len(now)}; {hint}"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = [place for group in state["param_groups"] for place in group["params"]]
    for parameter, place in zip(parameters, places, strict=True):
        for key, value in state["state"].get(place, {}).items():
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                continue
            if value.shape != parameter.shape:
                raise ISONetError(
                    f"--resume: the run in {path} has {key} of the shape {tuple(value.shape)} for "
                    f"a parameter of the shape {tuple(parameter.shape)}; {hint}"
                )
