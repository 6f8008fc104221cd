import numpy as np
import pytest
import torch
from benchmark import backbone_bytes, kept_bytes
from support import authors_state, config
from torch import nn

from isonet_det import ISONet, ISONetError, ISONetOptions, conv_orthogonality, load_backbone
from isonet_det.modeling.execution import compile_backbone
from isonet_det.modeling.layers import IsometricConv2d, SReLU, init_delta

DEPTHS = (18, 34, 50, 101)
# Parameters without the classifier: (ISONet, R-ISONet).
PARAMETERS = {18: (10998784, 11170824), 34: (21103232, 21275280),
              50: (20708736, 23477648), 101: (39674752, 42443681)}  # fmt: skip


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_papers_parameters_no_normalization_and_no_convolution_bias(depth, residual):
    net = make(depth, residual)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[depth][residual]
    kinds = {type(m).__name__ for m in net.modules() if not list(m.children())}
    assert kinds == {"Conv2d", "IsometricConv2d", "SReLU"}
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))


def make(depth, residual=True, **extra):
    return ISONet(depth, ISONetOptions(residual=residual), **extra)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_dilated_network_is_the_undilated_one_on_a_finer_grid(depth):
    """DC5's stride 16, and DeepLab's 8 with multi-grid: the same weights, dilations as its own
    ResNet has them, and a Gram that is taken in taps."""
    grid = [1, 2, 4][: 3 if depth > 18 else 2]
    features = ["res3", "res4", "res5"]
    keys = make(depth, out_features=features).state_dict().keys()
    x = torch.randn(1, 3, 64, 96)
    for dilations, strides in (
        ({"res5_dilation": 2}, [8, 16, 16]),
        ({"res4_dilation": 2, "res5_dilation": 4, "res5_multi_grid": grid}, [8, 8, 8]),
    ):
        net = make(depth, out_features=features, **dilations)
        assert net.state_dict().keys() == keys
        assert [s.stride for s in net.output_shape().values()] == strides
        assert [m.shape[2:] for m in net(x).values()] == [(64 // s, 96 // s) for s in strides]
        last = [m for m in net.res5.modules() if getattr(m, "kernel_size", 0) == (3, 3)]
        assert all(m.padding == m.dilation != (1, 1) and m.stride == (1, 1) for m in last)
    assert all(m.conv2.dilation == (2, 2) for m in net.res4)
    assert [m.conv2.dilation[0] for m in net.res5] == [4 * g for g in grid]
    strided = make(depth, res5_multi_grid=[2, 2, 4][: len(grid)])
    first = strided.res5[0].conv2 if depth >= 50 else strided.res5[0].conv1
    assert first.stride == first.dilation == (2, 2) and first.gram_stride == (1, 1)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_and_stages_that_are_not_built(freeze_at):
    net = make(18, freeze_at=freeze_at)
    for i, part in enumerate(("stem", "res2", "res3", "res4", "res5")):
        assert all(p.requires_grad == (i >= freeze_at) for p in getattr(net, part).parameters())
    assert not hasattr(make(18, out_features=["res3"]), "res4")


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2), (2, 2), (2, 4)])
def test_the_penalty_of_a_dilated_convolution_is_that_of_its_map(stride, dilation):
    """Of the convolution as a matrix A, the central rows of A A^T."""
    conv = IsometricConv2d(4, 2, 3, stride=stride, padding=dilation, dilation=dilation).double()
    images = torch.eye(4 * 25 * 25, dtype=torch.float64).view(-1, 4, 25, 25)
    maps = (conv(images) - conv.bias.view(-1, 1, 1)).detach()
    middle = maps.shape[2] // 2
    rows = torch.einsum("im,inhw->mnhw", maps[:, :, middle, middle], maps)
    rows[range(2), range(2), middle, middle] -= 1
    penalty = conv_orthogonality(conv.weight, conv.gram_stride)
    torch.testing.assert_close(rows.square().sum() / 2, penalty)


def test_at_initialization_a_residual_block_is_its_shortcut():
    net = make(50)
    x = torch.randn(1, 256, 8, 8)
    torch.testing.assert_close(net.res2[1](x.clone()), x.clamp(min=-1))


