import re

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from support import REPOSITORY

from isonet_det import ISONetError, model_zoo


def test_there_is_a_record_for_every_released_file():
    names = set(model_zoo.records())
    expected = {
        f"{network}-{depth}{dropout}"
        for network in ("ISONet", "R-ISONet")
        for depth in (18, 34, 50, 101)
        for dropout in ("", "-dropout")
    } | {f"ResNet-{depth}" for depth in (18, 34, 50, 101)}
    assert names == expected


def test_the_table_is_complete_and_in_the_readme():
    readme = (REPOSITORY / "model_zoo" / "README.md").read_text()
    for r in model_zoo.records().values():
        assert 60 < r.top1 < 80 and r.name.startswith(f"{r.network}-{r.depth}")
        source = r"https://(drive\.google\.com/file/d/[\w-]{33}/view|download\.pytorch\.org)"
        assert re.match(source, r.source)
        assert (
            f"| `{r.name}` | {r.depth} | {'yes' if r.dropout else 'no'} | {r.top1:.2f} | "
            f"{r.bytes or 'not known'} | {r.sha256 or 'not known'} | {r.license} | "
            f"[link]({r.source}) |\n"
        ) in readme
    assert len({r.source for r in model_zoo.records().values()}) == len(model_zoo.records())


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
