"""How isometric the convolutions of a network are: penalties, singular values, biases, scalars."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ISONetError
from ..modeling.layers import IsometricConv2d, SReLU
from ..regularizer.loss import gram_stride
from ..regularizer.penalty import conv_orthogonality, stride_pair
from .curves import new_figure


def singular_values(weight: Tensor, stride: int | tuple[int, ...] = 1, size: int = 8) -> Tensor:
    """The singular values of a convolution as a linear map on periodic images, exactly (Sedghi,
    Gupta and Long, "The Singular Values of Convolutional Layers", ICLR 2019, whose method this
    extends to strides).

    A convolution is a product with an M x C matrix at every frequency of the image, of ``size``
    pixels a side. A stride s folds s x s frequencies into one, so their matrices stand side by
    side, divided by s: (frequencies, min(M, C * s^2)) float64, descending in each row."""
    rows, columns = stride_pair(stride)
    if size < 1 or size % rows or size % columns:
        raise ISONetError(f"size {size}: expected a multiple of the stride {(rows, columns)}")
    m, c, height, width = weight.shape
    # A kernel that is larger than the image meets itself on the other side.
    kernel = F.pad(weight.detach().double(), (0, -width % size, 0, -height % size))
    kernel = kernel.unflatten(3, (-1, size)).unflatten(2, (-1, size)).sum((2, 4))
    # (size, size, M, C): the matrix of every frequency.
    matrices = torch.fft.fft2(kernel).permute(2, 3, 0, 1)
    down, across = size // rows, size // columns
    folded = matrices.reshape(rows, down, columns, across, m, c)
    folded = folded.permute(1, 3, 4, 0, 2, 5).reshape(-1, m, rows * columns * c)
    return torch.linalg.svdvals(folded) / (rows * columns) ** 0.5


LOWEST = 1e-4  # of the picture's scale: a singular value of 0


@dataclass(frozen=True)
class ConvolutionReport:
    """One convolution, its penalty without gamma and its singular values (1: an isometry)."""

    name: str
    kernel: tuple[int, ...]
    stride: tuple[int, int]
    penalty: float
    smallest: float
    median: float
    largest: float

    @property
    def loses_pixels(self) -> bool:
        """Whether the stride is larger than the kernel: pixels that no output sees, and singular
        values of 0 whatever the weights."""
        m, c, *kernel = self.kernel
        seen = c * min(kernel[0], self.stride[0]) * min(kernel[1], self.stride[1])
        return seen < min(m, c * self.stride[0] * self.stride[1])


@torch.no_grad()
def analyze_convolutions(network: nn.Module, size: int = 8) -> list[ConvolutionReport]:
    """A report on every convolution, stem and frozen ones included, on periodic images."""
    reports = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups != 1:
            continue
        # Residual scalars stay apart: the convolution itself is what is regularized.
        weight, stride = module.weight.detach(), stride_pair(module.stride)
        values = singular_values(weight, stride, size)
        penalty = conv_orthogonality(weight, gram_stride(module))
        numbers = (penalty, values.min(), values.median(), values.max())
        reports.append(
            ConvolutionReport(name, tuple(weight.shape), stride, *(v.item() for v in numbers))
        )
    return reports


@torch.no_grad()
def summarize(network: nn.Module) -> dict[str, float]:
    """A few numbers for a log, cheap enough for training."""
    modules = list(network.modules())
    parts: dict[str, list[Tensor]] = {
        "penalty": [
            conv_orthogonality(m.weight.detach(), gram_stride(m))
            for m in modules
            if isinstance(m, IsometricConv2d)
        ],
        "srelu_bias": [m.srelu_bias for m in modules if isinstance(m, SReLU)],
        "res_multiplier": [
            p for n, p in network.named_parameters() if n.endswith("res_multiplier")
        ],
    }
    numbers: dict[str, float] = {}
    for name, tensors in parts.items():
        if tensors:
            values = torch.cat([t.flatten() for t in tensors]).float()
            for which in ("mean", "min", "max"):
                numbers[f"isometry/{name}_{which}"] = getattr(values, which)().item()
    return numbers


def table(reports: Sequence[ConvolutionReport]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([f.name for f in fields(ConvolutionReport)])
    for report in reports:
        cells = astuple(report)
        writer.writerow("x".join(map(str, c)) if isinstance(c, tuple) else c for c in cells)
    return out.getvalue()


def draw(networks: Mapping[str, list[ConvolutionReport]], path: str) -> None:
    """A picture: per network the range and median of singular values, and the penalties."""
    figure, axes = new_figure(len(networks), 2, 15, 3.8 * len(networks), sharey="col")
    for (left, right), (title, reports) in zip(axes, networks.items(), strict=True):
        lowest, middle, highest = (
            [max(getattr(r, which), LOWEST) for r in reports]
            for which in ("smallest", "median", "largest")
        )
        left.vlines(range(len(reports)), lowest, highest, color="tab:blue", alpha=0.5)
        left.plot(middle, "o", markersize=3)
        left.axhline(1, color="0.3", linewidth=0.8, label="an isometry")
        forced = [i for i, r in enumerate(reports) if r.loses_pixels]
        left.plot(forced, [LOWEST] * len(forced), "rx", label="0, as the stride skips pixels")
        left.set(title=title, ylabel="singular values, median and range", yscale="log")
        left.legend(fontsize="small")
        penalized = [r for r in reports if not r.name.startswith("stem.")]  # the stem is not
        right.bar(range(len(penalized)), [r.penalty for r in penalized])
        right.set(title=title, ylabel="penalty, without gamma")
        size = 8 if len(reports) < 30 else 5
        for axis, shown in ((left, reports), (right, penalized)):
            names = [r.name for r in shown]
            axis.set_xticks(range(len(shown)), names, rotation=90, fontsize=size)
    figure.savefig(path, dpi=100)