@pytest.mark.parametrize(("change", "options", "named"), [
    ({"res5_dilation": 3}, {}, "res5_dilation"),
    ({"res5_multi_grid": [1, 2, 4]}, {}, "expected 2 factors"),
    ({"out_features": ["res6"]}, {}, "res6"),
    ({"checkpoint_stages": ["stem"]}, {}, "checkpoint_stages"),
    ({"checkpoint_stages": ["res3"]}, {"norm": "BN", "has_res_multiplier": False}, "statistics"),
    ({}, {"activation": "gelu"}, "gelu"),
])  # fmt: skip
def test_what_cannot_be_is_refused(change, options, named):
    with pytest.raises(ISONetError) as error:
        ISONet(**{"depth": 18, **change}, options=ISONetOptions(**options))
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("options", [
    {}, {"residual": False}, {"activation": "relu"},
    {"norm": "BN", "has_res_multiplier": False, "activation": "relu"},
], ids=str)  # fmt: skip
def test_torch_jit_script_gives_the_same(depth, options):
    options = ISONetOptions(init="kaiming", res_multiplier=0.3, **options)
    net = ISONet(depth, options, out_features=["stem", "res2"]).eval()
    x = torch.randn(1, 3, 48, 64)
    expected, scripted = net(x), torch.jit.script(net)(x)
    assert list(scripted) == list(expected) == ["stem", "res2"]
    assert all(torch.equal(scripted[name], tensor) for name, tensor in expected.items())


def test_checkpointed_stages_have_the_same_gradients_bit_by_bit_in_less_memory():
    gradients, kept = [], []
    for checkpointed in ((), ("res2", "res3")):
        net = make(18, out_features=["res2", "res3"], checkpoint_stages=checkpointed)
        load_backbone(net, authors_state(net))
        x = torch.from_numpy(np.random.RandomState(3).randn(2, 3, 96, 64)).float()
        kept.append(kept_bytes(lambda net=net, x=x: net(x), net.parameters()))
        sum(m.square().mean() for m in net(x).values()).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
        assert torch.jit.script(net)(x)["res3"].equal(net(x)["res3"])
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())
    assert kept[1] < 0.8 * kept[0]


def test_double_backward_is_refused_and_empty_batches_pass_a_frozen_bias():
    layer = SReLU(2)
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    layer, x = SReLU(2, learnable=False), torch.randn(0, 2, 3, 3, requires_grad=True)
    layer(x).sum().backward()
    assert layer.srelu_bias.grad is None and x.grad.shape == x.shape


@pytest.mark.parametrize("shape", [(4, 4, 3), (8, 4, 3), (4, 8, 1)])
def test_delta_is_the_identity_on_the_common_channels(shape):
    out_channels, in_channels, size = shape
    conv = IsometricConv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
    init_delta(conv)
    x = torch.randn(1, in_channels, 5, 5)
    n = min(out_channels, in_channels)
    torch.testing.assert_close(conv(x)[:, :n], x[:, :n])
    assert not conv(x)[:, n:].any()


@pytest.mark.parametrize("frozen", [(), ("weight",), ("scale",), ("x",), ("x", "weight")])
@pytest.mark.parametrize("how", [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2, "groups": 2, "bias": False},
    {"kernel_size": 1, "bias": False},
])  # fmt: skip
def test_the_scaled_convolution_has_the_products_gradients(how, frozen):
    conv, plain = (IsometricConv2d(4, 6, **how).double() for _ in range(2))
    scale = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    inputs = {"x": x, "scale": scale, **dict(conv.named_parameters())}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in frozen)
    free = [t for name, t in inputs.items() if name not in frozen]
    product = {n: t * scale.flatten() for n, t in conv.named_parameters()}
    expected, found = torch.func.functional_call(plain, product, x), conv(x, scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weight = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, free, weight), torch.autograd.grad(expected, free, weight)
    )


@pytest.mark.parametrize("network", ["fpn", "dc5"])
@pytest.mark.parametrize("depth", [34, 50])
def test_keeps_no_more_for_the_backward_pass_than_a_resnet(network, depth):
    """At two images, the goal is 1.02 times ResNet's."""
    options = ["MODEL.RESNETS.DEPTH", depth]
    options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth == 34 else 256]
    name = "mask_rcnn_{}50_fpn.yaml" if network == "fpn" else "table6/{}" + f"{depth}_dc5.yaml"
    ours, theirs = (
        backbone_bytes(config(name.format(kind), *options), 2, 800, 1216)
        for kind in ("risonet", "resnet")
    )
    assert ours <= 1.02 * theirs


def test_what_cannot_be_compiled_runs_as_it_is_with_one_line(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    network, x = make(18, out_features=["res2"]), torch.randn(1, 3, 64, 64)
    expected = network(x)["res2"]
    compile_backbone(network, backend=broken)
    assert all(network(x)["res2"].equal(expected) for _ in range(2))
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("isonet_det")]
    assert "MODEL.COMPILE" in line and "no compiler here" in line
