"""Whether a checkpoint is one of the run that is to go on."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ISONetError

# Ends of the names of parameters whose shapes follow from the number of classes.
OF_CLASSES = ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias")


def _by_classes(name: str) -> bool:
    return name.endswith(OF_CLASSES) or ".mask_head.predictor." in name


def check_resumable(
    content: Mapping[str, Any],
    path: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    classes: Sequence[dict] | None = None,
) -> None:
    """Check that a checkpoint holds the state of this model, optimizer and these classes. Momentum
    of another shape than its parameter's would be read out of its bounds.

    Args:
        content: of the checkpoint.
        path: of its file.
        model: as built from the config.
        optimizer: of the model; None is not compared.
        classes: id and name of each of the training data's classes; None is not compared.

    Raises:
        ISONetError: it does not.
    """
    folder = os.path.dirname(path) or "."
    hint = f"go on with the config of that run, or name another OUTPUT_DIR than {folder}"
    saved: dict[str, torch.Tensor] = content.get("model", {})
    built = model.state_dict()
    names = [n for n in {**built, **saved} if n not in built or n not in saved]
    shapes = [n for n in built if n in saved and built[n].shape != torch.Size(saved[n].shape)]
    if names or shapes:
        name = (names or shapes)[0]
        actual, expected = (
            f"{tuple(state[name].shape)}" if name in state else "nothing"
            for state in (saved, built)
        )
        by_classes = not names and all(map(_by_classes, shapes))
        what = "was started with another NUM_CLASSES" if by_classes else "has another model"
        raise ISONetError(
            f"--resume: the run in {path} {what}: {name}: expected {expected} by this "
            f"config, got {actual}; {hint}"
        )
    before, now = ([c["name"] for c in k or ()] for k in (content.get("classes"), classes))
    if before and now and before != now:
        raise ISONetError(
            f"--resume: the run in {path} was started with the classes {before}, the training data "
            f"have {now}; {hint}"
        )
    if optimizer is not None:
        _check_optimizer(path, optimizer, content.get("trainer", {}), hint)


def _check_optimizer(
    path: str, optimizer: torch.optim.Optimizer, trainer: dict[str, Any], hint: str
) -> None:
    state = trainer.get("_trainer", trainer).get("optimizer")
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
