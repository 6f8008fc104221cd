import pytest
import torch
from records import map_error, official_image, official_network, official_records
from steps import relative

from isonet_det import SReLU, conv_orthogonality, orthogonality_penalty
from isonet_det.regularizer.loss import penalized_convolutions

RECORDS = official_records()


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-4)])
def test_every_map_and_logit_of_the_network(name, dtype, limit, device, at_most):
    dtype = getattr(torch, dtype)
    net, image = official_network(name).to(device, dtype), official_image().to(device, dtype)
    with torch.no_grad():
        maps = net(image)
    assert all(
        list(maps[f"res{i + 1}"].shape) == RECORDS[name][f"s{i}"]["shape"] for i in range(1, 5)
    )
    at_most(map_error(RECORDS[name], maps), limit)


@pytest.mark.parametrize("name", RECORDS)
def test_the_network_in_mixed_precision(name, half, device, at_most):
    net, image = official_network(name).float().to(device), official_image().float().to(device)
    with torch.no_grad(), torch.autocast(device.type, dtype=getattr(torch, half)):
        at_most(map_error(RECORDS[name], net(image)), {"float16": 0.02, "bfloat16": 0.1}[half])


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-5)])
def test_the_penalty_and_its_gradient(name, dtype, limit, device, at_most):
    """TF32 and autocast do not touch them."""
    net, ortho = official_network(name).to(device, getattr(torch, dtype)), RECORDS[name]["ortho"]
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            total = orthogonality_penalty(net)
    finally:
        torch.set_float32_matmul_precision("highest")
    total.backward()
    convs = penalized_convolutions(net).values()
    assert len(convs) == ortho["n_convs"]
    # Both walk the network in the same order but for the shortcuts: compare as sets of values.
    layers = torch.stack([conv_orthogonality(c.weight, c.stride) for c in convs]).sort().values
    errors = [
        abs(total.item() / ortho["total"] - 1),
        relative(layers, torch.tensor(sorted(ortho["per_layer"].values()), dtype=torch.float64)),
    ]
    gradients = [c.weight.grad.double().cpu() for c in convs]
    norms = torch.stack([g.norm() for g in gradients])
    for expected in ortho["grad"].values():
        nearest = (norms / expected["l2"] - 1).abs().argmin()
        values = gradients[nearest].flatten()[expected["idx"]]
        errors.append(relative(values, torch.tensor(expected["val"], dtype=torch.float64)))
    at_most(max(errors), limit)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_srelu_has_the_formulas_gradients(dtype, memory_format, device, at_most):
    """The map's bit by bit, b's to rounding."""
    layer = SReLU(70).to(device)
    x, grad = (torch.randn(2, 70, 60, 100).to(getattr(torch, dtype)) for _ in range(2))
    x[0, :, 0] = -1  # exactly b
    leaf = x.to(device).contiguous(memory_format=memory_format).requires_grad_()
    layer(leaf).backward(grad.to(device))
    to_bias = x <= -1
    assert torch.equal(leaf.grad.cpu(), grad.masked_fill(to_bias, 0))
    bias = (grad.double() * to_bias).sum((0, 2, 3))
    at_most(relative(layer.srelu_bias.grad.flatten(), bias), 1e-5)
