"""The network that a weight file or a config describes."""

import re

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from ..config import find_config_file, get_cfg, merge_config_file
from ..errors import IsonetError
from ..modeling.isonet import ISONet, ISONetOptions
from .loader import read_weights, resolve_weights
from .reader import Checkpoint, load_backbone


def bottom_up(backbone: nn.Module) -> nn.Module:
    """The ISONet or ResNet inside an FPN, or the backbone itself."""
    inner = getattr(backbone, "bottom_up", backbone)
    return inner if isinstance(inner, nn.Module) else backbone


def network_of_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, filled from it: Detectron2's for a ResNet (FrozenBN), else an
    ISONet with the checkpoint's parts.

    Raises:
        IsonetError: the checkpoint has neither.
    """
    named = re.fullmatch(r"(R-ISONet|ISONet|ResNet)-(\d+)(.*)", checkpoint.network)
    if named is None:
        raise IsonetError(f"the file holds {checkpoint.network}, no whole ISONet or ResNet")
    kind, depth, parts = named[1], int(named[2]), named[3]
    if kind == "ResNet" and not parts:
        cfg = get_cfg()
        cfg.MODEL.RESNETS.DEPTH = depth
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
        if depth < 50:
            cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        network: nn.Module = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    else:
        # Names say only what sets a network apart from its kind.
        norm = "without BatchNorm" not in parts if kind == "ResNet" else "BatchNorm" in parts
        srelu = "SReLU" in parts if kind == "ResNet" else "without SReLU" not in parts
        options = ISONetOptions(
            residual=kind != "ISONet",
            activation="srelu" if srelu else "relu",
            has_res_multiplier=kind == "R-ISONet",
            norm="FrozenBN" if norm else "",
        )
        network = ISONet(depth, options)
    load_backbone(network, checkpoint)
    return network


def backbone_of_config(name: str) -> nn.Module:
    """The backbone of a yaml config, at initialization, on the CPU.

    Raises:
        IsonetError: the config cannot be read or built.
    """
    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(name))
    cfg.MODEL.DEVICE = "cpu"
    return build_backbone(cfg)


def network_of(source: str) -> nn.Module:
    """The ISONet or ResNet of a weight file, a ``MODEL.WEIGHTS`` address or a config (.yaml, at
    initialization).

    Raises:
        IsonetError: it cannot be had.
    """
    if source.endswith((".yaml", ".yml")):
        return bottom_up(backbone_of_config(source))
    return network_of_checkpoint(read_weights(resolve_weights(source)))
