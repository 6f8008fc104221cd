"""Detectron2's lazy Mask R-CNN with FPN, its backbone swapped for R-ISONet-50."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from isonet_det.evaluation.coco import FastCOCOEvaluator
from isonet_det.modeling.detectron2 import lazy_isonet
from isonet_det.solver.optimizer import family_groups

stock = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader = stock.model, stock.dataloader
dataloader.evaluator = L(FastCOCOEvaluator)(dataset_name="${..test.dataset.names}")
lr_multiplier, optimizer, train = stock.lr_multiplier, stock.optimizer, stock.train

features = ["res2", "res3", "res4", "res5"]
model.backbone.bottom_up = L(lazy_isonet)(
    depth=50,
    out_features=features,
    freeze_at=2,
    # Of a tool that leaves one of them out the backbone warns.
    ortho_coeff="${oc.select:train.ortho_coeff,0}",
    weights="${oc.select:train.init_checkpoint,''}",
)
model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
model.input_format = dataloader.train.mapper.image_format = "RGB"
optimizer.params = L(family_groups)(base_lr="${..lr}", weight_decay_norm=0.0)
train.init_checkpoint = "isonet://R-ISONet-50-dropout"
train.ortho_coeff = 1e-4  # gamma; the paper does not state it for detection
train.output_dir = "./output/lazy_mask_rcnn_risonet50_fpn"
