"""Training from yaml configs."""

import contextlib
import logging
import os
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..analysis.curves import try_to_draw
from ..analysis.pictures import draw_predictions
from ..analysis.report import find_results, write_report
from ..config import has_unknown_classes, set_number_of_classes
from ..data import NamingDatasetMapper, check_datasets
from ..data.register import class_records
from ..data.stream import (
    SeededDataset,
    build_train_loader,
    build_validation_loader,
    check_loader,
    mixed_seed,
    seed_everything,
)
from ..errors import ISONetError
from ..evaluation.coco import build_evaluator
from ..modeling.classifier import is_classifier
from ..modeling.detectron2 import require_our_keys
from ..regularizer.loss import build_model
from ..solver.optimizer import build_optimizer
from ..solver.schedule import build_scheduler, scale_to_processes
from ..weights.loader import load_weights, resolve_weights
from ..weights.names import read_weights
from .evaluate import check_metrics, validation_losses
from .loop import TrainingLoop
from .processes import together
from .step import flush_subnormals
from .tracking import build_trackers, check_tracking

logger = logging.getLogger(__name__)

# Where an error of a config comes from; an error in anybody else's code keeps its traceback.
_OURS = ("detectron2", "isonet_det", "torch", "fvcore", "yacs")
_STDLIB = sysconfig.get_paths()["stdlib"]


@contextlib.contextmanager
def _naming_the_config(what: str) -> Iterator[None]:
    """A config that Detectron2 cannot build is a mistake of one line."""
    try:
        yield
    except ISONetError:
        raise
    except Exception as error:  # a registry's, a number's, an assertion
        for frame, _ in traceback.walk_tb(error.__traceback__):
            path = Path(frame.f_code.co_filename)
            of_python = path.is_relative_to(_STDLIB) and "site-packages" not in path.parts
            if path.is_file() and not of_python and not set(_OURS) & set(path.parts):
                raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ISONetError(f"the config's {what} cannot be built: {reason}") from error


