"""The network that a weight file or a config describes."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from .checkpoint import Checkpoint, load_backbone
from .config import find_config_file, get_cfg, merge_config_file
from .errors import IsonetError
from .isonet import ISONet, ISONetOptions
from .weights import read_weights, resolve_weights


def bottom_up(backbone: nn.Module) -> nn.Module:
    """The ISONet or ResNet inside an FPN, or the backbone itself."""
    inner = getattr(backbone, "bottom_up", backbone)
    return inner if isinstance(inner, nn.Module) else backbone


def network_of_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """An ISONet or a ResNet (FrozenBN) filled from a checkpoint.

    Raises:
        IsonetError: the checkpoint has neither.
    """
    kind, _, depth = checkpoint.network.rpartition("-")
    if not depth.isdigit():
        raise IsonetError(f"the file holds {checkpoint.network}, no whole ISONet or ResNet")
    if kind == "ResNet":
        cfg = get_cfg()
        cfg.MODEL.RESNETS.DEPTH = int(depth)
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
        if int(depth) < 50:
            cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        network: nn.Module = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    else:
        network = ISONet(int(depth), ISONetOptions(residual=kind == "R-ISONet"))
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
