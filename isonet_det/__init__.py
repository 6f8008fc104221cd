"""ISONet and R-ISONet (Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020)
as Detectron2 backbones. Importing this package registers the backbones and the built-in data
sets ``shapes_train`` and ``shapes_val``."""

import warnings

with warnings.catch_warnings():
    # Detectron2 calls torch.jit when it is imported.
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    import detectron2.modeling  # noqa: F401

from . import model_zoo
from .config import add_isonet_config, get_cfg
from .data import register_shapes
from .errors import ISONetError, IsonetError
from .modeling.backbones import (
    build_isonet_backbone,
    build_isonet_fpn_backbone,
    build_retinanet_isonet_fpn_backbone,
)
from .modeling.classifier import ImageClassifier
from .modeling.isonet import ISONet, fuse_for_inference
from .modeling.layers import SReLU
from .modeling.resnet import build_dilated_resnet_backbone  # noqa: F401  registers it
from .modeling.roi_heads import ISONetRes5ROIHeads
from .options import ISONetOptions
from .regularizer.loss import add_orthogonal_loss, build_model, orthogonality_penalty
from .regularizer.penalty import conv_orthogonality
from .solver.optimizer import build_optimizer, get_optimizer_params
from .weights.handler import register_handler
from .weights.loader import load_backbone, load_weights

__version__ = "0.1.0"

__all__ = [
    "ISONet",
    "ISONetError",
    "ISONetOptions",
    "ISONetRes5ROIHeads",
    "ImageClassifier",
    "IsonetError",
    "SReLU",
    "add_isonet_config",
    "add_orthogonal_loss",
    "build_isonet_backbone",
    "build_isonet_fpn_backbone",
    "build_model",
    "build_optimizer",
    "build_retinanet_isonet_fpn_backbone",
    "conv_orthogonality",
    "fuse_for_inference",
    "get_cfg",
    "get_optimizer_params",
    "load_backbone",
    "load_weights",
    "model_zoo",
    "orthogonality_penalty",
]

register_shapes()
register_handler()
