"""``INPUT.AUGMENTATION``: Detectron2's transforms by name, and presets of them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils, transforms
from detectron2.structures import BitMasks, Instances

from ..errors import ISONetError

LSJ_SIZE = 1024  # pixels, as in ViTDet


def lsj(
    size: int = LSJ_SIZE, min_scale: float = 0.1, max_scale: float = 2.0
) -> list[transforms.Augmentation]:
    """Large-scale jitter (Ghiasi et al., CVPR 2021) as in ViTDet."""
    return [
        transforms.ResizeScale(min_scale, max_scale, size, size),
        transforms.FixedSizeCrop((size, size), pad=False),
        transforms.RandomFlip(),
    ]


def color(strength: float = 0.4) -> list[transforms.Augmentation]:
    """Brightness, contrast and saturation, each times 1 - strength to 1 + strength."""
    limits = 1 - strength, 1 + strength
    return [
        transforms.RandomBrightness(*limits),
        transforms.RandomContrast(*limits),
        transforms.RandomSaturation(*limits),
    ]


def copy_paste(probability: float = 0.5) -> float:
    """How often objects of another photo are pasted (:class:`CopyPaste`)."""
    if not 0 <= probability <= 1:
        raise ValueError("expected a probability from 0 to 1")
    return probability


_BY_NAME: dict[str, Callable[..., Any]] = {
    name: value
    for name, value in vars(transforms).items()
    if inspect.isclass(value) and issubclass(value, transforms.Augmentation)
}
_BY_NAME.update(lsj=lsj, color=color, copy_paste=copy_paste)


def _entries(cfg: CfgNode) -> list[tuple[str, dict[str, Any]]]:
    names = {"default", *_BY_NAME}
    entries = []
    for entry in cfg.INPUT.AUGMENTATION:
        name, arguments = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        if not isinstance(arguments, dict) or (isinstance(entry, dict) and len(entry) != 1):
            expected = "expected a name or {name: {argument: value}}"
            raise ISONetError(f"INPUT.AUGMENTATION: {expected}, got {entry}")
        if name not in names:
            raise ISONetError(f"INPUT.AUGMENTATION: expected one of {sorted(names)}, got {name!r}")
        entries.append((name, arguments))
    return entries


def _call(name: str, arguments: dict[str, Any]) -> Any:
    try:
        return _BY_NAME[name](**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ISONetError(f"INPUT.AUGMENTATION: {name} {arguments}: {error}") from error


def build_augmentations(cfg: CfgNode) -> list[transforms.Augmentation]:
    augmentations: list[transforms.Augmentation] = []
    for name, arguments in _entries(cfg):
        if name == "default":
            augmentations += detection_utils.build_augmentation(cfg, True)
            if cfg.INPUT.CROP.ENABLED:
                crop = transforms.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
                augmentations.insert(0, crop)
        elif name != "copy_paste":
            parts = _call(name, arguments)
            augmentations += parts if isinstance(parts, list) else [parts]
    return augmentations


def cuts(augmentations: Sequence[transforms.Augmentation]) -> bool:
    """Whether objects may be cut, so that their boxes are to be computed anew."""
    kinds = transforms.RandomCrop, transforms.FixedSizeCrop
    return any(isinstance(a, kinds) for a in augmentations)


def copy_paste_probability(cfg: CfgNode) -> float:
    """How often a training photo gets objects of another one; 0 without "copy_paste"."""
    for name, arguments in _entries(cfg):
        if name == "copy_paste":
            if not cfg.MODEL.MASK_ON or "Panoptic" in cfg.MODEL.META_ARCHITECTURE:
                needed = "expected MODEL.MASK_ON True and no panoptic model"
                raise ISONetError(f"INPUT.AUGMENTATION copy_paste: {needed}")
            return _call(name, arguments)
    return 0.0


class CopyPaste:
    """Pastes half of another photo's objects (Ghiasi et al., CVPR 2021), by the image's seed."""

    def __init__(
        self, mapper: Callable[[Any], dict[str, Any]], records: Sequence[Any], probability: float
    ) -> None:
        self.mapper, self.records, self.probability = mapper, records, probability

    def __call__(self, record: Any) -> dict[str, Any]:
        photo = self.mapper(record)
        if np.random.rand() >= self.probability:
            return photo
        other = self.mapper(self.records[np.random.randint(len(self.records))])
        if not (photo["instances"].has("gt_masks") and other["instances"].has("gt_masks")):
            return photo  # one of them is without annotations
        return paste(photo, other, np.random.rand(len(other["instances"])) < 0.5)


def paste(photo: dict[str, Any], other: dict[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    """A photo with objects of another one in front of its own, which lose what is hidden."""
    height, width = photo["image"].shape[1:]
    added = other["instances"][torch.from_numpy(np.asarray(chosen, bool))]
    bitmaps = torch.zeros(len(added), height, width, dtype=torch.bool)
    h, w = (min(a, b) for a, b in zip((height, width), other["image"].shape[1:], strict=True))
    bitmaps[:, :h, :w] = added.gt_masks.tensor[:, :h, :w]
    pasted = bitmaps.any(0)
    image = photo["image"].clone()
    image[:, :h, :w] = torch.where(pasted[:h, :w], other["image"][:, :h, :w], image[:, :h, :w])
    parts = []
    for part, masks in (
        (photo["instances"], photo["instances"].gt_masks.tensor & ~pasted),
        (added, bitmaps),
    ):
        instances = Instances((height, width), **part.get_fields())
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        parts.append(instances[masks.flatten(1).any(1)])
    return {**photo, "image": image, "instances": Instances.cat(parts)}
