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

from ..errors import ISONetError

logger = logging.getLogger(__name__)

SCALED_KEYS = (
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "SOLVER.REFERENCE_WORLD_SIZE",
)


def keep_explicit_schedule(cfg: CfgNode, options: Sequence[str]) -> None:
    """What a person wrote on the command line is what runs: a batch, rate or schedule given there
    turns ``SOLVER.REFERENCE_WORLD_SIZE`` off, in place."""
    keys = set(options[::2])
    explicit = sorted(keys & set(SCALED_KEYS[:5]))
    if explicit and cfg.SOLVER.REFERENCE_WORLD_SIZE and SCALED_KEYS[-1] not in keys:
        logger.warning(
            "%s on the command line: batch, rate and schedule are taken as written, and "
            "SOLVER.REFERENCE_WORLD_SIZE %d is not applied.",
            ", ".join(explicit),
            cfg.SOLVER.REFERENCE_WORLD_SIZE,
        )
        cfg.SOLVER.REFERENCE_WORLD_SIZE = 0


def scaled_to_workers(cfg: CfgNode, processes: int) -> CfgNode:
    """A config scaled from ``SOLVER.REFERENCE_WORLD_SIZE`` processes to those that are there, by
    Detectron2's rules (batch and rate in proportion, schedule and warm-up inversely); old and new
    values are logged. ``SOLVER.ACCUMULATE_STEPS`` micro-batches count like that many processes:
    one GPU that accumulates 8 keeps a recipe for 8 GPUs as it is.

    Raises:
        ISONetError: the batch does not divide.
    """
    reference, steps = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.ACCUMULATE_STEPS
    if steps < 1:
        raise ISONetError(f"SOLVER.ACCUMULATE_STEPS is 1 or more, not {steps}")
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ISONetError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} processes"
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes * steps)
    changed = [
        f"{key} {attrgetter(key)(cfg)} -> {attrgetter(key)(scaled)}"
        for key in SCALED_KEYS
        if attrgetter(key)(cfg) != attrgetter(key)(scaled)
    ]
    if changed:
        logger.info(
            "Scaled from %d processes to %d of %d micro-batches: %s",
            reference,
            processes,
            steps,
            "; ".join(changed),
        )
    if scaled.SOLVER.IMS_PER_BATCH % (processes * steps):
        raise ISONetError(
            f"SOLVER.IMS_PER_BATCH {scaled.SOLVER.IMS_PER_BATCH} does not divide among "
            f"{processes} processes of {steps} SOLVER.ACCUMULATE_STEPS"
        )
    return scaled


def epochs_to_iterations(cfg: CfgNode, images: int, options: Sequence[str] = ()) -> None:
    """Write a pre-training's schedule in iterations into its config, in place: an epoch is as many
    whole batches as the images make (authors' loader drops the rest).

    Args:
        cfg: with ``PRETRAIN``'s epochs.
        images: of the training set.
        options: the command line's ``KEY VALUE`` words; keys given there stay as written.

    Raises:
        ISONetError: less than one batch, or an invalid number of epochs.
    """
    epochs = cfg.PRETRAIN
    epoch = images // cfg.SOLVER.IMS_PER_BATCH
    if epoch == 0:
        raise ISONetError(
            f"the training set has {images} images, fewer than one batch "
            f"(SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH})"
        )
    if epochs.EPOCHS < 1 or min(epochs.WARMUP_EPOCHS, epochs.EVAL_EPOCHS) < 0:
        raise ISONetError(
            f"PRETRAIN.EPOCHS {epochs.EPOCHS} is at least 1, WARMUP_EPOCHS {epochs.WARMUP_EPOCHS} "
            f"and EVAL_EPOCHS {epochs.EVAL_EPOCHS} are at least 0"
        )
    for section, key, value in (
        ("SOLVER", "MAX_ITER", epochs.EPOCHS * epoch),
        ("SOLVER", "STEPS", tuple(drop * epoch for drop in epochs.DROP_EPOCHS)),
        ("SOLVER", "WARMUP_ITERS", epochs.WARMUP_EPOCHS * epoch),
        ("SOLVER", "CHECKPOINT_PERIOD", epoch),
        ("TEST", "EVAL_PERIOD", epochs.EVAL_EPOCHS * epoch),
    ):
        if f"{section}.{key}" not in options[::2]:
            cfg[section][key] = value


def build_epoch_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The authors' schedule (``adjust_learning_rate``): in epoch e of a warm-up of W epochs the
    rate is e/W of the base rate, and ``SOLVER.GAMMA`` times itself after each of
    ``SOLVER.STEPS``. ``SOLVER.LR_SCHEDULER_NAME`` other than WarmupMultiStepLR: Detectron2's.

    Raises:
        ISONetError: the rate would drop before the warm-up ends, or drops are out of order.
    """
    solver, stairs = cfg.SOLVER, cfg.PRETRAIN.WARMUP_EPOCHS
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return build_lr_scheduler(cfg, optimizer)
    points = [(solver.WARMUP_ITERS * k // stairs, (k + 1) / stairs) for k in range(stairs)]
    if not solver.WARMUP_ITERS or not points:
        points = [(0, 1.0)]
    points += [(step, solver.GAMMA ** (k + 1)) for k, step in enumerate(solver.STEPS)]
    if any(b <= a for (a, _), (b, _) in pairwise(points)):
        raise ISONetError(
            f"the learning rate changes at iterations {[p[0] for p in points]}, which do not "
            "increase: PRETRAIN.DROP_EPOCHS follow one another after WARMUP_EPOCHS"
        )
    points = [point for point in points if point[0] < solver.MAX_ITER]
    scheduler = MultiStepParamScheduler(
        values=[value for _, value in points],
        milestones=[iteration for iteration, _ in points[1:]],
        num_updates=solver.MAX_ITER,
    )
    return LRMultiplier(optimizer, scheduler, solver.MAX_ITER)
