"""Detections on photos and videos, as pictures or data."""

import contextlib
import csv
import functools
import glob
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image, ImageOps

from ..analysis.curves import plain_text
from ..analysis.pictures import ClassVisualizer
from ..config import (
    available_device,
    get_cfg,
    has_unknown_classes,
    merge_config_file,
    set_number_of_classes,
)
from ..data.mapper import ResizeToPixels
from ..data.photos import UnreadablePhotoError, too_deep, unreadable_photo
from ..data.register import class_records, open_set
from ..errors import ISONetError
from ..weights.loader import load_weights, resolve_weights
from ..weights.names import read_weights

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif"}
COLUMNS = ["file_name", "image_id", "category_id", "category", "score", "x", "y", "w", "h"]


def find_images(words: Iterable[str]) -> list[str]:
    """Image files named by paths, folders (their images, sorted) and glob patterns."""
    paths: list[str] = []
    for word in words:
        if os.path.isdir(word):
            paths_inside = sorted(p for p in Path(word).iterdir() if p.suffix.lower() in SUFFIXES)
            # A Mac's ._ files are no photos.
            files = [str(p) for p in paths_inside if p.is_file() and not p.name.startswith("._")]
        elif os.path.isfile(word):
            files = [word]
        else:
            files = sorted(f for f in glob.glob(word, recursive=True) if os.path.isfile(f))
        if not files:
            raise ISONetError(f"{word} names no image: no file, no folder of images, no pattern")
        paths += files
    heic = [path for path in paths if path.lower().endswith((".heic", ".heif"))]
    if heic == paths:
        raise ISONetError(f"{heic[0]}: HEIC is not read; convert it to JPEG")
    return paths


def picture_paths(images: Sequence[str], folder: str) -> dict[str, str]:
    """Image by image, where its picture goes: FOLDER/NAME.png, which is nobody else's."""
    real = {os.path.realpath(image) for image in images}
    stems = Counter(Path(image).stem for image in images)
    taken: dict[str, str] = {}
    for image in images:
        path = Path(image)
        name = path.stem if stems[path.stem] == 1 else path.name  # a.jpg beside a.png
        target = os.path.join(folder, f"{name}.png")
        if target in taken:
            both = f"{taken[target]} and {image}"
            raise ISONetError(f"{both} would both be drawn to {target}; draw them in two runs")
        if os.path.realpath(target) in real:
            raise ISONetError(f"{target} is one of the images; name another --output")
        taken[target] = image
    return {image: target for target, image in taken.items()}


def read_rgb(path: str) -> np.ndarray:
    """An image file; an :class:`UnreadablePhotoError` where it is none."""
    try:
        mode, pixels = too_deep(path), read_image(path, "RGB")
    except Exception as error:  # a broken photo raises nearly anything
        raise unreadable_photo(path, error) from error
    if mode:
        raise UnreadablePhotoError(f"photo {path} is {mode}, not of 8 bits; it would be white")
    return pixels


def as_rgb(image: Any) -> np.ndarray:
    """An array (also grey or RGBA), a PIL image or a path as (H, W, 3) uint8 RGB."""
    if isinstance(image, (str, os.PathLike)):
        return read_rgb(os.fspath(image))
    if isinstance(image, Image.Image) and image.mode[0] not in "IF":
        image = ImageOps.exif_transpose(image).convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        expected = "expected an image as an array (H, W, 3) of uint8, of PIL with 8 bits, or a path"
        found = f"{type(image).__name__} of {pixels.dtype}, shape {pixels.shape}"
        raise ISONetError(f"{expected}, got {found}")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]


