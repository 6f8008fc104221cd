import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from hotcoco import COCO as FastCOCO
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isonet_det import ISONetError, get_cfg
from isonet_det.evaluation.coco import FastCOCOEvaluator, build_evaluator, evaluate_detections


@pytest.fixture(scope="module", autouse=True)
def _drawn():
    DatasetCatalog.get("shapes_val")


def an_object(rng, classes, box=None):
    """A box and an ellipse in it, near another box or anywhere, in a photo of 640x480."""
    if box is None:
        size = np.exp(rng.uniform(np.log(8), np.log(300), 2))
        corner = rng.uniform(0, [640, 480] - size)
    else:
        size = np.multiply(box[2:], np.exp(0.1 * rng.randn(2)))
        corner = (box[:2] + 0.1 * size * rng.randn(2)).clip(0, [630, 470])
    x, y, w, h = (*corner, *np.minimum(size, [639, 479] - corner))
    rows, columns = np.ogrid[:480, :640]
    mask = ((columns - x - w / 2) / w) ** 2 + ((rows - y - h / 2) / h) ** 2 <= 0.25
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle["counts"] = rle["counts"].decode()
    number = int(rng.randint(1, classes + 1))
    return {"category_id": number, "bbox": [float(v) for v in (x, y, w, h)], "segmentation": rle}


def synthetic_detections(images=60, per_image=30, classes=9):
    """A COCO json and detections for it: a third near an object, the others anywhere."""
    rng = np.random.RandomState(0)
    annotations, found = [], []
    for image in range(1, images + 1):
        marks = [an_object(rng, classes) for _ in range(rng.poisson(7.3))]
        for mark in marks:
            area = float(mask_util.area(mark["segmentation"]))
            extra = {"area": area, "iscrowd": int(rng.rand() < 0.01), "id": len(annotations) + 1}
            annotations.append({**mark, "image_id": image, **extra})
        for _ in range(per_image):
            near = marks[rng.randint(len(marks))] if marks and rng.rand() < 1 / 3 else None
            detection = an_object(rng, classes, near and near["bbox"])
            number = near["category_id"] if near else detection["category_id"]
            score = float(rng.rand())
            found.append({**detection, "image_id": image, "category_id": number, "score": score})
    sizes = {"height": 480, "width": 640}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", **sizes} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
    }, found


@pytest.fixture(scope="module")
def detections(tmp_path_factory):
    truth, found = synthetic_detections()
    path = tmp_path_factory.mktemp("coco") / "truth.json"
    path.write_text(json.dumps(truth))
    return str(path), found


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("images", [None, [3, 5, 8, 13]])
def test_the_twelve_numbers_are_pycocotools(detections, task, images):
    path, found = detections
    truth = COCO(path)
    stripped = [{k: v for k, v in d.items() if task == "bbox" or k != "bbox"} for d in found]
    official = COCOeval(truth, truth.loadRes(stripped), task)
    if images:
        official.params.imgIds = images
    official.evaluate()
    official.accumulate()
    official.summarize()
    fast = evaluate_detections(FastCOCO(path), found, task, images)
    np.testing.assert_allclose(fast.stats[:12], official.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        fast.eval["precision"], official.eval["precision"], rtol=0, atol=1e-12
    )


def predictions(records, noise):
    """The annotated objects, moved a little."""
    generator = torch.Generator().manual_seed(0)
    for record in records:
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += noise * torch.randn(boxes.shape, generator=generator)
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.pred_classes = torch.tensor(
            [a["category_id"] for a in record["annotations"]]
        ).long()
        instances.scores = torch.rand(len(boxes), generator=generator)
        masks = torch.zeros(len(boxes), record["height"], record["width"], dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.clamp(min=0).long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.pred_masks = masks
        yield record, {"instances": instances}


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_the_evaluator_gives_detectron2s_results(tmp_path, noise):
    results = []
    for kind in (COCOEvaluator, FastCOCOEvaluator):
        evaluator = kind("shapes_val", output_dir=str(tmp_path / kind.__name__))
        evaluator.reset()
        for record, output in predictions(DatasetCatalog.get("shapes_val"), noise):
            evaluator.process([record], [output])
        results.append(evaluator.evaluate())
    for task in ("bbox", "segm"):
        assert results[0][task].keys() == results[1][task].keys()
        for name, value in results[0][task].items():
            assert results[1][task][name] == pytest.approx(value, nan_ok=True), name


def test_nothing_detected_is_nan_and_no_error(tmp_path):
    evaluator = FastCOCOEvaluator("shapes_val", tasks=("bbox",), output_dir=str(tmp_path))
    evaluator.reset()
    record = {**DatasetCatalog.get("shapes_val")[0], "annotations": []}
    for inputs, output in predictions([record], 0.0):
        evaluator.process([inputs], [output])
    assert np.isnan(evaluator.evaluate()["bbox"]["AP"])


def test_a_stale_conversion_of_another_set_is_not_used(tmp_path):
    """Detectron2 keeps a data set without json under its name in OUTPUT_DIR."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    records = DatasetCatalog.get("shapes_val")
    found = []
    for count in (2, 5):
        name = "changing"
        DatasetCatalog.register(name, lambda count=count: records[:count])
        MetadataCatalog.get(name).set(thing_classes=["a", "b", "c", "d"])
        evaluator = build_evaluator(cfg, name)
        found.append(len(evaluator._coco_api.getImgIds()))
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert found == [2, 5]


def test_another_kind_of_data_set_is_refused():
    MetadataCatalog.get("long_tail").set(evaluator_type="lvis")
    with pytest.raises(ISONetError, match="'lvis'; expected coco"):
        build_evaluator(get_cfg(), "long_tail")


@pytest.mark.parametrize("kind", ["instance", "sem_seg", "panoptic_seg"])
def test_cityscapes_is_evaluated_by_detectron2(kind, tmp_path):
    MetadataCatalog.get(f"city_{kind}").set(
        evaluator_type=f"cityscapes_{kind}", thing_dataset_id_to_contiguous_id={1: 0},
        stuff_dataset_id_to_contiguous_id={},
    )  # fmt: skip
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    names = [type(p).__name__ for p in build_evaluator(cfg, f"city_{kind}")._evaluators]
    semantic, instance = "CityscapesSemSegEvaluator", "CityscapesInstanceEvaluator"
    expected = {"instance": [instance], "sem_seg": [semantic], "panoptic_seg": [semantic, instance]}
    assert names[:2] == expected[kind]
