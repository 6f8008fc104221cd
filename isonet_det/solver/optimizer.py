"""Parameter groups: what the families' parameters need beside Detectron2's rules."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import ISONetError
from ..modeling import FAMILIES


def _parameters(model: nn.Module, rules: str) -> set[nn.Parameter]:
    """The parameters that the families' rules of that name are for."""
    return {
        module.get_parameter(name)
        for family in FAMILIES.values()
        for kind, name in getattr(family, rules)
        for module in model.modules()
        if isinstance(module, kind) and getattr(module, name, None) is not None
    }


def family_groups(model: nn.Module, slow_lr_factor: float = 0.1, **rules: Any) -> list[dict]:
    """Detectron2's ``get_default_optimizer_params(model, **rules)``, of which the groups are split
    where a family wants no weight decay, or a part of the rate: of an ISONet for SReLU's b and for
    the residual scalars (authors' ``construct_optim``). ``rules`` need ``base_lr``."""
    undecayed, slow = _parameters(model, "undecayed"), _parameters(model, "slow")
    groups = []
    for group in get_default_optimizer_params(model, **rules):
        parts: dict[tuple[bool, bool], list] = {}
        for p in group["params"]:
            parts.setdefault((p in undecayed, p in slow), []).append(p)
        for (no_decay, is_slow), params in parts.items():
            decay = {"weight_decay": 0.0} if no_decay else {}
            lr = group["lr"] * (slow_lr_factor if is_slow else 1)
            groups.append({**group, **decay, "lr": lr, "params": params})
    return groups


def get_optimizer_params(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of a model with an ISONet inside; everything else as Detectron2's
    ``build_optimizer`` groups it. Frozen parameters are left out."""
    return family_groups(
        model,
        cfg.SOLVER.RES_MULTIPLIER_LR_FACTOR,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD with gradient clipping by config, over :func:`get_optimizer_params`; Adam
    where ``SOLVER.OPTIMIZER``, a key of its project Panoptic-DeepLab, asks for it.

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
    else:
        raise ISONetError(f"SOLVER.OPTIMIZER: expected SGD or ADAM, got {kind}")
    return maybe_add_gradient_clipping(cfg, optimizer)
