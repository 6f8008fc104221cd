import copy

import pytest
import torch
from support import authors_state
from torch._dynamo.utils import counters

from isonet_det import ISONet, load_backbone
from isonet_det.modeling.execution import compile_backbone


@pytest.fixture
def network():
    torch.compiler.reset()
    counters.clear()
    net = ISONet(18, out_features=["stem", "res2"])
    load_backbone(net, authors_state(net))
    return net


def gradients(net, x):
    net.zero_grad()
    sum(m.square().mean() for m in net(x).values()).backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.slow
def test_a_compiled_backbone_is_the_same_function_for_any_picture(network):
    plain = copy.deepcopy(network)
    compile_backbone(network, backend="aot_eager")
    for size in ((2, 3, 160, 192), (2, 3, 224, 160), (3, 3, 192, 288)):
        x = torch.randn(size)
        torch.testing.assert_close(gradients(network, x), gradients(plain, x))
    assert counters["stats"]["unique_graphs"] == 1
    assert list(network.state_dict()) == list(plain.state_dict())
    assert copy.deepcopy(network)(x)["res2"].equal(plain(x)["res2"])  # copies are not compiled
    torch.jit.trace(network, x, strict=False)


def test_what_cannot_be_compiled_runs_as_it_is_with_one_line(network, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    x = torch.randn(1, 3, 64, 64)
    expected = network(x)["res2"]
    compile_backbone(network, backend=broken)
    assert all(network(x)["res2"].equal(expected) for _ in range(2))
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("isonet_det")]
    assert "MODEL.COMPILE" in line and "no compiler here" in line
