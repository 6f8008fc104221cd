"""Fewer or more processes than a recipe was written for."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from .errors import IsonetError

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


def get_key(cfg: CfgNode, key: str):
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def keep_explicit_schedule(cfg: CfgNode, options: Sequence[str]) -> None:
    """What a person wrote on the command line is what runs: a batch, rate or schedule given there
    turns ``SOLVER.REFERENCE_WORLD_SIZE`` off, in place."""
    given = set(options[::2])
    explicit = sorted(given & set(SCALED_KEYS[:5]))
    if explicit and cfg.SOLVER.REFERENCE_WORLD_SIZE and SCALED_KEYS[-1] not in given:
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
        IsonetError: the batch does not divide.
    """
    reference, steps = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.ACCUMULATE_STEPS
    if steps < 1:
        raise IsonetError(f"SOLVER.ACCUMULATE_STEPS is 1 or more, not {steps}")
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise IsonetError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} processes"
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes * steps)
    changed = [
        f"{key} {get_key(cfg, key)} -> {get_key(scaled, key)}"
        for key in SCALED_KEYS
        if get_key(cfg, key) != get_key(scaled, key)
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
        raise IsonetError(
            f"SOLVER.IMS_PER_BATCH {scaled.SOLVER.IMS_PER_BATCH} does not divide among "
            f"{processes} processes of {steps} SOLVER.ACCUMULATE_STEPS"
        )
    return scaled
