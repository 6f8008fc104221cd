"""Fewer or more processes than a recipe was written for, and schedules in epochs."""

import logging
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver import LRMultiplier, build_lr_scheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.optim.lr_scheduler import LRScheduler

from ..errors import ISONetError

logger = logging.getLogger(__name__)

BATCH_AND_RATE = ("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR")
SCHEDULE = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)
_REFERENCE = "SOLVER.REFERENCE_WORLD_SIZE"


def scale_to_processes(cfg: CfgNode, processes: int, options: Sequence[str] = ()) -> CfgNode:
    """A config, frozen, scaled by Detectron2's rules from ``SOLVER.REFERENCE_WORLD_SIZE`` processes
    to those that are there; micro-batches count like processes. A batch or rate among the command
    line's ``options`` turns the scaling off; a key of the schedule is taken as it is."""
    keys, steps = set(options[::2]), cfg.SOLVER.ACCUMULATE_STEPS
    cfg = cfg.clone()
    cfg.defrost()
    given = sorted(keys & set(BATCH_AND_RATE))
    if given and cfg.SOLVER.REFERENCE_WORLD_SIZE and _REFERENCE not in keys:
        logger.warning("%s on the command line: nothing is scaled to processes", ", ".join(given))
        cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        batch = f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}"
        raise ISONetError(f"{batch} does not divide among {_REFERENCE} {reference} processes")
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes * steps).clone()
    scaled.defrost()
    for key in keys & set(SCHEDULE):
        section, name = key.split(".")
        scaled[section][name] = cfg[section][name]
    scaled.freeze()
    changed = [
        f"{key} {attrgetter(key)(cfg)} -> {attrgetter(key)(scaled)}"
        for key in (*BATCH_AND_RATE, *SCHEDULE, _REFERENCE)
        if attrgetter(key)(cfg) != attrgetter(key)(scaled)
    ]
    if changed:
        what = f"{reference} processes to {processes} of {steps} micro-batches"
        logger.info("Scaled from %s: %s", what, "; ".join(changed))
    if scaled.SOLVER.IMS_PER_BATCH % (processes * steps):
        parts = f"{processes} processes of {steps} SOLVER.ACCUMULATE_STEPS"
        batch = f"SOLVER.IMS_PER_BATCH {scaled.SOLVER.IMS_PER_BATCH}"
        raise ISONetError(f"{batch} does not divide among {parts}")
    return scaled


def epochs_to_iterations(cfg: CfgNode, images: int) -> None:
    """Write a schedule in epochs of whole batches as iterations, in place, where it has -1."""
    epochs = cfg.PRETRAIN
    epoch = images // cfg.SOLVER.IMS_PER_BATCH
    if epoch == 0:
        batch = f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}"
        raise ISONetError(f"the training set has {images} images, fewer than one batch ({batch})")
    if epochs.EPOCHS < 1 or min(epochs.WARMUP_EPOCHS, epochs.EVAL_EPOCHS) < 0:
        raise ISONetError(
            f"PRETRAIN.EPOCHS {epochs.EPOCHS} is at least 1, WARMUP_EPOCHS {epochs.WARMUP_EPOCHS} "
            f"and EVAL_EPOCHS {epochs.EVAL_EPOCHS} are at least 0"
        )
    values = (
        epochs.EPOCHS * epoch,
        tuple(drop * epoch for drop in epochs.DROP_EPOCHS),
        epochs.WARMUP_EPOCHS * epoch,
        epoch,
        epochs.EVAL_EPOCHS * epoch,
    )
    for key, value in zip(SCHEDULE, values, strict=True):
        section, name = key.split(".")
        if cfg[section][name] in (-1, (-1,), [-1]):
            cfg[section][name] = value


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Detectron2's schedule, that of its project DeepLab (WarmupPolyLR) among them."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_lr_scheduler(cfg, optimizer)
    from detectron2.projects import deeplab

    return deeplab.build_lr_scheduler(cfg, optimizer)


def build_epoch_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The authors' ``adjust_learning_rate``: a warm-up by epochs, then the steps."""
    solver, stairs = cfg.SOLVER, cfg.PRETRAIN.WARMUP_EPOCHS
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return build_lr_scheduler(cfg, optimizer)
    points = [(solver.WARMUP_ITERS * k // stairs, (k + 1) / stairs) for k in range(stairs)]
    if not solver.WARMUP_ITERS or not points:
        points = [(0, 1.0)]
    points += [(step, solver.GAMMA ** (k + 1)) for k, step in enumerate(solver.STEPS)]
    if any(b <= a for (a, _), (b, _) in pairwise(points)):
        found = [iteration for iteration, _ in points]
        raise ISONetError(f"PRETRAIN: the rate changes at {found}, which do not increase")
    points = [point for point in points if point[0] < solver.MAX_ITER]
    scheduler = MultiStepParamScheduler(
        values=[value for _, value in points],
        milestones=[iteration for iteration, _ in points[1:]],
        num_updates=solver.MAX_ITER,
    )
    return LRMultiplier(optimizer, scheduler, solver.MAX_ITER)
