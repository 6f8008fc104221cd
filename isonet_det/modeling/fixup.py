"""Fixup ResNet (Zhang, Dauphin and Ma, "Fixup Initialization: Residual Learning Without
Normalization", ICLR 2019): what the paper's Table 5 compares R-ISONet with. Torch only."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import BLOCKS_PER_STAGE, BOTTLENECK_DEPTHS, Family, NameRules, Place, StagedNetwork
from .layers import Conv2d, IsometricConv2d, init_kaiming

_BIASES = [f"bias{number}{side}" for number in (1, 2, 3) for side in "ab"]


@dataclass(frozen=True)
class FixupOptions:
    """None: there is one network of a depth."""


class Stem(nn.Module):
    """7x7 convolution of stride 2, a bias of one value, ReLU, 3x3 max-pool of stride 2."""

    slow = ("bias1",)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bias1 = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 64, ceil(H / 4), ceil(W / 4))."""
        x = F.conv2d(x, self.conv.weight, self.bias1.expand(64), stride=2, padding=3)
        return F.max_pool2d(F.relu(x, inplace=True), kernel_size=3, stride=2, padding=1)


class Block(nn.Module):
    """Two 3x3 convolutions (depths 18 and 34), or one between two 1x1 (50 and 101), and a shortcut.
    The stride is the first 3x3's. Around convolution n are biases of one value, ``bias{n}a`` (that
    of the first is the shortcut's too) and ``bias{n}b``; the last one has a ``scale``."""

    slow = ("scale", *_BIASES)

    def __init__(self, depth: int, options: FixupOptions, place: Place) -> None:
        super().__init__()
        in_channels, width, out_channels, stride, dilation, _ = place
        self.out_channels, self.stride = out_channels, stride
        conv = partial(IsometricConv2d, bias=False)
        spatial = partial(conv, kernel_size=3, padding=dilation, dilation=dilation)
        self.conv3: nn.Module | None = None
        if depth in BOTTLENECK_DEPTHS:
            self.conv1 = conv(in_channels, width, 1)
            self.conv2 = spatial(width, width, stride=stride)
            self.conv3 = conv(width, out_channels, 1)
        else:
            self.conv1 = spatial(in_channels, width, stride=stride)
            self.conv2 = spatial(width, out_channels)
        self.shortcut = None
        self.shifts_shortcut = in_channels != out_channels or stride != 1
        if self.shifts_shortcut:
            self.shortcut = conv(in_channels, out_channels, 1, stride=stride)
            init_kaiming(self.shortcut)
        self.scale: nn.Parameter | None = nn.Parameter(torch.ones(1))
        *firsts, last = self._convolutions()
        for name in _BIASES[: 2 * len(firsts) + 2]:
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))
        for first in firsts:
            init_kaiming(first)
            first.weight.data *= sum(BLOCKS_PER_STAGE[depth]) ** (-1 / (2 * len(firsts)))
        nn.init.zeros_(last.weight)

    def _convolutions(self) -> list[Any]:
        return [c for c in (self.conv1, self.conv2, self.conv3) if c is not None]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.conv1(x, None, self.bias1a, self.bias1b), inplace=True)
        if self.conv3 is None:
            out = self.conv2(out, self.scale, self.bias2a, self.bias2b)
        else:
            out = F.relu(self.conv2(out, None, self.bias2a, self.bias2b), inplace=True)
            out = self.conv3(out, self.scale, self.bias3a, self.bias3b)
        if self.shortcut is None:
            out += x
        else:
            out += self.shortcut(x, None, self.bias1a if self.shifts_shortcut else None)
        return F.relu(out, inplace=True)

    def fold_for_inference(self) -> None:
        """Fold scales and, but before a 3x3 (whose padding has none), biases."""
        convs = self._convolutions()
        if self.scale is not None:
            convs[-1].weight *= self.scale
            self.scale = None
        if self.shortcut is not None and self.shifts_shortcut:
            self._fold_bias(self.shortcut, "bias1a", f"bias{len(convs)}b")  # they are added
            self.shifts_shortcut = False
        for number, conv in enumerate(convs, 1):
            if conv.kernel_size == (1, 1):
                self._fold_bias(conv, f"bias{number}a", f"bias{number}b")
                self.register_parameter(f"bias{number}a", None)

    def _fold_bias(self, conv: Any, before: str, after: str) -> None:
        if getattr(self, before) is not None:
            shifted = getattr(self, after) + getattr(self, before) * conv.weight.sum((1, 2, 3))
            self.register_parameter(after, nn.Parameter(shifted))


class Classifier(nn.Linear):
    """Starts at 0; its input has a bias of one value, ``bias2``."""

    slow = ("bias2", "bias")

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.bias2 = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x + self.bias2, self.weight, self.bias)


class Fixup(StagedNetwork):
    """Fixup ResNet of one depth (Zhang et al., ICLR 2019; its authors' ``FixupResNet``): an image
    batch (N, in_channels, H, W) to a dictionary of maps.

    Args:
        depth: 18, 34, 50 or 101.
        num_classes: adds the ImageNet classifier, whose logits are called "linear".
        in_channels: of the image.
        arguments: ``out_features``, ``freeze_at``, ``res5_dilation``, ``res4_dilation``,
            ``res5_multi_grid``, ``checkpoint_stages``, ``dropout``: of
            :class:`~isonet_det.modeling.family.StagedNetwork`.

    Raises:
        ISONetError: an invalid depth, feature name, freeze_at, dilation or checkpoint_stages.
    """

    def __init__(
        self,
        depth: int,
        options: FixupOptions = FixupOptions(),
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        **arguments: Any,
    ) -> None:
        linear = None if num_classes is None else partial(Classifier, out_features=num_classes)
        super().__init__(
            depth, Stem(in_channels), partial(Block, depth, options), linear, **arguments
        )


FIXUP = Family(
    name="fixup",
    network=Fixup,
    options=FixupOptions,
    make_block=Block,
    authors=NameRules(
        "authors",
        r"layer\d\.\d+\.bias1a",
        (
            (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
            (r"\.downsample\.", ".shortcut."),
            (r"^conv1\.", "stem.conv."),
            (r"^(?=bias1$)", "stem."),
            (r"^(fc\.|(?=bias2$))", "linear."),
        ),
    ),
    read_options=lambda names: FixupOptions() if "stem.bias1" in names else None,
    title=lambda options: "Fixup{}",
)
