import copy
import json
import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.export import scripting_with_instances
from detectron2.modeling import build_backbone
from detectron2.structures import Boxes
from support import (
    PENALTY,
    REPOSITORY,
    TINY,
    authors_state,
    config,
    run_command,
    small_cfg,
    tool,
    tool_refuses,
)

from isonet_det import ISONetError, build_model, fuse_for_inference, load_backbone
from isonet_det.inference.export import (
    check_backbone,
    check_detector,
    export_backbone,
    export_detector,
)
from isonet_det.inference.predictor import Predictor, read_rgb
from isonet_det.modeling.isonet import ISONet, ISONetOptions


@pytest.mark.parametrize(("depth", "options"), [(18, {"activation": "relu"}), (50, {})])
def test_fusing_is_exact_to_rounding_and_leaves_the_original(depth, options):
    net = ISONet(depth, ISONetOptions(**options), out_features=["res3", "res5"]).double()
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    before = copy.deepcopy(net.state_dict())
    fused = fuse_for_inference(net)
    assert not any("res_multiplier" in name for name in fused.state_dict())
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, found = net.eval()(x), fused(x)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def backbone():
    net = build_backbone(config("mask_rcnn_risonet18_fpn.yaml", "MODEL.FPN.OUT_CHANNELS", 16))
    load_backbone(net, authors_state(ISONet(18)))
    return net.eval()


@pytest.mark.parametrize(
    "kind", ["onnx", "torchscript", pytest.param("torch.export", marks=pytest.mark.slow)]
)
def test_exports_agree_at_any_size_and_another_network_is_noticed(backbone, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    content, names = export_backbone(backbone, kind)
    assert names == ["p2", "p3", "p4", "p5", "p6"]
    for size in ((128, 192), (256, 128)):
        assert check_backbone(backbone, content, kind, size) < 1e-4
    other = copy.deepcopy(backbone)
    other.bottom_up.res5[1].conv2.weight.data *= 1.1
    with pytest.raises(ISONetError, match="differs from PyTorch"):
        check_backbone(other, content, kind)


def test_the_command_fills_the_fpn_of_a_trained_detector(tmp_path):
    source = build_model(config("quickstart.yaml"))
    for parameter in source.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    torch.save({"model": source.state_dict()}, tmp_path / "model_final.pth")
    command = ["quickstart.yaml", "b.pt", "--format", "torchscript", "--weights", "model_final.pth"]
    text = tool("export.py", *command, cwd=tmp_path)
    assert "p2, p3, p4" in text and "difference to PyTorch" in text
    content = (tmp_path / "b.pt").read_bytes()
    assert check_backbone(source.backbone.eval(), content, "torchscript") < 1e-4


def test_detectron2_scripts_a_detector_with_the_loss_hook():
    model = copy.deepcopy(build_model(small_cfg(*PENALTY, "MODEL.WEIGHTS", "w.pth")).eval())
    tensors = ("objectness_logits", "scores", "pred_classes", "pred_masks")
    fields = {"proposal_boxes": Boxes, "pred_boxes": Boxes, **dict.fromkeys(tensors, torch.Tensor)}
    scripted = scripting_with_instances(model, fields)
    images = [{"image": 255 * torch.rand(3, *size)} for size in ((64, 96), (70, 50))]
    with torch.no_grad():
        expected, found = (m.inference(images, do_postprocess=False) for m in (model, scripted))
    for a, b in zip(expected, found, strict=True):
        assert len(a) and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_masks, b.pred_masks)
    assert len(model._forward_hooks) == 1  # the loss is still there


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
def test_a_detector_agrees_at_other_sizes_and_another_is_noticed(weights, photos, kind):
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
