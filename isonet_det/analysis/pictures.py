"""Pictures of data and of predictions, by Detectron2's Visualizer."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

from ..data.mapper import NamingDatasetMapper
from .curves import new_figure, plain_text

logger = logging.getLogger(__name__)

SIDE = 480  # pixels of a photo's longer side in a picture, at least: its words need room


class ClassVisualizer(Visualizer):
    """Detectron2's, with one color a class: the same in every picture."""

    def __init__(self, image: np.ndarray, metadata: Metadata, scale: float = 1.0) -> None:
        colors = {"thing_colors": 20 * colormap(rgb=True, maximum=255).tolist()}
        metadata = Metadata(**{**colors, **metadata.as_dict()})
        super().__init__(image, metadata, scale, ColorMode.SEGMENTATION)

    def _jitter(self, color: Any) -> Any:
        return color

    def overlay_instances(self, **what: Any) -> Any:
        return super().overlay_instances(**{**what, "alpha": 0.5})


def _enlarged(image: np.ndarray, metadata: Metadata) -> ClassVisualizer:
    """On a photo that has room for words."""
    return ClassVisualizer(image, metadata, max(1.0, SIDE / max(image.shape[:2])))


def draw_beside(
    record: dict[str, Any],
    instances: Instances,
    metadata: Metadata,
    missed: Sequence[Sequence[float]] = (),
    wrong: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """A photo as annotated, and beside it as predicted; boxes (XYXY) of errors in red dashes."""
    image, marks = read_image(record["file_name"], "RGB"), record.get("annotations", [])
    if not all("segmentation" in mark for mark in marks):  # Detectron2 asks the first one only
        marks = [{k: v for k, v in mark.items() if k != "segmentation"} for mark in marks]
    annotated, predicted = (_enlarged(image, metadata) for _ in range(2))
    annotated.draw_dataset_dict({"annotations": marks})
    predicted.draw_instance_predictions(instances)
    for picture, boxes in ((annotated, missed), (predicted, wrong)):
        for box in boxes:
            picture.draw_box(box, alpha=1, edge_color="red", line_style="--")
    return np.concatenate([v.output.get_image() for v in (annotated, predicted)], axis=1)


@plain_text()
@torch.no_grad()
def draw_predictions(
    cfg: CfgNode, model: nn.Module, output_dir: str, count: int = 8, score: float = 0.5
) -> None:
    """Write ``predictions.png``: photos of the first test set, annotated beside predicted."""
    name, mapper = cfg.DATASETS.TEST[0], NamingDatasetMapper(cfg, False)
    metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)[:count]
    none, training = Instances((1, 1), scores=torch.zeros(0)), model.training  # a semantic model
    model.eval()
    found = (model([mapper(record)])[0].get("instances", none).to("cpu") for record in records)
    pairs = [
        draw_beside(r, f[f.scores >= score], metadata) for r, f in zip(records, found, strict=True)
    ]
    model.train(training)
    rows, height = (len(records) + 1) // 2, max(p.shape[0] / p.shape[1] for p in pairs)
    figure, axes = new_figure(rows, 2, 16, (8 * height + 0.3) * rows + 0.5)
    for axis, record, pair in zip(axes.flat, records, pairs, strict=False):
        axis.imshow(pair)
        axis.set_title(os.path.basename(record["file_name"]), fontsize="small")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"Annotated on the left, predicted (score at least {score}) on the right")
    path = os.path.join(output_dir, "predictions.png")
    figure.savefig(path, dpi=120)
    logger.info("Predictions: %s", path)


@plain_text()
def draw_training_image(cfg: CfgNode, mapped: dict[str, Any]) -> np.ndarray:
    """What the model gets from the training loader, with its annotations: (H, W, 3) RGB."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    image = convert_image_to_rgb(mapped["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    fields, names = mapped["instances"].get_fields(), metadata.get("thing_classes")
    classes = fields["gt_classes"].tolist()
    visualizer = _enlarged(image, metadata)
    colors = visualizer.metadata.thing_colors
    return visualizer.overlay_instances(
        boxes=fields["gt_boxes"],
        masks=fields.get("gt_masks"),
        keypoints=fields.get("gt_keypoints"),
        labels=[names[i] if names else str(i) for i in classes],
        assigned_colors=[[value / 255 for value in colors[i]] for i in classes],
    ).get_image()
