"""Checks of the configured data sets before a model is built."""

import difflib
import json
import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ISONetError
from .annotations import KINDS, Findings, check_coco_layout, examine_annotations
from .photos import examine_photo, unreadable_photo

# Decoding more photos than this takes longer than finding out in training.
MAX_DECODED = 1000


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check every data set that the config names.

    Args:
        cfg: the full config.
        train: False checks ``DATASETS.TEST`` only.

    Raises:
        ISONetError: not registered; json or image folder missing, broken or not COCO's format;
            an annotation of an unknown category or image; a photo that is missing or (sets of up
            to 1000) does not decode; more classes than the model predicts.
    """
    names = (list(cfg.DATASETS.TRAIN) if train else []) + list(cfg.DATASETS.TEST)
    if train and not cfg.DATASETS.TRAIN:
        raise ISONetError("DATASETS.TRAIN is empty; name a registered data set")
    for name in dict.fromkeys(names):
        check_registered(name)
        metadata = MetadataCatalog.get(name)
        if name.startswith("shapes_"):
            DatasetCatalog.get(name)  # draws it
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if json_file is None or image_root is None:
            continue  # registered by somebody's own function: theirs to check
        content = read_coco_json(name, json_file)
        check_image_root(name, image_root)
        check_coco_content(name, json_file, content)
        _check_photos(image_root, content["images"])
        if train and name in cfg.DATASETS.TRAIN:
            _check_classes(cfg, name, len(content["categories"]))


def check_registered(name: str) -> None:
    """Check that a data set is registered.

    Raises:
        ISONetError: it is not; the message names the nearest.
    """
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), 1, 0.0)
    raise ISONetError(
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
        ISONetError: it is missing or no json.
    """
    if not os.path.isfile(path):
        raise ISONetError(f"data set {name}: no annotation file {path}{_hint()}")
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ISONetError(f"data set {name}: {path} is no json ({error})") from error
    except OSError as error:
        raise ISONetError(f"data set {name}: {path} cannot be read: {error.strerror}") from error


def check_image_root(name: str, path: str) -> None:
    """Check that a data set's image folder is there.

    Raises:
        ISONetError: it is not.
    """
    if not os.path.isdir(path):
        raise ISONetError(f"data set {name}: no image folder {path}{_hint()}")


def check_coco_content(name: str, path: str, content: Any) -> None:
    """Check the parsed content of an instance annotation file.

    Raises:
        ISONetError: it is not COCO's format, or training would fail on an annotation.
    """
    check_coco_layout(name, path, content)
    findings = Findings()
    examine_annotations(content, findings)
    for kind, fatal in KINDS.items():
        if fatal and findings.counts[kind]:
            raise ISONetError(
                f"data set {name}: {path}: {kind}: {findings.examples[kind][0]} "
                f"({findings.counts[kind]} such; tools/check_dataset.py lists more)"
            )


def _check_photos(image_root: str, images: list[dict]) -> None:
    # One listing per folder: a call per photo takes minutes on a network file system.
    listings: dict[str, set[str]] = {}
    for image in images:
        folder, base = os.path.split(os.path.join(image_root, image["file_name"]))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            raise unreadable_photo(os.path.join(folder, base), FileNotFoundError())
    if len(images) > MAX_DECODED:
        return
    for image in images:
        path = os.path.join(image_root, image["file_name"])
        problem = examine_photo(path, image["height"], image["width"])
        if problem is not None:
            raise ISONetError(problem[1])


def _check_classes(cfg: CfgNode, name: str, found: int) -> None:
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    key = "MODEL.RETINANET.NUM_CLASSES" if retinanet else "MODEL.ROI_HEADS.NUM_CLASSES"
    expected = (cfg.MODEL.RETINANET if retinanet else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    if found > expected:
        raise ISONetError(
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
