"""ISONet and R-ISONet as a Detectron2 backbone or a classifier. No config in here.

The parameter names are Detectron2's (``res2.0.conv1.weight``); ``checkpoint.py`` translates
the authors' (``s1.b1.f.a.weight``).
"""

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ISONetError
from ..options import BLOCKS_PER_STAGE, BOTTLENECK_DEPTHS, STAGE_NAMES, ISONetOptions
from .layers import CheckpointedStage, IsometricConv2d, SReLU, init_delta, init_kaiming

if TYPE_CHECKING or find_spec("detectron2") is not None:
    from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
    from detectron2.modeling import Backbone
else:
    from .without_detectron2 import (
        Backbone,
        CNNBlockBase,
        Conv2d,
        FrozenBatchNorm2d,
        ShapeSpec,
        get_norm,
    )

# ImageNet's statistics, RGB on a 0-255 scale: what every weight file of this project saw.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def _activation(options: ISONetOptions, channels: int) -> nn.Module:
    if options.activation == "relu":
        return nn.ReLU(inplace=True)
    # In place: every activation here follows a convolution, a norm or a sum.
    return SReLU(channels, options.srelu_bias, options.srelu_learnable, inplace=True)


def _conv(
    options: ISONetOptions,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    gram_stride: int | None = None,
    last: bool = False,
) -> IsometricConv2d:
    norm = get_norm(options.norm, out_channels)
    if norm is not None and last and options.residual and norm.weight.requires_grad:
        nn.init.zeros_(norm.weight)  # the block starts as its shortcut
    conv = IsometricConv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        bias=options.conv_bias,
        gram_stride=gram_stride,
        norm=norm,
    )
    (init_delta if options.init == "delta" else init_kaiming)(conv)
    return conv


class Stem(CNNBlockBase):
    """7x7 convolution of stride 2, activation, 3x3 max-pool of stride 2. Never penalized."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, options=ISONetOptions()):
        super().__init__(in_channels, out_channels, stride=4)
        self.conv = Conv2d(
            in_channels,
            out_channels,
            7,
            stride=2,
            padding=3,
            bias=options.conv_bias,
            norm=get_norm(options.norm, out_channels),
        )
        if options.init == "kaiming":
            init_kaiming(self.conv)
        elif self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.activation = _activation(options, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / 4), ceil(W / 4))."""
        return F.max_pool2d(self.activation(self.conv(x)), kernel_size=3, stride=2, padding=1)


class _Block(CNNBlockBase):
    """What both blocks share: the shortcut, the residual scalar and the last activation.

    Attributes:
        res_multiplier: the residual scalar, (1, 1, 1, 1); None once it is folded into the last
            convolution (:func:`fuse_for_inference`), and where the options have none.
    """

    def __init__(self, in_channels, out_channels, stride, options: ISONetOptions) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.residual = options.residual
        self.shortcut = None
        self.res_multiplier: nn.Parameter | None = None
        if options.residual:
            if in_channels != out_channels or stride != 1:
                self.shortcut = _conv(options, in_channels, out_channels, 1, stride)
            if options.has_res_multiplier:
                self.res_multiplier = nn.Parameter(
                    torch.full((1, 1, 1, 1), float(options.res_multiplier))
                )
        self.activation = _activation(options, out_channels)

    def _join(self, x: Tensor, out: Tensor) -> Tensor:
        """The sum of the last convolution's map and the shortcut's, and the activation."""
        if self.residual:
            out += x if self.shortcut is None else self.shortcut(x)
        return self.activation(out)


