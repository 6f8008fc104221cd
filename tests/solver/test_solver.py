import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from isonet_det import build_optimizer, get_cfg
from isonet_det.config import find_config_file, merge_config_file, merge_options


@pytest.fixture(scope="module")
def cfg():
    cfg = get_cfg()
    merge_config_file(cfg, find_config_file("mask_rcnn_risonet18_fpn.yaml"))
    merge_options(cfg, ["MODEL.DEVICE", "cpu", "MODEL.FPN.NORM", "GN"])
    return cfg


def settings(optimizer, model):
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {
        by_id[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_groups_of_the_real_optimizer_throughout_the_schedule(cfg):
    model = build_model(cfg)
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
def test_frozen_parameters_are_in_no_group(cfg, freeze_at):
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    model = build_model(cfg)
    names = set(settings(build_optimizer(cfg, model), model))
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    parts = [n.split(".")[2] for n in names if n.startswith("backbone.bottom_up.")]
    assert set(parts) == {"stem", "res2", "res3", "res4", "res5"} - set(
        ["stem", "res2", "res3", "res4", "res5"][:freeze_at]
    )


def test_clipping_by_config(cfg):
    cfg = cfg.clone()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.0
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(cfg, model)
    before = model.weight.detach().clone()
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (
        model.weight - before
    ).abs().max() <= cfg.SOLVER.BASE_LR * cfg.SOLVER.WEIGHT_DECAY + 1e-4
