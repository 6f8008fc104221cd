import importlib.machinery
import importlib.util
import sys
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("mmengine")
if not importlib.util.find_spec("mmcv._ext"):  # mmcv-lite: operators that are not used here
    spec = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = MagicMock(__spec__=spec)
pytest.importorskip("mmdet.registry")
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from mmengine.runner import Runner
from support import authors_state

from isonet_det import ISONet, orthogonality_penalty
from isonet_det.integrations import mmdetection  # noqa: F401


class Detector(BaseModel):
    def __init__(self, checkpoint):
        super().__init__()
        self.backbone = MODELS.build(
            {"type": "RISONet", "depth": 18, "frozen_stages": 1, "checkpoint": checkpoint}
        )

    def forward(self, inputs, mode="tensor"):
        maps = self.backbone(inputs)
        return {"loss": maps[-1].square().mean()} if mode == "loss" else maps


def test_a_runner_fills_it_trains_the_penalty_and_splits_the_groups(tmp_path):
    torch.save(authors_state(ISONet(18)), tmp_path / "w.pth")
    model = Detector(str(tmp_path / "w.pth"))
    seen = []
    data = {
        "batch_size": 2, "dataset": [torch.rand(3, 64, 64)] * 4,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": lambda images: {"inputs": torch.stack(images)},
    }  # fmt: skip
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=data,
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={
            "constructor": "ISONetOptimWrapperConstructor",
            "optimizer": {"type": "SGD", "lr": 1e-3, "weight_decay": 1e-4},
            "paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": 0.1}}},
        },
        custom_hooks=[{"type": "OrthogonalLossHook", "coeff": 1.0}],
        default_scope="mmdet",
    )
    model.parse_losses = lambda losses: seen.append(losses) or BaseModel.parse_losses(model, losses)
    runner.train()
    assert [set(losses) for losses in seen] == [{"loss", "loss_ortho"}] * 2
    body = runner.model.backbone
    assert len(body(torch.rand(1, 3, 64, 64))) == 4 and not body.res2[0].conv1.weight.requires_grad
    assert orthogonality_penalty(body) < seen[0]["loss_ortho"]
    of = {p: g for g in runner.optim_wrapper.optimizer.param_groups for p in g["params"]}
    block = body.res3[0]
    assert of[block.res_multiplier]["lr"] == pytest.approx(1e-5)
    assert of[block.conv1.weight]["lr"] == pytest.approx(1e-4)
    assert of[block.activation.srelu_bias]["weight_decay"] == 0
