import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from PIL import Image
from support import REPOSITORY, TINY, run_command, small_cfg, tool, tool_refuses

from isonet_det import ISONetError
from isonet_det.data import render_shapes
from isonet_det.inference import Predictor
from isonet_det.inference.tiles import detect_in_tiles


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
    (folder / "taken" / "000001.png").mkdir(parents=True)
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


def test_pictures_of_a_folder_and_the_broken_one_is_named(demo):
    arguments = words("--input", "set/images", "--output", "pictures")
    result = run_command(REPOSITORY / "tools" / "demo.py", *arguments, cwd=demo)
    assert result.returncode == 1, result.stderr[-2000:]
    assert "skipped: photo set/images/000003.png does not decode (" in result.stderr
    names = {p.name for p in (demo / "pictures").iterdir()}
    assert names == {f"00000{i}.png" for i in (0, 1, 2, 4)}
    assert "4 images, 1 skipped" in result.stdout


def test_detections_of_a_pattern_have_the_data_sets_own_ids_and_come_as_csv_too(demo):
    content = json.loads((demo / "set" / "annotations.json").read_text())
    for image in content["images"]:
        image["id"] += 500
    for category in content["categories"]:
        category["id"] += 70
    content["annotations"] = []
    (demo / "own.json").write_text(json.dumps(content))
    tool("demo.py", *words(
        "--input", "set/images/00000[0-2].png", "--json", "--csv", "--output", "own",
        "--dataset", "own=own.json:set/images",
    ), "DATASETS.TEST", "('own',)", cwd=demo)  # fmt: skip
    records = json.loads((demo / "own" / "detections.json").read_text())
    images = {f"set/images/{i['file_name']}": i["id"] for i in content["images"]}
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert {r["file_name"] for r in records} == {f"set/images/00000{i}.png" for i in range(3)}
    assert all(images[r["file_name"]] == r["image_id"] for r in records)
    assert all(names[r["category_id"]] == r["category"] for r in records)
    lines = (demo / "own" / "detections.csv").read_text().splitlines()
    assert lines[0] == "file_name,image_id,category_id,category,score,x,y,w,h"
    first = records[0]
    assert len(lines) == 1 + len(records)
    assert lines[1].startswith(f"{first['file_name']},{first['image_id']},{first['category_id']},")


def test_the_predictor_of_a_run(demo):
    (demo / "config.yaml").write_text(small_cfg("TEST.DETECTIONS_PER_IMAGE", "5").dump())
    predictor = Predictor.from_run(str(demo), weights="model.pth")
    photo = str(demo / "set" / "images" / "000000.png")
    records = predictor.detect([photo], score=0.01)
    assert records and {"bbox", "category_id", "score", "segmentation"} <= records[0].keys()
    options = ("--run", ".", "--weights", "model.pth", "--json", "--score", "0.01")
    tool("demo.py", *options, "--input", photo, "--output", "of_run", cwd=demo)
    assert len(json.loads((demo / "of_run" / "detections.json").read_text())) == len(records)
    with pytest.raises(ISONetError, match=r"000003\.png does not decode"):
        predictor.detect([str(demo / "set" / "images")])


def test_whatever_is_an_image_is_taken_and_what_is_none_refused(demo):
    predictor = Predictor(small_cfg("MODEL.WEIGHTS", demo / "model.pth"))
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
            masks = torch.zeros(len(regions), *size, dtype=torch.bool)
            for mask, i in zip(masks.numpy(), regions, strict=True):
                region = (labels == i).astype(np.uint8)
                mask[:] = cv2.resize(region, size[::-1], interpolation=cv2.INTER_NEAREST)
            boxes = BitMasks(masks).get_bounding_boxes()
            instances = Instances(size, pred_masks=masks, pred_boxes=boxes)
            # Surer of a whole object than of a part of it.
            instances.scores = 1 - 1 / (2 + masks.flatten(1).sum(1))
            instances.pred_classes = torch.zeros(len(regions), dtype=torch.int64)
            outputs.append({"instances": instances})
        return outputs


def test_tiles_find_what_the_whole_photo_is_too_small_for(demo):
    predictor = Predictor(small_cfg("MODEL.WEIGHTS", demo / "model.pth"))
    predictor.model = Bright()
    photo = np.zeros((640, 960, 3), np.uint8)
    boxes = [[40, 40, 60, 62], [500, 300, 522, 318], [930, 610, 950, 632], [300, 100, 420, 360]]
    for x0, y0, x1, y1 in boxes:
        photo[y0:y1, x0:x1] = 255
    (alone,) = predictor([photo])
    assert len(alone) == 1  # the large one
    tiled = detect_in_tiles(predictor, photo, 128, 0.25, 0.5)
    # The large one lies in several tiles: its parts are merged.
    found = tiled.pred_boxes.tensor.tolist()
    np.testing.assert_allclose(sorted(found), sorted(boxes), atol=10)
    outlines = BitMasks(tiled.pred_masks).get_bounding_boxes().tensor
    np.testing.assert_allclose(outlines, found, atol=2)


def test_a_video_and_tiles_of_a_photo(demo):
    tool("demo.py", *words("--video", "v.mp4", "--frames", "3", "--output", "video"), cwd=demo)
    video = cv2.VideoCapture(str(demo / "video" / "detections.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    tiles = ("--input", "set/images/000000.png", "--slice", "48")
    tool("demo.py", *words(*tiles, "--json", "--output", "tiles"), cwd=demo)
    assert json.loads((demo / "tiles" / "detections.json").read_text())
    line = tool_refuses("demo.py", *words(*tiles, "--overlap", "1"), cwd=demo)
    assert "got 48 and 1.0" in line


@pytest.mark.parametrize(("arguments", "named"), [
    (("--input", "nowhere/*.jpg"), "names no image"),
    (("--video", "none.mp4"), "video none.mp4 cannot be opened"),
    ((), "name one of"),
    (("--input", "set/images/000000.png", "set/images"), "would both be drawn to none/000000"),
    (("--input", "set/images/000001.png", "--output", "taken"), "taken/000001.png: Is a"),
    (("--input", "set/images", "--output", "set/images"), "is one of the images"),
])  # fmt: skip
def test_what_cannot_be_shown_and_no_image_is_drawn_over(demo, arguments, named):
    before = (demo / "set" / "images" / "000000.png").read_bytes()
    assert named in tool_refuses("demo.py", *words("--output", "none", *arguments), cwd=demo)
    assert (demo / "set" / "images" / "000000.png").read_bytes() == before


def test_the_training_data_as_pictures(tmp_path, few_shapes):
    tool(
        "visualize_data.py", "--config-file", "quickstart.yaml", "--dataset", few_shapes,
        "--count", "3", "--output", "out", "DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "()",
        *TINY, cwd=tmp_path,
    )  # fmt: skip
    pictures = list((tmp_path / "out").iterdir())
    assert len(pictures) == 3 and all(cv2.imread(str(p)) is not None for p in pictures)
