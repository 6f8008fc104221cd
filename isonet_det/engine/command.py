"""The command line of tools/train_net.py and tools/pretrain.py."""

import argparse
import functools
import os
from typing import Any

from detectron2.utils.logger import setup_logger

from ..cli import command
from ..data.sets import shared_between_ranks
from .arguments import argument_parser, make_cfg
from .prepare import prepare, setup
from .processes import launch_processes, run_under_torchrun, under_torchrun
from .step import flush_subnormals
from .trainer import Trainer


def run(trainer: type[Trainer], args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``; in every process.

    Args:
        trainer: whose run it is.
        args: of the command line.
    """
    cfg = setup(trainer, args)
    if args.eval_only:
        return trainer.evaluate(cfg)
    training = trainer(cfg)
    training.resume_or_load(resume=args.resume)
    return training.train()


def _run_sharing(trainer: type[Trainer], args: argparse.Namespace) -> Any:
    """:func:`run` where a launcher started the processes: one of a machine reads the data sets."""
    cfg = make_cfg(args)
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    with shared_between_ranks(names, int(os.environ["LOCAL_RANK"])):
        return run(trainer, args)


@command
def main(trainer: type[Trainer], argv: list[str] | None = None) -> None:
    """Check, then train or evaluate; under torchrun too.

    Args:
        trainer: whose run it is.
        argv: the command line's words; None for those of the process.
    """
    args = argument_parser().parse_args(argv)
    flush_subnormals()  # before the checks, which start this process' threads
    setup_logger(name="isonet_det", distributed_rank=int(os.environ.get("RANK", 0)))
    check = functools.partial(prepare, trainer)
    if under_torchrun():
        run_under_torchrun(check, functools.partial(_run_sharing, trainer), args)
        return
    check(args)
    launch_processes(functools.partial(run, trainer), args)
