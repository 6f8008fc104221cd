"""ISONet and R-ISONet (Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020) as
Detectron2 backbones, which importing this registers, with ``shapes_train`` and ``shapes_val``."""

import warnings
from importlib.util import find_spec

if find_spec("detectron2") is not None:
    with warnings.catch_warnings():
        # Detectron2 calls torch.jit when it is imported.
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        import detectron2.modeling  # noqa: F401

from .errors import ISONetError
from .modeling.family import fuse_for_inference
from .modeling.fixup import Fixup
from .modeling.isonet import ISONet, ISONetOptions
from .modeling.layers import SReLU
from .regularizer.loss import add_orthogonal_loss, build_model, orthogonality_penalty
from .regularizer.penalty import conv_orthogonality
from .solver.param_groups import split_param_groups
from .weights.loader import load_backbone, load_weights

__version__ = "0.1.0"

__all__ = [
    "Fixup",
    "ISONet",
    "ISONetError",
    "ISONetOptions",
    "SReLU",
    "add_orthogonal_loss",
    "build_model",
    "conv_orthogonality",
    "fuse_for_inference",
    "load_backbone",
    "load_weights",
    "orthogonality_penalty",
    "split_param_groups",
]

if find_spec("detectron2") is not None:
    from . import model_zoo
    from .config import add_isonet_config, get_cfg
    from .data import register_shapes
    from .modeling.classifier import ImageClassifier
    from .modeling.detectron2 import (
        ISONetRes5ROIHeads,
        build_isonet_backbone,
        build_isonet_fpn,
        build_isonet_fpn_backbone,
        build_retinanet_isonet_fpn_backbone,
    )
    from .solver.optimizer import build_optimizer, get_optimizer_params

    __all__ += [
        "ISONetRes5ROIHeads",
        "ImageClassifier",
        "add_isonet_config",
        "build_isonet_backbone",
        "build_isonet_fpn",
        "build_isonet_fpn_backbone",
        "build_optimizer",
        "build_retinanet_isonet_fpn_backbone",
        "get_cfg",
        "get_optimizer_params",
        "model_zoo",
    ]

    register_shapes()
