"""In somebody else's project: a stock DefaultTrainer, lazy configs, an unseen meta-architecture."""

import copy
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from support import authors_state, run_command, run_tool
from torch import nn

from isonet_det import (
    ISONet,
    ISONetError,
    build_model,
    load_backbone,
    load_weights,
    model_zoo,
)
from isonet_det.config import merge_options
from isonet_det.engine.lazy import build_lazy_model, load_lazy_config
from isonet_det.modeling.detectron2 import awaiting
from isonet_det.modeling.layers import stop_awaiting
from isonet_det.weights import zoo

CONFIG = """
MODEL:
  META_ARCHITECTURE: "%s"
  DEVICE: "cpu"
  WEIGHTS: "weights.pth"
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  BACKBONE: {NAME: "build_isonet_fpn_backbone"}
  RESNETS: {DEPTH: 18, OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]}
  ROI_HEADS:
    NAME: "StandardROIHeads"
    NUM_CLASSES: 4
    IN_FEATURES: ["p2", "p3", "p4", "p5"]
    BATCH_SIZE_PER_IMAGE: 8
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 1, FC_DIM: 16}
INPUT: {FORMAT: "RGB", MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 128}
DATASETS: {TRAIN: ["shapes_val"], TEST: []}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, BASE_LR: 0.001, STEPS: [1]}
OUTPUT_DIR: "out"
VERSION: 2
"""
# What the README shows.
RECIPE = """
import json
import isonet_det
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_setup
%s
cfg = get_cfg()
isonet_det.add_isonet_config(cfg)
cfg.merge_from_file("their_config.yaml")

class Trainer(DefaultTrainer):
    build_model = staticmethod(isonet_det.build_model)  # adds loss_ortho
    build_optimizer = staticmethod(isonet_det.build_optimizer)  # the parameter groups

default_setup(cfg, None)
trainer = Trainer(cfg)
isonet_det.load_weights(trainer.model, cfg.MODEL.WEIGHTS)  # strict
trainer.train()
row = json.loads(open("out/metrics.json").read().splitlines()[-1])
assert row["loss_ortho"] > 0, row
rates = {g["lr"] for g in trainer.optimizer.param_groups}
assert len(rates) == 2, rates
print("DONE")
"""
UNSEEN = """
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone

@META_ARCH_REGISTRY.register()
class Unseen(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.eye = build_backbone(cfg)
        self.head = torch.nn.Conv2d(16, 1, 1)

    def forward(self, batch):
        images = torch.stack([d["image"][:, :64, :64].float() / 255 for d in batch])
        return {"loss_unseen": self.head(self.eye(images)["p2"]).square().mean()}
"""


@pytest.mark.parametrize(
    ("architecture", "definition"),
    [("GeneralizedRCNN", ""), pytest.param("Unseen", UNSEEN, marks=pytest.mark.slow)],
)
def test_the_recipe_in_a_stock_trainer(tmp_path, architecture, definition):
    (tmp_path / "their_config.yaml").write_text(CONFIG % architecture)
    (tmp_path / "their_train.py").write_text(RECIPE % definition)
    torch.save(authors_state(ISONet(18)), tmp_path / "weights.pth")
    result = run_command("their_train.py", cwd=tmp_path)
    assert result.returncode == 0 and "DONE" in result.stdout, result.stderr[-3000:]


def test_training_without_the_loss_that_the_config_asks_for_warns_once(caplog):
    from detectron2.modeling import build_model as stock_build

    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(cfg, ["MODEL.DEVICE", "cpu"])
    x = torch.zeros(1, 3, 64, 64)
    backbone = stock_build(cfg).backbone
    backbone(x)
    backbone(x)
    assert caplog.text.count("trains without loss_ortho") == 1
    caplog.clear()
    build_model(cfg).backbone(x)
    stock_build(cfg).eval().backbone(x)
    merge_options(cfg, ["MODEL.ISONET.ORTHO_COEFF", "0.0"])
    build_model(cfg).backbone(x)
    assert "trains without" not in caplog.text


