import pytest
import torch
from support import run_tool

from isonet_det import build_model, model_zoo
from isonet_det.analysis.flops import analyze_model
from isonet_det.config import merge_options
from isonet_det.modeling.layers import SReLU


def counts(*options):
    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(cfg, ["MODEL.DEVICE", "cpu", *options])
    model = build_model(cfg).eval()
    torch.manual_seed(0)
    return model, analyze_model(model, 64, 96)


@pytest.mark.slow
def test_srelu_and_scalars_are_counted():
    model, found = counts()
    assert found["parameters"][""] == sum(p.numel() for p in model.parameters())
    _, relu = counts("MODEL.ISONET.ACTIVATION", "relu")
    part = "backbone.bottom_up"
    elements = []
    for module in model.modules():
        if isinstance(module, SReLU):
            module.register_forward_hook(lambda m, i, o: elements.append(o.numel()))
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, 64, 96))
    difference = (found["gflops"][part] - relu["gflops"][part]) * 1e9
    assert difference == pytest.approx(sum(elements), rel=1e-6)
    blocks = [m for m in model.modules() if getattr(m, "res_multiplier", None) is not None]
    scaled = sum(block.conv2.weight.numel() for block in blocks)
    _, plain = counts("MODEL.ISONET.RESIDUAL", "False")
    assert found["gflops"][part] - plain["gflops"][part] > scaled / 1e9


def test_the_command(tmp_path):
    command = ["quickstart.yaml", "--height", "64", "--width", "96"]
    result = run_tool("analyze_model.py", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| backbone.bottom_up | 0.68 |" in result.stdout and "activations:" in result.stdout
