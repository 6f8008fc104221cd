"""Ready configs and pre-trained weights by name, like Detectron2's ``model_zoo``."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from .config import available_device, configs_dir, find_config_file, get_cfg, merge_config_file
from .errors import ISONetError
from .modeling.watch import stop_awaiting
from .regularizer.loss import build_model
from .weights.loader import load_weights
from .weights.zoo import detector_records, get_checkpoint, get_record, records

__all__ = [
    "detector_records",
    "get",
    "get_checkpoint",
    "get_config",
    "get_record",
    "list",
    "records",
]


def list() -> Sequence[str]:
    """Names of the ready configs, as :func:`get_config` takes them."""
    folder = configs_dir()
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.yaml"))
    return [name for name in names if "Base-" not in name]


def get_config(name: str) -> CfgNode:
    """The full config of a ready file such as ``mask_rcnn_risonet50_fpn.yaml``."""
    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(name))
    return cfg


def get(
    name: str,
    trained: bool = False,
    device: str | None = None,
    *,
    pretrained_backbone: bool = False,
) -> nn.Module:
    """The detector of a ready config, in training mode as Detectron2's ``model_zoo.get``, with
    ``loss_ortho`` among its losses (:func:`isonet_det.build_model`).

    Args:
        name: as for :func:`get_config`; with ``trained``, of a detector in the zoo.
        trained: a trained detector, all of it filled; ``tools/publish_detector.py`` adds yours.
        device: where it is built; None for the config's own, or the CPU without a GPU.
        pretrained_backbone: fill the backbone with the ImageNet weights of the config's
            ``MODEL.WEIGHTS``; the heads stay at their initial values.

    Raises:
        ISONetError: no such config, weights that do not fit, or ``trained``.
    """
    if trained:
        detectors = detector_records()
        if name not in detectors:
            known = f"expected one of {[*detectors]}, or pretrained_backbone=True"
            raise ISONetError(f"no trained detector {name!r} is published: {known}")
        cfg = get_cfg()
        merge_config_file(cfg, str(detectors[name].config_file))
        cfg.MODEL.WEIGHTS = f"isonet://{name}"
    else:
        cfg = get_config(name)
    cfg.MODEL.DEVICE = device or available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    model = build_model(cfg)
    if trained or pretrained_backbone:
        load_weights(model, cfg.MODEL.WEIGHTS, whole=trained)
    stop_awaiting(model, "weights")
    return model
