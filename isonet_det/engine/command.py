"""The command line of tools/train_net.py and tools/pretrain.py."""

import argparse
import functools
import os
from typing import Any

from detectron2.config import CfgNode

from ..cli import command
from ..config import find_config_file
from ..data import register_from_argument
from .arguments import argument_parser, build_cfg
from .logs import log_to_screen
from .processes import number_of_processes, run_in_processes
from .set_up import hold_output_dir, set_up
from .step import flush_subnormals
from .trainer import Trainer


def _prepare(trainer: type[Trainer], args: argparse.Namespace) -> CfgNode:
    """The config, parsed once; data of several processes are checked before they start."""
    processes = number_of_processes(args)
    cfg = build_cfg(args.config_file, args.opts, args.dataset, processes)
    if processes > 1 and not args.eval_only:
        trainer.complete_cfg(cfg)
    return cfg


def run(trainer: type[Trainer], args: argparse.Namespace, cfg: CfgNode) -> Any:
    """Train or evaluate, in every process; nothing is written before all was checked."""
    for argument in args.dataset:  # a process that was just started has them not
        register_from_argument(argument)
    if args.eval_only:
        cfg, model = trainer.trained_model(cfg)
        return trainer.evaluate(set_up(cfg, args), model)
    training = trainer(cfg)
    with hold_output_dir(cfg.OUTPUT_DIR):
        training.resume_or_load(resume=args.resume)
        set_up(training.cfg, args)
        return training.train()


@command
def main(trainer: type[Trainer], argv: list[str] | None = None, datasets: bool = True) -> None:
    args = argument_parser(datasets).parse_args(argv)
    flush_subnormals()  # before the checks, which start this process' threads
    log_to_screen(int(os.environ.get("RANK", 0)))
    if args.config_file:
        args.config_file = find_config_file(args.config_file)
    work = functools.partial(run, trainer, args)
    run_in_processes(work, args, functools.partial(_prepare, trainer, args))
