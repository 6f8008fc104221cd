"""Checks of the configured data sets before a model is built."""

import difflib
import json
import logging
import os
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..errors import IsonetError
from .mapper import unreadable_photo

# Decoding more photos than this takes longer than finding out in training.
MAX_DECODED = 1000


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check every data set that the config names.

    Args:
        cfg: the full config.
        train: False checks ``DATASETS.TEST`` only.

    Raises:
        IsonetError: not registered; json or image folder missing, broken or not COCO's format;
            an annotation of an unknown category or image; a photo that is missing or (sets of up
            to 1000) does not decode; more classes than the model predicts.
    """
    names = (list(cfg.DATASETS.TRAIN) if train else []) + list(cfg.DATASETS.TEST)
    if train and not cfg.DATASETS.TRAIN:
        raise IsonetError("DATASETS.TRAIN is empty; name a registered data set")
    for name in dict.fromkeys(names):
        _check_registered(name)
        metadata = MetadataCatalog.get(name)
        if name.startswith("shapes_"):
            DatasetCatalog.get(name)  # draws it
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if json_file is None or image_root is None:
            continue  # registered by somebody's own function: theirs to check
        content = read_coco_json(name, json_file)
        if not os.path.isdir(image_root):
            raise IsonetError(f"data set {name}: no image folder {image_root}{_hint()}")
        check_coco_content(name, json_file, content)
        _check_photos(image_root, [i["file_name"] for i in content["images"]])
        if train and name in cfg.DATASETS.TRAIN:
            _check_classes(cfg, name, len(content["categories"]))


def _check_registered(name: str) -> None:
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), 1, 0.0)
    raise IsonetError(
        f"data set {name} is not registered; did you mean {near[0]}? A set of your own is named "
        f"by --dataset {name}=annotations.json:image_root"
    )


def _hint() -> str:
    root = os.environ.get("DETECTRON2_DATASETS")
    return "; DETECTRON2_DATASETS, the folder of the built-in data sets, is " + (
        f"set to {root}" if root else "not set, so ./datasets is taken"
    )


def read_coco_json(name: str, path: str) -> Any:
    """The parsed annotation file.

    Raises:
        IsonetError: it is missing or no json.
    """
    if not os.path.isfile(path):
        raise IsonetError(f"data set {name}: no annotation file {path}{_hint()}")
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IsonetError(f"data set {name}: {path} is no json ({error})") from error
    except OSError as error:
        raise IsonetError(f"data set {name}: {path} cannot be read: {error.strerror}") from error


def _require(name: str, path: str, what: str, records: Any, keys: Iterable[str]) -> None:
    for i, record in enumerate(records):
        missing = (
            [key for key in keys if key not in record] if isinstance(record, dict) else list(keys)
        )
        if missing:
            raise IsonetError(
                f"data set {name}: {path} is not COCO's format: {what}[{i}] has no {missing[0]}"
            )


def check_coco_content(name: str, path: str, content: Any) -> None:
    """Check the parsed content of an instance annotation file.

    Raises:
        IsonetError: it is not COCO's format, or an annotation refers to an unknown category or
            image.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise IsonetError(
                f'data set {name}: {path} is not COCO\'s format: no list "{key}" in it'
            )
    _require(name, path, "images", content["images"], ("id", "file_name", "height", "width"))
    _require(name, path, "categories", content["categories"], ("id", "name"))
    _require(
        name,
        path,
        "annotations",
        content["annotations"],
        ("id", "image_id", "category_id", "bbox"),
    )
    if not content["images"] or not content["categories"]:
        raise IsonetError(f"data set {name}: {path} has no images or no categories")
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        for key, known in (("category_id", categories), ("image_id", images)):
            if annotation[key] not in known:
                raise IsonetError(
                    f"data set {name}: {path}: annotation {annotation['id']} has {key} "
                    f"{annotation[key]}, which is not in the file"
                )
        box = annotation["bbox"]
        if not (isinstance(box, list) and len(box) == 4):
            raise IsonetError(
                f"data set {name}: {path}: annotation {annotation['id']} has bbox {box}, not "
                "[x, y, width, height]"
            )


def _check_photos(image_root: str, file_names: list[str]) -> None:
    # One listing per folder: a call per photo takes minutes on a network file system.
    listings: dict[str, set[str]] = {}
    for name in file_names:
        folder, base = os.path.split(os.path.join(image_root, name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            raise unreadable_photo(os.path.join(folder, base), FileNotFoundError())
    if len(file_names) > MAX_DECODED:
        return
    for name in file_names:
        path = os.path.join(image_root, name)
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError) as error:
            raise unreadable_photo(path, error) from error


def _check_classes(cfg: CfgNode, name: str, found: int) -> None:
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    key = "MODEL.RETINANET.NUM_CLASSES" if retinanet else "MODEL.ROI_HEADS.NUM_CLASSES"
    expected = (cfg.MODEL.RETINANET if retinanet else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    if found > expected:
        raise IsonetError(
            f"data set {name} has {found} classes but {key} is {expected}; add {key} {found}"
        )
    if found < expected:
        logging.getLogger(__name__).warning(
            "data set %s has %d classes and %s is %d: the others will never be predicted",
            name,
            found,
            key,
            expected,
        )
