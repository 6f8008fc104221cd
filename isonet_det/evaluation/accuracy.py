"""Top-1 and top-5 on a validation set."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor


class AccuracyEvaluator(DatasetEvaluator):
    """Top-1 and top-5 in percent, and the cross-entropy; counts stay on the device."""

    def reset(self) -> None:
        self._sums: list[Tensor] = []

    def process(self, inputs: list[dict[str, Any]], outputs: Tensor) -> None:
        labels = torch.tensor([d["label"] for d in inputs], device=outputs.device)
        logits = outputs.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        images = torch.full_like(loss, len(inputs))
        self._sums.append(torch.stack([hits[:, 0].sum(), hits.sum(), loss, images]).double())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        mine = torch.stack(self._sums).sum(0).tolist() if self._sums else [0.0] * 4
        parts = comm.gather(mine)
        if not comm.is_main_process():
            return None
        first, five, loss, images = (sum(values) for values in zip(*parts, strict=True))
        return {
            "classification": {
                "top1": 100 * first / images,
                "top5": 100 * five / images,
                "val_loss": loss / images,
            }
        }
