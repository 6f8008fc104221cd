"""Which learning rate: a sweep over a run's own data (Smith, WACV 2017)."""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from ..analysis.curves import new_figure
from ..data.stream import end_workers
from ..weights.loader import load_weights
from .trainer import Trainer

logger = logging.getLogger(__name__)

SMOOTHING = 0.9  # of the exponential mean of the losses
DIVERGED = 4.0  # times the best loss: the sweep ends


def sweep_rates(
    cfg: CfgNode, trainer: type[Trainer], lowest: float, highest: float, iterations: int
) -> Iterator[tuple[float, float]]:
    """Rate (as ``SOLVER.BASE_LR``) and smoothed loss of a training whose rate grows."""
    training = trainer(cfg)
    load_weights(training.model, training.cfg.MODEL.WEIGHTS)
    step, groups = training._trainer, training.optimizer.param_groups
    ratios = [group["initial_lr"] / training.cfg.SOLVER.BASE_LR for group in groups]
    mean, best = 0.0, math.inf
    try:
        with EventStorage(0) as storage:
            for step.iter in range(iterations):
                rate = lowest * (highest / lowest) ** (step.iter / max(iterations - 1, 1))
                for group, ratio in zip(groups, ratios, strict=True):
                    group["lr"] = rate * ratio
                step.run_step()
                step.write_losses()
                loss, _ = storage.latest()["total_loss"]
                mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
                smooth = mean / (1 - SMOOTHING ** (step.iter + 1))
                yield rate, smooth
                best = min(best, smooth)
                if smooth > DIVERGED * best:
                    return
                storage.step()
    except FloatingPointError:  # ours or of Detectron2's RPN
        logger.info("At a learning rate of %.3g the loss is not finite", rate)
    finally:
        end_workers(step._data_loader_iter_obj)


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate at which the loss is least."""
    return rates[int(np.argmin(losses))] / 10


def draw_sweep(
    rates: Sequence[float], losses: Sequence[float], suggestion: float, path: str
) -> None:
    figure, ((axis,),) = new_figure(1, 1, 7, 4.5)
    axis.plot(rates, losses)
    axis.axvline(suggestion, color="0.4", linestyle="--", label=f"suggestion: {suggestion:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="total loss, smoothed")
    axis.set_ylim(0.9 * min(losses), min(max(losses), 3 * losses[0]) * 1.05)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
