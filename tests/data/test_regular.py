import copy
import gzip
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from pycocotools import mask as mask_util
from support import config as ready
from support import data_set, predictions

from isonet_det import ISONetError, get_cfg
from isonet_det.data import check_datasets, register_from_argument, render_shapes
from isonet_det.data.mapper import NamingDatasetMapper
from isonet_det.data.register import open_set
from isonet_det.data.regular import regularize
from isonet_det.data.values import decode_counts
from isonet_det.evaluation.coco import build_evaluator


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regular") / "set"
    render_shapes(folder, 5, 4)
    register_from_argument(data_set("regular", folder))
    return folder, json.loads((folder / "annotations.json").read_text())


def register(content, folder, tmp_path, write=Path.write_text):
    path = tmp_path / "a.json"
    write(path, json.dumps(content))
    return register_from_argument(f"{tmp_path.name}={path}:{folder}/images")


def config(name, *options):
    sets = [word for key in ("TRAIN", "TEST") for word in (f"DATASETS.{key}", f"('{name}',)")]
    return ready("quickstart.yaml", *sets, *options)


def findings_of(content):
    return regularize(content, "x.json")[1]


def test_a_regular_file_is_used_in_place_and_checked_once(drawn, tmp_path, monkeypatch):
    folder, content = drawn
    name = register(content, folder, tmp_path)
    path = MetadataCatalog.get(name).json_file
    data = open_set(name)
    assert data.file == path == MetadataCatalog.get(name).json_file
    assert not data.findings.changes()
    monkeypatch.setattr("isonet_det.data.register.regularize", None)
    assert open_set(name) == data
    monkeypatch.undo()
    content["annotations"][0]["iscrowd"] = None
    (tmp_path / "new").write_text(json.dumps(content))
    (tmp_path / "new").replace(path)  # another content: checked again
    assert open_set(name).file != path


def test_the_content_stays_as_it_is(drawn):
    content = copy.deepcopy(drawn[1])
    content["annotations"][0].update(iscrowd=None, area="x", segmentation=[1, 2, 3, 4, 5, 6])
    before = copy.deepcopy(content)
    findings_of(content)
    assert content == before


IDS = {
    "text": lambda i: f"id {i}",
    "uuid": lambda i: f"{i:08x}-5b1c-4d43-9f6e-0123456789ab",
    "negative": lambda i: -i,
    "huge": lambda i: i + 2**70,
    "float": lambda i: float(i),
    "from 0": lambda i: i - 1,
}


def with_ids(content, change):
    for kind in ("images", "annotations", "categories"):
        for record in content[kind]:
            record["id"] = change(record["id"])
    for annotation in content["annotations"]:
        for key in ("image_id", "category_id"):
            annotation[key] = change(annotation[key])
    return content


def compressed(content, i, a):
    if isinstance(a["segmentation"], list):
        image = next(m for m in content["images"] if m["id"] == a["image_id"])
        size = (int(image["height"]), int(image["width"]))
        rle = mask_util.merge(mask_util.frPyObjects(a["segmentation"], *size))
        a["segmentation"] = {"size": list(size), "counts": rle["counts"].decode()}


def listed(content, i, a):
    """RLE as a list, of floats."""
    compressed(content, i, a)
    if isinstance(a["segmentation"]["counts"], str):
        counts = decode_counts(a["segmentation"]["counts"])
        a["segmentation"]["counts"] = [float(c) for c in counts]


# What may happen to any annotation of a file that has to stay usable.
SPOILED = {
    "iscrowd null": lambda c, i, a: a.get("iscrowd") or a.update(iscrowd=None),
    "iscrowd text": lambda c, i, a: a.get("iscrowd") or a.update(iscrowd="0"),
    "iscrowd missing": lambda c, i, a: a.get("iscrowd") or a.pop("iscrowd"),
    "area missing": lambda c, i, a: a.pop("area", None),
    "area nan": lambda c, i, a: a.update(area=math.nan),
    "box text": lambda c, i, a: a.update(bbox=[str(v) for v in a["bbox"]]),
    "keypoints null": lambda c, i, a: a.update(keypoints=None),
    "stray point": lambda c, i, a: (
        a["segmentation"].append([5, 5]) if isinstance(a["segmentation"], list) else None
    ),
    "rle": compressed,
    "rle list": listed,
}
# What may happen to a whole file that has to stay usable.
SPOILED_FILES = {
    "header": lambda c: c.update(info={"year": "", "date_created": 0}, licenses=None),
    "sizes as text": lambda c: [i.update(height=str(i["height"])) for i in c["images"]],
    "names null": lambda c: [k.update(name=None) for k in c["categories"]],
    "names the same": lambda c: [k.update(name="thing") for k in c["categories"]],
    "skeleton": lambda c: [k.update(skeleton=[["a", "b"]]) for k in c["categories"]],
    "image_id as text": lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
}
# What cannot be made regular, and a word of the line.
BROKEN = {
    "nested polygon": (lambda a, c: a.update(segmentation=[[[1, 2], [3, 4]]]), "annotation"),
    "rle without counts": (lambda a, c: a.update(segmentation={"size": [128, 112]}), "counts"),
    "box nan": (lambda a, c: a.update(bbox=[math.nan] * 4), "annotation"),
    "iscrowd": (lambda a, c: a.update(iscrowd="maybe"), "iscrowd"),
    "image": (lambda a, c: a.update(image_id="nowhere"), "unknown image"),
    "category": (lambda a, c: a.update(category_id=[1]), "unknown category"),
    "web address": (lambda a, c: c["images"][0].update(file_name="https://a.b/c.png"), "http"),
    "no size": (lambda a, c: c["images"][0].update(height=-1), "height and width"),
    "same category": (lambda a, c: c["categories"].append(c["categories"][0]), "category id"),
    "no mask": (lambda a, c: a.update(segmentation=None), "MASK_ON"),
}


