import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from support import config

from isonet_det import build_optimizer


def detector(*options):
    cfg = config("mask_rcnn_risonet18_fpn.yaml", "MODEL.FPN.NORM", "GN", *options)
    return cfg, build_model(cfg)


def settings(optimizer, model):
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {
        by_id[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_groups_of_the_real_optimizer_throughout_the_schedule():
    cfg, model = detector()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seen = set()
    for iteration in range(cfg.SOLVER.MAX_ITER):
        if iteration in (0, 500, 1500, 60001, 89999):
            found = settings(optimizer, model)
            rate = found["backbone.fpn_output2.weight"][0]
            seen.add(round(rate, 9))
            for name, (lr, decay) in found.items():
                leaf = name.rsplit(".", 1)[1]
                assert lr == pytest.approx(rate * (0.1 if leaf == "res_multiplier" else 1))
                plain = leaf == "srelu_bias" or ".norm." in name
                assert decay == (0 if plain else cfg.SOLVER.WEIGHT_DECAY)
        optimizer._step_count = 1
        scheduler.step()
    assert {0.02, 0.002, 0.0002} <= seen


@pytest.mark.parametrize("freeze_at", [0, 2, 5])
def test_frozen_parameters_are_in_no_group(freeze_at):
    cfg, model = detector("MODEL.BACKBONE.FREEZE_AT", freeze_at)
    names = set(settings(build_optimizer(cfg, model), model))
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    parts = {n.split(".")[2] for n in names if n.startswith("backbone.bottom_up.")}
    assert parts == set(["stem", "res2", "res3", "res4", "res5"][freeze_at:])


def test_clipping_by_config():
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(config(
        "quickstart.yaml", "SOLVER.CLIP_GRADIENTS.ENABLED", "True",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0", "SOLVER.WEIGHT_DECAY", "0.0",
    ), model)  # fmt: skip
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