class Predictor:
    """A trained detector for batches of images.

    Args:
        cfg: ``MODEL.WEIGHTS`` must hold the whole detector.
        keep_classes: the number of classes is the config's; else the checkpoint's, if it names any.

    Raises:
        ISONetError: the weights do not fit.
    """

    def __init__(self, cfg: CfgNode, keep_classes: bool = False) -> None:
        address = cfg.MODEL.WEIGHTS
        checkpoint = read_weights(resolve_weights(address)) if address else None
        if checkpoint and not keep_classes and (checkpoint.classes or has_unknown_classes(cfg)):
            cfg = set_number_of_classes(cfg, len(checkpoint.classes or ()))
        self.model = build_model(cfg).eval()
        load_weights(self.model, address, whole=True, checkpoint=checkpoint)
        self.edges = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self.format = cfg.INPUT.FORMAT
        self.classes = getattr(self.model, "classes", None) or known_classes(cfg)
        self.test_sets = cfg.DATASETS.TEST
        names = [c["name"] for c in self.classes or ()]
        self.metadata = Metadata(**({"thing_classes": names} if names else {}))

    @classmethod
    def from_run(
        cls, folder: str, weights: str = "model_final.pth", device: str = ""
    ) -> "Predictor":
        """The detector of a run.

        Args:
            folder: its OUTPUT_DIR.
            weights: file in it, or a path or address of its own.
            device: "" for the config's, or the CPU without a GPU.

        Raises:
            ISONetError: there is no run in the folder, or its weights do not fit.
        """
        cfg = get_cfg()
        merge_config_file(cfg, os.path.join(folder, "config.yaml"))
        cfg.MODEL.WEIGHTS = weights_of_run(folder, weights)
        cfg.MODEL.DEVICE = device or available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
        return cls(cfg)

    def pixels(self, image: np.ndarray, scale: float = 1.0) -> torch.Tensor:
        """RGB (H, W, 3) as the detector takes it, with edges ``scale`` times the config's."""
        shortest, longest = (round(scale * edge) for edge in self.edges)
        resize = ResizeToPixels([shortest] * 2, longest)
        resized = resize.get_transform(image).apply_image(image)
        if self.format == "BGR":
            resized = resized[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))

    @torch.no_grad()
    def __call__(self, images: Any) -> list[Instances]:
        """A list of images (:func:`as_rgb`) to their instances, on the CPU, in their pixels."""
        if not isinstance(images, (list, tuple)):
            raise ISONetError(f"expected a list of images, got one {type(images).__name__}")
        inputs = []
        for image in map(as_rgb, images):
            height, width = image.shape[:2]
            inputs.append({"image": self.pixels(image), "height": height, "width": width})
        return [output["instances"].to("cpu") for output in self.model(inputs)]

    def detect(self, paths: Iterable[str], score: float = 0.5) -> list[dict[str, Any]]:
        """Detections on image files, as :meth:`records`.

        Args:
            paths: image files, folders, patterns.
            score: detections below it are left out.

        Raises:
            ISONetError: an image cannot be read.
        """
        found = ((path, self([path])[0]) for path in find_images(paths))
        return [r for path, instances in found for r in self.records(path, instances, score)]

    @plain_text()
    def draw(self, image: np.ndarray, instances: Instances, score: float) -> np.ndarray:
        """The image with its instances of at least that score drawn in, RGB."""
        confident = instances[instances.scores >= score]
        visualizer = ClassVisualizer(image, self.metadata)
        return visualizer.draw_instance_predictions(confident).get_image()

    def records(self, source: str, instances: Instances, score: float) -> list[dict[str, Any]]:
        """Detections in COCO's result format, with file and class names and, if known, ids."""
        records = instances_to_coco_json(instances[instances.scores >= score], source)
        for record in records:
            record["file_name"] = source
            record["image_id"] = self.image_ids.get(os.path.realpath(source), source)
            if self.classes and record["category_id"] < len(self.classes):
                label = self.classes[record["category_id"]]
                record["category_id"], record["category"] = label["id"], label["name"]
        return records

    @functools.cached_property
    def image_ids(self) -> dict[str, Any]:
        """By path, the image ids of the test sets' photos, as their json has them."""
        ids: dict[str, Any] = {}
        for name in self.test_sets:
            with contextlib.suppress(ISONetError):  # its files need not be here
                data = open_set(name) if name in DatasetCatalog else None
                if data is not None:
                    for file, _, _, identity in data.photos:
                        ids[os.path.realpath(os.path.join(data.image_root, file))] = identity
        return ids


def known_classes(cfg: CfgNode) -> list[dict[str, Any]] | None:
    """The classes of the config's first data set that can say, for weights that do not."""
    for name in [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]:
        with contextlib.suppress(ISONetError):  # its files need not be here
            if class_records(name) is None and name in DatasetCatalog:
                open_set(name)
            if class_records(name) is not None:
                return class_records(name)
    return None


def weights_of_run(folder: str, weights: str = "") -> str:
    """A file in a run's folder, the final weights if none is named; or a path of its own."""
    inside = os.path.join(folder, weights or "model_final.pth")
    return inside if not weights or os.path.isfile(inside) else weights


def open_video(source: str) -> tuple[float, Iterator[np.ndarray]]:
    """Frames per second and RGB frames of a video file, or of a webcam named by its number."""
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not video.isOpened():
        what = "webcam" if source.isdigit() else "video"
        raise ISONetError(f"{what} {source} cannot be opened")
    rate = video.get(cv2.CAP_PROP_FPS)

    def frames() -> Iterator[np.ndarray]:
        while (read := video.read())[0]:
            yield read[1][:, :, ::-1].copy()

    return (rate if 0 < rate < 1000 else 25.0), frames()


def dump_csv(records: Sequence[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for record in records:
        writer.writerow({**record, **dict(zip("xywh", record["bbox"], strict=True))})
    return out.getvalue().encode(errors="surrogateescape")


def dump_json(records: Sequence[dict[str, Any]]) -> bytes:
    return ("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n").encode()
