"""The regularizer of a network or detector: which convolutions, ``loss_ortho``, processes."""

import copy
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch.distributed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ISONetError
from ..modeling.execution import set_execution
from ..modeling.layers import IsometricConv2d
from ..modeling.watch import await_loss_hook, stop_awaiting
from .penalty import multiply_adds, stride_pair, total_orthogonality

if TYPE_CHECKING:  # the penalty itself needs torch alone
    from detectron2.config import CfgNode


def has_isonet(module: nn.Module) -> bool:
    return any(isinstance(m, IsometricConv2d) for m in module.modules())


def gram_stride(conv: nn.Conv2d) -> tuple[int, int]:
    """With which stride a convolution's kernel is correlated with itself."""
    return stride_pair(getattr(conv, "gram_stride", conv.stride))


def penalized_convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that the penalty covers, by name: the trained ones of ISONets' blocks, or
    without an ISONet, by the authors' rule, all but those of 7x7 or of an image's 3 channels."""
    convs = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    chosen = [n for n, m in convs.items() if isinstance(m, IsometricConv2d)] or [
        n for n, m in convs.items() if m.kernel_size != (7, 7) and m.weight.shape[1] != 3
    ]
    return {n: convs[n] for n in chosen if convs[n].weight.requires_grad}


def _share_of_rank(weights: list, rank: int, world_size: int) -> list:
    """The part of the kernels that one of several processes evaluates, balanced by cost."""
    shares: list[list] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for entry in sorted(weights, key=lambda entry: -multiply_adds(*entry)):
        lightest = loads.index(min(loads))
        loads[lightest] += multiply_adds(*entry)
        shares[lightest].append(entry)
    return shares[rank]


def _whole(weight: Tensor) -> Tensor:
    """A kernel, also where several processes hold its parts."""
    if hasattr(weight, "full_tensor"):  # fully_shard's, FSDP of version 2
        return weight.full_tensor()
    if weight.dim() != 4 or (weight.numel() and not weight.untyped_storage().size()):
        freed = "FullyShardedDataParallel has freed the kernels before loss_ortho sees them"
        raise ISONetError(f"{freed}: use torch.distributed.fsdp.fully_shard")
    return weight


def orthogonality_penalty(module: nn.Module, rank: int = 0, world_size: int = 1) -> Tensor:
    """Sum of :func:`conv_orthogonality` over :func:`penalized_convolutions`, without gamma.

    Args:
        module: a backbone, or anything that holds one.
        rank, world_size: of processes that evaluate a share of the layers each, ``world_size``
            times: their mean is the whole penalty. Under ``fully_shard`` each evaluates all of it.

    Returns:
        scalar tensor, float32 or float64; 0 where nothing is penalized.

    Raises:
        ISONetError: a kernel for which the penalty is not defined, or that FSDP has freed.
    """
    convolutions = penalized_convolutions(module).values()
    if any(hasattr(conv.weight, "full_tensor") for conv in convolutions):
        world_size = 1  # each process keeps its part of one gradient, and no mean is taken
    weights = [(_whole(conv.weight), gram_stride(conv), conv.groups) for conv in convolutions]
    if world_size > 1:
        weights = _share_of_rank(weights, rank, world_size)
    if not weights:
        return next(module.parameters(), torch.zeros(())).new_zeros((), dtype=torch.float32)
    with torch.autocast(weights[0][0].device.type, enabled=False):
        return world_size * total_orthogonality(weights)


class _OrthogonalLoss:
    """Forward hook of a detector: adds ``loss_ortho`` to the losses of a training step."""

    def __init__(self, coeff: float, part: str, accumulate_steps: int) -> None:
        self.coeff = coeff
        self.part = part  # name of the penalized submodule: a deep copy has another
        self.accumulate_steps = accumulate_steps
        self.calls = 0

    @torch.compiler.disable
    def __call__(self, model: nn.Module, inputs: Any, losses: Any) -> dict[str, Tensor] | None:
        if not model.training or not isinstance(losses, dict):
            return None  # it computes no losses now
        values = [
            v for part in losses.values() for v in (part if isinstance(part, list) else [part])
        ]
        tensors = [value for value in values if isinstance(value, Tensor)]
        if not tensors:
            return None
        if type(losses) not in (dict, OrderedDict) or any(t.numel() != 1 for t in tensors):
            raise ISONetError(
                f"add_orthogonal_loss: {type(model).__name__} returns {type(losses).__name__} of "
                f"{', '.join(map(str, losses))}, no dictionary of scalar losses; where they are "
                "summed, add coeff * isonet_det.orthogonality_penalty(model)"
            )
        if "loss_ortho" in losses:
            raise ISONetError(f"{type(model).__name__} returns a loss_ortho of its own already")
        stop_awaiting(model, "loss")
        first = self.calls % self.accumulate_steps == 0
        self.calls += 1
        if not first:
            return {**losses, "loss_ortho": tensors[0].new_zeros(())}
        rank, world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        penalty = orthogonality_penalty(model.get_submodule(self.part), rank, world_size)
        return {**losses, "loss_ortho": self.coeff * self.accumulate_steps * penalty}


class _WithoutLoss:
    """``__prepare_scriptable__``: torch.jit.script gets a shallow copy without the hook."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self) -> nn.Module:
        plain = copy.copy(self.model)
        del plain.__dict__["__prepare_scriptable__"]
        plain._modules = dict(self.model._modules)
        plain._forward_hooks = OrderedDict(
            (k, h) for k, h in plain._forward_hooks.items() if not isinstance(h, _OrthogonalLoss)
        )
        return plain


