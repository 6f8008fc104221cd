"""Pictures of a run: its curves and its predictions."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
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
from ..errors import IsonetError

logger = logging.getLogger(__name__)

# Ends of the names under which evaluations are logged.
EVALUATED = ("/AP", "/AP50", "/top1", "/top5")


def pyplot():
    """matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def read_metrics(output_dir: str) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.json``; a half-written last line is left out."""
    rows = []
    path = os.path.join(output_dir, "metrics.json")
    if os.path.isfile(path):
        with open(path) as f:
            for line in f:
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
    return rows


def draw_curves(output_dir: str) -> str | None:
    """Write ``curves.png``: losses, AP or accuracy, and learning rate over a run's iterations.

    Returns:
        the picture's path; None when nothing was logged.
    """
    rows = read_metrics(output_dir)
    if not rows:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    keys = {key for row in rows for key in row}
    panels = [
        ("loss", sorted(k for k in keys if "loss" in k), True),
        ("evaluation", sorted(k for k in keys if k.endswith(EVALUATED)), False),
        ("learning rate", ["lr"] if "lr" in keys else [], False),
    ]
    for axis, (title, names, log) in zip(axes, panels, strict=True):
        marker = "." if title == "evaluation" else ""
        for name in names:
            points = [(r["iteration"], r[name]) for r in rows if name in r]
            axis.plot(*zip(*points, strict=True), label=name, marker=marker)
        axis.set(title=title, xlabel="iteration")
        if log:
            axis.set_yscale("log")
        if names:
            axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    path = os.path.join(output_dir, "curves.png")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    logger.info("Curves: %s", path)
    return path


def draw_comparison(runs: Mapping[str, str], metrics: Sequence[str], title: str, path: str) -> None:
    """Curves of several runs in one picture, a panel a metric.

    Args:
        runs: label to ``OUTPUT_DIR``.
        metrics: names as in ``metrics.json``.
        title: above the panels.
        path: of the picture.

    Raises:
        IsonetError: a folder holds no run, or one that has logged nothing of a metric.
    """
    for folder in runs.values():
        if not os.path.isfile(os.path.join(folder, "metrics.json")):
            raise IsonetError(f"{folder} is no run's OUTPUT_DIR: there is no metrics.json in it")
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(6 * len(metrics), 4.5), squeeze=False, layout="constrained"
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        for label, folder in runs.items():
            points = [(r["iteration"], r[metric]) for r in read_metrics(folder) if metric in r]
            if not points:
                raise IsonetError(f"{folder}/metrics.json has no {metric}")
            axis.plot(*zip(*sorted(points), strict=True), label=label, marker=".")
        axis.set(title=metric, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def try_to_draw(draw: Callable[..., Any], *args: Any) -> None:
    """Call a function that draws; what goes wrong is a warning, as the run itself is done."""
    try:
        draw(*args)
    except Exception as error:  # fonts, disks, photos: nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("A picture could not be drawn: %s", reason)


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
