"""An ImageNet classifier: the network that pre-training trains."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..errors import ISONetError
from .detectron2 import build_network
from .family import PIXEL_MEAN, PIXEL_STD, StagedNetwork


def is_classifier(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == ImageClassifier.__name__


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """An ISONet, R-ISONet or ResNet with its classifier (paper; authors' ``ISONet``).

    Args:
        backbone: with its classifier.
        mixup: alpha of mixup in training (Zhang et al., ICLR 2018); 0 for none.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    input_format = "RGB"

    @configurable
    def __init__(self, *, backbone: StagedNetwork, mixup: float = 0.0) -> None:
        super().__init__()
        self.mixup = mixup
        self.backbone = backbone
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        pixels = (cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
        if pixels != ("RGB", PIXEL_MEAN, PIXEL_STD):
            expected = f"pre-training feeds RGB of mean {PIXEL_MEAN} and std {PIXEL_STD}"
            raise ISONetError(f"INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD: {expected}, not {pixels}")
        if cfg.MODEL.BACKBONE.NAME != "build_isonet_backbone":
            expected = "MODEL.BACKBONE.NAME of any classifier is build_isonet_backbone"
            raise ISONetError(f"{expected}, not {cfg.MODEL.BACKBONE.NAME}")
        classes, dropout = cfg.PRETRAIN.NUM_CLASSES, cfg.PRETRAIN.DROPOUT
        network = build_network(cfg, num_classes=classes, dropout=dropout, out_features=["linear"])
        return {"backbone": network, "mixup": cfg.PRETRAIN.MIXUP}

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor] | Tensor:
        """Logits of "image" (3, H, W), 0 to 255; in training ``loss_cls`` of "label"."""
        images = torch.stack([d["image"] for d in batch]).to(self.device, non_blocking=True)
        images = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        if not self.training:
            return self.backbone(images)["linear"]
        labels = torch.tensor([d["label"] for d in batch]).to(self.device, non_blocking=True)
        if self.mixup:  # both draws come from the seed of the training step
            share = np.random.beta(self.mixup, self.mixup)
            order = torch.randperm(len(images)).to(self.device, non_blocking=True)
            shares = F.one_hot(labels, self.backbone.linear.out_features).to(images.dtype)
            images, labels = (share * b + (1 - share) * b[order] for b in (images, shares))
        return {"loss_cls": F.cross_entropy(self.backbone(images)["linear"], labels)}
