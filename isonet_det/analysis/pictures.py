"""Pictures of data and of predictions."""

import logging
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

from ..data.classes import names_of_model
from ..data.mapper import NamingDatasetMapper
from ..data.sets import records_of
from .curves import pyplot

logger = logging.getLogger(__name__)


@torch.no_grad()
def draw_predictions(
    cfg: CfgNode, model: nn.Module, output_dir: str, count: int = 8, score: float = 0.5
) -> str:
    """Write ``predictions.png``: the first photos of the first test set, the annotated masks on
    the left and the predicted ones on the right.

    Args:
        cfg: the run's config.
        model: the detector; its mode is kept.
        output_dir: where the picture goes.
        count: how many photos.
        score: detections below it are not drawn.

    Returns:
        the picture's path.
    """
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    mapper = NamingDatasetMapper(cfg, False)
    names = names_of_model(getattr(model, "module", model))
    predicted = Metadata(thing_classes=names) if names else metadata
    training = model.training
    model.eval()
    plt = pyplot()
    records = records_of(name)[:count]
    figure, axes = plt.subplots(
        len(records), 2, figsize=(10, 4 * len(records)), squeeze=False, layout="constrained"
    )
    for (left, right), record in zip(axes, records, strict=True):
        image = read_image(record["file_name"], "RGB")
        instances: Instances = model([mapper(record)])[0].get("instances", None)
        truth = Visualizer(image, metadata).draw_dataset_dict(record)
        left.imshow(truth.get_image())
        left.set_title(f"annotated, {os.path.basename(record['file_name'])}")
        drawn = np.asarray(image)
        if instances is not None:
            instances = instances.to("cpu")
            visualizer = Visualizer(image, predicted, instance_mode=ColorMode.IMAGE)
            drawn = visualizer.draw_instance_predictions(
                instances[instances.scores >= score]
            ).get_image()
        right.imshow(drawn)
        right.set_title(f"predicted, score at least {score}")
        left.axis("off")
        right.axis("off")
    model.train(training)
    path = os.path.join(output_dir, "predictions.png")
    figure.savefig(path, dpi=80)
    plt.close(figure)
    logger.info("Predictions: %s", path)
    return path


def draw_training_image(cfg: CfgNode, mapped: dict[str, Any]) -> np.ndarray:
    """One element of the training loader as the model gets it, with its annotations.

    Args:
        cfg: the run's config.
        mapped: "image" (3, H, W) in ``INPUT.FORMAT``, and "instances".

    Returns:
        (H, W, 3) RGB.
    """
    image = mapped["image"].permute(1, 2, 0).numpy().astype(np.uint8)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    visualizer = Visualizer(np.ascontiguousarray(image), metadata)
    instances: Instances = mapped["instances"]
    names = metadata.get("thing_classes")
    fields = instances.get_fields()
    labels = [names[i] if names else str(i) for i in instances.gt_classes.tolist()]
    masks = fields.get("gt_masks")
    keypoints = fields.get("gt_keypoints")
    return visualizer.overlay_instances(
        boxes=instances.gt_boxes,
        masks=getattr(masks, "polygons", getattr(masks, "tensor", None)),
        keypoints=None if keypoints is None else keypoints.tensor,
        labels=labels,
    ).get_image()
