"""What Trainer does around an iteration."""

import logging
import os
import signal
import threading
import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter

from ..analysis.isometry import summarize
from ..cli import heeded_signals
from .checkpointer import BEST, WholeCheckpointer

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations: Detectron2's writers' own period
AGREEMENT_SECONDS = 2.0  # that a signal waits, at the most, for several processes to agree


class StopOnSignal(HookBase):
    """Ends the run after the iteration of a signal, in all processes alike. SIGTERM may come again
    (schedulers send it to every process, and parents hand it on); Ctrl-C then ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopping: int | None = None
        self._old: dict[int, Any] = {}
        self._next_agreement = 0

    def before_train(self) -> None:
        self._last_agreement, self._agreed_iterations = time.perf_counter(), self.trainer.iter
        if threading.current_thread() is threading.main_thread():
            for number in heeded_signals():
                self._old[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if self.received is None:
            self.received = number
            logger.warning("%s: stopping, with a checkpoint", signal.Signals(number).name)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def after_step(self) -> None:
        if comm.get_world_size() == 1:
            self.stopping = self.received
        elif self.trainer.iter >= self._next_agreement or self._evaluation_is_next():
            self._agree()

    def _evaluation_is_next(self) -> bool:
        """Whether the next iteration ends with an evaluation, which a stop does not cut short."""
        iterations, period = self.trainer.iter + 2, self.trainer.cfg.TEST.EVAL_PERIOD
        return iterations == self.trainer.max_iter or (period > 0 and iterations % period == 0)

    def _agree(self) -> None:
        """Exchange what was received, and how long the next exchange may wait."""
        now = time.perf_counter()
        seconds = (now - self._last_agreement) / (self.trainer.iter + 1 - self._agreed_iterations)
        self._last_agreement, self._agreed_iterations = now, self.trainer.iter + 1
        answers = comm.all_gather((self.received, seconds))
        self.stopping = max((number for number, _ in answers if number), default=None)
        wait = AGREEMENT_SECONDS / max(seconds for _, seconds in answers)
        self._next_agreement = self.trainer.iter + min(max(int(wait), 1), LOG_PERIOD)

    def restore_handlers(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()


class LossWriter(HookBase):
    """Fetches the losses in blocks, in all processes, before writers and checkpoints need them."""

    def after_step(self) -> None:
        trainer = self.trainer
        periodic = (trainer.iter + 1) % LOG_PERIOD == 0
        if periodic or trainer.iter == trainer.start_iter or trainer.checkpoint_is_due():
            trainer.write_losses()


class Writers(PeriodicWriter):
    """Detectron2's writers; the screen has the first iteration at once."""

    def after_step(self) -> None:
        super().after_step()
        trainer, done = self.trainer, self.trainer.iter + 1
        if trainer.iter == trainer.start_iter and done % LOG_PERIOD and done < trainer.max_iter:
            for writer in self._writers:
                if isinstance(writer, CommonMetricPrinter):
                    writer.write()


class RunClock(HookBase):
    """Hours of training over all parts of a run, and the device's peak memory."""

    seconds = 0.0

    def before_train(self) -> None:
        self._start = time.perf_counter() - self.seconds

    def after_step(self) -> None:
        self.seconds, storage = time.perf_counter() - self._start, self.trainer.storage
        storage.put_scalar("hours", self.seconds / 3600, smoothing_hint=False)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
            storage.put_scalar("max_mem_mb", peak, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]


class IsometrySummary(HookBase):
    """Logs how isometric the backbone is, every ``period`` iterations (0: never)."""

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        if self.period > 0 and (self.trainer.iter + 1) % self.period == 0:
            if comm.is_main_process():
                numbers = summarize(self.trainer.checkpointer.model)
                self.trainer.storage.put_scalars(**numbers, smoothing_hint=False)


class MetricsState(HookBase):
    """Lets a resumed run log what an uninterrupted one logs."""

    WINDOW = 20  # Detectron2's, of the smoothing
    CLOCKS = ("time", "data_time", "eta_seconds")

    def __init__(self, output_dir: str) -> None:
        self.metrics_file = os.path.join(output_dir, "metrics.json")
        self._restored: list[tuple[str, list, bool]] = []

    def state_dict(self) -> dict[str, Any]:
        storage = self.trainer.storage
        here = os.path.isfile(self.metrics_file)
        written = (self.trainer.iter + 1) // LOG_PERIOD * LOG_PERIOD - 1
        scalars = []
        for name, history in storage.histories().items():
            smoothed = storage.smoothing_hints()[name]
            values = [(float(v), int(i)) for v, i in history.values()[-self.WINDOW :]]
            if not smoothed:
                values = [(v, i) for v, i in values[-1:] if i > written]
            if name not in self.CLOCKS:
                scalars.append((name, values, smoothed))
        return {"bytes": os.path.getsize(self.metrics_file) if here else 0, "scalars": scalars}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state["scalars"]
        here = comm.is_main_process() and os.path.isfile(self.metrics_file)
        if here and os.path.getsize(self.metrics_file) > state["bytes"]:
            # What an interrupted run logged after its last checkpoint will be logged again.
            os.truncate(self.metrics_file, state["bytes"])

    def before_train(self) -> None:
        if self.trainer.start_iter >= self.trainer.max_iter:
            return  # nothing will replace them before the writers see them again
        put = self.trainer.storage.put_scalar
        for name, values, smoothed in self._restored:
            for value, iteration in values:
                put(name, value, smoothing_hint=smoothed, cur_iter=iteration)


class Checkpoints:
    """Saves periodically, at the end, when told to stop, and the best AP (or top-1)."""

    def __init__(self, trainer: Any, checkpointer: WholeCheckpointer, cfg: CfgNode) -> None:
        self.trainer, self.checkpointer = trainer, checkpointer
        self.keep, sets = cfg.SOLVER.CHECKPOINT_KEEP, cfg.DATASETS.TEST
        first = f"{sets[0]}/" if len(sets) > 1 else ""
        self.deciding = [f"{first}{name}" for name in ("segm/AP", "bbox/AP", "classification/top1")]
        self.best = float("-inf")
        self.kept: list[str] = []

    def after_step(self) -> None:
        """Save what is due; after all hooks."""
        self.save_best()
        if not self.trainer.checkpoint_is_due():
            return
        last = self.trainer.iter + 1 == self.trainer.max_iter
        name = "model_final" if last else f"model_{self.trainer.iter:07d}"
        before = list(self.kept)
        if not last:
            self.kept = [*(n for n in before if n != name), name][-self.keep :]
        self.checkpointer.save(name, iteration=self.trainer.iter)
        if comm.is_main_process():
            for name in set(before) - set(self.kept):
                self.checkpointer.remove(name)

    def save_best(self) -> None:
        """Save, if this iteration's evaluation is the best so far."""
        latest = self.trainer.storage.latest()
        name = next((name for name in self.deciding if name in latest), None)
        value, iteration = latest.get(name, (self.best, None))
        if iteration == self.trainer.iter and value > self.best:
            self.best = value
            self.checkpointer.save(BEST, iteration=iteration)
            logger.info("The best %s so far: %.3f (%s.pth)", name, value, BEST)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.kept = state["best"], state["kept"]
