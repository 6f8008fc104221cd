import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util
from support import COCO_MINI, run_tool, spoil

from isonet_det import ISONetError, get_cfg
from isonet_det.data import (
    NamingDatasetMapper,
    check_datasets,
    register_from_argument,
    render_shapes,
)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_bytes_for_the_same_seed(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        render_shapes(tmp_path / name, 12, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "set"
    render_shapes(folder, 60, 2)
    return folder, json.loads((folder / "annotations.json").read_text())


def test_the_set_has_what_coco_has(drawn):
    _, content = drawn
    annotations = content["annotations"]
    crowds = [a for a in annotations if a["iscrowd"]]
    assert crowds and all(isinstance(a["segmentation"], dict) for a in crowds)
    assert {a["category_id"] for a in annotations} == {1, 2, 3, 4}
    assert content["images"][-1]["id"] not in {a["image_id"] for a in annotations}
    areas = [a["area"] for a in annotations if not a["iscrowd"]]
    assert min(areas) < 300 and max(areas) > 1500
    assert len({(i["height"], i["width"]) for i in content["images"]}) > 4


def test_masks_boxes_and_images_agree(drawn):
    folder, content = drawn
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    for image in content["images"]:
        assert cv2.imread(str(folder / "images" / image["file_name"])).shape[:2] == (
            image["height"],
            image["width"],
        )
    covered: dict[int, np.ndarray] = {}
    for a in content["annotations"]:
        height, width = sizes[a["image_id"]]
        segmentation = a["segmentation"]
        rle = mask_util.frPyObjects(segmentation, height, width)
        mask = mask_util.decode(rle if isinstance(rle, dict) else mask_util.merge(rle))
        assert abs(int(mask.sum()) - a["area"]) <= 1
        ys, xs = np.nonzero(mask)
        x, y, w, h = a["bbox"]
        assert x <= xs.min() and y <= ys.min() and xs.max() <= x + w and ys.max() <= y + h
        covered.setdefault(a["image_id"], np.zeros((height, width), int))
        covered[a["image_id"]] += mask
    # What is hidden belongs to the shape in front: outlines may share their edge pixels.
    overlap = sum((c > 1).sum() for c in covered.values()) / sum(
        (c > 0).sum() for c in covered.values()
    )
    assert overlap < 0.02


def test_registered_and_drawn_at_first_use():
    records = DatasetCatalog.get("shapes_val")
    assert len(records) == 60
    assert MetadataCatalog.get("shapes_val").thing_classes == [
        "circle",
        "square",
        "triangle",
        "star",
    ]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ISONetError, match="ISONET_DET_CACHE"):
        render_shapes(tmp_path / "file" / "set", 2, 0)


def config(name, classes=4):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    return cfg


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("unknown category", "unknown category: annotation 3: 77"),
        ("unknown image", "unknown image: annotation 3: 77"),
        ("no images", 'no list "images"'),
        ("no file name", "images[2] has no file_name"),
        ("no box", "annotations[0] has no bbox"),
        ("short box", "annotation 1: [1, 2]"),
        ("list", 'no list "images"'),
        ("empty", "no images"),
    ],
)
def test_a_json_that_is_not_cocos(tmp_path, how, named):
    render_shapes(tmp_path / "s", 4, 1)
    path = tmp_path / "s" / "annotations.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()), how)))
    name = register_from_argument(f"bad-{how}={path}:{tmp_path}/s/images")
    with pytest.raises(ISONetError) as error:
        check_datasets(config(name))
    assert named in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_photos_that_are_missing_or_do_not_decode(tmp_path):
    render_shapes(tmp_path / "s", 4, 1)
    name = register_from_argument(f"photos={tmp_path}/s/annotations.json:{tmp_path}/s/images")
    photo = tmp_path / "s" / "images" / "000002.png"
    whole = photo.read_bytes()
    check_datasets(config(name))
    record = DatasetCatalog.get(name)[2]
    mapper = NamingDatasetMapper(get_cfg(), is_train=True)
    for damage, named in (
        (lambda: photo.write_bytes(whole[: len(whole) // 2]), "does not decode"),
        (lambda: photo.write_text("no photo"), "does not decode"),
        (photo.unlink, "is missing"),
    ):
        damage()
        for attempt in (lambda: check_datasets(config(name)), lambda: mapper(record)):
            with pytest.raises(ISONetError, match=named) as error:
                attempt()
            assert str(photo) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "named"),
    [("x", "NAME=annotations"), ("x=a.json", "NAME=annotations"), ("=a:b", "NAME=annotations")],
)
def test_bad_dataset_arguments(argument, named):
    with pytest.raises(ISONetError, match=named):
        register_from_argument(argument)


def test_unknown_sets_missing_files_and_class_counts(tmp_path, monkeypatch, caplog):
    with pytest.raises(ISONetError, match="did you mean shapes_train"):
        check_datasets(config("shape_train"))
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/here")
    with pytest.raises(ISONetError, match=r"annotations/.*DETECTRON2_DATASETS.*/data/here"):
        check_datasets(config("coco_2017_train", 80))
    render_shapes(tmp_path / "s", 4, 1)
    name = register_from_argument(f"nofolder={tmp_path}/s/annotations.json:{tmp_path}/none")
    with pytest.raises(ISONetError, match="no image folder"):
        check_datasets(config(name))
    with pytest.raises(ISONetError, match=r"add MODEL\.ROI_HEADS\.NUM_CLASSES 4"):
        check_datasets(config("shapes_train", 3))
    check_datasets(config("shapes_train", 5))
    assert "never be predicted" in caplog.text
    with pytest.raises(ISONetError, match="registered already"):
        register_from_argument(f"nofolder={tmp_path}/other.json:{tmp_path}")


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="coco_mini is not here")
def test_real_photos_pass_the_greyscale_one_included():
    for split in ("train", "val"):
        name = register_from_argument(
            f"mini-{split}={COCO_MINI}/annotations/instances_{split}.json:{COCO_MINI}/{split}"
        )
        check_datasets(config(name, 80))
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    mapper = NamingDatasetMapper(cfg, is_train=True)
    grey = [r for r in DatasetCatalog.get("mini-train") if r["file_name"].endswith("00086.jpg")]
    assert mapper(grey[0])["image"].shape[0] == 3


