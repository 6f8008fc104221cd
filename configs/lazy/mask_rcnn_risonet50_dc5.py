"""The same on a dilated C5."""

from detectron2.layers import ShapeSpec

from .mask_rcnn_risonet50_fpn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone = model.backbone.bottom_up
model.backbone.out_features, model.backbone.res5_dilation = ["res5"], 2
rpn, heads = model.proposal_generator, model.roi_heads
rpn.in_features = heads.box_in_features = heads.mask_in_features = ["res5"]
rpn.head.in_channels, rpn.head.num_anchors = 2048, 15
rpn.anchor_generator.sizes, rpn.anchor_generator.strides = [[32, 64, 128, 256, 512]], [16]
rpn.pre_nms_topk, rpn.post_nms_topk = (12000, 6000), (2000, 1000)
heads.box_pooler.scales = heads.mask_pooler.scales = (1.0 / 16,)
heads.box_head.input_shape = ShapeSpec(channels=2048, height=7, width=7)
heads.mask_head.input_shape = ShapeSpec(channels=2048, height=14, width=14)
train.output_dir = "./output/lazy_mask_rcnn_risonet50_dc5"
