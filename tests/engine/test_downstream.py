import copy
import pickle
import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.modeling import build_model as stock_build
from support import PENALTY, REPOSITORY, authors_state, config, run_command, small_cfg, tool_refuses
from torch import nn

from isonet_det import ISONet, build_model, load_backbone, load_weights
from isonet_det.engine.lazy import build_lazy_model, load_lazy_config
from isonet_det.modeling.watch import await_parts, stop_awaiting
from isonet_det.weights import zoo

CHECKS = """
import json
row = json.loads(open("out/metrics.json").read().splitlines()[-1])
assert row["loss_ortho"] > 0, row
assert len({g["initial_lr"] for g in trainer.optimizer.param_groups}) == 2
"""


def test_the_program_of_the_docs_in_a_stock_trainer(tmp_path):
    page = (REPOSITORY / "docs/detectors.md").read_text()
    program = re.search(r"```python\n(.*?DefaultTrainer.*?)```", page, re.S)[1]
    cfg = small_cfg(
        *PENALTY, "DATASETS.TRAIN", "('shapes_val',)", "DATASETS.TEST", "()", "OUTPUT_DIR", "out",
        "MODEL.WEIGHTS", "weights.pth", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)",
        "SOLVER.RES_MULTIPLIER_LR_FACTOR", "0.1",
    )  # fmt: skip
    (tmp_path / "their_config.yaml").write_text(cfg.dump())
    (tmp_path / "their_train.py").write_text(program + CHECKS)
    torch.save(authors_state(ISONet(18)), tmp_path / "weights.pth")
    result = run_command("their_train.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture
def warned(caplog):
    """Calls networks, and counts what is warned of then."""

    def call(*networks):
        caplog.clear()
        for network in networks:
            network(torch.zeros(1, 3, 64, 64))
        return [caplog.text.count(words) for words in ("without loss_ortho", "INITIALIZATION")]

    return call


def test_training_without_the_loss_that_the_config_asks_for_warns_once(warned):
    cfg = config("quickstart.yaml")
    backbone = stock_build(cfg).backbone
    assert warned(backbone, backbone) == [1, 0]
    without = config("quickstart.yaml", "MODEL.ISONET.ORTHO_COEFF", "0.0")
    others = (build_model(cfg), stock_build(cfg).eval(), build_model(without))
    assert warned(*(model.backbone for model in others)) == [0, 0]


def test_the_warning_is_copied_and_pickled_and_out_of_the_way_of_scripting(warned):
    network = ISONet(18, out_features=["res2"])
    await_parts(network, 1.0, "")
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert warned(other, other) == [1, 0]
    x = torch.zeros(1, 3, 32, 32)
    assert torch.equal(torch.jit.script(network)(x)["res2"], network.eval()(x)["res2"])
    stop_awaiting(nn.Sequential(network.train()), "loss")
    assert warned(network) == [0, 0]


def test_lazy_and_yaml_are_the_same_detector():
    instantiate(load_lazy_config("mask_rcnn_risonet50_dc5.py", []).model)
    lazy = load_lazy_config("mask_rcnn_risonet50_fpn.py", [])
    model, other = instantiate(lazy.model), build_model(config("mask_rcnn_risonet50_fpn.yaml"))
    other.load_state_dict(model.state_dict())
    image = [{"image": torch.randint(0, 256, (3, 128, 160)).float()}]
    with torch.no_grad():
        a, b = (m.eval()(image)[0]["instances"] for m in (model, other))
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert torch.equal(a.scores, b.scores)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in other.named_parameters() if not p.requires_grad}
    assert lazy.dataloader.train.mapper.image_format == model.input_format == "RGB"


@pytest.mark.parametrize(("words", "named"), [
    (["dataloader.train.dataset.names=shapes_vla"], "did you mean shapes_val?"),
    (["train.init_checkpoint=none.pth"], "none.pth: there is no such file"),
    (["train.max_iter"], "overrides"),
    (["--config-file", "none.py"], "lazy config file 'none.py': expected"),
    (["--config-file", REPOSITORY / "README.md"], "expected a .py file"),
])  # fmt: skip
def test_a_lazy_training_that_cannot_be_is_one_line(words, named, tmp_path):
    command = ["--config-file", "mask_rcnn_risonet50_fpn.py", *words]
    assert named in tool_refuses("lazyconfig_train_net.py", *command, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def stock_checkpointer(model, address):
    DetectionCheckpointer(model).load(address)
    return model


@pytest.fixture
def zoo_file(tmp_path, monkeypatch):
    path = tmp_path / "R-ISONet-18.pth"
    torch.save(authors_state(ISONet(18)), path)
    monkeypatch.setattr(zoo, "get_checkpoint", lambda name: str(path.with_stem(name)))
    return path


def test_a_stock_checkpointer_resolves_isonet_addresses(zoo_file, warned):
    cfg = config("quickstart.yaml", "MODEL.WEIGHTS", "isonet://R-ISONet-18")
    expected = ISONet(18, out_features=["res3"])
    load_backbone(expected, zoo_file)
    for _ in range(2):  # the second time it is converted already
        model = stock_checkpointer(build_model(cfg), cfg.MODEL.WEIGHTS)
        state = model.backbone.bottom_up.state_dict()
        assert all(torch.equal(state[n], t) for n, t in expected.state_dict().items())
    assert warned(model.backbone) == [0, 0]


def test_a_backbone_that_nothing_has_filled_says_so_once(zoo_file, warned, caplog):
    cfg = config("quickstart.yaml", "MODEL.WEIGHTS", zoo_file)
    # The authors' names, as they are, match nothing.
    backbone = copy.deepcopy(stock_checkpointer(build_model(cfg), str(zoo_file)).backbone)
    assert warned(backbone.eval()) == [0, 0]
    assert warned(backbone.train(), backbone) == [0, 1] and str(zoo_file) in caplog.text
    # What fills it: this package, a checkpoint of the whole detector; or there is nothing to fill.
    model, other = build_model(cfg), build_model(cfg)
    load_weights(model, str(zoo_file))
    other.load_state_dict(model.state_dict())
    empty = build_model(config("quickstart.yaml", "MODEL.WEIGHTS", ""))
    assert warned(*(detector.backbone for detector in (model, other, empty))) == [0, 0]


def test_the_stock_lazy_tool_is_told_what_it_leaves_out(zoo_file, warned):
    overrides = ["model.backbone.bottom_up.depth=18", f"train.init_checkpoint={zoo_file}"]
    cfg = load_lazy_config("mask_rcnn_risonet50_fpn.py", overrides)
    stock = stock_checkpointer(instantiate(cfg.model), cfg.train.init_checkpoint)
    assert warned(stock.backbone) == [1, 1]
    model = build_lazy_model(cfg)
    load_weights(model, cfg.train.init_checkpoint)
    cfg.train.ortho_coeff, cfg.train.init_checkpoint = 0, ""
    cfg.model.backbone.bottom_up.freeze_at = 0
    nothing = instantiate(cfg.model)
    del cfg.train  # a model by itself
    assert warned(model.backbone, nothing.backbone, instantiate(cfg.model).backbone) == [0, 0]
