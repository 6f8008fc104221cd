"""A small COCO-format instance-segmentation set that is drawn, not downloaded."""

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from filelock import FileLock
from pycocotools import mask as mask_util

from ..errors import ISONetError
from ..files import cache_dir, write_file
from .register import register_made
from .values import decode_counts

CLASSES = ("circle", "square", "triangle", "star")
SPLITS = {"shapes_train": (500, 1), "shapes_val": (60, 2)}  # images, seed
SIDES = (96, 112, 128)  # pixels
# In the folder's name: a change of the drawing code must not meet an old cache.
VERSION = 1


def _outline(name: str, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Corners of a shape, (K, 2) float pixels."""
    corners = {"circle": 32, "square": 4, "triangle": 3, "star": 10}[name]
    turns = np.arange(corners) / corners
    radii = np.tile([1.0, 0.45], 5) if name == "star" else np.ones(corners)
    theta = 2 * np.pi * turns + angle
    return center + radius * radii[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1)


def _texture(rng: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """A smooth colored background with grain, (H, W, 3) uint8."""
    coarse = rng.randint(60, 196, size=(3, 3, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    grain = rng.randn(height, width, 3).astype(np.float32) * rng.uniform(3, 14)
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def _draw_image(rng: np.random.RandomState, count: int) -> tuple[np.ndarray, list[tuple]]:
    """One image and its (class index, visible mask) pairs, far shapes first."""
    height, width = (int(rng.choice(SIDES)) for _ in range(2))
    image = _texture(rng, height, width)
    drawn: list[tuple[int, np.ndarray]] = []
    for _ in range(count):
        kind = int(rng.randint(len(CLASSES)))
        radius = float(np.exp(rng.uniform(np.log(11), np.log(34))))
        center = rng.uniform([radius * 0.7] * 2, [width - radius * 0.7, height - radius * 0.7])
        corners = _outline(CLASSES[kind], center, radius, rng.uniform(0, 2 * np.pi))
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], (1,))
        # A color away from the background's mean under the shape, so that it can be seen.
        under = image[mask > 0].mean(axis=0)
        color = (under + rng.choice([-1, 1], 3) * rng.uniform(80, 128, 3)) % 256
        grain = rng.randn(height, width, 3) * 6
        image = np.where(mask[..., None] > 0, np.clip(color + grain, 0, 255), image)
        image = image.astype(np.uint8)
        drawn = [(k, m & ~mask & 1) for k, m in drawn] + [(kind, mask)]
    return image, drawn


def _draw_crowd(rng: np.random.RandomState, image: np.ndarray) -> tuple[int, np.ndarray]:
    """A heap of small shapes of one class, drawn into ``image``: (class index, mask)."""
    height, width = image.shape[:2]
    kind = int(rng.randint(len(CLASSES)))
    heap = np.zeros((height, width), np.uint8)
    middle = rng.uniform([24, 24], [width - 24, height - 24])
    for _ in range(12):
        corners = _outline(
            CLASSES[kind], middle + rng.uniform(-18, 18, 2), rng.uniform(4, 7), rng.uniform(0, 6)
        )
        points = [np.round(corners).astype(np.int32)]
        cv2.fillPoly(heap, points, (1,))
        cv2.fillPoly(image, points, rng.randint(0, 256, 3).tolist())
    return kind, heap


def _annotation(kind: int, mask: np.ndarray, crowd: bool) -> dict[str, Any] | None:
    if mask.sum() < 30:  # pixels: what is hidden almost wholly is not annotated
        return None
    if crowd:  # uncompressed RLE, as COCO's own crowd regions are
        rle = mask_util.encode(np.asfortranarray(mask))
        counts = decode_counts(rle["counts"].decode())
        segmentation: Any = {"size": list(mask.shape), "counts": counts}
    else:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        segmentation = [c.reshape(-1).astype(float).tolist() for c in contours if len(c) >= 3]
        if not segmentation:
            return None
        rle = mask_util.merge(mask_util.frPyObjects(segmentation, *mask.shape))
    return {
        "category_id": kind + 1,
        "segmentation": segmentation,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": float(mask_util.area(rle)),
        "iscrowd": int(crowd),
    }


def render_shapes(folder: str | os.PathLike, num_images: int, seed: int) -> None:
    """Draw ``folder/images/*.png`` and ``folder/annotations.json``, unless they are there."""
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes one draws while the others wait.
        with FileLock(f"{folder}.lock"):
            if not (folder / "annotations.json").exists():
                logging.getLogger(__name__).info("Drawing %d images into %s", num_images, folder)
                _render(folder, num_images, np.random.RandomState(seed))
    except OSError as error:
        hint = f"{error.strerror}; name another folder in ISONET_DET_CACHE"
        raise ISONetError(f"the shapes data set cannot be drawn to {folder}: {hint}") from error


def _render(folder: Path, num_images: int, rng: np.random.RandomState) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(num_images):
        empty = i == num_images - 1
        image, drawn = _draw_image(rng, 0 if empty else int(rng.randint(1, 5)))
        marks = [(kind, mask, False) for kind, mask in drawn]
        if i % 20 == 10:
            kind, heap = _draw_crowd(rng, image)
            marks = [(k, m & ~heap & 1, c) for k, m, c in marks] + [(kind, heap, True)]
        name = f"{i:06d}.png"
        if not cv2.imwrite(str(folder / "images" / name), image):
            raise OSError(None, "image not written", name)
        height, width = image.shape[:2]
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        for kind, mask, crowd in marks:
            annotation = _annotation(kind, mask, crowd)
            if annotation is not None:
                annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **annotation})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_file(folder / "annotations.json", json.dumps(content))


def register_shapes() -> None:
    for name, (num_images, seed) in SPLITS.items():
        if name not in DatasetCatalog:
            folder = cache_dir() / f"shapes-v{VERSION}" / name
            files = (str(folder / "annotations.json"), str(folder / "images"))
            make = functools.partial(render_shapes, folder, num_images, seed)
            register_made(name, *files, make)
            MetadataCatalog.get(name).set(thing_classes=list(CLASSES))
