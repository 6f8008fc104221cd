"""Which network a state dict is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ISONetError
from ..modeling.isonet import ISONet
from ..options import BLOCKS_PER_STAGE, BOTTLENECK_DEPTHS, STAGE_NAMES, ISONetOptions


@dataclass(frozen=True)
class Network:
    """An ISONet, R-ISONet or ResNet, as its parameters' names tell it.

    Attributes:
        blocks: of every stage; 0 for a stage without parameters.
        bottleneck: blocks of three convolutions rather than two.
        residual: it has skip connections.
        scalars: its residual branches have a scalar each.
        activation: "srelu" or "relu".
        norm: it has a normalization.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    residual: bool
    scalars: bool
    activation: str
    norm: bool

    @property
    def kind(self) -> str:
        """ "R-ISONet", "ISONet" or "ResNet"."""
        if self.scalars:
            return "R-ISONet"
        return "ResNet" if self.residual else "ISONet"

    @property
    def depths(self) -> list[int]:
        """The depths whose stages these can be: several where the stages that differ are absent."""
        return [
            depth
            for depth, full in BLOCKS_PER_STAGE.items()
            if (depth in BOTTLENECK_DEPTHS) == self.bottleneck
            and all(b in (0, f) for b, f in zip(self.blocks, full, strict=True))
        ]

    def __str__(self) -> str:
        """Such as "R-ISONet-50" or "ResNet-34 with SReLU": kind, depth, and what sets it apart."""
        depths = "/".join(map(str, self.depths))
        resnet = self.kind == "ResNet"
        parts = (
            ("SReLU", self.activation == "srelu", not resnet),
            ("BatchNorm", self.norm, resnet),
        )
        unusual = [
            f" {'with' if has else 'without'} {part}" for part, has, usual in parts if has != usual
        ]
        depth = f"-{depths}" if depths else f" with blocks {[*self.blocks]}"
        return f"{self.kind}{depth}{''.join(unusual)}"

    def build(self) -> nn.Module:
        """The network at its initialization, up to the last stage that it has: Detectron2's for a
        ResNet (FrozenBN), else an ISONet.

        Raises:
            ISONetError: its depth is not known, or it has both a norm and scalars.
        """
        if len(self.depths) != 1:
            raise ISONetError(f"the file holds {self}, no whole ISONet or ResNet")
        depth = self.depths[0]
        last = [name for name, count in zip(STAGE_NAMES, self.blocks, strict=True) if count][-1]
        if self.kind == "ResNet" and self.norm and self.activation == "relu":
            from detectron2.config import get_cfg
            from detectron2.layers import ShapeSpec
            from detectron2.modeling.backbone.resnet import build_resnet_backbone

            cfg = get_cfg()
            cfg.MODEL.RESNETS.DEPTH = depth
            cfg.MODEL.RESNETS.OUT_FEATURES = [last]
            cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
            if not self.bottleneck:
                cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
            return build_resnet_backbone(cfg, ShapeSpec(channels=3))
        options = ISONetOptions(
            residual=self.residual,
            activation=self.activation,
            has_res_multiplier=self.scalars,
            norm="FrozenBN" if self.norm else "",
        )
        return ISONet(depth, options, out_features=[last] if last != STAGE_NAMES[-1] else None)


def backbone_prefix(names: Iterable[str]) -> str | None:
    """What stands before "stem." in the backbone's names; None without a backbone."""
    for name in names:
        match = re.match(r"((?:.*\.)?)stem\.conv1?\.weight$", name)
        if match:
            return match[1]
    return None


def network_of_state(state: Mapping[str, Any]) -> Network | None:
    """The backbone whose parameters are in ``state``, under Detectron2's names, if there is one."""
    prefix = backbone_prefix(state)
    if prefix is None:
        return None
    names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    blocks = (
        {m[1] for n in names if (m := re.match(rf"{stage}\.(\d+)\.", n))} for stage in STAGE_NAMES
    )
    scalars = any(n.endswith("res_multiplier") for n in names)
    return Network(
        blocks=tuple(map(len, blocks)),
        bottleneck=any(".conv3." in n for n in names),
        residual=scalars or any(".shortcut." in n for n in names),
        scalars=scalars,
        activation="srelu" if any(n.endswith("srelu_bias") for n in names) else "relu",
        norm=any(".norm." in n for n in names),
    )
