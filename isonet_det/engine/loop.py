"""The loop that yaml and lazy training share."""

import itertools
import logging
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, default_writers, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from torch import nn

from ..analysis.curves import draw_curves, try_to_draw
from ..cli import EXIT_STATUS
from ..config import flatten
from ..data.stream import TrainBatches, end_workers, step_seed
from ..weights.loader import load_weights
from .checkpointer import WholeCheckpointer, set_aside
from .divergence import first_nonfinite, guard_nonfinite
from .evaluate import Evaluation, WeightAverage
from .hooks import (
    LOG_PERIOD,
    Checkpoints,
    IsometrySummary,
    LossWriter,
    MetricsState,
    RunClock,
    StopOnSignal,
    Writers,
)
from .logs import Progress
from .processes import together
from .run_info import describe
from .step import NonFiniteError, Step

logger = logging.getLogger(__name__)


class TrainingLoop(TrainerBase):
    """Detectron2's training loop around a :class:`isonet_det.engine.step.Step`."""

    # Properties, of the step.
    model, optimizer = DefaultTrainer.model, DefaultTrainer.optimizer
    data_loader = DefaultTrainer.data_loader

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: Iterable[list[dict[str, Any]]],
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        seed: int,
        **ddp: Any,
    ) -> None:
        super().__init__()
        if next(model.parameters()).device.type != "cuda":
            ddp["device_ids"] = None  # DistributedDataParallel takes them for GPUs only
        self._trainer = Step(create_ddp_model(model, **ddp), data_loader, optimizer, cfg, seed)
        self.cfg, self.scheduler = cfg, scheduler
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._step_images = 0  # of the checkpoint, in this process
        self.checkpointer = WholeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        # Not a hook: it comes after all of them, and a checkpoint holds its whole iteration.
        self.checkpoints = Checkpoints(weakref.proxy(self), self.checkpointer, cfg)
        self._stop = StopOnSignal()
        ema = cfg.MODEL.EMA
        self.average = WeightAverage(model, ema.DECAY, cfg.OUTPUT_DIR) if ema.ENABLED else None
        self._order_data()
        self.register_hooks(self.build_hooks())

    @property
    def seed(self) -> int:
        """Of the order of the data, augmentations and every step's random draws."""
        return self._trainer.seed

    @property
    def recipe(self) -> dict[str, Any]:
        """The keys of the config, dotted, with their values: a resumed run's are compared."""
        keys = dict(flatten(yaml.safe_load(self.cfg.dump())))
        return {**keys, "PROCESSES": comm.get_world_size()}

    @property
    def stopping(self) -> int | None:
        """The signal by which all processes have agreed to stop, or None."""
        return self._stop.stopping

    def checkpoint_is_due(self) -> bool:
        """Whether this iteration ends with a checkpoint; the same in every process."""
        done, period = self.iter + 1, self.cfg.SOLVER.CHECKPOINT_PERIOD
        periodic = period > 0 and done % period == 0
        return done == self.max_iter or self.stopping is not None or periodic

    def build_hooks(self) -> list[HookBase | None]:
        """What happens around an iteration, in this order; :meth:`train` adds the writers."""
        cfg, stopping = self.cfg, self.cfg.SOLVER.EARLY_STOPPING
        return [
            hooks.IterationTimer(),
            self._stop,
            MetricsState(cfg.OUTPUT_DIR),
            RunClock(),
            LossWriter(),  # before the writers read them
            IsometrySummary(cfg.MODEL.ISONET.SUMMARY_PERIOD),
            self.average,
            hooks.LRScheduler(scheduler=self.scheduler),
            Evaluation(cfg.TEST.EVAL_PERIOD, self.evaluate_now, stopping.METRIC, stopping.PATIENCE),
        ]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's: the screen, metrics.json, TensorBoard."""
        screen, *others = default_writers(self.cfg.OUTPUT_DIR, self.max_iter)
        screen.logger = Progress(screen.logger, self.max_iter)
        return [screen, *others]

    def data_names(self) -> list[str]:
        return [*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST]

    def build_trackers(self) -> list[EventWriter]:
        return []

    def evaluate_now(self) -> Any:
        """The results of an evaluation in training."""

    def draw(self) -> None:
        """The pictures of a finished run."""
        try_to_draw(draw_curves, self.cfg.OUTPUT_DIR)

    def write_losses(self) -> None:
        self._trainer.write_losses()

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the newest whole checkpoint if there is one, else load the weights."""
        path = self.checkpointer.newest_whole() if resume and comm.is_main_process() else None
        path = comm.all_gather(path)[0]
        if path is None:
            together(load_weights, self.checkpointer.model, self.cfg.MODEL.WEIGHTS)
            if comm.is_main_process():
                set_aside(self.cfg.OUTPUT_DIR)
        else:
            together(self.checkpointer.load, path)
            self.start_iter = self.iter + 1
        self._order_data()
        if path is not None and self._batches is None:
            logger.warning("This training loader starts over: the resume is not exact.")

    @property
    def _batches(self) -> TrainBatches | None:
        """The order of the data, where it is this package's loader that feeds them."""
        batches = getattr(self.data_loader, "batch_sampler", None)
        return batches if isinstance(batches, TrainBatches) else None

    def images_of_a_step(self) -> int:
        """In this process; 0 where another loader feeds them."""
        return self.cfg.SOLVER.ACCUMULATE_STEPS * getattr(self._batches, "batch_size", 0)

    def _order_data(self) -> None:
        """Let the loader begin at ``start_iter`` of the order that the seed gives."""
        if (batches := self._batches) is not None:
            batches.seed = self.seed
            # In images, as the batch may be another than before.
            seen = self.start_iter * (self._step_images or self.images_of_a_step())
            batches.skip = seen // batches.batch_size

    def train(self) -> Any:
        """Run the training; Detectron2's loop, except that a run that is told to stop evaluates and
        logs nothing more, and exits. Returns the results of the last evaluation."""
        describe(self)
        logger.info("Starting training from iteration %d", self.start_iter)
        if comm.is_main_process():
            writers, trackers = self.build_writers(), self.build_trackers()
            draw = hooks.CallbackHook(after_train=lambda _: self.draw())
            later = hooks.PeriodicWriter(trackers, LOG_PERIOD)
            self.register_hooks([Writers(writers, LOG_PERIOD), draw, later])
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                for iteration in itertools.count(self.start_iter):
                    if iteration >= self.max_iter:  # which a hook may lower
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.checkpoints.after_step()
                    if self.stopping:
                        self._exit()
            except NonFiniteError as error:
                raise self._diagnosed(error) from error
            except RuntimeError as error:
                if self._stop.received and "DataLoader worker" in str(error):
                    # The signal ended a worker first: the latest checkpoint has to do.
                    raise SystemExit(EXIT_STATUS[self._stop.received]) from error
                raise
            finally:
                end_workers(self._trainer._data_loader_iter_obj)
                self._stop.restore_handlers()
            self.iter = self.max_iter
            self.after_train()
            self.checkpoints.save_best()
        return getattr(self, "_last_eval_results", None)

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        with guard_nonfinite(self.checkpointer.model):
            self._trainer.run_step()

    def _exit(self) -> None:
        if self.iter + 1 < self.max_iter:
            logger.warning("Stopped after iteration %d; --resume goes on", self.iter)
            comm.synchronize()  # the others would be ended while the first one still saves
            raise SystemExit(EXIT_STATUS[self.stopping])  # type: ignore[index]

    def _diagnosed(self, error: NonFiniteError) -> NonFiniteError:
        """The error with the first value that is not finite in a second pass."""
        reason, repeatable = "", self._batches is not None
        for micro_batch, keys in enumerate(error.batches if repeatable else ()):
            batch = [self.data_loader.dataset[key] for key in keys]
            seed = step_seed(self.seed, comm.get_rank(), error.iteration, micro_batch)
            model, autocast = self.checkpointer.model, self._trainer.autocast
            reason = reason or first_nonfinite(model, batch, seed, autocast)
        unknown = (
            "not seen in a second pass" if repeatable else "this loader cannot repeat its data"
        )
        reason = next(filter(None, comm.all_gather(reason)), unknown)
        text = f"{error}; first not finite: {reason}; SOLVER.ON_NONFINITE skip skips such updates"
        return NonFiniteError(text, error.iteration, error.batches)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state.setdefault("hooks", {})["Checkpoints"] = self.checkpoints.state_dict()
        return {
            **state,
            "_trainer": self._trainer.state_dict(),
            "seed": self.seed,
            "recipe": self.recipe,
            "step_images": self.images_of_a_step(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint's state, a stock trainer's too; rates and decay are this run's."""
        states = dict(state_dict.get("hooks", {}))
        if "Checkpoints" in states:
            self.checkpoints.load_state_dict(states.pop("Checkpoints"))
        if "LRScheduler" in states:
            states["LRScheduler"] = {**states["LRScheduler"], "base_lrs": self.scheduler.base_lrs}
        super().load_state_dict({**state_dict, "hooks": states})
        # Checkpoints of stock lazy training hold the step's state itself.
        self._trainer.load_state_dict(state_dict.get("_trainer", state_dict))
        if isinstance(self.scheduler, LRMultiplier):
            groups, rates = self.optimizer.param_groups, self.scheduler.get_lr()
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        self._step_images = state_dict.get("step_images", 0)
        if "seed" in state_dict:
            self._trainer.seed = state_dict["seed"]
