"""Detectron2's data mapper with errors that name the photo."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.transforms import (
    RandomCrop_CategoryAreaConstraint,
    RandomFlip,
    ResizeShortestEdge,
    ResizeTransform,
)

from ..errors import ISONetError
from .augmentation import build_augmentations, cuts
from .photos import unreadable_photo
from .values import as_rle


class ResizeToPixels(ResizeShortestEdge):
    """Detectron2's resizing; a photo too thin for it keeps a row of pixels."""

    def get_transform(self, image):
        transform = super().get_transform(image)
        if isinstance(transform, ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


@contextlib.contextmanager
def _naming_the_photo(record: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except SizeMismatchError as error:
        raise ISONetError(" ".join(str(error).split())) from error
    except (OSError, SyntaxError) as error:
        raise unreadable_photo(record["file_name"], error) from error


def _augment_segmentation(cfg: CfgNode, augmentations: list) -> list:
    """As DeepLab and PointRend: the crop after the resizing, then colors."""
    crop, resize = cfg.INPUT.CROP, [a for a in augmentations if isinstance(a, ResizeShortestEdge)]
    flip = [a for a in augmentations if isinstance(a, RandomFlip)]
    crop_and_colors: list = []
    if crop.ENABLED:
        ignored, most = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, crop.SINGLE_CATEGORY_MAX_AREA
        crop_and_colors.append(
            RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, most, ignored)
        )
    if cfg.INPUT.get("COLOR_AUG_SSD", False):
        from detectron2.projects.point_rend import ColorAugSSDTransform

        crop_and_colors.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return [*resize, *crop_and_colors, *flip]


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper; it names a photo that cannot be read, and crops masks as bitmaps."""

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        parts = super().from_config(cfg, is_train)
        if is_train:
            parts["augmentations"] = build_augmentations(cfg)
            parts["recompute_boxes"] = cfg.MODEL.MASK_ON and cuts(parts["augmentations"])
        parts["augmentations"] = [
            ResizeToPixels(
                a.short_edge_length, a.max_size, "range" if a.is_range else "choice", a.interp
            )
            if type(a) is ResizeShortestEdge
            else a
            for a in parts["augmentations"]
        ]
        semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
        if is_train and semantic and "SINGLE_CATEGORY_MAX_AREA" in cfg.INPUT.CROP:
            parts["augmentations"] = _augment_segmentation(cfg, parts["augmentations"])
        return parts

    def __call__(self, dataset_dict):
        with _naming_the_photo(dataset_dict):
            return super().__call__(dataset_dict)

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        recompute: bool = self.recompute_boxes  # type: ignore[has-type]
        annotations = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        if recompute:
            size = (dataset_dict["height"], dataset_dict["width"])
            for annotation in annotations:
                if isinstance(annotation.get("segmentation"), list):
                    annotation["segmentation"] = as_rle(annotation["segmentation"], *size)
        try:
            # Without an object there is no mask to compute a box from.
            self.recompute_boxes = recompute and bool(annotations)
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        finally:
            self.recompute_boxes = recompute


def training_mapper(cfg: CfgNode) -> Callable[[Any], dict]:
    """What maps the training data of a config; Panoptic-DeepLab has targets of its own."""
    if cfg.MODEL.META_ARCHITECTURE != "PanopticDeepLab":
        return NamingDatasetMapper(cfg, True)
    if list(cfg.INPUT.AUGMENTATION) != ["default"]:
        raise ISONetError("INPUT.AUGMENTATION: Panoptic-DeepLab has its own, expected ['default']")
    from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper

    class NamingPanopticMapper(PanopticDeeplabDatasetMapper):
        def __call__(self, dataset_dict):
            with _naming_the_photo(dataset_dict):
                return super().__call__(dataset_dict)

    return NamingPanopticMapper(cfg)
