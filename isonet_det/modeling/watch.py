"""What a network says in a training that leaves out something it needs. Torch only."""

import functools
import logging
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import ISONetError
from .layers import IsometricConv2d

logger = logging.getLogger(__name__)

PATIENCE = 2  # steps after which a loss that was added must have been returned


def await_in_training(network: Any, what: str, message: str, patience: int = 0) -> None:
    """Say ``message`` once, after ``patience`` steps, unless :func:`stop_awaiting` is called."""
    network.awaited[what] = (message, patience)
    if _look_at_step not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(_look_at_step)
        network.register_load_state_dict_pre_hook(_look_at_state)


def stop_awaiting(module: nn.Module, *what: str) -> None:
    """Networks inside ``module`` have that, or are meant to be without: they need not warn."""
    for part in module.modules():
        for name in what:
            getattr(part, "awaited", {}).pop(name, None)
        if "optimizer" in what:
            _UNSEEN.discard(part)


def refuse_frozen(module: nn.Module) -> None:
    """Nothing will fill networks inside ``module`` that keep random weights."""
    for part in module.modules():
        awaited: Any = getattr(part, "awaited", {})
        if "frozen" in awaited:
            raise ISONetError(awaited["frozen"][0])


def await_loss_hook(module: nn.Module) -> None:
    """The loss is added to a model: its networks wait for a step that returns it."""
    for part in module.modules():
        if hasattr(part, "awaited"):
            await_in_training(
                part,
                "loss",
                "loss_ortho was added, but no training step has returned it: the model's forward "
                "is not called, or returns no dictionary of losses. Where the losses are summed, "
                "add coeff * isonet_det.orthogonality_penalty(model) instead.",
                PATIENCE,
            )
            _await_optimizer(part)


def await_parts(network: nn.Module, coeff: float, weights: str, frozen: str | int = "") -> None:
    """What a config asks for and a stock tool leaves out; ``frozen`` names the freezing key."""
    if coeff and any(isinstance(m, IsometricConv2d) for m in network.modules()):
        await_in_training(
            network,
            "loss",
            "This ISONet trains without loss_ortho, though the config's gamma is not 0: build the "
            "detector with isonet_det.build_model(cfg), or call isonet_det.add_orthogonal_loss.",
        )
    if weights:
        await_in_training(
            network,
            "weights",
            "This ISONet begins to train at its INITIALIZATION, but the config names the weights "
            f"{weights}: call isonet_det.load_weights(model, address), or name isonet://NAME or a "
            "file of tools/convert_weights.py, which Detectron2's own checkpointer knows.",
        )
    elif frozen:
        await_in_training(
            network,
            "frozen",
            f"the config names no weights and its {frozen} keeps random ones as they are: name "
            "weights, or freeze nothing",
        )
    _await_optimizer(network)


# Functions without state: copied and pickled with the network, and torch.jit.script, which
# compiles hooks too, makes nothing of them.
def _look_at_step(network, inputs: tuple[torch.Tensor]) -> None:
    if not torch.jit.is_scripting():
        if network.training and network.awaited:
            _say_what_is_missing(network)


@torch.compiler.disable
def _say_what_is_missing(network: Any) -> None:
    for what, (message, patience) in list(network.awaited.items()):
        if patience:
            network.awaited[what] = (message, patience - 1)
        elif what == "frozen":
            raise ISONetError(message)
        else:
            del network.awaited[what]
            logger.warning(message)


def _look_at_state(network, state_dict, prefix: str, *others) -> None:
    if not {"weights", "frozen"} & set(network.awaited):
        return
    names = [name for name, _ in network.named_parameters()]
    missing = [name for name in names if prefix + name not in state_dict]
    if not missing:
        stop_awaiting(network, "weights", "frozen")
    elif len(missing) < len(names):
        found = f"{len(missing)} of this one's {len(names)} parameters are not among them"
        raise ISONetError(f"these weights are another network's: {found}, first {missing[0]}")


def ruled_parameters(module: nn.Module, rule: str) -> set[nn.Parameter]:
    """Parameters inside ``module`` that its parts name as "undecayed" or "slow"."""
    return {
        parameter
        for part in module.modules()
        for name in getattr(part, rule, ())
        if (parameter := getattr(part, name, None)) is not None
    }


def broken_rules(network: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """What an optimizer does that the authors do not; None where it does not train the network."""
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    trained = {p for p in network.parameters() if p in group_of}
    if not trained:
        return None
    undecayed, slow = (ruled_parameters(network, r) & trained for r in ("undecayed", "slow"))
    rate = max((group_of[p]["lr"] for p in trained - slow), default=0.0)
    decayed = sum(group_of[p].get("weight_decay", 0) > 0 for p in undecayed)
    fast = sum(group_of[p]["lr"] >= rate > 0 for p in slow)
    found = f"{decayed} biases of SReLU with weight decay" if decayed else ""
    found += " and " if decayed and fast else ""
    return found + (f"{fast} scalars at the full learning rate" if fast else "")


def _await_optimizer(network: Any) -> None:
    """Look at the first optimizer that makes a step with this network, wherever it comes from."""
    _UNSEEN.add(network)
    _look_at_optimizers()


_UNSEEN: weakref.WeakSet = weakref.WeakSet()  # networks that no optimizer has made a step with


@functools.cache  # one hook, which cannot be taken out while it runs
def _look_at_optimizers() -> None:
    def look(optimizer: torch.optim.Optimizer, *others: Any) -> None:
        for network in list(_UNSEEN):
            found = broken_rules(network, optimizer)
            if found is None:
                continue
            _UNSEEN.discard(network)
            if found:
                remedy = "isonet_det.split_param_groups(optimizer, model), before the schedule"
                logger.warning("The optimizer trains %s: see %s", found, remedy)

    register_optimizer_step_pre_hook(look)
