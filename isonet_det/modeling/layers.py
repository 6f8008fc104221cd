"""SReLU, the penalized convolution, its initialization, and norms. Torch alone."""

import functools
import logging
from collections.abc import Callable
from math import gcd
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

logger = logging.getLogger(__name__)

_PART = 2**18  # values that fit a CPU's cache


class _SReLUFunction(torch.autograd.Function):
    """max(x, b) that keeps nothing but its output: the mask of the backward pass is y > b."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, inplace: bool) -> Tensor:
        ctx.bias_dtype = bias.dtype
        bias = bias.to(x.dtype)
        if inplace:
            ctx.mark_dirty(x)
            y = torch.maximum(x, bias, out=x)
        else:
            y = torch.maximum(x, bias)
        ctx.save_for_backward(y, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor):
        y, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        channels_last = y.is_contiguous(memory_format=torch.channels_last)
        kernel = _srelu_triton(y.device) if y.device.type == "cuda" else None
        if kernel is not None and (channels_last or y.is_contiguous()):
            dtype = ctx.bias_dtype if wanted else None
            return *kernel.srelu_backward(grad_y, y, bias, dtype), None
        # On a CPU in parts that fit its cache: the margin never goes to memory.
        dim = 2 if channels_last else 1
        parts = y.numel() // _PART if y.device.type == "cpu" else 0
        step = max(1, y.shape[dim] // max(1, parts))
        grad_x, grad_bias = torch.empty_like(y), torch.zeros_like(bias, dtype=ctx.bias_dtype)
        for start in range(0, y.shape[dim], step):
            part = (*[slice(None)] * dim, slice(start, start + step))
            channels = part if dim == 1 else ...
            margin = y[part] - bias[channels]
            # 0 where y <= b, ties included: one pass, no boolean mask.
            torch.ops.aten.threshold_backward.grad_input(
                grad_y[part], margin, 0, grad_input=grad_x[part]
            )
            if wanted:
                rest = torch.sub(grad_y[part], grad_x[part], out=margin)  # grad_y where y <= b
                grad_bias[channels] += rest.sum((0, 2, 3), keepdim=True, dtype=ctx.bias_dtype)
        return grad_x, grad_bias if wanted else None, None


@functools.cache
def _srelu_triton(device: torch.device) -> ModuleType | None:
    """Where the kernel is; None where Triton is missing or cannot run it."""
    try:
        from . import srelu_triton

        one = torch.ones(1, 1, 1, 1, device=device)
        srelu_triton.srelu_backward(one, one, one, torch.float32)
    except Exception as error:  # no compiler, an unknown GPU: Triton has many
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("SReLU in PyTorch's operations, without the Triton kernel: %s", reason)
        return None
    return srelu_triton


def _is_traced(x: Tensor) -> bool:
    """By a compiler, torch.jit.trace or torch.fx."""
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return compiled or isinstance(x, torch.fx.Proxy)


def _srelu_plain(x: Tensor, bias: Tensor) -> Tensor:
    # x <= b rather than x > b: a NaN passes through, and a tie sends its gradient to b.
    bias = bias.to(x.dtype)
    return torch.where(x <= bias, bias, x)


class SReLU(nn.Module):
    """Shifted ReLU, ``max(x, b)``, with one ``b`` per channel (paper; authors' ``SReLU``). The
    gradient at ``x == b`` is 0 to ``x`` and 1 to ``b``. Only the output is kept for the backward
    pass, and there is no double backward.

    Args:
        channels: C of the (N, C, H, W) input.
        bias: initial value of every ``b``.
        learnable: False keeps ``b`` as a parameter without gradient.
        inplace: overwrite the input, which nothing else may need (a convolution's, a sum).
    """

    undecayed = ("srelu_bias",)  # has no weight decay

    def __init__(
        self, channels: int, bias: float = -1.0, learnable: bool = True, inplace: bool = False
    ) -> None:
        super().__init__()
        self.inplace = inplace
        self.srelu_bias = nn.Parameter(
            torch.full((1, channels, 1, 1), float(bias)), requires_grad=learnable
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), same type and memory format."""
        if torch.jit.is_scripting():  # the rest is not compiled then
            return _srelu_plain(x, self.srelu_bias)
        else:
            # Compilers and tracers see plain operations: they fuse them themselves.
            if _is_traced(x):
                return _srelu_plain(x, self.srelu_bias)
            return _SReLUFunction.apply(x, self.srelu_bias, self.inplace)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": functools.partial(nn.GroupNorm, 32),
}


def freeze_batchnorm(module: nn.Module) -> None:
    """Fix the statistics of every BatchNorm inside, in place."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, frozen)
        else:
            freeze_batchnorm(child)


class Conv2d(nn.Conv2d):
    """A convolution and, where there is one, its norm."""

    def __init__(self, *args, norm: nn.Module | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        return x if self.norm is None else self.norm(x)


def _scaled_and_shifted(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x + shift, and scale * W in the type of x."""
    x = x if shift is None else x + shift.to(x.dtype)
    return x, weight if scale is None else (weight * scale).to(x.dtype)


class _ScaledConv2d(torch.autograd.Function):
    """conv(x + shift, scale * W) that keeps x and W: sum and product are computed again."""

    @staticmethod
    def forward(ctx, x, weight, scale, shift, bias, *how):
        ctx.save_for_backward(x, weight, scale, shift)
        ctx.how, ctx.bias = how, None if bias is None else bias.shape
        x, product = _scaled_and_shifted(x, weight, scale, shift)
        return F.conv2d(x, product.to(x.dtype), bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor):
        x, weight, scale, shift = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        for_x, for_weight, for_scale, for_shift, for_bias, *_ = ctx.needs_input_grad
        x, product = _scaled_and_shifted(x, weight, scale, shift)
        grad_x, grad_product, grad_bias = torch.ops.aten.convolution_backward(
            grad_y,
            x,
            product.to(x.dtype),
            ctx.bias,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (for_x or for_shift, for_weight or for_scale, for_bias),
        )
        grad_weight = grad_scale = grad_shift = None
        if for_shift:
            grad_shift = grad_x.sum(dtype=shift.dtype).view_as(shift)
        if grad_product is not None:
            grad_product = grad_product.to(weight.dtype)
            if for_scale:
                grad_scale = (grad_product * weight).sum().view_as(scale)
            if for_weight:
                grad_weight = grad_product if scale is None else grad_product.mul_(scale)
        grad_x = grad_x if for_x else None
        return grad_x, grad_weight, grad_scale, grad_shift, grad_bias, *(None for _ in ctx.how)


class IsometricConv2d(Conv2d):
    """A convolution that the regularizer penalizes; ``print(model)`` shows it. ``gram_stride`` is
    the stride, in taps, with which the kernel is correlated with itself; None for the layer's own.
    (With dilation d its outputs meet at every stride / gcd(stride, d)-th tap.)"""

    def __init__(self, *args, gram_stride: int | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if gram_stride is None:
            pairs = zip(self.stride, self.dilation, strict=True)
            self.gram_stride = tuple(s // gcd(s, d) for s, d in pairs)
        else:
            self.gram_stride = (gram_stride, gram_stride)

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """(N, C, H, W) -> (N, M, H', W'): of ``x + shift``, times ``scale``, plus ``offset`` in
        place of the bias, of one value each. It scales the weight, not the map."""
        weight, bias = self.weight, self.bias
        if scale is not None:
            scale = scale.view(1, 1, 1, 1)
            bias = None if bias is None else bias * scale.flatten()
        if offset is not None:
            bias = offset.expand(self.out_channels)
        if scale is None and shift is None:
            x = self._conv_forward(x, weight, bias)
        elif torch.jit.is_scripting():
            x, weight = _scaled_and_shifted(x, weight, scale, shift)
            x = self._conv_forward(x, weight, bias)
        else:
            x = self._scaled(x, scale, shift, bias)
        return x if self.norm is None else self.norm(x)

    def _scaled(self, x: Tensor, scale, shift, bias) -> Tensor:
        if _is_traced(x):
            x, weight = _scaled_and_shifted(x, self.weight, scale, shift)
            return self._conv_forward(x, weight, bias)
        device = x.device.type
        # Autocast acts on PyTorch's own operations alone.
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        how = (self.stride, self.padding, self.dilation, self.groups)
        return _ScaledConv2d.apply(x, self.weight, scale, shift, bias, *how)


class CheckpointedStage(nn.Sequential):
    """Blocks whose maps are computed again in the backward pass, with the same gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for block in self:
                x = block(x)
            return x
        else:
            if torch.jit.is_tracing() or not torch.is_grad_enabled():
                return super().forward(x)
            # Without the random state, whose reading waits for a GPU.
            return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)


def init_delta(conv: nn.Conv2d) -> None:
    """Delta initialization, in place: the identity at the kernel's center, of penalty 0."""
    nn.init.dirac_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_kaiming(conv: nn.Conv2d) -> None:
    """Normal with variance 2 / fan_out, in place: what the paper's networks without Delta use."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
