"""Detections on photos and videos, as pictures or json."""

import contextlib
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from ..data.classes import named_classes
from ..data.mapper import ResizeToPixels
from ..data.photos import too_deep
from ..data.sets import load
from ..errors import ISONetError
from ..weights.loader import load_weights

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(words: Iterable[str]) -> list[str]:
    """Image files named by paths, folders (their images, sorted) and glob patterns.

    Raises:
        ISONetError: a word names nothing.
    """
    paths: list[str] = []
    for word in words:
        if os.path.isdir(word):
            names = sorted(p for p in Path(word).iterdir() if p.suffix.lower() in SUFFIXES)
            files = [str(p) for p in names]
        elif os.path.isfile(word):
            files = [word]
        else:
            files = sorted(f for f in glob.glob(word, recursive=True) if os.path.isfile(f))
        if not files:
            raise ISONetError(f"{word} names no image: no file, no folder of images, no pattern")
        paths += files
    return paths


def picture_paths(images: Sequence[str], folder: str) -> dict[str, str]:
    """Image by image, where its picture goes: FOLDER/NAME.png.

    Raises:
        ISONetError: two pictures would have one name, or one that of an image.
    """
    real = {os.path.realpath(image) for image in images}
    taken: dict[str, str] = {}
    for image in images:
        target = os.path.join(folder, f"{Path(image).stem}.png")
        if target in taken:
            raise ISONetError(
                f"{taken[target]} and {image} would both be drawn to {target}; draw them in two "
                "runs with an --output each"
            )
        if os.path.realpath(target) in real:
            raise ISONetError(f"{target} is one of the images; name another --output")
        taken[target] = image
    return {image: target for target, image in taken.items()}


class Predictor:
    """A trained detector for batches of RGB images.

    Args:
        cfg: ``MODEL.WEIGHTS`` must hold the whole detector.

    Raises:
        ISONetError: the weights do not fit.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS, whole=True)
        self.resize = ResizeToPixels([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.format = cfg.INPUT.FORMAT
        self.classes = getattr(self.model, "classes", None) or known_classes(cfg)
        names = [c["name"] for c in self.classes or ()]
        self.metadata = Metadata(**({"thing_classes": names} if names else {}))

    @torch.no_grad()
    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        """(H, W, 3) uint8 RGB images to their instances, on the CPU, in the images' pixels."""
        inputs = []
        for image in images:
            resized = self.resize.get_transform(image).apply_image(image)
            if self.format == "BGR":
                resized = resized[:, :, ::-1]
            pixels = np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
            height, width = image.shape[:2]
            inputs.append({"image": torch.from_numpy(pixels), "height": height, "width": width})
        return [output["instances"].to("cpu") for output in self.model(inputs)]

    def draw(self, image: np.ndarray, instances: Instances, score: float) -> np.ndarray:
        """The image with its instances of at least that score drawn in, RGB."""
        confident = instances[instances.scores >= score]
        return Visualizer(image, self.metadata).draw_instance_predictions(confident).get_image()

    def records(self, source: str, instances: Instances, score: float) -> list[dict[str, Any]]:
        """Detections in COCO's result format, with the file's name; the data set's category ids
        and names where known, else the number of the class."""
        confident = instances[instances.scores >= score]
        records = instances_to_coco_json(confident, source)
        for record in records:
            record["file_name"] = record.pop("image_id")
            if self.classes and record["category_id"] < len(self.classes):
                label = self.classes[record["category_id"]]
                record["category_id"], record["category"] = label["id"], label["name"]
        return records


def known_classes(cfg: CfgNode) -> list[dict[str, Any]] | None:
    """The classes of the config's first data set that can say, for weights that do not."""
    for name in [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]:
        with contextlib.suppress(ISONetError):  # its files need not be here
            metadata = MetadataCatalog.get(name)
            if name in DatasetCatalog and metadata.get("thing_classes") is None:
                load(name)
            classes = named_classes(metadata)
            if classes:
                return classes
    return None


def read_rgb(path: str) -> np.ndarray | None:
    """An image file, or None if it cannot be read (those of 16 bits a channel would be white)."""
    try:
        return None if too_deep(path) else read_image(path, "RGB")
    except Exception:  # a broken photo raises nearly anything
        return None


def video_frames(source: str) -> Iterator[np.ndarray]:
    """RGB frames of a video file, or of a webcam named by its number.

    Raises:
        ISONetError: it cannot be opened.
    """
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not video.isOpened():
        what = f"webcam {source}" if source.isdigit() else f"video {source}"
        raise ISONetError(f"{what} cannot be opened")
    try:
        while True:
            success, frame = video.read()
            if not success:
                return
            yield frame[:, :, ::-1].copy()
    finally:
        video.release()


def video_rate(source: str) -> float:
    """Frames per second of a video; 25 where it does not say."""
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return rate if 0 < rate < 1000 else 25.0


def dump_json(records: list[dict[str, Any]]) -> bytes:
    """Records as json, one a line."""
    return ("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n").encode()
