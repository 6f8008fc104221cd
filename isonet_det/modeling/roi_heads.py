"""The res5 head of C4 detectors, made of an ISONet's blocks."""

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from .backbones import isonet_options
from .isonet import make_stage


@ROI_HEADS_REGISTRY.register()
class ISONetRes5ROIHeads(Res5ROIHeads):
    """Detectron2's ``Res5ROIHeads`` whose res5 is an ISONet's last stage. ImageNet weights fill it
    (it is a part of the backbone that works on regions), and the orthogonal regularizer covers
    it."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        blocks = make_stage(cfg.MODEL.RESNETS.DEPTH, 3, isonet_options(cfg))
        return nn.Sequential(*blocks), blocks[-1].out_channels
