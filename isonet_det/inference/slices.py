"""Detections on large photos, tile by tile, by the package sahi."""

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..errors import ISONetError
from .predictor import Predictor


class SlicedPredictor(Predictor):
    """A :class:`Predictor` that looks at a photo whole and in overlapping tiles, and merges what
    it finds, masks too, where two detections of a class overlap by half of the smaller one.

    Args:
        predictor: for tiles and whole photos.
        size: pixels of a tile's side.
        overlap: of neighboring tiles, as a share of the side.
        score: detections below it are left out before they are merged.

    Raises:
        ISONetError: sahi is not installed, or a number cannot be.
    """

    def __init__(self, predictor: Predictor, size: int, overlap: float, score: float) -> None:
        try:
            import sahi.models.base
            import sahi.prediction
        except ImportError as error:
            raise ISONetError("tiles need the package sahi: pip install sahi") from error
        if size < 1 or not 0 <= overlap < 1:
            raise ISONetError(
                f"expected tiles of at least 1 pixel and an overlap from 0 to below 1, got {size} "
                f"and {overlap}"
            )
        self.__dict__.update(vars(predictor))
        self.size, self.overlap, self.score = size, overlap, score

        base: Any = sahi.models.base.DetectionModel

        class Tile(base):
            """sahi's view of the predictor."""

            def load_model(self) -> None:
                self.model = predictor

            def perform_inference(self, image: np.ndarray) -> None:
                (instances,) = predictor([np.ascontiguousarray(image)])
                self._original_predictions = instances[instances.scores >= score]

            def _create_object_prediction_list_from_original_predictions(
                self, shift_amount_list=(0, 0), full_shape_list=None
            ) -> None:
                instances = self._original_predictions
                masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
                # One photo at a time, of which sahi makes a list or not.
                shape = np.ravel(full_shape_list or instances.image_size).tolist()
                parts = []
                for i in range(len(instances)):
                    polygons = None if masks is None else _polygons(masks[i])
                    if polygons == []:
                        continue  # smaller than a pixel
                    parts.append(
                        sahi.prediction.ObjectPrediction(
                            bbox=instances.pred_boxes.tensor[i].tolist(),
                            segmentation=polygons,
                            category_id=int(instances.pred_classes[i]),
                            category_name=str(int(instances.pred_classes[i])),
                            score=float(instances.scores[i]),
                            shift_amount=np.ravel(shift_amount_list).tolist(),
                            full_shape=shape,
                        )
                    )
                self._object_prediction_list_per_image = [parts]

        self._tile = Tile(confidence_threshold=score, device="cpu")

    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        return [self._merged(image) for image in images]

    def _merged(self, image: np.ndarray) -> Instances:
        import sahi.predict

        result = sahi.predict.get_sliced_prediction(
            image,
            self._tile,
            slice_height=self.size,
            slice_width=self.size,
            overlap_height_ratio=self.overlap,
            overlap_width_ratio=self.overlap,
            verbose=0,
        )
        objects: list[Any] = sorted(result.object_prediction_list, key=lambda o: -o.score.value)
        instances = Instances(image.shape[:2])
        boxes = np.array([o.bbox.to_xyxy() for o in objects], np.float32).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        instances.scores = torch.tensor([o.score.value for o in objects])
        instances.pred_classes = torch.tensor([o.category.id for o in objects], dtype=torch.int64)
        if all(o.mask is not None for o in objects):
            bitmaps = [o.mask.bool_mask for o in objects]
            shape = (len(objects), *image.shape[:2])
            instances.pred_masks = torch.from_numpy(np.array(bitmaps, bool).reshape(shape))
        return instances


def _polygons(mask: np.ndarray) -> list[list[float]]:
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask

    return get_coco_segmentation_from_bool_mask(mask)