def add_orthogonal_loss(
    model: nn.Module,
    coeff: float,
    module: nn.Module | None = None,
    accumulate_steps: int = 1,
) -> RemovableHandle:
    """Make a detector return ``loss_ortho = coeff * penalty`` beside its own losses.

    For any model whose forward in training returns a dict of losses; whatever else it returns
    passes through. State dict, evaluation and export stay as they were. Of several processes each
    evaluates its share of the layers; the mean of the gradients is the whole penalty's.

    Args:
        model: the detector, wrapped in DistributedDataParallel or not.
        coeff: gamma.
        module: the submodule that is penalized; by default the ISONets inside ``model``.
        accumulate_steps: micro-batches per optimizer step, of which the first has the penalty, that
            many times.

    Returns:
        a handle whose ``remove()`` takes the loss out again.

    Raises:
        ISONetError: the model has the loss already, or no ISONet, or ``module`` is not in it.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if any(isinstance(hook, _OrthogonalLoss) for hook in model._forward_hooks.values()):
        raise ISONetError("add_orthogonal_loss: this model has the orthogonal loss already")
    part = ""
    if module is not None:
        names = [name for name, child in model.named_modules() if child is module]
        if not names:
            raise ISONetError("add_orthogonal_loss: module is no submodule of model")
        part = names[0]
    elif not has_isonet(model):
        part_of = "name the part to be penalized, such as module=model.backbone.bottom_up"
        raise ISONetError(f"add_orthogonal_loss: the model has no ISONet; {part_of}")
    await_loss_hook(model)
    names = list(penalized_convolutions(model.get_submodule(part)))
    text = "Penalty: loss_ortho is %g times that of %d convolutions, %s to %s"
    ends = names[0] if names else "none", names[-1] if names else "none"
    logging.getLogger(__name__).info(text, coeff, len(names), *ends)
    model.__prepare_scriptable__ = _WithoutLoss(model)  # type: ignore[assignment]
    return model.register_forward_hook(_OrthogonalLoss(coeff, part, accumulate_steps))


def build_model(cfg: "CfgNode", accumulate_steps: int = 1) -> nn.Module:
    """Detectron2's ``build_model``, and ``loss_ortho`` among the losses if the detector has an
    ISONet and gamma (``MODEL.ISONET.ORTHO_COEFF``) is not 0; run as ``MODEL.CHANNELS_LAST`` and
    ``MODEL.COMPILE`` say.

    Args:
        cfg: with this package's keys (:func:`isonet_det.add_isonet_config`).
        accumulate_steps: micro-batches per optimizer step.
    """
    from detectron2.modeling import build_model as build_detectron2_model

    model = build_detectron2_model(cfg)
    set_execution(model, cfg.MODEL.CHANNELS_LAST, cfg.MODEL.COMPILE)
    coeff = cfg.MODEL.ISONET.ORTHO_COEFF
    if coeff < 0:  # the family's
        coeff = max(getattr(part, "ortho_coeff", 0.0) for part in model.modules())
    if coeff > 0 and has_isonet(model):
        add_orthogonal_loss(model, coeff, accumulate_steps=accumulate_steps)
    return model
