"""Several processes, and several micro-batches: the penalty counts once."""

import pytest
import torch
from support import in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isonet_det import ISONet, ISONetOptions, add_orthogonal_loss


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        options = ISONetOptions(init="kaiming", res_multiplier=0.5)
        self.backbone = ISONet(18, options, out_features=["res3"])

    def forward(self, batch):
        return {"loss_map": self.backbone(batch)["res3"].square().mean()}


def make():
    torch.manual_seed(0)
    return Detector(), torch.randn(4, 3, 32, 32)


def step(model, batches):
    """Gradients and logged penalty of one optimizer step over micro-batches."""
    logged = 0.0
    for batch in batches:
        losses = model(batch)
        (sum(losses.values()) / len(batches)).backward()
        logged += losses["loss_ortho"].item() / len(batches)
    return logged


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def single():
    model, batch = make()
    add_orthogonal_loss(model, 1e-2)
    return step(model, [batch]), gradients(model)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max()
        assert (found[name] - expected[name]).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("steps", [2, 4])
def test_micro_batches_count_the_penalty_once(single, steps):
    model, batch = make()
    add_orthogonal_loss(model, 1e-2, accumulate_steps=steps)
    logged = step(model, batch.chunk(steps))
    assert logged == pytest.approx(single[0], rel=1e-6)
    assert_same(gradients(model), single[1])


def _step_of_half(rank, folder):
    model, batch = make()
    ddp = DistributedDataParallel(model)
    add_orthogonal_loss(ddp, 1e-2)
    logged = step(ddp, [batch.chunk(2)[rank]])
    torch.save((logged, gradients(model)), f"{folder}/{rank}.pth")


def test_two_processes_share_the_penalty(single, tmp_path):
    in_two_processes(_step_of_half, tmp_path)
    (logged_0, first), (logged_1, second) = (torch.load(tmp_path / f"{r}.pth") for r in (0, 1))
    assert (logged_0 + logged_1) / 2 == pytest.approx(single[0], rel=1e-6)
    assert logged_0 != logged_1  # different layers
    assert_same(first, single[1])
    assert_same(second, first)
