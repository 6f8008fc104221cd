"""The data sets of a config: opened, and checked as the config will use them."""

import difflib
import logging
import os
from collections.abc import Sequence
from operator import attrgetter

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import has_unknown_classes, set_number_of_classes
from ..errors import ISONetError
from .augmentation import build_augmentations, copy_paste_probability, cuts
from .findings import Findings
from .photos import examine_photo, unreadable_photo
from .register import CocoSet, hint, open_set

logger = logging.getLogger(__name__)

# Decoding more photos than this takes longer than finding out in training: of larger sets, a few.
MAX_DECODED = 1000
SAMPLE = 100
# Of regular.py's findings.
ENCODED = "instance with a run-length encoded mask"
SHORT = "polygon with fewer than three points left out"


def check_datasets(
    cfg: CfgNode, train: bool = True, classes: Sequence[str] | None = None, *, objects: bool = True
) -> CfgNode:
    """Open and check the data sets of a config, in the order of ``classes``; completes it."""
    training = list(cfg.DATASETS.TRAIN) if train else []
    if train and not training:
        raise ISONetError("DATASETS.TRAIN is empty; name a registered data set")
    reference = "the checkpoint"
    sets: dict[str, CocoSet] = {}
    for name in dict.fromkeys([*training, *cfg.DATASETS.TEST]):
        check_registered(name)
        data = open_set(name, classes, reference)
        if data is None:
            names = MetadataCatalog.get(name).get("thing_classes")
            if names and classes and list(names) != list(classes):
                found = f"data set {name} has the classes {list(names)}"
                raise ISONetError(f"{found}, {reference} has {list(classes)}; expected the same")
            continue  # registered by somebody's own function: theirs to check
        check_photos(data)
        if name in training:
            _check_for_training(cfg, data, objects)
        if not sets:
            _check_number_of_classes(cfg, data)
        sets[name] = data
        if train and classes is None:
            classes, reference = data.class_names, f"data set {name}"
    completed = cfg.clone()
    completed.defrost()
    if train:
        if has_unknown_classes(cfg):
            completed = set_number_of_classes(cfg, len(classes or ()), known=False)
        used = [sets[name] for name in training if name in sets]
        completed.INPUT.MASK_FORMAT = _mask_format(cfg, used)
    completed.freeze()
    return completed


def _mask_format(cfg: CfgNode, sets: Sequence[CocoSet]) -> str:
    """Bitmaps where masks are run-length encoded, or are cropped."""
    augmentations = build_augmentations(cfg)  # which says what it does not know
    pasting = copy_paste_probability(cfg)
    if not cfg.MODEL.MASK_ON or cfg.INPUT.MASK_FORMAT != "polygon":
        return cfg.INPUT.MASK_FORMAT
    reasons = {data.name: data.findings.counts[ENCODED] for data in sets}
    reasons.update({"crops": int(cuts(augmentations)), "copy_paste": int(pasting > 0)})
    if not any(reasons.values()):
        return "polygon"
    logger.info("INPUT.MASK_FORMAT is bitmask: encoded or cut masks: %s", reasons)
    return "bitmask"


def check_registered(name: str) -> None:
    """Check that a data set is registered; an error names the nearest."""
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), 1, 0.0)
    own = f"or, of your own, --dataset {name}=annotations.json:image_root"
    raise ISONetError(f"data set {name} is not registered; did you mean {near[0]}? {own}")


def _check_names(paths: Sequence[str], image_root: str) -> None:
    # One listing per folder: a call per photo takes minutes on a network file system.
    listings: dict[str, set[str]] = {}
    for path in paths:
        folder, base = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            raise unreadable_photo(path, FileNotFoundError(), image_root)


def check_photos(data: CocoSet) -> None:
    """Check that all photos are there, and that they (of large sets a few) can be used."""
    if not os.path.isdir(data.image_root):
        raise ISONetError(f"data set {data.name}: no image folder {data.image_root}{hint()}")
    paths = [os.path.join(data.image_root, name) for name, *_ in data.photos]
    _check_names(paths, data.image_root)
    large, findings = len(paths) > MAX_DECODED, Findings()
    for place in range(0, len(paths), max(len(paths) // SAMPLE, 1) if large else 1):
        found = examine_photo(paths[place], *data.photos[place][1:3])
        # DATALOADER.UNREADABLE_LIMIT says what becomes of a few of many that do not decode.
        if found and not (large and found[1] == "photo does not decode"):
            findings.add(*found)
    findings.settle_orientations()
    if findings.fatal:
        raise ISONetError(f"data set {data.name}: {findings.fatal}")


def _check_for_training(cfg: CfgNode, data: CocoSet, must_have_objects: bool) -> None:
    where = f"data set {data.name}: {data.source_file}"
    counts, objects = data.findings.counts, data.findings.objects
    bare = "instance without a mask"
    if cfg.MODEL.MASK_ON and counts[bare]:
        example = f"{data.findings.examples[bare][0]} ({counts[bare]} such)"
        raise ISONetError(f"{where}: {bare}: {example}; take it out, or set MODEL.MASK_ON False")
    if cfg.MODEL.KEYPOINT_ON:
        _check_keypoints(cfg, data)
    if must_have_objects and not objects["usable"]:
        crowds, flat, short = objects["crowd"], counts["box without area"], counts[SHORT]
        found = f"{crowds} have iscrowd 1 (or ignore), {flat} a box without area, {short}"
        left = f"leaves nothing to train on: of its {objects['all']} annotations {found}"
        raise ISONetError(f"{where} {left} fewer than three points")


def _check_keypoints(cfg: CfgNode, data: CocoSet) -> None:
    metadata = MetadataCatalog.get(data.name)
    expected = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if metadata.get("keypoint_names") is None or metadata.get("keypoint_flip_map") is None:
        needed = "MODEL.KEYPOINT_ON needs keypoint_names and keypoint_flip_map in its metadata"
        raise ISONetError(f"data set {data.name}: {needed}; register it in Python and set them")
    for kind, count in data.findings.objects.items():
        if kind.startswith("keypoints ") and kind != f"keypoints {expected}":
            text = f"data set {data.name}: {count} objects have {kind.split()[1]} keypoints"
            raise ISONetError(f"{text}, MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {expected}")


def _check_number_of_classes(cfg: CfgNode, data: CocoSet) -> None:
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    key = "MODEL.RETINANET.NUM_CLASSES" if retinanet else "MODEL.ROI_HEADS.NUM_CLASSES"
    expected = attrgetter(key)(cfg)
    count = len(data.classes)
    where = f"data set {data.name} has {count} classes"
    if count > expected >= 0:
        raise ISONetError(f"{where} but {key} is {expected}; add {key} {count}")
    if count < expected:
        logger.warning("%s and %s is %d: others will never be predicted", where, key, expected)
