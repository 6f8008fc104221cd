"""The orthogonal regularizer (paper, Section 3.2; authors' ``ortho``). Torch only."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import IsonetError


def _check(weight: Tensor, stride: tuple[int, int], groups: int) -> None:
    if weight.dim() != 4 or not weight.is_floating_point():
        raise IsonetError(
            "conv_orthogonality takes a floating-point kernel (out, in / groups, height, width), "
            f"found {weight.dtype} of shape {tuple(weight.shape)}"
        )
    if min(stride) < 1 or groups < 1 or weight.shape[0] % groups:
        raise IsonetError(
            f"stride {stride} and groups {groups} do not fit a kernel of shape "
            f"{tuple(weight.shape)}"
        )
    for size, step in zip(weight.shape[2:], stride, strict=True):
        if (size - 1) % step:
            raise IsonetError(
                f"the Gram of a {weight.shape[2]}x{weight.shape[3]} kernel at stride {stride} "
                "does not sample the zero shift, so it has no identity to be compared with; "
                f"use a stride that divides {size - 1}"
            )


def _pair(stride: int | tuple[int, int]) -> tuple[int, int]:
    return (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])


def spatial_orthogonality(weight: Tensor, stride: int | tuple[int, int] = 1) -> Tensor:
    """The penalty as the formula reads, for reading and for tests: correlate the kernel with
    itself (zero padding k - 1, the layer's stride), subtract the identity at the zero shift,
    half the sum of squares.

    Args:
        weight: kernel (M, C, height, width) of a convolution without groups.
        stride: of the correlation.

    Returns:
        scalar tensor of the weight's type.
    """
    if weight.shape[0] > weight.shape[1]:
        weight = weight.transpose(0, 1)  # the smaller Gram
    step = _pair(stride)
    height, width = weight.shape[2:]
    gram = F.conv2d(weight, weight, stride=step, padding=(height - 1, width - 1))
    identity = torch.zeros_like(gram)
    identity[:, :, (height - 1) // step[0], (width - 1) // step[1]].fill_diagonal_(1)
    return (gram - identity).square().sum() / 2


def conv_orthogonality(
    weight: Tensor, stride: int | tuple[int, int] = 1, groups: int = 1
) -> Tensor:
    """How far one convolution is from an orthogonal map: 1/2 ||Conv(W, W) - delta||_F^2.

    The smaller of the two Grams (over input or output channels) is taken. 0 with zero gradient
    at Delta initialization. The coefficient gamma is not in it.

    Args:
        weight: kernel (M, C / groups, height, width).
        stride: with which the kernel is correlated with itself: the layer's own.
        groups: of the convolution; the value is the sum over its groups.

    Returns:
        scalar tensor, differentiable once.

    Raises:
        IsonetError: a kernel or stride for which the penalty is not defined.
    """
    _check(weight, _pair(stride), groups)
    return sum(  # type: ignore[return-value]
        (spatial_orthogonality(part, stride) for part in weight.chunk(groups)),
        start=weight.new_zeros(()),
    )


def penalized_convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that the penalty of ``module`` covers, by their names in it.

    Where ``module`` holds an ISONet (anywhere inside a detector): every convolution of its
    blocks, also of a res5 head made of them; neither the stem nor FPN nor heads. Otherwise, by
    the authors' rule: every convolution but those of 7x7 or of an image's 3 channels. Frozen
    weights are left out.
    """
    convs = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    marked = {n: m for n, m in convs.items() if hasattr(m, "gram_stride")}
    if not marked:
        marked = {
            n: m for n, m in convs.items() if m.kernel_size != (7, 7) and m.weight.shape[1] != 3
        }
    return {n: m for n, m in marked.items() if m.weight.requires_grad}


def orthogonality_penalty(module: nn.Module) -> Tensor:
    """Sum of :func:`conv_orthogonality` over :func:`penalized_convolutions`, without gamma.

    Computed in float32 (float64 for float64 weights) whatever the autocast state.

    Returns:
        scalar tensor; 0 where nothing is penalised.

    Raises:
        IsonetError: a kernel for which the penalty is not defined.
    """
    convs = penalized_convolutions(module).values()
    first = next(module.parameters(), torch.zeros(()))
    with torch.autocast(first.device.type, enabled=False):
        total = first.new_zeros((), dtype=torch.promote_types(first.dtype, torch.float32))
        for conv in convs:
            stride = getattr(conv, "gram_stride", conv.stride)
            weight = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
            total = total + conv_orthogonality(weight, stride, conv.groups)
    return total


class _OrthogonalLoss:
    """Forward hook of a detector: adds ``loss_ortho`` to the losses of a training step."""

    def __init__(self, coeff: float, part: str) -> None:
        self.coeff = coeff
        self.part = part  # name of the penalised submodule: a deep copy finds its own

    def __call__(self, model: nn.Module, inputs, losses):
        if not model.training:
            return None
        if not isinstance(losses, dict) or "loss_ortho" in losses:
            raise IsonetError(
                f"{type(model).__name__} in training must return a dict of losses without "
                f"loss_ortho for add_orthogonal_loss, found {type(losses).__name__}"
            )
        penalty = orthogonality_penalty(model.get_submodule(self.part))
        return {**losses, "loss_ortho": self.coeff * penalty}


def add_orthogonal_loss(
    model: nn.Module, coeff: float, module: nn.Module | None = None
) -> RemovableHandle:
    """Make a detector return ``loss_ortho = coeff * penalty`` beside its own losses.

    For any model whose forward in training returns a dict of losses, wrapped in
    DistributedDataParallel or not. State dict, evaluation and export stay as they were.

    Args:
        model: the detector.
        coeff: gamma.
        module: the submodule whose convolutions are penalised; by default the ISONets inside
            ``model``.

    Returns:
        a handle whose ``remove()`` takes the loss out again.

    Raises:
        IsonetError: the loss was added before, ``model`` has no ISONet and ``module`` is not
            given, or ``module`` is no part of ``model``.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if any(isinstance(hook, _OrthogonalLoss) for hook in model._forward_hooks.values()):
        raise IsonetError("add_orthogonal_loss: this model has the orthogonal loss already")
    part = ""
    if module is not None:
        names = [name for name, child in model.named_modules() if child is module]
        if not names:
            raise IsonetError("add_orthogonal_loss: module is no submodule of model")
        part = names[0]
    elif not any(hasattr(child, "gram_stride") for child in model.modules()):
        raise IsonetError(
            "add_orthogonal_loss: the model has no ISONet; name the part to be penalised, for "
            "example module=model.backbone.bottom_up"
        )
    names = list(penalized_convolutions(model.get_submodule(part)))
    logging.getLogger(__name__).info(
        "loss_ortho: %g times the orthogonality penalty of %d convolutions%s",
        coeff,
        len(names),
        f", {part + '.' if part else ''}{names[0]} ... {names[-1]}" if names else "",
    )
    return model.register_forward_hook(_OrthogonalLoss(coeff, part))
