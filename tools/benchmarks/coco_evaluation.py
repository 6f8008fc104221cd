"""COCO evaluation at the size of val2017, on made-up detections, beside pycocotools."""

import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCO as FastCOCO
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import trange

from isonet_det.evaluation.coco import evaluate_detections

HEIGHT, WIDTH = 480, 640
OBJECTS = 7.3  # per image, about COCO's mean


def _ellipse(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    """RLE of the ellipse in a box."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    x0, y0 = int(x), int(y)
    x1, y1 = min(WIDTH, int(x + width) + 1), min(HEIGHT, int(y + height) + 1)
    ys, xs = np.ogrid[y0:y1, x0:x1]
    across = (xs - (x0 + x1) / 2) / max(1, (x1 - x0) / 2)
    down = (ys - (y0 + y1) / 2) / max(1, (y1 - y0) / 2)
    mask[y0:y1, x0:x1] = across**2 + down**2 <= 1
    rle = mask_util.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def synthetic_detections(
    images: int, per_image: int = 100, classes: int = 80, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO json and detections for it: a third near an object, the others anywhere.

    Args:
        images: how many.
        per_image: detections of each.
        classes: of objects and detections.
        seed: of the drawing.
    """
    rng = np.random.RandomState(seed)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in trange(1, images + 1, disable=None if images > 1000 else True):
        objects = []
        for _ in range(rng.poisson(OBJECTS)):
            width, height = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            box = [rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height), width, height]
            objects.append((box, int(rng.randint(1, classes + 1))))
            segmentation = _ellipse(*box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": objects[-1][1],
                    "bbox": box,
                    "area": float(mask_util.area(segmentation)),
                    "iscrowd": int(rng.rand() < 0.01),
                    "segmentation": segmentation,
                }
            )
        for _ in range(per_image):
            if objects and rng.rand() < 1 / 3:
                (x, y, width, height), label = objects[rng.randint(len(objects))]
                x, y = x + 0.1 * width * rng.randn(), y + 0.1 * height * rng.randn()
                width, height = (width, height) * np.exp(0.1 * rng.randn(2))
            else:
                width, height = rng.uniform(8, 200, 2)
                x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
                label = int(rng.randint(1, classes + 1))
            x, y = np.clip(x, 0, WIDTH - 4), np.clip(y, 0, HEIGHT - 4)
            width, height = min(width, WIDTH - x - 1), min(height, HEIGHT - y - 1)
            detections.append(
                {
                    "image_id": image,
                    "category_id": label,
                    "bbox": [float(v) for v in (x, y, width, height)],
                    "score": float(rng.rand()),
                    "segmentation": _ellipse(x, y, width, height),
                }
            )
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
    }
    return truth, detections


def benchmark_evaluation(images: int = 5000, per_image: int = 100) -> dict[str, dict[str, float]]:
    """Seconds of loading and evaluating the same detections, ours and pycocotools'.

    Returns:
        per task ("bbox", "segm"): seconds of both, their ratio, and the largest difference among
        the 12 numbers.
    """
    truth, detections = synthetic_detections(images, per_image)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "truth.json")
        Path(path).write_text(json.dumps(truth))
        for task in ("bbox", "segm"):
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.perf_counter()
                fast = evaluate_detections(FastCOCO(path), detections, task)
                between = time.perf_counter()
                known = COCO(path)
                stripped = [
                    {k: v for k, v in d.items() if task == "bbox" or k != "bbox"}
                    for d in detections
                ]
                official = COCOeval(known, known.loadRes(stripped), task)
                official.evaluate()
                official.accumulate()
                official.summarize()
                end = time.perf_counter()
            results[task] = {
                "ours": between - start,
                "pycocotools": end - between,
                "ratio": (end - between) / (between - start),
                "difference": float(np.abs(fast.stats[:12] - official.stats).max()),
            }
    return results
