import pytest
from detectron2.modeling import build_model
from support import config

from isonet_det import build_optimizer


def test_rates_and_decays_and_frozen_parameters_in_no_group():
    options = ["MODEL.FPN.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", 2]
    cfg = config("mask_rcnn_risonet18_fpn.yaml", *options)
    model = build_model(cfg)
    of = {p: group for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert set(of) == {p for p in model.parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if p in of:
            leaf = name.rsplit(".", 1)[1]
            rate = 0.02 * (0.1 if leaf == "res_multiplier" else 1)
            decay = 0 if leaf == "srelu_bias" or ".norm." in name else cfg.SOLVER.WEIGHT_DECAY
            assert (of[p]["lr"], of[p]["weight_decay"]) == pytest.approx((rate, decay)), name
