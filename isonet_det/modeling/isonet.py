"""ISONet, R-ISONet, and the ResNets that the paper varies them from. Torch only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ISONetError
from .family import BOTTLENECK_DEPTHS, Family, NameRules, Place, StagedNetwork
from .layers import NORMS, Conv2d, IsometricConv2d, SReLU, init_delta, init_kaiming

_CHOICES = {
    "activation": ("srelu", "relu"),
    "init": ("delta", "kaiming"),
    "norm": ("", *NORMS),
    "ortho_stride": ("layer", "undilated"),
}


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class ISONetOptions:
    """What the paper varies between its networks, each a key of ``MODEL.ISONET``; the defaults are
    R-ISONet. As in the authors' code, convolutions have a bias with "relu" and no norm only,
    "delta" leaves the stem at PyTorch's default, and with a norm the last scale of a residual
    branch starts at 0. "BN", ReLU, "kaiming" and no scalars are the paper's ResNet.

    Raises:
        ISONetError: an unknown choice, or a norm together with residual scalars.
    """

    residual: bool = _option(True, "R-ISONet; False: ISONet, without skip connections")
    activation: str = _option("srelu", 'or "relu"')
    srelu_bias: float = _option(-1.0, "initial value of SReLU's b")
    srelu_learnable: bool = _option(True, "whether b is trained")
    init: str = _option("delta", 'or "kaiming"; matters only for what no checkpoint fills')
    res_multiplier: float = _option(0.0, "initial value of the residual scalars")
    has_res_multiplier: bool = _option(True, "whether residual branches have a scalar")
    norm: str = _option(
        "",
        'after every convolution: none, or "BN", "FrozenBN", "SyncBN", "GN" (the paper\'s ResNets)',
    )
    ortho_stride: str = _option(
        "layer",
        "with which stride the penalty sees the first 3x3 of a stage that gave up its stride to "
        'dilation: "layer", the convolution\'s own (1), or "undilated", the one that it had in '
        "ImageNet training (2); the paper does not state it",
    )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                names = ", ".join(f'"{choice}"' for choice in choices)
                raise ISONetError(f"{name} is one of {names}, not {value!r}")
        if self.norm and self.residual and self.has_res_multiplier:
            raise ISONetError(f"norm {self.norm} has a scale already: set has_res_multiplier False")


def _activation(options: ISONetOptions, channels: int) -> nn.Module:
    if options.activation == "relu":
        return nn.ReLU(inplace=True)
    # In place: every activation here follows a convolution, a norm or a sum.
    return SReLU(channels, options.srelu_bias, options.srelu_learnable, inplace=True)


def _norm_and_bias(options: ISONetOptions, channels: int) -> dict[str, Any]:
    norm = NORMS[options.norm](channels) if options.norm else None
    return {"norm": norm, "bias": options.activation == "relu" and norm is None}


def _conv(
    options: ISONetOptions,
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    gram_stride: int | None = None,
    last: bool = False,
) -> IsometricConv2d:
    how = _norm_and_bias(options, out_channels)
    if last and options.residual and options.norm not in ("", "FrozenBN"):
        nn.init.zeros_(how["norm"].weight)  # the block starts as its shortcut
    how.update(stride=stride, padding=dilation * (size // 2), dilation=dilation)
    conv = IsometricConv2d(in_channels, out_channels, size, gram_stride=gram_stride, **how)
    (init_delta if options.init == "delta" else init_kaiming)(conv)
    return conv


class Stem(nn.Module):
    """7x7 convolution of stride 2, activation, 3x3 max-pool of stride 2. Never penalized."""

    def __init__(self, in_channels: int, options: ISONetOptions) -> None:
        super().__init__()
        how = _norm_and_bias(options, 64)
        self.conv = Conv2d(in_channels, 64, 7, stride=2, padding=3, **how)
        if options.init == "kaiming":
            init_kaiming(self.conv)
        elif self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.activation = _activation(options, 64)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 64, ceil(H / 4), ceil(W / 4))."""
        return F.max_pool2d(self.activation(self.conv(x)), kernel_size=3, stride=2, padding=1)


