"""Photos of data sets: where they are, how EXIF turns them, how deep they are."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from isonet_det import ISONetError
from isonet_det.data.checks import check_datasets
from isonet_det.data.findings import Findings
from isonet_det.data.photos import ORIENTATION, examine_photo
from isonet_det.data.register import register_from_argument
from isonet_det.inference.predictor import read_rgb


def photo(path, orientation, width=64, height=48):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize(
    ("orientation", "size", "kind"),
    [
        (1, (48, 64), None),
        (6, (64, 48), "annotated as displayed"),
        (6, (48, 64), "annotated as stored"),
        (3, (48, 64), "annotated nobody knows how"),
        (3, (50, 64), "another size"),
    ],
)
def test_orientations(tmp_path, orientation, size, kind):
    found = examine_photo(photo(tmp_path / "a.jpg", orientation), *size)
    assert found is None if kind is None else kind in found[0]
    if kind and "annotated" in kind:
        assert "EXIF" in found[0]


def test_turned_photos_that_tell_speak_for_those_that_do_not():
    for told in (True, False):
        findings = Findings()
        findings.add("photo that EXIF turns, annotated nobody knows how", "photo a")
        if told:
            findings.add("photo that EXIF turns, annotated as displayed", "photo b")
        findings.settle_orientations()
        assert findings.fatal is not told
        assert told or "mogrify" in findings.first_fatal()


def test_sixteen_bits(tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.full((8, 9), 30000, np.uint16)).save(path)
    kind, line = examine_photo(path, 8, 9)
    assert kind == "photo of 16 bits a channel" and path in line
    assert read_rgb(path) is None


def coco(folder, *names):
    content = {
        "images": [
            {"id": i, "file_name": n, "height": 48, "width": 64} for i, n in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}
            for i in range(len(names))
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return f"{folder}/a.json:{folder}/images"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("images/0.jpg", "repeat the folder images/"),
        ("..\\up\\0.jpg", "backslashes"),
        ("gone.jpg", "gone.jpg is missing"),
    ],
)
def test_names_of_photos_that_are_elsewhere(tmp_path, small, name, word):
    (tmp_path / "images").mkdir()
    photo(tmp_path / "images" / "0.jpg", 1)
    small.DATASETS.TEST = (register_from_argument(f"elsewhere-{word}={coco(tmp_path, name)}"),)
    with pytest.raises(ISONetError, match=word):
        check_datasets(small, train=False)


@pytest.fixture
def small():
    from isonet_det import get_cfg

    return get_cfg()


def test_a_colon_in_a_path(tmp_path):
    folder = tmp_path / "a:b"
    (folder / "images").mkdir(parents=True)
    photo(folder / "images" / "0.jpg", 1)
    name = register_from_argument(f"colon={coco(folder, '0.jpg')}")
    assert DatasetCatalog.get(name)[0]["file_name"] == f"{folder}/images/0.jpg"
