"""Detectron2's backbone builders for ISONet and R-ISONet, read from a config."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..config import require_our_keys
from ..errors import ISONetError
from ..options import BOTTLENECK_DEPTHS, ISONetOptions
from .isonet import ISONet
from .layers import await_loss, await_weights

# What the network calls its arguments, and what a config calls them.
_KEYS = {
    **{f.name: f"MODEL.ISONET.{f.name.upper()}" for f in dataclasses.fields(ISONetOptions)},
    "out_features": "MODEL.RESNETS.OUT_FEATURES",
    "res5_dilation": "MODEL.RESNETS.RES5_DILATION",
    "res4_dilation": "MODEL.RESNETS.RES4_DILATION",
    "res5_multi_grid": "MODEL.RESNETS.RES5_MULTI_GRID",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "checkpoint_stages": "MODEL.ISONET.CHECKPOINT_STAGES",
    "ortho_stride": "MODEL.ISONET.ORTHO_STRIDE",
}


@contextlib.contextmanager
def _errors_name_keys() -> Iterator[None]:
    """Errors about a network's arguments speak of the config's keys."""
    try:
        yield
    except ISONetError as error:
        names = "|".join(_KEYS)
        message = re.sub(rf"\b({names})\b", lambda m: _KEYS[m[1]], str(error))
        raise ISONetError(message) from error


def isonet_options(cfg: CfgNode) -> ISONetOptions:
    """The network options under ``MODEL.ISONET``.

    Raises:
        ISONetError: the keys are missing or impossible.
    """
    require_our_keys(cfg)
    with _errors_name_keys():
        return ISONetOptions(
            **{f.name: cfg.MODEL.ISONET[f.name.upper()] for f in dataclasses.fields(ISONetOptions)}
        )


def _refuse_unsupported(cfg: CfgNode) -> None:
    """Detectron2's ResNet keys that an ISONet cannot honor must not be silently ignored."""
    keys = cfg.MODEL.RESNETS
    expected: dict[str, tuple] = {"NUM_GROUPS": (1,), "WIDTH_PER_GROUP": (64,)}
    expected["STEM_OUT_CHANNELS"] = (64,)
    expected["STEM_TYPE"] = ("basic",)  # a key of Detectron2's DeepLab
    # Detectron2's default, or what it is.
    expected["RES2_OUT_CHANNELS"] = (256,) if keys.DEPTH in BOTTLENECK_DEPTHS else (256, 64)
    expected["NORM"] = ("FrozenBN", cfg.MODEL.ISONET.NORM)
    for key, values in expected.items():
        if keys.get(key, values[-1]) not in values:
            hint = "; an ISONet's norm is MODEL.ISONET.NORM" if key == "NORM" else ""
            raise ISONetError(
                f"MODEL.RESNETS.{key} of an ISONet is {values[-1]!r}, not {keys[key]!r}{hint}"
            )
    if any(keys.DEFORM_ON_PER_STAGE):
        raise ISONetError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: ISONets have no deformable blocks")


def build_isonet(cfg: CfgNode, **extra: Any) -> ISONet:
    """The ISONet or R-ISONet of a config.

    Args:
        cfg: with this package's keys.
        extra: further arguments of :class:`isonet_det.ISONet`.

    Raises:
        ISONetError: an invalid config value.
    """
    options = isonet_options(cfg)
    _refuse_unsupported(cfg)
    with _errors_name_keys():
        network = ISONet(
            cfg.MODEL.RESNETS.DEPTH,
            options,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
            res5_dilation=cfg.MODEL.RESNETS.RES5_DILATION,
            res4_dilation=cfg.MODEL.RESNETS.get("RES4_DILATION", 1),
            res5_multi_grid=cfg.MODEL.RESNETS.get("RES5_MULTI_GRID", ()),
            ortho_stride=cfg.MODEL.ISONET.ORTHO_STRIDE,
            checkpoint_stages=cfg.MODEL.ISONET.CHECKPOINT_STAGES,
            **extra,
        )
    return _awaiting(network, cfg.MODEL.ISONET.ORTHO_COEFF, cfg.MODEL.WEIGHTS)


def _awaiting(network: ISONet, ortho_coeff: float, weights: str) -> ISONet:
    """The network, which warns of what a stock tool would leave out."""
    if ortho_coeff:
        await_loss(network)
    if weights:
        await_weights(network, weights)
    return network


def lazy_isonet(*args: Any, ortho_coeff: float = 0.0, weights: str = "", **kwargs: Any) -> ISONet:
    """An ISONet in a lazy config, which does not get to see the rest of it.

    Args:
        args, kwargs: of :class:`isonet_det.ISONet`.
        ortho_coeff: the config's ``train.ortho_coeff``; if it is not 0, a training without
            ``loss_ortho`` is warned of.
        weights: its ``train.init_checkpoint``; a training without them is warned of.
    """
    return _awaiting(ISONet(*args, **kwargs), ortho_coeff, weights)


@BACKBONE_REGISTRY.register()
def build_isonet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ISONet:
    """ISONet or R-ISONet without FPN, for C4 and (``RES5_DILATION`` 2) dilated C5 detectors.

    Raises:
        ISONetError: an invalid config value.
    """
    return build_isonet(
        cfg, out_features=cfg.MODEL.RESNETS.OUT_FEATURES, in_channels=input_shape.channels
    )


def _build_fpn(cfg: CfgNode, bottom_up: ISONet, top_block: nn.Module) -> FPN:
    missing = set(cfg.MODEL.FPN.IN_FEATURES) - set(bottom_up.output_shape())
    if missing:
        raise ISONetError(
            f"MODEL.FPN.IN_FEATURES {cfg.MODEL.FPN.IN_FEATURES} need {sorted(missing)} among "
            f"MODEL.RESNETS.OUT_FEATURES, found {cfg.MODEL.RESNETS.OUT_FEATURES}"
        )
    strides = [bottom_up.output_shape()[f].stride for f in cfg.MODEL.FPN.IN_FEATURES]
    if any(b != 2 * a for a, b in pairwise(strides)):
        raise ISONetError(
            f"FPN needs maps that halve from one to the next, found strides {strides}; with FPN "
            "MODEL.RESNETS.RES5_DILATION must be 1"
        )
    if isinstance(top_block, LastLevelMaxPool):
        # Detectron2's takes p5, which is absent without res5.
        top_block.in_feature = f"p{strides[-1].bit_length() - 1}"
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
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
    return _build_fpn(cfg, build_isonet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_isonet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """RetinaNet's FPN over an ISONet or R-ISONet: p3..p5, and p6 and p7 from res5.

    Raises:
        ISONetError: an invalid config value.
    """
    bottom_up = build_isonet_backbone(cfg, input_shape)
    if "res5" not in bottom_up.output_shape():
        raise ISONetError(
            "RetinaNet's FPN makes p6 from res5; MODEL.RESNETS.OUT_FEATURES must name it, found "
            f"{cfg.MODEL.RESNETS.OUT_FEATURES}"
        )
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