class BasicBlock(_Block):
    """Two 3x3 convolutions (depths 18 and 34); the stride sits on the first."""

    def __init__(
        self,
        in_channels,
        out_channels,
        stride=1,
        dilation=1,
        options=ISONetOptions(),
        *,
        gram_stride: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, options)
        self.conv1 = _conv(options, in_channels, out_channels, 3, stride, dilation, gram_stride)
        self.activation1 = _activation(options, out_channels)
        self.conv2 = _conv(options, out_channels, out_channels, 3, 1, dilation, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.activation1(self.conv1(x))
        return self._join(x, self.conv2(out, self.res_multiplier))


class BottleneckBlock(_Block):
    """1x1, 3x3, 1x1 convolutions (depths 50 and 101); the stride sits on the 3x3."""

    def __init__(
        self,
        in_channels,
        out_channels,
        stride=1,
        dilation=1,
        options=ISONetOptions(),
        *,
        bottleneck_channels: int,
        gram_stride: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, options)
        width = bottleneck_channels
        self.conv1 = _conv(options, in_channels, width, 1)
        self.activation1 = _activation(options, width)
        self.conv2 = _conv(options, width, width, 3, stride, dilation, gram_stride)
        self.activation2 = _activation(options, width)
        self.conv3 = _conv(options, width, out_channels, 1, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.activation1(self.conv1(x))
        out = self.activation2(self.conv2(out))
        return self._join(x, self.conv3(out, self.res_multiplier))


def make_stage(
    depth: int,
    index: int,
    options: ISONetOptions = ISONetOptions(),
    dilation: int = 1,
    ortho_stride: str = "layer",
    multi_grid: Sequence[int] = (),
) -> list[CNNBlockBase]:
    """The blocks of one stage.

    Args:
        depth: 18, 34, 50 or 101.
        index: 0 for res2 to 3 for res5.
        options: the network's options.
        dilation: of the stage's 3x3 convolutions; with more than 1, a stage gives up its stride.
        ortho_stride: stride of the Gram of a dilated stage's first 3x3: "layer" for the
            convolution's own, or "undilated" for the one that it has without dilation.
        multi_grid: per block, a factor of its dilation (DeepLab's); () for 1.

    Raises:
        ISONetError: an impossible depth or ortho_stride, or another number of blocks.
    """
    if ortho_stride not in ("layer", "undilated"):
        raise ISONetError(f'ortho_stride is "layer" or "undilated", not {ortho_stride!r}')
    if depth not in BLOCKS_PER_STAGE:
        raise ISONetError(f"depth is one of {sorted(BLOCKS_PER_STAGE)}, not {depth!r}")
    bottleneck = depth in BOTTLENECK_DEPTHS
    width = 64 * 2**index
    out_channels = 4 * width if bottleneck else width
    if index == 0:
        in_channels = 64
    else:
        in_channels = out_channels // 2
    stride = 1 if index == 0 or dilation != 1 else 2
    make: Callable[..., CNNBlockBase] = BasicBlock
    extra = {}
    if bottleneck:
        make, extra = BottleneckBlock, {"bottleneck_channels": width}
    count = BLOCKS_PER_STAGE[depth][index]
    if multi_grid and (len(multi_grid) != count or min(multi_grid) < 1):
        raise ISONetError(
            f"res5_multi_grid {list(multi_grid)}: expected {count} factors from 1 up, one for each "
            f"block of res5 at depth {depth}"
        )
    blocks = []
    gram_stride = 2 if index > 0 and ortho_stride == "undilated" else None
    for grid in multi_grid or (1,) * count:
        blocks.append(
            make(
                in_channels,
                out_channels,
                stride,
                dilation * grid,
                options,
                gram_stride=gram_stride,
                **extra,
            )
        )
        in_channels, stride, gram_stride = out_channels, 1, None
    return blocks


def _check_checkpoint_stages(stages: Sequence[str], built: Sequence[str], norm: str) -> None:
    if not set(stages) <= set(built):
        raise ISONetError(f"checkpoint_stages are some of {list(built)}, not {list(stages)}")
    if stages and norm in ("BN", "SyncBN"):
        raise ISONetError(
            f"checkpoint_stages with norm {norm}: its running statistics would see a batch twice"
        )


class ISONet(Backbone):
    """ISONet or R-ISONet of one depth (paper; authors' ``ISONet``).

    Args:
        depth: 18, 34, 50 or 101.
        options: what the paper varies; the default is R-ISONet.
        out_features: names of the maps that ``forward`` returns, of "stem", "res2" ... "res5"
            and "linear"; None for the last one. Stages past the last one are not built.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, ... 5 everything;
            frozen parameters have no gradient and are in no optimizer.
        res5_dilation: 2 keeps res5 at stride 16 with dilated 3x3 convolutions (DC5).
        res4_dilation: 2, with res5_dilation 4, keeps res4 and res5 at stride 8 (DeepLab).
        res5_multi_grid: per block of res5, a factor of its dilation (DeepLab's [1, 2, 4]).
        ortho_stride: with which stride the orthogonal regularizer sees the first 3x3 of a stage
            that gave up its stride, "layer" (1) or "undilated" (2).
        checkpoint_stages: stages whose maps are computed again in the backward pass.
        num_classes: adds the ImageNet classifier, whose logits are called "linear".
        dropout: probability of the dropout before the classifier.
        in_channels: of the image.

    Raises:
        ISONetError: an invalid depth, feature name, freeze_at, dilation, ortho_stride or
            checkpoint_stages.
    """

    def __init__(
        self,
        depth: int,
        options: ISONetOptions = ISONetOptions(),
        *,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
        res5_dilation: int = 1,
        res4_dilation: int = 1,
        res5_multi_grid: Sequence[int] = (),
        ortho_stride: str = "layer",
        checkpoint_stages: Sequence[str] = (),
        num_classes: int | None = None,
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if (res4_dilation, res5_dilation) not in ((1, 1), (1, 2), (1, 4), (2, 4)):
            raise ISONetError(
                f"expected res5_dilation 1, 2 or 4 with res4_dilation 1, or 4 with 2; got "
                f"{res5_dilation!r} with {res4_dilation!r}"
            )
        if freeze_at not in range(6):
            raise ISONetError(
                f"freeze_at is 0 (nothing) to 5 (the stem and all four stages), not {freeze_at!r}"
            )
        self.depth, self.options, self.num_classes = depth, options, num_classes
        if out_features is None:
            out_features = ["res5" if num_classes is None else "linear"]
        known = ("stem", *STAGE_NAMES) + (() if num_classes is None else ("linear",))
        if not out_features or not set(out_features) <= set(known):
            raise ISONetError(f"out_features are some of {list(known)}, not {list(out_features)}")
        self._out_features = list(out_features)

        self.stem = Stem(in_channels, 64, options)
        self._out_feature_strides = {"stem": 4}
        self._out_feature_channels = {"stem": 64}
        last = len(STAGE_NAMES) - 1
        if "linear" not in out_features:
            last = max((STAGE_NAMES.index(f) for f in out_features if f != "stem"), default=-1)
        self.stage_names = STAGE_NAMES[: last + 1]
        _check_checkpoint_stages(checkpoint_stages, self.stage_names, options.norm)
        stride, channels = 4, 64
        dilations = {"res4": res4_dilation, "res5": res5_dilation}
        for index, name in enumerate(self.stage_names):
            dilation = dilations.get(name, 1)
            grid = res5_multi_grid if name == "res5" else ()
            blocks = make_stage(depth, index, options, dilation, ortho_stride, grid)
            stage = CheckpointedStage if name in checkpoint_stages else nn.Sequential
            self.add_module(name, stage(*blocks))
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels
        if "res5" not in self.stage_names and (res5_dilation != 1 or any(res5_multi_grid)):
            raise ISONetError(
                f"res5_dilation {res5_dilation} and res5_multi_grid {list(res5_multi_grid)} "
                f"without res5: out_features are {list(out_features)}; name res5 among them, or "
                "set res5_dilation 1 and res5_multi_grid []"
            )
        if num_classes is not None:
            self.dropout = nn.Dropout(dropout)
            self.linear = nn.Linear(channels, num_classes)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image batch (N, in_channels, H, W) to the maps named by ``out_features``."""
        outputs = {}
        x = self.stem(x)
        classify = "linear" in self._out_features
        # In the order in which they were added; torch.jit.script unrolls this loop.
        for name, part in self.named_children():
            if name.startswith("res"):
                x = part(x)
            elif classify and name == "dropout":
                x = part(x.mean(dim=(2, 3)))
            elif classify and name == "linear":
                x = part(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every map that ``forward`` returns, the logits excepted."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
            if name != "linear"
        }

    def freeze(self, freeze_at: int = 0) -> "ISONet":
        """Freeze the stem and stages below ``freeze_at`` (see the class), in place."""
        parts = ["stem", *self.stage_names]
        for name in parts[:freeze_at]:
            for parameter in getattr(self, name).parameters():
                parameter.requires_grad = False
            FrozenBatchNorm2d.convert_frozen_batchnorm(getattr(self, name))
        return self


@torch.no_grad()
def fuse_for_inference(module: nn.Module) -> nn.Module:
    """A copy of a network or detector whose residual scalars are folded into the convolutions
    before them: the same function to rounding, with fewer operations and no scalars in its state
    dict.

    Args:
        module: holds any number of ISONets; it is left as it is.
    """
    fused = copy.deepcopy(module).eval()
    for block in fused.modules():
        if isinstance(block, _Block) and block.res_multiplier is not None:
            last = block.conv3 if isinstance(block, BottleneckBlock) else block.conv2
            last.weight *= block.res_multiplier
            if last.bias is not None:
                last.bias *= block.res_multiplier.flatten()
            block.res_multiplier = None
    return fused
