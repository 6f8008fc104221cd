import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from support import data_set, run_tool, tool, tool_refuses

from isonet_det import ISONetError, get_cfg
from isonet_det.data import check_datasets, register_from_argument, render_shapes
from isonet_det.data.findings import Findings
from isonet_det.data.photos import ORIENTATION, UnreadablePhotoError, examine_photo
from isonet_det.evaluation.coco import truth_of
from isonet_det.inference.predictor import read_rgb


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_shapes_are_the_same_bytes_for_the_same_seed(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        render_shapes(tmp_path / name, 12, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(ISONetError, match="ISONET_DET_CACHE"):
        render_shapes(tmp_path / "file" / "set", 2, 0)


def config(name, classes=4):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    return cfg


def test_roots_spare_classes_and_names_that_are_taken(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/here")
    with pytest.raises(ISONetError, match=r"annotations/.*DETECTRON2_DATASETS.*/data/here"):
        check_datasets(config("coco_2017_train", 80))
    check_datasets(config("shapes_train", 5))
    assert "never be predicted" in caplog.text
    register_from_argument(f"taken={tmp_path}/a.json:{tmp_path}")
    with pytest.raises(ISONetError, match="registered already"):
        register_from_argument(f"taken={tmp_path}/other.json:{tmp_path}")


def test_check_dataset_counts_and_shows_every_kind(tmp_path):
    render_shapes(tmp_path / "s", 12, 1)
    path, folder = tmp_path / "s" / "annotations.json", tmp_path / "s" / "images"
    content = json.loads(path.read_text())
    images, annotations = content["images"], content["annotations"]
    annotations[0]["bbox"] = [-50, 0, 20, 20]
    annotations[1]["bbox"] = [5, 5, 0, 3]
    annotations[2]["segmentation"] = [[1, 2, 3, 4]]
    annotations[3]["segmentation"] = {"size": [1, 1], "counts": [1]}
    annotations[4]["category_id"] = 50
    annotations[5]["id"] = annotations[6]["id"]
    images[3]["width"] += 2
    path.write_text(json.dumps(content))
    (folder / images[1]["file_name"]).unlink()
    (folder / images[2]["file_name"]).write_bytes(b"no photo")
    result = run_tool(
        "check_dataset.py", "--dataset", data_set("bad", tmp_path / "s"), cwd=tmp_path
    )
    assert result.returncode == 1, result.stderr
    for line in (
        "FAILS       1 photo missing", "FAILS       1 photo does not decode",
        "FAILS       1 photo of another size than the json says",
        "FAILS       1 duplicate annotation id", "FAILS       1 annotation of an unknown category",
        "FAILS       1 mask (RLE) of another size than its image",
        "note        1 box outside its image", "note        1 box without area",
        "made        1 polygon with fewer than three points left out",
        "note        1 image without annotations", images[1]["file_name"], images[2]["file_name"],
    ):  # fmt: skip
        assert line in result.stdout, line


def test_check_dataset_passes_a_good_set_and_names_an_unknown_one(tmp_path):
    name, photos, classes, sizes, *_, last = tool(
        "check_dataset.py", "shapes_tiny", cwd=tmp_path
    ).splitlines()
    content = truth_of("shapes_tiny")
    marks = content["annotations"]
    assert photos == f"  {len(content['images'])} photos, {len(marks)} objects"
    assert f"circle {sum(a['category_id'] == 1 for a in marks)}" in classes
    assert f"medium {sum(32**2 <= a['area'] < 96**2 for a in marks)}," in sizes
    assert (name, last) == ("shapes_tiny", "good")
    assert "did you mean shapes_val?" in tool_refuses(
        "check_dataset.py", "shapes_vla", cwd=tmp_path
    )


def photo(path, orientation, width=64, height=48):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize(("orientation", "size", "kind"), [
    (1, (48, 64), None),
    (6, (64, 48), "EXIF turns, annotated as displayed"),
    (6, (48, 64), "EXIF turns, annotated as stored"),
    (3, (48, 64), "EXIF turns, annotated nobody knows how"),
    (3, (50, 64), "another size"),
])  # fmt: skip
def test_orientations(tmp_path, orientation, size, kind):
    found = examine_photo(photo(tmp_path / "a.jpg", orientation), *size)
    assert found is None if kind is None else kind in found[1]


@pytest.mark.parametrize("told", [True, False])
def test_turned_photos_that_tell_speak_for_those_that_do_not(tmp_path, told):
    findings = Findings()
    findings.add(*examine_photo(photo(tmp_path / "a.jpg", 3), 48, 64))
    if told:
        findings.add(*examine_photo(photo(tmp_path / "b.jpg", 6), 64, 48))
    findings.settle_orientations()
    assert bool(findings.fatal) is not told and (told or "mogrify" in findings.fatal)


def test_sixteen_bits(tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.full((8, 9), 30000, np.uint16)).save(path)
    _, kind, line = examine_photo(path, 8, 9)
    assert kind == "photo of 16 bits a channel" and path in line
    with pytest.raises(UnreadablePhotoError, match="not of 8 bits"):
        read_rgb(path)


def coco(folder, name):
    (folder / "images").mkdir(parents=True)
    photo(folder / "images" / "0.jpg", 1)
    box = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}
    content = {
        "images": [{"id": 0, "file_name": name, "height": 48, "width": 64}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [box],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return f"{folder}/a.json:{folder}/images"


def test_names_of_photos(tmp_path):
    name = register_from_argument(f"colon={coco(tmp_path / 'a:b', '0.jpg')}")
    assert DatasetCatalog.get(name)[0]["file_name"] == f"{tmp_path}/a:b/images/0.jpg"
    cfg = get_cfg()
    wrong = {"images/0.jpg": "repeat the folder images/", "..\\up\\0.jpg": "backslashes"}
    for photo, words in wrong.items():
        argument = f"elsewhere-{words}={coco(tmp_path / words, photo)}"
        cfg.DATASETS.TEST = (register_from_argument(argument),)
        with pytest.raises(ISONetError, match=words):
            check_datasets(cfg, train=False)
