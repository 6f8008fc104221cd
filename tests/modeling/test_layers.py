import pytest
import torch
from benchmark import backbone_bytes
from support import config

from isonet_det.modeling.layers import IsometricConv2d, SReLU, init_delta


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 6, 7), (2, 33, 130, 140)])
def test_both_gradients_are_the_formulas_ties_included(shape, inplace, memory_format):
    """Of small maps and of large ones, in the map's own memory format."""
    layer = SReLU(shape[1], inplace=inplace).double()
    x, grad = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    x[0, :, 0] = -1.0  # exactly b
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    b = layer.srelu_bias.detach().clone().requires_grad_()
    expected_x, expected_b = torch.autograd.grad(torch.relu(x - b) + b, (x, b), grad)
    y = layer(x * 1)
    found_x, found_b = torch.autograd.grad(y, (x, layer.srelu_bias), grad)
    assert torch.equal(found_x, expected_x)
    torch.testing.assert_close(found_b, expected_b, rtol=1e-12, atol=1e-12)
    assert all(t.is_contiguous(memory_format=memory_format) for t in (y, found_x))


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
