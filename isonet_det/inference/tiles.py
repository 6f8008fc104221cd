"""Detections on large photos, tile by tile, by the package sahi."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..errors import ISONetError
from .predictor import Predictor


def detect_in_tiles(
    predictor: Predictor, image: np.ndarray, size: int, overlap: float, score: float
) -> Instances:
    """What a predictor finds in a photo, whole and in tiles, merged where halves overlap."""
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction
    from sahi.slicing import get_slice_bboxes
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask

    if size < 1 or not 0 <= overlap < 1:
        expected = "expected tiles of at least 1 pixel and an overlap from 0 to below 1"
        raise ISONetError(f"{expected}, got {size} and {overlap}")
    height, width = image.shape[:2]
    tiles = get_slice_bboxes(
        height, width, size, size, overlap_height_ratio=overlap, overlap_width_ratio=overlap
    )
    parts = []
    for left, top, right, bottom in [*tiles, (0, 0, width, height)]:
        (instances,) = predictor([np.ascontiguousarray(image[top:bottom, left:right])])
        instances = instances[instances.scores >= score]
        for i in range(len(instances)):
            polygons = None
            if instances.has("pred_masks"):
                polygons = get_coco_segmentation_from_bool_mask(instances.pred_masks[i].numpy())
            if polygons == []:
                continue  # smaller than a pixel
            number = int(instances.pred_classes[i])
            part = ObjectPrediction(
                bbox=instances.pred_boxes.tensor[i].tolist(),
                segmentation=polygons,
                category_id=number,
                category_name=str(number),
                score=float(instances.scores[i]),
                shift_amount=[left, top],
                full_shape=[height, width],
            )
            parts.append(part.get_shifted_object_prediction())
    merge = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    objects = sorted(merge(parts) if parts else [], key=lambda o: -o.score.value)
    instances = Instances((height, width))
    boxes = np.array([o.bbox.to_xyxy() for o in objects], np.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.tensor([o.score.value for o in objects])
    instances.pred_classes = torch.tensor([o.category.id for o in objects], dtype=torch.int64)
    if all(o.mask is not None for o in objects):
        bitmaps = np.array([o.mask.bool_mask for o in objects], bool)
        instances.pred_masks = torch.from_numpy(bitmaps.reshape(-1, height, width))
    return instances