class Block(nn.Module):
    """Two 3x3 convolutions, or one between two 1x1 (depths 50 and 101), and a shortcut. The stride
    is the first 3x3's. ``res_multiplier`` is the residual scalar (1, 1, 1, 1), if any."""

    slow = ("res_multiplier",)  # trains at a tenth of the learning rate

    def __init__(self, depth: int, options: ISONetOptions, place: Place) -> None:
        super().__init__()
        in_channels, width, out_channels, stride, dilation, strided = place
        self.out_channels, self.stride, self.residual = out_channels, stride, options.residual
        self.shortcut: nn.Module | None = None
        self.res_multiplier: nn.Parameter | None = None
        if options.residual:
            if in_channels != out_channels or stride != 1:
                self.shortcut = _conv(options, in_channels, out_channels, 1, stride)
            if options.has_res_multiplier:
                start = torch.full((1, 1, 1, 1), float(options.res_multiplier))
                self.res_multiplier = nn.Parameter(start)
        self.activation = _activation(options, out_channels)
        gram_stride = 2 if strided and options.ortho_stride == "undilated" else None
        first = (3, stride, dilation, gram_stride)
        self.conv3: nn.Module | None = None
        if depth in BOTTLENECK_DEPTHS:
            self.conv1 = _conv(options, in_channels, width, 1)
            self.activation1 = _activation(options, width)
            self.conv2 = _conv(options, width, width, *first)
            self.activation2 = _activation(options, width)
            self.conv3 = _conv(options, width, out_channels, 1, last=True)
        else:
            self.conv1 = _conv(options, in_channels, width, *first)
            self.activation1 = _activation(options, width)
            self.conv2 = _conv(options, width, out_channels, 3, 1, dilation, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.activation1(self.conv1(x))
        if self.conv3 is None:
            out = self.conv2(out, self.res_multiplier)
        else:
            out = self.conv3(self.activation2(self.conv2(out)), self.res_multiplier)
        if self.residual:
            out += x if self.shortcut is None else self.shortcut(x)
        return self.activation(out)

    def fold_for_inference(self) -> None:
        if self.res_multiplier is not None:
            last: Any = self.conv2 if self.conv3 is None else self.conv3
            last.weight *= self.res_multiplier
            if last.bias is not None:
                last.bias *= self.res_multiplier.flatten()
            self.res_multiplier = None


class ISONet(StagedNetwork):
    """ISONet or R-ISONet of one depth (paper; authors' ``ISONet``): an image batch (N, in_channels,
    H, W) to a dictionary of maps.

    Args:
        depth: 18, 34, 50 or 101.
        options: what the paper varies; the default is R-ISONet.
        num_classes: adds the ImageNet classifier, whose logits are called "linear".
        in_channels: of the image.
        arguments: ``out_features``, ``freeze_at``, ``res5_dilation``, ``res4_dilation``,
            ``res5_multi_grid``, ``checkpoint_stages``, ``dropout``: of
            :class:`~isonet_det.modeling.family.StagedNetwork`.

    Raises:
        ISONetError: an invalid depth, feature name, freeze_at, dilation or checkpoint_stages.
    """

    ortho_coeff = 1e-4  # the paper's, for ImageNet

    def __init__(
        self,
        depth: int,
        options: ISONetOptions = ISONetOptions(),
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        **arguments: Any,
    ) -> None:
        if arguments.get("checkpoint_stages") and options.norm in ("BN", "SyncBN"):
            twice = "its running statistics would see a batch twice"
            raise ISONetError(f"checkpoint_stages with norm {options.norm}: {twice}")
        super().__init__(
            depth,
            Stem(in_channels, options),
            partial(Block, depth, options),
            None if num_classes is None else partial(nn.Linear, out_features=num_classes),
            **arguments,
        )
        self.options = options


_NUMBER_OF = {"a": 1, "b": 2, "c": 3}  # of a convolution in its block
_AUTHORS = NameRules(
    "authors",
    r"s\d\.b\d+\.",
    (
        (r"^s(\d)\.b(\d+)\.", lambda m: f"res{int(m[1]) + 1}.{int(m[2]) - 1}."),
        (r"(^|\.)proj\.", r"\1shortcut."),
        (r"\.f\.shared_scalar\.scale$", ".res_multiplier"),
        (r"\.f\.([abc])_relu\.", lambda m: f".activation{_NUMBER_OF[m[1]]}."),
        (r"\.f\.([abc])\.", lambda m: f".conv{_NUMBER_OF[m[1]]}."),
        (r"(^stem|\.\d+)\.relu\.", r"\1.activation."),
        (r"^head\.fc\.", "linear."),
    ),
)


def _read_options(names: Sequence[str]) -> ISONetOptions:
    scalars = any(n.endswith("res_multiplier") for n in names)
    return ISONetOptions(
        residual=scalars or any(".shortcut." in n for n in names),
        activation="srelu" if any(n.endswith("srelu_bias") for n in names) else "relu",
        has_res_multiplier=scalars,
        norm="FrozenBN" if any(".norm." in n for n in names) else "",
    )


def _title(options: ISONetOptions) -> str:
    """Such as "R-ISONet{}" or "ResNet{} with SReLU": the kind, and what sets it apart."""
    resnet = options.residual and not options.has_res_multiplier
    title = "ResNet{}" if resnet else "R-ISONet{}" if options.residual else "ISONet{}"
    srelu, norm = options.activation == "srelu", bool(options.norm)
    for part, has, usual in (("SReLU", srelu, not resnet), ("BatchNorm", norm, resnet)):
        if has != usual:
            title += f" {'with' if has else 'without'} {part}"
    return title


ISONET = Family(
    name="isonet",
    network=ISONet,
    options=ISONetOptions,
    make_block=Block,
    authors=_AUTHORS,
    read_options=_read_options,
    title=_title,
)
