"""Mixup, and training steps, as Fixup's authors have them."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from records import fixup_records, fixup_state
from runs import in_two_processes
from torch.nn.parallel import DistributedDataParallel

from isonet_det import build_model, build_optimizer, load_backbone, model_zoo
from isonet_det.config import merge_options
from isonet_det.engine.step import Step
from isonet_det.modeling.family import PIXEL_MEAN, PIXEL_STD
from isonet_det.weights.names import parse_checkpoint

IMAGES = torch.from_numpy(np.random.RandomState(3).randn(4, 3, 64, 64))
KEYS = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "SOLVER.BASE_LR", "0.005"]


def make(*options):
    cfg = model_zoo.get_config("imagenet/fixup.yaml")
    merge_options(cfg, [*KEYS, *options])
    mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in (PIXEL_MEAN, PIXEL_STD))
    images = enumerate(IMAGES * std + mean)
    batch = [{"image": image, "label": (3, 5, 700, 3)[i]} for i, image in images]
    model = build_model(cfg).double()
    load_backbone(model, fixup_state("Fixup-18"))
    steps = cfg.SOLVER.ACCUMULATE_STEPS
    batches = itertools.cycle(batch[i::steps] for i in range(steps))
    return Step(model, batches, build_optimizer(cfg, model), cfg, 5), batch


def losses_of(step, iterations):
    with EventStorage(0) as storage:
        for step.iter in iterations:
            step.run_step()
        step.write_losses()
    assert set(storage.histories()) == {"loss_cls", "total_loss", "grad_norm", "data_time"}
    return [value for value, _ in storage.histories()["loss_cls"].values()]


@pytest.mark.parametrize("alpha", ["0.0", "0.7"])
def test_three_steps_equal_the_authors(alpha):
    expected = fixup_records()["steps"][alpha]
    step, _ = make("PRETRAIN.MIXUP", alpha)  # whose draws come from the step's seed alone
    assert losses_of(step, range(3)) == pytest.approx(expected["losses"], rel=1e-9)
    state = fixup_state("Fixup-18")
    for name, key in zip(state, parse_checkpoint(state).state, strict=True):
        values = step.model.backbone.state_dict()[key].flatten()
        found = [values.norm().item(), values[len(values) // 2].item()]
        assert found == pytest.approx(expected["weights"][name], rel=1e-9, abs=1e-12)


def _step_in_a_process(rank, folder):
    step, _ = make("PRETRAIN.MIXUP", "0.7")
    step.model = DistributedDataParallel(step.model)
    seen = []
    step.model.module.backbone.register_forward_pre_hook(lambda net, x: seen.append(x[0]))
    with EventStorage():
        step.run_step()
    torch.save((seen[0], step.model.module.state_dict()), f"{folder}/{rank}.pth")


def test_two_processes_mix_their_images_in_ways_of_their_own_and_train_one_network(tmp_path):
    in_two_processes(_step_in_a_process, tmp_path)
    (seen, state), (other, others) = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert not torch.equal(seen, other)
    assert all(torch.equal(state[name], others[name]) for name in state)


def test_every_micro_batch_has_draws_of_its_own_and_evaluation_none():
    step, batch = make("PRETRAIN.MIXUP", "0.7", "SOLVER.ACCUMULATE_STEPS", "2")
    shares = []
    step.model.backbone.register_forward_pre_hook(lambda net, x: shares.append(x[0]))
    losses_of(step, [2])
    assert len(shares) == 2 and not any((s[:, None] - IMAGES).abs().max() < 1e-9 for s in shares)
    step.model.eval()(batch)
    torch.testing.assert_close(shares[-1], IMAGES)
