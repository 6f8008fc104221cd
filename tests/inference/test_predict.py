"""tools/demo.py and tools/visualize_data.py, as a person runs them."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from support import REPOSITORY, TINY, run_command, run_tool, small_cfg

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