TOOL = "check_dataset.py"


def test_check_dataset_counts_and_shows_every_kind(tmp_path):
    render_shapes(tmp_path / "s", 12, 1)
    path = tmp_path / "s" / "annotations.json"
    content = json.loads(path.read_text())
    images, annotations = content["images"], content["annotations"]
    assert len(annotations) > 10
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(content))
    annotations[0]["bbox"] = [-50, 0, 20, 20]
    annotations[1]["bbox"] = [5, 5, 0, 3]
    annotations[2]["segmentation"] = [[1, 2, 3, 4]]
    annotations[3]["segmentation"] = {"size": [1, 1], "counts": [1]}
    annotations[4]["category_id"] = 50
    annotations[5]["id"] = annotations[6]["id"]
    images[3]["width"] += 2
    path.write_text(json.dumps(content))
    folder = tmp_path / "s" / "images"
    (folder / images[1]["file_name"]).unlink()
    (folder / images[2]["file_name"]).write_bytes(b"no photo")
    result = run_tool(TOOL, "--dataset", f"bad={path}:{folder}", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    for line in (
        "FAILS       1 photo missing",
        "FAILS       1 photo does not decode",
        "FAILS       1 photo of another size than the json says",
        "FAILS       1 duplicate annotation id",
        "FAILS       1 annotation of an unknown category",
        "FAILS       1 mask (RLE) of another size than its image",
        "note        1 box outside its image",
        "note        1 box without area",
        "made        1 polygon with fewer than three points left out",
        "note        1 image without annotations",
    ):
        assert line in result.stdout, line
    for name in (images[1]["file_name"], images[2]["file_name"]):
        assert name in result.stdout


def test_check_dataset_passes_a_good_set_and_names_an_unknown_one(tmp_path):
    result = run_tool(TOOL, "shapes_val", cwd=tmp_path)
    assert result.returncode == 0 and "FAILS" not in result.stdout, result.stdout
    result = run_tool(TOOL, "shapes_vla", cwd=tmp_path)
    assert result.returncode == 2 and "did you mean shapes_val?" in result.stderr
