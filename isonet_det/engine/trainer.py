"""Training from yaml configs: Detectron2's ``DefaultTrainer`` around the loop of all runs."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter
from torch import nn

from ..analysis.curves import try_to_draw
from ..analysis.pictures import draw_predictions
from ..analysis.report import find_results, write_report
from ..data import check_datasets
from ..data.classes import class_records, names_of_model
from ..data.mapper import mask_format
from ..data.stream import (
    build_test_loader,
    build_train_loader,
    build_validation_loader,
    mixed_seed,
    seed_everything,
)
from ..errors import ISONetError
from ..evaluation.coco import FastCOCOEvaluator, build_evaluator
from ..modeling.classifier import is_classifier
from ..modeling.detectron2 import require_our_keys
from ..regularizer.loss import build_model
from ..solver.optimizer import build_optimizer
from ..solver.schedule import build_scheduler, scaled_to_workers
from ..weights.loader import load_weights
from .evaluate import Evaluation, WeightAverage, validation_losses
from .hooks import deciding_metrics
from .loop import RunOptions, TrainingLoop
from .step import StepOptions, flush_subnormals
from .tracking import Tracking

logger = logging.getLogger(__name__)


def step_options(cfg: CfgNode, seed: int) -> StepOptions:
    """How a config's iterations run.

    Raises:
        ISONetError: an unknown choice.
    """
    solver = cfg.SOLVER
    return StepOptions(
        amp=solver.AMP.ENABLED,
        amp_dtype=solver.AMP.DTYPE,
        accumulate_steps=solver.ACCUMULATE_STEPS,
        seed=seed,
        on_nonfinite=solver.ON_NONFINITE,
        nonfinite_limit=solver.NONFINITE_LIMIT,
        unreadable_limit=cfg.DATALOADER.UNREADABLE_LIMIT,
    )


class Trainer(TrainingLoop, DefaultTrainer):
    """Detectron2's ``DefaultTrainer``, whose ``build_*`` methods may be overridden, with the
    orthogonal loss, an ISONet's parameter groups, strict weight loading, COCO evaluation, and exact
    resume; on one device or several, with or without GPU.

    Args:
        cfg: from :func:`isonet_det.engine.prepare.setup` or :func:`isonet_det.get_cfg`.

    Raises:
        ISONetError: the config has not this package's keys.
    """

    def __init__(self, cfg: CfgNode) -> None:
        require_our_keys(cfg)
        flush_subnormals()
        cfg = scaled_to_workers(cfg, comm.get_world_size())
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        seed_everything(mixed_seed(seed, "model"))
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        if cfg.DATASETS.TRAIN:  # a detector carries its labels
            model.classes = class_records(cfg.DATASETS.TRAIN[0])  # type: ignore[assignment]
        solver = cfg.SOLVER
        super().__init__(
            model,
            optimizer,
            self.build_train_loader(cfg),
            RunOptions(
                output_dir=cfg.OUTPUT_DIR,
                max_iter=solver.MAX_ITER,
                weights=cfg.MODEL.WEIGHTS,
                checkpoint_period=solver.CHECKPOINT_PERIOD,
                checkpoint_keep=solver.CHECKPOINT_KEEP,
                summary_period=cfg.MODEL.ISONET.SUMMARY_PERIOD,
                eval_period=cfg.TEST.EVAL_PERIOD,
                recipe={"config": cfg.dump()},
                deciding=deciding_metrics(cfg.DATASETS.TEST),
            ),
            step_options(cfg, seed),
            broadcast_buffers=False,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.cfg = cfg
        ema = cfg.MODEL.EMA
        self.average = WeightAverage(model, ema.DECAY, cfg.OUTPUT_DIR) if ema.ENABLED else None
        self.tracking = Tracking(cfg)
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks in its order, the writers last; checkpoints are no hook here."""
        stopping = self.cfg.SOLVER.EARLY_STOPPING
        evaluation = Evaluation(
            self.cfg.TEST.EVAL_PERIOD, self._evaluate_now, stopping.METRIC, stopping.PATIENCE
        )
        timer, *hooks = [
            evaluation if type(h) is EvalHook else h
            for h in super().build_hooks()
            if h and not isinstance(h, PeriodicCheckpointer)
        ]
        if self.cfg.TEST.AUG.ENABLED:  # after the last evaluation, before the writers end
            hooks.insert(len(hooks) - comm.is_main_process(), EvalHook(0, self._test_augmented))
        hooks = [timer, *self.run_hooks(), self.average, *hooks]
        if comm.is_main_process():
            hooks.insert(-1, self.tracking)  # the writers stay last
        return hooks

    def _evaluate_now(self) -> dict[str, Any]:
        """AP of the weights and of their average, and the losses of the first test set."""
        model = self.checkpointer.model
        results = self.test(self.cfg, self.model)
        self._last_eval_results = results
        if self.cfg.TEST.VAL_LOSS and self.cfg.DATASETS.TEST and not is_classifier(self.cfg):
            name, classes = self.cfg.DATASETS.TEST[0], names_of_model(model)
            loader = build_validation_loader(self.cfg, name, classes)
            results = {**results, "val": validation_losses(model, loader)}
        if self.average is not None:
            with self.average.applied():
                results = {**results, "ema": self.test(self.cfg, self.model)}
        return results

    def _test_augmented(self) -> dict[str, Any]:
        results = self.test_with_TTA(self.cfg, self.model)
        self._last_eval_results.update(results)
        return results

    def train(self) -> Any:
        """:meth:`isonet_det.engine.loop.TrainingLoop.train`, then pictures and
        ``TEST.EXPECTED_RESULTS``."""
        results = super().train()
        if comm.is_main_process():
            try_to_draw(self.draw_pictures, self.cfg, self.checkpointer.model)
            self.tracking.finish()
            if self.cfg.TEST.EXPECTED_RESULTS and not self.cfg.DATASETS.TEST:
                logger.warning("TEST.EXPECTED_RESULTS: there is no test set to compare")
            else:
                verify_results(self.cfg, results or {})
        return results

    @classmethod
    def evaluate(cls, cfg: CfgNode) -> Any:
        """Evaluate ``MODEL.WEIGHTS``, which must fill the whole model; in all processes.

        Raises:
            ISONetError: the weights do not fit.
        """
        model = cls.build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS, whole=True)
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(cls.test_with_TTA(cfg, model))
        if comm.is_main_process():
            try_to_draw(cls.draw_pictures, cfg, model)
            verify_results(cfg, results)
        return results

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict[str, Any]:
        """Detectron2's ``test``; the evaluators know which classes the model predicts."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        names = names_of_model(getattr(model, "module", model))
        for evaluator in evaluators:
            if isinstance(evaluator, FastCOCOEvaluator):
                evaluator.classes = names
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """The evaluation with ``TEST.AUG``'s test-time augmentation, as Detectron2's
        tools/train_net.py has it: results under NAME_TTA, files in ``TTA`` of ``OUTPUT_DIR``."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "TTA")
        augmented = GeneralizedRCNNWithTTA(cfg, model)
        augmented.classes = getattr(getattr(model, "module", model), "classes", None)
        results = cls.test(cfg, augmented)
        return {f"{name}_TTA": result for name, result in results.items()}

    @classmethod
    def check_data(cls, cfg: CfgNode, train: bool) -> None:
        """See whether the data sets of a config can be used, before anything is made.

        Raises:
            ISONetError: they cannot.
        """
        if is_classifier(cfg):
            raise ISONetError("this is the config of a classifier: run it with tools/pretrain.py")
        check_datasets(cfg, train)

    @classmethod
    def complete_cfg(cls, cfg: CfgNode, options: Sequence[str]) -> CfgNode:
        """A config with what follows from the data; ``options`` are the command line's."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MASK_FORMAT = mask_format(cfg, parse=False)
        cfg.freeze()
        return cfg

    @classmethod
    def draw_pictures(cls, cfg: CfgNode, model: nn.Module) -> None:
        """Pictures of an evaluated model, in ``OUTPUT_DIR``."""
        if cfg.DATASETS.TEST:
            draw_predictions(cfg, model, cfg.OUTPUT_DIR)
            if cfg.TEST.REPORT:
                folder = cfg.OUTPUT_DIR
                path = os.path.join(folder, "report.html")
                write_report(cfg.DATASETS.TEST[0], find_results(folder), path, run=folder)

    def build_writers(self):
        """Detectron2's writers; TensorBoard's as ``TRACKING`` says."""
        writers = super().build_writers()
        if "tensorboard" in self.cfg.TRACKING:
            return writers
        return [writer for writer in writers if not isinstance(writer, TensorboardXWriter)]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg, cfg.SOLVER.ACCUMULATE_STEPS)
        logger.info("Model:\n%s", model)
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
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)
