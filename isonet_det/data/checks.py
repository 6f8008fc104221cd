"""Checks of the configured data sets before a model is built."""

import difflib
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ISONetError
from .annotations import Findings
from .classes import map_classes
from .photos import examine_photo, unreadable_photo
from .sets import DataSet, hint, load

logger = logging.getLogger(__name__)

# Decoding more photos than this takes longer than finding out in training: of larger sets, a few.
MAX_DECODED = 1000
SAMPLE = 100


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check every data set that the config names, as the config will use it.

    Args:
        cfg: the full config.
        train: False checks ``DATASETS.TEST`` only.

    Raises:
        ISONetError: not registered; json or image folder missing, broken or not COCO's format;
            an annotation that training fails on; a photo that is missing or (sets of up to 1000)
            cannot be used; more classes than the model predicts, or classes of other names than
            the first training set's; nothing to train on.
    """
    names = (list(cfg.DATASETS.TRAIN) if train else []) + list(cfg.DATASETS.TEST)
    if train and not cfg.DATASETS.TRAIN:
        raise ISONetError("DATASETS.TRAIN is empty; name a registered data set")
    first: DataSet | None = None
    for name in dict.fromkeys(names):
        check_registered(name)
        data = load(name)
        if data is None:
            continue  # registered by somebody's own function: theirs to check
        check_image_root(name, data.image_root)
        _check_photos(data)
        if train and name in cfg.DATASETS.TRAIN:
            _check_for_training(cfg, data)
        if first is None:
            _check_number_of_classes(cfg, data)
            first = data
        elif train:
            map_classes(data, first.class_names, f"data set {first.name}")


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


def check_image_root(name: str, path: str) -> None:
    """Check that a data set's image folder is there.

    Raises:
        ISONetError: it is not.
    """
    if not os.path.isdir(path):
        raise ISONetError(f"data set {name}: no image folder {path}{hint()}")


def examine_names(paths: Sequence[str], image_root: str) -> str:
    """One line about the first photo that is not there; "" if all are."""
    # One listing per folder: a call per photo takes minutes on a network file system.
    listings: dict[str, set[str]] = {}
    for path in paths:
        folder, base = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base in listings[folder]:
            continue
        line = str(unreadable_photo(path, FileNotFoundError()))
        inner = os.path.relpath(path, image_root)
        if "\\" in inner:
            return f"{line}; its name has backslashes, as Windows writes them: write /"
        shorter = inner
        while os.sep in shorter:
            shorter = shorter.split(os.sep, 1)[1]
            if os.path.isfile(os.path.join(image_root, shorter)):
                repeated = inner.removesuffix(shorter)
                return f"{line}; the json's file names repeat the folder {repeated}: take it out"
        return line
    return ""


def _check_photos(data: DataSet) -> None:
    problem = examine_names(data.records.names, data.image_root)
    if problem:
        raise ISONetError(problem)
    count = len(data.records)
    places = range(count) if count <= MAX_DECODED else range(0, count, max(count // SAMPLE, 1))
    findings = Findings()
    for record in map(data.records.__getitem__, places):
        finding = examine_photo(record["file_name"], record["height"], record["width"])
        if count > MAX_DECODED and finding and finding[0] == "photo does not decode":
            continue  # DATALOADER.UNREADABLE_LIMIT says what becomes of a few
        if finding is not None:
            findings.add(*finding)
    settle_orientations(findings)
    problem = findings.first_fatal()
    if problem:
        raise ISONetError(f"data set {data.name}: {problem}")


def _check_for_training(cfg: CfgNode, data: DataSet) -> None:
    """Check that a set has what the config trains on."""
    where = f"data set {data.name}: {data.json_file}"
    counts, examples = data.findings.counts, data.findings.examples
    bare = "instance without a mask"
    if cfg.MODEL.MASK_ON and counts[bare]:
        raise ISONetError(
            f"{where}: {bare}: {examples[bare][0]} ({counts[bare]} such), and MODEL.MASK_ON is "
            "True; take them out of the json, or train boxes only with MODEL.MASK_ON False"
        )
    if cfg.MODEL.KEYPOINT_ON:
        _check_keypoints(cfg, data)
    if not data.annotated:
        raise ISONetError(f'{where} has no list "annotations" or an empty one: nothing to train on')
    if data.records.usable == 0:
        crowds = sum(a["iscrowd"] for r in data.records for a in r["annotations"])
        raise ISONetError(
            f"{where} leaves nothing to train on: of its {sum_annotations(data)} annotations on "
            f"{len(data.records)} images {crowds} have iscrowd 1 (or ignore), "
            f"{counts['box without area']} have a box without area, "
            f"{counts['polygon with fewer than three points']} a polygon of fewer than three points"
        )


def sum_annotations(data: DataSet) -> int:
    """How many annotations a set has."""
    return sum(len(r["annotations"]) + len(r.get("left_out", ())) for r in data.records)


def _check_keypoints(cfg: CfgNode, data: DataSet) -> None:
    metadata = MetadataCatalog.get(data.name)
    names, expected = metadata.get("keypoint_names"), cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if names is None or metadata.get("keypoint_flip_map") is None:
        raise ISONetError(
            f"data set {data.name} has no keypoint_names and keypoint_flip_map in Detectron2's "
            "metadata, which MODEL.KEYPOINT_ON needs; set them where you register it in Python"
        )
    for record in data.records:
        for annotation in record["annotations"]:
            count = len(annotation.get("keypoints", ())) // 3
            if not annotation["iscrowd"] and count != expected:
                raise ISONetError(
                    f"data set {data.name}: an object of {record['file_name']} has {count} "
                    f"keypoints and MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {expected}"
                )


def _check_number_of_classes(cfg: CfgNode, data: DataSet) -> None:
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    key = "MODEL.RETINANET.NUM_CLASSES" if retinanet else "MODEL.ROI_HEADS.NUM_CLASSES"
    expected = (cfg.MODEL.RETINANET if retinanet else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    count = len(data.classes)
    if count > expected:
        raise ISONetError(
            f"data set {data.name} has {count} classes but {key} is {expected}; add {key} {count}"
        )
    if count < expected:
        logger.warning(
            "data set %s has %d classes and %s is %d: the others will never be predicted",
            data.name,
            count,
            key,
            expected,
        )


def settle_orientations(findings: Findings) -> None:
    """Photos that EXIF turns by half or mirrors keep their size, so that it does not tell whether
    they were annotated as displayed; others of the set that did tell speak for them."""
    displayed, unknown = (
        "photo that EXIF turns, annotated as displayed",
        "photo that EXIF turns, annotated nobody knows how",
    )
    if findings.counts[displayed] and findings.counts[unknown]:
        findings.add(displayed, findings.examples[unknown][0], findings.counts[unknown])
        del findings.counts[unknown], findings.examples[unknown]
