"""Training classifiers on image folders, from yaml configs."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from .. import model_zoo
from ..data.image_folder import (
    build_train_loader,
    build_val_loader,
    check_image_folders,
    read_split,
)
from ..errors import ISONetError
from ..evaluation.accuracy import AccuracyEvaluator
from ..modeling.classifier import is_classifier
from ..solver.schedule import build_epoch_scheduler, epochs_to_iterations
from .trainer import Trainer

logger = logging.getLogger(__name__)


class PretrainTrainer(Trainer):
    """A trainer of classifiers: image folders, a schedule in epochs, top-1 and top-5."""

    @classmethod
    def complete_cfg(
        cls, cfg: CfgNode, train: bool = True, classes: Sequence[str] | None = None
    ) -> CfgNode:
        if not is_classifier(cfg):
            found = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
            raise ISONetError(f"{found} is no ImageClassifier: take a configs/imagenet/*.yaml")
        if list(cfg.INPUT.AUGMENTATION) != ["default"] or cfg.TEST.REPORT:
            raise ISONetError("INPUT.AUGMENTATION and TEST.REPORT are for detectors")
        check_image_folders(cfg, train, classes)
        cfg = cfg.clone()
        cfg.defrost()
        if train:
            epochs_to_iterations(cfg, len(read_split(cfg, cfg.DATASETS.TRAIN[0])))
        cfg.freeze()
        return cfg

    @classmethod
    def class_records(cls, cfg: CfgNode) -> list[dict[str, Any]] | None:
        names = read_split(cfg, cfg.DATASETS.TRAIN[0]).classes
        return [{"id": number, "name": name} for number, name in enumerate(names)]

    @classmethod
    def draw_pictures(cls, cfg: CfgNode, model: nn.Module) -> None:
        """None: the curves say it all."""

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_epoch_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg, seed=0)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_val_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return AccuracyEvaluator()

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict[str, Any]:
        """With BatchNorm's statistics of the first process in all (authors' ``DataParallel``)."""
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return super().test(cfg, model, evaluators)

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: nn.Module | None = None) -> Any:
        """:meth:`Trainer.evaluate`; a zoo entry's top-1 is logged beside the measured one."""
        results, address = super().evaluate(cfg, model), cfg.MODEL.WEIGHTS
        name = Path(address).stem if address.endswith(".pth") else address.rpartition("//")[2]
        if results and (record := model_zoo.records().get(name)):
            top1 = results["classification"]["top1"]
            zoo = f"{record.top1:.2f} in the model zoo ({record.top1_source})"
            logger.info("%s: top-1 %.2f measured, %s", name, top1, zoo)
        return results
