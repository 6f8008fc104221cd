"""SReLU's backward pass in one Triton kernel. Triton comes with PyTorch on Linux with CUDA."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # values per program


@triton.jit
def _backward(
    grad_y,
    y,
    bias,
    grad_x,
    partial,
    channels,
    positions,
    image_stride,
    channel_stride,
    position_stride,
    WITH_BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    tile, image = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    p = tile * POSITIONS + tl.arange(0, POSITIONS)
    inside = (c < channels)[:, None] & (p < positions)[None, :]
    start = image.to(tl.int64) * image_stride
    offset = start + c.to(tl.int64)[:, None] * channel_stride + p[None, :] * position_stride
    g = tl.load(grad_y + offset, mask=inside, other=0)
    exact = partial.dtype.element_ty  # float32 or float64
    value = tl.load(y + offset, mask=inside, other=0).to(exact)
    b = tl.load(bias + c, mask=c < channels, other=0).to(exact)[:, None]
    to_bias = value <= b  # ties to b; a NaN's gradient goes to x, as in PyTorch's relu
    tl.store(grad_x + offset, tl.where(to_bias, 0, g), mask=inside)
    if WITH_BIAS:
        total = tl.sum(tl.where(to_bias, g.to(exact), 0), axis=1)
        row = image * tl.num_programs(0) + tile
        tl.store(partial + row.to(tl.int64) * channels + c, total, mask=c < channels)


def srelu_backward(
    grad_y: Tensor, y: Tensor, bias: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of y = max(x, b), NCHW or channels_last: x's in y's memory format, b's in
    ``dtype`` (None: unwanted), summed per tile, then over the tiles in one order: runs repeat."""
    images, channels, height, width = y.shape
    grad_x = torch.empty_like(y)
    if y.numel() == 0:
        return grad_x, None if dtype is None else torch.zeros_like(bias, dtype=dtype)
    if y.is_contiguous():
        grad_y = grad_y.contiguous()
        positions = height * width
        strides = (channels * positions, positions, 1)
        tile_positions = min(_TILE, triton.next_power_of_2(positions))
        tile_channels = min(_TILE // tile_positions, triton.next_power_of_2(channels))
    else:
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        positions, images = images * height * width, 1
        strides = (0, 1, channels)
        tile_channels = min(64, triton.next_power_of_2(channels))
        tile_positions = _TILE // tile_channels
    grid = (triton.cdiv(positions, tile_positions), triton.cdiv(channels, tile_channels), images)
    sums = torch.promote_types(y.dtype, torch.float32)
    shape = (0,) if dtype is None else (images * grid[0], channels)
    partial = torch.empty(shape, device=y.device, dtype=sums)
    _backward[grid](
        grad_y,
        y,
        bias,
        grad_x,
        partial,
        channels,
        positions,
        *strides,
        WITH_BIAS=dtype is not None,
        CHANNELS=tile_channels,
        POSITIONS=tile_positions,
    )
    return grad_x, None if dtype is None else partial.sum(0).to(dtype).view_as(bias)
