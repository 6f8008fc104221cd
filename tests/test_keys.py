"""No key of Detectron2's defaults is ignored in silence: each is read by code that runs, or refused
by name, or is told here."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.config import get_cfg as stock_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.modeling import build_backbone
from detectron2.structures import BoxMode
from support import config, run_cfg

from isonet_det import ISONetError, get_cfg
from isonet_det.config import flatten, merge_config_file, merge_options
from isonet_det.data.stream import build_train_loader
from isonet_det.engine.trainer import Trainer

# What an ISONet cannot be: a value that it refuses, with the key's name.
REFUSED = {
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 128,
    "MODEL.RESNETS.NORM": "GN",
}
# What is read in another way, nothing can tell from the default, or Detectron2 itself leaves out:
# VERSION (another one than 2 is refused); what default_setup sets in PyTorch; the strides of an
# ISONet, which are on the 3x3, as False says; deformable blocks, which are refused; experiments;
# schedules and heads, which are Detectron2's own as they are.
TOLD = {
    "VERSION", "FLOAT32_PRECISION", "CUDNN_BENCHMARK", "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS", "GLOBAL.HACK",
}  # fmt: skip
HEADS = (
    "MODEL.RETINANET.", "MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.", "MODEL.ROI_BOX_CASCADE_HEAD.",
    "MODEL.ROI_KEYPOINT_HEAD.", "MODEL.ROI_BOX_HEAD.", "MODEL.RPN.", "MODEL.ANCHOR_GENERATOR.",
    "SOLVER.",
)  # fmt: skip


@pytest.fixture
def read(monkeypatch):
    """The keys that are read from now on. A section is known by the keys in it."""
    places = {}

    def walk(cfg, prefix):
        places.setdefault(frozenset(cfg), set()).add(prefix)
        for key, value in cfg.items():
            if isinstance(value, CfgNode):
                walk(value, f"{prefix}{key}.")

    walk(get_cfg(), "")
    seen = set()
    (owner,) = [c for c in CfgNode.__mro__ if "__getattr__" in vars(c)]
    original = owner.__getattr__

    def recording(self, name):
        if name in self:
            seen.update(prefix + name for prefix in places.get(frozenset(self), ()))
        return original(self, name)

    monkeypatch.setattr(owner, "__getattr__", recording)
    return seen


def test_every_key_is_read_or_refused_or_told(read, tmp_path):
    cfg = run_cfg(
        tmp_path, "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", "TEST.AUG.ENABLED", "True",
        "TEST.AUG.MIN_SIZES", "(64,)", "SOLVER.CLIP_GRADIENTS.ENABLED", "True",
        "INPUT.CROP.ENABLED", "True", "INPUT.MASK_FORMAT", "bitmask", "SOLVER.STEPS", "(1,)",
        "DATALOADER.NUM_WORKERS", "0", "TEST.PRECISE_BN.ENABLED", "True", "MODEL.ISONET.NORM", "BN",
        "MODEL.ISONET.HAS_RES_MULTIPLIER", "False", "TEST.PRECISE_BN.NUM_ITER", "2",
    )  # fmt: skip
    default_setup(cfg, SimpleNamespace(eval_only=False))
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    assert {"bbox", "segm", "bbox_TTA", "segm_TTA"} <= set(trainer.train())
    cfg.defrost()
    # Repeated images, and proposals from a file.
    (name,) = cfg.DATASETS.TEST
    ids = [record["image_id"] for record in DatasetCatalog.get(name)]
    boxes, scores = [np.array([[1.0, 2, 30, 40]])] * len(ids), [np.array([1.0])] * len(ids)
    proposals = {"ids": ids, "boxes": boxes, "objectness_logits": scores}
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps({**proposals, "bbox_mode": BoxMode.XYXY_ABS}))
    files = str((str(path),))
    merge_options(cfg, [
        "MODEL.LOAD_PROPOSALS", "True", "DATASETS.TRAIN", str((name,)), "INPUT.CROP.ENABLED",
        "False", "DATASETS.PROPOSAL_FILES_TRAIN", files, "DATASETS.PROPOSAL_FILES_TEST", files,
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD",
        "0.1",
    ])  # fmt: skip
    for loader in (build_train_loader(cfg, 0), Trainer.build_test_loader(cfg, name)):
        assert len(next(iter(loader))[0]["proposals"]) == 1
    unread = set(dict(flatten(stock_cfg()))) - read - {*REFUSED, *TOLD}
    assert not [key for key in unread if not key.startswith(HEADS)]


@pytest.mark.parametrize("key", REFUSED)
def test_what_an_isonet_cannot_be_is_refused_by_name(key):
    with pytest.raises(ISONetError, match=f"{key}( of an ISONet|:)"):
        build_backbone(config("mask_rcnn_risonet18_fpn.yaml", key, REFUSED[key]))


def test_a_config_of_version_1_is_refused(tmp_path):
    (tmp_path / "their.yaml").write_text("VERSION: 1")
    with pytest.raises(ISONetError, match="VERSION 1"):
        merge_config_file(get_cfg(), str(tmp_path / "their.yaml"))