class Trainer(TrainingLoop):
    """Detectron2's ``DefaultTrainer``, whose ``build_*`` methods may be overridden, with the
    orthogonal loss, an ISONet's parameter groups, strict weight loading, COCO evaluation, and exact
    resume; on one device or several. The config (:func:`isonet_det.get_cfg`) is completed from the
    data and scaled to the processes that are there: ``trainer.cfg``."""

    def __init__(self, cfg: CfgNode) -> None:
        require_our_keys(cfg)
        flush_subnormals()
        cfg = scale_to_processes(cfg, comm.get_world_size())
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        super().__init__(*together(self._build, cfg, seed), seed, broadcast_buffers=False)

    def _build(
        self, cfg: CfgNode, seed: int
    ) -> tuple[CfgNode, nn.Module, torch.optim.Optimizer, Any, Any]:
        cfg = self.complete_cfg(cfg)
        check_tracking(cfg)
        check_metrics(cfg)
        seed_everything(mixed_seed(seed, "model"))
        with _naming_the_config("model, optimizer, loader or schedule"):
            model = self.build_model(cfg)
            if cfg.TEST.AUG.ENABLED:
                GeneralizedRCNNWithTTA(cfg, model)  # which says what it cannot augment
            optimizer = self.build_optimizer(cfg, model)
            scheduler = self.build_lr_scheduler(cfg, optimizer)
            loader = self.build_train_loader(cfg)
        if isinstance(getattr(loader, "dataset", None), SeededDataset):
            check_loader(loader, seed)
        # A detector carries its labels.
        model.classes = self.class_records(cfg)  # type: ignore[assignment]
        return cfg, model, optimizer, loader, scheduler

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks of every run, and Detectron2's of two keys of its own."""
        cfg, built = self.cfg, super().build_hooks()
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader, count = self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
            built.insert(-1, hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, count))
        if cfg.TEST.AUG.ENABLED:
            built.append(hooks.EvalHook(0, self._test_augmented))
        return built

    def evaluate_now(self) -> dict[str, Any]:
        """AP of the weights and of their average, and the losses of the first test set."""
        results = self._last_eval_results = self.test(self.cfg, self.model)
        model = self.checkpointer.model
        if self.cfg.TEST.VAL_LOSS and self.cfg.DATASETS.TEST and not is_classifier(self.cfg):
            loader = build_validation_loader(self.cfg, self.cfg.DATASETS.TEST[0])
            results = {**results, "val": validation_losses(model, loader)}
        if self.average is not None:
            results = {**results, "ema": self.test(self.cfg, self.average.model)}
        return results

    def _test_augmented(self) -> dict[str, Any]:
        results = self.test_with_TTA(self.cfg, self.model)
        self._last_eval_results.update(results)
        return results

    def train(self) -> Any:
        """:meth:`isonet_det.engine.loop.TrainingLoop.train`, then ``TEST.EXPECTED_RESULTS``."""
        results = super().train()
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            verify_results(self.cfg, results or {})
            if not is_classifier(self.cfg):
                run = self.cfg.OUTPUT_DIR
                logger.info("Next: isonet-det report %s", run)
                logger.info("      isonet-det demo --run %s --input PHOTOS", run)
        return results

    def draw(self) -> None:
        super().draw()
        try_to_draw(self.draw_pictures, self.cfg, self.checkpointer.model)

    def build_writers(self) -> list[EventWriter]:
        left_out = () if "tensorboard" in self.cfg.TRACKING else TensorboardXWriter
        return [writer for writer in super().build_writers() if not isinstance(writer, left_out)]

    def build_trackers(self) -> list[EventWriter]:
        return build_trackers(self.cfg, self.start_iter)

    @classmethod
    def trained_model(cls, cfg: CfgNode) -> tuple[CfgNode, nn.Module]:
        """The config, completed, and the model of ``MODEL.WEIGHTS``, which must fill all of it."""

        def build(cfg: CfgNode) -> tuple[CfgNode, nn.Module]:
            if not cfg.DATASETS.TEST:
                raise ISONetError("DATASETS.TEST is empty: name what to evaluate, such as by --val")
            address, checkpoint = cfg.MODEL.WEIGHTS, None
            if address and has_unknown_classes(cfg):
                checkpoint = read_weights(resolve_weights(address))
                cfg = set_number_of_classes(cfg, len(checkpoint.classes or ()), known=False)
            with _naming_the_config("model"):
                model = cls.build_model(cfg)
            load_weights(model, address, whole=True, checkpoint=checkpoint)
            records = getattr(model, "classes", None)
            if records is None:
                logger.info("The weights name no classes: they are taken for the test set's.")
            names = records and [record["name"] for record in records]
            return cls.complete_cfg(cfg, train=False, classes=names), model

        return together(build, cfg)

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: nn.Module | None = None) -> Any:
        """Evaluate what :meth:`trained_model` returns, or will return; in all processes."""
        if model is None:
            cfg, model = cls.trained_model(cfg)
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(cls.test_with_TTA(cfg, model))
        if comm.is_main_process():
            try_to_draw(cls.draw_pictures, cfg, model)
            verify_results(cfg, results)
        return results

    test: Any = classmethod(DefaultTrainer.test.__func__)  # on every test set

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """The evaluation with test-time augmentation, as in Detectron2's tools/train_net.py."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "TTA")
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model))
        return {f"{name}_TTA": result for name, result in results.items()}

    @classmethod
    def complete_cfg(
        cls, cfg: CfgNode, train: bool = True, classes: Sequence[str] | None = None
    ) -> CfgNode:
        """The config with what follows from its data sets, which are checked."""
        if is_classifier(cfg):
            raise ISONetError("this is the config of a classifier: run it with tools/pretrain.py")
        return check_datasets(cfg, train, classes)

    @classmethod
    def class_records(cls, cfg: CfgNode) -> list[dict[str, Any]] | None:
        """Id and name of each class of the training data; None where nobody knows."""
        return class_records(cfg.DATASETS.TRAIN[0])

    @classmethod
    def draw_pictures(cls, cfg: CfgNode, model: nn.Module) -> None:
        if cfg.DATASETS.TEST:
            folder = cfg.OUTPUT_DIR
            draw_predictions(cfg, model, folder)
            if cfg.TEST.REPORT:
                write_report(
                    cfg.DATASETS.TEST[0], find_results(folder), f"{folder}/report.html", run=folder
                )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg, cfg.SOLVER.ACCUMULATE_STEPS)
        logger.debug("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """The training loader; the trainer gives it its seed."""
        return build_train_loader(cfg, seed=0)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = NamingDatasetMapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)
