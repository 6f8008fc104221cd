"""tools/demo.py and tools/visualize_data.py, as a person runs them."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from PIL import Image
from support import REPOSITORY, TINY, run_command, run_tool, small_cfg

from isonet_det import ISONetError
from isonet_det.data import render_shapes


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    torch.save({"model": build_model(small_cfg()).state_dict()}, folder / "model.pth")
    render_shapes(folder / "set", 5, 1)
    images = folder / "set" / "images"
    grey = cv2.cvtColor(cv2.imread(str(images / "000001.png")), cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(images / "000001.png"), grey)
    (images / "000003.png").write_bytes(b"no photo")
    writer = cv2.VideoWriter(str(folder / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
    for _ in range(4):
        writer.write(np.random.RandomState(0).randint(0, 256, (64, 96, 3)).astype(np.uint8))
    writer.release()
    return folder


def words(*arguments):
    return [
        "--config-file", "quickstart.yaml", "--weights", "model.pth", "--score", "0.01",
        *arguments, *TINY, "TEST.DETECTIONS_PER_IMAGE", "5",
    ]  # fmt: skip


def run(demo, *arguments):
    return run_tool("demo.py", *words(*arguments), cwd=demo)


def test_pictures_of_a_folder_and_the_broken_one_is_named(demo):
    arguments = words("--input", "set/images", "--batch", "2", "--output", "pictures")
    result = run_command(REPOSITORY / "tools" / "demo.py", *arguments, cwd=demo)
    assert result.returncode == 1, result.stderr[-2000:]
    assert "skipped: set/images/000003.png cannot be read" in result.stderr
    names = {p.name for p in (demo / "pictures").iterdir()}
    assert names == {f"00000{i}.png" for i in (0, 1, 2, 4)}
    assert "4 images, 1 skipped" in result.stdout


def test_json_of_a_pattern_does_not_depend_on_the_batch(demo):
    outputs = []
    for batch in ("1", "3"):
        pattern = "set/images/00000[0-2].png"
        result = run(demo, "--input", pattern, "--json", "--batch", batch, "--output", batch)
        assert result.returncode == 0, result.stderr[-2000:]
        outputs.append(json.loads((demo / batch / "detections.json").read_text()))
    assert {r["file_name"] for r in outputs[0]} == {f"set/images/00000{i}.png" for i in range(3)}
    assert {"bbox", "score", "category", "segmentation"} <= set(outputs[0][0])
    assert len(outputs[0]) == len(outputs[1])


def test_detections_have_the_data_sets_own_ids_and_come_as_csv_too(demo):
    content = json.loads((demo / "set" / "annotations.json").read_text())
    for image in content["images"]:
        image["id"] += 500
    for annotation in content["annotations"]:
        annotation["image_id"] += 500
        annotation["category_id"] += 70
    for category in content["categories"]:
        category["id"] += 70
    (demo / "own.json").write_text(json.dumps(content))
    result = run(
        demo, "--input", "set/images/000002.png", "--json", "--csv", "--output", "own",
        "--dataset", "own=own.json:set/images", "DATASETS.TEST", "('own',)",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    records = json.loads((demo / "own" / "detections.json").read_text())
    (image,) = [i for i in content["images"] if i["file_name"] == "000002.png"]
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert {r["image_id"] for r in records} == {image["id"]}
    assert all(names[r["category_id"]] == r["category"] for r in records)
    lines = (demo / "own" / "detections.csv").read_text().splitlines()
    assert lines[0] == "file_name,image_id,category_id,category,score,x,y,w,h"
    assert len(lines) == 1 + len(records)
    assert lines[1].startswith(f"set/images/000002.png,{image['id']},{records[0]['category_id']},")


def test_the_predictor_of_a_run(demo):
    from isonet_det.inference import Predictor

    cfg = small_cfg("TEST.DETECTIONS_PER_IMAGE", "5")
    (demo / "config.yaml").write_text(cfg.dump())
    predictor = Predictor.from_run(str(demo), weights="model.pth")
    records = predictor.detect([str(demo / "set" / "images" / "000000.png")], score=0.01)
    assert records and {"bbox", "category_id", "score", "segmentation"} <= records[0].keys()
    shown = demo / "set" / "images" / "000000.png"
    words = ("--run", ".", "--weights", "model.pth", "--json", "--score", "0.01")
    result = run_tool("demo.py", *words, "--input", shown, "--output", "of_run", cwd=demo)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(json.loads((demo / "of_run" / "detections.json").read_text())) == len(records)
    with pytest.raises(ISONetError, match=r"000003\.png is missing or cannot be read"):
        predictor.detect([str(demo / "set" / "images")])


def test_whatever_is_an_image_is_taken_and_what_is_none_refused(demo):
    from isonet_det.inference import Predictor

    predictor = Predictor(small_cfg("MODEL.WEIGHTS", str(demo / "model.pth")))
    path = demo / "set" / "images" / "000000.png"
    array = cv2.imread(str(path))[:, :, ::-1]
    (expected,) = predictor([array])
    rgba = np.dstack([array, array[:, :, :1]])
    for image in (array, path, str(path), Image.open(path), Image.fromarray(rgba), rgba):
        (found,) = predictor([image])
        assert len(found) and torch.equal(found.scores, expected.scores)
    grey = array[:, :, 0]
    (found,), (expected,) = predictor([grey]), predictor([np.dstack([grey] * 3)])
    assert torch.equal(found.scores, expected.scores)
    for wrong in (array / 255, torch.from_numpy(array.copy()).float(), array.transpose(2, 0, 1)):
        with pytest.raises(ISONetError, match="expected an image as an array"):
            predictor([wrong])
    with pytest.raises(ISONetError, match=r"expected a list of images, got one ndarray"):
        predictor(array)


class Bright:
    """A detector of bright regions of at least 25 pixels, as it sees them."""

    def __call__(self, inputs):
        outputs = []
        for data in inputs:
            bright = (data["image"].mean(0) > 128).numpy().astype(np.uint8)
            _, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
            regions = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] >= 25]
            size = data["height"], data["width"]
            masks = np.zeros((len(regions), *size), bool)
            for mask, i in zip(masks, regions, strict=True):
                region = (labels == i).astype(np.uint8)
                mask[:] = cv2.resize(region, size[::-1], interpolation=cv2.INTER_NEAREST)
            instances = Instances(size)
            instances.pred_masks = torch.from_numpy(masks)
            instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
            # Surer of a whole object than of a part of it.
            instances.scores = 1 - 1 / (2 + instances.pred_masks.flatten(1).sum(1))
            instances.pred_classes = torch.zeros(len(regions), dtype=torch.int64)
            outputs.append({"instances": instances})
        return outputs


def test_tiles_find_what_the_whole_photo_is_too_small_for(monkeypatch):
    import isonet_det.inference.predictor as module
    from isonet_det.inference.tiles import detect_in_tiles

    monkeypatch.setattr(module, "load_weights", lambda *args, **kwargs: None)
    predictor = module.Predictor(small_cfg())
    predictor.model = Bright()
    photo = np.zeros((640, 960, 3), np.uint8)
    boxes = [[40, 40, 60, 62], [500, 300, 522, 318], [930, 610, 950, 632], [300, 100, 420, 360]]
    for x0, y0, x1, y1 in boxes:
        cv2.rectangle(photo, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), -1)
    (alone,) = predictor([photo])
    assert len(alone) == 1  # the large one
    tiled = detect_in_tiles(predictor, photo, 128, 0.25, 0.5)
    # The large one lies in several tiles: its parts are merged.
    np.testing.assert_allclose(sorted(tiled.pred_boxes.tensor.tolist()), sorted(boxes), atol=10)
    for mask, box in zip(tiled.pred_masks.numpy(), tiled.pred_boxes.tensor.tolist(), strict=True):
        rows, columns = mask.nonzero()
        outline = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(outline, box, atol=2)


def test_the_demo_looks_at_tiles(demo):
    result = run(
        demo, "--input", "set/images/000000.png", "--slice", "48", "--json", "--output", "tiles"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads((demo / "tiles" / "detections.json").read_text())
    result = run(demo, "--input", "set/images/000000.png", "--slice", "48", "--overlap", "1")
    assert result.returncode == 2 and "got 48 and 1.0" in result.stderr.splitlines()[-1]


def test_a_video(demo):
    result = run(demo, "--video", "v.mp4", "--frames", "3", "--output", "video")
    assert result.returncode == 0, result.stderr[-2000:]
    video = cv2.VideoCapture(str(demo / "video" / "detections.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--input", "nowhere/*.jpg"), "names no image"),
        (("--video", "none.mp4"), "video none.mp4 cannot be opened"),
        ((), "name one of"),
        (("--input", "set/images/000000.png", "set/images"), "would both be drawn to none/000000"),
        (("--input", "set/images", "--batch", "0"), "expected a whole number from 1 up, got '0'"),
    ],
)
def test_what_cannot_be_shown(demo, arguments, named):
    result = run(demo, *arguments, "--output", "none")
    assert result.returncode == 2 and named in result.stderr.splitlines()[-1]


def test_no_image_is_drawn_over(demo):
    before = (demo / "set" / "images" / "000000.png").read_bytes()
    result = run(demo, "--input", "set/images", "--output", "set/images")
    assert result.returncode == 2 and "is one of the images" in result.stderr.splitlines()[-1]
    assert (demo / "set" / "images" / "000000.png").read_bytes() == before


def test_the_training_data_as_pictures(tmp_path, few_shapes):
    result = run_tool(
        "visualize_data.py", "--config-file", "quickstart.yaml", "--dataset", few_shapes,
        "--count", "3", "--output", "out", "DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "()",
        *TINY, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    pictures = list((tmp_path / "out").iterdir())
    assert len(pictures) == 3 and all(cv2.imread(str(p)) is not None for p in pictures)
