"""A detector with its orthogonal loss, from a config."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_detectron2_model
from torch import nn

from .penalty import add_orthogonal_loss


def build_model(cfg: CfgNode, accumulate_steps: int = 1) -> nn.Module:
    """Detectron2's ``build_model``, and ``loss_ortho`` among the losses if the detector has an
    ISONet and ``MODEL.ISONET.ORTHO_COEFF`` is not 0. In a train script of your own::

        class Trainer(DefaultTrainer):
            build_model = staticmethod(isonet_det.build_model)

    Args:
        cfg: with this package's keys (:func:`isonet_det.add_isonet_config`).
        accumulate_steps: micro-batches per optimizer step.
    """
    model = build_detectron2_model(cfg)
    coeff = cfg.MODEL.ISONET.ORTHO_COEFF
    if coeff > 0 and any(hasattr(m, "gram_stride") for m in model.modules()):
        add_orthogonal_loss(model, coeff, accumulate_steps=accumulate_steps)
    return model
