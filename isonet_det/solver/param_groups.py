"""What the families' parameters need of any optimizer. Torch only."""

from typing import Any, TypeVar

import torch
from torch import nn

from ..modeling.watch import ruled_parameters, stop_awaiting

Groups = TypeVar("Groups", torch.optim.Optimizer, list[dict[str, Any]])


def split_param_groups(groups: Groups, model: nn.Module, slow_lr_factor: float = 0.1) -> Groups:
    """Split, in place, the parameter groups of anybody's optimizer where a family of networks wants
    no weight decay, or a part of the group's learning rate: of an ISONet for SReLU's b and for the
    residual scalars (authors' ``construct_optim``). Before a schedule is made, and before a step.

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
