import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import authors_state, tool
from torch import nn

from isonet_det import ISONet, ISONetError
from isonet_det.analysis.isometry import analyze_convolutions, singular_values, summarize


def as_matrix(weight, stride, size):
    channels, height, width = weight.shape[1:]
    images = torch.eye(channels * size * size, dtype=torch.float64).view(-1, channels, size, size)
    images = F.pad(images, (0, width - 1, 0, height - 1), mode="circular")
    return F.conv2d(images, weight, stride=stride).flatten(1).t()


@pytest.mark.parametrize("size", [4, 2])  # 2: smaller than some of the kernels
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (2, 4, 3, 3), (3, 3, 1, 1), (2, 3, 1, 3)])
def test_singular_values_are_those_of_the_matrix(shape, stride, size):
    weight = torch.randn(shape, dtype=torch.float64)
    found = singular_values(weight, stride, size).flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(as_matrix(weight, stride, size))
    np.testing.assert_allclose(found.numpy(), expected[: len(found)].numpy(), atol=1e-10)
    assert not expected[len(found) :].abs().gt(1e-10).any()


def test_delta_is_isometric_and_random_weights_are_not():
    net = ISONet(18, out_features=["res3"])
    numbers = summarize(net)
    assert numbers["isometry/penalty_max"] == 0 and numbers["isometry/srelu_bias_mean"] == -1
    assert numbers["isometry/res_multiplier_max"] == 0
    nn.init.kaiming_normal_(net.res2[1].conv1.weight)
    reports = {r.name: r for r in analyze_convolutions(net, 4)}
    block, random = reports["res2.0.conv1"], reports["res2.1.conv1"]
    assert (block.smallest, block.median, block.largest) == pytest.approx((1, 1, 1))
    assert block.penalty == 0
    assert random.penalty > 1 and random.smallest < 0.7 < 1.4 < random.largest
    assert len(reports) == sum(isinstance(m, nn.Conv2d) for m in net.modules())
    with pytest.raises(ISONetError, match="size 5: expected a multiple"):
        singular_values(net.res3[0].conv1.weight, 2, 5)


def test_the_command_puts_networks_side_by_side(tmp_path):
    torch.save(authors_state(ISONet(18)), tmp_path / "r.pth")
    command = ["r.pth", "quickstart.yaml", "--size", "2", "--output", "out"]
    text = tool("analyze_isometry.py", *command, cwd=tmp_path)
    assert "res5.1.conv2" in text and "isometry/srelu_bias_mean" in text
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"0.csv", "1.csv", "isometry.png"}
    assert (tmp_path / "out" / "0.csv").read_text().splitlines()[1].startswith("stem.conv,")
