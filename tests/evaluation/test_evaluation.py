import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from support import predictions

from isonet_det import ISONetError, get_cfg
from isonet_det.evaluation.coco import FastCOCOEvaluator, build_evaluator


@pytest.fixture(scope="module", autouse=True)
def _drawn():
    DatasetCatalog.get("shapes_val")


def evaluated(evaluator, records, noise):
    evaluator.reset()
    for record, output in predictions(records, noise):
        evaluator.process([record], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("noise", [0, 2, 8])
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
    assert np.isnan(evaluated(evaluator, [record], 0)["bbox"]["AP"])


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


def test_cityscapes_is_evaluated_by_detectron2_and_lvis_refused():
    MetadataCatalog.get("city").set(
        evaluator_type="cityscapes_panoptic_seg", thing_dataset_id_to_contiguous_id={1: 0},
        stuff_dataset_id_to_contiguous_id={},
    )  # fmt: skip
    names = [type(part).__name__ for part in build_evaluator(get_cfg(), "city")._evaluators]
    assert names[:2] == ["CityscapesSemSegEvaluator", "CityscapesInstanceEvaluator"]
    MetadataCatalog.get("long_tail").set(evaluator_type="lvis")
    with pytest.raises(ISONetError, match="'lvis'; expected coco"):
        build_evaluator(get_cfg(), "long_tail")
