"""The orthogonal regularizer (paper; authors' ``ortho``), as docs/network.md derives it: from a few
points in place of a convolution of the kernel with itself. Torch only."""

import contextlib
import functools
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ISONetError
from .cuda_graph import GraphedFunction


def _check(weight: Tensor, stride: tuple[int, int], groups: int) -> None:
    is_kernel = weight.dim() == 4 and weight.is_floating_point()
    if not is_kernel or min(*stride, groups) < 1 or weight.shape[0] % groups:
        found = f"{weight.dtype} {tuple(weight.shape)}, stride {stride}, groups {groups}"
        raise ISONetError(f"expected a kernel (out, in / groups, height, width), got {found}")
    if any((size - 1) % step for size, step in zip(weight.shape[2:], stride, strict=True)):
        found = f"got {tuple(weight.shape[2:])} and {stride}"  # the identity is at the zero shift
        raise ISONetError(f"expected strides that divide a kernel's sizes less 1, {found}")


def stride_pair(stride: int | tuple[int, ...]) -> tuple[int, int]:
    """(vertical, horizontal) of a stride in either of PyTorch's forms."""
    return (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])


def _axis_tables(size: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One dimension: T (points x taps), C (shifts x points), and each point's mirror."""
    longest = (size - 1) // stride + 1
    evaluate, recover, mirror, points = [], [], [], 0
    for phase in range(min(stride, size)):
        taps = np.arange(phase, size, stride)
        count = 2 * len(taps) - 1
        angle = np.pi / 4 + np.pi / count * (np.arange(count) - (len(taps) - 1))
        u, v = np.cos(angle)[:, None], np.sin(angle)[:, None]
        table = np.zeros((count, size))
        power = np.arange(len(taps))
        table[:, taps] = u**power * v ** (len(taps) - 1 - power)
        shift = np.arange(count)
        back = np.zeros((2 * longest - 1, count))
        first = longest - len(taps)
        back[first : first + count] = np.linalg.inv(u**shift * v ** (count - 1 - shift))
        evaluate.append(table)
        recover.append(back)
        mirror.append(points + np.arange(count)[::-1])
        points += count
    return np.concatenate(evaluate), np.concatenate(recover, axis=1), np.concatenate(mirror)


class _Tables(NamedTuple):
    """The points of a kernel size and stride: pairs, self-mirrored ones (the half), mirrors."""

    pairs: int
    half: int
    points: int
    evaluate: Tensor  # T: (points, taps)
    gradient: Tensor  # 2 T^T
    mix: Tensor  # K's halves, (2 half, half): Q = mix[:half] R + (mix[half:] R)^T
    center: Tensor  # (points,): T's column of the center tap, the points' value at Delta


@functools.cache
def _tables(
    size: tuple[int, int], stride: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> _Tables:
    evaluate_y, recover_y, mirror_y = _axis_tables(size[0], stride[0])
    evaluate_x, recover_x, mirror_x = _axis_tables(size[1], stride[1])
    mirror = (mirror_y[:, None] * len(mirror_x) + mirror_x).reshape(-1)
    index = np.arange(len(mirror))
    pairs, selves = index[index < mirror], index[index == mirror]
    order = np.concatenate([pairs, selves, mirror[pairs]])
    evaluate = np.kron(evaluate_y, evaluate_x)[order]
    recover = np.kron(recover_y, recover_x)[:, order]
    half = len(pairs) + len(selves)
    mix = recover.T @ recover
    mirrored = np.zeros((half, half))
    mirrored[:, : len(pairs)] = mix[:half, half:]

    def put(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    center = (size[0] // 2) * size[1] + size[1] // 2
    return _Tables(
        len(pairs),
        half,
        len(mirror),
        put(evaluate),
        put(2 * evaluate.T),
        put(np.concatenate([mix[:half, :half], mirrored])),
        put(evaluate[:, center]),
    )


# One thread at a time evaluates: the matmul precision, which is everybody's, stays as it was set.
_evaluating = threading.Lock()

# Kernels of one shape are evaluated together up to this many values of E. On a CPU large ones
# stay in the cache; a GPU wants products to be many.
_CHUNK = {"cpu": 2**22, "cuda": 2**24}


def _pointwise(kernels: Sequence[Tensor], gradient: Tensor | None) -> Tensor:
    """:func:`_value_and_gradient` of 1x1 kernels: R = A A^T - I, the gradient 2 R A."""
    count, (rows, columns) = len(kernels), kernels[0].shape[:2]
    n = min(rows, columns)
    natural = torch.stack(list(kernels)).view(count, rows, columns)
    a = natural.mT if rows > columns else natural
    diagonal = a.diagonal(dim1=1, dim2=2)
    # From A - [I 0], so that nothing cancels near Delta.
    diagonal.sub_(1)
    r = torch.bmm(a, a.mT)
    r.add_(a[..., :n]).add_(a[..., :n].mT)
    value = r.square().sum() / 2
    if gradient is not None:
        diagonal.add_(1)
        out = gradient.view_as(natural)
        out = out.mT if rows > columns else out
        torch.baddbmm(out, r, a, beta=0, alpha=2, out=out)
    return value


def _value_and_gradient(
    kernels: Sequence[Tensor], stride: tuple[int, int], gradient: Tensor | None
) -> Tensor:
    """The sum of the penalties of kernels of one shape; their gradient goes into ``gradient``."""
    if kernels[0].shape[2:] == (1, 1):
        return _pointwise(kernels, gradient)
    if kernels[0].shape[0] > kernels[0].shape[1]:  # the smaller Gram
        kernels = [kernel.transpose(0, 1) for kernel in kernels]
        gradient = None if gradient is None else gradient.transpose(1, 2)
    count, (n, m, height, width) = len(kernels), kernels[0].shape
    table = _tables((height, width), stride, kernels[0].device, kernels[0].dtype)
    pairs, half, points = table.pairs * count, table.half * count, table.points * count
    # Evaluate F, of W - Delta, rather than E = F + c [I 0], of W: nothing cancels near Delta in
    # R = E E_s^T - c c_s I = E F_s^T + c_s F [I 0]^T.
    e = kernels[0].new_empty(points, n, m)
    values = e.view(table.points, count, n * m)
    center = (height // 2) * width + width // 2
    for i, kernel in enumerate(kernels):
        taps = kernel.reshape(n * m, height * width).t()
        torch.mm(table.evaluate, taps, out=values[:, i])
        # W and W - Delta differ on the diagonal only: subtract there, then evaluate.
        diagonal = kernel.diagonal().reshape(height * width, n).clone()
        diagonal[center].sub_(1)
        e.view(table.points, count, n, m)[:, i].diagonal(dim1=1, dim2=2).copy_(
            table.evaluate @ diagonal
        )
    first, selves, mirrors = e[:pairs], e[pairs:half], e[half:]
    c = table.center[:, None].expand(-1, count).reshape(-1, 1, 1)

    def add_delta(part: Tensor, coefficients: Tensor) -> None:
        part[..., :n].diagonal(dim1=1, dim2=2).add_(coefficients[..., 0])

    r = e.new_empty(half, n, n)
    torch.mul(first[..., :n], c[half:], out=r[:pairs])
    add_delta(first, c[:pairs])
    torch.baddbmm(r[:pairs], first, mirrors.mT, out=r[:pairs])
    torch.bmm(selves, selves.mT, out=r[pairs:])
    small = selves[..., :n]
    r[pairs:].addcmul_(small, c[pairs:half]).addcmul_(small.mT, c[pairs:half])

    mixed = torch.mm(table.mix, r.view(table.half, -1)).view(2 * half, n, n)
    q, spent = mixed[:half], mixed[half:]
    q.add_(spent.mT)
    torch.mul(r, q, out=spent)
    value = spent[:pairs].sum() + spent[pairs:].sum() / 2
    if gradient is None:
        return value

    add_delta(mirrors, c[half:])
    add_delta(selves, c[pairs:half])
    z = e.new_empty(points, n, m)
    torch.bmm(q[:pairs], mirrors, out=z[:pairs])
    torch.bmm(q[pairs:], selves, out=z[pairs:half])
    torch.bmm(q[:pairs].mT, first, out=z[half:])
    # Taps first and then turned: the other order's product, of 9 columns, is three times as slow.
    taps = torch.mm(table.gradient, z.view(table.points, -1))
    gradient.copy_(taps.view(height, width, count, n, m).permute(2, 3, 4, 0, 1))
    return value


def _chunks(
    kernels: Sequence[Tensor], strides: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[int], slice]]:
    """Indices of kernels that are evaluated together, and their part of the flat gradient."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        groups[kernel.shape, stride].append(i)
    most = _CHUNK.get(kernels[0].device.type, _CHUNK["cpu"])
    end = 0
    for (shape, stride), members in groups.items():
        values = _tables(tuple(shape[2:]), stride, kernels[0].device, kernels[0].dtype).points
        step = max(1, most // (values * shape[0] * shape[1]))
        for first in range(0, len(members), step):
            chunk = members[first : first + step]
            begin, end = end, end + len(chunk) * shape.numel()
            yield chunk, slice(begin, end)


def _evaluate(
    kernels: Sequence[Tensor], strides: Sequence[tuple[int, int]], with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The sum of the penalties, and the flat gradient (or nothing) in :func:`_chunks`' order."""
    flat = kernels[0].new_empty(sum(k.numel() for k in kernels) if with_gradient else 0)
    values = []
    for chunk, part in _chunks(kernels, strides):
        shape = kernels[chunk[0]].shape
        gradient = flat[part].view(len(chunk), *shape) if with_gradient else None
        value = _value_and_gradient([kernels[i] for i in chunk], strides[chunk[0]], gradient)
        values.append(value.double())
    return torch.stack(values).sum(), flat


_graphed = GraphedFunction(_evaluate)


def multiply_adds(weight: Tensor, stride: tuple[int, int] = (1, 1), groups: int = 1) -> int:
    """Multiply-adds of the matrix products in the value and gradient of one kernel's penalty."""
    table = _tables(tuple(weight.shape[2:]), stride, torch.device("cpu"), torch.float64)
    n, m = sorted((weight.shape[0] // groups, weight.shape[1]))
    return groups * (table.half + table.points) * n * n * m


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Float32 matrix products without TF32 or bfloat16, whatever the rest of the step uses."""
    # Since PyTorch 2.9 each backend has a setting; once it is used, the common one cannot be read.
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    newer = hasattr(torch.backends.mkldnn, "matmul")
    matmuls = [backend.matmul for backend in backends] if newer else []
    common = "" if newer else torch.get_float32_matmul_precision()
    before = [matmul.fp32_precision for matmul in matmuls]
    try:
        for matmul in matmuls:
            matmul.fp32_precision = "ieee"
        if common:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for matmul, precision in zip(matmuls, before, strict=True):
            matmul.fp32_precision = precision
        if common:
            torch.set_float32_matmul_precision(common)


class _Orthogonality(torch.autograd.Function):
    """Sum of the penalties of kernels of one type; the gradient is computed with the value."""

    @staticmethod
    def forward(ctx, strides: tuple[tuple[int, int], ...], *kernels: Tensor) -> Tensor:
        evaluate = _graphed if kernels[0].device.type == "cuda" else _evaluate
        with _evaluating, full_precision():
            total, gradient = evaluate(kernels, strides, any(ctx.needs_input_grad[1:]))
        ctx.save_for_backward(gradient)
        ctx.chunks = [(chunk, kernels[chunk[0]].shape) for chunk, _ in _chunks(kernels, strides)]
        return total.to(kernels[0].dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value: Tensor):
        gradient = ctx.saved_tensors[0] * grad_value
        parts = [i for chunk, _ in ctx.chunks for i in chunk]
        shapes = [shape for chunk, shape in ctx.chunks for _ in chunk]
        pieces = gradient.split([shape.numel() for shape in shapes])
        gradients: list[Tensor | None] = [None] * len(parts)
        for i, shape, piece in zip(parts, shapes, pieces, strict=True):
            if ctx.needs_input_grad[1 + i]:
                gradients[i] = piece.view(shape)
        return None, *gradients


def total_orthogonality(weights: Sequence[tuple[Tensor, tuple[int, int], int]]) -> Tensor:
    """Sum of :func:`conv_orthogonality` over (kernel, stride, groups), evaluated together."""
    # Half precision is too coarse for G - I.
    dtype = functools.reduce(torch.promote_types, (w.dtype for w, *_ in weights), torch.float32)
    strides: list[tuple[int, int]] = []
    kernels: list[Tensor] = []
    for weight, stride, groups in weights:
        _check(weight, stride, groups)
        weight = weight.to(dtype)
        kernels += [weight] if groups == 1 else weight.chunk(groups)  # itself: its graph's owner
        strides += [stride] * groups
    return _Orthogonality.apply(tuple(strides), *kernels)


def conv_orthogonality(
    weight: Tensor, stride: int | tuple[int, int] = 1, groups: int = 1
) -> Tensor:
    """How far a convolution is from an orthogonal map: 1/2 ||Conv(W, W) - delta||_F^2, by the
    smaller of its two Grams, without gamma. 0 with zero gradient at Delta initialization.

    Args:
        weight: kernel (M, C / groups, height, width).
        stride: with which the kernel is correlated with itself: the layer's own.
        groups: of the convolution; the value is the sum over its groups.

    Returns:
        scalar tensor, differentiable once; float32 for a kernel in half precision.

    Raises:
        ISONetError: a kernel or stride for which the penalty is not defined.
    """
    return total_orthogonality([(weight, stride_pair(stride), groups)])
