"""The same on a dilated C5."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from isonet_det import ISONet

from .mask_rcnn_risonet50_fpn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone = L(ISONet)(depth=50, out_features=["res5"], freeze_at=2, res5_dilation=2)
rpn, heads = model.proposal_generator, model.roi_heads
rpn.in_features = heads.box_in_features = heads.mask_in_features = ["res5"]
rpn.head.in_channels, rpn.head.num_anchors = 2048, 15
rpn.anchor_generator.sizes, rpn.anchor_generator.strides = [[32, 64, 128, 256, 512]], [16]
rpn.pre_nms_topk, rpn.post_nms_topk = (12000, 6000), (2000, 1000)
heads.box_pooler.scales = heads.mask_pooler.scales = (1.0 / 16,)
heads.box_head.input_shape = ShapeSpec(channels=2048, height=7, width=7)
heads.mask_head.input_shape = ShapeSpec(channels=2048, height=14, width=14)
train.output_dir = "./output/lazy_mask_rcnn_risonet50_dc5"
