import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from benchmark import spatial_orthogonality
from runs import in_two_processes
from torch import nn

from isonet_det import ISONetError, add_orthogonal_loss, conv_orthogonality, orthogonality_penalty
from isonet_det.modeling.isonet import ISONet
from isonet_det.modeling.layers import IsometricConv2d
from isonet_det.regularizer.loss import penalized_convolutions

SHAPES = [
    ((8, 6, 3, 3), (1, 1), 1), ((6, 8, 3, 3), (2, 2), 1), ((3, 9, 1, 1), (1, 1), 1),
    ((8, 5, 2, 2), (1, 1), 1), ((4, 6, 5, 3), (2, 1), 1), ((4, 4, 4, 4), (3, 3), 1),
    ((4, 4, 7, 7), (2, 2), 1), ((6, 3, 3, 3), (2, 2), 2),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "stride", "groups"), SHAPES)
def test_any_kernel_agrees_with_the_formula(shape, stride, groups):
    weight = (torch.randn(shape, dtype=torch.float64) / 3).requires_grad_()
    expected = sum(spatial_orthogonality(part, stride) for part in weight.chunk(groups))
    found = conv_orthogonality(weight, stride, groups)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(v, weight) for v in (found, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("depth", "dtype"), [(18, torch.float16), (50, torch.float32)])
def test_exactly_zero_at_delta(depth, dtype):
    net = ISONet(depth).to(dtype)
    total = orthogonality_penalty(net)
    total.backward()
    assert total.item() == 0 and total.dtype == torch.float32
    assert not any(c.weight.grad.any() for c in penalized_convolutions(net).values())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-5])
def test_float32_is_good_to_1e_6_from_random_weights_to_delta(noise, stride):
    weight = torch.zeros(64, 48, 3, 3)
    nn.init.dirac_(weight)
    weight += noise * torch.randn_like(weight) / 24
    exact = spatial_orthogonality(weight.double(), stride).item()
    assert conv_orthogonality(weight, stride).item() == pytest.approx(exact, rel=1e-6)


def test_threads_and_a_lower_matmul_precision_do_not_disturb_it():
    weights = [torch.randn(48, 48, 3, 3) for _ in range(8)]
    expected = [conv_orthogonality(weight) for weight in weights] * 20
    torch.set_float32_matmul_precision("medium")
    try:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(conv_orthogonality, weights * 20))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_frozen_weights_and_the_stem_are_left_out():
    names = set(penalized_convolutions(ISONet(18, freeze_at=2)))
    assert not any(n.startswith(("stem", "res2")) for n in names)
    assert {"res3.0.conv1", "res3.0.shortcut", "res5.1.conv2"} <= names and len(names) == 15
    # Without an ISONet the authors' rule decides.
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 7), nn.Conv2d(8, 4, 3))
    assert set(penalized_convolutions(net)) == {"2"}


class UnseenDetector(nn.Module):
    def __init__(self):
        super().__init__()
        self.eyes = nn.ModuleDict({"left": ISONet(18, out_features=["res2"])})
        self.head = nn.Conv2d(64, 1, 1)

    def forward(self, batch):
        out = self.head(self.eyes["left"](batch)["res2"])
        return {"loss_seen": out.mean()} if self.training else out


def test_any_detector_gains_the_loss_and_nothing_else():
    model = UnseenDetector()
    nn.init.normal_(model.eyes["left"].res2[0].conv1.weight, std=0.1)
    keys = list(model.state_dict())
    batch = torch.randn(1, 3, 32, 32)
    plain = model.eval()(batch)
    handle = add_orthogonal_loss(model, 0.5)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.eval()(batch), plain)
    for detector in (model, copy.deepcopy(model)):
        losses = detector.train()(batch)
        assert set(losses) == {"loss_seen", "loss_ortho"}
        expected = 0.5 * orthogonality_penalty(detector.eyes["left"])
        torch.testing.assert_close(losses["loss_ortho"], expected)
        losses["loss_ortho"].backward()
        assert detector.eyes["left"].res2[0].conv1.weight.grad.any()
        assert detector.head.weight.grad is None
    with pytest.raises(ISONetError, match="already"):
        add_orthogonal_loss(model, 0.5)
    handle.remove()
    assert set(model(batch)) == {"loss_seen"}
    add_orthogonal_loss(model, 0.5)


def test_an_undefined_penalty_is_refused_and_what_is_penalized_must_be_named():
    for shape, stride in (((4, 4, 2, 2), 2), ((4, 4, 3), 1), ((4, 4, 3, 3), 0)):
        with pytest.raises(ISONetError):
            conv_orthogonality(torch.randn(shape), stride)
    model = nn.Sequential(nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 3))
    with pytest.raises(ISONetError, match="module="):
        add_orthogonal_loss(model, 1.0)
    with pytest.raises(ISONetError, match="no submodule"):
        add_orthogonal_loss(model, 1.0, module=nn.Conv2d(2, 2, 1))
    add_orthogonal_loss(model, 1.0, module=model[1])


def _shard(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    def detector():
        torch.manual_seed(0)
        model = UnseenDetector()
        nn.init.normal_(model.eyes["left"].res2[0].conv1.weight, std=0.1)
        return model

    batch, plain, sharded = torch.randn(1, 3, 32, 32), detector(), detector()
    (0.5 * orthogonality_penalty(plain)).backward()
    add_orthogonal_loss(sharded, 0.5)
    mesh = init_device_mesh("cpu", (2,))
    for part in (sharded.eyes["left"].res2, sharded):
        fully_shard(part, mesh=mesh)
    sharded(batch)["loss_ortho"].backward()
    for expected, found in zip(plain.parameters(), sharded.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad)
    for original in (False, True):
        model = detector()
        add_orthogonal_loss(model, 0.5)
        model = FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=original,
            auto_wrap_policy=ModuleWrapPolicy({nn.Conv2d, IsometricConv2d}),
        )  # fmt: skip
        with pytest.raises(ISONetError, match="has freed the kernels"):
            model(batch)


def test_the_penalty_of_kernels_in_parts_is_the_whole_one_or_refused(tmp_path):
    in_two_processes(_shard, tmp_path)
