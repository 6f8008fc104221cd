"""The optimizer of a config."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import ISONetError
from .param_groups import split_param_groups


def family_groups(model: nn.Module, slow_lr_factor: float = 0.1, **rules: Any) -> list[dict]:
    """:func:`split_param_groups` of Detectron2's ``get_default_optimizer_params``."""
    return split_param_groups(get_default_optimizer_params(model, **rules), model, slow_lr_factor)


def get_optimizer_params(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of a model with an ISONet inside; everything else as Detectron2's
    ``build_optimizer`` groups it. Frozen parameters are left out. ``SOLVER.BACKBONE_MULTIPLIER``,
    a key of other projects, is honored."""
    part = cfg.SOLVER.get("BACKBONE_MULTIPLIER", 1.0)
    return family_groups(
        model,
        cfg.SOLVER.RES_MULTIPLIER_LR_FACTOR,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: part if "backbone" in name else 1.0,
    )


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD with gradient clipping by config, over :func:`get_optimizer_params`; Adam or
    AdamW where ``SOLVER.OPTIMIZER``, a key of other projects, asks for it.

    Raises:
        ISONetError: another optimizer, or another clipping.
    """
    solver, parameters = cfg.SOLVER, get_optimizer_params(cfg, model)
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in ("value", "norm"):  # "full_model", of DETR's heirs
        remedy = "of a project, keep its build_optimizer, with isonet_det.split_param_groups"
        found = f"expected value or norm, got {clip.CLIP_TYPE}; {remedy}"
        raise ISONetError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: {found}")
    kind = solver.get("OPTIMIZER", "SGD")
    # Fused: one kernel for all parameters, which can also be told on the device to do nothing.
    how: dict[str, Any] = {"lr": solver.BASE_LR, "fused": True}
    optimizer: torch.optim.Optimizer
    if kind == "SGD":
        how.update(weight_decay=solver.WEIGHT_DECAY, nesterov=solver.NESTEROV)
        optimizer = torch.optim.SGD(parameters, momentum=solver.MOMENTUM, **how)
    elif kind == "ADAM":
        optimizer = torch.optim.Adam(parameters, **how)
    elif kind == "ADAMW":
        optimizer = torch.optim.AdamW(parameters, weight_decay=solver.WEIGHT_DECAY, **how)
    else:
        raise ISONetError(f"SOLVER.OPTIMIZER: expected SGD, ADAM or ADAMW, got {kind}")
    return maybe_add_gradient_clipping(cfg, optimizer)
