"""Pictures of data and of predictions, by Detectron2's Visualizer."""

import logging
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from torch import nn

from ..data.mapper import NamingDatasetMapper
from .curves import new_figure, plain_text

logger = logging.getLogger(__name__)

SIDE = 480  # pixels of a photo's longer side in a picture, at least: its words need room


def draw_beside(record: dict[str, Any], instances: Instances, metadata: Metadata) -> np.ndarray:
    """A photo with what is annotated, and beside it with what is predicted: (H, W, 3) RGB."""
    image, marks = read_image(record["file_name"], "RGB"), record.get("annotations", [])
    if not all("segmentation" in mark for mark in marks):  # Detectron2 asks the first one only
        marks = [{k: v for k, v in mark.items() if k != "segmentation"} for mark in marks]
    annotated, predicted = (
        Visualizer(image, metadata, scale=max(1.0, SIDE / max(image.shape[:2]))) for _ in range(2)
    )
    annotated.draw_dataset_dict({"annotations": marks})
    predicted.draw_instance_predictions(instances)
    return np.concatenate([v.output.get_image() for v in (annotated, predicted)], axis=1)


@plain_text()
@torch.no_grad()
def draw_predictions(
    cfg: CfgNode, model: nn.Module, output_dir: str, count: int = 8, score: float = 0.5
) -> None:
    """Write ``predictions.png``: the first photos of the first test set in pairs, what is annotated
    on the left and what is predicted on the right. Detections below ``score`` are not drawn; the
    model's mode is kept."""
    name, mapper = cfg.DATASETS.TEST[0], NamingDatasetMapper(cfg, False)
    metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)[:count]
    rows = (len(records) + 1) // 2
    figure, axes = new_figure(rows, 2, 12, 3.1 * rows + 0.6)
    none, training = Instances((1, 1), scores=torch.zeros(0)), model.training  # a semantic model
    model.eval()
    for axis, record in zip(axes.flat, records, strict=False):
        found = model([mapper(record)])[0].get("instances", none).to("cpu")
        axis.imshow(draw_beside(record, found[found.scores >= score], metadata))
        axis.set_title(os.path.basename(record["file_name"]), fontsize="small")
    model.train(training)
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"Annotated on the left, predicted (score at least {score}) on the right")
    path = os.path.join(output_dir, "predictions.png")
    figure.savefig(path, dpi=120)
    logger.info("Predictions: %s", path)


@plain_text()
def draw_training_image(cfg: CfgNode, mapped: dict[str, Any]) -> np.ndarray:
    """One element of the training loader as the model gets it, with its annotations: (H, W, 3)
    RGB."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    image = convert_image_to_rgb(mapped["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    fields, names = mapped["instances"].get_fields(), metadata.get("thing_classes")
    return (
        Visualizer(image, metadata)
        .overlay_instances(
            boxes=fields["gt_boxes"],
            masks=fields.get("gt_masks"),
            keypoints=fields.get("gt_keypoints"),
            labels=[names[i] if names else str(i) for i in fields["gt_classes"].tolist()],
        )
        .get_image()
    )
