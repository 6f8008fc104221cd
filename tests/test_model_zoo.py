import re

import pytest
from benchmark import random_batch
from detectron2.utils.events import EventStorage
from support import REPOSITORY

from isonet_det import ISONetError, model_zoo


def test_the_table_is_complete_and_in_the_readme():
    readme = (REPOSITORY / "model_zoo" / "README.md").read_text()
    assert len(model_zoo.records()) == 2 * 4 * 2 + 4  # networks, depths, dropout; ResNets
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


def test_get_trains_with_the_regularizer():
    model = model_zoo.get("quickstart.yaml", device="cpu")
    with EventStorage():
        losses = model(random_batch(1, 64, 64))
    assert {"loss_ortho", "loss_cls", "loss_mask"} <= set(losses)


def test_no_trained_detector_is_published():
    with pytest.raises(ISONetError, match=r"no trained detector.*pretrained_backbone=True"):
        model_zoo.get("quickstart.yaml", trained=True)
