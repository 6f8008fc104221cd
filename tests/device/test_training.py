import pytest
import torch
from benchmark import random_batch
from steps import backbone_step, relative, three_steps


@pytest.fixture(scope="module")
def reference():
    return three_steps("cpu")


def test_three_steps_of_a_detector_are_the_cpus(reference, device, at_most):
    steps = three_steps(device)
    at_most(relative(steps, reference), 0.0 if device.type == "cpu" else 1e-3)


@pytest.mark.parametrize("options", [
    ("MODEL.ISONET.CHECKPOINT_STAGES", "('res2', 'res3')"),
    ("MODEL.CHANNELS_LAST", "True"), ("MODEL.COMPILE", "True"),
], ids=" ".join)  # fmt: skip
def test_keys_that_change_how_a_step_runs_keep_its_numbers(reference, device, at_most, options):
    if "MODEL.COMPILE" in options and device.type == "cpu":
        pytest.skip("minutes of C++ on a CPU")
    at_most(relative(three_steps(device, *options), reference), 1e-3)


def test_the_first_losses_in_mixed_precision(reference, device, half, at_most):
    """Those alone: a float16 loss scaler begins with steps whose gradients overflow."""
    steps = three_steps(device, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", half)
    at_most(relative(steps[:1, 1:], reference[:1, 1:]), 0.1)


def test_the_host_waits_for_no_value_in_backbone_penalty_and_update(device):
    if device.type == "cpu":
        pytest.skip("a CPU waits for nothing")
    batch = random_batch(2, 96, 128)
    for d in batch:
        d["image"] = d["image"].to(device)
    step = backbone_step(device, batch)
    for _ in range(3):
        step.run_step()  # tables, kernels, buffers and recordings of the first ones
    segments = torch.cuda.memory_stats(device)["segment.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats(device)["segment.all.allocated"] == segments
