import logging
from functools import partial

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from runs import in_two_processes
from support import small_cfg
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isonet_det import ISONetError, add_orthogonal_loss, build_optimizer
from isonet_det.engine.divergence import first_nonfinite, guard_nonfinite
from isonet_det.engine.step import NonFiniteError, Step
from isonet_det.modeling.execution import set_execution

# Two objects per image and as many foreground samples, so that every part of the batch has the
# same number of everything that a loss is averaged over.
SAMPLING = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.25]
SKIP = ["SOLVER.ON_NONFINITE", "skip", "SOLVER.NONFINITE_LIMIT", 1]


def images(count):
    generator = torch.Generator().manual_seed(1)
    batch = []
    for i in range(count):
        instances = Instances((64, 64))
        boxes = torch.tensor([[4.0, 6.0, 30.0, 34.0], [30.0, 26.0, 58.0, 60.0]]) + i
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor([i % 4, 1])
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 6:34, 4:30] = masks[1, 26:60, 30:58] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, 64, 64), generator=generator).float()
        batch.append({"image": image, "instances": instances, "image_id": 100 + i})
    return batch


def make(batches, *options):
    """A Step over Mask R-CNN with the penalty, from given batches."""
    torch.manual_seed(0)
    cfg = small_cfg(*SAMPLING, "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0", *options)
    model = build_model(cfg)
    for module in model.backbone.bottom_up.modules():
        if hasattr(module, "res_multiplier"):
            nn.init.constant_(module.res_multiplier, 0.5)
        if hasattr(module, "gram_stride"):
            module.weight.data += 0.02 * torch.randn_like(module.weight)
    add_orthogonal_loss(model, 1e-2, accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS)
    wrapped = DistributedDataParallel(model) if comm.get_world_size() > 1 else model
    return Step(wrapped, batches, build_optimizer(cfg, model), cfg, seed=0), model


def run(step, iterations):
    with EventStorage() as storage:
        for step.iter in range(iterations):
            storage.iter = step.iter
            with guard_nonfinite(getattr(step.model, "module", step.model)):
                step.run_step()
        step.write_losses()
    return {name: history.values() for name, history in storage.histories().items()}


@pytest.fixture
def fixed_sampling(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n, device=device))


def assert_close(found, expected):
    for name, value in expected.items():
        scale = value.abs().max() + 1e-3
        assert (found[name] - value).abs().max() <= 2e-5 * scale, name


def assert_same_losses(found, expected, rel=1e-4):
    for name in expected:
        if "loss" in name or name == "grad_norm":
            ours, theirs = ([v for v, _ in part[name]] for part in (found, expected))
            assert ours == pytest.approx(theirs, rel=rel), name


def _run_half(rank, folder):
    torch.randperm = lambda n, device=None: torch.arange(n, device=device)
    for amp in (False, True):
        step, model = make([images(4)[2 * rank : 2 * rank + 2]] * 3, "SOLVER.AMP.ENABLED", amp)
        losses = run(step, 3)
        torch.save((losses, model.state_dict()), f"{folder}/{amp}{rank}.pth")


@pytest.fixture
def whole_batch(fixed_sampling):
    step, model = make([images(4)] * 3)
    return run(step, 3), model.state_dict()


def test_micro_batches_are_the_same_computation(whole_batch):
    """Without BatchNorm nothing depends on the other images of a batch."""
    losses, expected = whole_batch
    step, model = make([images(4)[:2], images(4)[2:]] * 3, "SOLVER.ACCUMULATE_STEPS", 2)
    assert_same_losses(run(step, 3), losses)
    assert_close(model.state_dict(), expected)


def test_two_processes_are_the_same_computation(whole_batch, tmp_path):
    losses, expected = whole_batch
    in_two_processes(_run_half, tmp_path)
    first, second = (torch.load(tmp_path / f"False{r}.pth") for r in (0, 1))
    assert_same_losses(first[0], losses)
    assert_close(first[1], expected)
    assert all(torch.equal(first[1][n], second[1][n]) for n in expected)
    step, _ = make([images(4)] * 3, "SOLVER.AMP.ENABLED", True)
    found, _ = torch.load(tmp_path / "True0.pth")
    assert_same_losses(found, {"total_loss": run(step, 3)["total_loss"]}, rel=0.02)


