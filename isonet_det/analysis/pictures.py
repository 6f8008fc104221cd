"""Pictures of data and of predictions."""

import logging
import os
from collections.abc import Sequence
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
from .curves import new_figure, plain_text, shown

logger = logging.getLogger(__name__)

TILE = 320  # pixels of a photo's longer side in the picture, at least


def _annotated(record: dict[str, Any]) -> dict[str, Any]:
    """Class numbers of the data set, and what ``Visualizer.overlay_instances`` draws."""
    marks = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in marks]
    masks = [a.get("segmentation") for a in marks]
    return {
        "classes": [a["category_id"] for a in marks],
        "boxes": np.array(boxes, float).reshape(-1, 4),
        "masks": masks if masks and all(masks) else None,
    }


def _predicted(instances: Instances | None, score: float) -> dict[str, Any]:
    """Class numbers of the model, and what ``Visualizer.overlay_instances`` draws."""
    if instances is None:  # a semantic model
        return {"classes": [], "boxes": np.zeros((0, 4))}
    instances = instances[instances.scores >= score].to("cpu")
    return {
        "classes": instances.pred_classes.tolist(),
        "boxes": instances.pred_boxes.tensor.numpy(),
        "masks": instances.pred_masks.numpy() if instances.has("pred_masks") else None,
        "keypoints": instances.pred_keypoints if instances.has("pred_keypoints") else None,
    }


def _named(part: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    labels = [names[n] if n < len(names) else str(n) for n in part["classes"]]
    return {**part, "classes": labels}


@plain_text()
@torch.no_grad()
def draw_predictions(
    cfg: CfgNode, model: nn.Module, output_dir: str, count: int = 8, score: float = 0.5
) -> None:
    """Write ``predictions.png``: the first photos of the first test set in pairs, the annotated
    objects on the left and the predicted ones on the right, one color a class. Detections below
    ``score`` are not drawn; the model's mode is kept."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    name = cfg.DATASETS.TEST[0]
    mapper = NamingDatasetMapper(cfg, False)
    names = MetadataCatalog.get(name).get("thing_classes", [])
    training = model.training
    model.eval()
    pairs, records = [], DatasetCatalog.get(name)[:count]
    for record in records:
        instances = model([mapper(record)])[0].get("instances")
        pairs.append(
            (_named(_annotated(record), names), _named(_predicted(instances, score), names))
        )
    model.train(training)
    found = {c for pair in pairs for part in pair for c in part["classes"]}
    classes = sorted(found, key=lambda c: names.index(c) if c in names else len(names))
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    colors = {label: palette(i % palette.N)[:3] for i, label in enumerate(classes)}
    rows = (len(pairs) + 1) // 2
    figure, axes = new_figure(rows, 4, 12, 3.1 * rows + 0.6)
    for axis in axes.flat:
        axis.axis("off")
    for place, (record, pair) in enumerate(zip(records, pairs, strict=True)):
        image = read_image(record["file_name"], "RGB")
        base = os.path.basename(record["file_name"])
        for axis, title, part in zip(
            axes.reshape(-1, 2)[place], (base, "predicted"), pair, strict=True
        ):
            if part.get("masks") is not None:
                part["boxes"] = None  # the outline says it
            shades = [colors[label] for label in part.pop("classes")]
            # Enlarged, with no words over the objects.
            visualizer = Visualizer(image, Metadata(), scale=max(1.0, TILE / max(image.shape[:2])))
            drawn = visualizer.overlay_instances(assigned_colors=shades, alpha=0.45, **part)
            axis.imshow(drawn.get_image())
            axis.set_title(title, fontsize="small")
    patches = [Patch(color=colors[label], label=shown(label)) for label in classes]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize="small")
    figure.suptitle(f"Annotated on the left, predicted (score at least {score}) on the right")
    path = os.path.join(output_dir, "predictions.png")
    figure.savefig(path, dpi=80)
    logger.info("Predictions: %s", path)


@plain_text()
def draw_training_image(cfg: CfgNode, mapped: dict[str, Any]) -> np.ndarray:
    """One element of the training loader as the model gets it, with its annotations: (H, W, 3)
    RGB."""
    image = mapped["image"].permute(1, 2, 0).numpy().astype(np.uint8)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    visualizer = Visualizer(np.ascontiguousarray(image), metadata)
    names = metadata.get("thing_classes")
    fields = mapped["instances"].get_fields()
    labels = [names[i] if names else str(i) for i in fields["gt_classes"].tolist()]
    masks, keypoints = fields.get("gt_masks"), fields.get("gt_keypoints")
    return visualizer.overlay_instances(
        boxes=fields["gt_boxes"],
        masks=getattr(masks, "polygons", getattr(masks, "tensor", None)),
        keypoints=None if keypoints is None else keypoints.tensor,
        labels=labels,
    ).get_image()