def test_the_warning_is_copied_and_pickled_and_out_of_the_way_of_scripting(caplog):
    x = torch.zeros(1, 3, 32, 32)
    network = awaiting(ISONet(18, out_features=["res2"]), 1.0, "")
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        caplog.clear()
        other(x)
        other(x)
        assert caplog.text.count("trains without loss_ortho") == 1
    caplog.clear()
    assert torch.equal(torch.jit.script(network)(x)["res2"], network.eval()(x)["res2"])
    stop_awaiting(nn.Sequential(network.train()), "loss")
    network(x)
    assert not caplog.text


@pytest.mark.parametrize(
    "name",
    ["mask_rcnn_risonet50_fpn", pytest.param("mask_rcnn_risonet50_dc5", marks=pytest.mark.slow)],
)
def test_lazy_and_yaml_are_the_same_detector(name, tmp_path):
    lazy = load_lazy_config(f"{name}.py", [])
    model = instantiate(lazy.model)
    yaml = "table6/risonet50_dc5.yaml" if "dc5" in name else f"{name}.yaml"
    cfg = model_zoo.get_config(yaml)
    merge_options(cfg, ["MODEL.DEVICE", "cpu"])
    other = build_model(cfg)
    if "dc5" not in name:  # Detectron2's lazy heads have other depths of layers than its DC5 yaml
        assert model.state_dict().keys() == other.state_dict().keys()
    path = tmp_path / "w.pth"
    torch.save(authors_state(ISONet(50)), path)
    for detector in (model, other):
        load_weights(detector, str(path))
    if model.state_dict().keys() == other.state_dict().keys():
        other.load_state_dict(model.state_dict())
        image = [{"image": torch.randint(0, 256, (3, 128, 160)).float()}]
        with torch.no_grad():
            a, b = (m.eval()(image)[0]["instances"] for m in (model, other))
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in other.named_parameters() if not p.requires_grad}
    assert lazy.dataloader.train.mapper.image_format == model.input_format == "RGB"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn_risonet50_fpn", "mask_rcnn_risonet50_dc5"])
def test_lazy_training(name, tmp_path):
    import json

    depth, smaller = (18, ["model.backbone.bottom_up.depth=18"]) if "fpn" in name else (50, [])
    torch.save(authors_state(ISONet(depth)), tmp_path / "w.pth")
    command = [
        "lazyconfig_train_net.py", "--config-file", f"{name}.py",
        "train.max_iter=2", "train.eval_period=0", "train.init_checkpoint=w.pth",
        "dataloader.train.dataset.names=shapes_val", "dataloader.test.dataset.names=shapes_tiny",
        "dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0", "model.roi_heads.num_classes=4",
        "model.proposal_generator.post_nms_topk=[20,20]", "train.output_dir=out",
        "model.roi_heads.batch_size_per_image=8", "optimizer.lr=0.001", "optimizer.momentum=0.0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.evaluator.dataset_name=shapes_tiny",
        "model.roi_heads.box_head.fc_dims=[16,1024]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64", *smaller,
    ]  # fmt: skip
    result = run_tool(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()
    ]
    assert rows[0]["loss_ortho"] > 0 and "bbox/AP" in rows[-1]
    assert (tmp_path / "out" / "model_final.pth").is_file()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--num-gpus", "999"], "--num-gpus 999: this machine has"),
        (["dataloader.train.dataset.names=shapes_vla"], "did you mean shapes_val?"),
        (["dataloader.test.dataset.names=shapes_vla"], "did you mean shapes_val?"),
        (["train.init_checkpoint=none.pth"], "none.pth: there is no such file"),
        (["train.max_iter"], "overrides"),
    ],
)
def test_a_lazy_training_that_cannot_be_is_one_line(words, named, tmp_path):
    command = ["--config-file", "mask_rcnn_risonet50_fpn.py", *words]
    result = run_tool("lazyconfig_train_net.py", *command, cwd=tmp_path)
    assert result.returncode == 2 and named in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_bad_lazy_configs_are_one_line(tmp_path):
    with pytest.raises(ISONetError, match=r"lazy config file none\.py not found"):
        load_lazy_config("none.py", [])
    (tmp_path / "their.txt").write_text("hello")
    with pytest.raises(ISONetError, match=r"expected a \.py file"):
        load_lazy_config(str(tmp_path / "their.txt"), [])


