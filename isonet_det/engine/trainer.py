"""Detectron2's trainer with what an ISONet needs."""

import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ..analysis.pictures import draw_curves, draw_predictions, try_to_draw
from ..data import check_datasets
from ..data.classes import class_records, names_of_model
from ..data.mapper import mask_format
from ..data.stream import (
    TrainBatches,
    build_test_loader,
    build_train_loader,
    end_workers,
    mixed_seed,
    seed_everything,
    step_seed,
)
from ..errors import IsonetError
from ..evaluation.coco import FastCOCOEvaluator, build_evaluator
from ..regularizer.loss import build_model
from ..solver.optimizer import build_optimizer
from ..solver.schedule import scaled_to_workers
from ..weights.loader import load_weights
from .checkpointer import WholeCheckpointer
from .divergence import first_nonfinite, guard_nonfinite, write_dump
from .hooks import (
    EXIT_STATUS,
    Checkpoints,
    IsometrySummary,
    LossWriter,
    MetricsState,
    RunClock,
    StopOnSignal,
    deciding_metrics,
    set_aside_earlier_run,
)
from .step import NonFiniteError, Step

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with the orthogonal loss, an ISONet's parameter groups,
    strict weight loading, COCO evaluation, and exact resume; on one device or several, with or
    without GPU.

    Args:
        cfg: from :func:`isonet_det.engine.setup` or :func:`isonet_det.get_cfg`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = scaled_to_workers(cfg, comm.get_world_size())
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        seed_everything(mixed_seed(self.seed, "model"))
        model = self.build_model(cfg)
        guard_nonfinite(model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if cfg.DATASETS.TRAIN:  # a detector carries its labels
            model.classes = class_records(cfg.DATASETS.TRAIN[0])  # type: ignore[assignment]
        # DistributedDataParallel takes device ids for GPUs only.
        on_gpu = next(model.parameters()).device.type == "cuda"
        model = create_ddp_model(
            model, broadcast_buffers=False, **({} if on_gpu else {"device_ids": None})
        )
        self._trainer = Step(
            model,
            data_loader,
            optimizer,
            cfg.SOLVER.AMP.ENABLED,
            cfg.SOLVER.ACCUMULATE_STEPS,
            self.seed,
            cfg.SOLVER.ON_NONFINITE,
            cfg.SOLVER.NONFINITE_LIMIT,
            cfg.DATALOADER.UNREADABLE_LIMIT,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = WholeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def stopping(self) -> int | None:
        """The signal by which all processes have agreed to stop, or None."""
        return self._stop.stopping

    def write_losses(self) -> None:
        """Fetch and log the losses of the latest iterations; in all processes."""
        self._trainer.write_losses()

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the newest whole checkpoint in ``OUTPUT_DIR`` if ``resume`` and there is
        one, else load ``MODEL.WEIGHTS``, strictly.

        Raises:
            IsonetError: the weights do not fit.
        """
        path = self.checkpointer.newest_whole() if resume and comm.is_main_process() else None
        path = comm.all_gather(path)[0]
        if path is None:
            load_weights(self.checkpointer.model, self.cfg.MODEL.WEIGHTS)
            if comm.is_main_process():
                set_aside_earlier_run(self.cfg.OUTPUT_DIR)
        else:
            self.checkpointer.load(path)
            self.start_iter = self.iter + 1
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        if isinstance(batches, TrainBatches):
            batches.seed = self.seed
            batches.skip = self.start_iter * self.cfg.SOLVER.ACCUMULATE_STEPS
        elif path is not None:
            logger.warning("The training data of this Trainer starts over: resume is not exact.")

    def build_hooks(self) -> list[HookBase | None]:
        self._stop = StopOnSignal()
        metrics = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        timer, *hooks = [
            h for h in super().build_hooks() if h and not isinstance(h, PeriodicCheckpointer)
        ]
        # The losses before the writers read them; the checkpoint after everything else.
        return [
            timer,
            self._stop,
            MetricsState(metrics),
            RunClock(),
            LossWriter(),
            IsometrySummary(self.cfg.MODEL.ISONET.SUMMARY_PERIOD),
            *hooks,
            Checkpoints(
                self.checkpointer,
                self.cfg.SOLVER.CHECKPOINT_KEEP,
                deciding_metrics(self.cfg.DATASETS.TEST),
            ),
        ]

    def train(self) -> Any:
        """Run the training; Detectron2's loop, except that a run that stops early evaluates and
        logs nothing more.

        Returns:
            the results of the last evaluation.

        Raises:
            NonFiniteError: a loss or gradient is not finite; a dump is written.
            SystemExit: the run was told to stop (:data:`isonet_det.hooks.EXIT_STATUS`).
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.stopping:
                        self._exit()
            except NonFiniteError as error:
                raise self._diagnosed(error) from error
            except RuntimeError as error:
                if self._stop.received and "DataLoader worker" in str(error):
                    # The signal ended a worker first: the latest checkpoint has to do.
                    raise SystemExit(EXIT_STATUS[self._stop.received]) from error  # type: ignore
                raise
            finally:
                end_workers(self._trainer._data_loader_iter_obj)
                self._stop.restore_handlers()
            self.iter = self.max_iter
            self.after_train()
        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process():
            try_to_draw(draw_curves, self.cfg.OUTPUT_DIR)
            try_to_draw(self.draw_pictures, self.cfg, self.checkpointer.model)
            if self.cfg.TEST.EXPECTED_RESULTS:
                verify_results(self.cfg, results or {})
        return results

    def _exit(self) -> None:
        if self.iter + 1 < self.max_iter:
            logger.warning(
                "Stopped after iteration %d; run again with --resume to go on", self.iter
            )
            comm.synchronize()  # the others would be ended while the first one still saves
            raise SystemExit(EXIT_STATUS[self.stopping])  # type: ignore[index]

    def _diagnosed(self, error: NonFiniteError) -> NonFiniteError:
        """The error with the first module that fails, and where the dump is."""
        model = self.checkpointer.model
        rank = comm.get_rank()
        reason, keys, seed = "nothing in a second pass", error.batches[0], 0
        for micro_batch, keys in enumerate(error.batches):
            seed = step_seed(self.seed, rank, error.iteration, micro_batch)
            batch = [self._trainer.data_loader.dataset[key] for key in keys]
            reason = first_nonfinite(model, batch, seed)
            if not reason.startswith("nothing"):
                break
        reasons = comm.all_gather(reason)
        guilty = next((r for r, text in enumerate(reasons) if not text.startswith("nothing")), 0)
        message = f"{error}; first not finite: {reasons[guilty]}"
        path = ""
        if rank == guilty:
            path = write_dump(
                self.cfg.OUTPUT_DIR, self.cfg, model, error.iteration, keys, seed, message
            )
        path = comm.all_gather(path)[guilty]
        return NonFiniteError(
            f"{message}; run it again with tools/replay.py {path}, or set SOLVER.ON_NONFINITE skip",
            error.iteration,
            error.batches,
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = self._trainer.seed = state_dict.get("seed", self.seed)

    @classmethod
    def evaluate(cls, cfg: CfgNode) -> Any:
        """Evaluate ``MODEL.WEIGHTS``, which must fill the whole model; in all processes.

        Raises:
            IsonetError: the weights do not fit.
        """
        model = cls.build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS, whole=True)
        results = cls.test(cfg, model)
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
    def check_data(cls, cfg: CfgNode, train: bool) -> None:
        """See whether the data sets of a config can be used, before anything is made.

        Raises:
            IsonetError: they cannot.
        """
        if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            raise IsonetError("this is the config of a classifier: run it with tools/pretrain.py")
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

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg, cfg.SOLVER.ACCUMULATE_STEPS)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg, seed=0)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)
