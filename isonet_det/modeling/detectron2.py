"""The networks as Detectron2's backbones and heads: from a config's keys to their arguments."""

from dataclasses import fields
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from ..errors import ISONetError
from . import FAMILIES
from .family import BOTTLENECK_DEPTHS, Family, StagedNetwork, make_stage
from .watch import await_in_training, await_parts

Backbone.register(StagedNetwork)  # for Detectron2's isinstance

_OPTIONS = {f.name: f for family in FAMILIES.values() for f in fields(family.options)}
# Keys that our trainer alone acts on, and the values that ask for nothing.
_TRAINER = {
    "SOLVER.ACCUMULATE_STEPS": 1,
    "SOLVER.EARLY_STOPPING.METRIC": "",
    "SOLVER.CHECKPOINT_KEEP": 3,
    "MODEL.EMA.ENABLED": False,
    "TEST.VAL_LOSS": False,
    "INPUT.AUGMENTATION": ["default"],
}


def require_our_keys(cfg: CfgNode) -> None:
    """Check that a config has this package's keys and not only Detectron2's."""
    if "ISONET" not in cfg.MODEL:
        raise ISONetError("the config has no MODEL.ISONET: call isonet_det.add_isonet_config(cfg)")


def family_and_options(cfg: CfgNode) -> tuple[Family, Any]:
    """What the keys under ``MODEL.ISONET`` say."""
    require_our_keys(cfg)
    keys = cfg.MODEL.ISONET
    if keys.FAMILY not in FAMILIES:
        raise ISONetError(f"MODEL.ISONET.FAMILY is one of {list(FAMILIES)}, not {keys.FAMILY!r}")
    family = FAMILIES[keys.FAMILY]
    known = {f.name for f in fields(family.options)}
    for name, field in _OPTIONS.items():
        if name not in known and keys[name.upper()] != field.default:
            raise ISONetError(f"MODEL.ISONET.{name.upper()} is not for the family {family.name}")
    return family, family.options(**{name: keys[name.upper()] for name in known})


def ortho_coeff(cfg: CfgNode) -> float:
    """Gamma, the config's or else the family's."""
    coeff = cfg.MODEL.ISONET.ORTHO_COEFF
    return coeff if coeff >= 0 else family_and_options(cfg)[0].network.ortho_coeff


def _refuse_unsupported(cfg: CfgNode, norm: str) -> None:
    """Detectron2's ResNet keys that a network of ours cannot honor must not be silently ignored."""
    keys = cfg.MODEL.RESNETS
    expected: dict[str, tuple] = {
        "NUM_GROUPS": (1,),
        "WIDTH_PER_GROUP": (64,),
        "STEM_OUT_CHANNELS": (64,),
        "STEM_TYPE": ("basic",),  # a key of Detectron2's DeepLab
        # Detectron2's default, or what it is.
        "RES2_OUT_CHANNELS": (256,) if keys.DEPTH in BOTTLENECK_DEPTHS else (256, 64),
        "NORM": ("FrozenBN", norm),
        "DEFORM_ON_PER_STAGE": ([False] * 4,),
    }
    for key, values in expected.items():
        if keys.get(key, values[-1]) not in values:
            hint = "; see MODEL.ISONET.NORM" if key == "NORM" else ""
            found = f"is {values[-1]!r}, not {keys[key]!r}{hint}"
            raise ISONetError(f"MODEL.RESNETS.{key} of an ISONet {found}")


