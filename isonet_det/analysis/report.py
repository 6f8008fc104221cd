"""What a detector gets wrong, as one HTML page that opens without a network."""

import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from ..evaluation.coco import RESULTS, has_masks, truth_of
from ..evaluation.detail import TIDE, Detail, class_names, examine, read_results
from ..files import write_file
from .curves import new_figure, plain_text
from .pictures import draw_beside

logger = logging.getLogger(__name__)

TASKS = {"bbox": "Boxes", "segm": "Masks"}
COLUMNS = ["class", "AP", "AP50", "AR", "objects", "detections"]
# Pictures of a run, where they are in its folder.
FIGURES = {"curves.png": "Curves of the training", "isometry.png": "Isometry"}
CURVES = 12  # classes whose curves are drawn: those of the most objects


def find_results(folder: str) -> str:
    """Path of the latest results in a run's folder: of the training, or of an evaluation."""
    paths = [os.path.join(folder, part, "inference", RESULTS) for part in ("", "evaluation")]
    existing = [path for path in paths if os.path.isfile(path)]
    return max(existing, key=os.path.getmtime, default=paths[0])


@plain_text()
def write_report(
    dataset: str,
    results: str,
    path: str,
    *,
    run: str = "",
    score: float = 0.5,
    photos: int = 24,
) -> None:
    """Write the report of a data set's results; detections below ``score`` count for AP only."""
    import jinja2

    truth = truth_of(dataset)
    names = class_names(truth)
    detections = read_results(results, truth)
    masks = has_masks(truth) and any("segmentation" in d for d in detections)
    tasks = ["bbox", "segm"] if masks else ["bbox"]
    details = [examine(truth, detections, task, score) for task in tasks]
    confident = [d for d in detections if d["score"] >= score]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    page = environment.get_template("report.html").render(
        title=f"{os.path.basename(os.path.abspath(run)) if run else dataset}: what is wrong",
        subtitle=f"data set {dataset}, {len(truth['images'])} images; {results}",
        details=details,
        tasks=TASKS,
        tide=TIDE,
        columns=COLUMNS,
        names=list(names.values()),
        number=lambda value: "-" if value is None else f"{value:.1f}",
        confusion={detail.task: _confusion(detail, list(names.values())) for detail in details},
        pictures={detail.task: _draw_curves(detail) for detail in details},
        figures=[
            (caption, _embedded(Path(run, name).read_bytes(), "png"))
            for name, caption in FIGURES.items()
            if run and os.path.isfile(os.path.join(run, name))
        ],
        gallery=_gallery(dataset, names, confident, details[-1], photos),
        best=max(d["score"] for d in detections),
    )
    write_file(path, page)
    logger.info("Report: %s", path)


def _embedded(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _confusion(detail: Detail, names: Sequence[str]) -> dict[str, Any]:
    matrix = detail.confusion
    places = np.flatnonzero(matrix.sum(0) + matrix.sum(1)).tolist()
    labels = [[*names, "background"][i] for i in places]
    rows = matrix[places][:, places].tolist()
    return {"names": labels, "rows": list(zip(labels, rows, strict=True))}


def _draw_curves(detail: Detail) -> str:
    figure, ((left, right),) = new_figure(1, 2, 12, 4.6)
    rows = [row for row in detail.per_class if row["precision"]]
    rows.sort(key=lambda row: -row["objects"])
    for row in rows[:CURVES]:  # matplotlib leaves names out that begin with _
        recall = np.linspace(0, 1, len(row["precision"]))
        left.plot(recall, row["precision"], label=f" {row['name']}")
    title = "at IoU 0.5" if len(rows) <= CURVES else f"at IoU 0.5, the {CURVES} largest classes"
    left.set(title=title, xlabel="recall", ylabel="precision")
    bins = [b for b in detail.calibration["bins"] if b["count"]]
    middles = [(b["bin_lower"] + b["bin_upper"]) / 2 for b in bins]
    shares = [b["avg_accuracy"] for b in bins]
    right.bar(middles, shares, width=0.09, label="share that is right")
    right.plot([0, 1], [0, 1], color="0.3", linewidth=0.8, label="as confident as right")
    right.set(title="confidence", xlabel="score")
    for axis in (left, right):
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    return _embedded(buffer.getvalue(), "png")


def _gallery(
    dataset: str,
    names: dict[int, str],
    detections: Sequence[dict[str, Any]],
    detail: Detail,
    count: int,
) -> list[dict[str, Any]]:
    errors, metadata = detail.photos, MetadataCatalog.get(dataset)
    worst = sorted(errors, key=lambda image: -sum(map(len, errors[image].values())))[:count]
    records = {r["image_id"]: r for r in DatasetCatalog.get(dataset)}
    numbers = {n: metadata.thing_classes.index(name) for n, name in names.items()}
    figures = []
    for image in worst:
        record, kinds = records[image], errors[image]
        objects = [d for d in detections if d["image_id"] == image]
        boxes = np.array([d["bbox"] for d in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = Instances((record["height"], record["width"]), pred_boxes=Boxes(boxes))
        found.scores = np.array([d["score"] for d in objects])
        found.pred_classes = np.array([numbers[d["category_id"]] for d in objects], int)
        if detail.task == "segm":
            found.pred_masks = [d["segmentation"] for d in objects]
        missed, wrong = (
            [[x, y, x + w, y + h] for kind in part for _, (x, y, w, h) in kinds[kind]]
            for part in (["missed"], ["false", "confused"])
        )
        pixels = draw_beside(record, found, metadata, missed, wrong)
        scale = min(1.0, 1280 / pixels.shape[1])
        pixels = cv2.resize(pixels[:, :, ::-1], None, fx=scale, fy=scale)
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
        classes = {kind: [name for name, _ in marks] for kind, marks in kinds.items()}
        words = [
            f"{kind}: " + ", ".join(f"{n} {c}" for c, n in Counter(named).items())
            for kind, named in classes.items()
            if named
        ]
        figures.append(
            {
                "caption": f"{os.path.basename(record['file_name'])}: {'; '.join(words)}",
                "classes": sorted({name for named in classes.values() for name in named}),
                "source": _embedded(encoded.tobytes(), "jpeg"),
            }
        )
    return figures
