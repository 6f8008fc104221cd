import re

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from support import REPOSITORY

from isonet_det import ISONetError, model_zoo
from isonet_det.model_zoo import readme_tables


def test_there_is_a_record_for_every_released_file():
    names = set(model_zoo.records())
    expected = {
        f"{network}-{depth}{dropout}"
        for network in ("ISONet", "R-ISONet")
        for depth in (18, 34, 50, 101)
        for dropout in ("", "-dropout")
    } | {f"ResNet-{depth}" for depth in (18, 34, 50, 101)}
    assert names == expected


@pytest.mark.parametrize("record", model_zoo.records().values(), ids=lambda r: r.name)
def test_records_are_complete_and_consistent(record):
    assert record.channel_order == "RGB" and len(record.pixel_mean) == len(record.pixel_std) == 3
    assert 60 < record.top1 < 80 and record.licence in ("MIT", "BSD-3-Clause")
    assert record.name.startswith(f"{record.network}-{record.depth}")
    assert re.match(r"https://(drive\.google\.com/file/d/[\w-]{33}/view|download\.pytorch\.org)",
                    record.source)  # fmt: skip


def test_no_two_records_share_a_file():
    sources = [r.source for r in model_zoo.records().values()]
    assert len(sources) == len(set(sources))


def test_the_readme_tables_are_the_records():
    assert readme_tables() in (REPOSITORY / "model_zoo" / "README.md").read_text()


def test_an_unknown_config_is_named():
    with pytest.raises(ISONetError, match="mask_rcnn_risonet50_fpn"):
        model_zoo.get_config("mask_rcnn_risonet50_fnp.yaml")


def test_get_builds_without_weights():
    model = model_zoo.get("quickstart.yaml", device="cpu")
    assert model.training and not model.backbone.bottom_up.res2[0].res_multiplier.any()


def test_get_trains_with_the_regularizer():
    model = model_zoo.get("quickstart.yaml", device="cpu")
    instances = Instances((64, 64), gt_boxes=Boxes([[8.0, 8.0, 40.0, 40.0]]))
    instances.gt_classes = torch.tensor([0])
    instances.gt_masks = PolygonMasks([[np.array([8.0, 8, 40, 8, 40, 40])]])
    with EventStorage():
        losses = model([{"image": torch.zeros(3, 64, 64), "instances": instances}])
    assert {"loss_ortho", "loss_cls", "loss_mask"} <= set(losses)


def test_no_trained_detector_is_published():
    with pytest.raises(ISONetError, match=r"no trained detector.*pretrained_backbone=True"):
        model_zoo.get("quickstart.yaml", trained=True)