def build_network(cfg: CfgNode, **extra: Any) -> StagedNetwork:
    family, options = family_and_options(cfg)
    keys = cfg.MODEL.RESNETS
    _refuse_unsupported(cfg, getattr(options, "norm", ""))
    network = family.network(
        keys.DEPTH,
        options,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        res5_dilation=keys.RES5_DILATION,
        res4_dilation=keys.get("RES4_DILATION", 1),
        res5_multi_grid=keys.get("RES5_MULTI_GRID", ()),
        checkpoint_stages=cfg.MODEL.ISONET.CHECKPOINT_STAGES,
        **extra,
    )
    # For the check of the weights' pixels, where the detector does not tell its own.
    network.pixels = (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    ignored = [key for key, value in _TRAINER.items() if attrgetter(key)(cfg) != value]
    if ignored:
        message = f"{', '.join(ignored)}: isonet_det's own trainer alone acts on these keys"
        await_in_training(network, "trainer", message)
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    await_parts(network, ortho_coeff(cfg), cfg.MODEL.WEIGHTS, frozen and "MODEL.BACKBONE.FREEZE_AT")
    return network


def lazy_isonet(
    *args: Any, family: str = "isonet", ortho_coeff: float = 0.0, weights: str = "", **kwargs: Any
) -> StagedNetwork:
    """A network in a lazy config; it warns where the loss or the weights are left out."""
    network = FAMILIES[family].network(*args, **kwargs)
    await_parts(network, ortho_coeff, weights, kwargs.get("freeze_at", 0) and "freeze_at")
    return network


@BACKBONE_REGISTRY.register()
def build_isonet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> StagedNetwork:
    """ISONet or R-ISONet without FPN, for C4 and (``RES5_DILATION`` 2) dilated C5 detectors.

    Raises:
        ISONetError: an invalid config value.
    """
    return build_network(
        cfg, out_features=cfg.MODEL.RESNETS.OUT_FEATURES, in_channels=input_shape.channels
    )


def build_isonet_fpn(cfg: CfgNode, bottom_up: StagedNetwork, top_block: nn.Module) -> FPN:
    """FPN of a config over a network, with any top block: for builders of other projects."""
    shapes, names = bottom_up.output_shape(), cfg.MODEL.FPN.IN_FEATURES
    if set(names) - set(shapes):
        found = f"expected them among MODEL.RESNETS.OUT_FEATURES, got {list(shapes)}"
        raise ISONetError(f"MODEL.FPN.IN_FEATURES {names}: {found}")
    strides = [shapes[f].stride for f in names]
    if any(b != 2 * a for a, b in pairwise(strides)):
        raise ISONetError(f"FPN: the strides are {strides}; RES5_DILATION must be 1")
    if isinstance(top_block, LastLevelMaxPool):
        # Detectron2's takes p5, which is absent without res5.
        top_block.in_feature = f"p{strides[-1].bit_length() - 1}"
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_isonet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over an ISONet or R-ISONet: p2..p6, or over fewer stages one map more than they have.

    Raises:
        ISONetError: an invalid config value.
    """
    return build_isonet_fpn(cfg, build_isonet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_isonet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """RetinaNet's FPN over an ISONet or R-ISONet: p3..p5, and p6 and p7 from res5.

    Raises:
        ISONetError: an invalid config value.
    """
    bottom_up = build_isonet_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        found = f"expected it in MODEL.RESNETS.OUT_FEATURES, got {list(shapes)}"
        raise ISONetError(f"RetinaNet's FPN makes p6 from res5: {found}")
    top_block = LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return build_isonet_fpn(cfg, bottom_up, top_block)


@ROI_HEADS_REGISTRY.register()
class ISONetRes5ROIHeads(Res5ROIHeads):
    """Detectron2's ``Res5ROIHeads`` whose res5 is an ISONet's last stage: ImageNet weights fill it
    and the orthogonal regularizer covers it."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        family, options = family_and_options(cfg)
        depth = cfg.MODEL.RESNETS.DEPTH
        blocks = make_stage(depth, 3, partial(family.make_block, depth, options))
        return nn.Sequential(*blocks), blocks[-1].out_channels


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, also dilated at depth 18 and 34: Table 6's baseline."""
    dilation = cfg.MODEL.RESNETS.RES5_DILATION
    if cfg.MODEL.RESNETS.DEPTH not in (18, 34) or dilation == 1:
        return build_resnet_backbone(cfg, input_shape)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.RES5_DILATION = 1
    net = build_resnet_backbone(plain, input_shape)
    for block in getattr(net, "res5", ()):
        block.stride = 1
        for conv in block.children():
            conv.stride = (1, 1)
        for conv in (block.conv1, block.conv2):
            conv.dilation = conv.padding = (dilation, dilation)
    net._out_feature_strides["res5"] = 16
    return net
