"""COCO evaluation with a fast implementation of pycocotools' rules."""

import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    coco_evaluation,
)
from detectron2.structures import BoxMode
from hotcoco import COCO, COCOeval
from pycocotools import mask as mask_util
from pycocotools.coco import COCO as OfficialCOCO

from ..data.annotations import as_rle
from ..data.classes import class_numbers
from ..data.sets import load, read_regular
from ..errors import ISONetError
from ..files import write_whole

logger = logging.getLogger(__name__)


def evaluate_detections(
    truth: COCO,
    detections: Sequence[dict[str, Any]],
    task: str,
    image_ids: Sequence[int] | None = None,
    max_detections: Sequence[int] = (1, 10, 100),
) -> COCOeval:
    """COCO's 12 numbers, by pycocotools' rules.

    Args:
        truth: the annotations.
        detections: in COCO's result format.
        task: "bbox" or "segm".
        image_ids: evaluate on these only.
        max_detections: per image, COCO's three limits.

    Returns:
        the evaluation, with ``stats`` and ``eval["precision"]`` as in pycocotools.
    """
    if task == "segm":
        # With a box in it, a result's size would be the box's area and not the mask's.
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    evaluation = COCOeval(truth, truth.loadRes(list(detections)), task)
    evaluation.params.maxDets = list(max_detections)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def truth_of(records: Iterable[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Records of Detectron2's form as the content of a COCO json. Images keep their ids; category
    ids are class numbers; annotations count from 1 (pycocotools takes the id 0 for none).

    Args:
        records: one per image; "left_out" annotations count too.
        classes: names, in order.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for record in records:
        size = {"height": record["height"], "width": record["width"]}
        images.append({"id": record["image_id"], "file_name": record["file_name"], **size})
        for mark in [*record.get("annotations", ()), *record.get("left_out", ())]:
            box = BoxMode.convert(list(mark["bbox"]), mark["bbox_mode"], BoxMode.XYWH_ABS)
            mask = mark.get("segmentation", [])
            if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
                mask = {**mask, "counts": mask["counts"].decode()}
            area = mark.get("area")
            if area is None:
                rle = as_rle(mask, *size.values()) if mask else None
                area = float(mask_util.area(rle)) if rle else box[2] * box[3]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": record["image_id"],
                "category_id": mark["category_id"],
                "bbox": [float(v) for v in box],
                "area": float(area),
                "iscrowd": mark.get("iscrowd", 0),
                "segmentation": mask,
            }
            if "keypoints" in mark:
                points = np.array(mark["keypoints"], float).reshape(-1, 3)
                points[:, :2] -= 0.5  # COCO's are pixel indices
                annotation["keypoints"] = points.flatten().tolist()
                annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
            annotations.append(annotation)
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator with :func:`evaluate_detections` for boxes and masks, also where
    Detectron2's compiled part is missing (keypoints are left to Detectron2), and with the truth
    from the regular form of the data set, in memory.

    Args:
        dataset_name, tasks, output_dir: as in Detectron2.
        kpt_oks_sigmas: as in Detectron2.
        classes: names of the classes that the model predicts, in order; None for the data set's.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        output_dir: str | None = None,
        kpt_oks_sigmas: Sequence[float] = (),
        classes: Sequence[str] | None = None,
    ) -> None:
        self._logger = logger
        self._distributed, self._use_fast_impl, self._do_evaluation = True, False, True
        self._max_dets_per_image = [1, 10, 100]
        self._cpu_device = torch.device("cpu")
        self._tasks, self._output_dir = tasks, output_dir
        self._kpt_oks_sigmas = list(kpt_oks_sigmas)
        self._metadata = MetadataCatalog.get(dataset_name)
        self.classes = classes

    def _truth(self) -> tuple[dict[str, Any], list[Any], dict[int, Any], bool]:
        """The truth, the ids of its categories and images as the json has them, and whether there
        is anything to evaluate with."""
        name = self._metadata.name
        data = load(name) or (
            self._metadata.get("json_file") and read_regular(name, self._metadata.json_file)
        )
        if not data:
            records = DatasetCatalog.get(name)
            most = max((a["category_id"] for r in records for a in r["annotations"]), default=0)
            names = self._metadata.get("thing_classes", [str(i) for i in range(most + 1)])
            mapping = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
            original = {number: identity for identity, number in mapping.items()}
            ids = [original.get(i, i) for i in range(len(names))]
            return truth_of(records, names), ids, {}, True
        names = [category["name"] for category in data.classes]
        ids = [category["id"] for category in data.classes]
        return truth_of(data.records, names), ids, data.image_ids, data.annotated

    @functools.cached_property
    def _coco_api(self) -> OfficialCOCO:
        """pycocotools' view of the truth, for what Detectron2 does itself."""
        api = OfficialCOCO()
        api.dataset = self._truth()[0]
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        return api

    def _in_the_sets_classes(self, detections: list[dict], names: Sequence[str]) -> list[dict]:
        """The detections with the class numbers of the data set; those of other classes, which
        cannot be right or wrong there, are left out."""
        if self.classes is None or list(self.classes) == list(names):
            return detections
        what = f"data set {self._metadata.name}"
        numbers = class_numbers(self.classes, names, "the model", what)
        matched = [d for d in detections if _known(numbers, d["category_id"]) is not None]
        return [{**d, "category_id": numbers[d["category_id"]]} for d in matched]

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        truth, category_ids, image_ids, annotated = self._truth()
        names = [category["name"] for category in truth["categories"]]
        detections = [d for p in predictions for d in p["instances"]]
        tasks = set(self._tasks or self._tasks_from_predictions(detections))
        detections = self._in_the_sets_classes(detections, names)
        # A model may have more classes than the data set; nothing there is of theirs.
        detections = [d for d in detections if d["category_id"] < len(names)]
        if self._output_dir:
            original = [
                {
                    **d,
                    "image_id": image_ids.get(d["image_id"], d["image_id"]),
                    "category_id": category_ids[d["category_id"]],
                }
                for d in detections
            ]
            with write_whole(os.path.join(self._output_dir, "coco_instances_results.json")) as f:
                f.write(json.dumps(original).encode())
        name = self._metadata.name
        if not annotated:
            logger.warning("data set %s has no annotations, which AP needs: results only", name)
            return
        if "segm" in tasks and not any(a["segmentation"] for a in truth["annotations"]):
            logger.warning("data set %s has no masks: no mask AP", name)
            tasks.remove("segm")
        fast = COCO({**truth, "info": {}, "licenses": []})
        for task in sorted(tasks):
            result = None
            if detections and task == "keypoints":
                sigmas = self._kpt_oks_sigmas
                result = coco_evaluation._evaluate_predictions_on_coco(
                    self._coco_api, detections, task, sigmas, img_ids=img_ids
                )
            elif detections:
                limits = self._max_dets_per_image
                result = evaluate_detections(fast, detections, task, img_ids, limits)
            self._results[task] = self._derive_coco_results(result, task, class_names=names)


