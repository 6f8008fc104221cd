import copy

import pytest
import torch
from detectron2.export import scripting_with_instances
from detectron2.modeling import build_backbone
from detectron2.structures import Boxes
from support import PENALTY, authors_state, config, small_cfg, tool

from isonet_det import (
    ISONet,
    ISONetError,
    ISONetOptions,
    build_model,
    fuse_for_inference,
    load_backbone,
)
from isonet_det.inference.export import check_export, export_backbone


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
def test_exports_agree_at_any_size_and_another_network_is_noticed(backbone, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    names = export_backbone(backbone, tmp_path / "b.bin", kind)
    assert names == ["p2", "p3", "p4", "p5", "p6"]
    for size in ((128, 192), (256, 128)):
        assert check_export(backbone, tmp_path / "b.bin", kind, size) < 1e-4
    other = copy.deepcopy(backbone)
    other.bottom_up.res5[1].conv2.weight.data *= 1.1
    with pytest.raises(ISONetError, match="differs from PyTorch"):
        check_export(other, tmp_path / "b.bin", kind)


def test_the_command_fills_the_fpn_of_a_trained_detector(tmp_path):
    source = build_model(config("quickstart.yaml"))
    for parameter in source.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    torch.save({"model": source.state_dict()}, tmp_path / "model_final.pth")
    command = ["quickstart.yaml", "b.pt", "--format", "torchscript", "--weights", "model_final.pth"]
    text = tool("export.py", *command, cwd=tmp_path)
    assert "p2, p3, p4" in text and "difference to PyTorch" in text
    assert check_export(source.backbone.eval(), tmp_path / "b.pt", "torchscript") < 1e-4


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