def poisoned(value):
    batch = images(2)
    batch[1]["image"][0, 5, 5] = value
    return batch


def test_a_nonfinite_step_leaves_the_weights_and_stops_by_name():
    step, model = make([images(2), poisoned(float("nan")), images(2)])
    one, one_model = make([images(2)])
    run(one, 1)
    with pytest.raises(NonFiniteError) as error:
        run(step, 3)
    for words in ("iteration 1:", "[100, 101]", "loss_diverged nan", "grad_norm nan"):
        assert words in str(error.value)
    assert error.value.iteration == 1
    for name, tensor in one_model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_skipping_leaves_updates_out_and_stops_after_too_many(caplog):
    bad = poisoned(float("inf"))
    step, model = make([bad, images(2), bad, bad], *SKIP)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with caplog.at_level(logging.WARNING):
        run(step, 1)
    assert "this update is skipped" in caplog.text
    assert all(p.equal(before[n]) for n, p in model.named_parameters())
    run(step, 1)
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not p.equal(before[n]) for n, p in model.named_parameters())
    with pytest.raises(NonFiniteError, match="2 in a row"):
        run(step, 2)


def test_unreadable_photos_are_counted_and_stop_past_the_limit(caplog):
    batch = images(2)
    batch[0]["unreadable"] = ["photo a.jpg is missing"]
    step, _ = make([batch, batch], "DATALOADER.UNREADABLE_LIMIT", 1)
    with caplog.at_level(logging.WARNING), pytest.raises(ISONetError, match=r"a\.jpg is missing"):
        run(step, 2)
    assert "the next photo stands in (1 so far)" in caplog.text


@pytest.mark.parametrize(
    ("asked", "dtype", "scaled"), [("", "bfloat16", False), ("float16", "float16", True)]
)
def test_mixed_precision_is_of_the_type_asked_and_float16_has_a_loss_scaler(asked, dtype, scaled):
    step, model = make([images(2)], "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", asked)
    seen = []
    conv = model.backbone.bottom_up.res3[0].conv1
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    losses = run(step, 1)
    assert (step.amp, step.grad_scaler.is_enabled()) == (dtype, scaled)
    assert seen == [getattr(torch, dtype)] and losses["total_loss"][0][0] > 0


def test_channels_last_is_the_same_computation_and_resumes_from_the_other_format(whole_batch):
    losses, expected = whole_batch
    step, model = make([images(4)] * 3)
    set_execution(model, channels_last=True, compiled=False)
    step.load_state_dict(make([])[0].state_dict())
    assert_same_losses(run(step, 3), losses)
    assert_close(model.state_dict(), expected)
    for parameter, state in step.optimizer.state.items():
        assert state["momentum_buffer"].stride() == parameter.stride()


@pytest.mark.parametrize(("poison", "named"), [
    ("image", "stem.conv (Conv2d)"),
    ("last convolution", "the output of backbone.bottom_up.res3.0.conv2 (IsometricConv2d)"),
    ("loss", "the loss loss_ortho"),
    ("norm", "the norm of all gradients"),
])  # fmt: skip
@pytest.mark.parametrize("amp", [False, True])
def test_the_first_nonfinite_value_is_named_in_the_precision_of_the_step(poison, named, amp):
    _, model = make([])
    batch, net, seen = images(2), model.backbone.bottom_up, []
    if poison == "image":
        batch = poisoned(float("nan"))
    elif poison == "last convolution":
        net.res3[0].conv2.weight.data.fill_(3e38)
    elif poison == "loss":
        net.res3[1].conv1.weight.data *= 1e15
        net.res3[1].conv1.register_forward_hook(lambda m, i, o: o * 1e-15)
    elif poison == "norm":  # finite, its square is not
        net.stem.conv.weight.register_hook(lambda gradient: gradient.sign() * 1e30)
    net.res3[0].conv2.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    context = partial(torch.autocast, "cpu", enabled=amp)
    assert named in first_nonfinite(model, batch, 0, context)
    assert set(seen) <= {torch.bfloat16 if amp else torch.float32}
