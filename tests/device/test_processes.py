"""What takes processes of its own: two devices against one, and a run that is killed. Slow; on a
CPU tests of the engine say the same."""

import time

import pytest
import torch
from benchmark import random_batch
from runs import in_two_processes, start_training
from steps import backbone_step, exact_products, flat, relative
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.slow


def _three_updates(rank, folder, kind):
    with exact_products():
        step = backbone_step(torch.device(kind, rank), random_batch(4, 64, 64)[rank * 2 :][:2])
        model = step.model
        step.model = DistributedDataParallel(model)
        for _ in range(3):
            step.run_step()
    torch.save(flat(model.parameters()), f"{folder}/{rank}.pth")


def test_two_processes_update_as_one(tmp_path, device, at_most):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("there are no two GPUs")
    step = backbone_step(device, random_batch(4, 64, 64))
    before = flat(step.model.parameters())
    for _ in range(3):
        step.run_step()
    in_two_processes(_three_updates, tmp_path, device.type, kind=device.type)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert torch.equal(first, second)
    at_most(relative(first - before, flat(step.model.parameters()) - before), 1e-3)


def test_a_killed_and_resumed_run_ends_as_a_whole_one(tmp_path, few_shapes, device, at_most):
    def start(run):
        words = ("MODEL.DEVICE", str(device))
        return start_training(tmp_path / run, few_shapes, *words, iterations=12)

    plain, cut = start("plain"), start("cut")
    while cut.poll() is None and not (tmp_path / "cut" / "last_checkpoint").is_file():
        time.sleep(0.02)
    cut.kill()
    cut.wait()
    assert not (tmp_path / "cut" / "model_final.pth").exists()
    status = start("cut").wait(), plain.wait()
    assert status == (0, 0), (tmp_path / "cut.log").read_text()[-3000:]
    resumed, whole = (
        torch.load(tmp_path / run / "model_final.pth", map_location="cpu")["model"]
        for run in ("cut", "plain")
    )
    at_most(
        relative(flat(resumed.values()), flat(whole.values())),
        0.0 if device.type == "cpu" else 1e-3,
    )
