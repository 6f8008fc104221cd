"""What a detector gets wrong: per class, by size, confusion, TIDE, calibration, photo by photo."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ISONetError
from .coco import evaluate_detections, fast_coco

# TIDE's errors (Bolya et al., ECCV 2020), as they are named there and what they say.
TIDE = {
    "Cls": "right place, wrong class",
    "Loc": "right class, wrong place",
    "Both": "wrong class and place",
    "Dupe": "duplicate of a right detection",
    "Bkg": "background taken for an object",
    "Miss": "object that nothing found",
}


@dataclass(frozen=True)
class Detail:
    """The errors of a set of detections. AP and AR are percents, or None where nothing counts."""

    task: str
    metrics: dict[str, float | None]  # COCO's 12 numbers
    per_class: list[dict[str, Any]]  # "precision" at IoU 0.5, for evenly spaced recalls
    # (C + 1, C + 1) counts, row: annotated class, column: predicted; last: background.
    confusion: np.ndarray
    tide: dict[str, tuple[float, int]]  # per error the AP that it costs, and how often it occurs
    calibration: dict[str, Any]  # hotcoco's
    # Per image class and box (XYWH) of the missed objects, the false and the confused detections.
    photos: dict[int, dict[str, list[tuple[str, list[float]]]]]
    score: float  # detections below it count for AP and TIDE only


def _percent(values: Any) -> float | None:
    """The mean of COCO's numbers in percent; -1 stands for none."""
    counted = np.asarray(values)
    counted = counted[counted > -1]
    return 100 * float(counted.mean()) if counted.size else None


def class_names(truth: dict[str, Any]) -> dict[int, str]:
    return {c["id"]: c["name"] for c in sorted(truth["categories"], key=lambda c: c["id"])}


def read_results(path: str, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections in COCO's result format, with the ids of the truth."""
    try:
        with open(path) as f:
            detections = json.load(f)
        classes, images = (
            {record.get("original_id", record["id"]): record["id"] for record in truth[key]}
            for key in ("categories", "images")
        )
        for d in detections:
            if len(d["bbox"]) != 4 or not np.isfinite(np.asarray(d["bbox"], float)).all():
                raise ValueError(f"a bbox of four finite numbers, got {d['bbox']}")
        return [
            {
                **d,
                "image_id": images[d["image_id"]],
                "category_id": classes[d["category_id"]],
                "score": float(d["score"]),
            }
            for d in detections
        ]
    except FileNotFoundError as error:
        raise ISONetError(f"{path} not found; evaluate first") from error
    except (LookupError, ValueError, TypeError) as error:
        expected = "expected COCO's result format, with the data set's images and categories"
        reason = f"no image or category {error}" if isinstance(error, KeyError) else error
        raise ISONetError(f"{path}: {expected} ({reason})") from error


def examine(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]], task: str, score: float = 0.5
) -> Detail:
    if not detections or not truth.get("annotations"):
        what = "detections" if not detections else "annotations"
        raise ISONetError(f"there are no {what}, so there is nothing to report")
    api, names = fast_coco(truth), class_names(truth)
    evaluation = _evaluate(api, detections, task)
    report = evaluation.report()
    # IoU, recall, class, area, detections; IoU, class, area, detections.
    curves: dict[str, Any] = evaluation.eval or {}
    precision = curves["precision"][:, :, :, 0, -1]
    recall = curves["recall"][:, :, 0, -1]
    objects = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    predicted = Counter(d["category_id"] for d in detections if d["score"] >= score)
    tide = evaluation.tide_errors()
    confident = [d for d in detections if d["score"] >= score]
    return Detail(
        task=task,
        metrics={name: _percent(value) for name, value in report["metrics"].items()},
        per_class=[
            {
                "name": name,
                "AP": _percent(precision[:, :, i]),
                "AP50": _percent(precision[0, :, i]),
                "AR": _percent(recall[:, i]),
                "precision": precision[0, :, i].tolist() if precision[0, 0, i] > -1 else None,
                "objects": objects[identity],
                "detections": predicted[identity],
            }
            for i, (identity, name) in enumerate(names.items())
        ],
        confusion=np.asarray(evaluation.confusion_matrix(min_score=score)["matrix"], np.int64),
        tide={e: (100 * tide["delta_ap"][e], tide["counts"][e]) for e in TIDE},
        calibration=evaluation.calibration(),
        photos=_errors_by_photo(api, confident, task, names) if confident else {},
        score=score,
    )


def _evaluate(api: Any, detections: Sequence[dict[str, Any]], task: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # the page has its table
        return evaluate_detections(api, detections, task)


def _errors_by_photo(
    api: Any, detections: Sequence[dict[str, Any]], task: str, names: dict[int, str]
) -> dict[int, dict[str, list[tuple[str, list[float]]]]]:
    """Per image id what was missed, false, and taken for another class (under its own)."""
    evaluation = _evaluate(api, detections, task)
    status = evaluation.image_diagnostics(iou_thr=0.5, score_thr=0.0)
    photos: dict[int, dict[str, list[tuple[str, list[float]]]]] = {}

    def add(kind: str, record: dict[str, Any], category: int) -> None:
        errors = photos.setdefault(record["image_id"], {"missed": [], "false": [], "confused": []})
        errors[kind].append((names[category], record["bbox"]))

    confused = [e for e in status["label_errors"] if e["type"] == "wrong_label"]
    pairs = {e["dt_id"] for e in confused}, {e["gt_id"] for e in confused}
    for error in confused:
        add("confused", detections[error["dt_id"] - 1], error["gt_category_id"])
    for number, state in status["dt_status"].items():
        if state == "fp" and number not in pairs[0]:
            detection = detections[number - 1]  # numbered in order, from 1
            add("false", detection, detection["category_id"])
    for number, state in status["gt_status"].items():
        if state == "fn" and number not in pairs[1]:
            annotation = api.anns[number]
            add("missed", annotation, annotation["category_id"])
    return photos
