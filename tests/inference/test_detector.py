import json
import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from support import REPOSITORY, TINY, config, run_command, small_cfg, tool, tool_refuses

from isonet_det import ISONetError, build_model
from isonet_det.inference.export import check_detector, export_detector
from isonet_det.inference.predictor import Predictor, read_rgb

CLASSES = [{"id": 3 * i, "name": name} for i, name in enumerate(["disc", "box", "star", "ring"])]
# Without torch and this package, as where the file runs.
ALONE = (
    "import sys\nfor name in ('torch', 'detectron2', 'isonet_det'):\n    sys.modules[name] = None\n"
)


@pytest.fixture(scope="module")
def photos():
    return [record["file_name"] for record in DatasetCatalog.get("shapes_tiny")[:2]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(small_cfg())
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([0.0, 3, 0, 0, 0])
    path = tmp_path_factory.mktemp("trained") / "model_final.pth"
    torch.save({"model": model.state_dict(), "classes": CLASSES}, path)
    return path


def predictor(weights, *options):
    return Predictor(small_cfg("MODEL.WEIGHTS", str(weights), *options))


def test_the_command_and_the_program_of_the_docs(weights, photos, tmp_path):
    pytest.importorskip("onnxruntime")
    text = tool(
        "export.py", "quickstart.yaml", "d.onnx", *TINY, "INPUT.MIN_SIZE_TEST", "96",
        "--part", "detector", "--weights", weights, "--photos", *photos, cwd=tmp_path,
    )  # fmt: skip
    assert "largest difference to PyTorch" in text
    about = json.loads((tmp_path / "d.json").read_text())
    assert about["outputs"] == ["boxes", "classes", "masks", "scores"]
    assert about["classes"] == [c["name"] for c in CLASSES] and about["format"] == "RGB"
    assert about["pixel_mean"] == [123.675, 116.28, 103.53] and about["shortest_edge"] == 96

    image = read_rgb(photos[0])[:96, :96]  # which nothing resizes
    cv2.imwrite(str(tmp_path / "photo.png"), image[:, :, ::-1])
    page = (REPOSITORY / "docs/deployment.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (program,) = [block for block in blocks if "onnxruntime" in block]
    (tmp_path / "run.py").write_text(ALONE + program)
    result = run_command("run.py", "d.onnx", "photo.png", "drawn.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    printed = [line.split() for line in result.stdout.splitlines()]
    (instances,) = predictor(weights, "INPUT.MIN_SIZE_TEST", "96")([image])
    instances = instances[instances.scores > 0.5]
    assert len(printed) == len(instances) > 0
    names = [CLASSES[number]["name"] for number in instances.pred_classes.tolist()]
    expected = torch.cat([instances.pred_boxes.tensor, 1000 * instances.scores[:, None]], 1).numpy()
    for name, score, *box in printed:  # equal scores may come in either order
        distance = np.abs(expected - [*map(float, box), 1000 * float(score)]).max(1)
        assert distance.min() <= 1 and names[distance.argmin()] == name
    assert (cv2.imread(str(tmp_path / "drawn.png")) != image[:, :, ::-1]).any()


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_detector_agrees_at_other_sizes_and_another_one_is_noticed(weights, photos, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    trained = predictor(weights)
    content, names = export_detector(trained, photos[0], kind)
    assert names[0] == "boxes"
    difference, count = check_detector(trained, photos, content, kind)
    assert difference < 1e-4 and count > 0
    trained.model.backbone.fpn_output2.weight.data *= 1.1
    with pytest.raises(ISONetError, match="differs from PyTorch"):
        check_detector(trained, photos, content, kind)


def test_a_retinanet_too(photos, tmp_path):
    cfg = config(
        "retinanet_risonet50_fpn.yaml", "MODEL.RESNETS.DEPTH", 18, "MODEL.FPN.OUT_CHANNELS", 16,
        "MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0",
        "INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", tmp_path / "w.pth",
    )  # fmt: skip
    model = build_model(cfg)
    model.head.cls_score.weight.data *= 50  # so that scores differ
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    trained = Predictor(cfg)
    content, _ = export_detector(trained, photos[0], "torchscript")
    assert check_detector(trained, photos, content, "torchscript")[1] > 0


def test_what_cannot_be_exported_or_checked_is_one_line(weights, photos, tmp_path):
    trained = predictor(weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999")
    content, _ = export_detector(trained, photos[0], "torchscript")
    with pytest.raises(ISONetError, match="nothing is detected"):
        check_detector(trained, photos, content, "torchscript")
    for photo, kind, named in ((photos[0], "torch.export", "format of a detector is one of"),
                               ("none.png", "onnx", "none.png is missing; restore")):  # fmt: skip
        with pytest.raises(ISONetError, match=named):
            export_detector(trained, photo, kind)
    trained.model.roi_heads.keypoint_on = True
    with pytest.raises(ISONetError, match="got GeneralizedRCNN with keypoints"):
        export_detector(trained, photos[0], "onnx")
    words = ["quickstart.yaml", "d.onnx", "--part", "detector", "--weights", weights]
    assert "needs --photos" in tool_refuses("export.py", *words, cwd=tmp_path)
