import pytest
import torch
from support import config, tool

from isonet_det import build_model
from isonet_det.analysis.flops import analyze_model
from isonet_det.modeling.layers import SReLU


def counts(*options):
    model = build_model(config("quickstart.yaml", *options)).eval()
    return model, analyze_model(model, 64, 96)


@pytest.mark.slow
def test_srelu_and_scalars_are_counted():
    part = "backbone.bottom_up"
    model, found = counts()
    relu, plain = (
        counts(f"MODEL.ISONET.{key}", value)[1]["gflops"][part]
        for key, value in (("ACTIVATION", "relu"), ("RESIDUAL", "False"))
    )
    assert found["parameters"][""] == sum(p.numel() for p in model.parameters())
    elements = []
    for module in model.modules():
        if isinstance(module, SReLU):
            module.register_forward_hook(lambda m, i, o: elements.append(o.numel()))
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, 64, 96))
    assert (found["gflops"][part] - relu) * 1e9 == pytest.approx(sum(elements), rel=1e-6)
    blocks = [m for m in model.modules() if getattr(m, "res_multiplier", None) is not None]
    scaled = sum(block.conv2.weight.numel() for block in blocks)
    assert found["gflops"][part] - plain > scaled / 1e9


def test_the_command(tmp_path):
    text = tool("analyze_model.py", "quickstart.yaml", "--height", 64, "--width", 96, cwd=tmp_path)
    assert "| backbone.bottom_up | 0.68 |" in text and "activations:" in text
