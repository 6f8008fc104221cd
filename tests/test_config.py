import pickle
import re

import numpy as np
import pytest
from benchmark import random_batch
from detectron2 import model_zoo as stock_zoo
from detectron2.config import get_cfg as stock_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from runs import run_cfg
from support import REPOSITORY, config

from isonet_det import ISONetError, add_isonet_config, get_cfg, model_zoo
from isonet_det.config import (
    configs_dir,
    different_keys,
    find_config_file,
    merge_config_file,
    merge_options,
)
from isonet_det.data.stream import build_train_loader
from isonet_det.engine.trainer import Trainer
from isonet_det.solver.schedule import scale_to_processes

CONFIGS = model_zoo.list()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_with_imagenet_pixels(name):
    if "panoptic_deeplab" in name:
        pytest.importorskip("panopticapi")
    cfg = config(name)
    model = build_model(cfg)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert any(hasattr(m, "gram_stride") for m in model.modules()) or "resnet" in name
    scheme, _, entry = cfg.MODEL.WEIGHTS.partition("://")
    if scheme == "isonet":
        record = model_zoo.get_record(entry)
        assert record.depth == cfg.MODEL.RESNETS.DEPTH
        assert (record.network == "R-ISONet") == cfg.MODEL.ISONET.RESIDUAL


def test_keys_are_added_on_request_and_twice_keep_their_values():
    get_cfg()
    cfg = stock_cfg()
    assert "ISONET" not in cfg.MODEL
    add_isonet_config(cfg)
    cfg.MODEL.ISONET.ORTHO_COEFF = 3e-4
    add_isonet_config(cfg)
    assert cfg.MODEL.ISONET.ORTHO_COEFF == 3e-4


# What every config of ours changes in Detectron2's: the backbone, its weights and pixels, and how
# other numbers of GPUs are served.
OURS = {
    "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.WEIGHTS", "INPUT.FORMAT", "OUTPUT_DIR",
    "SOLVER.REFERENCE_WORLD_SIZE",
}  # fmt: skip
RATE, STRIDE = "SOLVER.BASE_LR", "MODEL.RESNETS.STRIDE_IN_1X1"


@pytest.mark.parametrize(("ours", "stock", "more"), [
    ("mask_rcnn_risonet50_fpn", "mask_rcnn_R_50_FPN_1x", set()),
    ("mask_rcnn_resnet50_fpn", "mask_rcnn_R_50_FPN_1x", {STRIDE}),
    ("table6/risonet50_dc5", "mask_rcnn_R_50_DC5_1x", {RATE, "MODEL.ISONET.ORTHO_COEFF"}),
    ("table6/resnet50_dc5", "mask_rcnn_R_50_DC5_1x", {RATE, STRIDE}),
])  # fmt: skip
def test_recipes_are_detectron2s_but_for_the_backbone(ours, stock, more):
    theirs = stock_zoo.get_config(f"COCO-InstanceSegmentation/{stock}.yaml")
    add_isonet_config(theirs)
    changed = different_keys(theirs, model_zoo.get_config(f"{ours}.yaml"))
    assert changed - {"MODEL.BACKBONE.NAME"} == OURS | more


@pytest.mark.parametrize("depth", [34, 50])
def test_rows_of_table_6_differ_in_the_backbone_alone(depth):
    rows = [model_zoo.get_config(f"table6/{n}{depth}_dc5.yaml") for n in ("resnet", "risonet")]
    wide = {"MODEL.RESNETS.RES2_OUT_CHANNELS"} if depth == 34 else set()
    expected = {"MODEL.BACKBONE.NAME", STRIDE, "MODEL.WEIGHTS", "OUTPUT_DIR"}
    expected.add("MODEL.ISONET.ORTHO_COEFF")
    assert different_keys(*rows) == wide | expected
    assert rows[1].SOLVER.BASE_LR == 0.01 and rows[1].SOLVER.MAX_ITER == 90000


def test_a_projects_keys_come_with_its_config_file_alone(tmp_path):
    cfg = model_zoo.get_config("pointrend_risonet50_fpn.yaml")
    assert cfg.MODEL.POINT_HEAD.NAME == "StandardPointHead"
    assert "STEM_TYPE" not in cfg.MODEL.RESNETS and "POINT_HEAD" not in get_cfg().MODEL
    (tmp_path / "config.yaml").write_text(cfg.dump())  # as a run leaves it
    again = get_cfg()
    merge_config_file(again, str(tmp_path / "config.yaml"))
    assert different_keys(again, cfg) == set()
    (tmp_path / "wrong.yaml").write_text("MODEL: {POINT_HEAD: {FC_DIMS: 8}}")
    with pytest.raises(ISONetError, match=r"wrong\.yaml: there is no config key"):
        merge_config_file(get_cfg(), str(tmp_path / "wrong.yaml"))