ENCODINGS = {
    "byte order mark": lambda p, t: p.write_bytes(b"\xef\xbb\xbf" + t.encode()),
    "gzip": lambda p, t: p.write_bytes(gzip.compress(t.encode())),
}


@pytest.mark.parametrize("kind", [*SPOILED, *SPOILED_FILES, *ENCODINGS])
def test_annotations_and_files_of_every_kind(drawn, tmp_path, kind):
    folder, content = drawn
    spoiled = copy.deepcopy(content)
    if kind in SPOILED:
        for i, annotation in enumerate(spoiled["annotations"]):
            SPOILED[kind](spoiled, i, annotation)
    elif kind in SPOILED_FILES:
        SPOILED_FILES[kind](spoiled)
    name = register(spoiled, folder, tmp_path, ENCODINGS.get(kind, Path.write_text))
    trains_and_evaluates(config(name))
    names = open_set(name).class_names
    assert len(set(names)) == 4 and all(isinstance(n, str) and n for n in names)


def trains_and_evaluates(cfg):
    """Every drawn object is fed, and perfect predictions get AP 100."""
    cfg = check_datasets(cfg)
    drawn, (name,) = DatasetCatalog.get("regular"), cfg.DATASETS.TEST
    mapper = NamingDatasetMapper(cfg, True)
    fed = sum(len(mapper(record)["instances"]) for record in get_detection_dataset_dicts(name))
    assert fed == sum(not a["iscrowd"] for record in drawn for a in record["annotations"])
    evaluator = build_evaluator(cfg, name)
    evaluator._output_dir = None
    evaluator.reset()
    photos = {record["file_name"]: record for record in DatasetCatalog.get(name)}
    for record, output in predictions(drawn):
        evaluator.process([photos[record["file_name"]]], [output])
    ap = {task: values["AP"] for task, values in evaluator.evaluate().items()}
    assert ap == pytest.approx({"bbox": 100, "segm": 100}, abs=0.1)


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_kind(drawn, tmp_path, kind):
    folder, content = drawn
    spoiled = with_ids(copy.deepcopy(content), IDS[kind])
    name = register(spoiled, folder, tmp_path)
    trains_and_evaluates(config(name))
    data = open_set(name)
    originals = [identity for *_, identity in data.photos]
    assert sorted(map(str, originals)) == sorted(str(i["id"]) for i in spoiled["images"])
    assert [c["id"] for c in data.classes] == [c["id"] for c in spoiled["categories"]]


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_made_regular(drawn, tmp_path, kind):
    folder, content = drawn
    spoiled = copy.deepcopy(content)
    change, word = BROKEN[kind]
    change(spoiled["annotations"][0], spoiled)
    with pytest.raises(ISONetError, match=word) as error:
        check_datasets(config(register(spoiled, folder, tmp_path)))
    assert "\n" not in str(error.value)


def test_a_photo_too_thin_to_be_resized_keeps_a_row(drawn, tmp_path):
    path = tmp_path / "thin.png"
    cv2.imwrite(str(path), np.zeros((2, 3000, 3), np.uint8))
    mapped = NamingDatasetMapper(get_cfg(), False)({"file_name": str(path)})
    assert min(mapped["image"].shape[1:]) == 1


@pytest.mark.parametrize(("change", "word"), [
    (lambda a: a.update(iscrowd=1), "iscrowd 1"),
    (lambda a: a.update(bbox=[*a["bbox"][:2], 0, 5]), "without area"),
    (lambda a: a.update(bbox=[v / 200 for v in a["bbox"]]), "multiply"),
])  # fmt: skip
def test_nothing_to_train_on(drawn, tmp_path, change, word):
    folder, content = drawn
    spoiled = copy.deepcopy(content)
    for annotation in spoiled["annotations"]:
        change(annotation)
    with pytest.raises(ISONetError, match=word):
        check_datasets(config(register(spoiled, folder, tmp_path)))


def of_boxes(height, width, boxes):
    marks = [{"id": i, "image_id": 1, "category_id": 1, "bbox": b} for i, b in enumerate(boxes, 1)]
    photo = {"id": 1, "file_name": "a", "height": height, "width": width}
    categories = [{"id": 1, "name": "a"}]
    return {"images": [photo], "categories": categories, "annotations": marks}


def test_corners_are_refused_and_full_page_boxes_warned_of():
    boxes = [[50, 50, 90, 90], [10, 60, 40, 80], [60, 5, 95, 50]]
    assert "x2 - x1" in findings_of(of_boxes(100, 100, boxes)).fatal
    widths = [[x, y, x2 - x, y2 - y] for x, y, x2, y2 in boxes]
    assert not findings_of(of_boxes(100, 100, widths)).fatal
    # A page's edge is more likely than corners.
    findings = findings_of(of_boxes(480, 640, [[5, 6, 640, 480]] * 10))
    assert not findings.fatal
    assert "boxes that may be [x1, y1, x2, y2]" in " ".join(findings.changes())
