"""What a family of networks is, and what those of all families share. Torch only."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ISONetError
from .layers import CheckpointedStage, freeze_batchnorm

# Residual blocks of res2 to res5, by depth.
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
STAGE_NAMES = ("res2", "res3", "res4", "res5")
# ImageNet's statistics, RGB on a 0-255 scale: what every weight file of this project saw.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class NameRules(NamedTuple):
    """How somebody's parameter names become ours."""

    source: str  # whose they are
    sign: str  # a pattern that begins one of them, and nobody else's
    rules: Sequence[tuple[str, str | Callable]]  # for re.sub, one after the other


class Place(NamedTuple):
    """Where a block stands: its channels, its stride and dilation (of its first 3x3)."""

    in_channels: int
    width: int
    out_channels: int
    stride: int
    dilation: int
    strided: bool  # it is, or would be without a dilation


@dataclass(frozen=True)
class Family:
    """All that the rest of the package knows of one kind of network."""

    name: str  # MODEL.ISONET.FAMILY
    network: Any  # a StagedNetwork's class, of depth, options and StagedNetwork's arguments
    options: type  # a frozen dataclass; its fields are config keys, with their "meaning"
    make_block: Callable[..., nn.Module]  # of depth, options and a Place
    authors: NameRules  # the names in the authors' files
    # The options of a network whose parameters have these names; None if it is no such network.
    read_options: Callable[[Sequence[str]], Any]
    title: Callable[[Any], str]  # of options: such as "R-ISONet{}", where the depth goes in


def make_stage(
    depth: int,
    index: int,
    make_block: Callable[..., nn.Module],
    dilation: int = 1,
    multi_grid: Sequence[int] = (),
) -> list[Any]:
    """The blocks of res2 (index 0) to res5. With a dilation a stage gives up its stride;
    ``multi_grid`` has a factor of it per block (DeepLab's), or () for 1."""
    if depth not in BLOCKS_PER_STAGE:
        raise ISONetError(f"depth is one of {sorted(BLOCKS_PER_STAGE)}, not {depth!r}")
    count = BLOCKS_PER_STAGE[depth][index]
    multi_grid = () if set(multi_grid) == {1} else multi_grid  # Detectron2's "none", at any depth
    if multi_grid and (len(multi_grid) != count or min(multi_grid) < 1):
        expected = f"expected {count} factors from 1 up, as depth {depth} has blocks of res5"
        raise ISONetError(f"res5_multi_grid {list(multi_grid)}: {expected}")
    width = 64 * 2**index
    channels = 4 * width if depth in BOTTLENECK_DEPTHS else width
    blocks = []
    for i, factor in enumerate(multi_grid or (1,) * count):
        first = i == 0
        before = channels if not first else channels // 2 if index else 64
        stride, strided = 2 if first and index and dilation == 1 else 1, first and index > 0
        place = Place(before, width, channels, stride, dilation * factor, strided)
        blocks.append(make_block(place))
    return blocks


