import pytest
import torch
from benchmark import backbone_bytes
from torch import nn

from isonet_det import model_zoo
from isonet_det.config import merge_options
from isonet_det.modeling.layers import IsometricConv2d, SReLU, init_delta


def formula(x, b):
    return torch.relu(x - b) + b


def with_ties(dtype=torch.float64):
    x = torch.randn(3, 5, 6, 7, dtype=dtype)
    x[0, :, 0] = -1.0  # exactly b
    return x


@pytest.mark.parametrize("inplace", [False, True])
def test_both_gradients_are_the_formulas_ties_included(inplace):
    layer = SReLU(5, inplace=inplace).double()
    x = with_ties().requires_grad_()
    b = layer.srelu_bias.detach().clone().requires_grad_()
    grad = torch.randn(3, 5, 6, 7, dtype=torch.float64)
    formula(x, b).backward(grad)
    expected = x.grad.clone()
    x.grad = None
    layer(x * 1).backward(grad)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=0)
    torch.testing.assert_close(layer.srelu_bias.grad, b.grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 33, 130, 140), (1, 7, 400, 300), (5, 600, 16, 20)])
def test_large_maps_have_the_same_gradients(shape, memory_format):
    layer = SReLU(shape[1]).double()
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)
    grad = torch.randn(shape, dtype=torch.float64)
    x.requires_grad_()
    b = layer.srelu_bias.detach().clone().requires_grad_()
    expected = torch.autograd.grad(formula(x, b), (x, b), grad)
    found = torch.autograd.grad(layer(x), (x, layer.srelu_bias), grad)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_keeps_only_its_output():
    layer = SReLU(4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(2, 4, 8, 8, requires_grad=True) * 1)
    assert [t.data_ptr() for t in kept if t.numel() == y.numel()] == [y.data_ptr()]
    assert sum(t.numel() for t in kept if t.numel() != y.numel()) <= 5  # b, and the factor 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_type_and_the_bias_gradient_in_float32(dtype):
    layer = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), SReLU(4, inplace=True))
    with torch.autocast("cpu", dtype=dtype):
        y = layer(torch.randn(2, 3, 8, 8))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer[1].srelu_bias.grad.dtype == torch.float32
    expected = (y <= layer[1].srelu_bias.to(dtype)).sum(dim=(0, 2, 3)).float()
    torch.testing.assert_close(layer[1].srelu_bias.grad.flatten(), expected)


def test_keeps_channels_last_forward_and_backward():
    layer = SReLU(5)
    x = torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_nan_is_not_hidden():
    x = torch.full((1, 2, 1, 1), float("nan"))
    assert SReLU(2)(x).isnan().all()
    assert torch.jit.trace(SReLU(2), torch.zeros(1, 2, 1, 1))(x).isnan().all()


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, with_ties())])
def test_traces_and_scripts(make):
    layer = SReLU(5).double()
    made = make(layer)
    x = with_ties()
    torch.testing.assert_close(made(x), layer(x), rtol=0, atol=0)


def test_compiles_with_the_same_gradients():
    layer = SReLU(5).double()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, z = with_ties().requires_grad_(), with_ties()
    z = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    expected = layer.srelu_bias.grad.clone()
    layer.srelu_bias.grad = None
    compiled(z).square().sum().backward()
    torch.testing.assert_close(z.grad, x.grad)
    torch.testing.assert_close(layer.srelu_bias.grad, expected)


def test_double_backward_is_refused():
    layer = SReLU(2)
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_frozen_bias_gets_no_gradient_and_empty_batches_pass():
    layer = SReLU(2, learnable=False)
    x = torch.randn(0, 2, 3, 3, requires_grad=True)
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


def scaled(conv, x, scale):
    """conv(x, scale * W, scale * bias) in PyTorch's own operations."""
    bias = None if conv.bias is None else conv.bias * scale.flatten()
    how = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return torch.nn.functional.conv2d(x, conv.weight * scale, bias, *how)


@pytest.mark.parametrize("frozen", [(), ("weight",), ("scale",), ("x",), ("x", "weight")])
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2, "groups": 2, "bias": False},
        {"kernel_size": 1, "bias": False},
    ],
)
def test_the_scaled_convolution_has_the_products_gradients(how, frozen):
    conv = IsometricConv2d(4, 6, **how).double()
    scale = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    inputs = {"x": x, "scale": scale, **dict(conv.named_parameters())}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in frozen)
    free = [t for name, t in inputs.items() if name not in frozen]
    expected, found = scaled(conv, x, scale), conv(x, scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weight = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, free, weight), torch.autograd.grad(expected, free, weight)
    )


def test_the_scaled_convolution_follows_autocast():
    conv, scale = IsometricConv2d(4, 6, 3), torch.full((1, 1, 1, 1), 0.7, requires_grad=True)
    x = torch.randn(2, 4, 7, 9, requires_grad=True)
    inputs = (x, conv.weight, conv.bias, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = scaled(conv, x, scale), conv(x, scale)
    assert found.dtype == torch.bfloat16
    found_gradients = torch.autograd.grad(found.float().square().sum(), inputs)
    expected_gradients = torch.autograd.grad(expected.float().square().sum(), inputs)
    torch.testing.assert_close(found_gradients, expected_gradients, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("network", ["fpn", "dc5"])
@pytest.mark.parametrize("depth", [34, 50])
def test_keeps_no_more_for_the_backward_pass_than_a_resnet(network, depth):
    """At two images, the goal is 1.02 times ResNet's."""
    kept = []
    for kind in ("risonet", "resnet"):
        if network == "dc5":
            cfg = model_zoo.get_config(f"table6/{kind}{depth}_dc5.yaml")
        else:
            cfg = model_zoo.get_config(f"mask_rcnn_{kind}50_fpn.yaml")
            width = 64 if depth == 34 else 256
            options = ["MODEL.RESNETS.DEPTH", str(depth)]
            merge_options(cfg, [*options, "MODEL.RESNETS.RES2_OUT_CHANNELS", str(width)])
        kept.append(backbone_bytes(cfg, 2, 800, 1216))
    assert kept[0] <= 1.02 * kept[1]
