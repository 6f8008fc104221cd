import json

import numpy as np
import pytest
from pycocotools import mask as mask_util
from support import data_set, small_cfg, tool

from isonet_det import ISONetError
from isonet_det.analysis.curves import draw_comparison
from isonet_det.analysis.report import write_report
from isonet_det.data import register_from_argument, render_shapes
from isonet_det.data.shapes import CLASSES
from isonet_det.evaluation.coco import truth_of
from isonet_det.evaluation.detail import examine, read_results

# tidecv 1.0.1 on these detections: errors' AP and counts, of boxes and of masks.
TIDECV = {
    "bbox": {
        "Cls": (12.2178, 10), "Loc": (3.7149, 4), "Both": (0.4754, 3),
        "Dupe": (0.2936, 3), "Bkg": (2.4798, 17), "Miss": (11.4147, 9),
    },
    "segm": {
        "Cls": (12.4266, 9), "Loc": (7.2782, 5), "Both": (0.9469, 4),
        "Dupe": (0.2936, 3), "Bkg": (3.4573, 20), "Miss": (12.3193, 10),
    },
}  # fmt: skip


def overlap(detection, annotation):
    """Intersection over union; over the detection's area where the annotation is a crowd."""
    (x0, y0, w0, h0), (x1, y1, w1, h1) = detection["bbox"], annotation["bbox"]
    w = max(0, min(x0 + w0, x1 + w1) - max(x0, x1))
    h = max(0, min(y0 + h0, y1 + h1) - max(y0, y1))
    return w * h / (w0 * h0 if annotation["iscrowd"] else w0 * h0 + w1 * h1 - w * h)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "set"
    render_shapes(folder, 24, 3)
    name = register_from_argument(data_set("shapes_report", folder))
    truth = truth_of(name)
    rng = np.random.RandomState(0)
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    results = []

    def add(image, category, box, score, bitmap):
        rle = mask_util.encode(np.asfortranarray(bitmap))
        rle["counts"] = rle["counts"].decode()
        found = {"image_id": image, "category_id": category, "bbox": box, "score": float(score)}
        results.append({**found, "segmentation": rle})

    for annotation in truth["annotations"]:
        if rng.rand() < 0.2:
            continue  # missed
        for _ in range(1 + (rng.rand() < 0.1)):  # found twice
            image, (x, y, w, h) = annotation["image_id"], annotation["bbox"]
            polygons = mask_util.frPyObjects(annotation["segmentation"], *sizes[image])
            shift = int(0.12 * rng.randn() * w)
            bitmap = np.roll(mask_util.decode(mask_util.merge(polygons)), shift, 1)
            number = annotation["category_id"]
            number = number if rng.rand() < 0.85 else 1 + int(rng.randint(4))  # another class
            add(image, number, [x + shift, y, w, h], rng.rand(), bitmap)
    for image, (height, width) in sizes.items():  # in the background
        bitmap = np.zeros((height, width), np.uint8)
        bitmap[5 : 5 + height // 4, 5 : 5 + width // 4] = 1
        add(image, 1, [5, 5, width // 4, height // 4], 0.8 * rng.rand(), bitmap)
    path = folder / "results.json"
    path.write_text(json.dumps(results))
    return name, truth, str(path)


def test_the_confusion_is_a_written_out_count_and_every_error_is_of_a_photo(shapes):
    _, truth, path = shapes
    detections = [d for d in read_results(path, truth) if d["score"] >= 0.5]
    expected = np.zeros((5, 5), int)
    for image in truth["images"]:
        marks, mine = (
            [d for d in some if d["image_id"] == image["id"]]
            for some in (truth["annotations"], detections)
        )
        objects = [a for a in marks if not a["iscrowd"]]
        free = set(range(len(objects)))
        for d in sorted(mine, key=lambda d: -d["score"]):
            overlaps = {i: overlap(d, objects[i]) for i in free}
            best = max(overlaps, key=overlaps.get, default=None)
            if best is not None and overlaps[best] >= 0.5:
                expected[objects[best]["category_id"] - 1, d["category_id"] - 1] += 1
                free.remove(best)
            elif not any(a["iscrowd"] and overlap(d, a) >= 0.5 for a in marks):
                expected[4, d["category_id"] - 1] += 1
        for i in free:
            expected[objects[i]["category_id"] - 1, 4] += 1
    detail = examine(truth, read_results(path, truth), "bbox")
    np.testing.assert_array_equal(detail.confusion, expected)
    found = {kind: sum(len(kinds[kind]) for kinds in detail.photos.values())
             for kind in ("missed", "false", "confused")}  # fmt: skip
    confused = expected[:4, :4].sum() - expected.trace()
    assert found == {"missed": expected[:, 4].sum(), "false": expected[4].sum(),
                     "confused": confused} and all(found.values())  # fmt: skip


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_errors_cost_what_tidecv_says(shapes, task):
    _, truth, path = shapes
    detail = examine(truth, read_results(path, truth), task)
    assert detail.tide.keys() == TIDECV[task].keys()
    for name, (cost, count) in detail.tide.items():
        assert (round(cost, 4), count) == TIDECV[task][name], name


def test_the_tool_writes_a_page_that_needs_no_network(shapes, tmp_path):
    name, _, path = shapes
    words = ["--results", path, "--dataset", data_set(name, path.removesuffix("/results.json"))]
    assert tool("report.py", *words, cwd=tmp_path).splitlines()[0] == "./report.html"
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.replace("</html>", "")
    for text in [*CLASSES, "background taken for an object", "calibration error", "missed: "]:
        assert text in page
    write_report(name, path, str(tmp_path / "report.html"), score=0.999)
    page = (tmp_path / "report.html").read_text()
    assert "Nothing was predicted with a score of 0.999: the best one is 0.9" in page


def test_a_run_is_reported_on_its_own_test_set(shapes, tmp_path):
    """Whichever sets are named before it."""
    name, _, path = shapes
    (tmp_path / "config.yaml").write_text(small_cfg("DATASETS.TEST", f"('{name}',)").dump())
    render_shapes(tmp_path / "train", 2, 1)
    sets = [data_set("report_train", tmp_path / "train")]
    sets += [data_set(name, path.removesuffix("/results.json"))]
    words = [word for one in sets for word in ("--dataset", one)]
    tool("report.py", tmp_path, "--results", path, *words, cwd=tmp_path)
    assert f"data set {name}, 24 images" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("content", "words"), [
    (None, "not found; evaluate first"),
    ("[", "expected COCO's result format"),
    ('[{"bbox": [1, 2, NaN, 4]}]', "four finite numbers, got"),
    ('[{"image_id": 999, "category_id": 1, "score": 1, "bbox": [1, 2, 3, 4]}]', "images.*999"),
    ("[]", "there are no detections"),
])  # fmt: skip
def test_results_that_cannot_be_are_one_line(shapes, tmp_path, content, words):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ISONetError, match=words):
        write_report(shapes[0], str(path), str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_parameters_flops_and_activations_of_a_config(tmp_path):
    text = tool("analyze_model.py", "quickstart.yaml", "--height", 64, "--width", 96, cwd=tmp_path)
    assert "| backbone.bottom_up | 0.68 |" in text and "activations:" in text


def test_runs_are_compared_in_one_picture(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [json.dumps({"iteration": i, "loss_cls": value / (i + 1)}) for i in range(3)]
        (tmp_path / name / "metrics.json").write_text("\n".join(rows))
    words = ["one=a", "two=b", "--metrics", "loss_cls", "--output", "curves.png"]
    tool("compare_runs.py", *words, cwd=tmp_path)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for name, metric, named in (("a", "bbox/AP", r"a/metrics\.json has no bbox/AP"),
                                ("c", "loss_cls", r"c/metrics\.json has no loss_cls")):  # fmt: skip
        with pytest.raises(ISONetError, match=named):
            draw_comparison({"one": f"{tmp_path}/{name}"}, [metric], "", f"{tmp_path}/no.png")
