"""How isometric the convolutions of a network are: penalties, singular values, biases, scalars."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ISONetError
from ..modeling.layers import IsometricConv2d, SReLU
from ..regularizer.loss import gram_stride
from ..regularizer.penalty import conv_orthogonality, stride_pair
from .curves import pyplot


def singular_values(weight: Tensor, stride: int | tuple[int, ...] = 1, size: int = 8) -> Tensor:
    """The singular values of a convolution as a linear map on periodic images, exactly (Sedghi,
    Gupta and Long, "The Singular Values of Convolutional Layers", ICLR 2019, whose method this
    extends to strides).

    A convolution is a product with an M x C matrix at every frequency of the image. A stride s
    folds s x s frequencies into one, so their matrices stand side by side, divided by s.

    Args:
        weight: kernel (M, C, height, width) of a convolution without groups.
        stride: of the convolution; must divide ``size``.
        size: pixels of the square image.

    Returns:
        (frequencies, min(M, C * stride^2)) float64, descending in each row.

    Raises:
        ISONetError: the stride does not divide ``size``.
    """
    rows, columns = stride_pair(stride)
    if size < 1 or size % rows or size % columns:
        raise ISONetError(
            f"size {size} of the periodic image is no positive multiple of the stride "
            f"{(rows, columns)}; take another, such as 8"
        )
    m, c, height, width = weight.shape
    # A kernel that is larger than the image meets itself on the other side.
    kernel = F.pad(weight.detach().double(), (0, -width % size, 0, -height % size))
    kernel = kernel.unflatten(3, (-1, size)).unflatten(2, (-1, size)).sum((2, 4))
    # (size, size, M, C): the matrix of every frequency.
    matrices = torch.fft.fft2(kernel).permute(2, 3, 0, 1)
    down, across = size // rows, size // columns
    folded = matrices.reshape(rows, down, columns, across, m, c)
    folded = folded.permute(1, 3, 4, 0, 2, 5).reshape(-1, m, rows * columns * c)
    # A real kernel: opposite frequencies have conjugate matrices, and the same singular values.
    index = torch.arange(down * across).reshape(down, across)
    opposite = index.flip(0, 1).roll((1, 1), (0, 1))
    first, inverse = torch.minimum(index, opposite).unique(return_inverse=True)
    values = torch.linalg.svdvals(folded[first]) / (rows * columns) ** 0.5
    return values[inverse.flatten()]


@dataclass(frozen=True)
class ConvolutionReport:
    """One convolution.

    Attributes:
        name: in the network.
        kernel: (M, C, height, width).
        stride: of the convolution.
        penalty: the orthogonality penalty, without gamma.
        smallest, median, largest: of its singular values; 1 everywhere is an isometry.
    """

    name: str
    kernel: tuple[int, ...]
    stride: tuple[int, int]
    penalty: float
    smallest: float
    median: float
    largest: float


@torch.no_grad()
def analyze_convolutions(network: nn.Module, size: int = 8) -> list[ConvolutionReport]:
    """A report on every convolution of a backbone, frozen or not, its stem included.

    Args:
        network: an ISONet or a ResNet.
        size: of the periodic image for :func:`singular_values`.

    Raises:
        ISONetError: a stride does not divide ``size``.
    """
    reports = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups != 1:
            continue
        stride = stride_pair(module.stride)
        # Residual scalars stay apart: the convolution itself is what is regularized.
        values = singular_values(module.weight, stride, size)
        kernel = tuple(module.weight.shape)
        penalty = conv_orthogonality(module.weight.detach(), gram_stride(module)).item()
        reports.append(
            ConvolutionReport(
                name,
                kernel,
                stride,
                penalty,
                values.min().item(),
                values.median().item(),
                values.max().item(),
            )
        )
    return reports


@torch.no_grad()
def summarize(network: nn.Module) -> dict[str, float]:
    """A few numbers for a log: the penalty per penalized convolution, SReLU's b and the residual
    scalars. No singular values: cheap enough for training."""
    penalties = [
        conv_orthogonality(m.weight.detach(), gram_stride(m))
        for m in network.modules()
        if isinstance(m, IsometricConv2d)
    ]
    biases = [m.srelu_bias.flatten() for m in network.modules() if isinstance(m, SReLU)]
    scalars = [p.flatten() for n, p in network.named_parameters() if n.endswith("res_multiplier")]
    numbers: dict[str, float] = {}
    for name, tensors in (
        ("penalty", [p.flatten() for p in penalties]),
        ("srelu_bias", biases),
        ("res_multiplier", scalars),
    ):
        if tensors:
            values = torch.cat(tensors).float()
            numbers[f"isometry/{name}_mean"] = values.mean().item()
            numbers[f"isometry/{name}_min"] = values.min().item()
            numbers[f"isometry/{name}_max"] = values.max().item()
    return numbers


def table(reports: list[ConvolutionReport]) -> str:
    """CSV, a line a convolution."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["name", "kernel", "stride", "penalty", "smallest", "median", "largest"])
    for r in reports:
        kernel, stride = ("x".join(map(str, v)) for v in (r.kernel, r.stride))
        writer.writerow([r.name, kernel, stride, r.penalty, r.smallest, r.median, r.largest])
    return out.getvalue()


def draw(networks: Mapping[str, list[ConvolutionReport]], path: str) -> None:
    """A picture of several networks one above the other: per convolution, the range of its
    singular values with the median, and the penalty."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(networks), 2, figsize=(15, 3.6 * len(networks)), squeeze=False, layout="constrained"
    )
    for (left, right), (title, reports) in zip(axes, networks.items(), strict=True):
        places = range(len(reports))
        lowest, middle, highest = (
            [max(getattr(r, which), 1e-4) for r in reports]
            for which in ("smallest", "median", "largest")
        )
        left.vlines(places, lowest, highest, color="tab:blue", alpha=0.5)
        left.plot(places, middle, "o", markersize=3)
        left.axhline(1, color="0.3", linewidth=0.8)
        left.set(title=f"{title}: singular values", yscale="log")
        # The stem is not penalized.
        penalized = [r for r in reports if not r.name.startswith("stem.")]
        right.bar(range(len(penalized)), [r.penalty for r in penalized])
        right.set(title=f"{title}: orthogonality penalty")
        size = 8 if len(reports) < 30 else 5
        for axis, shown in ((left, reports), (right, penalized)):
            names = [r.name for r in shown]
            axis.set_xticks(range(len(shown)), names, rotation=90, fontsize=size)
    figure.savefig(path, dpi=100)
    plt.close(figure)