def _known(numbers: Sequence[int | None], number: int) -> int | None:
    return numbers[number] if number < len(numbers) else None


def classes_of_training(cfg: CfgNode) -> list[str] | None:
    """The class names of the first training set, where something has read them."""
    names = cfg.DATASETS.TRAIN
    return MetadataCatalog.get(names[0]).get("thing_classes") if names else None


def build_evaluator(
    cfg: CfgNode, dataset_name: str, classes: Sequence[str] | None = None
) -> DatasetEvaluator:
    """The evaluator of a data set in COCO's format: boxes, masks, keypoints, or panoptic.

    Args:
        cfg: the full config.
        dataset_name: a registered one.
        classes: of the model, in order; None for those of the training set, if they are known.

    Raises:
        ISONetError: the data set asks for another kind.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if kind not in ("coco", "coco_panoptic_seg"):
        raise ISONetError(
            f"data set {dataset_name} asks for the evaluator {kind!r}; only COCO's are built in"
        )
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    coco = FastCOCOEvaluator(
        dataset_name,
        output_dir=folder,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        classes=classes_of_training(cfg) if classes is None else classes,
    )
    if kind == "coco":
        return coco
    parts: list[DatasetEvaluator] = [SemSegEvaluator(dataset_name, output_dir=folder), coco]
    if importlib.util.find_spec("panopticapi") is None:
        logger.warning("panopticapi is not installed: PQ is left out.")
    else:
        parts.append(COCOPanopticEvaluator(dataset_name, folder))
    return DatasetEvaluators(parts)
