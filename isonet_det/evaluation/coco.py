"""COCO evaluation: Detectron2's evaluator with a fast implementation of pycocotools' rules."""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    coco_evaluation,
)

from ..data.register import open_set, read_json
from ..errors import ISONetError
from ..files import write_file

if TYPE_CHECKING:  # loads nothing that training does not need
    from hotcoco import COCO, COCOeval

logger = logging.getLogger(__name__)

RESULTS = "coco_instances_results.json"
COCO_LIMIT = 100  # detections of an image that COCO's AP counts
_COUNTED = {
    "id", "file_name", "height", "width", "image_id", "category_id", "bbox", "area", "iscrowd",
    "segmentation", "name",
}  # fmt: skip


def evaluate_detections(
    truth: "COCO",
    detections: Sequence[dict[str, Any]],
    task: str,
    image_ids: Sequence[int] | None = None,
    max_detections: Sequence[int] = (1, 10, COCO_LIMIT),
) -> "COCOeval":
    """COCO's evaluation by pycocotools' rules: its ``stats`` and ``eval``."""
    from hotcoco import COCOeval

    if task == "segm":
        # With a box in it, a result's size would be the box's area and not the mask's.
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    evaluation = COCOeval(truth, truth.loadRes(list(detections)), task)
    evaluation.params.maxDets = list(max_detections)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    logger.debug("%s:\n%s", task, "\n".join(evaluation.summary_lines()))
    return evaluation


def fast_coco(content: dict[str, Any]) -> "COCO":
    """The content of a regular COCO json, for :func:`evaluate_detections`."""
    from hotcoco import COCO

    lists = {
        key: [{k: v for k, v in record.items() if k in _COUNTED} for record in content[key]]
        for key in ("images", "annotations", "categories")
    }
    return COCO({**lists, "info": {}, "licenses": []})


def truth_of(name: str) -> dict[str, Any]:
    """The content of a registered set's regular COCO json."""
    data = open_set(name)
    metadata = MetadataCatalog.get(name)
    if data is None and metadata.get("json_file") is None:
        return convert_to_coco_dict(name)
    path = metadata.json_file if data is None else data.file
    return read_json(path, f"data set {name}: {path}")[0]


def has_masks(content: dict[str, Any]) -> bool:
    return any(a.get("segmentation") for a in content.get("annotations", ()))


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator with fast boxes and masks, and the ids of the person's json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_cached_coco": False, **kwargs, "use_fast_impl": False})

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        name, truth = self._metadata.name, self._coco_api.dataset
        detections = [d for p in predictions for d in p["instances"]]
        tasks = set(self._tasks or self._tasks_from_predictions(detections))
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        category_ids = {number: identity for identity, number in numbers.items()}
        # A model may have classes that the set has not: nothing there is right or wrong of them.
        originals = {c["id"]: c.get("original_id", c["id"]) for c in truth["categories"]}
        detections = [
            {**d, "category_id": identity}
            for d in detections
            if originals.get(identity := category_ids.get(d["category_id"], d["category_id"]))
            is not None
        ]
        if self._output_dir:
            images = {i["id"]: i.get("original_id", i["id"]) for i in truth["images"]}
            original = [
                {**d, "image_id": images[d["image_id"]], "category_id": originals[d["category_id"]]}
                for d in detections
            ]
            write_file(os.path.join(self._output_dir, RESULTS), json.dumps(original))
        if not truth.get("annotations"):
            logger.warning("data set %s has no annotations, which AP needs: results only", name)
            return
        if "segm" in tasks and not has_masks(truth):
            logger.warning("data set %s has no masks: no mask AP", name)
            tasks.remove("segm")
        names = self._metadata.get("thing_classes")
        fast = fast_coco(truth)
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


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    if dataset_name in cfg.DATASETS.TEST[1:]:  # the first one's results are the report's
        folder = os.path.join(folder, dataset_name)
    if kind == "sem_seg":
        return SemSegEvaluator(dataset_name, output_dir=folder)
    if kind in _CITYSCAPES:
        parts: list[DatasetEvaluator] = [make(dataset_name) for make in _CITYSCAPES[kind]]
        if kind == "cityscapes_panoptic_seg":
            parts += _panoptic(dataset_name, folder)
        return DatasetEvaluators(parts)
    if kind not in ("coco", "coco_panoptic_seg"):
        known = f"expected coco, coco_panoptic_seg, sem_seg, {', '.join(_CITYSCAPES)}"
        raise ISONetError(f"data set {dataset_name} asks for the evaluator {kind!r}; {known}")
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if limit > COCO_LIMIT:
        logger.warning("TEST.DETECTIONS_PER_IMAGE %d: AP counts that many, COCO's 100", limit)
    coco = FastCOCOEvaluator(
        dataset_name,
        output_dir=folder,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        max_dets_per_image=limit if limit > COCO_LIMIT else None,
    )
    if kind == "coco":
        return coco
    semantic = SemSegEvaluator(dataset_name, output_dir=folder)
    return DatasetEvaluators([semantic, coco, *_panoptic(dataset_name, folder)])


_CITYSCAPES: dict[str, tuple[Callable[[str], DatasetEvaluator], ...]] = {
    "cityscapes_instance": (CityscapesInstanceEvaluator,),
    "cityscapes_sem_seg": (CityscapesSemSegEvaluator,),
    "cityscapes_panoptic_seg": (CityscapesSemSegEvaluator, CityscapesInstanceEvaluator),
}


def _panoptic(dataset_name: str, folder: str) -> list[DatasetEvaluator]:
    if importlib.util.find_spec("panopticapi") is None:
        logger.warning("panopticapi is not installed: PQ is left out.")
        return []
    return [COCOPanopticEvaluator(dataset_name, folder)]
