"""The command line of tools/train_net.py and tools/pretrain.py."""

import argparse
import functools
import os
from typing import Any

from detectron2.utils.logger import setup_logger

from ..cli import command
from .arguments import argument_parser
from .prepare import prepare, setup
from .processes import launch_processes, run_under_torchrun, under_torchrun
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


@command
def main(trainer: type[Trainer], argv: list[str] | None = None) -> None:
    """Check, then train or evaluate; under torchrun too.

    Args:
        trainer: whose run it is.
        argv: the command line's words; None for those of the process.
    """
    args = argument_parser().parse_args(argv)
    setup_logger(name="isonet_det", distributed_rank=int(os.environ.get("RANK", 0)))
    check, work = functools.partial(prepare, trainer), functools.partial(run, trainer)
    if under_torchrun():
        run_under_torchrun(check, work, args)
        return
    check(args)
    launch_processes(work, args)