def stock_checkpointer(model, address):
    DetectionCheckpointer(model).load(address)
    return model


@pytest.fixture
def zoo_file(tmp_path, monkeypatch):
    """A stand-in for the authors' file of R-ISONet-18, as if it was downloaded."""
    path = tmp_path / "R-ISONet-18.pth"
    torch.save(authors_state(ISONet(18)), path)
    monkeypatch.setattr(zoo, "get_checkpoint", lambda name: str(path.with_stem(name)))
    return path


def test_a_stock_checkpointer_resolves_isonet_addresses(zoo_file, caplog):
    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(cfg, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "isonet://R-ISONet-18"])
    expected = ISONet(18, out_features=["res3"])
    load_backbone(expected, zoo_file)
    for _ in range(2):  # the second time it is converted already
        model = stock_checkpointer(build_model(cfg), cfg.MODEL.WEIGHTS)
        state = model.backbone.bottom_up.state_dict()
        assert all(torch.equal(state[n], t) for n, t in expected.state_dict().items())
    model.backbone(torch.zeros(1, 3, 64, 64))
    assert "INITIALIZATION" not in caplog.text


def test_a_backbone_that_nothing_has_filled_says_so_once(zoo_file, caplog):
    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(cfg, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(zoo_file)])
    x = torch.zeros(1, 3, 64, 64)
    # The authors' names, as they are, match nothing.
    backbone = copy.deepcopy(stock_checkpointer(build_model(cfg), str(zoo_file)).backbone)
    backbone.eval()(x)
    assert "INITIALIZATION" not in caplog.text
    backbone.train()(x)
    backbone(x)
    assert caplog.text.count("INITIALIZATION") == 1 and str(zoo_file) in caplog.text
    caplog.clear()
    # What fills it: this package, a checkpoint of the whole detector; or there is nothing to fill.
    model = build_model(cfg)
    load_weights(model, str(zoo_file))
    other = build_model(cfg)
    other.load_state_dict(model.state_dict())
    merge_options(cfg, ["MODEL.WEIGHTS", ""])
    for detector in (model, other, build_model(cfg)):
        detector.backbone(x)
    assert "INITIALIZATION" not in caplog.text


def test_the_stock_lazy_tool_is_told_what_it_leaves_out(zoo_file, caplog):
    """It instantiates the model, and knows neither train.ortho_coeff nor the authors' names."""
    overrides = ["model.backbone.bottom_up.depth=18", f"train.init_checkpoint={zoo_file}"]
    x = torch.zeros(1, 3, 64, 64)
    cfg = load_lazy_config("mask_rcnn_risonet50_fpn.py", overrides)
    stock_checkpointer(instantiate(cfg.model), cfg.train.init_checkpoint).backbone(x)
    assert caplog.text.count("INITIALIZATION") == caplog.text.count("without loss_ortho") == 1
    caplog.clear()
    model = build_lazy_model(cfg)
    load_weights(model, cfg.train.init_checkpoint)
    model.backbone(x)
    cfg.train.ortho_coeff, cfg.train.init_checkpoint = 0, ""
    instantiate(cfg.model).backbone(x)
    del cfg.train  # a model by itself
    instantiate(cfg.model).backbone(x)
    assert "INITIALIZATION" not in caplog.text and "without loss_ortho" not in caplog.text
