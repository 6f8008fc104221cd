import pytest
from detectron2.modeling import build_model
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


@pytest.mark.parametrize("freeze_at", [0, 2, 5])
def test_frozen_parameters_are_in_no_group(freeze_at):
    cfg, model = detector("MODEL.BACKBONE.FREEZE_AT", freeze_at)
    names = set(settings(build_optimizer(cfg, model), model))
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    parts = {n.split(".")[2] for n in names if n.startswith("backbone.bottom_up.")}
    assert parts == set(["stem", "res2", "res3", "res4", "res5"][freeze_at:])


def test_scalars_train_at_a_tenth_of_the_rate_and_biases_of_srelu_do_not_decay():
    cfg, model = detector()
    for name, (rate, decay) in settings(build_optimizer(cfg, model), model).items():
        leaf = name.rsplit(".", 1)[1]
        assert rate == pytest.approx(0.02 * (0.1 if leaf == "res_multiplier" else 1))
        plain = leaf == "srelu_bias" or ".norm." in name
        assert decay == (0 if plain else cfg.SOLVER.WEIGHT_DECAY)
