"""Parameter groups: what the families' parameters need beside Detectron2's rules."""

from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import ISONetError
from ..modeling.watch import ruled_parameters, stop_awaiting

Groups = TypeVar("Groups", torch.optim.Optimizer, list[dict[str, Any]])


def split_param_groups(groups: Groups, model: nn.Module, slow_lr_factor: float = 0.1) -> Groups:
    """Split, in place, anybody's parameter groups (authors' ``construct_optim``): of an ISONet no
    weight decay for SReLU's b, a part of the rate for the residual scalars. Before a schedule.

    Args:
        groups: an optimizer, or a list of groups with "lr" and "weight_decay" each.
        model: what the parameters belong to.
        slow_lr_factor: the part.
    """
    optimizer = groups if isinstance(groups, torch.optim.Optimizer) else None
    found: list[dict[str, Any]] = optimizer.param_groups if optimizer else groups  # type: ignore
    undecayed, slow = (ruled_parameters(model, rule) for rule in ("undecayed", "slow"))
    split = []
    for group in found:
        parts: dict[tuple[bool, bool], list] = {}
        for p in group["params"]:
            parts.setdefault((p in undecayed, p in slow), []).append(p)
        for (no_decay, is_slow), params in parts.items():
            decay = {"weight_decay": 0.0} if no_decay else {}
            rate = {"lr": group["lr"] * slow_lr_factor} if is_slow else {}
            split.append({**group, **decay, **rate, "params": params})
    found[:] = split
    stop_awaiting(model, "optimizer")
    return groups


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
        ISONetError: another optimizer.
    """
    solver, parameters = cfg.SOLVER, get_optimizer_params(cfg, model)
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
