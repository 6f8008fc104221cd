"""Pictures of data and of predictions."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from torch import nn

from ..data.mapper import NamingDatasetMapper
from .curves import pyplot

logger = logging.getLogger(__name__)


TILE = 320  # pixels of a photo's longer side in the picture, at least


def _tile(
    image: np.ndarray,
    classes: Sequence[int],
    colors: Mapping[int, tuple[float, float, float]],
    **parts: Any,
) -> np.ndarray:
    """The photo, enlarged, with objects in their classes' colors and no words over them.

    Args:
        image: (H, W, 3) RGB.
        classes: of the objects.
        colors: of the classes.
        parts: "masks", else "boxes", and "keypoints", as ``Visualizer.overlay_instances`` has them.
    """
    scale = max(1.0, TILE / max(image.shape[:2]))
    visualizer = Visualizer(image, Metadata(), scale=scale)
    if parts.get("masks") is not None:
        parts["boxes"] = None  # the outline says it
    shades = [colors[number] for number in classes]
    return visualizer.overlay_instances(assigned_colors=shades, alpha=0.45, **parts).get_image()


def _annotated(record: dict[str, Any]) -> dict[str, Any]:
    marks = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in marks]
    parts: dict[str, Any] = {"boxes": np.array(boxes, float).reshape(-1, 4), "masks": None}
    if marks and all(a.get("segmentation") for a in marks):
        parts["masks"] = [a["segmentation"] for a in marks]
    return {"classes": [a["category_id"] for a in marks], **parts}


def _predicted(instances: Instances | None, score: float) -> dict[str, Any]:
    if instances is None:  # a semantic model
        return {"classes": [], "boxes": np.zeros((0, 4))}
    instances = instances[instances.scores >= score].to("cpu")
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    keypoints = instances.pred_keypoints if instances.has("pred_keypoints") else None
    return {
        "classes": instances.pred_classes.tolist(),
        "boxes": instances.pred_boxes.tensor.numpy(),
        "masks": masks,
        "keypoints": keypoints,
    }


@torch.no_grad()
def draw_predictions(
    cfg: CfgNode, model: nn.Module, output_dir: str, count: int = 8, score: float = 0.5
) -> str:
    """Write ``predictions.png``: the first photos of the first test set in pairs, the annotated
    objects on the left and the predicted ones on the right, one color a class.

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
    mapper = NamingDatasetMapper(cfg, False)
    names = MetadataCatalog.get(name).get("thing_classes", [])
    training = model.training
    model.eval()
    pairs = []
    records = DatasetCatalog.get(name)[:count]
    for record in records:
        instances = model([mapper(record)])[0].get("instances")
        pairs.append((_annotated(record), _predicted(instances, score)))
    model.train(training)
    classes = sorted({c for pair in pairs for part in pair for c in part["classes"]})
    plt = pyplot()
    palette = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    colors = {number: palette(i % palette.N)[:3] for i, number in enumerate(classes)}
    rows = (len(pairs) + 1) // 2
    figure, axes = plt.subplots(
        rows, 4, figsize=(12, 3.1 * rows + 0.6), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for place, (record, pair) in enumerate(zip(records, pairs, strict=True)):
        image = read_image(record["file_name"], "RGB")
        base = os.path.basename(record["file_name"])
        for side, (title, part) in enumerate(zip((base, "predicted"), pair, strict=True)):
            axis = axes[place // 2][place % 2 * 2 + side]
            axis.imshow(_tile(image, colors=colors, **part))
            axis.set_title(title, fontsize="small")
    patches = [plt.Rectangle((0, 0), 1, 1, color=colors[number]) for number in classes]
    labels = [names[n] if n < len(names) else str(n) for n in classes]
    figure.legend(patches, labels, loc="outside lower center", ncols=8, fontsize="small")
    figure.suptitle(f"Annotated on the left, predicted (score at least {score}) on the right")
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
