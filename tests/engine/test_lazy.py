import json
import os
import signal

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from runs import At, PowerCut, assert_identical, cut, outcome, run
from support import REPOSITORY, metrics, run_command, tool, tool_refuses

from isonet_det import ISONetError
from isonet_det.data.register import open_set
from isonet_det.engine.lazy import LazyTrainer, load_lazy_config

CONFIG = """
from detectron2.config import LazyConfig
from isonet_det.config import configs_dir

cfg = LazyConfig.load(str(configs_dir() / "lazy" / "mask_rcnn_risonet50_fpn.py"))
model, dataloader, train = cfg.model, cfg.dataloader, cfg.train
optimizer, lr_multiplier = cfg.optimizer, cfg.lr_multiplier
body = model.backbone.bottom_up
body.depth, body.out_features, body.freeze_at = 18, ["res2", "res3"], 0
model.backbone.out_channels = 16
del model.backbone["top_block"]
rpn, heads = model.proposal_generator, model.roi_heads
rpn.in_features = heads.box_in_features = heads.mask_in_features = ["p2", "p3"]
rpn.head.in_channels = 16
rpn.anchor_generator.sizes, rpn.anchor_generator.strides = [[32], [64]], [4, 8]
rpn.post_nms_topk = [20, 20]
heads.num_classes, heads.batch_size_per_image = 4, 8
for head in (heads.box_head, heads.mask_head):
    head.input_shape.channels = 16
heads.box_pooler.scales = heads.mask_pooler.scales = (1 / 4, 1 / 8)
heads.box_head.fc_dims, heads.mask_head.conv_dims = [1024], [16, 16]
dataloader.train.dataset.names, dataloader.test.dataset.names = "shapes_val", "shapes_tiny"
dataloader.evaluator.dataset_name = "shapes_tiny"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.augmentations[0].short_edge_length = [64]
dataloader.test.mapper.augmentations[0].short_edge_length = 64
optimizer.lr = 0.001
train.device, train.init_checkpoint, train.max_iter = "cpu", "", 7
train.eval_period, train.checkpointer.period, train.checkpointer.max_to_keep = 3, 2, 1
del body, rpn, head, heads, cfg
"""


@pytest.fixture
def train(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)

    def start(name, resume=False, hook=None, *overrides):
        overrides = [f"train.output_dir={tmp_path}/{name}", *overrides]
        cfg = load_lazy_config(str(tmp_path / "small.py"), overrides)
        (tmp_path / name).mkdir(exist_ok=True)
        run(LazyTrainer(cfg), resume, hook)
        return tmp_path / name

    return start


def test_an_interrupted_lazy_run_ends_bitwise_like_a_whole_one(train, tmp_path):
    def stop_run(trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    whole = train("whole", False, None, "train.seed=5")
    expected = outcome(whole)
    assert "bbox/AP" in expected[2][-1] and expected[2][-1]["iteration"] == 7
    with pytest.raises(PowerCut):
        train("cut", False, At(3, cut), "train.seed=5")
    with pytest.raises(SystemExit) as stop:
        train("cut", True, At(4, stop_run), "train.seed=5")
    assert stop.value.code == 75 and (tmp_path / "cut" / "model_0000004.pth").is_file()
    # The order of the images and all draws are the run's, whatever seed it is resumed under.
    assert_identical(outcome(train("cut", True, None, "train.seed=6")), expected)


@pytest.mark.parametrize("line", ["from nowhere import model", "model = = 1", "model = nothing"])
def test_a_lazy_config_that_is_no_python_is_one_line(tmp_path, line):
    (tmp_path / "c.py").write_text(line)
    with pytest.raises(ISONetError, match=r"lazy config file .*c\.py: "):
        load_lazy_config(str(tmp_path / "c.py"), [])


@pytest.mark.slow
def test_torchrun_trains_a_lazy_config_in_one_run(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [REPOSITORY / "tools" / "lazyconfig_train_net.py", "--config-file", "small.py"]
    words = ["train.max_iter=2", "train.eval_period=0", "train.output_dir=out"]
    # shapes_tiny is this process' own.
    words += [
        f"dataloader.{k}=shapes_val" for k in ("test.dataset.names", "evaluator.dataset_name")
    ]
    result = run_command(*start, *script, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = metrics(tmp_path / "out")
    assert [row["iteration"] for row in rows if "total_loss" in row] == [1]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2


def test_a_lazy_evaluation_numbers_classes_as_the_checkpoint_does(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    command = ["lazyconfig_train_net.py", "--config-file", "small.py"]
    short = ["train.max_iter=1", "train.eval_period=0", "train.output_dir=run"]
    tool(*command, *short, cwd=tmp_path)
    line = tool_refuses(*command, "--resume", *short[1:], "train.max_iter=0", cwd=tmp_path)
    assert "train.max_iter" in line and "SOLVER" not in line  # the keys of lazy configs
    content = torch.load(tmp_path / "run" / "model_final.pth")
    content["classes"] = content["classes"][::-1]
    torch.save(content, tmp_path / "turned.pth")
    tool(*command, "--eval-only", "train.init_checkpoint=turned.pth", "train.output_dir=out",
         cwd=tmp_path)  # fmt: skip
    names = [c["name"] for c in content["classes"]]
    assert MetadataCatalog.get("shapes_tiny").thing_classes == names
    assert [a["category_id"] for r in DatasetCatalog.get("shapes_tiny") for a in r["annotations"]]
    open_set("shapes_tiny")  # as the other tests know it
