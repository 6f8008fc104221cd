"""COCO evaluation with a fast implementation of pycocotools' rules."""

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from hotcoco import COCO, COCOeval

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


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator with :func:`evaluate_detections` for boxes and masks, also where
    Detectron2's compiled part is missing. Keypoints are left to Detectron2."""

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        detections = [d for p in predictions for d in p["instances"]]
        tasks = self._tasks or self._tasks_from_predictions(detections)
        if "keypoints" in tasks or not self._do_evaluation:
            super()._eval_predictions(predictions, img_ids)
            return
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is not None:
            original = {v: k for k, v in mapping.items()}
            for detection in detections:
                detection["category_id"] = original[detection["category_id"]]
        if self._output_dir:
            with write_whole(os.path.join(self._output_dir, "coco_instances_results.json")) as f:
                f.write(json.dumps(detections).encode())
        truth = COCO(self._metadata.json_file)
        for task in sorted(tasks):
            result = None
            if detections:
                result = evaluate_detections(
                    truth, detections, task, img_ids, self._max_dets_per_image
                )
            self._results[task] = self._derive_coco_results(
                result, task, class_names=self._metadata.get("thing_classes")
            )


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator of a data set in COCO's format: boxes, masks, keypoints, or panoptic.

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
        # A cached conversion of a data set of the same name may be another set's.
        allow_cached_coco=False,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        use_fast_impl=False,  # ours stands in for it
    )
    if kind == "coco":
        return coco
    parts: list[DatasetEvaluator] = [SemSegEvaluator(dataset_name, output_dir=folder), coco]
    if importlib.util.find_spec("panopticapi") is None:
        logger.warning("panopticapi is not installed: PQ is left out.")
    else:
        parts.append(COCOPanopticEvaluator(dataset_name, folder))
    return DatasetEvaluators(parts)
