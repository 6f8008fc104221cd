import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from isonet_det import ISONetError, get_cfg
from isonet_det.data.checks import check_datasets
from isonet_det.data.findings import Findings
from isonet_det.data.photos import ORIENTATION, UnreadablePhotoError, examine_photo
from isonet_det.data.register import register_from_argument
from isonet_det.inference.predictor import read_rgb


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


@pytest.mark.parametrize(
    ("name", "word"),
    [("images/0.jpg", "repeat the folder images/"), ("..\\up\\0.jpg", "backslashes")],
)
def test_names_of_photos_that_are_elsewhere(tmp_path, name, word):
    cfg = get_cfg()
    cfg.DATASETS.TEST = (register_from_argument(f"elsewhere-{word}={coco(tmp_path, name)}"),)
    with pytest.raises(ISONetError, match=word):
        check_datasets(cfg, train=False)


def test_a_colon_in_a_path(tmp_path):
    name = register_from_argument(f"colon={coco(tmp_path / 'a:b', '0.jpg')}")
    assert DatasetCatalog.get(name)[0]["file_name"] == f"{tmp_path}/a:b/images/0.jpg"
