import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from isonet_det import ISONetError, get_cfg
from isonet_det.evaluation.coco import FastCOCOEvaluator, build_evaluator


@pytest.fixture(scope="module", autouse=True)
def _drawn():
    DatasetCatalog.get("shapes_val")


def predictions(records, noise):
    generator = torch.Generator().manual_seed(0)
    for record in records:
        marks, size = record["annotations"], (record["height"], record["width"])
        boxes = torch.tensor([a["bbox"] for a in marks]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += noise * torch.randn(boxes.shape, generator=generator)
        instances = Instances(size, pred_boxes=Boxes(boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in marks]).long()
        instances.scores = torch.rand(len(boxes), generator=generator)
        instances.pred_masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        corners = boxes.clamp(min=0).long().tolist()
        for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, corners, strict=True):
            mask[y0:y1, x0:x1] = True
        yield record, {"instances": instances}


def evaluated(evaluator, records, noise):
    evaluator.reset()
    for record, output in predictions(records, noise):
        evaluator.process([record], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("noise", [0.0, 2.0, 8.0])
def test_the_evaluator_gives_detectron2s_results(tmp_path, noise):
    theirs, ours = (
        evaluated(kind("shapes_val", output_dir=f"{tmp_path}/{kind.__name__}"),
                  DatasetCatalog.get("shapes_val"), noise)
        for kind in (COCOEvaluator, FastCOCOEvaluator)
    )  # fmt: skip
    for task in ("bbox", "segm"):
        assert ours[task] == pytest.approx(theirs[task], nan_ok=True)


def test_nothing_detected_is_nan_and_no_error(tmp_path):
    evaluator = FastCOCOEvaluator("shapes_val", tasks=("bbox",), output_dir=str(tmp_path))
    record = {**DatasetCatalog.get("shapes_val")[0], "annotations": []}
    assert np.isnan(evaluated(evaluator, [record], 0.0)["bbox"]["AP"])


def test_a_stale_conversion_of_another_set_is_not_used(tmp_path):
    """Detectron2 keeps a data set without json under its name in OUTPUT_DIR."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    records = DatasetCatalog.get("shapes_val")
    for count in (2, 5):
        DatasetCatalog.register("changing", lambda count=count: records[:count])
        MetadataCatalog.get("changing").set(thing_classes=["a", "b", "c", "d"])
        assert len(build_evaluator(cfg, "changing")._coco_api.getImgIds()) == count
        DatasetCatalog.remove("changing")
        MetadataCatalog.remove("changing")


def test_two_test_sets_have_a_file_of_results_each():
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("shapes_tiny", "shapes_val")
    for name in cfg.DATASETS.TEST:
        DatasetCatalog.get(name)
    folders = [build_evaluator(cfg, name)._output_dir for name in cfg.DATASETS.TEST]
    assert folders == ["./output/inference", "./output/inference/shapes_val"]


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