class StagedNetwork(nn.Module):
    """The network of a family, as a backbone or a classifier.

    Args:
        depth: 18, 34, 50 or 101.
        stem, make_block, linear: of stride 4 and 64 channels; :func:`make_stage`'s; the classifier.
        out_features: maps that ``forward`` returns, of "stem", "res2" ... "res5" and "linear";
            None for the last one. Stages past the last one are not built.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, ... 5 everything.
        res5_dilation: 2 keeps res5 at stride 16 with dilated 3x3 convolutions (DC5).
        res4_dilation: 2, with res5_dilation 4, keeps res4 and res5 at stride 8 (DeepLab).
        res5_multi_grid: per block of res5, a factor of its dilation (DeepLab's [1, 2, 4]).
        checkpoint_stages: stages whose maps are computed again in the backward pass.
        dropout: probability of the dropout before the classifier.
    """

    # What Detectron2's Backbone has.
    size_divisibility = 0
    padding_constraints: ClassVar[dict[str, int]] = {}
    ortho_coeff: ClassVar[float] = 0.0  # gamma, where a config leaves it to the family

    def __init__(
        self,
        depth: int,
        stem: nn.Module,
        make_block: Callable[..., nn.Module],
        linear: Callable[[int], nn.Linear] | None,
        *,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
        res5_dilation: int = 1,
        res4_dilation: int = 1,
        res5_multi_grid: Sequence[int] = (),
        checkpoint_stages: Sequence[str] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.awaited: dict[str, tuple[str, int]] = {}  # modeling/watch.py
        self.pixels: tuple | None = None  # format, mean and std of a config
        if (res4_dilation, res5_dilation) not in ((1, 1), (1, 2), (1, 4), (2, 4)):
            expected = "expected res5_dilation 1, 2 or 4 with res4_dilation 1, or 4 with 2"
            raise ISONetError(f"{expected}; got {res5_dilation!r} with {res4_dilation!r}")
        if freeze_at not in range(6):
            raise ISONetError(f"freeze_at is 0 (nothing) to 5 (all stages), not {freeze_at!r}")
        known = ("stem", *STAGE_NAMES) + (() if linear is None else ("linear",))
        features = [known[-1]] if out_features is None else list(out_features)
        if not features or not set(features) <= set(known):
            raise ISONetError(f"out_features are some of {list(known)}, not {features}")
        self.depth, self._out_features = depth, features
        # "stem" or the last stage that is named; all of them below a classifier.
        built = 4 if "linear" in features else max(map(known.index, features))
        self.stage_names = STAGE_NAMES[:built]
        if not set(checkpoint_stages) <= set(self.stage_names):
            expected = f"checkpoint_stages are some of {list(self.stage_names)}"
            raise ISONetError(f"{expected}, not {list(checkpoint_stages)}")
        if "res5" not in self.stage_names and (res5_dilation != 1 or set(res5_multi_grid) - {1}):
            found = f"res5_dilation {res5_dilation} and res5_multi_grid {list(res5_multi_grid)}"
            raise ISONetError(f"{found} without res5: expected it in out_features, got {features}")

        self.stem = stem
        self._shapes = {"stem": SimpleNamespace(channels=64, stride=4)}
        stride, channels = 4, 64
        dilations = {"res4": res4_dilation, "res5": res5_dilation}
        for index, name in enumerate(self.stage_names):
            grid = res5_multi_grid if name == "res5" else ()
            blocks = make_stage(depth, index, make_block, dilations.get(name, 1), grid)
            stage = CheckpointedStage if name in checkpoint_stages else nn.Sequential
            self.add_module(name, stage(*blocks))
            stride, channels = stride * blocks[0].stride, blocks[0].out_channels
            self._shapes[name] = SimpleNamespace(channels=channels, stride=stride)
        if linear is not None:
            self.dropout = nn.Dropout(dropout)
            self.linear = linear(channels)
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

    def output_shape(self) -> dict[str, Any]:
        """``channels`` and ``stride`` of every map that ``forward`` returns, but for the logits."""
        return {name: self._shapes[name] for name in self._out_features if name != "linear"}

    def freeze(self, freeze_at: int = 0) -> "StagedNetwork":
        """Freeze the stem and stages below ``freeze_at`` (see the class), in place."""
        for name in ["stem", *self.stage_names][:freeze_at]:
            getattr(self, name).requires_grad_(False)
            freeze_batchnorm(getattr(self, name))
        return self


@torch.no_grad()
def fuse_for_inference(module: nn.Module) -> nn.Module:
    """A copy of a network or detector whose residual scalars are folded into the convolutions
    before them: the same function to rounding, with fewer operations and no scalars."""
    fused = copy.deepcopy(module).eval()
    for part in fused.modules():
        getattr(part, "fold_for_inference", lambda: None)()
    return fused