@pytest.mark.parametrize("options", [["SOLVER.IMS_PER_BATCH", "8"], ["SOLVER.BASE_LR", "0.01"]])
def test_a_batch_or_rate_of_the_command_line_is_not_scaled(options, caplog):
    cfg = config("mask_rcnn_risonet50_fpn.yaml", *options)
    scaled = scale_to_processes(cfg, 1, options)
    changed = different_keys(scaled, cfg)
    assert changed == {"SOLVER.REFERENCE_WORLD_SIZE"} and options[0] in caplog.text
    asked = [*options, "SOLVER.REFERENCE_WORLD_SIZE", "8"]
    assert "SOLVER.BASE_LR" in different_keys(scale_to_processes(cfg, 1, asked), cfg)


def test_a_schedule_of_the_command_line_is_taken_as_it_is_and_the_batch_is_scaled():
    """SOLVER.MAX_ITER 100 on one GPU, most people's first smoke test."""
    options = ["SOLVER.MAX_ITER", "100"]
    solver = scale_to_processes(config("mask_rcnn_risonet50_fpn.yaml", *options), 1, options).SOLVER
    assert (solver.MAX_ITER, solver.IMS_PER_BATCH, solver.BASE_LR) == (100, 2, 0.0025)
    assert solver.WARMUP_ITERS == 8000
    for world, named in ((0, "divide among 3 processes"), (7, "SIZE 7")):
        cfg = config("table6/risonet50_dc5.yaml", "SOLVER.REFERENCE_WORLD_SIZE", world)
        with pytest.raises(ISONetError, match=named):
            scale_to_processes(cfg, 3)


@pytest.mark.parametrize(("processes", "steps"), [(1, 1), (2, 2), (1, 8), (16, 1)])
def test_scaling_counts_micro_batches_as_processes(processes, steps, caplog):
    cfg = model_zoo.get_config("table6/risonet50_dc5.yaml")
    cfg.SOLVER.ACCUMULATE_STEPS = steps
    with caplog.at_level("INFO"):
        scaled = scale_to_processes(cfg, processes)
    part, solver = processes * steps / 8, scaled.SOLVER
    assert solver.IMS_PER_BATCH == 16 * part
    assert solver.BASE_LR == pytest.approx(0.01 * part)
    schedule = (solver.MAX_ITER, *solver.STEPS, solver.WARMUP_ITERS)
    assert schedule == tuple(round(n / part) for n in (90000, 60000, 80000, 1000))
    if part != 1:
        assert f"SOLVER.BASE_LR 0.01 -> {solver.BASE_LR}" in caplog.text
    assert different_keys(scaled, scale_to_processes(scaled, processes)) == set()


def test_ready_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/quickstart.yaml", "quickstart.yaml"):
        assert find_config_file(name) == str(configs_dir() / "quickstart.yaml")
    assert "quickstart.yaml" in CONFIGS
    with pytest.raises(ISONetError, match=r"mask_rcnn_risonet50_fpn.yaml\?"):
        find_config_file("mask_rcnn_risonet50_fnp.yaml")


# What an ISONet cannot be: a value that it refuses, with the key's name.
REFUSED = {
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 128,
    "MODEL.RESNETS.NORM": "GN",
}


def test_keys_that_few_people_set_work(tmp_path):
    cfg = run_cfg(
        tmp_path, "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", "TEST.AUG.ENABLED", "True",
        "TEST.AUG.MIN_SIZES", "(64,)", "SOLVER.CLIP_GRADIENTS.ENABLED", "True",
        "INPUT.CROP.ENABLED", "True", "INPUT.MASK_FORMAT", "bitmask", "SOLVER.STEPS", "(1,)",
        "DATALOADER.NUM_WORKERS", "0", "TEST.PRECISE_BN.ENABLED", "True", "MODEL.ISONET.NORM", "BN",
        "MODEL.ISONET.HAS_RES_MULTIPLIER", "False", "TEST.PRECISE_BN.NUM_ITER", "2",
    )  # fmt: skip
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    assert {"bbox", "segm", "bbox_TTA", "segm_TTA"} <= set(trainer.train())
    assert (tmp_path / "TTA" / "inference" / "coco_instances_results.json").is_file()
    cfg.defrost()
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
    ])  # fmt: skip
    for loader in (build_train_loader(cfg, 0), Trainer.build_test_loader(cfg, name)):
        assert len(next(iter(loader))[0]["proposals"]) == 1


@pytest.mark.parametrize("key", REFUSED)
def test_what_an_isonet_cannot_be_is_refused_by_name(key):
    with pytest.raises(ISONetError, match=f"{key}( of an ISONet|:)"):
        build_backbone(config("mask_rcnn_risonet18_fpn.yaml", key, REFUSED[key]))


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
    with pytest.raises(ISONetError, match=r"no trained detector.*pretrained_backbone=True"):
        model_zoo.get("quickstart.yaml", trained=True)
